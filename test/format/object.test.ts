import { describe, expect, test } from "bun:test";
import { checkPageHashes, footerSha256, openObject, readDocument, verifyObject } from "../../src/format/decode.ts";
import { encodeDocument, encodeObject, type PageBatch } from "../../src/format/encode.ts";
import { fc } from "../support/properties.ts";
import { forge } from "./forge.ts";
import {
  collect,
  encodeSample,
  fromBatch,
  memorySource,
  noisePages,
  type Page,
  pages,
  type Sample,
  type SampleShape,
  sampleOf,
  toBatch,
} from "./samples.ts";

const KIB = 1024;

/** The pages of an object, read through its index chunks, one data chunk at a time. */
async function readPages(bytes: Uint8Array, sample: Sample): Promise<Page[]> {
  const reader = await openObject(memorySource(bytes), sample.decoding);
  const found: Page[] = [];
  for (let i = 0; i < reader.trailer.indexChunks.length; i++) {
    const { dataChunks, pageNumbers, hashes } = await reader.indexChunk(i);
    for (const ref of dataChunks) {
      const images = await reader.dataChunk(ref);
      const numbers = pageNumbers.subarray(ref.firstEntry, ref.firstEntry + ref.pageCount);
      const expected = hashes.subarray(ref.firstEntry * 16, (ref.firstEntry + ref.pageCount) * 16);
      expect(checkPageHashes(numbers, images, expected, reader.header.pageSizeBytes)).toBe(-1);
      found.push(...fromBatch({ pageNumbers: numbers, images, hashes: expected }, reader.header.pageSizeBytes));
    }
  }
  return found;
}

/** The pages of an object, as verifying it hands them out. */
async function verifyPages(bytes: Uint8Array, sample: Sample): Promise<Page[]> {
  const found: Page[] = [];
  const onPages = async (batch: PageBatch) => {
    found.push(...fromBatch(batch, sample.header.pageSizeBytes));
  };
  await verifyObject(memorySource(bytes), sample.decoding, { onPages });
  return found;
}

async function expectRoundTrip(pages: readonly Page[], shape: SampleShape): Promise<Uint8Array> {
  const { bytes, ...sample } = await encodeSample(pages, shape);
  const wanted = pages.map(({ pageNumber, image }) => ({ pageNumber, image: Buffer.from(image) }));
  const asBuffers = (found: Page[]) =>
    found.map(({ pageNumber, image }) => ({ pageNumber, image: Buffer.from(image) }));
  expect(asBuffers(await readPages(bytes, sample))).toEqual(wanted);
  expect(asBuffers(await verifyPages(bytes, sample))).toEqual(wanted);
  return bytes;
}

const shape: fc.Arbitrary<SampleShape> = fc.record({
  sealed: fc.boolean(),
  compression: fc.constantFrom("zstd", "none"),
  level: fc.nat(9),
  first: fc.integer({ min: 1, max: 2 ** 53 - 1 }),
});

describe("an object survives being written and read:", () => {
  test.each([512, 4096, 65_536])("any pages of %d bytes, in any batches", async (pageSizeBytes) => {
    const limits = { maxLength: pageSizeBytes === 65_536 ? 9 : 40 };
    const cuts = fc.array(fc.nat(limits.maxLength), { maxLength: 4 });
    await fc.assert(
      fc.asyncProperty(pages(pageSizeBytes, limits), shape, cuts, async (pages, shape, cuts) => {
        const whole = await expectRoundTrip(pages, { ...shape, pageSizeBytes });
        const sample = sampleOf(pages, { ...shape, pageSizeBytes });
        const edges = [0, ...cuts.sort((a, b) => a - b), pages.length];
        const batches = edges.slice(1).map((end, i) => toBatch(pages.slice(edges[i], end)));
        const again = await collect(encodeObject(sample.options, batches, () => sample.trailer));
        expect(Buffer.compare(whole, again)).toBe(0);
      }),
      { numRuns: 40 },
    );
  });

  test("header and trailer come back as they were given", async () => {
    const given = [{ pageNumber: 3, image: new Uint8Array(512).fill(1) }];
    for (const sealed of [false, true]) {
      const { bytes, ...sample } = await encodeSample(given, { sealed, sizePages: 4 });
      const reader = await openObject(memorySource(bytes), sample.decoding);
      const { indexChunks, ...trailer } = reader.trailer;
      expect(reader.header).toEqual(sample.header);
      expect(trailer).toEqual({ ...sample.trailer, pageCount: 1 });
      expect(indexChunks.map(({ firstPage, lastPage, pageCount }) => ({ firstPage, lastPage, pageCount }))).toEqual([
        { firstPage: 3, lastPage: 3, pageCount: 1 },
      ]);
      expect(reader.sizeBytes).toBe(bytes.length);
    }
  });

  test("a compacted range, an ordinary one that steps over indexes, and a full backup", async () => {
    const given = noisePages(3, 512, "three");
    await expectRoundTrip(given, { level: 2, first: 5, last: 70 });
    await expectRoundTrip(given, { level: 0, first: 5, last: 65_540 });
    await expectRoundTrip(given, { kind: "full", first: 5 });
  });

  test("no pages at all: no index chunk, header and trailer only", async () => {
    for (const sealed of [false, true]) {
      for (const kind of ["full", "change-set"] as const) {
        const bytes = await expectRoundTrip([], { kind, sealed });
        const { decoding } = sampleOf([], { kind, sealed });
        expect((await openObject(memorySource(bytes), decoding)).trailer.indexChunks).toEqual([]);
      }
    }
  });

  test.each([
    { pageSizeBytes: 512, count: 512 * 65 + 1, groups: [64, 2] },
    { pageSizeBytes: 512, count: 512 * 64, groups: [64] },
    { pageSizeBytes: 65_536, count: 4 * 129, groups: [64, 64, 1] },
  ])(
    "$count pages of $pageSizeBytes bytes: 64 data chunks in every group but the last",
    async ({ pageSizeBytes, count, groups }) => {
      const few = noisePages(64, pageSizeBytes, "few");
      const given = Array.from({ length: count }, (_, i) => ({
        pageNumber: i + 1,
        image: few[i % 64]?.image ?? new Uint8Array(),
      }));
      for (const sealed of [false, true]) {
        if (sealed && count > 600) continue; // Once is enough: it takes its time.
        const { bytes, ...sample } = await encodeSample(given, { kind: "full", pageSizeBytes, sealed });
        const reader = await openObject(memorySource(bytes), sample.decoding);
        const found: number[] = [];
        for (let i = 0; i < reader.trailer.indexChunks.length; i++) {
          const { dataChunks } = await reader.indexChunk(i);
          found.push(dataChunks.length);
          for (const ref of dataChunks.slice(0, -1)) expect(ref.pageCount).toBe((256 * KIB) / pageSizeBytes);
        }
        expect(found).toEqual([...groups]);
        await verifyObject(memorySource(bytes), sample.decoding);
      }
    },
  );
});

test("a writer that follows the page alone is understood, whatever its data chunks hold", async () => {
  const given = noisePages(70, 512, "page").map((page, i) =>
    i % 3 === 0 ? { ...page, image: page.image.fill(7) } : page,
  );
  for (const sealed of [false, true]) {
    for (const compression of ["zstd", "none"] as const) {
      const sample = sampleOf(given, { sealed, compression });
      for (const dataChunks of [
        [given],
        given.map((page) => [page]),
        [given.slice(0, 1), given.slice(1, 60), given.slice(60)],
      ]) {
        const bytes = forge(sample, dataChunks);
        const { footerSha256: sha256 } = await verifyObject(memorySource(bytes), sample.decoding);
        expect(Buffer.from(sha256)).toEqual(Buffer.from(bytes.subarray(-40, -8)));
      }
    }
  }
});

test("what zstd does not shrink is stored as it is, and `none` compresses nothing", async () => {
  const noise = noisePages(8, 4096, "noise");
  const plain = (await encodeSample(noise, { pageSizeBytes: 4096 })).bytes;
  expect(Buffer.from(plain).includes(noise[0]?.image ?? "")).toBe(true);

  const even = [{ pageNumber: 1, image: new Uint8Array(4096).fill(5) }];
  expect((await encodeSample(even, { pageSizeBytes: 4096 })).bytes.length).toBeLessThan(2000);
  const none = (await encodeSample(even, { pageSizeBytes: 4096, compression: "none" })).bytes;
  expect(Buffer.from(none).includes(even[0]?.image ?? "")).toBe(true);
  expect(Buffer.from(none).toString("latin1")).toContain('"reason":"wal"');
});

test("a sealed object shows nothing of its content, and two seeds make two texts", async () => {
  const given = [{ pageNumber: 1, image: new Uint8Array(512).fill(0x61) }];
  const { bytes, header } = await encodeSample(given, { sealed: true, compression: "none" });
  const text = Buffer.from(bytes).toString("latin1");
  expect(text).not.toContain("aaaaaaaa");
  expect(text).not.toContain("size_pages");
  const { options, trailer } = sampleOf(given, { sealed: true, compression: "none" });
  const reseeded = { ...options, header: { ...header, nonceSeed: "5e".repeat(24) } };
  const other = await collect(encodeObject(reseeded, [toBatch(given)], () => trailer));
  expect(Buffer.compare(bytes.subarray(600, 900), other.subarray(600, 900))).not.toBe(0);
});

describe("reading", () => {
  test("a small object takes one request, however much of it is wanted", async () => {
    const { bytes, decoding } = await encodeSample(noisePages(20, 512, "small"));
    const source = memorySource(bytes);
    const reader = await openObject(source, decoding);
    await reader.dataChunk((await reader.indexChunk(0)).dataChunks[0] ?? fail());
    expect(source.reads).toEqual([[0, bytes.length]]);
  });

  test("a large object takes one request for its tail and one for its header, then two for any page", async () => {
    const { bytes, decoding } = await encodeSample(noisePages(1000, 4096, "large"), {
      kind: "full",
      pageSizeBytes: 4096,
    });
    const source = memorySource(bytes);
    const reader = await openObject(source, decoding);
    expect(source.reads).toEqual([
      [bytes.length - 64 * KIB, bytes.length],
      [0, expect.any(Number)],
    ]);
    source.reads.length = 0;
    const [ref = fail()] = (await reader.indexChunk(0)).dataChunks;
    await reader.dataChunk(ref);
    expect(source.reads.length).toBeLessThanOrEqual(2);
  });

  test("a whole object is read in order, group by group, each byte once but for the tail", async () => {
    const { bytes, decoding } = await encodeSample(noisePages(4 * 64 * 2 + 1, 65_536, "order"), {
      kind: "full",
      pageSizeBytes: 65_536,
    });
    const source = memorySource(bytes);
    await verifyObject(source, decoding);
    const [tail, header, ...groups] = source.reads;
    expect(tail).toEqual([bytes.length - 64 * KIB, bytes.length]);
    let position = header?.[1] ?? fail();
    expect(groups.length).toBe(3);
    for (const [start, end] of groups) {
      expect(start).toBe(position);
      expect(end - start).toBeLessThan(17 * KIB * KIB);
      position = end;
    }
  });

  test("the footer's SHA-256 is found in any tail", async () => {
    const { bytes, decoding } = await encodeSample(noisePages(2, 512, "tail"));
    const { footerSha256: verified } = await verifyObject(memorySource(bytes), decoding);
    expect(footerSha256(bytes.subarray(-72))).toEqual(verified);
    expect(footerSha256(bytes)).toEqual(verified);
    expect(() => footerSha256(bytes.subarray(0, -1))).toThrow("cut short");
    expect(() => footerSha256(bytes.subarray(-71))).toThrow("cut short");
  });
});

describe("encoding a stream", () => {
  const pageSizeBytes = 4096;
  const sample = sampleOf([], { kind: "full", pageSizeBytes, sizePages: 64 * 20 });

  /** Twenty data chunks' worth of batches, each as long as a data chunk; `taken` grows as they are pulled. */
  function twentyBatches(state: { taken: number; closed: boolean }): AsyncIterable<PageBatch> {
    return (async function* () {
      try {
        for (let i = 0; i < 20; i++) {
          state.taken++;
          yield {
            pageNumbers: Uint32Array.from({ length: 64 }, (_, k) => i * 64 + k + 1),
            images: new Uint8Array(64 * pageSizeBytes).fill(i),
            hashes: new Uint8Array(64 * 16),
          };
        }
      } finally {
        state.closed = true;
      }
    })();
  }

  test("pulls batches only a few ahead of what was taken", async () => {
    for (const concurrency of [1, 3, 8]) {
      const state = { taken: 0, closed: false };
      let pieces = 0;
      for await (const piece of encodeObject(
        { ...sample.options, concurrency },
        twentyBatches(state),
        () => sample.trailer,
      )) {
        expect(piece.length).toBeGreaterThan(0);
        expect(state.taken).toBeLessThanOrEqual(Math.max(0, pieces++) + concurrency);
      }
      expect(state).toEqual({ taken: 20, closed: true });
    }
  });

  test("asks for the trailer once, after everything else was handed on, and waits for it", async () => {
    let asked = 0;
    const { promise, resolve } = Promise.withResolvers<typeof sample.trailer>();
    const pieces = encodeObject(sample.options, twentyBatches({ taken: 0, closed: false }), () => {
      asked++;
      return promise;
    });
    for (let i = 0; i < 1 + 20 + 1; i++) {
      expect((await pieces.next()).done).toBe(false);
      expect(asked).toBe(0);
    }
    const trailer = pieces.next();
    await Bun.sleep(1);
    expect(asked).toBe(1);
    resolve(sample.trailer);
    expect((await trailer).done).toBe(false);
    expect((await pieces.next()).value).toHaveLength(72);
    expect(await pieces.next()).toEqual({ done: true, value: undefined });
    expect(asked).toBe(1);
  });

  test("fails as its batches or its trailer fail", async () => {
    const failingBatches = async function* () {
      yield* twentyBatches({ taken: 0, closed: false });
      throw new Error("the database went away");
    };
    await expect(collect(encodeObject(sample.options, failingBatches(), () => sample.trailer))).rejects.toThrow(
      "the database went away",
    );
    const state = { taken: 0, closed: false };
    const failing = collect(
      encodeObject(sample.options, twentyBatches(state), () => Promise.reject(new Error("n1 was not stored"))),
    );
    await expect(failing).rejects.toThrow("n1 was not stored");
  });

  test("lets go of the batches when nobody wants more", async () => {
    const state = { taken: 0, closed: false };
    const pieces = encodeObject(sample.options, twentyBatches(state), () => sample.trailer);
    await pieces.next();
    await pieces.next();
    await pieces.return(undefined);
    expect(state.closed).toBe(true);
    expect(state.taken).toBeLessThan(6);
  });

  test("refuses what no reader would accept", async () => {
    const encode = (pages: Page[], shape: SampleShape, trailer: object = {}) => {
      const sample = sampleOf(pages, shape);
      return collect(encodeObject(sample.options, [toBatch(pages)], () => ({ ...sample.trailer, ...trailer })));
    };
    const at = (...numbers: number[]) => numbers.map((pageNumber) => ({ pageNumber, image: new Uint8Array(512) }));
    await expect(encode(at(2, 2), {})).rejects.toThrow("ascend");
    await expect(encode(at(0), {})).rejects.toThrow("ascend");
    await expect(encode(at(2_097_153), {})).rejects.toThrow("lock page");
    await expect(encode(at(1, 3), { kind: "full" })).rejects.toThrow("lacks pages");
    await expect(encode(at(5), { sizePages: 4 })).rejects.toThrow("above the size");
    await expect(encode(at(1), {}, { settled: 4 })).rejects.toThrow("settled");
    await expect(encode(at(1), {}, { result: "00" })).rejects.toThrow("result");
    await expect(encode(at(1), {}, { last: 4 })).rejects.toThrow("below the first");
    await expect(encode(at(1), { kind: "full" }, { parent: "00".repeat(32) })).rejects.toThrow("parent");
    await expect(encode(at(1), {}, { parent: null })).rejects.toThrow("parent");
    const { options, trailer } = sampleOf([]);
    await expect(collect(encodeObject({ ...options, sealKey: new Uint8Array(32) }, [], () => trailer))).rejects.toThrow(
      "cipher",
    );
    const short = { ...toBatch(at(1)), images: new Uint8Array(511) };
    await expect(collect(encodeObject(options, [short], () => trailer))).rejects.toThrow("one image");
    const shortHashes = { ...toBatch(at(1)), hashes: new Uint8Array(15) };
    await expect(collect(encodeObject(options, [shortHashes], () => trailer))).rejects.toThrow("one hash");
  });
});

test("a mark survives being written and read, and is refused under another name", async () => {
  for (const sealed of [false, true]) {
    const { options, decoding } = sampleOf([], { sealed });
    const header = { ...options.header, kind: "mark" as const };
    const fields = {
      index: header.first,
      lineage: "ab".repeat(32),
      label: "vor dem Umzug ü",
      stamp_ms: 1,
      created_ms: 2,
    };
    const bytes = await encodeDocument({ ...options, header }, fields);
    const name = { kind: "mark" as const, index: header.first, seal: header.keyFingerprint ?? "p" };
    expect(readDocument(bytes, { ...decoding, name })).toEqual({ header, fields });
    for (const wrong of [
      { ...name, index: name.index + 1 },
      { ...name, seal: "00000000" },
      { kind: "current" as const },
    ])
      expect(() => readDocument(bytes, { ...decoding, name: wrong })).toThrow("its header says");
  }
});

test("a mark is of a state, which counts from 1", async () => {
  const { options } = sampleOf([]);
  const header = { ...options.header, kind: "mark" as const, first: 0 };
  await expect(encodeDocument({ ...options, header }, {})).rejects.toThrow("indexes count from 1");
});

describe("CURRENT and manifest", () => {
  test("survive being written and read", async () => {
    for (const kind of ["current", "manifest"] as const) {
      for (const sealed of [false, true]) {
        const { options, decoding } = sampleOf([], { sealed });
        const header = { ...options.header, kind };
        const fields = { objects: Array.from({ length: 50 }, (_, i) => ({ name: `full/${i}`, size: i })), note: "ä" };
        const bytes = await encodeDocument({ ...options, header }, fields);
        expect(readDocument(bytes, { ...decoding, name: { kind } })).toEqual({ header, fields });
      }
    }
  });
});

function fail(): never {
  throw new Error("there is no such thing");
}
