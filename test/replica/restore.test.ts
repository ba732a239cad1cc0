import { Database } from "bun:sqlite";
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import {
  chmodSync,
  chownSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { basename } from "node:path";
import { keyRing, type SealKey } from "../../src/format/envelope.ts";
import { type ExplainedPlan, planRestore } from "../../src/replica/plan.ts";
import { Replica } from "../../src/replica/replica.ts";
import { type RestoreOptions, type RestoreResult, restoreDatabase } from "../../src/replica/restore.ts";
import { StagingFile } from "../../src/replica/staging-file.ts";
import { BakeliteError } from "../../src/util/errors.ts";
import { eventually } from "../support/eventually.ts";
import { seededRandom } from "../support/random.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";
import { fileOf, ReplicaBuilder, testKey } from "./builder.ts";
import { MemoryBackend } from "./memory-backend.ts";
import { openAs } from "./reencrypt-scene.ts";
import { makeDatabase, makeDatabaseWithWal, pagesOfFile, rowsOf } from "./sqlite-history.ts";

const isRoot = process.geteuid?.() === 0;
const PAGE_SIZE = 4096;
let directory: TemporaryDirectory;
let backend: MemoryBackend;
let builder: ReplicaBuilder;

beforeAll(async () => {
  directory = await temporaryDirectory("restore");
  const source = directory.file("source.db");
  makeDatabase(source, 500, "first");
  backend = new MemoryBackend();
  builder = new ReplicaBuilder({
    backends: [backend],
    random: seededRandom(1),
    pageSizeBytes: PAGE_SIZE,
    seal: testKey(1),
  });
  builder.beginChain(pagesOfFile(source, PAGE_SIZE));
  await builder.storeFull(1);
  for (let i = 0; i < 5; i++) {
    makeDatabase(source, 40, `more ${i}`);
    const pages = pagesOfFile(source, PAGE_SIZE);
    const before = builder.newest.pages;
    const changed = pages.flatMap((image, at) =>
      before[at] !== undefined && Buffer.compare(before[at], image) === 0 ? [] : [[at + 1, image] as const],
    );
    builder.passTime(60_000);
    await builder.storeChangeSet(builder.commit(new Map(changed), pages.length).index);
  }
});

afterAll(() => directory[Symbol.asyncDispose]());

function open(from: MemoryBackend = backend): Promise<Replica> {
  return Replica.open({
    database: "app",
    backends: [from],
    keys: builder.keys,
    seal: builder.sealText,
    acceptPlaintext: false,
  });
}

async function restore(
  outputPath: string,
  options: Partial<RestoreOptions> & { index?: number; from?: MemoryBackend } = {},
): Promise<RestoreResult> {
  const { index, from, ...rest } = options;
  const replica = await open(from);
  const plan = await planRestore(replica, index === undefined ? { kind: "latest" } : { kind: "index", index });
  return restoreDatabase(replica, plan, {
    outputPath,
    configuredPath: outputPath,
    overwrite: false,
    integrity: "full",
    ...rest,
  });
}

function failure(work: Promise<unknown>): Promise<unknown> {
  return work.then(
    () => "it worked",
    (error: unknown) => error,
  );
}

/** A folder of its own for one test. */
function folder(name: string): (file: string) => string {
  mkdirSync(directory.file(name));
  return (file) => directory.file(name, file);
}

test("a restored file is the database as it was, page for page, and opens with all its rows", async () => {
  const at = folder("plain");
  for (const index of [1, 3, 6]) {
    const result = await restore(at(`${index}.db`), { index });
    expect(Buffer.compare(readFileSync(at(`${index}.db`)), builder.fileOf(index))).toBe(0);
    expect(result).toMatchObject({
      path: at(`${index}.db`),
      digestCompared: true,
      sizeBytes: builder.fileOf(index).length,
    });
  }
  expect(readdirSync(directory.file("plain")).sort()).toEqual(["1.db", "3.db", "6.db"]);
  expect(rowsOf(at("3.db"))).toHaveLength(580);
  expect(rowsOf(at("3.db")).at(-1)).toBe("more 1 39");
});

test("an existing file is refused without force, and keeps its mode with it", async () => {
  const at = folder("existing");
  writeFileSync(at("app.db"), "something else", { mode: 0o640 });
  chmodSync(at("app.db"), 0o640);
  expect(await failure(restore(at("app.db")))).toMatchObject({ code: "output-exists", subject: at("app.db") });
  expect(readFileSync(at("app.db"), "utf8")).toBe("something else");
  await restore(at("app.db"), { overwrite: true });
  expect(rowsOf(at("app.db"))).toHaveLength(700);
  expect(statSync(at("app.db")).mode & 0o777).toBe(0o640);
  expect(readdirSync(directory.file("existing"))).toEqual(["app.db"]);
});

test("a folder in the way is refused even with force", async () => {
  const at = folder("folder-in-the-way");
  mkdirSync(at("app.db"));
  expect(await failure(restore(at("app.db"), { overwrite: true }))).toMatchObject({
    code: "output-exists",
    message: expect.stringContaining("not a file"),
  });
});

test("a target whose folder does not exist is refused with the folder's name", async () => {
  expect(await failure(restore(directory.file("nowhere", "app.db")))).toMatchObject({
    code: "not-found",
    hint: expect.stringContaining("nowhere"),
  });
});

test("a symbolic link stays one: what it points to is restored", async () => {
  const at = folder("linked");
  mkdirSync(at("real"));
  symlinkSync("real/data.db", at("app.db"));
  const { path } = await restore(at("app.db"));
  expect(path).toBe(at("real/data.db"));
  expect(rowsOf(at("app.db"))).toHaveLength(700);
});

test("a database that is open in another process is not replaced, and the process is named", async () => {
  const at = folder("open");
  makeDatabase(at("app.db"), 1);
  const program = `import { Database } from "bun:sqlite"; const d = new Database(process.argv[1]); d.query("SELECT count(*) FROM t").get(); console.log("open"); await Bun.stdin.text();`;
  const holder = Bun.spawn([process.execPath, "-e", program, at("app.db")], { stdin: "pipe", stdout: "pipe" });
  try {
    const reader = holder.stdout.getReader();
    await reader.read();
    expect(await failure(restore(at("app.db"), { overwrite: true }))).toMatchObject({
      code: "database-busy",
      message: expect.stringContaining(`process ${holder.pid} (bun`),
    });
    expect(rowsOf(at("app.db"))).toEqual(["row 0"]);
  } finally {
    await holder.stdin.end();
    await holder.exited;
  }
  await restore(at("app.db"), { overwrite: true });
  expect(rowsOf(at("app.db"))).toHaveLength(700);
});

test("a -wal that somebody has open is not taken from him, although its database is gone", async () => {
  const at = folder("open-wal");
  writeFileSync(at("app.db-wal"), "frames");
  const holder = Bun.spawn(["tail", "-f", at("app.db-wal")], { stdout: "pipe" });
  try {
    await holder.stdout.getReader().read();
    expect(await failure(restore(at("app.db")))).toMatchObject({
      code: "database-busy",
      message: expect.stringContaining(`process ${holder.pid} (tail) has ${at("app.db-wal")} open`),
    });
  } finally {
    holder.kill();
    await holder.exited;
  }
});

test("stale files of the former database are gone afterwards and change nothing in the new one", async () => {
  const at = folder("stale");
  await makeDatabaseWithWal(directory, "stale/app.db");
  writeFileSync(at("app.db-shm"), "shared memory");
  await restore(at("app.db"), { overwrite: true, index: 2 });
  expect(readdirSync(directory.file("stale")).filter((name) => !name.startsWith("app.db.origin"))).toEqual(["app.db"]);
  expect(Buffer.compare(readFileSync(at("app.db")), builder.fileOf(2))).toBe(0);
  expect(rowsOf(at("app.db"))).toHaveLength(540);
});

test("SQLite's check finds a page that was damaged before it was backed up, and nothing is left", async () => {
  const at = folder("unsound");
  const broken = new MemoryBackend();
  const writer = new ReplicaBuilder({
    backends: [broken],
    random: seededRandom(2),
    pageSizeBytes: PAGE_SIZE,
    seal: testKey(1),
  });
  const pages = pagesOfFile(directory.file("source.db"), PAGE_SIZE).slice();
  pages[4] = new Uint8Array(PAGE_SIZE).fill(0xab);
  writer.beginChain(pages);
  await writer.storeFull(1);
  for (const integrity of ["full", "quick"] as const)
    expect(await failure(restore(at("app.db"), { from: broken, integrity }))).toMatchObject({
      code: "database-unfit",
      hint: expect.stringContaining("--integrity none"),
    });
  expect(readdirSync(directory.file("unsound"))).toEqual([]);
  await restore(at("app.db"), { from: broken, integrity: "none" });
  expect(Buffer.compare(readFileSync(at("app.db")), fileOf(pages, PAGE_SIZE))).toBe(0);
});

test("what is not a SQLite database is restored only without a check", async () => {
  const at = folder("not-sqlite");
  const noise = new MemoryBackend();
  const writer = new ReplicaBuilder({
    backends: [noise],
    random: seededRandom(3),
    pageSizeBytes: PAGE_SIZE,
    seal: testKey(1),
  });
  writer.beginChain([writer.randomImage(), writer.randomImage()]);
  await writer.storeFull(1);
  expect(await failure(restore(at("app.db"), { from: noise }))).toMatchObject({ code: "database-unfit" });
  await restore(at("app.db"), { from: noise, integrity: "none" });
  expect(readdirSync(directory.file("not-sqlite"))).toEqual(["app.db"]);
});

test("an empty database is restored as an empty file", async () => {
  const at = folder("empty");
  const nothing = new MemoryBackend();
  const writer = new ReplicaBuilder({ backends: [nothing], random: seededRandom(4), seal: testKey(1) });
  writer.beginChain([]);
  await writer.storeFull(1);
  await restore(at("app.db"), { from: nothing });
  expect(statSync(at("app.db")).size).toBe(0);
});

test("a page that does not match its hash, or a digest that does not match, leaves nothing", async () => {
  const at = folder("damaged");
  const damaged = new MemoryBackend();
  for (const [key, bytes] of backend.objects) damaged.objects.set(key, bytes);
  const newest = [...damaged.objects.keys()].findLast((key) => key.includes("/L0/")) ?? "";
  damaged.flip(newest, 1_000);
  expect(await failure(restore(at("app.db"), { from: damaged }))).toMatchObject({
    code: "replica-corrupt",
    subject: expect.stringContaining(newest),
  });
  expect(readdirSync(directory.file("damaged"))).toEqual([]);
});

/** A replica whose objects are all too large to be kept while planning. */
async function largeReplica(): Promise<{ readonly large: MemoryBackend; readonly writer: ReplicaBuilder }> {
  const large = new MemoryBackend();
  const writer = new ReplicaBuilder({
    backends: [large],
    random: seededRandom(5),
    pageSizeBytes: PAGE_SIZE,
    seal: testKey(1),
  });
  writer.beginChain(Array.from({ length: 900 }, () => writer.randomImage()));
  await writer.storeFull(1);
  for (let i = 0; i < 4; i++) await writer.storeChangeSet(writer.commitRandom(3_000).index);
  return { large, writer };
}

function unchecked(outputPath: string): RestoreOptions {
  return { outputPath, configuredPath: outputPath, overwrite: false, integrity: "none" };
}

test("a large restore reads each stored byte about once, in large ranges", async () => {
  const at = folder("ranges");
  const backend = new MemoryBackend();
  const writer = new ReplicaBuilder({
    backends: [backend],
    random: seededRandom(6),
    pageSizeBytes: 65_536,
    seal: testKey(1),
  });
  const images = Array.from({ length: 20 }, () => writer.randomImage());
  writer.beginChain(Array.from({ length: 1_500 }, (_, i) => images[i % images.length] ?? writer.randomImage()));
  const { key } = await writer.storeFull(1);
  const storedBytes = backend.objects.get(key)?.length ?? 0;
  const replica = await open(backend);
  const plan = await planRestore(replica, { kind: "latest" });
  backend.getCount = 0;
  const { fetchedBytes } = await restoreDatabase(replica, plan, unchecked(at("app.db")));
  expect(fetchedBytes).toBeGreaterThan(storedBytes * 0.99);
  expect(fetchedBytes).toBeLessThan(storedBytes * 1.01);
  // One request for each group of 64 chunks, and a few for the ends.
  expect(backend.getCount).toBeLessThan(1_500 / 4 / 64 + 5);
  expect(Buffer.compare(readFileSync(at("app.db")), writer.fileOf(1))).toBe(0);
});

test("of a large object that newer ones mostly replace, only the chunks that are wanted are fetched", async () => {
  const at = folder("few-chunks");
  const backend = new MemoryBackend();
  const writer = new ReplicaBuilder({
    backends: [backend],
    random: seededRandom(7),
    pageSizeBytes: 65_536,
    seal: testKey(1),
  });
  const images = Array.from({ length: 20 }, () => writer.randomImage());
  const image = (i: number) => images[i % images.length] ?? writer.randomImage();
  writer.beginChain(Array.from({ length: 600 }, (_, i) => image(i)));
  await writer.storeFull(1);
  // Grows by a group, so that newer pages lie above the old size; then shrinks into the middle of one.
  const kept = new Set([5, 100, 101, 240]);
  const changed = Array.from({ length: 800 }, (_, i) => i + 1).filter((page) => !kept.has(page) && page !== 300);
  await writer.storeChangeSet(writer.commit(new Map(changed.map((page) => [page, image(page * 7)])), 800).index);
  await writer.storeChangeSet(writer.commit(new Map([[2, image(3)]]), 700).index);
  const replica = await open(backend);
  const plan = await planRestore(replica, { kind: "latest" });
  const { fetchedBytes } = await restoreDatabase(replica, plan, unchecked(at("app.db")));
  expect(Buffer.compare(readFileSync(at("app.db")), writer.fileOf(3))).toBe(0);
  const fullBytes = plan.full.sizeBytes;
  expect(fetchedBytes).toBeLessThan(plan.bytesToFetch - fullBytes * 0.85);
  // In the state before, page 300 comes from the full backup too.
  const earlier = await planRestore(await open(backend), { kind: "index", index: 2 });
  await restoreDatabase(await open(backend), earlier, unchecked(at("earlier.db")));
  expect(Buffer.compare(readFileSync(at("earlier.db")), writer.fileOf(2))).toBe(0);
});

test("an object that vanishes after planning is walked around: compaction deletes what it replaced", async () => {
  const at = folder("vanishing");
  const { large, writer } = await largeReplica();
  const replica = await open(large);
  const plan = await planRestore(replica, { kind: "latest" });
  expect(plan.changeSets).toHaveLength(4);
  await writer.compact(1, 2, 5);
  let reads = 0;
  large.onGet = (key) => {
    if (key.includes("/L0/") && ++reads === 5)
      for (const name of large.objects.keys()) if (name.includes("/L0/")) large.objects.delete(name);
  };
  const result = await restoreDatabase(replica, plan, unchecked(at("app.db")));
  expect(reads).toBeGreaterThanOrEqual(5);
  expect(result.plan.changeSets.map((object) => object.level)).toEqual([1]);
  expect(Buffer.compare(readFileSync(at("app.db")), writer.fileOf(5))).toBe(0);
});

test("when nothing else leads there, a vanished object fails the restore and leaves nothing", async () => {
  const at = folder("vanished");
  const { large } = await largeReplica();
  const replica = await open(large);
  const plan = await planRestore(replica, { kind: "latest" });
  const key = [...large.objects.keys()].find((name) => name.includes("/full/")) ?? "";
  large.objects.delete(key);
  expect(await failure(restoreDatabase(replica, plan, unchecked(at("app.db"))))).toMatchObject({
    code: "replica-corrupt",
    subject: expect.stringContaining(key),
  });
  expect(readdirSync(directory.file("vanished"))).toEqual([]);
});

test("a destination that fails in the middle fails the restore with its own words and leaves nothing", async () => {
  const at = folder("unreachable");
  const { large } = await largeReplica();
  const replica = await open(large);
  const plan = await planRestore(replica, { kind: "latest" });
  large.onGet = (key) => {
    if (key.includes("/full/")) throw new BakeliteError("storage-unreachable", "the network is down");
  };
  expect(await failure(restoreDatabase(replica, plan, unchecked(at("app.db"))))).toMatchObject({
    code: "storage-unreachable",
    message: "the network is down",
  });
  expect(readdirSync(directory.file("unreachable"))).toEqual([]);
});

test("when one destination fails in the middle the rest comes from another", async () => {
  const at = folder("other-destination");
  const { large, writer } = await largeReplica();
  const copy = new MemoryBackend("copy");
  for (const [key, bytes] of large.objects) copy.objects.set(key, bytes);
  const replica = await Replica.open({
    database: "app",
    backends: [large, copy],
    keys: writer.keys,
    seal: writer.sealText,
    acceptPlaintext: false,
  });
  const plan = await planRestore(replica, { kind: "latest" });
  large.onGet = (key) => {
    if (key.includes("/full/")) throw new BakeliteError("storage-unreachable", "the network is down");
  };
  const result = await restoreDatabase(replica, plan, unchecked(at("app.db")));
  expect([plan.full.destination, result.plan.full.destination]).toEqual([0, 1]);
  expect(Buffer.compare(readFileSync(at("app.db")), writer.fileOf(5))).toBe(0);
});

test("an interrupted restore leaves nothing", async () => {
  const at = folder("interrupted");
  const abort = new AbortController();
  const reason = new BakeliteError("interrupted", "stopped by SIGINT");
  const work = restore(at("app.db"), { signal: abort.signal, onProgress: () => abort.abort(reason) });
  expect(await failure(work)).toBe(reason);
  expect(readdirSync(directory.file("interrupted"))).toEqual([]);
  const late = new AbortController();
  expect(await failure(restore(at("app.db"), { signal: late.signal, onLaid: () => late.abort(reason) }))).toBe(reason);
  expect(readdirSync(directory.file("interrupted"))).toEqual([]);
});

test("a killed restore leaves no database, and the next one removes what it left", async () => {
  const at = folder("killed");
  const objects = folder("killed-replica");
  for (const [key, bytes] of backend.objects) await Bun.write(objects(key), bytes);
  const program = `
    import { FileBackend } from "${import.meta.dir}/../../src/storage/file.ts";
    import { Replica } from "${import.meta.dir}/../../src/replica/replica.ts";
    import { planRestore } from "${import.meta.dir}/../../src/replica/plan.ts";
    import { restoreDatabase } from "${import.meta.dir}/../../src/replica/restore.ts";
    import { testKey } from "${import.meta.dir}/builder.ts";
    import { keyRing } from "${import.meta.dir}/../../src/format/envelope.ts";
    const [root, outputPath] = process.argv.slice(1);
    const key = testKey(1);
    const replica = await Replica.open({ database: "app", backends: [new FileBackend({ path: root })], keys: keyRing([key]), seal: key.fingerprint, acceptPlaintext: false });
    const plan = await planRestore(replica, { kind: "latest" });
    await restoreDatabase(replica, plan, { outputPath, configuredPath: outputPath, overwrite: false, integrity: "full", onProgress() { console.log("laid"); for (;;) Bun.sleepSync(1000); } });
  `;
  const child = Bun.spawn([process.execPath, "-e", program, directory.file("killed-replica"), at("app.db")], {
    stdout: "pipe",
  });
  await child.stdout.getReader().read();
  const staged = readdirSync(directory.file("killed"));
  expect(staged).toEqual([expect.stringMatching(/^app\.db\.bakelite-restore-[0-9a-f-]+$/)]);
  expect(statSync(at(staged[0] ?? "")).mode & 0o777).toBe(0o600);
  // While the other one lives its file is left alone.
  await restore(at("app.db"));
  expect(readdirSync(directory.file("killed")).sort()).toEqual(["app.db", ...staged]);
  child.kill("SIGKILL");
  await child.exited;
  await eventually(async () => (await restore(at("app.db"), { overwrite: true })).removedLeftovers.length === 1, {
    what: "the leftover to be removed",
  });
  expect(readdirSync(directory.file("killed"))).toEqual(["app.db"]);
});

describe.if(isRoot)("as root", () => {
  test("a new file belongs to the owner of the configured database's folder, with the mode that it suggests", async () => {
    const at = folder("owned");
    chownSync(directory.file("owned"), 1234, 2345);
    chmodSync(directory.file("owned"), 0o750);
    await restore(at("app.db"));
    const { uid, gid, mode } = statSync(at("app.db"));
    expect([uid, gid, mode & 0o777]).toEqual([1234, 2345, 0o640]);
    // A copy elsewhere is no wider open than the original.
    chmodSync(at("app.db"), 0o600);
    const elsewhere = folder("elsewhere");
    await restore(elsewhere("copy.db"), { configuredPath: at("app.db") });
    const copy = statSync(elsewhere("copy.db"));
    expect([copy.uid, copy.mode & 0o777]).toEqual([1234, 0o600]);
  });

  test("a disk without room is refused before anything is written, and a disk that fills up leaves nothing", async () => {
    const at = folder("small");
    await Bun.$`mount -t tmpfs -o size=64k tmpfs ${directory.file("small")}`;
    try {
      expect(await failure(restore(at("app.db")))).toMatchObject({
        code: "storage-full",
        message: expect.stringContaining("64.0 KiB are free"),
      });
      {
        await using staging = await StagingFile.create(at("app.db"), { pages: 100, pageSizeBytes: PAGE_SIZE });
        const write = async () => {
          for (let page = 1; page <= 100; page++) await staging.write(page, new Uint8Array(PAGE_SIZE).fill(page));
          await staging.drain();
        };
        expect(await failure(write())).toMatchObject({ code: "storage-full" });
      }
      expect(readdirSync(directory.file("small"))).toEqual([]);
    } finally {
      await Bun.$`umount ${directory.file("small")}`;
    }
  });
});

test("without the right key the error says so", async () => {
  const replica = await Replica.open({
    database: "app",
    backends: [backend],
    keys: keyRing([testKey(2)]),
    seal: testKey(2).fingerprint,
    acceptPlaintext: true,
  });
  expect(await failure(planRestore(replica, { kind: "latest" }))).toMatchObject({
    code: "key-wrong",
    message: expect.stringContaining(testKey(1).fingerprint),
  });
  const none = await Replica.open({
    database: "app",
    backends: [backend],
    keys: keyRing([]),
    seal: "p",
    acceptPlaintext: true,
  });
  expect(await failure(planRestore(none, { kind: "latest" }))).toMatchObject({ code: "key-wrong" });
});

test("before the first full backup, with change-sets under two seals, a key that reads some of them is not the wrong one", async () => {
  const early = new MemoryBackend();
  for (const seal of [testKey(1), testKey(2)]) {
    const writer = new ReplicaBuilder({ backends: [early], random: seededRandom(8), seal });
    writer.beginChain([writer.randomImage()]);
    await writer.storeChangeSet(writer.commitRandom(1, 2).index);
  }
  const messageWith = async (key: SealKey) =>
    await failure(planRestore(await openAs([early], key), { kind: "latest" })).then((error) => String(error));
  for (const key of [testKey(1), testKey(2)]) expect(await messageWith(key)).toContain("no full backup is stored yet");
  expect(await messageWith(testKey(3))).toContain(`this is ${testKey(3).fingerprint}`);
});

test("where only CURRENT is left, backups have been lost: that is not a replica that never was", async () => {
  const lost = new MemoryBackend();
  const writer = new ReplicaBuilder({ backends: [lost], random: seededRandom(8), seal: testKey(1) });
  writer.beginChain([writer.randomImage()]);
  await writer.storeCurrent(1);
  const replica = await open(lost);
  expect(replica.isMissing()).toBe(false);
  expect(await failure(planRestore(replica, { kind: "latest" }))).toMatchObject({
    code: "replica-corrupt",
    message: expect.stringContaining("every object is gone"),
  });
});

test("an empty destination has nothing to restore, and an unreachable one is another matter", async () => {
  const replica = await open(new MemoryBackend());
  expect(replica.isMissing()).toBe(true);
  expect(await failure(planRestore(replica, { kind: "latest" }))).toMatchObject({ code: "replica-missing" });
  const down = new MemoryBackend("down");
  down.onList = () => {
    throw new BakeliteError("storage-unreachable", "no route to host");
  };
  expect(await failure(open(down))).toMatchObject({ code: "storage-unreachable" });
  const options = { database: "app", keys: builder.keys, seal: builder.sealText, acceptPlaintext: false };
  const half = await Replica.open({ ...options, backends: [down, new MemoryBackend("empty")] });
  expect(() => half.isMissing()).toThrow("no route to host");
  const one = await Replica.open({ ...options, backends: [down, backend] });
  const plan: ExplainedPlan = await planRestore(one, { kind: "latest" });
  expect([plan.index, plan.notes]).toEqual([6, [expect.stringContaining("down is left aside: no route to host")]]);
});

test("the check of a staged file changes and leaves nothing, whatever its name", async () => {
  const at = folder("odd name #1?%41");
  await restore(at("app ☃.db"));
  expect(readdirSync(directory.file(basename("odd name #1?%41")))).toEqual(["app ☃.db"]);
  using database = new Database(at("app ☃.db"), { readonly: true });
  expect(database.query("SELECT count(*) AS n FROM t").get()).toEqual({ n: 700 });
});
