import { backoffDelayMs } from "../util/backoff.ts";
import { type Clock, systemClock } from "../util/clock.ts";
import { delay } from "../util/delay.ts";
import { BakeliteError } from "../util/errors.ts";
import { abortError, throwIfAborted } from "./abort.ts";
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
} from "./backend.ts";

export interface RetryPolicy {
  /** How often a failed call is tried again; 0: never. */
  readonly retries: number;
  /** Upper bound of the first wait; it doubles with each failure, up to `capMs`. */
  readonly baseMs: number;
  readonly capMs: number;
  /** No further attempt begins later than this after the first; progress in a stream or a listing starts it anew. */
  readonly maxElapsedMs: number;
  readonly random?: () => number;
  readonly clock?: Clock;
  /** News for the floor above, before each wait. */
  readonly onRetry?: (retry: {
    readonly verb: string;
    readonly error: BakeliteError;
    readonly delayMs: number;
  }) => void;
}

/**
 * Tries again what failed with `storage-unreachable`, and nothing else: any other failure would come back. Waits are
 * exponential with full jitter. A put is retried when its body is replayable. A stream that breaks goes on from the byte
 * where it stopped, which is right because objects are immutable, and the few that are replaced carry checksums of their
 * own. A listing goes on after the last key that it gave.
 *
 * A put with `ifAbsent` whose answer was lost meets its own object when it is tried again, and then says "exists" as if
 * another writer had been there. So "exists" is no proof of a stranger: compare the stored object with the bytes you have.
 */
export function withRetry(backend: Backend, policy: RetryPolicy): Backend {
  return new RetryingBackend(backend, policy);
}

class RetryingBackend implements Backend {
  readonly #inner: Backend;
  readonly #policy: RetryPolicy;

  constructor(inner: Backend, policy: RetryPolicy) {
    this.#inner = inner;
    this.#policy = policy;
  }

  get location(): string {
    return this.#inner.location;
  }

  get capabilities(): BackendCapabilities {
    return this.#inner.capabilities;
  }

  /** Without retries of ours: what is looked up here, and what is aborted, can be asked for again. */
  get unlisted(): UnlistedStorage | undefined {
    return this.#inner.unlisted;
  }

  async diagnose(options: CallOptions = {}): Promise<readonly Diagnosis[]> {
    return (await this.#retrying("diagnose", options, async () => this.#inner.diagnose?.(options))) ?? [];
  }

  async put(key: string, body: ByteSource, options: PutOptions = {}): Promise<"stored" | "exists"> {
    if (!body.replayable) return await this.#inner.put(key, body, options);
    return await this.#retrying("put", options, () => this.#inner.put(key, body, options));
  }

  async get(key: string, options: GetOptions = {}): Promise<ByteStream | null> {
    const stream = await this.#retrying("get", options, () => this.#inner.get(key, options));
    return stream === null ? null : this.#resuming(key, stream, options);
  }

  async stat(key: string, options: CallOptions = {}): Promise<StoredObject | null> {
    return await this.#retrying("stat", options, () => this.#inner.stat(key, options));
  }

  async *list(prefix: string, options: ListOptions = {}): AsyncGenerator<StoredObject, void> {
    const attempts = new Attempts("list", this.#policy, options.signal);
    let position = options;
    for (;;) {
      try {
        for await (const object of this.#inner.list(prefix, position)) {
          position = { ...options, startAfter: object.key };
          attempts.progressed();
          yield object;
        }
        return;
      } catch (error) {
        await attempts.waitAfter(error);
      }
    }
  }

  async delete(keys: readonly string[], options: CallOptions = {}): Promise<void> {
    await this.#retrying("delete", options, () => this.#inner.delete(keys, options));
  }

  async #retrying<T>(verb: string, { signal }: CallOptions, call: () => Promise<T>): Promise<T> {
    const attempts = new Attempts(verb, this.#policy, signal);
    for (;;) {
      try {
        return await call();
      } catch (error) {
        await attempts.waitAfter(error);
      }
    }
  }

  async *#resuming(key: string, first: ByteStream, options: GetOptions): AsyncGenerator<Uint8Array, void> {
    const attempts = new Attempts("get", this.#policy, options.signal);
    let receivedBytes = 0;
    let stream = first;
    for (;;) {
      try {
        for await (const piece of stream) {
          receivedBytes += piece.byteLength;
          attempts.progressed();
          yield piece;
        }
        return;
      } catch (error) {
        await attempts.waitAfter(error);
      }
      stream = await this.#reopen(key, options, receivedBytes);
    }
  }

  /** The rest of a stream after `receivedBytes`. An end counted from the object's end needs the object's size first. */
  async #reopen(key: string, options: GetOptions, receivedBytes: number): Promise<ByteStream> {
    if (receivedBytes === 0) return this.#present(key, await this.#retryingGet(key, options));
    const range: ByteRange = options.range ?? { start: 0 };
    let start = range.start;
    if (start < 0) {
      const object = this.#present(key, await this.stat(key, options));
      start = Math.max(0, object.sizeBytes + start);
    }
    const rest = { ...range, start: start + receivedBytes };
    return this.#present(key, await this.#retryingGet(key, { ...options, range: rest }));
  }

  #retryingGet(key: string, options: GetOptions): Promise<ByteStream | null> {
    return this.#retrying("get", options, () => this.#inner.get(key, options));
  }

  #present<T>(key: string, found: T | null): T {
    if (found !== null) return found;
    throw new BakeliteError("replica-missing", "cannot read the object: it was deleted while it was read", {
      subject: `${this.location}/${key}`,
      hint: "run the command again; if it comes back, run `bakelite verify` to see what is missing",
    });
  }
}

/** Counts the failures of one call and waits between its attempts. */
class Attempts {
  readonly #verb: string;
  readonly #policy: RetryPolicy;
  readonly #signal: AbortSignal | undefined;
  readonly #clock: Clock;
  #failureCount = 0;
  #startMs: number;

  constructor(verb: string, policy: RetryPolicy, signal: AbortSignal | undefined) {
    this.#verb = verb;
    this.#policy = policy;
    this.#signal = signal;
    this.#clock = policy.clock ?? systemClock;
    this.#startMs = this.#clock.monotonicMs();
  }

  progressed(): void {
    if (this.#failureCount === 0) return;
    this.#failureCount = 0;
    this.#startMs = this.#clock.monotonicMs();
  }

  /** Resolves when the next attempt is due, or throws `error` when there is none. */
  async waitAfter(error: unknown): Promise<void> {
    throwIfAborted(this.#signal);
    if (!(error instanceof BakeliteError) || error.code !== "storage-unreachable") throw error;
    this.#failureCount++;
    if (this.#failureCount > this.#policy.retries) throw error;
    const delayMs = backoffDelayMs(this.#failureCount, this.#policy);
    if (this.#clock.monotonicMs() - this.#startMs + delayMs > this.#policy.maxElapsedMs) throw error;
    this.#policy.onRetry?.({ verb: this.#verb, error, delayMs });
    try {
      await delay(delayMs, this.#signal);
    } catch (cause) {
      throw this.#signal === undefined ? cause : abortError(this.#signal);
    }
  }
}
