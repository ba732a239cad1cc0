const BLOCK_BITS = 12;
const BLOCK_PAGES = 1 << BLOCK_BITS;
const BLOCK_BYTES = BLOCK_PAGES * 4;

/** Tells every frame of the present WAL that may be used, in ascending order, to `visit`. */
export type FrameScan = (visit: (pageNumber: number, frame: number) => void) => void;

/**
 * Where the newest captured image of each page stands in the present WAL: four bytes for each page of the blocks touched.
 * Beyond `maxBytes` it covers a window of page numbers at a time and is filled again, by a scan of the frame headers,
 * for the window that is asked for; asked in ascending order, each window is scanned once.
 */
export class FrameMap {
  readonly #maxBlocks: number;
  readonly #blocks = new Map<number, Uint32Array>();
  #window = { start: 0, end: 0x1_0000_0000 };

  constructor(maxBytes = 64 * 1024 * 1024) {
    this.#maxBlocks = Math.max(1, Math.floor(maxBytes / BLOCK_BYTES));
  }

  /** Notes that `frame` holds a newer image of `pageNumber` than all before. */
  record(pageNumber: number, frame: number): void {
    if (pageNumber < this.#window.start || pageNumber >= this.#window.end) return;
    const key = pageNumber >>> BLOCK_BITS;
    let block = this.#blocks.get(key);
    if (block === undefined) {
      if (this.#blocks.size >= this.#maxBlocks) {
        this.#forget({ start: 0, end: 0 });
        return;
      }
      block = new Uint32Array(BLOCK_PAGES);
      this.#blocks.set(key, block);
    }
    block[pageNumber & (BLOCK_PAGES - 1)] = frame;
  }

  /** The newest frame of `pageNumber`, or 0 when its image is in the database file. */
  frameOf(pageNumber: number, scan: FrameScan): number {
    if (pageNumber < this.#window.start || pageNumber >= this.#window.end) this.#moveWindow(pageNumber, scan);
    return this.#blocks.get(pageNumber >>> BLOCK_BITS)?.[pageNumber & (BLOCK_PAGES - 1)] ?? 0;
  }

  /** Every image is in the database file now, or a new WAL has begun. */
  reset(): void {
    this.#forget({ start: 0, end: 0x1_0000_0000 });
  }

  #moveWindow(pageNumber: number, scan: FrameScan): void {
    const firstBlock = pageNumber >>> BLOCK_BITS;
    this.#forget({ start: firstBlock * BLOCK_PAGES, end: (firstBlock + this.#maxBlocks) * BLOCK_PAGES });
    scan((page, frame) => this.record(page, frame));
  }

  #forget(window: { start: number; end: number }): void {
    this.#blocks.clear();
    this.#window = window;
  }
}
