import type { Catalog, ReplicaObject } from "./catalog.ts";
import type { Knowledge } from "./facts.ts";
import type { PathPreferences } from "./paths.ts";

export interface RetentionPolicy {
  /** How long change-sets of level 0, 1, … stay beside what they were merged into. Of higher levels: for ever. */
  readonly mergedKeepMs: readonly number[];
  /** So many of the newest change-sets of level 0 stay, whatever their age. */
  readonly keepRecent: number;
  /** Restore points younger than this stay; 0: all. */
  readonly retentionMs: number;
  /** 0: no limit. */
  readonly maxBackups: number;
  /** 0: no limit. */
  readonly maxTotalSizeBytes: number;
  /** How old an object must be before others may go for it; not given: ten minutes. */
  readonly graceMs?: number;
}

/** What a decision about deleting is made of. */
export interface RetentionInputs {
  /** What one destination holds, and nothing else. */
  readonly catalog: Catalog;
  readonly knowledge: (object: ReplicaObject) => Knowledge;
  readonly preferences: PathPreferences;
  readonly policy: RetentionPolicy;
  /** Marked states, which stay restorable. */
  readonly marks: readonly number[];
  /** Why nothing may be deleted now, such as a verify that found problems; null: nothing speaks against it. */
  readonly frozen: string | null;
  /**
   * Where the whole reason for `frozen` is that these objects of the destination are damaged, and all others were read and found sound:
   * their keys below the database's folder. Once the plan gives up all of them it is not held back.
   */
  readonly damaged?: ReadonlySet<string> | undefined;
  /** Unix milliseconds by our own clock, which can make things look younger, never older. */
  readonly nowMs: number;
}

/** How long a change-set of level `level` stays beside one of level `above` that stands for it. */
export function keepBesideMs({ mergedKeepMs }: RetentionPolicy, level: number, above: number): number {
  let keepMs = 0;
  for (let i = level; i < above; i++) keepMs = Math.max(keepMs, mergedKeepMs[i] ?? Number.POSITIVE_INFINITY);
  return keepMs;
}
