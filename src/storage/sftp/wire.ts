/**
 * Packets of version 3 of the SSH File Transfer Protocol, which is what servers speak.
 * Source: https://datatracker.ietf.org/doc/html/draft-ietf-secsh-filexfer-02, and for names that end in `@openssh.com`
 * https://github.com/openssh/openssh-portable/blob/master/PROTOCOL section 4.
 */
export const PACKET = {
  init: 1,
  version: 2,
  open: 3,
  close: 4,
  read: 5,
  write: 6,
  lstat: 7,
  fstat: 8,
  opendir: 11,
  readdir: 12,
  remove: 13,
  mkdir: 14,
  realpath: 16,
  rename: 18,
  status: 101,
  handle: 102,
  data: 103,
  name: 104,
  attributes: 105,
  extended: 200,
  extendedReply: 201,
} as const;

/** Of `open`. */
export const OPEN = { read: 0x01, write: 0x02, create: 0x08, exclusive: 0x20 } as const;

/** Of `status`. Those after 8 belong to later versions, and some servers send them all the same. */
export const STATUS = {
  ok: 0,
  eof: 1,
  noSuchFile: 2,
  permissionDenied: 3,
  failure: 4,
  badMessage: 5,
  noConnection: 6,
  connectionLost: 7,
  unsupported: 8,
  fileAlreadyExists: 11,
  writeProtect: 12,
  noSpace: 14,
  quotaExceeded: 15,
} as const;

/** What OpenSSH takes and sends at most. A longer one is no packet, whoever sends it. */
export const MAX_PACKET_BYTES = 256 * 1024;

const FLAG_SIZE = 0x01;
const FLAG_OWNER = 0x02;
const FLAG_PERMISSIONS = 0x04;
const FLAG_TIMES = 0x08;
const FLAG_EXTENDED = 0x8000_0000;
const KIND_MASK = 0o170000;
const KIND_DIRECTORY = 0o040000;
const KIND_FILE = 0o100000;

/** The server sent what the protocol does not allow. */
export class SftpProtocolError extends Error {
  override readonly name = "SftpProtocolError";
}

/** A number is a u32, a bigint a u64; a text or bytes follow their length. */
export type Field = number | bigint | string | Uint8Array;

/** One packet with its length in front: u32 length, u8 type, then the fields (the first of a request is its number). */
export function encodePacket(type: number, fields: readonly Field[]): Buffer {
  const bodies = fields.map((field) => (typeof field === "string" ? Buffer.from(field, "utf8") : field));
  let sizeBytes = 5;
  for (const body of bodies)
    sizeBytes += typeof body === "number" ? 4 : typeof body === "bigint" ? 8 : 4 + body.byteLength;
  const packet = Buffer.allocUnsafe(sizeBytes);
  packet.writeUInt32BE(sizeBytes - 4, 0);
  packet[4] = type;
  let offset = 5;
  for (const body of bodies) {
    if (typeof body === "number") offset = packet.writeUInt32BE(body, offset);
    else if (typeof body === "bigint") offset = packet.writeBigUInt64BE(body, offset);
    else {
      offset = packet.writeUInt32BE(body.byteLength, offset);
      packet.set(body, offset);
      offset += body.byteLength;
    }
  }
  return packet;
}

/** What a file is, as far as the server told. */
export interface SftpAttributes {
  readonly sizeBytes: number | undefined;
  readonly kind: "file" | "directory" | "other" | undefined;
  /** Whole seconds: the protocol has no finer ones. */
  readonly modifiedSeconds: number | undefined;
}

/** Reads the fields of one packet in order. Throws SftpProtocolError where there are fewer bytes than a field needs. */
export class PacketReader {
  readonly #bytes: Buffer;
  #offset = 0;

  constructor(bytes: Buffer) {
    this.#bytes = bytes;
  }

  get isAtEnd(): boolean {
    return this.#offset === this.#bytes.byteLength;
  }

  u8(): number {
    return this.#bytes.readUInt8(this.#advance(1));
  }

  u32(): number {
    return this.#bytes.readUInt32BE(this.#advance(4));
  }

  u64(): bigint {
    return this.#bytes.readBigUInt64BE(this.#advance(8));
  }

  /** A part of the packet, not a copy. */
  bytes(): Buffer {
    const length = this.u32();
    const start = this.#advance(length);
    return this.#bytes.subarray(start, start + length);
  }

  text(): string {
    return this.bytes().toString("utf8");
  }

  attributes(): SftpAttributes {
    const flags = this.u32();
    const size = (flags & FLAG_SIZE) === 0 ? undefined : this.u64();
    if (size !== undefined && size > BigInt(Number.MAX_SAFE_INTEGER))
      throw new SftpProtocolError(`a file of ${size} bytes`);
    if ((flags & FLAG_OWNER) !== 0) this.#advance(8);
    const permissions = (flags & FLAG_PERMISSIONS) === 0 ? undefined : this.u32();
    let modifiedSeconds: number | undefined;
    if ((flags & FLAG_TIMES) !== 0) {
      this.#advance(4);
      modifiedSeconds = this.u32();
    }
    if ((flags & FLAG_EXTENDED) !== 0) {
      // Each takes bytes, so a count that lies ends at the packet's end.
      for (let left = this.u32(); left > 0; left--) {
        this.bytes();
        this.bytes();
      }
    }
    return {
      sizeBytes: size === undefined ? undefined : Number(size),
      kind: permissions === undefined ? undefined : kindOf(permissions),
      modifiedSeconds,
    };
  }

  #advance(byteCount: number): number {
    const start = this.#offset;
    if (start + byteCount > this.#bytes.byteLength) throw new SftpProtocolError("a packet ends within a field");
    this.#offset = start + byteCount;
    return start;
  }
}

function kindOf(permissions: number): "file" | "directory" | "other" {
  const kind = permissions & KIND_MASK;
  return kind === KIND_FILE ? "file" : kind === KIND_DIRECTORY ? "directory" : "other";
}

/** Cuts a stream of bytes into packets, without their lengths. Holds at most one unfinished packet. */
export class PacketSplitter {
  #pieces: Buffer[] = [];
  #heldBytes = 0;

  /** Throws SftpProtocolError for a packet that is empty or longer than `MAX_PACKET_BYTES`. */
  *push(piece: Buffer): Generator<Buffer, void> {
    this.#pieces.push(piece);
    this.#heldBytes += piece.byteLength;
    while (this.#heldBytes >= 4) {
      const first = this.#pieces[0];
      if (first === undefined || first.byteLength < 4) this.#pieces = [Buffer.concat(this.#pieces)];
      const lengthBytes = this.#pieces[0]?.readUInt32BE(0) ?? 0;
      if (lengthBytes === 0 || lengthBytes > MAX_PACKET_BYTES)
        throw new SftpProtocolError(`a packet of ${lengthBytes} bytes`);
      if (this.#heldBytes < 4 + lengthBytes) return;
      // Always a copy: what came belongs to the connection, and what is read of it to our caller.
      const all = Buffer.concat(this.#pieces);
      const rest = all.subarray(4 + lengthBytes);
      this.#pieces = rest.byteLength === 0 ? [] : [rest];
      this.#heldBytes = rest.byteLength;
      yield all.subarray(4, 4 + lengthBytes);
    }
  }
}
