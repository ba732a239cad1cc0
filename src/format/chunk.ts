import { assert, BakeliteError } from "../util/errors.ts";
import { damaged } from "./damage.ts";
import { HEADER_PREFIX_BYTES, MAX_HEADER_BYTES } from "./header.ts";

export type ChunkType = "data" | "index" | "trailer";

/** A chunk's type as stored, in its frame and in what seals it. */
export const CHUNK_TYPE_CODES: Readonly<Record<ChunkType, number>> = { data: 0, index: 1, trailer: 2 };

/** No chunk holds more before compression. docs/storage-format.md section 3.2. */
export const MAX_RAW_BYTES: Readonly<Record<ChunkType, number>> = {
  data: 262_144,
  index: 1_048_576,
  trailer: 67_108_864,
};

/** Every index chunk but the last describes this many data chunks. */
export const DATA_CHUNKS_PER_INDEX_CHUNK = 64;

/** What a seal adds to a chunk. */
export const SEAL_BYTES = 16;

/** Checksums of stored bytes are SHA-256 cut to this many bytes. */
export const CHECKSUM_BYTES = 16;

export const FRAME_HEADER_BYTES = 8;
export const FOOTER_BYTES = 72;

/** What stands before the SHA-256 in a footer, and is covered by it. */
export const FOOTER_HASHED_BYTES = 32;

const COMPRESSION_NONE = 0;
const COMPRESSION_ZSTD = 1;
const FOOTER_MAGIC = new TextEncoder().encode("etilekab");

/** Which chunk of which object, for messages: `data chunk at byte 4096`. */
export interface ChunkPlace {
  readonly type: ChunkType;
  readonly offset: number;
  /** The object's key. */
  readonly subject: string;
}

export function describeChunk(place: Omit<ChunkPlace, "subject">): string {
  return `${place.type} chunk at byte ${place.offset}`;
}

/** The length of the longest stored chunk of this type: nothing that zstd makes longer is stored compressed. */
export function maxStoredBytes(type: ChunkType, sealed: boolean): number {
  return FRAME_HEADER_BYTES + MAX_RAW_BYTES[type] + (sealed ? SEAL_BYTES : 0);
}

/** SHA-256 of the parts, one behind the other, cut to 16 bytes. */
export function checksumOf(...parts: readonly Uint8Array[]): Uint8Array {
  const hash = new Bun.CryptoHasher("sha256");
  for (const part of parts) hash.update(part);
  return hash.digest().subarray(0, CHECKSUM_BYTES);
}

/** Whether two runs of bytes are equal. Takes no care of timing: what we compare is no secret. */
export function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  return Buffer.compare(a, b) === 0;
}

/**
 * The same bytes as a plain Uint8Array: loops over a Buffer, and slices of one, take several times as long in Bun, above all
 * in the cipher.
 */
export function plainView(bytes: Uint8Array): Uint8Array {
  return new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/**
 * A chunk before sealing: type, compression, encoding 0, zero, u32 raw length, payload. `compressed` is one zstd frame of
 * `raw`, or null; it is used only if it is smaller. docs/storage-format.md section 3.2.
 */
export function encodeFrame(type: ChunkType, raw: Uint8Array, compressed: Uint8Array | null): Uint8Array {
  assert(
    raw.length >= 1 && raw.length <= MAX_RAW_BYTES[type],
    `a ${type} chunk holds 1 to ${MAX_RAW_BYTES[type]} bytes`,
  );
  const shrunk = compressed !== null && compressed.length < raw.length;
  const payload = shrunk ? compressed : raw;
  const frame = new Uint8Array(FRAME_HEADER_BYTES + payload.length);
  frame[0] = CHUNK_TYPE_CODES[type];
  frame[1] = shrunk ? COMPRESSION_ZSTD : COMPRESSION_NONE;
  new DataView(frame.buffer).setUint32(4, raw.length);
  frame.set(payload, FRAME_HEADER_BYTES);
  return frame;
}

/**
 * The raw bytes of a frame; where it is not compressed they are a view of `frame`. Throws `replica-corrupt` when it is
 * malformed or not of the type in `place`, `replica-foreign` for an encoding that we do not know. Never takes more memory
 * than MAX_RAW_BYTES, whatever the frame claims.
 */
export function parseFrame(frame: Uint8Array, place: ChunkPlace): Uint8Array {
  const { type, subject } = place;
  if (frame.length < FRAME_HEADER_BYTES) throw damaged(subject, `the ${describeChunk(place)} is cut short`);
  const [typeCode, compression, encoding, zero] = frame;
  if (typeCode !== CHUNK_TYPE_CODES[type] || zero !== 0) throw damaged(subject, `there is no ${describeChunk(place)}`);
  if (encoding !== 0) {
    const hint = "upgrade bakelite to read it";
    throw new BakeliteError("replica-foreign", `the ${describeChunk(place)} has the unknown encoding ${encoding}`, {
      subject,
      hint,
    });
  }
  const rawBytes = new DataView(frame.buffer, frame.byteOffset).getUint32(4);
  if (rawBytes < 1 || rawBytes > MAX_RAW_BYTES[type])
    throw damaged(subject, `the ${describeChunk(place)} claims ${rawBytes} bytes`);

  const payload = frame.subarray(FRAME_HEADER_BYTES);
  switch (compression) {
    case COMPRESSION_NONE:
      if (payload.length !== rawBytes) throw damaged(subject, `the ${describeChunk(place)} is not as long as it says`);
      return payload;
    case COMPRESSION_ZSTD:
      return decompress(payload, rawBytes, place);
    default:
      throw damaged(subject, `the ${describeChunk(place)} has the unknown compression ${compression}`);
  }
}

export interface Footer {
  readonly trailerOffset: number;
  readonly trailerStoredBytes: number;
  /** Length of the whole header. */
  readonly headerBytes: number;
  /** SHA-256(whole header ‖ stored trailer chunk), cut to 16 bytes. */
  readonly checksum: Uint8Array;
  /** SHA-256 of every byte of the object before this field. */
  readonly sha256: Uint8Array;
}

/** The last 72 bytes of an object. `objectHash` has taken every byte before them. docs/storage-format.md section 3.3. */
export function encodeFooter(footer: Omit<Footer, "sha256">, objectHash: Bun.CryptoHasher): Uint8Array {
  const bytes = new Uint8Array(FOOTER_BYTES);
  const view = new DataView(bytes.buffer);
  view.setBigUint64(0, BigInt(footer.trailerOffset));
  view.setUint32(8, footer.trailerStoredBytes);
  view.setUint32(12, footer.headerBytes);
  bytes.set(footer.checksum, 16);
  bytes.set(objectHash.update(bytes.subarray(0, FOOTER_HASHED_BYTES)).digest(), FOOTER_HASHED_BYTES);
  bytes.set(FOOTER_MAGIC, 64);
  return bytes;
}

/**
 * Reads the footer at the end of `tail`, the last 72 or more bytes of an object of `sizeBytes`. Throws `replica-corrupt`
 * unless header, trailer and footer lie one behind the other inside the object, the latter two without a gap, and are of
 * permitted lengths. Checks neither checksum. docs/storage-format.md section 3.3.
 */
export function parseFooter(tail: Uint8Array, sizeBytes: number, subject: string): Footer {
  const bytes = findFooter(tail, subject);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const footer: Footer = {
    trailerOffset: Number(view.getBigUint64(0)),
    trailerStoredBytes: view.getUint32(8),
    headerBytes: view.getUint32(12),
    checksum: bytes.subarray(16, FOOTER_HASHED_BYTES),
    sha256: bytes.subarray(FOOTER_HASHED_BYTES, 64),
  };
  // The offset may have lost its low bits to the conversion, but then it is far larger than any object.
  const fits =
    footer.trailerOffset + footer.trailerStoredBytes + FOOTER_BYTES === sizeBytes &&
    footer.trailerStoredBytes >= FRAME_HEADER_BYTES &&
    footer.trailerStoredBytes <= maxStoredBytes("trailer", true) &&
    footer.headerBytes >= HEADER_PREFIX_BYTES &&
    footer.headerBytes <= Math.min(MAX_HEADER_BYTES, footer.trailerOffset);
  if (!fits) throw damaged(subject, `its footer does not fit its length, ${sizeBytes} bytes`);
  return footer;
}

/** The last 72 bytes of `tail`, which end as an object does. Throws `replica-corrupt` otherwise. */
export function findFooter(tail: Uint8Array, subject: string): Uint8Array {
  const footer = tail.subarray(Math.max(0, tail.length - FOOTER_BYTES));
  if (footer.length === FOOTER_BYTES && sameBytes(footer.subarray(64), FOOTER_MAGIC)) return footer;
  throw damaged(subject, "it does not end as a bakelite object does, and may be cut short");
}

function decompress(payload: Uint8Array, rawBytes: number, place: ChunkPlace): Uint8Array {
  // A frame that says its size lets the decompressor take that much memory, no less and no more. Another frame behind
  // the first would be decompressed too, so there must not be one.
  if (payload.length >= rawBytes || !isOneZstdFrame(payload, rawBytes)) {
    throw damaged(place.subject, `the ${describeChunk(place)} is not one zstd frame of ${rawBytes} bytes`);
  }
  let raw: Uint8Array;
  try {
    raw = plainView(Bun.zstdDecompressSync(payload));
  } catch (cause) {
    throw damaged(place.subject, `the ${describeChunk(place)} cannot be decompressed`, cause);
  }
  if (raw.length !== rawBytes) throw damaged(place.subject, `the ${describeChunk(place)} is not as long as it says`);
  return raw;
}

/**
 * Whether `bytes` are exactly one zstd frame, without dictionary, that declares `contentBytes`. Walks the frame's header
 * and its blocks' headers; what the blocks hold is left to the decompressor. RFC 8878 section 3.1.1.
 */
function isOneZstdFrame(bytes: Uint8Array, contentBytes: number): boolean {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.length < 6 || view.getUint32(0, true) !== 0xfd2fb528) return false;
  const descriptor = view.getUint8(4);
  const singleSegment = (descriptor & 0x20) !== 0;
  const hasChecksum = (descriptor & 0x04) !== 0;
  const reservedOrDictionary = (descriptor & 0x0b) !== 0;
  const sizeFlag = descriptor >> 6;
  if (reservedOrDictionary || (sizeFlag === 0 && !singleSegment)) return false;

  const sizeOffset = singleSegment ? 5 : 6;
  const blocksOffset = sizeOffset + (1 << sizeFlag);
  if (bytes.length < blocksOffset || readContentSize(view, sizeOffset, sizeFlag) !== contentBytes) return false;

  for (let offset = blocksOffset; offset + 3 <= bytes.length; ) {
    const blockHeader = view.getUint16(offset, true) | (view.getUint8(offset + 2) << 16);
    const isRunLength = ((blockHeader >> 1) & 3) === 1;
    offset += 3 + (isRunLength ? 1 : blockHeader >> 3);
    if ((blockHeader & 1) === 1) return offset + (hasChecksum ? 4 : 0) === bytes.length;
  }
  return false;
}

function readContentSize(view: DataView, offset: number, sizeFlag: number): number {
  switch (sizeFlag) {
    case 0:
      return view.getUint8(offset);
    case 1:
      return view.getUint16(offset, true) + 256;
    case 2:
      return view.getUint32(offset, true);
    default:
      return Number(view.getBigUint64(offset, true));
  }
}
