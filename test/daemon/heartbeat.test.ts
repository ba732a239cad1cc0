import { Database } from "bun:sqlite";
import { afterAll, beforeEach, expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { Heartbeat } from "../../src/daemon/heartbeat.ts";
import type { DatabaseReport } from "../../src/daemon/http-view.ts";
import type { StatusFile } from "../../src/state/status.ts";
import { systemClock } from "../../src/util/clock.ts";
import { createTextLogger } from "../../src/util/text-logger.ts";
import { configPathIn, daemonConfig, runBakelite, startDaemon } from "../oracle/daemon-process.ts";
import { eventually } from "../support/eventually.ts";
import { MemoryOutput } from "../support/memory-output.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";
import { files, NOW_MS } from "./http-scene.ts";

const SECRET = "9d2f-only-we-know";
const calls: { readonly method: string; readonly url: string; readonly atMs: number }[] = [];
let answer: () => Response | Promise<Response> = () => new Response("OK");
const elsewhere = Bun.serve({
  hostname: "127.0.0.1",
  port: 0,
  fetch: async (request) => {
    calls.push({ method: request.method, url: request.url.replace(/^http:\/\/[^/]*/, ""), atMs: performance.now() });
    return await answer();
  },
});

beforeEach(() => {
  calls.length = 0;
  answer = () => new Response("OK");
});
afterAll(() => elsewhere.stop(true));

const url = `http://127.0.0.1:${elsewhere.port}/${SECRET}?status=up`;

function report(changes: Partial<StatusFile> = {}): DatabaseReport {
  return { status: files.status(changes), lockedOutMs: null, failures: new Map(), mirrors: [] };
}

interface Reports {
  now: readonly DatabaseReport[];
  /** How often they were looked at. */
  looks: number;
}

/** One whose databases are what `reports` holds at each look, and what it logs. */
function heartbeatOf(now: readonly DatabaseReport[], timeoutMs = 1000) {
  const output = new MemoryOutput();
  const clock = { nowMs: () => NOW_MS, monotonicMs: () => systemClock.monotonicMs() };
  const log = createTextLogger({ output, clock, env: {}, level: "debug", format: "text" });
  const reports: Reports = { now, looks: 0 };
  const look = () => {
    reports.looks++;
    return reports.now;
  };
  const heartbeat = new Heartbeat({ reports: look, startedMs: NOW_MS, clock, log, timeoutMs });
  return { heartbeat, output, reports };
}

test("it is called as it is written, again and again, for as long as every database is well", async () => {
  const { heartbeat, output, reports } = heartbeatOf([report({ database: "a" }), report({ database: "b" })]);
  using _stopped = heartbeat;
  const startMs = performance.now();
  heartbeat.set({ url, intervalMs: 40 });
  await eventually(() => calls.length >= 3, { what: "three calls" });
  expect(calls[0]).toMatchObject({ method: "GET", url: `/${SECRET}?status=up` });
  expect((calls[0]?.atMs ?? 0) - startMs).toBeGreaterThanOrEqual(39);

  for (const sick of [
    [report({ database: "a" }), report({ database: "b", state: "backing off" })],
    [report({ full_backup: null })],
    [],
  ]) {
    reports.now = sick;
    const { looks } = reports;
    // A call that an earlier look led to has ended before the next look.
    await eventually(() => reports.looks > looks, { what: "a look" });
    calls.length = 0;
    await eventually(() => reports.looks > looks + 3, { what: "three more looks" });
    expect(calls).toEqual([]);
  }
  reports.now = [report()];
  await eventually(() => calls.length > 0, { what: "a call after recovery" });
  expect(output.text).toBe("");
});

test("refusals, redirects and silence are told once, with nothing of the URL but its host, and so is the return", async () => {
  const { heartbeat, output } = heartbeatOf([report()], 1000);
  using _stopped = heartbeat;
  const lines = () => output.text.split("\n").filter((line) => line !== "");
  const heard = async () => {
    answer = () => new Response("OK");
    const before = lines().length;
    await eventually(() => lines().length > before, { what: "being heard again" });
    expect(lines().at(-1)).toContain("the heartbeat is heard again");
  };
  const failures: readonly [() => Response | Promise<Response>, string][] = [
    [() => new Response(SECRET, { status: 404 }), "it answers with status 404"],
    [() => new Response("", { status: 302, headers: { Location: "file:///etc/passwd" } }), "status 302"],
    [() => Bun.sleep(4000).then(() => new Response("late")), "no answer within 1000 ms"],
  ];
  heartbeat.set({ url, intervalMs: 20 });
  for (const [failure, why] of failures) {
    answer = failure;
    calls.length = 0;
    await eventually(() => calls.length >= 4, { what: "four calls" });
    expect(lines().at(-1)).toContain(why);
    expect(lines().filter((line) => line.includes(why))).toHaveLength(1);
    await heard();
  }
  heartbeat.set({ url: `http://127.0.0.1:1/${SECRET}`, intervalMs: 20 });
  await eventually(() => lines().at(-1)?.includes("127.0.0.1:1"), { what: "a refused connection" });
  expect(output.text).not.toContain(SECRET);
});

test("other settings count at once, and without a URL nobody is called", async () => {
  const { heartbeat, reports } = heartbeatOf([report()]);
  heartbeat.set({ url, intervalMs: 20 });
  await eventually(() => calls.length > 0, { what: "a call" });
  heartbeat.set({ url: `http://127.0.0.1:${elsewhere.port}/other`, intervalMs: 20 });
  await eventually(() => calls.at(-1)?.url === "/other", { what: "a call to the other" });
  heartbeat.set({ url: undefined, intervalMs: 20 });
  const { looks } = reports;
  // Another one, whose looks tell that time has passed.
  const second = heartbeatOf([]);
  using _stopped = second.heartbeat;
  second.heartbeat.set({ url, intervalMs: 20 });
  calls.length = 0;
  await eventually(() => second.reports.looks > 3, { what: "looks of the other" });
  expect(calls).toEqual([]);
  expect(reports.looks).toBe(looks);
  heartbeat[Symbol.dispose]();
});

test("a daemon calls while its database is well, obeys SIGHUP, and shows the URL to nobody", async () => {
  await using directory = await temporaryDirectory("heartbeat");
  const databases = [{ name: "app", path: directory.file("app.db"), replicas: [directory.file("replica")] }];
  const options = { configPath: configPathIn(directory.path), databases };
  const withHeartbeat = (more: string) => daemonConfig(options).replace("[daemon]\n", `[daemon]\n${more}`);
  using db = new Database(directory.file("app.db"));
  db.run("PRAGMA journal_mode = WAL");
  db.run("CREATE TABLE t (x)");
  await using daemon = await startDaemon({ ...options, logLevel: "debug" });
  await daemon.untilStatus(({ state, full_backup }) => state === "live" && full_backup !== null, { what: "live" });
  expect(calls).toEqual([]);
  writeFileSync(options.configPath, withHeartbeat(`heartbeat_url = "${url}"\nheartbeat_interval = "50ms"\n`));
  daemon.signal("SIGHUP");
  await eventually(() => calls.length >= 2, { what: "two calls" });
  answer = () => new Response("gone", { status: 410 });
  await eventually(() => daemon.said("the heartbeat is not heard").length === 1, { what: "a warning" });
  for (const more of [[], ["--json"]]) {
    const shown = await runBakelite("source", ["config", "--config", options.configPath, ...more]);
    expect(shown.status).toBe(0);
    expect(shown.stdout).toContain("heartbeat_url");
    expect(shown.stdout + shown.stderr).not.toContain(SECRET);
  }
  await daemon.stop();
  expect(JSON.stringify(daemon.log) + daemon.complaints).not.toContain(SECRET);
});
