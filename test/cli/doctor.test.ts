import { Database } from "bun:sqlite";
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import {
  chmodSync,
  chownSync,
  copyFileSync,
  cpSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  realpathSync,
  rmSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { createServer } from "node:net";
import { join, resolve } from "node:path";
import { z } from "zod";
import { formatKeyText } from "../../src/format/envelope.ts";
import { CHECK_NAMES } from "../../src/setup/doctor-report.ts";
import { acquireInstanceLock } from "../../src/state/instance-lock.ts";
import { FileBackend } from "../../src/storage/file.ts";
import { startDaemon } from "../oracle/daemon-process.ts";
import { ReplicaBuilder, testKey } from "../replica/builder.ts";
import { executablePath } from "../support/executable.ts";
import { seededRandom } from "../support/random.ts";

const isRoot = process.geteuid?.() === 0;
/** A user of every Debian and Red Hat, who owns nothing here. */
const NOBODY = 65_534;

/** Under /tmp itself: another user must be able to come here, and $TMPDIR may be closed to him. */
const directory = { path: "", file: (...names: readonly string[]) => join(directory.path, ...names) };
beforeAll(async () => {
  directory.path = realpathSync(mkdtempSync("/tmp/bakelite-doctor-"));
  chmodSync(directory.path, 0o755);
  await storeReplica("plain", null);
  await storeReplica("sealed", 7);
});
afterAll(() => rmSync(directory.path, { recursive: true, force: true }));

/** States 1 to 3 of a database `app`, with a full backup at 1. */
async function storeReplica(folder: string, key: number | null, seed = 1): Promise<void> {
  const path = directory.file("replicas", folder);
  mkdirSync(path, { recursive: true });
  const builder = new ReplicaBuilder({
    backends: [new FileBackend({ path })],
    random: seededRandom(seed),
    seal: key === null ? null : testKey(key),
  });
  builder.beginChain([builder.randomImage(), builder.randomImage()]);
  await builder.storeFull(1);
  for (let i = 2; i <= 3; i++) await builder.storeChangeSet(builder.commitRandom(1).index);
}

interface Scene {
  readonly root: string;
  readonly database: string;
  readonly config: string;
  readonly store: string;
  readonly units: string;
  file(...names: readonly string[]): string;
}

interface SceneOptions {
  /** The folder of replicas/ that the destination starts with. */
  readonly replica?: "plain" | "sealed";
  /** TOML between the name and the backends. */
  readonly settings?: string;
  /** TOML in front. */
  readonly top?: string;
  /** TOML behind. */
  readonly more?: string;
}

let scenes = 0;

/** A database in WAL mode, a destination and a configuration for both, in a directory of their own; nothing is wrong with them. */
function scene({ replica, settings = "", top = "", more = "" }: SceneOptions = {}): Scene {
  const root = directory.file(`scene-${++scenes}`);
  const [database, store, units] = [`${root}/live/app.db`, `${root}/store`, `${root}/units`];
  for (const path of [`${root}/live`, units]) mkdirSync(path, { recursive: true });
  if (replica === undefined) mkdirSync(store);
  else cpSync(directory.file("replicas", replica), store, { recursive: true, preserveTimestamps: true });
  makeDatabase(database);
  const config = `${root}/bakelite.toml`;
  const backend = `[[database.backends]]\ntype = "file"\npath = "${store}"\n`;
  writeFileSync(config, `${top}\n[[database]]\nname = "app"\npath = "${database}"\n${settings}\n${backend}${more}`);
  return { root, database, config, store, units, file: (...names) => join(root, ...names) };
}

function makeDatabase(path: string, mode: "WAL" | "DELETE" = "WAL"): void {
  using db = new Database(path);
  db.run(`PRAGMA journal_mode = ${mode}`);
  db.run("CREATE TABLE t (x)");
}

const check = z
  .strictObject({
    check: z.string(),
    level: z.enum(["pass", "warn", "fail"]),
    message: z.string().min(1),
    fix: z.string().min(1).nullable(),
  })
  .refine(({ level, fix }) => (level === "pass") === (fix === null), "what passed needs no fix, all else does");
const level = z.enum(["pass", "warn", "fail"]);
/** As docs/json.md describes it; every field is there. */
const documentSchema = z.strictObject({
  checked_at: z.iso.datetime(),
  outcome: level,
  pass_count: z.int(),
  warn_count: z.int(),
  fail_count: z.int(),
  user: z.string().nullable(),
  service: z.string().nullable(),
  host: z.array(check),
  databases: z.array(
    z.strictObject({
      name: z.string(),
      path: z.string(),
      outcome: level,
      checks: z.array(check),
      destinations: z.array(
        z.strictObject({
          destination: z.string(),
          type: z.string(),
          async: z.boolean(),
          outcome: level,
          checks: z.array(check),
        }),
      ),
    }),
  ),
});
type CheckDocument = z.infer<typeof check>;

interface RunOptions {
  readonly argv?: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
  /** In front of the program: to give up rights. */
  readonly by?: readonly string[];
}

async function run({ config, units }: Scene, { argv = [], env = {}, by = [] }: RunOptions = {}) {
  const child = Bun.spawn([...by, executablePath(), "doctor", "--config", config, ...argv], {
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
    env: { ...process.env, SYSTEMD_UNIT_PATH: units, ...env },
  });
  const [stdout, stderr, code] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  return { stdout, stderr, code };
}

async function runJson(where: Scene, { argv = [], ...options }: RunOptions = {}) {
  const { stdout, stderr, code } = await run(where, { ...options, argv: ["--json", ...argv] });
  expect(stderr).toBe("");
  const document = documentSchema.parse(JSON.parse(stdout));
  expect(code).toBe(document.outcome === "fail" ? 1 : 0);
  const [database] = document.databases;
  if (database === undefined) throw new Error("no database in the document");
  const all = [...document.host, ...database.checks, ...database.destinations.flatMap(({ checks }) => checks)];
  /** `level message` of each check of that name: of the host, the first database and its destinations. */
  const found = (name: string) =>
    all.filter((one) => one.check === name).map(({ level, message }) => `${level} ${message}`);
  const fixes = (name: string) => all.flatMap((one) => (one.check === name && one.fix !== null ? [one.fix] : []));
  return { document, database, code, found, fixes };
}

/** What is neither a pass nor the remark that this temporary directory holds both the database and its backups. */
function troubles(checks: readonly CheckDocument[]): readonly CheckDocument[] {
  return checks.filter((one) => one.level !== "pass" && one.check !== "separate disk");
}

describe("a sound scene", () => {
  test("passes, in aligned lines with the counts at the end, and exit code 0", async () => {
    const { stdout, stderr, code } = await run(scene({ replica: "plain" }));
    expect([code, stderr]).toEqual([0, ""]);
    const lines = stdout.trimEnd().split("\n");
    expect(lines[0]).toMatch(/^host, for the user \S+$/);
    expect(lines.at(-1)).toMatch(/^1 warning, \d+ passed$/);
    const starts = lines.flatMap((line) => /^ +(?:pass|warn|FAIL) {2}\S+(?: \S+)* {2,}/.exec(line)?.[0].length ?? []);
    // Of a destination two further to the right.
    expect(new Set(starts).size).toBe(2);
    expect(stdout).not.toContain("\u001b");
  });

  test("gives every check that can pass on this host a pass", async () => {
    const { database, document } = await runJson(scene({ replica: "plain" }));
    const seen = new Set(
      [...document.host, ...database.checks, ...database.destinations.flatMap((d) => d.checks)].map((one) => one.check),
    );
    expect(troubles([...document.host, ...database.checks, ...database.destinations.flatMap((d) => d.checks)])).toEqual(
      [],
    );
    expect([...CHECK_NAMES].filter((name) => !seen.has(name))).toEqual([
      "service paths",
      "destinations agree",
      "credentials",
    ]);
  });

  test("--db looks at one of several, and an unknown name is refused", async () => {
    const other = `[[database]]\nname = "other"\npath = "/nowhere/at/all.db"\nbackends = [{ type = "file", path = "/nowhere/backups" }]\n`;
    const where = scene({ more: other });
    const { document } = await runJson(where, { argv: ["--db", "app"] });
    expect(document.databases.map(({ name }) => name)).toEqual(["app"]);
    const all = await runJson(where);
    expect(all.document.databases.map(({ name, outcome }) => [name, outcome])).toEqual([
      ["app", "warn"],
      ["other", "fail"],
    ]);
    expect(await run(where, { argv: ["--db", "ap"] })).toMatchObject({
      code: 2,
      stdout: "",
      stderr: expect.stringContaining("did you mean `app`?"),
    });
  });
});

describe("the configuration", () => {
  test("that is invalid is exit code 2, with the place", async () => {
    const where = scene();
    writeFileSync(where.config, '[[database]]\nname = "app"\npth = "/x"\n');
    const { code, stdout, stderr } = await run(where);
    expect([code, stdout]).toEqual([2, ""]);
    expect(stderr).toContain(`${where.config}:3:1: `);
  });

  test("that leaves databases out, or that others may write, is told", async () => {
    const other = `[[database]]\nname = "other"\npath = "/nowhere/all.db"\nbackends = [{ type = "file", path = "/nowhere/b" }]\n`;
    const where = scene({ top: '[daemon]\ndb = "app"', more: other });
    chmodSync(where.config, 0o666);
    const { found } = await runJson(where);
    expect(found("configuration")).toEqual([expect.stringContaining("warn `db` under [daemon]")]);
    expect(found("config file")).toEqual([expect.stringMatching(/^fail .*mode 0666: everybody may change/)]);
  });

  test("that holds credentials is nobody else's to read; one from the environment is none", async () => {
    const backend = (key: string) =>
      `[[database.backends]]\ntype = "azure"\nasync = true\naccount = "a"\ncontainer = "c"\nendpoint = "http://127.0.0.1:1"\nretries = 0\naccount_key = "${key}"\n`;
    const where = scene({ more: backend("c2VjcmV0") });
    chmodSync(where.config, 0o644);
    const { found, fixes, database } = await runJson(where);
    expect(found("config file")).toEqual([expect.stringMatching(/^fail .*0644, and it holds credentials/)]);
    expect(fixes("config file")).toEqual([`run: chmod 600 ${where.config}`]);
    expect(JSON.stringify(database)).not.toContain("c2VjcmV0");
    // Whatever this version makes of such a destination, it cannot be reached here.
    expect(database.destinations[1]).toMatchObject({ type: "azure", async: true, outcome: "fail" });
    expect(database.destinations[1]?.checks[0]).toMatchObject({ check: "reachable", level: "fail" });
    chmodSync(where.config, 0o600);
    expect((await runJson(where)).found("config file")).toEqual([expect.stringMatching(/^pass .*holds credentials/)]);
    const apart = scene({ more: backend("$" + "{KEY}") });
    chmodSync(apart.config, 0o644);
    const { found: without } = await runJson(apart, { env: { KEY: "c2VjcmV0" } });
    expect(without("config file")).toEqual([expect.stringMatching(/^pass mode 0644/)]);
  });
});

describe("the database", () => {
  const broken: readonly (readonly [string, (scene: Scene) => void, string])[] = [
    ["is absent", ({ database }) => rmSync(database), "warn there is no "],
    [
      "is in a directory that is absent",
      ({ root }) => rmSync(`${root}/live`, { recursive: true }),
      "warn the directory of ",
    ],
    ["is a directory", ({ database }) => replace(database, () => mkdirSync(database)), "is a directory, not a file"],
    [
      "is a pipe",
      ({ database }) => replace(database, () => Bun.spawnSync(["mkfifo", database])),
      "is a pipe, not a file",
    ],
    ["is empty", ({ database }) => writeFileSync(database, ""), "warn "],
    ["is something else", ({ database }) => writeFileSync(database, "x".repeat(5000)), "is not a SQLite database"],
    ["is cut short", ({ database }) => truncateSync(database, 50), "is not a SQLite database"],
    [
      "leads round in circles",
      ({ database }) => replace(database, () => symlinkSync(database, database)),
      "too many symbolic links",
    ],
    [
      "is a link that leads nowhere",
      ({ database }) => replace(database, () => symlinkSync("gone.db", database)),
      "gone.db yet",
    ],
    ["is below a file", ({ root }) => replace(`${root}/live`, () => writeFileSync(`${root}/live`, "")), "fail "],
  ];
  test.each(broken)("that %s is said so, in an instant, and the rest goes on", async (_, harm, expected) => {
    const where = scene({ replica: "plain" });
    harm(where);
    const { found, database } = await runJson(where);
    expect(found("database")).toEqual([expect.stringContaining(expected)]);
    expect(found("wal mode")).toEqual([]);
    expect(found("reachable")).toEqual([expect.stringContaining("pass ")]);
    expect(database.checks.find((one) => one.check === "database")?.fix).not.toBeNull();
  });

  function replace(path: string, make: () => void): void {
    rmSync(path, { recursive: true });
    make();
  }

  test("outside WAL mode fails with the line that converts it, which works", async () => {
    const where = scene();
    rmSync(where.database);
    makeDatabase(where.database, "DELETE");
    const { found, fixes } = await runJson(where);
    expect(found("wal mode")).toEqual([expect.stringContaining("fail the database is not in WAL mode")]);
    expect(fixes("wal mode")[0]).toStartWith(`run: sqlite3 ${where.database} 'PRAGMA journal_mode=WAL'`);
    using db = new Database(where.database);
    db.run("PRAGMA journal_mode=WAL");
    expect((await runJson(where)).found("wal mode")).toEqual(["pass the database is in WAL mode"]);
  });

  test("outside WAL mode passes where the daemon may convert it", async () => {
    const where = scene({ settings: "convert_to_wal = true" });
    rmSync(where.database);
    makeDatabase(where.database, "DELETE");
    expect((await runJson(where)).found("wal mode")).toEqual([
      expect.stringContaining("pass not in WAL mode; the daemon"),
    ]);
  });

  test("behind a link is the file that it leads to", async () => {
    const where = scene();
    const link = where.file("link.db");
    symlinkSync(where.database, link);
    writeFileSync(where.config, readFileSync(where.config, "utf8").replace(where.database, link));
    const { found } = await runJson(where);
    expect(found("state directory")).toEqual([`pass ${where.root}/live/.bakelite will be made when the daemon starts`]);
  });

  test("with a WAL: its size, and a warning when it is far too long or no file at all", async () => {
    const where = scene({ settings: 'max_wal_size = "64KiB"' });
    using db = new Database(where.database);
    db.run("PRAGMA wal_autocheckpoint = 0");
    db.run("INSERT INTO t VALUES (1)");
    expect((await runJson(where)).found("wal")).toEqual([expect.stringMatching(/^pass [\d.]+ KiB long$/)]);
    db.run("INSERT INTO t VALUES (randomblob(400000))");
    expect((await runJson(where)).found("wal")).toEqual([
      expect.stringMatching(/^warn \d+ KiB long, far more than max_wal_size .*no daemon runs/),
    ]);
    db.close();
    expect((await runJson(where)).found("wal")).toEqual([expect.stringContaining("pass there is none")]);
    mkdirSync(`${where.database}-wal`);
    expect((await runJson(where)).found("wal")).toEqual([expect.stringContaining("is a directory, not a file")]);
  });

  test("on a file system in memory is warned of, and on a read-only one fails", async () => {
    const where = scene();
    const memory = `/dev/shm/${where.root.replaceAll("/", "-")}`;
    mkdirSync(memory);
    try {
      copyFileSync(where.database, `${memory}/app.db`);
      writeFileSync(where.config, readFileSync(where.config, "utf8").replace(where.database, `${memory}/app.db`));
      const { found } = await runJson(where);
      expect(found("file system")).toEqual([
        expect.stringContaining("warn tmpfs: it is in memory"),
        expect.stringContaining("pass "),
      ]);
      expect(found("separate disk")).toEqual(["pass it is on another file system than the database"]);
    } finally {
      rmSync(memory, { recursive: true });
    }
  });

  // Mounting is root's.
  test.skipIf(!isRoot)("on a small disk, or a read-only one, and a destination likewise", async () => {
    const where = scene();
    const disk = where.file("disk");
    mkdirSync(disk);
    expect(Bun.spawnSync(["mount", "-t", "tmpfs", "-o", "size=512k", "none", disk]).exitCode).toBe(0);
    try {
      copyFileSync(where.database, `${disk}/app.db`);
      mkdirSync(`${disk}/store`);
      const toml = readFileSync(where.config, "utf8");
      writeFileSync(where.config, toml.replace(where.database, `${disk}/app.db`).replace(where.store, `${disk}/store`));
      const small = await runJson(where);
      expect(small.found("disk space")).toEqual([
        expect.stringMatching(/^fail \d+ KiB free, and a WAL at its limit/),
        expect.stringMatching(/^fail \d+ KiB free$/),
      ]);
      expect(Bun.spawnSync(["mount", "-o", "remount,ro", disk]).exitCode).toBe(0);
      expect((await runJson(where)).found("file system")).toEqual([
        "fail tmpfs is mounted read-only",
        "fail tmpfs is mounted read-only",
      ]);
    } finally {
      Bun.spawnSync(["umount", disk]);
    }
  });

  test("configured twice under two names fails for both", async () => {
    const where = scene();
    const link = where.file("same.db");
    symlinkSync(where.database, link);
    const twice = `[[database]]\nname = "twice"\npath = "${link}"\nbackends = [{ type = "file", path = "${where.store}" }]\n`;
    writeFileSync(where.config, readFileSync(where.config, "utf8") + twice);
    const { found, document } = await runJson(where);
    expect(found("instance lock")).toEqual([expect.stringContaining("fail the same file is configured as twice too")]);
    expect(document.databases[1]?.outcome).toBe("fail");
  });
});

describe("the state directory", () => {
  const broken: readonly (readonly [string, (path: string, scene: Scene) => void, string])[] = [
    ["open to others", (path) => mkdirSync(path, { mode: 0o755 }), "warn "],
    ["a file", (path) => writeFileSync(path, ""), "is a file, not a directory"],
    ["a link", (path, { store }) => symlinkSync(store, path), "is a symbolic link, not a directory"],
  ];
  test.each(broken)("that is %s", async (_, harm, expected) => {
    const where = scene();
    harm(where.file("live/.bakelite"), where);
    expect((await runJson(where)).found("state directory")).toEqual([expect.stringContaining(expected)]);
  });

  test("with a status of garbage, or a lock that is none, warns or fails and goes on", async () => {
    const where = scene();
    const state = where.file("live/.bakelite");
    mkdirSync(state, { mode: 0o700 });
    writeFileSync(`${state}/app.status.json`, "\u0000 garbage");
    writeFileSync(`${state}/app.db.lock`, "garbage");
    const { found } = await runJson(where);
    expect(found("state directory")).toEqual([expect.stringMatching(/^pass .*mode 0700/)]);
    expect(found("status")).toEqual([expect.stringContaining("warn ")]);
    expect(found("instance lock")).toEqual(["pass nobody follows the database now"]);
    for (const name of ["app.status.json", "app.db.lock"]) {
      rmSync(`${state}/${name}`);
      expect(Bun.spawnSync(["mkfifo", `${state}/${name}`]).exitCode).toBe(0);
    }
    const pipes = await runJson(where);
    expect(pipes.found("status")).toEqual([expect.stringContaining("warn ")]);
    expect(pipes.found("instance lock")).toEqual([expect.stringContaining("fail ")]);
  });
});

describe("other replicators", () => {
  test("Litestream's folder and its tables are warned of", async () => {
    const where = scene();
    mkdirSync(where.file("live/.app.db-litestream"));
    expect((await runJson(where)).found("other replicators")).toEqual([expect.stringContaining(".app.db-litestream")]);
    rmSync(where.file("live/.app.db-litestream"), { recursive: true });
    using db = new Database(where.database);
    db.run("CREATE TABLE _litestream_seq (id INTEGER PRIMARY KEY, seq INTEGER)");
    db.run("PRAGMA wal_checkpoint(TRUNCATE)");
    expect((await runJson(where)).found("other replicators")).toEqual([
      expect.stringContaining("tables of Litestream"),
    ]);
  });

  test("a process of such a name that has the database open fails", async () => {
    const where = scene();
    // The kernel takes a process's name from the file that it runs, which may be a link.
    const program = where.file("litestream");
    symlinkSync(process.execPath, program);
    const shell = `exec "${program}" -e "await Bun.sleep(60_000)" <"${where.database}"`;
    await using child = Bun.spawn(["/bin/sh", "-c", shell], { stdin: "ignore", stdout: "ignore", stderr: "ignore" });
    const { found, fixes } = await eventuallyFound(where);
    expect(found("other replicators")).toEqual([
      expect.stringContaining(`fail litestream (PID ${child.pid}) has the database open`),
    ]);
    expect(fixes("other replicators")[0]).toContain(`kill ${child.pid}`);
    child.kill("SIGKILL");
    await child.exited;
    expect((await runJson(where)).found("other replicators")).toEqual(["pass none to be seen"]);
  });

  /** The shell needs a moment to become the program. */
  async function eventuallyFound(where: Scene) {
    for (let i = 0; i < 50; i++) {
      const result = await runJson(where);
      if (!result.found("other replicators").includes("pass none to be seen")) return result;
    }
    return await runJson(where);
  }
});

describe("the key", () => {
  const keyText = (n: number) => formatKeyText(new Uint8Array(32).fill(n));
  const sealed = (key: string) => `encryption = { key_file = "${key}" }`;

  test("that the replica was written with passes", async () => {
    const key = directory.file("right.key");
    writeFileSync(key, keyText(7), { mode: 0o600 });
    const { found, document } = await runJson(scene({ replica: "sealed", settings: sealed(key) }));
    expect(found("key file")).toEqual([expect.stringMatching(/^pass .*holds the key [0-9a-f]{8}$/)]);
    expect(found("encryption")).toEqual([expect.stringMatching(/^pass encrypted with the configured key/)]);
    expect(JSON.stringify(document)).not.toContain(keyText(7).slice(16));
  });

  const files: readonly (readonly [string, (key: string) => void, string])[] = [
    ["absent", () => {}, "cannot read the key file"],
    [
      "readable by others",
      (key) => writeFileSync(key, keyText(7), { mode: 0o644 }),
      "has mode 0644: others than its owner",
    ],
    [
      "readable by its group",
      (key) => writeFileSync(key, keyText(7), { mode: 0o640 }),
      "has mode 0640: others than its owner",
    ],
    ["no key", (key) => writeFileSync(key, "nonsense", { mode: 0o600 }), "does not begin with BAKELITE-KEY-"],
    ["mistyped", (key) => writeFileSync(key, `${keyText(7).slice(0, -1)}0`, { mode: 0o600 }), "mistyped"],
    ["a directory", (key) => mkdirSync(key, { mode: 0o700 }), "a directory"],
    ["a pipe", (key) => Bun.spawnSync(["mkfifo", "-m", "600", key]), "not a regular file"],
  ];
  test.each(files)("file that is %s fails", async (what, make, expected) => {
    const key = directory.file(`${what}.key`);
    make(key);
    const { found } = await runJson(scene({ settings: sealed(key) }));
    expect(found("key file")).toEqual([expect.stringMatching(new RegExp(`^fail .*${expected}`))]);
  });

  test("that lies among the backups is warned of", async () => {
    const where = scene();
    const key = `${where.store}/key.txt`;
    writeFileSync(key, keyText(7), { mode: 0o600 });
    writeFileSync(
      where.config,
      readFileSync(where.config, "utf8").replace("[[database.backends]]", `${sealed(key)}\n[[database.backends]]`),
    );
    expect((await runJson(where)).found("key file")).toEqual([expect.stringContaining("warn ")]);
  });

  const replicas: readonly (readonly [string, "plain" | "sealed", number | null, string, string])[] = [
    ["another key than the configured one", "sealed", 8, "", "fail the newest objects are encrypted with the key"],
    ["a key and none configured", "sealed", null, "", "and no key is configured"],
    ["no key and one configured", "plain", 7, "", "fail what is stored is not encrypted"],
    [
      "no key, while that is accepted",
      "plain",
      7,
      ", accept_plaintext = true",
      "warn the newest objects are not encrypted yet",
    ],
  ];
  test.each(replicas)("a replica with %s", async (what, replica, configured, more, expected) => {
    const key = directory.file(`${what}.key`);
    if (configured !== null) writeFileSync(key, keyText(configured), { mode: 0o600 });
    const settings = configured === null ? "" : `encryption = { key_file = "${key}"${more} }`;
    const { found } = await runJson(scene({ replica, settings }));
    expect(found("encryption")).toEqual([expect.stringContaining(expected)]);
  });
});

describe("a destination", () => {
  const broken: readonly (readonly [string, (scene: Scene) => void, string, string])[] = [
    [
      "that is a file",
      ({ store }) => {
        rmSync(store, { recursive: true });
        writeFileSync(store, "");
      },
      "directory",
      "is a file, not a directory",
    ],
    [
      "whose folder is absent",
      (where) => edit(where, where.store, "/nowhere/at/all"),
      "directory",
      "neither /nowhere/at/all nor",
    ],
    [
      "that is still to be made",
      ({ store }) => rmSync(store, { recursive: true }),
      "directory",
      "pass it will be made by the first backup",
    ],
    [
      "inside the database's directory",
      (where) => edit(where, where.store, where.file("live/backups")),
      "directory",
      "warn it is inside the directory of the database",
    ],
    [
      "inside .bakelite",
      (where) => {
        mkdirSync(where.file("live/.bakelite"), { mode: 0o700 });
        edit(where, where.store, where.file("live/.bakelite/b"));
      },
      "directory",
      "fail it is inside .bakelite/",
    ],
    [
      "whose newest object is of a newer format",
      (where) => patchNewest(where, '"format":1', '"format":9'),
      "storage format",
      "fail stored object has format 9",
    ],
    [
      "whose newest object is damaged",
      ({ store }) => writeFileSync(newest(store), "garbage"),
      "storage format",
      "fail stored object is damaged",
    ],
    [
      "whose newest object is another database's",
      (where) => patchNewest(where, '"database":"app"', '"database":"apq"'),
      "storage format",
      "belongs to the database apq",
    ],
    [
      "with an object from the future",
      ({ store }) => utimesSync(newest(store), new Date(), new Date(Date.now() + 7_200_000)),
      "object times",
      "warn an object is dated 1h59m",
    ],
  ];
  test.each(broken)("%s", async (_, harm, name, expected) => {
    const where = scene({ replica: "plain" });
    harm(where);
    expect((await runJson(where)).found(name)).toContainEqual(expect.stringContaining(expected));
  });

  function edit({ config }: Scene, from: string, to: string): void {
    writeFileSync(config, readFileSync(config, "utf8").replace(from, to));
  }

  function newest(store: string): string {
    return join(store, "app/L0", readdirSync(join(store, "app/L0")).sort().at(-1) ?? "");
  }

  function patchNewest({ store }: Scene, from: string, to: string): void {
    const path = newest(store);
    const text = readFileSync(path, "latin1");
    expect(text).toContain(from);
    writeFileSync(path, text.replace(from, to), "latin1");
  }

  test("names files for its credentials, which must be there and not everybody's", async () => {
    const secret = directory.file("sas.txt");
    const where = scene({
      more: `[[database.backends]]\ntype = "azure"\nasync = true\naccount = "a"\ncontainer = "c"\nendpoint = "http://127.0.0.1:1"\nretries = 0\nsas_token_file = "${secret}"\n`,
    });
    expect((await runJson(where)).found("credentials")).toEqual([`fail ${secret} does not exist`]);
    writeFileSync(secret, "sig=x", { mode: 0o644 });
    expect((await runJson(where)).found("credentials")).toEqual([
      expect.stringContaining("has mode 0644: everybody may"),
    ]);
    chmodSync(secret, 0o600);
    expect((await runJson(where)).found("credentials")).toEqual([`pass ${secret} can be read`]);
    writeFileSync(
      `${where.units}/bakelite.service`,
      `[Service]\nExecStart=/usr/bin/bakelite daemon --config ${where.config}\nUser=${NOBODY}\nInaccessiblePaths=${secret}\n`,
    );
    const { found } = await runJson(where);
    expect(found("credentials")).toEqual([expect.stringContaining(`may not read ${secret} (mode 0600`)]);
    expect(found("service paths")).toContainEqual(`fail the service does not see ${secret} (InaccessiblePaths=)`);
    rmSync(secret);
    Bun.spawnSync(["mkfifo", secret]);
    expect((await runJson(where)).found("credentials")).toEqual([expect.stringContaining("is a pipe, not a file")]);
  });

  test("that shares the database's disk is warned of", async () => {
    expect((await runJson(scene())).found("separate disk")).toEqual([expect.stringContaining("warn ")]);
  });

  test("beside a second one: equal, behind, behind as a mirror, and of another history", async () => {
    const second = (where: Scene, more = "") =>
      writeFileSync(
        where.config,
        `${readFileSync(where.config, "utf8")}[[database.backends]]\ntype = "file"\npath = "${where.file("second")}"\n${more}`,
      );
    const both = () => {
      const where = scene({ replica: "plain" });
      cpSync(where.store, where.file("second"), { recursive: true, preserveTimestamps: true });
      return where;
    };
    const equal = both();
    second(equal);
    expect((await runJson(equal)).found("destinations agree")).toEqual(["pass one history, the newest state is 3"]);

    const behind = both();
    second(behind);
    rmSync(newest(behind.file("second")));
    expect((await runJson(behind)).found("destinations agree")).toEqual([
      `warn ${behind.file("second")} is at state 2, ${behind.store} is at state 3`,
    ]);
    writeFileSync(behind.config, `${readFileSync(behind.config, "utf8")}async = true\n`);
    expect((await runJson(behind)).found("destinations agree")).toEqual([expect.stringContaining("pass ")]);

    await storeReplica("stranger", null, 99);
    const other = both();
    second(other);
    rmSync(other.file("second"), { recursive: true });
    cpSync(directory.file("replicas", "stranger"), other.file("second"), { recursive: true });
    const { found, code } = await runJson(other);
    expect(code).toBe(1);
    expect(found("destinations agree")).toEqual([expect.stringMatching(/^fail .*hold different histories: state 3/)]);
    writeFileSync(other.config, `${readFileSync(other.config, "utf8")}async = true\n`);
    expect((await runJson(other)).fixes("destinations agree")).toEqual([expect.stringContaining("an empty place")]);
  });
});

describe("the metrics address", () => {
  test("is free, taken, or none of this host", async () => {
    const server = createServer();
    await new Promise<void>((listening) => server.listen({ host: "127.0.0.1", port: 0 }, listening));
    const address = server.address();
    const port = typeof address === "object" && address !== null ? address.port : 0;
    const where = scene({ top: `[daemon]\nmetrics_addr = "127.0.0.1:${port}"` });
    const taken = await runJson(where);
    expect(taken.found("metrics address")).toEqual([`fail 127.0.0.1:${port} is taken by another program`]);
    await new Promise((closed) => server.close(closed));
    expect((await runJson(where)).found("metrics address")).toEqual([`pass 127.0.0.1:${port} is free`]);
    const elsewhere = await runJson(scene({ top: '[daemon]\nmetrics_addr = "203.0.113.9:9090"' }));
    expect(elsewhere.found("metrics address")).toEqual([expect.stringContaining("fail no interface of this host")]);
  });
});

describe("the metrics address of a running daemon", () => {
  test("is taken, as it should be", async () => {
    // This process stands for the daemon: it follows the database, and listens.
    const server = createServer();
    await new Promise<void>((listening) => server.listen({ host: "127.0.0.1", port: 0 }, listening));
    const address = server.address();
    const port = typeof address === "object" && address !== null ? address.port : 0;
    const where = scene({ top: `[daemon]\nmetrics_addr = "127.0.0.1:${port}"` });
    await using _lock = await acquireInstanceLock(where.database);
    const { found } = await runJson(where);
    expect(found("instance lock")).toEqual([`pass the daemon with PID ${process.pid} follows the database`]);
    expect(found("status")).toEqual([
      expect.stringContaining("warn a daemon follows the database and has published nothing"),
    ]);
    expect(found("metrics address")).toEqual([
      `pass 127.0.0.1:${port} is taken, as it should be while the daemon runs`,
    ]);
    await new Promise((closed) => server.close(closed));
  });
});

describe("temporary files", () => {
  test("need a directory", async () => {
    const { found } = await runJson(scene(), { env: { TMPDIR: "/nowhere/at/all" } });
    expect(found("temporary files")).toEqual(["warn /nowhere/at/all is not a directory"]);
  });
});

describe("the limit of open files", () => {
  test("must do for every database", async () => {
    const by = ["/bin/sh", "-c", 'ulimit -n 70; exec "$0" "$@"'];
    const { found, fixes } = await runJson(scene(), { by });
    expect(found("open files")).toEqual(["fail 1 database may need 73 open files, and the limit is 70"]);
    expect(fixes("open files")[0]).toContain("LimitNOFILE=256");
  });
});

describe("the service", () => {
  const unit = ({ units, config }: Scene, text: string) =>
    writeFileSync(
      `${units}/bakelite.service`,
      `[Service]\nExecStart=/usr/bin/bakelite daemon --config ${config}\n${text}\n`,
    );

  test("runs as its user, and its sandbox covers every path", async () => {
    const where = scene();
    unit(where, `User=root\nProtectSystem=strict\nReadWritePaths=${where.root}/live`);
    mkdirSync(`${where.units}/bakelite.service.d`);
    const dropIn = `${where.units}/bakelite.service.d/10-paths.conf`;
    writeFileSync(dropIn, `[Service]\nReadWritePaths=${where.store}\n`);
    const { found, document } = await runJson(where);
    expect(document).toMatchObject({ user: "root", service: `${where.units}/bakelite.service` });
    expect(found("service")).toEqual([expect.stringContaining("with 1 drop-in runs as root")]);
    expect(found("service paths")).toEqual(Array(2).fill("pass the service's sandbox lets it through"));
    writeFileSync(dropIn, "[Service]\nReadWritePaths=\n");
    const { found: without, fixes } = await runJson(where);
    expect(without("service paths")).toEqual([
      `fail the service may not write to ${where.root}/live (ProtectSystem=strict)`,
      `fail the service may not write to ${where.store} (ProtectSystem=strict)`,
    ]);
    expect(fixes("service paths")[1]).toContain(`ReadWritePaths=${where.store}`);
  });

  const units: readonly (readonly [string, string, string])[] = [
    ["whose user does not exist", "User=no-such-user", "fail it runs as the user no-such-user"],
    ["with a dynamic user", "DynamicUser=yes", "warn it runs as a user that is only made"],
    [
      "that names a path that is not there",
      "ReadWritePaths=/nowhere/at/all",
      "fail /nowhere/at/all, which the unit names",
    ],
    ["with a line of garbage", "garbage", "not a setting"],
    ["with a root of its own", "RootDirectory=/srv/root", "warn it runs in a root directory of its own"],
  ];
  test.each(units)("%s", async (_, text, expected) => {
    const where = scene();
    unit(where, text);
    expect((await runJson(where)).found("service")).toContainEqual(expect.stringContaining(expected));
  });

  test("that is masked, or runs another configuration, or cannot be read, leaves the present user", async () => {
    const where = scene();
    symlinkSync("/dev/null", `${where.units}/bakelite.service`);
    expect((await runJson(where)).found("service")).toEqual([
      expect.stringContaining("warn bakelite.service is masked"),
    ]);
    rmSync(`${where.units}/bakelite.service`);
    writeFileSync(
      `${where.units}/bakelite.service`,
      "[Service]\nUser=no-such-user\nExecStart=/usr/bin/bakelite daemon\n",
    );
    const other = await runJson(where);
    expect(other.found("service")).toEqual([
      expect.stringContaining("pass bakelite.service runs another configuration, /etc/bakelite/bakelite.toml"),
    ]);
    expect(other.document.service).toBeNull();
    rmSync(`${where.units}/bakelite.service`);
    mkdirSync(`${where.units}/bakelite.service`);
    expect((await runJson(where)).found("service")).toEqual([expect.stringContaining("cannot be read")]);
    rmSync(`${where.units}/bakelite.service`, { recursive: true });
    Bun.spawnSync(["mkfifo", `${where.units}/bakelite.service`]);
    expect((await runJson(where)).found("service")).toEqual([expect.stringContaining("it is not a regular file")]);
    rmSync(`${where.units}/bakelite.service`);
    writeFileSync(`${where.units}/bakelite.service`, crypto.getRandomValues(new Uint8Array(60_000)));
    expect((await runJson(where)).found("service").length).toBeLessThanOrEqual(4);
  });

  test("for another user, permissions are those of that user", async () => {
    const key = directory.file("nobody.key");
    writeFileSync(key, formatKeyText(new Uint8Array(32).fill(7)), { mode: 0o600 });
    const where = scene({
      settings: `encryption = { key_file = "${key}" }`,
      top: '[daemon]\nmetrics_addr = "127.0.0.1:80"',
    });
    chmodSync(where.config, 0o600);
    chmodSync(where.database, 0o644);
    mkdirSync(where.file("live/.bakelite"), { mode: 0o700 });
    unit(where, `User=${NOBODY}`);
    const { found, fixes, document } = await runJson(where);
    const name = document.user ?? "";
    expect(found("permissions")).toEqual([
      expect.stringMatching(new RegExp(`^fail ${name} may not read and write in .*/live `)),
      expect.stringMatching(new RegExp(`^fail ${name} may not read and write .*/app.db \\(mode 0644`)),
    ]);
    for (const check of ["state directory", "directory", "key file", "config file"])
      expect(found(check)[0]).toStartWith(`fail ${name} may not `);
    // In some containers everybody may listen on every port.
    const leastPort = Number(readFileSync("/proc/sys/net/ipv4/ip_unprivileged_port_start", "utf8"));
    if (leastPort > 80) expect(found("metrics address")[0]).toStartWith(`fail ${name} may not listen on ports below`);
    expect(fixes("key file")).toEqual([`run: chown ${name} ${key}`]);
    if (!isRoot) return;
    for (const path of [
      where.file("live"),
      where.database,
      where.file("live/.bakelite"),
      where.store,
      key,
      where.config,
    ])
      chownSync(path, NOBODY, NOBODY);
    const { found: given } = await runJson(where);
    for (const check of ["permissions", "state directory", "directory", "key file", "config file"])
      expect(given(check)).toEqual([expect.stringContaining("pass ")]);
    // What root once made in the destination or in .bakelite stays root's.
    mkdirSync(`${where.store}/app`, { mode: 0o700 });
    writeFileSync(where.file("live/.bakelite/app.cursor"), "", { mode: 0o600 });
    const { found: left } = await runJson(where);
    expect(left("directory")).toEqual([expect.stringContaining(`may not read and write in ${where.store}/app`)]);
    expect(left("state directory")).toEqual([expect.stringContaining("may not read and write ")]);
    // A key that is root's, and the group's that the daemon is in.
    chownSync(key, 0, NOBODY);
    chmodSync(key, 0o640);
    expect((await runJson(where)).found("key file")).toEqual([expect.stringContaining("pass ")]);
    chmodSync(key, 0o660);
    expect((await runJson(where)).found("key file")).toEqual([expect.stringContaining("fail ")]);
  });
});

// Root may read everything, unless it gives up its capabilities.
const canGiveUp = Bun.which("setpriv") !== null && isRoot;
test.skipIf(!canGiveUp)("without permission every check says what is in the way, and the others go on", async () => {
  const where = scene({ replica: "plain" });
  mkdirSync(where.file("live/.bakelite"), { mode: 0o700 });
  for (const path of [where.file("live/.bakelite"), where.database]) chownSync(path, NOBODY, NOBODY);
  chmodSync(where.database, 0o600);
  const by = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"];
  const { found, code } = await runJson(where, { by });
  expect(code).toBe(1);
  expect(found("database")).toEqual([expect.stringMatching(/^fail .*cannot be read: EACCES/)]);
  expect(found("permissions")).toEqual([expect.stringContaining("fail root may not read and write ")]);
  expect(found("state directory")).toEqual([expect.stringContaining("fail root may not ")]);
  expect(found("status")).toEqual([expect.stringContaining("warn ")]);
  expect(found("reachable")).toEqual([expect.stringContaining("pass ")]);
  chmodSync(where.store, 0o000);
  chownSync(where.store, NOBODY, NOBODY);
  const closed = await runJson(where, { by });
  expect(closed.found("directory")).toEqual([expect.stringContaining("fail ")]);
  expect(closed.found("reachable")).toEqual([expect.stringMatching(/^fail .*permission denied/)]);
});

describe("nothing is written", () => {
  test("without a daemon, with one, and after one", async () => {
    const where = scene();
    const key = where.file("key.txt");
    writeFileSync(key, formatKeyText(new Uint8Array(32).fill(7)), { mode: 0o600 });
    const databases = [{ name: "app", path: where.database, replicas: [where.store] }];
    const options = { configPath: where.config, databases, keyFile: key, program: "executable" as const };
    const untouched = async () => {
      const before = fingerprint(where.root);
      expect((await run(where)).stderr).toBe("");
      expect(fingerprint(where.root)).toEqual(before);
    };
    await untouched();
    using db = new Database(where.database);
    db.run("INSERT INTO t VALUES (1)");
    await untouched();
    await using daemon = await startDaemon(options);
    await daemon.untilStatus(({ state, full_backup }) => state === "live" && full_backup !== null, { what: "live" });
    const running = await runJson(where);
    expect(running.found("instance lock")).toEqual([`pass the daemon with PID ${daemon.pid} follows the database`]);
    expect(running.found("status")).toEqual(["pass live"]);
    // Held still, so that what changes is not its doing.
    daemon.signal("SIGSTOP");
    await untouched();
    daemon.signal("SIGCONT");
    db.run("INSERT INTO t VALUES (2)");
    await daemon.untilStatus(({ change_sets, lag_seconds }) => change_sets > 0 && lag_seconds === 0, {
      what: "shipped",
    });
    await daemon.stop();
    await untouched();
    const after = await runJson(where);
    expect(after.found("instance lock")).toEqual(["pass nobody follows the database now"]);
    expect(after.found("status")).toEqual([expect.stringMatching(/^pass stopped /)]);
    expect(after.found("encryption")).toEqual([expect.stringContaining("pass ")]);
  });

  test("and a daemon that is killed is a warning", async () => {
    const where = scene();
    const databases = [{ name: "app", path: where.database, replicas: [where.store] }];
    await using daemon = await startDaemon({ configPath: where.config, databases, program: "executable" });
    await daemon.untilStatus(({ state }) => state === "live", { what: "live" });
    await daemon.kill();
    expect((await runJson(where)).found("status")).toEqual([expect.stringMatching(/^warn not running: .*is gone/)]);
  });

  /** Of everything below: kind, mode, owner, size, times and content. */
  function fingerprint(root: string): readonly string[] {
    return ["", ...readdirSync(root, { recursive: true, encoding: "utf8" })].sort().map((name) => {
      const path = join(root, name);
      const info = lstatSync(path);
      const { mode, uid, gid, size, mtimeMs, ctimeMs, ino } = info;
      const content = info.isFile()
        ? Bun.hash(readFileSync(path)).toString(16)
        : info.isSymbolicLink()
          ? readlinkSync(path)
          : "";
      return [name, mode, uid, gid, size, mtimeMs, ctimeMs, ino, content].join(" ");
    });
  }
});

describe("its documentation", () => {
  const DOCS = resolve(import.meta.dir, "../../docs");

  test("docs/doctor.md explains every check", () => {
    const text = readFileSync(`${DOCS}/doctor.md`, "utf8");
    for (const name of CHECK_NAMES) expect(text).toMatch(new RegExp(`^\\| \`${name}\` \\| .+ \\| .+ \\|$`, "m"));
  });

  test("docs/json.md names every field", async () => {
    const section =
      readFileSync(`${DOCS}/json.md`, "utf8")
        .split("\n## ")
        .find((part) => part.startsWith("doctor\n")) ?? "";
    const { document } = await runJson(scene());
    const names = new Set<string>();
    const collect = (value: unknown): void => {
      if (Array.isArray(value)) for (const inner of value) collect(inner);
      else if (typeof value === "object" && value !== null)
        for (const [name, inner] of Object.entries(value)) {
          names.add(name);
          collect(inner);
        }
    };
    collect(document);
    expect([...names].filter((name) => !new RegExp(`\\b${name}\\b`).test(section))).toEqual([]);
    const example = /```json\n(.*?)```/s.exec(section)?.[1] ?? "";
    expect(documentSchema.safeParse(JSON.parse(example)).error).toBeUndefined();
  });
});

test("on a terminal the levels are coloured, unless NO_COLOR says otherwise", async () => {
  const where = scene();
  const seen = async (env: Record<string, string>) => {
    const pieces: Uint8Array[] = [];
    const child = Bun.spawn([executablePath(), "doctor", "--config", where.config], {
      env: { ...process.env, SYSTEMD_UNIT_PATH: where.units, NO_COLOR: "", ...env },
      terminal: {
        cols: 120,
        rows: 40,
        data(_, data) {
          pieces.push(data);
        },
      },
    });
    expect(await child.exited).toBe(0);
    return Buffer.concat(pieces).toString();
  };
  expect(await seen({})).toContain("\u001b[32mpass\u001b[0m");
  expect(await seen({ NO_COLOR: "1" })).not.toContain("\u001b[32m");
});

test("help says that it writes nothing", () => {
  const { stdout, exitCode } = Bun.spawnSync([executablePath(), "doctor", "--help"]);
  expect([exitCode, stdout.toString()]).toEqual([0, expect.stringContaining("Writes nothing")]);
});
