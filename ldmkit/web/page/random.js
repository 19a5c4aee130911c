/** numpy's Generator(PCG64(seed)).standard_normal: a seed gives the noise that `ldmkit generate` draws.
 *
 * Equal to the bit, but for one number in 4,000, whose logarithm a browser may round the other way (1e-15). */

import { ZIGGURAT_LIMITS, ZIGGURAT_WIDTHS } from "./ziggurat.js";

const TWO_32 = 2 ** 32;
const TAIL = 3.6541528853610088;
/** exp(-x^2 / 2) at the right end of each layer, by which a point in its wedge is judged. */
const DENSITIES = ZIGGURAT_WIDTHS.map((width, k) => (k === 0 ? 1 : Math.exp(-0.5 * (width * 2 ** 52) ** 2)));

/** numpy's SeedSequence(seed).generate_state(8, uint32): O'Neill's seed_seq_fe128.
 * @param {number | bigint} seed a whole number of 0 or more
 * @returns {Uint32Array} */
export function seedState(seed) {
  /** @type {number[]} */
  const entropy = [];
  for (let rest = BigInt(seed); rest > 0n || entropy.length === 0; rest >>= 32n) {
    entropy.push(Number(rest & 0xffffffffn));
  }
  let constant = 0x43b0d7e5;
  /** @param {number} value */
  const hash = (value) => {
    const mixed = value ^ constant;
    constant = Math.imul(constant, 0x931e8875);
    const product = Math.imul(mixed, constant);
    return product ^ (product >>> 16);
  };
  /** @param {number} x @param {number} y */
  const mix = (x, y) => {
    const result = Math.imul(0xca01f9dd, x) - Math.imul(0x4973f715, y);
    return result ^ (result >>> 16);
  };
  const pool = Array.from({ length: 4 }, (_, k) => hash(entropy[k] ?? 0));
  for (let from = 0; from < 4; from++) {
    for (let to = 0; to < 4; to++) if (from !== to) pool[to] = mix(pool[to], hash(pool[from]));
  }
  for (const word of entropy.slice(4)) {
    for (let to = 0; to < 4; to++) pool[to] = mix(pool[to], hash(word));
  }
  constant = 0x8b51f9dd;
  return Uint32Array.from({ length: 8 }, (_, k) => {
    const mixed = pool[k % 4] ^ constant;
    constant = Math.imul(constant, 0x58f38ded);
    const product = Math.imul(mixed, constant);
    return product ^ (product >>> 16);
  });
}

/** The upper 32 bits of the product of two of 32 bits: what rounding a double loses is far below half of one.
 * @param {number} a @param {number} b */
const high = (a, b) => Math.round((a * b - low(a, b)) / TWO_32);
/** @param {number} a @param {number} b */
const low = (a, b) => Math.imul(a, b) >>> 0;

// 128-bit numbers are four words of 32 bits, the lowest first.
const M0 = 0x9fccf645;
const M1 = 0x4385df64;
const M2 = 0x1fc65da4;
const M3 = 0x2360ed05;

/** Unit Gaussian noise of a seed: PCG64 (XSL-RR, O'Neill 2014) and the ziggurat of 256 layers. */
export class Source {
  /** @param {number | bigint} seed a whole number of 0 or more */
  constructor(seed) {
    const words = seedState(seed);
    // numpy puts the upper 64 bits first, and the stream's number is made odd.
    const start = [words[2], words[3], words[0], words[1]];
    const odd = [words[6], words[7], words[4], words[5]];
    this.increment = odd.map((word, k) => ((word << 1) | (k ? odd[k - 1] >>> 31 : 1)) >>> 0);
    this.state = [0, 0, 0, 0];
    this.step();
    let carry = 0;
    this.state = this.state.map((word, k) => {
      const sum = word + start[k] + carry;
      carry = sum >= TWO_32 ? 1 : 0;
      return sum >>> 0;
    });
    this.step();
    /** the last 64 bits drawn, as two words */
    this.upper = 0;
    this.lower = 0;
  }

  /** state = state * multiplier + increment, modulo 2^128. */
  step() {
    const [a, b, c, d] = this.state;
    const [i, j, k, l] = this.increment;
    const sum0 = low(a, M0) + i;
    const sum1 = Math.floor(sum0 / TWO_32) + high(a, M0) + low(b, M0) + low(a, M1) + j;
    const sum2 = Math.floor(sum1 / TWO_32) + high(b, M0) + high(a, M1) + low(c, M0) + low(b, M1) + low(a, M2) + k;
    const sum3 =
      Math.floor(sum2 / TWO_32) +
      high(c, M0) +
      high(b, M1) +
      high(a, M2) +
      low(d, M0) +
      low(c, M1) +
      low(b, M2) +
      low(a, M3) +
      l;
    this.state = [sum0 % TWO_32, sum1 % TWO_32, sum2 % TWO_32, sum3 % TWO_32];
  }

  /** Draws the next 64 bits into `upper` and `lower`. */
  next() {
    this.step();
    const [a, b, c, d] = this.state;
    const turn = d >>> 26;
    let upper = d ^ b;
    let lower = c ^ a;
    if (turn & 32) [upper, lower] = [lower, upper];
    const bits = turn & 31;
    this.upper = (bits ? (upper >>> bits) | (lower << (32 - bits)) : upper) >>> 0;
    this.lower = (bits ? (lower >>> bits) | (upper << (32 - bits)) : lower) >>> 0;
  }

  /** The next number in [0, 1), of 53 bits. */
  uniform() {
    this.next();
    return (this.upper * 2 ** 21 + (this.lower >>> 11)) / 2 ** 53;
  }

  /** The next unit Gaussian number: Marsaglia and Tsang 2000, as numpy's random_standard_normal. */
  normal() {
    for (;;) {
      this.next();
      const { upper, lower } = this;
      const layer = lower & 0xff;
      const distance = (upper & 0x1fffffff) * 2 ** 23 + (lower >>> 9);
      const x = (lower & 0x100 ? -distance : distance) * ZIGGURAT_WIDTHS[layer];
      if (distance < ZIGGURAT_LIMITS[layer]) return x;
      if (layer === 0) {
        for (;;) {
          const beyond = -Math.log1p(-this.uniform()) / TAIL;
          const height = -Math.log1p(-this.uniform());
          if (height + height > beyond * beyond) return lower & 0x20000 ? -(TAIL + beyond) : TAIL + beyond;
        }
      }
      const density = DENSITIES[layer] + (DENSITIES[layer - 1] - DENSITIES[layer]) * this.uniform();
      if (density < Math.exp(-0.5 * x * x)) return x;
    }
  }

  /** The next `length` unit Gaussian numbers.
   * @param {number} length */
  draw(length) {
    return Float64Array.from({ length }, () => this.normal());
  }
}
