import { afterAll, expect, test } from "bun:test";
import { connect } from "node:net";
import { eventually, withDeadline } from "../support/eventually.ts";
import { seededRandom } from "../support/random.ts";
import { FaultProxy, type FaultRates, type ProxyFault } from "./proxy.ts";
import { listingWithout, parseS3Request } from "./proxy-s3.ts";

const LARGE_BYTES = 3_000_000;

/** A server that keeps objects, and remembers the head of each request that it heard to the end. */
const objects = new Map<string, Uint8Array>();
const heard: { method: string; path: string; host: string | null }[] = [];
const origin = Bun.serve({
  hostname: "127.0.0.1",
  port: 0,
  async fetch(request) {
    const { pathname, searchParams } = new URL(request.url);
    const body = await request.bytes();
    heard.push({ method: request.method, path: pathname, host: request.headers.get("host") });
    if (request.method === "PUT") objects.set(pathname, body);
    if (request.method === "DELETE") objects.delete(pathname);
    if (searchParams.has("list-type")) return new Response(listing());
    if (request.method === "PUT" || request.method === "POST") return new Response(null);
    if (request.method === "DELETE") return new Response(null, { status: 204 });
    const object = objects.get(pathname);
    if (object === undefined) return new Response("no such object", { status: 404 });
    return new Response(searchParams.has("chunked") ? inPieces(object) : object);
  },
});
afterAll(() => origin.stop(true));

function listing(): string {
  const keys = [...objects.keys()].map((path) => decodeURIComponent(path.split("/").slice(2).join("/")));
  const contents = keys.map((key) => `<Contents><Key>${key}</Key></Contents>`).join("");
  return `<ListBucketResult><KeyCount>${keys.length}</KeyCount>${contents}</ListBucketResult>`;
}

function inPieces(bytes: Uint8Array): ReadableStream<Uint8Array> {
  return new ReadableStream({
    async start(controller) {
      for (let i = 0; i < bytes.length; i += 70_000) controller.enqueue(bytes.subarray(i, i + 70_000));
      controller.close();
    },
  });
}

async function startProxy(seed = 1): Promise<FaultProxy> {
  objects.clear();
  heard.length = 0;
  return await FaultProxy.start({ targetPort: origin.port ?? 0, seed });
}

/** On a connection of its own: Bun tries again by itself when a kept one is reset. */
async function ask(proxy: FaultProxy, method: string, target: string, body?: Uint8Array): Promise<Response> {
  return await fetch(`${proxy.url}${target}`, {
    method,
    headers: { connection: "close" },
    ...(body === undefined ? {} : { body }),
    signal: AbortSignal.timeout(5000),
  });
}

test("without a fault everything passes as it is: heads, bodies of known and unknown length, kept connections", async () => {
  await using proxy = await startProxy();
  const bytes = seededRandom(1).bytes(LARGE_BYTES);
  for (let i = 0; i < 5; i++) {
    expect((await fetch(`${proxy.url}/b/k%20${i}`, { method: "PUT", body: inPieces(bytes) })).status).toBe(200);
    expect(await (await fetch(`${proxy.url}/b/k%20${i}`)).bytes()).toEqual(bytes);
    expect(await (await fetch(`${proxy.url}/b/k%20${i}?chunked`)).bytes()).toEqual(bytes);
    const head = await fetch(`${proxy.url}/b/k%20${i}`, { method: "HEAD" });
    expect([head.status, head.headers.get("content-length")]).toEqual([200, String(LARGE_BYTES)]);
    expect((await fetch(`${proxy.url}/b/none`)).status).toBe(404);
    expect((await fetch(`${proxy.url}/b/k%20${i}`, { method: "DELETE" })).status).toBe(204);
  }
  expect(heard[0]?.host).toBe(`127.0.0.1:${proxy.port}`);
  expect(proxy.counts()).toEqual({ put: 5, get: 15, head: 5, delete: 5 });
  expect(proxy.bytes.toServer).toBeGreaterThan(5 * LARGE_BYTES);
  expect(proxy.bytes.toClient).toBeGreaterThan(10 * LARGE_BYTES);
  expect(proxy.connectionCount).toBeLessThan(10);
});

test("requests of S3 are told apart", () => {
  const cases = {
    "PUT /b/k HTTP/1.1": "put",
    "GET /b/k HTTP/1.1": "get",
    "HEAD /b/a/k HTTP/1.1": "head",
    "DELETE /b/k HTTP/1.1": "delete",
    "GET /b?list-type=2&prefix=x HTTP/1.1": "list",
    "GET /b/?list-type=2 HTTP/1.1": "list",
    "GET /b?uploads=&prefix=x HTTP/1.1": "list-uploads",
    "GET /b?versions HTTP/1.1": "list-versions",
    "GET /b?location HTTP/1.1": "other",
    "POST /b?delete= HTTP/1.1": "delete-many",
    "POST /b/k?uploads HTTP/1.1": "begin-upload",
    "PUT /b/k?partNumber=1&uploadId=u HTTP/1.1": "upload-part",
    "POST /b/k?uploadId=u HTTP/1.1": "complete-upload",
    "DELETE /b/k?uploadId=u HTTP/1.1": "abort-upload",
    "GET /b/k?uploadId=u HTTP/1.1": "list-parts",
  };
  const told = Object.keys(cases).map((line) => [line, parseS3Request(line).operation]);
  expect(Object.fromEntries(told)).toEqual(cases);
  expect(parseS3Request("GET /b/a%20b/%C3%BC?x=1 HTTP/1.1")).toMatchObject({ path: "/b/a%20b/%C3%BC", key: "a b/ü" });
});

const RESETS: readonly ProxyFault[] = ["refuse", "cut-request", "lose-answer", "cut-head", "cut-body"];

test("a reset is a reset, wherever it happens, and only some of them reach the server", async () => {
  await using proxy = await startProxy();
  for (const fault of RESETS) {
    objects.clear();
    proxy.failNext(fault);
    const put = async () => await (await ask(proxy, "PUT", "/b/k", new Uint8Array(LARGE_BYTES))).bytes();
    await expect(put()).rejects.toThrow();
    const reached = fault === "lose-answer" || fault === "cut-head" || fault === "cut-body";
    await eventually(() => objects.has("/b/k") === reached, { what: `${fault} to have reached the server or not` });
    expect((await ask(proxy, "PUT", "/b/k", new Uint8Array(5))).status).toBe(200);
    expect(await (await ask(proxy, "GET", "/b/k")).bytes()).toHaveLength(5);
  }
  expect(proxy.faultCounts()).toEqual(Object.fromEntries(RESETS.map((fault) => [fault, 1])));
});

test("an answer that is cut, truncated or stalled has given less than its whole body", async () => {
  await using proxy = await startProxy();
  await ask(proxy, "PUT", "/b/k", new Uint8Array(LARGE_BYTES));
  for (const fault of ["cut-body", "truncate", "stall"] as const) {
    proxy.failNext(fault);
    const response = await fetch(`${proxy.url}/b/k`, {
      headers: { connection: "close" },
      signal: AbortSignal.timeout(500),
    });
    let got = 0;
    const reading = (async () => {
      for await (const piece of response.body ?? []) got += piece.length;
    })();
    await expect(reading).rejects.toThrow();
    expect(got).toBeLessThan(LARGE_BYTES);
  }
});

test("errors are in S3's words, on a connection that goes on, and the server hears nothing", async () => {
  await using proxy = await startProxy();
  for (const [fault, status, code] of [
    ["error-500", 500, "InternalError"],
    ["error-503", 503, "SlowDown"],
    ["error-429", 429, "TooManyRequests"],
  ] as const) {
    proxy.failNext(fault, { times: 2 });
    const response = await fetch(`${proxy.url}/b/k`, { method: "PUT", body: new Uint8Array(LARGE_BYTES) });
    expect([response.status, await response.text()]).toEqual([status, expect.stringContaining(`<Code>${code}</Code>`)]);
    expect((await fetch(`${proxy.url}/b/k`, { method: "HEAD" })).status).toBe(status);
  }
  expect(heard).toEqual([]);
});

test("a request that hangs ends with its abort only, and the proxy lets go of it", async () => {
  await using proxy = await startProxy();
  proxy.failNext("hang", { operation: "get" });
  await expect(fetch(`${proxy.url}/b/k`, { signal: AbortSignal.timeout(200) })).rejects.toThrow("timed out");
  expect(heard).toEqual([]);
  expect((await ask(proxy, "GET", "/b/k")).status).toBe(404);
});

test("a fault meets the requests that it was asked for: by operation, by key, after some", async () => {
  await using proxy = await startProxy();
  proxy.failNext("error-503", { operation: "put", matches: (key) => key.startsWith("a/"), skip: 1, times: 2 });
  const statuses: number[] = [];
  for (const key of ["a/1", "b/1", "a/2", "a/3", "a/4"])
    statuses.push((await ask(proxy, "PUT", `/b/${key}`, new Uint8Array(1))).status);
  expect(statuses).toEqual([200, 200, 503, 503, 200]);
  expect((await ask(proxy, "GET", "/b/a/1")).status).toBe(200);
});

test("deletions that lie are confirmed and delete nothing", async () => {
  await using proxy = await startProxy();
  await ask(proxy, "PUT", "/b/k", new Uint8Array(1));
  proxy.failNext("lie", { operation: ["delete", "delete-many"], times: 2 });
  expect((await ask(proxy, "DELETE", "/b/k")).status).toBe(204);
  const body = new TextEncoder().encode("<Delete><Object><Key>k</Key></Object></Delete>");
  const answer = await ask(proxy, "POST", "/b?delete", body);
  expect([answer.status, await answer.text()]).toEqual([
    200,
    expect.stringContaining("<Deleted><Key>k</Key></Deleted>"),
  ]);
  expect(objects.has("/b/k")).toBe(true);
});

test("frozen listings do not show what came since, and do when they thaw", async () => {
  await using proxy = await startProxy();
  await ask(proxy, "PUT", "/b/old", new Uint8Array(1));
  proxy.freezeListings();
  await ask(proxy, "PUT", "/b/new%20one", new Uint8Array(1));
  const list = async () => await (await ask(proxy, "GET", "/b?list-type=2")).text();
  expect(await list()).toBe(
    "<ListBucketResult><KeyCount>1</KeyCount><Contents><Key>old</Key></Contents></ListBucketResult>",
  );
  proxy.thawListings();
  expect(await list()).toContain("new one");
  const encoded =
    "<EncodingType>url</EncodingType><Contents><Key>a%2Fb</Key></Contents><Contents><Key>c</Key></Contents>";
  expect(listingWithout(encoded, new Set(["a/b"]))).not.toContain("a%2Fb");
});

test("in an outage connections are refused, or hang until it is over", async () => {
  await using proxy = await startProxy();
  await ask(proxy, "PUT", "/b/k", new Uint8Array(10));
  await proxy.beginOutage("refuse");
  await expect(ask(proxy, "GET", "/b/k")).rejects.toThrow("ECONNREFUSED");
  await proxy.endOutage();
  expect((await ask(proxy, "GET", "/b/k")).status).toBe(200);
  await proxy.beginOutage("hang");
  const hanging = ask(proxy, "GET", "/b/k");
  expect(await Promise.race([hanging, Bun.sleep(100).then(() => "still waiting")])).toBe("still waiting");
  await proxy.endOutage();
  expect((await hanging).status).toBe(200);
});

test("a proxy may end in the middle of an outage of either kind", async () => {
  for (const how of ["refuse", "hang"] as const) {
    const proxy = await startProxy();
    await proxy.beginOutage(how);
    const left = how === "hang" ? ask(proxy, "GET", "/b/k").catch(() => "ended") : null;
    await withDeadline(proxy[Symbol.asyncDispose](), { what: "the proxy to end", deadlineMs: 20_000 });
    if (left !== null) await left;
  }
});

test("latency and bandwidth are what they are set to", async () => {
  await using proxy = await startProxy();
  proxy.latencyMs = 60;
  const startedMs = performance.now();
  for (let i = 0; i < 5; i++) await ask(proxy, "GET", "/b/k");
  expect(performance.now() - startedMs).toBeGreaterThan(295);
  proxy.latencyMs = 0;
  proxy.bytesPerSecond = 1_000_000;
  const slowMs = performance.now();
  await ask(proxy, "PUT", "/b/k", new Uint8Array(400_000));
  expect(performance.now() - slowMs).toBeGreaterThan(380);
});

test("drawn faults depend on the seed and the request, not on the order", async () => {
  const keys = Array.from({ length: 40 }, (_, i) => `/b/k${i}`);
  const faultsOf = async (seed: number, order: readonly string[]) => {
    await using proxy = await startProxy(seed);
    proxy.rates = (operation): FaultRates => (operation === "put" ? { "error-503": 0.2, "error-500": 0.2 } : {});
    await Promise.all(order.map((key) => ask(proxy, "PUT", key, new Uint8Array(1))));
    await ask(proxy, "GET", "/b/k0");
    return Object.fromEntries(proxy.requests.map(({ path, operation, fault }) => [`${operation} ${path}`, fault]));
  };
  const first = await faultsOf(3, keys);
  expect(await faultsOf(3, keys.toReversed())).toEqual(first);
  expect(await faultsOf(4, keys)).not.toEqual(first);
  expect(Object.values(first).filter((fault) => fault !== null).length).toBeGreaterThan(5);
  expect(first["get /b/k0"]).toBeNull();
});

test("any protocol over TCP passes, and is cut, ended or stalled after so many bytes", async () => {
  using echo = Bun.listen({
    hostname: "127.0.0.1",
    port: 0,
    socket: { data: (socket, data) => void socket.write(data) },
  });
  await using proxy = await FaultProxy.start({ targetPort: echo.port, protocol: "tcp" });
  expect(await talk(proxy.port, 5000)).toEqual({ gotBytes: 5000, ending: "stays" });
  proxy.cutNext({ afterBytes: 1500, direction: "to-server", how: "end" });
  expect(await talk(proxy.port, 5000)).toMatchObject({ ending: "end" });
  proxy.cutNext({ afterBytes: 1500, direction: "to-client", how: "reset" });
  expect(await talk(proxy.port, 5000)).toMatchObject({ ending: "ECONNRESET" });
  proxy.cutNext({ afterBytes: 1500, direction: "to-client", how: "stall" });
  expect(await talk(proxy.port, 5000)).toEqual({ gotBytes: 1500, ending: "stays" });
  expect(await talk(proxy.port, 5000)).toEqual({ gotBytes: 5000, ending: "stays" });
});

/** Sends so many bytes to an echo and reads until all came back, the connection ended, or nothing came for a while. */
async function talk(port: number, sizeBytes: number): Promise<{ gotBytes: number; ending: string }> {
  const { promise, resolve } = Promise.withResolvers<string>();
  const socket = connect(port, "127.0.0.1");
  let gotBytes = 0;
  socket.on("data", (piece) => {
    gotBytes += piece.length;
    if (gotBytes === sizeBytes) resolve("stays");
  });
  socket.on("error", (error: Error & { code?: string }) => resolve(error.code ?? error.message));
  socket.on("end", () => resolve("end"));
  socket.write(new Uint8Array(sizeBytes));
  const ending = await Promise.race([promise, Bun.sleep(2000).then(() => "stays")]);
  socket.destroy();
  return { gotBytes, ending };
}
