import type { ByteSource } from "../storage/backend.ts";
import type { Clock } from "../util/clock.ts";
import { BakeliteError } from "../util/errors.ts";

export interface FanOutOptions {
  /** All waiting for slow readers together, in milliseconds, before they are left behind. */
  readonly totalPatienceMs: number;
  /** A reader that takes nothing for so long is left behind. */
  readonly stallMs: number;
  readonly clock: Clock;
}

/** What a reader that is ahead of the slowest one may have read before it waits. */
const AHEAD_BYTES = 8 * 1024 * 1024;
/** How often a reader that waits for slower ones looks whether they are too slow. */
const LOOK_MS = 100;

interface Reader {
  /** Number of the piece that it takes next. */
  next: number;
  isReading: boolean;
  /** Where it was when it was first found to keep others waiting, and when. */
  slowAt: { readonly next: number; readonly sinceMs: number };
  /** Why it was left behind. */
  dropped: BakeliteError | null;
}

/**
 * One stream that is read once and given to several readers, piece by piece, the slowest of which may be 8 MiB behind the
 * fastest. A reader that leaves, fails or is too slow does not disturb the others. What the stream itself fails with is
 * thrown at all readers and kept in `failure`.
 */
export class FanOut {
  /** What the source failed with, as against those who take its bytes; null: nothing. */
  failure: { readonly error: unknown } | null = null;
  readonly #source: ByteSource;
  readonly #options: FanOutOptions;
  readonly #readers: readonly Reader[];
  #iterator: AsyncIterator<Uint8Array> | null = null;
  #pieces: Uint8Array[] = [];
  /** Number of the first of `#pieces`. */
  #base = 0;
  #heldBytes = 0;
  #hasEnded = false;
  #pulling: Promise<void> | null = null;
  #waitedMs = 0;
  /** Readers that wait for slower ones. */
  readonly #waiting: (() => void)[] = [];

  constructor(source: ByteSource, readerCount: number, options: FanOutOptions) {
    this.#source = source;
    this.#options = options;
    this.#readers = Array.from({ length: readerCount }, () => ({
      next: 0,
      isReading: true,
      slowAt: { next: -1, sinceMs: 0 },
      dropped: null,
    }));
  }

  /** The stream for reader `position`, from 0; to be opened once. */
  reader(position: number): ByteSource {
    const reader = this.#readers[position];
    if (reader === undefined)
      throw new BakeliteError("internal", "invariant broken: the reader is one of those counted");
    return { sizeBytes: undefined, replayable: false, open: () => this.#read(reader) };
  }

  /** Reader `position` reads no more, whatever it has read. */
  leave(position: number): void {
    const reader = this.#readers[position];
    if (reader !== undefined) this.#end(reader);
  }

  /** Reader `position` gets this error instead of the next piece. */
  drop(position: number, error: BakeliteError): void {
    const reader = this.#readers[position];
    if (reader === undefined || !reader.isReading) return;
    reader.dropped = error;
    this.#end(reader);
  }

  async *#read(reader: Reader): AsyncGenerator<Uint8Array, void> {
    try {
      for (;;) {
        if (reader.dropped !== null) throw reader.dropped;
        const piece = this.#pieces[reader.next - this.#base];
        if (piece !== undefined) {
          reader.next++;
          this.#forget();
          yield piece;
        } else if (this.failure !== null) throw this.failure.error;
        else if (this.#hasEnded) return;
        else await this.#pull();
      }
    } finally {
      this.#end(reader);
    }
  }

  async #pull(): Promise<void> {
    if (this.#pulling === null) {
      if (this.#heldBytes > AHEAD_BYTES) return await this.#waitForSlower();
      this.#pulling = this.#next().finally(() => {
        this.#pulling = null;
      });
    }
    await this.#pulling;
  }

  async #next(): Promise<void> {
    try {
      this.#iterator ??= this.#source.open()[Symbol.asyncIterator]();
      const next = await this.#iterator.next();
      if (next.done === true) this.#hasEnded = true;
      else {
        this.#pieces.push(next.value);
        this.#heldBytes += next.value.byteLength;
      }
    } catch (error) {
      this.failure = { error };
    }
  }

  async #waitForSlower(): Promise<void> {
    const { clock, totalPatienceMs, stallMs } = this.#options;
    const beganMs = clock.monotonicMs();
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, LOOK_MS);
      this.#waiting.push(() => {
        clearTimeout(timer);
        resolve();
      });
    });
    const nowMs = clock.monotonicMs();
    this.#waitedMs += nowMs - beganMs;
    if (this.#heldBytes <= AHEAD_BYTES) return;
    for (const [position, reader] of this.#readers.entries()) {
      if (reader.next > this.#base || !reader.isReading) continue;
      if (reader.slowAt.next !== reader.next) reader.slowAt = { next: reader.next, sinceMs: beganMs };
      const isStuck = nowMs - reader.slowAt.sinceMs >= stallMs;
      if (isStuck || this.#waitedMs >= totalPatienceMs)
        this.drop(
          position,
          new BakeliteError("storage-unreachable", "it takes an object more slowly than the others wait"),
        );
    }
  }

  /** Pieces that every reader has taken are held no longer. */
  #forget(): void {
    const reading = this.#readers.filter(({ isReading }) => isReading);
    const first = reading.reduce((least, { next }) => Math.min(least, next), Number.POSITIVE_INFINITY);
    while (this.#pieces.length > 0 && this.#base < first) {
      this.#heldBytes -= this.#pieces.shift()?.byteLength ?? 0;
      this.#base++;
    }
    if (this.#heldBytes > AHEAD_BYTES) return;
    for (const resume of this.#waiting.splice(0)) resume();
  }

  #end(reader: Reader): void {
    if (!reader.isReading) return;
    reader.isReading = false;
    this.#forget();
    if (this.#readers.some(({ isReading }) => isReading)) return;
    // Nobody reads on: the source is to give back what it holds. It may itself be waiting for something.
    const closing = this.#hasEnded ? undefined : this.#iterator?.return?.();
    closing?.catch(() => {});
  }
}
