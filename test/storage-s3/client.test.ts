import { expect, test } from "bun:test";
import { createServer, type Socket } from "node:net";
import { bytesSource } from "../../src/storage/backend.ts";
import { decodeListedKey, encodeKey, objectUrl } from "../../src/storage/s3/address.ts";
import { newPlace } from "../../src/storage/s3/place.ts";
import { describeError } from "../../src/util/errors.ts";
import { bytesOf, keysOf, text, textOf } from "../backends/conformance.ts";
import { fc } from "../support/properties.ts";
import { openTestS3 } from "./open-test-s3.ts";
import { ACCOUNT, listing, refuse, type StubAnswer, startStub, xml } from "./stub.ts";

const ok = () => new Response("", { headers: { etag: '"e"' } });

test("a key of any characters survives the way into a URL and back", () => {
  fc.assert(
    fc.property(fc.string({ unit: "binary", minLength: 1 }), (key) => {
      const encoded = encodeKey(key);
      expect(encoded).toMatch(/^[A-Za-z0-9\-_.~%/]*$/);
      expect(decodeListedKey(encoded)).toBe(key);
    }),
  );
  expect(decodeListedKey("a+b%2Bc")).toBe("a b+c");
  expect(() => decodeListedKey("%E4")).toThrow("URL-encoded");
});

test("the bucket stands in the path or in the host name", () => {
  const at = (bucket: string, endpoint: string | undefined, pathStyle: boolean, region = "eu-central-1") => [
    objectUrl({ bucket, endpoint, pathStyle }, region, "a b/c'd"),
    objectUrl({ bucket, endpoint, pathStyle }, region),
  ];
  expect(at("bu", "https://s3.example.com:9000", true)).toEqual([
    "https://s3.example.com:9000/bu/a%20b/c%27d",
    "https://s3.example.com:9000/bu",
  ]);
  expect(at("bu", "https://s3.example.com", false)).toEqual([
    "https://bu.s3.example.com/a%20b/c%27d",
    "https://bu.s3.example.com/",
  ]);
  expect(at("bu", "http://h/base", true)).toEqual(["http://h/base/bu/a%20b/c%27d", "http://h/base/bu"]);
  expect(at("bu", undefined, false)[0]).toBe("https://bu.s3.eu-central-1.amazonaws.com/a%20b/c%27d");
  expect(at("bu", undefined, false, "cn-north-1")[0]).toBe("https://bu.s3.cn-north-1.amazonaws.com.cn/a%20b/c%27d");
  // No wildcard certificate covers a name of two parts.
  expect(at("my.bu", undefined, false)[0]).toBe("https://s3.eu-central-1.amazonaws.com/my.bu/a%20b/c%27d");
});

test("signs as AWS's own example does", async () => {
  // https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html, "GET Bucket (List Objects)"
  const requests: { url: string; headers: Headers }[] = [];
  const nowMs = Date.parse("2013-05-24T00:00:00Z");
  const backend = openTestS3(
    {
      endpoint: "https://s3.amazonaws.com",
      region: "us-east-1",
      accessKeyId: "AKIAIOSFODNN7EXAMPLE",
      secretAccessKey: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    },
    { bucket: "examplebucket", pathStyle: false },
    {
      clock: { nowMs: () => nowMs, monotonicMs: () => 0 },
      fetch: async (url, init) => {
        requests.push({ url, headers: new Headers(init.headers) });
        return new Response("");
      },
    },
  );
  await backend.get("test.txt", { range: { start: 0, end: 10 } }).catch(() => {});
  expect(requests[0]?.url).toBe("https://examplebucket.s3.amazonaws.com/test.txt");
  const authorization = requests[0]?.headers.get("authorization") ?? "";
  // The example with a range signs that header too, which is not needed; computed anew with openssl without it.
  expect(authorization).toStartWith(
    "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature=",
  );
  expect(authorization.split("Signature=")[1]).toBe(
    signatureByHand("GET", "/test.txt", "examplebucket.s3.amazonaws.com", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
  );
});

for (const [name, answer] of [
  ["500", () => refuse(500, "InternalError")],
  ["503 SlowDown", () => refuse(503, "SlowDown")],
  ["429", () => refuse(429, "TooManyRequests")],
  ["400 RequestTimeout", () => refuse(400, "RequestTimeout")],
  ["409 ConditionalRequestConflict", () => refuse(409, "ConditionalRequestConflict")],
  ["a damaged body, which the server noticed", () => refuse(400, "BadDigest")],
] as const satisfies readonly (readonly [string, () => StubAnswer])[]) {
  test(`tries again after ${name}`, async () => {
    await using stub = startStub((_, earlier) => (earlier < 3 ? answer() : ok()));
    expect(await stub.open().put("a", text("x"))).toBe("stored");
    expect(stub.requests).toHaveLength(4);
  });
}

test("gives up after the configured number of tries, with the last failure", async () => {
  await using stub = startStub(() => refuse(503, "SlowDown"));
  const failing = stub.open({ retries: 2 }).put("a", text("x"));
  await expect(failing).rejects.toMatchObject({ code: "storage-unreachable", subject: "s3://b/a" });
  expect(stub.requests).toHaveLength(3);
});

test("waits as long as the server asks, within reason", async () => {
  await using stub = startStub((_, earlier) =>
    earlier === 0 ? refuse(503, "SlowDown", { "retry-after": "1" }) : ok(),
  );
  const startMs = performance.now();
  await stub.open().put("a", text("x"));
  expect(performance.now() - startMs).toBeGreaterThanOrEqual(990);
});

test("a wait between tries ends with an abort", async () => {
  await using stub = startStub(() => refuse(503, "SlowDown", { "retry-after": "19" }));
  const abort = new AbortController();
  const put = stub.open().put("a", text("x"), { signal: abort.signal });
  setTimeout(() => abort.abort(), 50);
  await expect(put).rejects.toMatchObject({ code: "interrupted" });
});

test("a server that says nothing has failed after `timeout`, and is asked again", async () => {
  await using stub = startStub((_, earlier) => (earlier === 0 ? "hang" : ok()));
  expect(await stub.open({ timeoutMs: 300 }).put("a", text("x"))).toBe("stored");
  await using silent = startStub(() => "hang");
  const failing = silent.open({ timeoutMs: 100, retries: 1 }).stat("a");
  await expect(failing).rejects.toMatchObject({
    code: "storage-unreachable",
    message: expect.stringContaining("`timeout`"),
  });
});

test("tries again after a connection that was reset, with or without an answer begun", async () => {
  let count = 0;
  await using server = await startRaw((socket) => {
    socket.once("data", () => {
      count++;
      if (count === 1) socket.destroy();
      else if (count === 2) socket.end("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf");
      else socket.end('HTTP/1.1 200 OK\r\nContent-Length: 0\r\nETag: "e"\r\n\r\n');
    });
  });
  const backend = openTestS3({ ...ACCOUNT, endpoint: server.endpoint }, { bucket: "b" });
  expect(await backend.put("a", text("x"))).toBe("stored");
  expect(count).toBe(3);
});

test("a body that stops in the middle has failed after `timeout`, however much of it came", async () => {
  let count = 0;
  await using server = await startRaw((socket) => {
    socket.once("data", () => {
      count++;
      const head =
        'HTTP/1.1 206 Partial Content\r\nContent-Length: 10\r\nContent-Range: bytes 0-9/10\r\nETag: "e"\r\n\r\n';
      socket.write(count === 1 ? `${head}01234` : `${head}0123456789`);
    });
  });
  const backend = openTestS3({ ...ACCOUNT, endpoint: server.endpoint }, { bucket: "b", timeoutMs: 300 });
  expect(await textOf(backend, "a")).toBe("0123456789");
  expect(count).toBe(2);
});

test("a slow upload that goes on is no timeout", async () => {
  const size = 16 * 1024 * 1024;
  // Some MiB are taken at once, by the system.
  await using server = await startRaw((socket) => {
    let received = 0;
    socket.on("data", (data) => {
      received += Buffer.byteLength(data);
      socket.pause();
      setTimeout(() => socket.resume(), 15);
      if (received >= size) socket.end('HTTP/1.1 200 OK\r\nContent-Length: 0\r\nETag: "e"\r\n\r\n');
    });
  });
  const timeoutMs = 300;
  const backend = openTestS3({ ...ACCOUNT, endpoint: server.endpoint }, { bucket: "b", timeoutMs, retries: 0 });
  const startMs = performance.now();
  expect(await backend.put("a", bytesSource(new Uint8Array(size)))).toBe("stored");
  expect(performance.now() - startMs).toBeGreaterThan(timeoutMs);
});

test("a clock that is wrong is put right by the server's, once, and stays so", async () => {
  const serverMs = Date.now() - 3 * 3600_000;
  await using stub = startStub(({ headers }) => {
    const signed = headers.get("x-amz-date") ?? "";
    const date = { date: new Date(serverMs).toUTCString() };
    const iso = new Date(serverMs).toISOString().replace(/[:-]|\.\d{3}/g, "");
    return signed.slice(0, 11) === iso.slice(0, 11)
      ? new Response("", { headers: date })
      : refuse(403, "RequestTimeTooSkewed", date);
  });
  const backend = stub.open();
  await backend.put("a", text("x"));
  await backend.put("b", text("x"));
  expect(stub.requests).toHaveLength(3);
});

test("a clock that the server's answer does not mend is an error that says so", async () => {
  const date = { date: new Date(Date.now() - 3600_000).toUTCString() };
  await using stub = startStub(() => refuse(403, "RequestTimeTooSkewed", date));
  await expect(stub.open().put("a", text("x"))).rejects.toMatchObject({
    code: "storage-denied",
    hint: expect.stringContaining("clock"),
  });
  expect(stub.requests).toHaveLength(2);
});

for (const [name, answer] of [
  ["a redirect", () => refuse(301, "PermanentRedirect", { "x-amz-bucket-region": "eu-west-3" })],
  [
    "a malformed signature",
    () => xml("<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-3</Region></Error>", { status: 400 }),
  ],
  [
    "a refusal without a body",
    () => new Response("", { status: 400, headers: { "x-amz-bucket-region": "eu-west-3" } }),
  ],
] as const) {
  test(`learns the region from ${name}`, async () => {
    await using stub = startStub(({ headers }) =>
      headers.get("authorization")?.includes("/eu-west-3/s3/") ? ok() : answer(),
    );
    const backend = stub.open();
    await backend.put("a", text("x"));
    await backend.put("b", text("x"));
    expect(stub.requests).toHaveLength(3);
  });
}

test("temporary credentials that have expired are fetched anew, once", async () => {
  let current = "OLD";
  const keys = () => ({
    accessKeyId: current,
    secretAccessKey: "s",
    sessionToken: `token-${current}`,
    expiresMs: null,
  });
  let refreshCount = 0;
  const credentials = {
    source: "a test",
    get: async () => keys(),
    refresh: async () => {
      refreshCount++;
      current = "NEW";
      return keys();
    },
  };
  await using stub = startStub(({ headers }) =>
    headers.get("x-amz-security-token") === "token-NEW" ? ok() : refuse(400, "ExpiredToken"),
  );
  await stub.open({}, { credentials }).put("a", text("x"));
  expect(refreshCount).toBe(1);
  await using never = startStub(() => refuse(400, "ExpiredToken"));
  await expect(never.open({}, { credentials }).put("a", text("x"))).rejects.toMatchObject({ code: "storage-denied" });
  expect(never.requests).toHaveLength(2);
});

test("every failure has a code, a subject and a next step, and never a credential", async () => {
  const cases = [
    [403, "AccessDenied", "storage-denied", "s3:PutObject"],
    [403, "SignatureDoesNotMatch", "storage-denied", "credentials"],
    [403, "InvalidAccessKeyId", "storage-denied", "credentials"],
    [404, "NoSuchBucket", "storage-denied", "create the bucket"],
    [403, "QuotaExceeded", "storage-full", "quota"],
    [507, "", "storage-full", "quota"],
    [400, "InvalidStorageClass", "storage-denied", "storage_class"],
    [400, "KMS.NotFoundException", "storage-denied", "sse_kms_key_id"],
    [403, "UserSuspended", "storage-denied", "provider"],
    [418, "", "storage-unreachable", "endpoint"],
    [500, "InternalError", "storage-unreachable", "later"],
    [302, "", "storage-unreachable", "endpoint"],
  ] as const;
  for (const [status, code, expected, hint] of cases) {
    await using stub = startStub(({ headers }) => {
      const leak = `${headers.get("authorization")} ${ACCOUNT.accessKeyId}`;
      return xml(
        `<Error><Code>${code}</Code><Message>\u0007m</Message><StringToSign>${leak}</StringToSign><RequestId>REQ7</RequestId></Error>`,
        { status },
      );
    });
    const error = await stub
      .open({ retries: 0 })
      .put("a", text("x"))
      .catch((thrown: unknown) => thrown);
    expect(error).toMatchObject({ code: expected, subject: "s3://b/a", hint: expect.stringContaining(hint) });
    const told = describeError(error);
    expect(told).toContain("REQ7");
    expect(told).not.toContain(ACCOUNT.accessKeyId);
    expect(told).not.toContain(ACCOUNT.secretAccessKey);
    expect(told).not.toContain("\u0007");
    expect(told).not.toMatch(/Signature=|AWS4-HMAC/);
  }
});

test("nobody listening, no such name and a foreign certificate each have a sentence", async () => {
  const at = (endpoint: string) => openTestS3({ ...ACCOUNT, endpoint }, { bucket: "b", retries: 0, timeoutMs: 5000 });
  await expect(at("http://127.0.0.1:1").stat("a")).rejects.toMatchObject({
    code: "storage-unreachable",
    message: expect.stringContaining("nothing accepts connections at http://127.0.0.1:1"),
  });
  await expect(at("http://no-such-host.invalid").stat("a")).rejects.toMatchObject({
    code: "storage-unreachable",
    message: expect.stringContaining("cannot be resolved"),
  });
});

test("a missing bucket never looks like an empty one", async () => {
  await using stub = startStub(({ method }) =>
    method === "HEAD" ? new Response(null, { status: 404 }) : refuse(404, "NoSuchBucket"),
  );
  const backend = stub.open({ retries: 0 });
  const missing = { code: "storage-denied", hint: expect.stringContaining("create the bucket") };
  await expect(backend.stat("a")).rejects.toMatchObject(missing);
  await expect(backend.get("a")).rejects.toMatchObject(missing);
  await expect(keysOf(backend, "")).rejects.toMatchObject(missing);
  await expect(backend.put("a", text("x"), { ifAbsent: true })).rejects.toMatchObject(missing);
  await expect(backend.delete(["a", "b"])).rejects.toMatchObject(missing);
});

test("no request names a version, whatever is asked", async () => {
  await using stub = startStub(({ query }) =>
    query.has("delete") ? xml("<DeleteResult/>") : query.has("list-type") ? listing([]) : ok(),
  );
  const backend = stub.open({}, { place: newPlace() });
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.constantFrom("versionId", "a?versionId=x", "b&versionId=y", "v"), { minLength: 1 }),
      async (keys) => {
        await backend.delete(keys);
        await backend.delete(keys.slice(0, 1));
        await keysOf(backend, keys[0] ?? "");
      },
    ),
    { numRuns: 20 },
  );
  for (const { query, body } of stub.requests) {
    expect([...query.keys()].map((name) => name.toLowerCase())).not.toContain("versionid");
    expect(new TextDecoder().decode(body)).not.toContain("<VersionId>");
  }
  const { S3Client } = await import("../../src/storage/s3/client.ts");
  const client = new S3Client({
    address: { bucket: "b", endpoint: stub.endpoint, pathStyle: true },
    place: newPlace(),
    region: async () => "x",
    credentials: { source: "", get: () => Promise.reject(new Error()), refresh: () => Promise.reject(new Error()) },
    timeoutMs: 1000,
    retries: 0,
  });
  const naming = client.send({ method: "DELETE", key: "a", query: { versionId: "1" }, doing: "", permission: "" });
  await expect(naming).rejects.toMatchObject({ code: "internal" });
});

test("a reader gets every byte of the range, or an error", async () => {
  const answers: readonly (readonly [string, () => Response])[] = [
    ["another range", () => new Response("abcd", { status: 206, headers: { "content-range": "bytes 5-8/20" } })],
    ["no range", () => new Response("abcd", { status: 206 })],
    [
      "fewer bytes than it says",
      () => new Response("ab", { status: 206, headers: { "content-range": "bytes 0-3/20" } }),
    ],
  ];
  for (const [, answer] of answers) {
    await using stub = startStub(answer);
    await expect(bytesOf(stub.open({ retries: 0 }), "a", { start: 0, end: 4 })).rejects.toMatchObject({
      code: "storage-unreachable",
    });
  }
  await using whole = startStub(() => new Response("0123456789"));
  expect(new TextDecoder().decode(await bytesOf(whole.open(), "a", { start: 2, end: 4 }))).toBe("23");
  expect(new TextDecoder().decode(await bytesOf(whole.open(), "a", { start: -3 }))).toBe("789");
});

test("an object that is replaced while it is read is not mixed with the new one", async () => {
  const size = 10 * 1024 * 1024;
  await using stub = startStub(({ headers }, earlier) => {
    const [, start = "0", end = "0"] = /bytes=(\d+)-(\d+)/.exec(headers.get("range") ?? "") ?? [];
    if (headers.has("if-match") && headers.get("if-match") !== `"v${earlier > 0 ? 2 : 1}"`)
      return refuse(412, "PreconditionFailed");
    const bytes = new Uint8Array(Math.min(size, Number(end) + 1) - Number(start));
    return new Response(bytes, {
      status: 206,
      headers: { etag: '"v1"', "content-range": `bytes ${start}-${Number(start) + bytes.byteLength - 1}/${size}` },
    });
  });
  await expect(bytesOf(stub.open(), "a")).rejects.toMatchObject({ code: "replica-missing" });
});

/** A server of plain bytes, for what no HTTP server would say. */
async function startRaw(
  onConnection: (socket: Socket) => void,
): Promise<AsyncDisposable & { readonly endpoint: string }> {
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on("error", () => {});
    onConnection(socket);
  });
  const { promise, resolve } = Promise.withResolvers<void>();
  server.listen(0, "127.0.0.1", resolve);
  await promise;
  const address = server.address();
  return {
    endpoint: `http://127.0.0.1:${typeof address === "object" ? address?.port : 0}`,
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy();
      server.close();
    },
  };
}

/** SigV4 for a request without a query or a body, on 2013-05-24 in us-east-1, by node's own HMAC. */
function signatureByHand(method: string, path: string, host: string, secret: string): string {
  const hmac = (key: string | Buffer, data: string) =>
    Buffer.from(new Bun.CryptoHasher("sha256", key).update(data).digest());
  const sha = (data: string) => new Bun.CryptoHasher("sha256").update(data).digest("hex");
  const empty = sha("");
  const canonical = `${method}\n${path}\n\nhost:${host}\nx-amz-content-sha256:${empty}\nx-amz-date:20130524T000000Z\n\nhost;x-amz-content-sha256;x-amz-date\n${empty}`;
  const scope = "20130524/us-east-1/s3/aws4_request";
  const key = ["20130524", "us-east-1", "s3", "aws4_request"].reduce<string | Buffer>(
    (k, part) => hmac(k, part),
    `AWS4${secret}`,
  );
  return hmac(key, `AWS4-HMAC-SHA256\n20130524T000000Z\n${scope}\n${sha(canonical)}`).toString("hex");
}
