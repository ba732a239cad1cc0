import { expect, test } from "bun:test";
import { emptyKeyRing } from "../../src/format/envelope.ts";
import { carryOut } from "../../src/replica/carry-out.ts";
import { planRestore, type RestoreTarget } from "../../src/replica/plan.ts";
import { Replica } from "../../src/replica/replica.ts";
import { BakeliteError } from "../../src/util/errors.ts";
import { fc } from "../support/properties.ts";
import { seededRandom } from "../support/random.ts";
import { ReplicaBuilder, type StoredChange } from "./builder.ts";
import { findRestorePoints } from "./judge.ts";
import { layInMemory } from "./lay.ts";
import { MemoryBackend } from "./memory-backend.ts";

/** One step in the life of a database and its replica. Numbers are read modulo what is possible at that moment. */
type Step =
  | { readonly do: "commit"; readonly pages: number; readonly size: number; readonly settledAfter: number }
  | { readonly do: "full"; readonly back: number; readonly settledAfter: number }
  | { readonly do: "compact"; readonly level: number; readonly back: number; readonly length: number }
  | { readonly do: "chain"; readonly size: number }
  | { readonly do: "time"; readonly ms: number };

const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 10,
    arbitrary: fc.record({
      do: fc.constant("commit" as const),
      pages: fc.nat(5),
      size: fc.nat(30),
      settledAfter: fc.constantFrom(0, 0, 0, 0, 1, 2),
    }),
  },
  { weight: 2, arbitrary: fc.record({ do: fc.constant("full" as const), back: fc.nat(8), settledAfter: fc.nat(4) }) },
  {
    weight: 2,
    arbitrary: fc.record({
      do: fc.constant("compact" as const),
      level: fc.integer({ min: 1, max: 9 }),
      back: fc.nat(10),
      length: fc.nat(8),
    }),
  },
  { weight: 1, arbitrary: fc.record({ do: fc.constant("chain" as const), size: fc.nat(30) }) },
  {
    weight: 3,
    arbitrary: fc.record({ do: fc.constant("time" as const), ms: fc.integer({ min: -5_000, max: 60_000 }) }),
  },
);

const damage = fc.record({
  object: fc.nat(),
  how: fc.constantFrom("remove" as const, "flip" as const, "truncate" as const, "swap" as const),
  at: fc.nat(),
});

/** Carries the steps out, then stores every change-set and every full backup and compaction that was asked for. */
async function build(builder: ReplicaBuilder, firstSize: number, steps: readonly Step[]): Promise<void> {
  const images = (size: number) => Array.from({ length: size }, () => builder.randomImage());
  let chainStart = builder.beginChain(images(firstSize)).index;
  const late = new Map<number, number>();
  const fulls: { readonly index: number; readonly settledAfter: number }[] = [{ index: chainStart, settledAfter: 0 }];
  const compactions: { readonly level: number; readonly first: number; readonly last: number }[] = [];
  const starts = [chainStart];
  for (const now of steps) {
    const newest = builder.newest.index;
    switch (now.do) {
      case "commit":
        builder.commitRandom(now.pages, now.size);
        late.set(newest + 1, now.settledAfter);
        break;
      case "full":
        fulls.push({ index: Math.max(chainStart, newest - now.back), settledAfter: now.settledAfter });
        break;
      case "compact": {
        const first = Math.max(chainStart + 1, newest - now.back);
        if (first <= newest) compactions.push({ level: now.level, first, last: Math.min(newest, first + now.length) });
        break;
      }
      case "chain":
        chainStart = builder.beginChain(images(now.size)).index;
        starts.push(chainStart);
        fulls.push({ index: chainStart, settledAfter: 0 });
        break;
      case "time":
        builder.passTime(now.ms);
        break;
    }
  }
  const chainEnd = (index: number) => (starts.find((start) => start > index) ?? builder.newest.index + 1) - 1;
  for (const index of builder.states.keys())
    if (!starts.includes(index))
      await builder.storeChangeSet(index, Math.min(chainEnd(index), index + (late.get(index) ?? 0)));
  for (const { index, settledAfter } of fulls)
    await builder.storeFull(index, Math.min(chainEnd(index), index + settledAfter));
  for (const { level, first, last } of compactions) await builder.compact(level, first, last);
}

/**
 * Takes what is harmed out of `stored`. Objects with one flipped bit are returned: a reader of ranges does not see each of
 * their bytes, such as the footer's hash of the whole object, so it may rightly use them.
 */
function harm(
  backend: MemoryBackend,
  stored: Map<string, StoredChange>,
  harms: readonly { object: number; how: "remove" | "flip" | "truncate" | "swap"; at: number }[],
): readonly StoredChange[] {
  const flipped = new Map<string, StoredChange>();
  for (const { object, how, at } of harms) {
    const keys = [...stored.keys()];
    const key = keys[object % keys.length];
    const bytes = key === undefined ? undefined : backend.objects.get(key);
    if (key === undefined || bytes === undefined) continue;
    if (how === "remove") backend.objects.delete(key);
    else if (how === "flip") backend.flip(key, at % bytes.length, at % 8);
    else if (how === "truncate") backend.objects.set(key, bytes.slice(0, at % bytes.length));
    else {
      const otherKey = keys[at % keys.length] ?? key;
      const other = backend.objects.get(otherKey);
      if (other === undefined || otherKey === key) continue;
      backend.objects.set(key, other);
    }
    const change = stored.get(key);
    stored.delete(key);
    if (how === "flip" && change !== undefined) flipped.set(key, change);
    else flipped.delete(key);
  }
  return [...flipped.values()];
}

async function openReplica(backends: readonly MemoryBackend[], maxProofReads?: number): Promise<Replica> {
  const options = { database: "app", backends, keys: emptyKeyRing, seal: "p", acceptPlaintext: true };
  return Replica.open(maxProofReads === undefined ? options : { ...options, maxProofReads });
}

/** Restores every index, and compares with the model and with the judge. */
async function checkEveryIndex(
  builder: ReplicaBuilder,
  backends: readonly MemoryBackend[],
  doubtful: readonly StoredChange[] = [],
): Promise<void> {
  const points = findRestorePoints([...builder.stored.values()]);
  const conceivable = findRestorePoints([...builder.stored.values(), ...doubtful]);
  const shared = await openReplica(backends);
  for (const [index] of builder.states) {
    // Both with all that earlier restores have learnt, and knowing nothing.
    for (const replica of [shared, await openReplica(backends)]) {
      const restored = await restoreIndex(replica, index);
      if (points.has(index) || !conceivable.has(index))
        expect([index, restored !== null]).toEqual([index, points.has(index)]);
      if (restored !== null) expect(Buffer.compare(restored, builder.fileOf(index))).toBe(0);
    }
  }
  const latest = await restoreLatest(await openReplica(backends));
  expect(latest?.index ?? 0).toBeGreaterThanOrEqual(Math.max(0, ...points));
  expect(latest?.index ?? 0).toBeLessThanOrEqual(Math.max(0, ...conceivable));
  if (latest !== null) expect(Buffer.compare(latest.file, builder.fileOf(latest.index))).toBe(0);
}

async function restoreIndex(replica: Replica, index: number): Promise<Uint8Array | null> {
  return nullWithoutPath(
    async () => (await layInMemory(replica, await planRestore(replica, { kind: "index", index }))).file,
  );
}

async function restoreLatest(replica: Replica): Promise<{ readonly index: number; readonly file: Uint8Array } | null> {
  return nullWithoutPath(async () => {
    // Damage that shows only when pages are read takes a state away; the next call knows of it.
    for (;;) {
      const plan = await planRestore(replica, { kind: "latest" });
      const file = await nullWithoutPath(async () => (await layInMemory(replica, plan)).file);
      if (file !== null) return { index: plan.index, file };
    }
  });
}

/** Restores as `bakelite restore` does where there are so many objects that a plan is not proven before it is carried out. */
async function restoreUnproven(
  backend: MemoryBackend,
  target: RestoreTarget,
): Promise<{ readonly index: number; readonly file: Uint8Array; readonly proven: boolean } | null> {
  const replica = await openReplica([backend], 0);
  return nullWithoutPath(async () => {
    for (;;) {
      await planRestore(replica, target, "affordable");
      const restored = await nullWithoutPath(() =>
        carryOut(replica, target, (planned) => layInMemory(replica, planned)),
      );
      // As above: damage that shows only when pages are read is known to the next call.
      if (restored !== null)
        return { index: restored.plan.index, file: restored.result.file, proven: restored.plan.proven };
    }
  });
}

async function nullWithoutPath<T>(work: () => Promise<T>): Promise<T | null> {
  try {
    return await work();
  } catch (error) {
    if (error instanceof BakeliteError && ["replica-missing", "replica-corrupt"].includes(error.code)) return null;
    throw error;
  }
}

test("every restore point of a random history restores byte for byte, and nothing else is one", async () => {
  await fc.assert(
    fc.asyncProperty(fc.nat(), fc.nat(20), fc.array(step, { maxLength: 30 }), async (seed, firstSize, steps) => {
      const backend = new MemoryBackend();
      const builder = new ReplicaBuilder({ backends: [backend], random: seededRandom(seed) });
      await build(builder, firstSize, steps);
      await checkEveryIndex(builder, [backend]);
    }),
    { numRuns: 60 },
  );
}, 120_000);

test("with damaged, cut, swapped and missing objects, what still can be restored is right and the rest is refused", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.nat(),
      fc.nat(20),
      fc.array(step, { maxLength: 25 }),
      fc.array(damage, { minLength: 1, maxLength: 6 }),
      async (seed, firstSize, steps, harms) => {
        const backend = new MemoryBackend();
        const builder = new ReplicaBuilder({ backends: [backend], random: seededRandom(seed) });
        await build(builder, firstSize, steps);
        const flipped = harm(backend, builder.stored, harms);
        await checkEveryIndex(builder, [backend], flipped);
      },
    ),
    { numRuns: 80 },
  );
}, 120_000);

test("two destinations that are damaged in different places make up for each other", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.nat(),
      fc.array(step, { maxLength: 20 }),
      fc.array(damage, { maxLength: 6 }),
      fc.array(damage, { maxLength: 6 }),
      async (seed, steps, harmsA, harmsB) => {
        const backends = [new MemoryBackend("a"), new MemoryBackend("b")] as const;
        const builder = new ReplicaBuilder({ backends, random: seededRandom(seed) });
        await build(builder, 10, steps);
        const sound = [new Map(builder.stored), new Map(builder.stored)] as const;
        const flipped = [...harm(backends[0], sound[0], harmsA), ...harm(backends[1], sound[1], harmsB)];
        for (const key of builder.stored.keys())
          if (!sound[0].has(key) && !sound[1].has(key)) builder.stored.delete(key);
        await checkEveryIndex(builder, backends, flipped);
      },
    ),
    { numRuns: 60 },
  );
}, 120_000);

test("what is proven only while it is restored is as right, and misses nothing", async () => {
  let unproven = 0;
  let fellBack = 0;
  await fc.assert(
    fc.asyncProperty(
      fc.nat(),
      fc.array(step, { minLength: 30, maxLength: 60 }),
      fc.array(damage, { maxLength: 3 }),
      async (seed, steps, harms) => {
        const backend = new MemoryBackend();
        const builder = new ReplicaBuilder({ backends: [backend], random: seededRandom(seed) });
        await build(builder, 10, steps);
        harm(backend, builder.stored, harms);
        const points = findRestorePoints([...builder.stored.values()]);
        const indexes = [...builder.states.keys()].filter((index) => index % 3 === seed % 3);
        const targets = indexes.map((index): RestoreTarget => ({ kind: "index", index }));
        for (const target of [{ kind: "latest" } as const, ...targets]) {
          const restored = await restoreUnproven(backend, target);
          const due = target.kind === "index" ? (points.has(target.index) ? target.index : 0) : Math.max(0, ...points);
          // More may be restorable than what a path leads to: pages of newer objects may cover what is lost. Never other bytes.
          expect(restored?.index ?? 0).toBeGreaterThanOrEqual(due);
          if (restored === null) continue;
          if (target.kind === "index") expect(restored.index).toBe(target.index);
          expect(Buffer.compare(restored.file, builder.fileOf(restored.index))).toBe(0);
          unproven += restored.proven ? 0 : 1;
          fellBack += restored.proven && harms.length > 0 ? 1 : 0;
        }
      },
    ),
    { numRuns: 40 },
  );
  expect(unproven).toBeGreaterThan(0);
  expect(fellBack).toBeGreaterThan(0);
}, 120_000);
