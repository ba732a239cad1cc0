import { readFile } from "node:fs/promises";
import { pythonPath } from "./python.ts";
import { temporaryDirectory } from "./temporary-directory.ts";

export type JudgeEngine = "bun" | "python";

// Both programs open argv's database, checkpoint with TRUNCATE, and fail unless everything was backfilled.
const BUN_PROGRAM = `
import { Database } from "bun:sqlite";
const db = new Database(process.env.JUDGED_DATABASE, { readwrite: true, create: false });
db.run("PRAGMA wal_autocheckpoint=0");
const row = db.query("PRAGMA wal_checkpoint(TRUNCATE)").get();
if (row.busy !== 0) throw new Error("checkpoint is busy");
db.close();
`;
const PYTHON_PROGRAM = `
import os, sqlite3
db = sqlite3.connect(os.environ["JUDGED_DATABASE"], isolation_level=None)
db.execute("PRAGMA wal_autocheckpoint=0")
row = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
assert row[0] == 0, "checkpoint is busy"
db.close()
`;

/**
 * The bytes of the database file after SQLite's own TRUNCATE checkpoint of the committed frames in its WAL: the judge
 * of what following the WAL should have produced. Works on a copy of the database and its `-wal` that a child process
 * makes, so a caller that has the database open keeps its locks, and every engine asked must give the same bytes.
 * The database must be quiet: no commit and no checkpoint while this runs.
 */
export async function sqliteTruncateCheckpointCopy(
  databasePath: string,
  engines: readonly JudgeEngine[] = ["bun", "python"],
): Promise<Uint8Array> {
  const results: { readonly engine: JudgeEngine; readonly bytes: Uint8Array }[] = [];
  for (const engine of engines) {
    await using directory = await temporaryDirectory("judge");
    const copy = directory.file("database");
    await copyDatabase(databasePath, copy);
    const command = engine === "bun" ? [process.execPath, "-e", BUN_PROGRAM] : [pythonPath(), "-c", PYTHON_PROGRAM];
    await run(command, { JUDGED_DATABASE: copy });
    results.push({ engine, bytes: await readFile(copy) });
  }
  const [first, ...others] = results;
  if (first === undefined) throw new Error("no engine was asked");
  for (const other of others) {
    if (Buffer.compare(first.bytes, other.bytes) !== 0)
      throw new Error(
        `the engines ${first.engine} and ${other.engine} do not agree on the checkpoint of ${databasePath}`,
      );
  }
  return first.bytes;
}

/**
 * Copies a quiet database and its `-wal` (not the `-shm`, which SQLite rebuilds) in a child process: closing a
 * descriptor of the database here would drop the locks that this process may hold on it.
 */
export async function copyDatabase(databasePath: string, copyPath: string): Promise<void> {
  const script = 'cp -- "$1" "$2" && if [ -e "$1-wal" ]; then cp -- "$1-wal" "$2-wal"; fi';
  await run(["sh", "-c", script, "sh", databasePath, copyPath], {});
}

async function run(command: string[], environment: Readonly<Record<string, string>>): Promise<void> {
  const child = Bun.spawn(command, {
    env: { ...process.env, ...environment },
    stdin: "ignore",
    stdout: "ignore",
    stderr: "pipe",
    timeout: 120_000,
    killSignal: "SIGKILL",
  });
  const [message, status] = await Promise.all([child.stderr.text(), child.exited]);
  if (status !== 0) throw new Error(`${command[0]} ended with status ${status}: ${message.trim()}`);
}
