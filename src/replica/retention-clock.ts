import type { Catalog, ReplicaObject } from "./catalog.ts";
import type { ObjectFacts } from "./facts.ts";

/**
 * How old things are at one destination, so carefully that no single wrong clock makes anything look old: the destination's clock,
 * whose "now" is when its newest object was written, but never later than our own; and the writer's stamps against our own
 * clock. What either of them calls young is young, what lies in the future too.
 */
export class RetentionClock {
  readonly #nowMs: number;
  readonly #destinationNowMs: number;

  constructor(catalog: Catalog, nowMs: number) {
    this.#nowMs = nowMs;
    this.#destinationNowMs = Math.min(nowMs, newestMs(catalog));
  }

  /** Whether the object was written `ageMs` or longer ago. */
  wasStoredFor(ageMs: number, { modifiedMs }: Pick<ReplicaObject, "modifiedMs">): boolean {
    return this.#destinationNowMs - modifiedMs >= ageMs;
  }

  /** Whether the state that leads to the stamp was committed `ageMs` or longer ago. */
  wasCommittedFor(ageMs: number, { lastCommitMs }: Pick<ObjectFacts, "lastCommitMs">): boolean {
    return this.#nowMs - lastCommitMs >= ageMs;
  }

  /**
   * By index, when the state was stored: the oldest object that ends there, but never before the states before it: a clock that stood
   * still in 1970 for a while makes nothing old. What was stored in the future is left out.
   */
  storedTimes({ fulls, changeSets }: Pick<Catalog, "fulls" | "changeSets">): ReadonlyMap<number, number> {
    const first = new Map<number, number>();
    for (const { last, modifiedMs } of [...fulls, ...changeSets])
      if (modifiedMs <= this.#destinationNowMs)
        first.set(last, Math.min(modifiedMs, first.get(last) ?? Number.POSITIVE_INFINITY));
    let latestMs = 0;
    const times = new Map<number, number>();
    for (const [index, modifiedMs] of [...first].sort(([a], [b]) => a - b)) {
      latestMs = Math.max(latestMs, modifiedMs);
      times.set(index, latestMs);
    }
    return times;
  }
}

function newestMs({ fulls, changeSets, current, manifest }: Catalog): number {
  let newest = 0;
  for (const { modifiedMs } of fulls) newest = Math.max(newest, modifiedMs);
  for (const { modifiedMs } of changeSets) newest = Math.max(newest, modifiedMs);
  for (const document of [...current, ...manifest]) newest = Math.max(newest, document?.modifiedMs ?? 0);
  return newest;
}
