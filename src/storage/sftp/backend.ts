import { randomBytes } from "node:crypto";
import { assert, BakeliteError } from "../../util/errors.ts";
import { orAborted, throwIfAborted } from "../abort.ts";
import {
  type Backend,
  type BackendCapabilities,
  type ByteSource,
  type ByteStream,
  type CallOptions,
  type Diagnosis,
  type GetOptions,
  type ListOptions,
  type PutOptions,
  resolveRange,
  type StoredObject,
  type UnfinishedUpload,
  type UnlistedStorage,
} from "../backend.ts";
import { assertKeyPrefix, assertObjectKey, compareKeys, sortKeys } from "../object-key.ts";
import type { SftpServerOptions } from "./connect.ts";
import { type SharedConnection, sharedConnection } from "./connections.ts";
import { diagnoseServer } from "./diagnose.ts";
import { readWholeDirectory } from "./directory.ts";
import { isStatus, nullIfAnswered, sftpStorageError, unreachable } from "./errors.ts";
import type { SftpHandle, SftpSession } from "./session.ts";
import { readPieces, writeBody } from "./transfer.ts";
import { type SftpAttributes, STATUS } from "./wire.ts";

export interface SftpBackendOptions extends SftpServerOptions {
  /**
   * The directory on the server; a relative one begins where the server puts the user. Made by the first put when the
   * directory above it exists.
   */
  readonly path: string;
}

const TEMPORARY_PREFIX = ".tmp-";
const MAX_KEY_BYTES = 1024;
const STATS_AT_ONCE = 64;
/** How long an aborted put waits for the removal of its file before it leaves that to the sweep. */
const CLEANUP_MS = 2000;

/** Nothing is touched until the first call. */
export function openSftp(options: SftpBackendOptions): Backend {
  return new SftpBackend(options);
}

/**
 * A directory of an SFTP server. A key's names are the directories (0700) and the file (0600) below the root. An object is
 * written to `.tmp-<random>` in the directory it goes to, fsynced and measured there, then linked (`ifAbsent`: atomic
 * against every other client) or renamed over what has the name. A put that was cut off leaves at most such a file, which
 * no verb but `unlisted` shows. Times are whole seconds: the protocol has no finer ones.
 */
class SftpBackend implements Backend {
  readonly location: string;
  readonly unlisted: UnlistedStorage;
  readonly #root: string;
  readonly #connection: SharedConnection;
  /** As far as was found out; without connections nothing is known yet. */
  #hardLinks = true;
  #rootWasSeen = false;
  /** Directories (as key prefixes) that this process made or found, and that are no links. */
  readonly #knownDirectories = new Set<string>();
  /** Paths of the temporary files that puts of this process write to now. */
  readonly #liveFiles = new Set<string>();
  /** How far the server's clock is ahead of ours, as the newest put showed; null before one. */
  #clockAheadMs: number | null = null;

  constructor(options: SftpBackendOptions) {
    assert(options.path !== "", "an SFTP backend's path is not empty");
    this.location = `sftp://${options.user}@${options.host}:${options.port}/${options.path.replace(/^\//, "")}`;
    this.#root = options.path.replace(/(?<=.)\/+$/, "");
    this.#connection = sharedConnection(options, this.location);
    this.unlisted = {
      uploads: async (prefix, { signal }: CallOptions = {}) => this.#temporaryFiles(prefix, signal),
      abortUpload: async ({ key, uploadId }, { signal }: CallOptions = {}) => {
        const path = this.#pathOf(`${directoryOf(key)}${uploadId}`);
        assert(isTemporaryName(uploadId) && !uploadId.includes("/"), "what is swept is a temporary file");
        if (this.#liveFiles.has(path)) return "live";
        await this.#removeIfThere(await this.#session(signal), path, signal);
        return "aborted";
      },
      noncurrentVersions: async () => null,
    };
  }

  /** False once the server turned out to have no hard links: then it is asked to rename, which refuses a taken name. */
  get capabilities(): BackendCapabilities {
    return { putIfAbsent: this.#hardLinks };
  }

  async put(key: string, body: ByteSource, options: PutOptions = {}): Promise<"stored" | "exists"> {
    const { signal, ifAbsent = false } = options;
    this.#assertKey(key);
    using _held = this.#connection.hold();
    const session = await this.#session(signal);
    const target = this.#pathOf(key);
    if (ifAbsent && (await this.#lstat(session, target, signal)) !== null) return "exists";
    await this.#prepareDirectory(session, directoryOf(key), signal);
    const temporary = this.#pathOf(`${directoryOf(key)}${TEMPORARY_PREFIX}${randomBytes(12).toString("hex")}`);
    this.#liveFiles.add(temporary);
    let isPublished = false;
    const staged = await this.#stage(session, { key, temporary, signal });
    try {
      await this.#fill(session, staged, body, { temporary, signal });
      throwIfAborted(signal);
      const outcome = ifAbsent
        ? await this.#publishNew(session, temporary, target)
        : await this.#publish(session, temporary, target);
      isPublished = outcome === "stored";
      return outcome;
    } finally {
      await this.#cleanUp(session, staged, { temporary, isPublished, isAborted: signal?.aborted === true });
    }
  }

  async get(key: string, options: GetOptions = {}): Promise<ByteStream | null> {
    this.#assertKey(key);
    const found = await this.#find(key, options.signal);
    return found === null ? null : this.#read(key, options);
  }

  async stat(key: string, options: CallOptions = {}): Promise<StoredObject | null> {
    this.#assertKey(key);
    const found = await this.#find(key, options.signal);
    return found === null ? null : this.#storedObject(key, found);
  }

  async *list(prefix: string, options: ListOptions = {}): AsyncGenerator<StoredObject, void> {
    assertKeyPrefix(prefix);
    const { signal, startAfter = "" } = options;
    const session = await this.#session(signal);
    if ((await this.#lookAtRoot(session, signal)) === "not-yet-created") return;
    for await (const { key, attributes } of this.#walk(directoryOf(prefix), { prefix, startAfter, signal }))
      if (!isTemporaryName(nameOf(key))) yield this.#storedObject(key, attributes);
    // A disk that was unmounted there on the way makes the rest of the directories look empty.
    await this.#lookAtRoot(await this.#session(signal), signal);
  }

  async delete(keys: readonly string[], options: CallOptions = {}): Promise<void> {
    for (const key of keys) this.#assertKey(key);
    const { signal } = options;
    throwIfAborted(signal);
    if (keys.length === 0) return;
    const session = await this.#session(signal);
    await this.#lookAtRoot(session, signal);
    for (let i = 0; i < keys.length; i += STATS_AT_ONCE) {
      const some = keys.slice(i, i + STATS_AT_ONCE);
      // Every one is waited for: what fails first must not leave others under way.
      const results = await Promise.allSettled(
        some.map((key) => this.#removeIfThere(session, this.#pathOf(key), signal)),
      );
      for (const result of results) if (result.status === "rejected") throw result.reason;
    }
  }

  async diagnose(options: CallOptions = {}): Promise<readonly Diagnosis[]> {
    throwIfAborted(options.signal);
    const connection = await orAborted(this.#connection.get(), options.signal);
    return await diagnoseServer(connection, {
      root: this.#root,
      clockAheadMs: this.#clockAheadMs,
      signal: options.signal,
    });
  }

  #session(signal: AbortSignal | undefined): Promise<SftpSession> {
    throwIfAborted(signal);
    return orAborted(
      this.#connection.get().then(({ session }) => {
        if (!session.offers("hardlink@openssh.com")) this.#hardLinks = false;
        return session;
      }),
      signal,
    );
  }

  #assertKey(key: string): void {
    assertObjectKey(key);
    assert(!key.split("/").some(isTemporaryName), `no name in an object key begins with ${TEMPORARY_PREFIX}`);
  }

  #pathOf(key: string): string {
    if (key === "") return this.#root;
    return this.#root === "/" ? `/${key}` : `${this.#root}/${key}`;
  }

  /** For messages: without a credential, and as the other verbs call it. */
  #subjectOf(path: string): string {
    return path === this.#root ? this.location : `${this.location}/${path.slice(this.#pathOf("x").length - 1)}`;
  }

  /** `request`, abandoned when aborted, with the server's refusals as our errors. */
  async #ask<T>(
    session: SftpSession,
    request: Promise<T>,
    call: {
      readonly doing: string;
      readonly path: string;
      readonly takesRoom?: boolean;
      readonly signal?: AbortSignal | undefined;
    },
  ): Promise<T> {
    const { doing, path, takesRoom = false, signal } = call;
    try {
      return await orAborted(request, signal);
    } catch (error) {
      // Where there is no reason, the file system may have one: a full one, or one that is read-only.
      const room = isStatus(error, STATUS.failure) ? await session.statvfs(this.#root) : null;
      throw sftpStorageError(error, { doing, subject: this.#subjectOf(path), takesRoom, room });
    }
  }

  #lstat(session: SftpSession, path: string, signal: AbortSignal | undefined): Promise<SftpAttributes | null> {
    return this.#ask(session, session.lstat(path), { doing: "look for the object", path, signal });
  }

  /** What a file of that name is; null where there is none, but not because the root is gone. */
  async #find(key: string, signal: AbortSignal | undefined): Promise<SftpAttributes | null> {
    const session = await this.#session(signal);
    const found = await this.#lstat(session, this.#pathOf(key), signal);
    if (found === null) await this.#lookAtRoot(session, signal);
    return found?.kind === "file" ? found : null;
  }

  /**
   * Throws `storage-unreachable` when the root is missing and so is the directory above it, or when this backend has seen
   * the root and it is gone: a disk that is not mounted there must not look like an empty replica.
   */
  async #lookAtRoot(session: SftpSession, signal: AbortSignal | undefined): Promise<"there" | "not-yet-created"> {
    const doing = "reach the backup directory";
    // With a slash and a dot, since the root itself may be a link.
    const found = await this.#ask(session, session.lstat(this.#pathOf(".")), { doing, path: this.#root, signal });
    if (found !== null) {
      if (found.kind !== undefined && found.kind !== "directory")
        throw new BakeliteError("io", "cannot use the backup directory: it is not a directory", {
          subject: this.location,
          hint: "move that file out of the way on the server, or change the backend's `path`",
        });
      this.#rootWasSeen = true;
      return "there";
    }
    if (this.#rootWasSeen)
      throw new BakeliteError("storage-unreachable", "cannot reach the backup directory: it has disappeared", {
        subject: this.location,
        hint: "mount its disk on the server again; if it was moved or removed on purpose, restart bakelite",
      });
    const parent = parentOf(this.#root);
    if ((await this.#ask(session, session.lstat(parent), { doing, path: this.#root, signal })) !== null)
      return "not-yet-created";
    throw new BakeliteError(
      "storage-unreachable",
      "cannot reach the backup directory: the directory above it does not exist on the server",
      {
        subject: this.location,
        hint: `correct \`path\` (without a / in front it begins where the server puts the user), mount the disk there, or create ${parent}`,
      },
    );
  }

  /** Makes the root and the key's directories where missing. Throws for one that is a link: list would not show it. */
  async #prepareDirectory(session: SftpSession, directoryKey: string, signal: AbortSignal | undefined): Promise<void> {
    if (this.#knownDirectories.has(directoryKey)) return;
    if ((await this.#lookAtRoot(session, signal)) === "not-yet-created") {
      await this.#makeDirectory(session, this.#root, signal);
      this.#rootWasSeen = true;
    }
    const names = directoryKey.split("/").slice(0, -1);
    for (let i = 1; i <= names.length; i++) {
      const path = this.#pathOf(names.slice(0, i).join("/"));
      const found = await this.#lstat(session, path, signal);
      if (found === null) await this.#makeDirectory(session, path, signal);
      else if (found.kind !== undefined && found.kind !== "directory")
        throw new BakeliteError("io", "cannot store the object: a file or a link is where a directory should be", {
          subject: this.#subjectOf(path),
          hint: "move it out of the way on the server; bakelite follows no link inside a backup directory",
        });
    }
    this.#knownDirectories.add(directoryKey);
  }

  async #makeDirectory(session: SftpSession, path: string, signal: AbortSignal | undefined): Promise<void> {
    const making = session.makeDirectory(path).catch(async (error: unknown) => {
      // Somebody else made it first: version 3 has no status for that.
      if (isStatus(error, STATUS.failure, STATUS.fileAlreadyExists)) {
        const found = await session.lstat(path).catch(nullIfAnswered);
        if (found?.kind === "directory") return;
      }
      throw error;
    });
    await this.#ask(session, making, { doing: "create the backup directory", path, takesRoom: true, signal });
  }

  /** Creates the temporary file, and its directory again if somebody removed it since we knew it. */
  async #stage(
    session: SftpSession,
    {
      key,
      temporary,
      signal,
    }: { readonly key: string; readonly temporary: string; readonly signal: AbortSignal | undefined },
  ): Promise<SftpHandle> {
    const create = async () => {
      const creating = session.create(temporary);
      try {
        return await orAborted(creating, signal);
      } catch (error) {
        // An answer that comes after the abort is a file to be removed.
        creating
          .then(async (late) => {
            await session.close(late);
            await session.remove(temporary);
          })
          .catch(() => {});
        throw error;
      }
    };
    const call = { doing: "store the object", path: temporary, takesRoom: true };
    try {
      return await create();
    } catch (error) {
      if (!isStatus(error, STATUS.noSuchFile)) {
        this.#liveFiles.delete(temporary);
        return await this.#ask(session, Promise.reject(error), call);
      }
    }
    try {
      this.#knownDirectories.clear();
      await this.#prepareDirectory(session, directoryOf(key), signal);
      return await this.#ask(session, create(), call);
    } catch (error) {
      this.#liveFiles.delete(temporary);
      throw error;
    }
  }

  /** Writes, makes durable and measures the temporary file. */
  async #fill(
    session: SftpSession,
    handle: SftpHandle,
    body: ByteSource,
    { temporary, signal }: { readonly temporary: string; readonly signal: AbortSignal | undefined },
  ): Promise<void> {
    const call = { doing: "store the object", path: temporary, takesRoom: true, signal };
    const subject = this.#subjectOf(temporary);
    const sizeBytes = await this.#ask(session, writeBody(session, handle, body, { subject, signal }), call);
    if (session.offers("fsync@openssh.com")) await this.#ask(session, session.fsync(handle), call);
    const written = await this.#ask(session, session.fstat(handle), call);
    if (written.sizeBytes !== undefined && written.sizeBytes !== sizeBytes)
      throw new BakeliteError(
        "io",
        `cannot store the object: the server has ${written.sizeBytes} bytes of ${sizeBytes}`,
        { subject, hint: "check the server's disk and its log" },
      );
    if (written.modifiedSeconds !== undefined) this.#clockAheadMs = written.modifiedSeconds * 1000 + 500 - Date.now();
  }

  /** From here on an abort is not heeded: whether the object is there must be known. */
  async #publishNew(session: SftpSession, temporary: string, target: string): Promise<"stored" | "exists"> {
    const call = { doing: "store the object", path: target, takesRoom: true };
    if (session.offers("hardlink@openssh.com") && this.#hardLinks) {
      try {
        await session.hardLink(temporary, target);
        await session.remove(temporary).catch(() => {});
        return "stored";
      } catch (error) {
        if (!isStatus(error, STATUS.failure, STATUS.permissionDenied, STATUS.unsupported, STATUS.fileAlreadyExists))
          return await this.#ask(session, Promise.reject(error), call);
        if ((await this.#lstat(session, target, undefined)) !== null) return "exists";
        // The file system there has no hard links, or none more for this file.
      }
    }
    if ((await this.#lstat(session, target, undefined)) !== null) return "exists";
    try {
      await session.rename(temporary, target);
    } catch (error) {
      if ((await this.#lstat(session, target, undefined)) !== null) return "exists";
      return await this.#ask(session, Promise.reject(error), call);
    }
    this.#hardLinks = false;
    return "stored";
  }

  async #publish(session: SftpSession, temporary: string, target: string): Promise<"stored"> {
    const call = { doing: "store the object", path: target, takesRoom: true };
    if (session.offers("posix-rename@openssh.com")) {
      await this.#ask(session, session.posixRename(temporary, target), call);
      return "stored";
    }
    // For a moment there is no such object, and a crash here leaves none: docs/sftp.md says so.
    await this.#removeIfThere(session, target, undefined);
    await this.#ask(session, session.rename(temporary, target), call);
    return "stored";
  }

  async #cleanUp(
    session: SftpSession,
    handle: SftpHandle,
    {
      temporary,
      isPublished,
      isAborted,
    }: { readonly temporary: string; readonly isPublished: boolean; readonly isAborted: boolean },
  ): Promise<void> {
    // The reason why we are leaving must not be hidden by a failure here; the sweep finds what stays.
    const cleaned = (async () => {
      const closing = session.close(handle).catch(() => {});
      if (!isPublished) await session.remove(temporary).catch(() => {});
      await closing;
    })().finally(() => this.#liveFiles.delete(temporary));
    if (!isAborted) await cleaned;
    else {
      const { promise: late, resolve } = Promise.withResolvers<void>();
      const timer = setTimeout(resolve, CLEANUP_MS);
      await Promise.race([cleaned, late]);
      clearTimeout(timer);
    }
  }

  /** Opened when the first piece is asked for, so a stream that nobody reads holds nothing. */
  async *#read(key: string, { range, signal }: GetOptions): AsyncGenerator<Uint8Array, void> {
    using _held = this.#connection.hold();
    const session = await this.#session(signal);
    const path = this.#pathOf(key);
    const subject = this.#subjectOf(path);
    const call = { doing: "read the object", path, signal };
    const opening = session.openForReading(path);
    let handle: SftpHandle;
    try {
      handle = await orAborted(opening, signal);
    } catch (error) {
      opening.then((late) => session.close(late)).catch(() => {});
      if (!isStatus(error, STATUS.noSuchFile)) return await this.#ask(session, Promise.reject(error), call);
      throw new BakeliteError("replica-missing", "cannot read the object: it was deleted while it was read", {
        subject,
        hint: "run the command again; if it comes back, run `bakelite verify` to see what is missing",
        cause: error,
      });
    }
    try {
      const { sizeBytes } = await this.#ask(session, session.fstat(handle), call);
      if (sizeBytes === undefined) throw unreachable(this.location, "it does not tell the size of a file");
      const { start, end } = resolveRange(range, sizeBytes);
      try {
        yield* readPieces(session, handle, { start, end, subject, signal });
      } catch (error) {
        await this.#ask(session, Promise.reject(error), call);
      }
    } finally {
      session.close(handle).catch(() => {});
    }
  }

  /**
   * Files below a directory, ascending by key, temporary ones among them. The names of one directory are held at a time, and
   * those of the directories above it.
   */
  async *#walk(directoryKey: string, filter: WalkFilter): AsyncGenerator<WalkedFile, void> {
    const { signal } = filter;
    const path = this.#pathOf(directoryKey.slice(0, -1));
    const session = await this.#session(signal);
    const reading = readWholeDirectory(session, path, signal);
    const entries = await this.#ask(session, reading, { doing: "list the backup directory", path, signal });
    const attributesOf = new Map<string, SftpAttributes>();
    for (const { name, attributes } of entries ?? []) {
      const key = `${directoryKey}${name}`;
      if (Buffer.byteLength(key) > MAX_KEY_BYTES) continue;
      const known =
        attributes.kind === undefined || (attributes.kind === "file" && attributes.sizeBytes === undefined)
          ? await this.#lstat(session, this.#pathOf(key), signal)
          : attributes;
      if (known === null) continue;
      const listed = known.kind === "directory" ? `${key}/` : key;
      if ((known.kind === "directory" || known.kind === "file") && mayHold(listed, filter))
        attributesOf.set(listed, known);
    }
    for (const key of sortKeys([...attributesOf.keys()])) {
      throwIfAborted(signal);
      const attributes = attributesOf.get(key);
      if (key.endsWith("/")) yield* this.#walk(key, filter);
      else if (attributes !== undefined) yield { key, attributes };
    }
  }

  #storedObject(key: string, { sizeBytes, modifiedSeconds }: SftpAttributes): StoredObject {
    if (sizeBytes === undefined) throw unreachable(this.location, "it does not tell the size of a file");
    return { key, sizeBytes, modifiedMs: (modifiedSeconds ?? 0) * 1000 };
  }

  async #removeIfThere(session: SftpSession, path: string, signal: AbortSignal | undefined): Promise<void> {
    throwIfAborted(signal);
    const removing = session.remove(path).catch(async (error: unknown) => {
      if (isStatus(error, STATUS.noSuchFile)) return;
      // A file may stand where one of its directories would be, and then there is no such object.
      if (isStatus(error, STATUS.failure) && (await session.lstat(path)) === null) return;
      throw error;
    });
    await this.#ask(session, removing, { doing: "delete the object", path, signal });
  }

  async *#temporaryFiles(prefix: string, signal: AbortSignal | undefined): AsyncGenerator<UnfinishedUpload, void> {
    assertKeyPrefix(prefix);
    const session = await this.#session(signal);
    if ((await this.#lookAtRoot(session, signal)) === "not-yet-created") return;
    const directoryKey = directoryOf(prefix);
    for await (const { key, attributes } of this.#walk(directoryKey, { prefix, startAfter: "", signal })) {
      const name = nameOf(key);
      if (!isTemporaryName(name) || this.#liveFiles.has(this.#pathOf(key))) continue;
      const writtenMs = (attributes.modifiedSeconds ?? 0) * 1000;
      yield {
        key,
        uploadId: name,
        startedMs: writtenMs,
        newestPartMs: writtenMs,
        ageMs: Math.max(0, Date.now() + (this.#clockAheadMs ?? 0) - writtenMs),
        sizeBytes: attributes.sizeBytes ?? 0,
      };
    }
  }
}

interface WalkedFile {
  readonly key: string;
  readonly attributes: SftpAttributes;
}

interface WalkFilter {
  readonly prefix: string;
  readonly startAfter: string;
  readonly signal: AbortSignal | undefined;
}

/** Whether a file's key, or some key below a directory's, begins with the prefix and sorts after `startAfter`. */
function mayHold(key: string, { prefix, startAfter }: WalkFilter): boolean {
  if (!key.endsWith("/")) return key.startsWith(prefix) && compareKeys(key, startAfter) > 0;
  if (!key.startsWith(prefix) && !prefix.startsWith(key)) return false;
  return startAfter.startsWith(key) || compareKeys(key, startAfter) > 0;
}

/** `a/b/` of `a/b/c`, "" of `c`. */
function directoryOf(key: string): string {
  return key.slice(0, key.lastIndexOf("/") + 1);
}

function nameOf(key: string): string {
  return key.slice(key.lastIndexOf("/") + 1);
}

/** `/a` of `/a/b`, `/` of `/a`, `.` of `a`. */
function parentOf(path: string): string {
  const slash = path.lastIndexOf("/");
  if (slash === -1) return ".";
  return slash === 0 ? "/" : path.slice(0, slash);
}

function isTemporaryName(name: string): boolean {
  return name.startsWith(TEMPORARY_PREFIX);
}
