import { expect, test } from "bun:test";
import { emptyKeyRing } from "../../src/format/envelope.ts";
import { planRestore } from "../../src/replica/plan.ts";
import { Replica } from "../../src/replica/replica.ts";
import {
  newestPath,
  nextRestorePoint,
  oldestPath,
  pathAtTime,
  restorePointOf,
} from "../../src/replica/restore-points.ts";
import { BakeliteError } from "../../src/util/errors.ts";
import { fc } from "../support/properties.ts";
import { seededRandom } from "../support/random.ts";
import { type ModelState, ReplicaBuilder } from "./builder.ts";
import { findRestorePoints } from "./judge.ts";
import { MemoryBackend } from "./memory-backend.ts";

/**
 * The rule of docs/storage-format.md section 9, read off the whole history: the newest epoch that began at or before
 * `timeMs`, and in it the newest restore point not after that moment; else the same in the epochs before it.
 */
function expectedAt(states: readonly ModelState[], points: ReadonlySet<number>, timeMs: number): number | null {
  const epochs: ModelState[][] = [];
  for (const state of states) {
    const newest = epochs.at(-1);
    const previous = newest?.at(-1);
    if (newest === undefined || previous === undefined || state.stampMs < previous.stampMs) epochs.push([state]);
    else newest.push(state);
  }
  for (const epoch of epochs.toReversed()) {
    if ((epoch[0]?.stampMs ?? 0) > timeMs) continue;
    const found = epoch.findLast((state) => state.stampMs <= timeMs && points.has(state.index));
    if (found !== undefined) return found.index;
  }
  return null;
}

const hop = fc.record({
  ms: fc.integer({ min: -20_000, max: 20_000 }),
  settledAfter: fc.constantFrom(0, 0, 0, 1, 2),
  full: fc.integer({ min: 0, max: 9 }),
});

async function build(
  seed: number,
  hops: readonly { ms: number; settledAfter: number; full: number }[],
): Promise<{ builder: ReplicaBuilder; backend: MemoryBackend }> {
  const backend = new MemoryBackend();
  const builder = new ReplicaBuilder({ backends: [backend], random: seededRandom(seed) });
  builder.beginChain([builder.randomImage(), builder.randomImage()]);
  for (const { ms } of hops) {
    builder.passTime(ms);
    builder.commitRandom(1);
  }
  const newest = builder.newest.index;
  for (const [i, { settledAfter }] of hops.entries())
    await builder.storeChangeSet(i + 2, Math.min(newest, i + 2 + settledAfter));
  await builder.storeFull(1, Math.min(newest, 1 + (hops[0]?.settledAfter ?? 0)));
  for (const [i, { full }] of hops.entries()) if (full === 0) await builder.storeFull(i + 2, Math.min(newest, i + 4));
  return { builder, backend };
}

function open(backend: MemoryBackend): Promise<Replica> {
  return Replica.open({ database: "app", backends: [backend], keys: emptyKeyRing, seal: "p", acceptPlaintext: true });
}

test("a moment gives the newest restore point at or before it, also when the clock stepped back", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.nat(),
      fc.array(hop, { maxLength: 150 }),
      fc.array(fc.nat(), { minLength: 1, maxLength: 10 }),
      async (seed, hops, picks) => {
        const { builder, backend } = await build(seed, hops);
        const states = [...builder.states.values()];
        const points = findRestorePoints([...builder.stored.values()]);
        for (const pick of picks) {
          const near = states[pick % states.length]?.stampMs ?? 0;
          for (const timeMs of [near - 1, near, near + 1, near + 7_000]) {
            const expected = expectedAt(states, points, timeMs);
            for (const depth of ["whole", "ends"] as const)
              expect((await pathAtTime(await open(backend), timeMs, depth))?.index ?? null).toBe(expected);
            if (expected !== null) expect(builder.states.get(expected)?.stampMs).toBeLessThanOrEqual(timeMs);
          }
        }
      },
    ),
    { numRuns: 30 },
  );
}, 120_000);

test("newest, oldest and next restore points are those of the judge", async () => {
  await fc.assert(
    fc.asyncProperty(fc.nat(), fc.array(hop, { maxLength: 40 }), async (seed, hops) => {
      const { builder, backend } = await build(seed, hops);
      const points = [...findRestorePoints([...builder.stored.values()])].sort((a, b) => a - b);
      const replica = await open(backend);
      expect((await newestPath(replica, "ends"))?.index).toBe(points.at(-1));
      expect((await oldestPath(replica, "ends"))?.index).toBe(points[0]);
      for (let index = 0; index <= builder.newest.index; index++) {
        const next = points.find((point) => point > index);
        const stampMs = next === undefined ? undefined : builder.states.get(next)?.stampMs;
        expect(await nextRestorePoint(replica, index)).toEqual(
          next === undefined || stampMs === undefined ? null : { index: next, stampMs },
        );
      }
    }),
    { numRuns: 40 },
  );
}, 120_000);

test("a time target costs a few reads, not one for each object", async () => {
  const { builder, backend } = await build(
    1,
    Array.from({ length: 2_000 }, () => ({ ms: 1_000, settledAfter: 0, full: 1 })),
  );
  const replica = await open(backend);
  backend.getCount = 0;
  const state = builder.states.get(1_234);
  expect((await pathAtTime(replica, state?.stampMs ?? 0, "ends"))?.index).toBe(1_234);
  expect(backend.getCount).toBeLessThan(40);
  await newestPath(replica, "ends");
  expect(backend.getCount).toBeLessThan(60);
});

test("more epochs than a trailer holds are searched with older trailers", async () => {
  // The clock steps back with every commit, so each state is an epoch of its own, and all of them begin before now.
  const { builder, backend } = await build(
    1,
    Array.from({ length: 200 }, () => ({ ms: -10_000, settledAfter: 0, full: 1 })),
  );
  const start = builder.states.get(1)?.stampMs ?? 0;
  const replica = await open(backend);
  expect((await pathAtTime(replica, start, "whole"))?.index).toBe(201);
  // Of the states 1 to 201 only the first ones are left: their objects alone know of the oldest epochs.
  for (const key of [...backend.objects.keys()])
    if (/L0\/0+(1[0-9][0-9]|20[01])-/.test(key)) backend.objects.delete(key);
  expect((await pathAtTime(await open(backend), start, "whole"))?.index).toBe(99);
});

test("a target before the first restore point names the first", async () => {
  const { builder, backend } = await build(1, [{ ms: 1_000, settledAfter: 0, full: 1 }]);
  const first = builder.states.get(1)?.stampMs ?? 0;
  const plan = planRestore(await open(backend), { kind: "time", timeMs: first - 1 });
  expect(await plan.catch((error: unknown) => error)).toMatchObject({
    code: "replica-missing",
    message: expect.stringContaining(`the first restore point is ${new Date(first).toISOString()}`),
  });
});

test("damaged objects on the way of a time search are passed by", async () => {
  const { builder, backend } = await build(
    3,
    Array.from({ length: 60 }, () => ({ ms: 1_000, settledAfter: 0, full: 1 })),
  );
  await builder.compact(1, 2, 31);
  for (const key of [...backend.objects.keys()])
    if (/L0\/0+(1[5-9]|2[0-9])-/.test(key)) backend.flip(key, (backend.objects.get(key)?.length ?? 0) - 80);
  const replica = await open(backend);
  const at = (index: number) => builder.states.get(index)?.stampMs ?? 0;
  expect((await pathAtTime(replica, at(20), "whole"))?.index).toBe(14);
  expect((await pathAtTime(replica, at(31), "whole"))?.index).toBe(31);
  expect(await restorePointOf(replica, 14)).toEqual({ index: 14, stampMs: at(14) });
  await expect(planRestore(replica, { kind: "index", index: 20 })).rejects.toBeInstanceOf(BakeliteError);
});
