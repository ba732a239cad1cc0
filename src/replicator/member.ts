import type { Backend } from "../storage/backend.ts";
import { Wakeup } from "../util/wakeup.ts";
import { Health } from "./health.ts";

/** One lock-step destination of a database. */
export interface Destination {
  readonly backend: Backend;
  /** `file`, `s3` …, for people. */
  readonly type: string;
}

/**
 * - `whole`: it gets every new object, and restores the newest state by itself.
 * - `joining`: it gets every new object, and lacks some of what came before.
 * - `out`: it gets nothing for now.
 */
export type Standing = "whole" | "joining" | "out";

/** What a destination lacks of what the others have. */
export interface Behind {
  readonly objects: number;
  readonly bytes: number;
}

/** One lock-step destination, and how far it has come. */
export class Member implements Destination {
  readonly backend: Backend;
  readonly type: string;
  /** Of this destination alone: its streak ends with the first call that goes well. */
  readonly health: Health;
  /** Raised when it is no longer complete. */
  readonly disturbed = new Wakeup();
  readonly #nowMs: () => number;
  readonly #onChange: () => void;
  #standing: Standing = "whole";
  #standingSinceMs: number;
  #lacksHistory = false;
  #isSuspect = false;
  #joinedAt = 0;
  #index: number | null = null;
  #storedMs: number | null = null;
  #behind: Behind | null = null;
  #late: Promise<void> = Promise.resolve();

  constructor({ backend, type }: Destination, nowMs: () => number, onChange: () => void) {
    this.backend = backend;
    this.type = type;
    this.#nowMs = nowMs;
    this.#onChange = onChange;
    this.health = new Health(nowMs, onChange);
    this.#standingSinceMs = nowMs();
  }

  get standing(): Standing {
    return this.#standing;
  }

  /** Nothing is missing there, as far as is known. */
  get isComplete(): boolean {
    return this.#standing === "whole" && !this.#lacksHistory;
  }

  get lacksHistory(): boolean {
    return this.#lacksHistory;
  }

  /** Its names are not those of the others, as when something was merged or given up in between: to be looked into. */
  get isSuspect(): boolean {
    return this.#isSuspect;
  }

  /** Since when it is complete, or not; Unix milliseconds. */
  get standingSinceMs(): number {
    return this.#standingSinceMs;
  }

  /** It has got every object of a state after this one. */
  get joinedAt(): number {
    return this.#joinedAt;
  }

  /** The newest state that was stored there; null before the first. */
  get index(): number | null {
    return this.#index;
  }

  /** When something was last stored there, Unix milliseconds. */
  get storedMs(): number | null {
    return this.#storedMs;
  }

  get behind(): Behind | null {
    return this.#behind;
  }

  set behind(behind: Behind | null) {
    this.#behind = behind;
  }

  /** Resolves when a put that nobody waits for any longer has ended. */
  get late(): Promise<void> {
    return this.#late;
  }

  /** At an attach: what its listing shows. `index`: the newest state there, or null; `joinedAt` as above. */
  begin(standing: Standing, at: { readonly index: number | null; readonly joinedAt: number }): void {
    this.#index = at.index;
    this.#joinedAt = at.joinedAt;
    this.#change(() => {
      this.#standing = standing;
    });
  }

  /** It gets every object after state `index` from now on. */
  join(index: number): void {
    this.#joinedAt = index;
    this.#change(() => {
      this.#standing = "joining";
    });
  }

  /** It holds all that leads to the newest state. */
  setWhole(): void {
    this.#change(() => {
      this.#standing = "whole";
    });
  }

  suspect(): void {
    this.#isSuspect = true;
    this.disturbed.wake();
  }

  /** What was suspected is known from here on. */
  setHistory(isComplete: boolean): void {
    this.#isSuspect = false;
    this.#change(() => {
      this.#lacksHistory = !isComplete;
    });
    if (isComplete) this.#behind = null;
  }

  /** It gets nothing until it joins again. */
  fallOut(error: unknown): void {
    this.#change(() => {
      this.#standing = "out";
      this.#lacksHistory = true;
    });
    this.health.failed(error);
  }

  /** Its put goes on although nobody waits for it. */
  leaveBehind(put: Promise<unknown>): void {
    this.#late = Promise.allSettled([this.#late, put]).then(() => {});
  }

  /** The change-set `first`-`last` was stored there. */
  stored({ first, last }: { readonly first: number; readonly last: number }): void {
    this.#index = Math.max(this.#index ?? 0, last);
    this.#storedMs = this.#nowMs();
    if (first <= this.#joinedAt && this.#joinedAt <= last) this.#joinedAt = first - 1;
  }

  #change(change: () => void): void {
    const before = this.isComplete;
    change();
    if (!this.isComplete) this.disturbed.wake();
    if (this.isComplete === before) return;
    this.#standingSinceMs = this.#nowMs();
    this.#onChange();
  }
}
