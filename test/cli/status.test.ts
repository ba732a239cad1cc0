import { afterAll, beforeAll, beforeEach, describe, expect, test } from "bun:test";
import { chmodSync, mkdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { resolve } from "node:path";
import * as z from "zod";
import { runCli } from "../../src/cli/run.ts";
import { mirrorStatusSchema } from "../../src/state/mirror-status.ts";
import { readOwnIdentity } from "../../src/state/process-identity.ts";
import { statusSchema } from "../../src/state/status.ts";
import { verifyMarkerSchema } from "../../src/state/verify-marker.ts";
import { MemoryOutput } from "../support/memory-output.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";
import { type FakeHost, fakeHost } from "./fake-host.ts";
import { type Published, publish, StatusFiles } from "./status-files.ts";

const NOW_MS = Date.UTC(2026, 4, 25, 12);
let directory: TemporaryDirectory;
let files: StatusFiles;
let config: string;

beforeAll(async () => {
  directory = await temporaryDirectory("cli-status");
  files = await StatusFiles.at(NOW_MS);
  config = directory.file("bakelite.toml");
});

afterAll(() => directory[Symbol.asyncDispose]());

beforeEach(() => {
  rmSync(directory.file("data"), { recursive: true, force: true });
  mkdirSync(directory.file("data"));
  configure("app");
});

function configure(...names: readonly string[]): void {
  writeFileSync(config, names.map((name) => databaseTable(name)).join("\n"));
}

function databaseTable(name: string): string {
  // The destination does not exist, nor does the database: nothing but the files of the daemon may be looked at.
  return `[[database]]\nname = "${name}"\npath = "${path(name)}"\n[[database.backends]]\ntype = "file"\npath = "/nowhere"\n`;
}

function path(name: string): string {
  return directory.file("data", `${name}.db`);
}

function put(published: Published, name = "app"): void {
  publish(path(name), name, published);
}

async function run(argv: readonly string[] = [], overrides: Partial<FakeHost> = {}) {
  const host = fakeHost({ clock: { nowMs: () => NOW_MS, monotonicMs: () => 0 }, ...overrides });
  const code = await runCli(["status", "--config", config, ...argv], host);
  return { code, stdout: host.stdout.text, stderr: host.stderr.text };
}

/** The lines below the title. */
async function lines(...argv: readonly string[]): Promise<readonly string[]> {
  const { stdout, stderr } = await run(argv);
  expect(stderr).toBe("");
  return stdout.trimEnd().split("\n").slice(1);
}

describe("the table", () => {
  test("has one aligned row for each database", async () => {
    configure("app", "a-longer-name", "third");
    put({ status: files.status() });
    const behind = { lag_seconds: 192, oldest_unstored_at: files.ago(192), last_synced_at: files.ago(192) };
    put({ status: files.status({ ...behind, change_sets: 5, bytes_shipped: 12 }) }, "a-longer-name");
    put({ status: files.status({ state: "starting", lag_seconds: null, last_synced_at: null }) }, "third");
    const { code, stdout } = await run();
    expect(code).toBe(0);
    expect(stdout.split("\n").slice(0, 4)).toEqual([
      "DATABASE       STATE     FRESH    SYNCED     CHANGES   SHIPPED",
      "app            live      live     3s ago          41  1.50 MiB",
      "a-longer-name  live      -3m      3m12s ago        5      12 B",
      "third          starting  unknown  not yet         41  1.50 MiB",
    ]);
  });

  test("--db selects one of them, and an unknown name is refused with a suggestion", async () => {
    configure("app", "other");
    put({ status: files.status() });
    expect(await lines("--db", "app")).toHaveLength(1);
    const { code, stderr } = await run(["--db", "appp"]);
    expect(code).toBe(2);
    expect(stderr).toStartWith("bakelite: no database named `appp` is configured; did you mean `app`?");
  });

  test("`db` under [daemon] narrows what is expected to run, with a note", async () => {
    writeFileSync(config, `[daemon]\ndb = "app"\n${databaseTable("app")}${databaseTable("other")}`);
    put({ status: files.status() });
    const { stdout, stderr } = await run();
    expect(stdout.trimEnd().split("\n")).toHaveLength(2);
    expect(stderr).toBe("note: `db` under [daemon] lets the daemon back up only app, and not the other 1\n");
    expect(await run(["--check"])).toEqual({ code: 0, stdout: "", stderr: "" });
    expect((await run(["--check", "--db", "other"])).code).toBe(1);
  });

  test("colours the state on a terminal only, and never with NO_COLOR or --json", async () => {
    configure("app", "other");
    put({ status: files.status() });
    const terminal = () => new MemoryOutput({ isTerminal: true });
    const coloured = await run([], { stdout: terminal() });
    expect(coloured.stdout).toContain("app       \u001b[32mlive\u001b[0m       live");
    expect(coloured.stdout).toContain("other     \u001b[31mno status\u001b[0m");
    const plain = await run();
    expect(Bun.stripANSI(coloured.stdout)).toBe(plain.stdout);
    for (const output of [
      plain,
      await run([], { stdout: terminal(), env: { NO_COLOR: "1" } }),
      await run(["--json"], { stdout: terminal() }),
    ])
      expect(output.stdout).not.toContain("\u001b");
  });
});

describe("below the row", () => {
  test("a database that is well has no more to say", async () => {
    put({ status: files.status({ last_error: files.failure(900) }) });
    expect(await lines()).toHaveLength(1);
  });

  test("an unhealthy one says for how long, how often it tried, and why", async () => {
    put({ status: files.status({ state: "backing off", unhealthy: files.unhealthy(192, 14), detail: "x" }) });
    expect((await lines()).slice(1)).toEqual([
      "  stuck for 3m12s (14 failed attempts)",
      "  last error: cannot store the object: no space left (2s ago)",
      "  x",
    ]);
    put({ status: files.status({ state: "backing off", unhealthy: files.unhealthy(5, 1) }) });
    expect((await lines())[1]).toBe("  stuck for 5s (1 failed attempt)");
  });

  test("why it was stuck is still there after the daemon died", async () => {
    const unhealthy = files.unhealthy(7200, 200);
    const process = { ...(await readOwnIdentity()), pid: 4_194_303 };
    put({ status: files.status({ state: "backing off", unhealthy, process, written_at: files.ago(3600) }) });
    expect(await lines()).toEqual([
      expect.stringMatching(/^app +not running +unknown /),
      "  the daemon (PID 4194303) is gone and last reported 1h ago",
      "  stuck for 2h (200 failed attempts)",
      "  last error: cannot store the object: no space left (2s ago)",
    ]);
  });

  test("who holds the WAL, and a WAL that is large and not copied", async () => {
    const wal = { size_bytes: 222_298_112, committed_frames: 54_000, backfilled_frames: 10 };
    put({ status: files.status({ wal: { ...wal, held_by: { pid: 4121, since: files.ago(2280) } } }) });
    expect((await lines())[1]).toBe("  WAL 212 MiB, held by PID 4121 for 38m");
    const brief = { size_bytes: 4_120_032, committed_frames: 1000, backfilled_frames: 10 };
    put({ status: files.status({ wal: { ...brief, held_by: { pid: 4121, since: files.ago(5) } } }) });
    expect((await lines())[1]).toBe("  WAL 3.93 MiB, held by PID 4121 for 5s");
    put({ status: files.status({ wal: { ...brief, held_by: { pid: 4121, since: files.ago(4) } } }) });
    expect(await lines()).toHaveLength(1);
    put({ status: files.status({ wal: { ...wal, held_by: null } }) });
    expect((await lines())[1]).toBe("  WAL 212 MiB, of which 53990 frames are not in the database file yet");
    put({ status: files.status({ wal: { ...wal, backfilled_frames: 54_000, held_by: null } }) });
    expect(await lines()).toHaveLength(1);
  });

  test("a full backup in progress, with per cent", async () => {
    const full_backup_in_progress = { index: 1, reason: "first backup", since: files.ago(200), progress: 0.999 };
    put({ status: files.status({ state: "snapshotting", full_backup: null, full_backup_in_progress }) });
    expect((await lines()).slice(1)).toEqual(["  full backup in progress: 99% after 3m20s (first backup)"]);
  });

  test("destinations that are not in sync", async () => {
    const destinations = [
      files.destination(),
      files.destination({
        location: "/mnt/b",
        state: "incomplete",
        behind_objects: 12,
        behind_bytes: 3_145_728,
      }),
      files.destination({ location: "/mnt/c", state: "backing off", unhealthy: files.unhealthy(61, 3) }),
    ];
    put({ status: files.status({ destinations }) });
    expect((await lines()).slice(1)).toEqual([
      "  destination /mnt/b: incomplete, 12 obj / 3.00 MiB behind",
      "  destination /mnt/c: backing off, stuck for 1m1s (3 failed attempts), cannot store the object: no space left",
    ]);
  });

  test("each mirror, and (stale) when its loop is gone", async () => {
    const mirrors = [
      {},
      { location: "/mnt/usb", state: "behind" as const, behind_objects: 20, behind_bytes: 1_048_576 },
      { location: "/mnt/nas", state: "backing off" as const, attempts: 3, last_error: files.failure(30, "no route") },
    ];
    put({ status: files.status(), mirror: files.mirrors(mirrors) });
    const expected = [
      "  mirror s3://elsewhere/app: in sync, last reconciled 20s ago",
      "  mirror /mnt/usb: 20 obj / 1.00 MiB behind, last reconciled 20s ago",
      "  mirror /mnt/nas: backing off after 3 failed attempts, last error: no route",
    ];
    expect((await lines()).slice(1)).toEqual(expected);
    const process = { ...(await readOwnIdentity()), pid: 4_194_303 };
    put({ mirror: { ...files.mirrors(mirrors), process } });
    expect((await lines()).slice(1)).toEqual(expected.map((line) => `${line} (stale)`));
    put({ status: files.status({ written_at: files.ago(60) }), mirror: files.mirrors([{}]) });
    expect((await lines()).at(-1)).toEndWith("(stale)");
  });

  test("what the newest verify found", async () => {
    put({ status: files.status(), verify: files.verify(18_000) });
    expect((await lines()).slice(1)).toEqual(["  verified: clean (deep) 5h ago"]);
    put({ verify: files.verifyProblems(600) });
    expect((await lines()).slice(1)).toEqual([
      "  verify: PROBLEMS (2 found by a shallow run 10m ago; last clean (deep) 1h10m ago)",
    ]);
    put({ verify: "{" });
    expect((await lines())[1]).toMatch(/^ {2}verify: .*app\.verify\.json cannot be used: it is not JSON$/);
  });

  test("control characters in messages do not reach the terminal", async () => {
    put({ status: files.status({ state: "waiting", detail: "a\u001b[2Jb" }) });
    expect((await lines())[1]).toBe("  a\\u001b[2Jb");
  });
});

describe("files that say nothing", () => {
  test("none at all: the daemon has never run", async () => {
    const { code, stdout } = await run();
    expect(code).toBe(0);
    expect(stdout).toBe(
      `DATABASE  STATE      FRESH  SYNCED  CHANGES  SHIPPED\napp       no status\n  the daemon has not run for this database (there is no ${directory.file("data/.bakelite/app.status.json")})\n`,
    );
  });

  test("the database's directory is not there", async () => {
    rmSync(directory.file("data"), { recursive: true });
    expect((await lines())[1]).toMatch(/^ {2}the directory of the database does not exist \(.*\); create /);
  });

  const rubbish: readonly (readonly [string, string | (() => string), RegExp])[] = [
    ["not JSON", "garbage", /it is not JSON$/],
    ["empty", "", /it is not JSON$/],
    ["cut short", () => JSON.stringify(files.status()).slice(0, 300), /it is not JSON$/],
    ["not a status", '{ "version": 1, "state": "live" }', /field \w+: /],
    ["of a newer bakelite", '{ "version": 2 }', /it has version 2, written by a newer bakelite; this one reads 1$/],
    ["of another database", () => JSON.stringify(files.status({ database: "b" })), /about the database b, not app$/],
  ];
  test.each(rubbish)("%s: unreadable, exit code 1, and the check fails", async (_, text, expected) => {
    put({ status: typeof text === "string" ? text : text() });
    const { code, stdout } = await run();
    expect(code).toBe(1);
    expect(stdout.split("\n")[1]).toMatch(/^app +unreadable$/);
    expect(stdout.trimEnd().split("\n")[2]).toMatch(expected);
    const check = await run(["--check"]);
    expect([check.code, check.stderr]).toEqual([1, ""]);
    expect(check.stdout).toStartWith("app: unreadable: ");
  });

  test("a symbolic link in its place is not followed", async () => {
    put({ status: files.status() });
    const status = directory.file("data/.bakelite/app.status.json");
    rmSync(status);
    symlinkSync("/etc/hostname", status);
    expect((await lines())[1]).toEndWith("it is a symbolic link");
  });

  test.skipIf(process.geteuid?.() === 0)("no permission: says so, with what to do", async () => {
    put({ status: files.status() });
    chmodSync(directory.file("data/.bakelite"), 0);
    try {
      const { code, stdout } = await run();
      expect(code).toBe(1);
      expect(stdout).toMatch(/permission denied .*; run as the database's owner or as root/);
      expect((await run(["--check"])).code).toBe(1);
    } finally {
      chmodSync(directory.file("data/.bakelite"), 0o700);
    }
  });

  test("a PID that another process has by now is not the daemon's", async () => {
    const process = { ...(await readOwnIdentity()), pid_start_ticks: "1" };
    put({ status: files.status({ process }) });
    expect((await lines())[0]).toMatch(/^app +not running +unknown /);
  });

  test("a link is followed to the database beside which the daemon publishes", async () => {
    mkdirSync(directory.file("data/real"));
    symlinkSync(directory.file("data/real/file.db"), path("app"));
    publish(directory.file("data/real/file.db"), "app", { status: files.status() });
    expect((await lines())[0]).toMatch(/^app +live /);
  });
});

describe("--check", () => {
  const limits = ["--max-lag", "10m", "--max-verify-age=36h"];

  test("is silent and 0 when all is well", async () => {
    put({ status: files.status(), verify: files.verify(60) });
    expect(await run(["--check", ...limits])).toEqual({ code: 0, stdout: "", stderr: "" });
  });

  test("has one line with every reason for each database that is not", async () => {
    configure("app", "second", "third");
    put({ status: files.status(), verify: files.verify(60) });
    put({ status: files.status({ state: "not wal", detail: "run: x" }) }, "second");
    const { code, stdout, stderr } = await run(["--check", ...limits]);
    expect([code, stderr]).toEqual([1, ""]);
    expect(stdout.trimEnd().split("\n")).toEqual([
      "second: not wal: run: x; never verified",
      expect.stringMatching(/^third: no status: the daemon has not run .*; never verified$/),
    ]);
  });

  test("--json gives the full report with the same exit code", async () => {
    put({ status: files.status({ lag_seconds: 700, oldest_unstored_at: files.ago(700) }) });
    const { code, stdout, stderr } = await run(["--check", "--json", ...limits]);
    expect([code, stderr]).toEqual([1, ""]);
    const document = statusDocument.parse(JSON.parse(stdout));
    expect(document.healthy).toBe(false);
    expect(document.databases[0]?.reasons).toEqual([
      { kind: "lag", message: "11m40s behind, more than 10m" },
      { kind: "verify", message: "never verified" },
    ]);
    put({ status: files.status(), verify: files.verify(60) });
    expect((await run(["--check", "--json", ...limits])).code).toBe(0);
  });

  test("the marker of a verify from another place is found in $BAKELITE_STATE_DIR", async () => {
    put({ status: files.status() });
    writeFileSync(directory.file("data/app.verify.json"), JSON.stringify(files.verify(60)));
    const env = { BAKELITE_STATE_DIR: directory.file("data") };
    expect((await run(["--check", "--max-verify-age", "1h"], { env })).code).toBe(0);
    expect((await run(["--check", "--max-verify-age", "1h"])).stdout).toBe("app: never verified\n");
  });
});

describe("wrong usage", () => {
  test.each([
    [["--max-lag", "10m"], "bakelite: `--max-lag` only goes with `--check`\n"],
    [["--max-verify-age", "10m"], "bakelite: `--max-verify-age` only goes with `--check`\n"],
    [
      ["--check", "--max-lag", "10"],
      'bakelite: `--max-lag`: "10" is not a duration such as "250ms", "5m", "1h30m" or "7d"\n',
    ],
    [
      ["--check", "--max-verify-age=soon"],
      'bakelite: `--max-verify-age`: "soon" is not a duration such as "250ms", "5m", "1h30m" or "7d"\n',
    ],
    [["--check", "--max-lag"], "bakelite: `--max-lag` needs a value: --max-lag <duration>\n"],
    [["--check=yes"], "bakelite: `--check` takes no value\n"],
  ])("%j is refused with one sentence", async (argv, expected) => {
    expect(await run(argv)).toEqual({ code: 2, stdout: "", stderr: expected });
  });

  test("an unknown flag, an argument and a bad config are refused", async () => {
    expect((await run(["--chek"])).stderr).toContain("did you mean `--check`?");
    expect((await run(["app"])).stderr).toContain("unexpected argument `app`");
    writeFileSync(config, "");
    const { code, stdout, stderr } = await run(["--check"]);
    expect([code, stdout]).toEqual([2, ""]);
    expect(stderr).toContain("invalid configuration");
  });
});

const statusDocument = z.strictObject({
  checked_at: z.iso.datetime(),
  healthy: z.boolean(),
  databases: z.array(
    z.strictObject({
      name: z.string(),
      path: z.string(),
      state: z.string(),
      healthy: z.boolean(),
      reasons: z.array(z.strictObject({ kind: z.string(), message: z.string() })),
      lag_seconds: z.number().nullable(),
      process_running: z.boolean().nullable(),
      status: statusSchema.nullable(),
      status_problem: z.string().nullable(),
      verify: verifyMarkerSchema.nullable(),
      verify_problem: z.string().nullable(),
      mirrors: mirrorStatusSchema.extend({ stale: z.boolean() }).nullable(),
      mirrors_problem: z.string().nullable(),
    }),
  ),
});

test("--json holds the three files as they are, and what is made of them", async () => {
  configure("app", "other", "third");
  const published = { status: files.status(), verify: files.verify(60), mirror: files.mirrors([{}]) };
  put(published);
  put({ status: "x", verify: "x", mirror: "x" }, "other");
  const { code, stdout } = await run(["--json"]);
  expect(code).toBe(1);
  const { databases } = statusDocument.parse(JSON.parse(stdout));
  expect(databases[0]).toEqual({
    name: "app",
    path: path("app"),
    state: "live",
    healthy: true,
    reasons: [],
    lag_seconds: 0,
    process_running: true,
    status: published.status,
    status_problem: null,
    verify: published.verify,
    verify_problem: null,
    mirrors: { stale: false, ...published.mirror },
    mirrors_problem: null,
  });
  expect(databases[1]).toMatchObject({ state: "unreadable", healthy: false, status: null, process_running: null });
  for (const problem of ["status_problem", "verify_problem", "mirrors_problem"] as const)
    expect(databases[1]?.[problem]).toContain("it is not JSON");
  expect(databases[2]).toMatchObject({ state: "no status", mirrors: null, verify_problem: null });
});

test("a fleet of 500 is read at once", async () => {
  const names = Array.from({ length: 500 }, (_, i) => `db-${i}`);
  configure(...names);
  for (const name of names) put({ status: files.status() }, name);
  expect(await lines()).toHaveLength(500);
});

test("the example in docs/json.md has the shape of the report, and its tables name every field", async () => {
  const text = await Bun.file(resolve(import.meta.dir, "../../docs/json.md")).text();
  const section = text.split("\n## ").find((part) => part.startsWith("status\n")) ?? "";
  statusDocument.parse(JSON.parse(/^```json\n(.*?)^```$/ms.exec(section)?.[1] ?? ""));
  const explained = section.slice(section.indexOf("| field |"));
  const fields = [...Object.keys(statusDocument.shape), ...Object.keys(statusDocument.shape.databases.element.shape)];
  for (const field of [...fields, "kind", "message", "stale"]) expect(explained).toMatch(new RegExp(`\\b${field}\``));
});
