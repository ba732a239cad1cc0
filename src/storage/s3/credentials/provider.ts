import { type Clock, systemClock } from "../../../util/clock.ts";
import { BakeliteError } from "../../../util/errors.ts";
import { orAborted, throwIfAborted } from "../../abort.ts";
import { findCredentials } from "./chain.ts";
import { chosenProfile, findProfile, readSharedFiles, variable } from "./shared-files.ts";
import type { AwsCredentials, CredentialsOptions } from "./types.ts";

// The one place to import from: only the files of this folder know types.ts, which keeps imports from going round.
export type { AwsCredentials, CredentialsOptions, ExplicitKeys } from "./types.ts";

export interface CredentialsCallOptions {
  /** Aborted: the call rejects as a call of a backend does. */
  readonly signal?: AbortSignal;
}

export interface RefreshOptions extends CredentialsCallOptions {
  /** The credentials that were refused. When others are at hand by now, those are given without asking again. */
  readonly refused?: AwsCredentials;
}

export interface CredentialsProvider {
  /** Credentials to sign with now. Cheap: they are kept, and renewed before they expire. */
  get(options?: CredentialsCallOptions): Promise<AwsCredentials>;
  /**
   * After a destination refused them as expired or unknown: looks again, even if they should still be good. Gives what it
   * finds, the same or not; a caller tries once with it. Sources are asked at most every few seconds, however often this is
   * called.
   */
  refresh(options?: RefreshOptions): Promise<AwsCredentials>;
  /** Where they come from, for messages: `the environment`, `profile "backup" in /root/.aws/credentials`. */
  readonly source: string;
}

/** AWS makes new credentials available at least this long before the old ones expire. */
const RENEW_BEFORE_MS = 5 * 60_000;
/** Hosts that started together must not all ask in one moment, so some ask up to this much later. */
const RENEW_JITTER_MS = 60_000;
/** Credentials that live shortly are renewed in the last fifth of their life, rather than at once. */
const RENEW_SHARE = 0.2;
/** After a failed renewal, or one that gave the same credentials: up to twice this. */
const RENEW_AGAIN_MS = 15_000;
/** With less left, a call waits for the renewal: a request that is signed now should still be valid on arrival. */
const NEARLY_EXPIRED_MS = 30_000;
/** `refresh` asks no more often. */
const REFRESH_PAUSE_MS = 5000;

/** A provider that looks in AWS's usual order, as `findCredentials` says. Nothing is read or asked before the first call. */
export function openCredentials(options: CredentialsOptions): CredentialsProvider {
  return new CachedCredentials(options);
}

/**
 * AWS_REGION, AWS_DEFAULT_REGION, or the region of the profile in AWS's shared files, which are read as `readSharedFiles`
 * says; undefined when none says so. That a profile does not exist is for who needs its credentials to say.
 */
export async function regionFromEnvironment(options: CredentialsOptions): Promise<string | undefined> {
  const region = variable(options, "AWS_REGION") ?? variable(options, "AWS_DEFAULT_REGION");
  if (region !== undefined) return region;
  return findProfile(await readSharedFiles(options), chosenProfile(options).name)?.setting("region");
}

/** Credentials as they were found. */
interface Held {
  readonly credentials: AwsCredentials;
  readonly source: string;
  /** Unix time from which a renewal is due; null: never. */
  readonly renewFromMs: number | null;
}

/** A search that goes on, and how many wait for it. */
interface Search {
  readonly found: Promise<AwsCredentials>;
  readonly stop: AbortController;
  waiterCount: number;
  /** Nobody has to wait for it: what we have is still good. */
  readonly isAhead: boolean;
}

class CachedCredentials implements CredentialsProvider {
  readonly #options: CredentialsOptions;
  readonly #clock: Clock;
  readonly #random: () => number;
  #held: Held | undefined;
  #search: Search | undefined;
  /** By the monotonic clock; undefined before the first search that found something. */
  #foundAtMs: number | undefined;

  constructor(options: CredentialsOptions) {
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
    this.#random = options.random ?? Math.random;
  }

  get source(): string {
    return this.#held?.source ?? "not looked for yet";
  }

  async get({ signal }: CredentialsCallOptions = {}): Promise<AwsCredentials> {
    throwIfAborted(signal);
    const held = this.#held;
    if (held === undefined) return await this.#wait(this.#startSearch(false), signal);
    const nowMs = this.#clock.nowMs();
    if (held.renewFromMs === null || nowMs < held.renewFromMs) return held.credentials;
    const restMs = (held.credentials.expiresMs ?? Number.POSITIVE_INFINITY) - nowMs;
    const search = this.#startSearch(restMs > NEARLY_EXPIRED_MS);
    if (restMs > NEARLY_EXPIRED_MS) return held.credentials;
    try {
      return await this.#wait(search, signal);
    } catch (error) {
      throwIfAborted(signal);
      // Good for another moment; the next call tries again, no sooner than `renewFromMs` says.
      if (this.#isGood(held)) return held.credentials;
      throw error;
    }
  }

  async refresh({ refused, signal }: RefreshOptions = {}): Promise<AwsCredentials> {
    throwIfAborted(signal);
    const held = this.#held;
    const isOther = refused !== undefined && held !== undefined && !isSame(held.credentials, refused);
    const isRecent = this.#foundAtMs !== undefined && this.#clock.monotonicMs() - this.#foundAtMs < REFRESH_PAUSE_MS;
    if (held !== undefined && (isOther || isRecent)) return held.credentials;
    return await this.#wait(this.#startSearch(false), signal);
  }

  #isGood({ credentials: { expiresMs } }: Held): boolean {
    return expiresMs === null || this.#clock.nowMs() < expiresMs;
  }

  /** The search that is under way, or a new one: whoever comes while one goes on shares it. */
  #startSearch(isAhead: boolean): Search {
    if (this.#search !== undefined) return this.#search;
    const stop = new AbortController();
    const found = this.#find(stop.signal);
    const search: Search = { found, stop, waiterCount: 0, isAhead };
    this.#search = search;
    const over = () => {
      if (this.#search === search) this.#search = undefined;
    };
    // A failure is told to those who wait. Ahead of time there may be nobody, and a later call tries again.
    found.then(over, over);
    return search;
  }

  async #find(signal: AbortSignal): Promise<AwsCredentials> {
    const lastSource = this.#held?.source;
    try {
      const { credentials, source } = await findCredentials(this.#options, { signal, lastSource });
      signal.throwIfAborted();
      this.#held = { credentials, source, renewFromMs: this.#renewalOf(credentials) };
      this.#foundAtMs = this.#clock.monotonicMs();
      return credentials;
    } catch (error) {
      // An abort says nothing about the source.
      if (!signal.aborted && this.#held !== undefined && this.#held.renewFromMs !== null) {
        this.#held = { ...this.#held, renewFromMs: this.#nextTryMs(this.#held.credentials) };
      }
      throw asOurs(error);
    }
  }

  /**
   * Credentials that come expired are kept all the same: the clock may be wrong, and AWS stretches their life when its own
   * service is down. Their destination will say.
   */
  #renewalOf({ expiresMs }: AwsCredentials): number | null {
    if (expiresMs === null) return null;
    const lifeMs = expiresMs - this.#clock.nowMs();
    const aheadMs = Math.min(RENEW_BEFORE_MS - this.#random() * RENEW_JITTER_MS, lifeMs * RENEW_SHARE);
    return Math.max(expiresMs - aheadMs, this.#soonMs());
  }

  /** After a failure: soon, but at once when the credentials that we have are no longer good. */
  #nextTryMs({ expiresMs }: AwsCredentials): number {
    return Math.min(this.#soonMs(), expiresMs ?? Number.POSITIVE_INFINITY);
  }

  #soonMs(): number {
    return this.#clock.nowMs() + RENEW_AGAIN_MS * (1 + this.#random());
  }

  /** Waits for a search, which is stopped when the last one who waits for it leaves. */
  async #wait(search: Search, signal: AbortSignal | undefined): Promise<AwsCredentials> {
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
}

function isSame(one: AwsCredentials, other: AwsCredentials): boolean {
  const names = ["accessKeyId", "secretAccessKey", "sessionToken"] as const;
  return names.every((name) => one[name] === other[name]);
}

/** What is none of our errors is a bug; its message may hold anything, so it goes no further. */
function asOurs(error: unknown): BakeliteError {
  if (error instanceof BakeliteError) return error;
  const name = error instanceof Error ? error.name : typeof error;
  return new BakeliteError("internal", `looking for AWS credentials failed unexpectedly (${name})`);
}
