/** 32,768 page numbers to a block: 4 KiB. */
const BLOCK_BITS = 15;
const BLOCK_WORDS = 1 << (BLOCK_BITS - 5);

/**
 * A set of page numbers (u32), as a sparse bitmap: 4 KiB for each 32,768 neighbouring pages that are touched, so a
 * 100 GiB database of 4 KiB pages needs at most 3.2 MiB. Iteration ascends.
 */
export class PageSet {
  readonly #blocks = new Map<number, Uint32Array>();
  #size = 0;

  get size(): number {
    return this.#size;
  }

  add(pageNumber: number): void {
    const key = pageNumber >>> BLOCK_BITS;
    let block = this.#blocks.get(key);
    if (block === undefined) {
      block = new Uint32Array(BLOCK_WORDS);
      this.#blocks.set(key, block);
    }
    const word = (pageNumber >>> 5) & (BLOCK_WORDS - 1);
    const bit = 1 << (pageNumber & 31);
    const old = block[word] ?? 0;
    if ((old & bit) === 0) {
      block[word] = old | bit;
      this.#size++;
    }
  }

  /** Adds every page number of the half-open range. */
  addRange(start: number, end: number): void {
    for (let page = start; page < end; page++) this.add(page);
  }

  addAll(other: PageSet): void {
    for (const [key, theirs] of other.#blocks) {
      const ours = this.#blocks.get(key);
      if (ours === undefined) {
        this.#blocks.set(key, theirs.slice());
        for (const word of theirs) this.#size += popCount(word);
        continue;
      }
      for (let i = 0; i < BLOCK_WORDS; i++) {
        const old = ours[i] ?? 0;
        const merged = old | (theirs[i] ?? 0);
        if (merged !== old) {
          ours[i] = merged;
          this.#size += popCount(merged) - popCount(old);
        }
      }
    }
  }

  has(pageNumber: number): boolean {
    const word = this.#blocks.get(pageNumber >>> BLOCK_BITS)?.[(pageNumber >>> 5) & (BLOCK_WORDS - 1)] ?? 0;
    return (word & (1 << (pageNumber & 31))) !== 0;
  }

  delete(pageNumber: number): void {
    if (!this.has(pageNumber)) return;
    const block = this.#blocks.get(pageNumber >>> BLOCK_BITS);
    const word = (pageNumber >>> 5) & (BLOCK_WORDS - 1);
    if (block !== undefined) block[word] = (block[word] ?? 0) & ~(1 << (pageNumber & 31));
    this.#size--;
  }

  /** Removes every page number above `lastPage`. */
  deleteAbove(lastPage: number): void {
    for (const key of [...this.#blocks.keys()]) {
      const firstOfBlock = key * 2 ** BLOCK_BITS;
      if (firstOfBlock + 2 ** BLOCK_BITS - 1 <= lastPage) continue;
      const block = this.#blocks.get(key);
      if (block === undefined) continue;
      if (firstOfBlock > lastPage) {
        for (const word of block) this.#size -= popCount(word);
        this.#blocks.delete(key);
        continue;
      }
      for (const page of this.#pagesOfBlock(key, block)) if (page > lastPage) this.delete(page);
    }
  }

  clear(): void {
    this.#blocks.clear();
    this.#size = 0;
  }

  /** Ascending. The set must not change while it is walked, except by deleting the number just given. */
  *[Symbol.iterator](): Generator<number> {
    for (const key of [...this.#blocks.keys()].sort((a, b) => a - b)) {
      const block = this.#blocks.get(key);
      if (block !== undefined) yield* this.#pagesOfBlock(key, block);
    }
  }

  /** Ascending slices of at most `maxPages`, so that no list of the whole set ever exists. */
  *slices(maxPages: number): Generator<Uint32Array> {
    let slice = new Uint32Array(Math.min(maxPages, this.#size));
    let length = 0;
    for (const page of this) {
      slice[length++] = page;
      if (length < maxPages) continue;
      yield slice.subarray(0, length);
      slice = new Uint32Array(maxPages);
      length = 0;
    }
    if (length > 0) yield slice.subarray(0, length);
  }

  *#pagesOfBlock(key: number, block: Uint32Array): Generator<number> {
    const base = key * 2 ** BLOCK_BITS;
    for (let i = 0; i < BLOCK_WORDS; i++) {
      let word = block[i] ?? 0;
      while (word !== 0) {
        const bit = 31 - Math.clz32(word & -word);
        yield base + i * 32 + bit;
        word &= word - 1;
      }
    }
  }
}

function popCount(word: number): number {
  let v = word - ((word >>> 1) & 0x55555555);
  v = (v & 0x33333333) + ((v >>> 2) & 0x33333333);
  return Math.imul((v + (v >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
}
