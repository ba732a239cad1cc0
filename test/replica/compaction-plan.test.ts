import { describe, expect, test } from "bun:test";
import { keyOf, type ReplicaObject } from "../../src/replica/catalog.ts";
import { type MergePlan, planMerges } from "../../src/replica/compaction-plan.ts";
import { fc } from "../support/properties.ts";
import { PaperReplica } from "./paper-replica.ts";

const SECOND_MS = 1_000;
const MINUTE_MS = 60 * SECOND_MS;
const START_MS = Date.UTC(2026, 0, 1);

function begun(): PaperReplica {
  const replica = new PaperReplica(START_MS);
  replica.storeFull(replica.beginChain().index);
  return replica;
}

/** Commits at these seconds after the start. */
function commitsAt(replica: PaperReplica, ...seconds: readonly number[]): void {
  for (const second of seconds) {
    replica.nowMs = START_MS + second * SECOND_MS;
    replica.commit();
  }
}

function rangesOf({ merges }: MergePlan): readonly string[] {
  return merges.map(({ first, last, inputs }) => `${first}-${last} of ${inputs.length}`);
}

/** What is merged into windows of 30 s, of 5 min for level 2. */
function planned(replica: PaperReplica, { level = 1, keepRecent = 0, cuts = [] as number[] } = {}): readonly string[] {
  return rangesOf(replica.planLevel(level, level === 1 ? 30 * SECOND_MS : 5 * MINUTE_MS, keepRecent, cuts));
}

describe("change-sets are merged", () => {
  test("by the windows of absolute time that their last states lie in, and one that is alone stays", () => {
    const replica = begun();
    commitsAt(replica, 3, 10, 29, 30, 59, 61, 95, 119);
    replica.nowMs += 10 * MINUTE_MS;
    expect(planned(replica)).toEqual(["2-4 of 3", "5-6 of 2", "8-9 of 2"]);
  });

  test("once something of another window follows, or the window has been over for five minutes", () => {
    const replica = begun();
    commitsAt(replica, 3, 10, 31, 40);
    expect(planned(replica)).toEqual(["2-3 of 2"]);
    replica.nowMs = START_MS + 359 * SECOND_MS;
    expect(planned(replica)).toEqual(["2-3 of 2"]);
    replica.nowMs = START_MS + 360 * SECOND_MS;
    expect(planned(replica)).toEqual(["2-3 of 2", "4-5 of 2"]);
  });

  test("unless the run holds one of the newest", () => {
    const replica = begun();
    commitsAt(replica, 3, 10, 31, 40, 61);
    replica.nowMs += 10 * MINUTE_MS;
    expect(planned(replica, { keepRecent: 1 })).toEqual(["2-3 of 2", "4-5 of 2"]);
    expect(planned(replica, { keepRecent: 2 })).toEqual(["2-3 of 2"]);
    expect(planned(replica, { keepRecent: 4 })).toEqual([]);
  });

  test("up to the state where a full backup begins, one that is being taken too, or that was marked", () => {
    const replica = begun();
    commitsAt(replica, 1, 2, 3, 4, 5, 6, 7);
    replica.storeFull(3, 5);
    replica.marks.push(6);
    replica.nowMs += 10 * MINUTE_MS;
    expect(planned(replica)).toEqual(["2-3 of 2", "4-6 of 3", "7-8 of 2"]);
    expect(planned(replica, { cuts: [4] })).toEqual(["2-3 of 2", "5-6 of 2", "7-8 of 2"]);
  });

  test("never over a full backup, though a change-set of an older compaction does", () => {
    const replica = begun();
    commitsAt(replica, 1, 2, 3, 4);
    replica.putMerged(1, replica.catalog.levels[0] ?? []);
    replica.storeFull(3);
    replica.nowMs += 10 * MINUTE_MS;
    expect(planned(replica, { level: 2 })).toEqual(["2-3 of 2", "4-5 of 2"]);
  });

  test("to where everything in them is settled, so that the result ends at a restore point", () => {
    const replica = begun();
    replica.nowMs += SECOND_MS;
    replica.commit();
    replica.nowMs = START_MS + 20 * SECOND_MS;
    replica.commit(2);
    commitsAt(replica, 31, 40, 62);
    replica.nowMs += 10 * MINUTE_MS;
    // 3 is settled at 5, so the first window's last restore point is 2.
    expect(planned(replica)).toEqual(["3-5 of 3"]);
  });

  test("by twos of levels: what a lower one left and what it made", () => {
    const replica = begun();
    commitsAt(replica, 3, 10, 35, 61, 70, 310);
    replica.nowMs += 10 * MINUTE_MS;
    replica.compact({
      levelWindowsMs: [30 * SECOND_MS],
      retention: { mergedKeepMs: [0], keepRecent: 0, retentionMs: 0, maxBackups: 0, maxTotalSizeBytes: 0 },
    });
    expect(planned(replica)).toEqual([]);
    expect(planned(replica, { level: 2 })).toEqual(["2-6 of 3"]);
  });

  test("in parts that memory has room for", () => {
    const replica = begun();
    for (let i = 0; i < 8_000; i++) replica.commit();
    replica.nowMs += 10 * MINUTE_MS;
    const { merges } = replica.planLevel(1, 30 * SECOND_MS, 0);
    expect(merges.length).toBe(3);
    expect(merges.map(({ last }, i) => merges[i + 1]?.first ?? last + 1)).toEqual(merges.map(({ last }) => last + 1));
  });
});

describe("change-sets are left as they are", () => {
  test("on the far side of a gap and of a new chain, each for itself", () => {
    const replica = begun();
    commitsAt(replica, 1, 2, 3, 4, 5);
    replica.remove("app/L0/0000000000000004-0000000000000004.p");
    replica.beginChain();
    replica.commit();
    replica.commit();
    replica.nowMs += 10 * MINUTE_MS;
    expect(planned(replica)).toEqual(["2-3 of 2", "5-6 of 2", "8-9 of 2"]);
  });

  test("where two lineages meet and nothing tells which is ours", () => {
    const replica = begun();
    commitsAt(replica, 1, 2, 3);
    replica.storeFork(0, 4, 4);
    replica.nowMs += 10 * MINUTE_MS;
    const merged = replica.planLevel(1, 30 * SECOND_MS, 0).merges.flatMap(({ inputs }) => inputs);
    expect(new Set(merged.filter(({ last }) => last === 4).map(({ seal }) => seal)).size).toBeLessThan(2);
    replica.commit();
    replica.nowMs += 10 * MINUTE_MS;
    expect(planned(replica)).toEqual(["2-4 of 3"]);
    const { merges } = replica.planLevel(1, 30 * SECOND_MS, 0);
    expect(merges.flatMap(({ inputs }) => inputs).map(({ seal }) => seal)).toEqual(["p", "p", "p"]);
  });
});

test("with some objects not known yet nothing is merged that would not be if all were", () => {
  const gaps = fc.array(fc.constantFrom(1, 1, 5, 20, 40, 400), { minLength: 2, maxLength: 40 });
  fc.assert(
    fc.property(gaps, fc.func(fc.boolean()), fc.constantFrom(0, 5), fc.nat(30), (pauses, isKnown, keepRecent, cut) => {
      const replica = begun();
      let second = 0;
      for (const pause of pauses) {
        second += pause;
        commitsAt(replica, second);
      }
      replica.nowMs += 10 * MINUTE_MS;
      const all = new Set(planned(replica, { keepRecent, cuts: [cut] }));
      const partly = planMerges({
        catalog: replica.catalog,
        knowledge: (object: ReplicaObject) => (isKnown(keyOf("app", object)) ? replica.facts(object) : "unknown"),
        forks: new Set(),
        level: 1,
        windowMs: 30 * SECOND_MS,
        keepRecent,
        cuts: new Set([1, cut]),
        seal: "p",
        nowMs: replica.nowMs,
      });
      expect(rangesOf(partly).filter((range) => !all.has(range))).toEqual([]);
    }),
    { numRuns: 300 },
  );
});
