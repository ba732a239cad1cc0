import { describe, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { createZstdCompress, zstdCompressSync } from "node:zlib";
import { type DecodeOptions, openObject, readDocument, verifyObject } from "../../src/format/decode.ts";
import { encodeDocument, encodeObject } from "../../src/format/encode.ts";
import { emptyKeyRing, keyRing } from "../../src/format/envelope.ts";
import type { ObjectHeader } from "../../src/format/header.ts";
import type { ObjectName } from "../../src/format/names.ts";
import type { ErrorCode } from "../../src/util/errors.ts";
import { type Chunk, type Forgery, forge } from "./forge.ts";
import {
  collect,
  encodeSample,
  expectCode,
  failureOf,
  memorySource,
  noisePages,
  OTHER_KEY,
  type Page,
  SAMPLE_KEY,
  type SampleShape,
  sampleOf,
  toBatch,
  u32,
  u64,
} from "./samples.ts";

const MIB = 1024 * 1024;

/** Three pages in two data chunks: what the forgeries below begin from. */
const PAGES: readonly Page[] = noisePages(3, 512, "forged").map((page, i) =>
  i === 0 ? { ...page, image: new Uint8Array(512).fill(1) } : page,
);
const CHUNKS = [PAGES.slice(0, 2), PAGES.slice(2)];

async function refusal(code: ErrorCode, forgery: Forgery, shape: SampleShape = {}) {
  const sample = sampleOf(PAGES, shape);
  const bytes = forge(sample, CHUNKS, forgery);
  return await expectCode(code, () => verifyObject(memorySource(bytes), sample.decoding));
}

function at(kind: Chunk["kind"], change: (bytes: Buffer) => Buffer): (bytes: Buffer, chunk: Chunk) => Buffer {
  return (bytes, chunk) => (chunk.kind === kind && chunk.number === 0 ? change(Buffer.from(bytes)) : bytes);
}

function patch(offset: number, replacement: Uint8Array): (bytes: Buffer) => Buffer {
  return (bytes) => {
    bytes.set(replacement, offset);
    return bytes;
  };
}

/** How much the process grew in memory while it did this. */
async function growthOf(work: () => Promise<unknown>): Promise<number> {
  Bun.gc(true);
  const before = process.memoryUsage.rss();
  await work();
  return process.memoryUsage.rss() - before;
}

test("the forger's object is sound as long as nothing is forged", async () => {
  for (const sealed of [false, true]) {
    const sample = sampleOf(PAGES, { sealed });
    await verifyObject(memorySource(forge(sample, CHUNKS)), sample.decoding);
  }
});

async function markSample(sealed: boolean) {
  const { options, decoding } = sampleOf([], { sealed });
  const header = { ...options.header, kind: "mark" as const };
  const bytes = await encodeDocument({ ...options, header }, { index: header.first, label: "before-upgrade" });
  const name = { kind: "mark" as const, index: header.first, seal: header.keyFingerprint ?? "p" };
  return { bytes, decoding: { ...decoding, name } };
}

describe("every prefix of an object is refused:", () => {
  test.each([{ sealed: false }, { sealed: true }, { sealed: false, kind: "full" as const }])("%p", async (shape) => {
    const { bytes, decoding } = await encodeSample(PAGES, shape);
    for (let length = 0; length < bytes.length; length++) {
      const source = memorySource(bytes.slice(0, length));
      expect((await failureOf(() => openObject(source, decoding))).code).toBe("replica-corrupt");
      expect((await failureOf(() => verifyObject(source, decoding))).code).toBe("replica-corrupt");
    }
  });

  test("CURRENT, plain and sealed", async () => {
    for (const sealed of [false, true]) {
      const { options, decoding } = sampleOf([], { sealed });
      const bytes = await encodeDocument({ ...options, header: { ...options.header, kind: "current" } }, { full: 1 });
      for (let length = 0; length < bytes.length; length++) {
        await expectCode("replica-corrupt", () =>
          readDocument(bytes.slice(0, length), { ...decoding, name: { kind: "current" } }),
        );
      }
    }
  });

  test("a mark, plain and sealed", async () => {
    for (const sealed of [false, true]) {
      const { bytes, decoding } = await markSample(sealed);
      for (let length = 0; length < bytes.length; length++)
        await expectCode("replica-corrupt", () => readDocument(bytes.slice(0, length), decoding));
    }
  });
});

describe("every changed bit of an object is noticed:", () => {
  test.each([{ sealed: false }, { sealed: true }, { sealed: false, kind: "full" as const }])("%p", async (shape) => {
    const { bytes, decoding } = await encodeSample(PAGES.slice(0, 2), shape);
    for (let bit = 0; bit < bytes.length * 8; bit++) {
      bytes[bit >> 3] = (bytes[bit >> 3] ?? 0) ^ (1 << (bit & 7));
      expect((await failureOf(() => verifyObject(memorySource(bytes), decoding))).code).toBe("replica-corrupt");
      bytes[bit >> 3] = (bytes[bit >> 3] ?? 0) ^ (1 << (bit & 7));
    }
    await verifyObject(memorySource(bytes), decoding);
  });

  test("CURRENT, plain and sealed", async () => {
    for (const sealed of [false, true]) {
      const { options, decoding } = sampleOf([], { sealed });
      const bytes = await encodeDocument({ ...options, header: { ...options.header, kind: "current" } }, { full: 1 });
      for (let bit = 0; bit < bytes.length * 8; bit++) {
        const changed = bytes.slice();
        changed[bit >> 3] = (changed[bit >> 3] ?? 0) ^ (1 << (bit & 7));
        await expectCode("replica-corrupt", () => readDocument(changed, { ...decoding, name: { kind: "current" } }));
      }
    }
  });

  test("a mark, plain and sealed", async () => {
    for (const sealed of [false, true]) {
      const { bytes, decoding } = await markSample(sealed);
      for (let bit = 0; bit < bytes.length * 8; bit++) {
        const changed = bytes.slice();
        changed[bit >> 3] = (changed[bit >> 3] ?? 0) ^ (1 << (bit & 7));
        await expectCode("replica-corrupt", () => readDocument(changed, decoding));
      }
    }
  });
});

test("a source that gives fewer or more bytes than asked for is noticed", async () => {
  const { bytes, decoding } = await encodeSample(PAGES);
  for (const given of [bytes.subarray(1), Buffer.concat([bytes, bytes])]) {
    await expectCode("replica-corrupt", () =>
      openObject({ sizeBytes: bytes.length, read: async () => given }, decoding),
    );
  }
});

test("errors name the object, and the page or chunk that is wrong", async () => {
  const { bytes, decoding } = await encodeSample(PAGES, { compression: "none" });
  const headerBytes = 12 + Buffer.from(bytes).readUInt32BE(8);
  bytes[headerBytes + 8 + 600] = 1 ^ (bytes[headerBytes + 8 + 600] ?? 0);
  const error = await expectCode("replica-corrupt", () =>
    verifyObject(memorySource(bytes), { ...decoding, subject: "app/L0/x" }),
  );
  expect(error.message).toBe(
    `stored object is damaged: the data chunk at byte ${headerBytes} does not match its checksum`,
  );
  expect([error.subject, error.hint]).toEqual(["app/L0/x", expect.stringContaining("bakelite repair")]);

  const page = await refusal("replica-corrupt", { raw: at("data", patch(700, Buffer.of(1, 2, 3))) });
  expect(page.message).toBe("stored object is damaged: page 2 does not match its hash");
});

describe("an object that is not what its name says is refused:", () => {
  const level1: SampleShape = { level: 1, first: 5, last: 9 };
  const names: [string, SampleShape, DecodeOptions["name"], ErrorCode][] = [
    ["another kind", {}, { kind: "full", index: 5, seal: "p" }, "replica-corrupt"],
    ["another first index", {}, { kind: "change-set", level: 0, first: 4, last: 5, seal: "p" }, "replica-corrupt"],
    ["another last index", level1, { kind: "change-set", level: 1, first: 5, last: 8, seal: "p" }, "replica-corrupt"],
    ["another level", {}, { kind: "change-set", level: 1, first: 5, last: 5, seal: "p" }, "replica-corrupt"],
    ["another n0", { kind: "full" }, { kind: "full", index: 6, seal: "p" }, "replica-corrupt"],
    [
      "a seal in the name only",
      {},
      { kind: "change-set", level: 0, first: 5, last: 5, seal: SAMPLE_KEY.fingerprint },
      "replica-corrupt",
    ],
    [
      "a seal in the object only",
      { sealed: true },
      { kind: "change-set", level: 0, first: 5, last: 5, seal: "p" },
      "replica-corrupt",
    ],
    [
      "another seal",
      { sealed: true },
      { kind: "change-set", level: 0, first: 5, last: 5, seal: OTHER_KEY.fingerprint },
      "replica-corrupt",
    ],
  ];
  test.each(names)("%s", async (_, shape, name, code) => {
    const { bytes, decoding } = await encodeSample(PAGES, shape);
    await expectCode(code, () => openObject(memorySource(bytes), { ...decoding, name }));
  });

  test("another database", async () => {
    const { bytes, decoding } = await encodeSample(PAGES);
    const error = await expectCode("replica-foreign", () =>
      openObject(memorySource(bytes), { ...decoding, database: "shop" }),
    );
    expect(error.message).toBe("stored object belongs to the database app");
  });

  test("another format", async () => {
    const error = await refusal("replica-foreign", { header: (fields) => ({ ...fields, format: 2 }) });
    expect(error.hint).toBe("upgrade bakelite to read format 2");
  });

  test("CURRENT under the manifest's name, of another database, or with bytes that belong nowhere", async () => {
    const { options, decoding } = sampleOf([]);
    const header: ObjectHeader = { ...options.header, kind: "current" };
    const bytes = await encodeDocument({ ...options, header }, {});
    await expectCode("replica-corrupt", () => readDocument(bytes, { ...decoding, name: { kind: "manifest" } }));
    await expectCode("replica-foreign", () =>
      readDocument(bytes, { ...decoding, name: { kind: "current" }, database: "shop" }),
    );
    const sample = sampleOf(PAGES);
    const withPages = forge(sample, CHUNKS, { header: (fields) => ({ ...fields, kind: "current" }) });
    await expectCode("replica-corrupt", () => readDocument(withPages, { ...decoding, name: { kind: "current" } }));
    const listed = forge(sampleOf([]), [], {
      header: (fields) => ({ ...fields, kind: "current" }),
      trailer: () => [1],
    });
    await expectCode("replica-corrupt", () => readDocument(listed, { ...decoding, name: { kind: "current" } }));
  });
});

describe("keys:", () => {
  test("a sealed object without a key names the setting", async () => {
    const { bytes, decoding } = await encodeSample(PAGES, { sealed: true });
    const error = await expectCode("key-wrong", () =>
      openObject(memorySource(bytes), { ...decoding, keys: emptyKeyRing }),
    );
    expect(error.message).toBe(`the replica was written with key ${SAMPLE_KEY.fingerprint}, and no key is configured`);
    expect(error.hint).toContain("[defaults.encryption] key_file");
  });

  test("a sealed object with another key names both", async () => {
    const { bytes, decoding } = await encodeSample(PAGES, { sealed: true });
    const error = await expectCode("key-wrong", () =>
      openObject(memorySource(bytes), { ...decoding, keys: keyRing([OTHER_KEY]) }),
    );
    expect(error.message).toBe(
      `the replica was written with key ${SAMPLE_KEY.fingerprint}, this is ${OTHER_KEY.fingerprint}`,
    );
  });

  test("an object without a seal is refused while a key is configured, unless that is allowed", async () => {
    const { bytes, decoding } = await encodeSample(PAGES);
    const keys = keyRing([SAMPLE_KEY]);
    const error = await expectCode("key-wrong", () => openObject(memorySource(bytes), { ...decoding, keys }));
    expect(error.hint).toContain("accept_plaintext = true");
    await verifyObject(memorySource(bytes), { ...decoding, keys, acceptPlaintext: true });
  });

  test("another key under the same fingerprint opens nothing", async () => {
    const { bytes, decoding } = await encodeSample(PAGES, { sealed: true });
    const keys = keyRing([{ ...OTHER_KEY, fingerprint: SAMPLE_KEY.fingerprint }]);
    const error = await expectCode("replica-corrupt", () => openObject(memorySource(bytes), { ...decoding, keys }));
    expect(error.message).toContain("seal of the trailer chunk");
  });

  test("what somebody without the key puts into a sealed object is refused", async () => {
    const unsealed = (kind: Chunk["kind"]) => (stored: Buffer, chunk: Chunk) =>
      chunk.kind === kind ? Buffer.alloc(stored.length, 3) : stored;
    for (const kind of ["data", "index", "trailer"] as const) {
      const error = await refusal("replica-corrupt", { stored: unsealed(kind) }, { sealed: true });
      expect(error.message).toContain(`seal of the ${kind} chunk`);
    }
    // Even a header field that says nothing of content is bound to the chunks.
    const sample = sampleOf(PAGES, { sealed: true });
    const bytes = Buffer.from(forge(sample, CHUNKS));
    const renamed = forge(sample, CHUNKS, { header: (fields) => ({ ...fields, writer: "a stranger's wrider" }) });
    renamed.set(bytes.subarray(bytes.readUInt32BE(8) + 12, -72), bytes.readUInt32BE(8) + 12);
    await expectCode("replica-corrupt", () => openObject(memorySource(renamed), sample.decoding));
  });
});

describe("a frame is refused", () => {
  const kinds = ["data", "index", "trailer"] as const;

  test("of the wrong type, with a compression that is not known, or a byte that must be zero", async () => {
    for (const kind of kinds) {
      for (const shape of [{}, { sealed: true }]) {
        await refusal("replica-corrupt", { frame: at(kind, patch(0, Buffer.of(3))) }, shape);
        await refusal("replica-corrupt", { frame: at(kind, patch(0, Buffer.of(kind === "data" ? 1 : 0))) }, shape);
        await refusal("replica-corrupt", { frame: at(kind, patch(1, Buffer.of(2))) }, shape);
        await refusal("replica-corrupt", { frame: at(kind, patch(3, Buffer.of(1))) }, shape);
      }
    }
  });

  test("with an encoding that is not known, telling to upgrade", async () => {
    const error = await refusal("replica-foreign", { frame: at("data", patch(2, Buffer.of(1))) });
    expect(error.message).toContain("unknown encoding 1");
    expect(error.hint).toContain("upgrade");
  });

  test("that claims a length which it has not, or that is beyond the limit", async () => {
    for (const kind of kinds) {
      for (const length of [0, 1, 262_145, 1_048_577, 67_108_865, 0x7fff_ffff, 0xffff_ffff]) {
        await refusal("replica-corrupt", { frame: at(kind, patch(4, u32(length))) });
        await refusal("replica-corrupt", { frame: at(kind, patch(4, u32(length))) }, { compression: "none" });
      }
    }
  });

  test("shorter than its own header", async () => {
    for (const kind of kinds) await refusal("replica-corrupt", { frame: at(kind, (frame) => frame.subarray(0, 7)) });
  });

  test("that is not sealed, or sealed and shorter than a seal", async () => {
    for (const kind of kinds)
      await refusal("replica-corrupt", { stored: at(kind, (stored) => stored.subarray(0, 15)) }, { sealed: true });
  });
});

describe("a zstd frame is refused, without taking the memory that it asks for,", () => {
  const bomb = zstdCompressSync(Buffer.alloc(512 * MIB));

  async function expectRefused(
    payload: Uint8Array,
    claimed: number,
    problem = "stored object is damaged",
  ): Promise<void> {
    for (const kind of ["data", "index", "trailer"] as const) {
      const frame = (frame: Buffer) => Buffer.concat([frame.subarray(0, 1), Buffer.of(1, 0, 0), u32(claimed), payload]);
      expect((await refusal("replica-corrupt", { frame: at(kind, frame) })).message).toContain(problem);
    }
  }

  /** A frame that does not say how long its content is. */
  async function streamed(content: Buffer): Promise<Buffer> {
    const stream = createZstdCompress();
    const pieces = Array.fromAsync(stream as AsyncIterable<Buffer>);
    for (let offset = 0; offset < content.length; offset += MIB) stream.write(content.subarray(offset, offset + MIB));
    stream.end();
    return Buffer.concat(await pieces);
  }

  test("that declares more than its chunk", async () => {
    const growth = await growthOf(async () => {
      for (const claimed of [512, 262_144, 512 * MIB]) await expectRefused(bomb, claimed);
    });
    expect(growth).toBeLessThan(64 * MIB);
  });

  test("that declares less than it holds", async () => {
    const shrunken = Buffer.from(bomb);
    const sizeOffset = (shrunken[4] ?? 0) & 0x20 ? 5 : 6;
    shrunken.writeUInt32LE(262_144, sizeOffset);
    const growth = await growthOf(() => expectRefused(shrunken, 262_144));
    expect(growth).toBeLessThan(64 * MIB);
  });

  test("that declares nothing", async () => {
    const unsized = await streamed(Buffer.alloc(64 * MIB));
    const growth = await growthOf(() => expectRefused(unsized, 262_144, "not one zstd frame of 262144 bytes"));
    expect(growth).toBeLessThan(32 * MIB);
    await expectRefused(await streamed(Buffer.alloc(512)), 512);
  });

  test("that is followed by another frame, a skippable one, or anything", async () => {
    const first = zstdCompressSync(Buffer.alloc(1024));
    const skippable = Buffer.concat([Buffer.from("502a4d18", "hex"), Buffer.of(4, 0, 0, 0), Buffer.alloc(4)]);
    for (const second of [bomb, zstdCompressSync(Buffer.alloc(0)), skippable, Buffer.alloc(1)]) {
      await expectRefused(Buffer.concat([first, second]), 1024, "not one zstd frame of 1024 bytes");
      await expectRefused(Buffer.concat([skippable, first]), 1024, "not one zstd frame of 1024 bytes");
    }
  });

  test("that is cut short, larger than what it holds, or no frame at all", async () => {
    const frame = zstdCompressSync(Buffer.alloc(1024));
    for (let length = 0; length < frame.length; length++) await expectRefused(frame.subarray(0, length), 1024);
    await expectRefused(zstdCompressSync(Buffer.from("abc")), 3, "not one zstd frame of 3 bytes");
    await expectRefused(Buffer.alloc(100), 1024, "not one zstd frame of 1024 bytes");
  });

  test("with a dictionary or reserved bits", async () => {
    const frame = zstdCompressSync(Buffer.alloc(1024));
    for (const bits of [0x01, 0x02, 0x03, 0x08])
      await expectRefused(patch(4, Buffer.of((frame[4] ?? 0) | bits))(Buffer.from(frame)), 1024);
  });
});

describe("a footer is refused", () => {
  const unfit = "its footer does not fit its length";
  const footers: [string, (footer: Buffer) => Buffer, problem: string][] = [
    ["whose trailer begins far outside", patch(0, u64(2n ** 64n - 1n)), unfit],
    ["whose trailer begins at 2^53 and more", patch(0, u64(2n ** 53n + 1n)), unfit],
    ["whose trailer begins at 0", patch(0, u64(0)), unfit],
    ["whose trailer is empty", patch(8, u32(0)), unfit],
    ["whose trailer is as long as can be", patch(8, u32(0xffff_ffff)), unfit],
    ["that begins the trailer one byte late", (footer) => patch(0, u64(footer.readBigUInt64BE(0) + 1n))(footer), unfit],
    ["whose header is empty", patch(12, u32(0)), unfit],
    ["whose header is as long as can be", patch(12, u32(0xffff_ffff)), unfit],
    ["whose header is longer than any may be", patch(12, u32(65_549)), unfit],
    [
      "whose header ends behind the trailer's beginning",
      (footer) => patch(12, u32(footer.readUInt32BE(4) + 1))(footer),
      unfit,
    ],
    ["whose checksum is another", patch(16, Buffer.alloc(16)), "header and trailer do not match their checksum"],
  ];
  test.each(footers)("%s", async (_, footer, problem) => {
    for (const sealed of [false, true]) {
      expect((await refusal("replica-corrupt", { footer }, { sealed })).message).toContain(problem);
    }
  });

  test("whose header is a byte longer or shorter than it says itself", async () => {
    for (const [difference, problem] of [
      [1, "its header is not as long as its footer says"],
      [-1, "the header is cut short"],
    ] as const) {
      const footer = (footer: Buffer, object: Buffer) => {
        const headerBytes = footer.readUInt32BE(12) + difference;
        const checked = [object.subarray(0, headerBytes), object.subarray(Number(footer.readBigUInt64BE(0)))];
        const checksum = createHash("sha256").update(Buffer.concat(checked)).digest().subarray(0, 16);
        return patch(16, checksum)(patch(12, u32(headerBytes))(footer));
      };
      expect((await refusal("replica-corrupt", { footer })).message).toContain(problem);
    }
  });

  test("whose trailer is larger than any may be, before anything is read for it", async () => {
    const sizeBytes = 200 * MIB;
    const { decoding } = sampleOf(PAGES);
    const tail = Buffer.alloc(64 * 1024);
    Buffer.concat([
      u64(sizeBytes - 72 - 100 * MIB),
      u32(100 * MIB),
      u32(300),
      Buffer.alloc(48),
      Buffer.from("etilekab"),
    ]).copy(tail, tail.length - 72);
    const reads: number[] = [];
    const read = async (start: number, end: number) => {
      reads.push(end - start);
      return tail.subarray(0, end - start);
    };
    await expectCode("replica-corrupt", () => openObject({ sizeBytes, read }, decoding));
    expect(reads).toEqual([64 * 1024]);
  });
});

describe("a trailer is refused", () => {
  const change = (field: string, value: unknown): Forgery => ({ trailer: (fields) => ({ ...fields, [field]: value }) });
  /** The forged objects have one index chunk; this changes one of the fields that describe it. */
  const changeIndexChunk = (position: number, value: unknown): Forgery => ({
    trailer: (fields) => ({
      ...fields,
      index_chunks: (fields["index_chunks"] as unknown[][]).map((entry) => entry.with(position, value)),
    }),
  });
  const forgeries: [string, Forgery][] = [
    ["that is no object", { trailer: () => [1, 2, 3] }],
    ["that is null", { trailer: () => null }],
    ["that is nested deeply", { raw: at("trailer", () => Buffer.from("[".repeat(1_000_000))) }],
    ["that is not UTF-8", { raw: at("trailer", (raw) => patch(10, Buffer.of(0xff))(raw)) }],
    ["that is not JSON", { raw: at("trailer", (raw) => raw.subarray(0, -1)) }],
    ["with a prototype in place of fields", { raw: at("trailer", (raw) => Buffer.from(`{"__proto__":${raw}}`)) }],
    ["without pages' count", change("page_count", undefined)],
    ["with another pages' count", change("page_count", 4)],
    ["with a negative size", change("size_pages", -1)],
    ["with a size beyond u32", change("size_pages", 2 ** 32)],
    ["with a fractional size", change("size_pages", 3.5)],
    ["with a size that is text", change("size_pages", "3")],
    ["with a size below its pages", change("size_pages", 2)],
    ["with another last index than its name's", change("last", 6)],
    ["with a last index below the first", change("last", 4)],
    ["with an index beyond 2^53", change("last", 2 ** 53)],
    ["that is settled before its last index", change("settled", 4)],
    ["without a parent", change("parent", null)],
    ["with a parent in capitals", change("parent", "AB".repeat(32))],
    ["with a short result", change("result", "ab".repeat(31))],
    ["with a long digest", change("digest", "ab".repeat(17))],
    [
      "with a time that is infinite",
      {
        raw: at("trailer", (raw) =>
          Buffer.from(raw.toString().replace(/"last_commit_ms":\d+/, '"last_commit_ms":1e999')),
        ),
      },
    ],
    [
      "with 65 epochs",
      change(
        "epochs",
        Array.from({ length: 65 }, (_, i) => [i, i, i]),
      ),
    ],
    [
      "with epochs that do not ascend",
      change("epochs", [
        [2, 1, 1],
        [1, 2, 2],
      ]),
    ],
    [
      "with epochs whose indexes do not ascend",
      change("epochs", [
        [1, 2, 1],
        [2, 2, 2],
      ]),
    ],
    ["with an epoch that lacks its stamp", change("epochs", [[2, 1]])],
    ["with a WAL position of other numbers", change("wal", { salt: [1, 2 ** 32], frame: 1, checksum: [1, 1] })],
    ["with a reason that is no text", change("reason", 1)],
    ["without its index chunks", change("index_chunks", [])],
    [
      "with far too many index chunks",
      change(
        "index_chunks",
        Array.from({ length: 200_000 }, () => [0, 0, 0, 0, 0, "0".repeat(32)]),
      ),
    ],
    ["whose index chunk begins elsewhere", changeIndexChunk(0, 0)],
    ["whose index chunk begins far outside", changeIndexChunk(0, 2 ** 53 - 1)],
    ["whose index chunk begins before the object", changeIndexChunk(0, -8)],
    ["whose index chunk is empty", changeIndexChunk(1, 0)],
    ["whose index chunk is as long as can be", changeIndexChunk(1, 0xffff_ffff)],
    ["whose index chunk has another first page", changeIndexChunk(2, 2)],
    ["whose index chunk has another last page", changeIndexChunk(3, 4)],
    ["whose index chunk has no pages", changeIndexChunk(4, 0)],
    ["whose index chunk has more pages than numbers", changeIndexChunk(4, 9)],
    ["whose index chunk has another checksum", changeIndexChunk(5, "0".repeat(32))],
  ];
  test.each(forgeries)("%s", async (_, forgery) => {
    await refusal("replica-corrupt", forgery);
  });

  test("that claims a lineage or a digest which its pages have not", async () => {
    expect((await refusal("replica-corrupt", change("result", "00".repeat(32)))).message).toContain("lineage");
    expect((await refusal("replica-corrupt", change("parent", "00".repeat(32)))).message).toContain("lineage");
    expect((await refusal("replica-corrupt", change("digest", "00".repeat(16)), { kind: "full" })).message).toContain(
      "digest",
    );
  });

  test("that leaves bytes between the last index chunk and itself", async () => {
    const error = await refusal("replica-corrupt", {
      stored: at("index", (stored) => Buffer.concat([stored, Buffer.alloc(5)])),
      trailer: (fields) => {
        const [offset, length, ...rest] = (fields["index_chunks"] as number[][])[0] ?? [];
        return { ...fields, index_chunks: [[offset, (length ?? 0) - 5, ...rest]] };
      },
    });
    expect(error.message).toContain("its index chunks do not end where its trailer begins");
  });

  test("that claims a group larger than any may be, before anything is read for it", async () => {
    const sample = sampleOf(PAGES);
    const hole = 1024 * MIB;
    const later = (fields: Record<string, unknown>) => {
      const [[offset = 0, ...rest] = []] = fields["index_chunks"] as number[][];
      return { ...fields, index_chunks: [[offset + hole, ...rest]] };
    };
    const footer = (footer: Buffer) => patch(0, u64(footer.readBigUInt64BE(0) + BigInt(hole)))(footer);
    const bytes = forge(sample, CHUNKS, { trailer: later, footer });
    const reads: number[] = [];
    const source = {
      sizeBytes: bytes.length + hole,
      read: async (start: number, end: number) => {
        reads.push(end - start);
        // What lies in the hole is never looked at: its bytes are zeros.
        const whole = Buffer.alloc(end - start);
        Buffer.from(bytes).copy(
          whole,
          Math.max(0, whole.length - bytes.length),
          start === 0 ? 0 : Math.max(0, bytes.length - whole.length),
        );
        return whole;
      },
    };
    const error = await expectCode("replica-corrupt", () => verifyObject(source, sample.decoding));
    expect(error.message).toContain("its trailer says that an index chunk at byte");
    expect(Math.max(...reads)).toBeLessThan(MIB);
  });

  test("of a full backup that has a parent, lacks pages, ends at another index, or has a digest and settles later", async () => {
    await refusal("replica-corrupt", change("parent", "00".repeat(32)), { kind: "full" });
    await refusal("replica-corrupt", change("size_pages", 4), { kind: "full" });
    await refusal("replica-corrupt", change("last", 6), { kind: "full" });
    await refusal("replica-corrupt", change("settled", 6), { kind: "full" });
  });

  test("unknown fields are ignored", async () => {
    const sample = sampleOf(PAGES);
    const bytes = forge(sample, CHUNKS, {
      trailer: (fields) => ({ ...fields, later: { size_pages: 1 } }),
      header: (fields) => ({ ...fields, later: 1 }),
    });
    await verifyObject(memorySource(bytes), sample.decoding);
  });
});

describe("an index chunk is refused", () => {
  // u32 number of data chunks; then 32 bytes for each of two; then 20 bytes for each of three pages, from byte 68.
  const forgeries: [string, (raw: Buffer) => Buffer, problem: string][] = [
    ["that claims no data chunks", patch(0, u32(0)), "claims 0 data chunks"],
    ["that claims one data chunk", patch(0, u32(1)), "is not as long as its contents"],
    ["that claims 65 data chunks", patch(0, u32(65)), "claims 65 data chunks"],
    ["that claims as many data chunks as can be", patch(0, u32(0xffff_ffff)), "claims 4294967295 data chunks"],
    ["that is cut short", (raw) => raw.subarray(0, -1), "is not as long as its contents"],
    ["that goes on", (raw) => Buffer.concat([raw, Buffer.alloc(20)]), "is not as long as its contents"],
    ["of three bytes", () => Buffer.alloc(3), "claims 0 data chunks"],
    ["whose data chunk begins in the header", patch(4, u64(0)), "leaves a gap"],
    ["whose data chunk begins far outside", patch(4, u64(2n ** 64n - 1n)), "leaves a gap"],
    ["whose data chunks overlap", (raw) => patch(36, raw.subarray(4, 12))(raw), "leaves a gap"],
    ["whose data chunk is empty", patch(12, u32(0)), "claims a data chunk of 0 bytes"],
    ["whose data chunk is as long as can be", patch(12, u32(0xffff_ffff)), "claims a data chunk of 4294967295 bytes"],
    [
      "whose last data chunk is longer than its place",
      (raw) => patch(44, u32(raw.readUInt32BE(44) + 1))(raw),
      "does not describe what stands before it",
    ],
    ["whose data chunk has no pages", patch(16, u32(0)), "claims a data chunk of 0 pages"],
    [
      "whose data chunk has as many pages as can be",
      patch(16, u32(0xffff_ffff)),
      "claims a data chunk of 4294967295 pages",
    ],
    ["whose data chunks have a page too many", patch(48, u32(2)), "has pages that do not add up"],
    [
      "whose data chunks share their pages otherwise",
      (raw) => patch(48, u32(2))(patch(16, u32(1))(raw)),
      "has not the pages that its index chunk says",
    ],
    ["whose data chunk has another checksum", patch(20, Buffer.alloc(16)), "does not match its checksum"],
    ["with page 0", patch(68, u32(0)), "has page numbers that do not ascend"],
    ["whose pages do not ascend", patch(88, u32(1)), "has page numbers that do not ascend"],
    ["whose first page is another", patch(68, u32(0xffff_ffff)), "has page numbers that do not ascend"],
    ["whose last page is another", patch(108, u32(4)), "has other pages than the trailer says"],
  ];
  test.each(forgeries)("%s", async (_, raw, problem) => {
    for (const sealed of [false, true]) {
      expect((await refusal("replica-corrupt", { raw: at("index", raw) }, { sealed })).message).toContain(problem);
    }
  });

  test("with the lock page", async () => {
    const pages = [{ pageNumber: 16_385, image: new Uint8Array(65_536) }];
    const sample = sampleOf(pages, { pageSizeBytes: 65_536 });
    const error = await expectCode("replica-corrupt", () =>
      verifyObject(memorySource(forge(sample, [pages])), sample.decoding),
    );
    expect(error.message).toContain("the lock page");
  });

  test("that is not the last and describes other than 64 data chunks", async () => {
    const sample = sampleOf(PAGES);
    const bytes = forge(sample, CHUNKS, { groupSize: 1 });
    const error = await expectCode("replica-corrupt", () => verifyObject(memorySource(bytes), sample.decoding));
    expect(error.message).toContain("claims 1 data chunks");
  });
});

test("a data chunk with more or fewer pages than its index chunk says is refused", async () => {
  await refusal("replica-corrupt", { raw: at("data", (raw) => raw.subarray(0, 512)) });
  await refusal("replica-corrupt", { raw: at("data", (raw) => Buffer.concat([raw, Buffer.alloc(512)])) });
  await refusal("replica-corrupt", { raw: at("data", (raw) => raw.subarray(0, 1023)) });
});

test("no object is read as one of another name", async () => {
  const names: ObjectName[] = [
    { kind: "full", index: 5, seal: "p" },
    { kind: "change-set", level: 0, first: 5, last: 5, seal: "p" },
    { kind: "change-set", level: 1, first: 5, last: 5, seal: "p" },
    { kind: "change-set", level: 1, first: 5, last: 6, seal: "p" },
  ];
  const shapes: SampleShape[] = [{ kind: "full" }, { level: 0 }, { level: 1 }, { level: 1, last: 6 }];
  for (const [i, shape] of shapes.entries()) {
    const { options, trailer, decoding } = sampleOf(PAGES, shape);
    const bytes = await collect(encodeObject(options, [toBatch(PAGES)], () => trailer));
    for (const [k, name] of names.entries()) {
      const opening = () => openObject(memorySource(bytes), { ...decoding, name });
      if (i === k) await opening();
      else await expectCode("replica-corrupt", opening);
    }
  }
});
