import { afterAll, describe, expect, test } from "bun:test";
import type { Backend } from "../../src/storage/backend.ts";
import { bytesOf, collect, generated, keysOf, text, textOf } from "../backends/conformance.ts";
import { GcsScene, openGcs } from "../servers/gcs/places.ts";

const scene = await GcsScene.start();
afterAll(() => scene[Symbol.asyncDispose]());
const { stub } = scene;

const refusal =
  (status: number, reason: string, message: string, headers: Record<string, string> = {}) =>
  () =>
    Response.json({ error: { code: status, message, errors: [{ reason, message }] } }, { status, headers });

describe("Google Cloud Storage keeps", () => {
  test("an object until its retention ends, and the refusal says when; others are deleted all the same", async () => {
    const bucket = scene.newBucket();
    const backend = scene.open(bucket);
    await backend.put("app/young", text("y"));
    await backend.put("app/old", text("o"));
    const { settings } = stub.bucket(bucket);
    settings.retentionSeconds = 3600;
    // As if it had been stored long ago.
    Object.assign(stub.bucket(bucket).get("app/old") ?? {}, { createdMs: Date.now() - 7200_000 });
    const until = new Date((stub.bucket(bucket).get("app/young")?.createdMs ?? 0) + 3600_000).toISOString();
    await expect(backend.delete(["app/young", "app/old", "app/never"])).rejects.toMatchObject({
      code: "storage-denied",
      subject: `gs://${bucket}/app/young`,
      message: `cannot delete objects: the object cannot be deleted or replaced until ${until.replace(/\.\d+/, "")}, as the bucket's retention policy says`,
    });
    expect(await keysOf(backend, "")).toEqual(["app/young"]);
    // It is no missing permission: the next deletion is asked for again.
    settings.retentionSeconds = 0;
    await backend.delete(["app/young"]);
    expect(await keysOf(backend, "")).toEqual([]);
  });

  test("an object under a hold, and replaces none, small or large", async () => {
    const bucket = scene.newBucket({ defaultEventBasedHold: true });
    const backend = scene.open(bucket);
    await backend.put("app/CURRENT", text("1"));
    const held = { code: "storage-denied", message: expect.stringContaining("a hold keeps the object") };
    await expect(backend.delete(["app/CURRENT"])).rejects.toMatchObject(held);
    await expect(backend.put("app/CURRENT", text("2"))).rejects.toMatchObject(held);
    const large = { ...generated(1, 9 * 1024 * 1024, 1024 * 1024), sizeBytes: undefined };
    await expect(backend.put("app/CURRENT", large)).rejects.toMatchObject(held);
    expect(stub.sessions.openCount).toBe(0);
    expect(await textOf(backend, "app/CURRENT")).toBe("1");
  });
});

describe("Google Cloud Storage refuses", () => {
  test("who lacks a permission, by its name, and deletions are not asked for again and again", async () => {
    const bucket = scene.newBucket();
    const owner = scene.open(bucket);
    await owner.put("app/a", text("a"));
    const as = async (name: string, lacks: readonly string[]): Promise<Backend> =>
      scene.open(bucket, { service_account_file: await scene.keyFileOf(name, lacks) });
    const denied = (permission: string) => ({ code: "storage-denied", hint: expect.stringContaining(permission) });
    const reader = await as("reader", ["storage.objects.create", "storage.objects.delete"]);
    await expect(reader.put("app/b", text("b"))).rejects.toMatchObject(denied("storage.objects.create"));
    expect(await textOf(reader, "app/a")).toBe("a");
    const blind = await as("blind", ["storage.objects.get", "storage.objects.list"]);
    await expect(blind.get("app/a")).rejects.toMatchObject(denied("storage.objects.get"));
    await expect(blind.stat("app/a")).rejects.toMatchObject(denied("storage.objects.get"));
    await expect(keysOf(blind, "")).rejects.toMatchObject(denied("storage.objects.list"));
    const appender = await as("appender", ["storage.objects.delete"]);
    expect(await appender.put("app/c", text("c"), { ifAbsent: true })).toBe("stored");
    const many = Array.from({ length: 500 }, (_, i) => `app/L0/${i}`);
    for (const key of many.slice(0, 40)) await owner.put(key, text("x"));
    await expect(appender.delete(many)).rejects.toMatchObject(denied("storage.objects.delete"));
    const before = stub.requests.length;
    await expect(appender.delete(many)).rejects.toMatchObject(denied("storage.objects.delete"));
    expect(stub.requests.length).toBe(before);
    expect(before).toBeLessThan(200);
  });

  test("everything of a bucket that is not there, which is never an empty one", async () => {
    const backend = scene.open("no-such-bucket");
    const missing = { code: "storage-denied", message: expect.stringContaining("the bucket does not exist") };
    for (const call of [
      () => backend.get("app/a"),
      () => backend.stat("app/a"),
      () => keysOf(backend, ""),
      () => backend.put("app/a", text("a")),
      () => backend.delete(["app/a"]),
    ])
      await expect(call()).rejects.toMatchObject(missing);
    const elsewhere = openGcs(scene.table("b", { endpoint: `${stub.url}/wrong` }));
    await expect(elsewhere.stat("app/a")).rejects.toMatchObject({ code: "storage-denied" });
  });

  test.each([
    [429, "rateLimitExceeded", "slow down", 2],
    [403, "userRateLimitExceeded", "slow down", 2],
    [503, "backendError", "try later", 2],
    [408, "uploadBrokenConnection", "timeout", 2],
    [403, "forbidden", "denied", 1],
    [400, "invalid", "what?", 1],
  ])("with %i %s, which is tried again or not", async (status, reason, message, requests) => {
    const backend = scene.open(scene.newBucket(), { retries: 1 });
    stub.answerNext(refusal(status, reason, message), (request) => request.method === "POST");
    const before = stub.requests.length;
    const put = backend.put("app/a", text("a"));
    if (requests === 2) expect(await put).toBe("stored");
    else await expect(put).rejects.toMatchObject({ code: "storage-denied" });
    expect(stub.requests.length - before).toBe(requests);
  });

  test("for so long as Retry-After says", async () => {
    const backend = scene.open(scene.newBucket(), { retries: 1 });
    stub.answerNext(
      refusal(429, "rateLimitExceeded", "slow down", { "retry-after": "1" }),
      ({ method }) => method === "POST",
    );
    const startMs = performance.now();
    await backend.put("app/a", text("a"));
    expect(performance.now() - startMs).toBeGreaterThan(990);
  });

  test.each([
    [400, "required", "Bucket is a requester pays bucket but no user project provided.", "requester pays"],
    [403, "accountDisabled", "The billing account for the owning project is disabled in state absent", "billing"],
    [403, "insufficientPermissions", "Insufficient Permission", "scope"],
    [403, "quotaExceeded", "over", "quota"],
  ])("with %i %s, and says what that is", async (status, reason, message, told) => {
    const backend = scene.open(scene.newBucket());
    stub.answerNext(refusal(status, reason, message), ({ method }) => method === "POST");
    const failure = await backend.put("app/a", text("a")).catch((error: unknown) => error);
    expect(failure).toMatchObject({ code: reason === "quotaExceeded" ? "storage-full" : "storage-denied" });
    expect(String(failure instanceof Error ? failure.message : "")).toContain(told);
  });

  test("a name with a line break, before anything is sent", async () => {
    const backend = scene.open(scene.newBucket());
    await expect(backend.put("app/a\nb", text("a"))).rejects.toMatchObject({ code: "storage-denied" });
  });
});

describe("reading from Google Cloud Storage", () => {
  test("notices bytes that were changed on the way, small or large", async () => {
    const backend = scene.open(scene.newBucket());
    await backend.put("app/a", text("small"));
    await backend.put("app/large", generated(1, 5 * 1024 * 1024, 1024 * 1024));
    stub.isServingDamaged = true;
    try {
      for (const key of ["app/a", "app/large"])
        await expect(bytesOf(backend, key)).rejects.toMatchObject({ code: "replica-corrupt" });
    } finally {
      stub.isServingDamaged = false;
    }
    expect(await textOf(backend, "app/a")).toBe("small");
  });

  test("ends when the object is replaced in the middle, rather than mix two", async () => {
    const backend = scene.open(scene.newBucket());
    await backend.put("app/a", generated(1, 20 * 1024 * 1024, 1024 * 1024));
    const reading = (async () => {
      let isFirst = true;
      for await (const _piece of (await backend.get("app/a")) ?? []) {
        if (isFirst) await backend.put("app/a", generated(2, 20 * 1024 * 1024, 1024 * 1024));
        isFirst = false;
      }
    })();
    await expect(reading).rejects.toMatchObject({ code: "replica-missing" });
  });

  test("follows page tokens through short and empty pages", async () => {
    const bucket = scene.newBucket();
    const backend = scene.open(bucket);
    const keys = Array.from({ length: 25 }, (_, i) => `app/${String(i).padStart(2, "0")}`);
    for (const key of keys) await backend.put(key, text(key));
    stub.maxPageLength = 3;
    stub.hasEmptyPages = true;
    try {
      expect(await keysOf(backend, "app/")).toEqual(keys);
      expect(await keysOf(backend, "app/", { startAfter: "app/07" })).toEqual(keys.slice(8));
    } finally {
      stub.maxPageLength = 1000;
      stub.hasEmptyPages = false;
    }
    const looping = () => Response.json({ nextPageToken: "same" });
    stub.answerNext(looping, () => true, 2);
    await expect(keysOf(backend, "")).rejects.toMatchObject({ code: "storage-unreachable" });
    const item = (name: string) => ({ name, size: "1", timeCreated: "2026-01-01T00:00:00.000Z" });
    stub.answerNext(() => Response.json({ items: [item("app/b"), item("app/a")] }));
    await expect(keysOf(backend, "")).rejects.toMatchObject({ code: "storage-unreachable" });
    stub.answerNext(() => new Response("<html>a captive portal</html>", { headers: { "content-type": "text/html" } }));
    await expect(keysOf(backend, "")).rejects.toMatchObject({ code: "storage-unreachable" });
  });
});

describe("what doctor is told of a bucket", () => {
  const levels = async (backend: Backend) =>
    Object.fromEntries((await backend.diagnose?.())?.map(({ check, level }) => [check, level]) ?? []);

  test("of a plain one: nothing to complain of", async () => {
    const found = await levels(scene.open(scene.newBucket()));
    expect(found).toEqual({
      ...{ clock: "pass", permissions: "pass", "conditional writes": "pass", bucket: "pass", versioning: "pass" },
      ...{ "soft delete": "pass", "retention policy": "pass" },
    });
  });

  test("of one that keeps what is deleted", async () => {
    const bucket = scene.newBucket({ versioning: true, softDeleteSeconds: 604_800, defaultEventBasedHold: true });
    const found = (await scene.open(bucket).diagnose?.()) ?? [];
    const messages = new Map(found.map(({ check, message }) => [check, message]));
    expect(messages.get("versioning")).toStartWith("on:");
    expect(messages.get("soft delete")).toContain("for 7d");
    expect(messages.get("holds")).toContain("put on hold");
  });

  test("of one with a retention policy: CURRENT can only be replaced where there are versions", async () => {
    const retained = { retentionSeconds: 86_400, isLocked: true };
    expect(await levels(scene.open(scene.newBucket(retained)))).toMatchObject({ "retention policy": "warn" });
    const versioned = scene.open(scene.newBucket({ ...retained, versioning: true }));
    expect(await levels(versioned)).toMatchObject({ "retention policy": "pass" });
    await versioned.put("app/CURRENT", text("1"));
    await versioned.put("app/CURRENT", text("2"));
    expect(await textOf(versioned, "app/CURRENT")).toBe("2");
  });

  test("of credentials that lack something", async () => {
    const lacks = ["storage.objects.delete", "storage.buckets.get"];
    const appender = scene.open(scene.newBucket(), { service_account_file: await scene.keyFileOf("few", lacks) });
    expect(await levels(appender)).toMatchObject({ permissions: "fail", bucket: "pass" });
    const reader = await scene.keyFileOf("fewer", ["storage.objects.create"]);
    const found = (await scene.open(scene.newBucket(), { service_account_file: reader }).diagnose?.()) ?? [];
    expect(found).toContainEqual(expect.objectContaining({ level: "fail", message: "storage.objects.create missing" }));
  });

  test("of what is kept beyond the listed objects", async () => {
    const bucket = scene.newBucket({ versioning: true });
    const backend = scene.open(bucket);
    for (const content of ["1", "22", "333"]) await backend.put("app/CURRENT", text(content));
    await backend.put("app/gone", text("4444"));
    await backend.delete(["app/gone"]);
    expect(await backend.unlisted?.noncurrentVersions("app/")).toEqual({
      count: 3,
      sizeBytes: 7,
      deleteMarkerCount: 0,
    });
    expect(await collect((await backend.unlisted?.uploads("app/")) ?? [])).toEqual([]);
  });
});
