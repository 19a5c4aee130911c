/** From prompts to pictures, as ldmkit/runtime/generate.py does it: noise, sampler, guidance, decoder.
 *
 * @typedef {{ type: "float32" | "int64", data: Float32Array | BigInt64Array, dims: number[] }} Value
 * @typedef {(graph: string, inputs: Record<string, Value>) => Promise<Float32Array>} Run
 * @typedef {{ prompt: string, seed: number }} Wanted one picture; prompt "" for none
 * @typedef {{ pictures: Wanted[], negative: string, steps: number, guidance: number, sampler: string }} Request
 * @typedef {{ weights: number[][], bias: number[] }} RgbMap
 * @typedef {{ name: string, prediction: string, picture_size: number | [number, number], files: Record<string, object>,
 *   schedule: { num_timesteps: number }, examples: string[],
 *   latent: { channels: number, height: number, width: number, rgb: RgbMap | null },
 *   text: { max_tokens: number, context_dim: number } | null,
 *   golden: { prompts: string[], seed: number, steps: number, guidance_scale: number, sampler: string,
 *     min_psnr: number } | null,
 *   defaults: { sampler: string, sampler_options: import("./samplers.js").Options, steps: number,
 *     guidance_scale: number } }} Manifest what is used of manifest.json
 * @typedef {{ t: number[], alpha: number[], sigma: number[], spacings: Record<string, number[][]> }} Grids
 *   the points of all grids; of each spacing, for 1, 2, 3 … steps, which of the points are its own
 * @typedef {{ done: number, total: number, pictures: number[], x0: Float64Array }} Step
 */

import { Source } from "./random.js";
import { SAMPLERS, numCalls, toX0 } from "./samplers.js";

const BATCH_SIZE = 4;

/** The options with which a sampler is asked: the bundle's own where it is the bundle's own.
 * @param {Manifest} manifest @param {string} sampler
 * @returns {import("./samplers.js").Options} */
export const optionsOf = ({ defaults }, sampler) => (sampler === defaults.sampler ? defaults.sampler_options : {});

/** @param {Grids} grids @param {number} steps @param {import("./samplers.js").Options} options
 * @returns {import("./samplers.js").Grid} */
export function gridOf(grids, steps, options) {
  const points = grids.spacings[options.spacing ?? "trailing"][steps - 1];
  /** @param {number[]} values */
  const at = (values) => points.map((point) => values[point]);
  return { t: at(grids.t), alpha: [...at(grids.alpha), 1], sigma: [...at(grids.sigma), 0] };
}

/** Latents of a batch, float32.
 * @param {Manifest} manifest @param {import("./samplers.js").Grid} grid
 * @param {{ sampler: string, options: import("./samplers.js").Options, seeds: number[] }} plan
 * @param {(x: Float32Array, t: number) => Promise<Float32Array>} network guidance applied
 * @param {(x0: Float64Array) => Promise<void>} report called after each network call; may throw to stop
 * @returns {Promise<Float32Array>} */
export async function drawLatents({ prediction, latent }, grid, { sampler, options, seeds }, network, report) {
  const length = latent.channels * latent.height * latent.width;
  const sources = seeds.map((seed) => new Source(seed));
  const noise = () => {
    const all = new Float64Array(length * sources.length);
    for (const [k, source] of sources.entries()) all.set(source.draw(length), k * length);
    return all;
  };
  const latents = await SAMPLERS[sampler](
    grid,
    noise(),
    async (x, i) => {
      const output = await network(Float32Array.from(x), Math.fround(grid.t[i]));
      const x0 = toX0(prediction, output, x, grid.alpha[i], grid.sigma[i]);
      await report(x0);
      return x0;
    },
    noise,
    options,
  );
  return Float32Array.from(latents);
}

/** The U-Net for a batch of pictures, all with a prompt or all without; guidance of Ho and Salimans 2022 applied.
 * @param {Manifest} manifest @param {Run} run @param {import("./text.js").TextReader | null} reader
 * @param {string[]} prompts one a picture @param {{ negative: string, guidance: number }} settings
 * @returns {Promise<(x: Float32Array, t: number) => Promise<Float32Array>>} */
async function networkOf(manifest, run, reader, prompts, { negative, guidance }) {
  const { channels, height, width } = manifest.latent;
  /** @param {Float32Array} x @param {number} rows @returns {Value} */
  const latents = (x, rows) => ({ type: "float32", data: x, dims: [rows, channels, height, width] });
  /** @param {number} t @param {number} rows @returns {Value} */
  const times = (t, rows) => ({ type: "float32", data: new Float32Array(rows).fill(t), dims: [rows] });
  if (!prompts[0] && !negative && "unet.onnx" in manifest.files) {
    return (x, t) => run("unet.onnx", { x_t: latents(x, prompts.length), t: times(t, prompts.length) });
  }
  if (!reader || !manifest.text) throw new Error("this bundle draws without a prompt only");
  const guided = guidance !== 1 && prompts.some((prompt) => prompt !== negative);
  const texts = guided ? [...prompts, ...prompts.map(() => negative)] : prompts;
  const different = [...new Set(texts)];
  const encoded = different.map((text) => /** @type {import("./text.js").TextReader} */ (reader).encode(text));
  const { max_tokens: length, context_dim: dim } = manifest.text;
  /** @param {bigint[][]} rows @returns {Value} */
  const whole = (rows) => ({ type: "int64", data: BigInt64Array.from(rows.flat()), dims: [rows.length, length] });
  const [ids, mask] = [encoded.map((each) => each.ids), encoded.map((each) => each.mask)];
  const states = await run("text_encoder.onnx", { ids: whole(ids), mask: whole(mask) });
  const context = new Float32Array(texts.length * length * dim);
  texts.forEach((text, row) => {
    const from = different.indexOf(text) * length * dim;
    context.set(states.subarray(from, from + length * dim), row * length * dim);
  });
  const given = {
    context: /** @type {Value} */ ({ type: "float32", data: context, dims: [texts.length, length, dim] }),
    context_mask: whole(texts.map((text) => mask[different.indexOf(text)])),
  };
  const [towards, away] = [Math.fround(guidance), Math.fround(1 - guidance)];
  return async (x, t) => {
    const parts = texts.length / prompts.length;
    const doubled = new Float32Array(x.length * parts);
    for (let part = 0; part < parts; part++) doubled.set(x, part * x.length);
    const output = await run("unet_t2i.onnx", {
      ...given,
      x_t: latents(doubled, texts.length),
      t: times(t, texts.length),
    });
    if (!guided) return output;
    return x.map((_, k) => Math.fround(towards * output[k]) + Math.fround(away * output[x.length + k]));
  };
}

/** Draws pictures, a batch at a time.
 * @param {Manifest} manifest @param {Grids} grids @param {Run} run @param {import("./text.js").TextReader | null} reader
 * @param {Request} request
 * @param {(step: Step) => Promise<void>} onStep may throw to stop
 * @param {(k: number, rgb: Uint8Array) => Promise<void>} onPicture number of the picture, and its pixels' levels */
export async function draw(manifest, grids, run, reader, request, onStep, onPicture) {
  const { pictures, steps, sampler } = request;
  const options = optionsOf(manifest, sampler);
  const grid = gridOf(grids, steps, options);
  const total = batches(pictures).length * numCalls(sampler, steps);
  const { channels, height, width } = manifest.latent;
  let done = 0;
  for (const batch of batches(pictures)) {
    const network = await networkOf(
      manifest,
      run,
      reader,
      batch.map((k) => pictures[k].prompt),
      request,
    );
    const plan = { sampler, options, seeds: batch.map((k) => pictures[k].seed) };
    const latents = await drawLatents(manifest, grid, plan, network, async (x0) => {
      done += 1;
      await onStep({ done, total, pictures: batch, x0 });
    });
    const pixels = await run("vae_decoder.onnx", {
      latents: { type: "float32", data: latents, dims: [batch.length, channels, height, width] },
    });
    if (!pixels.every(Number.isFinite))
      throw new Error(`the network's output is not finite (guidance ${request.guidance})`);
    const each = pixels.length / batch.length;
    for (const [row, k] of batch.entries()) {
      await onPicture(k, toLevels(pixels.subarray(row * each, (row + 1) * each)));
    }
  }
}

/** Numbers of the pictures that are drawn together: those without a prompt first.
 * @param {Wanted[]} pictures */
function batches(pictures) {
  const numbers = [...pictures.keys()];
  const sorts = [numbers.filter((k) => !pictures[k].prompt), numbers.filter((k) => pictures[k].prompt)];
  return sorts.flatMap((sort) =>
    Array.from({ length: Math.ceil(sort.length / BATCH_SIZE) }, (_, b) =>
      sort.slice(b * BATCH_SIZE, (b + 1) * BATCH_SIZE),
    ),
  );
}

/** (3, H, W) in [-1, 1], clipped to that, as (H, W, 3) levels; float32 and half to even, as numpy rounds.
 * @param {Float32Array} pixels */
export function toLevels(pixels) {
  const area = pixels.length / 3;
  const levels = new Uint8Array(pixels.length);
  for (let colour = 0; colour < 3; colour++) {
    for (let k = 0; k < area; k++) {
      const scaled = Math.fround(Math.fround(Math.min(Math.max(pixels[colour * area + k], -1), 1) + 1) * 127.5);
      const floor = Math.floor(scaled);
      const up = scaled - floor > 0.5 || (scaled - floor === 0.5 && floor % 2 === 1);
      levels[3 * k + colour] = up ? floor + 1 : floor;
    }
  }
  return levels;
}

/** The current estimate of a batch's pictures, a pixel a latent position, by the manifest's map.
 * @param {RgbMap} rgb @param {Float64Array} x0 @param {number} channels @param {number} area of the latents
 * @returns {Uint8Array[]} RGB levels of each */
export function previews(rgb, x0, channels, area) {
  return Array.from({ length: x0.length / channels / area }, (_, picture) =>
    toLevels(
      Float32Array.from({ length: 3 * area }, (_, k) => {
        const colour = Math.floor(k / area);
        const weighted = rgb.weights[colour].map(
          (weight, c) => weight * x0[(picture * channels + c) * area + (k % area)],
        );
        return weighted.reduce((sum, part) => sum + part, rgb.bias[colour]);
      }),
    ),
  );
}

/** Peak signal-to-noise ratio in dB; 100 where nothing differs.
 * @param {Uint8Array} one @param {Uint8Array} other */
export function psnr(one, other) {
  const error = one.reduce((sum, level, k) => sum + (level - other[k]) ** 2, 0) / one.length;
  return error ? Math.min(100, 10 * Math.log10(255 ** 2 / error)) : 100;
}
