import { constants } from "node:fs";
import { lstat, mkdir, open, readdir, readlink, realpath, rm, stat } from "node:fs/promises";
import { basename, dirname, isAbsolute, join, resolve } from "node:path";
import { assert, BakeliteError, systemErrorCode } from "../util/errors.ts";

const STATE_DIRECTORY_MODE = 0o700;
const MAX_LINKS = 40;

/** `.bakelite/` beside the database. Pure: give it what `resolveDatabasePath` returned. */
export function stateDirectory(databasePath: string): string {
  assert(isAbsolute(databasePath), "a database's path is absolute");
  return join(dirname(databasePath), ".bakelite");
}

export interface StatePaths {
  readonly directory: string;
  readonly cursor: string;
  /** The ledger file, and the one that a new chain's first full backup builds beside it. */
  readonly pages: string;
  readonly newPages: string;
  readonly status: string;
  readonly verify: string;
  readonly mirror: string;
  /** Named after the database file, not after the entry in the config: two entries for one file must meet here. */
  readonly lock: string;
}

/** Where the files of the configured database `name` are. Pure, as `stateDirectory`. Source: docs/state-files.md. */
export function statePaths(databasePath: string, name: string): StatePaths {
  const directory = stateDirectory(databasePath);
  return {
    directory,
    cursor: join(directory, `${name}.cursor`),
    pages: join(directory, `${name}.pages`),
    newPages: join(directory, `${name}.pages.new`),
    status: join(directory, `${name}.status.json`),
    verify: join(directory, `${name}.verify.json`),
    mirror: join(directory, `${name}.mirror.json`),
    lock: join(directory, `${basename(databasePath)}.lock`),
  };
}

/**
 * The database file's real path: every symbolic link followed, as SQLite does, whose `-wal` stands beside the real file
 * and so does our state. The file itself need not exist yet, the directory it will be in must: `not-found` otherwise.
 */
export async function resolveDatabasePath(databasePath: string): Promise<string> {
  assert(isAbsolute(databasePath), "a database's path is absolute");
  let path = databasePath;
  for (let followed = 0; followed < MAX_LINKS; followed++) {
    // Only the directory's path is left to realpath, which opens what it is given (Bun does): on a live database's file
    // the close would drop our locks, at least on macOS.
    const directory = await realDirectory(dirname(path), databasePath);
    path = join(directory, basename(path));
    const target = await linkTarget(path, databasePath);
    if (target === null) return path;
    path = resolve(directory, target);
  }
  throw new BakeliteError("io", "cannot resolve the database's path: too many symbolic links", {
    subject: databasePath,
    hint: "give the path of the file itself in the config",
  });
}

async function realDirectory(directory: string, databasePath: string): Promise<string> {
  try {
    return await realpath(directory);
  } catch (error) {
    if (systemErrorCode(error) !== "ENOENT") throw localError(error, "resolve the database's path", databasePath);
    throw new BakeliteError("not-found", "the directory of the database does not exist", {
      subject: databasePath,
      hint: `create ${directory}, mount its disk, or correct \`path\` in the config`,
      cause: error,
    });
  }
}

/** null for anything but a symbolic link, so also where there is nothing. */
async function linkTarget(path: string, databasePath: string): Promise<string | null> {
  try {
    return (await lstat(path)).isSymbolicLink() ? await readlink(path) : null;
  } catch (error) {
    if (systemErrorCode(error) === "ENOENT") return null;
    throw localError(error, "resolve the database's path", databasePath);
  }
}

/**
 * Creates `.bakelite/` (0700) where missing; run as root, gives it to the owner of the database file (before that exists,
 * to the owner of its directory). Files inside take the directory's owner, see `inheritedOwner`. Returns its path.
 */
export async function ensureStateDirectory(databasePath: string): Promise<string> {
  const directory = stateDirectory(databasePath);
  try {
    await mkdir(directory, { mode: STATE_DIRECTORY_MODE });
  } catch (error) {
    if (systemErrorCode(error) !== "EEXIST") throw localError(error, "create the state directory", directory);
  }
  try {
    // Opened without following a link and changed through the descriptor: the directory above may belong to a user who
    // would like root to give him something else.
    const handle = await open(directory, constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW);
    try {
      const owner = runningAsRoot() ? await databaseOwner(databasePath) : null;
      const now = await handle.stat();
      if (owner !== null && (now.uid !== owner.uid || now.gid !== owner.gid)) await handle.chown(owner.uid, owner.gid);
    } finally {
      await handle.close();
    }
  } catch (error) {
    throw localError(error, "use the state directory", directory);
  }
  return directory;
}

/** What `writeFileAtomically` leaves when the process dies in the middle of it. */
const LEFTOVER = /^\..+\.[0-9a-f]{12}\.tmp$/;

/** Removes the temporary files in a state directory that were last written more than `olderThanMs` before `nowMs`. */
export async function sweepStateDirectory(
  directory: string,
  { olderThanMs, nowMs }: { readonly olderThanMs: number; readonly nowMs: number },
): Promise<void> {
  try {
    for (const name of await readdir(directory)) {
      if (!LEFTOVER.test(name)) continue;
      const path = join(directory, name);
      const info = await lstat(path);
      if (info.isFile() && info.mtimeMs < nowMs - olderThanMs) await rm(path, { force: true });
    }
  } catch (error) {
    // Gone before we came to it: the directory, or a file that its writer just renamed.
    if (systemErrorCode(error) !== "ENOENT") throw localError(error, "tidy the state directory", directory);
  }
}

export interface Owner {
  readonly uid: number;
  readonly gid: number;
}

/** Who must own a new file in `directory`: as root, whoever owns the directory; else null, which is ourselves. */
export async function inheritedOwner(directory: string): Promise<Owner | null> {
  if (!runningAsRoot()) return null;
  const { uid, gid } = await stat(directory);
  return { uid, gid };
}

/** A stat of the path opens no descriptor, so it cannot cost us the locks on the database, as closing one would. */
async function databaseOwner(databasePath: string): Promise<Owner> {
  try {
    const { uid, gid } = await stat(databasePath);
    return { uid, gid };
  } catch (error) {
    if (systemErrorCode(error) !== "ENOENT") throw error;
    const { uid, gid } = await stat(dirname(databasePath));
    return { uid, gid };
  }
}

function runningAsRoot(): boolean {
  return process.geteuid?.() === 0;
}

/** A failure of a file in `.bakelite/`, with the next step. A BakeliteError comes back as it is. */
export function localError(error: unknown, doing: string, path: string): BakeliteError {
  if (error instanceof BakeliteError) return error;
  const code = systemErrorCode(error);
  switch (code) {
    case "ENOSPC":
    case "EDQUOT":
    case "SQLITE_FULL":
      return new BakeliteError("storage-full", `cannot ${doing}: no space left on the database's disk`, {
        subject: path,
        hint: "free space there (`df -h` and `df -i` show what is used up)",
        cause: error,
      });
    case "EACCES":
    case "EPERM":
    case "EROFS":
    case "SQLITE_CANTOPEN":
    case "SQLITE_PERM":
    case "SQLITE_READONLY":
      return new BakeliteError(
        "storage-denied",
        `cannot ${doing}: ${code === "EROFS" ? "read-only file system" : "permission denied"}`,
        {
          subject: path,
          hint: "run as the database's owner or as root, and under systemd add the directory to ReadWritePaths=",
          cause: error,
        },
      );
    case "ELOOP":
    case "ENOTDIR":
      return new BakeliteError("io", `cannot ${doing}: something else stands in its place`, {
        subject: path,
        hint: "move it away; bakelite follows no symbolic link there",
        cause: error,
      });
    default:
      return new BakeliteError("io", `cannot ${doing}`, {
        subject: path,
        hint: "check the disk that holds the database",
        cause: error,
      });
  }
}
