import { assert } from "../util/errors.ts";
import {
  type ChunkType,
  checksumOf,
  DATA_CHUNKS_PER_INDEX_CHUNK,
  encodeFooter,
  encodeFrame,
  MAX_RAW_BYTES,
} from "./chunk.ts";
import { type SealContext, sealBulk } from "./envelope.ts";
import { encodeHeader, isDocument, type ObjectHeader } from "./header.ts";
import { encodeIndexChunk, IndexChunkBuilder } from "./index-chunk.ts";
import { encodeJson } from "./json.ts";
import { lockPageNumber, PAGE_HASH_BYTES } from "./pages.ts";
import { encodeTrailer, type IndexChunkRef, type StateTrailer } from "./trailer.ts";

/**
 * Pages in ascending order, any number of them; images and 16-byte hashes lie back to back. A batch belongs to the
 * encoder once it was yielded: its arrays are read later, in other threads too, and must not be written again.
 */
export interface PageBatch {
  readonly pageNumbers: Uint32Array;
  readonly images: Uint8Array;
  readonly hashes: Uint8Array;
}

export interface EncodeOptions {
  readonly header: ObjectHeader;
  /** `SealKey.key`, whose fingerprint the header names; null exactly if the header's cipher is `none`. */
  readonly sealKey: Uint8Array | null;
  /** For zstd. */
  readonly compressionLevel: number;
  /** Data chunks that are compressed at the same time; 3 by default. */
  readonly concurrency?: number;
}

/** What the writer says of an object's content; the encoder adds what it counted. */
export type TrailerFields = Omit<StateTrailer, "pageCount" | "indexChunks">;

const DEFAULT_CONCURRENCY = 3;

/**
 * Encodes a full backup or a change-set, piece by piece, with memory for one group of 64 data chunks' index and a few
 * chunks that are compressed ahead. Page numbers ascend over all batches; whether hashes and images agree is not checked.
 * `finish` is called once, after the last page's bytes were handed on, and may take hours. When it or `batches` throws, the
 * iteration throws the same and what was handed on must not be stored. Throws `internal` for pages or trailer fields
 * that a reader would refuse. docs/storage-format.md section 3.
 */
export async function* encodeObject(
  options: EncodeOptions,
  batches: AsyncIterable<PageBatch> | Iterable<PageBatch>,
  finish: () => TrailerFields | Promise<TrailerFields>,
): AsyncGenerator<Uint8Array> {
  const { header } = options;
  assert(!isDocument(header.kind), "an object with pages is a full backup or a change-set");
  const writer = new ObjectWriter(options);
  yield writer.begin();

  const index = new IndexChunkBuilder();
  const indexChunks: IndexChunkRef[] = [];
  let pageCount = 0;
  const endGroup = async () => {
    const content = index.take();
    const stored = await writer.add("index", await makeFrame(options, "index", encodeIndexChunk(content)));
    indexChunks.push({
      offset: stored.offset,
      storedBytes: stored.bytes.length,
      firstPage: content.pageNumbers[0] ?? 0,
      lastPage: content.pageNumbers.at(-1) ?? 0,
      pageCount: content.pageNumbers.length,
      checksum: Buffer.from(stored.checksum).toString("hex"),
    });
    return stored.bytes;
  };

  const makeDataFrame = async (pages: PageBatch) => ({ pages, frame: await makeFrame(options, "data", pages.images) });
  for await (const { pages, frame } of mapAhead(
    dataChunks(batches, header.pageSizeBytes),
    makeDataFrame,
    options.concurrency ?? DEFAULT_CONCURRENCY,
  )) {
    const stored = await writer.add("data", frame);
    index.add(
      { offset: stored.offset, storedBytes: stored.bytes.length, checksum: stored.checksum },
      pages.pageNumbers,
      pages.hashes,
    );
    pageCount += pages.pageNumbers.length;
    yield stored.bytes;
    if (index.dataChunkCount === DATA_CHUNKS_PER_INDEX_CHUNK) yield await endGroup();
  }
  if (index.dataChunkCount > 0) yield await endGroup();

  const trailer = encodeTrailer({ ...(await finish()), pageCount, indexChunks }, header);
  const stored = await writer.add("trailer", await makeFrame(options, "trailer", trailer));
  yield stored.bytes;
  yield writer.end(stored);
}

/** Encodes `CURRENT`, `manifest` or a mark: a container whose only chunk is the trailer with these fields. docs/storage-format.md section 7. */
export async function encodeDocument(
  options: EncodeOptions,
  trailerFields: Record<string, unknown>,
): Promise<Uint8Array> {
  assert(isDocument(options.header.kind), "a document is CURRENT, manifest or a mark");
  const writer = new ObjectWriter(options);
  const begin = writer.begin();
  const stored = await writer.add("trailer", await makeFrame(options, "trailer", encodeJson(trailerFields)));
  return Buffer.concat([begin, stored.bytes, writer.end(stored)]);
}

interface StoredChunk {
  readonly offset: number;
  readonly bytes: Uint8Array;
  readonly checksum: Uint8Array;
}

/** Keeps what runs through a whole object: the offset reached and the hash of every byte so far. */
class ObjectWriter {
  readonly #headerBytes: Uint8Array;
  readonly #seal: SealContext | null;
  readonly #hash = new Bun.CryptoHasher("sha256");
  #offset = 0;

  constructor({ header, sealKey }: EncodeOptions) {
    assert((sealKey === null) === (header.cipher === "none"), "a header names a cipher exactly if there is a key");
    this.#headerBytes = encodeHeader(header);
    const headerSha256 = new Bun.CryptoHasher("sha256").update(this.#headerBytes).digest();
    this.#seal = sealKey === null ? null : { key: sealKey, nonceSeed: header.nonceSeed, headerSha256 };
  }

  /** The header. */
  begin(): Uint8Array {
    return this.#pass(this.#headerBytes);
  }

  /** One chunk, sealed if the object is. */
  async add(type: ChunkType, frame: Uint8Array): Promise<StoredChunk> {
    const offset = this.#offset;
    const bytes = this.#seal === null ? frame : await sealBulk(this.#seal, { type, offset }, frame);
    return { offset, bytes: this.#pass(bytes), checksum: checksumOf(bytes) };
  }

  /** The footer, which ends the object. */
  end(trailer: StoredChunk): Uint8Array {
    return encodeFooter(
      {
        trailerOffset: trailer.offset,
        trailerStoredBytes: trailer.bytes.length,
        headerBytes: this.#headerBytes.length,
        checksum: checksumOf(this.#headerBytes, trailer.bytes),
      },
      this.#hash,
    );
  }

  #pass(bytes: Uint8Array): Uint8Array {
    this.#hash.update(bytes);
    this.#offset += bytes.length;
    assert(Number.isSafeInteger(this.#offset), "an object is smaller than 2^53 bytes");
    return bytes;
  }
}

async function makeFrame(options: EncodeOptions, type: ChunkType, raw: Uint8Array): Promise<Uint8Array> {
  const compress = options.header.compression === "zstd";
  return encodeFrame(type, raw, compress ? await Bun.zstdCompress(raw, { level: options.compressionLevel }) : null);
}

/**
 * The same pages in runs of as many as fit a data chunk, the last of them shorter. Views of the batches where a run lies in
 * one batch, copies where it does not.
 */
async function* dataChunks(
  batches: AsyncIterable<PageBatch> | Iterable<PageBatch>,
  pageSizeBytes: number,
): AsyncGenerator<PageBatch> {
  const pagesPerChunk = Math.floor(MAX_RAW_BYTES.data / pageSizeBytes);
  const lockPage = lockPageNumber(pageSizeBytes);
  let newestPage = 0;
  let pieces: PageBatch[] = [];
  let missing = pagesPerChunk;
  for await (const batch of batches) {
    const batchPages = batch.pageNumbers.length;
    assert(batch.images.length === batchPages * pageSizeBytes, "a batch has one image for each page number");
    assert(batch.hashes.length === batchPages * PAGE_HASH_BYTES, "a batch has one hash for each page number");
    for (const pageNumber of batch.pageNumbers) {
      assert(
        pageNumber > newestPage && pageNumber !== lockPage,
        "page numbers ascend from 1 and leave out the lock page",
      );
      newestPage = pageNumber;
    }
    for (let start = 0; start < batchPages; ) {
      const end = Math.min(start + missing, batchPages);
      pieces.push(sliceBatch(batch, start, end, pageSizeBytes));
      missing -= end - start;
      start = end;
      if (missing > 0) continue;
      yield joinBatches(pieces);
      pieces = [];
      missing = pagesPerChunk;
    }
  }
  if (pieces.length > 0) yield joinBatches(pieces);
}

function sliceBatch(batch: PageBatch, start: number, end: number, pageSizeBytes: number): PageBatch {
  return {
    pageNumbers: batch.pageNumbers.subarray(start, end),
    images: batch.images.subarray(start * pageSizeBytes, end * pageSizeBytes),
    hashes: batch.hashes.subarray(start * PAGE_HASH_BYTES, end * PAGE_HASH_BYTES),
  };
}

function joinBatches(pieces: readonly PageBatch[]): PageBatch {
  const only = pieces.length === 1 ? pieces[0] : undefined;
  if (only !== undefined) return only;
  const pageNumbers = new Uint32Array(pieces.reduce((sum, piece) => sum + piece.pageNumbers.length, 0));
  let position = 0;
  for (const piece of pieces) {
    pageNumbers.set(piece.pageNumbers, position);
    position += piece.pageNumbers.length;
  }
  return {
    pageNumbers,
    images: Buffer.concat(pieces.map((piece) => piece.images)),
    hashes: Buffer.concat(pieces.map((piece) => piece.hashes)),
  };
}

/** `map` of every item, in order, begun for up to `limit` items before the first of them is awaited. */
async function* mapAhead<Item, Result>(
  items: AsyncIterable<Item>,
  map: (item: Item) => Promise<Result>,
  limit: number,
): AsyncGenerator<Result> {
  const begun: Promise<Result>[] = [];
  try {
    for await (const item of items) {
      const result = map(item);
      // It is awaited below, in its turn; until then a failure must not count as one that nobody looks at.
      result.catch(() => undefined);
      begun.push(result);
      const oldest = begun.length < limit ? undefined : begun.shift();
      if (oldest !== undefined) yield await oldest;
    }
    for (let oldest = begun.shift(); oldest !== undefined; oldest = begun.shift()) yield await oldest;
  } finally {
    // Nothing of ours reads a batch any more once the caller sees the end.
    await Promise.allSettled(begun);
  }
}
