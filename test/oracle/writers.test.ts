import { expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { eventually } from "../support/eventually.ts";
import { lockSummary, procLocks } from "../support/proc-locks.ts";
import { withSeed } from "../support/random.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";
import { copyDatabase, sqliteTruncateCheckpointCopy } from "../support/truncate-checkpoint.ts";
import { type Grade, gradeDatabase, gradeRestore } from "./grade.ts";
import { allAcks, type StartWriterOptions, startWriter, type WriterProcess } from "./writer-process.ts";

const TIMEOUT_MS = 60_000;

test(
  "hostile and ordinary writers of both engines leave a database that the grader accepts",
  async () => {
    await withSeed(async (random) => {
      const report = await runTogether(2500, [
        { mode: "hostile", engine: "bun", seed: random.integer(1, 1e9), rate: 0 },
        { mode: "hostile", engine: "python", seed: random.integer(1, 1e9), rate: 0 },
        { mode: "normal", engine: "python", seed: random.integer(1, 1e9) },
        { mode: "reader", engine: "bun", seed: random.integer(1, 1e9), maxHoldMs: 500 },
      ]);
      expect([...report.grade.perWriterSeq.keys()].sort()).toEqual([1, 2, 3]);
      for (const statistics of report.statistics.slice(0, 2)) {
        expect(statistics["rollbacks"]).toBeGreaterThan(0);
        expect(Object.keys(statistics["hostile"] as object).length).toBeGreaterThan(4);
      }
      expect(report.statistics[3]?.["snapshots"]).toBeGreaterThan(3);
    });
  },
  TIMEOUT_MS,
);

test(
  "four flat-out writers number their commits without a gap",
  async () => {
    await withSeed(async (random) => {
      const options = Array.from({ length: 4 }, () => ({ mode: "flat-out", seed: random.integer(1, 1e9) }) as const);
      const { grade } = await runTogether(1000, options);
      expect(grade.perWriterSeq.size).toBe(4);
      expect(grade.lastN).toBeGreaterThan(500);
    });
  },
  TIMEOUT_MS,
);

test(
  "an exclusive writer that is alone holds the whole database for itself now and then",
  async () => {
    await using directory = await temporaryDirectory("oracle");
    const database = directory.file("app.db");
    await using writer = await startWriter({ database, id: 1, seed: 7, mode: "exclusive" });
    const locks = await eventually(
      () => procLocks(writer.pid, database).filter((lock) => lock.name === "shared" && lock.kind === "write")[0],
      {
        what: "an exclusive lock on the database",
      },
    );
    expect(locks.file).toBe("database");
    const statistics = await writer.stop();
    expect(statistics["exclusivePhases"]).toBeGreaterThan(0);
    expect(gradeRestore({ path: database, acks: writer.acks, storedFloorN: writer.acks.length }).lastN).toBe(
      writer.acks.length,
    );
  },
  TIMEOUT_MS,
);

for (const engine of ["bun", "python"] as const) {
  test(
    `a ${engine} writer obeys its commands`,
    async () => {
      await using directory = await temporaryDirectory("oracle");
      const database = directory.file("app.db");
      await using writer = await startWriter({
        database,
        id: 4,
        seed: 11,
        engine,
        startPaused: true,
        pageSizeBytes: 1024,
      });
      expect(writer.acks).toEqual([]);
      expect(lockSummary(procLocks(writer.pid, database))).toBe("database:shared(read) shm:dms(read)");

      await writer.burst(25);
      expect(writer.acks.map((ack) => ack.n)).toEqual(Array.from({ length: 25 }, (_, i) => i + 1));
      expect(writer.acks.every((ack) => ack.writer === 4 && ack.seq === ack.n && ack.beforeMs <= ack.afterMs)).toBe(
        true,
      );
      expect(await writer.sql("SELECT n, x'0aff' AS blob FROM oracle_global")).toEqual([{ n: 25, blob: "0aff" }]);
      expect(await writer.sql("PRAGMA page_size")).toEqual([{ page_size: 1024 }]);
      await expect(writer.sql("SELECT * FROM nowhere")).rejects.toThrow("no such table: nowhere");

      await writer.sql("BEGIN");
      await writer.sql("SELECT count(*) FROM oracle_log");
      expect(lockSummary(procLocks(writer.pid, database))).toMatch(
        /^database:shared\(read\) shm:read[1-4]\(read\) shm:dms\(read\)$/,
      );
      await writer.sql("COMMIT");

      expect(await writer.checkpoint("TRUNCATE")).toEqual({ busy: false, log: 0, checkpointed: 0 });
      await writer.disconnect();
      expect(existsSync(`${database}-wal`)).toBe(false);
      await writer.setRate(1000);
      await writer.resume();
      await writer.waitForAcks(40);
      await writer.stop();
      expect(gradeDatabase(database).lastN).toBe(writer.acks.length);
    },
    TIMEOUT_MS,
  );
}

test(
  "a writer that was killed leaves every commit that it reported, and its successor goes on counting",
  async () => {
    await withSeed(async (random) => {
      await using directory = await temporaryDirectory("oracle");
      const database = directory.file("app.db");
      const options = { database, id: 1, seed: random.seed, mode: "hostile", rate: 0 } as const;
      let reported = 0;
      for (const engine of ["bun", "python", "bun"] as const) {
        await using writer = await startWriter({ ...options, engine });
        await writer.waitForAcks(20);
        await writer.kill();
        const copy = directory.file(`after-${engine}-${reported}.db`);
        await copyDatabase(database, copy);
        const grade = gradeRestore({ path: copy, acks: writer.acks, storedFloorN: writer.lastAck?.n ?? 0 });
        expect(writer.acks[0]?.seq).toBeGreaterThan(reported);
        reported = grade.lastN;
      }
    });
  },
  TIMEOUT_MS,
);

test(
  "a parent that does not read for a while does not slow a writer down",
  async () => {
    await using directory = await temporaryDirectory("oracle");
    await using writer = await startWriter({ database: directory.file("app.db"), id: 1, seed: 3, mode: "flat-out" });
    await writer.waitForAcks(10);
    Bun.sleepSync(1000);
    await writer.pause();
    const pauses = writer.acks.slice(1).map((ack, i) => ack.beforeMs - (writer.acks[i]?.afterMs ?? 0));
    expect(Math.max(...pauses.slice(10))).toBeLessThan(500);
  },
  TIMEOUT_MS,
);

test(
  "a writer that cannot work says why",
  async () => {
    await using directory = await temporaryDirectory("oracle");
    const database = directory.file("notes.txt");
    await writeFile(database, "This is not a database. ".repeat(100));
    await expect(startWriter({ database, id: 1, seed: 1 })).rejects.toThrow("file is not a database");
    await expect(startWriter({ database, id: 1, seed: 1, engine: "python" })).rejects.toThrow("file is not a database");
  },
  TIMEOUT_MS,
);

/** Runs the writers side by side for a while, then grades what SQLite's own checkpoint makes of their database. */
async function runTogether(
  durationMs: number,
  options: readonly Omit<StartWriterOptions, "database" | "id">[],
): Promise<{ readonly grade: Grade; readonly statistics: readonly Awaited<ReturnType<WriterProcess["stop"]>>[] }> {
  await using directory = await temporaryDirectory("oracle");
  await using stack = new AsyncDisposableStack();
  const database = directory.file("with space and ü.db");
  const starting = options.map(async (each, i) => stack.use(await startWriter({ ...each, database, id: i + 1 })));
  const writers = await Promise.all(starting);
  const endMs = performance.now() + durationMs;
  await eventually(
    () =>
      performance.now() >= endMs &&
      writers.every((writer) => writer.spec.mode === "reader" || writer.acks.length >= 20),
    {
      what: "20 commits of each writer",
      deadlineMs: durationMs + 15_000,
    },
  );
  await Promise.all(writers.map((writer) => writer.pause()));
  const acks = allAcks(writers);
  const path = directory.file("checkpointed ?#ü.db");
  await writeFile(path, await sqliteTruncateCheckpointCopy(database));
  const grade = gradeRestore({ path, acks, storedFloorN: acks.length });
  expect(grade.lastN).toBe(acks.length);
  const statistics: Awaited<ReturnType<WriterProcess["stop"]>>[] = [];
  for (const writer of writers) statistics.push(await writer.stop());
  return { grade, statistics };
}
