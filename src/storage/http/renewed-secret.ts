import { type Clock, systemClock } from "../../util/clock.ts";
import { BakeliteError } from "../../util/errors.ts";
import { orAborted, throwIfAborted } from "../abort.ts";

/** `expiresMs` is Unix time; null for what does not expire, or does not say when. */
export interface Expiring {
  readonly expiresMs: number | null;
}

export interface RenewedSecretOptions<T extends Expiring> {
  /** Looks for one; `lastSource` is where the last one came from. `source` is for messages, without a secret in it. */
  readonly find: (how: {
    readonly signal: AbortSignal;
    readonly lastSource: string | undefined;
  }) => Promise<{ readonly secret: T; readonly source: string }>;
  readonly isSame: (one: T, other: T) => boolean;
  /** Completes "looking for … failed". */
  readonly what: string;
  readonly clock?: Clock | undefined;
  /** From 0 up to but not including 1; `Math.random` by default. */
  readonly random?: (() => number) | undefined;
}

/** AWS and Azure make new ones available at least this long before the old ones expire. */
const RENEW_BEFORE_MS = 5 * 60_000;
/** Hosts that started together must not all ask in one moment, so some ask up to this much later. */
const RENEW_JITTER_MS = 60_000;
/** What lives shortly is renewed in the last fifth of its life, rather than at once. */
const RENEW_SHARE = 0.2;
/** After a failed renewal, or one that gave the same secret: up to twice this. */
const RENEW_AGAIN_MS = 15_000;
/** With less left, a call waits for the renewal: a request that is signed now should still be valid on arrival. */
const NEARLY_EXPIRED_MS = 30_000;
/** `refresh` asks no more often. */
const REFRESH_PAUSE_MS = 5000;

/** What was found. */
interface Held<T> {
  readonly secret: T;
  readonly source: string;
  /** Unix time from which a renewal is due; null: never. */
  readonly renewFromMs: number | null;
}

/** A search that goes on, and how many wait for it. */
interface Search<T> {
  readonly found: Promise<T>;
  readonly stop: AbortController;
  waiterCount: number;
  /** Nobody has to wait for it: what we have is still good. */
  readonly isAhead: boolean;
}

/**
 * A secret that is kept and renewed before it expires: in the background while what we have is good, and whoever comes
 * while one search goes on shares it.
 */
export class RenewedSecret<T extends Expiring> {
  readonly #options: RenewedSecretOptions<T>;
  readonly #clock: Clock;
  readonly #random: () => number;
  #held: Held<T> | undefined;
  #search: Search<T> | undefined;
  /** By the monotonic clock; undefined before the first search that found something. */
  #foundAtMs: number | undefined;

  constructor(options: RenewedSecretOptions<T>) {
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
    this.#random = options.random ?? Math.random;
  }

  /** Where it comes from, for messages: `the environment`. */
  get source(): string {
    return this.#held?.source ?? "not looked for yet";
  }

  /** What to sign with now. Cheap: it is kept, and renewed before it expires. */
  async get(signal?: AbortSignal): Promise<T> {
    throwIfAborted(signal);
    const held = this.#held;
    if (held === undefined) return await this.#wait(this.#startSearch(false), signal);
    const nowMs = this.#clock.nowMs();
    if (held.renewFromMs === null || nowMs < held.renewFromMs) return held.secret;
    const restMs = (held.secret.expiresMs ?? Number.POSITIVE_INFINITY) - nowMs;
    const search = this.#startSearch(restMs > NEARLY_EXPIRED_MS);
    if (restMs > NEARLY_EXPIRED_MS) return held.secret;
    try {
      return await this.#wait(search, signal);
    } catch (error) {
      throwIfAborted(signal);
      // Good for another moment; the next call tries again, no sooner than `renewFromMs` says.
      if (this.#isGood(held)) return held.secret;
      throw error;
    }
  }

  /**
   * After a destination refused it: looks again, even if it should still be good. Gives what it finds, the same or not. Sources are
   * asked at most every few seconds, however often this is called; when another secret than `refused` is at hand by now,
   * that one is given without asking.
   */
  async refresh({
    refused,
    signal,
  }: {
    readonly refused?: T | undefined;
    readonly signal?: AbortSignal | undefined;
  } = {}): Promise<T> {
    throwIfAborted(signal);
    const held = this.#held;
    const isOther = refused !== undefined && held !== undefined && !this.#options.isSame(held.secret, refused);
    const isRecent = this.#foundAtMs !== undefined && this.#clock.monotonicMs() - this.#foundAtMs < REFRESH_PAUSE_MS;
    if (held !== undefined && (isOther || isRecent)) return held.secret;
    return await this.#wait(this.#startSearch(false), signal);
  }

  #isGood({ secret: { expiresMs } }: Held<T>): boolean {
    return expiresMs === null || this.#clock.nowMs() < expiresMs;
  }

  /** The search that is under way, or a new one: whoever comes while one goes on shares it. */
  #startSearch(isAhead: boolean): Search<T> {
    if (this.#search !== undefined) return this.#search;
    const stop = new AbortController();
    const found = this.#find(stop.signal);
    const search: Search<T> = { found, stop, waiterCount: 0, isAhead };
    this.#search = search;
    const over = () => {
      if (this.#search === search) this.#search = undefined;
    };
    // A failure is told to those who wait. Ahead of time there may be nobody, and a later call tries again.
    found.then(over, over);
    return search;
  }

  async #find(signal: AbortSignal): Promise<T> {
    const lastSource = this.#held?.source;
    try {
      const { secret, source } = await this.#options.find({ signal, lastSource });
      signal.throwIfAborted();
      this.#held = { secret, source, renewFromMs: this.#renewalOf(secret) };
      this.#foundAtMs = this.#clock.monotonicMs();
      return secret;
    } catch (error) {
      // An abort says nothing about the source.
      if (!signal.aborted && this.#held !== undefined && this.#held.renewFromMs !== null) {
        this.#held = { ...this.#held, renewFromMs: this.#nextTryMs(this.#held.secret) };
      }
      throw this.#asOurs(error);
    }
  }

  /**
   * What comes expired is kept all the same: the clock may be wrong, and AWS stretches the life of credentials when its own
   * service is down. The destination will say.
   */
  #renewalOf({ expiresMs }: T): number | null {
    if (expiresMs === null) return null;
    const lifeMs = expiresMs - this.#clock.nowMs();
    const aheadMs = Math.min(RENEW_BEFORE_MS - this.#random() * RENEW_JITTER_MS, lifeMs * RENEW_SHARE);
    return Math.max(expiresMs - aheadMs, this.#soonMs());
  }

  /** After a failure: soon, but at once when the credentials that we have are no longer good. */
  #nextTryMs({ expiresMs }: T): number {
    return Math.min(this.#soonMs(), expiresMs ?? Number.POSITIVE_INFINITY);
  }

  #soonMs(): number {
    return this.#clock.nowMs() + RENEW_AGAIN_MS * (1 + this.#random());
  }

  /** Waits for a search, which is stopped when the last one who waits for it leaves. */
  async #wait(search: Search<T>, signal: AbortSignal | undefined): Promise<T> {
    search.waiterCount++;
    try {
      return await orAborted(search.found, signal);
    } finally {
      search.waiterCount--;
      if (signal?.aborted && search.waiterCount === 0 && !search.isAhead && this.#search === search) {
        this.#search = undefined;
        search.stop.abort();
      }
    }
  }

  /** What is none of our errors is a bug; its message may hold anything, so it goes no further. */
  #asOurs(error: unknown): BakeliteError {
    if (error instanceof BakeliteError) return error;
    const name = error instanceof Error ? error.name : typeof error;
    return new BakeliteError("internal", `looking for ${this.#options.what} failed unexpectedly (${name})`);
  }
}
