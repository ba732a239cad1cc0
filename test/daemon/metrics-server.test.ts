import { Database } from "bun:sqlite";
import { expect, test } from "bun:test";
import { mkdirSync, renameSync } from "node:fs";
import { readFile, writeFile } from "node:fs/promises";
import { connect } from "node:net";
import { formatListenAddress, type ListenAddress, parseListenAddress } from "../../src/util/listen-address.ts";
import {
  configPathIn,
  type DaemonDatabase,
  type DaemonProcess,
  daemonConfig,
  runBakelite,
  startDaemon,
} from "../oracle/daemon-process.ts";
import { eventually } from "../support/eventually.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";
import { parseMetrics, promtool, type ScrapedSample } from "./scrape.ts";

const tool = promtool();
if (tool === null) console.log("note: the metrics of a daemon were not judged: there is no promtool");

const program = "executable" as const;
const ANY_PORT = "127.0.0.1:0";

function database(directory: TemporaryDirectory, name: string): DaemonDatabase {
  return { name, path: directory.file(name, `${name}.db`), replicas: [directory.file(`${name}-replica`)] };
}

function options(directory: TemporaryDirectory, names: readonly string[], address: string | null = ANY_PORT) {
  const databases = names.map((name) => database(directory, name));
  const extraArguments = address === null ? [] : ["--metrics-addr", address];
  return { configPath: configPathIn(directory.path), databases, program, extraArguments };
}

function createDatabase({ path }: DaemonDatabase, mode: "WAL" | "DELETE" = "WAL"): Database {
  mkdirSync(path.slice(0, path.lastIndexOf("/")), { recursive: true });
  const db = new Database(path);
  db.run(`PRAGMA journal_mode = ${mode}`);
  db.run("CREATE TABLE t (x)");
  return db;
}

/** Where the daemon says that it serves its metrics. */
async function urlOf(daemon: DaemonProcess): Promise<string> {
  const { metrics } = await daemon.untilSaid("bakelite is running");
  if (typeof metrics !== "string") throw new Error("it does not say where");
  return metrics;
}

async function scrape(url: string): Promise<readonly ScrapedSample[]> {
  const response = await fetch(`${url}/metrics`);
  expect(response.headers.get("content-type")).toBe("text/plain; version=0.0.4; charset=utf-8");
  return parseMetrics(await response.text());
}

/** The series of one database, by name without `bakelite_`; of those with more labels any sample. */
async function seriesOf(url: string, name: string): Promise<Readonly<Record<string, number>>> {
  const samples = (await scrape(url)).filter(({ labels }) => labels["database"] === name);
  return Object.fromEntries(samples.map(({ name: full, value }) => [full.replace(/^bakelite_/, ""), value]));
}

async function untilSeries(
  url: string,
  name: string,
  what: string,
  wanted: (now: Readonly<Record<string, number>>) => boolean,
) {
  let last = {};
  return await eventually(
    async () => {
      const now = await seriesOf(url, name);
      last = now;
      return wanted(now) && now;
    },
    { what, deadlineMs: 30_000, pollMs: 100, explain: () => JSON.stringify(last) },
  );
}

test("each series is there and absent as its database goes through its states", async () => {
  await using directory = await temporaryDirectory("metrics");
  const given = options(directory, ["app", "plain", "absent"]);
  const [app, plain] = given.databases;
  if (app === undefined || plain === undefined) throw new Error("two databases");
  using _plain = createDatabase(plain, "DELETE");
  await using daemon = await startDaemon(given);
  const url = await urlOf(daemon);

  const waiting = await untilSeries(url, "absent", "the one without a directory", ({ up }) => up === 0);
  const never = {
    up: 0,
    bytes_shipped_total: 0,
    longest_write_lock_seconds: 0,
    destination_errors_total: 0,
    destination_incomplete: 0,
  };
  expect(waiting).toEqual(never);
  expect(await seriesOf(url, "plain")).toEqual(never);
  const unwell = await fetch(`${url}/healthz`);
  expect(unwell.status).toBe(503);
  expect(await unwell.text()).toMatch(/^absent: waiting: .*\napp: waiting: .*\nplain: not wal: run: sqlite3 .*\n$/);

  using db = createDatabase(app);
  db.run("INSERT INTO t VALUES (1)");
  const live = await untilSeries(
    url,
    "app",
    "app to be live",
    (now) => now["up"] === 1 && now["change_sets"] !== undefined,
  );
  expect(live).toMatchObject({ replica_lag_seconds: expect.any(Number), last_full_backup_seconds: expect.any(Number) });
  expect(Object.keys(live)).not.toContain("backing_off_seconds");
  expect(Object.keys(live)).not.toContain("verify_ok");
  db.run("INSERT INTO t VALUES (2)");
  await untilSeries(
    url,
    "app",
    "a change-set",
    (now) => (now["change_sets"] ?? 0) > 0 && now["replica_lag_seconds"] === 0,
  );

  const verify = () => runBakelite(program, ["verify", "--db", "app", "--config", given.configPath]);
  expect((await verify()).status).toBe(0);
  const clean = await untilSeries(url, "app", "the verify to be seen", (now) => now["verify_ok"] === 1);
  expect(clean["last_verified_seconds"]).toBeLessThan(30);

  renameSync(directory.file("app-replica"), directory.file("away"));
  db.run("INSERT INTO t VALUES (3)");
  const failing = await untilSeries(url, "app", "backing off", (now) => now["backing_off_seconds"] !== undefined);
  expect(failing["up"]).toBe(0);
  const climbing = await untilSeries(
    url,
    "app",
    "lag, age and errors to grow",
    (now) =>
      (now["backing_off_seconds"] ?? 0) > 1 &&
      (now["replica_lag_seconds"] ?? 0) > 1 &&
      (now["destination_errors_total"] ?? 0) > 0,
  );
  expect(climbing["last_synced_seconds"]).toBeGreaterThan(0);
  expect(await (await fetch(`${url}/healthz`)).text()).toContain("app: backing off: stuck for ");
  expect((await verify()).status).toBe(1);

  renameSync(directory.file("away"), directory.file("app-replica"));
  const healed = await untilSeries(url, "app", "it to recover", (now) => now["up"] === 1);
  expect(Object.keys(healed)).not.toContain("backing_off_seconds");
  const text = await (await fetch(`${url}/metrics`)).text();
  if (tool !== null) expect(await tool.run(["check", "metrics"], text)).toEqual({ status: 0, output: "" });

  await daemon.stop();
  await expect(fetch(`${url}/metrics`)).rejects.toThrow();
});

test("the address: from the file, IPv6, and moved by SIGHUP unless it cannot be had", async () => {
  await using directory = await temporaryDirectory("metrics");
  const given = options(directory, ["app"], null);
  const [app] = given.databases;
  if (app === undefined) throw new Error("one database");
  using _db = createDatabase(app);
  const writeConfig = async (address: string | null) =>
    await writeFile(
      given.configPath,
      daemonConfig(given).replace(
        "[daemon]\n",
        address === null ? "[daemon]\n" : `[daemon]\nmetrics_addr = "${address}"\n`,
      ),
    );
  await using daemon = await startDaemon(given);
  const { metrics } = await daemon.untilSaid("bakelite is running");
  expect(metrics).toBeUndefined();
  const reload = async (address: string | null, message: string) => {
    const before = daemon.said(message).length;
    await writeConfig(address);
    daemon.signal("SIGHUP");
    const line = await eventually(() => daemon.said(message)[before], { what: message, explain: () => daemon.tail });
    return typeof line["url"] === "string" ? line["url"] : null;
  };
  const first = await reload(ANY_PORT, "metrics are served elsewhere now");
  expect(first).toMatch(/^http:\/\/127\.0\.0\.1:\d+$/);
  expect((await scrape(`${first}`)).length).toBeGreaterThan(0);

  const port = Number(new URL(`${first}`).port);
  const second = await reload(`[::1]:0`, "metrics are served elsewhere now");
  expect(second).toMatch(/^http:\/\/\[::1\]:\d+$/);
  expect((await scrape(`${second}`)).length).toBeGreaterThan(0);
  await expect(fetch(`${first}/metrics`)).rejects.toThrow();

  await reload(`127.0.0.1:${port}`, "metrics are served elsewhere now");
  // The same port on every interface: the old one is in the way of the new one.
  await reload(`0.0.0.0:${port}`, "metrics are served elsewhere now");
  expect((await scrape(`http://127.0.0.1:${port}`)).length).toBeGreaterThan(0);

  const kept = await reload("203.0.113.9:9090", "metrics stay at the old address, because the new one cannot be used");
  expect(kept).toBe(`http://0.0.0.0:${port}`);
  expect((await scrape(`http://127.0.0.1:${port}`)).length).toBeGreaterThan(0);
  const keptToo = await reload(
    `203.0.113.9:${port}`,
    "metrics stay at the old address, because the new one cannot be used",
  );
  expect(keptToo).toBe(`http://0.0.0.0:${port}`);
  expect((await scrape(`http://127.0.0.1:${port}`)).length).toBeGreaterThan(0);

  expect(await reload(null, "metrics are no longer served")).toBeNull();
  await expect(fetch(`http://127.0.0.1:${port}/metrics`)).rejects.toThrow();
});

test("the flag wins over the file, also when the file is read again", async () => {
  await using directory = await temporaryDirectory("metrics");
  const given = options(directory, ["app"]);
  const [app] = given.databases;
  if (app === undefined) throw new Error("one database");
  using _db = createDatabase(app);
  await using daemon = await startDaemon(given);
  const url = await urlOf(daemon);
  await writeFile(
    given.configPath,
    daemonConfig(given).replace("[daemon]\n", '[daemon]\nmetrics_addr = "203.0.113.9:9090"\n'),
  );
  daemon.signal("SIGHUP");
  await daemon.untilSaid("configuration reloaded");
  expect((await scrape(url)).length).toBeGreaterThan(0);
  expect(daemon.log.filter(({ level }) => level === "error")).toEqual([]);
});

test("an address that cannot be had ends the start with the reason, before anything runs; a wrong one is wrong usage", async () => {
  await using directory = await temporaryDirectory("metrics");
  const given = options(directory, ["app"], null);
  const [app] = given.databases;
  if (app === undefined) throw new Error("one database");
  using _db = createDatabase(app);
  await writeFile(given.configPath, daemonConfig(given));
  const start = (address: string) =>
    runBakelite(program, ["daemon", "--config", given.configPath, "--metrics-addr", address]);
  using taken = Bun.serve({ hostname: "127.0.0.1", port: 0, fetch: () => new Response("somebody else") });
  const inUse = await start(`127.0.0.1:${taken.port}`);
  expect(inUse).toMatchObject({ status: 1, stdout: "" });
  expect(inUse.stderr).toContain(
    `cannot serve metrics: another program listens at the address (127.0.0.1:${taken.port})`,
  );
  expect(inUse.stderr).toContain("hint: choose another");
  const foreign = await start("203.0.113.9:9090");
  expect(foreign.status).toBe(1);
  expect(foreign.stderr).toContain("no interface of this host has the address (203.0.113.9:9090)");
  expect((await start("no-such-host.invalid:9090")).stderr).toMatch(
    /cannot serve metrics: .*no-such-host\.invalid:9090/,
  );
  for (const wrong of ["9090", ":9090", "localhost", "127.0.0.1:65536", "::1:9090", "http://127.0.0.1:9090", ""])
    expect({ wrong, status: (await start(wrong)).status }).toEqual({ wrong, status: 2 });
  await expect(readFile(directory.file("app", ".bakelite", "app.status.json"))).rejects.toThrow();

  await using first = await startDaemon({ ...given, extraArguments: ["--metrics-addr", ANY_PORT] });
  const address = (await urlOf(first)).replace("http://", "");
  const second = await start(address);
  // The more useful of two reasons.
  expect(second.stderr).toContain(`process ${first.pid} already follows this database`);
});

test("hostile requests are refused, cost nothing that lasts, and nobody else waits for them", async () => {
  await using directory = await temporaryDirectory("metrics");
  const given = options(directory, ["app"]);
  const [app] = given.databases;
  if (app === undefined) throw new Error("one database");
  using _db = createDatabase(app);
  await using daemon = await startDaemon(given);
  const url = await urlOf(daemon);
  const address = parseListenAddress(url.replace("http://", ""));
  const head = (path: string, more = "") => `GET ${path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n${more}\r\n`;

  expect(await firstLine(address, `GET /metrics HTTP/1.1\r\nHost: "><script>\r\n\r\n`)).toBe("HTTP/1.1 200 OK");
  expect(await firstLine(address, `GET /metrics HTTP/1.0\r\n\r\n`)).toBe("HTTP/1.1 200 OK");
  expect(await firstLine(address, head("/metrics?x=1"))).toBe("HTTP/1.1 200 OK");
  for (const path of ["//metrics", "/metrics/", "/../etc/passwd", "/%6detrics", "/x", "/.env", "*"])
    expect({ path, line: await firstLine(address, head(path)) }).toEqual({
      path,
      line: expect.stringMatching(/^HTTP\/1\.1 40[04]/),
    });
  expect(await firstLine(address, head("/metrics", `A: ${"a".repeat(100_000)}\r\n`))).toContain(" 431 ");
  expect(await firstLine(address, head(`/${"a".repeat(100_000)}`))).toContain(" 431 ");
  expect(await firstLine(address, "\u0016\u0003\u0001\r\n\r\n")).toContain(" 400 ");
  for (const method of ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"]) {
    const response = await fetch(`${url}/metrics`, { method });
    expect({ method, status: response.status }).toEqual({ method, status: 405 });
    expect(response.headers.get("allow")).toBe("GET, HEAD");
    expect(response.headers.get("access-control-allow-origin")).toBeNull();
  }
  expect((await fetch(`${url}/`, { method: "POST", body: "x".repeat(1e6) })).status).toBe(413);
  const headOnly = await fetch(`${url}/metrics`, { method: "HEAD" });
  expect([headOnly.status, await headOnly.text()]).toEqual([200, ""]);

  const silent = Array.from({ length: 300 }, (_, i) => {
    const socket = connect(address.port, address.host);
    socket.on("error", () => {});
    if (i % 2 === 0) socket.write("GET /metrics HTTP/1.1\r\nHost: x\r\n");
    return socket;
  });
  const times: number[] = [];
  for (let i = 0; i < 20; i++) {
    const startMs = performance.now();
    expect((await fetch(`${url}/healthz`)).status).toBeLessThan(504);
    times.push(performance.now() - startMs);
  }
  console.log(
    `note: beside 300 connections that say nothing: slowest of 20 answers ${Math.max(...times).toFixed(1)} ms`,
  );
  await Promise.all(
    silent.map((socket) =>
      eventually(() => socket.closed || socket.destroyed || socket.readyState !== "open", {
        what: "the daemon to hang up",
        deadlineMs: 30_000,
        pollMs: 200,
      }),
    ),
  );
  expect(daemon.log.filter(({ level }) => level === "error" || level === "warn")).toEqual([]);
});

test("answers carry headers that keep a browser from doing more than showing them", async () => {
  await using directory = await temporaryDirectory("metrics");
  await using daemon = await startDaemon(options(directory, ["app"]));
  const url = await urlOf(daemon);
  for (const path of ["/", "/metrics", "/healthz", "/nothing"]) {
    const { headers } = await fetch(url + path);
    expect(headers.get("x-content-type-options")).toBe("nosniff");
    expect(headers.get("content-security-policy")).toContain("default-src 'none'");
    expect(headers.get("content-security-policy")).toContain("frame-ancestors 'none'");
    expect(headers.get("cache-control")).toBe("no-store");
    expect(headers.get("set-cookie")).toBeNull();
  }
});

/** The first line of the answer to these bytes, or what was said before the connection ended. */
async function firstLine({ host, port }: ListenAddress, request: string): Promise<string> {
  const { promise, resolve, reject } = Promise.withResolvers<string>();
  let answer = "";
  const socket = connect(port, host, () => socket.write(request));
  socket.setTimeout(10_000, () => reject(new Error(`${formatListenAddress({ host, port })} does not answer`)));
  socket.on("data", (data) => {
    answer += data.toString("latin1");
    if (answer.includes("\r\n")) socket.destroy();
  });
  // A refusal may come while we are still sending.
  socket.on("error", () => {});
  socket.on("close", () => resolve(answer.split("\r\n", 1)[0] ?? ""));
  return await promise;
}
