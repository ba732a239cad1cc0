import { startWriter, type WriterProcess } from "../oracle/writer-process.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";

/**
 * One transaction that SQLite 3.40 commits in frames whose salts and checksums are zeros, the commit frame too: a page
 * that goes into the WAL twice, then a rollback to before its first frame, and fewer frames than that until the commit.
 * See writer.py for what the engine forgets there.
 */
const STATEMENTS = [
  "PRAGMA cache_size=10",
  "CREATE TABLE spilled (id INTEGER PRIMARY KEY, body)",
  "INSERT INTO spilled VALUES (1, randomblob(3000))",
  "BEGIN IMMEDIATE",
  // Without free pages, what is inserted goes to new ones, which a rollback need not restore.
  "PRAGMA incremental_vacuum",
  "SAVEPOINT s",
  "WITH RECURSIVE c (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM c WHERE i < 60) INSERT INTO spilled SELECT NULL, randomblob(3000) FROM c",
  "UPDATE spilled SET body = randomblob(3000) WHERE id BETWEEN 30 AND 50",
  "ROLLBACK TO s",
  "UPDATE spilled SET body = randomblob(3000) WHERE id = 1",
  "COMMIT",
] as const;

/** Lets a Python writer that is paused make that transaction. */
export async function commitWithoutChecksums(writer: WriterProcess): Promise<void> {
  for (const sql of STATEMENTS) await writer.sql(sql);
}

/** The Python writer probes its engine when it is told to keep away from what that engine does wrong. */
export async function pythonLeavesBadChecksums(): Promise<boolean> {
  await using directory = await temporaryDirectory("probe");
  await using writer = await startWriter({
    database: directory.file("probe.db"),
    id: 1,
    seed: 1,
    engine: "python",
    startPaused: true,
    savepointSpills: "when-sound",
  });
  return writer.ready?.["spillsInSavepoints"] === false;
}
