import { Database, constants as sqliteOpen } from "bun:sqlite";
import { type BigIntStats, closeSync, constants, fchownSync, ftruncateSync, openSync, readSync } from "node:fs";
import { lstat, realpath } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { assert, BakeliteError, systemErrorCode } from "../util/errors.ts";
import { type Logger, silentLogger } from "../util/logger.ts";
import { ensureStateDirectory, inheritedOwner, localError, resolveDatabasePath, stateDirectory } from "./layout.ts";
import { type KernelLock, readLockTable, splitDevice } from "./lock-table.ts";

const SQLITE_OPEN_NOFOLLOW = 0x0100_0000;
/** Where SQLite locks: the pending byte, the reserved byte and 510 shared bytes (sqlite.org/fileformat2.html, "lock byte page"). */
const SQLITE_LOCK_FIRST_BYTE = 0x4000_0000;
const SQLITE_LOCK_LAST_BYTE = SQLITE_LOCK_FIRST_BYTE + 511;
/** `PRAGMA user_version` in the header of a SQLite file, then four bytes, and `PRAGMA application_id` (sqlite.org/fileformat2.html section 1.3). */
const USER_VERSION_OFFSET = 60;
const APPLICATION_ID_OFFSET = 68;
/** In `application_id`, which is 0 for a daemon: `RENC`. */
const REENCRYPT_MARK = 0x5245_4e43;
/** A `findLockHolder` elsewhere holds a shared lock for an instant; that is not a daemon. */
const PASSER_BY_MS = 1_000;
const RETRY_MS = 20;

export interface LockHolder {
  /** null when the lock is held but nothing tells by whom (a process in another container). */
  readonly pid: number | null;
  /** Not given: a daemon, as far as can be told. */
  readonly purpose?: "reencrypt";
}

/** What the lock is held for; what is not a daemon says so, and to be refused beside it is another matter. */
export type LockPurpose = "daemon" | "reencrypt";

/** The right to follow one database file. Held until `release` or the death of the process. */
export interface InstanceLock extends AsyncDisposable {
  /** The database file it stands for, links resolved. */
  readonly databasePath: string;
  readonly lockPath: string;
  /** False when somebody removed or replaced the lock file: then a second daemon could start, so stop following. */
  isInPlace(): Promise<boolean>;
  release(): Promise<void>;
}

/**
 * The lock files that this thread holds or tries for, by `device:inode`, with their connections, which must not be collected
 * as garbage: that would close them. A worker has a copy of its own, and meets our locks in the kernel's table; where there
 * is none (macOS), locks are for the main thread only.
 */
const held = new Map<string, HeldConnection | "trying">();

interface HeldConnection {
  readonly connection: Database;
  readonly purpose: LockPurpose;
}

/**
 * Takes the lock of a database file, `.bakelite/<file name>.lock` beside the real file, or throws `locked` naming the
 * process that has it. The file need not exist yet.
 *
 * The lock is SQLite's own exclusive lock on a one-page database: a POSIX lock, so the kernel drops it when we die, and
 * there is no stale lock to clear. A POSIX lock is also dropped when *any* descriptor of the file is closed in the process,
 * so nothing here opens a lock file that this process may hold. The file is never unlinked, because the inode carries the
 * lock: whoever unlinks it could let two processes each lock a file of that name.
 */
export async function acquireInstanceLock(
  databasePath: string,
  log: Logger = silentLogger,
  purpose: LockPurpose = "daemon",
): Promise<InstanceLock> {
  const realPath = await resolveDatabasePath(databasePath);
  const lockPath = await lockFilePath(realPath, await ensureStateDirectory(realPath));
  await createLockFile(lockPath);
  const deadlineMs = performance.now() + PASSER_BY_MS;
  for (;;) {
    const lock = await attemptLock({ databasePath: realPath, lockPath, purpose }, log);
    if (lock !== null) return lock;
    if (performance.now() > deadlineMs) throw lockedError(realPath, { pid: null });
    await Bun.sleep(RETRY_MS);
  }
}

interface LockTarget {
  readonly databasePath: string;
  readonly lockPath: string;
  readonly purpose: LockPurpose;
}

/** null when the next attempt may fare better. */
async function attemptLock(target: LockTarget, log: Logger): Promise<InstanceLock | null> {
  const { databasePath, lockPath, purpose } = target;
  const file = await statLockFile(lockPath);
  if (file === null) throw localError(null, "lock the database: its lock file disappeared", lockPath);
  const key = identityOf(file);
  const inTable = await holdersInTable(file);
  if (held.has(key) || inTable.some((lock) => lock.pid === process.pid && sameDevice(lock, file)))
    throw lockedError(databasePath, holderHere(key));

  // Registered before the attempt: while SQLite has the file open, nobody in this thread may open and close it.
  held.set(key, "trying");
  const attempt = openLocked(lockPath, purpose);
  if (attempt.outcome === "locked") {
    const lock = makeLock({ ...target, connection: attempt.connection, key });
    if (await lock.isInPlace().catch(() => false)) return lock;
    // The file was replaced between our look and our lock: what we locked has no name any more.
    await lock.release();
    return null;
  }
  held.delete(key);
  if (attempt.outcome === "failed") throw localError(attempt.cause, "lock the database", lockPath);
  const holder = await findHolder(lockPath, file);
  if (holder !== null || held.has(key)) throw lockedError(databasePath, holder ?? holderHere(key));
  if (attempt.outcome === "not-a-database") emptyLockFile(lockPath, key, log);
  return null;
}

/**
 * Who follows the database file now; null when nobody does. Writes nothing and disturbs nobody: a daemon that starts in the
 * same instant merely tries again. Throws `storage-denied` when the lock file may not be read.
 */
export async function findLockHolder(databasePath: string): Promise<LockHolder | null> {
  const realPath = await realPathOrNull(databasePath);
  if (realPath === null) return null;
  const lockPath = await lockFilePath(realPath, stateDirectory(realPath));
  const file = await statLockFile(lockPath);
  return file === null ? null : await findHolder(lockPath, file);
}

async function findHolder(lockPath: string, file: BigIntStats): Promise<LockHolder | null> {
  const holders = await holdersInTable(file);
  // From here to the end nobody else in this thread runs, so nobody can take the lock under our hands.
  if (held.has(identityOf(file))) return holderHere(identityOf(file));
  const sure = holders.find((lock) => sameDevice(lock, file));
  // Of a lock of this process, which another thread must have, the file must not be opened.
  if (sure?.pid === process.pid) return { pid: sure.pid };
  if (sure !== undefined) return { ...readRecord(lockPath, identityOf(file)), pid: sure.pid };
  // Some file systems (btrfs, overlayfs) show another device in the table than in stat, and a process in another container
  // is not in our table at all. SQLite can always tell whether, and the file by whom.
  if (!isHeld(lockPath)) return null;
  // Another thread of ours holds it, as far as can be told; then the descriptor below must not be opened.
  if (holders.some((lock) => lock.pid === process.pid)) return { pid: process.pid };
  return readRecord(lockPath, identityOf(file));
}

/** This process, which has or tries for the lock. */
function holderHere(key: string): LockHolder {
  const mine = held.get(key);
  return { pid: process.pid, ...(typeof mine === "object" && mine.purpose === "reencrypt" ? REENCRYPTING : {}) };
}

const REENCRYPTING = { purpose: "reencrypt" } as const;

/** Exclusive locks that SQLite could have taken on a file with this inode number, on whatever device. */
async function holdersInTable(file: BigIntStats): Promise<KernelLock[]> {
  const locks = (await readLockTable()) ?? [];
  return locks.filter(
    (lock) =>
      lock.mode === "WRITE" &&
      lock.pid > 0 &&
      lock.inode === file.ino &&
      lock.firstByte <= SQLITE_LOCK_LAST_BYTE &&
      lock.lastByte >= SQLITE_LOCK_FIRST_BYTE,
  );
}

function sameDevice(lock: KernelLock, file: BigIntStats): boolean {
  const { major, minor } = splitDevice(file.dev);
  return lock.deviceMajor === major && lock.deviceMinor === minor;
}

type Attempt =
  | { readonly outcome: "locked"; readonly connection: Database }
  | { readonly outcome: "busy" | "not-a-database" | "failed"; readonly cause: unknown };

function openLocked(lockPath: string, purpose: LockPurpose): Attempt {
  let connection: Database | undefined;
  try {
    connection = new Database(lockPath, sqliteOpen.SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOFOLLOW);
    connection.run("PRAGMA busy_timeout = 0");
    connection.run("PRAGMA locking_mode = EXCLUSIVE");
    connection.run("PRAGMA journal_mode = MEMORY");
    connection.run("PRAGMA synchronous = OFF");
    connection.run("BEGIN EXCLUSIVE");
    // For the eyes of the refused one. In this locking mode the end of the transaction keeps the exclusive lock.
    connection.run(`PRAGMA user_version = ${process.pid}`);
    connection.run(`PRAGMA application_id = ${purpose === "reencrypt" ? REENCRYPT_MARK : 0}`);
    connection.run("COMMIT");
    // It is kept for its lock only. What it read takes some 90 KiB, and a fleet has hundreds of them.
    connection.run("PRAGMA shrink_memory");
    return { outcome: "locked", connection };
  } catch (cause) {
    connection?.close();
    return { outcome: outcomeOf(cause), cause };
  }
}

function outcomeOf(error: unknown): "busy" | "not-a-database" | "failed" {
  const code = systemErrorCode(error) ?? "";
  if (code.startsWith("SQLITE_BUSY") || code === "SQLITE_PROTOCOL") return "busy";
  return code === "SQLITE_NOTADB" || code.startsWith("SQLITE_CORRUPT") ? "not-a-database" : "failed";
}

/** Whether an exclusive lock stands, asked by a read that would wait for it. Garbage is held by nobody. */
function isHeld(lockPath: string): boolean {
  try {
    using probe = new Database(lockPath, sqliteOpen.SQLITE_OPEN_READONLY | SQLITE_OPEN_NOFOLLOW);
    probe.run("PRAGMA busy_timeout = 0");
    using statement = probe.prepare("PRAGMA user_version");
    statement.get();
    return false;
  } catch (error) {
    switch (outcomeOf(error)) {
      case "busy":
        return true;
      case "not-a-database":
        return false;
      case "failed":
        throw localError(error, "see who holds the database", lockPath);
    }
  }
}

/** From the header of a file that somebody else holds; the PID is null when that tells nothing. */
function readRecord(lockPath: string, key: string): LockHolder {
  const bytes = Buffer.alloc(APPLICATION_ID_OFFSET + 4);
  try {
    withDescriptor(lockPath, constants.O_RDONLY, key, (fd) => readSync(fd, bytes, 0, bytes.length, 0));
  } catch (error) {
    if (systemErrorCode(error) === undefined) throw error;
  }
  const pid = bytes.readInt32BE(USER_VERSION_OFFSET);
  const isReencrypt = bytes.readInt32BE(APPLICATION_ID_OFFSET) === REENCRYPT_MARK;
  return { pid: pid > 0 ? pid : null, ...(isReencrypt ? REENCRYPTING : {}) };
}

/**
 * Makes an empty lock file of one that is not a SQLite database (a disk error, an editor). In place: should somebody lock
 * it just now, he keeps his lock, and loses only the record of his PID.
 */
function emptyLockFile(lockPath: string, key: string, log: Logger): void {
  try {
    withDescriptor(lockPath, constants.O_RDWR, key, (fd) => ftruncateSync(fd, 0));
  } catch (error) {
    throw localError(error, "repair the lock file", lockPath);
  }
  log.warn("the lock file was damaged and held by nobody; it was emptied", { lock: lockPath });
}

/** Creates the empty lock file with our mode and owner, which SQLite would not give it. */
async function createLockFile(lockPath: string): Promise<void> {
  const owner = await inheritedOwner(dirname(lockPath));
  try {
    withDescriptor(lockPath, constants.O_RDWR | constants.O_CREAT | constants.O_EXCL, null, (fd) => {
      if (owner !== null) fchownSync(fd, owner.uid, owner.gid);
    });
  } catch (error) {
    if (systemErrorCode(error) !== "EEXIST") throw localError(error, "create the lock file", lockPath);
  }
}

/**
 * Opens and closes the lock file without letting anybody else in this thread run in between: were it locked meanwhile, the
 * close would drop that lock. `key` is the file's identity, null for one that is only being made.
 */
function withDescriptor(lockPath: string, flags: number, key: string | null, use: (fd: number) => void): void {
  assert(key === null || !held.has(key), "a lock file that we hold is never opened again");
  const fd = openSync(lockPath, flags | constants.O_NOFOLLOW, 0o600);
  try {
    use(fd);
  } finally {
    closeSync(fd);
  }
}

/** The directory's links are resolved because SQLite refuses any link on the way (and we want it to, for the file). */
async function lockFilePath(realDatabasePath: string, directory: string): Promise<string> {
  try {
    return join(await realpath(directory), `${basename(realDatabasePath)}.lock`);
  } catch (error) {
    if (systemErrorCode(error) === "ENOENT") return join(directory, `${basename(realDatabasePath)}.lock`);
    throw localError(error, "find the lock file", directory);
  }
}

async function statLockFile(lockPath: string): Promise<BigIntStats | null> {
  try {
    const info = await lstat(lockPath, { bigint: true });
    if (info.isFile()) return info;
  } catch (error) {
    if (systemErrorCode(error) === "ENOENT") return null;
    throw localError(error, "look at the lock file", lockPath);
  }
  throw localError({ code: "ELOOP" }, "lock the database: its lock file is not a regular file", lockPath);
}

async function realPathOrNull(databasePath: string): Promise<string | null> {
  try {
    return await resolveDatabasePath(databasePath);
  } catch (error) {
    if (error instanceof BakeliteError && error.code === "not-found") return null;
    throw error;
  }
}

function identityOf(file: BigIntStats | null): string {
  return file === null ? "" : `${file.dev}:${file.ino}`;
}

interface HeldLock extends LockTarget, HeldConnection {
  readonly key: string;
}

function makeLock({ connection, purpose, databasePath, lockPath, key }: HeldLock): InstanceLock {
  held.set(key, { connection, purpose });
  let released = false;
  async function release(): Promise<void> {
    if (released) return;
    released = true;
    connection.close();
    held.delete(key);
  }
  return {
    databasePath,
    lockPath,
    isInPlace: async () => !released && identityOf(await statLockFile(lockPath)) === key,
    release,
    [Symbol.asyncDispose]: release,
  };
}

function lockedError(databasePath: string, holder: LockHolder): BakeliteError {
  const own = holder.pid === process.pid;
  const who = own ? "this process" : holder.pid === null ? "another process" : `process ${holder.pid}`;
  if (holder.purpose === "reencrypt")
    return new BakeliteError(
      "locked",
      `${who} is rewriting what is stored for this database (\`bakelite reencrypt\`)`,
      {
        subject: databasePath,
        hint: "wait until it has ended",
      },
    );
  return new BakeliteError("locked", `${who} already follows this database${own ? ` (PID ${process.pid})` : ""}`, {
    subject: databasePath,
    hint: "stop it first, or remove the second entry for this file",
  });
}
