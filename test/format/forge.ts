import { createHash } from "node:crypto";
import { zstdCompressSync } from "node:zlib";
import { xchacha20poly1305 } from "@noble/ciphers/chacha.js";
import { type Page, pageHashByDefinition, SAMPLE_KEY, type Sample, u32, u64 } from "./samples.ts";

type Fields = Record<string, unknown>;

export interface Chunk {
  readonly kind: "data" | "index" | "trailer";
  /** From 0, among the chunks of its kind. */
  readonly number: number;
}

/** Where a forger may put in his own bytes; all checksums are made afterwards, so that they agree with them. */
export interface Forgery {
  readonly header?: (fields: Fields) => Fields;
  /** The raw bytes of a chunk. */
  readonly raw?: (raw: Buffer, chunk: Chunk) => Buffer;
  /** A chunk with its 8 bytes in front, before it is sealed. */
  readonly frame?: (frame: Buffer, chunk: Chunk) => Buffer;
  /** A chunk as stored. */
  readonly stored?: (stored: Buffer, chunk: Chunk) => Buffer;
  readonly trailer?: (fields: Fields) => unknown;
  /** The footer without its SHA-256 and magic: 32 bytes. `object` is what stands before it. */
  readonly footer?: (footer: Buffer, object: Buffer) => Buffer;
  /** Data chunks per index chunk. */
  readonly groupSize?: number;
}

/**
 * Writes an object as docs/storage-format.md describes it, independently of the encoder and with no care for speed or
 * memory. `dataChunks` says which pages stand in each data chunk.
 */
export function forge(sample: Sample, dataChunks: readonly (readonly Page[])[], forgery: Forgery = {}): Uint8Array {
  const same = <T>(value: T): T => value;
  const {
    header: forgeHeader = same,
    raw: forgeRaw = same,
    frame: forgeFrame = same,
    stored: forgeStored = same,
  } = forgery;
  const { trailer: forgeTrailer = same, footer: forgeFooter = same, groupSize = 64 } = forgery;

  const headerJson = Buffer.from(JSON.stringify(forgeHeader(headerFields(sample))));
  const header = Buffer.concat([Buffer.from("bakelite"), u32(headerJson.length), headerJson]);
  let object = header;
  const numbers = { data: 0, index: 0, trailer: 0 };

  const append = (kind: Chunk["kind"], content: Buffer) => {
    const chunk = { kind, number: numbers[kind]++ };
    const raw = forgeRaw(content, chunk);
    const type = { data: 0, index: 1, trailer: 2 }[kind];
    const zstd = sample.header.compression === "zstd" ? zstdCompressSync(raw) : raw;
    const shrunk = zstd.length < raw.length;
    const frame = forgeFrame(
      Buffer.concat([Buffer.of(type, shrunk ? 1 : 0, 0, 0), u32(raw.length), shrunk ? zstd : raw]),
      chunk,
    );
    const stored = forgeStored(seal(sample, header, type, object.length, frame), chunk);
    const at = { offset: object.length, length: stored.length, checksum: sha256(stored).subarray(0, 16), stored };
    object = Buffer.concat([object, stored]);
    return at;
  };

  const indexChunks: unknown[] = [];
  for (let first = 0; first < dataChunks.length; first += groupSize) {
    const group = dataChunks.slice(first, first + groupSize);
    const entries: Buffer[] = [u32(group.length)];
    for (const pages of group) {
      const at = append("data", Buffer.concat(pages.map((page) => page.image)));
      entries.push(u64(at.offset), u32(at.length), u32(pages.length), at.checksum);
    }
    const pages = group.flat();
    for (const page of pages) entries.push(u32(page.pageNumber), Buffer.from(pageHashByDefinition(page)));
    const at = append("index", Buffer.concat(entries));
    indexChunks.push([
      at.offset,
      at.length,
      pages[0]?.pageNumber,
      pages.at(-1)?.pageNumber,
      pages.length,
      at.checksum.toString("hex"),
    ]);
  }

  const fields = { ...trailerFields(sample), page_count: dataChunks.flat().length, index_chunks: indexChunks };
  const trailer = append("trailer", Buffer.from(JSON.stringify(forgeTrailer(fields))));
  const checksum = sha256(header, trailer.stored).subarray(0, 16);
  const fieldsOfFooter = [u64(trailer.offset), u32(trailer.length), u32(header.length), checksum];
  const footer = forgeFooter(Buffer.concat(fieldsOfFooter), object);
  return new Uint8Array(Buffer.concat([object, footer, sha256(object, footer), Buffer.from("etilekab")]));
}

function headerFields({ header }: Sample): Fields {
  return {
    format: 1,
    writer: "a stranger's writer",
    kind: header.kind,
    database: header.database,
    level: header.level,
    first: header.first,
    chain: header.chain,
    page_size: header.pageSizeBytes,
    compression: header.compression,
    cipher: header.cipher,
    key_fingerprint: header.keyFingerprint,
    nonce_seed: header.nonceSeed,
    session: header.session,
    run: header.run,
  };
}

function trailerFields({ trailer }: Sample): Fields {
  return {
    last: trailer.last,
    settled: trailer.settled,
    size_pages: trailer.sizePages,
    parent: trailer.parent,
    result: trailer.result,
    digest: trailer.digest,
    first_commit_ms: trailer.firstCommitMs,
    last_commit_ms: trailer.lastCommitMs,
    commits: trailer.commits,
    epochs: trailer.epochs.map((epoch) => [epoch.number, epoch.firstIndex, epoch.firstStampMs]),
    wal: trailer.wal,
    reason: trailer.reason,
  };
}

function seal(sample: Sample, header: Buffer, type: number, offset: number, frame: Buffer): Buffer {
  if (sample.header.keyFingerprint === null) return frame;
  const seed = Buffer.from(sample.header.nonceSeed, "hex");
  const nonce = Buffer.concat([seed.subarray(0, 16), u64((seed.readBigUInt64BE(16) + BigInt(offset)) % 2n ** 64n)]);
  const associated = Buffer.concat([sha256(header), u64(offset), Buffer.of(type, type === 2 ? 1 : 0)]);
  const cipher = xchacha20poly1305(SAMPLE_KEY.key, new Uint8Array(nonce), new Uint8Array(associated));
  return Buffer.from(cipher.encrypt(new Uint8Array(frame)));
}

function sha256(...parts: Uint8Array[]): Buffer {
  const hash = createHash("sha256");
  for (const part of parts) hash.update(part);
  return hash.digest();
}
