import { constants, Database, type SQLQueryBindings, type Statement } from "bun:sqlite";
import { copyFileSync, existsSync, mkdtempSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import type { Ack } from "./protocol.ts";
import {
  addToDigest,
  type Body,
  extraTableName,
  KEYS_PER_WRITER,
  linkHash,
  nameHash,
  parseExtraName,
  rowHash,
} from "./schema.ts";

export interface Grade {
  /** The newest commit that the file contains; 0 when it is from before the first. It contains all from 1 on. */
  readonly lastN: number;
  /** The writers' own clock just before that commit; null when there is none. */
  readonly lastCommitAtMs: number | null;
  readonly perWriterSeq: ReadonlyMap<number, number>;
  readonly commits: readonly GradedCommit[];
}

export interface GradedCommit {
  readonly n: number;
  readonly writer: number;
  readonly seq: number;
  readonly atMs: number;
  readonly seed: number;
}

export interface GradeRestoreOptions {
  readonly path: string;
  /** What the writers reported, in any order; they may have committed more than they could report. */
  readonly acks: readonly Ack[];
  /** The moment that was asked for, Unix milliseconds. */
  readonly targetMs?: number;
  /** The newest commit that was known to be stored when the restore was asked for (and is not after the target). */
  readonly storedFloorN?: number;
}

type SqlRow = Readonly<Record<string, unknown>>;

const READ_ONLY_URI = constants.SQLITE_OPEN_READONLY | constants.SQLITE_OPEN_URI;

/**
 * Reads a restored database, never one that is in use, and checks that it is exactly the state after some commit:
 * SQLite's integrity_check, every commit from 1 to the last in order and unchanged (their links), and for each writer
 * exactly the rows, extra tables and extra indexes that its last commit left. Throws an error that says what is wrong.
 * Leaves the file and its directory as they are; a `-wal` that is there is read with it, as an application would.
 */
export function gradeDatabase(path: string): Grade {
  using file = new RestoredFile(path);
  checkIntegrity(file);
  if (file.get("SELECT 1 AS one FROM sqlite_schema WHERE name = 'oracle_item_tag'") === null)
    return { lastN: 0, lastCommitAtMs: null, perWriterSeq: new Map(), commits: [] };
  const { commits, expected } = checkLog(file);
  checkParts(file, expected);
  return {
    lastN: commits.length,
    lastCommitAtMs: commits.at(-1)?.atMs ?? null,
    perWriterSeq: new Map([...expected].map(([writer, last]) => [writer, last.seq])),
    commits,
  };
}

/**
 * Grades the file and holds it against what the writers reported: each reported commit that it contains is at its
 * place, none began after `targetMs` (a commit is *certainly* after the target only if the writer had not yet begun
 * COMMIT at that moment), and nothing up to `storedFloorN` is missing.
 */
export function gradeRestore(options: GradeRestoreOptions): Grade {
  const { path, acks, targetMs, storedFloorN } = options;
  const grade = gradeDatabase(path);
  const fail = (what: string): never => {
    throw new GradeError(path, `${what} (last commit ${grade.lastN}, ${seedsOf(grade.commits)})`);
  };
  for (const ack of acks) {
    const commit = grade.commits[ack.n - 1];
    if (commit !== undefined && (commit.writer !== ack.writer || commit.seq !== ack.seq))
      fail(`commit ${ack.n} is ${nameOf(commit)} in the file, but ${nameOf(ack)} was told that it had made it`);
  }
  if (targetMs !== undefined) {
    const late = grade.commits.find((commit) => commit.atMs > targetMs);
    if (late !== undefined)
      fail(`commit ${late.n} of ${nameOf(late)} began ${late.atMs - targetMs} ms after the target ${targetMs}`);
  }
  if (storedFloorN !== undefined && grade.lastN < storedFloorN)
    fail(`commits ${grade.lastN + 1} to ${storedFloorN} were stored but are missing`);
  return grade;
}

/** Throws unless both files have the same schema, the same rows in every table, and the same header values. */
export function compareLogical(pathA: string, pathB: string): void {
  const [a, b] = [contentParts(pathA), contentParts(pathB)];
  for (const name of [...new Set([...a.keys(), ...b.keys()])].sort()) {
    const [inA, inB] = [a.get(name) ?? "absent", b.get(name) ?? "absent"];
    if (inA !== inB) throw new GradeError(pathA, `differs from ${pathB} in ${name}: ${inA} and ${inB}`);
  }
}

/** SHA-256 in hexadecimal over everything that `compareLogical` compares. */
export function contentDigest(path: string): string {
  const hasher = new Bun.CryptoHasher("sha256");
  for (const [name, value] of [...contentParts(path)].sort(([a], [b]) => (a < b ? -1 : 1)))
    hasher.update(`${name}=${value}\n`);
  return hasher.digest("hex");
}

export class GradeError extends Error {
  override readonly name = "GradeError";

  constructor(path: string, what: string) {
    super(`${path}: ${what}`);
  }
}

/** What a writer's last log row says of its rows. */
interface Expected {
  seq: number;
  parts: number;
  digest: number;
}

function checkIntegrity(file: RestoredFile): void {
  const problems = file.all("PRAGMA integrity_check(20)").map((row) => String(row["integrity_check"]));
  if (problems.length !== 1 || problems[0] !== "ok") file.fail(`integrity_check says: ${problems.join("; ")}`);
}

function checkLog(file: RestoredFile): {
  readonly commits: readonly GradedCommit[];
  readonly expected: Map<number, Expected>;
} {
  const commits: GradedCommit[] = [];
  const expected = new Map<number, Expected>();
  let link = 0;
  for (const row of file.rows("SELECT n, writer, seq, at_ms, parts, digest, seed, link FROM oracle_log ORDER BY n")) {
    const entry = {
      n: file.number(row, "n"),
      writer: file.number(row, "writer"),
      seq: file.number(row, "seq"),
      atMs: file.number(row, "at_ms"),
      parts: file.number(row, "parts"),
      digest: file.number(row, "digest"),
    };
    const seed = file.number(row, "seed");
    const where = `commit ${entry.n} of writer ${entry.writer} (seed ${seed})`;
    if (entry.n !== commits.length + 1)
      file.fail(`${where} follows commit ${commits.length}: the commits between are missing from oracle_log`);
    const previousSeq = expected.get(entry.writer)?.seq ?? 0;
    if (entry.seq !== previousSeq + 1)
      file.fail(`${where} has sequence number ${entry.seq}, but this writer's previous one is ${previousSeq}`);
    link = linkHash(link, entry);
    if (link !== file.number(row, "link"))
      file.fail(`${where} does not follow from the one before it: lost, changed or out of order`);
    expected.set(entry.writer, { seq: entry.seq, parts: entry.parts, digest: entry.digest });
    commits.push({ n: entry.n, writer: entry.writer, seq: entry.seq, atMs: entry.atMs, seed });
  }
  const global = file.get("SELECT n, link FROM oracle_global WHERE id = 1");
  if (global === null) return file.fail("oracle_global is empty");
  if (file.number(global, "n") !== commits.length || file.number(global, "link") !== link)
    file.fail(
      `oracle_global is at commit ${file.number(global, "n")}, oracle_log at ${commits.length} (${seedsOf(commits)})`,
    );
  return { commits, expected };
}

/** Recomputes every part's hash from what is in the file; the hash column only serves to name the row that is wrong. */
function checkParts(file: RestoredFile, expected: ReadonlyMap<number, Expected>): void {
  const found = new Map<number, { parts: number; digest: number }>();
  const add = (writer: number, hash: number): void => {
    const sum = found.get(writer) ?? { parts: 0, digest: 0 };
    found.set(writer, { parts: sum.parts + 1, digest: addToDigest(sum.digest, hash) });
  };
  for (const [key, hash] of file.hashedRows("oracle_item")) add(Math.floor(key / KEYS_PER_WRITER), hash);
  for (const row of file.all("SELECT name FROM sqlite_schema WHERE type IN ('table', 'index')")) {
    const extra = parseExtraName(String(row["name"]));
    if (extra === null) continue;
    add(extra.writer, nameHash(String(row["name"])));
    if (extra.kind === "table")
      for (const [, hash] of file.hashedRows(extraTableName(extra.writer, extra.k))) add(extra.writer, hash);
  }
  for (const writer of new Set([...expected.keys(), ...found.keys()])) {
    const should = expected.get(writer) ?? { seq: 0, parts: 0, digest: 0 };
    const is = found.get(writer) ?? { parts: 0, digest: 0 };
    if (is.parts !== should.parts)
      file.fail(
        `writer ${writer} has ${is.parts} rows, tables and indexes, but its commit ${should.seq} left ${should.parts}`,
      );
    if (is.digest !== should.digest)
      file.fail(`writer ${writer} has other rows, tables or indexes than its commit ${should.seq} left`);
  }
}

/** A database file that nobody writes, opened so that nothing about it changes. */
class RestoredFile implements Disposable {
  readonly #path: string;
  readonly #database: Database;
  readonly #cleanUp: () => void;

  /**
   * Without a `-wal` or `-journal` the file is opened as immutable: SQLite then makes no `-shm` beside it and takes no
   * lock. With one a copy of both is opened as an application would, so that frames that do not belong to the file are
   * not overlooked, and closing does not checkpoint them into it.
   */
  constructor(path: string) {
    this.#path = path;
    if (!existsSync(path)) this.fail("no such file");
    const companions = ["-wal", "-journal"].filter((suffix) => sizeOf(`${path}${suffix}`) > 0);
    try {
      if (companions.length === 0) {
        this.#database = new Database(`${pathToFileURL(path).href}?immutable=1`, READ_ONLY_URI);
        this.#cleanUp = () => {};
      } else {
        const directory = mkdtempSync(join(tmpdir(), "bakelite-grade-"));
        this.#cleanUp = () => rmSync(directory, { recursive: true, force: true });
        const copy = join(directory, "database");
        for (const suffix of ["", ...companions]) copyFileSync(`${path}${suffix}`, `${copy}${suffix}`);
        this.#database = new Database(copy, { readwrite: true, create: false });
      }
    } catch (error) {
      this.fail(`SQLite cannot open it: ${messageOf(error)}`);
    }
  }

  fail(what: string): never {
    throw new GradeError(this.#path, what);
  }

  all(sql: string, ...parameters: SQLQueryBindings[]): readonly SqlRow[] {
    return [...this.rows(sql, ...parameters)];
  }

  get(sql: string): SqlRow | null {
    return this.all(sql)[0] ?? null;
  }

  /** Row by row, so that a large table need not fit into memory. What SQLite finds wrong becomes a GradeError. */
  rows(sql: string, ...parameters: SQLQueryBindings[]): Generator<SqlRow, void> {
    return this.#iterate(sql, parameters, "numbers");
  }

  /** As `rows`, with integers as bigint, so that no two of them are rounded to the same number. */
  exactRows(sql: string): Generator<SqlRow, void> {
    return this.#iterate(sql, [], "bigints");
  }

  /** Key and recomputed hash of each row of a table of writers' rows. */
  *hashedRows(table: string): Generator<readonly [key: number, hash: number], void> {
    for (const row of this.rows(`SELECT key, seq, tag, body, hash FROM ${table} ORDER BY key`)) {
      const [key, seq, tag] = [this.number(row, "key"), this.number(row, "seq"), String(row["tag"])];
      const hash = rowHash({ table, key, seq, tag, body: row["body"] as Body });
      if (hash !== this.number(row, "hash"))
        this.fail(`row ${key} of ${table}, written by commit ${seq} of its writer, is not what was written`);
      yield [key, hash];
    }
  }

  number(row: SqlRow, column: string): number {
    const value = row[column];
    return typeof value === "number" ? value : this.fail(`column ${column} is not a number: ${String(value)}`);
  }

  [Symbol.dispose](): void {
    this.#database.close();
    this.#cleanUp();
  }

  *#iterate(sql: string, parameters: SQLQueryBindings[], integers: "numbers" | "bigints"): Generator<SqlRow, void> {
    let statement: Statement<SqlRow, SQLQueryBindings[]> | null = null;
    try {
      statement = this.#database.prepare<SqlRow, SQLQueryBindings[]>(sql);
      if (integers === "bigints") statement.safeIntegers(true);
      yield* statement.iterate(...parameters);
    } catch (error) {
      this.fail(`SQLite cannot answer ${JSON.stringify(sql)}: ${messageOf(error)}`);
    } finally {
      statement?.finalize();
    }
  }
}

/** A digest for each table, each header value, and the SQL of each object, by name. */
function contentParts(path: string): ReadonlyMap<string, string> {
  using file = new RestoredFile(path);
  const parts = new Map<string, string>();
  for (const pragma of ["page_size", "encoding", "user_version", "application_id", "auto_vacuum"])
    parts.set(`pragma ${pragma}`, String(file.get(`PRAGMA ${pragma}`)?.[pragma]));
  for (const row of file.all("SELECT type, name, sql FROM sqlite_schema")) {
    const [type, name, sql] = [String(row["type"]), String(row["name"]), String(row["sql"])];
    parts.set(`the schema of ${type} ${name}`, sql);
    // The rows of a virtual table are in its shadow tables.
    if (type === "table" && !sql.startsWith("CREATE VIRTUAL"))
      parts.set(`the rows of ${name}`, tableDigest(file, name));
  }
  return parts;
}

/** `<row count> rows, SHA-256 <hex>` over rowids, types and values in the order of the table's own B-tree. */
function tableDigest(file: RestoredFile, table: string): string {
  const isWithoutRowid =
    file.all("SELECT wr FROM pragma_table_list WHERE schema = 'main' AND name = ?", table)[0]?.["wr"] === 1;
  const columns = file.all("SELECT name FROM pragma_table_info(?)", table).map((row) => quote(String(row["name"])));
  const [list, order] = isWithoutRowid ? [columns, ""] : [[`rowid AS "rowid*"`, ...columns], " ORDER BY rowid"];
  const hasher = new Bun.CryptoHasher("sha256");
  let count = 0;
  for (const row of file.exactRows(`SELECT ${list.join(", ")} FROM ${quote(table)}${order}`)) {
    count += 1;
    for (const value of Object.values(row)) hashValue(hasher, value);
  }
  return `${count} rows, SHA-256 ${hasher.digest("hex")}`;
}

function hashValue(hasher: Bun.CryptoHasher, value: unknown): void {
  const type = value === null ? "null" : value instanceof Uint8Array ? "blob" : typeof value;
  const bytes = value instanceof Uint8Array ? value : Buffer.from(String(value));
  hasher.update(`${type} ${bytes.length}:`).update(bytes);
}

function quote(identifier: string): string {
  return `"${identifier.replaceAll('"', '""')}"`;
}

function sizeOf(path: string): number {
  return statSync(path, { throwIfNoEntry: false })?.size ?? 0;
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

function nameOf(commit: { readonly writer: number; readonly seq: number }): string {
  return `commit ${commit.seq} of writer ${commit.writer}`;
}

function seedsOf(commits: readonly GradedCommit[]): string {
  const seeds = new Set(commits.map((commit) => `writer ${commit.writer}: seed ${commit.seed}`));
  return seeds.size === 0 ? "no writer" : [...seeds].join(", ");
}
