import type { Duplex } from "node:stream";
import type { BakeliteError } from "../../util/errors.ts";
import { Semaphore } from "../../util/semaphore.ts";
import { isStatus, nullIfAnswered, type RoomThere, SftpStatusError, unreachable } from "./errors.ts";
import {
  encodePacket,
  type Field,
  OPEN,
  PACKET,
  PacketReader,
  PacketSplitter,
  type SftpAttributes,
  SftpProtocolError,
  STATUS,
} from "./wire.ts";

export interface SessionOptions {
  /** For messages. */
  readonly location: string;
  /** A request has failed, and the connection with it, when nothing comes for this long. */
  readonly timeoutMs: number;
  /** Called once when the session has ended, whoever ended it. */
  readonly onEnd: () => void;
}

export interface DirectoryEntry {
  readonly name: Buffer;
  readonly attributes: SftpAttributes;
}

/** What a server may offer beyond the protocol. */
export type SftpExtension =
  | "fsync@openssh.com"
  | "hardlink@openssh.com"
  | "posix-rename@openssh.com"
  | "statvfs@openssh.com";

/** The server's name of an open file or directory. */
export type SftpHandle = Buffer;

const VERSION = 3;
/** With pieces of 32 KiB the bytes of 4 MiB, in either direction, whatever the number of databases. */
const MAX_REQUESTS = 128;
const MAX_HANDLE_BYTES = 256;
/** A server that answers everything but one request is given so many timeouts for it. */
const PATIENCE = 5;
const STATVFS_READ_ONLY = 1n;
const FILE_MODE = 0o600;
const DIRECTORY_MODE = 0o700;
const FLAG_PERMISSIONS = 0x04;

interface Pending {
  readonly sentMs: number;
  readonly resolve: (answer: Answer) => void;
  readonly reject: (error: unknown) => void;
}

interface Answer {
  readonly type: number;
  readonly fields: PacketReader;
}

/**
 * Requests and answers over one channel. Any number of requests may be under way, of which at most 128 at the server.
 * Failed ones reject with SftpStatusError as long as the session lives; with its end all reject with the BakeliteError that
 * says why. What the server sends is believed only as far as the protocol goes: anything else ends the session.
 */
export class SftpSession {
  readonly #channel: Duplex;
  readonly #options: SessionOptions;
  readonly #splitter = new PacketSplitter();
  readonly #pending = new Map<number, Pending>();
  readonly #slots = new Semaphore(MAX_REQUESTS);
  readonly #extensions = new Map<string, string>();
  #nextId = 0;
  #lastAnswerMs = performance.now();
  #watchdog: ReturnType<typeof setInterval> | undefined;
  #ended: BakeliteError | null = null;
  #greeting: PromiseWithResolvers<void> | null = null;

  private constructor(channel: Duplex, options: SessionOptions) {
    this.#channel = channel;
    this.#options = options;
    channel.on("data", (piece: Buffer) => this.#receive(piece));
    channel.on("error", (error: Error) => this.end("the connection broke", error));
    channel.on("end", () => this.end("the server closed the connection"));
    channel.on("close", () => this.end("the server closed the connection"));
  }

  /** Agrees on the version. Rejects with `storage-unreachable` when the server speaks another or does not answer. */
  static async start(channel: Duplex, options: SessionOptions): Promise<SftpSession> {
    const session = new SftpSession(channel, options);
    const greeting = Promise.withResolvers<void>();
    session.#greeting = greeting;
    const timer = setTimeout(() => session.end("it does not answer"), options.timeoutMs);
    channel.write(encodePacket(PACKET.init, [VERSION]));
    try {
      await greeting.promise;
    } finally {
      clearTimeout(timer);
    }
    return session;
  }

  get isOpen(): boolean {
    return this.#ended === null;
  }

  get pendingCount(): number {
    return this.#pending.size + this.#slots.waiterCount;
  }

  offers(extension: SftpExtension): boolean {
    return this.#extensions.has(extension);
  }

  /** Ends it, and everything under way with it. */
  end(why: string, cause?: unknown): void {
    if (this.#ended !== null) return;
    this.#ended = unreachable(this.#options.location, why, cause);
    clearInterval(this.#watchdog);
    this.#greeting?.reject(this.#ended);
    for (const { reject } of this.#pending.values()) reject(this.#ended);
    this.#pending.clear();
    this.#channel.destroy();
    this.#options.onEnd();
  }

  /** null when there is no such file, also because a file stands where a directory would be. Follows no link. */
  async lstat(path: string): Promise<SftpAttributes | null> {
    try {
      return await this.#request(PACKET.lstat, [path], attributesIn);
    } catch (error) {
      if (isStatus(error, STATUS.noSuchFile)) return null;
      // OpenSSH has no status for ENOTDIR other than "failure" in old versions.
      if (isStatus(error, STATUS.failure) && (await this.#standsBelowFile(path))) return null;
      throw error;
    }
  }

  async openForReading(path: string): Promise<SftpHandle> {
    return await this.#request(PACKET.open, [path, OPEN.read, 0], handleIn);
  }

  /** A new file, mode 0600. */
  async create(path: string): Promise<SftpHandle> {
    const flags = OPEN.write | OPEN.create | OPEN.exclusive;
    return await this.#request(PACKET.open, [path, flags, FLAG_PERMISSIONS, FILE_MODE], handleIn);
  }

  async close(handle: SftpHandle): Promise<void> {
    await this.#done(PACKET.close, [handle]);
  }

  async fstat(handle: SftpHandle): Promise<SftpAttributes> {
    return await this.#request(PACKET.fstat, [handle], attributesIn);
  }

  /** At least one byte and at most `lengthBytes`; null at the end of the file. */
  async read(handle: SftpHandle, offset: number, lengthBytes: number): Promise<Buffer | null> {
    const bytesIn = (answer: Answer) => {
      const bytes = expect(answer, PACKET.data).bytes();
      if (bytes.byteLength > 0 && bytes.byteLength <= lengthBytes) return bytes;
      throw new SftpProtocolError(`${bytes.byteLength} bytes where ${lengthBytes} were asked for`);
    };
    return await nullAtEnd(this.#request(PACKET.read, [handle, BigInt(offset), lengthBytes], bytesIn));
  }

  async write(handle: SftpHandle, offset: number, bytes: Uint8Array): Promise<void> {
    await this.#done(PACKET.write, [handle, BigInt(offset), bytes]);
  }

  async openDirectory(path: string): Promise<SftpHandle> {
    return await this.#request(PACKET.opendir, [path], handleIn);
  }

  /** Some more of the directory; null at its end. */
  async readDirectory(handle: SftpHandle): Promise<readonly DirectoryEntry[] | null> {
    return await nullAtEnd(this.#request(PACKET.readdir, [handle], entriesIn));
  }

  async remove(path: string): Promise<void> {
    await this.#done(PACKET.remove, [path]);
  }

  /** Mode 0700. */
  async makeDirectory(path: string): Promise<void> {
    await this.#done(PACKET.mkdir, [path, FLAG_PERMISSIONS, DIRECTORY_MODE]);
  }

  /** Refuses a name that is taken, by what the protocol says; servers differ in whether that is atomic. */
  async rename(from: string, to: string): Promise<void> {
    await this.#done(PACKET.rename, [from, to]);
  }

  /** Replaces what has the name, in one step. */
  async posixRename(from: string, to: string): Promise<void> {
    await this.#done(PACKET.extended, ["posix-rename@openssh.com", from, to]);
  }

  /** Refuses a name that is taken, in one step. */
  async hardLink(existing: string, name: string): Promise<void> {
    await this.#done(PACKET.extended, ["hardlink@openssh.com", existing, name]);
  }

  async fsync(handle: SftpHandle): Promise<void> {
    await this.#done(PACKET.extended, ["fsync@openssh.com", handle]);
  }

  /** What the file system that holds `path` has left; null when the server does not tell. */
  async statvfs(path: string): Promise<RoomThere | null> {
    if (!this.offers("statvfs@openssh.com")) return null;
    try {
      return await this.#request(PACKET.extended, ["statvfs@openssh.com", path], roomIn);
    } catch (error) {
      return nullIfAnswered(error);
    }
  }

  async #standsBelowFile(path: string): Promise<boolean> {
    const parent = path.slice(0, path.lastIndexOf("/"));
    if (parent === "") return false;
    const above = await this.lstat(parent).catch(nullIfAnswered);
    return above?.kind === "file";
  }

  async #done(type: number, fields: readonly Field[]): Promise<void> {
    await this.#request(type, fields, (answer) => expect(answer, PACKET.status));
  }

  /** What `read` finds in the answer. A status other than "ok" rejects. */
  async #request<T>(type: number, fields: readonly Field[], read: (answer: Answer) => T): Promise<T> {
    using _slot = await this.#slots.acquire();
    if (this.#ended !== null) throw this.#ended;
    const id = this.#nextId;
    this.#nextId = (id + 1) >>> 0;
    const { promise, resolve, reject } = Promise.withResolvers<Answer>();
    if (this.#pending.size === 0) this.#lastAnswerMs = performance.now();
    this.#pending.set(id, { sentMs: performance.now(), resolve, reject });
    this.#watch();
    this.#channel.write(encodePacket(type, [id, ...fields]));
    const answer = await promise;
    try {
      checkStatus(answer);
      return read(answer);
    } catch (error) {
      throw this.#orEnd(error);
    }
  }

  #receive(piece: Buffer): void {
    if (this.#ended !== null) return;
    try {
      for (const packet of this.#splitter.push(piece)) this.#take(packet);
    } catch (error) {
      this.#orEnd(error);
    }
  }

  #take(packet: Buffer): void {
    this.#lastAnswerMs = performance.now();
    const fields = new PacketReader(packet);
    const type = fields.u8();
    if (this.#greeting !== null) {
      this.#greet(type, fields);
      return;
    }
    const id = fields.u32();
    const pending = this.#pending.get(id);
    if (pending === undefined) throw new SftpProtocolError("an answer to nothing that was asked");
    this.#pending.delete(id);
    if (this.#pending.size === 0) {
      clearInterval(this.#watchdog);
      this.#watchdog = undefined;
    }
    pending.resolve({ type, fields });
  }

  #greet(type: number, fields: PacketReader): void {
    if (type !== PACKET.version) throw new SftpProtocolError("it does not begin with its version");
    const version = fields.u32();
    if (version < VERSION) throw new SftpProtocolError(`it speaks version ${version} only`);
    while (!fields.isAtEnd) this.#extensions.set(fields.text(), fields.text());
    this.#greeting?.resolve();
    this.#greeting = null;
  }

  /** What breaks the protocol ends the session; other errors come back as they are. */
  #orEnd(error: unknown): unknown {
    if (error instanceof SftpStatusError || error === this.#ended) return error;
    this.end("it does not keep to the SFTP protocol", error);
    return this.#ended;
  }

  #watch(): void {
    if (this.#watchdog !== undefined) return;
    const { timeoutMs } = this.#options;
    this.#watchdog = setInterval(
      () => {
        const nowMs = performance.now();
        const oldest = this.#pending.values().next().value;
        if (oldest === undefined) return;
        const silentMs = nowMs - Math.max(oldest.sentMs, this.#lastAnswerMs);
        if (silentMs > timeoutMs || nowMs - oldest.sentMs > PATIENCE * timeoutMs)
          this.end(`no answer for ${Math.round((nowMs - oldest.sentMs) / 100) / 10} s`);
      },
      Math.min(1000, timeoutMs / 4),
    );
  }
}

function expect(answer: Answer, type: number): PacketReader {
  if (answer.type !== type) throw new SftpProtocolError(`an answer of type ${answer.type} in place of ${type}`);
  return answer.fields;
}

function checkStatus({ type, fields }: Answer): void {
  if (type !== PACKET.status) return;
  const status = fields.u32();
  if (status !== STATUS.ok) throw new SftpStatusError(status, fields.isAtEnd ? "" : fields.text());
}

async function nullAtEnd<T>(reading: Promise<T>): Promise<T | null> {
  try {
    return await reading;
  } catch (error) {
    if (isStatus(error, STATUS.eof)) return null;
    throw error;
  }
}

function entriesIn(answer: Answer): readonly DirectoryEntry[] {
  const fields = expect(answer, PACKET.name);
  const entries: DirectoryEntry[] = [];
  for (let left = fields.u32(); left > 0; left--) {
    const name = fields.bytes();
    fields.bytes(); // As `ls -l` would show it: for people.
    entries.push({ name, attributes: fields.attributes() });
  }
  return entries;
}

/** Eleven u64, in the order of statvfs(3). */
function roomIn(answer: Answer): RoomThere {
  const fields = expect(answer, PACKET.extendedReply);
  const [, fragmentBytes = 0n, , , available = 0n, files = 0n, , freeFiles = 0n, , flags = 0n] = Array.from(
    { length: 11 },
    () => fields.u64(),
  );
  return {
    freeBytes: Number(fragmentBytes * available),
    freeFiles: files === 0n ? null : Number(freeFiles),
    isReadOnly: (flags & STATVFS_READ_ONLY) !== 0n,
  };
}

function attributesIn(answer: Answer): SftpAttributes {
  return expect(answer, PACKET.attributes).attributes();
}

function handleIn(answer: Answer): SftpHandle {
  const handle = expect(answer, PACKET.handle).bytes();
  if (handle.byteLength === 0 || handle.byteLength > MAX_HANDLE_BYTES)
    throw new SftpProtocolError(`a handle of ${handle.byteLength} bytes`);
  return handle;
}
