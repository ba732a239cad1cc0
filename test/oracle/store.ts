import { Database, type SQLQueryBindings, type Statement } from "bun:sqlite";
import type { Random } from "../support/random.ts";
import type { Ack, Json, WriterSpec } from "./protocol.ts";
import {
  addToDigest,
  type Body,
  extraIndexName,
  extraIndexSql,
  extraTableName,
  extraTableSql,
  itemKey,
  keyBase,
  linkHash,
  nameHash,
  parseExtraName,
  removeFromDigest,
  rowHash,
  SCHEMA,
} from "./schema.ts";

/** What a writer knows of its own part of the database; put back when a transaction or savepoint is rolled back. */
interface WriterState {
  seq: number;
  parts: number;
  digest: number;
  nextId: number;
  bytes: number;
  tables: readonly number[];
  indexes: readonly number[];
}

type SqlRow = Readonly<Record<string, unknown>>;
export type Pause = () => Promise<void>;

/** One wait inside SQLite. Short, so that between two of them acknowledgements go out and commands come in. */
export const BUSY_SLICE_MS = 25;

export function isBusy(error: unknown): boolean {
  const code = (error as { readonly code?: unknown } | null)?.code;
  return typeof code === "string" && (code.startsWith("SQLITE_BUSY") || code.startsWith("SQLITE_LOCKED"));
}

/** A connection with its prepared statements, all of which are finalized by `close`: SQLite then truly lets go. */
export class Connection {
  readonly #database: Database;
  readonly #statements = new Map<string, Statement<SqlRow, SQLQueryBindings[]>>();

  constructor(path: string) {
    this.#database = new Database(path, { readwrite: true, create: true });
    this.run(`PRAGMA busy_timeout=${BUSY_SLICE_MS}`);
  }

  get inTransaction(): boolean {
    return this.#database.inTransaction;
  }

  run(sql: string, ...parameters: SQLQueryBindings[]): void {
    this.#prepare(sql).run(...parameters);
  }

  get(sql: string, ...parameters: SQLQueryBindings[]): SqlRow | null {
    return this.#prepare(sql).all(...parameters)[0] ?? null;
  }

  all(sql: string, ...parameters: SQLQueryBindings[]): readonly SqlRow[] {
    return this.#prepare(sql).all(...parameters);
  }

  /** For statements that run once: schema changes, pragmas, whatever a command asks for. */
  once(sql: string, ...parameters: SQLQueryBindings[]): readonly SqlRow[] {
    const statement = this.#database.prepare<SqlRow, SQLQueryBindings[]>(sql);
    try {
      return statement.all(...parameters);
    } finally {
      statement.finalize();
    }
  }

  close(): void {
    for (const statement of this.#statements.values()) statement.finalize();
    this.#statements.clear();
    this.#database.close(true);
  }

  #prepare(sql: string): Statement<SqlRow, SQLQueryBindings[]> {
    let statement = this.#statements.get(sql);
    if (statement === undefined) {
      statement = this.#database.prepare<SqlRow, SQLQueryBindings[]>(sql);
      this.#statements.set(sql, statement);
    }
    return statement;
  }
}

/** The writer's side of the database: numbered transactions over rows, extra tables and indexes that it owns. */
export class OracleStore {
  readonly spec: WriterSpec;
  readonly #random: Random;
  readonly #pause: Pause;
  readonly #blobPool: Uint8Array;
  readonly #textPool: string;
  #connection: Connection | null = null;
  #state: WriterState = { seq: 0, parts: 0, digest: 0, nextId: 0, bytes: 0, tables: [], indexes: [] };

  private constructor(spec: WriterSpec, random: Random, pause: Pause) {
    this.spec = spec;
    this.#random = random;
    this.#pause = pause;
    const pool = random.fork("bodies").bytes(1024 * 1024);
    this.#blobPool = pool;
    this.#textPool = Buffer.from(pool.subarray(0, 256 * 1024)).toString("base64");
  }

  /** Opens the database, creates the shared tables unless they exist, and takes up this writer's numbering. */
  static async open(spec: WriterSpec, random: Random, pause: Pause): Promise<OracleStore> {
    const store = new OracleStore(spec, random, pause);
    await store.connect();
    return store;
  }

  get connection(): Connection {
    if (this.#connection === null) throw new Error("the writer is not connected");
    return this.#connection;
  }

  get connected(): boolean {
    return this.#connection !== null;
  }

  get contentBytes(): number {
    return this.#state.bytes;
  }

  get extraTables(): readonly number[] {
    return this.#state.tables;
  }

  get extraIndexes(): readonly number[] {
    return this.#state.indexes;
  }

  /**
   * Connects, creates the shared tables unless they exist, and reads where this writer's numbering stands. With
   * `exclusive` the connection asks for locking_mode=EXCLUSIVE before it touches the database, so that its WAL index
   * is in its own memory and there is no `-shm`; that fails with SQLITE_BUSY while anybody else is connected.
   */
  async connect(options: { readonly exclusive?: boolean; readonly timeoutMs?: number } = {}): Promise<void> {
    if (this.#connection !== null) return;
    const connection = new Connection(this.spec.database);
    try {
      // Nearly each of these can meet a lock, the pragmas too: they read the schema, and two processes that switch a
      // new file to WAL at once both get SQLITE_BUSY without waiting for one another.
      this.#state = await this.retryBusy(() => {
        configure(connection, this.spec, options.exclusive === true);
        createSchema(connection);
        return readState(connection, this.spec.id);
      }, options.timeoutMs);
    } catch (error) {
      connection.close();
      throw error;
    }
    this.#connection = connection;
  }

  disconnect(): void {
    this.#connection?.close();
    this.#connection = null;
  }

  /** Repeats `action` while it is busy, letting acknowledgements out in between, until the busy timeout has passed. */
  async retryBusy<T>(action: () => T, timeoutMs = this.spec.busyTimeoutMs): Promise<T> {
    const endMs = performance.now() + timeoutMs;
    for (;;) {
      try {
        return action();
      } catch (error) {
        if (!isBusy(error) || performance.now() >= endMs) throw error;
      }
      await this.#pause();
    }
  }

  /** One numbered transaction: all that `work` does and its log row, or nothing of it. */
  async commit(work: () => void): Promise<Ack> {
    const { connection, spec } = this;
    await this.retryBusy(() => connection.run("BEGIN IMMEDIATE"));
    const saved = { ...this.#state };
    try {
      work();
      this.#state.seq += 1;
      const { n, beforeMs } = this.#writeLog();
      connection.run("COMMIT");
      return { n, writer: spec.id, seq: this.#state.seq, beforeMs, afterMs: Date.now() };
    } catch (error) {
      this.#state = saved;
      if (connection.inTransaction) connection.run("ROLLBACK");
      throw error;
    }
  }

  /** Does `work` in a transaction and rolls all of it back. */
  async rollBack(work: () => void): Promise<void> {
    const { connection } = this;
    await this.retryBusy(() => connection.run("BEGIN IMMEDIATE"));
    const saved = { ...this.#state };
    try {
      work();
    } finally {
      this.#state = saved;
      connection.run("ROLLBACK");
    }
  }

  /** Does `work` inside a savepoint of the transaction that is open, then keeps it or rolls it back. */
  savepoint(outcome: "keep" | "roll back", work: () => void): void {
    const { connection } = this;
    connection.run("SAVEPOINT step");
    const saved = { ...this.#state };
    work();
    if (outcome === "roll back") {
      connection.run("ROLLBACK TO step");
      this.#state = saved;
    }
    connection.run("RELEASE step");
  }

  insertItem(sizeBytes: number): void {
    const key = itemKey(this.spec.id, this.#nextId());
    this.#insert("oracle_item", key, sizeBytes);
  }

  /** Gives a random row of this writer a new body, tag and hash; false when there is none. */
  updateItem(sizeBytes: number): boolean {
    const row = this.#randomItem();
    if (row === null) return false;
    this.#remove(row);
    const { tag, body, hash } = this.#content("oracle_item", row.key, sizeBytes);
    this.connection.run(
      "UPDATE oracle_item SET seq = ?, tag = ?, body = ?, hash = ? WHERE key = ?",
      this.#state.seq + 1,
      tag,
      body,
      hash,
      row.key,
    );
    this.#add(hash, bodyLength(body));
    return true;
  }

  deleteItem(): boolean {
    const row = this.#randomItem();
    if (row === null) return false;
    this.connection.run("DELETE FROM oracle_item WHERE key = ?", row.key);
    this.#remove(row);
    return true;
  }

  /** Deletes this fraction of this writer's rows, those with the smallest keys. */
  deleteMany(fraction: number): void {
    const [from, to] = [keyBase(this.spec.id), keyBase(this.spec.id + 1)];
    const rows = this.connection.all("SELECT count(*) AS count FROM oracle_item WHERE key >= ? AND key < ?", from, to);
    const count = Math.floor(numberOf(rows[0], "count") * fraction);
    const deleted = this.connection.all(
      `DELETE FROM oracle_item WHERE key IN
         (SELECT key FROM oracle_item WHERE key >= ? AND key < ? ORDER BY key LIMIT ?)
       RETURNING hash, coalesce(length(body), 0) AS bytes`,
      from,
      to,
      count,
    );
    for (const row of deleted) this.#remove({ hash: numberOf(row, "hash"), bytes: numberOf(row, "bytes") });
  }

  createTable(): number {
    const k = this.#nextId();
    this.connection.once(extraTableSql(this.spec.id, k));
    this.#state.tables = [...this.#state.tables, k];
    this.#add(nameHash(extraTableName(this.spec.id, k)), 0);
    return k;
  }

  insertExtra(k: number, sizeBytes: number): void {
    this.#insert(extraTableName(this.spec.id, k), this.#nextId(), sizeBytes);
  }

  dropTable(k: number): void {
    const table = extraTableName(this.spec.id, k);
    for (const row of this.connection.once(`SELECT hash, coalesce(length(body), 0) AS bytes FROM ${table}`))
      this.#remove({ hash: numberOf(row, "hash"), bytes: numberOf(row, "bytes") });
    this.connection.once(`DROP TABLE ${table}`);
    this.#remove({ hash: nameHash(table), bytes: 0 });
    this.#state.tables = this.#state.tables.filter((other) => other !== k);
  }

  createIndex(): void {
    const k = this.#nextId();
    this.connection.once(extraIndexSql(this.spec.id, k));
    this.#state.indexes = [...this.#state.indexes, k];
    this.#add(nameHash(extraIndexName(this.spec.id, k)), 0);
  }

  dropIndex(k: number): void {
    const name = extraIndexName(this.spec.id, k);
    this.connection.once(`DROP INDEX ${name}`);
    this.#remove({ hash: nameHash(name), bytes: 0 });
    this.#state.indexes = this.#state.indexes.filter((other) => other !== k);
  }

  /** The log row is the last thing before COMMIT, and so is the time that it carries. */
  #writeLog(): { readonly n: number; readonly beforeMs: number } {
    const { connection, spec } = this;
    const { seq, parts, digest, nextId } = this.#state;
    const global = connection.get("SELECT n, link FROM oracle_global WHERE id = 1");
    const n = numberOf(global, "n") + 1;
    const atMs = Date.now();
    const link = linkHash(numberOf(global, "link"), { n, writer: spec.id, seq, atMs, parts, digest });
    connection.run("UPDATE oracle_global SET n = ?, link = ? WHERE id = 1", n, link);
    connection.run(
      "INSERT INTO oracle_log (n, writer, seq, at_ms, parts, digest, next_id, seed, link) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
      n,
      spec.id,
      seq,
      atMs,
      parts,
      digest,
      nextId,
      spec.seed,
      link,
    );
    return { n, beforeMs: atMs };
  }

  #insert(table: string, key: number, sizeBytes: number): void {
    const { tag, body, hash } = this.#content(table, key, sizeBytes);
    const sql = `INSERT INTO ${table} (key, seq, tag, body, hash) VALUES (?, ?, ?, ?, ?)`;
    if (table === "oracle_item") this.connection.run(sql, key, this.#state.seq + 1, tag, body, hash);
    else this.connection.once(sql, key, this.#state.seq + 1, tag, body, hash);
    this.#add(hash, bodyLength(body));
  }

  #content(
    table: string,
    key: number,
    sizeBytes: number,
  ): { readonly tag: string; readonly body: Body; readonly hash: number } {
    const seq = this.#state.seq + 1;
    const tag = `${this.#random.integer(0, 0xffff).toString(16)}-${this.spec.id}-${key}`;
    const body = this.#body(sizeBytes);
    return { tag, body, hash: rowHash({ table, key, seq, tag, body }) };
  }

  /** Random bytes or text of this length, from a pool; now and then NULL. */
  #body(sizeBytes: number): Body {
    const random = this.#random;
    if (random.chance(0.02)) return null;
    if (random.chance(0.3) && sizeBytes < this.#textPool.length) {
      const start = random.integer(0, this.#textPool.length - sizeBytes);
      return this.#textPool.slice(start, start + sizeBytes);
    }
    const size = Math.min(sizeBytes, this.#blobPool.length);
    const start = random.integer(0, this.#blobPool.length - size);
    return this.#blobPool.subarray(start, start + size);
  }

  #randomItem(): { readonly key: number; readonly hash: number; readonly bytes: number } | null {
    const from = keyBase(this.spec.id);
    const to = keyBase(this.spec.id + 1);
    const near = itemKey(this.spec.id, this.#random.integer(0, Math.max(0, this.#state.nextId - 1)));
    const sql =
      "SELECT key, hash, coalesce(length(body), 0) AS bytes FROM oracle_item WHERE key >= ? AND key < ? ORDER BY key LIMIT 1";
    const row = this.connection.get(sql, near, to) ?? this.connection.get(sql, from, to);
    if (row === null) return null;
    return { key: numberOf(row, "key"), hash: numberOf(row, "hash"), bytes: numberOf(row, "bytes") };
  }

  #nextId(): number {
    const id = this.#state.nextId;
    this.#state.nextId += 1;
    return id;
  }

  #add(hash: number, bytes: number): void {
    this.#state.parts += 1;
    this.#state.digest = addToDigest(this.#state.digest, hash);
    this.#state.bytes += bytes;
  }

  #remove(part: { readonly hash: number; readonly bytes: number }): void {
    this.#state.parts -= 1;
    this.#state.digest = removeFromDigest(this.#state.digest, part.hash);
    this.#state.bytes -= part.bytes;
  }
}

/** A row as JSON, blobs in hexadecimal. */
export function rowAsJson(row: SqlRow): Json {
  return Object.fromEntries(
    Object.entries(row).map(([name, value]) => [
      name,
      value instanceof Uint8Array ? Buffer.from(value).toString("hex") : (value as Json),
    ]),
  );
}

export function numberOf(row: SqlRow | null | undefined, column: string): number {
  const value = row?.[column];
  if (typeof value !== "number") throw new Error(`column ${column} is not a number: ${String(value)}`);
  return value;
}

function configure(connection: Connection, spec: WriterSpec, exclusive: boolean): void {
  connection.once(`PRAGMA locking_mode=${exclusive ? "EXCLUSIVE" : "NORMAL"}`);
  connection.once(`PRAGMA page_size=${spec.pageSizeBytes}`);
  connection.once(`PRAGMA auto_vacuum=${spec.autoVacuum}`);
  connection.once("PRAGMA journal_mode=WAL");
  connection.once(`PRAGMA synchronous=${spec.synchronous}`);
  connection.once(`PRAGMA wal_autocheckpoint=${spec.walAutocheckpoint}`);
  connection.once(`PRAGMA cache_size=${spec.cacheSizePages}`);
}

/** A transaction of its own, not numbered: what the database holds before commit 1. */
function createSchema(connection: Connection): void {
  const row = connection.get("SELECT count(*) AS count FROM sqlite_schema WHERE name = 'oracle_item_tag'");
  if (numberOf(row, "count") === 1) return;
  connection.run("BEGIN IMMEDIATE");
  try {
    for (const sql of SCHEMA) connection.once(sql);
    connection.run("COMMIT");
  } catch (error) {
    if (connection.inTransaction) connection.run("ROLLBACK");
    throw error;
  }
}

function readState(connection: Connection, writer: number): WriterState {
  const last = connection.get(
    "SELECT seq, parts, digest, next_id AS nextId FROM oracle_log WHERE writer = ? ORDER BY seq DESC LIMIT 1",
    writer,
  );
  const content = connection.get(
    "SELECT coalesce(sum(length(body)), 0) AS bytes FROM oracle_item WHERE key >= ? AND key < ?",
    keyBase(writer),
    keyBase(writer + 1),
  );
  const names = connection.all(
    "SELECT name FROM sqlite_schema WHERE type IN ('table', 'index') AND name LIKE 'oracle\\_%' ESCAPE '\\'",
  );
  const extras = names
    .flatMap((row) => parseExtraName(String(row["name"])) ?? [])
    .filter((extra) => extra.writer === writer);
  return {
    seq: last === null ? 0 : numberOf(last, "seq"),
    parts: last === null ? 0 : numberOf(last, "parts"),
    digest: last === null ? 0 : numberOf(last, "digest"),
    nextId: last === null ? 0 : numberOf(last, "nextId"),
    bytes: numberOf(content, "bytes"),
    tables: extras.filter((extra) => extra.kind === "table").map((extra) => extra.k),
    indexes: extras.filter((extra) => extra.kind === "index").map((extra) => extra.k),
  };
}

function bodyLength(body: Body): number {
  return body === null ? 0 : body.length;
}
