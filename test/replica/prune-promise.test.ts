import { expect, test } from "bun:test";
import { keyBelow, keyOf } from "../../src/replica/catalog.ts";
import type { MergePlan } from "../../src/replica/compaction-plan.ts";
import type { Expiry } from "../../src/replica/retention-plan.ts";
import { fc } from "../support/properties.ts";
import { type PaperPolicy, PaperReplica } from "./paper-replica.ts";
import { promised } from "./promise.ts";

const SECOND_MS = 1_000;
const MINUTE_MS = 60 * SECOND_MS;
const HOUR_MS = 60 * MINUTE_MS;
const DAY_MS = 24 * HOUR_MS;
const START_MS = Date.UTC(2026, 0, 1);

/** One step in the life of a replica. Numbers are read modulo what is possible at that moment. */
type Step =
  | { readonly do: "commits"; readonly count: number; readonly spacingMs: number; readonly settledAfter: number }
  | { readonly do: "full"; readonly back: number; readonly settledAfter: number }
  | { readonly do: "idle"; readonly ms: number }
  | { readonly do: "chain"; readonly full: boolean }
  | { readonly do: "fork"; readonly level: number; readonly back: number; readonly length: number }
  | { readonly do: "harm"; readonly object: number; readonly how: "remove" | "damage" }
  | { readonly do: "clock"; readonly whose: "host" | "destination"; readonly ms: number }
  | { readonly do: "mark"; readonly back: number }
  | { readonly do: "compact"; readonly staleSteps: number }
  | { readonly do: "prune"; readonly atMost: number };

const span = fc.constantFrom(
  0,
  3 * SECOND_MS,
  20 * SECOND_MS,
  MINUTE_MS,
  12 * MINUTE_MS,
  HOUR_MS,
  8 * HOUR_MS,
  3 * DAY_MS,
);

const commits = fc.record({
  do: fc.constant("commits" as const),
  count: fc.integer({ min: 1, max: 8 }),
  spacingMs: fc.constantFrom(0, 1_000, 7_000, 31_000, 200_000),
  settledAfter: fc.constantFrom(0, 0, 0, 0, 1, 3),
});
const idle = fc.record({ do: fc.constant("idle" as const), ms: span });
const full = fc.record({
  do: fc.constant("full" as const),
  back: fc.nat(12),
  settledAfter: fc.constantFrom(0, 0, 1, 4),
});
const compact = fc.record({ do: fc.constant("compact" as const), staleSteps: fc.constantFrom(0, 0, 0, 2, 5) });
const prune = fc.record({ do: fc.constant("prune" as const), atMost: fc.constantFrom(0, 1, 3, 1_000, 1_000, 1_000) });
const mark = fc.record({ do: fc.constant("mark" as const), back: fc.nat(20) });
const peaceful: fc.Arbitrary<Step> = fc.oneof(
  { weight: 8, arbitrary: commits },
  { weight: 4, arbitrary: idle },
  { weight: 2, arbitrary: full },
  { weight: 4, arbitrary: compact },
  { weight: 4, arbitrary: prune },
  { weight: 1, arbitrary: mark },
);
const hostile: fc.Arbitrary<Step> = fc.oneof(
  { weight: 20, arbitrary: peaceful },
  { weight: 1, arbitrary: fc.record({ do: fc.constant("chain" as const), full: fc.boolean() }) },
  {
    weight: 1,
    arbitrary: fc.record({
      do: fc.constant("fork" as const),
      level: fc.constantFrom(0, 0, 1, 2),
      back: fc.nat(10),
      length: fc.nat(4),
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({
      do: fc.constant("harm" as const),
      object: fc.nat(),
      how: fc.constantFrom("remove" as const, "damage" as const),
    }),
  },
);

const policy: fc.Arbitrary<PaperPolicy> = fc
  .record({
    windows: fc.constantFrom(
      [30 * SECOND_MS, 5 * MINUTE_MS, HOUR_MS],
      [10 * SECOND_MS],
      [30 * SECOND_MS, 45 * SECOND_MS],
      [7 * MINUTE_MS, HOUR_MS, DAY_MS],
      [],
    ),
    keeps: fc.array(fc.constantFrom(0, MINUTE_MS, HOUR_MS, DAY_MS), { minLength: 3, maxLength: 3 }),
    keepRecent: fc.constantFrom(0, 1, 4, 16),
    retentionMs: fc.constantFrom(0, 0, HOUR_MS, DAY_MS, 4 * DAY_MS),
    maxBackups: fc.constantFrom(0, 0, 1, 2, 3),
    maxTotalSizeBytes: fc.constantFrom(0, 0, 1, 150_000, 400_000),
  })
  .map(({ windows, keeps, ...retention }) => ({
    levelWindowsMs: windows,
    retention: { mergedKeepMs: keeps.slice(0, windows.length), ...retention },
  }));

const MAX_PASSES = 3;

/** What every step is checked against. */
class Life {
  readonly replica = new PaperReplica(START_MS);
  readonly policy: PaperPolicy;
  readonly #ever = new Set<number>();
  readonly #stale: { level: number; plan: MergePlan; inSteps: number }[] = [];
  #chainStart: number;
  refusals: string[] = [];

  constructor(policyOfLife: PaperPolicy) {
    this.policy = policyOfLife;
    this.#chainStart = this.replica.beginChain().index;
    this.replica.storeFull(this.#chainStart);
  }

  take(step: Step): void {
    const {
      replica,
      policy: { levelWindowsMs, retention },
    } = this;
    const newest = replica.newest.index;
    switch (step.do) {
      case "commits":
        for (let i = 0; i < step.count; i++) {
          replica.nowMs += step.spacingMs;
          replica.commit(i === 0 ? step.settledAfter : 0);
        }
        break;
      case "full": {
        const index = Math.max(this.#chainStart, newest - step.back);
        // It is stored only once what settles it is.
        replica.storeFull(index, Math.min(newest, index + step.settledAfter));
        break;
      }
      case "idle":
        replica.nowMs += step.ms;
        break;
      case "chain":
        this.#chainStart = replica.beginChain().index;
        if (step.full) replica.storeFull(this.#chainStart);
        break;
      case "fork": {
        const first = Math.max(this.#chainStart + 1, newest - step.back);
        if (first <= newest) replica.storeFork(step.level, first, Math.min(newest, first + step.length));
        break;
      }
      case "harm": {
        const keys = [...replica.objects.keys()];
        const key = keys[step.object % keys.length];
        if (key === undefined) break;
        if (step.how === "remove") replica.remove(key);
        else replica.damage(key);
        break;
      }
      case "clock":
        replica.skews[step.whose === "host" ? "hostMs" : "destinationMs"] = step.ms;
        break;
      case "mark":
        if (replica.restorable().has(newest - step.back)) replica.marks.push(newest - step.back);
        break;
      case "compact": {
        const before = this.#note();
        if (step.staleSteps === 0) replica.compact(this.policy);
        else
          for (const [i, windowMs] of levelWindowsMs.entries()) {
            const plan = replica.planLevel(i + 1, windowMs, retention.keepRecent);
            this.#stale.push({ level: i + 1, plan, inSteps: step.staleSteps });
          }
        const after = replica.restorable();
        expect([...before].filter((index) => !after.has(index))).toEqual([]);
        break;
      }
      case "prune":
        this.#prune(step.atMost);
        break;
    }
    this.#carryOutStale();
    this.#note();
  }

  #prune(atMost: number): void {
    this.replica.forget();
    let { length } = this.#pruneOnce(atMost);
    // What goes may have been in the way of something else, such as a full backup of a stand-in; but that comes to an end.
    for (let pass = 0; atMost >= length && length > 0; pass++) {
      if (pass === MAX_PASSES) throw new Error(`${pass} passes right after each other all delete something`);
      ({ length } = this.#pruneOnce(atMost));
    }
  }

  #pruneOnce(atMost: number): readonly Expiry[] {
    const { replica } = this;
    const before = this.#note();
    const required = promised(replica, this.policy, { restorable: before, ever: this.#ever });
    const { expired, refused } = replica.prune(this.policy.retention, atMost);
    if (refused !== null) this.refusals.push(refused);
    const after = replica.restorable();
    const lost = [...required].filter((index) => !after.has(index));
    const deleted = expired.map(({ object, reason }) => `${keyBelow(object)} ${reason}`);
    if (lost.length > 0) throw new Error(`lost ${lost} of ${[...required]} by deleting ${deleted}`);
    return expired;
  }

  /** What another compactor planned a while ago is stored now, as far as its inputs are still there. */
  #carryOutStale(): void {
    for (const stale of this.#stale) {
      stale.inSteps--;
      if (stale.inSteps !== 0) continue;
      for (const { inputs } of stale.plan.merges) {
        const present = inputs.map((object) => this.replica.objects.get(keyOf("app", object)));
        if (present.every((object) => object !== undefined && object.facts !== "unusable"))
          this.replica.putMerged(stale.level, inputs);
      }
    }
  }

  #note(): ReadonlySet<number> {
    const restorable = this.replica.restorable();
    for (const index of restorable) this.#ever.add(index);
    return restorable;
  }
}

test("whatever is stored, merged and deleted in whatever order, what the policy promises stays restorable", () => {
  fc.assert(
    fc.property(policy, fc.array(peaceful, { minLength: 10, maxLength: 60 }), (chosen, steps) => {
      const life = new Life(chosen);
      for (const step of steps) life.take(step);
      expect(life.refusals).toEqual([]);
    }),
    { numRuns: 1_000, includeErrorInReport: true },
  );
}, 120_000);

test("so it does with new chains, second writers, and objects that are damaged or vanish", () => {
  fc.assert(
    fc.property(policy, fc.array(hostile, { minLength: 10, maxLength: 60 }), (chosen, steps) => {
      const life = new Life(chosen);
      for (const step of steps) life.take(step);
    }),
    { numRuns: 1_000, includeErrorInReport: true },
  );
}, 120_000);

test.each(["host", "destination"] as const)(
  "so it does while the clock of the %s jumps about",
  (whose) => {
    const clock = fc.record({
      do: fc.constant("clock" as const),
      whose: fc.constant(whose),
      ms: fc.constantFrom(0, 0, -HOUR_MS, HOUR_MS, -50 * 365 * DAY_MS, 10 * 365 * DAY_MS, -20_000),
    });
    const step = fc.oneof({ weight: 12, arbitrary: peaceful }, { weight: 1, arbitrary: clock });
    fc.assert(
      fc.property(policy, fc.array(step, { minLength: 10, maxLength: 60 }), (chosen, steps) => {
        const life = new Life(chosen);
        for (const one of steps) life.take(one);
      }),
      { numRuns: 1_000, includeErrorInReport: true },
    );
  },
  120_000,
);
