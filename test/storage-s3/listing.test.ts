import { expect, test } from "bun:test";
import { MAX_XML_BYTES, parseXml } from "../../src/storage/http/xml.ts";
import { BakeliteError } from "../../src/util/errors.ts";
import { collect, keysOf } from "../backends/conformance.ts";
import { fc } from "../support/properties.ts";
import { listing, refuse, startStub, xml } from "./stub.ts";

const end = "<IsTruncated>false</IsTruncated>";

test("a listing goes on page by page, decodes keys and leaves out what is no key of ours", async () => {
  await using stub = startStub(({ query }) =>
    query.get("continuation-token") === "t1"
      ? listing(["p/app/b%2Bc+d"])
      : listing(["p/app/", "p/app/a", "p/app/a//b"], "t1"),
  );
  expect(await collect(stub.open({ prefix: "p" }).list("app/"))).toEqual([
    { key: "app/a", sizeBytes: 3, modifiedMs: Date.parse("2026-01-02T03:04:05Z") },
    { key: "app/b+c d", sizeBytes: 3, modifiedMs: Date.parse("2026-01-02T03:04:05Z") },
  ]);
  expect(stub.requests.map(({ query }) => query.get("prefix"))).toEqual(["p/app/", "p/app/"]);
});

test("a server that does not know start-after is read from the beginning", async () => {
  await using stub = startStub(({ query }) =>
    query.has("continuation-token") ? listing(["c"]) : listing(["a", "b"], "t"),
  );
  expect(await keysOf(stub.open(), "", { startAfter: "a" })).toEqual(["b", "c"]);
});

for (const [name, pages] of [
  ["truncated without a token", ["<IsTruncated>true</IsTruncated>"]],
  ["that does not say whether it is truncated", [""]],
  ["whose keys do not ascend", [item("b") + item("a") + end]],
  ["whose keys come twice", [item("a") + item("a") + end]],
  ["of another prefix", [item("zzz") + end]],
  ["with folded keys", [`<CommonPrefixes><Prefix>a/</Prefix></CommonPrefixes>${end}`]],
  ["without a size", [`<Contents><Key>a</Key><LastModified>2026-01-01T00:00:00Z</LastModified></Contents>${end}`]],
  ["with a key that is not encoded as it says", [`<EncodingType>url</EncodingType>${item("a%E4")}${end}`]],
  ["whose key is an element", [`<Contents><Key><x>1</x></Key></Contents>${end}`]],
] as const) {
  test(`a listing ${name} is an error, never a short list`, async () => {
    await using stub = startStub(() => xml(`<ListBucketResult>${pages[0]}</ListBucketResult>`));
    await expect(keysOf(stub.open({ retries: 1 }), "a")).rejects.toMatchObject({ code: "storage-unreachable" });
    expect(stub.requests).toHaveLength(2);
  });
}

test("a continuation token that comes twice is an error", async () => {
  let page = 0;
  await using stub = startStub(() => listing([`k${page++}`], page % 2 === 0 ? "t0" : "t1"));
  await expect(keysOf(stub.open(), "")).rejects.toMatchObject({ code: "storage-unreachable" });
});

test("a page that fails is asked for again, and the list stays whole", async () => {
  let failed = false;
  await using stub = startStub(({ query }) => {
    if (!query.has("continuation-token")) return listing(["a"], "t");
    if (failed) return listing(["b"]);
    failed = true;
    return refuse(500, "InternalError");
  });
  expect(await keysOf(stub.open(), "")).toEqual(["a", "b"]);
});

for (const [name, body] of [
  ["cut", "<ListBucketResult><IsTruncated>false</IsTruncated>"],
  ["empty", ""],
  ["of HTML", "<html><body>Please log in<br></body></html>"],
  [
    "with a document type",
    '<!DOCTYPE a [<!ENTITY b "c">]><ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>',
  ],
  ["of another kind", "<Error><Code>InternalError</Code></Error>"],
  ["nested without end", "<a>".repeat(100_000)],
  ["of binary", "\u0000\u0001\u0002"],
  ["with names that are traps", "<ListBucketResult><__proto__><x>1</x></__proto__></ListBucketResult>"],
] as const) {
  test(`an answer ${name} is an error`, async () => {
    await using stub = startStub(() => new Response(body));
    await expect(keysOf(stub.open({ retries: 0 }), "")).rejects.toMatchObject({ code: "storage-unreachable" });
  });
}

test("an answer larger than 16 MiB is refused, announced or not", async () => {
  const mib = new Uint8Array(1024 * 1024).fill(32);
  await using announced = startStub(() => new Response(new Uint8Array(MAX_XML_BYTES + 1)));
  await expect(keysOf(announced.open({ retries: 0 }), "")).rejects.toMatchObject({ code: "storage-unreachable" });
  await using endless = startStub(() => {
    return new Response(
      new ReadableStream({
        pull(controller) {
          controller.enqueue(mib.slice());
        },
      }),
    );
  });
  await expect(keysOf(endless.open({ retries: 0 }), "")).rejects.toMatchObject({ code: "storage-unreachable" });
});

test("no bytes make the listing crash, hang or end with anything but an answer or our error", async () => {
  let body = "";
  await using stub = startStub(() => new Response(body));
  const backend = stub.open({ retries: 0 });
  const whole = await listing(["a", "b"]).text();
  const mangled = fc.oneof(
    fc.string({ unit: "binary", maxLength: 200 }),
    fc
      .tuple(fc.nat(whole.length), fc.nat(20), fc.string({ maxLength: 10 }))
      .map(([at, cut, put]) => whole.slice(0, at) + put + whole.slice(at + cut)),
  );
  await fc.assert(
    fc.asyncProperty(mangled, async (text) => {
      body = text;
      await keysOf(backend, "").catch((error: unknown) => {
        if (!(error instanceof BakeliteError) || error.code !== "storage-unreachable") throw error;
      });
    }),
    { numRuns: 300 },
  );
});

test("every beginning of a listing is refused", async () => {
  const whole = await listing(["a"]).text();
  for (let length = 0; length < whole.length; length++) expect(() => parseXml(whole.slice(0, length))).toThrow();
  expect(parseXml(`${whole}\n`).rootName).toBe("ListBucketResult");
});

test("entities stand for one character each and expand no further", () => {
  const { root } = parseXml("<a><b>&lt;&amp;lt;&#34;&#x41;&quot;&apos;&gt;&nope;&#1114112;</b></a>");
  expect(root).toEqual({ b: '<&lt;"A"\'>&nope;&#1114112;' });
});

test("deletes what it can, asks again for what may pass, and names what was refused", async () => {
  let round = 0;
  await using stub = startStub(({ query }) => {
    if (!query.has("delete")) return new Response(null, { status: 204 });
    round++;
    const error = (key: string, code: string) => `<Error><Key>${key}</Key><Code>${code}</Code></Error>`;
    if (round === 1)
      return xml(`<DeleteResult>${error("a", "InternalError")}${error("b", "NoSuchKey")}</DeleteResult>`);
    return xml(`<DeleteResult>${round === 2 ? "" : error("x", "AccessDenied")}</DeleteResult>`);
  });
  const backend = stub.open();
  await backend.delete(["a", "b", "c"]);
  expect(stub.requests).toHaveLength(2);
  for (const { headers } of stub.requests) expect(headers.get("content-md5")).not.toBeNull();
  await expect(backend.delete(["x", "y"])).rejects.toMatchObject({
    code: "storage-denied",
    subject: "s3://b/x",
    hint: expect.stringContaining("s3:DeleteObject"),
  });
});

test("deletes one by one where the server has no batches, and knows it from then on", async () => {
  await using stub = startStub(({ query }) =>
    query.has("delete") ? refuse(501, "NotImplemented") : new Response(null, { status: 204 }),
  );
  const backend = stub.open();
  await backend.delete(["a", "b", "c"]);
  await backend.delete(["d", "e"]);
  expect(stub.log().toSorted()).toEqual(["DELETE", "DELETE", "DELETE", "DELETE", "DELETE", "POST ?delete"]);
});

test("credentials that may not delete are told once and cost one request an hour", async () => {
  let nowMs = Date.now();
  const notices: string[] = [];
  await using stub = startStub(() => refuse(403, "AccessDenied", { date: new Date(nowMs).toUTCString() }));
  const backend = stub.open(
    { onNotice: ({ message }) => notices.push(message) },
    { clock: { nowMs: () => nowMs, monotonicMs: () => performance.now() } },
  );
  const denied = { code: "storage-denied", hint: expect.stringContaining("s3:DeleteObject") };
  for (const keys of [["a"], ["a", "b"], ["c"]]) await expect(backend.delete(keys)).rejects.toMatchObject(denied);
  expect(stub.requests).toHaveLength(1);
  nowMs += 3600_001;
  await expect(backend.delete(["a", "b"])).rejects.toMatchObject(denied);
  expect(stub.requests).toHaveLength(2);
  expect(notices).toEqual([expect.stringContaining("may not delete")]);
});

test("a wrong clock or key is no missing permission", async () => {
  const date = { date: new Date(Date.now() - 3600_000).toUTCString() };
  let refused = 0;
  await using late = startStub(() =>
    refused++ === 0 ? refuse(403, "RequestTimeTooSkewed", date) : xml("<DeleteResult/>"),
  );
  await late.open().delete(["a", "b"]);
  await using wrong = startStub(() => refuse(403, "SignatureDoesNotMatch"));
  const backend = wrong.open();
  const denied = { code: "storage-denied", message: expect.stringContaining("secret access key") };
  await expect(backend.delete(["a"])).rejects.toMatchObject(denied);
  await expect(backend.delete(["a", "b"])).rejects.toMatchObject(denied);
  expect(wrong.requests).toHaveLength(2);
  await expect(backend.unlisted.uploads("")).rejects.toMatchObject(denied);
  await expect(backend.diagnose()).rejects.toMatchObject(denied);
});

test("unfinished uploads are null where the server cannot tell, and filtered where it ignores the prefix", async () => {
  for (const answer of [() => refuse(501, "NotImplemented"), () => refuse(403, "AccessDenied"), () => listing(["a"])]) {
    await using stub = startStub(answer);
    expect(await stub.open().unlisted.uploads("app/")).toBeNull();
    expect(await stub.open().unlisted.noncurrentVersions("app/")).toBeNull();
  }
  const upload = (key: string) =>
    `<Upload><Key>${key}</Key><UploadId>id-${key}</UploadId><Initiated>2026-01-01T00:00:00Z</Initiated></Upload>`;
  const part = "<Part><PartNumber>1</PartNumber><LastModified>2026-01-01T01:00:00Z</LastModified><Size>7</Size></Part>";
  await using stub = startStub(({ query }) =>
    query.has("uploads")
      ? xml(
          `<ListMultipartUploadsResult>${upload("other/a")}${upload("app/a")}<IsTruncated>false</IsTruncated></ListMultipartUploadsResult>`,
        )
      : xml(`<ListPartsResult>${part}<IsTruncated>false</IsTruncated></ListPartsResult>`, {
          headers: { date: "Thu, 01 Jan 2026 03:00:00 GMT" },
        }),
  );
  expect(await collect((await stub.open().unlisted.uploads("app/")) ?? [])).toEqual([
    {
      key: "app/a",
      uploadId: "id-app/a",
      startedMs: Date.parse("2026-01-01T00:00:00Z"),
      newestPartMs: Date.parse("2026-01-01T01:00:00Z"),
      ageMs: 2 * 3600_000,
      sizeBytes: 7,
    },
  ]);
});

function item(key: string): string {
  return `<Contents><Key>${key}</Key><LastModified>2026-01-01T00:00:00Z</LastModified><Size>1</Size></Contents>`;
}
