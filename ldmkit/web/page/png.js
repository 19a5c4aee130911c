/** PNG files with text inside, as `ldmkit generate` writes them. */

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

/** @param {Uint8Array} bytes */
function crc32(bytes) {
  let value = 0xffffffff;
  for (const byte of bytes) value = TABLE[(value ^ byte) & 0xff] ^ (value >>> 8);
  return ~value >>> 0;
}

/** @param {string} type @param {Uint8Array} content */
function chunk(type, content) {
  const bytes = new Uint8Array(content.length + 12);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, content.length);
  bytes.set(new TextEncoder().encode(type), 4);
  bytes.set(content, 8);
  view.setUint32(content.length + 8, crc32(bytes.subarray(4, content.length + 8)));
  return bytes;
}

/** A line of text: tEXt within Latin-1, iTXt beyond it.
 * @param {string} key @param {string} text */
function textChunk(key, text) {
  if (/^[\0-\xff]*$/.test(text))
    return chunk(
      "tEXt",
      Uint8Array.from(`${key}\0${text}`, (c) => c.charCodeAt(0)),
    );
  return chunk("iTXt", new TextEncoder().encode(`${key}\0\0\0\0\0${text}`));
}

/** @param {Uint8Array} rgb (height, width, 3) levels @param {number} width @param {Record<string, string>} metadata
 * @returns {Promise<Blob>} */
export async function toPng(rgb, width, metadata) {
  const row = 3 * width;
  const height = rgb.length / row;
  const filtered = new Uint8Array(rgb.length + height); // a 0 before each row: unfiltered
  for (let y = 0; y < height; y++) filtered.set(rgb.subarray(y * row, (y + 1) * row), y * (row + 1) + 1);
  const stream = new Blob([filtered]).stream().pipeThrough(new CompressionStream("deflate"));
  const header = new DataView(new ArrayBuffer(13));
  header.setUint32(0, width);
  header.setUint32(4, height);
  header.setUint16(8, 0x0802); // 8 bits, RGB
  return new Blob(
    [
      Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a),
      chunk("IHDR", new Uint8Array(header.buffer)),
      ...Object.entries(metadata).map(([key, text]) => textChunk(key, text)),
      chunk("IDAT", new Uint8Array(await new Response(stream).arrayBuffer())),
      chunk("IEND", new Uint8Array()),
    ],
    { type: "image/png" },
  );
}

/** Width and height of a bundle's pictures.
 * @param {{ picture_size: number | [number, number] }} manifest
 * @returns {[number, number]} */
export const sizeOf = ({ picture_size: size }) => (typeof size === "number" ? [size, size] : size);

/** The pictures row by row on white, 2 pixels apart: near to a square, in full rows where that is possible.
 * @param {Uint8Array[]} pictures @param {[number, number]} size width and height of each, in pixels
 * @returns {{ rgb: Uint8Array, width: number }} */
export function sheet(pictures, [across, down]) {
  const gap = 2;
  const square = Math.ceil(Math.sqrt(pictures.length));
  const columns = [square, square + 1].find((k) => pictures.length % k === 0) ?? square;
  const rows = Math.ceil(pictures.length / columns);
  const width = columns * (across + gap) - gap;
  const rgb = new Uint8Array(3 * width * (rows * (down + gap) - gap)).fill(255);
  pictures.forEach((picture, k) => {
    const left = (k % columns) * (across + gap);
    const top = Math.floor(k / columns) * (down + gap);
    for (let y = 0; y < down; y++) {
      rgb.set(picture.subarray(3 * y * across, 3 * (y + 1) * across), 3 * ((top + y) * width + left));
    }
  });
  return { rgb, width };
}

/** A number as Python writes a float: 2.0 for 2.
 * @param {number} value of 0.0001 or more, or 0 */
export const pythonFloat = (value) => (Number.isInteger(value) ? `${value}.0` : String(value));

/** JSON as Python writes it.
 * @param {Record<string, number | string>} table */
export function pythonJson(table) {
  const escaped = (/** @type {string} */ text) =>
    JSON.stringify(text).replace(/[\x7f-\uffff]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
  const parts = Object.entries(table).map(
    ([key, value]) =>
      `${escaped(key)}: ${typeof value === "number" ? (key === "steps" ? value : pythonFloat(value)) : escaped(value)}`,
  );
  return `{${parts.join(", ")}}`;
}

/** A file name's stem for a prompt: its words in lower case, 60 bytes at most.
 * @param {string} prompt */
export function slug(prompt) {
  const words = prompt
    .toLowerCase()
    .replace(/[^\p{L}\p{N}]+/gu, "-")
    .replace(/^-+|-+$/g, "");
  const bytes = new TextEncoder().encode(words).subarray(0, 60);
  return new TextDecoder().decode(bytes).replace(/\ufffd+$|-+$/g, "") || "unconditional";
}
