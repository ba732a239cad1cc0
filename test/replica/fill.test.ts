import { expect, test } from "bun:test";
import { objectKey, PLAINTEXT_SEAL } from "../../src/format/names.ts";
import { type Catalog, CatalogBuilder, copiesIn, type ReplicaObject } from "../../src/replica/catalog.ts";
import type { ObjectFacts } from "../../src/replica/facts.ts";
import { type FillPlan, planningFill } from "../../src/replica/fill.ts";
import { LineageGraph } from "../../src/replica/paths.ts";
import { STEP_LOOKS } from "../../src/util/turns.ts";
import { KEEP_ALL } from "./repair-scene.ts";

const START_MS = Date.UTC(2026, 0, 1);
const COUNT = 2 * STEP_LOOKS;
const FULL_EVERY = STEP_LOOKS;
const preferences = { seal: PLAINTEXT_SEAL, current: null };

/** `COUNT` states, a full backup at some, and every two states merged, at so many destinations. */
function makeCatalog(destinations: readonly number[]): Catalog {
  const building = new CatalogBuilder("app", 2);
  const seal = PLAINTEXT_SEAL;
  for (const destination of destinations) {
    const add = (name: Parameters<typeof objectKey>[1], last: number) =>
      building.add(destination, { key: objectKey("app", name), sizeBytes: 1_000, modifiedMs: START_MS + last * 1_000 });
    for (let index = 1; index <= COUNT; index++) {
      if (index % FULL_EVERY === 1) add({ kind: "full", index, seal }, index);
      if (index > 1) add({ kind: "change-set", level: 0, first: index, last: index, seal }, index);
      if (index > 2 && index % 2 === 1)
        add({ kind: "change-set", level: 1, first: index - 1, last: index, seal }, index);
    }
  }
  return building.build();
}

function factsOf({ kind, level, first, last }: ReplicaObject): ObjectFacts {
  return {
    chain: "c",
    pageSizeBytes: 512,
    parent: kind === "full" ? null : `state ${first - 1}`,
    result: `state ${last}`,
    settled: last,
    sizePages: 1,
    pageCount: 1,
    commits: 1,
    firstCommitMs: START_MS + last * 1_000,
    lastCommitMs: START_MS + last * 1_000,
    compacted: level > 0,
  };
}

/** The result of the steps, and how often an object was asked about in the step that asked most. */
function most<Result>(begin: (knowledge: (object: ReplicaObject) => ObjectFacts) => Iterator<void, Result>): {
  readonly result: Result;
  readonly mostLooks: number;
  readonly steps: number;
} {
  let [looks, mostLooks, steps] = [0, 0, 0];
  const working = begin((object) => {
    looks++;
    return factsOf(object);
  });
  for (;;) {
    looks = 0;
    const step = working.next();
    steps++;
    mostLooks = Math.max(mostLooks, looks);
    if (step.done === true) return { result: step.value, mostLooks, steps };
  }
}

function plan(catalog: Catalog, maxBackups: number): ReturnType<typeof most<FillPlan>> {
  return most((knowledge) =>
    planningFill({
      catalog,
      target: 1,
      sources: [0],
      knowledge,
      preferences,
      policy: { ...KEEP_ALL, mergedKeepMs: [0], keepRecent: 16, maxBackups },
      marks: [],
      nowMs: START_MS + COUNT * 1_000,
    }),
  );
}

test("the graph of very many states is made in small steps, and is the same as the one that is made at once", () => {
  const catalog = makeCatalog([0, 1]);
  const { result, mostLooks, steps } = most((knowledge) => LineageGraph.building(catalog, knowledge, preferences));
  expect(mostLooks).toBeLessThanOrEqual(STEP_LOOKS + catalog.fulls.length);
  expect(steps).toBeGreaterThan(catalog.changeSets.length / STEP_LOOKS);
  const atOnce = new LineageGraph(catalog, factsOf, preferences);
  expect(result.restorePoints).toEqual(atOnce.restorePoints);
  expect(result.restorePoints).toHaveLength(COUNT);
  expect(result.pathTo(COUNT)).toEqual(atOnce.pathTo(COUNT));
});

test("what a destination lacks of very many objects is planned in steps of which none looks at all of them several times", () => {
  const catalog = makeCatalog([0]);
  const count = catalog.fulls.length + catalog.changeSets.length;
  const first = plan(catalog, 0);
  expect(first.mostLooks).toBeLessThanOrEqual(3 * count);
  expect(first.steps).toBeGreaterThan(50);
  // What was merged and is only kept for a while is not copied.
  const lacking = first.result.missing.flatMap(({ sources }) => sources);
  expect(lacking[0]).toMatchObject({ kind: "full", first: FULL_EVERY + 1 });
  expect(lacking[1]).toMatchObject({ first: FULL_EVERY + 2 });
  expect(lacking.at(-1)).toMatchObject({ kind: "full", first: 1 });
  expect(lacking.length).toBeLessThan(0.6 * count);

  const cut = plan(catalog, 1);
  expect(cut.mostLooks).toBeLessThanOrEqual(3 * count);
  expect(cut.result.missing.every(({ sources }) => (sources[0]?.last ?? 0) > FULL_EVERY)).toBe(true);

  const daily = plan(makeCatalog([0, 1]), 0);
  expect(daily.result).toMatchObject({ missing: [], forks: [], blocked: [], unknown: [] });
  // So many names at once, each at two destinations.
  expect(daily.mostLooks).toBeLessThanOrEqual(4 * STEP_LOOKS);
});

test("copies of one object stand together in a catalog, wherever they are and whatever their seal", () => {
  const building = new CatalogBuilder("app", 3);
  const add = (destination: number, level: number, [from, to]: readonly [number, number], seal: string) => {
    const name = { kind: "change-set", level, first: from, last: to, seal } as const;
    building.add(destination, { key: objectKey("app", name), sizeBytes: 1, modifiedMs: 0 });
  };
  for (const destination of [2, 0, 1])
    for (const seal of ["p", "01234567"]) {
      for (const range of [
        [3, 3],
        [2, 2],
        [2, 3],
      ] as const)
        add(destination, 0, range, seal);
      add(destination, 1, [2, 3], seal);
    }
  const groups = [...copiesIn(building.build().changeSets)];
  expect(groups.map((copies) => copies.length)).toEqual([6, 6, 6, 6]);
  for (const copies of groups)
    expect(new Set(copies.map(({ level, first: from, last: to }) => `${level} ${from} ${to}`)).size).toBe(1);
});
