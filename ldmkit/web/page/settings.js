/** What the visitor has chosen, in the page's fields and in its address, where anybody may have written it.
 *
 * @typedef {{ prompt: string, negative: string, seed: number, held: boolean, count: number, steps: number,
 *   guidance: number, sampler: string }} Settings `held`: the seed stays the same from drawing to drawing
 */

import { SAMPLERS } from "./samplers.js";

export const MAX_SEED = 2 ** 32 - 1;
export const MAX_COUNT = 16;
export const MAX_GUIDANCE = 30;
export const MAX_PROMPT = 1000;

/** A number from a text, held within its range; `otherwise` where it is none.
 * @param {string | null} text @param {number} least @param {number} most @param {number} otherwise */
export function numberFrom(text, least, most, otherwise) {
  const value = text === null || text.trim() === "" ? NaN : Number(text);
  return Number.isNaN(value) ? otherwise : Math.min(Math.max(value, least), most);
}

/** Text as a prompt may be: valid Unicode on one line, without surrounding space.
 * @param {string | null} text */
export const promptFrom = (text) =>
  Array.from((text ?? "").slice(0, MAX_PROMPT), (c) => (/^[\ud800-\udfff]$/.test(c) ? "\ufffd" : c))
    .join("")
    .replace(/[\p{Cc}\u2028\u2029]+/gu, " ")
    .trim();

/** The settings that an address names, the others as the bundle says.
 * @param {string} fragment of the address @param {import("./draw.js").Manifest} manifest @param {number} maxSteps
 * @returns {Settings} */
export function settingsFrom(fragment, { defaults, text }, maxSteps) {
  const given = new URLSearchParams(fragment.replace(/^#/, ""));
  const seed = given.get("seed");
  const sampler = given.get("sampler") ?? "";
  return {
    prompt: text ? promptFrom(given.get("prompt")) : "",
    negative: text ? promptFrom(given.get("negative")) : "",
    seed: Math.trunc(numberFrom(seed, 0, MAX_SEED, 0)),
    held: seed !== null,
    count: Math.trunc(numberFrom(given.get("count"), 1, MAX_COUNT, 1)),
    steps: Math.trunc(numberFrom(given.get("steps"), 1, maxSteps, Math.min(defaults.steps, maxSteps))),
    guidance: Math.round(100 * numberFrom(given.get("guidance"), 0, MAX_GUIDANCE, defaults.guidance_scale)) / 100,
    sampler: Object.hasOwn(SAMPLERS, sampler) ? sampler : defaults.sampler,
  };
}

/** The address's fragment that leads to these settings.
 * @param {Settings} settings */
export function fragmentOf({ prompt, negative, seed, count, steps, guidance, sampler }) {
  const entries = { prompt, negative, seed, count, steps, guidance, sampler };
  const given = Object.entries(entries).filter(([, value]) => value !== "");
  return new URLSearchParams(given.map(([key, value]) => [key, String(value)])).toString();
}
