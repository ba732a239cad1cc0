import { BakeliteError } from "../../util/errors.ts";
import { throwIfAborted } from "../abort.ts";
import type { ByteRange, ByteStream } from "../backend.ts";
import type { S3Answer, S3Client } from "./client.ts";
import { type Doing, malformedAnswer, refusalError } from "./errors.ts";
import { unquote } from "./upload.ts";

/** What one request asks for: small enough to be held as a whole, large enough that the round trip does not show. */
const CHUNK_BYTES = 4 * 1024 * 1024;
/** What a reader gets at a time. */
const PIECE_BYTES = 1024 * 1024;
/** An answer that is not the asked range may still be understood, if it is the whole of a small object. */
const MAX_WHOLE_BYTES = 16 * 1024 * 1024;
const ABOUT = { doing: "read the object", permission: "s3:GetObject" } as const;

export interface ReadOptions {
  /** The whole key. */
  readonly key: string;
  readonly range: ByteRange;
  readonly signal: AbortSignal | undefined;
}

/** What one request gave. */
interface Chunk {
  readonly bytes: Uint8Array;
  /** Where the bytes stand in the object. */
  readonly start: number;
  readonly objectBytes: number;
  readonly etag: string;
}

/**
 * The bytes of a range, 4 MiB per request with one request ahead of the reader; null when there is no such object. Each is whole before
 * any byte of it is given, so a cut one is simply asked for again, a slow reader holds no connection, and memory is
 * bounded whatever fetch buffers. All requests after the first insist on the same ETag: an object that is replaced
 * meanwhile ends the stream with `replica-missing` rather than mix two.
 */
export async function readObject(client: S3Client, options: ReadOptions): Promise<ByteStream | null> {
  const { range } = options;
  const wantedEnd = range.end ?? Number.POSITIVE_INFINITY;
  if (range.start >= 0 && wantedEnd <= range.start) {
    const object = await headObject(client, options);
    return object === null ? null : nothing();
  }
  let start = range.start;
  if (start < -CHUNK_BYTES) {
    const object = await headObject(client, options);
    if (object === null) return null;
    start = Math.max(0, object.sizeBytes + start);
    if (object.sizeBytes === 0) return nothing();
  }
  const header = start < 0 ? `bytes=${start}` : `bytes=${start}-${Math.min(wantedEnd, start + CHUNK_BYTES) - 1}`;
  const first = await fetchChunk(client, options, header, undefined);
  if (first === null) return null;
  if (first === "nothing-there") return nothing();
  const absoluteStart = start < 0 ? Math.max(0, first.objectBytes + start) : start;
  const end = Math.min(wantedEnd, first.objectBytes);
  return piecesOf(client, options, cutOut(client, options, first, absoluteStart, end), end);
}

async function* nothing(): AsyncGenerator<Uint8Array, void> {}

/** Gives what was fetched, and fetches the next chunk while the reader has this one. */
async function* piecesOf(
  client: S3Client,
  options: ReadOptions,
  first: Chunk,
  end: number,
): AsyncGenerator<Uint8Array, void> {
  const { key, signal, range } = options;
  const isWhole = range.start === 0 && range.end === undefined;
  // A change of one bit on the way would be noticed by the object's own checksums too; this says where it happened.
  const md5 =
    isWhole && client.place.etagIsMd5 && /^[0-9a-f]{32}$/.test(first.etag) ? new Bun.CryptoHasher("md5") : null;
  let chunk = first;
  for (;;) {
    throwIfAborted(signal);
    const nextStart = chunk.start + chunk.bytes.byteLength;
    const stop = new AbortController();
    const ahead =
      nextStart >= end
        ? null
        : nextChunk(
            client,
            { ...options, signal: anySignal(signal, stop.signal) },
            { start: nextStart, end, etag: chunk.etag },
          );
    ahead?.catch(() => {});
    try {
      md5?.update(chunk.bytes);
      if (ahead === null && md5 !== null && md5.digest("hex") !== chunk.etag) throw damaged(client, key);
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
  client: S3Client,
  options: ReadOptions,
  { start, end, etag }: { readonly start: number; readonly end: number; readonly etag: string },
): Promise<Chunk> {
  const stop = Math.min(end, start + CHUNK_BYTES);
  const chunk = await fetchChunk(client, options, `bytes=${start}-${stop - 1}`, etag);
  if (chunk !== null && chunk !== "nothing-there") return cutOut(client, options, chunk, start, stop);
  throw new BakeliteError("replica-missing", "cannot read the object: it was deleted or replaced while it was read", {
    subject: aboutOf(client, options).subject,
    hint: "run the command again; if it comes back, run `bakelite verify` to see what is missing",
  });
}

/** Checks that a chunk holds the asked bytes, as many as there are, and gives exactly those. */
function cutOut(client: S3Client, options: ReadOptions, chunk: Chunk, start: number, end: number): Chunk {
  const stop = Math.min(end, start + CHUNK_BYTES, chunk.objectBytes);
  const from = start - chunk.start;
  if (from < 0 || chunk.start + chunk.bytes.byteLength < stop)
    throw malformedAnswer(aboutOf(client, options), `bytes ${start}-${stop} were asked for, and not all came`);
  return { ...chunk, start, bytes: chunk.bytes.subarray(from, from + Math.max(0, stop - start)) };
}

/** "nothing-there": the object has no byte in that range. null: there is no such object, or it has another ETag. */
async function fetchChunk(
  client: S3Client,
  options: ReadOptions,
  range: string,
  etag: string | undefined,
): Promise<Chunk | "nothing-there" | null> {
  const { key, signal } = options;
  const answer = await client.send({
    ...ABOUT,
    method: "GET",
    key,
    headers: { range, ...(etag === undefined || etag === "" ? {} : { "if-match": `"${etag}"` }) },
    signal,
    accept: [404, 412, 416],
    maxBytes: MAX_WHOLE_BYTES,
  });
  const { refusal, headers, body } = answer;
  if (refusal !== null) {
    if (refusal.status === 416) return "nothing-there";
    // Something that never answered as an S3 server does, such as a web server at a wrong address.
    if (refusal.code === "" && !client.place.isSeen) throw refusalError(refusal, aboutOf(client, options));
    return null;
  }
  const found = unquote(headers.get("etag") ?? "");
  if (etag !== undefined && found !== etag) return null;
  return { bytes: body, etag: found, ...positionOf(client, options, answer) };
}

/** Source: RFC 9110 section 14.4. A status of 200 is the whole object: the server does not know ranges, or ignored one. */
function positionOf(
  client: S3Client,
  options: ReadOptions,
  { status, headers, body }: S3Answer,
): { readonly start: number; readonly objectBytes: number } {
  if (status === 200) return { start: 0, objectBytes: body.byteLength };
  // Of an empty object, a range that MinIO gives and nobody defines: `bytes 0--1/0`.
  if (body.byteLength === 0 && /^bytes [^/]*\/0$/.test(headers.get("content-range") ?? ""))
    return { start: 0, objectBytes: 0 };
  const match = /^bytes (\d{1,15})-(\d{1,15})\/(\d{1,15})$/.exec(headers.get("content-range") ?? "");
  const [start, last, objectBytes] = [Number(match?.[1]), Number(match?.[2]), Number(match?.[3])];
  if (match === null || last - start + 1 !== body.byteLength || last >= objectBytes)
    throw malformedAnswer(
      aboutOf(client, options),
      `status ${status} with ${headers.get("content-range") ?? "no Content-Range"}`,
    );
  return { start, objectBytes };
}

async function headObject(client: S3Client, options: ReadOptions): Promise<{ readonly sizeBytes: number } | null> {
  const { key, signal } = options;
  const { refusal, headers } = await client.send({ ...ABOUT, method: "HEAD", key, signal, accept: [404] });
  if (refusal !== null) return null;
  const sizeBytes = Number(headers.get("content-length") ?? "NaN");
  if (Number.isSafeInteger(sizeBytes) && sizeBytes >= 0) return { sizeBytes };
  throw malformedAnswer(aboutOf(client, options), "an answer to HEAD without a Content-Length");
}

function damaged(client: S3Client, key: string): BakeliteError {
  return new BakeliteError("replica-corrupt", "cannot read the object: its bytes are not those that were stored", {
    subject: `s3://${client.address.bucket}/${key}`,
    hint: "run the command again; if it comes back, run `bakelite verify`",
  });
}

function aboutOf(client: S3Client, { key }: ReadOptions): Doing {
  return client.about({ ...ABOUT, key });
}

function anySignal(caller: AbortSignal | undefined, own: AbortSignal): AbortSignal {
  return caller === undefined ? own : AbortSignal.any([caller, own]);
}
