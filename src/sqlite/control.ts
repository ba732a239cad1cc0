import { Database, SQLiteError, type Statement } from "bun:sqlite";
import { statSync } from "node:fs";
import { BakeliteError, describeError } from "../util/errors.ts";

/**
 * The connections that we hold on a live database: the only file that opens one through SQLite there. They take and drop
 * locks and checkpoint; they never write.
 */

/** Older engines have a WAL-reset race that a checkpointer from outside triggers (sqlite.org/changes.html, 3.51.3). */
const OLDEST_SAFE_ENGINE = [3, 51, 3] as const;

/** What `PRAGMA wal_checkpoint` answers: frames committed and frames copied into the database file. */
export interface WalCounts {
  /** Another connection was in the way: nothing, or only a part, was done. */
  readonly busy: boolean;
  readonly committedFrames: number;
  readonly backfilledFrames: number;
}

/** SQLite says "not now": another connection holds a lock, recovers, or keeps us from a snapshot. Never an error. */
export function isBusy(error: unknown): boolean {
  if (!(error instanceof SQLiteError)) return false;
  const primary = error.errno & 0xff;
  const SQLITE_BUSY = 5;
  const SQLITE_LOCKED = 6;
  const SQLITE_PROTOCOL = 15; // "locking protocol": too many lost races for a read mark in a row
  return primary === SQLITE_BUSY || primary === SQLITE_LOCKED || primary === SQLITE_PROTOCOL;
}

/** Throws unless this build's SQLite may checkpoint a database that others write to. */
export function assertSafeEngine(): void {
  using memory = new Database(":memory:");
  const row = memory.query<{ version: string }, []>("SELECT sqlite_version() AS version").get();
  const version = row?.version ?? "unknown";
  const parts = version.split(".").map(Number);
  for (const [i, oldest] of OLDEST_SAFE_ENGINE.entries()) {
    const part = parts[i] ?? 0;
    if (part > oldest) return;
    if (part < oldest || Number.isNaN(part)) {
      throw new BakeliteError("database-unfit", `SQLite ${version} is too old to follow a live database safely`, {
        hint: `use a bakelite executable with SQLite ${OLDEST_SAFE_ENGINE.join(".")} or newer built in`,
      });
    }
  }
}

/**
 * One connection to a live database: read-write (so that it may checkpoint) and never creating, `wal_autocheckpoint=0`,
 * `synchronous=NORMAL`. A connection is idle, or in a read transaction (a *hold*), or in a write transaction that writes
 * nothing. Methods throw SQLiteError; those that can lose a race say so.
 */
export class Connection {
  readonly #db: Database;
  readonly #statements = new Map<string, Statement>();
  #inTransaction = false;

  constructor(path: string) {
    this.#db = new Database(path, { readwrite: true, create: false });
    try {
      // What reads the schema takes memory for 20 pages at once, before a cache size can be set; shrinking gives it back.
      // A fleet has a thousand of these, and all that one ever reads is page 1.
      const pragmas = ["busy_timeout=0", "wal_autocheckpoint=0", "synchronous=NORMAL", "cache_size=1", "shrink_memory"];
      for (const pragma of pragmas) this.#db.run(`PRAGMA ${pragma}`);
    } catch (error) {
      this.#db.close();
      throw error;
    }
  }

  get inTransaction(): boolean {
    return this.#inTransaction;
  }

  /** Begins a read transaction on the newest commit. Throws a busy error, and stays idle, when a lock is in the way. */
  begin(): void {
    this.#run("BEGIN DEFERRED");
    try {
      this.#statement("SELECT rootpage FROM sqlite_schema LIMIT 1").all();
    } catch (error) {
      this.#run("ROLLBACK");
      throw error;
    }
    this.#inTransaction = true;
  }

  /** Takes the write lock if it is free at this moment; false when somebody else has it. */
  beginImmediate(): boolean {
    try {
      this.#run("BEGIN IMMEDIATE");
      this.#inTransaction = true;
      return true;
    } catch (error) {
      if (isBusy(error)) return false;
      throw error;
    }
  }

  rollback(): void {
    if (!this.#inTransaction) return;
    this.#run("ROLLBACK");
    this.#inTransaction = false;
  }

  /** Counts frames and touches nothing. Only on an idle connection. -1 for both when the database left WAL mode. */
  noop(): WalCounts {
    return this.#checkpoint("NOOP");
  }

  /** Copies what it can without waiting for anyone. Only on an idle connection. */
  passive(): WalCounts {
    return this.#checkpoint("PASSIVE");
  }

  /**
   * Waits at most `timeoutMs`, with the write lock held, until nobody reads from the WAL, so that the next writer restarts
   * it. Blocks.
   */
  restart(timeoutMs: number): WalCounts {
    this.#busyTimeout(timeoutMs);
    try {
      return this.#checkpoint("RESTART");
    } finally {
      this.#busyTimeout(0);
    }
  }

  /** Size in pages of the snapshot that the transaction sees. */
  sizePages(): number {
    const row = this.#statement("PRAGMA page_count").get() as { page_count: number } | null;
    return row?.page_count ?? 0;
  }

  journalMode(): string {
    const row = this.#statement("PRAGMA journal_mode").get() as { journal_mode: string } | null;
    return row?.journal_mode ?? "";
  }

  close(): void {
    this.rollback();
    for (const statement of this.#statements.values()) statement.finalize();
    this.#statements.clear();
    this.#db.close();
  }

  #checkpoint(mode: "NOOP" | "PASSIVE" | "RESTART"): WalCounts {
    return readCounts(this.#statement(`PRAGMA wal_checkpoint(${mode})`).get());
  }

  #busyTimeout(timeoutMs: number): void {
    this.#db.run(`PRAGMA busy_timeout=${Math.round(timeoutMs)}`);
  }

  #run(sql: string): void {
    this.#statement(sql).run();
  }

  #statement(sql: string): Statement {
    let statement = this.#statements.get(sql);
    if (statement === undefined) {
      statement = this.#db.prepare(sql);
      this.#statements.set(sql, statement);
    }
    return statement;
  }
}

/**
 * Counts frames as `Connection.noop` does, on a connection that lives as long as this call. It is read-only, so that closing
 * it never checkpoints: it would be the last connection to a file that has just taken the place of the one that our own are
 * on, and SQLite would copy the old file's WAL, which still stands there, into the new one.
 */
export function countFrames(path: string): WalCounts {
  const db = new Database(path, { readonly: true });
  try {
    return readCounts(db.query("PRAGMA wal_checkpoint(NOOP)").get());
  } finally {
    db.close(true);
  }
}

/** Which file a path names: two of them are the same only if device and inode are. */
export interface FileIdentity {
  readonly device: bigint;
  readonly inode: bigint;
}

/** Null when there is no such file. */
export function readFileIdentity(path: string): FileIdentity | null {
  const stat = statSync(path, { bigint: true, throwIfNoEntry: false });
  return stat === undefined ? null : { device: stat.dev, inode: stat.ino };
}

/**
 * A PASSIVE checkpoint on a connection of its own, for a thread of its own: null when done, when a lock was in the way, or
 * when the path does not name `file` any more, else what SQLite says. The connection is not the last one, for the caller's
 * holds stand meanwhile; to another file it would be, and would copy the WAL of the old one into that.
 */
export function passiveCheckpoint(path: string, file: FileIdentity): string | null {
  try {
    const now = readFileIdentity(path);
    if (now === null || now.device !== file.device || now.inode !== file.inode) return null;
    const connection = new Connection(path);
    try {
      connection.passive();
      return null;
    } finally {
      connection.close();
    }
  } catch (error) {
    return isBusy(error) ? null : describeError(error);
  }
}

/**
 * Puts a database into WAL mode, which is kept in the file. Throws BakeliteError `database-busy` while somebody else uses it.
 * Only for a caller that was told to; nobody in this process may have the database open.
 */
export function convertToWal(path: string): void {
  using db = new Database(path, { readwrite: true, create: false });
  try {
    db.run("PRAGMA busy_timeout=1000");
    const row = db.query<{ journal_mode: string }, []>("PRAGMA journal_mode=WAL").get();
    if (row?.journal_mode === "wal") return;
    throw new BakeliteError("database-unfit", "SQLite does not put the database into WAL mode", { subject: path });
  } catch (error) {
    if (!isBusy(error)) throw error;
    throw new BakeliteError("database-busy", "cannot put the database into WAL mode while it is in use", {
      subject: path,
      hint: `stop the application and run: sqlite3 '${path}' 'PRAGMA journal_mode=WAL'`,
      cause: error,
    });
  }
}

/** The row that `PRAGMA wal_checkpoint` answers. */
function readCounts(answer: unknown): WalCounts {
  const row = answer as { busy: number; log: number; checkpointed: number } | null;
  if (row === null) throw new BakeliteError("internal", "PRAGMA wal_checkpoint answered nothing");
  return { busy: row.busy !== 0, committedFrames: row.log, backfilledFrames: row.checkpointed };
}
