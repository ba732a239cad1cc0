import { expect, test } from "bun:test";
import { createHash } from "node:crypto";
import type { ByteSource } from "../../src/storage/backend.ts";
import { longLivedPartBudget, PartReader, partBudget } from "../../src/storage/http/part-buffer.ts";
import { MAX_PART_COUNT, partSizeBytes } from "../../src/storage/http/part-size.ts";
import { newPlace } from "../../src/storage/s3/place.ts";
import { ByteBudget } from "../../src/util/byte-budget.ts";
import { generated, text } from "../backends/conformance.ts";
import { failureOf } from "../format/samples.ts";
import { eventually, withDeadline } from "../support/eventually.ts";
import { fc } from "../support/properties.ts";
import { seededRandom } from "../support/random.ts";
import { refuse, type StubRequest, startStub, xml } from "./stub.ts";

const MIB = 1024 * 1024;

test("a body of any known size fits into 10,000 parts of one size, and one of unknown size into more than 1 TiB", () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 5 * MIB, max: 5 * 2 ** 30 }),
      fc.integer({ min: 0, max: 5 * 2 ** 40 }),
      (part, body) => {
        const size = partSizeBytes(1, part, body);
        expect(size).toBeGreaterThanOrEqual(part);
        expect(size * MAX_PART_COUNT).toBeGreaterThanOrEqual(body);
        expect(partSizeBytes(MAX_PART_COUNT, part, body)).toBe(size);
      },
    ),
  );
  let totalBytes = 0;
  for (let number = 1; number <= MAX_PART_COUNT; number++) {
    const size = partSizeBytes(number, 16 * MIB, undefined);
    expect(size).toBeLessThanOrEqual(5 * 2 ** 30);
    if (number <= 5000) expect(size).toBe(16 * MIB);
    totalBytes += size;
  }
  expect(totalBytes).toBeGreaterThan(2 ** 40);
});

test("parts are the body again, whatever the sizes of its pieces", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.nat(3000), { maxLength: 30 }),
      fc.integer({ min: 1, max: 5000 }),
      async (sizes, partBytes) => {
        const random = seededRandom(1);
        const pieces = sizes.map((size) => random.bytes(size));
        const budget = new ByteBudget(10_000);
        const reused = new Uint8Array(3000);
        const reader = new PartReader(
          (async function* () {
            // A source may use one buffer for all of its pieces.
            for (const piece of pieces) {
              reused.set(piece);
              yield reused.subarray(0, piece.byteLength);
            }
          })(),
          { bodyBytes: undefined, signal: undefined, budget },
        );
        const parts: Uint8Array[] = [];
        for (let part = await reader.next(partBytes); part !== null; part = await reader.next(partBytes)) {
          parts.push(part.bytes.slice());
          part[Symbol.dispose]();
        }
        expect(Buffer.concat(parts).equals(Buffer.concat(pieces))).toBe(true);
        for (const part of parts.slice(0, -1)) expect(part.byteLength).toBe(partBytes);
        expect(budget.takenBytes).toBe(0);
      },
    ),
  );
});

test("full backups that wait for a change-set, with all that parts may take, do not keep it from being sent", async () => {
  const partBytes = longLivedPartBudget.totalBytes / 2;
  const stalled = Promise.withResolvers<void>();
  const backups = [1, 2].map(() => {
    const pieces = (async function* () {
      yield new Uint8Array(10);
      await stalled.promise;
    })();
    return new PartReader(pieces, { bodyBytes: undefined, signal: undefined, budget: longLivedPartBudget });
  });
  const waiting = backups.map((backup) => backup.next(partBytes));
  await eventually(() => longLivedPartBudget.takenBytes === 2 * partBytes, { what: "both to hold a part" });
  const body = (async function* () {
    yield new Uint8Array(MIB);
    yield new Uint8Array(MIB);
  })();
  const changeSet = new PartReader(body, { bodyBytes: undefined, signal: undefined, budget: partBudget });
  const part = await withDeadline(changeSet.next(partBytes), { what: "a part of the change-set" });
  expect(part?.bytes.byteLength).toBe(2 * MIB);
  part?.[Symbol.dispose]();
  stalled.resolve();
  for (const held of await Promise.all(waiting)) held?.[Symbol.dispose]();
  expect([partBudget.takenBytes, longLivedPartBudget.takenBytes]).toEqual([0, 0]);
});

test("a source that hangs for ever keeps nothing of the budget once its reader is closed", async () => {
  const budget = new ByteBudget(MIB);
  const hanging = () =>
    new PartReader(
      (async function* () {
        yield new Uint8Array(10);
        await new Promise(() => {});
      })(),
      { bodyBytes: undefined, signal: undefined, budget },
    );
  const [reading, queued] = [hanging(), hanging()];
  const part = reading.next(MIB);
  await eventually(() => budget.takenBytes === MIB, { what: "a part to be read" });
  const behind = queued.next(MIB);
  queued.close().catch(() => {});
  await expect(withDeadline(behind, { what: "the one that waits to be told" })).rejects.toMatchObject({
    code: "interrupted",
  });
  reading.close().catch(() => {});
  const other = await withDeadline(budget.take(MIB), { what: "the budget to be free" });
  other[Symbol.dispose]();
  // It may never settle, which is nobody's business any more.
  part.catch(() => {});
});

test("what a source gives after its reader was closed goes nowhere", async () => {
  const budget = new ByteBudget(MIB);
  const late = Promise.withResolvers<Uint8Array>();
  const reader = new PartReader(
    (async function* () {
      yield new Uint8Array(MIB / 2);
      yield await late.promise;
    })(),
    { bodyBytes: undefined, signal: undefined, budget },
  );
  const part = reader.next(MIB);
  await eventually(() => budget.takenBytes === MIB, { what: "a part to be read" });
  const closing = reader.close();
  late.resolve(new Uint8Array(MIB).fill(1));
  await expect(part).rejects.toMatchObject({ code: "interrupted" });
  await closing;
  expect(budget.takenBytes).toBe(0);
});

test("the budget is never overdrawn, serves in turn, and gives all of itself to what is larger", async () => {
  const budget = new ByteBudget(10);
  const first = await budget.take(7);
  const order: string[] = [];
  const large = budget.take(100).finally(() => order.push("large"));
  const small = budget.take(1).finally(() => order.push("small"));
  const abort = new AbortController();
  const left = budget.take(1, abort.signal);
  abort.abort(new Error("gone"));
  await expect(left).rejects.toThrow("gone");
  expect(budget.takenBytes).toBe(7);
  first[Symbol.dispose]();
  first[Symbol.dispose]();
  const share = await large;
  expect(budget.takenBytes).toBe(10);
  share[Symbol.dispose]();
  (await small)[Symbol.dispose]();
  expect(order).toEqual(["large", "small"]);
  expect(budget.takenBytes).toBe(0);
});

/** A server of uploads in parts, that keeps what it is sent. `twist` may answer in its place. */
function uploadServer(twist: (request: StubRequest, kind: string) => Response | "hang" | undefined = () => undefined) {
  const parts = new Map<number, Uint8Array>();
  const state = { stored: null as Uint8Array | null, aborted: false };
  const stub = startStub((request) => {
    const { method, query } = request;
    const kind = `${method}${[...query.keys()].map((name) => ` ${name}`).join("")}`;
    const twisted = twist(request, kind);
    if (twisted !== undefined) return twisted;
    switch (kind) {
      case "HEAD":
        return state.stored === null
          ? new Response(null, { status: 404 })
          : new Response(null, {
              headers: {
                "content-length": String(state.stored.byteLength),
                "last-modified": new Date().toUTCString(),
                etag: etagOf(parts),
              },
            });
      case "POST uploads":
        return xml("<InitiateMultipartUploadResult><UploadId>u1</UploadId></InitiateMultipartUploadResult>");
      case "PUT partNumber uploadId":
        parts.set(Number(query.get("partNumber")), request.body);
        return new Response("", { headers: { etag: `"${md5(request.body)}"` } });
      case "POST uploadId": {
        state.stored = Buffer.concat([...parts].sort(([a], [b]) => a - b).map(([, bytes]) => bytes));
        return xml("<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>");
      }
      case "DELETE uploadId":
        state.aborted = true;
        return new Response(null, { status: 204 });
      default:
        return refuse(500, "Unexpected");
    }
  });
  return { stub, state, parts };
}

test("a large body goes in parts, each with its digests, and a part that fails is sent again alone", async () => {
  const failures = new Set(["2", "3"]);
  const { stub, state } = uploadServer(({ query }, kind) => {
    if (kind === "PUT partNumber uploadId" && failures.delete(query.get("partNumber") ?? ""))
      return refuse(500, "InternalError");
    return undefined;
  });
  await using _ = stub;
  const body = { ...generated(1, 17 * MIB, MIB), sizeBytes: undefined, replayable: false };
  expect(
    await stub
      .open({ partSizeBytes: 5 * MIB, storageClass: "STANDARD_IA", sse: "AES256" })
      .put("a", body, { longLived: true }),
  ).toBe("stored");
  expect(
    createHash("sha256")
      .update(state.stored ?? "")
      .digest("hex"),
  ).toBe(await hashOf(body));
  const create = stub.requests.find(({ query }) => query.has("uploads"));
  expect(create?.headers.get("x-amz-storage-class")).toBe("STANDARD_IA");
  expect(create?.headers.get("x-amz-server-side-encryption")).toBe("AES256");
  const puts = stub.requests.filter(({ method }) => method === "PUT");
  expect(puts).toHaveLength(6);
  for (const { headers, body: sent } of puts) {
    expect(headers.get("content-md5")).toBe(Buffer.from(md5(sent), "hex").toString("base64"));
    expect(headers.get("x-amz-content-sha256")).toBe(createHash("sha256").update(sent).digest("hex"));
    expect(headers.get("content-length")).toBe(String(sent.byteLength));
  }
  expect(state.aborted).toBe(false);
});

test("storage classes and encryption go with a small body too, by what it is for", async () => {
  await using stub = startStub(() => new Response(""));
  const backend = stub.open({
    storageClass: "GLACIER_IR",
    changeSetStorageClass: "STANDARD",
    sse: "aws:kms",
    sseKmsKeyId: "k",
  });
  await backend.put("full", text("x"), { longLived: true });
  await backend.put("change-set", text("x"));
  expect(stub.requests.map(({ headers }) => headers.get("x-amz-storage-class"))).toEqual(["GLACIER_IR", "STANDARD"]);
  for (const { headers } of stub.requests) {
    expect(headers.get("x-amz-server-side-encryption")).toBe("aws:kms");
    expect(headers.get("x-amz-server-side-encryption-aws-kms-key-id")).toBe("k");
    expect(headers.get("authorization")).toContain("x-amz-server-side-encryption");
  }
});

for (const [name, status, code] of [
  ["denied", 403, "AccessDenied"],
  ["failing", 500, "InternalError"],
  ["full", 403, "QuotaExceeded"],
] as const) {
  test(`an upload whose part is ${name} is aborted, though its source gives nothing more`, async () => {
    const { stub, state } = uploadServer((_, kind) => (kind.startsWith("PUT") ? refuse(status, code) : undefined));
    await using _ = stub;
    const place = newPlace();
    const body: ByteSource = {
      sizeBytes: undefined,
      replayable: false,
      async *open() {
        yield new Uint8Array(6 * MIB);
        await new Promise(() => {});
      },
    };
    const put = stub.open({ partSizeBytes: 5 * MIB, retries: 1 }, { place }).put("a", body);
    expect(await failureOf(() => put)).toMatchObject({ subject: "s3://b/a" });
    expect(state.aborted).toBe(true);
    expect(place.liveUploads.size).toBe(0);
    // Otherwise the uploads after it, of whatever database, would wait for this source for ever.
    expect(partBudget.takenBytes).toBe(0);
  });
}

test("an upload that is told to stop is aborted, and until then is live", async () => {
  const { stub, state } = uploadServer((_, kind) => (kind.startsWith("PUT") ? "hang" : undefined));
  await using _ = stub;
  const place = newPlace();
  const abort = new AbortController();
  const backend = stub.open({ partSizeBytes: 5 * MIB }, { place });
  const put = backend.put("a", generated(1, 12 * MIB, MIB), { signal: abort.signal });
  put.catch(() => {});
  await eventually(() => place.liveUploads.has("u1"), { what: "the upload to begin" });
  const listed = { key: "a", uploadId: "u1", startedMs: 0, newestPartMs: 0, ageMs: 0, sizeBytes: 0 };
  expect(await backend.unlisted.abortUpload(listed)).toBe("live");
  expect(state.aborted).toBe(false);
  abort.abort();
  expect(await failureOf(() => put)).toMatchObject({ code: "interrupted" });
  expect(state.aborted).toBe(true);
  expect(await backend.unlisted.abortUpload(listed)).toBe("aborted");
});

test("a completion that says 200 and then fails is asked for again", async () => {
  let failed = false;
  const { stub, state } = uploadServer((_, kind) => {
    if (kind !== "POST uploadId" || failed) return undefined;
    failed = true;
    return xml("<Error><Code>InternalError</Code></Error>");
  });
  await using _ = stub;
  expect(await stub.open({ partSizeBytes: 5 * MIB }).put("a", generated(1, 6 * MIB, MIB))).toBe("stored");
  expect(state.stored).toHaveLength(6 * MIB);
});

test("a completion whose answer was lost is found done, by its ETag", async () => {
  let count = 0;
  const { stub, state, parts } = uploadServer((_, kind) => {
    if (kind !== "POST uploadId" || ++count > 2) return undefined;
    if (count === 2) return refuse(404, "NoSuchUpload");
    state.stored = Buffer.concat([...parts].sort(([a], [b]) => a - b).map(([, bytes]) => bytes));
    return refuse(500, "InternalError");
  });
  await using _ = stub;
  expect(await stub.open({ partSizeBytes: 5 * MIB }).put("a", generated(1, 6 * MIB, MIB))).toBe("stored");
  expect(count).toBe(2);
});

test("an upload that somebody aborted is told, and nothing counts as stored", async () => {
  const { stub } = uploadServer((_, kind) => (kind === "POST uploadId" ? refuse(404, "NoSuchUpload") : undefined));
  await using _ = stub;
  const put = stub.open({ partSizeBytes: 5 * MIB }).put("a", generated(1, 6 * MIB, MIB));
  expect(await failureOf(() => put)).toMatchObject({
    code: "storage-unreachable",
    message: expect.stringContaining("aborted meanwhile"),
  });
});

test("a conditional put whose answer was lost says exists when it is tried again", async () => {
  let isStored = false;
  await using stub = startStub(({ method, headers }) => {
    if (method === "HEAD") return new Response(null, { status: 404 });
    if (isStored && headers.has("if-none-match")) return refuse(412, "PreconditionFailed");
    isStored = true;
    return refuse(500, "InternalError");
  });
  expect(await stub.open().put("a", text("x"), { ifAbsent: true })).toBe("exists");
});

test("a server that ignores the condition is found out by storing the same bytes twice, once per process", async () => {
  const stored = new Map<string, string>();
  await using stub = startStub(({ method, path, body }) => {
    if (method === "HEAD")
      return stored.has(path)
        ? new Response(null, { headers: { "content-length": "1", "last-modified": new Date().toUTCString() } })
        : new Response(null, { status: 404 });
    stored.set(path, new TextDecoder().decode(body));
    return new Response("");
  });
  const place = newPlace();
  const backend = stub.open({}, { place });
  expect(backend.capabilities.putIfAbsent).toBe(true);
  expect(await backend.put("a", text("ours"), { ifAbsent: true })).toBe("stored");
  expect(backend.capabilities.putIfAbsent).toBe(false);
  expect(await backend.put("a", text("theirs"), { ifAbsent: true })).toBe("exists");
  expect(stored.get("/b/a")).toBe("ours");
  expect(await stub.open({}, { place }).put("b", text("x"), { ifAbsent: true })).toBe("stored");
  expect(stub.log()).toEqual(["HEAD", "PUT", "PUT", "HEAD", "HEAD", "PUT"]);
});

test("a server without conditional puts is looked at first, and one with them no longer once that is proven", async () => {
  await using refusing = startStub(({ method, headers }) => {
    if (method === "HEAD") return new Response(null, { status: 404 });
    return headers.has("if-none-match") ? refuse(501, "NotImplemented") : new Response("");
  });
  const without = refusing.open();
  expect(await without.put("a", text("x"), { ifAbsent: true })).toBe("stored");
  expect(await without.put("b", text("x"), { ifAbsent: true })).toBe("stored");
  expect(without.capabilities.putIfAbsent).toBe(false);
  expect(refusing.log()).toEqual(["HEAD", "PUT", "HEAD", "PUT", "HEAD", "PUT"]);

  const taken = new Set<string>();
  await using heeding = startStub(({ method, path }) => {
    if (method === "HEAD") return new Response(null, { status: 404 });
    if (taken.has(path)) return refuse(412, "PreconditionFailed");
    taken.add(path);
    return new Response("");
  });
  const backend = heeding.open();
  for (const key of ["a", "b", "c"]) expect(await backend.put(key, text("x"), { ifAbsent: true })).toBe("stored");
  expect(backend.capabilities.putIfAbsent).toBe(true);
  expect(heeding.log()).toEqual(["HEAD", "PUT", "PUT", "PUT", "PUT"]);
});

for (const verb of ["put", "get"] as const) {
  test(`${verb === "put" ? "storing" : "reading"} 1 GiB takes less than 256 MiB of memory`, async () => {
    const sizeBytes = String(1024 * MIB);
    const spawn = (...args: string[]) =>
      Bun.spawn([process.execPath, ...args], { stdin: "ignore", stdout: "pipe", stderr: "inherit" });
    const server = spawn(`${import.meta.dir}/large-server.ts`, sizeBytes);
    try {
      const { value } = await server.stdout.getReader().read();
      const endpoint = new TextDecoder().decode(value).trim();
      const child = spawn(`${import.meta.dir}/large-process.ts`, endpoint, sizeBytes, verb);
      const peakBytes = Number(await child.stdout.text());
      expect(await child.exited).toBe(0);
      expect(peakBytes).toBeGreaterThan(0);
      expect(peakBytes).toBeLessThan(256 * MIB);
    } finally {
      server.kill("SIGKILL");
      await server.exited;
    }
  }, 60_000);
}

function etagOf(parts: ReadonlyMap<number, Uint8Array>): string {
  const hash = createHash("md5");
  for (const [, bytes] of [...parts].sort(([a], [b]) => a - b)) hash.update(Buffer.from(md5(bytes), "hex"));
  return `"${hash.digest("hex")}-${parts.size}"`;
}

function md5(bytes: Uint8Array): string {
  return createHash("md5").update(bytes).digest("hex");
}

async function hashOf(body: ByteSource): Promise<string> {
  const hash = createHash("sha256");
  for await (const piece of body.open()) hash.update(piece);
  return hash.digest("hex");
}
