import { Database } from "bun:sqlite";
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { cpSync, readFileSync, renameSync, rmSync, statSync, truncateSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { configPathIn, runBakelite, startDaemon } from "../oracle/daemon-process.ts";
import { eventually } from "../support/eventually.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";
import { type AgedOptions, type AgedReplica, age, agedReplica, hashTree, objectsIn, POLICY } from "./aged-replica.ts";

const digits = (index: number) => String(index).padStart(16, "0");
const changeSet = (index: number) => `L0/${digits(index)}-${digits(index)}`;
let directory: TemporaryDirectory;

beforeAll(async () => {
  directory = await temporaryDirectory("cli-repair");
});

afterAll(() => directory[Symbol.asyncDispose]());

let scenes = 0;
/** 120 states, a minute apart, with full backups at 1, 40, 80 and 120, at two destinations. */
async function scene(options: Partial<AgedOptions> = {}) {
  const replica = await agedReplica(directory, `scene${scenes++}`, {
    states: 120,
    spacingMs: 60_000,
    fullEvery: 40,
    stores: ["a", "b"],
    ...options,
  });
  const [a = "", b = ""] = replica.stores;
  const seal = replica.builder.sealText;
  return { replica, a, b, file: (store: string, name: string) => join(store, "app", `${name}.${seal}`) };
}

async function run(replica: AgedReplica, ...argv: readonly string[]) {
  return await runBakelite("executable", [...argv, "--config", replica.configPath]);
}

/** Rot changes no time: and the newest time is what a destination's clock is told by. */
function flip(path: string, offset = 100): void {
  const bytes = readFileSync(path);
  const { atime, mtime } = statSync(path);
  bytes[offset] = (bytes[offset] ?? 0) ^ 1;
  writeFileSync(path, bytes);
  utimesSync(path, atime, mtime);
}

/** What each store holds, byte for byte. */
function contents(store: string): Readonly<Record<string, string>> {
  return Object.fromEntries(objectsIn(store).map((name) => [name, readFileSync(join(store, "app", name), "hex")]));
}

/** The latest state as this store alone restores it. */
async function expectRestores(replica: AgedReplica, store: string): Promise<void> {
  const config = directory.file(`one-${crypto.randomUUID()}.toml`);
  const text = readFileSync(replica.configPath, "utf8");
  const [head = "", ...backends] = text.split("[[database.backends]]");
  const own = backends.filter((backend) => backend.includes(`"${store}"`));
  writeFileSync(config, [head, ...own].join("[[database.backends]]"));
  const output = directory.file(`restored-${crypto.randomUUID()}`);
  const argv = ["restore", "--db", "app", "--output", output, "--integrity", "none", "--config", config];
  expect(await runBakelite("executable", argv)).toMatchObject({ status: 0 });
  expect(Buffer.compare(readFileSync(output), replica.builder.fileOf(replica.builder.newest.index))).toBe(0);
  expect(await runBakelite("executable", ["verify", "--config", config])).toMatchObject({ status: 0 });
}

const documentSchema = z.strictObject({
  dry_run: z.boolean(),
  databases: z.array(
    z.strictObject({
      name: z.string(),
      error: z.strictObject({ code: z.string(), message: z.string() }).nullable(),
      single_destination: z.boolean(),
      destinations: z.array(
        z.strictObject({ destination: z.string(), state: z.enum(["healthy", "degraded", "unreachable"]) }),
      ),
      objects_checked: z.int(),
      bytes_read: z.int(),
      healed: z.array(
        z.strictObject({
          action: z.enum(["replace", "add"]),
          destination: z.string(),
          source: z.string(),
          key: z.string(),
          stored_bytes: z.int().min(1),
          damage: z.string().nullable(),
        }),
      ),
      problems: z.array(
        z.strictObject({
          kind: z.string(),
          destination: z.string(),
          key: z.string().nullable(),
          message: z.string(),
          next_step: z.string(),
          lost_restore_points: z.int().nullable(),
          oldest_lost_index: z.int().nullable(),
          newest_lost_index: z.int().nullable(),
        }),
      ),
    }),
  ),
});

async function runJson(replica: AgedReplica, ...argv: readonly string[]) {
  const { status, stdout, stderr } = await run(replica, "repair", "--json", ...argv);
  const [database] = documentSchema.parse(JSON.parse(stdout)).databases;
  if (database === undefined) throw new Error("no database");
  return { status, stderr, ...database };
}

describe.each([{ sealed: false }, { sealed: true }])("%p", (options) => {
  test("what is damaged or missing is healed from the other destination, and each restores by itself", async () => {
    const { replica, a, b, file } = await scene(options);
    const original = contents(a);
    flip(file(a, changeSet(90)));
    truncateSync(file(a, `full/${digits(120)}`), 700);
    rmSync(file(b, changeSet(60)));
    rmSync(file(b, `full/${digits(80)}`));
    expect(await run(replica, "verify")).toMatchObject({ status: 1 });

    const before = [hashTree(a), hashTree(b)];
    const dry = await run(replica, "repair", "--dry-run");
    expect(dry).toMatchObject({ status: 0, stderr: "" });
    expect(dry.stdout).toContain("2 damaged would be replaced, 2 missing would be added");
    expect([hashTree(a), hashTree(b)]).toEqual(before);

    const done = await run(replica, "repair", "--db", "app");
    expect(done).toMatchObject({ status: 0, stderr: "" });
    expect(done.stdout).toMatch(/^app: \d+ objects checked at 2 destinations, 2 damaged replaced, 2 missing added \(/);
    expect(done.stdout).toContain(`  replaced: ${file(a, changeSet(90))} from ${b} (`);
    expect(done.stdout).toContain(`  added: ${file(b, changeSet(60))} from ${a}\n`);
    expect([contents(a), contents(b)]).toEqual([original, original]);
    for (const store of [a, b]) await expectRestores(replica, store);

    const again = await run(replica, "repair");
    expect(again).toMatchObject({ status: 0, stderr: "" });
    expect(again.stdout).toMatch(/^app: \d+ objects checked at 2 destinations, all sound\n$/);
  });
});

test("with one destination there is nothing to repair from", async () => {
  const { replica, a, file } = await scene({ stores: ["a"] });
  flip(file(a, changeSet(9)));
  expect(await run(replica, "repair")).toMatchObject({
    status: 0,
    stdout: "app: nothing to repair from: it has a single destination\n",
    stderr: "",
  });
  expect(await runJson(replica)).toMatchObject({ status: 0, single_destination: true, healed: [], problems: [] });
});

test("what is damaged everywhere fails, is named, and says what it costs", async () => {
  const { replica, a, b, file } = await scene();
  for (const store of [a, b]) flip(file(store, changeSet(100)));
  rmSync(file(b, changeSet(50)));
  const { status, stdout, stderr } = await run(replica, "repair");
  expect(status).toBe(1);
  expect(stdout).toContain(`  added: ${file(b, changeSet(50))} from ${a}\n`);
  expect(stdout).toContain(`  degraded destination: ${a}\n`);
  expect(stderr).toContain(
    `${file(a, changeSet(100))}: it is damaged, and no other destination that answers has a sound copy`,
  );
  expect(stderr).toContain("; 20 states from 100 to 119 cannot be restored without it\n");
  expect((await runJson(replica)).problems).toMatchObject([
    { kind: "lost", lost_restore_points: 20, oldest_lost_index: 100, newest_lost_index: 119 },
    { kind: "lost", lost_restore_points: 20 },
  ]);
});

test("a destination that cannot be reached is named, and the others heal one another", async () => {
  const { replica, a, b, file } = await scene({ stores: ["a", "b", "c"] });
  const [, , c = ""] = replica.stores;
  flip(file(a, changeSet(70)));
  rmSync(c, { recursive: true });
  writeFileSync(c, "not a folder");
  const { status, healed, problems, destinations } = await runJson(replica);
  expect(status).toBe(1);
  expect(healed).toMatchObject([{ action: "replace", destination: a, source: b }]);
  expect(problems).toMatchObject([{ kind: "unreachable", destination: c, key: null }]);
  expect(destinations.map(({ state }) => state)).toEqual(["healthy", "healthy", "unreachable"]);
});

test("an object that cannot be written over is a degraded destination, and the rest is healed", async () => {
  const { replica, a, b, file } = await scene();
  flip(file(a, changeSet(70)));
  flip(file(b, changeSet(80)));
  using _locked = immutable(file(a, changeSet(70)));
  const { status, healed, problems, destinations } = await runJson(replica);
  expect(status).toBe(1);
  expect(healed).toMatchObject([{ action: "replace", destination: b }]);
  expect(problems).toMatchObject([{ kind: "not-replaced", destination: a, key: `app/${changeSet(70)}.p` }]);
  expect(destinations.map(({ state }) => state)).toEqual(["degraded", "healthy"]);
});

/** As Object Lock leaves it: it cannot be replaced, by root neither where the file system knows how to forbid it. */
function immutable(path: string): Disposable {
  const set = (flag: string) => Bun.spawnSync(["chattr", flag, path]).exitCode === 0;
  if (!set("+i")) throw new Error("this test needs chattr +i: run it as root, on a file system that knows it");
  return { [Symbol.dispose]: () => void set("-i") };
}

describe("what is given up is not brought back:", () => {
  /** As it is when a prune has done with `a` and not begun with `b`, or was cut short there. */
  async function pruneOneOf(replica: AgedReplica, a: string, b: string): Promise<void> {
    cpSync(b, `${b}-before`, { recursive: true, preserveTimestamps: true });
    expect(await run(replica, "prune")).toMatchObject({ status: 0 });
    rmSync(b, { recursive: true });
    renameSync(`${b}-before`, b);
    expect(objectsIn(a).length).toBeLessThan(objectsIn(b).length);
  }

  test("history below the floor of retention", async () => {
    const policy = 'compaction_levels = []\ncompaction_keep = []\nretention = "1h"\n';
    const { replica, a, b, file } = await scene({ policy });
    await pruneOneOf(replica, a, b);
    // Nor is the rest of an interrupted pass, and what is needed is healed all the same.
    for (const index of [20, 21, 22]) rmSync(file(b, changeSet(index)));
    rmSync(file(a, changeSet(110)));
    const before = contents(b);
    const { status, healed } = await runJson(replica);
    expect(status).toBe(0);
    expect(healed).toMatchObject([{ action: "add", destination: a, key: `app/${changeSet(110)}.p` }]);
    expect(contents(b)).toEqual(before);
  });

  test("change-sets that were merged, also where the merged one is missing", async () => {
    const { replica, a, b, file } = await scene({ states: 400, spacingMs: 15_000, fullEvery: 120, policy: POLICY });
    expect(await run(replica, "compact")).toMatchObject({ status: 0 });
    for (const store of replica.stores) age(store, replica.builder);
    await pruneOneOf(replica, a, b);
    const before = contents(a);
    expect(await runJson(replica)).toMatchObject({ status: 0, healed: [], problems: [] });
    expect(contents(a)).toEqual(before);

    // The merged ones are damaged or gone here: they come back, and not what they were made of.
    const [merged = "", other = ""] = objectsIn(a).filter((name) => name.startsWith("L1/"));
    flip(join(a, "app", merged));
    rmSync(join(a, "app", other));
    rmSync(file(a, `full/${digits(120)}`));
    expect((await runJson(replica)).healed.map(({ action, key }) => `${action} ${key}`).sort()).toEqual(
      [`add app/full/${digits(120)}.p`, `add app/${other}`, `replace app/${merged}`].sort(),
    );
    expect(contents(a)).toEqual(before);
  });

  test("an empty destination gets what is kept, and no more", async () => {
    const { replica, a, b } = await scene({ states: 400, spacingMs: 15_000, fullEvery: 120, policy: POLICY });
    expect(await run(replica, "compact")).toMatchObject({ status: 0 });
    for (const store of replica.stores) age(store, replica.builder);
    await pruneOneOf(replica, a, b);
    const kept = contents(a);
    rmSync(join(a, "app"), { recursive: true });
    expect(await runJson(replica)).toMatchObject({ status: 0, problems: [] });
    expect(contents(a)).toEqual(kept);
    await expectRestores(replica, a);
  });
});

test("beside a daemon that ships on, it heals what is damaged and is in nobody's way", async () => {
  const configPath = configPathIn(directory.path);
  const path = directory.file("live.db");
  using db = new Database(path);
  db.run("PRAGMA journal_mode = WAL");
  db.run("CREATE TABLE t (x)");
  const stores = [directory.file("live-a"), directory.file("live-b")];
  const [a = "", b = ""] = stores;
  const databases = [{ name: "app", path, replicas: stores }];
  await using daemon = await startDaemon({ configPath, databases, program: "executable" });
  await daemon.untilStatus(({ state, full_backup }) => state === "live" && full_backup !== null, { what: "live" });
  const repair = () => runBakelite("executable", ["repair", "--config", configPath]);
  const stored = () => objectsIn(b).filter((name) => /^L0\/\d/.test(name)).length;
  for (let round = 1; round <= 3; round++) {
    for (let i = 0; i < 5; i++) {
      // The status is published every few seconds only; what is stored shows at once, and for a moment under two names.
      const before = stored();
      db.run("INSERT INTO t VALUES (randomblob(20000))");
      await eventually(() => stored() > before, { what: "a change-set", explain: () => objectsIn(b).join() });
    }
    const names = objectsIn(a).filter((name) => name.startsWith("L0/"));
    flip(join(a, "app", names.at(-1) ?? ""));
    rmSync(join(b, "app", names.at(-2) ?? ""));
    const [healed] = await Promise.all([repair(), Promise.resolve(db.run("INSERT INTO t VALUES (zeroblob(9000))"))]);
    expect(healed).toMatchObject({ status: 0, stderr: "" });
    expect(healed.stdout).toContain("1 damaged replaced, 1 missing added");
  }
  const rows = db.query<{ n: number }, []>("SELECT count(*) AS n FROM t").get()?.n;
  await daemon.stop();
  expect(rows).toBe(18);
  expect(await runBakelite("executable", ["verify", "--config", configPath])).toMatchObject({ status: 0 });
  expect(await repair()).toMatchObject({ status: 0, stdout: expect.stringContaining("all sound") });
  expect(contents(a)).toEqual({ ...contents(b) });
}, 60_000);

test("marks are carried to a destination that lacks them, and keep what they mark", async () => {
  const { replica, a, b } = await scene();
  const time = new Date(replica.builder.states.get(30)?.stampMs ?? 0).toISOString();
  expect(await run(replica, "keep", "--db", "app", "--at", time, "--label", "before")).toMatchObject({ status: 0 });
  rmSync(join(b, "app", "keep"), { recursive: true });
  flip(join(a, "app", "keep", `${digits(30)}.p`), 40);
  const lost = await run(replica, "repair");
  expect(lost).toMatchObject({ status: 1 });
  expect(lost.stderr).toContain("bakelite keep");
  flip(join(a, "app", "keep", `${digits(30)}.p`), 40);
  expect((await run(replica, "repair")).stdout).toContain(`  added: ${b}/app/keep/${digits(30)}.p from ${a}\n`);
  flip(join(a, "app", "keep", `${digits(30)}.p`), 40);
  expect((await run(replica, "repair")).stdout).toContain(`  replaced: ${a}/app/keep/${digits(30)}.p from ${b}`);
  expect(contents(a)).toEqual(contents(b));
});
