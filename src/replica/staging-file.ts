import { type FileHandle, lstat, open, readdir, unlink } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { BakeliteError } from "../util/errors.ts";
import { systemError } from "../util/system-error.ts";
import { findFileUser } from "./file-users.ts";
import type { PageSink } from "./lay-pages.ts";
import { createStagingSuffix, isStagingAbandoned, parseStagingSuffix } from "./staging-name.ts";

/** Writes that the system has not finished yet may hold this much. */
const MAX_UNWRITTEN_BYTES = 8 * 1024 * 1024;
const STAGING_MARK = ".bakelite-restore-";
/** How often a staging file shows that its process lives, also while nothing is written to it. */
const SIGN_OF_LIFE_MS = 30_000;

/**
 * A database that is being put together beside its target: `<name>.bakelite-restore-<whose>`, mode 0600, of its final
 * size from the start, with zeros wherever nothing was written. No other run has the same name, and the name tells whether
 * its process lives (`staging-name.ts`). Removed on every way out unless it was `moved`.
 */
export class StagingFile implements AsyncDisposable, PageSink {
  readonly path: string;
  readonly #handle: FileHandle;
  readonly #pageSizeBytes: number;
  readonly #writes = new Set<Promise<void>>();
  readonly #signsOfLife: NodeJS.Timeout;
  #unwrittenBytes = 0;
  #failure: { readonly error: unknown } | null = null;
  #moved = false;

  private constructor(path: string, handle: FileHandle, pageSizeBytes: number) {
    this.path = path;
    this.#handle = handle;
    this.#pageSizeBytes = pageSizeBytes;
    // A failure is nothing to stop for: whoever may then remove the file makes this restore fail, and harms no database.
    this.#signsOfLife = setInterval(() => void touch(handle).catch(() => {}), SIGN_OF_LIFE_MS);
    this.#signsOfLife.unref();
  }

  static async create(
    targetPath: string,
    size: { readonly pages: number; readonly pageSizeBytes: number },
  ): Promise<StagingFile> {
    const path = `${targetPath}${STAGING_MARK}${await createStagingSuffix()}`;
    try {
      const staging = new StagingFile(path, await open(path, "wx+", 0o600), size.pageSizeBytes);
      await staging.#handle.truncate(size.pages * size.pageSizeBytes);
      return staging;
    } catch (error) {
      throw writeError(path, error);
    }
  }

  /** Returns once there is room for more, which may be before the images are written; `drain` waits for all. */
  async write(firstPage: number, images: Uint8Array): Promise<void> {
    const write = this.#write(images, (firstPage - 1) * this.#pageSizeBytes);
    this.#writes.add(write);
    this.#unwrittenBytes += images.length;
    void write.finally(() => {
      this.#writes.delete(write);
      this.#unwrittenBytes -= images.length;
    });
    while (this.#unwrittenBytes > MAX_UNWRITTEN_BYTES) await Promise.race(this.#writes);
    this.#throwFailure();
  }

  /** Resolves when all that was given has been written, though not yet to the disk. */
  async drain(): Promise<void> {
    await Promise.all(this.#writes);
    this.#throwFailure();
  }

  /** Makes the content durable. */
  async sync(): Promise<void> {
    try {
      await this.#handle.sync();
    } catch (error) {
      throw writeError(this.path, error);
    }
  }

  /** Gives the file the owner and permission bits that it will have. */
  async setPermissions({ mode, owner }: FilePermissions): Promise<void> {
    try {
      if (owner !== null) await this.#handle.chown(owner.uid, owner.gid);
      // After the chown, which clears set-id bits.
      await this.#handle.chmod(mode);
    } catch (error) {
      throw systemError("cannot set owner and mode of the restored database", this.path, error);
    }
  }

  /** The file has its final name: nothing is left to remove. */
  moved(): void {
    this.#moved = true;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    clearInterval(this.#signsOfLife);
    await Promise.all(this.#writes);
    await this.#handle.close();
    // What cannot be removed is found and removed by the next restore to this place.
    if (!this.#moved) await unlink(this.path).catch(() => {});
  }

  /** Never rejects: whoever comes next is told. */
  async #write(images: Uint8Array, offset: number): Promise<void> {
    try {
      for (let done = 0; done < images.length && this.#failure === null; ) {
        const { bytesWritten } = await this.#handle.write(images, done, images.length - done, offset + done);
        done += bytesWritten;
      }
    } catch (error) {
      this.#failure ??= { error };
    }
  }

  #throwFailure(): void {
    if (this.#failure !== null) throw writeError(this.path, this.#failure.error);
  }
}

export interface FilePermissions {
  readonly mode: number;
  /** null: this process. */
  readonly owner: { readonly uid: number; readonly gid: number } | null;
}

/**
 * Removes what restores to `targetPath` left behind when they were killed: staging files of this user whose process is gone
 * and that nobody has open. Returns their paths. What is in doubt stays.
 */
export async function removeAbandonedStaging(targetPath: string): Promise<readonly string[]> {
  const removed: string[] = [];
  const prefix = basename(targetPath) + STAGING_MARK;
  for (const name of await readdir(dirname(targetPath))) {
    const owner = name.startsWith(prefix) ? parseStagingSuffix(name.slice(prefix.length)) : null;
    if (owner === null) continue;
    const path = join(dirname(targetPath), name);
    const info = await lstat(path).catch(() => null);
    if (info === null || !info.isFile() || info.uid !== process.geteuid?.()) continue;
    if (!(await isStagingAbandoned(owner, Date.now() - info.mtimeMs))) continue;
    // A user other than root cannot see what others have open, but sees his own files' descriptors.
    if ((await findFileUser([path])) !== null) continue;
    // Another restore may have removed it first, and tells of it.
    if (
      await unlink(path).then(
        () => true,
        () => false,
      )
    )
      removed.push(path);
  }
  return removed;
}

async function touch(handle: FileHandle): Promise<void> {
  const now = new Date();
  await handle.utimes(now, now);
}

function writeError(path: string, cause: unknown): Error {
  const error = systemError("cannot write the restored database", path, cause);
  if (error.code !== "storage-full") return error;
  const hint = "free space on that disk, or choose an --output on another one";
  return new BakeliteError(error.code, `${error.message}: the disk is full`, { subject: path, hint, cause });
}
