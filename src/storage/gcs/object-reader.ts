import type { ByteRange, ByteStream } from "../backend.ts";
import {
  type Chunk,
  type ChunkRequest,
  MAX_CHUNK_ANSWER_BYTES,
  positionOf,
  type RangedObject,
  readObject as readRanged,
} from "../http/object-reader.ts";
import type { GcsClient } from "./client.ts";
import { crc32c, encodeCrc32c } from "./crc32c.ts";
import { malformedAnswer, refusalError } from "./errors.ts";
import { objectSchema } from "./object-resource.ts";

const ABOUT = { doing: "read the object", permission: "storage.objects.get" } as const;

export interface ReadOptions {
  /** The whole name. */
  readonly key: string;
  readonly range: ByteRange;
  readonly signal: AbortSignal | undefined;
}

/**
 * The bytes of a range, read as `http/object-reader.ts` says, with the generation as the name of a content; null: no such object.
 * Nothing is unpacked on the way (`Accept-Encoding: identity` is sent, and bakelite stores no object with a content encoding).
 */
export async function readObject(client: GcsClient, options: ReadOptions): Promise<ByteStream | null> {
  return await readRanged(rangedObject(client, options.key), options);
}

function rangedObject(client: GcsClient, key: string): RangedObject {
  const about = client.about({ ...ABOUT, key });
  const object: RangedObject = {
    subject: about.subject,
    fetchChunk: (request) => fetchChunk(client, { key, object, ...request }),
    async sizeBytes(signal) {
      const query = { fields: "size" };
      const request = { ...ABOUT, method: "GET", at: "object", key, query, signal, accept: [404] } as const;
      return (await client.sendForJson(request, objectSchema.pick({ size: true }))).value?.size ?? null;
    },
    malformed: (what) => malformedAnswer(about, what),
  };
  return object;
}

async function fetchChunk(
  client: GcsClient,
  { key, object, range, tag, signal }: ChunkRequest & { readonly key: string; readonly object: RangedObject },
): Promise<Chunk | "nothing-there" | null> {
  const answer = await client.send({
    ...ABOUT,
    method: "GET",
    at: "object",
    key,
    query: { alt: "media", ...(tag === undefined || tag === "" ? {} : { ifGenerationMatch: tag }) },
    headers: { range },
    signal,
    accept: [404, 412, 416],
    maxBytes: MAX_CHUNK_ANSWER_BYTES,
  });
  const { refusal, headers, body } = answer;
  if (refusal !== null) {
    if (refusal.status === 416) return "nothing-there";
    // Something that never answered as Google does, such as a web server at a wrong address.
    if (refusal.message === "" && !client.place.isSeen) throw refusalError(refusal, client.about({ ...ABOUT, key }));
    return null;
  }
  const generation = headers.get("x-goog-generation") ?? "";
  if (tag !== undefined && generation !== tag) return null;
  const position = positionOf(object, answer);
  return { bytes: body, tag: generation, objectSum: wholeSum(headers), ...position };
}

/**
 * The CRC-32C of the whole object, which Google sends with each part of it.
 * Source: https://cloud.google.com/storage/docs/xml-api/reference-headers#xgooghash
 */
function wholeSum(headers: Headers): Chunk["objectSum"] {
  const expected = /(?:^|[,\s])crc32c=([A-Za-z0-9+/]{6}==)/.exec(headers.get("x-goog-hash") ?? "")?.[1];
  if (expected === undefined) return null;
  let sum = 0;
  return {
    update(bytes) {
      sum = crc32c(bytes, sum);
    },
    isRight: () => encodeCrc32c(sum) === expected,
  };
}
