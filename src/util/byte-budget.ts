import { assert } from "./errors.ts";

/**
 * So many bytes, lent out in the order of asking: `using part = await budget.take(size);`. What is larger than the whole budget gets
 * all of it, so that it is held by one at a time.
 */
export class ByteBudget {
  readonly #totalBytes: number;
  #freeBytes: number;
  readonly #queue: { readonly bytes: number; readonly grant: () => void }[] = [];

  constructor(totalBytes: number) {
    assert(totalBytes > 0, "a budget has at least one byte");
    this.#totalBytes = totalBytes;
    this.#freeBytes = totalBytes;
  }

  get totalBytes(): number {
    return this.#totalBytes;
  }

  get takenBytes(): number {
    return this.#totalBytes - this.#freeBytes;
  }

  /** Rejects with the signal's reason, and takes nothing, when aborted before there was room. */
  async take(wantedBytes: number, signal?: AbortSignal): Promise<Disposable> {
    const bytes = Math.min(wantedBytes, this.#totalBytes);
    signal?.throwIfAborted();
    if (this.#queue.length === 0 && this.#freeBytes >= bytes) this.#freeBytes -= bytes;
    else await this.#wait(bytes, signal);
    let isHeld = true;
    return {
      [Symbol.dispose]: () => {
        if (!isHeld) return;
        isHeld = false;
        this.#freeBytes += bytes;
        this.#serve();
      },
    };
  }

  #wait(bytes: number, signal: AbortSignal | undefined): Promise<void> {
    return new Promise((resolve, reject) => {
      const leave = () => {
        this.#queue.splice(this.#queue.indexOf(waiter), 1);
        reject(signal?.reason);
        // Whoever stood behind may need less.
        this.#serve();
      };
      const waiter = {
        bytes,
        grant: () => {
          signal?.removeEventListener("abort", leave);
          resolve();
        },
      };
      signal?.addEventListener("abort", leave, { once: true });
      this.#queue.push(waiter);
    });
  }

  #serve(): void {
    for (let next = this.#queue[0]; next !== undefined && next.bytes <= this.#freeBytes; next = this.#queue[0]) {
      this.#queue.shift();
      this.#freeBytes -= next.bytes;
      next.grant();
    }
  }
}
