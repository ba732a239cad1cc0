import { expect, test } from "bun:test";
import { mkdirSync, readFileSync, statSync, symlinkSync, truncateSync, writeFileSync } from "node:fs";
import { canonicalChecksum } from "../../src/state/canonical-json.ts";
import { type Cursor, readCursor, writeCursor } from "../../src/state/cursor.ts";
import { fc } from "../support/properties.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";

const hex = (digits: number) =>
  fc.string({ unit: fc.constantFrom(..."0123456789abcdef"), minLength: digits, maxLength: digits });
const u32 = fc.integer({ min: 0, max: 0xffff_ffff });
const count = fc.maxSafeNat();
const text = fc.string({ unit: "grapheme", maxLength: 40 });
// As destinations give it: an absolute path or an address.
const location = fc.tuple(fc.constantFrom("/", "s3://"), text).map((parts) => parts.join(""));

function cursor(): fc.Arbitrary<Cursor> {
  return fc.record({
    session: hex(32),
    pastSessions: fc.array(hex(32), { maxLength: 3 }),
    machineId: fc.option(text),
    bootId: fc.option(text),
    device: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }).map(String),
    inode: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }).map(String),
    chain: hex(32),
    index: count,
    lineage: hex(64),
    sizePages: u32,
    pageSizeBytes: fc.integer({ min: 9, max: 16 }).map((bits) => 2 ** bits),
    position: fc.option(fc.record({ salt: fc.tuple(u32, u32), frame: u32, checksum: fc.tuple(u32, u32) })),
    settled: count,
    stampMs: count,
    epochs: fc.array(fc.record({ number: count, firstIndex: count, firstStampMs: count }), { maxLength: 4 }),
    attempted: fc.option(fc.record({ index: count, run: hex(32), nonceSeed: hex(48) })),
    destinations: fc.dictionary(location, fc.record({ index: count }), { maxKeys: 3 }),
    fullBackup: fc.option(
      fc.record({ index: count, settled: count, atMs: count, seal: fc.oneof(fc.constant("p"), hex(8)) }),
    ),
    keyFingerprint: fc.option(hex(8)),
  });
}

const [example] = fc.sample(cursor(), { seed: 1, numRuns: 1 });
if (example === undefined) throw new Error("fast-check gave no cursor");

test("a cursor is read as it was written", async () => {
  await using directory = await temporaryDirectory("cursor");
  const path = directory.file("app.cursor");
  await fc.assert(
    fc.asyncProperty(cursor(), async (value) => {
      await writeCursor(path, value);
      expect(await readCursor(path)).toEqual({ cursor: structuredClone(value) });
    }),
    { numRuns: 50 },
  );
  expect(statSync(path).mode & 0o7777).toBe(0o600);
});

test("a cursor that was never written is missing, not corrupt", async () => {
  await using directory = await temporaryDirectory("cursor");
  expect(await readCursor(directory.file("app.cursor"))).toEqual({ missing: true });
  expect(await readCursor(directory.file("no", "such", "directory"))).toEqual({ missing: true });
});

test("every shortened cursor is corrupt, with a reason", async () => {
  await using directory = await temporaryDirectory("cursor");
  const path = directory.file("app.cursor");
  await writeCursor(path, example);
  const bytes = readFileSync(path);
  for (let length = bytes.byteLength - 2; length >= 0; length -= 7) {
    writeFileSync(path, bytes.subarray(0, length));
    expect(await readCursor(path)).toEqual({ corrupt: expect.any(String) });
  }
});

test("no flipped bit gives another cursor", async () => {
  await using directory = await temporaryDirectory("cursor");
  const path = directory.file("app.cursor");
  await writeCursor(path, example);
  const bytes = readFileSync(path);
  await fc.assert(
    fc.asyncProperty(fc.nat({ max: bytes.byteLength - 1 }), fc.nat({ max: 7 }), async (at, bit) => {
      const spoilt = Buffer.from(bytes);
      spoilt[at] = (spoilt[at] ?? 0) ^ (1 << bit);
      writeFileSync(path, spoilt);
      const result = await readCursor(path);
      // A flip in the white space around the document may leave it as it was.
      if ("cursor" in result) expect(result).toEqual({ cursor: structuredClone(example) });
      else expect(result).toEqual({ corrupt: expect.any(String) });
    }),
    { numRuns: 400 },
  );
});

test("any bytes at all are read as corrupt, never as a crash", async () => {
  await using directory = await temporaryDirectory("cursor");
  const path = directory.file("app.cursor");
  const garbage = fc.oneof(
    fc.uint8Array(),
    fc.json().map((json) => Buffer.from(json)),
  );
  await fc.assert(
    fc.asyncProperty(garbage, async (bytes) => {
      writeFileSync(path, bytes);
      expect(await readCursor(path)).toEqual({ corrupt: expect.any(String) });
    }),
  );
});

test("the reason says what is wrong: version, checksum, field, size, kind", async () => {
  await using directory = await temporaryDirectory("cursor");
  const path = directory.file("app.cursor");
  const write = (document: unknown) => writeFileSync(path, JSON.stringify(document));
  const reason = async () => {
    const result = await readCursor(path);
    return "corrupt" in result ? result.corrupt : "";
  };

  write({ version: 2, something: "else" });
  expect(await reason()).toContain("newer bakelite");
  write({ version: 1, checksum: "0".repeat(64), cursor: example });
  expect(await reason()).toContain("checksum does not match");
  const wrong = { ...example, session: "short" };
  write({ version: 1, checksum: canonicalChecksum(wrong), cursor: wrong });
  expect(await reason()).toContain("field session");
  const { session: _session, ...incomplete } = example;
  write({ version: 1, checksum: canonicalChecksum(incomplete), cursor: incomplete });
  expect(await reason()).toContain("field session");

  truncateSync(path, 1_000_000_000);
  expect(await reason()).toContain("too large");
  symlinkSync(path, directory.file("linked.cursor"));
  expect(await readCursor(directory.file("linked.cursor"))).toEqual({ corrupt: "it is a symbolic link" });
  mkdirSync(directory.file("directory.cursor"));
  expect(await readCursor(directory.file("directory.cursor"))).toEqual({ corrupt: "it is not a regular file" });
});

test("fields that a newer bakelite added are dropped, and stand under the checksum too", async () => {
  await using directory = await temporaryDirectory("cursor");
  const path = directory.file("app.cursor");
  const newer = { ...example, added: { later: [1, 2, 3] } };
  writeFileSync(path, JSON.stringify({ version: 1, checksum: canonicalChecksum(newer), cursor: newer, note: "new" }));
  expect(await readCursor(path)).toEqual({ cursor: structuredClone(example) });
  const changed = { ...newer, added: { later: [1, 2, 4] } };
  writeFileSync(path, JSON.stringify({ version: 1, checksum: canonicalChecksum(newer), cursor: changed }));
  expect(await readCursor(path)).toEqual({ corrupt: "its checksum does not match its content" });
});

test("a checksum depends on the values, not on how they are laid out", () => {
  fc.assert(
    fc.property(fc.jsonValue(), (value) => {
      const spread = JSON.parse(JSON.stringify(value, null, 3));
      expect(canonicalChecksum(spread)).toBe(canonicalChecksum(value));
    }),
  );
  expect(canonicalChecksum({ a: 1, b: [{ d: 1, c: 2 }] })).toBe(canonicalChecksum({ b: [{ c: 2, d: 1 }], a: 1 }));
  expect(canonicalChecksum({ a: 1 })).not.toBe(canonicalChecksum({ a: "1" }));
  expect(canonicalChecksum([1, [2]])).not.toBe(canonicalChecksum([[1], 2]));
});

test("a failed write leaves the old cursor and names the file", async () => {
  await using directory = await temporaryDirectory("cursor");
  const path = directory.file("app.cursor");
  await writeCursor(path, example);
  // What the compiler would refuse, as a bug elsewhere might bring it here.
  const broken = { ...example, index: -1 };
  await expect(writeCursor(path, broken)).rejects.toMatchObject({
    code: "internal",
    message: expect.stringContaining("index"),
  });
  expect(await readCursor(path)).toEqual({ cursor: structuredClone(example) });
  await expect(writeCursor(directory.file("none", "app.cursor"), example)).rejects.toMatchObject({
    name: "BakeliteError",
    subject: directory.file("none", "app.cursor"),
  });
});
