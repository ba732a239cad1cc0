import { afterAll, beforeAll, expect, test } from "bun:test";
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { runCli } from "../../src/cli/run.ts";
import { formatKeyText } from "../../src/format/envelope.ts";
import { FileBackend } from "../../src/storage/file.ts";
import { ReplicaBuilder, testKey } from "../replica/builder.ts";
import { makeDatabase, pagesOfFile, rowsOf } from "../replica/sqlite-history.ts";
import { eventually } from "../support/eventually.ts";
import { seededRandom } from "../support/random.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";
import { fakeHost } from "./fake-host.ts";

const PAGE_SIZE = 4096;
const START_MS = Date.UTC(2026, 4, 25, 11);
const NOW_MS = Date.UTC(2026, 4, 25, 12);
let directory: TemporaryDirectory;
let config: string;
let live: string;

/** States 1 to 5, a minute apart: state n has 10 n rows. */
beforeAll(async () => {
  directory = await temporaryDirectory("cli-restore");
  for (const name of ["backups", "live", "out"]) mkdirSync(directory.file(name));
  live = directory.file("live", "app.db");
  const source = directory.file("source.db");
  const backend = new FileBackend({ path: directory.file("backups") });
  const builder = new ReplicaBuilder({
    backends: [backend],
    random: seededRandom(1),
    pageSizeBytes: PAGE_SIZE,
    startMs: START_MS,
  });
  makeDatabase(source, 10);
  builder.beginChain(pagesOfFile(source, PAGE_SIZE));
  await builder.storeFull(1);
  for (let i = 2; i <= 5; i++) {
    makeDatabase(source, 10);
    builder.passTime(60_000);
    const pages = pagesOfFile(source, PAGE_SIZE);
    await builder.storeChangeSet(
      builder.commit(new Map(pages.map((image, at) => [at + 1, image])), pages.length).index,
    );
  }
  config = directory.file("bakelite.toml");
  writeFileSync(config, toml("app", live, "backups"));
});

afterAll(() => directory[Symbol.asyncDispose]());

function toml(name: string, path: string, backups: string, more = ""): string {
  return `[[database]]\nname = "${name}"\npath = "${path}"\n${more}\n[[database.backends]]\ntype = "file"\npath = "${directory.file(backups)}"\nretries = 0\n`;
}

async function run(...argv: readonly string[]) {
  const host = fakeHost({ clock: { nowMs: () => NOW_MS, monotonicMs: () => 0 } });
  const code = await runCli(["restore", "--config", config, ...argv], host);
  return { code, stdout: host.stdout.text, stderr: host.stderr.text };
}

let outputs = 0;
const output = () => directory.file("out", `${outputs++}.db`);

test("the latest restore point goes to --output, and what it was is told", async () => {
  const path = output();
  const { code, stdout, stderr } = await run("--db", "app", "--output", path);
  expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
  expect(rowsOf(path)).toHaveLength(50);
  expect(stdout.replace(/^ {2}size .*$/m, "  size")).toBe(
    [
      `restored app to ${path}`,
      "  restore point  2026-05-25T11:04:00.000Z (state 5), 56m ago",
      "  next one       none",
      "  made of        full backup 1 and 4 change-sets",
      "  size",
      "  checked        equal to what the daemon saw (digest); integrity_check ok",
      "",
    ].join("\n"),
  );
});

test.each([
  ["2026-05-25T11:02:30Z", 3, 30_000],
  ["2026-05-25T13:02:30+02:00", 3, 30_000],
  ["57 minutes ago", 4, 0],
  ["3481s ago", 2, 59_000],
])("--timestamp %s restores state %d", async (timestamp, index, beforeMs) => {
  const path = output();
  const { code, stdout } = await run("--output", path, "--timestamp", timestamp, "--json");
  expect(code).toBe(0);
  expect(JSON.parse(stdout)).toMatchObject({
    database: "app",
    restored: true,
    output: path,
    restore_point: { index, time: new Date(START_MS + (index - 1) * 60_000).toISOString(), before_target_ms: beforeMs },
    next_restore_point: { index: index + 1, time: new Date(START_MS + index * 60_000).toISOString() },
    full_backup: 1,
    change_sets: index - 1,
    digest_compared: true,
    integrity: "full",
    notes: [],
  });
  expect(rowsOf(path)).toHaveLength(10 * index);
});

test("what was fetched is told as it is for a replica so small that planning has read it all", async () => {
  const { code, stdout } = await run("--output", output(), "--timestamp", "2026-05-25T11:00:00Z", "--json");
  const full = readdirSync(directory.file("backups", "app", "full"));
  const storedBytes = full.reduce(
    (sum, name) => sum + statSync(directory.file("backups", "app", "full", name)).size,
    0,
  );
  expect([code, JSON.parse(stdout).change_sets]).toEqual([0, 0]);
  expect(JSON.parse(stdout).fetched_bytes).toBeGreaterThanOrEqual(storedBytes);
});

test("an --output in a folder that does not exist is told with what to do about --output", async () => {
  const { code, stderr } = await run("--output", directory.file("nowhere", "app.db"));
  expect([code, stderr]).toEqual([
    1,
    `bakelite: cannot restore there: the directory does not exist (${directory.file("nowhere", "app.db")})\n  hint: create ${directory.file("nowhere")}, or choose another --output\n`,
  ]);
});

test("a target in the future means the latest, with a note", async () => {
  const { code, stderr, stdout } = await run("--output", output(), "--timestamp", "2026-05-25T12:00:01Z");
  expect(code).toBe(0);
  expect(stderr).toBe("note: the target lies in the future: this is the latest restore point\n");
  expect(stdout).toContain("(state 5)");
  const json = await run("--output", output(), "--timestamp", "2027-01-01", "--json");
  expect(JSON.parse(json.stdout)).toMatchObject({
    restore_point: { index: 5 },
    notes: [expect.stringContaining("in the future")],
  });
});

test("a target before the first restore point fails and names the first", async () => {
  const path = output();
  const { code, stderr } = await run("--output", path, "--timestamp", "2026-05-25T10:59:59Z");
  expect(code).toBe(1);
  expect(stderr).toContain(
    "cannot restore 2026-05-25T10:59:59.000Z: the first restore point is 2026-05-25T11:00:00.000Z (state 1)",
  );
  expect(existsSync(path)).toBe(false);
});

test.each([
  [[], "`--output` is required"],
  [["--output", "x", "--timestamp", "yesterday"], '"yesterday" is not a time'],
  [["--output", "x", "--timestamp", "2026-02-30"], "not a possible time"],
  [["--output", "x", "--integrity", "some"], '`--integrity`: "some" is not one of quick, full, none'],
  [["--output", "x", "--db", "ap"], "no database named `ap` is configured; did you mean `app`?"],
  [["--output", "x", "--forced"], "did you mean `--force`?"],
])("wrong usage %j is refused with exit code 2", async (argv, message) => {
  const { code, stderr } = await run(...argv);
  expect(code).toBe(2);
  expect(stderr).toContain(message);
});

test("with several databases configured --db is required", async () => {
  const before = readFileSync(config, "utf8");
  writeFileSync(config, before + toml("other", directory.file("live", "other.db"), "backups"));
  try {
    const { code, stderr } = await run("--output", output());
    expect([code, stderr]).toEqual([
      2,
      expect.stringContaining("`--db` is required: the configuration has more than one database"),
    ]);
    expect((await run("--output", output(), "--db", "app")).code).toBe(0);
  } finally {
    writeFileSync(config, before);
  }
});

test("an existing output is refused without --force", async () => {
  const path = output();
  writeFileSync(path, "mine");
  const { code, stderr } = await run("--output", path);
  expect([code, stderr]).toEqual([1, expect.stringContaining("the file exists")]);
  expect(readFileSync(path, "utf8")).toBe("mine");
  expect((await run("--output", path, "--force", "--integrity", "quick")).stdout).toContain("quick_check ok");
  expect(rowsOf(path)).toHaveLength(50);
});

test("on first boot the database is restored in place, and on every later one nothing happens", async () => {
  const first = await run("--db", "app", "--if-db-not-exists", "--if-replica-exists");
  expect([first.code, rowsOf(live).length]).toEqual([0, 50]);
  expect(readdirSync(directory.file("live"))).toEqual(["app.db"]);
  writeFileSync(live, "the application's own now");
  const later = await run("--db", "app", "--if-db-not-exists", "--if-replica-exists");
  expect(later).toEqual({ code: 0, stdout: `nothing to restore for app: ${live} exists\n`, stderr: "" });
  const json = await run("--db", "app", "--if-db-not-exists", "--json");
  expect(JSON.parse(json.stdout)).toEqual({ database: "app", restored: false, reason: "database-exists" });
  expect(readFileSync(live, "utf8")).toBe("the application's own now");
  rmSync(live);
  symlinkSync("elsewhere.db", live);
  expect((await run("--if-db-not-exists")).code).toBe(0);
  expect(rowsOf(directory.file("live", "elsewhere.db"))).toHaveLength(50);
  rmSync(live);
  rmSync(directory.file("live", "elsewhere.db"));
});

test("a new deployment with nothing backed up yet is no failure, but a destination that cannot be reached is", async () => {
  const before = readFileSync(config, "utf8");
  try {
    writeFileSync(config, toml("app", live, "not-created-yet"));
    expect(await run("--if-db-not-exists", "--if-replica-exists")).toEqual({
      code: 0,
      stdout: "nothing to restore for app: nothing has been backed up yet\n",
      stderr: "",
    });
    const strict = await run("--if-db-not-exists");
    expect([strict.code, strict.stderr]).toEqual([1, expect.stringContaining("nothing is stored for database `app`")]);
    writeFileSync(config, toml("app", live, "unmounted/backups"));
    const down = await run("--if-db-not-exists", "--if-replica-exists");
    expect([down.code, down.stderr]).toEqual([1, expect.stringContaining("cannot reach the backup directory")]);
  } finally {
    writeFileSync(config, before);
  }
  expect(existsSync(live)).toBe(false);
});

test("a replica without any full backup is a failure, not a replica that does not exist", async () => {
  const before = readFileSync(config, "utf8");
  const backend = new FileBackend({ path: directory.file("half") });
  const builder = new ReplicaBuilder({ backends: [backend], random: seededRandom(1) });
  builder.beginChain([builder.randomImage()]);
  await builder.storeChangeSet(builder.commitRandom(1).index);
  try {
    writeFileSync(config, toml("app", live, "half"));
    const { code, stderr } = await run("--if-db-not-exists", "--if-replica-exists");
    expect([code, stderr]).toEqual([1, expect.stringContaining("no full backup is stored yet")]);
  } finally {
    writeFileSync(config, before);
  }
});

test("a sealed replica is restored with its key, and refused with another or none", async () => {
  const before = readFileSync(config, "utf8");
  const backend = new FileBackend({ path: directory.file("sealed") });
  const raw = new Uint8Array(32).fill(7);
  const builder = new ReplicaBuilder({
    backends: [backend],
    random: seededRandom(1),
    pageSizeBytes: PAGE_SIZE,
    seal: testKey(7),
  });
  makeDatabase(directory.file("sealed.db"), 4);
  builder.beginChain(pagesOfFile(directory.file("sealed.db"), PAGE_SIZE));
  await builder.storeFull(1);
  const keyFile = (text: string) => {
    writeFileSync(directory.file("key.txt"), text, { mode: 0o600 });
    return `encryption = { key_file = "${directory.file("key.txt")}" }`;
  };
  try {
    writeFileSync(config, toml("app", live, "sealed", keyFile(formatKeyText(raw))));
    const path = output();
    expect((await run("--output", path)).code).toBe(0);
    expect(rowsOf(path)).toHaveLength(4);
    writeFileSync(config, toml("app", live, "sealed", keyFile(formatKeyText(new Uint8Array(32).fill(8)))));
    const wrong = await run("--output", output());
    expect([wrong.code, wrong.stderr]).toEqual([
      1,
      expect.stringContaining(
        `the replica was written with key ${builder.sealText}, this is ${testKey(8).fingerprint}`,
      ),
    ]);
    writeFileSync(config, toml("app", live, "sealed"));
    expect((await run("--output", output())).stderr).toContain("no key is configured");
    // And the other way round: a key is configured, and what is stored is not sealed.
    writeFileSync(config, toml("app", live, "backups", keyFile(formatKeyText(raw))));
    expect((await run("--output", output())).stderr).toContain(
      "the replica is not encrypted, but the config names a key",
    );
  } finally {
    writeFileSync(config, before);
  }
});

test("SIGINT in the middle removes what was staged and exits 130", async () => {
  const big = directory.file("out", "big.db");
  const backend = new FileBackend({ path: directory.file("big") });
  const builder = new ReplicaBuilder({
    backends: [backend],
    random: seededRandom(1),
    pageSizeBytes: 65_536,
    compression: "none",
  });
  const image = builder.randomImage();
  builder.beginChain(Array.from({ length: 2_000 }, () => image));
  await builder.storeFull(1);
  const bigConfig = directory.file("big.toml");
  writeFileSync(bigConfig, toml("app", live, "big"));
  const main = new URL("../../src/main.ts", import.meta.url).pathname;
  const child = Bun.spawn(
    [process.execPath, main, "restore", "--config", bigConfig, "--output", big, "--integrity", "none"],
    { stdout: "ignore", stderr: "pipe" },
  );
  await eventually(
    () => readdirSync(directory.file("out")).some((name) => name.startsWith("big.db.bakelite-restore-")),
    { what: "the staging file", pollMs: 1 },
  );
  child.kill("SIGINT");
  const stderr = await new Response(child.stderr).text();
  expect([await child.exited, stderr]).toEqual([130, "bakelite: stopped by SIGINT\n"]);
  expect(readdirSync(directory.file("out")).filter((name) => name.startsWith("big.db"))).toEqual([]);
});
