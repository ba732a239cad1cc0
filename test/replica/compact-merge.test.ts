import { describe, expect, test } from "bun:test";
import { verifyObject } from "../../src/format/decode.ts";
import type { SealKey } from "../../src/format/envelope.ts";
import { lockPageNumber } from "../../src/format/pages.ts";
import { keyOf } from "../../src/replica/catalog.ts";
import { compactReplica, type Merged } from "../../src/replica/compact.ts";
import { backendRangeSource } from "../../src/storage/range-source.ts";
import { BakeliteError } from "../../src/util/errors.ts";
import { fc } from "../support/properties.ts";
import { seededRandom } from "../support/random.ts";
import { ReplicaBuilder, testKey } from "./builder.ts";
import { MemoryBackend } from "./memory-backend.ts";
import { storeRaw } from "./raw-change-set.ts";
import { compactBuilt, compactOptions, openBuilt, restoreAll } from "./upkeep.ts";

const START_MS = Date.UTC(2026, 0, 1);
const LATER_MS = START_MS + 1_000_000_000;

/** What is stored under a name, read whole, and the pages of it. */
async function read(builder: ReplicaBuilder, backend: MemoryBackend, { level, first, last, key }: Merged) {
  const pages = new Map<number, Uint8Array>();
  const { trailer, header } = await verifyObject(
    backendRangeSource(backend, key, backend.objects.get(key)?.length ?? 0, {}),
    {
      name: { kind: "change-set", level, first, last, seal: builder.sealText },
      database: "app",
      subject: key,
      keys: builder.keys,
      acceptPlaintext: true,
    },
    {
      onPages({ pageNumbers, images }) {
        for (const [i, page] of pageNumbers.entries())
          pages.set(page, images.slice(i * builder.pageSizeBytes, (i + 1) * builder.pageSizeBytes));
      },
    },
  );
  return { header, trailer, pages };
}

/** Compares what was merged with what the builder makes of the same originals by code of its own. */
async function assertLikeOracle(builder: ReplicaBuilder, backend: MemoryBackend, merged: Merged): Promise<void> {
  const { header, trailer, pages } = await read(builder, backend, merged);
  const ours = backend.objects.get(merged.key);
  const oracle = await builder.compact(merged.level, merged.first, merged.last);
  if (ours !== undefined) backend.objects.set(merged.key, ours);
  expect([...pages.keys()]).toEqual([...oracle.pages.keys()]);
  for (const [page, image] of oracle.pages) expect(Buffer.compare(pages.get(page) ?? Buffer.of(), image)).toBe(0);
  const { settled, sizePages, parent, result, reason, pageCount, lastCommitMs } = trailer;
  expect({ settled, sizePages, parent, result, reason, pageCount, chain: header.chain }).toEqual({
    settled: oracle.settled,
    sizePages: oracle.sizePages,
    parent: oracle.parent,
    result: oracle.result,
    reason: "compaction",
    pageCount: oracle.pages.size,
    chain: oracle.chain,
  });
  expect(lastCommitMs).toBe(builder.states.get(merged.last)?.stampMs ?? 0);
}

interface Change {
  readonly pages: number;
  readonly size: number;
  readonly late: number;
  readonly pauseMs: number;
}

const changes = fc.array(
  fc.record({
    pages: fc.nat(5),
    size: fc.oneof(fc.integer({ min: 0, max: 12 }), fc.integer({ min: 0, max: 90 })),
    late: fc.constantFrom(0, 0, 0, 1, 2),
    pauseMs: fc.constantFrom(0, 1_000, 9_000, 31_000, 400_000),
  }),
  { minLength: 2, maxLength: 30 },
);

async function build(builder: ReplicaBuilder, steps: readonly Change[]): Promise<void> {
  builder.beginChain(Array.from({ length: 8 }, () => builder.randomImage()));
  await builder.storeFull(1);
  for (const { pages, size, pauseMs } of steps) {
    builder.passTime(pauseMs);
    builder.commitRandom(pages, size);
  }
  for (const [i, { late }] of steps.entries())
    await builder.storeChangeSet(i + 2, Math.min(steps.length + 1, i + 2 + late));
}

describe.each([
  ["plaintext", null],
  ["sealed", testKey(5)],
] as const)("%s", (_, seal: SealKey | null) => {
  test("what is merged holds the same pages, sizes and lineage as what the builder merges by code of its own", async () => {
    let count = 0;
    await fc.assert(
      fc.asyncProperty(fc.nat(), changes, fc.constantFrom(512, 4096), async (seed, steps, pageSizeBytes) => {
        const backend = new MemoryBackend();
        const random = seededRandom(seed);
        const builder = new ReplicaBuilder({ backends: [backend], random, startMs: START_MS, seal, pageSizeBytes });
        await build(builder, steps);
        const points = await restoreAll(builder, backend);
        const { merged, failures } = await compactBuilt(builder, [backend], random, { nowMs: LATER_MS });
        expect(failures).toEqual([]);
        for (const one of merged) await assertLikeOracle(builder, backend, one);
        expect(await restoreAll(builder, backend)).toEqual(points);
        count += merged.length;
      }),
      { numRuns: 40 },
    );
    expect(count).toBeGreaterThan(60);
  }, 60_000);
});

test("an input with one bit wrong is named and nothing is made of it, or what is made is right all the same", async () => {
  let refused = 0;
  await fc.assert(
    fc.asyncProperty(fc.nat(), changes, fc.nat(), fc.nat(), async (seed, steps, which, where) => {
      const backend = new MemoryBackend();
      const random = seededRandom(seed);
      const builder = new ReplicaBuilder({ backends: [backend], random, startMs: START_MS });
      await build(builder, steps);
      const keys = [...backend.objects.keys()].filter((key) => key.includes("/L0/"));
      const key = keys[which % keys.length] ?? "";
      backend.flip(key, where % (backend.objects.get(key)?.length ?? 1), where % 8);
      const report = await compactBuilt(builder, [backend], random, { nowMs: LATER_MS });
      for (const { error } of report.failures)
        expect([error.code, error.subject]).toEqual(["replica-corrupt", `memory/${key}`]);
      refused += report.failures.length;
      for (const one of report.merged) await assertLikeOracle(builder, backend, one);
      const made = [...backend.objects.keys()].filter((name) => /\/L[1-9]\//.test(name)).sort();
      expect(made).toEqual(report.merged.map((one) => one.key).sort());
    }),
    { numRuns: 150 },
  );
  expect(refused).toBeGreaterThan(5);
}, 60_000);

test("a page that was cut off and came back without its image is an error, not its image from before", async () => {
  const backend = new MemoryBackend();
  const builder = new ReplicaBuilder({ backends: [backend], random: seededRandom(1), startMs: START_MS });
  const pages = (...numbers: number[]) => new Map(numbers.map((page) => [page, page % 250]));
  const stampMs = START_MS;
  await storeRaw(backend, { first: 2, sizePages: 10, pages: pages(1, 9), stampMs });
  await storeRaw(backend, { first: 3, sizePages: 5, pages: pages(1), stampMs });
  const lacking = await storeRaw(backend, { first: 4, sizePages: 10, pages: pages(6, 7, 8, 10), stampMs });
  const report = await compactBuilt(builder, [backend], seededRandom(1), { nowMs: LATER_MS });
  expect(report.merged).toEqual([]);
  expect(report.failures.map(({ error }) => [error.message, error.subject])).toContainEqual([
    "pages that were cut off and came back are missing (1)",
    `memory/${lacking}`,
  ]);
  expect(backend.objects.size).toBe(3);
});

test("the lock page has no image on either side of a merge, and pages around it are kept", async () => {
  const backend = new MemoryBackend();
  const pageSizeBytes = 65_536;
  const lock = lockPageNumber(pageSizeBytes);
  const builder = new ReplicaBuilder({
    backends: [backend],
    random: seededRandom(1),
    startMs: START_MS,
    pageSizeBytes,
  });
  const filled = (numbers: readonly number[], byte: number) => new Map(numbers.map((page) => [page, byte]));
  const common = { pageSizeBytes, stampMs: START_MS };
  await storeRaw(backend, { ...common, first: 2, sizePages: lock + 1, pages: filled([1, lock - 1, lock + 1], 2) });
  await storeRaw(backend, { ...common, first: 3, sizePages: lock - 2, pages: filled([1], 3) });
  await storeRaw(backend, {
    ...common,
    first: 4,
    sizePages: lock + 2,
    pages: filled([lock - 1, lock + 1, lock + 2], 4),
  });
  const { merged, failures } = await compactBuilt(builder, [backend], seededRandom(1), {
    nowMs: LATER_MS,
    levelWindowsMs: [30_000],
  });
  expect(failures).toEqual([]);
  const [one] = merged;
  if (one === undefined) throw new Error("the three are merged");
  const { pages, trailer } = await read(builder, backend, one);
  expect([...pages].map(([page, image]) => [page, image[0], image.length])).toEqual([
    [1, 3, pageSizeBytes],
    [lock - 1, 4, pageSizeBytes],
    [lock + 1, 4, pageSizeBytes],
    [lock + 2, 4, pageSizeBytes],
  ]);
  expect(trailer.sizePages).toBe(lock + 2);
});

async function plainHistory(backends: readonly MemoryBackend[], count: number): Promise<ReplicaBuilder> {
  const builder = new ReplicaBuilder({ backends, random: seededRandom(count), startMs: START_MS });
  await build(
    builder,
    Array.from({ length: count }, (_, i) => ({ pages: 2, size: 4 + (i % 5), late: 0, pauseMs: 7_000 })),
  );
  return builder;
}

test("two compactors at the same time make the same objects and neither is in the other's way", async () => {
  const backend = new MemoryBackend();
  const builder = await plainHistory([backend], 60);
  const reports = await Promise.all(
    [1, 2].map((seed) => compactBuilt(builder, [backend], seededRandom(seed), { nowMs: LATER_MS })),
  );
  const [a, b] = reports.map(({ merged, failures }) => ({ failures, keys: merged.map(({ key }) => key) }));
  expect(a?.failures).toEqual([]);
  expect(b?.failures).toEqual([]);
  expect(new Set([...(a?.keys ?? []), ...(b?.keys ?? [])]).size).toBe(backend.objects.size - 61);
  for (const one of reports.flatMap(({ merged }) => merged)) await assertLikeOracle(builder, backend, one);
  await restoreAll(builder, backend);
});

test("inputs that vanish since they were listed belong to somebody else's merge and are no failure", async () => {
  const backend = new MemoryBackend();
  const builder = await plainHistory([backend], 30);
  const slow = await openBuilt(builder, backend);
  const { merged } = await compactBuilt(builder, [backend], seededRandom(1), {
    nowMs: LATER_MS,
    levelWindowsMs: [30_000],
  });
  await backend.delete(slow.catalog.changeSets.slice(0, 12).map((object) => keyOf("app", object)));
  const report = await compactReplica(
    slow,
    compactOptions(builder, seededRandom(2), { nowMs: LATER_MS, levelWindowsMs: [30_000] }),
  );
  expect(report.failures).toEqual([]);
  expect(merged.length).toBeGreaterThan(4);
  await restoreAll(builder, backend);
});

test("what stands under the result's name already is not believed unless it holds the same", async () => {
  const backend = new MemoryBackend();
  const builder = await plainHistory([backend], 30);
  const rehearsal = await compactReplica(
    await openBuilt(builder, backend),
    compactOptions(builder, seededRandom(1), { nowMs: LATER_MS, levelWindowsMs: [30_000], dryRun: true }),
  );
  const [one] = rehearsal.merged;
  if (one === undefined) throw new Error("something would be merged");
  expect(one.sizeBytes).toBeNull();
  const replica = await openBuilt(builder, backend);
  // Somebody else stores it after we have listed.
  await builder.storeFork({ kind: "change-set", level: 1, first: one.first, last: one.last, seal: "p" }, "compaction");
  const report = await compactReplica(
    replica,
    compactOptions(builder, seededRandom(1), { nowMs: LATER_MS, levelWindowsMs: [30_000] }),
  );
  expect(report.failures.map(({ merge, error }) => [merge.first, error.code, error.subject])).toEqual([
    [one.first, "replica-corrupt", `memory/${one.key}`],
  ]);
  expect(report.merged.length).toBe(rehearsal.merged.length - 1);
});

test("a destination that fails is left aside, the other gets the result, and a later pass fills nothing in wrongly", async () => {
  const backends = [new MemoryBackend("a"), new MemoryBackend("b")] as const;
  const builder = await plainHistory(backends, 30);
  const put = backends[0].put.bind(backends[0]);
  let puts = 0;
  backends[0].put = async (...args) => {
    if (puts++ === 2) throw new BakeliteError("storage-unreachable", "no answer", { subject: "a" });
    return await put(...args);
  };
  const { merged, failures } = await compactBuilt(builder, backends, seededRandom(1), { nowMs: LATER_MS });
  expect(failures).toEqual([]);
  expect(puts).toBe(3);
  const made = (backend: MemoryBackend) => [...backend.objects.keys()].filter((key) => /\/L[1-9]\//.test(key)).length;
  expect([made(backends[0]), made(backends[1])]).toEqual([2, merged.length]);
  for (const backend of backends) await restoreAll(builder, backend);
});

test("when no destination takes anything the pass fails with what the last one said", async () => {
  const backend = new MemoryBackend();
  const builder = await plainHistory([backend], 30);
  backend.put = async () => {
    throw new BakeliteError("storage-full", "the disk is full", { subject: "memory" });
  };
  const error = await compactBuilt(builder, [backend], seededRandom(1), { nowMs: LATER_MS }).catch(
    (thrown: unknown) => thrown,
  );
  expect(error).toMatchObject({ code: "storage-full" });
});

test("a pass costs one listing, and one more for each level that made something", async () => {
  const backend = new MemoryBackend();
  const builder = await plainHistory([backend], 60);
  let listings = 0;
  backend.onList = () => void listings++;
  const { merged } = await compactBuilt(builder, [backend], seededRandom(1), { nowMs: LATER_MS });
  expect(new Set(merged.map(({ level }) => level)).size).toBe(listings - 1);
  listings = 0;
  expect(await compactBuilt(builder, [backend], seededRandom(1), { nowMs: LATER_MS })).toEqual({
    merged: [],
    failures: [],
  });
  expect(listings).toBe(1);
});
