import { type Clock, systemClock } from "./clock.ts";
import { delay } from "./delay.ts";

export interface TokenBucketOptions {
  readonly clock?: Clock;
  /** Waits; rejects with the signal's reason when aborted. `delay` by default. */
  readonly sleep?: (ms: number, signal?: AbortSignal) => Promise<void>;
}

/** What may be taken at once after a pause: so much of a second's worth, and at least this. */
const BURST_MS = 1000;
const LEAST_BURST_BYTES = 64 * 1024;
/** What one taker gets before the next one has its turn. */
const TURN_BYTES = 64 * 1024;
/** No wait is longer: the rate may be raised meanwhile. */
const LONGEST_WAIT_MS = 250;

/**
 * Bytes per second, on average, with bursts of a second's worth: what was not used is saved up to that. Those who take share in turns of 64
 * KiB, in the order of asking, so that a large body does not hold up a small one for longer than that. The rate may
 * change at any time; 0: no limit.
 */
export class TokenBucket {
  readonly #clock: Clock;
  readonly #sleep: (ms: number, signal?: AbortSignal) => Promise<void>;
  #bytesPerSecond: number;
  /** Below 0: owed. */
  #tokens = 0;
  #filledAtMs: number;
  /** The end of the last turn that was asked for. */
  #queue: Promise<void> = Promise.resolve();

  constructor(bytesPerSecond: number, options: TokenBucketOptions = {}) {
    this.#clock = options.clock ?? systemClock;
    this.#sleep = options.sleep ?? delay;
    this.#bytesPerSecond = bytesPerSecond;
    this.#filledAtMs = this.#clock.monotonicMs();
    this.#tokens = this.#burstBytes;
  }

  get bytesPerSecond(): number {
    return this.#bytesPerSecond;
  }

  /** Counts from now on, also for those who wait. */
  setRate(bytesPerSecond: number): void {
    if (bytesPerSecond === this.#bytesPerSecond) return;
    this.#fill();
    // What was saved without a limit is a burst like any other.
    if (this.#bytesPerSecond === 0) this.#tokens = Number.POSITIVE_INFINITY;
    this.#bytesPerSecond = bytesPerSecond;
    this.#tokens = Math.min(this.#tokens, this.#burstBytes);
  }

  /** Resolves when so many bytes may pass. Rejects with the signal's reason when it is aborted before. */
  async take(bytes: number, signal?: AbortSignal): Promise<void> {
    for (let rest = bytes; rest > 0; rest -= TURN_BYTES) {
      if (this.#bytesPerSecond === 0) return;
      await this.#takeTurn(Math.min(rest, TURN_BYTES), signal);
    }
  }

  async #takeTurn(bytes: number, signal: AbortSignal | undefined): Promise<void> {
    const before = this.#queue;
    const turn = before.then(() => this.#waitFor(bytes, signal));
    // Who leaves lets the next one go on.
    this.#queue = turn.catch(() => {});
    await turn;
  }

  async #waitFor(bytes: number, signal: AbortSignal | undefined): Promise<void> {
    for (;;) {
      signal?.throwIfAborted();
      if (this.#bytesPerSecond === 0) return;
      this.#fill();
      if (this.#tokens >= bytes) {
        this.#tokens -= bytes;
        return;
      }
      const missingMs = ((bytes - this.#tokens) / this.#bytesPerSecond) * 1000;
      await this.#sleep(Math.min(LONGEST_WAIT_MS, Math.max(1, Math.ceil(missingMs))), signal);
    }
  }

  get #burstBytes(): number {
    return Math.max(LEAST_BURST_BYTES, (this.#bytesPerSecond * BURST_MS) / 1000);
  }

  #fill(): void {
    const nowMs = this.#clock.monotonicMs();
    const earned = ((nowMs - this.#filledAtMs) / 1000) * this.#bytesPerSecond;
    this.#filledAtMs = nowMs;
    this.#tokens = Math.min(this.#burstBytes, this.#tokens + earned);
  }
}
