import { FOOTER_BYTES } from "../format/chunk.ts";
import { damaged } from "../format/damage.ts";
import { checkPageHashes, footerSha256, type ObjectReader, openObject, verifyObject } from "../format/decode.ts";
import { encodeObject, type PageBatch } from "../format/encode.ts";
import type { KeyRing, SealKey } from "../format/envelope.ts";
import type { ObjectHeader } from "../format/header.ts";
import { type ObjectName, objectKey } from "../format/names.ts";
import { PAGE_HASH_BYTES } from "../format/pages.ts";
import { type StateTrailer, trailerFields } from "../format/trailer.ts";
import type { Backend } from "../storage/backend.ts";
import { ObjectSource } from "./object-source.ts";

/** Where an object lies and what it may be opened with. */
export interface ObjectPlace {
  readonly backend: Backend;
  readonly database: string;
  readonly name: ObjectName;
  readonly sizeBytes: number;
  readonly keys: KeyRing;
}

export interface ReadOptions {
  readonly signal: AbortSignal | undefined;
  /** Hears of the bytes that come from the destination. */
  readonly onBytes: (bytes: number) => void;
}

/** What an object that was read whole holds, and which encoding of it that was. */
export interface ReadContent {
  /** Equal for two encodings exactly if both hold the same states: everything but seal, compression and offsets. */
  readonly content: string;
  readonly footerSha256: Uint8Array;
}

/** Objects up to this size are read with one request, and encoded in memory so that a put can be repeated. */
export const SMALL_OBJECT_BYTES = 1024 * 1024;

/** Reads all of an object and checks it, as `verifyObject` does and throwing the same. */
export async function readContent(place: ObjectPlace, options: ReadOptions): Promise<ReadContent> {
  const source = await sourceOf(place, options);
  const pages = new PageHasher();
  const { header, trailer, footerSha256 } = await verifyObject(source, decodeOptions(place), {
    onPages: (batch) => pages.add(batch),
  });
  return { content: contentOf(header, trailer, pages), footerSha256 };
}

/** The SHA-256 in the object's footer, by one small request. */
export async function readFooterSha256(place: ObjectPlace, options: ReadOptions): Promise<Uint8Array> {
  const source = openSource(place, options);
  const tail = await source.read(Math.max(0, place.sizeBytes - FOOTER_BYTES), place.sizeBytes);
  return footerSha256(tail, subjectOf(place));
}

/** How an object is to be written anew. */
export interface Resealing {
  readonly sealKey: SealKey | null;
  readonly compressionLevel: number;
  /** Program and version. */
  readonly writer: string;
  /** 48 hex digits, drawn for this encoding alone. */
  readonly nonceSeed: string;
}

/** A stored object as it is being encoded anew. */
export interface Reencoded {
  readonly pieces: AsyncIterable<Uint8Array>;
  /** What was read, once `pieces` has ended. */
  content(): string;
}

/**
 * Opens a stored object and encodes it anew, group by group of 64 data chunks, with memory for two groups. Header and trailer
 * have been checked when this resolves; every page is checked against its hash before it is handed on. `pieces` is to be
 * read once, and throws when anything is wrong with the object. Lineage, digest, stamps, session and run stay as they are.
 */
export async function reencode(place: ObjectPlace, resealing: Resealing, options: ReadOptions): Promise<Reencoded> {
  const source = await sourceOf(place, options);
  const reader = await openObject(source, decodeOptions(place));
  const pages = new PageHasher();
  const { indexChunks: _, pageCount: __, ...fields } = reader.trailer;
  const { sealKey, compressionLevel } = resealing;
  const encoding = {
    header: resealedHeader(reader.header, resealing),
    sealKey: sealKey?.key ?? null,
    compressionLevel,
  };
  return {
    pieces: encodeObject(encoding, pagesOf(place, { reader, source, pages }), () => fields),
    content: () => contentOf(reader.header, reader.trailer, pages),
  };
}

function resealedHeader(header: ObjectHeader, { sealKey, writer, nonceSeed }: Resealing): ObjectHeader {
  return {
    ...header,
    writer,
    cipher: sealKey === null ? "none" : "xchacha20-poly1305",
    keyFingerprint: sealKey?.fingerprint ?? null,
    nonceSeed,
    // The daemon's cursor may name the object by its first seed.
    originSeed: header.originSeed ?? header.nonceSeed,
  };
}

async function* pagesOf(
  place: ObjectPlace,
  {
    reader,
    source,
    pages,
  }: { readonly reader: ObjectReader; readonly source: ObjectSource; readonly pages: PageHasher },
): AsyncGenerator<PageBatch> {
  const { pageSizeBytes } = reader.header;
  const groups = reader.trailer.indexChunks.map((ref, i, all) => {
    const before = all[i - 1];
    return { start: before === undefined ? 0 : before.offset + before.storedBytes, end: ref.offset + ref.storedBytes };
  });
  const isWhole = source.whole !== null;
  const fetchGroup = async (i: number) => {
    const group = groups[i];
    if (group !== undefined && !isWhole) await source.fetchAhead(group.start, group.end);
  };
  let fetching = fetchGroup(0);
  for (const [i, { start, end }] of groups.entries()) {
    await fetching;
    fetching = fetchGroup(i + 1);
    // It is awaited in its turn, unless this one fails first.
    fetching.catch(() => undefined);
    const index = await reader.indexChunk(i);
    for (const ref of index.dataChunks) {
      const entries = { start: ref.firstEntry, end: ref.firstEntry + ref.pageCount };
      const batch = {
        pageNumbers: index.pageNumbers.subarray(entries.start, entries.end),
        images: await reader.dataChunk(ref),
        hashes: index.hashes.subarray(entries.start * PAGE_HASH_BYTES, entries.end * PAGE_HASH_BYTES),
      };
      const mismatch = checkPageHashes(batch.pageNumbers, batch.images, batch.hashes, pageSizeBytes);
      if (mismatch >= 0) throw damaged(subjectOf(place), `page ${batch.pageNumbers[mismatch]} does not match its hash`);
      pages.add(batch);
      yield batch;
    }
    source.release(start, end);
  }
}

/** What two encodings of the same pages have in common, however they cut them into chunks. */
class PageHasher {
  readonly #numbers = new Bun.CryptoHasher("sha256");
  readonly #hashes = new Bun.CryptoHasher("sha256");

  add({ pageNumbers, hashes }: PageBatch): void {
    this.#numbers.update(pageNumbers);
    this.#hashes.update(hashes);
  }

  /** To be called after the last page; may be called again. */
  toString(): string {
    return `${this.#numbers.copy().digest("hex")} ${this.#hashes.copy().digest("hex")}`;
  }
}

function contentOf(header: ObjectHeader, trailer: StateTrailer, pages: PageHasher): string {
  const { kind, database, level, first, chain, pageSizeBytes } = header;
  return JSON.stringify([kind, database, level, first, chain, pageSizeBytes, trailerFields(trailer), String(pages)]);
}

async function sourceOf(place: ObjectPlace, options: ReadOptions): Promise<ObjectSource> {
  const source = openSource(place, options);
  if (place.sizeBytes <= SMALL_OBJECT_BYTES) await source.fetchAhead(0, place.sizeBytes);
  return source;
}

function openSource(
  { backend, database, name, sizeBytes }: ObjectPlace,
  { signal, onBytes }: ReadOptions,
): ObjectSource {
  return new ObjectSource(backend, { key: objectKey(database, name), sizeBytes }, signal, onBytes);
}

function decodeOptions(place: ObjectPlace) {
  const { database, name, keys } = place;
  return { name, database, subject: subjectOf(place), keys, acceptPlaintext: true };
}

function subjectOf({ backend, database, name }: ObjectPlace): string {
  return `${backend.location}/${objectKey(database, name)}`;
}
