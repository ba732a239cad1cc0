import { AwsV4Signer } from "aws4fetch";
import { type Clock, systemClock } from "../../util/clock.ts";
import { assert, type BakeliteError, describeError } from "../../util/errors.ts";
import { type Dialect, type HttpAnswer, HttpClient, type HttpClientOptions, type HttpRequest } from "../http/client.ts";
import { digestOf } from "../http/digest.ts";
import { networkError } from "../http/refusal.ts";
import { parseXml, type XmlNode } from "../http/xml.ts";
import { type BucketAddress, objectUrl } from "./address.ts";
import type { AwsCredentials, CredentialsProvider } from "./credentials/provider.ts";
import {
  type Doing,
  isAboutSignature,
  isOldCredentials,
  isPassing,
  malformedAnswer,
  NETWORK_HINTS,
  parseRefusal,
  refusalError,
  type S3Refusal,
} from "./errors.ts";
import type { Place } from "./place.ts";

export interface S3ClientOptions extends HttpClientOptions {
  readonly address: BucketAddress;
  readonly place: Place;
  /** Asked once; undefined: Amazon's first region, until the bucket's own is learnt. */
  readonly region: () => Promise<string | undefined>;
  readonly credentials: CredentialsProvider;
}

export interface S3Request extends HttpRequest {
  /** The whole key, with the destination's prefix; undefined: the bucket itself. */
  readonly key?: string;
  readonly query?: Readonly<Record<string, string>>;
  /** Lower-case names. Signed, but for `range` and `content-type`. */
  readonly headers?: Readonly<Record<string, string>>;
  /** Completes "cannot …". */
  readonly doing: string;
  /** The permission that it takes in AWS. */
  readonly permission: string;
}

export type S3Answer = HttpAnswer<S3Refusal>;

/** With the SHA-256 of its body in hexadecimal, which every attempt signs. */
type HashedRequest = S3Request & { readonly payload: string };

const DEFAULT_REGION = "us-east-1";
/** A refused request whose answer's date is this far from ours is signed again with the server's time. */
const SKEW_MS = 4 * 60_000;

/**
 * One request after the other to one bucket, tried again as `HttpClient` says. Every request carries the SHA-256 of its body in what is
 * signed, so the server refuses damaged bytes. Even a first attempt may be the second one for the server: see `exchange`.
 */
export class S3Client {
  readonly address: BucketAddress;
  readonly place: Place;
  readonly #options: S3ClientOptions;
  readonly #clock: Clock;
  readonly #signingKeys = new Map<string, ArrayBuffer>();
  readonly #http: HttpClient<HashedRequest, S3Refusal, AwsCredentials>;
  #region: Promise<string> | undefined;

  constructor(options: S3ClientOptions) {
    this.address = options.address;
    this.place = options.place;
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
    this.#http = new HttpClient(this.#dialect(), options);
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
    const payload = (await digestOf("sha256", request.body ?? new Uint8Array(0))).toString("hex");
    return await this.#http.send({ ...request, payload }, understand);
  }

  #dialect(): Dialect<HashedRequest, S3Refusal, AwsCredentials> {
    return {
      sign: async (request) => {
        const credentials = await this.#options.credentials.get(withSignal(request.signal));
        const signed = await this.#sign(request, credentials, await this.region());
        return { ...signed, used: credentials };
      },
      parseRefusal,
      isPassing,
      // A missing bucket must never look like a missing object, nor a wrong key like a missing permission.
      isAnswer: (refusal) => refusal.code !== "NoSuchBucket" && !isAboutSignature(refusal),
      refusalError: (refusal, request) => refusalError(refusal, this.about(request)),
      networkError: (cause, request, endpoint): BakeliteError =>
        networkError(cause, this.about(request), { endpoint, hints: NETWORK_HINTS }),
      correct: (request, answer, used, once, refusal) => this.#correct(request, answer, { used, once, refusal }),
      succeeded: () => {
        this.place.isSeen = true;
      },
      nowMs: () => this.nowMs(),
    };
  }

  /** Learns from a refusal what will make the next attempt different, once for each cause; false: nothing. */
  async #correct(
    request: S3Request,
    { headers, status }: S3Answer,
    {
      used,
      once,
      refusal,
    }: {
      readonly used: AwsCredentials;
      readonly once: (cause: string) => boolean;
      readonly refusal: S3Refusal;
    },
  ): Promise<boolean> {
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

  async #sign(
    request: HashedRequest,
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
      headers: { ...request.headers, "x-amz-content-sha256": request.payload },
      service: "s3",
      region,
      accessKeyId,
      secretAccessKey,
      ...(sessionToken === undefined ? {} : { sessionToken }),
      cache: this.#signingKeys,
      datetime,
    });
    const signed = await signer.sign();
    // What `exchange` adds is not signed: proxies change it.
    return { url, headers: signed.headers };
  }
}

function encodeQueryValue(value: string): string {
  return encodeURIComponent(value).replace(/[!'()*]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`);
}

function withSignal(signal: AbortSignal | undefined): { signal?: AbortSignal } {
  return signal === undefined ? {} : { signal };
}
