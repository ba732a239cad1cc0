import { Database } from "bun:sqlite";
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { renameSync, utimesSync, writeFileSync } from "node:fs";
import { z } from "zod";
import { bakeliteCommand, configPathIn, runBakelite, startDaemon } from "../oracle/daemon-process.ts";
import { eventually } from "../support/eventually.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";
import { type AgedOptions, type AgedReplica, agedReplica, filesBelow, hashTree, objectsIn } from "./aged-replica.ts";

let directory: TemporaryDirectory;

// Each test runs the program many times, and the machine may be busy.
setDefaultTimeout(60_000);

beforeAll(async () => {
  directory = await temporaryDirectory("cli-compact");
});

afterAll(() => directory[Symbol.asyncDispose]());

let scenes = 0;
/** 200 states, 15 seconds apart, with full backups at 1 and at each multiple of 60. */
async function scene(options: Partial<AgedOptions> = {}): Promise<AgedReplica> {
  return await agedReplica(directory, `scene${scenes++}`, {
    states: 200,
    spacingMs: 15_000,
    fullEvery: 60,
    ...options,
  });
}

async function run(replica: AgedReplica, ...argv: readonly string[]) {
  return await runBakelite("executable", [...argv, "--config", replica.configPath]);
}

const failure = z.strictObject({ code: z.string(), message: z.string() });
const documentSchema = z.strictObject({
  dry_run: z.boolean(),
  databases: z.array(
    z.strictObject({
      name: z.string(),
      error: failure.nullable(),
      merged: z.array(
        z.strictObject({
          key: z.string(),
          level: z.int(),
          first: z.int(),
          last: z.int(),
          inputs: z.int().min(2),
          input_bytes: z.int().min(1),
          stored_bytes: z.int().min(1).nullable(),
        }),
      ),
      failures: z.array(z.strictObject({ level: z.int(), first: z.int(), last: z.int(), error: failure })),
      unreadable: z.array(z.strictObject({ object: z.string(), error: failure })),
      destinations: z.array(z.looseObject({ destination: z.string() })),
    }),
  ),
});

async function runJson(replica: AgedReplica, ...argv: readonly string[]) {
  const { status, stdout, stderr } = await run(replica, "compact", "--json", ...argv);
  const [database] = documentSchema.parse(JSON.parse(stdout)).databases;
  return { status, stderr, merged: database?.merged ?? [], failures: database?.failures ?? [], error: database?.error };
}

/** The states that `list` says can be restored. */
async function restorePointCount(replica: AgedReplica): Promise<number> {
  const { stdout } = await run(replica, "list", "--db", "app", "--json");
  const ages = z.object({ restore_points_by_age: z.array(z.object({ restore_points: z.int() })) });
  return ages
    .parse(JSON.parse(stdout))
    .restore_points_by_age.reduce((sum, { restore_points }) => sum + restore_points, 0);
}

test("change-sets are merged at every destination alike, and every state stays restorable", async () => {
  const replica = await scene({ stores: ["a", "b"] });
  const [a = "", b = ""] = replica.stores;
  const before = [hashTree(a), hashTree(b)];
  const dry = await run(replica, "compact", "--dry-run");
  expect(dry).toMatchObject({ status: 0, stderr: "" });
  expect(dry.stdout).toMatch(/^app: \d+ change-sets of \S+ KiB would be merged into \d+\n/);
  expect([hashTree(a), hashTree(b)]).toEqual(before);

  const { status, stdout, stderr } = await run(replica, "compact");
  expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
  expect(stdout).toMatch(/^app: \d+ change-sets of \S+ KiB merged into \d+ of \S+ KiB\n/);
  expect(objectsIn(a)).toEqual(objectsIn(b));
  expect(objectsIn(a).filter((name) => name.startsWith("L1/")).length).toBeGreaterThan(40);
  expect(objectsIn(a).filter((name) => name.startsWith("L2/")).length).toBeGreaterThan(3);
  for (const name of objectsIn(a))
    expect(Buffer.compare(await bytesOf(`${a}/app/${name}`), await bytesOf(`${b}/app/${name}`))).toBe(0);
  expect(await run(replica, "verify")).toMatchObject({ status: 0 });
  expect(await restorePointCount(replica)).toBe(200);
  expect((await run(replica, "compact")).stdout).toMatch(/^app: nothing to merge\n/);
});

async function bytesOf(path: string): Promise<Buffer> {
  return Buffer.from(await Bun.file(path).arrayBuffer());
}

test("--json tells every merge, and --dry-run the first level of the same ones", async () => {
  const replica = await scene({ sealed: true });
  const dry = await runJson(replica, "--dry-run");
  expect(dry).toMatchObject({ status: 0, failures: [], error: null });
  expect(dry.merged.every(({ stored_bytes }) => stored_bytes === null)).toBe(true);
  const { status, merged } = await runJson(replica);
  expect(status).toBe(0);
  const keys = (list: typeof merged) => list.filter(({ level }) => level === 1).map(({ key }) => key);
  expect(keys(dry.merged)).toEqual(keys(merged));
  expect(merged.map(({ level }) => level)).toContain(2);
});

test("a change-set that is damaged stays, with its neighbours, and fails the command; the others are merged", async () => {
  const replica = await scene();
  const [store = ""] = replica.stores;
  // State 24 ends its minute, so its pages are what the merged change-set would hold.
  const damaged = filesBelow(`${store}/app/L0`)[22] ?? "";
  const bytes = await bytesOf(damaged);
  const middle = bytes.length >> 1;
  bytes[middle] = (bytes[middle] ?? 0) ^ 1;
  writeFileSync(damaged, bytes);
  const { status, stdout, stderr } = await run(replica, "compact");
  expect(status).toBe(1);
  expect(stdout).toMatch(/^app: \d+ change-sets of \S+ KiB merged into \d+ of/);
  expect(stderr).toMatch(/^app: change-sets \d+ to \d+ stay as they are: /);
  expect(await restorePointCount(replica)).toBeGreaterThan(190);
});

test("an object whose trailer cannot be read is told, and what lies before and after it is merged", async () => {
  const replica = await scene();
  const [store = ""] = replica.stores;
  const damaged = filesBelow(`${store}/app/L0`)[20] ?? "";
  writeFileSync(damaged, (await bytesOf(damaged)).subarray(0, -1));
  const { status, stdout, stderr } = await run(replica, "compact");
  expect(status).toBe(1);
  expect(stdout).toMatch(/^app: \d+ change-sets of \S+ KiB merged into \d+ of/);
  expect(stderr).toContain(damaged);
  expect(stderr).toContain("run `bakelite verify`");
});

test("a destination that is down is told, and the other one has its change-sets merged", async () => {
  const replica = await scene({ stores: ["a", "b"] });
  const [a = "", b = ""] = replica.stores;
  renameSync(b, `${b}.away`);
  writeFileSync(b, "a file where the directory was");
  const { status, stderr } = await run(replica, "compact");
  expect(status).toBe(1);
  expect(stderr).toContain(b);
  renameSync(b, `${b}.file`);
  renameSync(`${b}.away`, b);
  expect(await restorePointCount(replica)).toBe(200);
  expect(objectsIn(a).some((name) => name.startsWith("L1/"))).toBe(true);
});

test("Ctrl-C ends it at once, and the next run finishes what it began", async () => {
  const replica = await scene({ states: 1200 });
  const [store = ""] = replica.stores;
  const child = Bun.spawn(bakeliteCommand("executable", ["compact", "--config", replica.configPath]), {
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  await eventually(() => objectsIn(store).some((name) => name.startsWith("L1/")), { what: "a merged change-set" });
  const startMs = performance.now();
  child.kill("SIGINT");
  const stderr = await child.stderr.text();
  expect(await child.exited).toBe(130);
  expect(performance.now() - startMs).toBeLessThan(3000);
  expect(stderr).toBe("bakelite: stopped by SIGINT\n");
  const begun = objectsIn(store).filter((name) => name.startsWith("L1/")).length;
  expect(begun).toBeLessThan(250);
  expect(await run(replica, "compact")).toMatchObject({ status: 0, stderr: "" });
  expect(objectsIn(store).filter((name) => name.startsWith("L1/")).length).toBeGreaterThan(begun);
  expect(await restorePointCount(replica)).toBe(1200);
});

/** The newest state of which something is stored. */
function newestIndex(store: string): number {
  return Math.max(0, ...objectsIn(store).map((name) => Number(/(\d{16})\.p$/.exec(name)?.[1] ?? 0)));
}

test("beside a running daemon nothing is lost, by compact nor by prune", async () => {
  const configPath = configPathIn(directory.path);
  const path = directory.file("live.db");
  const store = directory.file("live-store");
  using db = new Database(path);
  db.run("PRAGMA journal_mode = WAL");
  db.run("CREATE TABLE t (i INTEGER PRIMARY KEY, x)");
  const settings = {
    debounce: "10ms",
    compaction_levels: ["1s", "5s"],
    compaction_keep: ["1s", "1s"],
    compaction_keep_recent: 2,
  };
  const databases = [{ name: "app", path, replicas: [store], settings }];
  await using daemon = await startDaemon({ configPath, databases, program: "executable" });
  await daemon.untilStatus(({ state, full_backup }) => state === "live" && full_backup !== null, { what: "live" });
  const merged = new Set<string>();
  let newest = 1;
  for (let i = 0; i < 80; i++) {
    db.run("INSERT INTO t (x) VALUES (hex(randomblob(2000)))");
    const before = newest;
    newest = await eventually(() => newestIndex(store) > before && newestIndex(store), { what: "a change-set" });
    if (i % 20 !== 19) continue;
    expect(await runBakelite("executable", ["compact", "--config", configPath])).toMatchObject({ status: 0 });
    // At once: prune deletes them where a second merge has covered them.
    for (const name of objectsIn(store)) if (name.startsWith("L1/")) merged.add(name);
    const anHourAgo = Date.now() / 1000 - 3600;
    for (const file of filesBelow(`${store}/app`)) if (file.includes("/L")) utimesSync(file, anHourAgo, anHourAgo);
    db.run("INSERT INTO t (x) VALUES ('something new')");
    expect(await runBakelite("executable", ["prune", "--config", configPath])).toMatchObject({ status: 0 });
  }
  const last = db.query("SELECT count(*) AS n FROM t").get();
  await daemon.stop();
  const output = directory.file("restored.db");
  const restored = await runBakelite("executable", [
    "restore",
    "--db",
    "app",
    "--output",
    output,
    "--config",
    configPath,
  ]);
  expect(restored).toMatchObject({ status: 0 });
  using copy = new Database(output, { readonly: true });
  expect(copy.query("SELECT count(*) AS n FROM t").get()).toEqual(last);
  expect(await runBakelite("executable", ["verify", "--config", configPath])).toMatchObject({ status: 0 });
  expect(merged.size).toBeGreaterThan(0);
  expect(objectsIn(store).some((name) => /^L[12]\//.test(name))).toBe(true);
});
