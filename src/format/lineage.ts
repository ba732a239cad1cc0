import { assert } from "../util/errors.ts";
import { PAGE_HASH_BYTES } from "./pages.ts";

/** A lineage is a whole SHA-256. */
export const LINEAGE_BYTES = 32;

const ENTRY_BYTES = 4 + PAGE_HASH_BYTES;

/**
 * The lineage that an ordinary change-set leads to: SHA-256(parent ‖ u64 last ‖ for each page, ascending: u32 page
 * number ‖ 16-byte page hash ‖ then u32 size in pages). docs/storage-format.md section 6.
 */
export class LineageHasher {
  readonly #hash = new Bun.CryptoHasher("sha256");
  #newestPageNumber = 0;

  /** `parent` is the lineage of state `last` - 1: 32 bytes. */
  constructor(parent: Uint8Array, last: number) {
    assert(parent.length === LINEAGE_BYTES, "a parent lineage has 32 bytes");
    assert(Number.isSafeInteger(last) && last >= 1, "an index is an integer from 1 to 2^53 - 1");
    const index = new DataView(new ArrayBuffer(8));
    index.setBigUint64(0, BigInt(last));
    this.#hash.update(parent);
    this.#hash.update(index.buffer);
  }

  /** Takes further pages, ascending over all calls; `hashes` holds 16 bytes for each, back to back. */
  add(pageNumbers: Uint32Array, hashes: Uint8Array): void {
    assert(hashes.length === pageNumbers.length * PAGE_HASH_BYTES, "there is one hash for each page number");
    const entries = new Uint8Array(pageNumbers.length * ENTRY_BYTES);
    const view = new DataView(entries.buffer);
    for (let i = 0; i < pageNumbers.length; i++) {
      const pageNumber = pageNumbers[i] ?? 0;
      assert(pageNumber > this.#newestPageNumber, "page numbers ascend from 1");
      this.#newestPageNumber = pageNumber;
      view.setUint32(i * ENTRY_BYTES, pageNumber);
      entries.set(hashes.subarray(i * PAGE_HASH_BYTES, (i + 1) * PAGE_HASH_BYTES), i * ENTRY_BYTES + 4);
    }
    this.#hash.update(entries);
  }

  /** The lineage, 32 bytes. To be called once, last; `sizePages` is the size of state `last`. */
  finish(sizePages: number): Uint8Array {
    assert(this.#newestPageNumber <= sizePages, "no page lies above the size");
    const size = new DataView(new ArrayBuffer(4));
    size.setUint32(0, sizePages);
    this.#hash.update(size.buffer);
    return new Uint8Array(this.#hash.digest());
  }
}
