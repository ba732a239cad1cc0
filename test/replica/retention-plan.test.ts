import { describe, expect, test } from "bun:test";
import { keyBelow, keyOf, type ReplicaObject } from "../../src/replica/catalog.ts";
import { RetentionClock } from "../../src/replica/retention-clock.ts";
import { findingLoss } from "../../src/replica/retention-loss.ts";
import type { RetentionPlan } from "../../src/replica/retention-plan.ts";
import type { RetentionPolicy } from "../../src/replica/retention-policy.ts";
import { atOnce } from "../../src/util/turns.ts";
import { PaperReplica } from "./paper-replica.ts";

const SECOND_MS = 1_000;
const MINUTE_MS = 60 * SECOND_MS;
const HOUR_MS = 60 * MINUTE_MS;
const DAY_MS = 24 * HOUR_MS;
const START_MS = Date.UTC(2026, 0, 1);

const POLICY: RetentionPolicy = {
  mergedKeepMs: [HOUR_MS, DAY_MS, 7 * DAY_MS],
  keepRecent: 0,
  retentionMs: 0,
  maxBackups: 0,
  maxTotalSizeBytes: 0,
};

/** A chain with a full backup of its first state. */
function begun(): PaperReplica {
  const replica = new PaperReplica(START_MS);
  replica.storeFull(replica.beginChain().index);
  return replica;
}

function commits(replica: PaperReplica, count: number, spacingMs: number): void {
  for (let i = 0; i < count; i++) {
    replica.nowMs += spacingMs;
    replica.commit();
  }
}

/** As names below the database's folder, without the zeros: `L0/3-3`, `full/1`. */
function namesOf(objects: readonly ReplicaObject[]): string[] {
  return objects.map((object) =>
    keyBelow(object)
      .replace(/\.\w+$/, "")
      .replace(/\b0+(?=\d)/g, ""),
  );
}

function deletedBy(plan: RetentionPlan): string[] {
  expect(plan.refused).toBeNull();
  return namesOf(plan.expired.map(({ object }) => object));
}

function find(replica: PaperReplica, name: string): ReplicaObject {
  const { fulls, changeSets } = replica.catalog;
  const found = [...fulls, ...changeSets].find((object) => namesOf([object])[0] === name);
  if (found === undefined) throw new Error(`no ${name} among ${namesOf([...fulls, ...changeSets])}`);
  return found;
}

/** Merges the originals from `first` to `last`. */
function merge(replica: PaperReplica, level: number, first: number, last: number): void {
  const inputs = (replica.catalog.levels[0] ?? []).filter((object) => first <= object.first && object.last <= last);
  replica.putMerged(level, inputs);
}

describe("merged change-sets", () => {
  test("stay until what stands for them is ten minutes old, and until they are as old as compaction_keep", () => {
    const replica = begun();
    commits(replica, 3, SECOND_MS);
    replica.nowMs += 2 * HOUR_MS;
    merge(replica, 1, 2, 4);
    commits(replica, 1, 9 * MINUTE_MS);
    expect(deletedBy(replica.planPrune(POLICY))).toEqual([]);
    expect(deletedBy(replica.planPrune({ ...POLICY, graceMs: MINUTE_MS }))).toEqual(["L0/4-4", "L0/3-3", "L0/2-2"]);
    commits(replica, 1, MINUTE_MS);
    expect(deletedBy(replica.planPrune({ ...POLICY, mergedKeepMs: [3 * HOUR_MS] }))).toEqual([]);
    expect(deletedBy(replica.planPrune(POLICY))).toEqual(["L0/4-4", "L0/3-3", "L0/2-2"]);
  });

  test("go after the grace when compaction_keep is shorter than that", () => {
    const replica = begun();
    commits(replica, 3, SECOND_MS);
    merge(replica, 1, 2, 4);
    const policy = { ...POLICY, mergedKeepMs: [0] };
    commits(replica, 1, 9 * MINUTE_MS);
    expect(deletedBy(replica.planPrune(policy))).toEqual([]);
    commits(replica, 1, MINUTE_MS);
    expect(deletedBy(replica.planPrune(policy))).toEqual(["L0/4-4", "L0/3-3", "L0/2-2"]);
  });

  test("that were alone in their window stay as long as what others of it were merged into", () => {
    // One commit a minute: nothing to merge within 30 s, so level 2 is made of originals.
    const replica = begun();
    commits(replica, 5, MINUTE_MS);
    merge(replica, 2, 2, 6);
    commits(replica, 1, 2 * HOUR_MS);
    expect(deletedBy(replica.planPrune(POLICY))).toEqual([]);
    commits(replica, 1, DAY_MS);
    expect(deletedBy(replica.planPrune(POLICY))).toHaveLength(5);
  });

  test("stay when the level that they are of is no longer configured", () => {
    const replica = begun();
    commits(replica, 3, SECOND_MS);
    merge(replica, 2, 2, 4);
    merge(replica, 3, 2, 4);
    commits(replica, 1, 300 * DAY_MS);
    expect(deletedBy(replica.planPrune({ ...POLICY, mergedKeepMs: [HOUR_MS, DAY_MS] }))).toEqual([
      "L0/4-4",
      "L0/3-3",
      "L0/2-2",
    ]);
    expect(deletedBy(replica.planPrune(POLICY))).toEqual(["L0/4-4", "L2/2-4", "L0/3-3", "L0/2-2"]);
  });

  test("stay as long as younger ones follow that would lead nowhere without them", () => {
    const replica = begun();
    commits(replica, 2, SECOND_MS);
    commits(replica, 2, 30 * MINUTE_MS);
    merge(replica, 1, 2, 5);
    commits(replica, 1, 30 * MINUTE_MS);
    expect(deletedBy(replica.planPrune(POLICY))).toEqual([]);
    commits(replica, 1, 30 * MINUTE_MS);
    expect(deletedBy(replica.planPrune(POLICY))).toHaveLength(4);
  });

  test("stay when they are among the newest", () => {
    const replica = begun();
    commits(replica, 6, SECOND_MS);
    merge(replica, 1, 2, 4);
    merge(replica, 1, 5, 7);
    replica.nowMs += DAY_MS;
    replica.storeFull(7);
    expect(deletedBy(replica.planPrune({ ...POLICY, keepRecent: 2 }))).toEqual(["L0/4-4", "L0/3-3", "L0/2-2"]);
    expect(deletedBy(replica.planPrune(POLICY))).toHaveLength(6);
  });

  test("stay where what stands for them steps over a full backup or a marked moment", () => {
    const replica = begun();
    commits(replica, 6, SECOND_MS);
    merge(replica, 1, 2, 4);
    merge(replica, 1, 5, 7);
    replica.storeFull(3);
    replica.marks.push(6);
    commits(replica, 1, DAY_MS);
    expect(deletedBy(replica.planPrune(POLICY))).toEqual([]);
    replica.marks.pop();
    expect(deletedBy(replica.planPrune(POLICY))).toEqual(["L0/7-7", "L0/6-6", "L0/5-5"]);
  });

  test("stay where a second writer's change-set stands among them", () => {
    const replica = begun();
    commits(replica, 3, SECOND_MS);
    replica.storeFork(0, 3, 3);
    merge(replica, 1, 2, 4);
    commits(replica, 1, DAY_MS);
    expect(deletedBy(replica.planPrune(POLICY))).toEqual([]);
  });

  test("stay when what stands for them is not what the next change-set follows", () => {
    const replica = begun();
    commits(replica, 3, SECOND_MS);
    replica.storeFork(1, 2, 4);
    commits(replica, 2, DAY_MS);
    expect(deletedBy(replica.planPrune(POLICY))).toEqual([]);
    // Even when nothing but what follows speaks against it.
    replica.remove("app/L0/0000000000000004-0000000000000004.p");
    expect(deletedBy(replica.planPrune(POLICY))).toEqual([]);
  });

  test("stay when what stands for them was not merged, or is settled only after its end", () => {
    for (const changes of [{ compacted: false }, { settled: 5 }]) {
      const replica = begun();
      commits(replica, 3, SECOND_MS);
      merge(replica, 1, 2, 4);
      replica.alter("app/L1/0000000000000002-0000000000000004.p", changes);
      commits(replica, 1, DAY_MS);
      expect(deletedBy(replica.planPrune(POLICY))).toEqual([]);
    }
  });

  test("stay when nothing sound ends or goes on where what stands for them does: it may be another writer's", () => {
    const replica = begun();
    commits(replica, 6, SECOND_MS);
    replica.damage(keyOf("app", find(replica, "L0/5-5")));
    replica.remove(keyOf("app", find(replica, "L0/6-6")));
    replica.storeFork(2, 3, 5);
    replica.nowMs += DAY_MS;
    commits(replica, 1, SECOND_MS);
    expect(deletedBy(replica.planPrune({ ...POLICY, mergedKeepMs: [0, 0, 0] }))).toEqual([]);
  });

  test("stay when another one begins inside and ends behind what stands for them", () => {
    const replica = begun();
    commits(replica, 6, SECOND_MS);
    merge(replica, 1, 2, 4);
    merge(replica, 1, 4, 6);
    commits(replica, 1, DAY_MS);
    expect(deletedBy(replica.planPrune(POLICY))).toEqual(["L0/6-6", "L0/5-5", "L0/4-4"]);
  });

  test("go at every level in one pass, each for something that stays", () => {
    const replica = begun();
    commits(replica, 6, SECOND_MS);
    merge(replica, 1, 2, 4);
    merge(replica, 1, 5, 7);
    merge(replica, 2, 2, 7);
    commits(replica, 1, 2 * DAY_MS);
    const plan = replica.planPrune(POLICY);
    expect(deletedBy(plan)).toHaveLength(8);
    const doomed = new Set(plan.expired.map(({ object }) => object));
    expect(plan.expired.filter(({ supersededBy }) => supersededBy === null || doomed.has(supersededBy))).toEqual([]);
  });
});

describe("history", () => {
  /** A day of one commit an hour after each of `days` full backups. */
  function days(count: number): PaperReplica {
    const replica = begun();
    for (let day = 1; day < count; day++) {
      commits(replica, 24, HOUR_MS);
      replica.storeFull(replica.newest.index);
    }
    commits(replica, 24, HOUR_MS);
    return replica;
  }

  test("goes up to what serves the newest restore point that is as old as retention, change-sets before full backups", () => {
    const replica = days(5);
    const plan = replica.planPrune({ ...POLICY, retentionMs: 2 * DAY_MS });
    const deleted = deletedBy(plan);
    expect(plan.floor).toBe(73);
    expect([deleted[0], deleted.at(-1)]).toEqual(["L0/73-73", "full/1"]);
    expect(deleted.filter((name) => name.startsWith("full"))).toEqual(["full/49", "full/25", "full/1"]);
    expect(deleted.indexOf("full/49")).toBe(deleted.length - 3);
    expect(deletedBy(replica.planPrune(POLICY))).toEqual([]);
  });

  test("stays with the full backup that a late one does not yet stand for", () => {
    const replica = begun();
    commits(replica, 4, SECOND_MS);
    replica.storeFull(3, 5);
    replica.nowMs += DAY_MS;
    commits(replica, 1, 0);
    const policy = { ...POLICY, retentionMs: HOUR_MS };
    expect(deletedBy(replica.planPrune(policy))).toEqual(["L0/3-3", "L0/2-2", "full/1"]);
    // Its first restore point is newer than what is promised.
    replica.commit();
    replica.storeFull(5, 7);
    expect(replica.planPrune(policy).floor).toBe(5);
  });

  test("stays for the sake of what retention promises, and the limits that it goes against are named", () => {
    const replica = days(5);
    const plan = replica.planPrune({ ...POLICY, retentionMs: 2 * DAY_MS, maxBackups: 1, maxTotalSizeBytes: 1 });
    expect(plan.floor).toBe(73);
    expect(plan.unmet.map(({ limit, remaining }) => [limit, remaining])).toEqual([
      ["max_backups", 2],
      ["max_total_size", 248_000],
    ]);
  });

  test("goes by a limit where retention promises nothing, but never the newest full backup and what follows it", () => {
    const replica = days(5);
    const two = replica.planPrune({ ...POLICY, maxBackups: 2 });
    expect([two.floor, two.unmet]).toEqual([73, []]);
    const size = replica.planPrune({ ...POLICY, maxTotalSizeBytes: 400_000 });
    expect([size.floor, size.unmet]).toEqual([49, []]);
    const tiny = replica.planPrune({ ...POLICY, maxTotalSizeBytes: 1 });
    expect([tiny.floor, tiny.unmet]).toEqual([97, [{ limit: "max_total_size", allowed: 1, remaining: 124_000 }]]);
    expect(new Set(tiny.expired.map(({ reason }) => reason))).toEqual(new Set(["max_total_size"]));
  });

  test("stays when the newest full backup is damaged, or a change-set without which it leads nowhere", () => {
    const damaged = days(3);
    damaged.damage("app/full/0000000000000049.p");
    expect(damaged.planPrune({ ...POLICY, maxBackups: 1 }).floor).toBe(25);

    const late = begun();
    commits(late, 24, HOUR_MS);
    late.storeFull(20, 23);
    late.damage("app/L0/0000000000000022-0000000000000022.p");
    commits(late, 24, HOUR_MS);
    expect(deletedBy(late.planPrune({ ...POLICY, maxBackups: 1 }))).toEqual([]);
    expect(deletedBy(late.planPrune({ ...POLICY, retentionMs: HOUR_MS }))).toEqual([]);
  });

  test("is not cut at a full backup from which only another writer's change-set leads on", () => {
    const replica = begun();
    commits(replica, 6, HOUR_MS);
    replica.storeFull(2, 3);
    replica.storeFork(0, 3, 3);
    replica.remove("app/L0/0000000000000003-0000000000000003.p");
    commits(replica, 1, HOUR_MS);
    expect(deletedBy(replica.planPrune({ ...POLICY, maxBackups: 1 }))).toEqual([]);
    expect(deletedBy(replica.planPrune({ ...POLICY, retentionMs: HOUR_MS }))).toEqual([]);
  });

  test("is not cut at a full backup while another writer's change-set beside it may be the one that goes on", () => {
    const replica = begun();
    commits(replica, 1, SECOND_MS);
    replica.storeFull(2);
    replica.nowMs += 20 * MINUTE_MS;
    replica.storeFork(0, 2, 2);
    expect(deletedBy(replica.planPrune({ ...POLICY, maxTotalSizeBytes: 1 }))).toEqual([]);
  });

  test("is not cut at a full backup that only another writer's change-set settles", () => {
    const replica = begun();
    commits(replica, 3, SECOND_MS);
    replica.storeFull(3, 4);
    replica.remove(keyOf("app", find(replica, "L0/4-4")));
    replica.storeFork(0, 4, 4);
    replica.nowMs += 20 * MINUTE_MS;
    commits(replica, 1, SECOND_MS);
    expect(deletedBy(replica.planPrune({ ...POLICY, maxTotalSizeBytes: 1 }))).toEqual([]);
  });

  test("is not cut at a full backup that a merged change-set steps over", () => {
    const replica = days(3);
    commits(replica, 1, HOUR_MS);
    merge(replica, 1, 40, 60);
    for (let index = 40; index <= 60; index++) replica.remove(`app/L0/${pad(index)}-${pad(index)}.p`);
    commits(replica, 24, HOUR_MS);
    replica.storeFull(replica.newest.index);
    commits(replica, 1, HOUR_MS);
    expect(replica.planPrune({ ...POLICY, maxBackups: 2 }).floor).toBe(25);
  });

  test("stays around a marked moment: its full backup and what leads from there to it", () => {
    const replica = days(5);
    replica.marks.push(30);
    const policy = { ...POLICY, maxBackups: 1 };
    replica.prune(policy);
    const points = replica.restorable();
    expect([points.has(30), points.has(31), points.has(24), points.has(97)]).toEqual([true, false, false, true]);
    expect(deletedBy(replica.planPrune(policy))).toEqual([]);
    replica.marks.pop();
    expect(deletedBy(replica.planPrune(policy))).toHaveLength(6);
  });

  test("stays around a marked moment that cannot be restored at this moment", () => {
    const replica = days(5);
    replica.marks.push(30);
    replica.damage("app/L0/0000000000000028-0000000000000028.p");
    replica.learnAll();
    const deleted = deletedBy(replica.planPrune({ ...POLICY, maxBackups: 1 }));
    expect(deleted.filter((name) => /^(full\/25|L0\/(2[6-9]|30)-)/.test(name))).toEqual([]);
  });

  test("stays while a new chain has no full backup yet, and a replica of change-sets alone is left as it is", () => {
    const replica = days(3);
    replica.beginChain();
    commits(replica, 48, HOUR_MS);
    expect(replica.planPrune({ ...POLICY, maxBackups: 1 }).floor).toBe(49);
    for (const { key } of [...replica.objects.values()]) if (key.includes("full")) replica.remove(key);
    merge(replica, 1, 2, 20);
    commits(replica, 1, DAY_MS);
    const plan = replica.planPrune({ ...POLICY, retentionMs: HOUR_MS, maxBackups: 1, maxTotalSizeBytes: 1 });
    expect([plan.expired, plan.floor]).toEqual([[], null]);
  });

  test("stays after a verify that found problems, and the plan says why", () => {
    const replica = days(3);
    const plan = replica.planPrune({ ...POLICY, maxBackups: 1 }, "the last verify found problems");
    expect([plan.expired, plan.refused]).toEqual([[], "the last verify found problems"]);
    expect(replica.planPrune(POLICY, "the last verify found problems").refused).toBeNull();
  });

  describe("with clocks that are wrong", () => {
    const policy = { ...POLICY, retentionMs: 3 * DAY_MS };

    test("the destination's, which was in 1970 while all that is recent was stored", () => {
      const replica = days(2);
      replica.skews.destinationMs = -56 * 365 * DAY_MS;
      for (let day = 0; day < 4; day++) {
        commits(replica, 24, HOUR_MS);
        replica.storeFull(replica.newest.index);
      }
      replica.skews.destinationMs = 0;
      commits(replica, 24, HOUR_MS);
      // Three days back is state 97. By the destination's clock 145 is older than that; by the stamps the first that is lies before 97.
      expect(replica.planPrune(policy).floor).toBe(73);
    });

    test("the destination's, which jumps ahead by ten years and stays there", () => {
      const replica = days(2);
      replica.skews.destinationMs = 3650 * DAY_MS;
      commits(replica, 24, HOUR_MS);
      expect(deletedBy(replica.planPrune(policy))).toEqual([]);
    });

    test("the destination's is never ahead of our own, and a stamp in the future is young", () => {
      const replica = days(2);
      const [oldest] = replica.catalog.fulls;
      if (oldest === undefined) throw new Error("there is a full backup");
      replica.skews.destinationMs = 3650 * DAY_MS;
      commits(replica, 1, 0);
      const clock = new RetentionClock(replica.catalog, replica.nowMs);
      expect([clock.wasStoredFor(2 * DAY_MS, oldest), clock.wasStoredFor(3 * DAY_MS, oldest)]).toEqual([true, false]);
      expect(clock.wasCommittedFor(0, { lastCommitMs: replica.nowMs + 1 })).toBe(false);
      // What was stored in the future is no evidence, and makes nothing that came later look so either.
      expect(clock.storedTimes(replica.catalog).has(replica.newest.index)).toBe(false);
    });

    test("our own, which is ahead by ten years", () => {
      const replica = days(2);
      replica.skews.hostMs = 3650 * DAY_MS;
      commits(replica, 24, HOUR_MS);
      expect(deletedBy(replica.planPrune(policy))).toEqual([]);
    });

    test("our own, which is in 1970", () => {
      const replica = days(6);
      replica.skews.hostMs = -56 * 365 * DAY_MS;
      expect(deletedBy(replica.planPrune(policy))).toEqual([]);
    });
  });
});

describe("the check for loss, whatever a plan says, objects to deleting", () => {
  function lossOf(
    replica: PaperReplica,
    names: readonly string[],
    policy: Partial<RetentionPolicy> = {},
  ): string | null {
    replica.planPrune({ ...POLICY, retentionMs: 1 });
    const inputs = {
      catalog: replica.catalog,
      knowledge: (object: ReplicaObject) => replica.facts(object),
      preferences: { seal: "p", current: null },
      policy: { ...POLICY, ...policy },
      marks: replica.marks,
      frozen: null,
      nowMs: replica.hostNowMs,
    };
    return atOnce(findingLoss(inputs, replica.graph(), new Set(names.map((name) => find(replica, name)))));
  }

  function merged(): PaperReplica {
    const replica = begun();
    commits(replica, 4, SECOND_MS);
    merge(replica, 1, 2, 4);
    commits(replica, 1, 2 * HOUR_MS);
    return replica;
  }

  test("the newest restore point, a marked one, and one that nothing spans", () => {
    expect(lossOf(merged(), ["L0/6-6"])).toMatch(/^state 6 .* the newest restore point$/);
    const replica = merged();
    replica.marks.push(3);
    expect(lossOf(replica, ["L0/3-3"])).toMatch(/^state 3 .* a marked moment$/);
    expect(lossOf(merged(), ["L1/2-4", "L0/3-3", "L0/2-2"])).toMatch(/^state \d /);
    expect(lossOf(merged(), ["L0/4-4", "L0/3-3", "L0/2-2"])).toBeNull();
  });

  test("what a full backup needs to lead on", () => {
    const replica = merged();
    replica.storeFull(3);
    expect(lossOf(replica, ["L0/4-4", "L0/3-3"])).toBe("full backup 3 would lead nowhere");
  });

  test("one of the newest, and what is too young for what would stand for it", () => {
    expect(lossOf(merged(), ["L0/4-4", "L0/3-3", "L0/2-2"], { keepRecent: 3 })).toMatch(/one of the newest/);
    expect(lossOf(merged(), ["L0/3-3"], { mergedKeepMs: [3 * HOUR_MS] })).toMatch(/younger than compaction_keep$/);
    const lone = begun();
    commits(lone, 3, MINUTE_MS);
    merge(lone, 2, 2, 4);
    commits(lone, 1, 2 * HOUR_MS);
    expect(lossOf(lone, ["L0/4-4", "L0/3-3", "L0/2-2"])).toMatch(/younger than compaction_keep$/);
    const stamped = merged();
    stamped.skews.hostMs = -90 * MINUTE_MS;
    expect(lossOf(stamped, ["L0/3-3"])).not.toBeNull();
  });

  test("history that retention promises, and any at all where nothing asks for it", () => {
    const replica = begun();
    commits(replica, 4, HOUR_MS);
    replica.storeFull(5);
    commits(replica, 4, HOUR_MS);
    const history = ["L0/5-5", "L0/4-4", "L0/3-3", "L0/2-2", "full/1"];
    expect(lossOf(replica, history)).not.toBeNull();
    expect(lossOf(replica, history, { retentionMs: DAY_MS })).not.toBeNull();
    expect(lossOf(replica, history, { retentionMs: 3 * HOUR_MS })).toBeNull();
    expect(lossOf(replica, history, { maxBackups: 1 })).toBeNull();
    expect(lossOf(replica, [...history, "full/5"], { maxBackups: 1 })).not.toBeNull();
  });
});

function pad(index: number): string {
  return `${index}`.padStart(16, "0");
}
