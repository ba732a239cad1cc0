import { expect, test } from "bun:test";
import { DATABASE_HEADER_BYTES, parseDatabaseHeader } from "../../src/sqlite/database-file.ts";
import { fc } from "../support/properties.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";
import { Application } from "./application.ts";

interface HeaderText {
  /** As in the file: 1 stands for 65,536. */
  readonly rawPageSize: number;
  readonly versions: readonly [number, number];
  readonly sizePages: number;
  readonly changeCounter: number;
  readonly validFor: number;
  readonly rest: Uint8Array;
}

const u32 = fc.integer({ min: 0, max: 0xffff_ffff });
const headerText: fc.Arbitrary<HeaderText> = fc
  .record({
    rawPageSize: fc.constantFrom(1, 512, 1024, 2048, 4096, 8192, 16_384, 32_768),
    versions: fc.constantFrom<readonly [number, number]>([1, 1], [2, 2], [2, 1], [1, 2]),
    sizePages: u32,
    changeCounter: u32,
    validFor: u32,
    sameCounters: fc.boolean(),
    rest: fc.uint8Array({ maxLength: 100 }),
  })
  .map(({ sameCounters, ...text }) => ({ ...text, validFor: sameCounters ? text.changeCounter : text.validFor }));

/** From sqlite.org/fileformat2.html section 1.3; a window into a larger buffer, as a read gives it. */
function writeHeader(text: HeaderText): Uint8Array {
  const buffer = Buffer.alloc(7 + DATABASE_HEADER_BYTES + text.rest.byteLength, 0xa5);
  const bytes = buffer.subarray(7);
  bytes.write("SQLite format 3\0", "latin1");
  bytes.writeUInt16BE(text.rawPageSize, 16);
  bytes.set(text.versions, 18);
  bytes.writeUInt32BE(text.changeCounter, 24);
  bytes.writeUInt32BE(text.sizePages, 28);
  bytes.writeUInt32BE(text.validFor, 92);
  bytes.set(text.rest, 100);
  return bytes;
}

test("a header is read as it was written", () => {
  fc.assert(
    fc.property(headerText, (text) => {
      expect(parseDatabaseHeader(writeHeader(text))).toEqual({
        kind: "sqlite",
        header: {
          pageSizeBytes: text.rawPageSize === 1 ? 65_536 : text.rawPageSize,
          isWal: text.versions[0] === 2 && text.versions[1] === 2,
          sizePages: text.sizePages !== 0 && text.changeCounter === text.validFor ? text.sizePages : null,
        },
      });
    }),
  );
});

test("a header cut off anywhere is not SQLite's, and no bytes at all are an empty database", () => {
  fc.assert(
    fc.property(headerText, fc.nat(DATABASE_HEADER_BYTES - 1), (text, length) => {
      const kind = length === 0 ? "empty" : "not-sqlite";
      expect(parseDatabaseHeader(writeHeader(text).subarray(0, length))).toEqual({ kind });
    }),
  );
});

test("a flipped bit in the magic text is noticed, and so is a page size that SQLite does not have", () => {
  fc.assert(
    fc.property(headerText, fc.nat(16 * 8 - 1), (text, bit) => {
      const bytes = writeHeader(text);
      bytes[bit >> 3] = (bytes[bit >> 3] ?? 0) ^ (1 << (bit & 7));
      expect(parseDatabaseHeader(bytes)).toEqual({ kind: "not-sqlite" });
    }),
  );
  fc.assert(
    fc.property(headerText, fc.integer({ min: 0, max: 0xffff }), (text, rawPageSize) => {
      fc.pre(![1, 512, 1024, 2048, 4096, 8192, 16_384, 32_768].includes(rawPageSize));
      expect(parseDatabaseHeader(writeHeader({ ...text, rawPageSize }))).toEqual({ kind: "not-sqlite" });
    }),
  );
});

test("random bytes are not SQLite's", () => {
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 1, maxLength: 300 }), (bytes) => {
      expect(parseDatabaseHeader(bytes)).toEqual({ kind: "not-sqlite" });
    }),
  );
});

test("what SQLite writes is read: page size, mode and size", async () => {
  await using application = await Application.start();
  await using directory = await temporaryDirectory("header");
  for (const pageSizeBytes of [512, 4096, 65_536]) {
    for (const mode of ["delete", "wal"]) {
      const path = directory.file(`${mode}-${pageSizeBytes}.db`);
      const db = application.connect(path);
      db.run(`PRAGMA page_size=${pageSizeBytes}`, `PRAGMA journal_mode=${mode}`, "CREATE TABLE t (x)");
      db.run("INSERT INTO t VALUES (zeroblob(200000))");
      const sizePages = Number(db.run("PRAGMA page_count")[0]?.["page_count"]);
      db.close();
      const header = { pageSizeBytes, isWal: mode === "wal", sizePages };
      expect(parseDatabaseHeader(await Bun.file(path).bytes())).toEqual({ kind: "sqlite", header });
    }
  }
});
