/** Prompts become ids, cut and padded as tokenizer.json says, by the tokenizer of @huggingface/tokenizers.
 *
 * @typedef {{ encode(text: string, options?: { add_special_tokens?: boolean }): { ids: number[] },
 *   model: { tokens_to_ids: Map<string, number> } | null }} Encoder what of that package's Tokenizer is used here
 * @typedef {{ ids: bigint[], mask: bigint[], cut: string }} Encoded `cut`: the words that no token was left for
 */

// Unicode's White_Space, which `\s` means in the Rust library: JavaScript's, and its trim, take U+FEFF too and leave U+0085.
const SPACE = "[\\t-\\r \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]";

/** A normalizer of tokenizer.json that finds the same white space here.
 * @param {any} table @returns {any} */
function sameSpaces(table) {
  if (table?.normalizers) return { ...table, normalizers: table.normalizers.map(sameSpaces) };
  if (table?.type === "Replace" && table.pattern.Regex)
    return { ...table, pattern: { Regex: table.pattern.Regex.replaceAll("\\s", SPACE) } };
  if (table?.type === "Strip") {
    const ends = [table.strip_left && `^${SPACE}+`, table.strip_right && `${SPACE}+$`].filter(Boolean);
    return { type: "Replace", pattern: { Regex: ends.join("|") || "(?!)" }, content: "" };
  }
  return table;
}

export class TextReader {
  /** @param {new (table: object, config: object) => any} Tokenizer of the package
   * @param {any} table the content of tokenizer.json */
  constructor(Tokenizer, table) {
    const added = table.added_tokens ?? [];
    // A prompt that spells a special token is text: none is looked for, and the template alone puts them in.
    const text = added.filter((/** @type {any} */ token) => !token.special);
    const plain = { ...table, normalizer: sameSpaces(table.normalizer), added_tokens: text };
    /** @type {Encoder} */
    this.encoder = new Tokenizer(plain, {});
    for (const { content, id } of added) this.encoder.model?.tokens_to_ids.set(content, id);
    this.length = table.truncation.max_length;
    this.cutsLeft = table.truncation.direction === "Left";
    this.padsLeft = table.padding.direction === "Left";
    this.pad = table.padding.pad_id;
    this.numSpecial = this.encoder.encode("").ids.length;
  }

  /** @param {string} text @returns {Encoded} */
  encode(text) {
    const bare = this.encoder.encode(text, { add_special_tokens: false }).ids;
    let whole = this.encoder.encode(text).ids;
    const room = this.length - this.numSpecial;
    let cut = "";
    if (bare.length > room) {
      const first = [...Array(this.numSpecial + 1).keys()].find((k) => bare.every((id, i) => id === whole[k + i])) ?? 0;
      const kept = this.cutsLeft ? bare.slice(bare.length - room) : bare.slice(0, room);
      whole = [...whole.slice(0, first), ...kept, ...whole.slice(first + bare.length)];
      cut = this.cutsLeft ? text : this.beyond(text, room);
    }
    const missing = this.length - whole.length;
    const padding = Array(missing).fill(this.pad);
    const [ones, zeros] = [Array(whole.length).fill(1n), Array(missing).fill(0n)];
    return {
      ids: (this.padsLeft ? [...padding, ...whole] : [...whole, ...padding]).map(BigInt),
      mask: this.padsLeft ? [...zeros, ...ones] : [...ones, ...zeros],
      cut,
    };
  }

  /** The words of a text after those that fit into `room` tokens.
   * @param {string} text @param {number} room */
  beyond(text, room) {
    const ends = [...text.matchAll(/\S+/gu)].map((match) => match.index + match[0].length);
    let [fits, most] = [0, ends.length];
    while (fits < most) {
      const middle = Math.ceil((fits + most) / 2);
      const ids = this.encoder.encode(text.slice(0, ends[middle - 1]), { add_special_tokens: false }).ids;
      if (ids.length <= room) fits = middle;
      else most = middle - 1;
    }
    return text.slice(fits ? ends[fits - 1] : 0).trim();
  }
}
