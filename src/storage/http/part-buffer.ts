import { ByteBudget } from "../../util/byte-budget.ts";
import { BakeliteError } from "../../util/errors.ts";

/**
 * What all uploads of this process may hold in parts at once: four parts of the default size. Whoever comes when it is used up waits, so
 * memory does not grow with the number of databases.
 */
const BUDGET_BYTES = 32 * 1024 * 1024;
const FIRST_BUFFER_BYTES = 256 * 1024;
/**
 * After so many bytes of copied pieces the garbage is collected, which takes some ten milliseconds. Left to itself the collector takes its time
 * on a large machine: it does not see most of what compressing and sending leave behind, and with 2 GiB backed up to a bucket 270 to
 * 330 MiB were resident in place of 200 (Bun 1.4.5).
 */
const COLLECT_EVERY_BYTES = 8 * 1024 * 1024;

export const partBudget = new ByteBudget(BUDGET_BYTES);

/**
 * The same for long-lived objects. A full backup gives its last bytes only when a change-set is stored, and holds a part that is half
 * full until then: were both served from one budget, each could wait for the other for ever.
 */
export const longLivedPartBudget = new ByteBudget(BUDGET_BYTES);

/** One part, owned until disposed. */
export interface Part extends Disposable {
  readonly bytes: Uint8Array;
}

/**
 * Cuts a source into parts: `next(size)` gives `size` bytes, fewer at the end, and null after it. After `close` it rejects. A source that gives all of a
 * known body in one piece is not copied and counts for nothing, since its owner holds those bytes anyway. Any other piece is
 * copied, because it may be overwritten when the next one is asked for.
 */
export class PartReader {
  readonly #pieces: AsyncIterator<Uint8Array>;
  readonly #bodyBytes: number | undefined;
  readonly #budget: ByteBudget;
  readonly #closing = new AbortController();
  readonly #stop: AbortSignal;
  /** Gives back what the part takes that is being read now. */
  #releaseUnread: (() => void) | null = null;
  #rest: Uint8Array | null = null;
  #ended = false;
  #readBytes = 0;

  constructor(
    pieces: AsyncIterable<Uint8Array>,
    options: {
      readonly bodyBytes: number | undefined;
      readonly signal: AbortSignal | undefined;
      readonly budget?: ByteBudget;
    },
  ) {
    this.#pieces = pieces[Symbol.asyncIterator]();
    this.#bodyBytes = options.bodyBytes;
    const closing = this.#closing.signal;
    this.#stop = options.signal === undefined ? closing : AbortSignal.any([options.signal, closing]);
    this.#budget = options.budget ?? partBudget;
  }

  /** All bytes that the source has given so far. */
  get readBytes(): number {
    return this.#readBytes;
  }

  async next(sizeBytes: number): Promise<Part | null> {
    const first = await this.#take();
    if (first === null) return null;
    if (first.byteLength === this.#bodyBytes && first.byteLength <= sizeBytes)
      return { bytes: first, [Symbol.dispose]() {} };
    const share = await this.#budget.take(Math.min(sizeBytes, this.#bodyBytes ?? sizeBytes), this.#stop);
    const buffer = new GrowingBuffer(sizeBytes);
    const release = once(() => {
      buffer.release();
      share[Symbol.dispose]();
      if (this.#budget.takenBytes === 0) buffers.clear();
    });
    this.#releaseUnread = release;
    try {
      for (let piece: Uint8Array | null = first; piece !== null; piece = buffer.isFull ? null : await this.#take()) {
        const takenBytes = buffer.append(piece);
        collectAfter(takenBytes);
        if (takenBytes < piece.byteLength) this.#rest = piece.subarray(takenBytes);
      }
      return { bytes: buffer.bytes, [Symbol.dispose]: release };
    } catch (error) {
      release();
      throw error;
    } finally {
      this.#releaseUnread = null;
    }
  }

  /** Whether the source has another byte. */
  async hasMore(): Promise<boolean> {
    this.#rest = await this.#take();
    return this.#rest !== null;
  }

  /**
   * Lets the source go, and gives back at once what a part takes that is still being read: after a failure a source may hang for
   * hours, or for ever, and whoever waits for the budget must not wait with it.
   */
  async close(): Promise<void> {
    this.#closing.abort(closed());
    this.#releaseUnread?.();
    if (!this.#ended) await this.#pieces.return?.();
  }

  /** The next piece that has a byte in it. */
  async #take(): Promise<Uint8Array | null> {
    const rest = this.#rest;
    this.#rest = null;
    if (rest !== null) return rest;
    while (!this.#ended) {
      const next = await this.#pieces.next();
      // What is left of the part is not ours any more.
      if (this.#closing.signal.aborted) throw closed();
      if (next.done === true) this.#ended = true;
      else if (next.value.byteLength > 0) {
        this.#readBytes += next.value.byteLength;
        return next.value;
      }
    }
    return null;
  }
}

/**
 * Buffers of parts for the next parts. Left to the garbage collector they pile up: it does not see how large they are, and
 * 2 GiB stored in parts of 16 MiB were all resident in the end (Bun 1.4.5).
 */
class BufferPool {
  #free: Uint8Array[] = [];

  /** Its content is undefined. */
  take(sizeBytes: number): Uint8Array {
    const found = this.#free.findIndex(({ byteLength }) => byteLength === sizeBytes);
    const [buffer] = found === -1 ? [] : this.#free.splice(found, 1);
    return buffer ?? new Uint8Array(sizeBytes);
  }

  giveBack(buffer: Uint8Array): void {
    const heldBytes = this.#free.reduce((sum, { byteLength }) => sum + byteLength, buffer.byteLength);
    if (heldBytes <= BUDGET_BYTES) this.#free.push(buffer);
  }

  /** When nothing is being sent, nothing is held. */
  clear(): void {
    this.#free = [];
  }
}

const buffers = new BufferPool();

let uncollectedBytes = 0;

function collectAfter(copiedBytes: number): void {
  uncollectedBytes += copiedBytes;
  if (uncollectedBytes < COLLECT_EVERY_BYTES) return;
  uncollectedBytes = 0;
  Bun.gc(true);
}

function closed(): BakeliteError {
  return new BakeliteError("interrupted", "the body is not read any more");
}

function once(action: () => void): () => void {
  let isDone = false;
  return () => {
    if (isDone) return;
    isDone = true;
    action();
  };
}

/** Grows to `limitBytes` in two steps, so that a small body takes little. */
class GrowingBuffer {
  readonly #limitBytes: number;
  #buffer: Uint8Array;
  #usedBytes = 0;

  constructor(limitBytes: number) {
    this.#limitBytes = limitBytes;
    this.#buffer = limitBytes <= FIRST_BUFFER_BYTES ? buffers.take(limitBytes) : new Uint8Array(FIRST_BUFFER_BYTES);
  }

  get isFull(): boolean {
    return this.#usedBytes === this.#limitBytes;
  }

  get bytes(): Uint8Array {
    return this.#buffer.subarray(0, this.#usedBytes);
  }

  /** Copies as much of `piece` as there is room for, and says how much. */
  append(piece: Uint8Array): number {
    const takenBytes = Math.min(piece.byteLength, this.#limitBytes - this.#usedBytes);
    if (this.#usedBytes + takenBytes > this.#buffer.byteLength) {
      const whole = buffers.take(this.#limitBytes);
      whole.set(this.bytes);
      this.#buffer = whole;
    }
    this.#buffer.set(piece.subarray(0, takenBytes), this.#usedBytes);
    this.#usedBytes += takenBytes;
    return takenBytes;
  }

  /** Gives the memory back; `bytes` may be overwritten from now on. */
  release(): void {
    if (this.#buffer.byteLength === this.#limitBytes) buffers.giveBack(this.#buffer);
  }
}
