/** The worker: opens the bundle's graphs and draws, while the page stays responsive.
 *
 * It is started from bytes that the page has checked, which also gives it the page's content security policy.
 *
 * @typedef {{ module: string, binary: string }} Runtime names of files
 * @typedef {{ files: Record<string, import("./files.js").Entry>, grids: import("./draw.js").Grids,
 *   manifest_sha256: string, runtimes: Record<string, Runtime>, tokenizers: string }} Web the content of web.json
 * @typedef {{ type: "start", base: string, web: Web, provider: "wasm" | "webgpu", threads: number }
 *   | { type: "draw", request: import("./draw.js").Request }
 *   | { type: "stop" } | { type: "golden" } | { type: "sheet" }} Asked
 * @typedef {{ type: "ready" } | { type: "loading", name: string, loaded: number, size: number }
 *   | { type: "cut", words: string }
 *   | { type: "step", done: number, total: number, pictures: number[], previews: Uint8Array[] }
 *   | { type: "picture", k: number, png: Blob, metadata: Record<string, string> }
 *   | { type: "done", stopped: boolean } | { type: "golden", psnr: number[], bound: number }
 *   | { type: "sheet", png: Blob, name: string } | { type: "error", words: string }} Told
 */

import { draw, optionsOf, previews, psnr } from "./draw.js";
import { Files } from "./files.js";
import { pythonFloat, pythonJson, sheet, sizeOf, slug, toPng } from "./png.js";
import { TextReader } from "./text.js";

class Stopped extends Error {}

/** The workers that onnxruntime starts for its threads. Until one has told that it is there, nothing else refers to it;
 * Firefox takes such a worker for garbage, ends it in one start of a few dozen, and the first graph never opens.
 * @type {Worker[]} */
const started = [];
globalThis.Worker = class extends Worker {
  /** @param {string | URL} address @param {WorkerOptions} [options] */
  constructor(address, options) {
    super(address, options);
    started.push(this);
  }
};

/** @param {Told} message */
const tell = (message) => postMessage(message);
const { port1: inner, port2: outer } = new MessageChannel();
/** Lets messages in, such as "stop", which wait while a graph computes; browsers make a timer wait for 4 ms. */
const breathe = () =>
  new Promise((resolve) => {
    inner.onmessage = resolve;
    outer.postMessage(null);
  });

/** A bundle's graphs in this browser. */
class Bundle {
  /** @param {Extract<Asked, { type: "start" }>} start */
  constructor({ base, web, provider, threads }) {
    this.files = new Files(base, web.files, (name, loaded, size) => tell({ type: "loading", name, loaded, size }));
    this.web = web;
    this.provider = provider;
    this.threads = threads;
    /** @type {Map<string, Promise<any>>} */
    this.sessions = new Map();
    /** @type {TextReader | null} */
    this.reader = null;
    /** @type {any} */
    this.ort = null;
    /** @type {Map<string, Promise<Uint8Array<ArrayBuffer>>>} */
    this.coming = new Map();
  }

  /** Gets the runtime and the manifest; graphs are opened when they are needed. */
  async open() {
    /** @type {import("./draw.js").Manifest} */
    this.manifest = JSON.parse(await this.files.text("bundle/manifest.json"));
    const names = Object.keys(this.manifest.files);
    const usual = names.includes("unet_t2i.onnx") ? ["unet_t2i.onnx", "text_encoder.onnx"] : ["unet.onnx"];
    for (const name of ["vae_decoder.onnx", ...usual]) {
      const bytes = this.files.bytes(`bundle/${name}`);
      bytes.catch(() => {}); // said where the graph is needed
      this.coming.set(name, bytes);
    }
    const { module, binary } = this.web.runtimes[this.provider];
    const bytes = new Blob([await this.files.bytes(binary)]).stream();
    const unpacked = binary.endsWith(".gz") ? bytes.pipeThrough(new DecompressionStream("gzip")) : bytes;
    this.ort = await import(await this.files.script(module));
    this.ort.env.wasm.wasmBinary = await new Response(unpacked).arrayBuffer();
    this.ort.env.wasm.numThreads = this.threads;
    this.ort.env.logLevel = "error";
    await this.files.forgetOthers();
  }

  /** @param {string} graph */
  async session(graph) {
    const opened = this.sessions.get(graph) ?? this.start(graph);
    this.sessions.set(graph, opened);
    return opened.catch((error) => {
      this.sessions.delete(graph); // what failed once may be fetched another time
      throw error;
    });
  }

  /** @param {string} graph */
  async start(graph) {
    const weights = `${graph}.data`;
    const options = {
      executionProviders: [this.provider],
      ...(`bundle/${weights}` in this.files.table && {
        externalData: [{ path: weights, data: await this.files.bytes(`bundle/${weights}`) }],
      }),
    };
    const coming = this.coming.get(graph);
    this.coming.delete(graph);
    return this.ort.InferenceSession.create(await (coming ?? this.files.bytes(`bundle/${graph}`)), options);
  }

  /** @type {import("./draw.js").Run} */
  run = async (graph, inputs) => {
    const session = await this.session(graph);
    /** @type {Record<string, any>} */
    const feeds = {};
    for (const name of session.inputNames) {
      feeds[name] = new this.ort.Tensor(inputs[name].type, inputs[name].data, inputs[name].dims);
    }
    const outputs = await session.run(feeds);
    return outputs[session.outputNames[0]].data;
  };

  /** @param {import("./draw.js").Request} request
   * @param {(step: import("./draw.js").Step) => Promise<void>} onStep
   * @param {(k: number, rgb: Uint8Array) => Promise<void>} onPicture */
  async draw(request, onStep, onPicture) {
    if (!this.manifest) throw new Error("the bundle is not open");
    const needsText = request.negative !== "" || request.pictures.some(({ prompt }) => prompt !== "");
    if ((needsText || !("unet.onnx" in this.manifest.files)) && !this.reader && this.manifest.text) {
      const { Tokenizer } = await import(await this.files.script(this.web.tokenizers));
      this.reader = new TextReader(Tokenizer, JSON.parse(await this.files.text("bundle/tokenizer.json")));
    }
    const cut = needsText && this.reader ? this.reader.encode(request.pictures[0].prompt).cut : "";
    if (cut) tell({ type: "cut", words: cut });
    await draw(this.manifest, this.web.grids, this.run, this.reader, request, onStep, onPicture);
  }

  /** What a picture's file says of it, as of `ldmkit generate`.
   * @param {import("./draw.js").Request} request @param {string} prompt @param {string} seed */
  metadata(request, prompt, seed) {
    const manifest = /** @type {import("./draw.js").Manifest} */ (this.manifest);
    const options = optionsOf(manifest, request.sampler);
    const table = { ...options, use: request.sampler, steps: request.steps };
    return {
      sampler: Object.keys(options).length ? pythonJson(table) : request.sampler,
      steps: String(request.steps),
      guidance: pythonFloat(request.guidance),
      bundle: manifest.name,
      bundle_sha256: this.web.manifest_sha256,
      provider: this.provider,
      ...(request.negative && { negative: request.negative }),
      prompt,
      seed,
    };
  }
}

/** @type {Bundle} */
let bundle;
let stopping = false;
/** @type {{ request: import("./draw.js").Request, pictures: Uint8Array[] } | null} the last drawing */
let last = null;

/** @param {import("./draw.js").Request} request */
async function drawAll(request) {
  const manifest = /** @type {import("./draw.js").Manifest} */ (bundle.manifest);
  const { latent } = manifest;
  const [width] = sizeOf(manifest);
  stopping = false;
  const drawn = { request, pictures: /** @type {Uint8Array[]} */ ([]) };
  last = drawn;
  try {
    await bundle.draw(
      request,
      async ({ x0, ...step }) => {
        const area = latent.height * latent.width;
        const shown = latent.rgb ? previews(latent.rgb, x0, latent.channels, area) : [];
        tell({ type: "step", ...step, previews: shown });
        await breathe();
        if (stopping) throw new Stopped();
      },
      async (k, rgb) => {
        const { prompt, seed } = request.pictures[k];
        const metadata = bundle.metadata(request, prompt, String(seed));
        drawn.pictures.push(rgb);
        tell({ type: "picture", k, png: await toPng(rgb, width, metadata), metadata });
      },
    );
  } catch (error) {
    if (!(error instanceof Stopped)) throw error;
  }
  tell({ type: "done", stopped: stopping });
}

/** Draws the bundle's golden pictures again. */
async function drawGolden() {
  const manifest = /** @type {import("./draw.js").Manifest} */ (bundle.manifest);
  const { golden } = manifest;
  const [width, height] = sizeOf(manifest);
  if (!golden) return tell({ type: "golden", psnr: [], bound: 0 });
  const file = new Blob([await bundle.files.bytes("bundle/golden.png")], { type: "image/png" });
  const image = await createImageBitmap(file, { colorSpaceConversion: "none" });
  const canvas = new OffscreenCanvas(image.width, image.height);
  const context = /** @type {OffscreenCanvasRenderingContext2D} */ (
    canvas.getContext("2d", { willReadFrequently: true })
  );
  context.drawImage(image, 0, 0);
  /** @type {number[]} */
  const found = [];
  const { seed, steps, guidance_scale: guidance, sampler } = golden;
  const pictures = golden.prompts.map((prompt, k) => ({ prompt, seed: seed + k }));
  await bundle.draw({ pictures, negative: "", steps, guidance, sampler }, breathe, async (k, rgb) => {
    const wanted = context.getImageData(k * width, 0, width, height).data.filter((_, i) => i % 4 !== 3);
    found[k] = psnr(rgb, Uint8Array.from(wanted));
  });
  tell({ type: "golden", psnr: found, bound: golden.min_psnr });
}

/** All pictures of the last drawing in one. */
async function makeSheet() {
  if (!last?.pictures.length) return;
  const { pictures } = last.request;
  const [first, end] = [pictures[0], pictures[last.pictures.length - 1]];
  const { rgb, width } = sheet(last.pictures, sizeOf(/** @type {import("./draw.js").Manifest} */ (bundle.manifest)));
  const metadata = bundle.metadata(last.request, first.prompt, `${first.seed} to ${end.seed}`);
  const name = `${slug(first.prompt)}-${first.seed}-to-${end.seed}-grid.png`;
  tell({ type: "sheet", png: await toPng(rgb, width, metadata), name });
}

/** @param {Asked} asked */
async function answer(asked) {
  switch (asked.type) {
    case "start":
      bundle = new Bundle(asked);
      await bundle.open();
      return tell({ type: "ready" });
    case "draw":
      return drawAll(asked.request);
    case "golden":
      return drawGolden();
    case "sheet":
      return makeSheet();
  }
}

// One thing after the other; only "stop" comes in between.
let queue = Promise.resolve();
addEventListener("message", (/** @type {MessageEvent<Asked>} */ { data }) => {
  if (data.type === "stop") {
    stopping = true;
    return;
  }
  queue = queue
    .then(() => answer(data))
    .catch((error) => tell({ type: "error", words: error instanceof Error ? error.message : String(error) }));
});
