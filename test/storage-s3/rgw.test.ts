import { expect, test } from "bun:test";
import { newPlace } from "../../src/storage/s3/place.ts";
import { collect, generated, keysOf, text, textOf } from "../backends/conformance.ts";
import { RGW_STORAGE_CLASS } from "../servers/rgw.ts";
import { newBucketName, S3Requests } from "../servers/s3-account.ts";
import { forRgw } from "../servers/s3-servers.ts";
import { openTestS3 } from "./open-test-s3.ts";

const MIB = 1024 * 1024;

await forRgw(({ rgw, account, newPlace: newBucket }) => {
  test("a bucket may stand in the host name", async () => {
    const { bucket } = await newBucket();
    const backend = openTestS3({ ...account, endpoint: rgw.virtualHostEndpoint }, { bucket, pathStyle: false });
    await backend.put("a b/c+d", text("x"));
    expect(await textOf(backend, "a b/c+d")).toBe("x");
    expect(await keysOf(backend, "")).toEqual(["a b/c+d"]);
  });

  test("a certificate of one's own is refused with a word about ca_file, and trusted with it", async () => {
    const { bucket } = await newBucket();
    const secure = { ...account, endpoint: rgw.httpsEndpoint };
    await expect(openTestS3(secure, { bucket }).put("a", text("x"))).rejects.toMatchObject({
      code: "storage-denied",
      hint: expect.stringContaining("ca_file"),
    });
    const backend = openTestS3(secure, { bucket, caFile: rgw.caFile });
    await backend.put("a", generated(1, 6 * MIB, MIB));
    expect((await backend.stat("a"))?.sizeBytes).toBe(6 * MIB);
    await expect(openTestS3(secure, { bucket, caFile: "/nowhere.pem" }).stat("a")).rejects.toMatchObject({
      code: "config-invalid",
    });
  });

  test("wrong keys, a missing bucket and a full quota are told apart", async () => {
    const { bucket } = await newBucket();
    const wrongSecret = openTestS3({ ...account, secretAccessKey: "wrong" }, { bucket });
    await expect(wrongSecret.put("a", text("x"))).rejects.toMatchObject({
      code: "storage-denied",
      // This server says no more than that.
      hint: expect.stringContaining("check that they are right"),
    });
    const wrongKey = openTestS3({ ...account, accessKeyId: "NOBODY" }, { bucket });
    await expect(wrongKey.put("a", text("x"))).rejects.toMatchObject({ code: "storage-denied" });
    const missing = openTestS3(account, { bucket: newBucketName() });
    for (const call of [
      () => missing.put("a", text("x")),
      () => missing.stat("a"),
      () => missing.get("a"),
      () => keysOf(missing, ""),
    ])
      await expect(call()).rejects.toMatchObject({
        code: "storage-denied",
        message: expect.stringContaining("bucket does not exist"),
      });
    await rgw.setQuota(MIB);
    try {
      const full = { code: "storage-full", hint: expect.stringContaining("quota") };
      const backend = openTestS3(account, { bucket, partSizeBytes: 5 * MIB });
      await expect(backend.put("a", generated(1, 2 * MIB, MIB))).rejects.toMatchObject(full);
      await expect(backend.put("b", generated(1, 12 * MIB, MIB))).rejects.toMatchObject(full);
    } finally {
      await rgw.setQuota(null);
    }
    expect(await new S3Requests(account).listUploads(bucket)).toEqual([]);
  });

  test("with credentials that may put, list and get only, everything but deleting works", async () => {
    const { bucket, requests } = await newBucket();
    const uid = `appender${crypto.randomUUID().slice(0, 8)}`;
    const appender = await rgw.addUser({ uid });
    const principal = { AWS: [`arn:aws:iam:::user/${uid}`] };
    const resources = [`arn:aws:s3:::${bucket}`, `arn:aws:s3:::${bucket}/*`];
    const actions = ["s3:GetObject", "s3:ListBucket", "s3:PutObject"];
    await requests.setPolicy(bucket, [{ Effect: "Allow", Principal: principal, Action: actions, Resource: resources }]);
    const notices: string[] = [];
    const backend = openTestS3(appender, { bucket, onNotice: ({ message }) => notices.push(message) });
    await backend.put("a", text("x"), { ifAbsent: true });
    await backend.put("large", generated(1, 17 * MIB, MIB), { ifAbsent: true });
    for (const keys of [["a"], ["a", "large"]])
      await expect(backend.delete(keys)).rejects.toMatchObject({ code: "storage-denied" });
    expect(notices).toHaveLength(1);
    expect(await keysOf(backend, "")).toEqual(["a", "large"]);
  });

  test("what versions and unfinished uploads hold is counted, by prefix, and told by diagnose", async () => {
    const bucket = newBucketName();
    const requests = new S3Requests(account);
    await requests.createBucket(bucket, { lock: { mode: "GOVERNANCE", days: 1 } });
    const backend = openTestS3(account, { bucket, prefix: "p" });
    for (const content of ["1", "22", "333"]) await backend.put("app/CURRENT", text(content));
    await backend.put("app/gone", text("4444"));
    await backend.delete(["app/gone"]);
    await backend.put("other/a", text("x"));
    await backend.put("other/a", text("y"));
    expect(await backend.unlisted.noncurrentVersions("app/")).toEqual({
      count: 3,
      sizeBytes: 1 + 2 + 4,
      deleteMarkerCount: 1,
    });
    await requests.beginUpload(bucket, "p/app/full", [5 * MIB, 5]);
    await requests.beginUpload(bucket, "p/app/never");
    await requests.beginUpload(bucket, "elsewhere");
    const uploads = await collect((await backend.unlisted.uploads("app/")) ?? []);
    expect(uploads.map(({ key, sizeBytes }) => ({ key, sizeBytes }))).toEqual([
      { key: "app/full", sizeBytes: 5 * MIB + 5 },
      { key: "app/never", sizeBytes: 0 },
    ]);
    for (const upload of uploads) {
      expect(upload.ageMs).toBeLessThan(60_000);
      expect(await backend.unlisted.abortUpload(upload)).toBe("aborted");
      expect(await backend.unlisted.abortUpload(upload)).toBe("aborted");
    }
    expect((await requests.listUploads(bucket)).map(({ key }) => key)).toEqual(["elsewhere"]);
    const told = Object.fromEntries(
      (await backend.diagnose()).map(({ check, level, message }) => [check, [level, message]]),
    );
    expect(told).toMatchObject({
      clock: ["pass", expect.stringContaining("agrees")],
      versioning: ["warn", expect.stringContaining("noncurrent")],
      "object lock": ["pass", "on: governance, 1 days"],
      "conditional writes": ["pass", expect.any(String)],
      region: ["pass", "us-east-1"],
    });
    expect(told).not.toHaveProperty("transport");
  });

  test("storage classes reach the server, and an unknown one is named", async () => {
    const { bucket, requests } = await newBucket();
    const backend = openTestS3(account, { bucket, storageClass: RGW_STORAGE_CLASS });
    await backend.put("full", text("x"), { longLived: true });
    await backend.put("change-set", text("x"));
    const classOf = async (key: string) =>
      (await requests.request("HEAD", `/${bucket}/${key}`)).headers.get("x-amz-storage-class") ?? "STANDARD";
    expect([await classOf("full"), await classOf("change-set")]).toEqual([RGW_STORAGE_CLASS, "STANDARD"]);
    const odd = openTestS3(account, { bucket, changeSetStorageClass: "NO_SUCH_CLASS" });
    await expect(odd.put("a", text("x"))).rejects.toMatchObject({ code: "storage-denied" });
  });

  test("what a server knows about conditions is found out by one harmless round, for parts too", async () => {
    const { bucket } = await newBucket();
    const place = newPlace();
    const backend = openTestS3(account, { bucket, partSizeBytes: 5 * MIB }, { place });
    await backend.put("small", text("x"), { ifAbsent: true });
    expect(place.conditionalPut).toBe("proven");
    await backend.put("large", generated(1, 6 * MIB, MIB), { ifAbsent: true });
    expect(place.conditionalComplete).toBeOneOf(["proven", "absent"]);
    console.log(`note: a conditional completion is ${place.conditionalComplete} at ${rgw.name}`);
    expect(await textOf(backend, "small")).toBe("x");
    expect(await keysOf(backend, "")).toEqual(["large", "small"]);
    expect(await collect((await backend.unlisted.uploads("")) ?? [])).toEqual([]);
  });

  // The last one: a gateway that was restarted takes half a minute for its first new bucket.
  test("an outage is ridden out within the retries, and a longer one is unreachable", async () => {
    const { bucket } = await newBucket();
    const backend = openTestS3(account, { bucket, retries: 30 }, { baseDelayMs: 200 });
    await backend.put("a", generated(1, 9 * MIB, MIB));
    await rgw.killGateway();
    const down = openTestS3(account, { bucket, retries: 1 });
    await expect(down.put("b", text("x"))).rejects.toMatchObject({
      code: "storage-unreachable",
      message: expect.stringContaining("nothing accepts connections"),
    });
    const storing = backend.put("b", text("x"), { ifAbsent: true });
    const reading = collect((await Promise.all([backend.get("a"), rgw.startGateway()]))[0] ?? []);
    expect(await storing).toBeOneOf(["stored", "exists"]);
    expect(Buffer.concat(await reading)).toHaveLength(9 * MIB);
  }, 60_000);
});
