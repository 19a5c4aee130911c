/** The samplers of ldmkit's own plugin (plugins/ldmkit_samplers.py), in doubles; the names and sources are given there.
 *
 * Every sampler walks down a grid on which x_t = alpha * x0 + sigma * noise. The grid comes as numbers, which
 * `ldmkit export web` wrote. All are finite at alpha = 0, where some schedules start, and at sigma = 0, where all end.
 *
 * @typedef {{ t: number[], alpha: number[], sigma: number[] }} Grid t (steps), alpha and sigma (steps + 1)
 * @typedef {(x: Float64Array, i: number) => Promise<Float64Array>} Denoise x0 of x at point i of the grid
 * @typedef {(length: number) => Float64Array} Noise fresh unit Gaussian noise
 * @typedef {Record<string, number | string>} Options
 * @typedef {(grid: Grid, x: Float64Array, denoise: Denoise, noise: Noise, options: Options) => Promise<Float64Array>}
 *   Sampler
 */

/** a * x + b * y
 * @param {number} a @param {Float64Array} x @param {number} b @param {Float64Array} y */
const mix = (a, x, b, y) => x.map((value, k) => a * value + b * y[k]);

/** Variance of q(x | next_x) from point i on; rounding must not make it negative.
 * @param {Grid} grid @param {number} i */
const beta = ({ alpha, sigma }, i) => Math.max(sigma[i] ** 2 - ((alpha[i] / alpha[i + 1]) * sigma[i + 1]) ** 2, 0);

/** next_alpha * x0 + next_sigma * noise with noise = (x - alpha * x0) / sigma.
 * @param {Grid} grid @param {number} i @param {Float64Array} x @param {Float64Array} x0 */
function eulerStep({ alpha, sigma }, i, x, x0) {
  const kept = sigma[i + 1] / sigma[i];
  return mix(kept, x, alpha[i + 1] - kept * alpha[i], x0);
}

/** log(alpha / sigma) without the last point, where it is infinite.
 * @param {Grid} grid */
const halfLogSnr = ({ t, alpha, sigma }) => t.map((_, i) => (alpha[i] > 0 ? Math.log(alpha[i] / sigma[i]) : -Infinity));

/** @type {Sampler} */
async function ddpm(grid, x, denoise, noise, { variance = "beta" }) {
  const { t, alpha, sigma } = grid;
  for (let i = 0; i < t.length; i++) {
    const x0 = await denoise(x, i);
    const step = beta(grid, i);
    const kept = ((alpha[i] / alpha[i + 1]) * sigma[i + 1] ** 2) / sigma[i] ** 2;
    x = mix((alpha[i + 1] * step) / sigma[i] ** 2, x0, kept, x);
    if (i + 1 < t.length) {
      const spread =
        variance === "posterior"
          ? (step * sigma[i + 1] ** 2) / sigma[i] ** 2
          : (step * (alpha[i + 1] ** 2 + sigma[i + 1] ** 2)) / (alpha[i] ** 2 + sigma[i] ** 2);
      x = mix(1, x, Math.sqrt(spread), noise(x.length));
    }
  }
  return x;
}

/** @type {Sampler} */
async function ddim(grid, x, denoise, noise, { eta = 0 }) {
  const { t, alpha, sigma } = grid;
  for (let i = 0; i < t.length; i++) {
    const x0 = await denoise(x, i);
    const taken = x.map((value, k) => (value - alpha[i] * x0[k]) / sigma[i]);
    const fresh = (Number(eta) * Math.sqrt(beta(grid, i)) * sigma[i + 1]) / sigma[i];
    x = mix(alpha[i + 1], x0, Math.sqrt(Math.max(sigma[i + 1] ** 2 - fresh ** 2, 0)), taken);
    if (fresh > 0) x = mix(1, x, fresh, noise(x.length));
  }
  return x;
}

/** @type {Sampler} */
async function euler(grid, x, denoise) {
  for (let i = 0; i < grid.t.length; i++) x = eulerStep(grid, i, x, await denoise(x, i));
  return x;
}

/** @type {Sampler} */
async function heun(grid, x, denoise) {
  const { t, alpha, sigma } = grid;
  const flow = sigma[0] > 1000 * alpha[0] ? 1 : 0; // x / (alpha + sigma) is integrated, in place of x / alpha
  /** @param {Float64Array} x @param {Float64Array} x0 @param {number} i */
  const slopeAt = (x, x0, i) => x.map((value, k) => (value - alpha[i] * x0[k]) / sigma[i] - flow * x0[k]);
  let x0 = await denoise(x, 0);
  for (let i = 0; i + 1 < t.length; i++) {
    const slope = slopeAt(x, x0, i);
    x = eulerStep(grid, i, x, x0);
    x0 = await denoise(x, i + 1);
    const nextSlope = slopeAt(x, x0, i + 1);
    const [scale, nextScale] = [alpha[i] + flow * sigma[i], alpha[i + 1] + flow * sigma[i + 1]];
    const length = sigma[i + 1] / nextScale - sigma[i] / scale;
    x = mix(1, x, (nextScale * length) / 2, mix(1, nextSlope, -1, slope));
    x0 = await denoise(x, i + 1);
  }
  return x0;
}

/** @type {Sampler} */
async function dpmpp2mSde(grid, x, denoise, noise, { eta = 1 }) {
  const { t, alpha, sigma } = grid;
  const snr = halfLogSnr(grid);
  const share = Number(eta);
  /** @type {Float64Array | null} */
  let previous = null;
  for (let i = 0; i < t.length; i++) {
    const x0 = await denoise(x, i);
    let extrapolated = x0;
    if (previous && i + 1 < t.length) {
      const ratio = (snr[i + 1] - snr[i]) / (snr[i] - snr[i - 1]);
      extrapolated = mix(1, x0, ratio / 2, mix(1, x0, -1, previous));
    }
    if (share === 0) {
      x = eulerStep(grid, i, x, extrapolated);
    } else {
      const shrink = ((alpha[i] / sigma[i]) * sigma[i + 1]) / alpha[i + 1]; // 0 where the step is infinite
      const kept = (sigma[i + 1] / sigma[i]) * shrink ** share;
      x = mix(kept, x, alpha[i + 1] * (1 - shrink ** (1 + share)), extrapolated);
      if (i + 1 < t.length) x = mix(1, x, sigma[i + 1] * Math.sqrt(1 - shrink ** (2 * share)), noise(x.length));
    }
    previous = x0;
  }
  return x;
}

/** @type {Sampler} */
async function unipc(grid, x, denoise) {
  const { t } = grid;
  const snr = halfLogSnr(grid);
  let x0 = await denoise(x, 0);
  /** @type {Float64Array | null} */
  let previous = null;
  for (let i = 0; i + 1 < t.length; i++) {
    const h = snr[i + 1] - snr[i];
    let slope = new Float64Array(x.length);
    let [back, ahead] = [0, 0.5];
    if (previous) {
      const ratio = h / (snr[i] - snr[i - 1]);
      slope = mix(ratio, x0, -ratio, previous);
      const b = Math.expm1(-h);
      const phi2 = b / -h - 1;
      const phi3 = phi2 / -h - 1 / 2;
      back = (((phi2 - 2 * phi3) / b) * ratio) / (ratio + 1);
      ahead = phi2 / b - back;
    }
    const nextX0 = await denoise(eulerStep(grid, i, x, mix(1, x0, 0.5, slope)), i + 1);
    const corrected = mix(1, mix(1, x0, back, slope), ahead, mix(1, nextX0, -1, x0));
    x = eulerStep(grid, i, x, corrected);
    [previous, x0] = [x0, nextX0];
  }
  return eulerStep(grid, t.length - 1, x, x0);
}

/** @type {Record<string, Sampler>} */
export const SAMPLERS = {
  ddpm,
  ddim,
  euler,
  euler_a: (grid, x, denoise, noise, { eta = 1 }) => ddim(grid, x, denoise, noise, { eta }),
  heun,
  dpmpp_2m: (grid, x, denoise, noise) => dpmpp2mSde(grid, x, denoise, noise, { eta: 0 }),
  dpmpp_2m_sde: dpmpp2mSde,
  unipc,
};

/** How often a sampler calls the network.
 * @param {string} sampler @param {number} steps */
export const numCalls = (sampler, steps) => (sampler === "heun" ? 2 * steps - 1 : steps);

/** The x0 that a network's output stands for.
 * @param {string} prediction "eps", "x0", "v" or "flow" @param {ArrayLike<number>} output @param {Float64Array} x
 * @param {number} alpha @param {number} sigma
 * @returns {Float64Array} */
export function toX0(prediction, output, x, alpha, sigma) {
  switch (prediction) {
    case "eps":
      return x.map((value, k) => (value - sigma * output[k]) / alpha);
    case "x0":
      return Float64Array.from(output);
    case "v":
      return x.map((value, k) => (alpha * value - sigma * output[k]) / (alpha ** 2 + sigma ** 2));
    case "flow":
      return x.map((value, k) => (value - sigma * output[k]) / (alpha + sigma));
  }
  throw new Error(`unknown prediction ${prediction}`);
}
