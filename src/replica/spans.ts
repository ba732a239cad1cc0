import { upperBound } from "../util/upper-bound.ts";
import type { ReplicaObject } from "./catalog.ts";

/** The states that change-sets span. */
export class Spans {
  readonly #firsts: readonly number[];
  /** The highest last of all objects up to that position. */
  readonly #lasts: number[] = [];

  /** `ascending` by first. */
  constructor(ascending: readonly ReplicaObject[]) {
    this.#firsts = ascending.map(({ first }) => first);
    let highest = 0;
    for (const { last } of ascending) {
      highest = Math.max(highest, last);
      this.#lasts.push(highest);
    }
  }

  /** Whether one of them steps over the state: it begins there or before, and ends after it. */
  stepOver(index: number): boolean {
    return this.#reach(index) > index;
  }

  /** Whether one of them steps over the state or ends there. */
  cover(index: number): boolean {
    return this.#reach(index) >= index;
  }

  /** Whether one of them has a state from `first` to `last`. */
  overlap({ first, last }: Pick<ReplicaObject, "first" | "last">): boolean {
    return this.#reach(last) >= first;
  }

  /** The highest last of all that begin at `index` or before. */
  #reach(index: number): number {
    return this.#lasts[upperBound(this.#firsts, index) - 1] ?? 0;
  }
}
