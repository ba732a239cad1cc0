import { AwsV4Signer } from "aws4fetch";
import { backoffDelayMs } from "../../util/backoff.ts";
import { type Clock, systemClock } from "../../util/clock.ts";
import { delay } from "../../util/delay.ts";
import { assert, BakeliteError, describeError } from "../../util/errors.ts";
import { abortError, throwIfAborted } from "../abort.ts";
import { type BucketAddress, objectUrl } from "./address.ts";
import type { AwsCredentials, CredentialsProvider } from "./credentials/provider.ts";
import { digestOf } from "./digest.ts";
import {
  type Doing,
  isAboutSignature,
  isOldCredentials,
  isPassing,
  malformedAnswer,
  networkError,
  parseRefusal,
  refusalError,
  type S3Refusal,
} from "./errors.ts";
import type { Place } from "./place.ts";
import { MAX_XML_BYTES, parseXml, type XmlNode } from "./xml.ts";

export interface S3ClientOptions {
  readonly address: BucketAddress;
  readonly place: Place;
  /** Asked once; undefined: Amazon's first region, until the bucket's own is learnt. */
  readonly region: () => Promise<string | undefined>;
  readonly credentials: CredentialsProvider;
  /** A request that makes no progress for this long has failed. */
  readonly timeoutMs: number;
  /** How often a failed request is tried again. */
  readonly retries: number;
  /** Authorities to trust, as PEM; undefined: those that Bun trusts. Asked once. */
  readonly ca?: (() => Promise<string>) | undefined;
  readonly clock?: Clock;
  readonly random?: () => number;
  /** Instead of the global one. */
  readonly fetch?: (url: string, init: BunFetchRequestInit) => Promise<Response>;
  /** The first wait between tries is at most this; 200 ms. */
  readonly baseDelayMs?: number;
}

export interface S3Request {
  readonly method: "GET" | "HEAD" | "PUT" | "POST" | "DELETE";
  /** The whole key, with the destination's prefix; undefined: the bucket itself. */
  readonly key?: string;
  readonly query?: Readonly<Record<string, string>>;
  /** Lower-case names. Signed, but for `range` and `content-type`. */
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: Uint8Array;
  readonly signal?: AbortSignal | undefined;
  /** Completes "cannot …". */
  readonly doing: string;
  /** The permission that it takes in AWS. */
  readonly permission: string;
  /** Statuses besides 2xx that are answers for the caller; a passing failure is still tried again first. */
  readonly accept?: readonly number[];
  /** A larger answer is refused; `MAX_XML_BYTES` by default. */
  readonly maxBytes?: number;
  /** Fewer than the client's: for what is only done as well as possible. */
  readonly retries?: number;
}

export interface S3Answer {
  readonly status: number;
  readonly headers: Headers;
  /** All of it. */
  readonly body: Uint8Array;
  /** For a status of `accept`; null for a success. */
  readonly refusal: S3Refusal | null;
  /** The attempt that was answered so, from 1. From 2 on, an earlier one may have had its effect. */
  readonly attempt: number;
}

const DEFAULT_REGION = "us-east-1";
const BASE_DELAY_MS = 200;
const MAX_DELAY_MS = 5000;
/** A server that asks for more patience gets so much. */
const MAX_RETRY_AFTER_MS = 20_000;
/** No attempt begins later than this and one `timeoutMs` after the first. */
const MAX_ELAPSED_MS = 30_000;
/** A refused request whose answer's date is this far from ours is signed again with the server's time. */
const SKEW_MS = 4 * 60_000;
/** Larger bodies are streamed in pieces, so that their progress shows. */
const PIECE_BYTES = 128 * 1024;

/**
 * One request after the other to one bucket: signed, with a deadline on silence, tried again where that may help. An answer
 * is read as a whole before it counts, so a cut one is tried again too.
 *
 * Every request carries the SHA-256 of its body in what is signed, so the server refuses damaged bytes. Retries are here
 * and nowhere above, because the parts of a stream that cannot be read twice must be tried again one by one.
 * Bun's fetch itself sends a request a second time when a kept-alive connection turns out to be dead and the body is not a
 * stream: so even a first attempt may be the second one for the server.
 */
export class S3Client {
  readonly address: BucketAddress;
  readonly place: Place;
  readonly #options: S3ClientOptions;
  readonly #clock: Clock;
  readonly #signingKeys = new Map<string, ArrayBuffer>();
  #region: Promise<string> | undefined;
  #ca: Promise<string> | undefined;

  constructor(options: S3ClientOptions) {
    this.address = options.address;
    this.place = options.place;
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
  }

  get credentials(): CredentialsProvider {
    return this.#options.credentials;
  }

  /** The server's time, as far as it is known. */
  nowMs(): number {
    return this.#clock.nowMs() + this.place.clockOffsetMs;
  }

  /** Our clock as it is, without what was learnt of the server's. */
  ownNowMs(): number {
    return this.#clock.nowMs();
  }

  /** What requests are signed for. */
  async region(): Promise<string> {
    if (this.place.region !== null) return this.place.region;
    this.#region ??= this.#options.region().then((configured) => configured ?? DEFAULT_REGION);
    try {
      return await this.#region;
    } catch (error) {
      this.#region = undefined;
      throw error;
    }
  }

  about(request: Pick<S3Request, "doing" | "permission" | "key">): Doing {
    const { bucket } = this.address;
    const { credentials } = this.#options;
    return {
      doing: request.doing,
      permission: request.permission,
      subject: `s3://${bucket}${request.key === undefined ? "" : `/${request.key}`}`,
      // Known once they were looked for.
      get credentialSource() {
        return credentials.source;
      },
    };
  }

  /** The answer to a success, or to a status of `accept`. Throws what the last failure means. */
  async send(request: S3Request): Promise<S3Answer> {
    return await this.#retrying(request, async (answer) => answer);
  }

  /**
   * The same for a success with an XML body whose root is one of `rootNames`; null for a status of `accept`.
   * What is not that is tried again: S3 may say 200 and then put an `<Error>` into the body.
   * Source: https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html
   */
  async sendForXml<T>(
    request: S3Request,
    rootNames: readonly string[],
    read: (root: XmlNode, answer: S3Answer, rootName: string) => T,
  ): Promise<{ readonly value: T; readonly answer: S3Answer } | { readonly value: null; readonly answer: S3Answer }> {
    return await this.#retrying(request, async (answer) => {
      if (answer.refusal !== null) return { value: null, answer };
      try {
        const { rootName: found, root } = parseXml(new TextDecoder().decode(answer.body));
        if (!rootNames.includes(found)) throw new Error(`<${found.slice(0, 100)}> in place of <${rootNames[0]}>`);
        return { value: read(root, answer, found), answer };
      } catch (error) {
        throw malformedAnswer(this.about(request), describeError(error));
      }
    });
  }

  async #retrying<T>(request: S3Request, understand: (answer: S3Answer) => Promise<T>): Promise<T> {
    // No request of bakelite names a version: what a bucket keeps beyond the newest is never touched.
    assert(!Object.keys(request.query ?? {}).some((name) => name.toLowerCase() === "versionid"), "no version is named");
    const about = this.about(request);
    const retries = Math.min(request.retries ?? this.#options.retries, this.#options.retries);
    const startMs = this.#clock.monotonicMs();
    const corrected = new Set<string>();
    const payload = (await digestOf("sha256", request.body ?? new Uint8Array(0))).toString("hex");
    let failureCount = 0;
    for (let attempt = 1; ; attempt++) {
      throwIfAborted(request.signal);
      const tried = await this.#attempt(request, payload, about, attempt);
      let failure: BakeliteError;
      let retryAfterMs = 0;
      if ("error" in tried) {
        failure = tried.error;
      } else if (await this.#correct(request, tried, tried.credentials, corrected)) {
        continue;
      } else if (tried.refusal === null || this.#isAnswer(request, tried.refusal)) {
        try {
          const value = await understand(tried);
          if (tried.refusal === null) this.place.isSeen = true;
          return value;
        } catch (error) {
          failure = asFailure(error);
        }
      } else {
        failure = refusalError(tried.refusal, about);
        if (!isPassing(tried.refusal)) throw failure;
        retryAfterMs = parseRetryAfter(tried.headers, this.nowMs());
      }
      failureCount++;
      if (failure.code !== "storage-unreachable" || failureCount > retries) throw failure;
      await this.#waitAfter(failure, { failureCount, startMs, retryAfterMs }, request.signal);
    }
  }

  #isAnswer(request: S3Request, refusal: S3Refusal): boolean {
    if (request.accept?.includes(refusal.status) !== true) return false;
    // A missing bucket must never look like a missing object, nor a wrong key like a missing permission.
    return refusal.code !== "NoSuchBucket" && !isAboutSignature(refusal) && !isPassing(refusal);
  }

  async #waitAfter(
    failure: BakeliteError,
    state: { readonly failureCount: number; readonly startMs: number; readonly retryAfterMs: number },
    signal: AbortSignal | undefined,
  ): Promise<void> {
    const { baseDelayMs = BASE_DELAY_MS, random, timeoutMs } = this.#options;
    const jitterMs = backoffDelayMs(state.failureCount, {
      baseMs: baseDelayMs,
      capMs: MAX_DELAY_MS,
      ...(random === undefined ? {} : { random }),
    });
    const delayMs = Math.max(jitterMs, Math.min(state.retryAfterMs, MAX_RETRY_AFTER_MS));
    if (this.#clock.monotonicMs() - state.startMs + delayMs > MAX_ELAPSED_MS + timeoutMs) throw failure;
    try {
      await delay(delayMs, signal);
    } catch (cause) {
      throw signal === undefined ? cause : abortError(signal);
    }
  }

  /** Learns from a refusal what will make the next attempt different, once for each cause; false: nothing. */
  async #correct(
    request: S3Request,
    { refusal, headers, status }: S3Answer,
    used: AwsCredentials,
    corrected: Set<string>,
  ): Promise<boolean> {
    if (refusal === null) return false;
    const once = (cause: string): boolean => {
      if (corrected.has(cause)) return false;
      corrected.add(cause);
      return true;
    };
    const region = refusal.region;
    if (
      region !== undefined &&
      /^[a-z0-9-]{1,40}$/i.test(region) &&
      region !== (await this.region()) &&
      [301, 307, 400, 403].includes(status)
    )
      if (once("region")) {
        this.place.region = region;
        return true;
      }
    if (status === 403 || refusal.code === "RequestTimeTooSkewed") {
      const serverMs = Date.parse(headers.get("date") ?? "");
      if (Math.abs(serverMs - this.nowMs()) > SKEW_MS && once("clock")) {
        this.place.clockOffsetMs = serverMs - this.#clock.nowMs();
        return true;
      }
    }
    if (isOldCredentials(refusal, request.method) && (request.method !== "HEAD" || used.sessionToken !== undefined))
      if (once("credentials")) {
        await this.#options.credentials.refresh({ refused: used, ...withSignal(request.signal) });
        return true;
      }
    return false;
  }

  async #attempt(
    request: S3Request,
    payload: string,
    about: Doing,
    attempt: number,
  ): Promise<(S3Answer & { readonly credentials: AwsCredentials }) | { readonly error: BakeliteError }> {
    const { signal } = request;
    const credentials = await this.#options.credentials.get(withSignal(signal));
    const region = await this.region();
    const signed = await this.#sign(request, payload, credentials, region);
    this.#ca ??= this.#options.ca?.();
    let ca: string | undefined;
    try {
      ca = await this.#ca;
    } catch (error) {
      this.#ca = undefined;
      throw error;
    }
    using watch = new StallWatch(this.#options.timeoutMs, signal);
    try {
      const { body } = request;
      const response = await (this.#options.fetch ?? fetch)(signed.url, {
        method: request.method,
        headers: signed.headers,
        redirect: "manual",
        decompress: false,
        // Its own limit of five minutes; ours is the watch.
        timeout: false,
        signal: watch.signal,
        ...(body === undefined ? {} : { body: body.byteLength <= PIECE_BYTES ? body : streamOf(body, watch) }),
        ...(ca === undefined ? {} : { tls: { ca } }),
      });
      watch.progressed();
      const bytes = await readBody(response, request, watch);
      const { status, headers } = response;
      const refusal = response.ok ? null : parseRefusal(status, headers, bytes);
      return { status, headers, body: bytes, refusal, attempt, credentials };
    } catch (error) {
      if (signal?.aborted) throw abortError(signal);
      const cause = watch.hasStalled ? Object.assign(new Error("no progress"), { code: "TIMEOUT" }) : error;
      return { error: networkError(cause, about, new URL(signed.url).origin) };
    }
  }

  async #sign(
    request: S3Request,
    payload: string,
    credentials: AwsCredentials,
    region: string,
  ): Promise<{ readonly url: string; readonly headers: Headers }> {
    const query = Object.entries(request.query ?? {}).map(([name, value]) => `${name}=${encodeQueryValue(value)}`);
    const url = objectUrl(this.address, region, request.key) + (query.length === 0 ? "" : `?${query.join("&")}`);
    const { accessKeyId, secretAccessKey, sessionToken } = credentials;
    // A clock that was wrong is put right by the offset, not by a second look at the server's.
    const datetime = new Date(this.nowMs()).toISOString().replace(/[:-]|\.\d{3}/g, "");
    if (this.#signingKeys.size > 16) this.#signingKeys.clear();
    const signer = new AwsV4Signer({
      method: request.method,
      url,
      headers: { ...request.headers, "x-amz-content-sha256": payload },
      service: "s3",
      region,
      accessKeyId,
      secretAccessKey,
      ...(sessionToken === undefined ? {} : { sessionToken }),
      cache: this.#signingKeys,
      datetime,
    });
    const signed = await signer.sign();
    // Not signed: proxies change it. Identity, so that lengths and ranges are those of the stored bytes.
    signed.headers.set("accept-encoding", "identity");
    if (request.body !== undefined) signed.headers.set("content-length", String(request.body.byteLength));
    return { url, headers: signed.headers };
  }
}

function encodeQueryValue(value: string): string {
  return encodeURIComponent(value).replace(/[!'()*]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`);
}

/** Aborts `signal` when the caller does, or when nothing has progressed for so long. */
class StallWatch implements Disposable {
  readonly #controller = new AbortController();
  readonly #caller: AbortSignal | undefined;
  readonly #timer: ReturnType<typeof setTimeout>;
  #hasStalled = false;

  constructor(timeoutMs: number, caller: AbortSignal | undefined) {
    this.#caller = caller;
    this.#timer = setTimeout(
      () => {
        this.#hasStalled = true;
        this.#controller.abort();
      },
      Math.min(timeoutMs, 2 ** 31 - 1),
    );
    caller?.addEventListener("abort", this.#onAbort, { once: true });
    if (caller?.aborted) this.#onAbort();
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  get hasStalled(): boolean {
    return this.#hasStalled;
  }

  progressed(): void {
    this.#timer.refresh();
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#timer);
    this.#caller?.removeEventListener("abort", this.#onAbort);
  }

  readonly #onAbort = () => this.#controller.abort();
}

/** The body piece by piece, as the connection takes them. */
function streamOf(body: Uint8Array, watch: StallWatch): ReadableStream<Uint8Array> {
  let offset = 0;
  return new ReadableStream<Uint8Array>(
    {
      pull(controller) {
        watch.progressed();
        const piece = body.subarray(offset, offset + PIECE_BYTES);
        offset += piece.byteLength;
        if (piece.byteLength === 0) controller.close();
        else controller.enqueue(piece);
      },
    },
    { highWaterMark: 0 },
  );
}

/** The whole body. Throws when it is larger than allowed, or not as long as the answer said. */
async function readBody(response: Response, request: S3Request, watch: StallWatch): Promise<Uint8Array> {
  if (request.method === "HEAD" || response.body === null) return new Uint8Array(0);
  const header = response.headers.get("content-length");
  const announced = header === null || !/^\d{1,15}$/.test(header) ? null : Number(header);
  const maxBytes = response.ok ? (request.maxBytes ?? MAX_XML_BYTES) : MAX_XML_BYTES;
  if (announced !== null && announced > maxBytes) {
    await response.body.cancel();
    throw new Error(`the answer is of ${announced} bytes, more than ${maxBytes}`);
  }
  if (announced !== null) return await readAnnounced(response.body, announced, watch);
  const pieces: Uint8Array[] = [];
  let sizeBytes = 0;
  for await (const piece of response.body) {
    watch.progressed();
    pieces.push(piece);
    sizeBytes += piece.byteLength;
    if (sizeBytes > maxBytes) throw new Error(`the answer is longer than ${maxBytes} bytes`);
  }
  return Buffer.concat(pieces, sizeBytes);
}

async function readAnnounced(
  body: AsyncIterable<Uint8Array>,
  sizeBytes: number,
  watch: StallWatch,
): Promise<Uint8Array> {
  const bytes = new Uint8Array(sizeBytes);
  let readBytes = 0;
  for await (const piece of body) {
    watch.progressed();
    if (readBytes + piece.byteLength > sizeBytes) throw new Error(`the answer is longer than its ${sizeBytes} bytes`);
    bytes.set(piece, readBytes);
    readBytes += piece.byteLength;
  }
  if (readBytes !== sizeBytes) throw new Error(`the answer ended after ${readBytes} of ${sizeBytes} bytes`);
  return bytes;
}

/** Seconds or a date. Source: RFC 9110 section 10.2.3. */
function parseRetryAfter(headers: Headers, nowMs: number): number {
  const header = headers.get("retry-after");
  if (header === null) return 0;
  if (/^\d{1,9}$/.test(header)) return Number(header) * 1000;
  const dateMs = Date.parse(header);
  return Number.isNaN(dateMs) ? 0 : Math.max(0, dateMs - nowMs);
}

function asFailure(error: unknown): BakeliteError {
  // What does not come from `malformedAnswer` is a bug of ours, and not to be tried again.
  if (error instanceof BakeliteError) return error;
  throw error;
}

function withSignal(signal: AbortSignal | undefined): { signal?: AbortSignal } {
  return signal === undefined ? {} : { signal };
}
