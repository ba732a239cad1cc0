// deadline: 600 s
import { expect, test } from "bun:test";
import { keyOf } from "../../src/replica/catalog.ts";
import { seededRandom } from "../support/random.ts";
import { ReplicaBuilder } from "./builder.ts";
import { ClockedBackend } from "./clocked-backend.ts";
import { type PaperPolicy, PaperReplica } from "./paper-replica.ts";
import {
  assertGranularity,
  counts,
  DAY_MS,
  DEFAULT,
  HOUR_MS,
  MINUTE_MS,
  SECOND_MS,
  START_MS,
  workingDay,
} from "./paper-year.ts";
import { compactBuilt, pruneBuilt, restoreAll } from "./upkeep.ts";

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
  ["a year kept for ever", 365, 0],
  ["half a year kept for 60 days", 182, 60 * DAY_MS],
])(
  "%s stays as small as the policy says, and as dense",
  (_, days, retentionMs) => {
    // As the default, with a tenth of the commits and windows ten times as long.
    const policy: PaperPolicy = {
      levelWindowsMs: [10 * MINUTE_MS, HOUR_MS, 5 * HOUR_MS],
      retention: { ...DEFAULT.retention, retentionMs },
    };
    const replica = new PaperReplica(START_MS);
    replica.storeFull(replica.beginChain().index);
    for (let day = 0; day < days; day++) {
      workingDay(replica, policy, { spacingMs: 4 * MINUTE_MS, upkeepMs: 5 * HOUR_MS });
      const [fulls = 0, originals = 0, tens = 0, hours = 0, fives = 0] = counts(replica);
      const kept = retentionMs === 0 ? day + 1 : Math.min(day + 1, retentionMs / DAY_MS + 3);
      // Two passes a day, and none at night: two days of originals and of windows of ten minutes, nine of hours. Ten hours touch three windows
      // of five, of which noon cuts one in two. What is alone in its window stays at its level, in the place of one of these.
      expect(originals + tens + hours + fives).toBeLessThan(2 * 150 + 2 * 62 + 9 * 12 + 4 * kept);
      expect(fulls).toBeLessThanOrEqual(kept + 1);
      if (day % 30 === 29) assertGranularity(replica, policy, day);
    }
    expect(replica.states.size).toBe(days * 150 + 1);
  },
  400_000,
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
