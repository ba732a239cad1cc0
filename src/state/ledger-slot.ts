import { createHash } from "node:crypto";
import { assert } from "../util/errors.ts";

export const LEDGER_SLOT_BYTES = 512;

const MAGIC = "bkledger";
const VERSION = 1;
const CHECKSUM_OFFSET = 496;
const FLAG_COMPLETE = 1;
const FLAG_DIGEST = 2;
const MAX_PAGES = 0xffff_fffe;

/** Which stored state the entries of a ledger file describe (they may be newer). */
export interface LedgerSlot {
  readonly index: number;
  /** 64 hex digits. */
  readonly lineage: string;
  /** 32 hex digits. */
  readonly chain: string;
  readonly sizePages: number;
  readonly pageSizeBytes: number;
  /** State digest of `index`, 32 hex digits; null where it is not known. */
  readonly digest: string | null;
  /** False while the first full backup of a chain still fills the entries. */
  readonly complete: boolean;
}

/**
 * One 512-byte slot, big-endian: "bkledger" | u32 version 1 | u32 flags (1 complete, 2 digest known) | u64 sequence |
 * u64 index | u32 size in pages | u32 page size | 32 bytes lineage | 16 bytes chain | 16 bytes digest | zeros |
 * at 496: SHA-256 of all before, cut to 16 bytes. Source: docs/state-files.md.
 */
export function encodeLedgerSlot(slot: LedgerSlot, sequence: bigint): Uint8Array {
  const bytes = Buffer.alloc(LEDGER_SLOT_BYTES);
  assert(Number.isSafeInteger(slot.index) && slot.index >= 0, "a ledger's index is a whole number");
  assert(slot.sizePages >= 0 && slot.sizePages <= MAX_PAGES, "a database has at most 2^32 - 2 pages");
  bytes.write(MAGIC, 0, "latin1");
  bytes.writeUInt32BE(VERSION, 8);
  bytes.writeUInt32BE((slot.complete ? FLAG_COMPLETE : 0) | (slot.digest === null ? 0 : FLAG_DIGEST), 12);
  bytes.writeBigUInt64BE(sequence, 16);
  bytes.writeBigUInt64BE(BigInt(slot.index), 24);
  bytes.writeUInt32BE(slot.sizePages, 32);
  bytes.writeUInt32BE(slot.pageSizeBytes, 36);
  writeHex(bytes, slot.lineage, { offset: 40, length: 32 });
  writeHex(bytes, slot.chain, { offset: 72, length: 16 });
  if (slot.digest !== null) writeHex(bytes, slot.digest, { offset: 88, length: 16 });
  bytes.set(checksum(bytes), CHECKSUM_OFFSET);
  return bytes;
}

/** The slot and its sequence, or null when the bytes are not a whole, undamaged slot of a version that we know. */
export function parseLedgerSlot(input: Uint8Array): { readonly slot: LedgerSlot; readonly sequence: bigint } | null {
  if (input.byteLength !== LEDGER_SLOT_BYTES) return null;
  const bytes = Buffer.from(input.buffer, input.byteOffset, input.byteLength);
  if (bytes.toString("latin1", 0, 8) !== MAGIC || bytes.readUInt32BE(8) !== VERSION) return null;
  if (!checksum(bytes).equals(bytes.subarray(CHECKSUM_OFFSET))) return null;
  const flags = bytes.readUInt32BE(12);
  const index = bytes.readBigUInt64BE(24);
  if (index > BigInt(Number.MAX_SAFE_INTEGER)) return null;
  const slot: LedgerSlot = {
    index: Number(index),
    lineage: bytes.toString("hex", 40, 72),
    chain: bytes.toString("hex", 72, 88),
    sizePages: bytes.readUInt32BE(32),
    pageSizeBytes: bytes.readUInt32BE(36),
    digest: (flags & FLAG_DIGEST) === 0 ? null : bytes.toString("hex", 88, 104),
    complete: (flags & FLAG_COMPLETE) !== 0,
  };
  return { slot, sequence: bytes.readBigUInt64BE(16) };
}

function writeHex(bytes: Buffer, hex: string, { offset, length }: { offset: number; length: number }): void {
  assert(hex.length === 2 * length && /^[0-9a-f]*$/.test(hex), `${2 * length} hexadecimal digits in a ledger slot`);
  bytes.write(hex, offset, "hex");
}

function checksum(bytes: Buffer): Buffer {
  return createHash("sha256").update(bytes.subarray(0, CHECKSUM_OFFSET)).digest().subarray(0, 16);
}
