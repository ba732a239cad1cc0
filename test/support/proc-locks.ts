import { readFileSync, statSync } from "node:fs";

/** The POSIX locks of one process on the files of one SQLite database, in SQLite's own words. */
export interface HeldLock {
  readonly pid: number;
  readonly file: "database" | "shm";
  readonly kind: "read" | "write";
  /** `shared`, `reserved`, `pending`, `write`, `checkpoint`, `recover`, `read0` … `read4`, `dms`, or `byte <n>`. */
  readonly name: string;
  /** Half-open range of bytes; `end` is null for "to the end of the file". */
  readonly start: number;
  readonly end: number | null;
}

// os_unix.c and sqlite3.h of SQLite: PENDING_BYTE and what follows it in the database file.
const PENDING_BYTE = 0x4000_0000;
const SHARED_FIRST = PENDING_BYTE + 2;
const SHARED_SIZE = 510;
// wal.c: WALINDEX_LOCK_OFFSET and the eight lock bytes; os_unix.c adds the dead-man switch (UNIX_SHM_DMS) after them.
const SHM_LOCK_NAMES = ["write", "checkpoint", "recover", "read0", "read1", "read2", "read3", "read4", "dms"] as const;
const SHM_LOCK_OFFSET = 120;

/**
 * The locks that `pid` holds on the database at `databasePath` and its `-shm`, sorted by file and offset; a range over
 * several lock bytes of the `-shm` gives one entry for each. Reads `/proc/locks` and joins by device and inode, so no
 * file of the database is opened. Files that do not exist have no locks.
 */
export function procLocks(pid: number, databasePath: string): readonly HeldLock[] {
  return databaseLocks(databasePath).filter((lock) => lock.pid === pid);
}

/** As `procLocks`, for every process that this one can see. */
export function databaseLocks(databasePath: string): readonly HeldLock[] {
  const files = new Map<string, HeldLock["file"]>();
  for (const [path, file] of [
    [databasePath, "database"],
    [`${databasePath}-shm`, "shm"],
  ] as const) {
    const identity = fileIdentity(path);
    if (identity !== null) files.set(identity, file);
  }
  return parseProcLocks(readFileSync("/proc/locks", "utf8"))
    .flatMap((lock) => {
      const file = files.get(lock.identity);
      return file === undefined ? [] : describe(lock, file);
    })
    .sort((a, b) => a.file.localeCompare(b.file) || a.start - b.start || a.pid - b.pid);
}

/** `database:shared(read) shm:read1(read)`: what a test compares and prints. */
export function lockSummary(locks: readonly HeldLock[]): string {
  return locks.map((lock) => `${lock.file}:${lock.name}(${lock.kind})`).join(" ");
}

interface RawLock {
  readonly pid: number;
  readonly kind: "read" | "write";
  /** `<major>:<minor>:<inode>` as `/proc/locks` writes it: two hexadecimal digits at least, then decimal. */
  readonly identity: string;
  readonly start: number;
  readonly end: number | null;
}

/** Granted POSIX locks only: waiters (`->`), flock and lease lines are left out. Source: proc_locks(5). */
function parseProcLocks(text: string): readonly RawLock[] {
  const pattern = /^POSIX\s+\S+\s+(READ|WRITE)\s+(-?\d+)\s+(\S+)\s+(\d+)\s+(\d+|EOF)$/;
  // The kernel gives the list in pieces, and a line again when another process lets go of a lock in between.
  const lines = new Set(text.split("\n").map((line) => line.replace(/^\d+: /, "")));
  return [...lines].flatMap((line) => {
    const [, kind, pid, identity, start, last] = pattern.exec(line) ?? [];
    if (identity === undefined) return [];
    const end = last === "EOF" ? null : Number(last) + 1;
    return [{ pid: Number(pid), kind: kind === "READ" ? "read" : "write", identity, start: Number(start), end }];
  });
}

function describe(lock: RawLock, file: HeldLock["file"]): readonly HeldLock[] {
  const { pid, kind, start, end } = lock;
  if (file === "database") return [{ pid, file, kind, name: databaseLockName(start, end), start, end }];
  const locks: HeldLock[] = [];
  for (let byte = start; byte < (end ?? start + 1); byte++)
    locks.push({
      pid,
      file,
      kind,
      name: SHM_LOCK_NAMES[byte - SHM_LOCK_OFFSET] ?? `byte ${byte}`,
      start: byte,
      end: byte + 1,
    });
  return locks;
}

function databaseLockName(start: number, end: number | null): string {
  if (start === PENDING_BYTE && end === PENDING_BYTE + 1) return "pending";
  if (start === PENDING_BYTE + 1 && end === PENDING_BYTE + 2) return "reserved";
  if (start === SHARED_FIRST && end === SHARED_FIRST + SHARED_SIZE) return "shared";
  // A process that holds several neighbouring ranges with the same kind has them merged by the kernel.
  if (start === PENDING_BYTE && end === SHARED_FIRST + SHARED_SIZE) return "exclusive";
  if (start === PENDING_BYTE + 1 && end === SHARED_FIRST + SHARED_SIZE) return "reserved+shared";
  return `bytes ${start}-${end === null ? "EOF" : end - 1}`;
}

function fileIdentity(path: string): string | null {
  const stat = statSync(path, { bigint: true, throwIfNoEntry: false });
  if (stat === undefined) return null;
  // glibc's gnu_dev_major and gnu_dev_minor.
  const major = ((stat.dev >> 8n) & 0xfffn) | ((stat.dev >> 32n) & ~0xfffn);
  const minor = (stat.dev & 0xffn) | ((stat.dev >> 12n) & ~0xffn);
  return `${hex(major)}:${hex(minor)}:${stat.ino}`;
}

function hex(value: bigint): string {
  return value.toString(16).padStart(2, "0");
}
