import { randomBytes } from "node:crypto";
import { md5Base64 } from "../http/digest.ts";
import type { Part, PartReader } from "../http/part-buffer.ts";
import type { Refusal } from "../http/refusal.ts";
import { sendParts } from "../http/send-parts.ts";
import type { AzureAnswer, AzureClient } from "./client.ts";
import { malformedAnswer, refusalError } from "./errors.ts";

export interface PutTarget {
  readonly client: AzureClient;
  /** The whole name. */
  readonly key: string;
  /** Of the blob: its tier. */
  readonly headers: Readonly<Record<string, string>>;
  readonly ifAbsent: boolean;
  readonly signal: AbortSignal | undefined;
}

export interface BlockOptions extends PutTarget {
  readonly partSizeBytes: (number: number) => number;
  readonly concurrency: number;
  /** Called before the blob is made; throws when bytes are missing. */
  readonly check: () => void;
}

const PERMISSION = "the role Storage Blob Data Contributor, or `rcw` in a signature,";
/** Of a write: 403, 409 and 412 may say that the name is taken, 400 that blocks are gone. */
const ACCEPTED = [400, 403, 409, 412];
/**
 * What `If-None-Match: *` meets when the name is taken: the first for a blob that is there, the next two for one that changes.
 * A policy or a hold protects only what exists, and credentials that may create and not write are refused only then.
 */
const TAKEN = new Set([
  "BlobAlreadyExists",
  "ConditionNotMet",
  "TargetConditionNotMet",
  "BlobImmutableDueToPolicy",
  "BlobImmutableDueToLegalHold",
  "UnauthorizedBlobOverwrite",
]);

/**
 * One Put Blob; the server checks the MD5 and keeps it. With `ifAbsent` it is `If-None-Match: *`, which Azure heeds in one step. After an answer that was
 * lost the blob that is met may be our own: the caller compares, as `withRetry` says.
 * Source: https://learn.microsoft.com/en-us/rest/api/storageservices/put-blob
 */
export async function putBlob(bytes: Uint8Array, target: PutTarget): Promise<"stored" | "exists"> {
  const { client, key, headers, ifAbsent, signal } = target;
  const request = { key, doing: "store the object", permission: PERMISSION };
  const answer = await client.send({
    ...request,
    method: "PUT",
    headers: {
      ...headers,
      "x-ms-blob-type": "BlockBlob",
      "content-md5": await md5Base64(bytes),
      ...(ifAbsent ? { "if-none-match": "*" } : {}),
    },
    body: bytes,
    signal,
    accept: ACCEPTED,
  });
  return outcomeOf(answer, target, request);
}

/**
 * Stages a body as blocks, some at a time, and makes the blob of them at the end; nothing is visible before that. What a failed
 * upload staged needs no abort: Azure drops it a week after the last block, or when the blob is next written. The names of
 * blocks are drawn anew for each upload, so that two writers of one name never mix theirs.
 * Source: https://learn.microsoft.com/en-us/rest/api/storageservices/put-block
 */
export async function putBlocks(first: Part, reader: PartReader, options: BlockOptions): Promise<"stored" | "exists"> {
  const upload = randomBytes(12);
  const ids = await sendParts(first, reader, {
    concurrency: options.concurrency,
    signal: options.signal,
    partSizeBytes: options.partSizeBytes,
    send: (part, number, signal) => stageBlock(part, blockId(upload, number), { ...options, signal }),
  });
  options.check();
  return await commitBlocks(ids, options);
}

/** All names of a blob's blocks have to be of one length. */
function blockId(upload: Buffer, number: number): string {
  const counter = Buffer.alloc(4);
  counter.writeUInt32BE(number);
  return Buffer.concat([upload, counter]).toString("base64");
}

async function stageBlock(part: Part, id: string, { client, key, signal }: PutTarget): Promise<string> {
  using held = part;
  await client.send({
    method: "PUT",
    key,
    query: { comp: "block", blockid: id },
    headers: { "content-md5": await md5Base64(held.bytes) },
    body: held.bytes,
    signal,
    doing: "store a block of the object",
    permission: PERMISSION,
  });
  return id;
}

async function commitBlocks(ids: readonly string[], options: BlockOptions): Promise<"stored" | "exists"> {
  const { client, key, headers, ifAbsent, signal } = options;
  const listed = ids.map((id) => `<Latest>${id}</Latest>`).join("");
  const body = new TextEncoder().encode(`<?xml version="1.0" encoding="utf-8"?><BlockList>${listed}</BlockList>`);
  const request = { key, doing: "make the object of its blocks", permission: PERMISSION };
  const answer = await client.send({
    ...request,
    method: "PUT",
    query: { comp: "blocklist" },
    headers: {
      ...headers,
      "x-ms-blob-content-type": "application/octet-stream",
      "content-md5": await md5Base64(body),
      ...(ifAbsent ? { "if-none-match": "*" } : {}),
    },
    body,
    signal,
    accept: ACCEPTED,
  });
  if (answer.refusal?.code === "InvalidBlockList") return await withoutBlocks(answer.refusal, options, request);
  return outcomeOf(answer, options, request);
}

/** The blocks are gone: another writer made a blob of that name meanwhile, which drops everybody else's. */
async function withoutBlocks(
  refusal: Refusal,
  { client, key, ifAbsent, signal }: PutTarget,
  request: { readonly key: string; readonly doing: string; readonly permission: string },
): Promise<"exists"> {
  const look = { doing: "look for the object", permission: "the role Storage Blob Data Reader" };
  if (ifAbsent && (await client.send({ ...look, method: "HEAD", key, signal, accept: [404] })).refusal === null)
    return "exists";
  // Worth another try from the beginning, with other blocks.
  throw malformedAnswer(client.about(request), `${refusal.status} ${refusal.code}: the staged blocks are gone`);
}

function outcomeOf(
  { refusal, headers }: AzureAnswer,
  { client, ifAbsent }: PutTarget,
  request: { readonly key: string; readonly doing: string; readonly permission: string },
): "stored" | "exists" {
  if (refusal === null) {
    if (headers.has("x-ms-version-id")) client.place.hasVersions = true;
    return "stored";
  }
  if (ifAbsent && TAKEN.has(refusal.code)) return "exists";
  throw refusalError(refusal, client.about(request));
}
