import { randomBytes } from "node:crypto";
import { type FileHandle, open, rename, unlink } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { systemError } from "./system-error.ts";

export interface AtomicWriteOptions {
  /** Permission bits of the new file, whatever the umask; 0600 by default. */
  readonly mode?: number;
  /** Given to the file before it appears; by default it belongs to this process. */
  readonly owner?: { readonly uid: number; readonly gid: number };
}

/**
 * Replaces the file at `path`, or makes it: readers see the old content or all of the new, and after this resolves the
 * new one survives a power cut. Written to a temporary name in the same directory, fsynced, renamed, and the directory
 * fsynced. On failure the old file stands and nothing is left behind; throws as `systemError`.
 */
export async function writeFileAtomically(
  path: string,
  content: string | Uint8Array,
  options: AtomicWriteOptions = {},
): Promise<void> {
  const temporaryPath = join(dirname(path), `.${basename(path)}.${randomBytes(6).toString("hex")}.tmp`);
  try {
    await writeDurably(
      temporaryPath,
      typeof content === "string" ? new TextEncoder().encode(content) : content,
      options,
    );
    try {
      await rename(temporaryPath, path);
    } catch (error) {
      await unlink(temporaryPath).catch(() => {});
      throw error;
    }
    await syncDirectory(dirname(path));
  } catch (cause) {
    throw systemError("cannot write the file", path, cause);
  }
}

/** Makes renames, new names and removals in the directory survive a power cut. */
export async function syncDirectory(path: string): Promise<void> {
  await using directory = await open(path, "r");
  await directory.sync();
}

/** Makes a new file; removes it again when anything fails. */
async function writeDurably(path: string, bytes: Uint8Array, options: AtomicWriteOptions): Promise<void> {
  const { mode = 0o600, owner } = options;
  await using file = await open(path, "wx", mode);
  try {
    await writeFully(file, bytes);
    if (owner !== undefined) await file.chown(owner.uid, owner.gid);
    // After the chown, which clears set-id bits; and because the umask may have taken some away.
    await file.chmod(mode);
    await file.sync();
  } catch (error) {
    await unlink(path).catch(() => {});
    throw error;
  }
}

/** One write may take fewer bytes than given, as when the disk is nearly full; the next one then fails with the reason. */
async function writeFully(file: FileHandle, bytes: Uint8Array): Promise<void> {
  for (let offset = 0; offset < bytes.byteLength; ) {
    const { bytesWritten } = await file.write(bytes, offset, bytes.byteLength - offset);
    offset += bytesWritten;
  }
}
