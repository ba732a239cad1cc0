import { expect, test } from "bun:test";
import { keyOf } from "../../src/replica/catalog.ts";
import { seededRandom } from "../support/random.ts";
import { ReplicaBuilder } from "./builder.ts";
import { ClockedBackend } from "./clocked-backend.ts";
import { type PaperPolicy, PaperReplica } from "./paper-replica.ts";
import { compactBuilt, pruneBuilt, restoreAll } from "./upkeep.ts";

const SECOND_MS = 1_000;
const MINUTE_MS = 60 * SECOND_MS;
const HOUR_MS = 60 * MINUTE_MS;
const DAY_MS = 24 * HOUR_MS;
const START_MS = Date.UTC(2026, 0, 1);

const DEFAULT: PaperPolicy = {
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
function workingDay(
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
    expect(replica.prune(policy.retention).refused).toBeNull();
  }
  replica.nowMs = midnight + DAY_MS;
}

/**
 * For moments of all ages: what restoring them gives is the newest state then, or at least the newest of the window before, by the
 * table in docs/compaction-and-retention.md.
 */
function assertGranularity(replica: PaperReplica, policy: PaperPolicy, seed: number): void {
  const random = seededRandom(seed);
  const restorable = [...replica.restorable()].sort((a, b) => a - b);
  const states = [...replica.states.values()];
  const newestBefore = (ms: number) =>
    states[countBelow(states.length, (i) => (states[i]?.committedMs ?? 0) < ms) - 1]?.index ?? 0;
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

function counts(replica: PaperReplica): readonly number[] {
  const { fulls, levels } = replica.catalog;
  return [fulls.length, ...levels.slice(0, 4).map((objects) => objects.length)];
}

test("two days of a commit every second, under the default policy, keep to its bounds and its promise", () => {
  const replica = new PaperReplica(START_MS);
  replica.storeFull(replica.beginChain().index);
  for (let day = 0; day < 2; day++) {
    workingDay(replica, DEFAULT, { spacingMs: SECOND_MS, upkeepMs: 30 * MINUTE_MS });
    const [fulls = 0, originals = 0, halfMinutes = 0, fiveMinutes = 0, hours = 0] = counts(replica);
    // What came within the hour, the pass before the last, and the window that is being filled.
    expect(originals).toBeLessThan(3600 + 2 * 1800 + 300);
    // A day, of ten hours; what full backups cut counts twice.
    expect(halfMinutes).toBeLessThan(1200 + 200);
    expect(fiveMinutes).toBeLessThan((day + 1) * 122);
    expect(hours).toBeLessThan((day + 1) * 12);
    expect(fulls).toBe(day + 2);
    assertGranularity(replica, DEFAULT, day);
  }
}, 60_000);

test.each([
  ["for ever", 0],
  ["for 60 days", 60 * DAY_MS],
])(
  "a year kept %s stays as small as the policy says, and as dense",
  (_, retentionMs) => {
    // As the default, with a tenth of the commits and windows ten times as long.
    const policy: PaperPolicy = {
      levelWindowsMs: [10 * MINUTE_MS, HOUR_MS, 5 * HOUR_MS],
      retention: { ...DEFAULT.retention, retentionMs },
    };
    const replica = new PaperReplica(START_MS);
    replica.storeFull(replica.beginChain().index);
    for (let day = 0; day < 365; day++) {
      workingDay(replica, policy, { spacingMs: 4 * MINUTE_MS, upkeepMs: 5 * HOUR_MS });
      const [fulls = 0, originals = 0, tens = 0, hours = 0, fives = 0] = counts(replica);
      const kept = retentionMs === 0 ? day + 1 : Math.min(day + 1, retentionMs / DAY_MS + 3);
      // Two passes a day, and none at night: two days of originals and of windows of ten minutes, nine of hours. Ten hours touch three windows
      // of five, of which noon cuts one in two. What is alone in its window stays at its level, in the place of one of these.
      expect(originals + tens + hours + fives).toBeLessThan(2 * 150 + 2 * 62 + 9 * 12 + 4 * kept);
      expect(fulls).toBeLessThanOrEqual(kept + 1);
      if (day % 30 === 29) assertGranularity(replica, policy, day);
    }
    expect(replica.states.size).toBe(365 * 150 + 1);
  },
  120_000,
);

test("days of it with real objects restore, state by state, as they were", async () => {
  let nowMs = START_MS;
  const random = seededRandom(365);
  const backend = new ClockedBackend(() => nowMs);
  const builder = new ReplicaBuilder({ backends: [backend], random, startMs: START_MS });
  const passTime = (ms: number) => {
    nowMs += ms;
    builder.passTime(ms);
  };
  builder.beginChain(Array.from({ length: 8 }, () => builder.randomImage()));
  await builder.storeFull(1);
  const readBack = new Set<string>();
  let newest = 1;
  for (let day = 0; day < 12; day++) {
    for (let i = 0; i < 60; i++) {
      passTime(random.integer(1, 20 * 60) * SECOND_MS);
      newest = builder.commitRandom(random.integer(1, 3), random.integer(4, 20)).index;
      await builder.storeChangeSet(newest);
      if (i === 30) await builder.storeFull(newest);
      if (i % 12 !== 11) continue;
      backend.listCount = 0;
      const { failures } = await compactBuilt(builder, [backend], random, { nowMs, keepRecent: 4 });
      expect([failures, backend.listCount <= 4]).toEqual([[], true]);
      backend.listCount = 0;
      const policy = { ...DEFAULT.retention, keepRecent: 4, retentionMs: 6 * DAY_MS };
      const { plan } = await pruneBuilt(builder, backend, { nowMs, policy, readBack });
      expect([plan.refused, backend.listCount <= 4]).toEqual([null, true]);
    }
    passTime(6 * HOUR_MS);
  }
  const points = await restoreAll(builder, backend);
  expect(points.at(-1)).toBe(newest);
  expect(points.length).toBeLessThan(720 * 0.75);
  expect(
    backend.objects.has(
      keyOf("app", {
        kind: "full",
        level: 0,
        first: 1,
        last: 1,
        seal: "p",
        destination: 0,
        sizeBytes: 0,
        modifiedMs: 0,
      }),
    ),
  ).toBe(false);
}, 60_000);
