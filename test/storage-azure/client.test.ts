import { expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { writeFile } from "node:fs/promises";
import type { AzureBackendOptions } from "../../src/storage/azure/backend.ts";
import { openCredentials } from "../../src/storage/azure/credentials.ts";
import { sharedKeyAuthorization } from "../../src/storage/azure/shared-key.ts";
import type { Backend } from "../../src/storage/backend.ts";
import { BakeliteError, describeError } from "../../src/util/errors.ts";
import { bytesOf, generated, keysOf, text, textOf } from "../backends/conformance.ts";
import { type StubAnswer, type StubRequest, startStub } from "../storage-s3/stub.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";
import { created, KEY, openTestAzure, page, refuse } from "./open-test-azure.ts";

const MIB = 2 ** 20;
const SIGNATURE = "c2VjcmV0LXNpZ25hdHVyZQ%3D%3D";
const SAS = `sv=2024-11-04&ss=b&srt=co&sp=rwdl&se=2099-01-01T00%3A00%3A00Z&sig=${SIGNATURE}`;

for (const [name, answer] of [
  ["500", () => refuse(500, "InternalError")],
  ["503 ServerBusy", () => refuse(503, "ServerBusy")],
  ["429", () => refuse(429, "TooManyRequests")],
  ["409 ContainerBeingDeleted", () => refuse(409, "ContainerBeingDeleted")],
  ["a damaged body, which the server noticed", () => refuse(400, "Md5Mismatch")],
] as const satisfies readonly (readonly [string, () => StubAnswer])[]) {
  test(`tries again after ${name}`, async () => {
    await using stub = startStub((_, earlier) => (earlier < 3 ? answer() : created()));
    expect(await openTestAzure(stub.endpoint).put("a", text("x"), { ifAbsent: true })).toBe("stored");
    expect(stub.requests).toHaveLength(4);
  });
}

test("a put carries its MD5, its kind, the version and the condition, and the server's no means taken", async () => {
  await using stub = startStub((request) =>
    request.headers.get("if-none-match") === "*" ? refuse(409, "BlobAlreadyExists") : created(),
  );
  const backend = openTestAzure(stub.endpoint, { prefix: "some/place" });
  expect(await backend.put("app/a", text("x"))).toBe("stored");
  expect(await backend.put("app/a", text("x"), { ifAbsent: true })).toBe("exists");
  const [first, second] = stub.requests;
  expect(first?.path).toBe("/con/some/place/app/a");
  expect(first?.headers.get("x-ms-blob-type")).toBe("BlockBlob");
  expect(first?.headers.get("x-ms-version")).toBe("2024-11-04");
  expect(first?.headers.get("content-md5")).toBe(createHash("md5").update("x").digest("base64"));
  expect(first?.headers.get("if-none-match")).toBeNull();
  expect(second?.headers.get("if-none-match")).toBe("*");
  for (const [status, code] of [
    [409, "BlobImmutableDueToPolicy"],
    [409, "BlobImmutableDueToLegalHold"],
    [403, "UnauthorizedBlobOverwrite"],
  ] as const) {
    // Only what exists is protected.
    await using protecting = startStub(() => refuse(status, code));
    const strict = openTestAzure(protecting.endpoint);
    expect(await strict.put("a", text("x"), { ifAbsent: true })).toBe("exists");
    await expect(strict.put("a", text("x"))).rejects.toMatchObject({ code: "storage-denied" });
  }
  await using racing = startStub(() => refuse(412, "ConditionNotMet"));
  expect(await openTestAzure(racing.endpoint).put("a", text("x"), { ifAbsent: true })).toBe("exists");
  // Without a condition of ours, and for another reason, it is no answer.
  await expect(openTestAzure(racing.endpoint).put("a", text("x"))).rejects.toMatchObject({ code: "storage-denied" });
  await using leased = startStub(() => refuse(412, "LeaseIdMissing"));
  await expect(openTestAzure(leased.endpoint).put("a", text("x"), { ifAbsent: true })).rejects.toMatchObject({
    message: expect.stringContaining("lease"),
  });
});

test("blocks become the blob in the order of the bytes, under names of one length that no other upload has", async () => {
  const blocks = new Map<string, string>();
  let committed: { list: readonly string[]; headers: Headers } | null = null;
  await using stub = startStub(async ({ method, query, headers, body }) => {
    if (method === "HEAD") return refuse(404, "BlobNotFound");
    if (query.get("comp") === "block") {
      expect(headers.get("content-md5")).toBe(createHash("md5").update(body).digest("base64"));
      blocks.set(query.get("blockid") ?? "", createHash("sha256").update(body).digest("hex"));
      return created();
    }
    const list = [...new TextDecoder().decode(body).matchAll(/<Latest>([^<]+)<\/Latest>/g)].map(([, id = ""]) => id);
    committed = { list, headers };
    return created();
  });
  const backend = openTestAzure(stub.endpoint, { storageClass: "Cool", changeSetStorageClass: "Hot" });
  const body = generated(5, 20 * MIB, MIB);
  expect(await backend.put("full", body, { ifAbsent: true, longLived: true })).toBe("stored");
  const whole = Buffer.concat(await Array.fromAsync(generated(5, 20 * MIB, MIB).open()));
  const expected = [0, 8, 16].map((at) =>
    createHash("sha256")
      .update(whole.subarray(at * MIB, (at + 8) * MIB))
      .digest("hex"),
  );
  const found = committed as { list: readonly string[]; headers: Headers } | null;
  expect(found?.list.map((id) => blocks.get(id))).toEqual(expected);
  expect(new Set(found?.list.map((id) => id.length)).size).toBe(1);
  expect(found?.headers.get("x-ms-access-tier")).toBe("Cool");
  expect(found?.headers.get("if-none-match")).toBe("*");
  await backend.put("full", generated(5, 20 * MIB, MIB));
  expect(blocks.size).toBe(6);
  await backend.put("small", text("x"));
  expect(stub.requests.at(-1)?.headers.get("x-ms-access-tier")).toBe("Hot");
});

test("blocks that another writer's blob swept away: taken if it is there, else worth another try", async () => {
  for (const isThere of [true, false]) {
    let looks = 0;
    await using stub = startStub(({ method, query }) => {
      if (method === "HEAD")
        return isThere && looks++ > 0
          ? new Response(null, { headers: { "content-length": "1" } })
          : refuse(404, "BlobNotFound");
      return query.get("comp") === "blocklist" ? refuse(400, "InvalidBlockList") : created();
    });
    const putting = openTestAzure(stub.endpoint).put("a", generated(1, 9 * MIB, MIB), { ifAbsent: true });
    if (isThere) expect(await putting).toBe("exists");
    else await expect(putting).rejects.toMatchObject({ code: "storage-unreachable" });
  }
});

test("bytes that changed on the way are asked for again", async () => {
  const md5 = createHash("md5").update("hello").digest("base64");
  await using stub = startStub(({ headers }, earlier) => {
    expect(headers.get("x-ms-range")).toBe("bytes=0-4194303");
    expect(headers.get("x-ms-range-get-content-md5")).toBe("true");
    const answer = { "content-range": "bytes 0-4/5", "content-md5": md5, etag: '"1"' };
    return new Response(earlier < 2 ? "hellp" : "hello", { status: 206, headers: answer });
  });
  expect(await textOf(openTestAzure(stub.endpoint), "a")).toBe("hello");
  expect(stub.requests).toHaveLength(3);
});

test("a blob that is replaced while it is read is not mixed with the new one", async () => {
  await using stub = startStub(({ headers }) => {
    const first = headers.get("x-ms-range") === "bytes=0-4194303";
    if (!first) expect(headers.get("if-match")).toBe('"1"');
    if (!first) return refuse(412, "ConditionNotMet");
    return new Response(new Uint8Array(4 * MIB), {
      status: 206,
      headers: { "content-range": `bytes 0-${4 * MIB - 1}/${5 * MIB}`, etag: '"1"' },
    });
  });
  await expect(bytesOf(openTestAzure(stub.endpoint), "a")).rejects.toMatchObject({ code: "replica-missing" });
});

test("a container that is not there, or something else than Azure, is never an empty place", async () => {
  const looks = [
    (backend: Backend) => backend.stat("a"),
    (backend: Backend) => bytesOf(backend, "a"),
    (backend: Backend) => keysOf(backend, ""),
  ];
  await using missing = startStub(() => refuse(404, "ContainerNotFound"));
  for (const look of looks)
    await expect(look(openTestAzure(missing.endpoint))).rejects.toMatchObject({
      hint: expect.stringContaining("create the container"),
    });
  await using other = startStub(() => new Response("<html>not here</html>", { status: 404 }));
  for (const look of looks)
    await expect(look(openTestAzure(other.endpoint))).rejects.toMatchObject({ code: "storage-denied" });
});

test("a listing is whole or an error", async () => {
  const list = async (answers: readonly string[]) => {
    await using stub = startStub((_, earlier) => new Response(answers[Math.min(earlier, answers.length - 1)] ?? ""));
    return await keysOf(openTestAzure(stub.endpoint, { retries: 0 }), "");
  };
  expect(await list([page(["a", "b"], "next"), page([], "more"), page(["c"])])).toEqual(["a", "b", "c"]);
  const whole = page(["a", "b"]);
  for (let length = 0; length < whole.length; length += 7)
    await expect(list([whole.slice(0, length)])).rejects.toMatchObject({ code: "storage-unreachable" });
  for (const bad of [
    [whole.replace("<NextMarker></NextMarker>", "")],
    [page(["b", "a"])],
    [page(["a"], "same"), page(["b"], "same")],
    [page(["b"], "next"), page(["a"])],
    [whole.replaceAll("EnumerationResults", "ListBucketResult")],
    [whole.replace("<Content-Length>3", "<Content-Length>x")],
    [whole.replace("<Name>b</Name>", "")],
  ])
    await expect(list(bad)).rejects.toMatchObject({ code: "storage-unreachable" });
});

test("the name of what others put beside our objects, and directories, are left out", async () => {
  const odd = page(["a", "b/", "c", "dir"]).replace(/(<Name>dir.*?<ResourceType>)file/, "$1directory");
  await using stub = startStub(() => new Response(odd));
  expect(await keysOf(openTestAzure(stub.endpoint), "")).toEqual(["a", "c"]);
});

test("a blob under an immutability policy says until when, and the others are deleted", async () => {
  await using stub = startStub(({ method, path }) => {
    if (method === "HEAD")
      return new Response(null, {
        headers: { "x-ms-immutability-policy-until-date": "Sat, 02 Jan 2027 00:00:00 GMT" },
      });
    return path.endsWith("/b") ? refuse(409, "BlobImmutableDueToPolicy") : new Response("", { status: 202 });
  });
  const backend = openTestAzure(stub.endpoint);
  await expect(backend.delete(["a", "b", "c"])).rejects.toMatchObject({
    code: "storage-denied",
    message: "cannot delete the object: an immutability policy protects it until 2027-01-02T00:00:00.000Z",
    subject: "azure://acc/con/b",
  });
  expect(stub.requests.filter(({ method }) => method === "DELETE").map(({ path }) => path)).toEqual([
    "/con/a",
    "/con/b",
    "/con/c",
  ]);
  await using held = startStub(({ method }) =>
    method === "HEAD"
      ? new Response(null, { headers: { "x-ms-legal-hold": "true" } })
      : refuse(409, "BlobImmutableDueToLegalHold"),
  );
  await expect(openTestAzure(held.endpoint).delete(["a"])).rejects.toMatchObject({
    message: expect.stringContaining("legal hold"),
  });
});

test("deletions that are denied are told once and asked for once", async () => {
  const notices: string[] = [];
  await using stub = startStub(() => refuse(403, "AuthorizationPermissionMismatch"));
  const backend = openTestAzure(stub.endpoint, { onNotice: ({ message }) => notices.push(message) });
  for (let round = 0; round < 3; round++)
    await expect(backend.delete(["a"])).rejects.toMatchObject({ code: "storage-denied" });
  expect(notices).toHaveLength(1);
  expect(stub.requests).toHaveLength(1);
});

test("no request names a version or a snapshot", async () => {
  await using stub = startStub(({ method }) => (method === "GET" ? new Response(page([])) : created()));
  const backend = openTestAzure(stub.endpoint);
  await backend.put("a", text("x"));
  await backend.delete(["a"]);
  await backend.unlisted?.noncurrentVersions("");
  await backend.stat("a").catch(() => {});
  for (const { query, headers } of stub.requests) {
    expect([...query.keys()].map((name) => name.toLowerCase())).not.toContain("versionid");
    expect([...query.keys()]).not.toContain("snapshot");
    expect(headers.get("x-ms-delete-snapshots")).toBeNull();
  }
});

test("a clock that is wrong is put right by the server's, once", async () => {
  const serverMs = Date.now() + 3600_000;
  await using stub = startStub(({ headers }) => {
    const isLate = Math.abs(Date.parse(headers.get("x-ms-date") ?? "") - serverMs) > 900_000;
    return isLate ? refuse(403, "AuthenticationFailed", { date: new Date(serverMs).toUTCString() }) : created();
  });
  const backend = openTestAzure(stub.endpoint);
  expect(await backend.put("a", text("x"))).toBe("stored");
  expect(await backend.put("b", text("x"))).toBe("stored");
  expect(stub.requests).toHaveLength(3);
});

test("a key file that was replaced is read again when the old key is refused", async () => {
  await using directory = await temporaryDirectory("azure-key");
  const path = directory.file("key");
  const NEW_KEY = Buffer.from("another key of the very same account").toString("base64");
  let valid = KEY;
  const isSignedBy = (key: string, { method, path: sent, query, headers, body }: StubRequest) => {
    const url = new URL(`http://x${sent}?${query}`);
    const signable = { method, url, headers, contentBytes: body.byteLength };
    const expected = sharedKeyAuthorization(signable, { account: "acc", key: Buffer.from(key, "base64") });
    return headers.get("authorization") === expected;
  };
  await using stub = startStub((request) =>
    isSignedBy(valid, request) ? created() : refuse(403, "AuthenticationFailed"),
  );
  let nowMs = Date.now();
  const clock = { nowMs: () => nowMs, monotonicMs: () => nowMs };
  const authentication = { method: "account-key-file", accountKeyFile: path } as const;
  const credentials = openCredentials({ account: "acc", authentication, env: {}, clock });
  const backend = openTestAzure(stub.endpoint, {}, { credentials });
  await writeFile(path, `${KEY}\n`);
  await backend.put("a", text("x"));
  valid = NEW_KEY;
  nowMs += 60_000;
  // The file still holds the old one: that is not tried twice.
  await expect(backend.put("a", text("x"))).rejects.toMatchObject({ code: "storage-denied" });
  expect(stub.requests).toHaveLength(2);
  await writeFile(path, NEW_KEY);
  nowMs += 60_000;
  expect(await backend.put("a", text("x"))).toBe("stored");
  expect(stub.requests).toHaveLength(4);
});

for (const [name, authentication, secret] of [
  ["a key", { method: "account-key", accountKey: KEY }, KEY],
  ["a signature", { method: "sas", sasToken: `?${SAS}` }, SIGNATURE],
] as const satisfies readonly (readonly [string, AzureBackendOptions["authentication"], string])[]) {
  test(`${name} is in no error, whatever goes wrong`, async () => {
    const answers: readonly (() => StubAnswer)[] = [
      () => refuse(403, "AuthenticationFailed"),
      () => refuse(403, "AuthorizationFailure"),
      () => refuse(500, "InternalError"),
      () => new Response("", { status: 302, headers: { location: "http://127.0.0.1:1/?sig=x" } }),
      () => new Response("<html>", { status: 200 }),
      () => "hang",
    ];
    const errors: unknown[] = [];
    const seen: StubRequest[] = [];
    for (const answer of answers) {
      await using stub = startStub((request) => {
        seen.push(request);
        return answer();
      });
      const backend = openTestAzure(stub.endpoint, { authentication, retries: 0, timeoutMs: 200 });
      errors.push(await keysOf(backend, "").catch((error: unknown) => error));
      errors.push(await backend.put("a", text("x")).catch((error: unknown) => error));
    }
    // A TLS client that meets no TLS, and nobody at all.
    await using plain = startStub(() => created());
    for (const endpoint of [plain.endpoint.replace("http:", "https:"), "http://127.0.0.1:1"])
      errors.push(await keysOf(openTestAzure(endpoint, { authentication, retries: 0 }), "").catch((e: unknown) => e));
    // What Bun says of some certificates repeats the whole address.
    const fetch = async (url: string) => {
      throw Object.assign(new Error(`ERR_TLS_CERT_ALTNAME_INVALID fetching "${url}".`), {
        code: "ERR_TLS_CERT_ALTNAME_INVALID",
      });
    };
    const mistaken = openTestAzure("https://127.0.0.1:1", { authentication, retries: 0 }, { fetch });
    errors.push(await mistaken.put("a", text("x")).catch((error: unknown) => error));
    if (name === "a signature") expect(seen[0]?.query.get("sig")).toBe(decodeURIComponent(SIGNATURE));
    for (const error of errors) {
      if (!(error instanceof BakeliteError)) continue;
      const told = `${describeError(error)} ${error.hint} ${error.subject} ${Bun.inspect(error)}`;
      expect(told).not.toContain(secret);
      expect(told).not.toContain(decodeURIComponent(secret));
      expect(told).not.toContain("a secret detail");
    }
    expect(errors.filter((error) => error instanceof BakeliteError).length).toBeGreaterThanOrEqual(12);
  });
}

test("what is wrong with credentials is said before anything is sent", async () => {
  await using directory = await temporaryDirectory("azure-key");
  const open = (authentication: AzureBackendOptions["authentication"], env: Record<string, string> = {}) =>
    openTestAzure("http://127.0.0.1:1", { authentication, env, retries: 0 }).stat("a");
  const environment = { method: "environment", managedIdentityClientId: undefined } as const;
  for (const [authentication, env] of [
    [{ method: "account-key", accountKey: "not base64!" }, {}],
    [{ method: "sas", sasToken: "sp=rw" }, {}],
    [{ method: "account-key-file", accountKeyFile: directory.file("nothing") }, {}],
    [environment, { AZURE_STORAGE_KEY: "%%%" }],
    [environment, { AZURE_STORAGE_CONNECTION_STRING: `AccountName=other;AccountKey=${KEY}` }],
    [environment, { AZURE_STORAGE_CONNECTION_STRING: "AccountName=acc" }],
  ] as const)
    await expect(open(authentication, env)).rejects.toMatchObject({ code: "storage-denied", hint: expect.any(String) });
});

test("the environment's connection string, key and signature are used, in that order", async () => {
  const used: string[] = [];
  await using stub = startStub(({ headers, query }) => {
    used.push(query.has("sig") ? "sas" : (headers.get("authorization") ?? "").split(" ", 1).join(""));
    return created();
  });
  const environment = { method: "environment", managedIdentityClientId: undefined } as const;
  const put = (env: Record<string, string>) =>
    openTestAzure(stub.endpoint, { authentication: environment, env }).put("a", text("x"));
  const connection = `DefaultEndpointsProtocol=https;AccountName=acc;AccountKey=${KEY};EndpointSuffix=core.windows.net`;
  await put({ AZURE_STORAGE_CONNECTION_STRING: connection, AZURE_STORAGE_SAS_TOKEN: SAS });
  await put({ AZURE_STORAGE_KEY: KEY, AZURE_STORAGE_SAS_TOKEN: SAS });
  await put({ AZURE_STORAGE_SAS_TOKEN: SAS });
  await put({ AZURE_STORAGE_CONNECTION_STRING: `AccountName=acc;SharedAccessSignature=${SAS}` });
  expect(used).toEqual(["SharedKey", "SharedKey", "sas", "sas"]);
});

test("what lies in the archive says that it has to be rehydrated", async () => {
  await using stub = startStub(() => refuse(409, "BlobArchived"));
  await expect(bytesOf(openTestAzure(stub.endpoint), "a")).rejects.toMatchObject({
    code: "storage-denied",
    hint: expect.stringContaining("set-tier"),
  });
});

test("doctor is told of immutability, public access, soft delete, old versions and a wrong clock", async () => {
  await using stub = startStub(({ method, query }) => {
    if (method === "HEAD")
      return new Response(null, {
        headers: {
          "x-ms-has-immutability-policy": "true",
          "x-ms-has-legal-hold": "false",
          "x-ms-blob-public-access": "container",
          date: new Date(Date.now() + 3600_000).toUTCString(),
        },
      });
    if (query.get("restype") === "service")
      return new Response(
        "<StorageServiceProperties><DeleteRetentionPolicy><Enabled>true</Enabled><Days>7</Days></DeleteRetentionPolicy></StorageServiceProperties>",
      );
    if (query.get("restype") === "account") return new Response("", { headers: { "x-ms-is-hns-enabled": "true" } });
    const old = page(["a", "b"]).replace("</Blob>", "<VersionId>1</VersionId></Blob>");
    return new Response(old);
  });
  const found = (await openTestAzure(stub.endpoint).diagnose?.()) ?? [];
  const levels = Object.fromEntries(found.map(({ check, level }) => [check, level]));
  expect(levels).toMatchObject({
    clock: "fail",
    "public access": "warn",
    namespace: "warn",
    "conditional writes": "pass",
    immutability: "warn",
    "soft delete": "warn",
    versioning: "warn",
  });
  for (const { level, hint } of found) if (level !== "pass") expect(hint).toBeString();
  await using silent = startStub(() => refuse(403, "AuthorizationPermissionMismatch"));
  const unknown = (await openTestAzure(silent.endpoint).diagnose?.()) ?? [];
  expect(unknown.every(({ level }) => level === "pass")).toBe(true);
});
