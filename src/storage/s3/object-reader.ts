import type { ByteRange, ByteStream } from "../backend.ts";
import {
  type Chunk,
  type ChunkRequest,
  MAX_CHUNK_ANSWER_BYTES,
  md5Sum,
  positionOf,
  type RangedObject,
  readObject as readRanged,
} from "../http/object-reader.ts";
import type { S3Client } from "./client.ts";
import { malformedAnswer, refusalError } from "./errors.ts";
import { unquote } from "./upload.ts";

const ABOUT = { doing: "read the object", permission: "s3:GetObject" } as const;

export interface ReadOptions {
  /** The whole key. */
  readonly key: string;
  readonly range: ByteRange;
  readonly signal: AbortSignal | undefined;
}

/** The bytes of a range, read as `http/object-reader.ts` says, with the ETag as the name of a content; null: no such object. */
export async function readObject(client: S3Client, options: ReadOptions): Promise<ByteStream | null> {
  return await readRanged(rangedObject(client, options.key), options);
}

function rangedObject(client: S3Client, key: string): RangedObject {
  const about = client.about({ ...ABOUT, key });
  const object: RangedObject = {
    subject: about.subject,
    fetchChunk: (request) => fetchChunk(client, { key, object, ...request }),
    async sizeBytes(signal) {
      const { refusal, headers } = await client.send({ ...ABOUT, method: "HEAD", key, signal, accept: [404] });
      if (refusal !== null) return null;
      const sizeBytes = Number(headers.get("content-length") ?? "NaN");
      if (Number.isSafeInteger(sizeBytes) && sizeBytes >= 0) return sizeBytes;
      throw object.malformed("an answer to HEAD without a Content-Length");
    },
    malformed: (what) => malformedAnswer(about, what),
  };
  return object;
}

async function fetchChunk(
  client: S3Client,
  { key, object, range, tag, signal }: ChunkRequest & { readonly key: string; readonly object: RangedObject },
): Promise<Chunk | "nothing-there" | null> {
  const answer = await client.send({
    ...ABOUT,
    method: "GET",
    key,
    headers: { range, ...(tag === undefined || tag === "" ? {} : { "if-match": `"${tag}"` }) },
    signal,
    accept: [404, 412, 416],
    maxBytes: MAX_CHUNK_ANSWER_BYTES,
  });
  const { refusal, headers, body } = answer;
  if (refusal !== null) {
    if (refusal.status === 416) return "nothing-there";
    // Something that never answered as an S3 server does, such as a web server at a wrong address.
    if (refusal.code === "" && !client.place.isSeen) throw refusalError(refusal, client.about({ ...ABOUT, key }));
    return null;
  }
  const etag = unquote(headers.get("etag") ?? "");
  if (tag !== undefined && etag !== tag) return null;
  const objectSum = client.place.etagIsMd5 && /^[0-9a-f]{32}$/.test(etag) ? md5Sum(etag) : null;
  return { bytes: body, tag: etag, objectSum, ...positionOf(object, answer) };
}
