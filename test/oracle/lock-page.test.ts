// deadline: 300 s
import { Database } from "bun:sqlite";
import { expect, test } from "bun:test";
import { statSync } from "node:fs";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";
import { configPathIn, runBakelite, startDaemon } from "./daemon-process.ts";

const GIB = 2 ** 30;
const TEST_MS = 140_000;

// The lock page is the one that holds byte 2^30: SQLite never uses it, so no state has it, whatever the page size.
for (const pageSizeBytes of [512, 4096, 65_536]) {
  test(
    `a database of ${pageSizeBytes}-byte pages that grows past 1 GiB is restored byte for byte, lock page included`,
    async () => {
      await using directory = await temporaryDirectory("lock-page");
      const path = directory.file("app.db");
      createJustBelow(path, pageSizeBytes);
      expect(statSync(path).size).toBeLessThan(GIB);
      const databases = [{ name: "app", path, replicas: [directory.file("replica")] }];
      await using daemon = await startDaemon({
        configPath: configPathIn(directory.path),
        databases,
        program: "executable",
      });
      const before = await daemon.untilStatus((status) => status.full_backup !== null, {
        what: "the first full backup",
        deadlineMs: 90_000,
      });
      {
        using db = new Database(path);
        db.run("PRAGMA busy_timeout=10000");
        // Over the boundary, then back below it and over it again.
        db.run("INSERT INTO rest(content) SELECT randomblob(1000000) FROM (VALUES (1), (2), (3), (4), (5), (6))");
        db.run("DELETE FROM rest WHERE id > 2");
        db.run("PRAGMA incremental_vacuum");
        db.run("INSERT INTO rest(content) SELECT randomblob(1000000) FROM (VALUES (1), (2), (3), (4), (5))");
      }
      await daemon.untilStatus((status) => (status.index ?? 0) > (before.index ?? 0) && status.lag_seconds === 0, {
        what: "the growth to be stored",
        deadlineMs: 30_000,
      });
      await daemon.stop();
      expect(daemon.log.filter(({ level }) => level === "warn" || level === "error")).toEqual([]);
      await expectSameBytes(directory, path, daemon.options.configPath);
    },
    TEST_MS,
  );
}

function createJustBelow(path: string, pageSizeBytes: number): void {
  using db = new Database(path, { create: true });
  for (const pragma of [`page_size=${pageSizeBytes}`, "auto_vacuum=INCREMENTAL", "journal_mode=OFF", "synchronous=OFF"])
    db.run(`PRAGMA ${pragma}`);
  db.run("CREATE TABLE big(content BLOB)");
  db.run("CREATE TABLE rest(id INTEGER PRIMARY KEY, content BLOB)");
  const size = () => (db.query("PRAGMA page_count").get() as { page_count: number }).page_count * pageSizeBytes;
  const share = pageSizeBytes === 512 ? 0.97 : 0.998;
  db.run("INSERT INTO big VALUES (zeroblob(?))", [Math.floor(GIB * share * 0.9)]);
  while (size() < GIB - 3_000_000) {
    const missing = GIB - 2_500_000 - size();
    db.run("INSERT INTO big VALUES (zeroblob(?))", [Math.max(100_000, Math.floor(missing * share * 0.98))]);
  }
  db.run("PRAGMA journal_mode=WAL");
}

async function expectSameBytes(directory: TemporaryDirectory, path: string, configPath: string): Promise<void> {
  {
    using db = new Database(path);
    db.run("PRAGMA wal_checkpoint(TRUNCATE)");
  }
  expect(statSync(path).size).toBeGreaterThan(GIB);
  const output = directory.file("restored.db");
  const args = ["restore", "--db", "app", "--output", output, "--config", configPath, "--integrity", "quick"];
  const result = await runBakelite("executable", args);
  expect(result.stderr).toBe("");
  expect(result.status).toBe(0);
  const cmp = Bun.spawn(["cmp", path, output], { stdout: "pipe", stderr: "pipe" });
  expect(await cmp.stdout.text()).toBe("");
  expect(await cmp.exited).toBe(0);
}
