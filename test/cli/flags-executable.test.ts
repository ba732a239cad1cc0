import { Database } from "bun:sqlite";
import { expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { configPathIn, daemonConfig, runBakelite, startDaemon } from "../oracle/daemon-process.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";

function options(directory: TemporaryDirectory, names: readonly string[]) {
  const databases = names.map((name) => ({
    name,
    path: directory.file(`${name}.db`),
    replicas: [directory.file("replica")],
  }));
  return { configPath: configPathIn(directory.path), databases, program: "executable" as const };
}

function createDatabase(path: string): void {
  using db = new Database(path);
  db.run("PRAGMA journal_mode = WAL");
  db.run("CREATE TABLE t (x)");
  db.run("INSERT INTO t VALUES (1)");
}

test("daemon --max-concurrent-snapshots 1 takes the first full backups one after the other", async () => {
  await using directory = await temporaryDirectory("flags");
  const names = ["a", "b", "c", "d"];
  for (const name of names) createDatabase(directory.file(`${name}.db`));
  await using daemon = await startDaemon({
    ...options(directory, names),
    extraArguments: ["--max-concurrent-snapshots", "1"],
  });
  for (const database of names)
    await daemon.untilStatus(({ full_backup }) => full_backup !== null, { what: "a full backup", database });
  await daemon.stop();
  const order = daemon.log.filter(({ message }) => message.startsWith("full backup")).map(({ message }) => message);
  expect(order).toEqual(names.flatMap(() => ["full backup begins", "full backup stored"]));
});

test("daemon --take-over goes on from what a writer that will not come back has stored", async () => {
  await using directory = await temporaryDirectory("flags");
  createDatabase(directory.file("app.db"));
  await using daemon = await startDaemon(options(directory, ["app"]));
  await daemon.untilStatus(({ full_backup }) => full_backup !== null, { what: "a full backup" });
  await daemon.stop();
  await using second = await startDaemon({ ...options(directory, ["app"]), extraArguments: ["--take-over"] });
  await second.untilStatus(({ state }) => state === "live", { what: "live" });
  await second.stop();
  expect(second.log.filter(({ level }) => level === "error")).toEqual([]);
});

test("restore --if-db-not-exists --if-replica-exists is the line before an application's start, at every boot", async () => {
  await using directory = await temporaryDirectory("flags");
  const configPath = configPathIn(directory.path);
  writeFileSync(configPath, daemonConfig(options(directory, ["app"])));
  const boot = ["restore", "--db", "app", "--if-db-not-exists", "--if-replica-exists", "-c", configPath];
  const nothing = "nothing to restore for app: ";
  expect(await runBakelite("executable", boot)).toEqual({
    status: 0,
    stdout: `${nothing}nothing has been backed up yet\n`,
    stderr: "",
  });
  createDatabase(directory.file("app.db"));
  expect(await runBakelite("executable", boot)).toEqual({
    status: 0,
    stdout: `${nothing}${directory.file("app.db")} exists\n`,
    stderr: "",
  });
});
