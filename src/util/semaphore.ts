import { assert } from "./errors.ts";

export interface AcquireOptions {
  /** Smaller numbers are served first; 0 by default. Equal ones in the order in which they came. */
  readonly priority?: number;
  /** Leaves the queue when aborted. */
  readonly signal?: AbortSignal;
}

interface Waiter {
  readonly priority: number;
  readonly grant: () => void;
}

/**
 * A bounded number of slots: `using slot = await semaphore.acquire();` holds one until the end of the block. Disposing
 * twice counts once.
 */
export class Semaphore {
  #slotCount: number;
  /** Negative while more are held than there are slots, as after `resize`. */
  #freeCount: number;
  /** By priority, then by arrival. */
  readonly #queue: Waiter[] = [];

  constructor(slotCount: number) {
    assert(Number.isInteger(slotCount) && slotCount > 0, "a semaphore has at least one slot");
    this.#slotCount = slotCount;
    this.#freeCount = slotCount;
  }

  /** Changes how many slots there are. Those that are held stay so, and no more are given while they are too many. */
  resize(slotCount: number): void {
    assert(Number.isInteger(slotCount) && slotCount > 0, "a semaphore has at least one slot");
    this.#freeCount += slotCount - this.#slotCount;
    this.#slotCount = slotCount;
    while (this.#freeCount > 0 && this.#queue.length > 0) this.#grantNext();
  }

  /** How many wait for a slot. */
  get waiterCount(): number {
    return this.#queue.length;
  }

  /** A slot, where one is free at this moment. */
  tryAcquire(): Disposable | null {
    if (this.#freeCount <= 0) return null;
    this.#freeCount--;
    return this.#slot();
  }

  /** Waits for a slot. Rejects with the signal's reason, and takes none, when aborted before it has one. */
  async acquire({ priority = 0, signal }: AcquireOptions = {}): Promise<Disposable> {
    signal?.throwIfAborted();
    const free = this.tryAcquire();
    if (free !== null) return free;
    await this.#wait(priority, signal);
    return this.#slot();
  }

  #wait(priority: number, signal: AbortSignal | undefined): Promise<void> {
    return new Promise((resolve, reject) => {
      const leave = () => {
        this.#queue.splice(this.#queue.indexOf(waiter), 1);
        reject(signal?.reason);
      };
      const grant = () => {
        signal?.removeEventListener("abort", leave);
        resolve();
      };
      const waiter: Waiter = { priority, grant };
      signal?.addEventListener("abort", leave, { once: true });
      const behind = this.#queue.findIndex((other) => other.priority > priority);
      this.#queue.splice(behind === -1 ? this.#queue.length : behind, 0, waiter);
    });
  }

  #slot(): Disposable {
    let isHeld = true;
    return {
      [Symbol.dispose]: () => {
        if (!isHeld) return;
        isHeld = false;
        this.#freeCount++;
        if (this.#freeCount > 0) this.#grantNext();
      },
    };
  }

  /** A slot goes from hand to hand: nobody who comes later can take it in between. */
  #grantNext(): void {
    const next = this.#queue.shift();
    if (next === undefined) return;
    this.#freeCount--;
    next.grant();
  }
}
