import { assert } from "../util/errors.ts";

/** Bytes of the header of a `-wal` file and of each frame's header. Source: sqlite.org/fileformat2.html section 4.1. */
export const WAL_HEADER_BYTES = 32;
export const WAL_FRAME_HEADER_BYTES = 24;

/** The pair of u32 that names one life of the WAL file; equal salts prove sameness, unequal ones prove nothing more. */
export type WalSalt = readonly [number, number];
export type WalChecksum = readonly [number, number];

export interface WalHeader {
  readonly pageSizeBytes: number;
  /** True when the checksums read the page as big-endian words (magic 0x377f0683). */
  readonly bigEndianChecksums: boolean;
  readonly salt: WalSalt;
  /** Checksum over the first 24 bytes of the header: where the chain of frame checksums starts. */
  readonly checksum: WalChecksum;
}

/** Salts, frame number and running checksum after the last commit frame taken. Frame 0 is the start of that life. */
export interface WalPosition {
  readonly salt: WalSalt;
  readonly frame: number;
  readonly checksum: WalChecksum;
}

export interface WalFrameHeader {
  readonly pageNumber: number;
  /** Size of the database in pages after the commit, for a commit frame; else 0. */
  readonly databaseSizePages: number;
  readonly salt: WalSalt;
  readonly checksum: WalChecksum;
}

const MAGIC = 0x377f0682;
const FORMAT_VERSION = 3_007_000;

/**
 * Decodes the 32-byte header of a `-wal` file: magic, format version, page size, checkpoint sequence, two salts, two
 * checksums, all big-endian u32. Null when the bytes are fewer, or no header of a version that we know, or the checksum is
 * wrong (a header that is being written). Source: sqlite.org/fileformat2.html section 4.1.
 */
export function parseWalHeader(bytes: Uint8Array): WalHeader | null {
  if (bytes.byteLength < WAL_HEADER_BYTES) return null;
  const view = new DataView(bytes.buffer, bytes.byteOffset, WAL_HEADER_BYTES);
  const magic = view.getUint32(0);
  if (magic >>> 1 !== MAGIC >>> 1 || view.getUint32(4) !== FORMAT_VERSION) return null;
  const bigEndianChecksums = (magic & 1) === 1;
  const pageSizeBytes = view.getUint32(8);
  if (!isPageSize(pageSizeBytes)) return null;
  const checksum = walChecksum(view, { start: 0, end: 24 }, [0, 0], bigEndianChecksums);
  if (checksum[0] !== view.getUint32(24) || checksum[1] !== view.getUint32(28)) return null;
  return { pageSizeBytes, bigEndianChecksums, salt: [view.getUint32(16), view.getUint32(20)], checksum };
}

/**
 * Decodes one 24-byte WAL frame header: six big-endian u32 (page number, database size in pages after the commit or 0,
 * salt-1, salt-2, checksum-1, checksum-2). Checks bounds only. Source: sqlite.org/fileformat2.html section 4.1.
 */
export function parseFrameHeader(view: DataView, offset: number): WalFrameHeader {
  assert(offset + WAL_FRAME_HEADER_BYTES <= view.byteLength, "a frame header lies inside the bytes read");
  return {
    pageNumber: view.getUint32(offset),
    databaseSizePages: view.getUint32(offset + 4),
    salt: [view.getUint32(offset + 8), view.getUint32(offset + 12)],
    checksum: [view.getUint32(offset + 16), view.getUint32(offset + 20)],
  };
}

/** Where frame `frame` (from 1) starts in the `-wal` file. */
export function frameOffset(frame: number, pageSizeBytes: number): number {
  return WAL_HEADER_BYTES + (frame - 1) * (WAL_FRAME_HEADER_BYTES + pageSizeBytes);
}

export function sameSalt(a: WalSalt, b: WalSalt): boolean {
  return a[0] === b[0] && a[1] === b[1];
}

export function sameChecksum(a: WalChecksum, b: WalChecksum): boolean {
  return a[0] === b[0] && a[1] === b[1];
}

/** The start of the life that `header` begins: nothing of it taken yet. */
export function startOfWal(header: WalHeader): WalPosition {
  return { salt: header.salt, frame: 0, checksum: header.checksum };
}

/** SQLite's page sizes: a power of two from 512 to 65,536. */
export function isPageSize(value: number): boolean {
  return value >= 512 && value <= 65_536 && (value & (value - 1)) === 0;
}

/**
 * SQLite's WAL checksum over the half-open `range` (a multiple of 8 bytes) of `view`, continued from `seed`.
 * Source: sqlite.org/fileformat2.html section 4.2.
 */
export function walChecksum(
  view: DataView,
  range: { readonly start: number; readonly end: number },
  seed: WalChecksum,
  bigEndian: boolean,
): WalChecksum {
  let s0 = seed[0] | 0;
  let s1 = seed[1] | 0;
  for (let offset = range.start; offset < range.end; offset += 8) {
    s0 = (s0 + view.getUint32(offset, !bigEndian) + s1) | 0;
    s1 = (s1 + view.getUint32(offset + 4, !bigEndian) + s0) | 0;
  }
  return [s0 >>> 0, s1 >>> 0];
}

/**
 * What one frame of a chain turned out to be. `unfinished`: salts and checksums are zeros, as SQLite leaves a frame until
 * the commit that it belongs to computes checksums anew.
 */
export interface FrameCheck {
  readonly frame: WalFrameHeader;
  readonly verdict: "valid" | "checksum-mismatch" | "unfinished" | "salt-changed";
}

/**
 * Checks the frame (header and page) at `offset` against the life's salts and the running checksum after the frame
 * before it. `view` holds the whole frame. Source: sqlite.org/fileformat2.html section 4.1, the two conditions of a
 * valid frame.
 */
export function checkFrame(view: DataView, offset: number, header: WalHeader, running: WalChecksum): FrameCheck {
  const frame = parseFrameHeader(view, offset);
  if (!sameSalt(frame.salt, header.salt)) {
    const zeros = sameSalt(frame.salt, [0, 0]) && sameChecksum(frame.checksum, [0, 0]);
    return { frame, verdict: zeros ? "unfinished" : "salt-changed" };
  }
  const headPart = walChecksum(view, { start: offset, end: offset + 8 }, running, header.bigEndianChecksums);
  const pageStart = offset + WAL_FRAME_HEADER_BYTES;
  const page = { start: pageStart, end: pageStart + header.pageSizeBytes };
  const checksum = walChecksum(view, page, headPart, header.bigEndianChecksums);
  return { frame, verdict: sameChecksum(checksum, frame.checksum) ? "valid" : "checksum-mismatch" };
}
