import { readdir, readFile, readlink, stat } from "node:fs/promises";
import { readLockTable, splitDevice } from "../state/lock-table.ts";
import { systemErrorCode } from "../util/errors.ts";

/** Somebody who has a file open, or holds a lock on it. */
export interface FileUser {
  /** null: in another PID namespace, such as a container. */
  readonly pid: number | null;
  /** The program's name, or null where that is not ours to see. */
  readonly program: string | null;
  readonly path: string;
}

interface Identity {
  readonly path: string;
  readonly dev: bigint;
  readonly ino: bigint;
}

/**
 * A process other than this one that has one of `paths` open or locked, or null. Files are told by device and inode, so a
 * link or a bind mount makes no difference; no file is opened. Looks at the descriptors of every process that we
 * may look into (for root that is all of them), and at the kernel's table of locks: SQLite holds a lock on a database in
 * WAL mode for as long as it is open, so those of other users show too. Linux; elsewhere asks `lsof`, where there is one.
 */
export async function findFileUser(paths: readonly string[]): Promise<FileUser | null> {
  const identities = (await Promise.all(paths.map(identityOf))).filter((identity) => identity !== null);
  if (identities.length === 0) return null;
  if (process.platform !== "linux") return askLsof(identities.map((identity) => identity.path));
  return (await findDescriptor(identities)) ?? (await findLock(identities));
}

async function identityOf(path: string): Promise<Identity | null> {
  try {
    const { dev, ino } = await stat(path, { bigint: true });
    return { path, dev, ino };
  } catch (error) {
    if (systemErrorCode(error) === "ENOENT") return null;
    throw error;
  }
}

async function findDescriptor(identities: readonly Identity[]): Promise<FileUser | null> {
  for (const entry of await namesIn("/proc")) {
    const pid = /^\d+$/.test(entry) ? Number(entry) : process.pid;
    if (pid === process.pid) continue;
    for (const descriptor of await namesIn(`/proc/${pid}/fd`)) {
      const path = await openedPath(`/proc/${pid}/fd/${descriptor}`, identities);
      if (path !== null) return { pid, program: await programOf(pid), path };
    }
  }
  return null;
}

/** Processes end while we look, and those of other users are closed to us: both have nothing to show. */
async function namesIn(directory: string): Promise<readonly string[]> {
  try {
    return await readdir(directory);
  } catch {
    return [];
  }
}

async function openedPath(descriptor: string, identities: readonly Identity[]): Promise<string | null> {
  try {
    // Sockets, pipes and the like; a stat of some of those may block.
    if (!(await readlink(descriptor)).startsWith("/")) return null;
    const { dev, ino } = await stat(descriptor, { bigint: true });
    return identities.find((identity) => identity.dev === dev && identity.ino === ino)?.path ?? null;
  } catch {
    return null;
  }
}

async function findLock(identities: readonly Identity[]): Promise<FileUser | null> {
  const locks = (await readLockTable()) ?? [];
  for (const { path, dev, ino } of identities) {
    const { major, minor } = splitDevice(dev);
    const lock = locks.find(
      ({ pid, deviceMajor, deviceMinor, inode }) =>
        pid !== process.pid && deviceMajor === major && deviceMinor === minor && inode === ino,
    );
    if (lock === undefined) continue;
    return lock.pid > 0
      ? { pid: lock.pid, program: await programOf(lock.pid), path }
      : { pid: null, program: null, path };
  }
  return null;
}

async function programOf(pid: number): Promise<string | null> {
  try {
    return (await readFile(`/proc/${pid}/comm`, "utf8")).trim();
  } catch {
    return null;
  }
}

async function askLsof(paths: readonly string[]): Promise<FileUser | null> {
  const lsof = Bun.which("lsof");
  const path = paths[0];
  if (lsof === null || path === undefined) return null;
  const output = await Bun.$`${lsof} -t -- ${paths}`.nothrow().quiet().text();
  const pids = output
    .split("\n")
    .map(Number)
    .filter((pid) => pid > 0 && pid !== process.pid);
  return pids[0] === undefined ? null : { pid: pids[0], program: null, path };
}
