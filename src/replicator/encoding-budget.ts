import { ByteBudget } from "../util/byte-budget.ts";

/** Pages that all databases of this process may be encoding and storing at the same moment, as bytes. */
const BUDGET_BYTES = 16 * 1024 * 1024;
/** What a set takes that is resolved slice by slice, whatever its size: slices, and chunks that are compressed ahead. */
const STREAMED_BYTES = 8 * 1024 * 1024;
/** A destination that does not answer holds up the databases of others for no longer than this. */
const MAX_HELD_MS = 5000;
/**
 * After so many bytes the garbage is collected, which takes ten milliseconds with one database and some thirty with 200: the collector does
 * not see what compressing leaves behind (Bun 1.4.5). With 200 databases and 4 MiB each, 64 MiB here had 360 MiB resident, 8 MiB 265.
 */
const COLLECT_EVERY_BYTES = 8 * 1024 * 1024;

/** Lends out the right to encode. */
export class EncodingBudget {
  readonly #budget: ByteBudget;
  readonly #maxHeldMs: number;
  #uncollectedBytes = 0;

  constructor(totalBytes: number, maxHeldMs: number) {
    this.#budget = new ByteBudget(totalBytes);
    this.#maxHeldMs = maxHeldMs;
  }

  /** What is lent now, in bytes. */
  get takenBytes(): number {
    return this.#budget.takenBytes;
  }

  /**
   * Waits, in the order of asking, until so many bytes of pages may be encoded; more than the whole budget means all of it. Held from before the
   * pages are read until their object was stored or failed to be, or for five seconds: so whoever holds a share may
   * wait for whatever else there is. Rejects with the signal's reason when aborted before its turn.
   */
  async take(bytes: number, signal: AbortSignal): Promise<Disposable> {
    const share = await this.#budget.take(bytes, signal);
    const timer = setTimeout(() => share[Symbol.dispose](), this.#maxHeldMs);
    timer.unref();
    return {
      [Symbol.dispose]: () => {
        clearTimeout(timer);
        this.#collectAfter(bytes);
        share[Symbol.dispose]();
      },
    };
  }

  #collectAfter(bytes: number): void {
    this.#uncollectedBytes += bytes;
    if (this.#uncollectedBytes < COLLECT_EVERY_BYTES) return;
    this.#uncollectedBytes = 0;
    Bun.gc(true);
  }
}

/** What encoding a set of so many bytes of pages counts for; sets of more than `ordinaryBytes` are streamed. */
export function encodingBytes(setBytes: number, ordinaryBytes: number): number {
  return setBytes > ordinaryBytes ? STREAMED_BYTES : setBytes;
}

/** The one of this process: what many databases hold at once is bounded only if they share it. */
export const encodingBudget = new EncodingBudget(BUDGET_BYTES, MAX_HELD_MS);
