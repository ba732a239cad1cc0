import { type Clock, systemClock } from "../../util/clock.ts";
import { describeError } from "../../util/errors.ts";
import { type Dialect, type HttpAnswer, HttpClient, type HttpClientOptions, type HttpRequest } from "../http/client.ts";
import { networkError, type Refusal } from "../http/refusal.ts";
import { parseXml, type XmlNode } from "../http/xml.ts";
import { blobUrl, type ContainerAddress, locationOf, type Query } from "./address.ts";
import { type AzureCredentials, type CredentialsProvider, isSame } from "./credentials.ts";
import {
  type Doing,
  isAboutCredentials,
  isPassing,
  malformedAnswer,
  NETWORK_HINTS,
  parseRefusal,
  refusalError,
} from "./errors.ts";
import type { Place } from "./place.ts";
import { sharedKeyAuthorization } from "./shared-key.ts";

export interface AzureClientOptions extends HttpClientOptions {
  readonly address: ContainerAddress;
  readonly place: Place;
  readonly credentials: CredentialsProvider;
}

export interface AzureRequest extends HttpRequest {
  /** A blob by its whole name; undefined: the container, or the account's service. */
  readonly key?: string;
  /** Instead of the container. */
  readonly isOfService?: boolean;
  readonly query?: Query;
  /** Lower-case names. */
  readonly headers?: Readonly<Record<string, string>>;
  /** Completes "cannot …". */
  readonly doing: string;
  /** What the credentials must allow. */
  readonly permission: string;
}

export type AzureAnswer = HttpAnswer<Refusal>;

/**
 * What requests and answers look like. New enough for cold tiers, ranges with checksums and names that XML cannot hold; old enough for the
 * emulator. Source: https://learn.microsoft.com/en-us/rest/api/storageservices/versioning-for-the-azure-storage-services
 */
export const API_VERSION = "2024-11-04";

/** A refused request whose answer's date is this far from ours is signed again with the server's time; Azure allows 15 min. */
const SKEW_MS = 4 * 60_000;
/** What says that a blob is not there, and neither that its container is not. */
const NO_BLOB = new Set(["BlobNotFound", "ResourceNotFound", ""]);

/** Requests to one container, signed with what `credentials` gives, and tried again as `HttpClient` says. */
export class AzureClient {
  readonly address: ContainerAddress;
  readonly place: Place;
  readonly #credentials: CredentialsProvider;
  readonly #clock: Clock;
  readonly #http: HttpClient<AzureRequest, Refusal, AzureCredentials>;

  constructor(options: AzureClientOptions) {
    this.address = options.address;
    this.place = options.place;
    this.#credentials = options.credentials;
    this.#clock = options.clock ?? systemClock;
    this.#http = new HttpClient(this.#dialect(), options);
  }

  get credentialSource(): string {
    return this.#credentials.source;
  }

  /** The server's time, as far as it is known. */
  nowMs(): number {
    return this.#clock.nowMs() + this.place.clockOffsetMs;
  }

  /** Our clock as it is, without what was learnt of the server's. */
  ownNowMs(): number {
    return this.#clock.nowMs();
  }

  about(request: Pick<AzureRequest, "doing" | "permission" | "key">): Doing {
    const credentials = this.#credentials;
    return {
      doing: request.doing,
      permission: request.permission,
      subject: locationOf(this.address, request.key ?? ""),
      // Known once they were looked for.
      get credentialSource() {
        return credentials.source;
      },
    };
  }

  /**
   * The answer to a success, or to a status of `accept`. Throws what the last failure means; what `check` throws counts as one, so
   * `storage-unreachable` is tried again.
   */
  async send(request: AzureRequest, check?: (answer: AzureAnswer) => Promise<void>): Promise<AzureAnswer> {
    return await this.#http.send(request, async (answer) => {
      await check?.(answer);
      return answer;
    });
  }

  /** The same, and what `read` makes of the XML of a success whose root is `rootName`; null for a status of `accept`. */
  async sendForXml<T>(
    request: AzureRequest,
    rootName: string,
    read: (root: XmlNode, answer: AzureAnswer) => T,
  ): Promise<{ readonly value: T | null; readonly answer: AzureAnswer }> {
    return await this.#http.send(request, (answer) => {
      if (answer.refusal !== null) return { value: null, answer };
      try {
        // Azure puts a byte order mark in front.
        const { rootName: found, root } = parseXml(new TextDecoder("utf-8").decode(answer.body));
        if (found !== rootName) throw new Error(`<${found.slice(0, 100)}> in place of <${rootName}>`);
        return { value: read(root, answer), answer };
      } catch (error) {
        throw malformedAnswer(this.about(request), describeError(error));
      }
    });
  }

  #dialect(): Dialect<AzureRequest, Refusal, AzureCredentials> {
    return {
      sign: async (request) => {
        const credentials = await this.#credentials.get(request.signal);
        return { ...this.#sign(request, credentials), used: credentials };
      },
      parseRefusal,
      isPassing,
      // A missing container must never look like a missing blob, nor a wrong key like a missing permission.
      isAnswer: (refusal) => (refusal.status !== 404 || NO_BLOB.has(refusal.code)) && !isAboutCredentials(refusal),
      refusalError: (refusal, request) => refusalError(refusal, this.about(request)),
      networkError: (cause, request, endpoint) =>
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
    { signal }: AzureRequest,
    { headers }: AzureAnswer,
    {
      used,
      once,
      refusal,
    }: {
      readonly used: AzureCredentials;
      readonly once: (cause: string) => boolean;
      readonly refusal: Refusal;
    },
  ): Promise<boolean> {
    if (!isAboutCredentials(refusal)) return false;
    const serverMs = Date.parse(headers.get("date") ?? "");
    if (Math.abs(serverMs - this.nowMs()) > SKEW_MS && once("clock")) {
      this.place.clockOffsetMs = serverMs - this.#clock.nowMs();
      return true;
    }
    if (!once("credentials")) return false;
    // A file that still holds the same need not be tried again.
    return !isSame(await this.#credentials.refresh({ refused: used, signal }), used);
  }

  #sign(request: AzureRequest, credentials: AzureCredentials): { readonly url: string; readonly headers: Headers } {
    const of =
      request.key !== undefined ? { key: request.key } : request.isOfService === true ? "service" : "container";
    const url = blobUrl(this.address, of, request.query);
    const headers = new Headers({
      ...request.headers,
      "x-ms-version": API_VERSION,
      // A clock that was wrong is put right by the offset, not by a second look at the server's.
      "x-ms-date": new Date(this.nowMs()).toUTCString(),
      ...(request.body === undefined ? {} : { "content-type": "application/octet-stream" }),
    });
    switch (credentials.kind) {
      case "shared-key": {
        const contentBytes = request.body?.byteLength ?? 0;
        const signable = { method: request.method, url, headers, contentBytes };
        headers.set(
          "authorization",
          sharedKeyAuthorization(signable, { account: this.address.account, key: credentials.key }),
        );
        return { url: url.href, headers };
      }
      case "bearer":
        headers.set("authorization", `Bearer ${credentials.token}`);
        return { url: url.href, headers };
      case "sas":
        // As it was given: its signature is over decoded fields, but some of them are picky about how they are encoded.
        return { url: `${url.href}${url.search === "" ? "?" : "&"}${credentials.query}`, headers };
    }
  }
}
