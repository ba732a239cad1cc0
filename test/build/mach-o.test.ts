import { expect, test } from "bun:test";
import { describeExecutable } from "../../packaging/binary-format.ts";
import { countUnsignedPages, signAdHoc } from "../../packaging/mach-o.ts";

const CODE_BYTES = 5 * 4096 + 160;
const OLD_SIGNATURE_BYTES = 1_024;
const LINKEDIT_OFFSET = 4 * 4096;

/** The smallest Mach-O that has what a signature needs: three segments' worth of commands, content, and an old signature. */
function tinyMachO(): Buffer {
  const file = Buffer.alloc(CODE_BYTES + OLD_SIGNATURE_BYTES, 7);
  file.fill(0, 0, 32 + 72 * 2 + 24 + 16);
  file.writeUInt32LE(0xfeedfacf, 0);
  file.writeUInt32LE(0x01000007, 4);
  file.writeUInt32LE(4, 16);
  let at = 32;
  for (const [name, offset, length] of [
    ["__TEXT", 0, LINKEDIT_OFFSET],
    ["__LINKEDIT", LINKEDIT_OFFSET, file.length - LINKEDIT_OFFSET],
  ] as const) {
    file.writeUInt32LE(0x19, at);
    file.writeUInt32LE(72, at + 4);
    file.write(name, at + 8, "latin1");
    file.writeBigUInt64LE(BigInt(offset), at + 40);
    file.writeBigUInt64LE(BigInt(length), at + 48);
    at += 72;
  }
  file.writeUInt32LE(0x32, at);
  file.writeUInt32LE(24, at + 4);
  file.writeUInt32LE(13 << 16, at + 12);
  at += 24;
  file.writeUInt32LE(0x1d, at);
  file.writeUInt32LE(16, at + 4);
  file.writeUInt32LE(CODE_BYTES, at + 8);
  file.writeUInt32LE(OLD_SIGNATURE_BYTES, at + 12);
  return file;
}

test("after signing every page matches its hash, and the file ends where its commands say", () => {
  const signed = Buffer.from(signAdHoc(tinyMachO(), "bakelite"));
  expect(countUnsignedPages(signed)).toBe(0);
  expect(signed.length).toBe(CODE_BYTES + signed.readUInt32LE(32 + 72 * 2 + 24 + 12));
  const linkedit = 32 + 72;
  expect(signed.readBigUInt64LE(linkedit + 48)).toBe(BigInt(signed.length - LINKEDIT_OFFSET));
  expect(signed.readBigUInt64LE(linkedit + 32)).toBeGreaterThanOrEqual(signed.readBigUInt64LE(linkedit + 48));
  expect(describeExecutable(signed, "x86_64-apple-darwin")).toBe("Mach-O x86_64, macOS 13.0");
});

test("signing again changes nothing", () => {
  const signed = signAdHoc(tinyMachO(), "bakelite");
  expect(Buffer.compare(signAdHoc(signed, "bakelite"), signed)).toBe(0);
});

test("a byte that changes afterwards is noticed, wherever it is", () => {
  const signed = Buffer.from(signAdHoc(tinyMachO(), "bakelite"));
  for (let at = 24; at < CODE_BYTES; at += 1_009) {
    if (at > 24 && at < 256) continue; // the load commands themselves, which lead to the hashes
    const changed = Buffer.from(signed);
    changed[at] = (changed[at] ?? 0) ^ 1;
    expect(countUnsignedPages(changed)).toBe(1);
  }
});

test("what is no Mach-O, or has no signature at its end, is refused", () => {
  expect(() => signAdHoc(new Uint8Array(100), "bakelite")).toThrow("no 64-bit Mach-O");
  expect(() => signAdHoc(Buffer.concat([tinyMachO(), Buffer.alloc(1)]), "bakelite")).toThrow("end of the Mach-O");
  const unsigned = tinyMachO();
  unsigned.writeUInt32LE(0x2a, 32 + 72 * 2 + 24);
  expect(() => signAdHoc(unsigned, "bakelite")).toThrow("no code signature");
});
