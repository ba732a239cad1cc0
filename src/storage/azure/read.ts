import type { ByteRange, ByteStream } from "../backend.ts";
import { digestOf } from "../http/digest.ts";
import {
  type Chunk,
  type ChunkRequest,
  MAX_CHUNK_ANSWER_BYTES,
  positionOf,
  type RangedObject,
  readObject,
} from "../http/object-reader.ts";
import type { AzureClient } from "./client.ts";
import { malformedAnswer, refusalError } from "./errors.ts";

const ABOUT = {
  doing: "read the object",
  permission: "the role Storage Blob Data Reader, or `r` in a signature,",
} as const;

/**
 * The bytes of a range, read as `http/object-reader.ts` says; null: no such blob. The server sends the MD5 of each range, of
 * at most 4 MiB, so a bit that changed on the way is asked for again.
 * Source: https://learn.microsoft.com/en-us/rest/api/storageservices/get-blob
 */
export async function readBlob(
  client: AzureClient,
  options: { readonly key: string; readonly range: ByteRange; readonly signal: AbortSignal | undefined },
): Promise<ByteStream | null> {
  return await readObject(rangedBlob(client, options.key), options);
}

function rangedBlob(client: AzureClient, key: string): RangedObject {
  const about = client.about({ ...ABOUT, key });
  const blob: RangedObject = {
    subject: about.subject,
    lacksSuffixRanges: true,
    fetchChunk: (request) => fetchChunk(client, { key, blob, ...request }),
    async sizeBytes(signal) {
      const { refusal, headers } = await client.send({ ...ABOUT, method: "HEAD", key, signal, accept: [404] });
      if (refusal !== null) return null;
      const sizeBytes = Number(headers.get("content-length") ?? "NaN");
      if (Number.isSafeInteger(sizeBytes) && sizeBytes >= 0) return sizeBytes;
      throw blob.malformed("an answer to HEAD without a Content-Length");
    },
    malformed: (what) => malformedAnswer(about, what),
  };
  return blob;
}

async function fetchChunk(
  client: AzureClient,
  { key, blob, range, tag, signal }: ChunkRequest & { readonly key: string; readonly blob: RangedObject },
): Promise<Chunk | "nothing-there" | null> {
  const request = {
    ...ABOUT,
    method: "GET",
    key,
    headers: {
      "x-ms-range": range,
      "x-ms-range-get-content-md5": "true",
      ...(tag === undefined || tag === "" ? {} : { "if-match": tag }),
    },
    signal,
    accept: [404, 412, 416],
    maxBytes: MAX_CHUNK_ANSWER_BYTES,
  } as const;
  const answer = await client.send(request, async ({ refusal, headers, body }) => {
    const md5 = refusal === null ? headers.get("content-md5") : null;
    if (md5 !== null && (await digestOf("md5", body)).toString("base64") !== md5)
      throw blob.malformed("the bytes are not those of the MD5 that came with them");
  });
  const { refusal, headers, body } = answer;
  if (refusal !== null) {
    if (refusal.status === 416) return "nothing-there";
    // Something that never answered as Azure does, such as a web server at a wrong address.
    if (refusal.code === "" && !client.place.isSeen) throw refusalError(refusal, client.about({ ...ABOUT, key }));
    return null;
  }
  const etag = headers.get("etag") ?? "";
  if (tag !== undefined && etag !== tag) return null;
  return { bytes: body, tag: etag, objectSum: null, ...positionOf(blob, answer) };
}
