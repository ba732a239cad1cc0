import { describe, expect, test } from "bun:test";
import { emptyKeyRing, type SealKey } from "../../src/format/envelope.ts";
import { keyOf, type ReplicaObject } from "../../src/replica/catalog.ts";
import { type CompactOptions, compactReplica } from "../../src/replica/compact.ts";
import { planForIndex } from "../../src/replica/plan.ts";
import { Replica } from "../../src/replica/replica.ts";
import { seededRandom } from "../support/random.ts";
import { ReplicaBuilder, testKey } from "./builder.ts";
import { layInMemory } from "./lay.ts";
import { MemoryBackend } from "./memory-backend.ts";

const LEVELS = [30_000, 300_000, 3_600_000];
const START_MS = Date.UTC(2026, 0, 1);

async function open(builder: ReplicaBuilder, ...backends: readonly MemoryBackend[]): Promise<Replica> {
  return await Replica.open({
    database: "app",
    backends,
    keys: builder.seal === null ? emptyKeyRing : builder.keys,
    seal: builder.sealText,
    acceptPlaintext: builder.seal === null,
  });
}

function options(builder: ReplicaBuilder, changes: Partial<CompactOptions> = {}): CompactOptions {
  return {
    levelWindowsMs: LEVELS,
    keepRecent: 16,
    cuts: new Set(),
    sealKey: builder.seal,
    compression: "zstd",
    compressionLevel: 1,
    writer: "test",
    randomHex: (bytes) => Buffer.from(crypto.getRandomValues(new Uint8Array(bytes))).toString("hex"),
    nowMs: START_MS + 1_000_000_000,
    dryRun: false,
    ...changes,
  };
}

/** `count` states, `spacingMs` apart, of a database that grows and shrinks. */
async function history(builder: ReplicaBuilder, count: number, spacingMs: number, fullEvery: number): Promise<void> {
  const random = seededRandom(count);
  builder.beginChain(Array.from({ length: 8 }, () => builder.randomImage()));
  await builder.storeFull(1);
  for (let index = 2; index <= count; index++) {
    builder.passTime(spacingMs);
    builder.commitRandom(random.integer(1, 4), random.integer(4, 24));
    await builder.storeChangeSet(index);
    if (index % fullEvery === 0) await builder.storeFull(index);
  }
}

/** Deletes what a compacted change-set spans. */
async function deleteSpanned(replica: Replica, backend: MemoryBackend): Promise<number> {
  const { changeSets } = replica.catalog;
  const isSpanned = (object: ReplicaObject) =>
    changeSets.some(({ level, first, last }) => level > object.level && first <= object.first && object.last <= last);
  const spanned = changeSets.filter(isSpanned);
  await backend.delete(spanned.map((object) => keyOf("app", object)));
  return spanned.length;
}

async function assertRestorable(builder: ReplicaBuilder, replica: Replica): Promise<readonly number[]> {
  const points = [...replica.graph.restorePoints];
  for (const index of points) {
    const plan = await planForIndex(replica, index);
    if (plan === null) throw new Error(`state ${index} is said to be a restore point and cannot be planned`);
    expect(Buffer.compare((await layInMemory(replica, plan)).file, builder.fileOf(index))).toBe(0);
  }
  return points;
}

describe.each([
  ["plaintext", null],
  ["sealed", testKey(5)],
] as const)("%s", (_, seal: SealKey | null) => {
  test("what is left when all that was merged is deleted restores the same states, by the levels' windows", async () => {
    const backend = new MemoryBackend();
    const builder = new ReplicaBuilder({ backends: [backend], random: seededRandom(1), startMs: START_MS, seal });
    await history(builder, 900, 5_000, 400);
    const replica = await open(builder, backend);
    const report = await compactReplica(replica, options(builder));
    expect(report.failures).toEqual([]);
    expect(new Set(report.merged.map(({ level }) => level))).toEqual(new Set([1, 2, 3]));
    await deleteSpanned(replica, backend);
    const after = await open(builder, backend);
    const points = await assertRestorable(builder, after);
    // The newest 16 and what shares a window with them, one for each hour before, and one where each full backup begins.
    expect(points.length).toBeLessThan(100);
    expect(points).toContain(900);
    expect(points).toContain(400);
    expect(points).toContain(800);
    expect(await compactReplica(after, options(builder))).toEqual({ merged: [], failures: [] });
  }, 60_000);
});
