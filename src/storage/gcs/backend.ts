import { BakeliteError } from "../../util/errors.ts";
import { throwIfAborted } from "../abort.ts";
import type {
  Backend,
  BackendCapabilities,
  ByteSource,
  ByteStream,
  CallOptions,
  Diagnosis,
  GetOptions,
  ListOptions,
  PutOptions,
  StoredObject,
  UnlistedStorage,
} from "../backend.ts";
import { DeleteDenial, deleteOneByOne } from "../http/delete.ts";
import { putBody } from "../http/send-parts.ts";
import { trustedAuthorities } from "../http/trust.ts";
import { assertKeyPrefix, assertObjectKey, compareKeys, isObjectKey } from "../object-key.ts";
import { GcsClient, type GcsClientOptions } from "./client.ts";
import { sharedGcsCredentials } from "./credentials/provider.ts";
import { diagnoseBucket } from "./diagnose.ts";
import { isDenial, malformedAnswer, refusalError } from "./errors.ts";
import { readObject } from "./object-reader.ts";
import { objectSchema, pageSchema } from "./object-resource.ts";
import { placeOf } from "./place.ts";
import { unlistedStorage } from "./unlisted.ts";
import { CHUNK_BYTES, uploadInChunks, uploadWhole } from "./upload.ts";

export interface GcsBackendOptions {
  readonly bucket: string;
  /** Without slashes at its ends; "" for none. */
  readonly prefix: string;
  /** undefined: Application Default Credentials. */
  readonly serviceAccountFile: string | undefined;
  /** Of objects that are put as `longLived`; undefined: the bucket's default. */
  readonly storageClass: string | undefined;
  /** Of all others. */
  readonly changeSetStorageClass: string | undefined;
  /** Without a slash at its end; undefined: Google. */
  readonly endpoint: string | undefined;
  /** PEM, trusted besides the system's authorities. */
  readonly caFile: string | undefined;
  /** A request that makes no progress for this long has failed. */
  readonly timeoutMs: number;
  /** How often a failed request is tried again. */
  readonly retries: number;
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Something that an operator should know and that fails nothing. Each is told once. */
  readonly onNotice?: ((notice: { readonly message: string; readonly hint: string }) => void) | undefined;
  /** For tests: whatever is not to be as in earnest. */
  readonly overrides?: Partial<GcsClientOptions>;
}

export const GOOGLE_ENDPOINT = "https://storage.googleapis.com";
const DELETES_AT_ONCE = 16;
const DELETING = { doing: "delete objects", permission: "storage.objects.delete" } as const;
const LISTING = { doing: "list the objects", permission: "storage.objects.list" } as const;

/** A backend over a bucket of Google Cloud Storage. Nothing is touched until its first call. */
export function openGcs(options: GcsBackendOptions): GcsBackend {
  const { bucket, endpoint, caFile, timeoutMs, retries, serviceAccountFile, env } = options;
  const base = endpoint ?? GOOGLE_ENDPOINT;
  const ca = caFile === undefined ? undefined : () => trustedAuthorities(caFile);
  const credentials = sharedGcsCredentials({ serviceAccountFile, env, timeoutMs, retries, ca }, caFile);
  const place = placeOf(base, bucket);
  const common = { base, bucket, place, credentials, timeoutMs, retries, ca };
  return new GcsBackend(options, new GcsClient({ ...common, ...options.overrides }));
}

/**
 * Google Cloud Storage as a destination. Retries are inside, request by request, and a stream goes on where it broke: no wrapper is
 * needed. A body of up to 8 MiB is one request, a larger one a resumable upload, which shows nothing until its end. `ifAbsent`
 * is `ifGenerationMatch=0`, which Google heeds on both. Listings are strongly consistent there.
 */
export class GcsBackend implements Backend {
  readonly location: string;
  readonly capabilities: BackendCapabilities = { putIfAbsent: true };
  readonly unlisted: UnlistedStorage;
  readonly #options: GcsBackendOptions;
  readonly #client: GcsClient;
  readonly #keyPrefix: string;
  readonly #deleteDenial = new DeleteDenial();

  constructor(options: GcsBackendOptions, client: GcsClient) {
    this.#options = options;
    this.#client = client;
    this.#keyPrefix = options.prefix === "" ? "" : `${options.prefix}/`;
    this.location = `gs://${options.bucket}${options.prefix === "" ? "" : `/${options.prefix}`}`;
    this.unlisted = unlistedStorage(client, this.#keyPrefix);
  }

  async put(key: string, body: ByteSource, options: PutOptions = {}): Promise<"stored" | "exists"> {
    this.#assertKey(key);
    const { signal, ifAbsent = false, longLived = false } = options;
    throwIfAborted(signal);
    const { storageClass, changeSetStorageClass } = this.#options;
    const target = {
      client: this.#client,
      key: this.#keyPrefix + key,
      storageClass: longLived ? storageClass : changeSetStorageClass,
      ifAbsent,
      signal,
    };
    const subject = `${this.location}/${key}`;
    return await putBody(
      body,
      { longLived, signal, subject, partSizeBytes: () => CHUNK_BYTES },
      {
        whole: (bytes) => uploadWhole(bytes, target),
        parts: (first, reader, check) => uploadInChunks(first, reader, target, check),
      },
    );
  }

  async get(key: string, options: GetOptions = {}): Promise<ByteStream | null> {
    this.#assertKey(key);
    const { signal, range = { start: 0 } } = options;
    throwIfAborted(signal);
    const stream = await readObject(this.#client, { key: this.#keyPrefix + key, range, signal });
    if (stream === null) await this.#assertBucket(signal);
    return stream;
  }

  async stat(key: string, options: CallOptions = {}): Promise<StoredObject | null> {
    this.#assertKey(key);
    const { signal } = options;
    throwIfAborted(signal);
    const { value } = await this.#client.sendForJson(
      {
        doing: "look for the object",
        permission: "storage.objects.get",
        method: "GET",
        at: "object",
        key: this.#keyPrefix + key,
        query: { fields: "size,timeCreated" },
        signal,
        accept: [404],
      },
      objectSchema.pick({ size: true, timeCreated: true }),
    );
    if (value !== null) return { key, sizeBytes: value.size, modifiedMs: value.timeCreated };
    await this.#assertBucket(signal);
    return null;
  }

  async *list(prefix: string, options: ListOptions = {}): AsyncGenerator<StoredObject, void> {
    assertKeyPrefix(prefix);
    const { signal } = options;
    throwIfAborted(signal);
    const startAfter =
      options.startAfter === undefined || options.startAfter === "" ? "" : this.#keyPrefix + options.startAfter;
    const query = {
      prefix: this.#keyPrefix + prefix,
      maxResults: "1000",
      fields: "items(name,size,timeCreated),nextPageToken",
      ...(startAfter === "" ? {} : { startOffset: startAfter }),
    };
    const tokens = new Set<string>();
    let last = startAfter;
    for (let pageToken: string | undefined; ; ) {
      const { items, next } = await this.#listPage(
        { ...query, ...(pageToken === undefined ? {} : { pageToken }) },
        { prefix: query.prefix, last, signal },
      );
      for (const object of items) {
        throwIfAborted(signal);
        last = object.key;
        const key = object.key.slice(this.#keyPrefix.length);
        // What others put there, such as the folders of a web console, is none of ours and has no key of ours.
        if (isObjectKey(key)) yield { ...object, key };
      }
      if (next === undefined) return;
      if (tokens.has(next)) throw this.#badListing("the page token came twice");
      pageToken = next;
      tokens.add(next);
      throwIfAborted(signal);
    }
  }

  async delete(keys: readonly string[], options: CallOptions = {}): Promise<void> {
    for (const key of keys) this.#assertKey(key);
    const { signal } = options;
    throwIfAborted(signal);
    if (keys.length === 0) return;
    this.#deleteDenial.throwIfFresh(this.#client.nowMs());
    const outcome = await deleteOneByOne(keys, {
      concurrency: DELETES_AT_ONCE,
      signal,
      deleteOne: async (key) => {
        const request = { ...DELETING, key: this.#keyPrefix + key };
        const sent = { ...request, method: "DELETE", at: "object", signal, accept: [403, 404] } as const;
        const { refusal } = await this.#client.send(sent);
        if (refusal === null || refusal.status === 404) return null;
        return { error: refusalError(refusal, this.#client.about(request)), isDenied: isDenial(refusal) };
      },
    });
    this.#deleteDenial.settle(outcome, this.#client.nowMs(), () =>
      this.#options.onNotice?.({
        message: "the credentials may not delete, so nothing is ever removed there",
        hint: "grant storage.objects.delete, or let a lifecycle rule of the bucket remove what is old",
      }),
    );
  }

  async diagnose(options: CallOptions = {}): Promise<readonly Diagnosis[]> {
    return await diagnoseBucket(this.#client, { signal: options.signal });
  }

  /** Source: https://cloud.google.com/storage/docs/objects#naming */
  #assertKey(key: string): void {
    assertObjectKey(key);
    if (!/[\r\n]/.test(key)) return;
    throw new BakeliteError("storage-denied", "cannot store the object: Google takes no line break in a name", {
      subject: `${this.location}/${key}`,
    });
  }

  /** A 404 may be of the bucket's, which must not look like an empty one. */
  async #assertBucket(signal: AbortSignal | undefined): Promise<void> {
    if (this.#client.place.isSeen) return;
    const query = { prefix: this.#keyPrefix, maxResults: "1", fields: "nextPageToken" };
    await this.#client.sendForJson({ ...LISTING, method: "GET", at: "objects", query, signal }, pageSchema);
  }

  /** Throws for a page whose names do not ascend from `last`: then something is missing. */
  async #listPage(
    query: Readonly<Record<string, string>>,
    {
      prefix,
      last,
      signal,
    }: { readonly prefix: string; readonly last: string; readonly signal: AbortSignal | undefined },
  ): Promise<{ readonly items: readonly StoredObject[]; readonly next: string | undefined }> {
    const { value } = await this.#client.sendForJson(
      { ...LISTING, method: "GET", at: "objects", query, signal },
      pageSchema,
    );
    if (value === null) throw this.#badListing("no listing");
    const items: StoredObject[] = [];
    let previous = last;
    for (const { name, size, timeCreated } of value.items ?? []) {
      if (!name.startsWith(prefix)) throw this.#badListing("a name does not begin with the prefix that was asked for");
      const order = compareKeys(name, previous);
      // It is inclusive.
      if (order === 0 && name === query["startOffset"]) continue;
      if (order <= 0) throw this.#badListing("the names do not ascend");
      previous = name;
      items.push({ key: name, sizeBytes: size, modifiedMs: timeCreated });
    }
    return { items, next: value.nextPageToken };
  }

  #badListing(what: string): BakeliteError {
    return malformedAnswer(this.#client.about(LISTING), what);
  }
}
