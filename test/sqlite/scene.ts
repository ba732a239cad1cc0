import { constants, Database } from "bun:sqlite";
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";
import { lockSummary, procLocks } from "../support/proc-locks.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";
import type { Application, ApplicationConnection } from "./application.ts";
import { compareFiles } from "./hammer.ts";
import { Shadow, type ShadowOptions } from "./shadow.ts";

/**
 * A small database in WAL mode that an application writes to, on connections that never checkpoint of their own accord
 * and do not wait for locks.
 */
export interface Scene extends AsyncDisposable {
  readonly path: string;
  /** The application's first connection. */
  readonly db: ApplicationConnection;
  /** A path in the database's directory. */
  file(name: string): string;
  /** One more connection of the application. */
  connect(): ApplicationConnection;
  /** Follows the database. Without a cursor the shadow is brought up to date at once. */
  follow(options?: Partial<ShadowOptions>): Shadow;
  /** A transaction that changes some pages of several, such that a mixture of two states shows. */
  commit(count?: number): void;
  /** Commits one row of random bytes to the table `filler`: more pages. */
  grow(bytes: number): void;
  /** Throws what SQLite says when a lock is in the way. */
  throwBusy(): never;
  /** The locks of this process on the database. */
  locks(): string;
  /** Throws unless the shadow is one committed state. */
  checkCommitted(shadow: Shadow): void;
  /**
   * Brings the shadow up to date, detaches it, and throws unless it is byte for byte what the application's own TRUNCATE
   * checkpoint makes of the database.
   */
  judge(shadow: Shadow): void;
}

const ROWS = 4;
const IMMUTABLE_URI = constants.SQLITE_OPEN_READONLY | constants.SQLITE_OPEN_URI;

export async function scene(application: Application, pragmas: readonly string[] = []): Promise<Scene> {
  const directory = await temporaryDirectory("scene");
  const path = directory.file("app.db");
  const connections: ApplicationConnection[] = [];
  const shadows: Shadow[] = [];
  const connect = () => {
    const connection = application.connect(path);
    connections.push(connection);
    connection.run("PRAGMA wal_autocheckpoint=0", "PRAGMA synchronous=OFF");
    return connection;
  };
  const db = connect();
  // Row 0 counts all commits, the others take turns: their sum is row 0 in every committed state.
  const rows = Array.from({ length: ROWS }, (_, id) => `INSERT INTO tally VALUES (${id}, 0, randomblob(3000))`);
  const tables = [
    "CREATE TABLE tally (id INTEGER PRIMARY KEY, n INTEGER NOT NULL, body)",
    "CREATE TABLE filler (id INTEGER PRIMARY KEY, body)",
  ];
  db.run(...pragmas, "PRAGMA journal_mode=WAL", ...tables, ...rows);
  return {
    path,
    db,
    file: directory.file,
    connect,
    follow(options = {}) {
      const shadow = new Shadow({ databasePath: path, shadowPath: directory.file("shadow.db"), ...options });
      shadows.push(shadow);
      if (options.cursor === undefined && shadow.sync().kind !== "captured") throw new Error("nothing was captured");
      return shadow;
    },
    commit(count = 1) {
      db.run(...Array.from({ length: count }, () => COMMIT));
    },
    grow: (bytes) => void db.run(`INSERT INTO filler VALUES (NULL, randomblob(${bytes}))`),
    throwBusy() {
      const blocked = directory.file("blocked.db");
      const holder = application.connect(blocked);
      try {
        holder.run("BEGIN EXCLUSIVE");
        using ours = new Database(blocked);
        ours.run("BEGIN IMMEDIATE");
      } finally {
        holder.close();
      }
      throw new Error("nothing was in the way");
    },
    locks: () => lockSummary(procLocks(process.pid, path)),
    checkCommitted: (shadow) => checkCommitted(shadow.path),
    judge(shadow) {
      const result = shadow.sync();
      if (result.kind !== "captured") throw new Error(`the last capture was ${JSON.stringify(result)}`);
      const { pageSizeBytes } = shadow.follower;
      shadow[Symbol.dispose]();
      if (db.checkpoint("TRUNCATE").busy) throw new Error("the judge's checkpoint was busy");
      compareFiles(readFileSync(shadow.path), readFileSync(path), pageSizeBytes);
    },
    async [Symbol.asyncDispose]() {
      for (const shadow of shadows) shadow[Symbol.dispose]();
      for (const connection of connections) connection.close();
      await directory[Symbol.asyncDispose]();
    },
  };
}

/** One statement, so that an application that meets a lock has done all of it or nothing. */
export const COMMIT = `UPDATE tally SET n = n + 1, body = randomblob(3000)
  WHERE id IN (0, 1 + (SELECT n FROM tally WHERE id = 0) % ${ROWS - 1})`.replaceAll("\n", " ");

/** The locks of this process under a zero hold: two connections share them. */
export const ZERO_HOLD = "database:shared(read) shm:read0(read) shm:dms(read)";
/** Under a mark hold; read locks 1 to 4 are alike. */
export const MARK_HOLD = /^database:shared\(read\) shm:read[1-4]\(read\) shm:dms\(read\)$/;

function checkCommitted(path: string): void {
  using file = new Database(`${pathToFileURL(path).href}?immutable=1`, IMMUTABLE_URI);
  const integrity = JSON.stringify(file.query("PRAGMA integrity_check").values());
  if (integrity !== '[["ok"]]') throw new Error(`the shadow is damaged: ${integrity}`);
  const [row] = file.query("SELECT sum(n) FILTER (WHERE id = 0), sum(n) FILTER (WHERE id > 0) FROM tally").values();
  if (row?.[0] !== row?.[1])
    throw new Error(`the shadow mixes two states: ${row?.[0]} commits are ${row?.[1]} changes`);
}
