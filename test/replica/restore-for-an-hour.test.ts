import { expect, test } from "bun:test";
import { carryOut } from "../../src/replica/carry-out.ts";
import { planRestore, type RestoreTarget } from "../../src/replica/plan.ts";
import type { RetentionPolicy } from "../../src/replica/retention-policy.ts";
import { BakeliteError } from "../../src/util/errors.ts";
import { type Random, seededRandom } from "../support/random.ts";
import { ReplicaBuilder } from "./builder.ts";
import { ClockedBackend } from "./clocked-backend.ts";
import { layInMemory } from "./lay.ts";
import { compactBuilt, openBuilt, pruneBuilt } from "./upkeep.ts";

const START_MS = Date.UTC(2026, 0, 1);
const MINUTE_MS = 60_000;
const HOUR_MS = 60 * MINUTE_MS;

/** So short that much of what a restore of an hour has planned with becomes due for deletion under it. */
const POLICY: RetentionPolicy = {
  mergedKeepMs: [2 * MINUTE_MS, 20 * MINUTE_MS, 40 * MINUTE_MS],
  keepRecent: 4,
  retentionMs: 50 * MINUTE_MS,
  maxBackups: 0,
  maxTotalSizeBytes: 0,
};

/** A database that is written, backed up and seen to by a daemon. */
class Life {
  nowMs = START_MS;
  readonly random: Random;
  readonly backend = new ClockedBackend(() => this.nowMs);
  readonly builder: ReplicaBuilder;
  readonly marks: number[] = [];
  deletedCount = 0;
  mergedCount = 0;
  #nextFullMs = START_MS;
  #nextPassMs = START_MS + 5 * MINUTE_MS;

  constructor(seed: number, pageSizeBytes = 512) {
    this.random = seededRandom(seed);
    this.builder = new ReplicaBuilder({
      backends: [this.backend],
      random: this.random,
      startMs: START_MS,
      pageSizeBytes,
    });
    this.builder.beginChain(Array.from({ length: 10 }, () => this.builder.randomImage()));
  }

  /** A commit every 20 seconds, a full backup every 15 minutes, and a pass every 5 to 10. */
  async goOn(ms: number): Promise<void> {
    const { backend, builder, random } = this;
    const { onCall } = backend;
    backend.onCall = () => {};
    for (const untilMs = this.nowMs + ms; this.nowMs < untilMs; ) {
      this.nowMs += 20_000;
      builder.passTime(20_000);
      const { index } = builder.commitRandom(2, random.integer(6, 16));
      await builder.storeChangeSet(index);
      if (this.nowMs >= this.#nextFullMs) {
        await builder.storeFull(index);
        this.#nextFullMs = this.nowMs + 15 * MINUTE_MS;
      }
      if (random.chance(0.02)) this.marks.push(index);
      if (this.nowMs >= this.#nextPassMs) await this.#makePass();
    }
    backend.onCall = onCall;
  }

  async #makePass(): Promise<void> {
    const { backend, builder, marks, nowMs, random } = this;
    const cuts = new Set(marks);
    const { merged } = await compactBuilt(builder, [backend], random, { nowMs, keepRecent: POLICY.keepRecent, cuts });
    const { deleted, plan } = await pruneBuilt(builder, backend, { nowMs, policy: POLICY, marks });
    expect(plan.refused).toBeNull();
    this.mergedCount += merged.length;
    this.deletedCount += deleted.length;
    this.#nextPassMs = nowMs + random.integer(5, 10) * MINUTE_MS;
  }

  /** Restores while time goes on: that much of it passes at random ones of the restore's calls, as far as it makes enough of them. */
  async restoreFor(ms: number, target: RestoreTarget) {
    const { backend, random } = this;
    const endMs = this.nowMs + ms;
    let pauses = 0;
    backend.onCall = async () => {
      if (this.nowMs >= endMs || !random.chance(0.3)) return;
      pauses++;
      await this.goOn(Math.min(random.integer(1, 25) * MINUTE_MS, endMs - this.nowMs));
    };
    const replica = await openBuilt(this.builder, backend);
    try {
      const { plan, result } = await carryOut(replica, target, (planned) => layInMemory(replica, planned));
      return { index: plan.index, file: result.file, pauses, error: null };
    } catch (error) {
      if (!(error instanceof BakeliteError)) throw error;
      return { index: null, file: null, pauses, error };
    } finally {
      backend.onCall = () => {};
    }
  }
}

test("a restore of an hour, below which everything is merged and deleted, gives the state that it was asked for", async () => {
  let [pauses, deleted, merged] = [0, 0, 0];
  for (let seed = 1; seed <= 5; seed++) {
    const life = new Life(seed);
    await life.goOn(60 * MINUTE_MS);
    const { index: newest } = life.builder.newest;
    const [marked] = life.marks;
    life.marks.push(newest);
    const targets: readonly RestoreTarget[] = [
      { kind: "latest" },
      { kind: "index", index: newest },
      ...(marked === undefined ? [] : [{ kind: "index" as const, index: marked }]),
    ];
    for (const target of targets) {
      const before = life.deletedCount;
      const mergedBefore = life.mergedCount;
      const { index, file, error, ...held } = await life.restoreFor(HOUR_MS, target);
      expect({ seed, target, error }).toEqual({ seed, target, error: null });
      if (target.kind === "index") expect(index).toBe(target.index);
      if (index !== null) expect(Buffer.compare(file, life.builder.fileOf(index))).toBe(0);
      pauses += held.pauses;
      deleted += life.deletedCount - before;
      merged += life.mergedCount - mergedBefore;
    }
  }
  expect(Math.min(pauses / 15, deleted / 500, merged / 100)).toBeGreaterThan(1);
}, 60_000);

test("one whose moment the policy gives up meanwhile says so, and names what is left", async () => {
  let lost = 0;
  for (let seed = 1; seed <= 6; seed++) {
    const life = new Life(seed);
    await life.goOn(60 * MINUTE_MS);
    const index = life.builder.newest.index - life.random.integer(20, 120);
    const { file, error } = await life.restoreFor(3 * HOUR_MS, { kind: "index", index });
    if (file !== null) expect(Buffer.compare(file, life.builder.fileOf(index))).toBe(0);
    if (error === null) continue;
    lost++;
    expect({ seed, code: error.code, message: error.message, hint: error.hint }).toEqual({
      seed,
      code: expect.stringMatching(/^replica-/),
      message: expect.stringMatching(/deleted meanwhile|the first one is/),
      hint: expect.stringMatching(/--timestamp/),
    });
  }
  expect(lost).toBeGreaterThan(3);
}, 60_000);

test("one whose moment is merged away meanwhile gives what is left of it, and says so", async () => {
  let mergedCount = 0;
  for (let seed = 1; seed <= 3; seed++)
    for (const back of [0, 3]) {
      // So large that what was read for the plan is not kept.
      const life = new Life(seed, 65_536);
      const { backend, builder } = life;
      await life.goOn(60 * MINUTE_MS);
      const asked = builder.newest.index - back;
      const target: RestoreTarget =
        back === 0 ? { kind: "latest" } : { kind: "time", timeMs: builder.states.get(asked)?.stampMs ?? 0 };
      const replica = await openBuilt(builder, backend);
      const planned: number[] = [];
      const { plan, result } = await carryOut(replica, target, async (given) => {
        planned.push(given.index);
        // Between its plan and the first page: more than once, for what is left of the moment is merged in its turn.
        if (planned.length < 3) await life.goOn((planned.length === 1 ? 32 : 10) * MINUTE_MS);
        return await layInMemory(replica, given);
      });
      const { index, notes } = plan;
      expect(planned[0]).toBe(asked);
      expect(planned.at(-1)).toBe(index);
      expect(Buffer.compare(result.file, builder.fileOf(index))).toBe(0);
      // At least what a restore would give that began now.
      const timeMs = builder.states.get(asked)?.stampMs ?? 0;
      const since = await planRestore(await openBuilt(builder, backend), { kind: "time", timeMs });
      expect(index).toBeLessThanOrEqual(asked);
      expect(index).toBeGreaterThanOrEqual(since.index);
      if (index === asked) continue;
      mergedCount++;
      expect(notes).toEqual([
        `state ${planned.at(-2)} was merged into later ones while it was being restored: this is the newest restore point before it`,
      ]);
    }
  expect(mergedCount).toBeGreaterThan(3);
}, 60_000);
