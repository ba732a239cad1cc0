import { assert, BakeliteError } from "../../util/errors.ts";
import { throwIfAborted } from "../abort.ts";
import type { Part, PartReader } from "../http/part-buffer.ts";
import type { GcsAnswer, GcsClient, GcsRequest } from "./client.ts";
import { crc32c, encodeCrc32c } from "./crc32c.ts";
import { malformedAnswer } from "./errors.ts";
import { objectSchema } from "./object-resource.ts";

export interface UploadTarget {
  readonly client: GcsClient;
  /** The whole name. */
  readonly key: string;
  /** undefined: the bucket's default. */
  readonly storageClass: string | undefined;
  readonly ifAbsent: boolean;
  readonly signal: AbortSignal | undefined;
}

type Outcome = "stored" | "exists";

/** All pieces of an upload but the last must be multiples of this. Source: Cloud Storage, "Perform resumable uploads". */
const PIECE_MULTIPLE_BYTES = 256 * 1024;
/** A larger body is sent in chunks of this. */
export const CHUNK_BYTES = 8 * 1024 * 1024;
/** A cancellation happens after a failure: it must not hold up whoever waits for that. */
const CANCEL_TIMEOUT_MS = 10_000;
const STORING = { doing: "store the object", permission: "storage.objects.create" } as const;
const FIELDS = "name,size,timeCreated,generation,crc32c";
const CONTENT_TYPE = "application/octet-stream";

/**
 * One request with the object's description and its bytes. The description has their CRC-32C, so the server refuses damaged ones.
 * Source: https://cloud.google.com/storage/docs/uploading-objects#uploading-an-object (JSON API, multipart)
 */
export async function uploadWhole(bytes: Uint8Array, target: UploadTarget): Promise<Outcome> {
  const { client, key, ifAbsent, signal } = target;
  const crc = encodeCrc32c(crc32c(bytes));
  const boundary = `bakelite-${crypto.randomUUID()}`;
  const description = JSON.stringify({ ...descriptionOf(target), crc32c: crc });
  const body = Buffer.concat([
    Buffer.from(`--${boundary}\r\ncontent-type: application/json; charset=UTF-8\r\n\r\n${description}\r\n`),
    Buffer.from(`--${boundary}\r\ncontent-type: ${CONTENT_TYPE}\r\n\r\n`),
    bytes,
    Buffer.from(`\r\n--${boundary}--\r\n`),
  ]);
  const request: GcsRequest = {
    ...STORING,
    method: "POST",
    at: "upload",
    key,
    query: { uploadType: "multipart", fields: FIELDS, ...preconditionOf(target) },
    headers: { "content-type": `multipart/related; boundary=${boundary}` },
    body,
    signal,
    accept: ifAbsent ? [412] : [],
  };
  const { value } = await client.sendForJson(request, objectSchema);
  if (value === null) return "exists";
  await checkStored(value, { crc, sizeBytes: bytes.byteLength }, target);
  return "stored";
}

/**
 * A resumable upload: `first` and what `reader` gives after it, chunk by chunk, each held until the server has it. Nothing is visible
 * before the last one, which carries the CRC-32C of all, so the server makes no object of damaged bytes. After a failure the
 * server is asked how far it is, and the rest of the chunk is sent. On failure, and when the caller stops, the session is cancelled
 * as well as that can be done in ten seconds; an abandoned one costs nothing and expires after a week.
 * Source: https://cloud.google.com/storage/docs/resumable-uploads and performing-resumable-uploads
 */
export async function uploadInChunks(
  first: Part,
  reader: PartReader,
  target: UploadTarget,
  check: () => void,
): Promise<Outcome> {
  let session: string | null;
  try {
    session = await startSession(target);
  } catch (error) {
    first[Symbol.dispose]();
    throw error;
  }
  if (session === null) {
    first[Symbol.dispose]();
    return "exists";
  }
  let isOver = false;
  try {
    const outcome = await new ChunkedUpload(session, target).send(first, reader, check);
    isOver = outcome === "stored";
    return outcome;
  } finally {
    if (!isOver) await cancelQuietly(session, target);
  }
}

/** Its URI, which authorizes whoever knows it: it is in no message. null: the name is taken. */
async function startSession(target: UploadTarget): Promise<string | null> {
  const { client, key, ifAbsent, signal } = target;
  const doing = { doing: "begin to store the object", permission: STORING.permission };
  const { refusal, headers } = await client.send({
    ...doing,
    method: "POST",
    at: "upload",
    key,
    query: { uploadType: "resumable", fields: FIELDS, ...preconditionOf(target) },
    headers: { "content-type": "application/json; charset=UTF-8", "x-upload-content-type": CONTENT_TYPE },
    body: new TextEncoder().encode(JSON.stringify(descriptionOf(target))),
    signal,
    accept: ifAbsent ? [412] : [],
  });
  if (refusal !== null) return null;
  const location = URL.parse(headers.get("location") ?? "", client.base);
  if (location === null || !location.searchParams.has("upload_id"))
    throw malformedAnswer(client.about({ ...doing, key }), "an upload session without a URI");
  // Never to another host than the configured one, whatever the answer says.
  return `${new URL(client.base).origin}${location.pathname}${location.search}`;
}

/** How far the server is: it made the object, refuses to because the name is taken, or has so many bytes. */
type Progress =
  | { readonly kind: "stored"; readonly answer: GcsAnswer }
  | { readonly kind: "exists" }
  | { readonly kind: "has"; readonly bytes: number };

class ChunkedUpload {
  readonly #session: string;
  readonly #target: UploadTarget;
  #crc = 0;

  constructor(session: string, target: UploadTarget) {
    this.#session = session;
    this.#target = target;
  }

  async send(first: Part, reader: PartReader, check: () => void): Promise<Outcome> {
    let part: Part | null = first;
    for (let start = 0; ; ) {
      using held: Part = part;
      const sizeBytes = held.bytes.byteLength;
      this.#crc = crc32c(held.bytes, this.#crc);
      const isLast = !(await reader.hasMore());
      if (isLast) check();
      const chunk = { bytes: held.bytes, start, isLast };
      // The next one is read while this one is sent.
      const reading = isLast ? Promise.resolve(null) : reader.next(CHUNK_BYTES);
      // Its failure is seen when it is waited for, which may be much later.
      reading.catch(() => {});
      let next: Part | null;
      try {
        const outcome = await this.#sendChunk(chunk);
        if (outcome !== "goes on") return outcome;
        next = await reading;
      } catch (error) {
        reading.then((late) => late?.[Symbol.dispose]()).catch(() => {});
        throw error;
      }
      assert(next !== null, "there is more to send");
      part = next;
      start += sizeBytes;
    }
  }

  /** Sends a chunk until the server has all of it, or has made the object of it. */
  async #sendChunk(chunk: {
    readonly bytes: Uint8Array;
    readonly start: number;
    readonly isLast: boolean;
  }): Promise<Outcome | "goes on"> {
    const { client, signal } = this.#target;
    const end = chunk.start + chunk.bytes.byteLength;
    let sentBytes = 0;
    let failureCount = 0;
    for (;;) {
      throwIfAborted(signal);
      let progress: Progress;
      let failure: BakeliteError | null = null;
      try {
        progress = await this.#put(chunk.bytes.subarray(sentBytes), {
          start: chunk.start + sentBytes,
          totalBytes: chunk.isLast ? end : null,
        });
      } catch (error) {
        if (!(error instanceof BakeliteError) || error.code !== "storage-unreachable") throw error;
        failure = error;
        if (++failureCount > client.retries) throw error;
        await client.waitAfter(failureCount, signal);
        progress = await this.#ask();
      }
      if (progress.kind !== "has") {
        if (!chunk.isLast) throw this.#malformed("an object before its last bytes");
        return progress.kind === "exists" ? "exists" : await this.#settle(progress.answer, end);
      }
      if (progress.bytes === end && !chunk.isLast) return "goes on";
      if (progress.bytes < chunk.start || progress.bytes > end)
        throw this.#malformed(`${progress.bytes} bytes of an upload that has sent ${chunk.start} to ${end}`);
      if (!chunk.isLast && progress.bytes % PIECE_MULTIPLE_BYTES !== 0)
        throw this.#malformed(`${progress.bytes} bytes of an upload that goes on, not a multiple of 256 KiB`);
      if (progress.bytes - chunk.start > sentBytes) failureCount = 0;
      else if (failure === null && ++failureCount > client.retries)
        throw this.#malformed(`no byte taken of those from ${chunk.start + sentBytes} on`);
      sentBytes = progress.bytes - chunk.start;
    }
  }

  /** `totalBytes` only of the last chunk. Without bytes it asks to finish what the server has. */
  async #put(
    bytes: Uint8Array,
    { start, totalBytes }: { readonly start: number; readonly totalBytes: number | null },
  ): Promise<Progress> {
    const range = bytes.byteLength === 0 ? "*" : `${start}-${start + bytes.byteLength - 1}`;
    const isLast = totalBytes !== null;
    assert(isLast || bytes.byteLength % PIECE_MULTIPLE_BYTES === 0, "a chunk but the last is a multiple of 256 KiB");
    return await this.#asked({
      headers: {
        "content-range": `bytes ${range}/${totalBytes ?? "*"}`,
        ...(isLast ? { "x-goog-hash": `crc32c=${encodeCrc32c(this.#crc)}` } : {}),
      },
      body: bytes,
      // What became of it is asked for before it is sent again.
      retries: 0,
    });
  }

  /** How far the server is, without changing anything: the whole size is not named, which would make it finish. */
  async #ask(): Promise<Progress> {
    return await this.#asked({ headers: { "content-range": "bytes */*" }, body: new Uint8Array(0) });
  }

  async #asked(request: Pick<GcsRequest, "headers" | "body" | "retries">): Promise<Progress> {
    const { client, key, signal, ifAbsent } = this.#target;
    const answer = await client.send({
      ...STORING,
      ...request,
      method: "PUT",
      at: { session: this.#session },
      key,
      signal,
      accept: [308, 404, 410, 499, ...(ifAbsent ? [412] : [])],
    });
    const { refusal, headers } = answer;
    if (refusal === null) return { kind: "stored", answer };
    switch (refusal.status) {
      case 308: {
        const range = headers.get("range");
        const last = /^bytes=0-(\d{1,15})$/.exec(range ?? "")?.[1];
        if (range !== null && last === undefined) throw this.#malformed(`the range ${range} of an upload`);
        return { kind: "has", bytes: last === undefined ? 0 : Number(last) + 1 };
      }
      case 412:
        return { kind: "exists" };
      default:
        return await this.#afterTheEnd();
    }
  }

  /** The session is gone: cancelled or forgotten, or it has made the object and that was lost on the way. */
  async #afterTheEnd(): Promise<Progress> {
    const { client, key, ifAbsent, signal } = this.#target;
    const looking = { doing: "look for the object", permission: "storage.objects.get" } as const;
    const query = { fields: FIELDS };
    const request = { ...looking, method: "GET", at: "object", key, query, signal, accept: [404] } as const;
    const { value, answer } = await client.sendForJson(request, objectSchema);
    if (value !== null && value.crc32c === encodeCrc32c(this.#crc))
      // Its bytes are ours. Whether it was us who stored them is for our caller to find out, by what is in them.
      return ifAbsent ? { kind: "exists" } : { kind: "stored", answer };
    throw new BakeliteError("storage-unreachable", "cannot store the object: its upload was cancelled meanwhile", {
      subject: client.about({ ...STORING, key }).subject,
      hint: "bakelite stores the object again; let nothing else cancel its uploads",
    });
  }

  async #settle({ body }: GcsAnswer, sizeBytes: number): Promise<Outcome> {
    const { client, key } = this.#target;
    const stored = client.parse(body, objectSchema, { ...STORING, key });
    await checkStored(stored, { crc: encodeCrc32c(this.#crc), sizeBytes }, this.#target);
    return "stored";
  }

  #malformed(what: string): BakeliteError {
    const { client, key } = this.#target;
    return malformedAnswer(client.about({ ...STORING, key }), what);
  }
}

/** Removes what is not what was sent, and nothing that came after it; then throws `storage-unreachable`. */
async function checkStored(
  stored: { readonly size: number; readonly crc32c?: string | undefined; readonly generation: string },
  sent: { readonly crc: string; readonly sizeBytes: number },
  { client, key, signal }: UploadTarget,
): Promise<void> {
  // There is no sum of an object under a key of its customer's.
  const isRight = stored.size === sent.sizeBytes && (stored.crc32c === undefined || stored.crc32c === sent.crc);
  if (isRight) return;
  await client.send({
    doing: "remove what was stored damaged",
    permission: "storage.objects.delete",
    method: "DELETE",
    at: "object",
    key,
    query: { ifGenerationMatch: stored.generation },
    signal,
    accept: [404, 412],
  });
  throw new BakeliteError("storage-unreachable", "cannot store the object: it was not stored as it was sent", {
    subject: client.about({ ...STORING, key }).subject,
    hint: "try again; if it stays, check this machine's memory and network",
    cause: new Error(`${stored.size} bytes with CRC-32C ${stored.crc32c}, not ${sent.sizeBytes} with ${sent.crc}`),
  });
}

function descriptionOf({ key, storageClass }: UploadTarget): object {
  return { name: key, contentType: CONTENT_TYPE, ...(storageClass === undefined ? {} : { storageClass }) };
}

/** Generation 0 is "there is none". Source: https://cloud.google.com/storage/docs/request-preconditions */
function preconditionOf({ ifAbsent }: UploadTarget): { readonly ifGenerationMatch?: string } {
  return ifAbsent ? { ifGenerationMatch: "0" } : {};
}

/** The caller's signal is aborted already where a stop is the reason, so this has its own. A cancelled session says 499. */
async function cancelQuietly(session: string, { client, key }: UploadTarget): Promise<void> {
  const timeout = AbortSignal.timeout(CANCEL_TIMEOUT_MS);
  try {
    await client.send({
      ...STORING,
      doing: "cancel the unfinished upload",
      method: "DELETE",
      at: { session },
      key,
      signal: timeout,
      accept: [404, 410, 412, 499],
      retries: 2,
    });
  } catch {
    // It expires by itself after a week, and costs nothing until then.
  }
}
