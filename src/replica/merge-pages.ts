import { checkPageHashes, type ObjectReader } from "../format/decode.ts";
import type { PageBatch } from "../format/encode.ts";
import type { DataChunkRef, IndexChunk } from "../format/index-chunk.ts";
import { lockPageNumber, PAGE_HASH_BYTES } from "../format/pages.ts";
import { BakeliteError } from "../util/errors.ts";
import type { ReplicaObject } from "./catalog.ts";
import type { OpenedObject } from "./trailers.ts";

/** Pages are handed on in batches of about this size. */
const BATCH_BYTES = 256 * 1024;

/**
 * The pages that change-sets hold together, ascending, each at its newest image, as the compacted change-set has them
 * (docs/storage-format.md section 6): a page that a later one of them cuts off is left out. `inputs` ascend, each begins where the
 * one before it ends. Only chunks with a page that is wanted are read, one data chunk of each input at a time; each image is
 * checked against its hash. Throws `replica-corrupt` naming the object, also when a page is missing that was cut off and came back:
 * without it the image from before the cut would be seen again.
 */
export async function* mergePages(
  inputs: readonly OpenedObject[],
  pageSizeBytes: number,
  describe: (object: ReplicaObject) => string,
): AsyncGenerator<PageBatch> {
  const cursors = inputs.map((input, position) => new PageCursor(input, position, describe(input.object)));
  const limits = pageLimits(inputs);
  const returned = new ReturnedPages(inputs, pageSizeBytes);
  await Promise.all(cursors.map((cursor) => cursor.begin()));
  const perBatch = Math.max(1, Math.floor(BATCH_BYTES / pageSizeBytes));
  const heap = new CursorHeap(cursors);
  let batch = new BatchBuilder(perBatch, pageSizeBytes);
  for (let winner = heap.top(); winner !== null; winner = heap.top()) {
    const { pageNumber } = winner;
    if (pageNumber <= (limits[winner.position] ?? 0)) {
      returned.add(pageNumber);
      await winner.copyTo(batch);
      if (batch.isFull) {
        yield batch.take();
        batch = new BatchBuilder(perBatch, pageSizeBytes);
      }
    }
    // Older images of the page, and the one that was taken.
    while (heap.top()?.pageNumber === pageNumber) await heap.advanceTop();
  }
  const missing = returned.missingCount;
  const newest = inputs.at(-1);
  if (missing > 0 && newest !== undefined)
    throw new BakeliteError("replica-corrupt", `pages that were cut off and came back are missing (${missing})`, {
      subject: describe(newest.object),
      hint: "run `bakelite verify` to see what is damaged",
    });
  if (!batch.isEmpty) yield batch.take();
}

/** Pages above the smallest of the sizes on the way: whatever stood there before is gone, so all of them must have been stored again. */
class ReturnedPages {
  readonly #above: number;
  #missing: number;

  constructor(inputs: readonly OpenedObject[], pageSizeBytes: number) {
    const sizes = inputs.map(({ reader }) => reader.trailer.sizePages);
    const size = sizes.at(-1) ?? 0;
    const smallest = sizes.reduce((least, one) => Math.min(least, one), size);
    const lockPage = lockPageNumber(pageSizeBytes);
    this.#above = smallest;
    this.#missing = size - smallest - (smallest < lockPage && lockPage <= size ? 1 : 0);
  }

  get missingCount(): number {
    return this.#missing;
  }

  add(pageNumber: number): void {
    if (pageNumber > this.#above) this.#missing--;
  }
}

/** For each input the highest page that no later input cuts off. */
function pageLimits(inputs: readonly OpenedObject[]): readonly number[] {
  const limits: number[] = [];
  let limit = Number.POSITIVE_INFINITY;
  for (let position = inputs.length - 1; position >= 0; position--) {
    limits[position] = limit;
    limit = Math.min(limit, inputs[position]?.reader.trailer.sizePages ?? 0);
  }
  return limits;
}

/** Walks along one input's pages. */
class PageCursor {
  /** Its place among the inputs: the higher, the newer. */
  readonly position: number;
  /** The page it stands at; Infinity behind the last. */
  pageNumber = Number.POSITIVE_INFINITY;
  readonly #reader: ObjectReader;
  readonly #subject: string;
  #group = -1;
  #index: IndexChunk | null = null;
  #entry = 0;
  #chunk = 0;
  /** The images of data chunk `#chunk`, once one of them was wanted. */
  #images: Uint8Array | null = null;

  constructor({ reader }: OpenedObject, position: number, subject: string) {
    this.#reader = reader;
    this.#subject = subject;
    this.position = position;
  }

  async begin(): Promise<void> {
    await this.#nextGroup();
  }

  async advance(): Promise<void> {
    const index = this.#index;
    if (index === null) return;
    this.#entry++;
    if (this.#entry >= index.pageNumbers.length) return await this.#nextGroup();
    const chunk = this.#chunkRef(index);
    if (this.#entry >= chunk.firstEntry + chunk.pageCount) {
      this.#chunk++;
      this.#images = null;
    }
    this.pageNumber = index.pageNumbers[this.#entry] ?? Number.POSITIVE_INFINITY;
  }

  /** Appends the page it stands at. */
  async copyTo(batch: BatchBuilder): Promise<void> {
    const index = this.#index;
    if (index === null)
      throw new BakeliteError("internal", "invariant broken: a cursor behind its last page has no image");
    const chunk = this.#chunkRef(index);
    this.#images ??= await this.#readImages(index, chunk);
    const { pageSizeBytes } = this.#reader.header;
    const start = (this.#entry - chunk.firstEntry) * pageSizeBytes;
    const hashStart = this.#entry * PAGE_HASH_BYTES;
    batch.add(
      this.pageNumber,
      this.#images.subarray(start, start + pageSizeBytes),
      index.hashes.subarray(hashStart, hashStart + PAGE_HASH_BYTES),
    );
  }

  async #readImages(index: IndexChunk, chunk: DataChunkRef): Promise<Uint8Array> {
    const images = await this.#reader.dataChunk(chunk);
    const [start, end] = [chunk.firstEntry, chunk.firstEntry + chunk.pageCount];
    const pageNumbers = index.pageNumbers.subarray(start, end);
    const hashes = index.hashes.subarray(start * PAGE_HASH_BYTES, end * PAGE_HASH_BYTES);
    const wrong = checkPageHashes(pageNumbers, images, hashes, this.#reader.header.pageSizeBytes);
    if (wrong === -1) return images;
    throw new BakeliteError("replica-corrupt", `page ${pageNumbers[wrong]} does not match its hash`, {
      subject: this.#subject,
      hint: "run `bakelite verify` to see what is damaged",
    });
  }

  async #nextGroup(): Promise<void> {
    this.#group++;
    this.#entry = 0;
    this.#chunk = 0;
    this.#images = null;
    const isEnd = this.#group >= this.#reader.trailer.indexChunks.length;
    this.#index = isEnd ? null : await this.#reader.indexChunk(this.#group);
    this.pageNumber = this.#index?.pageNumbers[0] ?? Number.POSITIVE_INFINITY;
  }

  #chunkRef(index: IndexChunk): DataChunkRef {
    const chunk = index.dataChunks[this.#chunk];
    if (chunk === undefined) throw new BakeliteError("internal", "invariant broken: a page stands in a data chunk");
    return chunk;
  }
}

/** The cursor at the lowest page, of several the newest, is on top. */
class CursorHeap {
  readonly #cursors: PageCursor[];

  constructor(cursors: readonly PageCursor[]) {
    this.#cursors = [...cursors];
    for (let i = (this.#cursors.length >>> 1) - 1; i >= 0; i--) this.#sink(i);
  }

  top(): PageCursor | null {
    const top = this.#cursors[0];
    return top === undefined || top.pageNumber === Number.POSITIVE_INFINITY ? null : top;
  }

  async advanceTop(): Promise<void> {
    await this.#cursors[0]?.advance();
    this.#sink(0);
  }

  #sink(start: number): void {
    const cursors = this.#cursors;
    for (let i = start; ; ) {
      let best = i;
      for (const child of [2 * i + 1, 2 * i + 2]) if (this.#isBefore(child, best)) best = child;
      const [a, b] = [cursors[i], cursors[best]];
      if (best === i || a === undefined || b === undefined) return;
      cursors[i] = b;
      cursors[best] = a;
      i = best;
    }
  }

  #isBefore(i: number, j: number): boolean {
    const [a, b] = [this.#cursors[i], this.#cursors[j]];
    if (a === undefined || b === undefined) return false;
    return a.pageNumber === b.pageNumber ? a.position > b.position : a.pageNumber < b.pageNumber;
  }
}

class BatchBuilder {
  readonly #pageNumbers: Uint32Array;
  readonly #images: Uint8Array;
  readonly #hashes: Uint8Array;
  readonly #pageSizeBytes: number;
  #count = 0;

  constructor(capacity: number, pageSizeBytes: number) {
    this.#pageNumbers = new Uint32Array(capacity);
    this.#images = new Uint8Array(capacity * pageSizeBytes);
    this.#hashes = new Uint8Array(capacity * PAGE_HASH_BYTES);
    this.#pageSizeBytes = pageSizeBytes;
  }

  get isFull(): boolean {
    return this.#count === this.#pageNumbers.length;
  }

  get isEmpty(): boolean {
    return this.#count === 0;
  }

  add(pageNumber: number, image: Uint8Array, hash: Uint8Array): void {
    this.#pageNumbers[this.#count] = pageNumber;
    this.#images.set(image, this.#count * this.#pageSizeBytes);
    this.#hashes.set(hash, this.#count * PAGE_HASH_BYTES);
    this.#count++;
  }

  /** To be called once: the arrays belong to whoever takes the batch. */
  take(): PageBatch {
    return {
      pageNumbers: this.#pageNumbers.subarray(0, this.#count),
      images: this.#images.subarray(0, this.#count * this.#pageSizeBytes),
      hashes: this.#hashes.subarray(0, this.#count * PAGE_HASH_BYTES),
    };
  }
}
