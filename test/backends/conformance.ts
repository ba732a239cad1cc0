import { describe, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import type { Backend, ByteRange, ByteSource, ListOptions, UnfinishedUpload } from "../../src/storage/backend.ts";
import { bytesSource } from "../../src/storage/backend.ts";
import { compareKeys } from "../../src/storage/object-key.ts";
import { backendRangeSource } from "../../src/storage/range-source.ts";
import { BakeliteError } from "../../src/util/errors.ts";
import { withDeadline } from "../support/eventually.ts";
import { fc } from "../support/properties.ts";
import { seededRandom } from "../support/random.ts";

/** A backend over an empty place of its own; what it stores may be gone after disposal. */
export interface BackendUnderTest extends AsyncDisposable {
  readonly backend: Backend;
  /** A second client of the same place, as another process would have; the same object where there is no such thing. */
  readonly sibling?: Backend;
}

export interface ConformanceOptions {
  /** Cases that this backend cannot pass, each with the reason; they are reported as skipped, with it. */
  readonly skips?: Partial<Record<CaseName, string>>;
}

type CaseName = keyof typeof CASES;

const MIB = 1024 * 1024;

/**
 * What every backend and every wrapper promises (src/storage/backend.ts), as one suite. `make` is called anew for each
 * case. Names are sentences; a case that is skipped says why.
 */
export function describeBackend(
  name: string,
  make: () => Promise<BackendUnderTest>,
  options: ConformanceOptions = {},
): void {
  describe(`backend ${name}`, () => {
    for (const [caseName, run] of Object.entries(CASES)) {
      const reason: string | undefined = Object.entries(options.skips ?? {}).find(([key]) => key === caseName)?.[1];
      if (reason !== undefined) {
        test.skip(`${caseName} (${reason})`, () => {});
        continue;
      }
      test(caseName, async () => {
        await using place = await make();
        await run(place.backend, place.sibling ?? place.backend);
      }, 120_000);
    }
  });
}

const CASES = {
  "gives back the bytes that were put": async (backend: Backend) => {
    const bytes = seededRandom(1).bytes(100_003);
    expect(await backend.put("app/full/1.p", bytesSource(bytes))).toBe("stored");
    expect(await bytesOf(backend, "app/full/1.p")).toEqual(bytes);
  },

  "says null for an object that was never put": async (backend: Backend) => {
    expect(await backend.get("app/nothing")).toBeNull();
    expect(await backend.stat("app/nothing")).toBeNull();
    await backend.put("app/nothing/below", text("x"));
    expect(await backend.get("app/nothing")).toBeNull();
    expect(await backend.stat("app/nothing")).toBeNull();
  },

  "says null for a key below an object": async (backend: Backend) => {
    await backend.put("app/file", text("x"));
    expect(await backend.get("app/file/below")).toBeNull();
    expect(await backend.stat("app/file/below")).toBeNull();
    await backend.delete(["app/file/below"]);
    expect(await textOf(backend, "app/file")).toBe("x");
  },

  "shows a put to another client at once": async (backend: Backend, sibling: Backend) => {
    await backend.put("app/CURRENT", text("one"));
    expect(await textOf(sibling, "app/CURRENT")).toBe("one");
    expect(await keysOf(sibling, "")).toEqual(["app/CURRENT"]);
  },

  "tells the size and a recent time of an object": async (backend: Backend) => {
    await backend.put("app/a", text("12345"));
    const object = await backend.stat("app/a");
    expect(object).toMatchObject({ key: "app/a", sizeBytes: 5 });
    expect(Math.abs((object?.modifiedMs ?? 0) - Date.now())).toBeLessThan(15 * 60_000);
    expect(Number.isInteger(object?.modifiedMs)).toBe(true);
    expect(await collect(backend.list("app/"))).toEqual(object === null ? [] : [object]);
  },

  "gives every half-open range exactly": async (backend: Backend) => {
    const bytes = seededRandom(2).bytes(1000);
    await backend.put("app/ranges", bytesSource(bytes));
    const offset = fc.integer({ min: 0, max: 1100 });
    const range = fc.oneof(
      fc.record({ start: offset, end: offset }).filter(({ start, end }) => start <= end),
      fc.record({ start: offset }),
      fc.record({ start: fc.integer({ min: -1100, max: -1 }) }),
    );
    await fc.assert(
      fc.asyncProperty(range, async (wanted: ByteRange) => {
        expect(await bytesOf(backend, "app/ranges", wanted)).toEqual(
          Uint8Array.from(bytes.slice(wanted.start, wanted.end)),
        );
      }),
      { numRuns: 60 },
    );
  },

  "gives an empty stream for a range of an empty object": async (backend: Backend) => {
    await backend.put("app/empty", bytesSource(new Uint8Array(0)));
    for (const range of [undefined, { start: 0, end: 10 }, { start: 5 }, { start: -72 }])
      expect((await bytesOf(backend, "app/empty", range)).byteLength).toBe(0);
    expect(await backend.stat("app/empty")).toMatchObject({ sizeBytes: 0 });
  },

  "streams a body of 64 MiB in and out without holding it": async (backend: Backend) => {
    const size = 64 * MIB;
    const seed = 3;
    expect(await backend.put("app/full/large.p", generated(seed, size, MIB), { ifAbsent: true })).toBe("stored");
    const stream = await backend.get("app/full/large.p");
    if (stream === null) throw new Error("the large object is missing");
    const hash = createHash("sha256");
    let pieceCount = 0;
    let sizeBytes = 0;
    for await (const piece of stream) {
      hash.update(piece);
      sizeBytes += piece.byteLength;
      pieceCount++;
      expect(piece.byteLength).toBeLessThanOrEqual(8 * MIB);
    }
    expect({ sizeBytes, hash: hash.digest("hex") }).toEqual({
      sizeBytes: size,
      hash: await hashOf(generated(seed, size, MIB)),
    });
    expect(pieceCount).toBeGreaterThan(1);
    expect(await bytesOf(backend, "app/full/large.p", { start: size - 72 })).toHaveLength(72);
  },

  "stores a large body of unknown size, to be replayed or not": async (backend: Backend) => {
    const sizeBytes = 13 * MIB + 12_345;
    for (const replayable of [true, false])
      for (const options of [{}, { ifAbsent: true }]) {
        const key = `app/full/${replayable}-${options.ifAbsent === true}.p`;
        const body: ByteSource = { ...generated(21, sizeBytes, 700_000), sizeBytes: undefined, replayable };
        expect(await backend.put(key, body, options)).toBe("stored");
        const hash = createHash("sha256").update(await bytesOf(backend, key));
        expect(hash.digest("hex")).toBe(await hashOf(body));
        expect(await backend.stat(key)).toMatchObject({ sizeBytes });
      }
    const again: ByteSource = { ...generated(22, sizeBytes, 700_000), sizeBytes: undefined };
    expect(await backend.put("app/full/true-true.p", again, { ifAbsent: true })).toBe("exists");
    expect(await uploadsOf(backend)).toEqual([]);
  },

  "stores a body of unknown size in many small pieces": async (backend: Backend) => {
    const bytes = seededRandom(4).bytes(50_000);
    const body: ByteSource = {
      sizeBytes: undefined,
      replayable: true,
      async *open() {
        for (let i = 0; i < bytes.byteLength; i += 97) yield bytes.subarray(i, i + 97);
      },
    };
    await backend.put("app/pieces", body);
    expect(await bytesOf(backend, "app/pieces")).toEqual(bytes);
  },

  "lets a reader stop early": async (backend: Backend) => {
    await backend.put("app/a", generated(5, 4 * MIB, MIB));
    for (let i = 0; i < 20; i++) {
      const stream = await backend.get("app/a");
      for await (const piece of stream ?? []) {
        expect(piece.byteLength).toBeGreaterThan(0);
        break;
      }
    }
  },

  "replaces an object as a whole": async (backend: Backend, sibling: Backend) => {
    await backend.put("app/CURRENT", text("the first content, which is longer"));
    expect(await backend.put("app/CURRENT", text("second"))).toBe("stored");
    expect(await textOf(sibling, "app/CURRENT")).toBe("second");
    expect(await keysOf(backend, "")).toEqual(["app/CURRENT"]);
  },

  "refuses with ifAbsent to touch what is there": async (backend: Backend) => {
    expect(await backend.put("app/L0/1", text("ours"), { ifAbsent: true })).toBe("stored");
    expect(await backend.put("app/L0/1", text("theirs"), { ifAbsent: true })).toBe("exists");
    expect(await textOf(backend, "app/L0/1")).toBe("ours");
  },

  "lets exactly one of eight racing puts win": async (backend: Backend, sibling: Backend) => {
    for (let round = 0; round < 5; round++) {
      const key = `app/L0/race-${round}`;
      const racers = Array.from({ length: 8 }, (_, i) =>
        (i % 2 === 0 ? backend : sibling).put(key, generated(100 + i, 200_000, 65_536), { ifAbsent: true }),
      );
      const outcomes = await Promise.all(racers);
      expect(outcomes.filter((outcome) => outcome === "stored")).toHaveLength(1);
      const winner = await hashOf(generated(100 + outcomes.indexOf("stored"), 200_000, 65_536));
      expect(
        createHash("sha256")
          .update(await bytesOf(backend, key))
          .digest("hex"),
      ).toBe(winner);
    }
  },

  "lets exactly one of eight racing large puts win": async (backend: Backend, sibling: Backend) => {
    const body = (i: number): ByteSource => ({ ...generated(200 + i, 6 * MIB, MIB), sizeBytes: undefined });
    const racers = Array.from({ length: 8 }, (_, i) =>
      (i % 2 === 0 ? backend : sibling).put("app/full/race", body(i), { ifAbsent: true }),
    );
    const outcomes = await Promise.all(racers);
    expect(outcomes.filter((outcome) => outcome === "stored")).toHaveLength(1);
    const stored = createHash("sha256").update(await bytesOf(backend, "app/full/race"));
    expect(stored.digest("hex")).toBe(await hashOf(body(outcomes.indexOf("stored"))));
    expect(await uploadsOf(backend)).toEqual([]);
  },

  "an object that was replaced tells its new size, and never an older time": async (backend: Backend) => {
    await backend.put("app/CURRENT", text("one"));
    const before = await backend.stat("app/CURRENT");
    await backend.put("app/CURRENT", text("the second"));
    const after = await backend.stat("app/CURRENT");
    expect(after?.sizeBytes).toBe(10);
    expect(after?.modifiedMs ?? 0).toBeGreaterThanOrEqual(before?.modifiedMs ?? Number.POSITIVE_INFINITY);
    expect(await collect(backend.list(""))).toEqual(after === null ? [] : [after]);
  },

  "many calls at once do not mix": async (backend: Backend, sibling: Backend) => {
    const keys = Array.from({ length: 64 }, (_, i) => `app/many/${i}`);
    await Promise.all(
      keys.map(async (key, i) => {
        const [one, other] = i % 2 === 0 ? [backend, sibling] : [sibling, backend];
        expect(await one.get(key)).toBeNull();
        expect(await one.put(key, generated(i, 10_000 + i, 4096), { ifAbsent: true })).toBe("stored");
        const expected = Buffer.concat(await collect(generated(i, 10_000 + i, 4096).open()));
        const [all, tail, object, exists] = await Promise.all([
          bytesOf(other, key),
          bytesOf(one, key, { start: -72 }),
          other.stat(key),
          one.put(key, text("x"), { ifAbsent: true }),
        ]);
        expect(Buffer.compare(all, expected)).toBe(0);
        expect(Buffer.compare(tail, expected.subarray(-72))).toBe(0);
        expect(object).toMatchObject({ key, sizeBytes: 10_000 + i });
        expect(exists).toBe("exists");
        if (i % 4 === 0) await one.delete([key]);
      }),
    );
    const left = keys.filter((_, i) => i % 4 !== 0).toSorted();
    expect(await keysOf(backend, "app/many/")).toEqual(left);
  },

  "lists ascending by the bytes of the keys, below a prefix, after a key": async (backend: Backend) => {
    const keys = [
      "app/CURRENT",
      "app/L0/0000000000000001-0000000000000001.p",
      "app/L0/0000000000000002-0000000000000002.p",
      "app/L0-x",
      "app/L0.x",
      "app/L0!",
      "app/L1/0000000000000001-0000000000000002.p",
      "app/full/0000000000000001.p",
      "app2/CURRENT",
      "app-2/CURRENT",
      "ap",
    ];
    for (const key of seededRandomOrder(6, keys)) await backend.put(key, text(key));
    const sorted = keys.toSorted((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)));
    const prefixes = [
      "",
      "a",
      "ap",
      "app",
      "app/",
      "app/L",
      "app/L0",
      "app/L0/",
      "app/L0/0000000000000002",
      "app/x",
      "zzz/y",
    ];
    const markers = [undefined, "", "a", "app/L0", "app/L0/", "app/L0/zzz", "app/L0.x", "app0", "zzzz", ...keys];
    for (const prefix of prefixes)
      for (const startAfter of markers) {
        const expected = sorted.filter(
          (key) => key.startsWith(prefix) && (startAfter === undefined || compareKeys(key, startAfter) > 0),
        );
        expect(await keysOf(backend, prefix, startAfter === undefined ? {} : { startAfter })).toEqual(expected);
      }
  },

  "lists page by page without a gap": async (backend: Backend) => {
    const keys = Array.from({ length: 1050 }, (_, i) => `app/L0/${String(i + 1).padStart(16, "0")}.p`);
    await inParallel(keys, 16, (key) => backend.put(key, text(key)));
    expect(await keysOf(backend, "app/")).toEqual(keys);
    const paged: string[] = [];
    for (let startAfter: string | undefined = ""; startAfter !== undefined; ) {
      const page: string[] = [];
      for await (const object of backend.list("app/L0/", { startAfter })) {
        page.push(object.key);
        if (page.length === 100) break;
      }
      paged.push(...page);
      startAfter = page.at(-1);
    }
    expect(paged).toEqual(keys);
    for (const position of [0, 49, 50, 998, 999, 1000, 1048, 1049]) {
      const startAfter = keys[position] ?? "";
      expect(await keysOf(backend, "app/", { startAfter })).toEqual(keys.slice(position + 1));
    }
  },

  "lists nothing in an empty place": async (backend: Backend) => {
    expect(await keysOf(backend, "")).toEqual([]);
    expect(await keysOf(backend, "app/L0/")).toEqual([]);
  },

  "keeps odd characters in keys": async (backend: Backend) => {
    const keys = [
      "app/with space",
      "app/per%20cent",
      "app/%2F",
      "app/hash#fragment",
      "app/query?a=b&c=d",
      "app/plus+plus",
      "app/quote'\"",
      "app/star*[a]{b}",
      "app/back\\slash",
      "app/~tilde",
      "app/.hidden",
      "app/ÄÖÜ-ß",
      "app/日本語",
      "app/e\u0301 decomposed",
      "app/\u{1f980}",
      "app/\uffee",
      "app/<tag>&amp;",
      "app/semi;colon:and,comma=@$",
      `app/${"long".repeat(50)}`,
    ];
    for (const key of keys) expect(await backend.put(key, text(key), { ifAbsent: true })).toBe("stored");
    for (const key of keys) {
      expect(await textOf(backend, key)).toBe(key);
      expect(await backend.stat(key)).toMatchObject({ key });
    }
    const sorted = keys.toSorted((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)));
    expect(await keysOf(backend, "app/")).toEqual(sorted);
    expect(await keysOf(backend, "app/日")).toEqual(["app/日本語"]);
    await backend.delete(keys);
    expect(await keysOf(backend, "")).toEqual([]);
  },

  "keeps every printable character of ASCII in a key": async (backend: Backend) => {
    const keys = Array.from({ length: 0x7f - 0x20 }, (_, i) => String.fromCharCode(0x20 + i))
      .filter((character) => character !== "/" && character !== ".")
      .flatMap((character) => [`${character}/a`, `app/${character}`, `app/a${character}b/c${character}`]);
    await inParallel(keys, 8, async (key) =>
      expect(await backend.put(key, text(key), { ifAbsent: true })).toBe("stored"),
    );
    const sorted = keys.toSorted((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)));
    expect(await keysOf(backend, "")).toEqual(sorted);
    for (const key of ["app/%", "app/+", "app/&", "app/a b/c ", " /a", "%/a"]) {
      const at = sorted.indexOf(key);
      expect(await keysOf(backend, "", { startAfter: key })).toEqual(sorted.slice(at + 1));
      expect(await keysOf(backend, key)).toEqual(sorted.filter((each) => each.startsWith(key)));
    }
    await inParallel(keys, 8, async (key) => expect(await textOf(backend, key)).toBe(key));
    await backend.delete(keys);
    expect(await keysOf(backend, "")).toEqual([]);
  },

  "keeps control characters in keys": async (backend: Backend) => {
    const codes = [...Array.from({ length: 0x1f }, (_, i) => i + 1), 0x7f, 0x85, 0x2028, 0xfffd];
    const keys = codes.map((code) => `app/a${String.fromCharCode(code)}b`);
    for (const key of keys) await backend.put(key, text("x"));
    const sorted = keys.toSorted((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)));
    expect(await keysOf(backend, "")).toEqual(sorted);
    await backend.delete(keys);
    expect(await keysOf(backend, "")).toEqual([]);
  },

  "keeps keys of 900 bytes": async (backend: Backend) => {
    const keys = [Array(18).fill("n".repeat(49)).join("/"), Array(9).fill("ü".repeat(49)).join("/")];
    for (const key of keys) await backend.put(key, text(key));
    for (const key of keys) expect(await textOf(backend, key)).toBe(key);
    expect(await keysOf(backend, "")).toEqual(keys);
    await backend.delete(keys);
    expect(await keysOf(backend, "")).toEqual([]);
  },

  "refuses keys that would leave the destination": async (backend: Backend) => {
    const lone = String.fromCharCode(0xd800);
    for (const key of [
      "",
      "/",
      "/etc/passwd",
      "..",
      "../x",
      "a/../b",
      "a/..",
      "a//b",
      "a/",
      "./a",
      "a/./b",
      "a\0b",
      `a${lone}`,
    ]) {
      await expect(backend.put(key, text("x"))).rejects.toBeInstanceOf(BakeliteError);
      await expect(backend.get(key)).rejects.toBeInstanceOf(BakeliteError);
      await expect(backend.stat(key)).rejects.toBeInstanceOf(BakeliteError);
      await expect(backend.delete([key])).rejects.toBeInstanceOf(BakeliteError);
    }
    for (const prefix of ["../", "a/../", "/", "a\0"])
      await expect(keysOf(backend, prefix)).rejects.toBeInstanceOf(BakeliteError);
  },

  "deletes many, and counts as deleted what is already gone": async (backend: Backend) => {
    const keys = Array.from({ length: 1100 }, (_, i) => `app/L0/${i}`);
    await inParallel(keys.slice(0, 300), 16, (key) => backend.put(key, text(key)));
    await backend.put("app/kept", text("kept"));
    await backend.delete([...keys, "elsewhere/never/there"]);
    expect(await keysOf(backend, "")).toEqual(["app/kept"]);
    await backend.delete(keys);
    await backend.delete([]);
    expect(await backend.put("app/L0/1", text("again"), { ifAbsent: true })).toBe("stored");
  },

  "leaves nothing of a body that throws midway": async (backend: Backend) => {
    const failing: ByteSource = {
      sizeBytes: undefined,
      replayable: false,
      async *open() {
        yield new Uint8Array(300_000);
        throw new Error("the source broke");
      },
    };
    for (const options of [{}, { ifAbsent: true }]) {
      await expect(backend.put("app/broken", failing, options)).rejects.toThrow("the source broke");
      expect(await backend.get("app/broken")).toBeNull();
    }
    await backend.put("app/CURRENT", text("before"));
    await expect(backend.put("app/CURRENT", failing)).rejects.toThrow("the source broke");
    expect(await textOf(backend, "app/CURRENT")).toBe("before");
    expect(await keysOf(backend, "")).toEqual(["app/CURRENT"]);
  },

  "leaves nothing of a large body that throws midway, nor of one that is aborted": async (backend: Backend) => {
    const abort = new AbortController();
    const large = (atEnd: () => Promise<void>): ByteSource => ({
      sizeBytes: undefined,
      replayable: false,
      async *open() {
        yield* generated(23, 12 * MIB, MIB).open();
        await atEnd();
      },
    });
    const throwing = large(async () => {
      throw new Error("the source broke");
    });
    await expect(backend.put("app/full/1.p", throwing, { ifAbsent: true })).rejects.toThrow("the source broke");
    const hanging = large(async () => {
      abort.abort();
      await new Promise(() => {});
    });
    const put = backend.put("app/full/1.p", hanging, { signal: abort.signal });
    await expect(withDeadline(put, { what: "the aborted put to end", deadlineMs: 30_000 })).rejects.toMatchObject({
      code: "interrupted",
    });
    expect(await backend.stat("app/full/1.p")).toBeNull();
    expect(await keysOf(backend, "")).toEqual([]);
    expect(await uploadsOf(backend)).toEqual([]);
  },

  "refuses a body that is not as long as it said": async (backend: Backend) => {
    for (const sizeBytes of [99_999, 100_001]) {
      const body: ByteSource = { ...bytesSource(new Uint8Array(100_000)), sizeBytes };
      await expect(backend.put("app/short", body)).rejects.toBeInstanceOf(BakeliteError);
    }
    for (const sizeBytes of [11 * MIB - 1, 11 * MIB + 1, 7 * MIB, 17 * MIB]) {
      const body: ByteSource = { ...generated(24, 11 * MIB, MIB), sizeBytes };
      await expect(backend.put("app/short", body)).rejects.toBeInstanceOf(BakeliteError);
    }
    expect(await keysOf(backend, "")).toEqual([]);
    expect(await uploadsOf(backend)).toEqual([]);
  },

  "leaves nothing of an aborted put, also when its source hangs": async (backend: Backend) => {
    const abort = new AbortController();
    const hanging: ByteSource = {
      sizeBytes: undefined,
      replayable: false,
      async *open() {
        yield new Uint8Array(300_000);
        abort.abort();
        await new Promise(() => {});
      },
    };
    const put = backend.put("app/aborted", hanging, { signal: abort.signal, ifAbsent: true });
    await expect(withDeadline(put, { what: "the aborted put to end", deadlineMs: 30_000 })).rejects.toMatchObject({
      code: "interrupted",
    });
    expect(await keysOf(backend, "")).toEqual([]);
  },

  "does nothing once its signal is aborted, and gives the signal's reason": async (backend: Backend) => {
    await backend.put("app/a", text("a"));
    const reason = new BakeliteError("storage-unreachable", "no answer in time");
    const { signal } = (() => {
      const controller = new AbortController();
      controller.abort(reason);
      return controller;
    })();
    await expect(backend.put("app/b", text("b"), { signal })).rejects.toBe(reason);
    await expect(backend.get("app/a", { signal })).rejects.toBe(reason);
    await expect(backend.stat("app/a", { signal })).rejects.toBe(reason);
    await expect(backend.delete(["app/a"], { signal })).rejects.toBe(reason);
    await expect(keysOf(backend, "", { signal })).rejects.toBe(reason);
    expect(await keysOf(backend, "")).toEqual(["app/a"]);
  },

  "a stream that nobody reads holds nothing": async (backend: Backend) => {
    await backend.put("app/a", generated(7, 2 * MIB, MIB));
    for (let i = 0; i < 200; i++) await backend.get("app/a");
    Bun.gc(true);
    await Bun.sleep(1);
    expect(await bytesOf(backend, "app/a", { start: 0, end: 4 })).toHaveLength(4);
  },

  "a stream in use ends with its abort": async (backend: Backend) => {
    await backend.put("app/a", generated(7, 8 * MIB, MIB));
    const abort = new AbortController();
    const reading = (async () => {
      for await (const _piece of (await backend.get("app/a", { signal: abort.signal })) ?? []) abort.abort();
    })();
    await expect(reading).rejects.toMatchObject({ code: "interrupted" });
  },

  "a range source reads exact bytes, and tells a missing object from a short one": async (backend: Backend) => {
    const bytes = seededRandom(8).bytes(10_000);
    await backend.put("app/a", bytesSource(bytes));
    const source = backendRangeSource(backend, "app/a", 10_000);
    expect(await source.read(100, 350)).toEqual(bytes.slice(100, 350));
    expect(await source.read(0, 10_000)).toEqual(bytes);
    expect((await source.read(10_000, 10_000)).byteLength).toBe(0);
    await expect(backendRangeSource(backend, "app/a", 10_001).read(9_999, 10_001)).rejects.toMatchObject({
      code: "replica-corrupt",
    });
    await expect(source.read(9_000, 10_001)).rejects.toMatchObject({ code: "internal" });
    await expect(backendRangeSource(backend, "app/b", 5).read(0, 5)).rejects.toMatchObject({ code: "replica-missing" });
  },
};

/** `size` bytes that depend on `seed` only, made while they are read. */
export function generated(seed: number, sizeBytes: number, pieceBytes: number): ByteSource {
  return {
    sizeBytes,
    replayable: true,
    async *open() {
      const pattern = seededRandom(seed).bytes(Math.min(pieceBytes, sizeBytes));
      for (let offset = 0; offset < sizeBytes; offset += pieceBytes) {
        const piece = pattern.slice(0, Math.min(pieceBytes, sizeBytes - offset));
        new DataView(piece.buffer).setUint32(0, offset);
        yield piece;
      }
    },
  };
}

export function text(content: string): ByteSource {
  return bytesSource(new TextEncoder().encode(content));
}

export async function textOf(backend: Backend, key: string): Promise<string> {
  return new TextDecoder().decode(await bytesOf(backend, key));
}

export async function bytesOf(backend: Backend, key: string, range?: ByteRange): Promise<Uint8Array> {
  const stream = await backend.get(key, range === undefined ? {} : { range });
  if (stream === null) throw new Error(`there is no ${key}`);
  return Uint8Array.from(Buffer.concat(await collect(stream)));
}

export async function keysOf(backend: Backend, prefix: string, options: ListOptions = {}): Promise<string[]> {
  return (await collect(backend.list(prefix, options))).map((object) => object.key);
}

/** Uploads that were begun and neither completed nor aborted; none where there is no such thing. */
async function uploadsOf(backend: Backend): Promise<readonly UnfinishedUpload[]> {
  return await collect((await backend.unlisted?.uploads("")) ?? []);
}

export async function collect<T>(source: AsyncIterable<T> | readonly T[]): Promise<T[]> {
  return await Array.fromAsync(source);
}

async function hashOf(body: ByteSource): Promise<string> {
  const hash = createHash("sha256");
  for await (const piece of body.open()) hash.update(piece);
  return hash.digest("hex");
}

async function inParallel<T>(items: readonly T[], width: number, run: (item: T) => Promise<unknown>): Promise<void> {
  const queue = [...items];
  const worker = async () => {
    for (let item = queue.shift(); item !== undefined; item = queue.shift()) await run(item);
  };
  await Promise.all(Array.from({ length: width }, worker));
}

function seededRandomOrder<T>(seed: number, items: readonly T[]): T[] {
  const random = seededRandom(seed);
  return items
    .map((item) => ({ item, rank: random.next() }))
    .toSorted((a, b) => a.rank - b.rank)
    .map(({ item }) => item);
}
