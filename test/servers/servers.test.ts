import { expect, test } from "bun:test";
import { S3Requests } from "./s3-account.ts";
import { forEachS3Server, forRgw } from "./s3-servers.ts";

await forEachS3Server((server, kind) => {
  test(`${server.name} stores, lists and gives back by signed requests only`, async () => {
    await using place = await server.newPlace();
    const { bucket, requests } = place;
    const key = `${place.prefix === "" ? "" : `${place.prefix}/`}a b+c/ü%2F`;
    await requests.putObject(bucket, key, "content");
    expect(await requests.listKeys(bucket, place.prefix)).toEqual([key]);
    expect(new TextDecoder().decode(await requests.getObject(bucket, key))).toBe("content");
    const stranger = new S3Requests({ ...server.account, secretAccessKey: "wrong" });
    expect((await stranger.request("GET", `/${bucket}`)).status).toBe(403);
    // Swift says 412 to a request that it does not take for one of S3 at all.
    expect((await fetch(`${server.account.endpoint}/${bucket}?list-type=2`)).status).toBeOneOf([403, 412]);
    await requests.clear(bucket, place.prefix);
    expect(await requests.listKeys(bucket, place.prefix)).toEqual([]);
  });

  // MinIO, which may be the one of your own, lists the uploads of a key only to who names the whole key.
  if (kind.id === "own") return;
  test(`${server.name} keeps an unfinished upload until it is aborted`, async () => {
    await using place = await server.newPlace();
    const { bucket, requests } = place;
    const key = `${place.prefix === "" ? "" : `${place.prefix}/`}large`;
    const uploadId = await requests.beginUpload(bucket, key, [5 * 1024 * 1024]);
    expect(await requests.listUploads(bucket, place.prefix)).toEqual([{ key, uploadId }]);
    expect(await requests.listKeys(bucket, place.prefix)).toEqual([]);
    await requests.abortUpload(bucket, { key, uploadId });
    expect(await requests.listUploads(bucket, place.prefix)).toEqual([]);
  });
});

await forRgw(({ rgw, newPlace }) => {
  test("RGW lets a user in who may read only, or may add and not delete, as a bucket policy says", async () => {
    const { bucket, requests } = await newPlace();
    const reader = new S3Requests(await rgw.addUser({ uid: "reader", operations: "read" }));
    const appender = new S3Requests(await rgw.addUser({ uid: "appender" }));
    await requests.setPolicy(bucket, [
      allow("reader", bucket, ["s3:GetObject", "s3:ListBucket"]),
      allow("appender", bucket, ["s3:GetObject", "s3:ListBucket", "s3:PutObject"]),
    ]);
    await requests.putObject(bucket, "a", "x");
    expect((await reader.request("GET", `/${bucket}/a`)).status).toBe(200);
    expect((await reader.request("PUT", `/${bucket}/b`, { body: "b" })).status).toBe(403);
    expect((await appender.request("PUT", `/${bucket}/b`, { body: "b" })).status).toBe(200);
    expect((await appender.request("DELETE", `/${bucket}/b`)).status).toBe(403);
    expect(await requests.listKeys(bucket)).toEqual(["a", "b"]);
  });

  test("RGW refuses what is over the quota, until the quota goes", async () => {
    const { bucket, requests } = await newPlace();
    await rgw.setQuota(1024 * 1024);
    const body = new Uint8Array(2 * 1024 * 1024);
    const answer = await requests.request("PUT", `/${bucket}/a`, { body });
    expect([answer.status, await answer.text()]).toEqual([403, expect.stringContaining("QuotaExceeded")]);
    await rgw.setQuota(null);
    expect((await requests.request("PUT", `/${bucket}/a`, { body })).status).toBe(200);
  });

  test("RGW keeps versions, and with object lock refuses to delete one", async () => {
    const [versioned, locked] = [`versioned-${crypto.randomUUID()}`, `locked-${crypto.randomUUID()}`];
    const requests = new S3Requests(rgw.account);
    await requests.createBucket(versioned, { versioned: true });
    await requests.putObject(versioned, "a", "one");
    await requests.deleteObject(versioned, "a");
    const kinds = (await requests.listVersions(versioned)).map(({ isDeleteMarker, isLatest }) => ({
      isDeleteMarker,
      isLatest,
    }));
    expect(kinds).toEqual([
      { isDeleteMarker: false, isLatest: false },
      { isDeleteMarker: true, isLatest: true },
    ]);
    await requests.createBucket(locked, { lock: { mode: "COMPLIANCE", days: 1 } });
    await requests.putObject(locked, "a", "one");
    const [version] = await requests.listVersions(locked);
    const query = { versionId: version?.versionId ?? "" };
    expect((await requests.request("DELETE", `/${locked}/a`, { query })).status).toBe(403);
    expect(new TextDecoder().decode(await requests.getObject(locked, "a"))).toBe("one");
  });

  test("RGW speaks TLS, with a certificate that only its CA file vouches for", async () => {
    const requests = new S3Requests({ ...rgw.account, endpoint: rgw.httpsEndpoint });
    await expect(requests.request("GET", "/")).rejects.toMatchObject({ code: "DEPTH_ZERO_SELF_SIGNED_CERT" });
    const ca = await Bun.file(rgw.caFile).text();
    expect((await requests.request("GET", "/", { ca })).status).toBe(200);
    const byName = new S3Requests({ ...rgw.account, endpoint: rgw.virtualHostEndpoint });
    expect((await byName.request("GET", "/")).status).toBe(200);
  });

  test("a gateway that is frozen does not answer, one that was killed refuses, and both come back with everything", async () => {
    const { bucket, requests } = await newPlace();
    await requests.putObject(bucket, "a", "x");
    await rgw.freeze();
    const url = `${rgw.account.endpoint}/`;
    await expect(fetch(url, { signal: AbortSignal.timeout(200) })).rejects.toMatchObject({ name: "TimeoutError" });
    rgw.thaw();
    await rgw.killGateway();
    await expect(fetch(url)).rejects.toThrow("ECONNREFUSED");
    await rgw.startGateway();
    expect(await requests.listKeys(bucket)).toEqual(["a"]);
  });
});

function allow(uid: string, bucket: string, actions: readonly string[]): object {
  return {
    Effect: "Allow",
    Principal: { AWS: [`arn:aws:iam:::user/${uid}`] },
    Action: actions,
    Resource: [`arn:aws:s3:::${bucket}`, `arn:aws:s3:::${bucket}/*`],
  };
}
