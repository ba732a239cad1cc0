import type { BakeliteError } from "../../util/errors.ts";
import { throwIfAborted } from "../abort.ts";
import type {
  Backend,
  BackendCapabilities,
  ByteRange,
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
import { DeleteDenial } from "../http/delete.ts";
import { partSizeBytes } from "../http/part-size.ts";
import { putBody } from "../http/send-parts.ts";
import { trustedAuthorities } from "../http/trust.ts";
import { child, children, childText, type XmlNode } from "../http/xml.ts";
import { assertKeyPrefix, assertObjectKey, compareKeys, isObjectKey } from "../object-key.ts";
import { type BucketAddress, decodeListedKey } from "./address.ts";
import { S3Client, type S3ClientOptions } from "./client.ts";
import { type CredentialsOptions, openCredentials, regionFromEnvironment } from "./credentials/provider.ts";
import { deleteObjects } from "./delete.ts";
import { diagnoseBucket } from "./diagnose.ts";
import { malformedAnswer, refusalError } from "./errors.ts";
import { readObject } from "./object-reader.ts";
import { placeOf } from "./place.ts";
import { proveConditionalComplete } from "./prove.ts";
import { putObject } from "./put.ts";
import { unlistedStorage } from "./unlisted.ts";
import { uploadInParts } from "./upload.ts";

export interface S3BackendOptions {
  readonly bucket: string;
  /** Without slashes at its ends; "" for none. */
  readonly prefix: string;
  /** undefined: from the AWS environment or profile, else what the bucket's server says. */
  readonly region: string | undefined;
  /** undefined: Amazon. */
  readonly endpoint: string | undefined;
  readonly pathStyle: boolean;
  /** Of objects that are put as `longLived`; undefined: the bucket's default. */
  readonly storageClass: string | undefined;
  /** Of all others. */
  readonly changeSetStorageClass: string | undefined;
  readonly sse: "AES256" | "aws:kms" | undefined;
  readonly sseKmsKeyId: string | undefined;
  /** From 5 MiB. Larger bodies are sent in parts of this size. */
  readonly partSizeBytes: number;
  /** Parts of one object that are sent at a time. */
  readonly concurrency: number;
  /** PEM, trusted besides the system's authorities. */
  readonly caFile: string | undefined;
  /** A request that makes no progress for this long has failed. */
  readonly timeoutMs: number;
  /** How often a failed request is tried again. */
  readonly retries: number;
  readonly credentials: Pick<CredentialsOptions, "explicit" | "credentialsFile" | "profile" | "env">;
  /** Something that an operator should know and that fails nothing. Each is told once. */
  readonly onNotice?: ((notice: S3Notice) => void) | undefined;
  /** For tests: whatever is not to be as in earnest. */
  readonly overrides?: Partial<S3ClientOptions>;
}

export interface S3Notice {
  /** A clause without a full stop. */
  readonly message: string;
  readonly hint: string;
}

const LIST_PERMISSION = "s3:ListBucket";

/** A backend over a bucket of Amazon S3 or of a server that speaks its protocol. Nothing is touched until its first call. */
export function openS3(options: S3BackendOptions): S3Backend {
  const { bucket, endpoint, pathStyle, region, caFile } = options;
  const address: BucketAddress = { bucket, endpoint, pathStyle };
  const credentials: CredentialsOptions = { ...options.credentials, region };
  return new S3Backend(
    options,
    new S3Client({
      address,
      place: placeOf(address),
      region: async () => region ?? (await regionFromEnvironment(credentials)),
      credentials: openCredentials(credentials),
      timeoutMs: options.timeoutMs,
      retries: options.retries,
      ca: caFile === undefined ? undefined : () => trustedAuthorities(caFile),
      ...options.overrides,
    }),
  );
}

/**
 * S3 as a destination. Retries are inside, request by request, and a stream goes on where it broke: no wrapper is needed.
 *
 * A body of up to one part is one PutObject; a larger one is an upload in parts, which shows nothing until its completion. `ifAbsent` is
 * `If-None-Match: *`. Until this process has seen that the server heeds it (some refuse it, some ignore it), a put looks
 * first as well; where it is refused or ignored that look is all there is, and `capabilities.putIfAbsent` is false.
 */
export class S3Backend implements Backend {
  readonly location: string;
  readonly unlisted: UnlistedStorage;
  readonly #options: S3BackendOptions;
  readonly #client: S3Client;
  readonly #keyPrefix: string;
  readonly #deleteDenial = new DeleteDenial();

  constructor(options: S3BackendOptions, client: S3Client) {
    this.#options = options;
    this.#client = client;
    this.#keyPrefix = options.prefix === "" ? "" : `${options.prefix}/`;
    this.location = `s3://${options.bucket}${options.prefix === "" ? "" : `/${options.prefix}`}`;
    this.unlisted = unlistedStorage(client, this.#keyPrefix);
  }

  /** True until a server turns out to have no atomic put. */
  get capabilities(): BackendCapabilities {
    const { conditionalPut, conditionalComplete } = this.#client.place;
    return { putIfAbsent: conditionalPut !== "absent" && conditionalComplete !== "absent" };
  }

  async put(key: string, body: ByteSource, options: PutOptions = {}): Promise<"stored" | "exists"> {
    assertObjectKey(key);
    const { signal } = options;
    throwIfAborted(signal);
    const target = {
      client: this.#client,
      key: this.#keyPrefix + key,
      headers: this.#objectHeaders(options.longLived === true),
      ifAbsent: options.ifAbsent === true,
      signal,
    };
    const sizeOf = (number: number) => partSizeBytes(number, this.#options.partSizeBytes, body.sizeBytes);
    const how = { longLived: options.longLived === true, signal, subject: `${this.location}/${key}` };
    return await putBody(
      body,
      { ...how, partSizeBytes: sizeOf },
      {
        whole: (bytes) => putObject(bytes, target),
        parts: async (first, reader, check) => {
          try {
            if (target.ifAbsent) {
              // Before a large body is sent for nothing.
              if ((await this.stat(key, signal === undefined ? {} : { signal })) !== null) {
                first[Symbol.dispose]();
                return "exists";
              }
              await proveConditionalComplete(this.#client, signal);
            }
          } catch (error) {
            first[Symbol.dispose]();
            throw error;
          }
          const { partSizeBytes, concurrency } = this.#options;
          const bodyBytes = body.sizeBytes;
          return await uploadInParts(first, reader, { ...target, partSizeBytes, bodyBytes, concurrency, check });
        },
      },
    );
  }

  async get(key: string, options: GetOptions = {}): Promise<ByteStream | null> {
    assertObjectKey(key);
    throwIfAborted(options.signal);
    const range: ByteRange = options.range ?? { start: 0 };
    return await readObject(this.#client, { key: this.#keyPrefix + key, range, signal: options.signal });
  }

  async stat(key: string, options: CallOptions = {}): Promise<StoredObject | null> {
    assertObjectKey(key);
    throwIfAborted(options.signal);
    const request = {
      key: this.#keyPrefix + key,
      signal: options.signal,
      doing: "look for the object",
      permission: `s3:GetObject and ${LIST_PERMISSION}`,
    };
    const { refusal, headers } = await this.#client.send({ ...request, method: "HEAD", accept: [404] });
    if (refusal !== null) {
      await this.#assertBucket(options.signal);
      return null;
    }
    const size = headers.get("content-length") ?? "";
    const modifiedMs = Date.parse(headers.get("last-modified") ?? "");
    if (!/^\d{1,15}$/.test(size) || Number.isNaN(modifiedMs))
      throw malformedAnswer(this.#client.about(request), "no Content-Length or no Last-Modified");
    return { key, sizeBytes: Number(size), modifiedMs: wholeSeconds(modifiedMs) };
  }

  async *list(prefix: string, options: ListOptions = {}): AsyncGenerator<StoredObject, void> {
    assertKeyPrefix(prefix);
    throwIfAborted(options.signal);
    const fullPrefix = this.#keyPrefix + prefix;
    const startAfter =
      options.startAfter === undefined || options.startAfter === "" ? "" : this.#keyPrefix + options.startAfter;
    const tokens = new Set<string>();
    let last = startAfter;
    for (let token: string | undefined; ; ) {
      throwIfAborted(options.signal);
      const page = await this.#listPage(fullPrefix, { startAfter, token, last, signal: options.signal });
      for (const object of page.objects) {
        throwIfAborted(options.signal);
        last = object.key;
        const key = object.key.slice(this.#keyPrefix.length);
        // What others put there, such as the folders of a web console, is none of ours and has no key of ours.
        if (isObjectKey(key)) yield { ...object, key };
      }
      if (page.next === null) return;
      if (tokens.has(page.next)) throw this.#badListing("the continuation token came twice");
      token = page.next;
      tokens.add(token);
    }
  }

  async delete(keys: readonly string[], options: CallOptions = {}): Promise<void> {
    for (const key of keys) assertObjectKey(key);
    throwIfAborted(options.signal);
    if (keys.length === 0) return;
    this.#deleteDenial.throwIfFresh(this.#client.ownNowMs());
    const outcome = await deleteObjects(this.#client, {
      keys: keys.map((key) => this.#keyPrefix + key),
      concurrency: this.#options.concurrency,
      signal: options.signal,
    });
    this.#deleteDenial.settle(outcome, this.#client.ownNowMs(), () =>
      this.#options.onNotice?.({
        message: "the credentials may not delete, so nothing is ever removed there",
        hint: "allow s3:DeleteObject, or let a lifecycle rule of the bucket remove what is old",
      }),
    );
  }

  async diagnose(options: CallOptions = {}): Promise<readonly Diagnosis[]> {
    return await diagnoseBucket(this.#client, {
      region: this.#options.region,
      endpoint: this.#options.endpoint,
      sse: this.#options.sse,
      signal: options.signal,
    });
  }

  #objectHeaders(longLived: boolean): Readonly<Record<string, string>> {
    const { storageClass, changeSetStorageClass, sse, sseKmsKeyId } = this.#options;
    const kind = longLived ? storageClass : changeSetStorageClass;
    return {
      "content-type": "application/octet-stream",
      ...(kind === undefined ? {} : { "x-amz-storage-class": kind }),
      ...(sse === undefined ? {} : { "x-amz-server-side-encryption": sse }),
      ...(sseKmsKeyId === undefined ? {} : { "x-amz-server-side-encryption-aws-kms-key-id": sseKmsKeyId }),
    };
  }

  /** A HEAD says 404 for a missing bucket too, which must not look like an empty one. */
  async #assertBucket(signal: AbortSignal | undefined): Promise<void> {
    if (this.#client.place.isSeen) return;
    await this.#client.sendForXml(
      {
        method: "GET",
        query: { "list-type": "2", "max-keys": "1", prefix: this.#keyPrefix },
        signal,
        doing: "list the bucket",
        permission: LIST_PERMISSION,
      },
      ["ListBucketResult"],
      () => null,
    );
  }

  async #listPage(
    prefix: string,
    state: {
      readonly startAfter: string;
      readonly token: string | undefined;
      readonly last: string;
      readonly signal: AbortSignal | undefined;
    },
  ): Promise<ListPage> {
    const { startAfter, token, last, signal } = state;
    const { value, answer } = await this.#client.sendForXml(
      {
        method: "GET",
        query: {
          "list-type": "2",
          "encoding-type": "url",
          prefix,
          ...(token === undefined ? {} : { "continuation-token": token }),
          ...(token === undefined && startAfter !== "" ? { "start-after": startAfter } : {}),
        },
        signal,
        doing: "list the objects",
        permission: LIST_PERMISSION,
      },
      ["ListBucketResult"],
      (root) => readListPage(root, prefix, last),
    );
    if (value !== null) return value;
    throw answer.refusal === null
      ? this.#badListing("no listing")
      : refusalError(answer.refusal, this.#client.about({ doing: "list the objects", permission: LIST_PERMISSION }));
  }

  #badListing(what: string): BakeliteError {
    return malformedAnswer(this.#client.about({ doing: "list the objects", permission: LIST_PERMISSION }), what);
  }
}

interface ListPage {
  readonly objects: readonly StoredObject[];
  readonly next: string | null;
}

/** Throws a plain Error for a page that is not one, or whose keys do not ascend from `last`: then something is missing. */
function readListPage(root: XmlNode, prefix: string, last: string): ListPage {
  const decode = childText(root, "EncodingType") === "url" ? decodeListedKey : (key: string) => key;
  const objects: StoredObject[] = [];
  let previous = last;
  for (const item of children(root, "Contents")) {
    const object = readListed(item, decode);
    if (!object.key.startsWith(prefix)) throw new Error("a key does not begin with the prefix that was asked for");
    if (compareKeys(object.key, previous) <= 0) {
      // A server that does not know start-after begins at the beginning.
      if (previous === last && objects.length === 0) continue;
      throw new Error("the keys do not ascend");
    }
    previous = object.key;
    objects.push(object);
  }
  if (child(root, "CommonPrefixes") !== undefined) throw new Error("keys are folded into prefixes");
  const isTruncated = childText(root, "IsTruncated");
  if (isTruncated === "false") return { objects, next: null };
  if (isTruncated !== "true") throw new Error("it does not say whether it is truncated");
  const next = childText(root, "NextContinuationToken") ?? "";
  if (next === "") throw new Error("it is truncated, and has no continuation token");
  return { objects, next };
}

function readListed(item: XmlNode, decode: (key: string) => string): StoredObject {
  const key = childText(item, "Key");
  const size = childText(item, "Size") ?? "";
  const modifiedMs = Date.parse(childText(item, "LastModified") ?? "");
  if (key === undefined || !/^\d{1,15}$/.test(size) || Number.isNaN(modifiedMs))
    throw new Error("an object has no key, size or time");
  return { key: decode(key), sizeBytes: Number(size), modifiedMs: wholeSeconds(modifiedMs) };
}

/** A HEAD tells whole seconds, and a listing of some servers more. */
function wholeSeconds(ms: number): number {
  return Math.floor(ms / 1000) * 1000;
}
