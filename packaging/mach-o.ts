import { createHash } from "node:crypto";

const PAGE_BYTES = 4096;
const HASH_BYTES = 32;
/** Of the CodeDirectory, version 0x20400. */
const DIRECTORY_HEADER_BYTES = 88;
/** Of the SuperBlob with one blob in it. */
const SUPER_HEADER_BYTES = 20;
const SEGMENT_64 = 0x19;
const CODE_SIGNATURE = 0x1d;

/**
 * The Mach-O executable with an ad-hoc signature of its present content in place of the signature that it has. Bun puts
 * the program into a runtime that its makers signed, and for x64 leaves their signature as it was, which then no longer
 * fits; macOS ends a program with such pages when they are used. An ad-hoc signature names nobody: it says only that nothing changed
 * since. Throws unless this is a 64-bit little-endian Mach-O whose signature ends the file.
 * Sources: Apple's <mach-o/loader.h>, and cs_blobs.h of https://github.com/apple-oss-distributions/xnu.
 */
export function signAdHoc(executable: Uint8Array, identifier: string): Uint8Array {
  const source = new DataView(executable.buffer, executable.byteOffset, executable.byteLength);
  const { signature, text, linkedit } = findCommands(source);
  const codeBytes = source.getUint32(signature + 8, true);
  if (codeBytes + source.getUint32(signature + 12, true) !== executable.length)
    throw new Error("the code signature is not the end of the Mach-O file");
  const name = Buffer.from(`${identifier}\0`, "ascii");
  const slotCount = Math.ceil(codeBytes / PAGE_BYTES);
  const hashOffset = DIRECTORY_HEADER_BYTES + name.length;
  const directoryBytes = hashOffset + slotCount * HASH_BYTES;
  const signatureBytes = Math.ceil((SUPER_HEADER_BYTES + directoryBytes) / 16) * 16;

  const signed = Buffer.alloc(codeBytes + signatureBytes);
  signed.set(executable.subarray(0, codeBytes));
  // The load commands say how long the signature is, and are themselves signed: first these, then the hashes.
  signed.writeUInt32LE(signatureBytes, signature + 12);
  const linkeditBytes = BigInt(signed.length) - signed.readBigUInt64LE(linkedit + 40);
  signed.writeBigUInt64LE(linkeditBytes, linkedit + 48);
  const mapped = (linkeditBytes + 0x3fffn) & ~0x3fffn;
  signed.writeBigUInt64LE(mapped, linkedit + 32);

  const be32 = (at: number, ...values: readonly number[]) => {
    for (const [i, value] of values.entries()) signed.writeUInt32BE(value, at + 4 * i);
  };
  be32(codeBytes, 0xfade0cc0, SUPER_HEADER_BYTES + directoryBytes, 1, 0, SUPER_HEADER_BYTES);
  const directory = codeBytes + SUPER_HEADER_BYTES;
  // magic, length, version, flags (adhoc), hash offset, identifier offset, special slots, code slots, code limit
  be32(
    directory,
    0xfade0c02,
    directoryBytes,
    0x20400,
    0x2,
    hashOffset,
    DIRECTORY_HEADER_BYTES,
    0,
    slotCount,
    codeBytes,
  );
  // Hash size, hash type (SHA-256), platform, the page size as a power of two.
  signed.set([HASH_BYTES, 2, 0, Math.log2(PAGE_BYTES)], directory + 36);
  // At 40: spare, scatter, team, spare, and the 64-bit code limit, all 0. Then the executable segment and its flag for a main program.
  signed.writeBigUInt64BE(signed.readBigUInt64LE(text + 40), directory + 64);
  signed.writeBigUInt64BE(signed.readBigUInt64LE(text + 48), directory + 72);
  signed.writeBigUInt64BE(1n, directory + 80);
  name.copy(signed, directory + DIRECTORY_HEADER_BYTES);
  for (let slot = 0; slot < slotCount; slot++)
    hashPage(signed, slot, codeBytes).copy(signed, directory + hashOffset + slot * HASH_BYTES);
  return signed;
}

/** How many pages of a signed executable do not match the hash that its signature has of them. */
export function countUnsignedPages(executable: Uint8Array): number {
  const bytes = Buffer.from(executable.buffer, executable.byteOffset, executable.byteLength);
  const { signature } = findCommands(new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength));
  const start = bytes.readUInt32LE(signature + 8);
  // The first blob is the CodeDirectory.
  const directory = start + bytes.readUInt32BE(start + 16);
  const hashes = directory + bytes.readUInt32BE(directory + 16);
  const [slotCount, codeBytes] = [bytes.readUInt32BE(directory + 28), bytes.readUInt32BE(directory + 32)];
  let unsigned = 0;
  for (let slot = 0; slot < slotCount; slot++) {
    const at = hashes + slot * HASH_BYTES;
    if (!hashPage(bytes, slot, codeBytes).equals(bytes.subarray(at, at + HASH_BYTES))) unsigned++;
  }
  return unsigned;
}

function hashPage(bytes: Uint8Array, slot: number, codeBytes: number): Buffer {
  const end = Math.min((slot + 1) * PAGE_BYTES, codeBytes);
  return createHash("sha256")
    .update(bytes.subarray(slot * PAGE_BYTES, end))
    .digest();
}

/** Offsets of three load commands. */
function findCommands(view: DataView): { signature: number; text: number; linkedit: number } {
  if (view.getUint32(0, true) !== 0xfeedfacf) throw new Error("this is no 64-bit Mach-O file");
  const found = { signature: 0, text: 0, linkedit: 0 };
  const commandCount = view.getUint32(16, true);
  for (let i = 0, at = 32; i < commandCount; i++, at += view.getUint32(at + 4, true)) {
    const command = view.getUint32(at, true);
    if (command === CODE_SIGNATURE) found.signature = at;
    if (command !== SEGMENT_64) continue;
    const name = Buffer.from(view.buffer, view.byteOffset + at + 8, 16)
      .toString("latin1")
      .replace(/\0+$/, "");
    if (name === "__TEXT") found.text = at;
    if (name === "__LINKEDIT") found.linkedit = at;
  }
  if (found.signature === 0 || found.text === 0 || found.linkedit === 0)
    throw new Error("the Mach-O file has no code signature to replace");
  return found;
}
