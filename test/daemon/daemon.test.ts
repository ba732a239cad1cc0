import { Database } from "bun:sqlite";
import { expect, test } from "bun:test";
import { existsSync, renameSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { readdir, readFile, writeFile } from "node:fs/promises";
import {
  configPathIn,
  type DaemonDatabase,
  type DaemonOptions,
  daemonConfig,
  runBakelite,
  startDaemon,
} from "../oracle/daemon-process.ts";
import { startWriter } from "../oracle/writer-process.ts";
import { eventually } from "../support/eventually.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";

const program = "executable" as const;

test("a database that does not exist yet is waited for, and backed up once it does", async () => {
  await using directory = await temporaryDirectory("daemon");
  await using daemon = await startDaemon(options(directory, [database(directory, "app")]));
  const waiting = await daemon.untilStatus((status) => status.state === "waiting", { what: "the state waiting" });
  expect(waiting.detail).toBe("the database file does not exist yet");
  await using writer = await startWriter({ database: directory.file("app.db"), id: 1, seed: 1 });
  await writer.waitForAcks(10);
  await daemon.untilStatus((status) => status.state === "live" && (status.index ?? 0) > 1, { what: "the state live" });
});

test("a database outside WAL mode is left alone, named with the fix, and followed once it is converted", async () => {
  await using directory = await temporaryDirectory("daemon");
  const path = directory.file("app.db");
  createDatabase(path, "DELETE");
  const before = await readFile(path);
  await using daemon = await startDaemon(options(directory, [database(directory, "app")]));
  const status = await daemon.untilStatus((now) => now.state === "not wal", { what: "the state not wal" });
  expect(status.detail).toBe(`run: sqlite3 '${path}' 'PRAGMA journal_mode=WAL'`);
  expect(Buffer.compare(await readFile(path), before)).toBe(0);
  expect(await readdir(directory.path)).not.toContain("app.db-wal");
  convert(path, "WAL");
  await daemon.untilStatus((now) => now.state === "live" && now.full_backup !== null, { what: "the state live" });
});

test("convert_to_wal lets the daemon put the database into WAL mode", async () => {
  await using directory = await temporaryDirectory("daemon");
  const path = directory.file("app.db");
  createDatabase(path, "DELETE");
  const app = { ...database(directory, "app"), settings: { convert_to_wal: true } };
  await using daemon = await startDaemon(options(directory, [app]));
  await daemon.untilStatus((now) => now.state === "live" && now.full_backup !== null, { what: "the state live" });
  expect((await readFile(path)).subarray(18, 20)).toEqual(Buffer.from([2, 2]));
});

test("a second daemon is refused with the PID of the first, also through a link and under another name", async () => {
  await using directory = await temporaryDirectory("daemon");
  createDatabase(directory.file("app.db"), "WAL");
  symlinkSync(directory.file("app.db"), directory.file("link.db"));
  await using daemon = await startDaemon(options(directory, [database(directory, "app")]));
  await daemon.untilStatus((status) => status.state === "live", { what: "the first daemon" });
  const other = { name: "other", path: directory.file("link.db"), replicas: [directory.file("elsewhere")] };
  for (const databases of [[database(directory, "app")], [other]]) {
    const configPath = directory.file("second.toml");
    await writeFile(configPath, daemonConfig({ configPath, databases }));
    const second = await runBakelite(program, ["daemon", "--config", configPath]);
    expect(second.status).toBe(1);
    expect(second.stderr).toContain(`process ${daemon.pid} already follows this database`);
  }
  expect(existsSync(directory.file("elsewhere"))).toBe(false);
});

test("one daemon refuses to start with two names for one file", async () => {
  await using directory = await temporaryDirectory("daemon");
  createDatabase(directory.file("app.db"), "WAL");
  const again = { name: "again", path: directory.file("app.db"), replicas: [directory.file("replica")] };
  const configPath = configPathIn(directory.path);
  await writeFile(configPath, daemonConfig({ configPath, databases: [database(directory, "app"), again] }));
  const result = await runBakelite(program, ["daemon", "--config", configPath]);
  expect(result.status).toBe(1);
  expect(result.stderr).toContain("already follows this database");
});

test("SIGTERM ships what is committed, publishes stopped, and exits 0", async () => {
  await using directory = await temporaryDirectory("daemon");
  // A batch would wait for an hour: only the stop can ship it.
  const settings = { debounce: "1h", max_batch_delay: "1h" };
  const path = directory.file("app.db");
  createDatabase(path, "WAL");
  await using daemon = await startDaemon({ ...options(directory, [database(directory, "app")]), settings });
  await daemon.untilStatus((status) => status.state === "live" && status.full_backup !== null, {
    what: "the first full backup",
  });
  await using writer = await startWriter({ database: path, id: 1, seed: 2, startPaused: true });
  await writer.burst(20);
  const { tookMs } = await daemon.stop();
  expect(tookMs).toBeLessThan(10_000);
  expect((await daemon.status())?.state).toBe("stopped");
  const restored = directory.file("restored.db");
  const result = await runBakelite(program, [
    "restore",
    "--db",
    "app",
    "--output",
    restored,
    "--config",
    daemon.options.configPath,
  ]);
  expect(result.stderr).toBe("");
  expect(result.status).toBe(0);
  using db = new Database(restored, { readonly: true });
  expect(db.query("SELECT count(*) AS n FROM oracle_log").get()).toEqual({ n: writer.acks.length });
});

test("SIGTERM while the destination is away ends within 10 s and says what was not shipped", async () => {
  await using directory = await temporaryDirectory("daemon");
  const path = directory.file("app.db");
  await using writer = await startWriter({ database: path, id: 1, seed: 3, startPaused: true });
  await writer.burst(1);
  await using daemon = await startDaemon(options(directory, [database(directory, "app")]));
  await daemon.untilStatus((status) => status.full_backup !== null, { what: "the first full backup" });
  renameSync(directory.file("replica"), directory.file("away"));
  await writer.burst(5);
  const stop = daemon.stop();
  expect((await stop).tookMs).toBeLessThan(10_500);
  expect((await daemon.status())?.detail).toContain("could not be shipped before the stop");
  expect(daemon.said("not everything that is committed could be stored before the stop")).toHaveLength(1);
});

test("a failing destination makes only its own database back off, and the lag shows", async () => {
  await using directory = await temporaryDirectory("daemon");
  const sick = { name: "sick", path: directory.file("sick.db"), replicas: [directory.file("sick-replica")] };
  await using a = await startWriter({ database: directory.file("app.db"), id: 1, seed: 4 });
  await using b = await startWriter({ database: sick.path, id: 1, seed: 5 });
  await Promise.all([a.waitForAcks(1), b.waitForAcks(1)]);
  await using daemon = await startDaemon(options(directory, [database(directory, "app"), sick]));
  await daemon.untilStatus((status) => status.full_backup !== null, {
    what: "its first full backup",
    database: "sick",
  });
  renameSync(directory.file("sick-replica"), directory.file("away"));
  const failing = await daemon.untilStatus((status) => status.state === "backing off", {
    what: "backing off",
    database: "sick",
    deadlineMs: 20_000,
  });
  expect(failing.unhealthy?.last_error.code).toBe("storage-unreachable");
  const before = (await daemon.status("app"))?.index ?? 0;
  await daemon.untilStatus((status) => status.state === "live" && (status.index ?? 0) > before, {
    what: "the other to go on",
    database: "app",
  });
  renameSync(directory.file("away"), directory.file("sick-replica"));
  const healed = await daemon.untilStatus((status) => status.state === "live", {
    what: "it to recover",
    database: "sick",
    deadlineMs: 70_000,
  });
  expect(healed.unhealthy).toBeNull();
  expect(healed.last_error?.code).toBe("storage-unreachable");
});

test("SIGHUP starts what is new, stops what is gone, and keeps the old configuration when the new one is wrong", async () => {
  await using directory = await temporaryDirectory("daemon");
  for (const name of ["one", "two", "three"]) createDatabase(directory.file(`${name}.db`), "WAL");
  const [one, two, three] = [database(directory, "one"), database(directory, "two"), database(directory, "three")];
  const first = options(directory, [one, two]);
  await using daemon = await startDaemon({ ...first, databases: [one, two, three] });
  await daemon.untilStatus((status) => status.state === "live", { what: "three to be live", database: "three" });
  await writeFile(first.configPath, daemonConfig(first));
  daemon.signal("SIGHUP");
  await daemon.untilStatus((status) => status.state === "stopped", { what: "three to stop", database: "three" });
  await daemon.untilStatus((status) => status.state === "live", { what: "one to be live", database: "one" });
  writeFileSync(first.configPath, "[[database]]\nname = 7\n");
  daemon.signal("SIGHUP");
  await daemon.untilSaid("the configuration was not reloaded; the old one stays in force");
  await daemon.untilStatus((status) => status.state === "live", { what: "one to stay live", database: "one" });
  await writeFile(first.configPath, daemonConfig({ ...first, databases: [one, two, three] }));
  daemon.signal("SIGHUP");
  await daemon.untilStatus((status) => status.state === "live", { what: "three to be live again", database: "three" });
});

test("a healthy daemon says nothing at info after its start but for the first full backup", async () => {
  await using directory = await temporaryDirectory("daemon");
  await using writer = await startWriter({ database: directory.file("app.db"), id: 1, seed: 6 });
  await writer.waitForAcks(1);
  const settings = { max_segments_per_snapshot: 3, debounce: "20ms", max_batch_delay: "50ms" };
  await using daemon = await startDaemon({ ...options(directory, [database(directory, "app")]), settings });
  await daemon.untilStatus((status) => (status.full_backups_by_reason["change-set count"] ?? 0) >= 2, {
    what: "several full backups",
    deadlineMs: 20_000,
  });
  await writer.stop();
  await daemon.stop();
  const messages = daemon.log.map(({ message }) => message);
  expect(messages).toEqual(["bakelite is running", "full backup begins", "full backup stored"]);
});

test("a daemon that must not write beside the database says so and tries again", async () => {
  await using directory = await temporaryDirectory("daemon");
  createDatabase(directory.file("app.db"), "WAL");
  writeFileSync(directory.file(".bakelite"), "in the way");
  const configPath = configPathIn(directory.path);
  await writeFile(configPath, daemonConfig({ configPath, databases: [database(directory, "app")] }));
  const result = await runBakelite(program, ["daemon", "--config", configPath]);
  expect(result.status).toBe(1);
  expect(result.stderr).toContain(".bakelite");
  expect(result.stderr).toContain("hint:");
});

test("status files, the state directory and stored objects are for their owner only", async () => {
  await using directory = await temporaryDirectory("daemon");
  createDatabase(directory.file("app.db"), "WAL");
  await using daemon = await startDaemon(options(directory, [database(directory, "app")]));
  await daemon.untilStatus((status) => status.full_backup !== null, { what: "the first full backup" });
  await daemon.stop();
  const listing = Bun.spawn(["find", directory.file(".bakelite"), directory.file("replica"), "-printf", "%y %m %f\n"], {
    stdout: "pipe",
  });
  const lines = (await listing.stdout.text()).trim().split("\n");
  expect(lines.length).toBeGreaterThan(5);
  for (const line of lines) expect(line).toMatch(/^(d 700|f 600) /);
});

function database(directory: TemporaryDirectory, name: string): DaemonDatabase {
  return { name, path: directory.file(`${name}.db`), replicas: [directory.file("replica")] };
}

function options(directory: TemporaryDirectory, databases: readonly DaemonDatabase[]): DaemonOptions {
  return { configPath: configPathIn(directory.path), databases, program };
}

function createDatabase(path: string, mode: "WAL" | "DELETE"): void {
  using db = new Database(path, { create: true });
  db.run(`PRAGMA journal_mode=${mode}`);
  db.run("CREATE TABLE t(x)");
}

function convert(path: string, mode: "WAL"): void {
  using db = new Database(path);
  db.run(`PRAGMA journal_mode=${mode}`);
}

test("CURRENT is written anew at the next start when a crash kept it from naming the newest full backup", async () => {
  await using directory = await temporaryDirectory("daemon");
  createDatabase(directory.file("app.db"), "WAL");
  const current = directory.file("replica", "app", "CURRENT");
  {
    await using daemon = await startDaemon(options(directory, [database(directory, "app")]));
    await daemon.untilStatus((status) => status.full_backup !== null, { what: "the first full backup" });
    await eventually(() => existsSync(current), { what: "CURRENT" });
    await daemon.stop();
  }
  rmSync(current);
  await using daemon = await startDaemon(options(directory, [database(directory, "app")]));
  await eventually(() => existsSync(current), { what: "CURRENT to be written anew" });
  expect((await daemon.status())?.full_backups_by_reason ?? {}).toEqual({});
});
