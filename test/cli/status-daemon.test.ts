import { Database } from "bun:sqlite";
import { expect, test } from "bun:test";
import { chownSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { readdir } from "node:fs/promises";
import { configPathIn, daemonConfig, type ProgramResult, runBakelite, startDaemon } from "../oracle/daemon-process.ts";
import { eventually } from "../support/eventually.ts";
import { executablePath } from "../support/executable.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";

const STALE_AFTER_MS = 15_000;

function options(directory: TemporaryDirectory, names: readonly string[] = ["app"]) {
  const databases = names.map((name) => ({
    name,
    path: directory.file(`${name}.db`),
    replicas: [directory.file(`${name}-replica`)],
  }));
  return { configPath: configPathIn(directory.path), databases, program: "executable" as const };
}

async function status(directory: TemporaryDirectory, ...argv: readonly string[]): Promise<ProgramResult> {
  return await runBakelite("executable", ["status", "--config", configPathIn(directory.path), ...argv]);
}

function createDatabase(path: string, mode: "WAL" | "DELETE" = "WAL"): Database {
  const db = new Database(path);
  db.run("PRAGMA busy_timeout = 5000");
  db.run(`PRAGMA journal_mode = ${mode}`);
  db.run("CREATE TABLE t (x)");
  return db;
}

const SILENT = { status: 0, stdout: "", stderr: "" };

test("never started, live, stopped by the book, stopped by SIGKILL", async () => {
  await using directory = await temporaryDirectory("status");
  using db = createDatabase(directory.file("app.db"));
  writeFileSync(configPathIn(directory.path), daemonConfig(options(directory)));
  expect(await status(directory, "--check")).toEqual({
    status: 1,
    stdout: `app: no status: the daemon has not run for this database (there is no ${directory.file(".bakelite/app.status.json")})\n`,
    stderr: "",
  });

  await using first = await startDaemon(options(directory));
  await first.untilStatus(({ state, full_backup }) => state === "live" && full_backup !== null, { what: "live" });
  expect(await status(directory, "--check", "--max-lag", "1m")).toEqual(SILENT);
  db.run("INSERT INTO t VALUES (1)");
  await first.untilStatus(({ change_sets, lag_seconds }) => change_sets > 0 && lag_seconds === 0, { what: "shipped" });
  const live = await status(directory);
  expect(live).toMatchObject({ status: 0, stderr: "" });
  expect(live.stdout).toMatch(/^DATABASE .*\napp +live +live +(now|\ds ago) +1 +\S+ K?i?B\n$/);

  await first.stop();
  expect((await status(directory)).stdout).toMatch(/^app +stopped +unknown /m);
  const stopped = await status(directory, "--check");
  expect(stopped.status).toBe(1);
  expect(stopped.stdout).toMatch(/^app: stopped (now|\ds ago)\n$/);

  await using second = await startDaemon(options(directory));
  await second.untilStatus(({ state }) => state === "live", { what: "live again" });
  expect(await status(directory, "--check")).toEqual(SILENT);
  await second.kill();
  const dead = await status(directory, "--check", "--json");
  expect(dead.status).toBe(1);
  expect(JSON.parse(dead.stdout).databases[0]).toMatchObject({
    state: "not running",
    healthy: false,
    process_running: false,
    lag_seconds: null,
    reasons: [{ kind: "not running", message: expect.stringContaining(`PID ${second.pid}) is gone`) }],
  });
});

test("a daemon that hangs is stale, and live again once it goes on", async () => {
  await using directory = await temporaryDirectory("status");
  using _db = createDatabase(directory.file("app.db"));
  await using daemon = await startDaemon(options(directory));
  await daemon.untilStatus(({ state, full_backup }) => state === "live" && full_backup !== null, { what: "live" });
  daemon.signal("SIGSTOP");
  const stale = await eventually(
    async () => {
      const result = await status(directory, "--check");
      return result.status === 1 ? result : null;
    },
    { what: "the check to fail", deadlineMs: 2 * STALE_AFTER_MS, pollMs: 500 },
  );
  expect(stale.stdout).toMatch(
    new RegExp(`^app: stale: the daemon has not reported for 1\\ds, though PID ${daemon.pid} exists\n$`),
  );
  expect((await status(directory)).stdout).toMatch(/^app +stale +unknown /m);
  daemon.signal("SIGCONT");
  await eventually(async () => (await status(directory, "--check")).status === 0, { what: "well again", pollMs: 200 });
});

test("waiting, outside WAL mode, and backing off, each with its reason, beside one that is well", async () => {
  await using directory = await temporaryDirectory("status");
  using _ok = createDatabase(directory.file("ok.db"));
  using _rollback = createDatabase(directory.file("rollback.db"), "DELETE");
  using sick = createDatabase(directory.file("sick.db"));
  const all = options(directory, ["ok", "rollback", "sick", "later"]);
  await using daemon = await startDaemon(all);
  await daemon.untilStatus(({ full_backup }) => full_backup !== null, { what: "a full backup", database: "sick" });
  await daemon.untilStatus(({ full_backup, state }) => full_backup !== null && state === "live", {
    what: "a full backup",
    database: "ok",
  });
  await daemon.untilStatus(({ state }) => state === "waiting", { what: "waiting", database: "later" });
  await daemon.untilStatus(({ state }) => state === "not wal", { what: "not wal", database: "rollback" });
  renameSync(directory.file("sick-replica"), directory.file("away"));
  sick.run("INSERT INTO t VALUES (1)");
  await daemon.untilStatus(({ unhealthy }) => (unhealthy?.attempts ?? 0) > 1, {
    what: "two failed attempts",
    database: "sick",
    deadlineMs: 40_000,
  });

  const check = await status(directory, "--check");
  expect([check.status, check.stderr]).toEqual([1, ""]);
  expect(check.stdout.trimEnd().split("\n")).toEqual([
    `rollback: not wal: run: sqlite3 '${directory.file("rollback.db")}' 'PRAGMA journal_mode=WAL'`,
    expect.stringMatching(/^sick: backing off: stuck for \d+\S* \(\d+ failed attempts\): .*backup directory/),
    "later: waiting: the database file does not exist yet",
  ]);
  const table = (await status(directory)).stdout;
  expect(table).toMatch(/^ok +live +live /m);
  expect(table).toMatch(
    /^sick +backing off +-\d+\w+ .*\n {2}stuck for \S+ \(\d+ failed attempts\)\n {2}last error: .*backup directory/m,
  );
  expect((await status(directory, "--check", "--db", "sick", "--max-lag", "100ms")).stdout).toMatch(
    /; \d+\S* behind, more than 100ms\n$/,
  );
  expect(await status(directory, "--check", "--db", "ok")).toEqual(SILENT);
});

test("who holds the WAL is named, and is no reason to fail", async () => {
  await using directory = await temporaryDirectory("status");
  using writer = createDatabase(directory.file("app.db"));
  await using daemon = await startDaemon({ ...options(directory), settings: { max_wal_size: "64KiB" } });
  await daemon.untilStatus(({ state, full_backup }) => state === "live" && full_backup !== null, { what: "live" });
  using reader = new Database(directory.file("app.db"), { readonly: true });
  reader.run("BEGIN");
  reader.query("SELECT count(*) FROM t").get();
  for (let i = 0; i < 20; i++) writer.run("INSERT INTO t VALUES (randomblob(100000))");
  await daemon.untilStatus(({ wal }) => wal?.held_by?.pid === process.pid, { what: "a holder", deadlineMs: 20_000 });
  const text = await eventually(
    async () => {
      const { stdout } = await status(directory);
      return stdout.includes("WAL") ? stdout : null;
    },
    { what: "the line about the WAL", pollMs: 200 },
  );
  expect(text).toMatch(new RegExp(`^  WAL \\S+ MiB, held by PID ${process.pid} for \\S+$`, "m"));
  expect(await status(directory, "--check")).toEqual(SILENT);
});

test("neither the database nor a destination is opened", async () => {
  await using directory = await temporaryDirectory("status");
  createDatabase(directory.file("app.db")).close();
  await using daemon = await startDaemon(options(directory));
  await daemon.untilStatus(({ state, full_backup }) => state === "live" && full_backup !== null, { what: "live" });
  await daemon.stop();
  rmSync(directory.file("app.db"));
  renameSync(directory.file("app-replica"), directory.file("away"));
  const before = (await readdir(directory.path, { recursive: true })).toSorted();
  expect((await status(directory)).stdout).toMatch(/^app +stopped /m);
  expect((await readdir(directory.path, { recursive: true })).toSorted()).toEqual(before);
});

test.each([
  [["--chek"], "bakelite: unknown flag `--chek` for `bakelite status`; did you mean `--check`?\n"],
  [["--max-lag", "1m"], "bakelite: `--max-lag` only goes with `--check`\n"],
  [["--check", "--max-lag", "1 minute"], 'bakelite: `--max-lag`: "1 minute" is not a duration such as '],
  [["--check", "--max-verify-age="], "bakelite: `--max-verify-age` needs a value: --max-verify-age <duration>\n"],
  [["--check", "--check", "--max-lag", "1m", "--max-lag", "2m"], "bakelite: `--max-lag` was given more than once\n"],
  [["app"], "bakelite: unexpected argument `app` for `bakelite status`\n"],
  [["--db", "nope"], "bakelite: no database named `nope` is configured"],
])("status %j is refused with one clear sentence and exit code 2", async (argv, expected) => {
  await using directory = await temporaryDirectory("status");
  writeFileSync(configPathIn(directory.path), daemonConfig(options(directory)));
  const { status: code, stdout, stderr } = await status(directory, ...argv);
  expect([code, stdout]).toEqual([2, ""]);
  expect(stderr).toStartWith(expected);
});

test("a check without a usable configuration is exit code 2, not 0", async () => {
  await using directory = await temporaryDirectory("status");
  const path = configPathIn(directory.path);
  const refused = async (expected: string) => {
    const { status: code, stdout, stderr } = await status(directory, "--check");
    expect([code, stdout]).toEqual([2, ""]);
    expect(stderr).toStartWith(expected);
  };
  await refused("bakelite: there is no configuration file named by --config");
  for (const text of ["", "[[database]]\n", "nonsense"]) {
    writeFileSync(path, text);
    await refused("bakelite: invalid configuration");
  }
});

// Root may read everything, unless it gives up its capabilities.
const canGiveUp = Bun.which("setpriv") !== null && process.geteuid?.() === 0;
test.skipIf(!canGiveUp)("without permission the check fails and says what to do", async () => {
  await using directory = await temporaryDirectory("status");
  createDatabase(directory.file("app.db")).close();
  await using daemon = await startDaemon(options(directory));
  await daemon.untilStatus(({ state }) => state === "live", { what: "live" });
  chownSync(directory.file(".bakelite"), 65_534, 65_534);
  const argv = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", executablePath(), "status", "--check"];
  const child = Bun.spawn([...argv, "--config", configPathIn(directory.path)], { stdout: "pipe", stderr: "pipe" });
  const [stdout, stderr, code] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  expect([code, stderr]).toEqual([1, ""]);
  expect(stdout).toMatch(
    /^app: unreadable: cannot read the status file: permission denied \(.*app\.status\.json\); run as the database's owner or as root/,
  );
});
