/** Files of the page, each compared with its SHA-256 before anything is done with it.
 *
 * @typedef {{ sha256: string, size: number, url?: string }} Entry `url`: where it lies if not beside the page
 * @typedef {(name: string, loaded: number, size: number) => void} OnProgress
 */

export class FileError extends Error {}

/** @param {BufferSource} bytes */
export async function sha256(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Fetches files, keeps them in the browser's Cache under their hash, and checks them each time. */
export class Files {
  /** @param {string} base address of the page's folder @param {Record<string, Entry>} table
   * @param {OnProgress} onProgress */
  constructor(base, table, onProgress = () => {}) {
    this.base = base;
    this.table = table;
    this.onProgress = onProgress;
  }

  /** @returns {Promise<Cache | null>} null where the browser keeps none */
  async cache() {
    try {
      return await caches.open(`ldmkit ${this.base}`);
    } catch {
      return null;
    }
  }

  /** @param {string} hash */
  kept(hash) {
    return new URL(`sha256/${hash}`, this.base).href;
  }

  /** The bytes of a file. Throws FileError, which names it, where it is missing, damaged or another.
   * @param {string} name */
  async bytes(name) {
    const entry = this.table[name];
    if (!entry) throw new FileError(`${name} does not belong to this page`);
    const cache = await this.cache();
    const old = await cache?.match(this.kept(entry.sha256)).catch(() => undefined);
    if (old) {
      const bytes = new Uint8Array(await old.arrayBuffer());
      if ((await sha256(bytes)) === entry.sha256) {
        this.onProgress(name, bytes.length, entry.size);
        return bytes;
      }
      await cache?.delete(this.kept(entry.sha256));
    }
    const bytes = await this.fetched(name, entry);
    if (bytes.length !== entry.size || (await sha256(bytes)) !== entry.sha256) {
      throw new FileError(`${name} is damaged or was changed: it does not match its SHA-256, so it is not used`);
    }
    await cache?.put(this.kept(entry.sha256), new Response(bytes)).catch(() => {}); // a full disk is no reason to stop
    return bytes;
  }

  /** @param {string} name @param {Entry} entry */
  async fetched(name, entry) {
    const bytes = new Uint8Array(entry.size);
    let loaded = 0;
    try {
      // "no-cache" asks the host whether what the browser has is still the same.
      const response = await fetch(new URL(entry.url ?? name, this.base), { cache: "no-cache", credentials: "omit" });
      if (!response.ok || !response.body) throw new Error(`the host answers ${response.status}`);
      const reader = response.body.getReader();
      for (let part = await reader.read(); !part.done; part = await reader.read()) {
        if (loaded + part.value.length > entry.size) {
          await reader.cancel();
          return new Uint8Array(); // longer than it should be, however long that is
        }
        bytes.set(part.value, loaded);
        loaded += part.value.length;
        this.onProgress(name, loaded, entry.size);
      }
    } catch (error) {
      throw new FileError(`${name} cannot be fetched: ${error instanceof Error ? error.message : error}`);
    }
    return bytes.subarray(0, loaded);
  }

  /** @param {string} name */
  async text(name) {
    return new TextDecoder().decode(await this.bytes(name));
  }

  /** The address of a script that was checked, for `import` and `Worker`; what runs is what was checked.
   * @param {string} name */
  async script(name) {
    return URL.createObjectURL(new Blob([await this.bytes(name)], { type: "text/javascript" }));
  }

  /** Forgets what other versions of the page have left in the cache. */
  async forgetOthers() {
    const cache = await this.cache();
    const known = new Set(Object.values(this.table).map((entry) => this.kept(entry.sha256)));
    for (const request of (await cache?.keys()) ?? []) {
      if (!known.has(request.url)) await cache?.delete(request);
    }
  }
}
