import { Database } from "bun:sqlite";
import { afterAll, beforeAll, expect, test } from "bun:test";
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { z } from "zod";
import { runCli } from "../../src/cli/run.ts";
import { formatKeyText } from "../../src/format/envelope.ts";
import { type Cursor, writeCursor } from "../../src/state/cursor.ts";
import { verifyMarkerSchema } from "../../src/state/verify-marker.ts";
import { FileBackend } from "../../src/storage/file.ts";
import { ReplicaBuilder, testKey } from "../replica/builder.ts";
import { makeDatabase, pagesOfFile } from "../replica/sqlite-history.ts";
import { eventually } from "../support/eventually.ts";
import { executablePath } from "../support/executable.ts";
import { MemoryOutput } from "../support/memory-output.ts";
import { seededRandom } from "../support/random.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";
import { fakeHost } from "./fake-host.ts";

const isRoot = process.geteuid?.() === 0;
const PAGE_SIZE = 4096;
const START_MS = Date.UTC(2026, 4, 25, 11);
const NOW_MS = Date.UTC(2026, 4, 25, 12);
const digits = (index: number) => String(index).padStart(16, "0");
const changeSet = (index: number) => `app/L0/${digits(index)}-${digits(index)}.p`;
const full = (index: number) => `app/full/${digits(index)}.p`;
let directory: TemporaryDirectory;
let builder: ReplicaBuilder;

/** States 1 to 5 of a real database, a minute apart; full backups at 1 and 3. */
beforeAll(async () => {
  directory = await temporaryDirectory("cli-verify");
  mkdirSync(directory.file("pristine"));
  builder = await realHistory("pristine");
});

afterAll(() => directory[Symbol.asyncDispose]());

async function realHistory(folder: string, options: { readonly corrupt?: boolean; readonly key?: number } = {}) {
  const source = directory.file(`${folder}.db`);
  const made = new ReplicaBuilder({
    backends: [new FileBackend({ path: directory.file(folder) })],
    random: seededRandom(1),
    pageSizeBytes: PAGE_SIZE,
    startMs: START_MS,
    seal: options.key === undefined ? null : testKey(options.key),
  });
  makeDatabase(source, 200);
  made.beginChain(pagesOfFile(source, PAGE_SIZE));
  await made.storeFull(1);
  for (let i = 2; i <= 5; i++) {
    makeDatabase(source, 10);
    made.passTime(60_000);
    const pages = pagesOfFile(source, PAGE_SIZE).map((image) =>
      options.corrupt === true && i === 5 ? spoil(image) : image,
    );
    await made.storeChangeSet(made.commit(new Map(pages.map((image, at) => [at + 1, image])), pages.length).index);
  }
  await made.storeFull(3);
  await made.storeCurrent(3);
  return made;
}

/** An index leaf page one of whose entries has another key than its row: whole to every checksum, and wrong to SQLite. */
function spoil(image: Uint8Array): Uint8Array {
  const INDEX_LEAF = 10;
  const spoilt = new Uint8Array(image);
  const at = Buffer.from(image).indexOf("row ");
  if (image[0] === INDEX_LEAF && at > 0) spoilt[at] = "R".charCodeAt(0);
  return spoilt;
}

/** A schema that names a collation which only the application has. */
function withForeignCollation(image: Uint8Array): Uint8Array {
  const text = Buffer.from(image);
  for (let at = text.indexOf("NOCASE"); at >= 0; at = text.indexOf("NOCASE", at)) text.write("MYCOLL", at);
  return new Uint8Array(text);
}

interface Scene {
  readonly config: string;
  readonly live: string;
  readonly store: string;
  readonly marker: string;
}

let scenes = 0;
/** A copy of the replica of its own, a folder for the live database, and the state directory that a daemon has made there. */
function scene({ from = "pristine", extra = "", stateDirectory = true } = {}): Scene {
  const name = `scene${scenes++}`;
  const [store, live] = [directory.file(name, "store"), directory.file(name, "live")];
  mkdirSync(live, { recursive: true });
  Bun.spawnSync(["cp", "-r", directory.file(from), store]);
  if (stateDirectory) mkdirSync(`${live}/.bakelite`, { mode: 0o700 });
  const config = directory.file(name, "bakelite.toml");
  writeFileSync(config, toml("app", `${live}/app.db`, store, extra));
  return { config, live, store, marker: `${live}/.bakelite/app.verify.json` };
}

function toml(name: string, path: string, store: string, extra = ""): string {
  return `[[database]]\nname = "${name}"\npath = "${path}"\n${extra}\n[[database.backends]]\ntype = "file"\npath = "${store}"\nretries = 0\n`;
}

async function run(config: string, argv: readonly string[] = [], env: Record<string, string> = {}, terminal = false) {
  const stderr = new MemoryOutput({ isTerminal: terminal, columns: 200 });
  let ms = 0;
  const clock = { nowMs: () => NOW_MS, monotonicMs: () => (ms += 100) };
  const host = fakeHost({ clock, env, stderr });
  const code = await runCli(["verify", "--config", config, ...argv], host);
  return { code, stdout: host.stdout.text, stderr: host.stderr.text };
}

const finding = z.strictObject({
  kind: z.string(),
  destination: z.string(),
  key: z.string().nullable(),
  message: z.string().min(1),
  next_step: z.string().min(1),
});
const point = z.strictObject({ index: z.int(), time: z.iso.datetime() });
/** As docs/json.md describes it; every field is there. */
const documentSchema = z.strictObject({
  mode: z.enum(["shallow", "deep"]),
  outcome: z.enum(["clean", "problems"]),
  databases: z.array(
    z.strictObject({
      name: z.string(),
      outcome: z.enum(["clean", "problems"]),
      started_at: z.iso.datetime(),
      finished_at: z.iso.datetime(),
      duration_ms: z.int().min(0),
      error: z.strictObject({ code: z.string(), message: z.string() }).nullable(),
      full_backups: z.int(),
      change_sets: z.int(),
      objects_checked: z.int(),
      bytes_read: z.int(),
      problem_count: z.int(),
      problems: z.array(finding),
      warning_count: z.int(),
      warnings: z.array(finding),
      restore: z.strictObject({
        possible: z.boolean(),
        newest_restore_point: point.nullable(),
        oldest_restore_point: point.nullable(),
        restore_points: z.int(),
        destinations: z.array(
          z.strictObject({
            destination: z.string(),
            possible: z.boolean(),
            newest_restore_point: point.nullable(),
          }),
        ),
      }),
      deep: z
        .array(
          z.strictObject({
            destination: z.string(),
            key: z.string(),
            full_backup: z.int(),
            change_sets: z.int(),
            restore_point: point,
            size_bytes: z.int(),
            digest_compared: z.boolean(),
            integrity: z.enum(["sound", "damaged", "failed"]).nullable(),
          }),
        )
        .nullable(),
      marker: z.string().nullable(),
    }),
  ),
});

/** The document of a run with --json, which must be all that is on standard output and of the shape that docs/json.md gives. */
async function runJson(config: string, argv: readonly string[] = []) {
  const { code, stdout, stderr } = await run(config, ["--json", ...argv]);
  const document = documentSchema.parse(JSON.parse(stdout));
  const [database] = document.databases;
  if (database === undefined) throw new Error("no database in the document");
  return { code, stderr, document, database };
}

function readMarker(path: string) {
  return verifyMarkerSchema.parse(JSON.parse(readFileSync(path, "utf8")));
}

test("a clean replica is one line, exit code 0 and a marker", async () => {
  const { config, marker } = scene();
  const { code, stdout, stderr } = await run(config);
  expect([code, stderr]).toEqual([0, ""]);
  expect(stdout).toMatch(
    /^app {2}clean {5}7 objects, [\d.]+ KiB read; restorable up to 2026-05-25T11:04:00\.000Z \(56m ago\)\n$/,
  );
  expect(readMarker(marker)).toEqual({
    version: 1,
    database: "app",
    last_run: {
      started_at: "2026-05-25T12:00:00.000Z",
      finished_at: "2026-05-25T12:00:00.000Z",
      mode: "shallow",
      outcome: "clean",
      problem_count: 0,
      problems: [],
      warning_count: 0,
      objects_checked: 7,
      bytes_read: expect.any(Number),
      newest_restore_point: { index: 5, at: "2026-05-25T11:04:00.000Z" },
    },
    last_clean: {
      finished_at: "2026-05-25T12:00:00.000Z",
      mode: "shallow",
      newest_restore_point: { index: 5, at: "2026-05-25T11:04:00.000Z" },
    },
    last_clean_deep: null,
  });
});

test("--deep restores every full backup to a temporary file that is gone afterwards, and SQLite checks it", async () => {
  const { config, marker } = scene();
  const temporary = directory.file("deep-temp");
  mkdirSync(temporary);
  const { code, stdout } = await run(config, ["--deep", "--temp-dir", temporary]);
  expect([code, stdout]).toEqual([
    0,
    expect.stringContaining("; 2 full backups restored and checked; restorable up to"),
  ]);
  expect(readdirSync(temporary)).toEqual([]);
  const { database } = await runJson(config, ["--deep", "--temp-dir", temporary]);
  expect(database.deep).toEqual(
    [1, 3].map((index) => ({
      destination: expect.stringContaining("/store"),
      key: full(index),
      full_backup: index,
      change_sets: 5 - index,
      restore_point: { index: 5, time: "2026-05-25T11:04:00.000Z" },
      size_bytes: builder.fileOf(5).length,
      digest_compared: true,
      integrity: "sound",
    })),
  );
  expect(readMarker(marker).last_clean_deep).toMatchObject({ mode: "deep", newest_restore_point: { index: 5 } });
});

test("--deep finds a state that every checksum confirms and SQLite does not", async () => {
  await realHistory("spoilt", { corrupt: true });
  const { config, marker } = scene({ from: "spoilt" });
  expect((await run(config)).code).toBe(0);
  const cleanBefore = readMarker(marker).last_clean;
  const { code, database } = await runJson(config, ["--deep"]);
  expect(code).toBe(1);
  expect(database.problems).toEqual(
    [1, 3].map((index) => expect.objectContaining({ kind: "integrity", key: full(index) })),
  );
  expect(database.problems[0]?.message).toMatch(
    /^state 5, restored from full backup 1 and 4 change-sets, fails SQLite's integrity_check: /,
  );
  // What was stored is what the database was, so it can be restored as it is.
  expect(database.restore.possible).toBe(true);
  expect(readMarker(marker)).toMatchObject({
    last_run: { mode: "deep", outcome: "problems", problem_count: 2, problems: [{ kind: "integrity" }, {}] },
    last_clean: cleanBefore,
    last_clean_deep: null,
  });
  const text = await run(config, ["--deep"]);
  expect(text.stdout).toContain("; 0 of 2 full backups restored and sound; ");
});

test("--deep warns of what only the application's own SQLite can check", async () => {
  const source = directory.file("collation.db");
  makeDatabase(source, 5);
  using database = new Database(source);
  database.run("CREATE INDEX t_folded ON t(text COLLATE NOCASE)");
  database.run("PRAGMA wal_checkpoint(TRUNCATE)");
  const store = new FileBackend({ path: directory.file("collation") });
  const made = new ReplicaBuilder({ backends: [store], random: seededRandom(1), pageSizeBytes: PAGE_SIZE });
  made.beginChain(pagesOfFile(source, PAGE_SIZE).map(withForeignCollation));
  await made.storeFull(1);
  await made.storeCurrent(1);
  const { code, database: found } = await runJson(scene({ from: "collation" }).config, ["--deep"]);
  expect([code, found.problems, found.warnings.map(({ kind }) => kind)]).toEqual([0, [], ["not-checkable"]]);
  expect(found.warnings[0]?.message).toContain("MYCOLL");
});

test("a problem is a line with what to do next, and how far a restore still goes", async () => {
  const { config, store, marker } = scene();
  rmSync(`${store}/${changeSet(4)}`);
  const { code, stdout } = await run(config);
  expect(code).toBe(1);
  expect(stdout.replace(/^(app.*?) 6 objects.*read;/, "$1 6 objects;")).toBe(
    [
      "app  PROBLEMS  1 problem; 6 objects; restorable up to 2026-05-25T11:02:00.000Z (58m ago)",
      `  missing  ${store}/${changeSet(4)}: change-set 4 is missing: states 4 to 5 cannot be restored from here by way of what is stored before them`,
      "           next: find out who deleted it, and look for it in the destination's versions or snapshots; the next full backup (`snapshot_interval`) makes later states restorable",
      "  restore: still possible up to 2026-05-25T11:02:00.000Z (58m ago), state 3; 3 restore points from 2026-05-25T11:00:00.000Z on",
      "",
    ].join("\n"),
  );
  expect(readMarker(marker).last_run).toMatchObject({
    outcome: "problems",
    problems: [{ destination: store, key: changeSet(4), kind: "missing" }],
    newest_restore_point: { index: 3 },
  });
});

test.each([
  [
    "cut short",
    (store: string) => writeFileSync(`${store}/${full(3)}`, readFileSync(`${store}/${full(3)}`).subarray(0, 500)),
    [`corrupt ${full(3)}`],
    5,
  ],
  ["deleted", (store: string) => rmSync(`${store}/${full(3)}`), [`missing ${full(3)}`], 5],
  [
    "replaced by garbage",
    (store: string) => writeFileSync(`${store}/${changeSet(5)}`, "garbage"),
    [`corrupt ${changeSet(5)}`],
    4,
  ],
  ["CURRENT garbled", (store: string) => writeFileSync(`${store}/app/CURRENT`, "garbage"), ["corrupt app/CURRENT"], 5],
])("an object %s makes it fail, and the document says which one", async (_, harm, expected, newest) => {
  const { config, store } = scene();
  harm(store);
  const { code, database, document } = await runJson(config);
  expect([code, document.outcome]).toEqual([1, "problems"]);
  expect(database.problems.map(({ kind, key }) => `${kind} ${key}`)).toEqual(expected);
  expect(database.restore).toMatchObject({ possible: true, newest_restore_point: { index: newest } });
  const output = directory.file(`restored-${scenes}.db`);
  const at = database.restore.newest_restore_point?.time ?? "";
  expect(await runCli(["restore", "--config", config, "--output", output, "--timestamp", at], fakeHost())).toBe(0);
  expect(Buffer.compare(readFileSync(output), builder.fileOf(newest))).toBe(0);
});

test("the newest objects are missed by what this host's cursor remembers", async () => {
  const { config, store, live } = scene();
  await writeCursor(`${live}/.bakelite/app.cursor`, cursorAt(5, store));
  expect((await run(config)).code).toBe(0);
  rmSync(`${store}/${changeSet(5)}`);
  const { code, database } = await runJson(config);
  expect(code).toBe(1);
  expect(database.problems[0]?.message).toContain(
    "this host's cursor knows of state 5, and the newest that is stored is 4",
  );
  writeFileSync(`${live}/.bakelite/app.cursor`, "not a cursor");
  const damaged = await runJson(config);
  expect(damaged.database.warnings).toEqual([
    expect.objectContaining({ kind: "local-state", destination: `${live}/.bakelite/app.cursor` }),
  ]);
});

function cursorAt(index: number, store: string): Cursor {
  const state = builder.states.get(index);
  if (state === undefined) throw new Error("no such state");
  return {
    session: "a".repeat(32),
    pastSessions: [],
    machineId: null,
    bootId: null,
    device: "1",
    inode: "1",
    chain: state.chain,
    index,
    lineage: state.lineage,
    sizePages: state.pages.length,
    pageSizeBytes: PAGE_SIZE,
    position: null,
    settled: index,
    stampMs: state.stampMs,
    epochs: [],
    attempted: null,
    destinations: { [store]: { index } },
    fullBackup: { index: 3, settled: 3, atMs: 0, seal: "p" },
    keyFingerprint: null,
  };
}

test("where there is no state directory the marker goes to BAKELITE_STATE_DIR, or is left out with a note", async () => {
  const { config, live } = scene({ stateDirectory: false });
  const without = await run(config);
  expect([without.code, without.stderr]).toEqual([
    0,
    expect.stringMatching(/^note: app: no marker was left .*BAKELITE_STATE_DIR is not set\n$/),
  ]);
  expect(readdirSync(live)).toEqual([]);
  const states = directory.file("states");
  mkdirSync(states);
  const placed = await run(config, [], { BAKELITE_STATE_DIR: states });
  expect([placed.code, placed.stderr]).toEqual([0, ""]);
  expect(readMarker(`${states}/app.verify.json`).last_run.outcome).toBe("clean");
  // Nor does it matter that the database's own folder is not there, as on another host.
  rmSync(live, { recursive: true });
  expect((await run(config, [], { BAKELITE_STATE_DIR: states })).stderr).toBe("");
  const lost = await run(config, [], { BAKELITE_STATE_DIR: directory.file("nowhere") });
  expect([lost.code, lost.stderr]).toEqual([0, expect.stringContaining("note: app: no marker was left")]);
});

test.skipIf(!isRoot)("run as root, the marker belongs to the owner of the database", async () => {
  const { config, live, marker } = scene();
  Bun.spawnSync(["chown", "-R", "1234:2345", live]);
  expect((await run(config)).code).toBe(0);
  const { uid, gid, mode } = statSync(marker);
  expect({ uid, gid, mode: mode & 0o777 }).toEqual({ uid: 1234, gid: 2345, mode: 0o600 });
});

test("the database and what stands beside it stay untouched", async () => {
  const { config, live } = scene();
  writeFileSync(`${live}/app.db`, "not even a database");
  chmodSync(`${live}/app.db`, 0o000);
  const before = statSync(`${live}/app.db`);
  expect((await run(config, ["--deep"])).code).toBe(0);
  const after = statSync(`${live}/app.db`);
  expect([after.atimeMs, after.mtimeMs, after.ctimeMs]).toEqual([before.atimeMs, before.mtimeMs, before.ctimeMs]);
  expect(readdirSync(live).sort()).toEqual([".bakelite", "app.db"]);
  expect(readdirSync(`${live}/.bakelite`)).toEqual(["app.verify.json"]);
});

test("every database is verified, with aligned names; one that cannot be read is a failure and leaves the others alone", async () => {
  const { config, store, live } = scene();
  writeFileSync(
    config,
    [
      toml("app", `${live}/app.db`, store),
      toml("orders", `${live}/orders.db`, directory.file("unmounted", "backups")),
      toml("new", `${live}/new.db`, store),
    ].join("\n"),
  );
  const { code, stdout } = await run(config);
  expect(code).toBe(1);
  expect(stdout).toMatch(/^app {5}clean {5}/m);
  expect(stdout).toMatch(/^orders {2}PROBLEMS {2}1 problem; .*nothing can be restored$/m);
  expect(stdout).toContain("restore: not possible as long as the replica cannot be read");
  expect(stdout).toMatch(/^new {5}PROBLEMS {2}/m);
  expect(stdout).toContain("nothing is stored for database `new`");
  const { document } = await runJson(config);
  expect(document.databases.map(({ name, outcome, error }) => [name, outcome, error?.code])).toEqual([
    ["app", "clean", undefined],
    ["orders", "problems", "storage-unreachable"],
    ["new", "problems", undefined],
  ]);
  expect(document.databases[1]?.problems[0]).toMatchObject({ kind: "unreachable", key: null });
  const alone = await run(config, ["--db", "app"]);
  expect([alone.code, alone.stdout.split("\n").length]).toEqual([0, 2]);
});

test("a sealed replica is verified with its key; with a wrong one every object has an unreadable key", async () => {
  await realHistory("sealed", { key: 7 });
  const keyFile = directory.file("key.txt");
  const { config } = scene({ from: "sealed", extra: `encryption = { key_file = "${keyFile}" }` });
  writeFileSync(keyFile, formatKeyText(new Uint8Array(32).fill(7)), { mode: 0o600 });
  expect((await run(config, ["--deep"])).code).toBe(0);
  writeFileSync(keyFile, formatKeyText(new Uint8Array(32).fill(8)), { mode: 0o600 });
  const { code, database } = await runJson(config);
  expect([code, database.problem_count, database.restore.possible]).toEqual([1, 7, false]);
  expect(new Set(database.problems.map(({ kind }) => kind))).toEqual(new Set(["unreadable-key"]));
  rmSync(keyFile);
  const { database: without } = await runJson(config);
  expect(without.error).toMatchObject({ code: "key-wrong" });
});

test("many problems of one kind are cut in the text, not in the document", async () => {
  const { config, store } = scene();
  for (let i = 10; i < 40; i++) writeFileSync(`${store}/${changeSet(i)}`, "garbage");
  const { stdout } = await run(config);
  expect(stdout.match(/^ {2}corrupt /gm)).toHaveLength(10);
  expect(stdout).toContain("and 20 more: see --json");
  expect((await run(config, ["--verbose"])).stdout.match(/^ {2}corrupt /gm)).toHaveLength(30);
  expect((await runJson(config)).database.problems).toHaveLength(30);
});

test("on a terminal it shows what it is doing", async () => {
  const { config } = scene();
  const { stderr } = await run(config, ["--deep"], {}, true);
  expect(stderr).toContain("app: reading");
  expect(stderr).toContain("app: restoring full backup 3");
  expect(stderr).toContain(`app: checking ${full(3)} with SQLite`);
  expect(stderr).toEndWith("\r\u001b[2K");
});

test.each([
  [["--temp-dir", "/tmp"], "`--temp-dir` is of use with --deep only"],
  [["--deep", "--temp-dir", "/nowhere/at/all"], "the directory for temporary files does not exist"],
  [["--depe"], "did you mean `--deep`?"],
  [["--deep=yes"], "`--deep` takes no value"],
  [["app"], "unexpected argument `app`"],
  [["--db", "ap"], "did you mean `app`?"],
])("wrong usage %j is refused with exit code 2", async (argv, message) => {
  const { config, marker } = scene();
  const { code, stderr } = await run(config, argv);
  expect([code, stderr]).toEqual([2, expect.stringContaining(message)]);
  expect(existsSync(marker)).toBe(false);
});

test("the executable verifies, deeply too, and its exit code tells the outcome", async () => {
  const { config, store, marker } = scene();
  const verify = (...argv: readonly string[]) =>
    Bun.spawnSync([executablePath(), "verify", "--config", config, ...argv], { stdout: "pipe", stderr: "pipe" });
  const sound = verify("--deep", "--json");
  expect([sound.exitCode, sound.stderr.toString()]).toEqual([0, ""]);
  const document = documentSchema.parse(JSON.parse(sound.stdout.toString()));
  expect(document.databases[0]?.deep?.map(({ integrity }) => integrity)).toEqual(["sound", "sound"]);
  expect(readMarker(marker).last_clean_deep).not.toBeNull();
  rmSync(`${store}/${changeSet(5)}`);
  writeFileSync(`${store}/${changeSet(4)}`, "garbage");
  const harmed = verify();
  expect([harmed.exitCode, harmed.stdout.toString()]).toEqual([
    1,
    expect.stringContaining(`corrupt  ${store}/${changeSet(4)}`),
  ]);
});

test("SIGINT in the middle of a deep check removes the temporary file, leaves no marker and exits 130", async () => {
  const backend = new FileBackend({ path: directory.file("big") });
  const big = new ReplicaBuilder({
    backends: [backend],
    random: seededRandom(1),
    pageSizeBytes: 65_536,
    compression: "none",
  });
  const image = big.randomImage();
  big.beginChain(Array.from({ length: 2_000 }, () => image));
  await big.storeFull(1);
  const { config, marker } = scene({ from: "big" });
  const temporary = directory.file("interrupted");
  mkdirSync(temporary);
  const main = new URL("../../src/main.ts", import.meta.url).pathname;
  const child = Bun.spawn([process.execPath, main, "verify", "--config", config, "--deep"], {
    stdout: "pipe",
    stderr: "pipe",
    env: { ...process.env, TMPDIR: temporary },
  });
  await eventually(() => readdirSync(temporary).some((name) => name.startsWith("bakelite-verify-app")), {
    what: "the temporary file",
    pollMs: 1,
  });
  child.kill("SIGINT");
  const [stdout, stderr] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
  expect([await child.exited, stdout, stderr]).toEqual([130, "", "bakelite: stopped by SIGINT\n"]);
  expect(readdirSync(temporary)).toEqual([]);
  expect(existsSync(marker)).toBe(false);
});
