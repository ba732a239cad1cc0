import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { withSeed } from "../support/random.ts";
import { Application } from "./application.ts";
import { COMMIT, type Scene, scene } from "./scene.ts";
import { interposeSteps } from "./steps.ts";

// Between any two steps of ours the application may do anything. Here it does.

let application: Application;
beforeAll(async () => {
  application = await Application.start();
});
afterAll(async () => await application[Symbol.asyncDispose]());

const TIMEOUT_MS = 60_000;

/** What the application does, statement by statement; those that meet a lock are given up. */
type Act = readonly string[];
/** The act before a step of ours, by the number of that step. */
type Plan = ReadonlyMap<number, Act>;

const PASSIVE: Act = ["PRAGMA wal_checkpoint(PASSIVE)"];
const ACTS = {
  "a commit": [COMMIT],
  "a TRUNCATE and a commit": ["PRAGMA wal_checkpoint(TRUNCATE)", COMMIT],
  "a transaction that spills, is rolled back, and a commit": [
    "BEGIN IMMEDIATE",
    "INSERT INTO filler SELECT NULL, randomblob(3000) FROM tally AS x, tally AS y",
    "ROLLBACK",
    COMMIT,
  ],
  VACUUM: ["VACUUM"],
} satisfies Record<string, Act>;

describe("nothing is lost or mixed, whenever the application steps in with", () => {
  for (const [name, act] of Object.entries(ACTS)) {
    test(
      name,
      async () => {
        let steps = 1;
        for (let at = 0; at < steps; at++) steps = await follow(1, new Map([[at, act]]));
        expect(steps).toBeGreaterThan(30);
      },
      TIMEOUT_MS,
    );
  }

  test(
    "several of these, and checkpoints, at moments drawn by lot",
    async () => {
      const acts: readonly Act[] = [...Object.values(ACTS), PASSIVE, ["PRAGMA wal_checkpoint(RESTART)"]];
      await withSeed(async (random) => {
        for (let run = 0; run < 60; run++) {
          const start = random.integer(0, 60);
          const moments = Array.from({ length: random.integer(2, 5) }, () => start + random.integer(0, 12));
          await follow(2, new Map(moments.map((at) => [at, random.pick(acts)])));
        }
      });
    },
    TIMEOUT_MS,
  );
});

/** Captures, resolves and checkpoints, with the plan in between. The number of steps that this takes. */
async function follow(rounds: number, plan: Plan): Promise<number> {
  await using s = await scene(application, ["PRAGMA cache_size=2"]);
  using shadow = s.follow();
  s.commit(2);
  return carryOut(plan, s, () => {
    for (let round = 0; round < rounds; round++) {
      expect(shadow.sync().kind).toBe("captured");
      s.checkCommitted(shadow);
      shadow.checkpoint();
      expect(shadow.sync().kind).toBe("captured");
      s.checkCommitted(shadow);
      s.commit();
    }
    expect(shadow.sync().kind).toBe("captured");
    s.checkCommitted(shadow);
    return () => s.judge(shadow);
  });
}

describe("an attach is proven and nothing is missing, or it says that it is not, when the WAL", () => {
  for (const backfilled of [false, true]) {
    test(
      `was ${backfilled ? "wholly" : "not"} backfilled before, whatever the application does meanwhile`,
      async () => {
        const outcomes: string[] = [];
        for (const [first, second] of [
          [PASSIVE, ACTS["a commit"]],
          [ACTS["a commit"], ACTS["a TRUNCATE and a commit"]],
        ] as const) {
          for (let [i, steps] = [0, 1]; i < steps; i++) {
            for (let j = i + 1; j <= i + 5; j++) {
              steps = await attach(
                { backfilled, outcomes },
                new Map([
                  [i, first],
                  [j, second],
                ]),
              );
            }
          }
        }
        expect(outcomes.filter((outcome) => outcome === "proven").length).toBeGreaterThan(20);
      },
      TIMEOUT_MS,
    );
  }
});

/** Attaches with the cursor of two commits ago, with the plan in between. The number of steps that this takes. */
async function attach(options: { backfilled: boolean; outcomes: string[] }, plan: Plan): Promise<number> {
  await using s = await scene(application);
  using before = s.follow();
  const { cursor } = before;
  before[Symbol.dispose]();
  s.commit(2);
  if (options.backfilled) s.db.checkpoint("PASSIVE");
  return carryOut(plan, s, () => {
    const shadow = s.follow({ cursor });
    for (let round = 0; round < 3; round++) {
      const result = shadow.sync();
      options.outcomes.push(result.kind === "fault" ? result.fault : shadow.continuity.kind);
      if (result.kind === "fault") return () => {};
      s.checkCommitted(shadow);
    }
    return () => s.judge(shadow);
  });
}

/** Does `work` with the plan in between, then what `work` gave, and tells how many steps there were. */
function carryOut(plan: Plan, s: Scene, work: () => () => void): number {
  let steps = 0;
  try {
    const interposed = interposeSteps((step) => {
      steps = step + 1;
      for (const sql of plan.get(step) ?? []) s.db.attempt(sql);
    });
    let judge = () => {};
    try {
      judge = work();
    } finally {
      interposed[Symbol.dispose]();
    }
    judge();
    return steps;
  } catch (error) {
    const story = [...plan].map(([step, act]) => `${act.join("; ")} before step ${step}`).join(", then ");
    throw new Error(`with ${story}: ${error instanceof Error ? error.message : error}`, { cause: error });
  }
}
