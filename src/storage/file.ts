import { randomBytes } from "node:crypto";
import { constants, type Dirent, type Stats } from "node:fs";
import { type FileHandle, link, lstat, mkdir, open, readdir, realpath, rename, stat, unlink } from "node:fs/promises";
import { dirname, isAbsolute, join, normalize } from "node:path";
import { syncDirectory } from "../util/atomic-file.ts";
import { assert, BakeliteError, systemErrorCode } from "../util/errors.ts";
import { throwIfAborted, untilAborted } from "./abort.ts";
import {
  type Backend,
  type BackendCapabilities,
  type ByteSource,
  type ByteStream,
  type CallOptions,
  type GetOptions,
  type ListOptions,
  type PutOptions,
  resolveRange,
  type StoredObject,
} from "./backend.ts";
import { asStorage, fileStorageError } from "./file-errors.ts";
import { assertKeyPrefix, assertObjectKey, compareKeys, sortKeys } from "./object-key.ts";

const TEMPORARY_PREFIX = ".tmp-";
const READ_PIECE_BYTES = 512 * 1024;
const STAT_BATCH = 128;
const FILE_MODE = 0o600;
const DIRECTORY_MODE = 0o700;

/** What link(2) answers on file systems without hard links (FAT, exFAT, some network shares). */
const NO_HARD_LINKS = new Set(["EPERM", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EMLINK", "EXDEV"]);
/**
 * Much more is never left to the fsync at the end: on a slow disk that would take minutes, in which nobody can tell it from a
 * disk that has died.
 */
const SYNC_EVERY_BYTES = 64 * 1024 * 1024;
/** What fsync(2) answers for a directory where the file system has no such thing; nothing more can be done there. */
const NO_DIRECTORY_SYNC = new Set(["EINVAL", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EISDIR"]);

export interface FileBackendOptions {
  /**
   * An absolute directory. When it does not exist and its parent does, the first put creates it; a parent is never
   * created, because a missing one usually is a disk that is not mounted, and the backup must not fill the disk below.
   */
  readonly path: string;
  /** False: behave as on a file system without hard links. Found out by itself when not given. */
  readonly hardLinks?: boolean;
}

/**
 * A directory as a destination. A key's names are the directories (0700) and the file (0600) below the root. An object is
 * written to `.tmp-<random>` in the directory it goes to, fsynced, then linked (`ifAbsent`: atomic against every other
 * process) or renamed (replace) into place, and the directory is fsynced. A crash leaves at most such a temporary file,
 * which no verb shows and `sweepTemporaryFiles` removes.
 */
export class FileBackend implements Backend {
  readonly location: string;
  #hardLinks: boolean;
  #rootWasMountPoint: boolean | undefined;
  /** Directories (as key prefixes) known to exist durably; emptied when one turns out to be gone. */
  readonly #durableDirectories = new Set<string>();
  /** Directories that were reached without a link; only reads take this for granted. */
  readonly #linkFreeDirectories = new Set<string>();

  constructor(options: FileBackendOptions) {
    assert(isAbsolute(options.path), "a file backend's path is absolute");
    const path = normalize(options.path);
    this.location = path.length > 1 && path.endsWith("/") ? path.slice(0, -1) : path;
    this.#hardLinks = options.hardLinks ?? true;
  }

  /** Without hard links `putIfAbsent` becomes false at the first put that finds out: it then looks and renames. */
  get capabilities(): BackendCapabilities {
    return { putIfAbsent: this.#hardLinks };
  }

  async put(key: string, body: ByteSource, options: PutOptions = {}): Promise<"stored" | "exists"> {
    this.#assertKey(key);
    throwIfAborted(options.signal);
    const root = await this.#lookAtRoot();
    const target = join(this.location, key);
    const directoryKey = directoryOf(key);
    await this.#prepareDirectory(directoryKey);
    // From now on it is known, and must not be made anew when it disappears.
    if (root === "not-yet-created") await this.#lookAtRoot();
    await this.#assertNoLink(directoryKey);
    if (options.ifAbsent === true && (await lstatOrNull(target, "look for the object")) !== null)
      return await this.#exists(target);

    const temporary = join(dirname(target), `${TEMPORARY_PREFIX}${randomBytes(12).toString("hex")}`);
    await using staged = await this.#stage(temporary, directoryKey);
    await writeBody(staged.handle, body, options.signal, temporary);
    await asStorage(staged.handle.sync(), "make the object durable", temporary);
    await asStorage(staged.handle.close(), "finish writing the object", temporary);
    throwIfAborted(options.signal);
    const outcome =
      options.ifAbsent === true ? await this.#publishNew(temporary, target) : await publish(temporary, target);
    if (outcome === "stored") staged.published();
    // Also for "exists": the other writer may be between its link and its fsync, and our caller will rely on the object.
    await makeDurable(dirname(target));
    return outcome;
  }

  async get(key: string, options: GetOptions = {}): Promise<ByteStream | null> {
    this.#assertKey(key);
    throwIfAborted(options.signal);
    const path = join(this.location, key);
    const info = await this.#lookAtObject(key, path);
    return info === null ? null : readFileRange(path, options);
  }

  async stat(key: string, options: CallOptions = {}): Promise<StoredObject | null> {
    this.#assertKey(key);
    throwIfAborted(options.signal);
    const info = await this.#lookAtObject(key, join(this.location, key));
    return info === null ? null : storedObject(key, info);
  }

  async *list(prefix: string, options: ListOptions = {}): AsyncGenerator<StoredObject, void> {
    assertKeyPrefix(prefix);
    throwIfAborted(options.signal);
    if ((await this.#lookAtRoot()) === "not-yet-created") return;
    const directoryKey = directoryOf(prefix);
    await this.#assertNoLink(directoryKey);
    yield* this.#listDirectory(directoryKey, { prefix, startAfter: options.startAfter ?? "", signal: options.signal });
    // A disk that was unmounted on the way makes the rest of the directories look empty.
    await this.#lookAtRoot();
  }

  async delete(keys: readonly string[], options: CallOptions = {}): Promise<void> {
    for (const key of keys) this.#assertKey(key);
    await this.#lookAtRoot();
    const directories = new Set<string>();
    try {
      for (const key of keys) {
        throwIfAborted(options.signal);
        await this.#assertNoLink(directoryOf(key));
        if (await unlinkIfThere(join(this.location, key))) directories.add(dirname(join(this.location, key)));
      }
    } finally {
      for (const directory of directories) await makeDurable(directory);
    }
  }

  /**
   * Throws `storage-unreachable` when the root is missing and so is its parent, or when this backend has seen the root
   * and it is gone, or was a mount point and is one no longer: an unmounted disk must neither be filled from below nor
   * look like an empty replica. (A device number says less: a network share mounted anew has another one.)
   */
  async #lookAtRoot(): Promise<"there" | "not-yet-created"> {
    const root = await statOrNull(this.location, "reach the backup directory");
    if (root === null) {
      if (this.#rootWasMountPoint !== undefined) throw this.#rootGone("has disappeared");
      const parent = dirname(this.location);
      if ((await statOrNull(parent, "reach the backup directory")) !== null) return "not-yet-created";
      throw new BakeliteError(
        "storage-unreachable",
        "cannot reach the backup directory: the folder above it does not exist",
        {
          subject: this.location,
          hint: `mount the disk that should hold it, or create ${parent} yourself`,
        },
      );
    }
    if (!root.isDirectory())
      throw new BakeliteError("io", "cannot use the backup directory: it is not a directory", {
        subject: this.location,
        hint: "move that file out of the way, or change the backend's `path`",
      });
    const above = await asStorage(stat(`${this.location}/..`), "reach the backup directory", this.location);
    const isMountPoint = above.dev !== root.dev;
    if (this.#rootWasMountPoint === true && !isMountPoint) throw this.#rootGone("is no longer a mounted disk");
    this.#rootWasMountPoint = isMountPoint;
    return "there";
  }

  #rootGone(what: string): BakeliteError {
    return new BakeliteError("storage-unreachable", `cannot reach the backup directory: it ${what}`, {
      subject: this.location,
      hint: "mount its disk again; if it was moved or removed on purpose, restart bakelite",
    });
  }

  #assertKey(key: string): void {
    assertObjectKey(key);
    assert(!key.split("/").some(isTemporaryName), `no name in an object key begins with ${TEMPORARY_PREFIX}`);
  }

  /** null when there is no such object, but not because its disk is gone. Throws for a link. */
  async #lookAtObject(key: string, path: string): Promise<Stats | null> {
    const info = await lstatOrNull(path, "look for the object");
    if (info === null) {
      await this.#lookAtRoot();
      return null;
    }
    const directoryKey = directoryOf(key);
    if (!this.#linkFreeDirectories.has(directoryKey)) await this.#assertNoLink(directoryKey);
    if (info.isSymbolicLink()) throw fileStorageError({ code: "ELOOP" }, "read the object", path);
    return info.isFile() ? info : null;
  }

  /** Creates the root and the key's directories where missing, and makes every one of them durable in the one above. */
  async #prepareDirectory(directoryKey: string): Promise<void> {
    if (this.#durableDirectories.has(directoryKey)) return;
    const parents = directoryKey.split("/").slice(0, -1);
    const paths = [this.location, ...parents.map((_, i) => join(this.location, ...parents.slice(0, i + 1)))];
    for (const path of paths) {
      try {
        await mkdir(path, { mode: DIRECTORY_MODE });
        if (path !== this.location) await giveFolderToOwnerAbove(path);
      } catch (error) {
        if (systemErrorCode(error) !== "EEXIST") throw fileStorageError(error, "create the backup directory", path);
        // The root was there before us, and what is above it may not be ours to read.
        if (path === this.location) continue;
      }
      await makeDurable(dirname(path));
    }
    this.#durableDirectories.add(directoryKey);
  }

  /** Creates the temporary file, and the directory again if somebody removed it since we knew it to exist. */
  async #stage(temporary: string, directoryKey: string): Promise<StagedFile> {
    try {
      return await StagedFile.create(temporary);
    } catch (error) {
      if (systemErrorCode(error) !== "ENOENT") throw fileStorageError(error, "store the object", temporary);
    }
    this.#durableDirectories.clear();
    await this.#lookAtRoot();
    await this.#prepareDirectory(directoryKey);
    return await asStorage(StagedFile.create(temporary), "store the object", temporary);
  }

  /** `link` refuses an existing name atomically, which rename does not. */
  async #publishNew(temporary: string, target: string): Promise<"stored" | "exists"> {
    if (this.#hardLinks) {
      try {
        await link(temporary, target);
        // What stays behind when this fails is one more name of the same bytes, hidden and swept later.
        await unlink(temporary).catch(() => {});
        return "stored";
      } catch (error) {
        const code = systemErrorCode(error) ?? "";
        if (code === "EEXIST") return "exists";
        if (!NO_HARD_LINKS.has(code)) throw fileStorageError(error, "store the object", target);
        this.#hardLinks = false;
      }
    }
    if ((await lstatOrNull(target, "look for the object")) !== null) return "exists";
    return await publish(temporary, target);
  }

  async #exists(target: string): Promise<"exists"> {
    await makeDurable(dirname(target));
    return "exists";
  }

  /** Refuses a directory that is reached through a symbolic link below the root: what is put there, list would not show. */
  async #assertNoLink(directoryKey: string): Promise<void> {
    if (directoryKey === "") return;
    try {
      const root = await realpath(this.location);
      const path = await realpath(join(this.location, directoryKey));
      if (path === join(root, directoryKey.slice(0, -1))) {
        this.#linkFreeDirectories.add(directoryKey);
        return;
      }
    } catch (error) {
      if (isMissing(error)) return;
      throw fileStorageError(error, "reach the object's directory", join(this.location, directoryKey));
    }
    throw fileStorageError({ code: "ELOOP" }, "use the object's directory", join(this.location, directoryKey));
  }

  /** Names of one directory are held in memory at a time (and those of the directories above it), no objects. */
  async *#listDirectory(directoryKey: string, filter: ListFilter): AsyncGenerator<StoredObject, void> {
    const keys = await this.#keysIn(directoryKey, filter);
    for (let i = 0; i < keys.length; ) {
      throwIfAborted(filter.signal);
      const key = keys[i] ?? "";
      if (key.endsWith("/")) {
        yield* this.#listDirectory(key, filter);
        i++;
        continue;
      }
      let end = i + 1;
      while (end < keys.length && end - i < STAT_BATCH && keys[end]?.endsWith("/") === false) end++;
      for (const object of await Promise.all(keys.slice(i, end).map((k) => this.#look(k))))
        if (object !== null) yield object;
      i = end;
    }
  }

  /** Files as `a/b`, directories as `a/b/`, ascending: so a directory stands where its objects belong. */
  async #keysIn(directoryKey: string, filter: ListFilter): Promise<string[]> {
    const path = join(this.location, directoryKey);
    const keys: string[] = [];
    for (const entry of await readDirectory(path)) {
      const name = entry.name;
      if (isTemporaryName(name)) continue;
      const known = kindOf(entry, path);
      // A promise costs more than the look at an entry, and a directory may have 100,000 of them.
      const kind = typeof known === "string" ? known : await known;
      if (kind === "other") continue;
      const key = kind === "directory" ? `${directoryKey}${name}/` : directoryKey + name;
      if (mayHold(key, filter)) keys.push(key);
    }
    return sortKeys(keys);
  }

  async #look(key: string): Promise<StoredObject | null> {
    // Not `join`, which takes as long as the look itself; a key has nothing that it would change.
    const info = await lstatOrNull(`${this.location}/${key}`, "look at the object");
    return info?.isFile() === true ? storedObject(key, info) : null;
  }
}

export interface SweepResult {
  readonly removedCount: number;
  readonly removedBytes: number;
}

/**
 * Removes what crashed puts left anywhere below `path`: temporary files last written more than `olderThanMs` (normally a
 * day) before `nowMs`. A younger one may belong to a living writer. Nothing to do is not an error, nor is a missing root.
 */
export async function sweepTemporaryFiles(options: {
  readonly path: string;
  readonly olderThanMs: number;
  readonly nowMs: number;
  readonly signal?: AbortSignal;
}): Promise<SweepResult> {
  let removedCount = 0;
  let removedBytes = 0;
  const directories = [options.path];
  for (let path = directories.pop(); path !== undefined; path = directories.pop()) {
    throwIfAborted(options.signal);
    for (const entry of await readDirectory(path)) {
      const entryPath = join(path, entry.name);
      const kind = await kindOf(entry, path);
      if (kind === "directory") directories.push(entryPath);
      if (kind !== "file" || !isTemporaryName(entry.name)) continue;
      const info = await lstatOrNull(entryPath, "look at a temporary file");
      if (info === null || info.mtimeMs > options.nowMs - options.olderThanMs) continue;
      if (!(await unlinkIfThere(entryPath))) continue;
      removedCount++;
      removedBytes += info.size;
    }
  }
  return { removedCount, removedBytes };
}

interface ListFilter {
  readonly prefix: string;
  readonly startAfter: string;
  readonly signal: AbortSignal | undefined;
}

/** Whether a file's key, or some key below a directory's, begins with the prefix and sorts after `startAfter`. */
function mayHold(key: string, { prefix, startAfter }: ListFilter): boolean {
  // Comparing takes longer than all the rest of it, and most listings begin at the beginning.
  const isAfter = startAfter === "" || compareKeys(key, startAfter) > 0;
  if (!key.endsWith("/")) return isAfter && key.startsWith(prefix);
  if (!key.startsWith(prefix) && !prefix.startsWith(key)) return false;
  return isAfter || startAfter.startsWith(key);
}

/** What answers to a chown on file systems without owners, and on network shares that trust no root. */
const NO_OWNERS = new Set(["EPERM", "EACCES", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EINVAL"]);

/**
 * Run as root, gives what was just made to whoever owns the folder that it is in: `sudo bakelite reencrypt`, `repair` or `compact`
 * must not leave objects that the daemon's user cannot read. Where that cannot be done it stays root's.
 */
async function giveToOwnerOfFolder(handle: FileHandle, path: string): Promise<void> {
  if (process.geteuid?.() !== 0) return;
  try {
    const { uid, gid } = await stat(dirname(path));
    if (uid !== 0 || gid !== 0) await handle.chown(uid, gid);
  } catch (error) {
    if (NO_OWNERS.has(systemErrorCode(error) ?? "")) return;
    await handle.close().catch(() => {});
    await unlink(path).catch(() => {});
    throw error;
  }
}

/** The same for a folder. Opened without following a link, since the folder above may belong to somebody else. */
async function giveFolderToOwnerAbove(path: string): Promise<void> {
  if (process.geteuid?.() !== 0) return;
  await using handle = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_DIRECTORY);
  const { uid, gid } = await stat(dirname(path));
  if (uid === 0 && gid === 0) return;
  await handle.chown(uid, gid).catch((error: unknown) => {
    if (!NO_OWNERS.has(systemErrorCode(error) ?? "")) throw error;
  });
}

/** A temporary file that is removed when it goes out of scope, unless it was published. */
class StagedFile implements AsyncDisposable {
  readonly handle: FileHandle;
  readonly #path: string;
  #published = false;

  private constructor(handle: FileHandle, path: string) {
    this.handle = handle;
    this.#path = path;
  }

  static async create(path: string): Promise<StagedFile> {
    const handle = await open(path, "wx", FILE_MODE);
    await giveToOwnerOfFolder(handle, path);
    return new StagedFile(handle, path);
  }

  published(): void {
    this.#published = true;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.handle.close().catch(() => {});
    // A failure here would hide the reason why we are leaving; the sweep finds what stays.
    if (!this.#published) await unlink(this.#path).catch(() => {});
  }
}

/**
 * The bytes of a range of one file. It is opened when the first piece is asked for, so a stream that nobody reads holds no
 * descriptor (Bun throws from the garbage collector for a FileHandle that was dropped open).
 */
async function* readFileRange(path: string, { range, signal }: GetOptions): AsyncGenerator<Uint8Array, void> {
  throwIfAborted(signal);
  await using handle = await openForReading(path);
  const info = await asStorage(handle.stat(), "read the object", path);
  const { start, end } = resolveRange(range, info.size);
  for (let offset = start; offset < end; ) {
    throwIfAborted(signal);
    const piece = new Uint8Array(Math.min(READ_PIECE_BYTES, end - offset));
    const reading = handle.read(piece, 0, piece.byteLength, offset);
    const { bytesRead } = await asStorage(reading, "read the object", path);
    if (bytesRead === 0)
      throw new BakeliteError("io", "cannot read the object: the file became shorter while it was read", {
        subject: path,
        hint: "let nothing but bakelite write to the backup directory, and run `bakelite verify`",
      });
    offset += bytesRead;
    yield piece.subarray(0, bytesRead);
  }
}

async function openForReading(path: string): Promise<FileHandle> {
  try {
    // O_NONBLOCK: somebody's pipe of that name must not hang us.
    return await open(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  } catch (error) {
    if (!isMissing(error)) throw fileStorageError(error, "read the object", path);
    throw new BakeliteError("replica-missing", "cannot read the object: it was deleted while it was read", {
      subject: path,
      hint: "run the command again; if it comes back, run `bakelite verify` to see what is missing",
      cause: error,
    });
  }
}

async function writeBody(
  handle: FileHandle,
  body: ByteSource,
  signal: AbortSignal | undefined,
  path: string,
): Promise<void> {
  let offset = 0;
  let unsyncedBytes = 0;
  for await (const piece of untilAborted(body.open(), signal)) {
    for (let done = 0; done < piece.byteLength; ) {
      const { bytesWritten } = await asStorage(
        handle.write(piece, done, piece.byteLength - done, offset + done),
        "store the object",
        path,
      );
      done += bytesWritten;
    }
    offset += piece.byteLength;
    unsyncedBytes += piece.byteLength;
    if (unsyncedBytes < SYNC_EVERY_BYTES) continue;
    unsyncedBytes = 0;
    await asStorage(handle.datasync(), "make the object durable", path);
  }
  if (body.sizeBytes !== undefined && body.sizeBytes !== offset) throw wrongBodySize(body.sizeBytes, offset, path);
}

function wrongBodySize(expectedBytes: number, actualBytes: number, path: string): BakeliteError {
  return new BakeliteError(
    "io",
    `cannot store the object: its source gave ${actualBytes} bytes, not ${expectedBytes}`,
    {
      subject: path,
      hint: "try again; if it comes back, check where the bytes are copied from with `bakelite verify`",
    },
  );
}

async function publish(temporary: string, target: string): Promise<"stored"> {
  await asStorage(rename(temporary, target), "store the object", target);
  return "stored";
}

/** As util's `syncDirectory`; where the file system has no such thing, nothing more can be done. */
async function makeDurable(directory: string): Promise<void> {
  try {
    await syncDirectory(directory);
  } catch (error) {
    if (NO_DIRECTORY_SYNC.has(systemErrorCode(error) ?? "")) return;
    throw fileStorageError(error, "make the directory durable", directory);
  }
}

/** True when a file went, false when there was none. */
async function unlinkIfThere(path: string): Promise<boolean> {
  try {
    await unlink(path);
    return true;
  } catch (error) {
    if (isMissing(error)) return false;
    throw fileStorageError(error, "delete the object", path);
  }
}

/** Empty when the directory does not exist: a prefix without objects has none. */
async function readDirectory(path: string): Promise<Dirent[]> {
  try {
    return await readdir(path, { withFileTypes: true });
  } catch (error) {
    if (isMissing(error)) return [];
    throw fileStorageError(error, "list the backup directory", path);
  }
}

type Kind = "file" | "directory" | "other";

/** Some file systems do not tell an entry's kind in the directory; then we look at the entry itself. */
function kindOf(entry: Dirent, directory: string): Kind | Promise<Kind> {
  if (entry.isFile()) return "file";
  if (entry.isDirectory()) return "directory";
  if (entry.isSymbolicLink() || entry.isFIFO() || entry.isSocket()) return "other";
  return lstatOrNull(join(directory, entry.name), "look at the object").then((info) => {
    if (info?.isDirectory() === true) return "directory";
    return info?.isFile() === true ? "file" : "other";
  });
}

async function lstatOrNull(path: string, doing: string): Promise<Stats | null> {
  try {
    return await lstat(path);
  } catch (error) {
    if (isMissing(error)) return null;
    throw fileStorageError(error, doing, path);
  }
}

async function statOrNull(path: string, doing: string): Promise<Stats | null> {
  try {
    return await stat(path);
  } catch (error) {
    if (systemErrorCode(error) === "ENOENT") return null;
    throw fileStorageError(error, doing, path);
  }
}

/** ENOTDIR: a file stands where one of the key's directories would be, so there is no such object either. */
function isMissing(error: unknown): boolean {
  const code = systemErrorCode(error);
  return code === "ENOENT" || code === "ENOTDIR";
}

function storedObject(key: string, info: Stats): StoredObject {
  return { key, sizeBytes: info.size, modifiedMs: Math.floor(info.mtimeMs) };
}

/** `a/b/` of `a/b/c`, "" of `c`. */
function directoryOf(key: string): string {
  return key.slice(0, key.lastIndexOf("/") + 1);
}

function isTemporaryName(name: string): boolean {
  return name.startsWith(TEMPORARY_PREFIX);
}
