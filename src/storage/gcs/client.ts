import { z } from "zod";
import { backoffDelayMs } from "../../util/backoff.ts";
import { type Clock, systemClock } from "../../util/clock.ts";
import { delay } from "../../util/delay.ts";
import { assert } from "../../util/errors.ts";
import { abortError } from "../abort.ts";
import { type Dialect, type HttpAnswer, HttpClient, type HttpClientOptions, type HttpRequest } from "../http/client.ts";
import { networkError, type Refusal } from "../http/refusal.ts";
import type { GcsCredentials } from "./credentials/provider.ts";
import type { AccessToken } from "./credentials/types.ts";
import {
  type Doing,
  isMissingBucket,
  isPassing,
  malformedAnswer,
  NETWORK_HINTS,
  parseRefusal,
  refusalError,
} from "./errors.ts";
import { parseJson } from "./json.ts";
import type { Place } from "./place.ts";

export interface GcsClientOptions extends HttpClientOptions {
  /** URL of the server, without a slash at its end. */
  readonly base: string;
  readonly bucket: string;
  readonly place: Place;
  readonly credentials: GcsCredentials;
}

export interface GcsRequest extends HttpRequest {
  /**
   * "object", "objects" and "bucket" of the JSON API, "upload" of its part for uploads; or the URI of an upload session, which
   * authorizes by itself and is sent no token.
   */
  readonly at: "object" | "objects" | "bucket" | "permissions" | "upload" | { readonly session: string };
  /** The whole name, with the destination's prefix. */
  readonly key?: string;
  readonly query?: Readonly<Record<string, string | readonly string[]>>;
  /** Lower-case names. */
  readonly headers?: Readonly<Record<string, string>>;
  /** Completes "cannot …". */
  readonly doing: string;
  /** The permission that it takes. */
  readonly permission: string;
}

const BASE_DELAY_MS = 200;
const MAX_DELAY_MS = 5000;

export type GcsAnswer = HttpAnswer<Refusal>;

/**
 * Requests to one bucket by the JSON API, tried again as `HttpClient` says. The JSON API and not the XML one: it has the
 * precondition on every kind of upload, checks CRC-32C as part of the metadata, names its errors, and lists from a name on.
 * A refused token is renewed once for each request.
 * Source: https://cloud.google.com/storage/docs/json_api/v1
 */
export class GcsClient {
  readonly bucket: string;
  readonly base: string;
  readonly place: Place;
  readonly retries: number;
  readonly #baseDelayMs: number;
  readonly #credentials: GcsCredentials;
  readonly #clock: Clock;
  readonly #http: HttpClient<GcsRequest, Refusal, AccessToken | null>;

  constructor(options: GcsClientOptions) {
    this.bucket = options.bucket;
    this.base = options.base;
    this.place = options.place;
    this.retries = options.retries;
    this.#baseDelayMs = options.baseDelayMs ?? BASE_DELAY_MS;
    this.#credentials = options.credentials;
    this.#clock = options.clock ?? systemClock;
    this.#http = new HttpClient(this.#dialect(), options);
  }

  nowMs(): number {
    return this.#clock.nowMs();
  }

  about({ doing, permission, key }: Pick<GcsRequest, "doing" | "permission" | "key">): Doing {
    const credentials = this.#credentials;
    return {
      doing,
      permission,
      subject: `gs://${this.bucket}${key === undefined ? "" : `/${key}`}`,
      // Known once they were looked for.
      get credentialSource() {
        return credentials.source;
      },
    };
  }

  /** Before what is tried again by other means than the same request. */
  async waitAfter(failureCount: number, signal: AbortSignal | undefined): Promise<void> {
    try {
      await delay(backoffDelayMs(failureCount, { baseMs: this.#baseDelayMs, capMs: MAX_DELAY_MS }), signal);
    } catch (cause) {
      throw signal === undefined ? cause : abortError(signal);
    }
  }

  /** The answer to a success, or to a status of `accept`. Throws what the last failure means. */
  async send(request: GcsRequest): Promise<GcsAnswer> {
    this.#check(request);
    return await this.#http.send(request, (answer) => answer);
  }

  /** The same for a success with a JSON body of that shape; null for a status of `accept`. What is not that is tried again. */
  async sendForJson<T>(
    request: GcsRequest,
    schema: z.ZodType<T>,
  ): Promise<{ readonly value: T; readonly answer: GcsAnswer } | { readonly value: null; readonly answer: GcsAnswer }> {
    this.#check(request);
    return await this.#http.send(request, (answer) => {
      if (answer.refusal !== null) return { value: null, answer };
      return { value: this.parse(answer.body, schema, request), answer };
    });
  }

  /** Throws `malformedAnswer`. */
  parse<T>(body: Uint8Array, schema: z.ZodType<T>, request: Pick<GcsRequest, "doing" | "permission" | "key">): T {
    const found = schema.safeParse(parseJson(body));
    if (found.success) return found.data;
    throw malformedAnswer(this.about(request), z.prettifyError(found.error));
  }

  #check({ method, query = {} }: GcsRequest): void {
    // What a bucket keeps beyond the newest generation is never touched: a deletion may be bound to one, never name one.
    assert(method !== "DELETE" || !("generation" in query), "no deletion names a generation");
  }

  #dialect(): Dialect<GcsRequest, Refusal, AccessToken | null> {
    return {
      sign: async (request) => {
        const headers = new Headers(request.headers);
        if (typeof request.at === "object") return { url: request.at.session, headers, used: null };
        const used = await this.#credentials.get(request.signal);
        headers.set("authorization", `Bearer ${used.token}`);
        return { url: this.#urlOf(request.at, request), headers, used };
      },
      parseRefusal,
      isPassing,
      // A missing bucket must never look like a missing object.
      isAnswer: (refusal) => !isMissingBucket(refusal),
      refusalError: (refusal, request) => refusalError(refusal, this.about(request)),
      networkError: (cause, request, endpoint) =>
        networkError(cause, this.about(request), { endpoint, hints: NETWORK_HINTS }),
      correct: async (request, answer, used, once) => {
        if (answer.status !== 401 || used === null || !once("token")) return false;
        await this.#credentials.refresh({ refused: used, signal: request.signal });
        return true;
      },
      succeeded: () => {
        this.place.isSeen = true;
      },
      nowMs: () => this.#clock.nowMs(),
    };
  }

  #urlOf(at: Exclude<GcsRequest["at"], object>, { key, query = {} }: GcsRequest): string {
    const bucket = `/storage/v1/b/${encodeURIComponent(this.bucket)}`;
    const path = {
      object: `${bucket}/o/${encodeSegment(key ?? "")}`,
      objects: `${bucket}/o`,
      bucket,
      permissions: `${bucket}/iam/testPermissions`,
      upload: `/upload${bucket}/o`,
    }[at];
    const pairs = Object.entries(query).flatMap(([name, value]) =>
      (typeof value === "string" ? [value] : value).map((each) => `${name}=${encodeSegment(each)}`),
    );
    return `${this.base}${path}${pairs.length === 0 ? "" : `?${pairs.join("&")}`}`;
  }
}

/** Everything but unreserved characters, slashes too. Source: https://cloud.google.com/storage/docs/request-endpoints#encoding */
function encodeSegment(text: string): string {
  return encodeURIComponent(text).replace(/[!'()*]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`);
}
