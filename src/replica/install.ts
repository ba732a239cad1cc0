import { randomBytes } from "node:crypto";
import { link, lstat, rename, stat, unlink } from "node:fs/promises";
import { dirname } from "node:path";
import { syncDirectory } from "../util/atomic-file.ts";
import { BakeliteError, systemErrorCode } from "../util/errors.ts";
import { systemError } from "../util/system-error.ts";
import { findFileUser } from "./file-users.ts";

/** What SQLite keeps beside a database. */
const WAL = "-wal";
const JOURNAL = "-journal";
const SHARED_MEMORY = "-shm";

/** What link(2) answers where there are no hard links. */
const NO_HARD_LINKS = new Set(["EPERM", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EMLINK", "EXDEV"]);

/**
 * Throws unless a database may be put at `targetPath`: `output-exists` when something is there and `overwrite` is false, or
 * when it is not a file; `database-busy`, naming the process, when somebody has it or a file beside it open.
 */
export async function assertReplaceable(targetPath: string, overwrite: boolean): Promise<void> {
  const found = await lstat(targetPath).catch(nullWhenMissing);
  if (found !== null && !found.isFile())
    throw new BakeliteError("output-exists", "cannot restore there: it is not a file", {
      subject: targetPath,
      hint: "choose another --output",
    });
  if (found !== null && !overwrite) throw outputExists(targetPath);
  const user = await findFileUser(["", WAL, SHARED_MEMORY, JOURNAL].map((suffix) => targetPath + suffix));
  if (user === null) return;
  const who =
    user.pid === null
      ? "a process in another container"
      : `process ${user.pid}${user.program === null ? "" : ` (${user.program})`}`;
  throw new BakeliteError(
    "database-busy",
    `cannot replace the database: ${who} has ${user.path === targetPath ? "it" : user.path} open`,
    {
      subject: targetPath,
      hint: "stop that process, or restore to another --output",
    },
  );
}

/**
 * Gives the finished, durable file at `stagedPath` the name `targetPath`, and removes what belonged to the file that was
 * there. Whoever opens the target at any moment, also after a crash at any moment, finds the old database with all that belongs to
 * it, or the new one with nothing beside it, or no database. A crash leaves:
 *
 * - No database there before: files beside it belong to none. They go first, durably; then the new name appears, and not
 *   over one that has come into being meanwhile. A crash leaves no database, as before.
 * - A database without anything to replay beside it: its `-shm` goes (SQLite makes a new one), then one rename replaces
 *   it. A crash leaves the old one or the new one.
 * - A database with a `-wal` or a hot journal. Two names cannot change at once. To lay the new file under the old `-wal` would have
 *   SQLite replay that into it; to take the `-wal` away first would leave an old database without its newest commits,
 *   perhaps torn in the middle of a checkpoint, that looks sound. So no database stands there in between, which nobody mistakes for a good one
 *   and which `restore --if-db-not-exists` at the next start mends by itself; and before that, the old database has got
 *   a second name with its `-wal` beside it, `<name>.bakelite-replaced-<random>`, and is whole and openable there
 *   until the new one stands. A crash leaves: the old one, and perhaps that second name; or that second name alone; or
 *   the new one, and that second name. Where there are no hard links the files are renamed instead, the
 *   database first, and a crash between these renames leaves its `-wal` under the old name.
 */
export async function installDatabase(stagedPath: string, targetPath: string, overwrite: boolean): Promise<void> {
  await assertReplaceable(targetPath, overwrite);
  try {
    if ((await sizeOf(targetPath)) === null) {
      if (await installNew(stagedPath, targetPath)) return;
      // Another restore was first. With leave to replace, what it put there is replaced like any other file.
      await assertReplaceable(targetPath, overwrite);
    }
    if (await hasSomethingToReplay(targetPath)) await replaceWithReplay(stagedPath, targetPath);
    else await replaceAlone(stagedPath, targetPath);
  } catch (error) {
    throw systemError("cannot move the restored database into place", targetPath, error);
  }
}

/** False, with nothing done, when somebody has put a file there meanwhile. */
async function installNew(stagedPath: string, targetPath: string): Promise<boolean> {
  await removeBeside(targetPath);
  try {
    // Unlike rename, link refuses a name that has come into being since we looked.
    await link(stagedPath, targetPath);
  } catch (error) {
    const code = systemErrorCode(error) ?? "";
    if (code === "EEXIST") return false;
    if (!NO_HARD_LINKS.has(code)) throw error;
    await rename(stagedPath, targetPath);
    await syncDirectory(dirname(targetPath));
    return true;
  }
  await unlink(stagedPath);
  await syncDirectory(dirname(targetPath));
  return true;
}

async function replaceAlone(stagedPath: string, targetPath: string): Promise<void> {
  await removeBeside(targetPath);
  await rename(stagedPath, targetPath);
  await syncDirectory(dirname(targetPath));
}

async function replaceWithReplay(stagedPath: string, targetPath: string): Promise<void> {
  const directory = dirname(targetPath);
  const asidePath = `${targetPath}.bakelite-replaced-${randomBytes(8).toString("hex")}`;
  const whole = [WAL, JOURNAL, ""];
  if (await linkAll(whole.map((suffix) => [targetPath + suffix, asidePath + suffix]))) {
    await syncDirectory(directory);
    await unlink(targetPath);
  } else {
    await rename(targetPath, asidePath);
    for (const suffix of [WAL, JOURNAL]) await rename(targetPath + suffix, asidePath + suffix).catch(nullWhenMissing);
  }
  await syncDirectory(directory);
  try {
    await removeBeside(targetPath);
    await rename(stagedPath, targetPath);
    await syncDirectory(directory);
  } catch (error) {
    throw new BakeliteError(
      "io",
      "cannot move the restored database into place; the former one is whole under another name",
      {
        subject: asidePath,
        hint: `rename it and its ${WAL} back, or restore again`,
        cause: error,
      },
    );
  }
  // The database's name first: a leftover -wal by itself is nothing.
  for (const suffix of whole.toReversed()) await unlinkIfThere(asidePath + suffix);
  await syncDirectory(directory);
}

/** Gives each file that exists its second name. False, with none of them given, where there are no hard links. */
async function linkAll(names: readonly (readonly [from: string, to: string])[]): Promise<boolean> {
  const made: string[] = [];
  try {
    for (const [from, to] of names) {
      if ((await sizeOf(from)) === null) continue;
      await link(from, to);
      made.push(to);
    }
    return true;
  } catch (error) {
    for (const path of made) await unlinkIfThere(path);
    if (NO_HARD_LINKS.has(systemErrorCode(error) ?? "")) return false;
    throw error;
  }
}

/** Removes what stands beside the database, durably. */
async function removeBeside(targetPath: string): Promise<void> {
  const removed = await Promise.all([WAL, JOURNAL, SHARED_MEMORY].map((suffix) => unlinkIfThere(targetPath + suffix)));
  if (removed.includes(true)) await syncDirectory(dirname(targetPath));
}

async function hasSomethingToReplay(targetPath: string): Promise<boolean> {
  const sizes = await Promise.all([WAL, JOURNAL].map((suffix) => sizeOf(targetPath + suffix)));
  return sizes.some((size) => size !== null && size > 0);
}

async function sizeOf(path: string): Promise<number | null> {
  return (await stat(path).catch(nullWhenMissing))?.size ?? null;
}

/** True when there was one. */
async function unlinkIfThere(path: string): Promise<boolean> {
  try {
    await unlink(path);
    return true;
  } catch (error) {
    nullWhenMissing(error);
    return false;
  }
}

function outputExists(targetPath: string): BakeliteError {
  return new BakeliteError("output-exists", "cannot restore there: the file exists", {
    subject: targetPath,
    hint: "choose another --output, or add --force to replace it",
  });
}

function nullWhenMissing(error: unknown): null {
  if (systemErrorCode(error) === "ENOENT") return null;
  throw error;
}
