import { afterAll, describe, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import type { Backend, ByteSource } from "../../src/storage/backend.ts";
import { crc32c, encodeCrc32c } from "../../src/storage/gcs/crc32c.ts";
import { generated, keysOf, text } from "../backends/conformance.ts";
import { FaultProxy } from "../faults/proxy.ts";
import { crc32cBase64 } from "../servers/gcs/crc32c.ts";
import { GcsScene } from "../servers/gcs/places.ts";
import { seededRandom } from "../support/random.ts";

const MIB = 1024 * 1024;
const scene = await GcsScene.start();
afterAll(() => scene[Symbol.asyncDispose]());
const { stub } = scene;
const { sessions } = stub;

const LARGE_CHUNK_COUNT = 3;
const large = (seed = 1): ByteSource => ({ ...generated(seed, 16 * MIB + 300_000, MIB), sizeBytes: undefined });
async function hashOf(pieces: AsyncIterable<Uint8Array>): Promise<string> {
  const hash = createHash("sha256");
  for await (const piece of pieces) hash.update(piece);
  return hash.digest("hex");
}

async function expectLarge(backend: Backend, key: string, seed = 1): Promise<void> {
  const stored = await backend.get(key);
  if (stored === null) throw new Error(`there is no ${key}`);
  expect(await hashOf(stored)).toBe(await hashOf(large(seed).open()));
}

test("CRC-32C is that of the published examples, whole and in pieces, and of another implementation", () => {
  // Source: RFC 3720 appendix B.4.
  const bytes = (count: number, byteAt: (i: number) => number) =>
    Uint8Array.from({ length: count }, (_, i) => byteAt(i));
  expect(crc32c(bytes(32, () => 0))).toBe(0x8a9136aa);
  expect(crc32c(bytes(32, () => 0xff))).toBe(0x62a8ab43);
  expect(crc32c(bytes(32, (i) => i))).toBe(0x46dd794e);
  expect(crc32c(bytes(32, (i) => 31 - i))).toBe(0x113fdb5c);
  expect(encodeCrc32c(crc32c(new TextEncoder().encode("123456789")))).toBe("4waSgw==");
  const random = seededRandom(3);
  for (let length = 0; length < 70; length++) {
    const whole = random.bytes(length);
    expect(encodeCrc32c(crc32c(whole))).toBe(crc32cBase64(whole));
    const cut = random.integer(0, length);
    expect(crc32c(whole.subarray(cut), crc32c(whole.subarray(0, cut)))).toBe(crc32c(whole));
  }
});

describe("a resumable upload to Google Cloud Storage", () => {
  test("sends chunks that are multiples of 256 KiB, and the sum with the last", async () => {
    const backend = scene.open(scene.newBucket());
    const from = stub.requests.length;
    await backend.put("app/full/1", large(), { ifAbsent: true });
    const sent = stub.requests.slice(from).filter(({ method }) => method === "PUT");
    expect(sent.map(({ headers }) => headers.get("content-range"))).toEqual([
      "bytes 0-8388607/*",
      "bytes 8388608-16777215/*",
      "bytes 16777216-17077215/17077216",
    ]);
    expect(sent.map(({ headers }) => headers.has("x-goog-hash"))).toEqual([false, false, true]);
    // The session authorizes by itself.
    expect(sent.some(({ headers }) => headers.has("authorization"))).toBe(false);
    await expectLarge(backend, "app/full/1");
  });

  test("a body that ends exactly with a chunk is whole", async () => {
    const backend = scene.open(scene.newBucket());
    for (const sizeBytes of [8 * MIB, 16 * MIB, 16 * MIB + 7]) {
      await backend.put(`app/${sizeBytes}`, { ...generated(2, sizeBytes, MIB), sizeBytes: undefined });
      expect(await backend.stat(`app/${sizeBytes}`)).toMatchObject({ sizeBytes });
    }
    expect(sessions.openCount).toBe(0);
  });

  test("goes on where the server is when it takes less than it was sent", async () => {
    const backend = scene.open(scene.newBucket());
    sessions.takesAtMost = 3 * MIB + 100;
    try {
      await backend.put("app/full/1", large(), { ifAbsent: true });
    } finally {
      sessions.takesAtMost = Number.POSITIVE_INFINITY;
    }
    await expectLarge(backend, "app/full/1");
  });

  test("gives up a server that takes nothing", async () => {
    const backend = scene.open(scene.newBucket(), { retries: 3 });
    sessions.takesAtMost = 0;
    try {
      await expect(backend.put("app/full/1", large())).rejects.toMatchObject({ code: "storage-unreachable" });
    } finally {
      sessions.takesAtMost = Number.POSITIVE_INFINITY;
    }
    expect(await keysOf(backend, "")).toEqual([]);
    expect(sessions.openCount).toBe(0);
  });

  test.each(["cut-request", "lose-answer", "cut-head", "error-503"] as const)(
    "asks how far it is after `%s`, and sends only the rest",
    async (fault) => {
      await using proxy = await FaultProxy.start({ targetPort: stub.port });
      const bucket = scene.newBucket();
      for (let chunk = 0; chunk < LARGE_CHUNK_COUNT; chunk++) {
        const key = `app/full/${chunk}`;
        proxy.failNext(fault, { operation: "put", skip: chunk });
        const backend = scene.open(bucket, { endpoint: proxy.url, retries: 3 });
        expect(await backend.put(key, { ...large(chunk), replayable: false }, { ifAbsent: true })).toBe("stored");
        await expectLarge(scene.open(bucket), key, chunk);
      }
      expect(proxy.faultCounts()[fault]).toBe(3);
      expect(sessions.openCount).toBe(0);
    },
  );

  test("that the server forgot is unreachable, and one that finished and was forgotten is for the caller to compare", async () => {
    const backend = scene.open(scene.newBucket(), { retries: 2 });
    let chunkCount = 0;
    sessions.onChunk = () => {
      if (++chunkCount === 2) sessions.forgetAll();
    };
    await expect(backend.put("app/full/1", large(), { ifAbsent: true })).rejects.toMatchObject({
      code: "storage-unreachable",
      message: expect.stringContaining("cancelled meanwhile"),
    });
    expect(await keysOf(backend, "")).toEqual([]);
    sessions.onChunk = () => {};
    // The last chunk makes the object, its answer is lost, and when it is asked for the session is gone.
    for (const [ifAbsent, outcome] of [
      [true, "exists"],
      [false, "stored"],
    ] as const) {
      await using proxy = await FaultProxy.start({ targetPort: stub.port });
      const lossy = scene.open(bucketOf(backend), { endpoint: proxy.url, retries: 2 });
      proxy.failNext("lose-answer", { operation: "put", skip: LARGE_CHUNK_COUNT - 1 });
      stub.answerNext(
        () => {
          sessions.forgetAll();
          return new Response(null, { status: 404 });
        },
        (request) => request.headers.get("content-range") === "bytes */*",
      );
      const key = `app/full/${outcome}`;
      expect(await lossy.put(key, large(), { ifAbsent })).toBe(outcome);
      expect(proxy.faultCounts()).toEqual({ "lose-answer": 1 });
      await expectLarge(backend, key);
    }
  });

  test("is cancelled when its source fails and when the caller stops", async () => {
    const backend = scene.open(scene.newBucket());
    const before = sessions.cancelledCount;
    const failing: ByteSource = {
      sizeBytes: undefined,
      replayable: false,
      async *open() {
        yield* large().open();
        throw new Error("the source broke");
      },
    };
    await expect(backend.put("app/full/1", failing)).rejects.toThrow("the source broke");
    const abort = new AbortController();
    const stopped: ByteSource = {
      ...failing,
      async *open() {
        yield* large().open();
        abort.abort();
        await new Promise(() => {});
      },
    };
    await expect(backend.put("app/full/1", stopped, { signal: abort.signal })).rejects.toMatchObject({
      code: "interrupted",
    });
    expect(sessions.cancelledCount - before).toBe(2);
    expect(sessions.openCount).toBe(0);
    expect(await keysOf(backend, "")).toEqual([]);
  });

  test("of damaged bytes makes no object", async () => {
    const backend = scene.open(scene.newBucket(), { retries: 1 });
    sessions.onChunk = (bytes) => {
      bytes[100] = (bytes[100] ?? 0) ^ 1;
    };
    try {
      await expect(backend.put("app/full/1", large())).rejects.toMatchObject({
        code: "storage-unreachable",
        message: expect.stringContaining("the bytes arrived damaged"),
      });
    } finally {
      sessions.onChunk = () => {};
    }
    expect(await keysOf(backend, "")).toEqual([]);
    expect(sessions.openCount).toBe(0);
  });

  test("refuses a name that was taken meanwhile, at its end", async () => {
    const bucket = scene.newBucket();
    const [backend, other] = [scene.open(bucket), scene.open(bucket)];
    const slow: ByteSource = {
      sizeBytes: undefined,
      replayable: true,
      async *open() {
        yield* large(1).open();
        expect(await other.put("app/full/1", large(2), { ifAbsent: true })).toBe("stored");
      },
    };
    expect(await backend.put("app/full/1", slow, { ifAbsent: true })).toBe("exists");
    await expectLarge(backend, "app/full/1", 2);
    expect(sessions.openCount).toBe(0);
  });

  test("holds few chunks at a time, however large the body", async () => {
    const backend = scene.open(scene.newBucket());
    let takenBytes = 0;
    let sentBytes = 0;
    let mostBytes = 0;
    sessions.onChunk = (bytes) => {
      sentBytes += bytes.byteLength;
    };
    const counted: ByteSource = {
      sizeBytes: undefined,
      replayable: false,
      async *open() {
        for await (const piece of generated(5, 96 * MIB, MIB).open()) {
          takenBytes += piece.byteLength;
          mostBytes = Math.max(mostBytes, takenBytes - sentBytes);
          yield piece;
        }
      },
    };
    try {
      await backend.put("app/full/1", counted, { longLived: true });
    } finally {
      sessions.onChunk = () => {};
    }
    expect(mostBytes).toBeLessThanOrEqual(25 * MIB);
  });
});

describe("a small object in Google Cloud Storage", () => {
  test("is refused when its bytes arrive damaged, and sent again", async () => {
    const backend = scene.open(scene.newBucket(), { retries: 1 });
    let refused = 0;
    stub.answerNext(
      () => {
        refused++;
        return Response.json(
          {
            error: {
              code: 400,
              message: 'Provided CRC32C "x" doesn\'t match calculated CRC32C "y".',
              errors: [{ reason: "invalid" }],
            },
          },
          { status: 400 },
        );
      },
      (request) => request.method === "POST",
    );
    await backend.put("app/a", text("a"));
    expect(refused).toBe(1);
    expect(await keysOf(backend, "")).toEqual(["app/a"]);
  });

  test("that the server stored other than it was sent is removed again, and nothing else of that name", async () => {
    const bucket = scene.newBucket();
    const backend = scene.open(bucket);
    const lie = () =>
      Response.json({
        name: "app/a",
        size: "1",
        timeCreated: "2026-01-01T00:00:00.000Z",
        generation: "7",
        crc32c: "AAAAAA==",
      });
    await backend.put("app/a", text("good"));
    stub.answerNext(lie, (request) => request.method === "POST");
    await expect(backend.put("app/a", text("x"))).rejects.toMatchObject({ code: "storage-unreachable" });
    // Generation 7 is none: what is there stays.
    expect(await keysOf(backend, "")).toEqual(["app/a"]);
  });

  test("gets the storage class that its kind has in the configuration", async () => {
    const bucket = scene.newBucket();
    const backend = scene.open(bucket, { storage_class: "NEARLINE", change_set_storage_class: "STANDARD" });
    await backend.put("app/full/1", text("x"), { longLived: true });
    await backend.put("app/full/2", large(), { longLived: true });
    await backend.put("app/L0/1", text("x"));
    const classes = stub
      .bucket(bucket)
      .list()
      .map(({ name, storageClass }) => [name, storageClass]);
    expect(classes).toEqual([
      ["app/L0/1", "STANDARD"],
      ["app/full/1", "NEARLINE"],
      ["app/full/2", "NEARLINE"],
    ]);
    await expect(
      scene.open(bucket, { change_set_storage_class: "GLACIER" }).put("app/b", text("b")),
    ).rejects.toMatchObject({
      code: "storage-denied",
      message: expect.stringContaining("does not have that storage class"),
    });
  });
});

/** The bucket that a backend stores to. */
function bucketOf(backend: Backend): string {
  return backend.location.replace("gs://", "").split("/", 1)[0] ?? "";
}
