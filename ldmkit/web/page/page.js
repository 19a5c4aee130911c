/** The page: fields, progress and pictures. All drawing is the worker's. */

import { FileError, Files, sha256 } from "./files.js";
import { sizeOf, slug } from "./png.js";
import { SAMPLERS } from "./samplers.js";
import { MAX_COUNT, MAX_GUIDANCE, MAX_SEED, fragmentOf, numberFrom, promptFrom, settingsFrom } from "./settings.js";

/** @template {HTMLElement} T @param {string} id @param {new () => T} kind @returns {T} */
function element(id, kind) {
  const found = document.getElementById(id);
  if (!(found instanceof kind)) throw new Error(`index.html has no ${id}`);
  return found;
}

const form = element("form", HTMLFormElement);
const fields = {
  prompt: element("prompt", HTMLInputElement),
  negative: element("negative", HTMLInputElement),
  seed: element("seed", HTMLInputElement),
  held: element("held", HTMLInputElement),
  count: element("count", HTMLInputElement),
  steps: element("steps", HTMLInputElement),
  guidance: element("guidance", HTMLInputElement),
  sampler: element("sampler", HTMLSelectElement),
};
const provider = element("provider", HTMLSelectElement);
const buttons = {
  draw: element("draw", HTMLButtonElement),
  stop: element("stop", HTMLButtonElement),
  golden: element("golden", HTMLButtonElement),
  sheet: element("sheet", HTMLButtonElement),
};
const pictures = element("pictures", HTMLElement);
const progress = element("progress", HTMLProgressElement);
const base = new URL(".", import.meta.url).href;
const query = new URLSearchParams(location.search);

/** @param {string} words */
const say = (words) => void (element("status", HTMLElement).textContent = words);
/** @param {string} words */
const warn = (words) => void (element("alert", HTMLElement).textContent = words);

/** What this browser lacks, in words; "" where it lacks nothing. */
function missing() {
  if (!isSecureContext || !globalThis.crypto?.subtle) {
    return "This page checks its files, which browsers allow over https:// and on localhost only";
  }
  // A function that makes a vector of 128 bits.
  const simd = Uint8Array.of(
    0,
    97,
    115,
    109,
    1,
    0,
    0,
    0,
    1,
    5,
    1,
    96,
    0,
    1,
    123,
    3,
    2,
    1,
    0,
    10,
    10,
    1,
    8,
    0,
    65,
    0,
    253,
    15,
    253,
    98,
    11,
  );
  const needs = {
    "WebAssembly with SIMD": typeof WebAssembly === "object" && WebAssembly.validate(simd),
    CompressionStream: "CompressionStream" in globalThis,
    OffscreenCanvas: "OffscreenCanvas" in globalThis,
  };
  const lacking = Object.entries(needs).filter(([, there]) => !there);
  return lacking.length ? `This browser is too old to draw: it lacks ${lacking.map(([name]) => name).join(", ")}` : "";
}

/** Reloads the page once, through a worker that gives it the headers which threads need; false where it cannot.
 * @param {Files} files */
async function isolate(files) {
  try {
    if (sessionStorage.getItem("reloaded") === base) return false;
    await files.bytes("sw.js");
    await navigator.serviceWorker.register(new URL("sw.js", base), { updateViaCache: "none" });
    await navigator.serviceWorker.ready;
    sessionStorage.setItem("reloaded", base);
  } catch (error) {
    if (error instanceof FileError) warn(error.message);
    return false; // the browser keeps nothing for this page, or its address has no room for such a worker
  }
  location.reload();
  return true;
}

/** @param {string} tag @param {Record<string, any>} properties @param {(Node | string)[]} content */
const make = (tag, properties, ...content) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...content);
  return made;
};

class Page {
  /** @param {Files} files @param {import("./worker.js").Web} web @param {import("./draw.js").Manifest} manifest
   * @param {number} threads */
  constructor(files, web, manifest, threads) {
    this.files = files;
    this.web = web;
    this.manifest = manifest;
    this.threads = threads;
    this.maxSteps = Math.min(...Object.values(web.grids.spacings).map((grids) => grids.length));
    this.busy = false;
    /** @type {Map<string, [number, number]>} bytes loaded, and all, of each file */
    this.loading = new Map();
    /** @type {Worker | null} */
    this.worker = null;
    /** @type {import("./draw.js").Request | null} */
    this.request = null;
    /** @type {string[]} */
    this.addresses = [];
  }

  /** @param {"wasm" | "webgpu"} kind */
  async start(kind) {
    this.worker?.terminate();
    const worker = new Worker(await this.files.script("worker.js"), { type: "module" });
    this.worker = worker;
    this.proving = kind === "webgpu";
    worker.addEventListener("message", ({ data }) => this.hear(data));
    worker.addEventListener("error", () => this.fail("the worker stopped: reload the page"));
    this.ask({ type: "start", base, web: this.web, provider: kind, threads: this.threads });
    if (this.proving) {
      this.setBusy(true);
      say("Testing WebGPU in this browser…");
      this.ask({ type: "golden" });
      setTimeout(() => {
        if (this.proving && this.worker === worker) this.without("WebGPU did not finish its test in a minute");
      }, 60_000);
    }
  }

  /** @param {import("./worker.js").Asked} asked */
  ask(asked) {
    this.worker?.postMessage(asked);
  }

  /** @param {boolean} busy */
  setBusy(busy) {
    this.busy = busy;
    buttons.draw.disabled = buttons.golden.disabled = provider.disabled = busy;
    buttons.stop.disabled = !busy || this.proving === true;
    pictures.setAttribute("aria-busy", String(busy));
    if (!busy) progress.hidden = true;
  }

  /** @param {string} words */
  fail(words) {
    if (this.proving) return void this.without(`WebGPU failed (${words})`);
    warn(words);
    say("");
    this.setBusy(false);
    for (const canvas of pictures.querySelectorAll("canvas")) canvas.closest("figure")?.remove();
  }

  /** Goes back to WebAssembly.
   * @param {string} why */
  async without(why) {
    this.proving = false;
    provider.value = "wasm";
    this.setBusy(false);
    await this.start("wasm");
    warn(`${why}: WebAssembly draws instead`);
  }

  /** @param {import("./worker.js").Told} told */
  hear(told) {
    switch (told.type) {
      case "loading":
        return this.showLoading(told);
      case "ready":
        this.loading.clear();
        if (!this.busy) {
          progress.hidden = true;
          say("Ready");
        }
        return;
      case "cut":
        return warn(`The prompt is longer than the model reads: left out was “${told.words}”`);
      case "step":
        return this.showStep(told);
      case "picture":
        return this.showPicture(told.k, told.png, told.metadata);
      case "done":
        return this.finish(told.stopped);
      case "golden":
        return this.judge(told.psnr, told.bound);
      case "sheet":
        return this.save(told.png, told.name);
      case "error":
        return this.fail(told.words);
    }
  }

  /** @param {{ name: string, loaded: number, size: number }} part */
  showLoading({ name, loaded, size }) {
    this.loading.set(name, [loaded, size]);
    const all = [...this.loading.values()];
    const [sum, whole] = [0, 1].map((k) => all.reduce((total, each) => total + each[k], 0));
    if (!this.proving && (sum < whole || whole > 1e6))
      say(`Loading: ${(sum / 1e6).toFixed(1)} of ${(whole / 1e6).toFixed(1)} MB`);
    progress.hidden = false;
    progress.value = sum / whole;
  }

  /** The settings in the fields, each held within its range. */
  settings() {
    const { prompt, negative, seed, held, count, steps, guidance, sampler } = fields;
    const { defaults } = this.manifest;
    return {
      prompt: promptFrom(prompt.value),
      negative: promptFrom(negative.value),
      seed: Math.trunc(numberFrom(seed.value, 0, MAX_SEED, 0)),
      held: held.checked,
      count: Math.trunc(numberFrom(count.value, 1, MAX_COUNT, 1)),
      steps: Math.trunc(numberFrom(steps.value, 1, this.maxSteps, defaults.steps)),
      guidance: Math.round(100 * numberFrom(guidance.value, 0, MAX_GUIDANCE, defaults.guidance_scale)) / 100,
      sampler: sampler.value,
    };
  }

  /** @param {import("./settings.js").Settings} settings */
  show(settings) {
    const { held, ...values } = settings;
    fields.held.checked = held;
    for (const [key, value] of Object.entries(values)) {
      fields[/** @type {keyof typeof values} */ (key)].value = String(value);
    }
  }

  draw() {
    if (this.busy) return;
    warn("");
    if (!fields.held.checked) fields.seed.value = String(crypto.getRandomValues(new Uint32Array(1))[0]);
    const settings = this.settings();
    this.show(settings);
    const { prompt, negative, seed, count, steps, guidance, sampler } = settings;
    if (negative && guidance === 1)
      return warn("At guidance 1 there is nothing to steer away: choose another guidance");
    history.replaceState(null, "", `#${fragmentOf(settings)}`);
    const wanted = Array.from({ length: count }, (_, k) => ({ prompt, seed: seed + k }));
    this.request = { pictures: wanted, negative, steps, guidance, sampler };
    for (const address of this.addresses.splice(0)) URL.revokeObjectURL(address);
    buttons.sheet.hidden = true;
    const { height, width } = this.manifest.latent;
    pictures.replaceChildren(
      ...wanted.map(({ seed }) =>
        make("figure", {}, make("canvas", { width, height, ariaLabel: `Seed ${seed}, not yet drawn`, role: "img" })),
      ),
    );
    this.setBusy(true);
    say("Drawing…");
    element("status", HTMLElement).scrollIntoView({ block: "nearest" });
    this.ask({ type: "draw", request: this.request });
  }

  /** @param {Extract<import("./worker.js").Told, { type: "step" }>} step */
  showStep({ done, total, pictures: numbers, previews }) {
    progress.hidden = false;
    progress.value = done / total;
    if (done === 1 || done === total) say("Drawing…"); // a screen reader need not hear each step
    const { height, width } = this.manifest.latent;
    previews.forEach((rgb, k) => {
      const canvas = pictures.children[numbers[k]]?.querySelector("canvas");
      const image = new ImageData(width, height);
      image.data.fill(255);
      for (let pixel = 0; pixel < height * width; pixel++) {
        image.data.set(rgb.subarray(3 * pixel, 3 * pixel + 3), 4 * pixel);
      }
      canvas?.getContext("2d")?.putImageData(image, 0, 0);
    });
  }

  /** @param {number} k @param {Blob} png @param {Record<string, string>} metadata */
  showPicture(k, png, { prompt, seed }) {
    const address = URL.createObjectURL(png);
    this.addresses.push(address);
    const [width, height] = sizeOf(this.manifest);
    const alt = prompt ? `${prompt}, seed ${seed}` : `Drawn without a prompt, seed ${seed}`;
    const keep = make(
      "button",
      { type: "button", ariaLabel: `Keep seed ${seed}`, onclick: () => this.keep(seed) },
      "Keep",
    );
    const name = `${slug(prompt)}-${seed}.png`;
    const link = make("a", { href: address, download: name, ariaLabel: `Download seed ${seed}` }, "Download");
    const caption = make("figcaption", {}, `Seed ${seed}`, keep, link);
    pictures.children[k]?.replaceChildren(make("img", { src: address, alt, width, height }), caption);
  }

  /** Asks for one picture again, by its seed.
   * @param {string} seed */
  keep(seed) {
    this.show({ ...this.settings(), seed: Number(seed), held: true, count: 1 });
    history.replaceState(null, "", `#${fragmentOf(this.settings())}`);
    say(`Seed ${seed} is kept; the address leads to this picture`);
    buttons.draw.focus();
  }

  /** @param {boolean} stopped */
  finish(stopped) {
    for (const canvas of pictures.querySelectorAll("canvas")) canvas.closest("figure")?.remove();
    const count = pictures.childElementCount;
    this.setBusy(false);
    buttons.sheet.hidden = count < 2;
    say(`${stopped ? "Stopped: " : ""}${count} ${count === 1 ? "picture" : "pictures"} drawn`);
  }

  /** @param {number[]} found @param {number} bound dB */
  judge(found, bound) {
    const words = `${found.map((value) => value.toFixed(1)).join(", ")} dB of at least ${bound}`;
    const well = found.length > 0 && found.every((value) => value >= bound);
    if (this.proving) {
      if (!well)
        return void this.without(`WebGPU draws otherwise than it should (${words || "the bundle has no test"})`);
      this.proving = false;
      this.setBusy(false);
      return say(`WebGPU draws as it should: ${words}`);
    }
    this.setBusy(false);
    if (!found.length) return say("The bundle holds no golden pictures to test with");
    say(`This browser draws ${well ? "as it should" : "otherwise than it should"}: ${words}`);
  }

  /** @param {Blob} png @param {string} name */
  save(png, name) {
    const address = URL.createObjectURL(png);
    make("a", { href: address, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(address), 60_000);
  }
}

/** Whether the host serves index.html as it was written; a host may well put something of its own into it. */
async function checkIndex() {
  const [index, wanted] = await Promise.all(
    ["index.html", "index.sha256"].map((name) => fetch(new URL(name, base), { cache: "no-cache" })),
  );
  if (!index.ok || !wanted.ok) return;
  const hash = await sha256(await index.arrayBuffer());
  if (hash !== (await wanted.text()).trim())
    warn("index.html is damaged or was changed: it does not match its SHA-256");
}

async function main() {
  const lacking = missing();
  if (lacking) {
    say("");
    return warn(lacking);
  }
  say("Loading…");
  const { web: hash = "", webSize: size = "" } = document.documentElement.dataset;
  const first = new Files(base, { "web.json": { sha256: hash, size: Number(size) } });
  /** @type {import("./worker.js").Web} */
  const web = JSON.parse(await first.text("web.json"));
  const files = new Files(base, web.files);
  const asked = numberFrom(query.get("threads"), 1, 16, Math.min(navigator.hardwareConcurrency || 1, 8));
  if (!crossOriginIsolated && asked > 1 && (await isolate(files))) return;
  const threads = crossOriginIsolated ? Math.trunc(asked) : 1;
  /** @type {import("./draw.js").Manifest} */
  const manifest = JSON.parse(await files.text("bundle/manifest.json"));
  const page = new Page(files, web, manifest, threads);

  element("name", HTMLElement).textContent = document.title = manifest.name;
  element("with-text", HTMLElement).hidden = element("with-negative", HTMLElement).hidden = !manifest.text;
  fields.sampler.append(...Object.keys(SAMPLERS).map((name) => new Option(name)));
  fields.steps.max = String(page.maxSteps);
  element("examples", HTMLElement).append(
    ...manifest.examples
      .slice(0, 6)
      .map((example) =>
        make(
          "li",
          {},
          make("button", { type: "button", onclick: () => void (fields.prompt.value = example) }, example),
        ),
      ),
  );
  const whyOne = crossOriginIsolated
    ? ""
    : ": more need headers that this host does not send, or a browser that lets the page add them";
  element("host", HTMLElement).textContent = `${threads === 1 ? "One thread" : `${threads} threads`}${whyOne}`;
  page.show(settingsFrom(location.hash, manifest, page.maxSteps));
  addEventListener("hashchange", () => page.show(settingsFrom(location.hash, manifest, page.maxSteps)));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    page.draw();
  });
  buttons.stop.addEventListener("click", () => page.ask({ type: "stop" }));
  addEventListener(
    "keydown",
    ({ key }) => void (key === "Escape" && !buttons.stop.disabled && page.ask({ type: "stop" })),
  );
  buttons.sheet.addEventListener("click", () => page.ask({ type: "sheet" }));
  buttons.golden.addEventListener("click", () => {
    warn("");
    page.setBusy(true);
    say("Drawing the bundle's golden pictures…");
    page.ask({ type: "golden" });
  });
  provider.addEventListener("change", () => {
    page.start(provider.value === "webgpu" ? "webgpu" : "wasm").catch((error) => page.fail(error.message));
  });
  const gpu = "webgpu" in web.runtimes && "gpu" in navigator;
  element("with-provider", HTMLElement).hidden = !gpu;
  if (gpu && query.get("provider") === "webgpu") provider.value = "webgpu";
  await page.start(gpu && provider.value === "webgpu" ? "webgpu" : "wasm");
  form.hidden = false;
  await files.bytes("style.css"); // the browser left it out where it is damaged, and said nothing
  await checkIndex();
}

main().catch((error) => {
  say("");
  warn(error instanceof Error ? error.message : String(error));
});
