import { assert } from "../util/errors.ts";
import {
  CHECKSUM_BYTES,
  DATA_CHUNKS_PER_INDEX_CHUNK,
  FRAME_HEADER_BYTES,
  MAX_RAW_BYTES,
  maxStoredBytes,
} from "./chunk.ts";
import { damaged } from "./damage.ts";
import { lockPageNumber, PAGE_HASH_BYTES } from "./pages.ts";

/** One data chunk, as its index chunk describes it. */
export interface DataChunkRef {
  /** Where its stored bytes begin in the object. */
  readonly offset: number;
  readonly storedBytes: number;
  readonly pageCount: number;
  /** SHA-256 of its stored bytes, cut to 16 bytes. */
  readonly checksum: Uint8Array;
  /** Position of its first page in the index chunk's `pageNumbers`. */
  readonly firstEntry: number;
}

/** The page index of up to 64 data chunks. `hashes` holds 16 bytes for each page number, back to back. */
export interface IndexChunk {
  readonly dataChunks: readonly DataChunkRef[];
  readonly pageNumbers: Uint32Array;
  readonly hashes: Uint8Array;
}

/** What the object tells of an index chunk from outside: its data chunks fill `dataStart` to `dataEnd` of the object. */
export interface IndexChunkPlace {
  readonly subject: string;
  readonly offset: number;
  readonly dataStart: number;
  readonly dataEnd: number;
  readonly firstPage: number;
  readonly lastPage: number;
  readonly pageCount: number;
  readonly pageSizeBytes: number;
  readonly sealed: boolean;
  readonly isLast: boolean;
}

const COUNT_BYTES = 4;
const DATA_CHUNK_ENTRY_BYTES = 8 + 4 + 4 + CHECKSUM_BYTES;
const PAGE_ENTRY_BYTES = 4 + PAGE_HASH_BYTES;

/** An index chunk's raw bytes. docs/storage-format.md section 3.2. */
export function encodeIndexChunk(index: IndexChunk): Uint8Array {
  const { dataChunks, pageNumbers, hashes } = index;
  const pagesOffset = COUNT_BYTES + dataChunks.length * DATA_CHUNK_ENTRY_BYTES;
  const bytes = new Uint8Array(pagesOffset + pageNumbers.length * PAGE_ENTRY_BYTES);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, dataChunks.length);
  let offset = COUNT_BYTES;
  for (const chunk of dataChunks) {
    view.setBigUint64(offset, BigInt(chunk.offset));
    view.setUint32(offset + 8, chunk.storedBytes);
    view.setUint32(offset + 12, chunk.pageCount);
    bytes.set(chunk.checksum, offset + 16);
    offset += DATA_CHUNK_ENTRY_BYTES;
  }
  for (let i = 0; i < pageNumbers.length; i++) {
    view.setUint32(offset, pageNumbers[i] ?? 0);
    bytes.set(hashes.subarray(i * PAGE_HASH_BYTES, (i + 1) * PAGE_HASH_BYTES), offset + 4);
    offset += PAGE_ENTRY_BYTES;
  }
  return bytes;
}

/**
 * Reads an index chunk's raw bytes. Throws `replica-corrupt` unless its data chunks stand without gaps where `place` says,
 * are of permitted lengths, and its pages ascend and are those that the trailer announced. Takes memory in proportion to
 * `raw` only. docs/storage-format.md section 3.2.
 */
export function parseIndexChunk(raw: Uint8Array, place: IndexChunkPlace): IndexChunk {
  const wrong = (problem: string) => damaged(place.subject, `the index chunk at byte ${place.offset} ${problem}`);
  const view = new DataView(raw.buffer, raw.byteOffset, raw.byteLength);
  const chunkCount = raw.length < COUNT_BYTES ? 0 : view.getUint32(0);
  const permitted = place.isLast
    ? chunkCount >= 1 && chunkCount <= DATA_CHUNKS_PER_INDEX_CHUNK
    : chunkCount === DATA_CHUNKS_PER_INDEX_CHUNK;
  if (!permitted) throw wrong(`claims ${chunkCount} data chunks`);
  const pagesOffset = COUNT_BYTES + chunkCount * DATA_CHUNK_ENTRY_BYTES;
  if (raw.length !== pagesOffset + place.pageCount * PAGE_ENTRY_BYTES) throw wrong("is not as long as its contents");

  const dataChunks: DataChunkRef[] = [];
  let dataOffset = place.dataStart;
  let pageCount = 0;
  for (let entry = COUNT_BYTES; entry < pagesOffset; entry += DATA_CHUNK_ENTRY_BYTES) {
    const ref: DataChunkRef = {
      offset: Number(view.getBigUint64(entry)),
      storedBytes: view.getUint32(entry + 8),
      pageCount: view.getUint32(entry + 12),
      checksum: raw.slice(entry + 16, entry + DATA_CHUNK_ENTRY_BYTES),
      firstEntry: pageCount,
    };
    if (ref.offset !== dataOffset) throw wrong("leaves a gap between data chunks");
    if (ref.storedBytes < FRAME_HEADER_BYTES || ref.storedBytes > maxStoredBytes("data", place.sealed))
      throw wrong(`claims a data chunk of ${ref.storedBytes} bytes`);
    if (ref.pageCount < 1 || ref.pageCount * place.pageSizeBytes > MAX_RAW_BYTES.data)
      throw wrong(`claims a data chunk of ${ref.pageCount} pages`);
    dataChunks.push(ref);
    dataOffset += ref.storedBytes;
    pageCount += ref.pageCount;
  }
  if (dataOffset !== place.dataEnd) throw wrong("does not describe what stands before it");
  if (pageCount !== place.pageCount) throw wrong("has pages that do not add up");

  const pageNumbers = new Uint32Array(pageCount);
  const hashes = new Uint8Array(pageCount * PAGE_HASH_BYTES);
  const lockPage = lockPageNumber(place.pageSizeBytes);
  let newestPage = 0;
  for (let i = 0; i < pageCount; i++) {
    const entry = pagesOffset + i * PAGE_ENTRY_BYTES;
    const pageNumber = view.getUint32(entry);
    if (pageNumber <= newestPage) throw wrong("has page numbers that do not ascend");
    if (pageNumber === lockPage) throw wrong("has the lock page");
    newestPage = pageNumber;
    pageNumbers[i] = pageNumber;
    hashes.set(raw.subarray(entry + 4, entry + PAGE_ENTRY_BYTES), i * PAGE_HASH_BYTES);
  }
  if (pageNumbers[0] !== place.firstPage || newestPage !== place.lastPage)
    throw wrong("has other pages than the trailer says");
  return { dataChunks, pageNumbers, hashes };
}

/** Gathers what an index chunk describes, as its data chunks are written. */
export class IndexChunkBuilder {
  #dataChunks: DataChunkRef[] = [];
  #pages: { readonly pageNumbers: Uint32Array; readonly hashes: Uint8Array }[] = [];
  #pageCount = 0;

  get dataChunkCount(): number {
    return this.#dataChunks.length;
  }

  add(stored: Omit<DataChunkRef, "pageCount" | "firstEntry">, pageNumbers: Uint32Array, hashes: Uint8Array): void {
    assert(this.#dataChunks.length < DATA_CHUNKS_PER_INDEX_CHUNK, "an index chunk describes at most 64 data chunks");
    this.#dataChunks.push({ ...stored, pageCount: pageNumbers.length, firstEntry: this.#pageCount });
    this.#pages.push({ pageNumbers, hashes });
    this.#pageCount += pageNumbers.length;
  }

  /** What was added since the last call. */
  take(): IndexChunk {
    const index = {
      dataChunks: this.#dataChunks,
      pageNumbers: new Uint32Array(this.#pageCount),
      hashes: new Uint8Array(this.#pageCount * PAGE_HASH_BYTES),
    };
    let entry = 0;
    for (const { pageNumbers, hashes } of this.#pages) {
      index.pageNumbers.set(pageNumbers, entry);
      index.hashes.set(hashes, entry * PAGE_HASH_BYTES);
      entry += pageNumbers.length;
    }
    this.#dataChunks = [];
    this.#pages = [];
    this.#pageCount = 0;
    return index;
  }
}
