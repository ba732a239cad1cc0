import { BakeliteError } from "../../util/errors.ts";
import { printable } from "../../util/printable.ts";
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
import { DeleteDenial, deleteOneByOne, type Undeleted } from "../http/delete.ts";
import { partSizeBytes } from "../http/part-size.ts";
import { putBody } from "../http/send-parts.ts";
import { trustedAuthorities } from "../http/trust.ts";
import { assertKeyPrefix, assertObjectKey, compareKeys, isObjectKey } from "../object-key.ts";
import { type ContainerAddress, locationOf } from "./address.ts";
import { AzureClient, type AzureClientOptions } from "./client.ts";
import { type AzureAuthentication, openCredentials } from "./credentials.ts";
import { diagnoseContainer } from "./diagnose.ts";
import { isDenial, isImmutable, malformedAnswer, refusalError } from "./errors.ts";
import { protectedUntil } from "./immutability.ts";
import { listBlobs, noncurrentVersions } from "./list.ts";
import { placeOf } from "./place.ts";
import { putBlob, putBlocks } from "./put.ts";
import { readBlob } from "./read.ts";

export interface AzureBackendOptions {
  readonly account: string;
  readonly container: string;
  /** Without slashes at its ends; "" for none. */
  readonly prefix: string;
  /** The URL of the account's blob service; undefined: Azure's public cloud. */
  readonly endpoint: string | undefined;
  readonly authentication: AzureAuthentication;
  /** The access tier of blobs that are put as `longLived`: `Hot`, `Cool` or `Cold`; undefined: the account's default. */
  readonly storageClass: string | undefined;
  /** Of all others. */
  readonly changeSetStorageClass: string | undefined;
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
  readonly overrides?: Partial<AzureClientOptions>;
}

const MIB = 2 ** 20;
/** Larger bodies are staged as blocks of this size, which grow for the largest: 10,000 always do, and 50,000 would be allowed. */
const BLOCK_BYTES = 8 * MIB;
/** Source: https://learn.microsoft.com/en-us/azure/storage/blobs/scalability-targets */
const MAX_BLOCK_BYTES = 4000 * MIB;
/** Blocks of one blob that are sent, and blobs that are deleted, at a time. */
const CONCURRENCY = 4;
const DELETING = {
  doing: "delete objects",
  permission: "the role Storage Blob Data Contributor, or `d` in a signature,",
} as const;

/** A backend over a container of Azure Blob Storage, or of an emulator. Nothing is touched until its first call. */
export function openAzure(options: AzureBackendOptions): Backend {
  const { account, container, endpoint, authentication, env, caFile } = options;
  const address: ContainerAddress = { account, container, endpoint };
  const client = new AzureClient({
    address,
    place: placeOf(address),
    credentials: openCredentials({ account, authentication, env }),
    timeoutMs: options.timeoutMs,
    retries: options.retries,
    ca: caFile === undefined ? undefined : () => trustedAuthorities(caFile),
    ...options.overrides,
  });
  return new AzureBackend(options, client);
}

/**
 * Block blobs of one container. Retries are inside, request by request, and a stream goes on where it broke: no wrapper is
 * needed. A body of up to 8 MiB is one Put Blob; a larger one is staged as blocks, which show nothing until they are listed.
 * `ifAbsent` is `If-None-Match: *` on either, which Azure heeds in one step.
 */
class AzureBackend implements Backend {
  readonly location: string;
  readonly capabilities: BackendCapabilities = { putIfAbsent: true };
  readonly unlisted: UnlistedStorage;
  readonly #options: AzureBackendOptions;
  readonly #client: AzureClient;
  readonly #keyPrefix: string;
  readonly #deleteDenial = new DeleteDenial();

  constructor(options: AzureBackendOptions, client: AzureClient) {
    this.#options = options;
    this.#client = client;
    this.#keyPrefix = options.prefix === "" ? "" : `${options.prefix}/`;
    this.location = locationOf(client.address, options.prefix);
    this.unlisted = {
      // Staged blocks cost nothing, have no time of their own and go by themselves: there is nothing to tell or to abort.
      uploads: async () => null,
      abortUpload: async () => "aborted",
      noncurrentVersions: (prefix, { signal } = {}) => {
        assertKeyPrefix(prefix);
        return noncurrentVersions(client, { prefix: this.#keyPrefix + prefix, signal });
      },
    };
  }

  async put(key: string, body: ByteSource, options: PutOptions = {}): Promise<"stored" | "exists"> {
    assertObjectKey(key);
    assertStorable(`${this.location}/${key}`, this.#keyPrefix + key);
    const { signal, longLived = false, ifAbsent = false } = options;
    throwIfAborted(signal);
    const target = {
      client: this.#client,
      key: this.#keyPrefix + key,
      headers: this.#tierHeaders(longLived),
      ifAbsent,
      signal,
    };
    const sizeOf = (number: number) => Math.min(MAX_BLOCK_BYTES, partSizeBytes(number, BLOCK_BYTES, body.sizeBytes));
    const how = { longLived, signal, subject: `${this.location}/${key}`, partSizeBytes: sizeOf };
    return await putBody(body, how, {
      whole: (bytes) => putBlob(bytes, target),
      parts: async (first, reader, check) => {
        // Before a large body is sent for nothing.
        if (ifAbsent && (await this.#isTaken(key, signal, first))) return "exists";
        return await putBlocks(first, reader, { ...target, partSizeBytes: sizeOf, concurrency: CONCURRENCY, check });
      },
    });
  }

  async get(key: string, options: GetOptions = {}): Promise<ByteStream | null> {
    assertObjectKey(key);
    throwIfAborted(options.signal);
    const { range = { start: 0 }, signal } = options;
    return await readBlob(this.#client, { key: this.#keyPrefix + key, range, signal });
  }

  async stat(key: string, options: CallOptions = {}): Promise<StoredObject | null> {
    assertObjectKey(key);
    throwIfAborted(options.signal);
    const request = {
      key: this.#keyPrefix + key,
      signal: options.signal,
      doing: "look for the object",
      permission: "the role Storage Blob Data Reader, or `r` in a signature,",
    };
    const { refusal, headers } = await this.#client.send({ ...request, method: "HEAD", accept: [404] });
    if (refusal !== null) {
      // What is not Azure says no reason for its 404.
      if (refusal.code === "" && !this.#client.place.isSeen) throw refusalError(refusal, this.#client.about(request));
      return null;
    }
    const size = headers.get("content-length") ?? "";
    const modifiedMs = Date.parse(headers.get("last-modified") ?? "");
    if (!/^\d{1,15}$/.test(size) || Number.isNaN(modifiedMs))
      throw malformedAnswer(this.#client.about(request), "no Content-Length or no Last-Modified");
    return { key, sizeBytes: Number(size), modifiedMs };
  }

  /** Azure knows no place to start a listing after: what sorts before `startAfter` is listed and left out. */
  async *list(prefix: string, options: ListOptions = {}): AsyncGenerator<StoredObject, void> {
    assertKeyPrefix(prefix);
    const { signal, startAfter = "" } = options;
    throwIfAborted(signal);
    for await (const page of listBlobs(this.#client, { prefix: this.#keyPrefix + prefix, signal }))
      for (const object of page) {
        throwIfAborted(signal);
        const key = object.key.slice(this.#keyPrefix.length);
        // What others put there is none of ours and has no key of ours.
        if (isObjectKey(key) && compareKeys(key, startAfter) > 0) yield { ...object, key };
      }
  }

  async delete(keys: readonly string[], options: CallOptions = {}): Promise<void> {
    for (const key of keys) assertObjectKey(key);
    throwIfAborted(options.signal);
    if (keys.length === 0) return;
    this.#deleteDenial.throwIfFresh(this.#client.ownNowMs());
    const outcome = await deleteOneByOne(keys, {
      concurrency: CONCURRENCY,
      signal: options.signal,
      deleteOne: (key) => this.#deleteOne(this.#keyPrefix + key, options.signal),
    });
    this.#deleteDenial.settle(outcome, this.#client.ownNowMs(), () =>
      this.#options.onNotice?.({
        message: "the credentials may not delete, so nothing is ever removed there",
        hint: "give them a role that may, or let a lifecycle rule of the account remove what is old",
      }),
    );
  }

  async diagnose(options: CallOptions = {}): Promise<readonly Diagnosis[]> {
    return await diagnoseContainer(this.#client, { keyPrefix: this.#keyPrefix, signal: options.signal });
  }

  async #isTaken(key: string, signal: AbortSignal | undefined, held: Disposable): Promise<boolean> {
    try {
      const isTaken = (await this.stat(key, signal === undefined ? {} : { signal })) !== null;
      if (isTaken) held[Symbol.dispose]();
      return isTaken;
    } catch (error) {
      held[Symbol.dispose]();
      throw error;
    }
  }

  async #deleteOne(key: string, signal: AbortSignal | undefined): Promise<Undeleted | null> {
    const client = this.#client;
    const { refusal } = await client.send({ ...DELETING, method: "DELETE", key, signal, accept: [403, 404, 409] });
    if (refusal === null || refusal.status === 404) return null;
    const about = client.about({ ...DELETING, key });
    if (isImmutable(refusal)) return { error: await protectedUntil(client, { key, refusal, signal }), isDenied: false };
    return { error: refusalError(refusal, about), isDenied: isDenial(refusal) };
  }

  #tierHeaders(longLived: boolean): Readonly<Record<string, string>> {
    const { storageClass, changeSetStorageClass } = this.#options;
    const tier = longLived ? storageClass : changeSetStorageClass;
    return tier === undefined ? {} : { "x-ms-access-tier": tier };
  }
}

/**
 * Azure takes a backslash for a slash, and XML, in which its listings are, has no control characters: such a name would be stored and
 * never be found again.
 */
function assertStorable(subject: string, name: string): void {
  if (!/[\\\p{Cc}\ufffe\uffff]/u.test(name)) return;
  throw new BakeliteError("storage-denied", "cannot store the object: Azure cannot keep a name with such a character", {
    subject: printable(subject),
    hint: "choose a `prefix` without backslashes and control characters",
  });
}
