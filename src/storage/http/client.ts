import { backoffDelayMs } from "../../util/backoff.ts";
import { type Clock, systemClock } from "../../util/clock.ts";
import { delay } from "../../util/delay.ts";
import { BakeliteError } from "../../util/errors.ts";
import { abortError, throwIfAborted } from "../abort.ts";
import { exchange, type Fetch, isSuccess, type SignedRequest } from "./exchange.ts";
import type { Refusal } from "./refusal.ts";

export interface HttpClientOptions {
  /** A request that makes no progress for this long has failed. */
  readonly timeoutMs: number;
  /** How often a failed request is tried again. */
  readonly retries: number;
  /** Authorities to trust, as PEM; undefined: those that Bun trusts. Asked once. */
  readonly ca?: (() => Promise<string>) | undefined;
  readonly clock?: Clock;
  readonly random?: () => number;
  /** Instead of the global one. */
  readonly fetch?: Fetch;
  /** The first wait between tries is at most this; 200 ms. */
  readonly baseDelayMs?: number;
}

/** What every dialect's requests have. Where it goes, and how it is signed, is the dialect's. */
export interface HttpRequest {
  readonly method: "GET" | "HEAD" | "PUT" | "POST" | "DELETE";
  readonly body?: Uint8Array;
  readonly signal?: AbortSignal | undefined;
  /** Statuses besides 2xx that are answers for the caller; a passing failure is still tried again first. */
  readonly accept?: readonly number[];
  /** A larger answer is refused; `MAX_ANSWER_BYTES` by default. */
  readonly maxBytes?: number;
  /** Fewer than the client's: for what is only done as well as possible. */
  readonly retries?: number;
}

export interface HttpAnswer<F extends Refusal = Refusal> {
  readonly status: number;
  readonly headers: Headers;
  /** All of it. */
  readonly body: Uint8Array;
  /** For a status of `accept`; null for a success. */
  readonly refusal: F | null;
  /** The attempt that was answered so, from 1. From 2 on, an earlier one may have had its effect. */
  readonly attempt: number;
}

/** How one service is asked: `Q` its requests, `F` its refusals, `U` what a request was signed with. */
export interface Dialect<Q extends HttpRequest, F extends Refusal, U> {
  /** The request as it goes out now; called for each attempt. What it throws ends the call. */
  sign(request: Q): Promise<{ readonly url: string; readonly headers: Headers; readonly used: U }>;
  parseRefusal(status: number, headers: Headers, body: Uint8Array): F;
  /** The same request may succeed later. */
  isPassing(refusal: F): boolean;
  /** Of a refusal with an accepted status: it is about the object, and not a missing bucket or a wrong key. */
  isAnswer(refusal: F): boolean;
  refusalError(refusal: F, request: Q): BakeliteError;
  /** `origin` is the part of the URL that has no secret in it. */
  networkError(cause: unknown, request: Q, origin: string): BakeliteError;
  /**
   * Learns from a refusal what will make the next attempt different; false: nothing. `once(cause)` is true the first
   * time that it is asked about that cause within this call, so that nothing is corrected for ever.
   */
  correct(
    request: Q,
    answer: HttpAnswer<F>,
    used: U,
    once: (cause: string) => boolean,
    refusal: F,
  ): Promise<boolean> | boolean;
  /** A success was understood. */
  succeeded?(): void;
  /** The server's time, as far as it is known. */
  nowMs(): number;
}

const BASE_DELAY_MS = 200;
const MAX_DELAY_MS = 5000;
/** A server that asks for more patience gets so much. */
const MAX_RETRY_AFTER_MS = 20_000;
/** No attempt begins later than this and one `timeoutMs` after the first. */
const MAX_ELAPSED_MS = 30_000;

/**
 * Requests of one dialect: signed, with a deadline on silence, tried again where that may help (network failures, answers that were
 * cut short, 5xx, 429 and what the dialect calls passing), with full jitter and no sooner than Retry-After says. An answer is
 * read as a whole before it counts, so a cut one is tried again too.
 *
 * Retries are here and nowhere above, because the parts of a stream that cannot be read twice must be tried again one by one.
 */
export class HttpClient<Q extends HttpRequest, F extends Refusal, U> {
  readonly #dialect: Dialect<Q, F, U>;
  readonly #options: HttpClientOptions;
  readonly #clock: Clock;
  #ca: Promise<string> | undefined;

  constructor(dialect: Dialect<Q, F, U>, options: HttpClientOptions) {
    this.#dialect = dialect;
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
  }

  /**
   * What `understand` makes of the answer to a success, or to a status of `accept`. Throws what the last failure means.
   * A BakeliteError of `understand` counts as a failure of the request, so `storage-unreachable` is tried again.
   */
  async send<T>(request: Q, understand: (answer: HttpAnswer<F>) => T | Promise<T>): Promise<T> {
    const dialect = this.#dialect;
    const retries = Math.min(request.retries ?? this.#options.retries, this.#options.retries);
    const startMs = this.#clock.monotonicMs();
    const corrected = new Set<string>();
    const once = (cause: string): boolean => corrected.size < corrected.add(cause).size;
    let failureCount = 0;
    for (let attempt = 1; ; attempt++) {
      throwIfAborted(request.signal);
      const tried = await this.#attempt(request, attempt);
      let failure: BakeliteError;
      let retryAfterMs = 0;
      if ("error" in tried) {
        failure = tried.error;
      } else {
        const { answer, used } = tried;
        const { refusal } = answer;
        if (refusal !== null && (await dialect.correct(request, answer, used, once, refusal))) continue;
        if (refusal === null || this.#isAnswer(request, refusal)) {
          try {
            const value = await understand(answer);
            if (refusal === null) dialect.succeeded?.();
            return value;
          } catch (error) {
            failure = asFailure(error);
          }
        } else {
          failure = dialect.refusalError(refusal, request);
          if (!dialect.isPassing(refusal)) throw failure;
          retryAfterMs = parseRetryAfter(answer.headers, dialect.nowMs());
        }
      }
      failureCount++;
      if (failure.code !== "storage-unreachable" || failureCount > retries) throw failure;
      await this.#waitAfter(failure, { failureCount, startMs, retryAfterMs }, request.signal);
    }
  }

  #isAnswer(request: Q, refusal: F): boolean {
    if (request.accept?.includes(refusal.status) !== true) return false;
    return this.#dialect.isAnswer(refusal) && !this.#dialect.isPassing(refusal);
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

  async #attempt(
    request: Q,
    attempt: number,
  ): Promise<{ readonly answer: HttpAnswer<F>; readonly used: U } | { readonly error: BakeliteError }> {
    const { url, headers, used } = await this.#dialect.sign(request);
    const ca = await this.#authorities();
    const { method, body, signal, maxBytes } = request;
    const signed: SignedRequest = { method, url, headers, body, signal, maxBytes };
    try {
      const raw = await exchange(signed, { timeoutMs: this.#options.timeoutMs, ca, fetch: this.#options.fetch });
      const refusal = isSuccess(raw.status) ? null : this.#dialect.parseRefusal(raw.status, raw.headers, raw.body);
      return { answer: { ...raw, refusal, attempt }, used };
    } catch (error) {
      if (signal?.aborted) throw abortError(signal);
      return { error: this.#dialect.networkError(error, request, new URL(url).origin) };
    }
  }

  async #authorities(): Promise<string | undefined> {
    this.#ca ??= this.#options.ca?.();
    try {
      return await this.#ca;
    } catch (error) {
      this.#ca = undefined;
      throw error;
    }
  }
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
  // What does not come from a reader of answers, such as `malformedAnswer`, is a bug of ours, and not to be tried again.
  if (error instanceof BakeliteError) return error;
  throw error;
}
