import { Database } from "bun:sqlite";
import { readFileSync } from "node:fs";
import type { TemporaryDirectory } from "../support/temporary-directory.ts";
import type { Pages } from "./builder.ts";

/** A real database with one table `t(id, text)` of `rows` rows, in WAL mode and without a -wal beside it. */
export function makeDatabase(path: string, rows: number, text = "row"): void {
  using database = new Database(path);
  database.run("PRAGMA journal_mode = WAL");
  database.run("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, text TEXT)");
  database.run("CREATE INDEX IF NOT EXISTS t_text ON t(text)");
  const insert = database.prepare("INSERT INTO t(text) VALUES (?)");
  database.transaction(() => {
    for (let i = 0; i < rows; i++) insert.run(`${text} ${i} ${"x".repeat(200)}`);
  })();
  database.run("PRAGMA wal_checkpoint(TRUNCATE)");
}

/** The rows' texts without their padding. */
export function rowsOf(path: string): readonly string[] {
  using database = new Database(path);
  return database
    .query<{ text: string }, []>("SELECT text FROM t ORDER BY id")
    .all()
    .map(({ text }) => text.replace(/ x+$/, ""));
}

export function pagesOfFile(path: string, pageSizeBytes: number): Pages {
  const bytes = readFileSync(path);
  return Array.from(
    { length: bytes.length / pageSizeBytes },
    (_, i) => new Uint8Array(bytes.subarray(i * pageSizeBytes, (i + 1) * pageSizeBytes)),
  );
}

/** A database whose newest commits are in a -wal that nobody has open, as after a crash of the application. */
export async function makeDatabaseWithWal(directory: TemporaryDirectory, name: string): Promise<string> {
  const path = directory.file(name);
  const original = directory.file(`${name}.origin`);
  makeDatabase(original, 3, "in the file");
  using database = new Database(original);
  database.run("PRAGMA wal_autocheckpoint = 0");
  database.run("INSERT INTO t(text) VALUES ('only in the wal')");
  for (const suffix of ["", "-wal"]) await Bun.write(path + suffix, readFileSync(original + suffix));
  return path;
}
