import { seededRandom } from "../support/random.ts";
import type { PaperPolicy, PaperReplica } from "./paper-replica.ts";

export const SECOND_MS = 1_000;
export const MINUTE_MS = 60 * SECOND_MS;
export const HOUR_MS = 60 * MINUTE_MS;
export const DAY_MS = 24 * HOUR_MS;
export const START_MS = Date.UTC(2026, 0, 1);

/** The default policy. */
export const DEFAULT: PaperPolicy = {
  levelWindowsMs: [30 * SECOND_MS, 5 * MINUTE_MS, HOUR_MS],
  retention: {
    mergedKeepMs: [HOUR_MS, DAY_MS, 7 * DAY_MS],
    keepRecent: 16,
    retentionMs: 0,
    maxBackups: 0,
    maxTotalSizeBytes: 0,
  },
};

/** One working day of commits, ten hours from eight o'clock, with upkeep every so often and a full backup at noon. */
export function workingDay(
  replica: PaperReplica,
  policy: PaperPolicy,
  { spacingMs, upkeepMs }: { spacingMs: number; upkeepMs: number },
): void {
  const midnight = Math.floor(replica.nowMs / DAY_MS) * DAY_MS;
  let upkeepAt = midnight + 8 * HOUR_MS + upkeepMs;
  let hasFull = false;
  for (let at = midnight + 8 * HOUR_MS; at < midnight + 18 * HOUR_MS; at += spacingMs) {
    replica.nowMs = at;
    replica.commit();
    if (!hasFull && at >= midnight + 12 * HOUR_MS) {
      replica.storeFull(replica.newest.index);
      hasFull = true;
    }
    if (at < upkeepAt) continue;
    upkeepAt = at + upkeepMs;
    replica.compact(policy);
    const { refused } = replica.prune(policy.retention);
    if (refused !== null) throw new Error(`nothing may be deleted: ${refused}`);
  }
  replica.nowMs = midnight + DAY_MS;
}

/**
 * For moments of all ages: what restoring them gives is the newest state then, or at least the newest of the window before, by the
 * table in docs/compaction-and-retention.md.
 */
export function assertGranularity(replica: PaperReplica, policy: PaperPolicy, seed: number): void {
  const random = seededRandom(seed);
  const restorable = [...replica.restorable()].sort((a, b) => a - b);
  const newestBefore = (ms: number) => replica.states.newestBefore(ms);
  const { retentionMs, mergedKeepMs } = policy.retention;
  const oldestMs = Math.max(START_MS, retentionMs === 0 ? 0 : replica.nowMs - retentionMs);
  for (let i = 0; i < 400; i++) {
    // As many of the last hour as of the last year.
    const ageMs = Math.min(MINUTE_MS * (replica.nowMs / MINUTE_MS) ** random.next(), replica.nowMs - oldestMs);
    const momentMs = replica.nowMs - ageMs;
    const level = mergedKeepMs.findIndex((keepMs) => ageMs < keepMs);
    const windowMs = policy.levelWindowsMs[(level === -1 ? mergedKeepMs.length : level) - 1] ?? 1;
    const wanted = newestBefore(Math.floor(momentMs / windowMs) * windowMs);
    const given =
      restorable[countBelow(restorable.length, (at) => (restorable[at] ?? 0) <= newestBefore(momentMs + 1)) - 1] ?? 0;
    if (given < wanted) throw new Error(`${ageMs / HOUR_MS} h ago: state ${given} rather than ${wanted} or newer`);
  }
}

function countBelow(length: number, isBelow: (position: number) => boolean): number {
  let [low, high] = [0, length];
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (isBelow(middle)) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Full backups, then objects by level. */
export function counts(replica: PaperReplica): readonly number[] {
  const { fulls, levels } = replica.catalog;
  return [fulls.length, ...levels.slice(0, 4).map((objects) => objects.length)];
}
