import { createHash } from "node:crypto";
import { delay } from "../../util/delay.ts";
import { assert, BakeliteError } from "../../util/errors.ts";
import { throwIfAborted } from "../abort.ts";
import { md5Base64 } from "../http/digest.ts";
import type { Part, PartReader } from "../http/part-buffer.ts";
import { MAX_PART_COUNT, partSizeBytes } from "../http/part-size.ts";
import { sendParts } from "../http/send-parts.ts";
import { childText } from "../http/xml.ts";
import type { S3Answer, S3Client } from "./client.ts";
import { refusalError } from "./errors.ts";

/** The object that parts are to become. */
export interface PartsTarget {
  readonly client: S3Client;
  /** The whole key. */
  readonly key: string;
  /** Of the object: storage class, encryption. */
  readonly headers: Readonly<Record<string, string>>;
  readonly signal: AbortSignal | undefined;
}

export interface UploadOptions extends PartsTarget {
  readonly ifAbsent: boolean;
  readonly partSizeBytes: number;
  /** Of the body, where it is known. */
  readonly bodyBytes: number | undefined;
  readonly concurrency: number;
  /** Called with the number of bytes that the source gave, before the object is made; throws when they are not right. */
  readonly check: (sizeBytes: number) => void;
}

export interface SentPart {
  readonly number: number;
  readonly etag: string;
}

/** An abort happens after a failure: it must not hold up whoever waits for that. */
const ABORT_TIMEOUT_MS = 10_000;
const PERMISSION = "s3:PutObject";

/**
 * Stores a body in parts: `first` and what `reader` gives after it, some at a time. Nothing is visible before the completion.
 * On failure, and when the caller stops, the upload is aborted as well as that can be done in ten seconds; what is left of it is for `reclaim`.
 */
export async function uploadInParts(
  first: Part,
  reader: PartReader,
  options: UploadOptions,
): Promise<"stored" | "exists"> {
  const { client } = options;
  let uploadId: string;
  try {
    uploadId = await createUpload(options);
  } catch (error) {
    first[Symbol.dispose]();
    throw error;
  }
  client.place.liveUploads.add(uploadId);
  try {
    const parts = await sendParts(first, reader, {
      concurrency: options.concurrency,
      signal: options.signal,
      partSizeBytes: (number) => partSizeBytes(number, options.partSizeBytes, options.bodyBytes),
      send: async (part, number, signal) => {
        assertPartNumber(number, part, options);
        return await sendPart(part, number, uploadId, { ...options, signal });
      },
    });
    options.check(reader.readBytes);
    throwIfAborted(options.signal);
    const outcome = await completeUpload(parts, uploadId, reader.readBytes, options);
    if (outcome === "exists") await abortQuietly(uploadId, options);
    return outcome;
  } catch (error) {
    await abortQuietly(uploadId, options);
    throw error;
  } finally {
    client.place.liveUploads.delete(uploadId);
  }
}

export async function createUpload({ client, key, headers, signal }: PartsTarget): Promise<string> {
  const { value } = await client.sendForXml(
    {
      method: "POST",
      key,
      query: { uploads: "" },
      headers,
      signal,
      doing: "begin to store the object in parts",
      permission: PERMISSION,
    },
    ["InitiateMultipartUploadResult"],
    (root) => {
      const uploadId = childText(root, "UploadId");
      if (uploadId === undefined || uploadId === "") throw new Error("the upload has no id");
      return uploadId;
    },
  );
  assert(value !== null, "no refusal is accepted");
  return value;
}

function assertPartNumber(number: number, part: Part, options: UploadOptions): void {
  if (number <= MAX_PART_COUNT) return;
  part[Symbol.dispose]();
  throw new BakeliteError("storage-denied", "cannot store the object: it is larger than 10,000 parts", {
    subject: subjectOf(options),
    hint: "raise `part_size`",
  });
}

export async function sendPart(part: Part, number: number, uploadId: string, options: PartsTarget): Promise<SentPart> {
  using held = part;
  const { headers } = await options.client.send({
    method: "PUT",
    key: options.key,
    query: { partNumber: String(number), uploadId },
    headers: { "content-md5": await md5Base64(held.bytes) },
    body: held.bytes,
    signal: options.signal,
    doing: `store part ${number} of the object`,
    permission: PERMISSION,
  });
  const etag = headers.get("etag");
  if (etag === null || etag === "")
    throw new BakeliteError(
      "storage-unreachable",
      `cannot store part ${number} of the object: the answer has no ETag`,
      {
        subject: subjectOf(options),
        hint: "check whether a proxy stands in between; if it stays, the server is not compatible",
      },
    );
  return { number, etag };
}

/** A completion whose answer was lost has happened, and the next one says that there is no such upload. */
async function completeUpload(
  parts: readonly SentPart[],
  uploadId: string,
  sizeBytes: number,
  options: UploadOptions,
): Promise<"stored" | "exists"> {
  const { client: s3, key, signal, ifAbsent } = options;
  const { place } = s3;
  const isConditional = ifAbsent && place.conditionalComplete !== "absent";
  if (ifAbsent && place.conditionalComplete !== "proven" && (await etagOf(options)) !== null) return "exists";
  const startMs = s3.nowMs();
  const { answer } = await s3.sendForXml(
    {
      method: "POST",
      key,
      query: { uploadId },
      headers: { "content-type": "application/xml", ...(isConditional ? { "if-none-match": "*" } : {}) },
      body: new TextEncoder().encode(completionXml(parts)),
      signal,
      doing: "complete the object from its parts",
      permission: PERMISSION,
      accept: isConditional ? [404, 412, 501] : [404],
    },
    ["CompleteMultipartUploadResult"],
    () => null,
  );
  const { refusal } = answer;
  if (refusal === null) return "stored";
  if (refusal.status === 412) {
    place.conditionalComplete = "proven";
    return "exists";
  }
  if (refusal.status === 501 && isConditional) {
    place.conditionalComplete = "absent";
    return await completeUpload(parts, uploadId, sizeBytes, options);
  }
  if (refusal.code === "NoSuchUpload" || refusal.code === "NoSuchKey" || refusal.code === "") {
    const found = await etagOf(options);
    if (found !== null && unquote(found.etag) === etagOfParts(parts)) return "stored";
    // ETags are opaque where the server encrypts; the size and the time then have to do, and our caller compares.
    const isRecent = found !== null && found.modifiedMs >= startMs - 60_000;
    if (found !== null && found.sizeBytes === sizeBytes && isRecent) return ifAbsent ? "exists" : "stored";
    throw new BakeliteError("storage-unreachable", "cannot complete the object: its upload was aborted meanwhile", {
      subject: subjectOf(options),
      hint: "let no lifecycle rule abort uploads that are younger than a day; bakelite stores the object again",
      cause: new Error(`${refusal.status} ${refusal.code}`),
    });
  }
  throw refusalError(refusal, s3.about({ key, doing: "complete the object from its parts", permission: PERMISSION }));
}

async function etagOf({ client: s3, key, signal }: PartsTarget) {
  const { refusal, headers } = await s3.send({
    method: "HEAD",
    key,
    signal,
    doing: "look for the object",
    permission: "s3:GetObject and s3:ListBucket",
    accept: [404],
  });
  if (refusal !== null) return null;
  return {
    etag: headers.get("etag") ?? "",
    sizeBytes: Number(headers.get("content-length")),
    modifiedMs: Date.parse(headers.get("last-modified") ?? ""),
  };
}

/** Source: https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html (ETag); true where part ETags are MD5s. */
function etagOfParts(parts: readonly SentPart[]): string {
  const hash = createHash("md5");
  for (const { etag } of parts) hash.update(Buffer.from(unquote(etag), "hex"));
  return `${hash.digest("hex")}-${parts.length}`;
}

export function completionXml(parts: readonly SentPart[]): string {
  const listed = parts.map(
    ({ number, etag }) => `<Part><PartNumber>${number}</PartNumber><ETag>${quoteXml(etag)}</ETag></Part>`,
  );
  return `<CompleteMultipartUpload xmlns="http://s3.amazonaws.com/doc/2006-03-01/">${listed.join("")}</CompleteMultipartUpload>`;
}

function quoteXml(text: string): string {
  return text.replace(/[<>&"]/g, (c) => `&#${c.charCodeAt(0)};`);
}

export function unquote(etag: string): string {
  return etag.replace(/^"(.*)"$/, "$1");
}

/** Removes what was sent. The caller's signal is aborted already where a stop is the reason, so this has its own. */
export async function abortQuietly(uploadId: string, { client: s3, key }: PartsTarget): Promise<void> {
  const timeout = new AbortController();
  const late = delay(ABORT_TIMEOUT_MS, timeout.signal).then(
    () => timeout.abort(),
    () => {},
  );
  try {
    await sendAbort(s3, { key, uploadId, signal: timeout.signal, retries: 2 });
  } catch {
    // It stays: it is in the list of unfinished uploads, where `reclaim` and the daemon's sweep find it.
  } finally {
    timeout.abort();
    await late;
  }
}

/** One that is gone counts as aborted. */
export async function sendAbort(
  s3: S3Client,
  {
    key,
    uploadId,
    signal,
    retries,
  }: { key: string; uploadId: string; signal: AbortSignal | undefined; retries?: number },
): Promise<S3Answer> {
  return await s3.send({
    method: "DELETE",
    key,
    query: { uploadId },
    signal,
    doing: "abort the unfinished upload",
    permission: "s3:AbortMultipartUpload",
    accept: [404],
    ...(retries === undefined ? {} : { retries }),
  });
}

function subjectOf({ client: s3, key }: PartsTarget): string {
  return `s3://${s3.address.bucket}/${key}`;
}
