import { BakeliteError } from "../../util/errors.ts";
import { throwIfAborted } from "../abort.ts";
import type { ByteRange, ByteStream } from "../backend.ts";

/** What one request asks for: small enough to be held as a whole, large enough that the round trip does not show. */
export const CHUNK_BYTES = 4 * 1024 * 1024;
/** An answer that is not the asked range may still be understood, if it is the whole of a small object. */
export const MAX_CHUNK_ANSWER_BYTES = 16 * 1024 * 1024;
/** What a reader gets at a time. */
const PIECE_BYTES = 1024 * 1024;

/** What one request gave. */
export interface Chunk {
  readonly bytes: Uint8Array;
  /** Where the bytes stand in the object. */
  readonly start: number;
  readonly objectBytes: number;
  /** Names this content of the object, as an ETag does; "" where the server gives none. */
  readonly tag: string;
  /** A sum over the whole object, where the service says one; it is checked when the whole is read. */
  readonly objectSum: ObjectSum | null;
}

/** A running sum, and what it should come to. */
export interface ObjectSum {
  update(bytes: Uint8Array): void;
  /** Of all bytes so far. */
  isRight(): boolean;
}

/** `expected` is in hexadecimal. */
export function md5Sum(expected: string): ObjectSum {
  const md5 = new Bun.CryptoHasher("md5");
  return { update: (bytes) => void md5.update(bytes), isRight: () => md5.digest("hex") === expected };
}

/** One object as one service gives it. */
export interface RangedObject {
  /** For messages: `s3://bucket/key`. */
  readonly subject: string;
  /** The service knows no range that is counted from the end. */
  readonly lacksSuffixRanges?: boolean;
  /**
   * One request for the range that a Range header names, such as `bytes=0-99` or `bytes=-72`; at most `CHUNK_BYTES` of it. With a `tag` only of that
   * content. "nothing-there": the object has no byte in that range. null: there is no such object, or it has another content.
   */
  fetchChunk(request: ChunkRequest): Promise<Chunk | "nothing-there" | null>;
  /** null: there is no such object. */
  sizeBytes(signal: AbortSignal | undefined): Promise<number | null>;
  /** `storage-unreachable`: the server's answer is not one. */
  malformed(what: string): BakeliteError;
}

export interface ChunkRequest {
  readonly range: string;
  readonly tag: string | undefined;
  readonly signal: AbortSignal | undefined;
}

export interface ReadOptions {
  readonly range: ByteRange;
  readonly signal: AbortSignal | undefined;
}

/**
 * The bytes of a range, 4 MiB per request with one request ahead of the reader; null when there is no such object. Each is whole before
 * any byte of it is given, so a cut one is simply asked for again, a slow reader holds no connection, and memory is
 * bounded whatever fetch buffers. All requests after the first insist on the same content: an object that is replaced
 * meanwhile ends the stream with `replica-missing` rather than mix two.
 */
export async function readObject(object: RangedObject, { range, signal }: ReadOptions): Promise<ByteStream | null> {
  const wantedEnd = range.end ?? Number.POSITIVE_INFINITY;
  if (range.start >= 0 && wantedEnd <= range.start) {
    return (await object.sizeBytes(signal)) === null ? null : nothing();
  }
  let start = range.start;
  if (start < -CHUNK_BYTES || (start < 0 && object.lacksSuffixRanges === true)) {
    const objectBytes = await object.sizeBytes(signal);
    if (objectBytes === null) return null;
    start = Math.max(0, objectBytes + start);
    if (objectBytes === 0) return nothing();
  }
  const header = start < 0 ? `bytes=${start}` : `bytes=${start}-${Math.min(wantedEnd, start + CHUNK_BYTES) - 1}`;
  const first = await object.fetchChunk({ range: header, tag: undefined, signal });
  if (first === null) return null;
  if (first === "nothing-there") return nothing();
  const absoluteStart = start < 0 ? Math.max(0, first.objectBytes + start) : start;
  const end = Math.min(wantedEnd, first.objectBytes);
  const isWhole = range.start === 0 && range.end === undefined;
  return piecesOf(object, cutOut(object, first, absoluteStart, end), { end, isWhole, signal });
}

/**
 * Where the bytes of an answer stand in their object. Throws `malformed` for a Content-Range that does not fit the body.
 * Source: RFC 9110 section 14.4. A status of 200 is the whole object: the server does not know ranges, or ignored one.
 */
export function positionOf(
  object: RangedObject,
  { status, headers, body }: { readonly status: number; readonly headers: Headers; readonly body: Uint8Array },
): { readonly start: number; readonly objectBytes: number } {
  if (status === 200) return { start: 0, objectBytes: body.byteLength };
  const header = headers.get("content-range") ?? "";
  // Of an empty object, a range that MinIO gives and nobody defines: `bytes 0--1/0`.
  if (body.byteLength === 0 && /^bytes [^/]*\/0$/.test(header)) return { start: 0, objectBytes: 0 };
  const match = /^bytes (\d{1,15})-(\d{1,15})\/(\d{1,15})$/.exec(header);
  const [start, last, objectBytes] = [Number(match?.[1]), Number(match?.[2]), Number(match?.[3])];
  if (match === null || last - start + 1 !== body.byteLength || last >= objectBytes)
    throw object.malformed(`status ${status} with ${header === "" ? "no Content-Range" : header}`);
  return { start, objectBytes };
}

/** What came is not what was stored. */
export function damaged(subject: string): BakeliteError {
  return new BakeliteError("replica-corrupt", "cannot read the object: its bytes are not those that were stored", {
    subject,
    hint: "run the command again; if it comes back, run `bakelite verify`",
  });
}

async function* nothing(): AsyncGenerator<Uint8Array, void> {}

/** Gives what was fetched, and fetches the next chunk while the reader has this one. */
async function* piecesOf(
  object: RangedObject,
  first: Chunk,
  {
    end,
    isWhole,
    signal,
  }: { readonly end: number; readonly isWhole: boolean; readonly signal: AbortSignal | undefined },
): AsyncGenerator<Uint8Array, void> {
  // A change of one bit on the way would be noticed by the object's own checksums too; this says where it happened.
  const sum = isWhole ? first.objectSum : null;
  let chunk = first;
  for (;;) {
    throwIfAborted(signal);
    const nextStart = chunk.start + chunk.bytes.byteLength;
    const stop = new AbortController();
    const ahead =
      nextStart >= end
        ? null
        : nextChunk(object, { start: nextStart, end, tag: chunk.tag, signal: anySignal(signal, stop.signal) });
    ahead?.catch(() => {});
    try {
      sum?.update(chunk.bytes);
      if (ahead === null && sum?.isRight() === false) throw damaged(object.subject);
      for (let offset = 0; offset < chunk.bytes.byteLength; offset += PIECE_BYTES) {
        throwIfAborted(signal);
        yield chunk.bytes.subarray(offset, offset + PIECE_BYTES);
      }
      if (ahead === null) return;
      chunk = await ahead;
    } finally {
      stop.abort();
    }
  }
}

async function nextChunk(
  object: RangedObject,
  {
    start,
    end,
    tag,
    signal,
  }: { readonly start: number; readonly end: number; readonly tag: string; readonly signal: AbortSignal },
): Promise<Chunk> {
  const stop = Math.min(end, start + CHUNK_BYTES);
  const chunk = await object.fetchChunk({ range: `bytes=${start}-${stop - 1}`, tag, signal });
  if (chunk !== null && chunk !== "nothing-there") return cutOut(object, chunk, start, stop);
  throw new BakeliteError("replica-missing", "cannot read the object: it was deleted or replaced while it was read", {
    subject: object.subject,
    hint: "run the command again; if it comes back, run `bakelite verify` to see what is missing",
  });
}

/** Checks that a chunk holds the asked bytes, as many as there are, and gives exactly those. */
function cutOut(object: RangedObject, chunk: Chunk, start: number, end: number): Chunk {
  const stop = Math.min(end, start + CHUNK_BYTES, chunk.objectBytes);
  const from = start - chunk.start;
  if (from < 0 || chunk.start + chunk.bytes.byteLength < stop)
    throw object.malformed(`bytes ${start}-${stop} were asked for, and not all came`);
  return { ...chunk, start, bytes: chunk.bytes.subarray(from, from + Math.max(0, stop - start)) };
}

function anySignal(caller: AbortSignal | undefined, own: AbortSignal): AbortSignal {
  return caller === undefined ? own : AbortSignal.any([caller, own]);
}
