import { expect, test } from "bun:test";
import {
  checkFrame,
  frameOffset,
  isPageSize,
  parseFrameHeader,
  parseWalHeader,
  sameSalt,
  startOfWal,
  WAL_FRAME_HEADER_BYTES,
  WAL_HEADER_BYTES,
  type WalChecksum,
  type WalHeader,
  walChecksum,
} from "../../src/sqlite/wal.ts";
import { fc } from "../support/properties.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";
import { Application } from "./application.ts";

/** What a `-wal` file says, before it is bytes. */
interface WalText {
  readonly bigEndian: boolean;
  readonly pageSizeBytes: number;
  readonly checkpoints: number;
  readonly salt: readonly [number, number];
  readonly frames: readonly { readonly pageNumber: number; readonly sizePages: number; readonly fill: Uint8Array }[];
}

const u32 = fc.integer({ min: 0, max: 0xffff_ffff });
const walText: fc.Arbitrary<WalText> = fc.record({
  bigEndian: fc.boolean(),
  pageSizeBytes: fc.constantFrom(512, 512, 1024, 4096, 65_536),
  checkpoints: u32,
  salt: fc.tuple(u32, u32),
  frames: fc.array(
    fc.record({
      pageNumber: fc.integer({ min: 1, max: 0xffff_fffe }),
      sizePages: fc.oneof(fc.constant(0), u32),
      fill: fc.uint8Array({ minLength: 1, maxLength: 64 }),
    }),
    { maxLength: 6 },
  ),
});

/**
 * The bytes of such a file, written from sqlite.org/fileformat2.html section 4 without the code under test: the checksum
 * in 64-bit integers, straight from the formula there.
 */
function writeWal(text: WalText): Uint8Array {
  const frameBytes = 24 + text.pageSizeBytes;
  const bytes = new Uint8Array(32 + text.frames.length * frameBytes);
  const view = new DataView(bytes.buffer);
  const words = [0x377f0682 + (text.bigEndian ? 1 : 0), 3_007_000, text.pageSizeBytes, text.checkpoints, ...text.salt];
  for (const [i, word] of words.entries()) view.setUint32(i * 4, word);
  let sums = sumsOf(bytes.subarray(0, 24), [0n, 0n], text.bigEndian);
  const write = (offset: number) => {
    view.setUint32(offset, Number(sums[0]));
    view.setUint32(offset + 4, Number(sums[1]));
  };
  write(24);
  for (const [i, frame] of text.frames.entries()) {
    const start = 32 + i * frameBytes;
    for (const [k, word] of [frame.pageNumber, frame.sizePages, ...text.salt].entries())
      view.setUint32(start + k * 4, word);
    const page = bytes.subarray(start + 24, start + frameBytes);
    for (let at = 0; at < page.byteLength; at++) page[at] = (frame.fill[at % frame.fill.byteLength] ?? 0) + at;
    sums = sumsOf(bytes.subarray(start, start + 8), sums, text.bigEndian);
    sums = sumsOf(page, sums, text.bigEndian);
    write(start + 16);
  }
  return bytes;
}

type Sums = readonly [bigint, bigint];

function sumsOf(bytes: Uint8Array, [first, second]: Sums, bigEndian: boolean): Sums {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let [s0, s1] = [first, second];
  for (let i = 0; i < bytes.byteLength; i += 8) {
    s0 = (s0 + BigInt(view.getUint32(i, !bigEndian)) + s1) % 2n ** 32n;
    s1 = (s1 + BigInt(view.getUint32(i + 4, !bigEndian)) + s0) % 2n ** 32n;
  }
  return [s0, s1];
}

/** The verdicts on each whole frame, up to the first that is not valid. */
function verdicts(bytes: Uint8Array, header: WalHeader): readonly string[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const found: string[] = [];
  let running: WalChecksum = header.checksum;
  const frameBytes = WAL_FRAME_HEADER_BYTES + header.pageSizeBytes;
  for (let offset = WAL_HEADER_BYTES; offset + frameBytes <= bytes.byteLength; offset += frameBytes) {
    const { frame, verdict } = checkFrame(view, offset, header, running);
    found.push(verdict);
    if (verdict !== "valid") break;
    running = frame.checksum;
  }
  return found;
}

function headerOf(bytes: Uint8Array): WalHeader {
  const header = parseWalHeader(bytes);
  if (header === null) throw new Error("there is no header");
  return header;
}

test("a WAL of either byte order is read as it was written", () => {
  fc.assert(
    fc.property(walText, (text) => {
      const bytes = writeWal(text);
      const header = headerOf(bytes);
      expect(header).toMatchObject({
        pageSizeBytes: text.pageSizeBytes,
        bigEndianChecksums: text.bigEndian,
        salt: text.salt,
      });
      expect(startOfWal(header)).toEqual({ salt: text.salt, frame: 0, checksum: header.checksum });
      expect(verdicts(bytes, header)).toEqual(text.frames.map(() => "valid"));
      const view = new DataView(bytes.buffer);
      for (const [i, frame] of text.frames.entries()) {
        const parsed = parseFrameHeader(view, frameOffset(i + 1, text.pageSizeBytes));
        expect(parsed).toMatchObject({
          pageNumber: frame.pageNumber,
          databaseSizePages: frame.sizePages,
          salt: text.salt,
        });
      }
    }),
  );
});

test("a WAL cut off anywhere has a header only if that is whole, and valid frames as far as it goes", () => {
  fc.assert(
    fc.property(walText, fc.double({ min: 0, max: 1, noNaN: true }), (text, at) => {
      const whole = writeWal(text);
      const bytes = whole.slice(0, Math.floor(at * whole.byteLength));
      const header = parseWalHeader(bytes);
      expect(header === null).toBe(bytes.byteLength < 32);
      if (header === null) return;
      const frames = Math.floor((bytes.byteLength - 32) / (24 + text.pageSizeBytes));
      expect(verdicts(bytes, header)).toEqual(Array.from({ length: frames }, () => "valid"));
    }),
  );
});

test("every flipped bit of the header makes it none", () => {
  fc.assert(
    fc.property(walText, fc.nat(32 * 8 - 1), (text, bit) => {
      const bytes = writeWal({ ...text, frames: [] });
      bytes[bit >> 3] = (bytes[bit >> 3] ?? 0) ^ (1 << (bit & 7));
      expect(parseWalHeader(bytes)).toBe(null);
    }),
    { numRuns: 500 },
  );
});

test("every flipped bit of a frame is noticed, there and not before", () => {
  fc.assert(
    fc.property(walText, fc.nat(), fc.nat(), (text, frame, bit) => {
      fc.pre(text.frames.length > 0);
      const bytes = writeWal(text);
      const [hit, frameBytes] = [frame % text.frames.length, 24 + text.pageSizeBytes];
      // Half of the flips go into the 24 bytes of the frame's header.
      const within = bit % 2 === 0 ? bit % (24 * 8) : bit % (frameBytes * 8);
      const at = 32 + hit * frameBytes + (within >> 3);
      bytes[at] = (bytes[at] ?? 0) ^ (1 << (within & 7));
      const inSalt = within >> 3 >= 8 && within >> 3 < 16;
      const found = verdicts(bytes, headerOf(bytes));
      expect(found.slice(0, hit)).toEqual(Array.from({ length: hit }, () => "valid"));
      expect(found[hit]).not.toBe("valid");
      if (!inSalt) expect(found[hit]).toBe("checksum-mismatch");
    }),
    { numRuns: 500 },
  );
});

test("a frame of zeros for salts and checksums is unfinished; any other salts are another life's", () => {
  fc.assert(
    fc.property(walText, (text) => {
      fc.pre(text.frames.length > 0 && !sameSalt(text.salt, [0, 0]));
      const bytes = writeWal(text);
      const header = headerOf(bytes);
      bytes.fill(0, 32 + 8, 32 + 24);
      expect(verdicts(bytes, header)).toEqual(["unfinished"]);
      bytes[32 + 23] = 1;
      expect(verdicts(bytes, header)).toEqual(["salt-changed"]);
    }),
  );
});

test("a checksum may be taken in pieces", () => {
  fc.assert(
    fc.property(
      fc.uint8Array({ minLength: 800, maxLength: 800 }),
      fc.nat(100),
      fc.boolean(),
      (bytes, at, bigEndian) => {
        const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
        const first = walChecksum(view, { start: 0, end: at * 8 }, [0, 0], bigEndian);
        const whole = walChecksum(view, { start: 0, end: 800 }, [0, 0], bigEndian);
        expect(walChecksum(view, { start: at * 8, end: 800 }, first, bigEndian)).toEqual(whole);
      },
    ),
  );
});

test("random bytes are no header", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
      expect(parseWalHeader(bytes)).toBe(null);
    }),
  );
});

test("SQLite's page sizes are the powers of two from 512 to 65,536", () => {
  const sizes = Array.from({ length: 70_000 }, (_, size) => size).filter(isPageSize);
  expect(sizes).toEqual([512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536]);
});

test("the WAL that SQLite writes is valid to its last frame, for each page size", async () => {
  await using application = await Application.start();
  await using directory = await temporaryDirectory("wal");
  for (const pageSizeBytes of [512, 4096, 65_536]) {
    const path = directory.file(`${pageSizeBytes}.db`);
    const db = application.connect(path);
    db.run(`PRAGMA page_size=${pageSizeBytes}`, "PRAGMA journal_mode=WAL", "CREATE TABLE t (x)");
    db.run("INSERT INTO t VALUES (randomblob(100000))");
    const bytes = await Bun.file(`${path}-wal`).bytes();
    const header = headerOf(bytes);
    expect(header.pageSizeBytes).toBe(pageSizeBytes);
    const found = verdicts(bytes, header);
    expect(found.length).toBe(db.checkpoint("NOOP").committed);
    expect(new Set(found)).toEqual(new Set(["valid"]));
    db.close();
  }
});
