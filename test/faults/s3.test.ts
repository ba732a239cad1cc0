// deadline: 400 s
import { expect, test } from "bun:test";
import type { Backend, ByteSource } from "../../src/storage/backend.ts";
import { BakeliteError } from "../../src/util/errors.ts";
import { bytesOf, collect, generated, keysOf, text, textOf } from "../backends/conformance.ts";
import type { RgwServer } from "../servers/rgw.ts";
import { openS3, type S3Table, through } from "../servers/s3-backends.ts";
import { forRgw, type S3Place, type S3Server } from "../servers/s3-servers.ts";
import { eventually, withDeadline } from "../support/eventually.ts";
import { FaultProxy, type ProxyFault } from "./proxy.ts";

const MIB = 1024 * 1024;
const LARGE_BYTES = 12 * MIB + 77;
const TEST_MS = 120_000;
const QUICK: S3Table = { retries: 8, timeout: "3s" };

const FAULTS: readonly ProxyFault[] = [
  "refuse",
  "cut-request",
  "lose-answer",
  "cut-head",
  "cut-body",
  "truncate",
  "error-500",
  "error-503",
  "error-429",
  "hang",
  "stall",
  "slow",
];

interface Scene extends AsyncDisposable {
  readonly place: S3Place;
  readonly proxy: FaultProxy;
  /** Straight to the server. */
  readonly direct: Backend;
  /** Through the proxy. */
  open(more?: S3Table): Backend;
  /** Keys of unfinished uploads. */
  uploads(): Promise<readonly string[]>;
}

async function scene({ rgw, newPlace }: S3Server & { readonly rgw: RgwServer }): Promise<Scene> {
  const place = await newPlace();
  const proxy = await FaultProxy.start({ targetPort: rgw.port, seed: 7 });
  return {
    place,
    proxy,
    direct: openS3(place),
    open: (more = {}) => openS3(through(place, proxy.url), more),
    uploads: async () => (await place.requests.listUploads(place.bucket)).map(({ key }) => key),
    async [Symbol.asyncDispose]() {
      await proxy[Symbol.asyncDispose]();
      await place[Symbol.asyncDispose]();
    },
  };
}

/** In parts, as its size is not known; it can be read again. */
function large(seed = 1): ByteSource {
  return { ...generated(seed, LARGE_BYTES, 300_000), sizeBytes: undefined };
}

async function expectLarge(backend: Backend, key: string, seed = 1): Promise<void> {
  const expected = Buffer.concat(await collect(large(seed).open()));
  expect(Buffer.compare(await bytesOf(backend, key), expected)).toBe(0);
}

await forRgw((server) => {
  // Each has a bucket and a proxy of its own, and mostly waits.
  for (const fault of FAULTS)
    test.concurrent(
      `every verb gets past \`${fault}\`, and nothing half done is left`,
      async () => {
        await using the = await scene(server);
        const { proxy, direct } = the;
        const backend = the.open(QUICK);
        const keys = Array.from({ length: 30 }, (_, i) => `app/L0/${String(i).padStart(3, "0")}`);
        for (const key of keys) await direct.put(key, text(`content of ${key}`));

        proxy.failNext(fault, { operation: "put" });
        expect(await backend.put("app/CURRENT", text("ours"))).toBe("stored");
        expect(await textOf(direct, "app/CURRENT")).toBe("ours");

        proxy.failNext(fault, { operation: "put" });
        // What was stored before its answer was lost is met by the next attempt.
        expect(await backend.put("app/L0/new", text("ours"), { ifAbsent: true })).toBeOneOf(["stored", "exists"]);
        expect(await textOf(direct, "app/L0/new")).toBe("ours");
        expect(await backend.put("app/L0/new", text("theirs"), { ifAbsent: true })).toBe("exists");

        proxy.failNext(fault, { operation: "begin-upload" });
        proxy.failNext(fault, { operation: "upload-part", times: 2 });
        proxy.failNext(fault, { operation: "complete-upload" });
        expect(await backend.put("app/full/1", large(), { ifAbsent: true })).toBeOneOf(["stored", "exists"]);
        await expectLarge(direct, "app/full/1");

        proxy.failNext(fault, { operation: "get", times: 2 });
        await expectLarge(backend, "app/full/1");
        proxy.failNext(fault, { operation: "get" });
        expect(await bytesOf(backend, "app/full/1", { start: -72 })).toHaveLength(72);

        proxy.failNext(fault, { operation: "head" });
        expect(await backend.stat("app/full/1")).toMatchObject({ sizeBytes: LARGE_BYTES });
        proxy.failNext(fault, { operation: "head" });
        expect(await backend.stat("app/full/none")).toBeNull();

        proxy.failNext(fault, { operation: "list" });
        expect(await keysOf(backend, "app/L0/")).toEqual([...keys, "app/L0/new"]);

        proxy.failNext(fault, { operation: ["delete", "delete-many"] });
        await backend.delete(keys);
        expect(await keysOf(direct, "app/")).toEqual(["app/CURRENT", "app/L0/new", "app/full/1"]);
        // A begun upload whose answer was lost has no name that anybody could abort; only a sweep finds it.
        const lost = ["lose-answer", "cut-head", "cut-body", "truncate", "stall"].includes(fault) ? 1 : 0;
        expect((await the.uploads()).length).toBeLessThanOrEqual(lost);
        expect(proxy.faultCounts()[fault]).toBeGreaterThan(6);
      },
      TEST_MS,
    );

  for (const fault of FAULTS.filter((each) => each !== "slow"))
    test.concurrent(
      `without retries \`${fault}\` is storage-unreachable, in bounded time, and no object is half there`,
      async () => {
        await using the = await scene(server);
        const { proxy, direct } = the;
        const backend = the.open({ retries: 0, timeout: "500ms" });
        await direct.put("app/a", text("a"));
        await direct.put("app/large", large());
        // A fetch may be tried again by Bun itself, once; so these go on for longer than that.
        const fails = async (call: () => Promise<unknown>): Promise<void> => {
          proxy.failNext(fault, { times: 1_000_000 });
          const startedMs = performance.now();
          await expect(call()).rejects.toMatchObject({ name: "BakeliteError", code: "storage-unreachable" });
          expect(performance.now() - startedMs).toBeLessThan(15_000);
          proxy.clearScripts();
        };
        await fails(() => backend.put("app/b", text("b"), { ifAbsent: true }));
        await fails(() => backend.put("app/c", large(), { ifAbsent: true }));
        await fails(() => bytesOf(backend, "app/large"));
        await fails(() => bytesOf(backend, "app/large", { start: 5, end: 900_000 }));
        await fails(() => backend.stat("app/a"));
        await fails(() => keysOf(backend, ""));
        await fails(() => backend.delete(["app/never", "app/there"]));
        for (const operation of ["upload-part", "complete-upload"] as const) {
          proxy.failNext(fault, { operation, times: 1_000_000 });
          await expect(backend.put("app/d", large(3))).rejects.toMatchObject({ code: "storage-unreachable" });
          proxy.clearScripts();
        }
        const left = await keysOf(direct, "");
        expect(left.filter((key) => !["app/a", "app/b", "app/c", "app/d", "app/large"].includes(key))).toEqual([]);
        if (left.includes("app/b")) expect(await textOf(direct, "app/b")).toBe("b");
        if (left.includes("app/c")) await expectLarge(direct, "app/c");
        if (left.includes("app/d")) await expectLarge(direct, "app/d", 3);
      },
      TEST_MS,
    );

  test("a failed large put aborts its upload, also when the body or the signal ended it", async () => {
    await using the = await scene(server);
    const { proxy } = the;
    const backend = the.open({ retries: 0, timeout: "2s" });
    proxy.failNext("error-500", { operation: "upload-part", skip: 1, times: 1000 });
    await expect(backend.put("app/a", large())).rejects.toMatchObject({ code: "storage-unreachable" });
    proxy.clearScripts();
    await eventually(async () => (await the.uploads()).length === 0, { what: "the upload to be aborted" });

    const abort = new AbortController();
    proxy.failNext("hang", { operation: "upload-part", skip: 1, times: 1000 });
    const put = backend.put("app/b", large(), { signal: abort.signal });
    await eventually(() => (proxy.faultCounts().hang ?? 0) > 0, { what: "a part to hang" });
    const abortedMs = performance.now();
    abort.abort();
    await expect(put).rejects.toMatchObject({ code: "interrupted" });
    expect(performance.now() - abortedMs).toBeLessThan(3000);
    await eventually(async () => (await the.uploads()).length === 0, { what: "the aborted put's upload to be gone" });
    expect(await keysOf(the.direct, "")).toEqual([]);
  });

  test(
    "a server that does not answer is let go at once when the call is aborted, whatever the verb",
    async () => {
      await using the = await scene(server);
      const backend = the.open({ retries: 5, timeout: "60s" });
      await the.direct.put("app/a", text("a"));
      const calls: Record<string, (signal: AbortSignal) => Promise<unknown>> = {
        put: (signal) => backend.put("app/b", text("b"), { signal }),
        "large put": (signal) => backend.put("app/c", large(), { signal }),
        get: (signal) => backend.get("app/a", { signal }),
        stat: (signal) => backend.stat("app/a", { signal }),
        list: (signal) => keysOf(backend, "", { signal }),
        delete: (signal) => backend.delete(["app/a"], { signal }),
      };
      await the.proxy.beginOutage("hang");
      for (const [name, call] of Object.entries(calls)) {
        const abort = new AbortController();
        const ending = call(abort.signal);
        setTimeout(() => abort.abort(), 150);
        const startedMs = performance.now();
        await expect(withDeadline(ending, { what: `${name} to end`, deadlineMs: 20_000 })).rejects.toMatchObject({
          code: "interrupted",
        });
        expect(performance.now() - startedMs).toBeLessThan(8000);
      }
      await the.proxy.endOutage();
      expect(await keysOf(the.direct, "app/a")).toEqual(["app/a"]);
    },
    TEST_MS,
  );

  test(
    "an outage of either kind ends by itself for a call with retries",
    async () => {
      await using the = await scene(server);
      const backend = the.open({ retries: 100, timeout: "1s" });
      for (const how of ["refuse", "hang"] as const) {
        await the.proxy.beginOutage(how);
        const put = backend.put(`app/${how}`, large(), { ifAbsent: true });
        await Bun.sleep(2500);
        await the.proxy.endOutage();
        expect(await put).toBeOneOf(["stored", "exists"]);
        await expectLarge(the.direct, `app/${how}`);
      }
    },
    TEST_MS,
  );

  test(
    "a slow line is no failure as long as bytes pass",
    async () => {
      await using the = await scene(server);
      // One request, that takes longer than the timeout; what the kernel takes at once for sending (8 MB here) does not.
      const backend = the.open({ retries: 0, timeout: "3s", part_size: "64MiB" });
      the.proxy.bytesPerSecond = 6 * MIB;
      const body = generated(5, 30 * MIB, 100_000);
      expect(await backend.put("app/a", body)).toBe("stored");
      const expected = Buffer.concat(await collect(body.open()));
      expect(Buffer.compare(await bytesOf(backend, "app/a"), expected)).toBe(0);
    },
    TEST_MS,
  );

  test("a listing that is behind hides what is new, but an exclusive put still meets it", async () => {
    await using the = await scene(server);
    const backend = the.open();
    await backend.put("app/a", text("a"));
    the.proxy.freezeListings();
    expect(await backend.put("app/b", text("b"), { ifAbsent: true })).toBe("stored");
    expect(await keysOf(backend, "")).toEqual(["app/a"]);
    expect(await backend.put("app/b", text("c"), { ifAbsent: true })).toBe("exists");
    expect(await textOf(backend, "app/b")).toBe("b");
    the.proxy.thawListings();
    expect(await keysOf(backend, "")).toEqual(["app/a", "app/b"]);
  });

  test(
    "a listing of several pages that breaks at each of them is complete, and without retries is none",
    async () => {
      await using the = await scene(server);
      const keys = Array.from({ length: 2100 }, (_, i) => `app/L0/${String(i).padStart(5, "0")}`);
      await inBatches(keys, (key) => the.direct.put(key, text("x")));
      for (const fault of ["truncate", "cut-body", "error-503"] as const) {
        the.proxy.failNext(fault, { operation: "list", times: 1 });
        the.proxy.failNext(fault, { operation: "list", skip: 1, times: 2 });
        expect(await keysOf(the.open(QUICK), "app/")).toEqual(keys);
        the.proxy.clearScripts();
        the.proxy.failNext(fault, { operation: "list", skip: 2, times: 100 });
        await expect(keysOf(the.open(), "app/")).rejects.toMatchObject({ code: "storage-unreachable" });
        the.proxy.clearScripts();
      }
    },
    TEST_MS,
  );

  test("a deletion that was confirmed and did not happen is seen by the next listing", async () => {
    await using the = await scene(server);
    const backend = the.open();
    for (const key of ["app/a", "app/b"]) await backend.put(key, text("x"));
    the.proxy.failNext("lie", { operation: ["delete", "delete-many"] });
    await backend.delete(["app/a", "app/b"]);
    expect(await keysOf(backend, "")).toEqual(["app/a", "app/b"]);
    await backend.delete(["app/a", "app/b"]);
    expect(await keysOf(backend, "")).toEqual([]);
  });

  test(
    "a user who may only read or only add is told so, and a full bucket is storage-full",
    async () => {
      await using the = await scene(server);
      const { rgw } = server;
      const { bucket, requests } = the.place;
      await the.direct.put("app/a", text("a"));
      const arn = [`arn:aws:s3:::${bucket}`, `arn:aws:s3:::${bucket}/*`];
      const allow = (uid: string, ...actions: readonly string[]) => ({
        Effect: "Allow",
        Principal: { AWS: [`arn:aws:iam:::user/${uid}`] },
        Action: ["s3:GetObject", "s3:ListBucket", ...actions],
        Resource: arn,
      });
      const as = async (uid: string) => openS3({ ...the.place, account: await rgw.addUser({ uid }) });
      const [reader, appender, stranger] = [await as("reader"), await as("appender"), await as("stranger")];
      await requests.setPolicy(bucket, [allow("reader"), allow("appender", "s3:PutObject")]);
      const denied = { code: "storage-denied" };
      expect(await textOf(reader, "app/a")).toBe("a");
      expect(await keysOf(reader, "")).toEqual(["app/a"]);
      await expect(reader.put("app/b", text("b"))).rejects.toMatchObject(denied);
      await expect(reader.put("app/b", large(), { ifAbsent: true })).rejects.toMatchObject(denied);
      await expect(reader.delete(["app/a"])).rejects.toMatchObject(denied);
      expect(await appender.put("app/b", text("b"), { ifAbsent: true })).toBe("stored");
      expect(await appender.put("app/c", large(), { ifAbsent: true })).toBe("stored");
      await expect(appender.delete(["app/b", "app/c"])).rejects.toMatchObject(denied);
      await expect(bytesOf(stranger, "app/a")).rejects.toMatchObject(denied);
      await expect(stranger.stat("app/a")).rejects.toMatchObject(denied);
      await expect(keysOf(stranger, "")).rejects.toMatchObject(denied);
      await rgw.setQuota(MIB);
      try {
        await expect(the.direct.put("app/d", large())).rejects.toMatchObject({ code: "storage-full" });
      } finally {
        await rgw.setQuota(null);
      }
      expect(await keysOf(the.direct, "")).toEqual(["app/a", "app/b", "app/c"]);
      expect(await the.uploads()).toEqual([]);
    },
    TEST_MS,
  );

  test("a bucket with object lock takes everything, and a deletion leaves the locked version", async () => {
    const { rgw } = server;
    await using the = await scene(server);
    const bucket = `locked-${crypto.randomUUID()}`;
    await the.place.requests.createBucket(bucket, { lock: { mode: "COMPLIANCE", days: 1 } });
    const backend = openS3({ account: rgw.account, bucket, prefix: "p" });
    expect(await backend.put("app/a", text("a"), { ifAbsent: true })).toBe("stored");
    expect(await backend.put("app/large", large(), { ifAbsent: true })).toBe("stored");
    expect(await backend.put("app/CURRENT", text("1"))).toBe("stored");
    expect(await backend.put("app/CURRENT", text("2"))).toBe("stored");
    await backend.delete(["app/a"]);
    expect(await keysOf(backend, "")).toEqual(["app/CURRENT", "app/large"]);
    const versions = await the.place.requests.listVersions(bucket, "p/app/a");
    expect(versions.filter((each) => each.isDeleteMarker)).toHaveLength(1);
    expect(versions.filter((each) => !each.isDeleteMarker).length).toBeGreaterThanOrEqual(1);
    // This server does not heed If-None-Match where there are versions, and the backend has noticed.
    expect(backend.capabilities.putIfAbsent).toBe(false);
    expect(await backend.put("app/large", text("x"), { ifAbsent: true })).toBe("exists");
  });

  // The last one: for half a minute the cluster waits for the dead gateway before it makes another user.
  test(
    "a gateway that is killed in the middle of puts and comes back loses none that was confirmed",
    async () => {
      await using the = await scene(server);
      const { rgw } = server;
      const backend = openS3(the.place, { retries: 100, timeout: "2s" });
      const stored: string[] = [];
      let isOver = false;
      const writers = Array.from({ length: 4 }, async (_, w) => {
        for (let i = 0; !isOver; i++) {
          const key = `app/${w}/${String(i).padStart(6, "0")}`;
          try {
            await backend.put(key, i % 10 === 0 ? large(i) : text(key), { ifAbsent: true });
          } catch (error) {
            // This server keeps the lock of a completion that died with the gateway, for minutes: then nothing is confirmed.
            if (!(error instanceof BakeliteError && error.code === "storage-unreachable")) throw error;
            continue;
          }
          stored.push(key);
        }
      });
      for (let i = 0; i < 2; i++) {
        const before = stored.length;
        await eventually(() => stored.length > before + 8, { what: "some puts", deadlineMs: 30_000 });
        await rgw.killGateway();
        await rgw.startGateway();
      }
      isOver = true;
      await Promise.all(writers);
      const keys = await keysOf(the.direct, "");
      expect(stored.filter((key) => !keys.includes(key))).toEqual([]);
      for (const key of keys) {
        const number = Number(key.slice(-6));
        if (number % 10 === 0) await expectLarge(the.direct, key, number);
        else expect(await textOf(the.direct, key)).toBe(key);
      }
    },
    TEST_MS,
  );
});

async function inBatches(keys: readonly string[], work: (key: string) => Promise<unknown>): Promise<void> {
  for (let i = 0; i < keys.length; i += 32) await Promise.all(keys.slice(i, i + 32).map(work));
}
