import { expect, test } from "bun:test";
import { objectKey, PLAINTEXT_SEAL } from "../../src/format/names.ts";
import { type Catalog, CatalogBuilder, type ReplicaObject } from "../../src/replica/catalog.ts";
import type { Knowledge, ObjectFacts } from "../../src/replica/facts.ts";
import { LineageGraph, type PathPreferences } from "../../src/replica/paths.ts";
import { fc } from "../support/properties.ts";
import { ReferenceGraph } from "./reference-graph.ts";

const HIGHEST_INDEX = 14;
const FOREIGN_SEAL = "1a2b3c4d";
const LINEAGES = ["a", "b", "c"];

/** An object that need not make sense beside others, and what is known of it. */
interface Given {
  readonly level: number | "full";
  readonly first: number;
  readonly length: number;
  readonly foreign: boolean;
  readonly destination: number;
  readonly modifiedMs: number;
  readonly knowledge: "unknown" | "unusable" | Told;
}

interface Told {
  readonly parent: number;
  readonly result: number;
  readonly chain: number;
  readonly settledAfter: number;
  readonly compacted: boolean;
}

function given(): fc.Arbitrary<Given> {
  const told = fc.record({
    // Mostly one lineage: with more there is hardly a path.
    parent: lineage(),
    result: lineage(),
    chain: fc.constantFrom(0, 0, 0, 0, 0, 1),
    settledAfter: fc.constantFrom(0, 0, 0, 1, 3),
    compacted: fc.boolean(),
  });
  return fc.record({
    level: fc.constantFrom<number | "full">("full", 0, 0, 0, 1, 2),
    first: fc.integer({ min: 1, max: HIGHEST_INDEX }),
    length: fc.constantFrom(1, 1, 1, 2, 3, 5),
    foreign: fc.boolean(),
    destination: fc.integer({ min: 0, max: 1 }),
    modifiedMs: fc.integer({ min: 0, max: 5 }),
    knowledge: fc.oneof(
      { weight: 4, arbitrary: fc.constant("unknown" as const) },
      { weight: 1, arbitrary: fc.constant("unusable" as const) },
      { weight: 5, arbitrary: told },
    ),
  });
}

function lineage(): fc.Arbitrary<number> {
  return fc.constantFrom(0, 0, 0, 0, 1, 2);
}

/** What a replicator stores that nobody disturbs: a full backup and a change-set for each state, some of them read. */
function ordinary(): fc.Arbitrary<readonly Given[]> {
  const told: Told = { parent: 0, result: 0, chain: 0, settledAfter: 0, compacted: false };
  const rest = { length: 1, foreign: false, destination: 0, modifiedMs: 0 };
  return fc
    .array(fc.constantFrom<Given["knowledge"]>("unknown", "unknown", told, told), { minLength: HIGHEST_INDEX })
    .map((known) => known.map((knowledge, i) => ({ level: i === 0 ? "full" : 0, first: i + 1, knowledge, ...rest })));
}

function factsOf({ level, first, length }: Given, told: Told): ObjectFacts {
  const last = level === "full" ? first : first + length - 1;
  return {
    chain: `chain ${told.chain}`,
    pageSizeBytes: 512,
    parent: level === "full" ? null : `${LINEAGES[told.parent]} ${first - 1}`,
    result: `${LINEAGES[told.result]} ${last}`,
    settled: last + told.settledAfter,
    sizePages: 1,
    pageCount: 1,
    commits: 1,
    firstCommitMs: 0,
    lastCommitMs: 0,
    compacted: told.compacted,
  };
}

function build(objects: readonly Given[]): { readonly catalog: Catalog; knowledge(object: ReplicaObject): Knowledge } {
  const builder = new CatalogBuilder("app", 2);
  const known = new Map<string, Knowledge>();
  for (const object of objects) {
    const { level, first, length, foreign, destination, modifiedMs } = object;
    const seal = foreign ? FOREIGN_SEAL : PLAINTEXT_SEAL;
    const name =
      level === "full"
        ? ({ kind: "full", index: first, seal } as const)
        : ({ kind: "change-set", level, first, last: first + length - 1, seal } as const);
    const key = objectKey("app", name);
    if (known.has(`${destination} ${key}`)) continue;
    const { knowledge } = object;
    known.set(`${destination} ${key}`, typeof knowledge === "string" ? knowledge : factsOf(object, knowledge));
    builder.add(destination, { key, sizeBytes: 100, modifiedMs });
  }
  const knowledge = (object: ReplicaObject) => {
    const { kind, level, first, last, seal } = object;
    const name =
      kind === "full" ? ({ kind, index: first, seal } as const) : ({ kind, level, first, last, seal } as const);
    return known.get(`${object.destination} ${objectKey("app", name)}`) ?? "unknown";
  };
  return { catalog: builder.build(), knowledge };
}

test("the graph says what a plain one says, whatever is stored and known", () => {
  let paths = 0;
  let forks = 0;
  fc.assert(
    fc.property(
      fc.oneof(fc.constant([]), ordinary()),
      fc.array(given(), { maxLength: 25, size: "max" }),
      fc.option(fc.record({ index: fc.integer({ min: 1, max: HIGHEST_INDEX }), lineage: lineage() })),
      (sound, others, named) => {
        const { catalog, knowledge } = build([...sound, ...others]);
        const current = named === null ? null : { ...named, lineage: `${LINEAGES[named.lineage]} ${named.index}` };
        const preferences: PathPreferences = { seal: PLAINTEXT_SEAL, current };
        const graph = new LineageGraph(catalog, knowledge, preferences);
        const reference = new ReferenceGraph(catalog, knowledge, preferences);
        expect(graph.restorePoints).toEqual(reference.restorePoints);
        expect(graph.unreached).toEqual(reference.unreached);
        expect(graph.newestIndex).toBe(reference.newestIndex);
        expect([...graph.forks]).toEqual([...reference.forks]);
        expect([...graph.contested]).toEqual([...reference.contested]);
        for (let index = 0; index <= HIGHEST_INDEX + 5; index++) {
          expect(graph.isRestorePoint(index)).toBe(reference.isRestorePoint(index));
          expect(graph.stampSources(index)).toEqual(reference.stampSources(index));
          expect(graph.pathTo(index)).toEqual(reference.pathTo(index));
          paths += (graph.pathTo(index)?.changeSets.length ?? 0) > 2 ? 1 : 0;
        }
        forks += graph.forks.length;
      },
    ),
    { numRuns: 2000, seed: 6 },
  );
  // Else the generator makes nothing worth comparing.
  expect(paths).toBeGreaterThan(1000);
  expect(forks).toBeGreaterThan(1000);
});
