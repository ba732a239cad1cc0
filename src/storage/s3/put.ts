import { assert } from "../../util/errors.ts";
import { md5Base64 } from "../http/digest.ts";
import type { S3Client } from "./client.ts";
import { refusalError } from "./errors.ts";
import { unquote } from "./upload.ts";

export interface PutTarget {
  readonly client: S3Client;
  /** The whole key. */
  readonly key: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly ifAbsent: boolean;
  readonly signal: AbortSignal | undefined;
}

/** A server may ignore a condition only for what is put whole, and this much is put a second time to find that out. */
const MAX_PROOF_BYTES = 1024 * 1024;
const MAX_SAMPLE_BYTES = 64 * 1024;

/**
 * One PutObject. With `ifAbsent` it is conditional where the server can do that: the first time it looks before, and puts the very same
 * bytes once more after, which has to be refused. A server that stores them again ignores the condition; no harm is done, since
 * they are the same.
 */
export async function putObject(bytes: Uint8Array, target: PutTarget): Promise<"stored" | "exists"> {
  const { place } = target.client;
  if (!target.ifAbsent) {
    // What is not conditional may be CURRENT, which is no sample: another writer may replace it.
    const outcome = await sendPut(bytes, target, false);
    assert(outcome === "stored", "an unconditional put is not refused as taken");
    return outcome;
  }
  if (place.conditionalPut !== "proven" && (await isTaken(target))) return "exists";
  if (place.conditionalPut === "absent") {
    const outcome = await sendPut(bytes, target, false);
    return outcome === "exists" ? "exists" : "stored";
  }
  const outcome = await sendPut(bytes, target, true);
  if (outcome === "unsupported") {
    place.conditionalPut = "absent";
    return await putObject(bytes, target);
  }
  if (outcome === "exists") place.conditionalPut = "proven";
  else if (place.conditionalPut === "unknown" && bytes.byteLength <= MAX_PROOF_BYTES)
    place.conditionalPut = (await sendPut(bytes, target, true)) === "exists" ? "proven" : "absent";
  if (outcome === "stored" && place.conditionalComplete === "unknown" && bytes.byteLength <= MAX_SAMPLE_BYTES)
    place.sample = { key: target.key, bytes, headers: target.headers };
  return outcome;
}

async function isTaken({ client, key, signal }: PutTarget): Promise<boolean> {
  const { refusal } = await client.send({
    method: "HEAD",
    key,
    signal,
    doing: "look for the object",
    permission: "s3:GetObject and s3:ListBucket",
    accept: [404],
  });
  return refusal === null;
}

/** "exists" and "unsupported" only when conditional. */
async function sendPut(
  bytes: Uint8Array,
  { client, key, headers, signal }: PutTarget,
  conditional: boolean,
): Promise<"stored" | "exists" | "unsupported"> {
  const md5 = await md5Base64(bytes);
  const answer = await client.send({
    method: "PUT",
    key,
    headers: { ...headers, "content-md5": md5, ...(conditional ? { "if-none-match": "*" } : {}) },
    body: bytes,
    signal,
    doing: "store the object",
    permission: "s3:PutObject",
    accept: conditional ? [412, 501] : [],
  });
  const { refusal } = answer;
  if (refusal === null) {
    const etag = unquote(answer.headers.get("etag") ?? "");
    if (etag === Buffer.from(md5, "base64").toString("hex")) client.place.etagIsMd5 = true;
    return "stored";
  }
  if (refusal.status === 412) return "exists";
  // Encryption or a storage class may be what is missing: then the same request without a condition says so too.
  if (refusal.status === 501) return "unsupported";
  throw refusalError(refusal, client.about({ key, doing: "store the object", permission: "s3:PutObject" }));
}
