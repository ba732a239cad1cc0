import { beforeAll, expect, spyOn, test } from "bun:test";
import { emptyKeyRing } from "../../src/format/envelope.ts";
import { objectKey, PLAINTEXT_SEAL } from "../../src/format/names.ts";
import { carryOut } from "../../src/replica/carry-out.ts";
import { type Catalog, CatalogBuilder, type ReplicaObject } from "../../src/replica/catalog.ts";
import type { ObjectFacts } from "../../src/replica/facts.ts";
import { LineageGraph } from "../../src/replica/paths.ts";
import { planRestore } from "../../src/replica/plan.ts";
import { Replica } from "../../src/replica/replica.ts";
import { summarize, summarizeAges, summarizeFullBackups, summarizeObjects } from "../../src/replica/summary.ts";
import { seededRandom } from "../support/random.ts";
import { ReplicaBuilder } from "./builder.ts";
import { layInMemory } from "./lay.ts";
import { MemoryBackend } from "./memory-backend.ts";

// What it costs to look at a replica, counted rather than timed: a step that grows with the square of the objects, or a request for
// each of them, shows here with a few thousand.

const STATES = 2_500;
const FULL_EVERY = 50;
const SECOND_MS = 1_000;
const START_MS = Date.UTC(2026, 0, 1);

let backend: MemoryBackend;
let builder: ReplicaBuilder;
let listings: number;

beforeAll(async () => {
  backend = new MemoryBackend();
  backend.onList = () => listings++;
  builder = new ReplicaBuilder({ backends: [backend], random: seededRandom(1), startMs: START_MS });
  builder.beginChain([builder.randomImage(), builder.randomImage()]);
  await builder.storeFull(1);
  for (let i = 1; i < STATES; i++) {
    builder.passTime(SECOND_MS);
    const { index } = builder.commitRandom(1);
    await builder.storeChangeSet(index);
  }
});

async function open(): Promise<Replica> {
  listings = 0;
  backend.getCount = 0;
  return Replica.open({
    database: "app",
    backends: [backend],
    keys: emptyKeyRing,
    seal: PLAINTEXT_SEAL,
    acceptPlaintext: false,
  });
}

test("planning a restore of one path of thousands takes one listing and a few reads", async () => {
  for (const target of [{ kind: "latest" }, { kind: "time", timeMs: START_MS + 2_300.5 * SECOND_MS }] as const) {
    const replica = await open();
    const knowledge = spyOn(replica.trailers, "knowledge");
    const plan = await planRestore(replica, target, "affordable");
    expect([plan.proven, plan.changeSets.length]).toEqual([false, plan.index - 1]);
    expect(plan.index).toBe(target.kind === "latest" ? STATES : 2301);
    expect([listings, backend.getCount <= 40]).toEqual([1, true]);
    // Each of a few graphs, and each look at a path, asks once for each object.
    expect(knowledge.mock.calls.length).toBeLessThan(20 * STATES);
    knowledge.mockRestore();
  }
});

test("such a restore reads no object twice, and none that newer ones make superfluous", async () => {
  const replica = await open();
  const { plan, result } = await carryOut(replica, { kind: "latest" }, (planned) => layInMemory(replica, planned));
  expect(Buffer.compare(result.file, builder.fileOf(plan.index))).toBe(0);
  expect(backend.getCount).toBeLessThan(100);
});

test("listing many full backups reads them and the ends of their ranges, and makes a few graphs only", async () => {
  for (let index = FULL_EVERY; index <= STATES; index += FULL_EVERY) await builder.storeFull(index);
  const replica = await open();
  const knowledge = spyOn(replica.trailers, "knowledge");
  const { fullBackupCount, changeSetCount } = await summarize(replica);
  const fulls = await summarizeFullBackups(replica);
  const ages = await summarizeAges(replica, [600 * SECOND_MS, 1_200 * SECOND_MS], START_MS + STATES * SECOND_MS);
  expect([fullBackupCount, changeSetCount]).toEqual([1 + STATES / FULL_EVERY, STATES - 1]);
  expect(fulls.map(({ points }) => points?.count ?? 0).reduce((sum, count) => sum + count, 0)).toBe(STATES);
  expect(ages.map(({ count }) => count)).toEqual([599, 600, 1301]);
  expect([listings, backend.getCount <= 3 * fulls.length + 60]).toEqual([1, true]);
  expect(knowledge.mock.calls.length).toBeLessThan(20 * STATES);
  knowledge.mockRestore();
  expect([...summarizeObjects(replica)].length).toBe(fulls.length + STATES - 1);
});

/** `count` change-sets after a full backup, in runs of five that level 1 holds too, all read; every look at an object is counted. */
function counted(count: number): { readonly catalog: Catalog; looks(): number } {
  let looks = 0;
  const counting = <T extends object>(target: T): T =>
    new Proxy(target, {
      get(of, property) {
        looks++;
        return Reflect.get(of, property);
      },
    });
  const building = new CatalogBuilder("app");
  const add = (name: Parameters<typeof objectKey>[1]) =>
    building.add(0, { key: objectKey("app", name), sizeBytes: 1_000, modifiedMs: START_MS });
  const seal = PLAINTEXT_SEAL;
  add({ kind: "full", index: 1, seal });
  for (let index = 2; index <= count; index++) add({ kind: "change-set", level: 0, first: index, last: index, seal });
  for (let first = 2; first + 4 <= count; first += 5)
    add({ kind: "change-set", level: 1, first, last: first + 4, seal });
  const built = building.build();
  const catalog = { ...built, fulls: built.fulls.map(counting), changeSets: built.changeSets.map(counting) };
  return { catalog, looks: () => looks };
}

test("the graph of states, and a path in it, cost steps in proportion to the objects", () => {
  const looksFor = (count: number) => {
    const { catalog, looks } = counted(count);
    const facts = new Map<ReplicaObject, ObjectFacts>();
    for (const known of [false, true]) {
      if (known) for (const object of [...catalog.fulls, ...catalog.changeSets]) facts.set(object, factsOf(object));
      const preferences = { seal: PLAINTEXT_SEAL, current: { index: count, lineage: `state ${count}` } };
      const graph = new LineageGraph(catalog, (object) => facts.get(object) ?? "unknown", preferences);
      expect(graph.restorePoints.length).toBe(count);
      expect(graph.pathTo(count)?.changeSets.length).toBeLessThan(count / 4);
      expect([graph.forks.length, graph.unreached.length, graph.contested.size]).toEqual([0, 0, 0]);
    }
    return looks();
  };
  const small = looksFor(1_001);
  expect(looksFor(4_001)).toBeLessThan(4.4 * small);
});

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
    firstCommitMs: START_MS,
    lastCommitMs: START_MS,
    compacted: level > 0,
  };
}
