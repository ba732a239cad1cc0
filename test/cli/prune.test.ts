import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import {
  appendFileSync,
  chmodSync,
  existsSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { z } from "zod";
import { runBakelite } from "../oracle/daemon-process.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";
import { type AgedOptions, type AgedReplica, age, agedReplica, hashTree, objectsIn, POLICY } from "./aged-replica.ts";

const isRoot = process.geteuid?.() === 0;
const digits = (index: number) => String(index).padStart(16, "0");
let directory: TemporaryDirectory;

// Each test runs the program many times, and the machine may be busy.
setDefaultTimeout(60_000);

beforeAll(async () => {
  directory = await temporaryDirectory("cli-prune");
});

afterAll(() => directory[Symbol.asyncDispose]());

let scenes = 0;
/** 200 states, a minute apart, with full backups at 1, 60, 120 and 180. */
async function scene(options: Partial<AgedOptions> = {}): Promise<AgedReplica> {
  return await agedReplica(directory, `scene${scenes++}`, {
    states: 200,
    spacingMs: 60_000,
    fullEvery: 60,
    ...options,
  });
}

/** Four states in each minute of 100, so that every level has something to merge. */
const DENSE = { states: 400, spacingMs: 15_000, fullEvery: 120 } as const;

async function run(replica: AgedReplica, ...argv: readonly string[]) {
  return await runBakelite("executable", [...argv, "--config", replica.configPath]);
}

/** Merges all that can be merged, and makes the results as old as what they hold. */
async function merge(replica: AgedReplica): Promise<void> {
  expect(await run(replica, "compact")).toMatchObject({ status: 0 });
  for (const store of replica.stores) age(store, replica.builder);
}

/** The states that can be restored, by what `list` says of every object. */
async function expectRestorable(replica: AgedReplica, indexes: readonly number[]): Promise<void> {
  for (const index of indexes) {
    const output = directory.file(`restored-${crypto.randomUUID()}`);
    const time = new Date(replica.builder.states.get(index)?.stampMs ?? 0).toISOString();
    const argv = ["restore", "--db", "app", "--output", output, "--timestamp", time, "--integrity", "none"];
    expect(await run(replica, ...argv)).toMatchObject({ status: 0 });
    expect(Buffer.compare(readFileSync(output), replica.builder.fileOf(index))).toBe(0);
  }
}

const deletion = z.strictObject({ name: z.string(), reason: z.string(), stored_bytes: z.int().min(1) });
const failure = z.strictObject({ code: z.string(), message: z.string() });
const documentSchema = z.strictObject({
  dry_run: z.boolean(),
  databases: z.array(
    z.strictObject({
      name: z.string(),
      error: failure.nullable(),
      destinations: z.array(
        z.union([
          z.strictObject({ destination: z.string(), error: failure }),
          z.strictObject({
            destination: z.string(),
            error: z.null(),
            deleted: z.array(deletion),
            oldest_kept_index: z.int().nullable(),
            refused: z.string().nullable(),
            unmet_limits: z.array(z.strictObject({ limit: z.string(), allowed: z.int(), remaining: z.int() })),
            unsound: z.array(z.strictObject({ name: z.string(), error: failure })),
            denied: failure.nullable(),
          }),
        ]),
      ),
    }),
  ),
});

async function runJson(replica: AgedReplica, ...argv: readonly string[]) {
  const { status, stdout, stderr } = await run(replica, "prune", "--json", ...argv);
  const document = documentSchema.parse(JSON.parse(stdout));
  return { status, stderr, document, destinations: document.databases[0]?.destinations ?? [] };
}

describe.each([{ sealed: false }, { sealed: true }])("%p", (options) => {
  test("merged change-sets go when they are old enough, and what stands for them restores", async () => {
    const replica = await scene({ ...DENSE, ...options });
    const [store = ""] = replica.stores;
    await merge(replica);
    const before = hashTree(store);
    const dry = await run(replica, "prune", "--dry-run");
    expect(dry).toMatchObject({ status: 0, stderr: "" });
    expect(dry.stdout).toMatch(/^app at .+: 1[56]\d merged change-sets of \S+ KiB would be deleted\n$/);
    expect(hashTree(store)).toBe(before);

    const { status, stdout } = await run(replica, "prune");
    expect(status).toBe(0);
    expect(stdout.replace(" deleted", " would be deleted")).toBe(dry.stdout);
    const left = objectsIn(store).filter((name) => name.startsWith("L0/"));
    // Of the last hour all are left, and of what is older those that nothing stands for.
    expect(left.length).toBeGreaterThanOrEqual(240);
    expect(left.length).toBeLessThan(255);
    expect(objectsIn(store).filter((name) => name.startsWith("L1/")).length).toBeGreaterThan(90);
    // Four states a minute: the last of each minute is left of what is older.
    await expectRestorable(replica, [1, 4, 8, 80, 120, 156, 240, 241, 242, 360, 399, 400]);
    expect(await run(replica, "verify")).toMatchObject({ status: 0 });
    expect((await run(replica, "prune")).stdout).toMatch(/: nothing to delete\n$/);
  });
});

test("what retention gives up goes with the full backups that only it needed", async () => {
  const replica = await scene({ policy: 'compaction_levels = []\ncompaction_keep = []\nretention = "2h"\n' });
  const [store = ""] = replica.stores;
  const { status, stdout } = await run(replica, "prune", "--verbose");
  expect(status).toBe(0);
  // The newest restore point that is two hours old is state 80; full backup 60 serves it.
  expect(stdout).toContain("1 full backup and 59 change-sets of");
  expect(stdout).toContain("by retention deleted");
  expect(stdout).toContain(`  full/${digits(1)}.p: retention, `);
  const left = objectsIn(store);
  expect(left.filter((name) => name.startsWith("full/"))).toEqual([60, 120, 180].map((n) => `full/${digits(n)}.p`));
  expect(left.filter((name) => name.startsWith("L0/"))[0]).toBe(`L0/${digits(61)}-${digits(61)}.p`);
  await expectRestorable(replica, [60, 80, 119, 200]);
  expect(await run(replica, "verify")).toMatchObject({ status: 0 });
});

test("max_backups raises the floor, and a limit that cannot be met is a warning that fails nothing", async () => {
  const replica = await scene({ policy: "compaction_levels = []\ncompaction_keep = []\nmax_backups = 2\n" });
  const [store = ""] = replica.stores;
  const { status, destinations } = await runJson(replica);
  expect(status).toBe(0);
  expect(destinations).toMatchObject([{ oldest_kept_index: 120, unmet_limits: [], denied: null }]);
  expect(objectsIn(store).filter((name) => name.startsWith("full/"))).toHaveLength(2);

  replica.configure('compaction_levels = []\ncompaction_keep = []\nmax_total_size = "1KiB"\nretention = "1h"\n');
  const unmet = await run(replica, "prune");
  expect(unmet.status).toBe(0);
  expect(unmet.stderr).toMatch(/`max_total_size` \(1\.00 KiB\) cannot be met: \S+ KiB must stay/);
});

test("a marked restore point stays, with all that it needs, until its mark is dropped", async () => {
  const replica = await scene({ policy: POLICY, stores: ["a", "b"] });
  const time = new Date(replica.builder.states.get(33)?.stampMs ?? 0).toISOString();
  expect(await run(replica, "keep", "--db", "app", "--label", "before-upgrade", "--at", time)).toMatchObject({
    status: 0,
    stderr: "",
  });
  await merge(replica);
  replica.configure(`${POLICY}max_backups = 1\n`);
  const kept = await runJson(replica);
  expect(kept.status).toBe(0);
  await expectRestorable(replica, [33, 200]);
  // Every destination keeps what the state needs, and nothing else of the history.
  for (const store of replica.stores) {
    const left = objectsIn(store);
    expect(left.filter((name) => name.startsWith("full/"))).toEqual([1, 180].map((n) => `full/${digits(n)}.p`));
    expect(left.filter((name) => name.startsWith("keep/"))).toEqual([`keep/${digits(33)}.p`]);
  }
  const verified = await run(replica, "verify");
  expect(verified).toMatchObject({ status: 0 });
  expect(verified.stdout).not.toContain("foreign-name");

  expect(await run(replica, "keep", "--db", "app", "--drop", "before-upgrade")).toMatchObject({ status: 0 });
  expect(await run(replica, "prune")).toMatchObject({ status: 0 });
  for (const store of replica.stores)
    expect(objectsIn(store).filter((name) => name.startsWith("full/"))).toEqual([`full/${digits(180)}.p`]);
});

test("a moment that was marked after its change-sets were merged keeps those that lead to it", async () => {
  const replica = await scene(DENSE);
  const [store = ""] = replica.stores;
  await merge(replica);
  const time = new Date(replica.builder.states.get(30)?.stampMs ?? 0).toISOString();
  expect(await run(replica, "keep", "--label", "within a window", "--at", time)).toMatchObject({ status: 0 });
  // The mark is the newest object, so that all that was merged is older than a year by the destination's clock.
  const { status, destinations } = await runJson(replica);
  expect(status).toBe(0);
  expect(destinations).toMatchObject([{ deleted: expect.arrayContaining([expect.anything()]) }]);
  const left = objectsIn(store).filter((name) => name.startsWith("L0/"));
  expect(left).toContain(`L0/${digits(30)}-${digits(30)}.p`);
  expect(left).not.toContain(`L0/${digits(26)}-${digits(26)}.p`);
  await expectRestorable(replica, [28, 30, 32, 400]);
  expect(await run(replica, "verify")).toMatchObject({ status: 0 });
});

test("a mark at one destination only keeps its state at the other one too", async () => {
  const replica = await scene({ policy: "max_backups = 1\n", stores: ["a", "b"] });
  const [a = "", b = ""] = replica.stores;
  mkdirSync(`${a}/app/keep`);
  // Of no use to anybody who reads it; the name is what counts.
  writeFileSync(`${a}/app/keep/${digits(70)}.p`, "damaged");
  expect((await runJson(replica)).status).toBe(0);
  for (const store of [a, b]) expect(existsSync(`${store}/app/full/${digits(60)}.p`)).toBe(true);
  await expectRestorable(replica, [70]);
  const verified = await run(replica, "verify");
  expect(verified.status).toBe(1);
  expect(verified.stdout).toContain("the mark of state 70 cannot be read");
});

test("a mirror keeps what is marked at a lock-step destination, and all it has while the marks there cannot be listed", async () => {
  const replica = await scene({ policy: "max_backups = 1\n", stores: ["a", "mirror"] });
  const [a = "", mirror = ""] = replica.stores;
  appendFileSync(replica.configPath, "async = true\n");
  mkdirSync(`${a}/app/keep`);
  writeFileSync(`${a}/app/keep/${digits(70)}.p`, "its name is what counts");
  const before = hashTree(mirror);
  renameSync(a, `${a}.away`);
  writeFileSync(a, "a file where the directory was");
  expect((await runJson(replica)).destinations).toMatchObject([
    { destination: a, error: { code: expect.any(String) } },
    { destination: mirror, deleted: [], refused: expect.stringContaining(`the marks at ${a} cannot be listed`) },
  ]);
  expect(hashTree(mirror)).toBe(before);

  rmSync(a);
  renameSync(`${a}.away`, a);
  expect((await runJson(replica)).status).toBe(0);
  const fulls = objectsIn(mirror).filter((name) => name.startsWith("full/"));
  expect(fulls).toEqual([`full/${digits(60)}.p`, `full/${digits(180)}.p`]);
});

test("after a verify that found problems nothing is deleted until one is clean", async () => {
  const replica = await scene({ policy: "max_backups = 1\n" });
  const [store = ""] = replica.stores;
  mkdirSync(`${directory.file("")}/state`, { recursive: true });
  mkdirSync(`${replica.databasePath.replace("app.db", ".bakelite")}`, { mode: 0o700 });
  const damaged = `${store}/app/L0/${digits(190)}-${digits(190)}.p`;
  const bytes = readFileSync(damaged);
  writeFileSync(damaged, bytes.subarray(0, bytes.length - 1));
  expect(await run(replica, "verify")).toMatchObject({ status: 1 });
  writeFileSync(damaged, bytes);
  age(store, replica.builder);

  const before = hashTree(store);
  const refused = await run(replica, "prune");
  expect(refused.status).toBe(1);
  expect(refused.stdout).toMatch(/: nothing to delete\n$/);
  expect(refused.stderr).toMatch(/: nothing is deleted: the last verify \(.+\) found problems; run `bakelite verify`/);
  expect((await runJson(replica)).destinations).toMatchObject([{ deleted: [], refused: expect.any(String) }]);
  expect(hashTree(store)).toBe(before);

  expect(await run(replica, "verify")).toMatchObject({ status: 0 });
  expect((await runJson(replica)).destinations).toMatchObject([{ refused: null }]);
  expect(hashTree(store)).not.toBe(before);
});

test("history stays when the full backup that it would be cut at cannot be read back from the disk", async () => {
  const replica = await scene({ policy: "max_backups = 1\n" });
  const [store = ""] = replica.stores;
  const newest = `${store}/app/full/${digits(180)}.p`;
  const bytes = readFileSync(newest);
  const middle = bytes.length >> 1;
  writeFileSync(newest, Buffer.from(bytes).fill(7, middle, middle + 20));
  age(store, replica.builder);
  const { status, destinations } = await runJson(replica);
  expect([status, destinations]).toMatchObject([1, [{ unsound: [expect.anything()], oldest_kept_index: 120 }]]);
  expect(existsSync(`${store}/app/full/${digits(120)}.p`)).toBe(true);
  await expectRestorable(replica, [150]);

  writeFileSync(newest, bytes);
  age(store, replica.builder);
  expect((await runJson(replica)).destinations).toMatchObject([{ unsound: [], oldest_kept_index: 180 }]);
  expect(existsSync(`${store}/app/full/${digits(120)}.p`)).toBe(false);
});

test("what verify finds damaged goes when all of it is what the policy gives up, and verify is clean again", async () => {
  const replica = await scene({ policy: "max_backups = 1\n" });
  const [store = ""] = replica.stores;
  mkdirSync(`${directory.file("")}/state`, { recursive: true });
  mkdirSync(`${replica.databasePath.replace("app.db", ".bakelite")}`, { mode: 0o700 });
  const needed = `${store}/app/L0/${digits(190)}-${digits(190)}.p`;
  const superseded = [`${store}/app/full/${digits(1)}.p`, `${store}/app/L0/${digits(30)}-${digits(30)}.p`];
  const damage = (path: string) => writeFileSync(path, readFileSync(path).fill(7, 200, 220));
  const sound = readFileSync(needed);
  for (const path of [needed, ...superseded]) damage(path);
  age(store, replica.builder);
  expect(await run(replica, "verify")).toMatchObject({ status: 1 });
  expect((await runJson(replica)).destinations).toMatchObject([{ deleted: [], refused: expect.any(String) }]);

  writeFileSync(needed, sound);
  age(store, replica.builder);
  expect(await run(replica, "verify")).toMatchObject({ status: 1 });
  expect((await runJson(replica)).destinations).toMatchObject([{ refused: null }]);
  for (const path of superseded) expect(existsSync(path)).toBe(false);
  expect(await run(replica, "verify")).toMatchObject({ status: 0 });
});

test("a destination that does not let us delete is told, and the other one is pruned", async () => {
  const replica = await scene({ policy: "max_backups = 1\n", stores: ["a", "b"] });
  const [a = "", b = ""] = replica.stores;
  const before = hashTree(a);
  using _forbidden = forbidDeleting([`${a}/app/L0`, `${a}/app/full`]);
  const { status, destinations } = await runJson(replica);
  expect(status).toBe(1);
  expect(destinations).toMatchObject([
    { deleted: [], denied: { code: "storage-denied" } },
    { denied: null, deleted: expect.arrayContaining([expect.objectContaining({ reason: "max_backups" })]) },
  ]);
  expect(hashTree(a)).toBe(before);
  expect(objectsIn(b).filter((name) => name.startsWith("full/"))).toHaveLength(1);
  expect((await run(replica, "prune")).stderr).toContain(`app at ${a}: `);
});

/** Objects may be made there and not deleted, as at a destination with append-only credentials. */
function forbidDeleting(folders: readonly string[]): Disposable {
  const set = (on: boolean) => {
    for (const folder of folders) {
      // For root, permissions do not count; what is marked append-only does.
      if (!isRoot) chmodSync(folder, on ? 0o555 : 0o755);
      else if (Bun.spawnSync(["chattr", on ? "+a" : "-a", folder]).exitCode !== 0)
        throw new Error(`cannot make ${folder} append-only`);
    }
  };
  set(true);
  return { [Symbol.dispose]: () => set(false) };
}

test("a destination that is down is an error, and the other one is pruned", async () => {
  const replica = await scene({ policy: "max_backups = 1\n", stores: ["a", "b"] });
  const [a = "", b = ""] = replica.stores;
  renameSync(a, `${a}.away`);
  writeFileSync(a, "a file where the directory was");
  const { status, destinations } = await runJson(replica);
  expect(status).toBe(1);
  expect(destinations).toMatchObject([
    { destination: a, error: { code: expect.any(String) } },
    { destination: b, error: null },
  ]);
  expect(objectsIn(b).filter((name) => name.startsWith("full/"))).toHaveLength(1);
  const again = await run(replica, "prune");
  expect(again.status).toBe(1);
  expect(again.stderr).toContain(`app at ${a}: `);
});

test("a merged change-set that is damaged keeps what it stands for", async () => {
  const replica = await scene(DENSE);
  const [store = ""] = replica.stores;
  await merge(replica);
  const merged = objectsIn(store).find((name) => name.startsWith("L1/")) ?? "";
  const [, first = "", last = ""] = /^L1\/(\d{16})-(\d{16})/.exec(merged) ?? [];
  const bytes = readFileSync(`${store}/app/${merged}`);
  const middle = bytes.length >> 1;
  bytes[middle] = (bytes[middle] ?? 0) ^ 1;
  writeFileSync(`${store}/app/${merged}`, bytes);
  age(store, replica.builder);
  const { status, destinations } = await runJson(replica);
  expect(status).toBe(1);
  expect(destinations).toMatchObject([{ unsound: [{ name: merged, error: { code: "replica-corrupt" } }] }]);
  const left = objectsIn(store);
  for (let index = Number(first); index <= Number(last); index++)
    expect(left).toContain(`L0/${digits(index)}-${digits(index)}.p`);
});

test("with nothing configured to go nothing goes, and an unknown database is a mistake on the command line", async () => {
  const replica = await scene({ policy: "" });
  const [store = ""] = replica.stores;
  const before = hashTree(store);
  expect((await run(replica, "prune")).stdout).toMatch(/: nothing to delete\n$/);
  expect(hashTree(store)).toBe(before);
  expect(await run(replica, "prune", "--db", "nope")).toMatchObject({ status: 2 });
});
