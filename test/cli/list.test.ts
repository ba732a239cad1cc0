import { afterAll, beforeAll, expect, test } from "bun:test";
import { rmSync, writeFileSync } from "node:fs";
import { runCli } from "../../src/cli/run.ts";
import { FileBackend } from "../../src/storage/file.ts";
import { ReplicaBuilder, testKey } from "../replica/builder.ts";
import { seededRandom } from "../support/random.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";
import { fakeHost } from "./fake-host.ts";

const HOUR_MS = 3_600_000;
const NOW_MS = Date.UTC(2026, 4, 25, 12);
const NOTES_WARNING = /^(note|app): ignoring .*\/here\/app\/notes\.txt: not a name that bakelite gives\n$/;
let directory: TemporaryDirectory;
let config: string;

beforeAll(async () => {
  directory = await temporaryDirectory("cli-list");
  config = directory.file("bakelite.toml");
  const here = new FileBackend({ path: directory.file("here") });
  const there = new FileBackend({ path: directory.file("there") });

  // A day and more of history: 50 states an hour apart, full backups at 1 and 26, the older half compacted by fives.
  const app = new ReplicaBuilder({
    backends: [here, there],
    random: seededRandom(1),
    startMs: NOW_MS - 49.5 * HOUR_MS,
  });
  app.beginChain([app.randomImage(), app.randomImage()]);
  await app.storeFull(1);
  for (let i = 2; i <= 50; i++) {
    app.passTime(HOUR_MS);
    await app.storeChangeSet(app.commitRandom(1).index);
  }
  await app.storeFull(26, 28);
  for (let first = 2; first <= 21; first += 5) {
    await app.compact(1, first, first + 4);
    const inputs = Array.from(
      { length: 5 },
      (_, i) =>
        `app/L0/${String(first + i)
          .padStart(16, "0")
          .repeat(2)
          .replace(/(.{16})/, "$1-")}.p`,
    );
    for (const backend of [here, there]) await backend.delete(inputs);
  }
  await there.delete(["app/L0/0000000000000030-0000000000000030.p"]);

  const sealed = new ReplicaBuilder({
    backends: [here],
    random: seededRandom(2),
    database: "sealed",
    seal: testKey(1),
    startMs: NOW_MS - 5_000,
  });
  sealed.beginChain([sealed.randomImage()]);
  await sealed.storeFull(1);
  await Bun.write(directory.file("here/app/notes.txt"), "not ours");

  writeFileSync(config, [database("app", "here", "there"), database("new", "here")].join("\n"));
});

afterAll(() => directory[Symbol.asyncDispose]());

function database(name: string, ...backends: readonly string[]): string {
  const tables = backends.map(
    (path) => `[[database.backends]]\ntype = "file"\npath = "${directory.file(path)}"\nretries = 0\n`,
  );
  return `[[database]]\nname = "${name}"\npath = "${directory.file(`${name}.db`)}"\n${tables.join("")}`;
}

async function run(...argv: readonly string[]) {
  const host = fakeHost({ clock: { nowMs: () => NOW_MS, monotonicMs: () => 0 } });
  const code = await runCli(["list", "--config", config, ...argv], host);
  return { code, stdout: host.stdout.text, stderr: host.stderr.text };
}

async function withConfig(text: string, work: () => Promise<void>): Promise<void> {
  const before = await Bun.file(config).text();
  writeFileSync(config, text);
  try {
    await work();
  } finally {
    writeFileSync(config, before);
  }
}

test("the fleet has one row for each database", async () => {
  const { code, stdout, stderr } = await run();
  expect([code, stderr]).toEqual([0, expect.stringMatching(NOTES_WARNING)]);
  const [title, ...rows] = stdout.trimEnd().split("\n");
  expect(title).toMatch(/^DATABASE +NEWEST RESTORE POINT +OLDEST RESTORE POINT +FULL +CHANGE-SETS +STORED$/);
  expect(rows).toEqual([
    expect.stringMatching(
      /^app +2026-05-25T11:30:00\.000Z \(30m ago\) +2026-05-23T10:30:00\.000Z \(2d1h ago\) +2 +33 +\d/,
    ),
    expect.stringMatching(/^new +none +none +0 +0 +0 B$/),
  ]);
});

test("the fleet as a document", async () => {
  const { stdout } = await run("--json");
  expect(JSON.parse(stdout)).toEqual({
    databases: [
      {
        name: "app",
        newest_restore_point: { index: 50, time: "2026-05-25T11:30:00.000Z" },
        oldest_restore_point: { index: 1, time: "2026-05-23T10:30:00.000Z" },
        full_backups: 2,
        change_sets: 33,
        stored_bytes: expect.any(Number),
        warnings: [expect.stringContaining("notes.txt")],
      },
      {
        name: "new",
        newest_restore_point: null,
        oldest_restore_point: null,
        full_backups: 0,
        change_sets: 0,
        stored_bytes: 0,
        warnings: [],
      },
    ],
  });
});

test("one database shows each full backup with its restore points, and how densely they lie by age", async () => {
  const { code, stdout, stderr } = await run("--db", "app");
  expect([code, stderr]).toEqual([0, expect.stringMatching(NOTES_WARNING)]);
  const sections = stdout.trimEnd().split("\n\n");
  expect(sections[0]).toMatch(
    /newest restore point {2}2026-05-25T11:30:00\.000Z \(30m ago\)\n.*\n {2}stored {16}2 full backups and 33 change-sets/,
  );
  // Restore points 1, 6, 11, 16, 21 to 27 of the first one; from 28, where the second is settled, to 50.
  expect(sections[1]?.split("\n").slice(1)).toEqual([
    expect.stringMatching(
      /^state 1, 2026-05-23T10:30:00\.000Z +1\.00 KiB +\S+ \S+ +11 +2026-05-23T10:30:00\.000Z \(2d1h ago\) +2026-05-24T12:30:00\.000Z \(23h30m ago\)$/,
    ),
    expect.stringMatching(
      /^state 26, 2026-05-24T11:30:00\.000Z +1\.00 KiB +\S+ \S+ +23 +2026-05-24T13:30:00\.000Z \(22h30m ago\) +2026-05-25T11:30:00\.000Z \(30m ago\)$/,
    ),
  ]);
  expect(sections[2]?.split("\n")).toEqual([
    expect.stringMatching(/^AGE +RESTORE POINTS +ONE ABOUT EVERY$/),
    expect.stringMatching(/^up to 1h +1$/),
    expect.stringMatching(/^up to 1d +23 +1h$/),
    expect.stringMatching(/^up to 7d +10 +2h46m$/),
  ]);
});

test("--verbose shows every object, and what its copies differ in", async () => {
  const { stdout } = await run("--db", "app", "--verbose");
  const rows = stdout.trimEnd().split("\n\n")[3]?.split("\n") ?? [];
  expect(rows).toHaveLength(36);
  expect(rows[1]).toMatch(
    /^full\/0000000000000001\.p +1 +2026-05-23T10:30:00\.000Z +2026-05-23T10:30:00\.000Z +2 +1\.00 KiB +\S+ \S+ +no$/,
  );
  expect(rows.find((row) => row.startsWith("L1/0000000000000002-"))).toMatch(
    / 1 +2-6 +2026-05-23T11:30:00\.000Z +2026-05-23T15:30:00\.000Z /,
  );
  expect(rows.find((row) => row.startsWith("L0/0000000000000030-"))).toEndWith(`not at ${directory.file("there")}`);
});

test("one database as a document holds all that the text shows", async () => {
  const { stdout } = await run("--db", "app", "--verbose", "--json");
  const document = JSON.parse(stdout);
  expect(document).toMatchObject({
    name: "app",
    destinations: [directory.file("here"), directory.file("there")],
    full_backup_list: [
      { index: 1, restore_points: 11, newest_restore_point: { index: 27 }, seal: "p" },
      {
        index: 26,
        restore_points: 23,
        oldest_restore_point: { index: 28 },
        destinations: [directory.file("here"), directory.file("there")],
      },
    ],
    restore_points_by_age: [
      { younger_than_ms: HOUR_MS, restore_points: 1, mean_spacing_ms: null },
      { younger_than_ms: 24 * HOUR_MS, restore_points: 23, mean_spacing_ms: HOUR_MS },
      { younger_than_ms: 168 * HOUR_MS, restore_points: 10, mean_spacing_ms: 10_000_000 },
    ],
  });
  expect(document.objects).toHaveLength(35);
  expect(document.objects.find((object: { first: number }) => object.first === 30)).toMatchObject({
    kind: "change-set",
    encrypted: false,
    copies: [{ destination: directory.file("here") }],
    notes: [`not at ${directory.file("there")}`],
  });
});

test("a destination that cannot be reached makes the command fail, and the other databases are listed all the same", async () => {
  await withConfig([database("app", "here"), database("lost", "unmounted/backups")].join("\n"), async () => {
    const { code, stdout, stderr } = await run();
    expect(code).toBe(1);
    expect(stdout).toMatch(/^app +2026-05-25T11:30/m);
    expect(stdout).toMatch(/^lost +cannot be read/m);
    expect(stderr).toContain("lost: cannot reach the backup directory");
    const json = await run("--json");
    expect([json.code, JSON.parse(json.stdout).databases[1]]).toEqual([
      1,
      { name: "lost", error: { code: "storage-unreachable", message: expect.stringContaining("cannot reach") } },
    ]);
    expect((await run("--db", "lost")).code).toBe(1);
  });
});

test("of two destinations one that cannot be reached is a warning", async () => {
  await withConfig(database("app", "unmounted/backups", "there"), async () => {
    const { code, stdout, stderr } = await run();
    expect(code).toBe(0);
    // State 30 is missing there.
    expect(stdout).toMatch(/^app +2026-05-24T14:30:00\.000Z/m);
    expect(stderr).toContain(
      `app: ${directory.file("unmounted/backups")} is left aside: cannot reach the backup directory`,
    );
  });
});

test("a sealed replica without its key is an error that names the key, and --verbose lists what names tell", async () => {
  await withConfig(database("sealed", "here"), async () => {
    const fleet = await run();
    expect(fleet.code).toBe(1);
    expect(fleet.stdout).toMatch(/^sealed +cannot be read \(see below\)$/m);
    const one = await run("--db", "sealed");
    expect(one).toMatchObject({ code: 1, stdout: "" });
    const verbose = await run("--db", "sealed", "--verbose");
    expect(verbose.code).toBe(1);
    expect(verbose.stdout).toContain("cannot be read with the configured key");
    for (const { stderr } of [fleet, one, verbose])
      expect(stderr).toMatch(/cannot list: the replica was written with key [0-9a-f]{8}, and no key is configured/);
  });
});

test("an object that is damaged is shown as such", async () => {
  const copy = directory.file("damaged");
  await Bun.$`cp -r ${directory.file("there")} ${copy}`;
  const path = `${copy}/app/full/0000000000000026.p`;
  writeFileSync(path, (await Bun.file(path).bytes()).subarray(0, 100));
  await withConfig(database("app", "damaged"), async () => {
    const { stdout } = await run("--db", "app", "--verbose");
    expect(stdout).toMatch(/^state 26 +\d+ B +damaged$/m);
    expect(stdout).toMatch(/^full\/0000000000000026\.p .*stored object is damaged/m);
  });
  rmSync(copy, { recursive: true });
});
