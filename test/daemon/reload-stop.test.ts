import { Database } from "bun:sqlite";
import { expect, test } from "bun:test";
import { writeFile } from "node:fs/promises";
import { loadConfig } from "../../src/config/load.ts";
import { Supervisor } from "../../src/daemon/supervisor.ts";
import { statePaths } from "../../src/state/layout.ts";
import { readStatus } from "../../src/state/status.ts";
import { systemClock } from "../../src/util/clock.ts";
import { silentLogger } from "../../src/util/logger.ts";
import { configPathIn, daemonConfig, runBakelite } from "../oracle/daemon-process.ts";
import { startWriter } from "../oracle/writer-process.ts";
import { eventually, withDeadline } from "../support/eventually.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";

test("what is committed between a reload's stop and the signal to end is shipped all the same", async () => {
  await using directory = await temporaryDirectory("reload");
  const configPath = configPathIn(directory.path);
  const databases = ["one", "two"].map((name) => ({
    name,
    path: directory.file(`${name}.db`),
    replicas: [directory.file("replica")],
  }));
  const configWith = async (debounce: string) => {
    await writeFile(configPath, daemonConfig({ configPath, databases, settings: { debounce } }));
    return await loadConfig(configPath, {});
  };
  await using one = await startWriter({ database: directory.file("one.db"), id: 1, seed: 1, startPaused: true });
  await using two = await startWriter({ database: directory.file("two.db"), id: 2, seed: 2, startPaused: true });
  await Promise.all([one.burst(3), two.burst(3)]);
  const supervisor = new Supervisor({
    clock: systemClock,
    log: silentLogger,
    takeOver: false,
    maxConcurrentSnapshots: 2,
  });
  const before = await configWith("10ms");
  await supervisor.start(before.databases);
  const signal = new AbortController();
  const running = supervisor.run(signal.signal);
  await eventually(() => supervisor.replicators.every(({ known }) => known.fullBackup !== null), {
    what: "backups",
    deadlineMs: 30_000,
  });

  // The second one keeps the reload waiting when the first one is stopped already.
  const [, second] = supervisor.replicators;
  if (second === undefined) throw new Error("two databases are followed");
  const [reached, passed] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
  const { close } = second;
  second.close = async () => {
    reached.resolve();
    await passed.promise;
    await close.call(second);
  };
  const after = await configWith("20ms");
  const reloading = supervisor.reload(after, after.databases, 2);
  await withDeadline(reached.promise, { what: "the reload to stop both" });
  await one.burst(3);
  signal.abort();
  passed.resolve();
  await withDeadline(Promise.all([reloading, running]), { what: "the end", deadlineMs: 15_000 });

  const status = await readStatus(statePaths(directory.file("one.db"), "one").status);
  expect(status).toMatchObject({ outcome: "read", value: { state: "stopped", detail: null } });
  const restored = directory.file("restored.db");
  const result = await runBakelite("executable", [
    ...["restore", "--db", "one", "--output", restored, "--config", configPath],
  ]);
  expect(result).toMatchObject({ status: 0, stderr: "" });
  using db = new Database(restored, { readonly: true });
  expect(db.query("SELECT count(*) AS n FROM oracle_log").get()).toEqual({ n: one.acks.length });
});
