import { Database } from "bun:sqlite";
import { afterAll, beforeAll, expect, test } from "bun:test";
import { copyFileSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { withSeed } from "../support/random.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";
import { sqliteTruncateCheckpointCopy } from "../support/truncate-checkpoint.ts";
import { compareLogical, contentDigest, type GradeRestoreOptions, gradeDatabase, gradeRestore } from "./grade.ts";
import type { Ack } from "./protocol.ts";
import { allAcks, startWriter } from "./writer-process.ts";

const PAGE_SIZE_BYTES = 1024;

/** Two states of one database, each as SQLite's own checkpoint leaves it, and the commits that lead to them. */
interface History {
  readonly older: string;
  readonly newer: string;
  readonly olderAcks: readonly Ack[];
  readonly acks: readonly Ack[];
}

let directory: TemporaryDirectory;
let history: History;
let copyCount = 0;

beforeAll(async () => {
  directory = await temporaryDirectory("grade");
  history = await withSeed(async (random) => {
    const database = directory.file("app.db");
    const common = { database, pageSizeBytes: PAGE_SIZE_BYTES, startPaused: true, targetBytes: 300_000 };
    await using a = await startWriter({ ...common, id: 1, seed: random.integer(1, 1e9) });
    await using b = await startWriter({ ...common, id: 2, seed: random.integer(1, 1e9), engine: "python" });
    for (let i = 0; i < 10; i++) for (const writer of [a, b]) await writer.burst(10);
    const olderAcks = allAcks([a, b]);
    const older = directory.file("older.db");
    writeFileSync(older, await sqliteTruncateCheckpointCopy(database));
    for (let i = 0; i < 10; i++) for (const writer of [a, b]) await writer.burst(3);
    const newer = directory.file("newer.db");
    writeFileSync(newer, await sqliteTruncateCheckpointCopy(database));
    return { older, newer, olderAcks, acks: allAcks([a, b]) };
  });
});

afterAll(async () => {
  await directory[Symbol.asyncDispose]();
});

test("an untouched copy is accepted and nothing is left beside it", () => {
  const path = copyOf(history.newer);
  const before = readdirSync(directory.path);
  const grade = gradeRestore({ path, acks: history.acks, storedFloorN: history.acks.length, targetMs: Date.now() });
  expect(grade.lastN).toBe(history.acks.length);
  expect(grade.lastCommitAtMs).toBe(history.acks.at(-1)?.beforeMs ?? null);
  expect([...grade.perWriterSeq]).toEqual([
    [1, 130],
    [2, 130],
  ]);
  expect(readdirSync(directory.path)).toEqual(before);
  expect(readFileSync(path).equals(readFileSync(history.newer))).toBe(true);
});

test("a database from before the first commit is graded as commit 0", () => {
  const path = directory.file("empty.db");
  writeFileSync(path, "");
  expect(gradeDatabase(path).lastN).toBe(0);
  expect(() => gradeRestore({ path, acks: [], storedFloorN: 1 })).toThrow("commits 1 to 1 were stored but are missing");
});

test("a lost commit is noticed", () => {
  expect(() => gradeMutated("DELETE FROM oracle_log WHERE n = 57")).toThrow("missing from oracle_log");
  expect(() => gradeMutated("DELETE FROM oracle_log WHERE n = (SELECT max(n) FROM oracle_log)")).toThrow(
    "oracle_global is at commit 260",
  );
  expect(() => gradeMutated("UPDATE oracle_global SET n = n - 1")).toThrow("oracle_global is at commit 259");
  // All others moved up, so that neither sequence has a gap: the links still know.
  expect(() =>
    gradeMutated(
      "DELETE FROM oracle_log WHERE n = 260",
      "UPDATE oracle_global SET n = 259, link = (SELECT link FROM oracle_log WHERE n = 259)",
    ),
  ).toThrow(/writer [12]/);
  expect(() => gradeRestore({ path: history.older, acks: history.acks, storedFloorN: 201 })).toThrow(
    "commits 201 to 201 were stored but are missing",
  );
});

test("commits in another order are noticed", () => {
  const swap = (a: number, b: number): string[] => [
    `UPDATE oracle_log SET n = -1 WHERE n = ${a}`,
    `UPDATE oracle_log SET n = ${a} WHERE n = ${b}`,
    `UPDATE oracle_log SET n = ${b} WHERE n = -1`,
  ];
  const otherWriters = history.acks.findIndex((ack, i) => ack.writer !== history.acks[i + 1]?.writer) + 1;
  expect(() => gradeMutated(...swap(otherWriters, otherWriters + 1))).toThrow("lost, changed or out of order");
  expect(() => gradeMutated(...swap(3, 4))).toThrow("sequence number");
  const acks = history.acks.map((ack) => (ack.n === 30 ? { ...ack, seq: ack.seq + 1 } : ack));
  expect(() => gradeRestore({ path: history.newer, acks })).toThrow("commit 30 is commit");
});

test("a missing, added or changed row is noticed", () => {
  const someRow = "(SELECT key FROM oracle_item WHERE body IS NOT NULL ORDER BY tag LIMIT 1)";
  expect(() => gradeMutated(`DELETE FROM oracle_item WHERE key = ${someRow}`)).toThrow(/writer [12] has \d+ rows/);
  expect(() =>
    gradeMutated(
      `INSERT INTO oracle_item SELECT key + 8589934590, seq, tag, body, hash FROM oracle_item WHERE key = ${someRow}`,
    ),
  ).toThrow("is not what was written");
  expect(() => gradeMutated(`UPDATE oracle_item SET body = body || 'x' WHERE key = ${someRow}`)).toThrow(
    "is not what was written",
  );
  expect(() => gradeMutated(`UPDATE oracle_item SET tag = tag || 'x', hash = hash WHERE key = ${someRow}`)).toThrow(
    "is not what was written",
  );
  // A whole row as it was before: every hash in it is right, only the writer's digest knows.
  expect(() =>
    gradeMutated(
      `ATTACH '${history.older}' AS older`,
      `REPLACE INTO main.oracle_item SELECT o.* FROM older.oracle_item o JOIN main.oracle_item n USING (key) WHERE o.seq <> n.seq LIMIT 1`,
    ),
  ).toThrow(/writer [12] has other rows/);
});

test("a lost or added table or index is noticed", () => {
  expect(() => gradeMutated("CREATE TABLE oracle_x_1_999999 (key INTEGER PRIMARY KEY, seq, tag, body, hash)")).toThrow(
    "writer 1 has",
  );
  expect(() => gradeMutated("CREATE INDEX oracle_ix_2_999999 ON oracle_item (seq)")).toThrow("writer 2 has");
});

test("a page from an older state is noticed, unless the database means the same with it", async () => {
  await withSeed((random) => {
    const [older, newer] = [readFileSync(history.older), readFileSync(history.newer)];
    const meaning = contentDigest(history.newer);
    const used = usedPages(history.newer);
    const changed = changedPages(older, newer).filter((page) => used.has(page));
    const tried = changed.length <= 60 ? changed : Array.from({ length: 60 }, () => random.pick(changed));
    let noticed = 0;
    for (const page of tried) {
      const torn = Buffer.from(newer);
      older.copy(torn, page * PAGE_SIZE_BYTES, page * PAGE_SIZE_BYTES, (page + 1) * PAGE_SIZE_BYTES);
      const path = directory.file("torn.db");
      writeFileSync(path, torn);
      if (isRefused({ path, acks: history.acks, storedFloorN: history.acks.length })) noticed += 1;
      else expect(`page ${page + 1}: ${contentDigest(path)}`).toBe(`page ${page + 1}: ${meaning}`);
    }
    expect(noticed).toBeGreaterThan(tried.length * 0.6);
  });
});

test("half of the pages from an older state are noticed", () => {
  const [older, newer] = [readFileSync(history.older), readFileSync(history.newer)];
  const torn = Buffer.from(newer);
  older.copy(torn, 0, 0, Math.floor(older.length / 2));
  const path = directory.file("half.db");
  writeFileSync(path, torn);
  expect(() => gradeDatabase(path)).toThrow(path);
});

test("a cut file is noticed", () => {
  const path = directory.file("cut.db");
  const newer = readFileSync(history.newer);
  writeFileSync(path, newer.subarray(0, newer.length - PAGE_SIZE_BYTES));
  expect(() => gradeDatabase(path)).toThrow(path);
  expect(() => gradeDatabase(directory.file("nowhere.db"))).toThrow("no such file");
});

test("a commit after the target is noticed, one that may have come before it is not", () => {
  const last = history.olderAcks.at(-1);
  if (last === undefined) throw new Error("the history is empty");
  const options = { path: history.older, acks: history.acks };
  expect(gradeRestore({ ...options, targetMs: last.beforeMs }).lastN).toBe(last.n);
  const earlier = history.olderAcks.findLast((ack) => ack.beforeMs < last.beforeMs);
  expect(() => gradeRestore({ ...options, targetMs: earlier?.beforeMs ?? 0 })).toThrow("ms after the target");
});

test("a WAL that lies beside the file is read, and neither is changed", async () => {
  const path = copyOf(history.older);
  const database = directory.file("app.db");
  copyFileSync(`${database}-wal`, `${path}-wal`);
  const before = readFileSync(path);
  // What comes of another state's WAL depends on how far it reaches back: the newer state, or a mixture of both.
  expect(() =>
    gradeRestore({
      path,
      acks: history.olderAcks,
      storedFloorN: 200,
      targetMs: history.olderAcks.at(-1)?.beforeMs ?? 0,
    }),
  ).toThrow();
  expect(readFileSync(path).equals(before)).toBe(true);
});

test("logical comparison sees rows, schema and header values, and nothing else", () => {
  const same = copyOf(history.newer);
  change(same, "VACUUM");
  expect(readFileSync(same).equals(readFileSync(history.newer))).toBe(false);
  compareLogical(same, history.newer);
  expect(contentDigest(same)).toBe(contentDigest(history.newer));
  for (const [sql, difference] of [
    ["UPDATE oracle_log SET seed = seed + 1 WHERE n = 9", "the rows of oracle_log"],
    ["CREATE VIEW v AS SELECT 1", "the schema of view v"],
    ["PRAGMA user_version = 5", "pragma user_version"],
    ['CREATE TABLE "a\'b""c" (rowid TEXT, x); INSERT INTO "a\'b""c" VALUES (1, 2)', "the rows of a'b\"c"],
  ] as const) {
    const other = copyOf(history.newer);
    change(other, sql);
    expect(() => compareLogical(other, history.newer)).toThrow(difference);
    expect(contentDigest(other)).not.toBe(contentDigest(history.newer));
  }
});

function copyOf(path: string): string {
  copyCount += 1;
  const copy = directory.file(`copy-${copyCount}.db`);
  copyFileSync(path, copy);
  return copy;
}

function gradeMutated(...statements: readonly string[]): void {
  const path = copyOf(history.newer);
  change(path, ...statements);
  gradeRestore({ path, acks: history.acks });
}

function change(path: string, ...statements: readonly string[]): void {
  const database = new Database(path);
  for (const sql of statements) database.run(sql);
  // Leaves WAL mode, so that everything is in the file itself.
  database.run("PRAGMA journal_mode=DELETE");
  database.close(true);
}

/** Numbers from 0 of the pages that exist in both and differ. */
function changedPages(older: Buffer, newer: Buffer): readonly number[] {
  const pages: number[] = [];
  for (let start = 0; start + PAGE_SIZE_BYTES <= Math.min(older.length, newer.length); start += PAGE_SIZE_BYTES) {
    const end = start + PAGE_SIZE_BYTES;
    if (Buffer.compare(older.subarray(start, end), newer.subarray(start, end)) !== 0)
      pages.push(start / PAGE_SIZE_BYTES);
  }
  return pages;
}

/** Numbers from 0 of the pages that are not free. */
function usedPages(path: string): ReadonlySet<number> {
  using database = new Database(path, { readonly: true });
  const rows = database.prepare<{ pageno: number }, []>("SELECT DISTINCT pageno FROM dbstat").all();
  return new Set(rows.map((row) => row.pageno - 1));
}

function isRefused(options: GradeRestoreOptions): boolean {
  try {
    gradeRestore(options);
    return false;
  } catch {
    return true;
  }
}
