import { expect, test } from "bun:test";
import { emptyKeyRing } from "../../src/format/envelope.ts";
import { markKey } from "../../src/format/names.ts";
import { CatalogBuilder, markedIndexes } from "../../src/replica/catalog.ts";
import { dropMark, isLabel, placeMark, readMarks } from "../../src/replica/marks.ts";
import { planForIndex } from "../../src/replica/plan.ts";
import { Replica } from "../../src/replica/replica.ts";
import type { Backend } from "../../src/storage/backend.ts";
import { seededRandom } from "../support/random.ts";
import { ReplicaBuilder } from "./builder.ts";
import { MemoryBackend } from "./memory-backend.ts";

async function history(...backends: readonly Backend[]): Promise<ReplicaBuilder> {
  const builder = new ReplicaBuilder({ backends, random: seededRandom(1) });
  builder.beginChain(Array.from({ length: 4 }, () => builder.randomImage()));
  await builder.storeFull(1);
  for (let index = 2; index <= 6; index++) {
    builder.passTime(1000);
    builder.commitRandom(2);
    await builder.storeChangeSet(index);
  }
  return builder;
}

async function open(...backends: readonly Backend[]): Promise<Replica> {
  return await Replica.open({ database: "app", backends, keys: emptyKeyRing, seal: "p", acceptPlaintext: true });
}

async function place(replica: Replica, index: number, label: string, destinations: readonly number[] = [0]) {
  const plan = await planForIndex(replica, index);
  if (plan === null) throw new Error(`state ${index} is a restore point`);
  return await placeMark(replica, plan, {
    label,
    destinations,
    sealKey: null,
    compressionLevel: 1,
    writer: "test",
    randomHex: (bytes) => "5a".repeat(bytes),
    nowMs: 1234,
  });
}

/** Does `after` once something with a mark's name was stored. */
function afterMarking(backend: MemoryBackend, after: () => Promise<void>): Backend {
  return new Proxy<Backend>(backend, {
    get(target, name) {
      const value: unknown = Reflect.get(target, name, target);
      if (typeof value !== "function") return value;
      if (name !== "put") return value.bind(target);
      return async (...args: Parameters<Backend["put"]>) => {
        const outcome = await target.put(...args);
        if (args[0].includes("/keep/")) await after();
        return outcome;
      };
    },
  });
}

test("a state that is deleted while it is being marked leaves no mark behind", async () => {
  const memory = new MemoryBackend();
  const builder = await history(memory);
  const [first = ""] = [...builder.stored.keys()].filter((key) => key.includes("/L0/"));
  const backend = afterMarking(memory, async () => await memory.delete([first]));
  const replica = await open(backend);
  await expect(place(replica, 4, "late")).rejects.toThrow("was deleted while it was being marked");
  expect(markedIndexes((await open(memory)).catalog)).toEqual([]);
});

test("of two who mark the same state at the same moment, the second is told the first one's label", async () => {
  const memory = new MemoryBackend();
  await history(memory);
  const [one, other] = [await open(memory), await open(memory)];
  await place(one, 4, "one");
  await expect(place(other, 4, "other")).rejects.toThrow('state 4 is marked already, as "one"');
  expect((await place(other, 4, "one")).mark.label).toBe("one");
});

test("a mark is read from any destination, counts wherever it is, and is dropped everywhere", async () => {
  const [a, b] = [new MemoryBackend(), new MemoryBackend()];
  await history(a, b);
  expect(await place(await open(a, b), 3, "x", [0, 1])).toMatchObject({
    failures: [],
    mark: { index: 3, createdMs: 1234 },
  });
  const key = markKey("app", { index: 3, seal: "p" });
  await a.delete([key]);
  const replica = await open(a, b);
  expect(await readMarks(replica)).toMatchObject([{ index: 3, mark: { label: "x" }, error: null }]);
  expect(await dropMark(replica, "x")).toMatchObject({ index: 3, failures: [] });
  expect(await b.stat(key)).toBeNull();
  await expect(dropMark(await open(a, b), "x")).rejects.toThrow('there is no mark "x"');
});

test("a listing that fails half-way leaves no mark of its destination", () => {
  const builder = new CatalogBuilder("app", 2);
  for (const destination of [0, 1])
    builder.add(destination, {
      key: markKey("app", { index: 7 + destination, seal: "p" }),
      sizeBytes: 1,
      modifiedMs: 1,
    });
  builder.drop(0);
  const catalog = builder.build();
  expect(markedIndexes(catalog)).toEqual([8]);
  expect(catalog.anomalyCount).toBe(0);
});

test.each(["a", "before-upgrade", "end of May", "ü 漢字", "x".repeat(64)])("%j can be a label", (text) => {
  expect(isLabel(text)).toBe(true);
});

test.each(["", " ", " a", "a ", "a\nb", "a\u0000", "\u202eabc", "x".repeat(65)])("%j cannot be a label", (text) => {
  expect(isLabel(text)).toBe(false);
});
