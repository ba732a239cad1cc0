import type { Stats } from "node:fs";
import { dirname } from "node:path";
import type { DatabaseConfig } from "../config/types.ts";
import { type DatabaseHeaderCheck, parseDatabaseHeader } from "../sqlite/database-file.ts";
import { formatByteSize } from "../util/byte-sizes.ts";
import { systemErrorCode } from "../util/errors.ts";
import { ENTER, findObstacle, READ, WRITE } from "./doctor-access.ts";
import { kindOf, lstatOrNull, readStart, shellWord } from "./doctor-files.ts";
import { lookAtFileSystem, unfitForWal } from "./doctor-mounts.ts";
import { type Check, fail, pass, warn } from "./doctor-report.ts";
import type { Scene } from "./doctor-scene.ts";

/** SQLite's largest page: the first one, whatever its size, is within these bytes. */
const FIRST_PAGE_BYTES = 65_536;

/** The database file as the file system and its own first page show it. SQLite does not open it. */
export interface DatabaseLook {
  /** Links followed. */
  readonly path: string;
  readonly info: Stats | null;
  /** null: there is no regular file, or it cannot be read. */
  readonly header: DatabaseHeaderCheck | null;
  /** The bytes of the first page, and perhaps more; empty where `header` is null. */
  readonly firstPage: Uint8Array;
  /** Why it cannot be read: a system error's code. */
  readonly unreadable: string | null;
  readonly wal: Stats | null;
  readonly shm: Stats | null;
}

export async function lookAtDatabase(path: string): Promise<DatabaseLook> {
  const info = await lstatOrNull(path);
  const [wal, shm] = [await lstatOrNull(`${path}-wal`), await lstatOrNull(`${path}-shm`)];
  const look = { path, info, header: null, firstPage: new Uint8Array(), unreadable: null, wal, shm };
  if (info === null || !info.isFile()) return look;
  try {
    // A pipe that takes its place in this instant must not hang us either.
    const firstPage = await readStart(path, FIRST_PAGE_BYTES);
    return firstPage === null ? look : { ...look, header: parseDatabaseHeader(firstPage), firstPage };
  } catch (error) {
    return { ...look, unreadable: systemErrorCode(error) ?? "unexpected failure" };
  }
}

/** The file itself. Pure. */
export function judgeDatabase({ path, info, header, unreadable }: DatabaseLook): Check {
  if (info === null)
    return warn(
      "database",
      `there is no ${path} yet; the daemon waits for it`,
      "start the application that makes it, or correct `path` in the configuration",
    );
  if (!info.isFile())
    return fail("database", `${path} is ${kindOf(info)}, not a file`, "correct `path` in the configuration");
  if (unreadable !== null)
    return fail("database", `${path} cannot be read: ${unreadable}`, "run doctor as root or as the database's owner");
  switch (header?.kind) {
    case "sqlite": {
      const page = formatByteSize(header.header.pageSizeBytes);
      return pass("database", `SQLite, ${formatByteSize(info.size)} in pages of ${page}`);
    }
    case "empty":
      return warn(
        "database",
        `${path} is empty; the daemon waits until something is written to it`,
        "start the application that fills it, or correct `path` in the configuration",
      );
    default:
      return fail(
        "database",
        `${path} is not a SQLite database, or it is encrypted as a whole (SQLCipher, SEE)`,
        "correct `path` in the configuration; a database that is encrypted as a whole cannot be backed up",
      );
  }
}

/** Whether there is a WAL to follow. Nothing where there is no database. Pure. */
export function judgeWalMode({ path, header }: DatabaseLook, { convertToWal }: DatabaseConfig): readonly Check[] {
  if (header?.kind !== "sqlite") return [];
  if (header.header.isWal) return [pass("wal mode", "the database is in WAL mode")];
  if (convertToWal)
    return [pass("wal mode", "not in WAL mode; the daemon converts it when it starts, as convert_to_wal allows")];
  return [
    fail(
      "wal mode",
      "the database is not in WAL mode, and would not be backed up",
      `run: sqlite3 ${shellWord(path)} 'PRAGMA journal_mode=WAL' (as its owner, with the application stopped), or set convert_to_wal = true`,
    ),
  ];
}

/** Beyond this many times `max_wal_size` a WAL is worth telling of. */
const LARGE_WAL_FACTOR = 4;

/**
 * The `-wal` file. How a connection of the application is set up (`wal_autocheckpoint`) cannot be seen from outside, only what comes
 * of it. Pure.
 */
export function judgeWal(
  { header, wal, path }: DatabaseLook,
  { maxWalSizeBytes }: DatabaseConfig,
  { isFollowed }: { readonly isFollowed: boolean },
): readonly Check[] {
  if (header?.kind !== "sqlite" || !header.header.isWal) return [];
  if (wal === null) return [pass("wal", "there is none now: nobody has the database open")];
  if (!wal.isFile())
    return [
      fail("wal", `${path}-wal is ${kindOf(wal)}, not a file`, "stop the application and move that out of the way"),
    ];
  const size = formatByteSize(wal.size);
  if (wal.size <= LARGE_WAL_FACTOR * maxWalSizeBytes) return [pass("wal", `${size} long`)];
  const message = `${size} long, far more than max_wal_size (${formatByteSize(maxWalSizeBytes)})`;
  if (isFollowed)
    return [
      warn(
        "wal",
        `${message}, though a daemon follows it; the file keeps its size until something truncates it`,
        "see whether `bakelite status` names a process that holds it; else nothing has to be done",
      ),
    ];
  return [
    warn(
      "wal",
      `${message}, and no daemon runs: long readers keep it from being restarted, or the application leaves checkpoints to others (wal_autocheckpoint = 0)`,
      "start the daemon, which checkpoints; if it goes on growing, end the readers that `bakelite status` names",
    ),
  ];
}

/** What the daemon needs on this host: to write the database, its -wal and -shm, and to make `.bakelite/` beside it. */
export async function judgePermissions(look: DatabaseLook, scene: Scene): Promise<readonly Check[]> {
  const { user, people } = scene;
  if (user === null) return [];
  const present = (info: Stats | null, path: string) => (info?.isFile() === true ? [path] : []);
  const files = [
    ...present(look.info, look.path),
    ...present(look.wal, `${look.path}-wal`),
    ...present(look.shm, `${look.path}-shm`),
  ];
  const obstacles = new Set<string>();
  const folder = await findObstacle(user, people, { path: dirname(look.path), wanted: READ | WRITE | ENTER });
  if (folder !== null) obstacles.add(folder);
  for (const path of files) {
    const obstacle = await findObstacle(user, people, { path, wanted: READ | WRITE });
    if (obstacle !== null) obstacles.add(obstacle);
  }
  if (obstacles.size === 0)
    return [pass("permissions", `${user.name} may read and write the database and its directory`)];
  const owner = look.info === null ? null : people.userName(look.info.uid);
  const fix =
    owner === null || owner === user.name
      ? `give ${user.name} access (chown, chmod; \`namei -l ${shellWord(look.path)}\` shows every directory on the way)`
      : `run the daemon as ${owner}, who owns the database (User= in a drop-in of the service), or give ${user.name} access`;
  return [...obstacles].map((obstacle) => fail("permissions", obstacle, fix));
}

/** The file system of the database's directory, and the room on it. */
export async function judgeDatabaseDisk(
  { path, info }: DatabaseLook,
  { maxWalSizeBytes }: DatabaseConfig,
  { mounts }: Scene,
): Promise<readonly Check[]> {
  const { type, readOnly, freeBytes, freeFiles } = await lookAtFileSystem(dirname(path), mounts);
  return [
    judgeFileSystem(type, readOnly),
    judgeRoom({ freeBytes, freeFiles, databaseBytes: info?.size ?? 0, maxWalSizeBytes }),
  ];
}

function judgeFileSystem(type: string | null, readOnly: boolean): Check {
  if (readOnly)
    return fail(
      "file system",
      `${type ?? "it"} is mounted read-only`,
      "mount it read-write; `dmesg` may say why it is not",
    );
  if (type === null) return pass("file system", "its kind cannot be told here");
  const unfit = unfitForWal(type);
  if (unfit === null) return pass("file system", type);
  return warn("file system", `${type}: ${unfit}`, "keep the database on a local disk, in a container on a volume");
}

export interface Room {
  readonly freeBytes: number;
  readonly freeFiles: number | null;
  readonly databaseBytes: number;
  readonly maxWalSizeBytes: number;
}

/** The page ledger takes 16 bytes for each page, which is at most a 32nd of the database. */
const LEDGER_SHARE = 32;

/** Room for a WAL at its limit and for the page ledger; and, for a restore in place, for the database once more. Pure. */
export function judgeRoom({ freeBytes, freeFiles, databaseBytes, maxWalSizeBytes }: Room): Check {
  const free = `${formatByteSize(freeBytes)} free`;
  const least = maxWalSizeBytes + databaseBytes / LEDGER_SHARE;
  if (freeFiles === 0)
    return fail("disk space", "no file can be made any more: the inodes are used up", "remove files (`df -i`)");
  if (freeBytes < least)
    return fail(
      "disk space",
      `${free}, and a WAL at its limit with bakelite's own files needs ${formatByteSize(least)}`,
      "free space on the database's disk: the application will soon fail as well",
    );
  if (freeBytes < databaseBytes)
    return warn(
      "disk space",
      `${free}, less than the database's ${formatByteSize(databaseBytes)}: a restore to its place would not fit beside it`,
      "free space there, or restore to another disk with --output",
    );
  return pass("disk space", free);
}
