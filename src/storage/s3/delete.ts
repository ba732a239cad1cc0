import type { BakeliteError } from "../../util/errors.ts";
import { throwIfAborted } from "../abort.ts";
import { type DeleteOutcome, deleteOneByOne } from "../http/delete.ts";
import { md5Base64 } from "../http/digest.ts";
import { child, children, childText, encodeText, type XmlNode } from "../http/xml.ts";
import type { S3Client } from "./client.ts";
import { isPassing, refusalError, type S3Refusal } from "./errors.ts";

/** Source: https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjects.html */
const MAX_KEYS_PER_REQUEST = 1000;
const ABOUT = { doing: "delete objects", permission: "s3:DeleteObject" } as const;
/** What a server without it answers to `POST ?delete`. */
const NO_BATCHES = [405, 501];
/** Keys that the server could not delete just now are asked for again so often, each time with the client's own retries. */
const MAX_ROUNDS = 3;

export interface DeleteOptions {
  /** Whole keys. */
  readonly keys: readonly string[];
  /** Of single deletes, where the server has no others. */
  readonly concurrency: number;
  readonly signal: AbortSignal | undefined;
}

/**
 * Deletes up to 1,000 keys per request, or one by one where the server cannot do that. Never a version: in a bucket with versions this puts a
 * delete marker on top. Keys that fail do not hold up the rest. Throws only when a whole request fails.
 */
export async function deleteObjects(client: S3Client, options: DeleteOptions): Promise<DeleteOutcome> {
  let deletedCount = 0;
  let error: BakeliteError | null = null;
  for (let offset = 0; offset < options.keys.length; offset += MAX_KEYS_PER_REQUEST) {
    throwIfAborted(options.signal);
    const keys = options.keys.slice(offset, offset + MAX_KEYS_PER_REQUEST);
    const outcome = await deleteSome(client, { ...options, keys });
    deletedCount += outcome.deletedCount;
    error ??= outcome.error;
    // What is denied for one whole request is denied for the next ones too.
    if (outcome.isDenied) return { deletedCount, error, isDenied: deletedCount === 0 };
  }
  return { deletedCount, error, isDenied: false };
}

async function deleteSome(client: S3Client, options: DeleteOptions): Promise<DeleteOutcome> {
  const expressible = options.keys.filter((key) => encodeText(key) !== null);
  if (expressible.length < 2 || client.place.batchDelete === "absent") return await deleteSingly(client, options);
  let wanted: readonly string[] = expressible;
  let failed: ReadonlyMap<string, S3Refusal> = new Map();
  for (let round = 1; round <= MAX_ROUNDS && wanted.length > 0; round++) {
    const answer = await deleteBatch(client, wanted, options.signal);
    if (answer === "no-batches") {
      client.place.batchDelete = "absent";
      return await deleteSingly(client, options);
    }
    client.place.batchDelete = "proven";
    failed = answer;
    if (![...failed.values()].some(isPassing)) break;
    wanted = [...failed.keys()];
  }
  const odd = options.keys.filter((key) => encodeText(key) === null);
  const singly = await deleteSingly(client, { ...options, keys: odd });
  const [first] = failed;
  const deletedCount = expressible.length - failed.size + singly.deletedCount;
  return {
    deletedCount,
    isDenied: deletedCount === 0 && [...failed.values()].every(isDenial),
    error: first === undefined ? singly.error : refusalError(first[1], client.about({ ...ABOUT, key: first[0] })),
  };
}

/** The keys that were not deleted. Success is not reported key by key (`Quiet`). */
async function deleteBatch(
  client: S3Client,
  keys: readonly string[],
  signal: AbortSignal | undefined,
): Promise<ReadonlyMap<string, S3Refusal> | "no-batches"> {
  const objects = keys.map((key) => `<Object><Key>${encodeText(key) ?? ""}</Key></Object>`);
  const xml = `<Delete xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Quiet>true</Quiet>${objects.join("")}</Delete>`;
  const body = new TextEncoder().encode(xml);
  const { value, answer } = await client.sendForXml(
    {
      ...ABOUT,
      method: "POST",
      query: { delete: "" },
      headers: { "content-type": "application/xml", "content-md5": await md5Base64(body) },
      body,
      signal,
      accept: [403, ...NO_BATCHES],
    },
    ["DeleteResult"],
    (root, { status }) => readFailures(root, keys, status),
  );
  if (value !== null) return value;
  const { refusal } = answer;
  if (refusal !== null && NO_BATCHES.includes(refusal.status)) return "no-batches";
  if (refusal?.code !== "AccessDenied" && refusal !== null) throw refusalError(refusal, client.about(ABOUT));
  return new Map(keys.map((key) => [key, refusal ?? { ...DENIED }]));
}

const DENIED: S3Refusal = { status: 403, code: "AccessDenied", message: "", requestId: undefined, region: undefined };

function readFailures(root: XmlNode, keys: readonly string[], status: number): ReadonlyMap<string, S3Refusal> {
  const asked = new Set(keys);
  const failures = new Map<string, S3Refusal>();
  for (const item of children(root, "Error")) {
    const key = childText(item, "Key") ?? "";
    const code = childText(item, "Code") ?? "";
    if (code === "NoSuchKey") continue;
    if (!asked.has(key)) throw new Error("it speaks of a key that was not to be deleted");
    const denied = code === "AccessDenied" || code === "MethodNotAllowed";
    failures.set(key, {
      // The refusal is per key; the status of the answer is that of the whole.
      status: denied ? 403 : code === "InternalError" || code === "SlowDown" ? 503 : status === 200 ? 400 : status,
      code,
      message: childText(item, "Message") ?? "",
      requestId: undefined,
      region: undefined,
    });
  }
  if (failures.size === 0 && child(root, "Error") === undefined && typeof root === "string" && root.trim() !== "")
    throw new Error("it holds a text");
  return failures;
}

async function deleteSingly(client: S3Client, { keys, concurrency, signal }: DeleteOptions): Promise<DeleteOutcome> {
  return await deleteOneByOne(keys, {
    concurrency,
    signal,
    async deleteOne(key) {
      const { refusal } = await client.send({ ...ABOUT, method: "DELETE", key, signal, accept: [403, 404] });
      if (refusal === null || refusal.status === 404) return null;
      return { error: refusalError(refusal, client.about({ ...ABOUT, key })), isDenied: isDenial(refusal) };
    },
  });
}

function isDenial({ status, code }: S3Refusal): boolean {
  return status === 403 && (code === "AccessDenied" || code === "");
}
