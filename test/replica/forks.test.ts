import { expect, test } from "bun:test";
import { keyRing } from "../../src/format/envelope.ts";
import { parseHeader } from "../../src/format/header.ts";
import { carryOut } from "../../src/replica/carry-out.ts";
import { type ExplainedPlan, planRestore } from "../../src/replica/plan.ts";
import { Replica } from "../../src/replica/replica.ts";
import { seededRandom } from "../support/random.ts";
import { ReplicaBuilder, testKey } from "./builder.ts";
import { layInMemory } from "./lay.ts";
import { MemoryBackend } from "./memory-backend.ts";

const key = testKey(7);

async function history(states: number): Promise<{ builder: ReplicaBuilder; backend: MemoryBackend }> {
  const backend = new MemoryBackend();
  const builder = new ReplicaBuilder({ backends: [backend], random: seededRandom(states) });
  builder.beginChain([builder.randomImage(), builder.randomImage(), builder.randomImage()]);
  await builder.storeFull(1);
  for (let i = 1; i < states; i++) {
    builder.passTime(1_000);
    await builder.storeChangeSet(builder.commitRandom(2).index);
  }
  return { builder, backend };
}

function open(backend: MemoryBackend, seal = "p", rest: { readonly maxProofReads?: number } = {}): Promise<Replica> {
  const keys = keyRing([key]);
  return Replica.open({ database: "app", backends: [backend], keys, seal, acceptPlaintext: true, ...rest });
}

async function restores(replica: Replica, builder: ReplicaBuilder, index: number): Promise<boolean> {
  const plan = await planRestore(replica, { kind: "index", index }).catch(() => null);
  if (plan === null) return false;
  const { file } = await layInMemory(replica, plan);
  expect(Buffer.compare(file, builder.fileOf(index))).toBe(0);
  return true;
}

test("what a second writer left at the end of our lineage is neither used nor in the way", async () => {
  const { builder, backend } = await history(5);
  // Written at another time under another seal, from the same parent: two states 6, and ours goes on to 8.
  builder.seal = key;
  const fork = await builder.storeFork({ kind: "change-set", level: 0, first: 6, last: 6, seal: key.fingerprint });
  builder.seal = null;
  for (let i = 0; i < 3; i++) await builder.storeChangeSet(builder.commitRandom(1).index);

  for (const seal of ["p", key.fingerprint]) {
    const replica = await open(backend, seal);
    for (let index = 1; index <= 8; index++)
      expect([seal, index, await restores(replica, builder, index)]).toEqual([seal, index, true]);
    expect(replica.graph.forks.map((object) => [object.first, object.seal])).toEqual([[6, key.fingerprint]]);
    const latest = await planRestore(await open(backend, seal), { kind: "latest" });
    expect(latest.index).toBe(8);
  }
  expect(fork.result).not.toBe(builder.states.get(6)?.lineage ?? "");
});

test("of two lineages of one length, that which CURRENT names is ours", async () => {
  const { builder, backend } = await history(5);
  const newest = builder.commitRandom(1);
  await builder.storeChangeSet(newest.index);
  builder.seal = key;
  await builder.storeFork({ kind: "change-set", level: 0, first: 6, last: 6, seal: key.fingerprint });
  builder.seal = null;
  await builder.storeCurrent(1);
  for (const seal of ["p", key.fingerprint]) {
    const replica = await open(backend, seal);
    const plan = await planRestore(replica, { kind: "latest" });
    const { file } = await layInMemory(replica, plan);
    expect([seal, plan.index, Buffer.compare(file, builder.fileOf(6))]).toEqual([seal, 6, 0]);
  }
});

test("states that a change-set of ours steps over belong to somebody else", async () => {
  const { builder, backend } = await history(5);
  await builder.storeFork({ kind: "change-set", level: 0, first: 6, last: 6, seal: "p" });
  await builder.storeFork({ kind: "change-set", level: 1, first: 6, last: 70, seal: "p" });
  const replica = await open(backend);
  const plan = await planRestore(replica, { kind: "latest" });
  expect(plan.index).toBe(70);
  await replica.trailers.load(replica.catalog.changeSets);
  expect(replica.graph.restorePoints).toEqual([1, 2, 3, 4, 5, 70]);
  expect(replica.graph.forks.map((object) => object.first)).toEqual([6]);
});

test("what a second writer merged into one step of several is not taken for the state at which both end", async () => {
  const { builder, backend } = await history(5);
  for (let i = 0; i < 5; i++) await builder.storeChangeSet(builder.commitRandom(2).index);
  await builder.storeFork({ kind: "change-set", level: 0, first: 6, last: 8, seal: "p" });
  // By names alone it is the shortest way to 8, and takes 6 and 7 from us.
  for (let index = 1; index <= 10; index++)
    expect([index, await restores(await open(backend), builder, index)]).toEqual([index, true]);
});

test("states before a gap stay restorable, and what follows the gap is not", async () => {
  const { builder, backend } = await history(9);
  await builder.compact(2, 3, 7);
  backend.objects.delete("app/L0/0000000000000005-0000000000000005.p");
  backend.objects.delete("app/L0/0000000000000008-0000000000000008.p");
  const replica = await open(backend);
  const restorable: number[] = [];
  for (let index = 1; index <= 9; index++) if (await restores(replica, builder, index)) restorable.push(index);
  expect(restorable).toEqual([1, 2, 3, 4, 7]);
  const plan = await planRestore(replica, { kind: "latest" });
  expect(plan.index).toBe(7);
  expect(plan.notes).toEqual([
    expect.stringContaining("change-sets up to state 9 are stored, but the way from state 7"),
  ]);
});

test("an older full backup and a longer run stand in for a damaged one, and the plan says so", async () => {
  const { builder, backend } = await history(5);
  const { key: newer } = await builder.storeFull(4);
  backend.flip(newer, (backend.objects.get(newer)?.length ?? 0) - 100);
  const replica = await open(backend);
  const plan = await planRestore(replica, { kind: "latest" });
  expect([plan.index, plan.full.first, plan.changeSets.length]).toEqual([5, 1, 4]);
  expect(plan.notes).toEqual([
    expect.stringMatching(/walked around memory\/app\/full\/0{15}4\.p: .*older full backup 1 and 4 change-sets/),
  ]);
  expect(Buffer.compare((await layInMemory(replica, plan)).file, builder.fileOf(5))).toBe(0);
});

test("damage that shows only when pages are read fails the restore, naming the newest restore point that is left", async () => {
  const { builder, backend } = await history(5);
  const newest = "app/L0/0000000000000005-0000000000000005.p";
  backend.flip(newest, parseHeader(backend.objects.get(newest) ?? new Uint8Array()).headerBytes + 20);
  const replica = await open(backend);
  await expect(carryOut(replica, { kind: "latest" }, (plan) => layInMemory(replica, plan))).rejects.toMatchObject({
    code: "replica-corrupt",
    message: expect.stringContaining("cannot restore state 5"),
    subject: expect.stringContaining(newest),
    hint: expect.stringContaining("--timestamp 2026-01-01T00:00:03.000Z (state 4)"),
  });
  expect(await restores(await open(backend), builder, 4)).toBe(true);
});

/** Restores the latest state with a plan that is proven only while it is carried out. Each plan that was tried. */
async function restoreUnproven(backend: MemoryBackend, builder: ReplicaBuilder): Promise<readonly ExplainedPlan[]> {
  const replica = await open(backend, "p", { maxProofReads: 10 });
  const plans: ExplainedPlan[] = [];
  const { plan, result } = await carryOut(replica, { kind: "latest" }, (planned) => {
    plans.push(planned);
    return layInMemory(replica, planned);
  });
  expect(plan).toBe(plans.at(-1) ?? plan);
  expect(Buffer.compare(result.file, builder.fileOf(plan.index))).toBe(0);
  return plans;
}

test("with very many objects a plan reads few of them, and is proven while it is carried out", async () => {
  const { builder, backend } = await history(60);
  const [plan, ...others] = await restoreUnproven(backend, builder);
  expect([plan?.proven, plan?.index, plan?.changeSets.length, others]).toEqual([false, 60, 59, []]);
});

/** Another database's life under the same names, as a folder that was copied over ours leaves it at state `index`. */
async function replaceByStranger(backend: MemoryBackend, index: number): Promise<void> {
  const other = new MemoryBackend();
  const stranger = new ReplicaBuilder({ backends: [other], random: seededRandom(99) });
  stranger.beginChain([stranger.randomImage()]);
  for (let i = 1; i < index; i++) await stranger.storeChangeSet(stranger.commitRandom(1).index);
  const [key, bytes] = [...other.objects].at(-1) ?? [];
  if (key === undefined || bytes === undefined || !backend.objects.has(key)) throw new Error("no such object");
  backend.objects.set(key, bytes);
}

test("an object of another history on an unproven way is found out, and the state before it restored", async () => {
  const { builder, backend } = await history(20);
  // What nothing newer writes again has to come from before the stranger.
  for (let i = 0; i < 40; i++)
    await builder.storeChangeSet(builder.commit(new Map([[1, builder.randomImage()]])).index);
  await replaceByStranger(backend, 41);
  const plans = await restoreUnproven(backend, builder);
  expect(plans.map(({ index, proven }) => [index, proven])).toEqual([
    [60, false],
    [40, true],
  ]);
  expect(plans.at(-1)?.notes).toEqual([
    expect.stringContaining("change-sets up to state 60 are stored, but the way from state 40"),
  ]);
});

test("where newer objects hold every page, what lies before them need not be sound", async () => {
  const { builder, backend } = await history(60);
  await replaceByStranger(backend, 21);
  const plans = await restoreUnproven(backend, builder);
  expect(plans.map(({ index, proven }) => [index, proven])).toEqual([[60, false]]);
});

test("while a new chain has no full backup the old chain's newest state is restored, with a note", async () => {
  const { builder, backend } = await history(4);
  builder.beginChain([builder.randomImage()]);
  await builder.storeChangeSet(builder.commitRandom(1).index);
  const replica = await open(backend);
  const plan = await planRestore(replica, { kind: "latest" });
  expect(plan.index).toBe(4);
  expect(plan.notes).toEqual([
    expect.stringContaining("a new chain has begun after it, and its first full backup is not stored yet"),
  ]);
  await builder.storeFull(5);
  expect((await planRestore(await open(backend), { kind: "latest" })).index).toBe(6);
});

test("what was compacted away since the listing is found where it is now", async () => {
  const { builder, backend } = await history(9);
  const replica = await open(backend);
  await builder.compact(1, 2, 8);
  for (let i = 2; i <= 8; i++) backend.objects.delete(`app/L0/000000000000000${i}-000000000000000${i}.p`);
  const plan = await planRestore(replica, { kind: "latest" });
  expect([plan.index, plan.changeSets.map(({ level }) => level), plan.notes]).toEqual([9, [1, 0], []]);
  expect(Buffer.compare((await layInMemory(replica, plan)).file, builder.fileOf(9))).toBe(0);
});

test("a destination that lists what it does not have is asked a few times only", async () => {
  const { backend } = await history(4);
  let listings = 0;
  backend.onList = () => void listings++;
  const lost = backend.objects.get("app/L0/0000000000000003-0000000000000003.p");
  const get = backend.get.bind(backend);
  backend.get = async (key, options) => (key.includes("L0/0000000000000003") ? null : get(key, options));
  expect(lost).toBeDefined();
  const plan = await planRestore(await open(backend), { kind: "latest" });
  expect(plan.index).toBe(2);
  expect(listings).toBeLessThan(10);
});

test("a CURRENT that knows more than is stored is told of", async () => {
  const { builder, backend } = await history(6);
  await builder.storeCurrent(1);
  for (const index of [5, 6]) backend.objects.delete(`app/L0/000000000000000${index}-000000000000000${index}.p`);
  const plan = await planRestore(await open(backend), { kind: "latest" });
  expect([plan.index, plan.notes]).toEqual([4, [expect.stringContaining("CURRENT knew of state 6")]]);
});

test("a damaged CURRENT or manifest is a warning and nothing more", async () => {
  const { builder, backend } = await history(3);
  await builder.storeCurrent(1);
  await builder.storeManifest();
  for (const name of ["app/CURRENT", "app/manifest"]) backend.flip(name, 100);
  const replica = await open(backend);
  expect(replica.warnings).toHaveLength(2);
  expect((await planRestore(replica, { kind: "latest" })).index).toBe(3);
});

test("a manifest saves the reads of planning", async () => {
  const { builder, backend } = await history(50);
  await builder.storeManifest();
  const replica = await open(backend);
  backend.getCount = 0;
  const plan = await planRestore(replica, { kind: "latest" });
  expect([plan.index, plan.changeSets.length]).toEqual([50, 49]);
  expect(backend.getCount).toBe(1);
  expect(Buffer.compare((await layInMemory(replica, plan)).file, builder.fileOf(50))).toBe(0);
});

test("a manifest that tells something else than the objects is found out and passed by", async () => {
  const { builder, backend } = await history(6);
  await builder.compact(1, 2, 4);
  await builder.storeManifest((entry) =>
    entry["name"] === "L1/0000000000000002-0000000000000004.p"
      ? { ...entry, settled: 9, result: "f".repeat(64) }
      : entry,
  );
  const replica = await open(backend);
  for (let index = 1; index <= 6; index++) expect(await restores(replica, builder, index)).toBe(true);
  // Facts that lie about a lineage are corrected when the object is opened.
  const other = await history(4);
  await other.builder.storeManifest((entry) =>
    entry["name"] === "L0/0000000000000003-0000000000000003.p" ? { ...entry, settled: 4 } : entry,
  );
  const lied = await open(other.backend);
  const plan = await planRestore(lied, { kind: "latest" });
  expect(Buffer.compare((await layInMemory(lied, plan)).file, other.builder.fileOf(4))).toBe(0);
});

test("objects in a folder that are none of ours are counted and left alone", async () => {
  const { builder, backend } = await history(3);
  for (const name of [
    "app/notes.txt",
    "app/L0/1-1.p",
    "app/L0/0000000000000004-0000000000000004.P",
    "app/full/",
    "app/L0/0000000000000009-0000000000000004.p",
  ])
    backend.objects.set(name, Buffer.from("garbage"));
  backend.objects.set("app/L0/0000000000000004-0000000000000004.p", Buffer.from("garbage"));
  const replica = await open(backend);
  expect(replica.catalog.anomalyCount).toBe(5);
  expect(replica.warnings).toEqual([expect.stringMatching(/^ignoring memory\/app\/.* and others \(4\): not a name/)]);
  const plan = await planRestore(replica, { kind: "latest" });
  expect([plan.index, Buffer.compare((await layInMemory(replica, plan)).file, builder.fileOf(3))]).toEqual([3, 0]);
});

test("another database's objects under our names are refused", async () => {
  const { backend } = await history(3);
  const stranger = new MemoryBackend();
  const other = new ReplicaBuilder({ backends: [stranger], random: seededRandom(9), database: "other" });
  other.beginChain([other.randomImage()]);
  await other.storeFull(1);
  backend.objects.set(
    "app/full/0000000000000001.p",
    stranger.objects.get("other/full/0000000000000001.p") ?? new Uint8Array(),
  );
  const error = await planRestore(await open(backend), { kind: "latest" }).catch((thrown: unknown) => thrown);
  expect(error).toMatchObject({ code: "replica-corrupt", subject: "memory/app/full/0000000000000001.p" });
});
