import { describe, expect, test } from "bun:test";
import { encodeHeader, type ObjectHeader, parseHeader } from "../../src/format/header.ts";
import { fc } from "../support/properties.ts";
import { expectCode, sampleOf, u32 } from "./samples.ts";

const hexText = (digits: number) => fc.stringMatching(new RegExp(`^[0-9a-f]{${digits}}$`));

const header: fc.Arbitrary<ObjectHeader> = fc
  .record({
    writer: fc.string({ unit: "grapheme" }),
    kind: fc.constantFrom("full", "change-set", "current", "manifest"),
    database: fc.stringMatching(/^[A-Za-z0-9_-][A-Za-z0-9._-]{0,20}$/),
    level: fc.nat(9),
    first: fc.integer({ min: 1, max: Number.MAX_SAFE_INTEGER }),
    chain: hexText(32),
    pageSizeBytes: fc.constantFrom(512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536),
    compression: fc.constantFrom("zstd", "none"),
    keyFingerprint: fc.option(hexText(8)),
    nonceSeed: hexText(48),
    originSeed: fc.option(hexText(48), { nil: undefined }),
    session: hexText(32),
    run: hexText(32),
  } as const)
  .map((fields) => ({
    ...fields,
    level: fields.kind === "change-set" ? fields.level : 0,
    cipher: fields.keyFingerprint === null ? "none" : "xchacha20-poly1305",
  }));

/** A header as stored, of any JSON text. */
function stored(json: string | Uint8Array): Uint8Array {
  const bytes = Buffer.from(json);
  return Buffer.concat([Buffer.from("bakelite"), u32(bytes.length), bytes]);
}

function fieldsOf(header: ObjectHeader): Record<string, unknown> {
  return JSON.parse(Buffer.from(encodeHeader(header)).subarray(12).toString());
}

test("a header survives being written and read, whatever stands behind it", () => {
  fc.assert(
    fc.property(header, fc.uint8Array({ maxLength: 40 }), (header, rest) => {
      const bytes = encodeHeader(header);
      expect(parseHeader(Buffer.concat([bytes, rest]))).toEqual({ header, headerBytes: bytes.length });
    }),
  );
});

test("`head -c` shows what an object is", () => {
  const { header } = sampleOf([]);
  const text = Buffer.from(encodeHeader(header)).toString("latin1");
  expect(text).toStartWith("bakelite\0\0");
  expect(text).toContain(
    '{"format":1,"writer":"bakelite 0.1.0","kind":"change-set","database":"app","level":0,"first":5,',
  );
});

test("every prefix of a header is refused as cut short", async () => {
  const bytes = encodeHeader(sampleOf([], { sealed: true }).header);
  for (let length = 0; length < bytes.length; length++)
    await expectCode("replica-corrupt", () => parseHeader(bytes.subarray(0, length)));
});

test("unknown fields are ignored", () => {
  const { header } = sampleOf([]);
  expect(parseHeader(stored(JSON.stringify({ ...fieldsOf(header), later: [{}], constructor: 1 }))).header).toEqual(
    header,
  );
});

test("another format is refused with what to do, whatever its other fields are", async () => {
  const error = await expectCode("replica-foreign", () =>
    parseHeader(stored('{"format":7,"kind":["new"]}'), "app/CURRENT"),
  );
  expect(error.message).toBe("stored object has format 7; this bakelite reads format 1");
  expect(error.hint).toBe("upgrade bakelite to read format 7");
  expect(error.subject).toBe("app/CURRENT");
});

describe("a malformed header is refused:", () => {
  const good = fieldsOf(sampleOf([]).header);
  const changes: [string, unknown][] = [
    ["format", "1"],
    ["format", 1.5],
    ["format", -1],
    ["format", undefined],
    ["writer", 1],
    ["kind", "backup"],
    ["kind", null],
    ["database", "../app"],
    ["database", ""],
    ["level", 10],
    ["level", -1],
    ["level", "0"],
    ["first", 0],
    ["first", 2 ** 53],
    ["first", 1.25],
    ["chain", "0".repeat(31)],
    ["chain", "G".repeat(32)],
    ["chain", "A".repeat(32)],
    ["page_size", 0],
    ["page_size", 256],
    ["page_size", 1000],
    ["page_size", 131_072],
    ["page_size", 4_294_967_808],
    ["compression", "lz4"],
    ["cipher", "aes"],
    ["cipher", "xchacha20-poly1305"],
    ["key_fingerprint", "01234567"],
    ["key_fingerprint", undefined],
    ["nonce_seed", "0".repeat(50)],
    ["session", null],
    ["run", {}],
  ];
  test.each(changes)("%s = %p", async (field, value) => {
    const error = await expectCode("replica-corrupt", () =>
      parseHeader(stored(JSON.stringify({ ...good, [field]: value }))),
    );
    expect(error.message).toContain("header is malformed");
  });

  test.each([
    ["a full backup with a level", { kind: "full", level: 1 }],
    ["an index 0", { kind: "full", first: 0 }],
  ])("%s", async (_, fields) => {
    await expectCode("replica-corrupt", () => parseHeader(stored(JSON.stringify({ ...good, ...fields }))));
  });

  const texts: [string, string | Uint8Array][] = [
    ["nothing", ""],
    ["no object", "null"],
    ["an array", "[]"],
    ["half an object", '{"format":1'],
    ["two objects", "{}{}"],
    ["malformed UTF-8", Uint8Array.of(0x22, 0xff, 0x22)],
    ["a byte order mark", "\ufeff{}"],
    ["deep nesting", "[".repeat(65_536)],
    ["deep nesting that ends", `${"[".repeat(32_768)}${"]".repeat(32_768)}`],
    ["a prototype", '{"__proto__":{"format":1}}'],
  ];
  test.each(texts)("%s", async (_, json) => {
    await expectCode("replica-corrupt", () => parseHeader(stored(json)));
  });

  test.each([65_537, 0x8000_0000, 0xffff_ffff])("a claimed length of %d", async (length) => {
    const error = await expectCode("replica-corrupt", () =>
      parseHeader(Buffer.concat([Buffer.from("bakelite"), u32(length), Buffer.alloc(70_000)])),
    );
    expect(error.message).toContain(`claims ${length} bytes`);
  });

  test("another magic", async () => {
    const bytes = encodeHeader(sampleOf([]).header);
    bytes[0] = 0x42;
    await expectCode("replica-corrupt", () => parseHeader(bytes));
  });
});

test("a header that a reader would refuse is not written", () => {
  const { header } = sampleOf([]);
  expect(() => encodeHeader({ ...header, first: 0 })).toThrow("invariant broken");
  expect(() => encodeHeader({ ...header, database: "a/b" })).toThrow("database");
  expect(() => encodeHeader({ ...header, nonceSeed: "" })).toThrow("nonce_seed");
  expect(() => encodeHeader({ ...header, writer: "w".repeat(70_000) })).toThrow("65,536");
});
