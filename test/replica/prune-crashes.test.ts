import { expect, test } from "bun:test";
import type { RetentionPolicy } from "../../src/replica/retention-policy.ts";
import { fc } from "../support/properties.ts";
import { type Random, seededRandom } from "../support/random.ts";
import { ReplicaBuilder, testKey } from "./builder.ts";
import { ClockedBackend, Killed } from "./clocked-backend.ts";
import { compactBuilt, KEEP_ALL, pruneBuilt, restoreAll } from "./upkeep.ts";

const START_MS = Date.UTC(2026, 0, 1);
const MINUTE_MS = 60_000;
const HOUR_MS = 60 * MINUTE_MS;

/** The writer, its destinations and their clock. */
class Scene {
  nowMs = START_MS;
  readonly random: Random;
  readonly backends: readonly ClockedBackend[];
  readonly builder: ReplicaBuilder;

  constructor(seed: number, { destinations = 1, sealed = false } = {}) {
    this.random = seededRandom(seed);
    this.backends = Array.from({ length: destinations }, (_, i) => new ClockedBackend(() => this.nowMs, `place ${i}`));
    const seal = sealed ? testKey(3) : null;
    this.builder = new ReplicaBuilder({ backends: this.backends, random: this.random, startMs: START_MS, seal });
  }

  passTime(ms: number): void {
    this.nowMs += ms;
    this.builder.passTime(ms);
  }

  async begin(): Promise<void> {
    this.builder.beginChain(Array.from({ length: 6 }, () => this.builder.randomImage()));
    await this.builder.storeFull(this.builder.newest.index);
  }

  /** Commits that grow and shrink the database, some of them read while the next ones came, and full backups in between. */
  async write(count: number): Promise<void> {
    const { builder, random } = this;
    let waiting: number | null = null;
    for (let i = 0; i < count; i++) {
      this.passTime(random.pick([0, 400, 5_000, 20_000, 70_000]));
      const { index } = builder.commitRandom(random.integer(0, 3), random.integer(1, 14));
      if (waiting !== null) await builder.storeChangeSet(waiting, index);
      waiting = random.chance(0.15) ? index : null;
      if (waiting !== null) continue;
      await builder.storeChangeSet(index);
      if (random.chance(0.08)) await this.#storeFull(index);
    }
    if (waiting !== null) await builder.storeChangeSet(waiting);
  }

  /** Of this state, or of one a little before, which was read until now. */
  async #storeFull(index: number): Promise<void> {
    const chainStart = Math.min(
      ...[...this.builder.states.values()]
        .filter(({ chain }) => chain === this.builder.newest.chain)
        .map((state) => state.index),
    );
    const first = Math.max(chainStart, index - this.random.integer(0, 3));
    await this.builder.storeFull(first, index);
  }

  /** Compacts everywhere and prunes each destination. A kill leaves everything as it is at that moment. */
  async maintain(policy: RetentionPolicy, marks: readonly number[] = []): Promise<"done" | "killed"> {
    try {
      const report = await compactBuilt(this.builder, this.backends, this.random, {
        nowMs: this.nowMs,
        keepRecent: policy.keepRecent,
        cuts: new Set(marks),
      });
      expect(report.failures).toEqual([]);
      for (const backend of this.backends) {
        const pruned = await pruneBuilt(this.builder, backend, { nowMs: this.nowMs, policy, marks });
        expect([pruned.plan.refused, pruned.unsound]).toEqual([null, []]);
      }
      return "done";
    } catch (error) {
      if (error instanceof Killed) return "killed";
      throw error;
    } finally {
      for (const backend of this.backends) backend.callsLeft = Number.POSITIVE_INFINITY;
    }
  }
}

const policy: fc.Arbitrary<RetentionPolicy> = fc.record({
  mergedKeepMs: fc.constantFrom([0, 0, 0], [MINUTE_MS, 20 * MINUTE_MS, HOUR_MS]),
  keepRecent: fc.constantFrom(0, 3),
  retentionMs: fc.constantFrom(0, 30 * MINUTE_MS),
  maxBackups: fc.constantFrom(0, 2),
  maxTotalSizeBytes: fc.constant(0),
});

test("killed between any two calls and begun again, every restore point is what it was and the newest is there", async () => {
  let kills = 0;
  await fc.assert(
    fc.asyncProperty(
      fc.nat(),
      policy,
      fc.boolean(),
      fc.constantFrom(1, 2),
      async (seed, chosen, sealed, destinations) => {
        const scene = new Scene(seed, { destinations, sealed });
        const { builder, backends, random } = scene;
        await scene.begin();
        for (let round = 0; round < 3; round++) {
          await scene.write(25);
          const newest = Math.max(...(await restoreAll(builder, ...backends)));
          scene.passTime(random.pick([0, 11 * MINUTE_MS, 2 * HOUR_MS]));
          for (let tries = 0; ; tries++) {
            for (const backend of backends) backend.callsLeft = random.integer(0, 40 * (tries + 1));
            const outcome = await scene.maintain(chosen);
            for (const backend of backends) expect(Math.max(...(await restoreAll(builder, backend)))).toBe(newest);
            if (outcome === "done") break;
            kills++;
          }
        }
        // Nothing is left to do after it was done, until time goes on.
        scene.passTime(11 * MINUTE_MS);
        for (let pass = 0; pass < 4; pass++) await scene.maintain(chosen);
        const before = backends.map((backend) => [...backend.objects.keys()].sort());
        await scene.maintain(chosen);
        expect(backends.map((backend) => [...backend.objects.keys()].sort())).toEqual(before);
      },
    ),
    { numRuns: 10 },
  );
  expect(kills).toBeGreaterThan(20);
}, 120_000);

test("a marked moment stays restorable while everything before and after it is merged and deleted", async () => {
  await fc.assert(
    fc.asyncProperty(fc.nat(), policy, async (seed, chosen) => {
      const scene = new Scene(seed);
      const { builder, backends, random } = scene;
      await scene.begin();
      const marks: number[] = [];
      for (let round = 0; round < 4; round++) {
        await scene.write(15);
        marks.push(random.pick(await restoreAll(builder, ...backends)));
        scene.passTime(random.pick([0, 11 * MINUTE_MS, 2 * HOUR_MS]));
        expect(await scene.maintain(chosen, marks)).toBe("done");
        const points = await restoreAll(builder, ...backends);
        expect(marks.filter((mark) => !points.includes(mark))).toEqual([]);
      }
    }),
    { numRuns: 10 },
  );
}, 120_000);

test("where deleting is a lie nothing changes, and where it is denied that is told once with nothing lost", async () => {
  const scene = new Scene(8);
  const { builder, backends } = scene;
  const [backend] = backends;
  if (backend === undefined) throw new Error("there is one destination");
  await scene.begin();
  await scene.write(60);
  scene.passTime(HOUR_MS);
  await compactBuilt(builder, backends, scene.random, { nowMs: scene.nowMs });
  scene.passTime(HOUR_MS);
  await scene.write(1);
  const before = await restoreAll(builder, backend);

  backend.liesAboutDeleting = true;
  const lied = await pruneBuilt(builder, backend, { nowMs: scene.nowMs });
  expect(lied.deleted.length).toBeGreaterThan(20);
  expect(await restoreAll(builder, backend)).toEqual(before);
  const again = await pruneBuilt(builder, backend, { nowMs: scene.nowMs });
  expect(again.deleted).toEqual(lied.deleted);

  backend.deniesDeleting = true;
  const denied = await pruneBuilt(builder, backend, { nowMs: scene.nowMs });
  expect([denied.denied?.code, denied.deleted]).toEqual(["storage-denied", []]);
  expect(await restoreAll(builder, backend)).toEqual(before);

  backend.liesAboutDeleting = false;
  backend.deniesDeleting = false;
  const deleted = await pruneBuilt(builder, backend, { nowMs: scene.nowMs });
  expect(deleted.deleted).toEqual(lied.deleted);
  const after = await restoreAll(builder, backend);
  expect([after.length < before.length, after.at(-1)]).toEqual([true, before.at(-1)]);
});

test("a merged change-set whose bytes went bad at the destination is found when it is read back, and what it stands for stays", async () => {
  const scene = new Scene(9);
  const { builder, backends } = scene;
  const [backend] = backends;
  if (backend === undefined) throw new Error("there is one destination");
  await scene.begin();
  await scene.write(60);
  scene.passTime(HOUR_MS);
  const { merged } = await compactBuilt(builder, backends, scene.random, {
    nowMs: scene.nowMs,
    levelWindowsMs: [30_000],
  });
  scene.passTime(HOUR_MS);
  await scene.write(1);
  const [bad] = merged;
  if (bad === undefined) throw new Error("something was merged");
  // In the first data chunk, where reading header and trailer sees nothing.
  backend.flip(bad.key, 600);
  const report = await pruneBuilt(builder, backend, { nowMs: scene.nowMs, policy: { ...KEEP_ALL, mergedKeepMs: [0] } });
  expect(report.unsound.map(({ object, error }) => [object.first, error.code])).toEqual([
    [bad.first, "replica-corrupt"],
  ]);
  const deleted = new Set(backend.deleted);
  for (const { key, first, last } of merged)
    for (let index = first; index <= last; index++)
      expect([index, deleted.has(`app/L0/${`${index}`.padStart(16, "0")}-${`${index}`.padStart(16, "0")}.p`)]).toEqual([
        index,
        key !== bad.key,
      ]);
});

test("what was read back once is not read again, and a pass with nothing to do costs one listing", async () => {
  const scene = new Scene(10);
  const { builder, backends } = scene;
  const [backend] = backends;
  if (backend === undefined) throw new Error("there is one destination");
  await scene.begin();
  await scene.write(60);
  scene.passTime(HOUR_MS);
  await compactBuilt(builder, backends, scene.random, { nowMs: scene.nowMs });
  scene.passTime(HOUR_MS);
  await scene.write(1);
  const readBack = new Set<string>();
  backend.listCount = 0;
  const { deleted } = await pruneBuilt(builder, backend, { nowMs: scene.nowMs, readBack });
  expect(deleted.length).toBeGreaterThan(20);
  expect(backend.listCount).toBe(2);
  backend.listCount = 0;
  expect((await pruneBuilt(builder, backend, { nowMs: scene.nowMs, readBack })).deleted).toEqual([]);
  expect(backend.listCount).toBe(1);
});
