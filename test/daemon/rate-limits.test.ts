import { Database } from "bun:sqlite";
import { expect, test } from "bun:test";
import { writeFile } from "node:fs/promises";
import { configPathIn, type DaemonOptions, daemonConfig, startDaemon } from "../oracle/daemon-process.ts";
import { seededRandom } from "../support/random.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";

const MIB = 2 ** 20;

test("SIGHUP lifts a rate limit for the upload that is under way, without a restart of the database", async () => {
  await using directory = await temporaryDirectory("rates");
  const path = directory.file("app.db");
  using db = new Database(path, { create: true });
  db.run("PRAGMA journal_mode=WAL");
  db.run("CREATE TABLE t(x)");
  db.run("INSERT INTO t VALUES (?)", [seededRandom(1).bytes(2 * MIB)]);
  const optionsWith = (limit: number): DaemonOptions => ({
    configPath: configPathIn(directory.path),
    program: "executable",
    databases: [
      {
        name: "app",
        path,
        replicas: [],
        destinations: [{ type: "file", path: directory.file("replica"), upload_rate_limit: limit }],
      },
    ],
  });
  // Beyond the burst of 64 KiB this would take half an hour.
  await using daemon = await startDaemon(optionsWith(1024));
  await daemon.untilSaid("full backup begins");
  const before = await daemon.untilStatus((status) => status.state === "snapshotting", { what: "the full backup" });
  expect(before.full_backup).toBeNull();
  await writeFile(daemon.options.configPath, daemonConfig(optionsWith(0)));
  daemon.signal("SIGHUP");
  await daemon.untilStatus((status) => status.full_backup !== null, { what: "its end", deadlineMs: 30_000 });
  await daemon.stop();
  const messages = daemon.log.map(({ message }) => message);
  expect(messages.filter((message) => message === "full backup begins")).toHaveLength(1);
  expect(messages).toContain("configuration reloaded");
});

test("a daemon whose upload is slowed down stops at once", async () => {
  await using directory = await temporaryDirectory("rates");
  const path = directory.file("app.db");
  using db = new Database(path, { create: true });
  db.run("PRAGMA journal_mode=WAL");
  db.run("CREATE TABLE t AS SELECT randomblob(300000) AS x");
  const destinations = [{ type: "file", path: directory.file("replica"), upload_rate_limit: 1 }];
  await using daemon = await startDaemon({
    configPath: configPathIn(directory.path),
    program: "executable",
    databases: [{ name: "app", path, replicas: [], destinations }],
  });
  await daemon.untilSaid("full backup begins");
  await daemon.stop();
});
