import { lockPageNumber, PAGE_HASH_BYTES, xorDigest } from "../format/pages.ts";

/**
 * Which pages of a state have been laid down, one bit each, and the digest of those pages. For a database of 1 TiB with
 * pages of 4 KiB that is 32 MiB.
 */
export class PageTally {
  readonly sizePages: number;
  readonly #bits: Uint32Array;
  readonly #digest = new Uint8Array(PAGE_HASH_BYTES);
  /** All pages of the state, less the lock page. */
  readonly expectedCount: number;
  #count = 0;

  constructor(sizePages: number, pageSizeBytes: number) {
    this.sizePages = sizePages;
    this.#bits = new Uint32Array((sizePages >>> 5) + 1);
    const lockPage = lockPageNumber(pageSizeBytes);
    this.expectedCount = sizePages >= lockPage ? sizePages - 1 : sizePages;
    if (sizePages >= lockPage) this.#mark(lockPage);
  }

  get count(): number {
    return this.#count;
  }

  get isComplete(): boolean {
    return this.#count === this.expectedCount;
  }

  /** The XOR of the hashes of all pages taken: the state digest once complete. */
  get digest(): string {
    return Buffer.from(this.#digest).toString("hex");
  }

  /** Whether the page lies in the state and is still to be laid down. The lock page never is. */
  lacks(pageNumber: number): boolean {
    if (pageNumber < 1 || pageNumber > this.sizePages) return false;
    return ((this.#bits[pageNumber >>> 5] ?? 0) & (1 << (pageNumber & 31))) === 0;
  }

  /** Marks a page that was lacking; `hash` at `offset` is its page hash. */
  take(pageNumber: number, hash: Uint8Array, offset: number): void {
    this.#mark(pageNumber);
    this.#count++;
    xorDigest(this.#digest, hash, offset);
  }

  /** How many pages of the closed range are lacking. */
  lackingWithin(firstPage: number, lastPage: number): number {
    const last = Math.min(lastPage, this.sizePages);
    let lacking = 0;
    for (let page = firstPage; page <= last; ) {
      const wholeWord = (page & 31) === 0 && page + 31 <= last;
      if (wholeWord) {
        lacking += 32 - popCount(this.#bits[page >>> 5] ?? 0);
        page += 32;
      } else {
        if (this.lacks(page)) lacking++;
        page++;
      }
    }
    return lacking;
  }

  /** The first page that is lacking, or null. */
  firstLacking(): number | null {
    for (let page = 1; page <= this.sizePages; page++) if (this.lacks(page)) return page;
    return null;
  }

  #mark(pageNumber: number): void {
    const word = pageNumber >>> 5;
    this.#bits[word] = (this.#bits[word] ?? 0) | (1 << (pageNumber & 31));
  }
}

function popCount(word: number): number {
  let v = word - ((word >>> 1) & 0x55555555);
  v = (v & 0x33333333) + ((v >>> 2) & 0x33333333);
  return Math.imul((v + (v >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
}
