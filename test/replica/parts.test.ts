import { describe, expect, test } from "bun:test";
import { hashPage, lockPageNumber } from "../../src/format/pages.ts";
import { mapAhead } from "../../src/replica/ahead.ts";
import { type Catalog, CatalogBuilder, isEmpty, keyOf, type ReplicaObject } from "../../src/replica/catalog.ts";
import { ObjectSource } from "../../src/replica/object-source.ts";
import { PageTally } from "../../src/replica/page-tally.ts";
import { bytesSource } from "../../src/storage/backend.ts";
import { fc } from "../support/properties.ts";
import { seededRandom } from "../support/random.ts";
import { MemoryBackend } from "./memory-backend.ts";

describe("mapAhead", () => {
  test("gives every result in order, with no more begun than the budget allows", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.record({ weight: fc.nat(10), ticks: fc.nat(3) }), { maxLength: 40 }),
        fc.integer({ min: 1, max: 30 }),
        async (items, budget) => {
          let running = 0;
          let count = 0;
          let worst = 0;
          const results: number[] = [];
          const work = async (i: number) => {
            running += items[i]?.weight ?? 0;
            count++;
            if (count > 1) worst = Math.max(worst, running);
            for (let tick = 0; tick < (items[i]?.ticks ?? 0); tick++) await Promise.resolve();
            return i;
          };
          const weight = (i: number) => items[i]?.weight ?? 0;
          for await (const i of mapAhead(items.keys(), work, { budget, weight })) {
            results.push(i);
            await Promise.resolve();
            running -= weight(i);
            count--;
          }
          expect(results).toEqual([...items.keys()]);
          expect(worst).toBeLessThanOrEqual(Math.max(budget, 10));
        },
      ),
    );
  });

  test("a failure is thrown in its turn, after the results before it", async () => {
    const seen: number[] = [];
    const work = async (i: number) => {
      if (i === 3) throw new Error("three");
      return i;
    };
    const reading = (async () => {
      for await (const i of mapAhead([0, 1, 2, 3, 4], work, { budget: 10, weight: () => 1 })) seen.push(i);
    })();
    await expect(reading).rejects.toThrow("three");
    expect(seen).toEqual([0, 1, 2]);
  });

  test("what the items throw is thrown, and a reader that leaves stops what feeds it", async () => {
    let given = 0;
    let isClosed = false;
    function* items() {
      try {
        for (;;) yield given++;
      } finally {
        isClosed = true;
      }
    }
    for await (const i of mapAhead(items(), async (i) => i, { budget: 4, weight: () => 1 })) if (i === 5) break;
    await Promise.resolve();
    expect(given).toBeLessThan(15);
    expect(isClosed).toBe(true);
    async function* failing() {
      yield 1;
      throw new Error("no more");
    }
    await expect(Array.fromAsync(mapAhead(failing(), async (i) => i, { budget: 4, weight: () => 1 }))).rejects.toThrow(
      "no more",
    );
  });
});

describe("PageTally", () => {
  test("counts like a set, and its digest is the XOR of what was taken", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 0, max: 300 }),
        fc.array(fc.nat(320)),
        fc.nat(320),
        fc.nat(320),
        (size, pages, a, b) => {
          const tally = new PageTally(size, 4096);
          const taken = new Set<number>();
          const digest = new Uint8Array(16);
          for (const page of pages) {
            expect(tally.lacks(page)).toBe(page >= 1 && page <= size && !taken.has(page));
            if (!tally.lacks(page)) continue;
            const hash = hashPage(page, new Uint8Array(8));
            tally.take(page, hash, 0);
            taken.add(page);
            for (const [i, byte] of hash.entries()) digest[i] = (digest[i] ?? 0) ^ byte;
          }
          const lacking = Array.from({ length: size }, (_, i) => i + 1).filter((page) => !taken.has(page));
          expect(tally.count).toBe(taken.size);
          expect(tally.digest).toBe(digest.toHex());
          expect(tally.firstLacking()).toBe(lacking[0] ?? null);
          expect(tally.isComplete).toBe(lacking.length === 0);
          expect(tally.lackingWithin(Math.max(1, a), b)).toBe(lacking.filter((page) => page >= a && page <= b).length);
        },
      ),
    );
  });

  test("the lock page is never lacking and never expected", () => {
    const lockPage = lockPageNumber(65_536);
    for (const [size, expected] of [
      [lockPage - 1, lockPage - 1],
      [lockPage, lockPage - 1],
      [lockPage + 5, lockPage + 4],
    ] as const) {
      const tally = new PageTally(size, 65_536);
      expect([tally.expectedCount, tally.lackingWithin(1, size), tally.lacks(lockPage)]).toEqual([
        expected,
        expected,
        false,
      ]);
    }
  });
});

describe("CatalogBuilder", () => {
  const stored = (key: string, sizeBytes = 1) => ({ key, sizeBytes, modifiedMs: 5 });

  test("sorts objects by kind, level and states, and tells twins and odd names", () => {
    const builder = new CatalogBuilder("app", 2);
    for (const key of [
      "app/L1/0000000000000002-0000000000000004.p",
      "app/L0/0000000000000003-0000000000000003.p",
      "app/L0/0000000000000002-0000000000000002.0a1b2c3d",
      "app/L0/0000000000000002-0000000000000002.p",
      "app/full/0000000000000001.p",
      "app/CURRENT",
      "app/manifest",
      "app/full/1.p",
    ])
      builder.add(0, stored(key));
    builder.add(1, stored("app/full/0000000000000001.p", 2));
    const catalog = builder.build();
    expect(catalog.changeSets.map((object) => keyOf("app", object))).toEqual([
      "app/L0/0000000000000002-0000000000000002.0a1b2c3d",
      "app/L0/0000000000000002-0000000000000002.p",
      "app/L1/0000000000000002-0000000000000004.p",
      "app/L0/0000000000000003-0000000000000003.p",
    ]);
    expect(catalog.levels.map((level) => level.length)).toEqual([3, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    expect(catalog.fulls.map((object) => object.destination)).toEqual([0, 1]);
    expect(catalog.anomalies.map(({ kind, key, destination }) => [kind, key, destination])).toEqual([
      ["foreign-name", "app/full/1.p", 0],
      ["sizes-differ", "app/full/0000000000000001.p", 1],
      ["two-seals", "app/L0/0000000000000002-0000000000000002.p", 0],
    ]);
    expect([...catalog.twins.values()].map((twins) => twins.length)).toEqual([1, 1]);
    expect([catalog.current[0]?.key, catalog.manifest[0]?.key, catalog.current[1]]).toEqual([
      "app/CURRENT",
      "app/manifest",
      null,
    ]);
  });

  test("does not mind the order in which it is told, and puts very many names in order in steps", () => {
    const random = seededRandom(8);
    const keys = Array.from({ length: 20_000 }, (_, i) => {
      const digits = (index: number) => String(index).padStart(16, "0");
      const [level, first] = [i % 4, 1 + Math.floor(i / 4) * 3];
      return level === 3
        ? `app/full/${digits(first)}.p`
        : `app/L${level}/${digits(first)}-${digits(first + level)}.${i % 7 === 0 ? "0a1b2c3d" : "p"}`;
    });
    const catalogOf = (order: (keys: readonly string[], destination: number) => readonly string[]) => {
      const builder = new CatalogBuilder("app", 2);
      for (const destination of [0, 1])
        for (const key of order(keys, destination)) builder.add(destination, stored(key));
      const steps = builder.building();
      for (let count = 1; ; count++) {
        const step = steps.next();
        if (step.done === true) return { catalog: step.value, count };
      }
    };
    const shuffled = (each: readonly string[]) =>
      each
        .map((key) => ({ key, at: random.next() }))
        .sort((a, b) => a.at - b.at)
        .map(({ key }) => key);
    const { catalog, count } = catalogOf((each) => each.toSorted());
    expect(count).toBeGreaterThan(5);
    const told = (given: Catalog) => ({ ...given, twins: [...given.twins] });
    expect(told(catalogOf((each) => shuffled(each)).catalog)).toEqual(told(catalog));
    expect(
      told(catalogOf((each, destination) => (destination === 0 ? each.toSorted() : each.toReversed())).catalog),
    ).toEqual(told(catalog));
    const place = ({ first, level, last, seal, destination }: ReplicaObject) =>
      [first, level, last, seal, destination].map((part) => String(part).padStart(20, "0")).join(" ");
    for (const objects of [catalog.changeSets, catalog.fulls])
      expect(objects.map(place)).toEqual(objects.map(place).toSorted());
    expect(catalog.changeSets).toHaveLength(30_000);
  });

  test("forgets a destination whose listing broke off", () => {
    const builder = new CatalogBuilder("app", 2);
    builder.add(0, stored("app/CURRENT"));
    builder.add(0, stored("app/full/0000000000000001.p"));
    builder.drop(0);
    expect(isEmpty(builder.build())).toBe(true);
    expect(builder.build().current).toEqual([null, null]);
  });

  test("a folder full of strangers does not fill memory", () => {
    const builder = new CatalogBuilder("app");
    for (let i = 0; i < 5_000; i++) builder.add(0, stored(`app/garbage-${i}`));
    const { anomalies, anomalyCount } = builder.build();
    expect([anomalies.length, anomalyCount]).toEqual([100, 5_000]);
  });
});

test("an object source reads from its windows where it can, and forgets those that are released", async () => {
  const backend = new MemoryBackend();
  const bytes = Uint8Array.from({ length: 100 }, (_, i) => i);
  await backend.put("a/b", bytesSource(bytes));
  let fetchedBytes = 0;
  const source = new ObjectSource(backend, { key: "a/b", sizeBytes: 100 }, undefined, (n) => {
    fetchedBytes += n;
  });
  await source.fetchAhead(10, 50);
  expect([...(await source.read(20, 30))]).toEqual([...bytes.subarray(20, 30)]);
  expect(backend.getCount).toBe(1);
  expect([...(await source.read(40, 60))]).toEqual([...bytes.subarray(40, 60)]);
  expect([backend.getCount, fetchedBytes, source.whole]).toEqual([2, 60, null]);
  source.release(0, 100);
  await source.read(20, 30);
  expect(backend.getCount).toBe(3);
  // One window that arrives while another is released is kept.
  const arriving = source.fetchAhead(60, 80);
  source.release(10, 50);
  await arriving;
  await source.read(65, 75);
  expect(backend.getCount).toBe(4);
  await source.fetchAhead(0, 100);
  expect(source.whole?.length).toBe(100);
  backend.objects.delete("a/b");
  const late = new ObjectSource(backend, { key: "a/b", sizeBytes: 100 }, undefined);
  await expect(late.read(0, 1)).rejects.toMatchObject({ code: "replica-missing" });
  expect(late.gone).toBe(true);
});
