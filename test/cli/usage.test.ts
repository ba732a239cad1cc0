import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { FileBackend } from "../../src/storage/file.ts";
import { runBakelite } from "../oracle/daemon-process.ts";
import { ReplicaBuilder } from "../replica/builder.ts";
import { seededRandom } from "../support/random.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";

let directory: TemporaryDirectory;
let config: string;

beforeAll(async () => {
  directory = await temporaryDirectory("cli-usage");
  config = directory.file("bakelite.toml");
  const backends = ["here", "there"].map((name) => new FileBackend({ path: directory.file(name) }));
  const app = new ReplicaBuilder({ backends, random: seededRandom(3), startMs: Date.UTC(2026, 4, 25) });
  app.beginChain([app.randomImage(), app.randomImage()]);
  await app.storeFull(1);
  for (let i = 2; i <= 6; i++) {
    app.passTime(60_000);
    await app.storeChangeSet(app.commitRandom(1).index);
  }
  await app.storeFull(4);
  await app.storeCurrent(4);
  writeFileSync(
    config,
    [
      database("app", ["here", "there"], 'max_total_size = "1MiB"\nmax_backups = 4\n'),
      database("new", ["here"], ""),
    ].join("\n"),
  );
});

afterAll(() => directory[Symbol.asyncDispose]());

function database(name: string, places: readonly string[], settings: string): string {
  const tables = places.map(
    (place) => `[[database.backends]]\ntype = "file"\npath = "${directory.file(place)}"\nretries = 0\n`,
  );
  return `[[database]]\nname = "${name}"\npath = "${directory.file(`${name}.db`)}"\n${settings}${tables.join("")}`;
}

async function run(...argv: readonly string[]) {
  return await runBakelite("executable", [...argv, "--config", config]);
}

async function storedBytes(place: string): Promise<number> {
  let sum = 0;
  for await (const { sizeBytes } of new FileBackend({ path: directory.file(place) }).list("app/")) sum += sizeBytes;
  return sum;
}

describe("usage", () => {
  test("one line for each database: what all its destinations store, and how much of its limits the fullest one has used", async () => {
    const { status, stdout, stderr } = await run("usage");
    expect([status, stderr]).toEqual([0, ""]);
    const [title = "", app = "", empty = "", ...rest] = stdout.split("\n");
    expect(title).toMatch(/^DATABASE +STORED +OBJECTS +FULL +LIMIT +USED +OLD VERSIONS +UNFINISHED UPLOADS$/);
    expect(app).toMatch(/^app +[\d.]+ KiB +16 +2 +1\.00 MiB, 4 full backups +0\.\d%, 50%$/);
    expect(empty).toMatch(/^new +0 B +0 +0 +none$/);
    expect(rest).toEqual([""]);
  });

  test("with --db, each full backup and the change-sets that follow it, at each destination", async () => {
    const { status, stdout } = await run("usage", "--db", "app");
    expect(status).toBe(0);
    for (const place of ["here", "there"]) {
      const section =
        stdout
          .split(`app at ${directory.file(place)}\n`)[1]
          ?.split("\n")
          .slice(0, 3) ?? [];
      expect(section[0]).toMatch(/^ {2}FULL BACKUP +STORED +CHANGE-SETS +STORED +TOGETHER +SHARE$/);
      expect(section[1]).toMatch(/^ {2}state 1, 2026-05-25T00:00:\d\d\.\d{3}Z +[\d.]+ (?:B|KiB) +3 /);
      expect(section[2]).toMatch(/^ {2}state 4, 2026-05-25T00:03:\d\d\.\d{3}Z +[\d.]+ (?:B|KiB) +2 /);
    }
  });

  test("--json has the numbers of each destination and of the limits", async () => {
    const { status, stdout } = await run("usage", "--json", "--db", "app");
    expect(status).toBe(0);
    const here = await storedBytes("here");
    expect(JSON.parse(stdout)).toMatchObject({
      databases: [
        {
          name: "app",
          error: null,
          stored_bytes: here + (await storedBytes("there")),
          limits: { max_total_size_bytes: 2 ** 20, total_size_used: here / 2 ** 20, max_backups: 4, backups_used: 0.5 },
          destinations: [
            {
              destination: directory.file("here"),
              error: null,
              stored_bytes: here,
              objects: 8,
              full_backups: 2,
              change_sets: 5,
              backups: [
                { index: 1, change_sets: 3 },
                { index: 4, change_sets: 2 },
              ],
              noncurrent_versions: null,
              unfinished_uploads: null,
              inspected: null,
            },
            { destination: directory.file("there") },
          ],
        },
      ],
    });
  });

  test("a destination that cannot be read is named, the others are shown, and the exit code is 1", async () => {
    const broken = directory.file("broken.toml");
    writeFileSync(broken, [database("app", ["here", "gone/deep"], ""), database("lost", ["gone/deep"], "")].join("\n"));
    const { status, stdout, stderr } = await runBakelite("executable", ["usage", "--config", broken]);
    expect(status).toBe(1);
    expect(stdout).toMatch(/^app +[\d.]+ KiB +8 /m);
    expect(stdout).toMatch(/^lost +cannot be read \(see below\)$/m);
    expect(stderr).toMatch(/^app: .*gone/m);
    expect(stderr).toMatch(/^lost: .*gone/m);
    expect(stderr).toContain("  hint: ");
  });
});

describe("reclaim", () => {
  test("says of each destination that is not S3 that it leaves nothing", async () => {
    for (const argv of [[], ["--dry-run"], ["--min-age", "0s"]]) {
      const { status, stdout, stderr } = await run("reclaim", ...argv);
      expect([status, stderr]).toEqual([0, ""]);
      expect(stdout.split("\n")).toEqual([
        `app at ${directory.file("here")}: this kind of destination leaves nothing unfinished`,
        `app at ${directory.file("there")}: this kind of destination leaves nothing unfinished`,
        `new at ${directory.file("here")}: this kind of destination leaves nothing unfinished`,
        "",
      ]);
    }
  });

  test("--json says the same", async () => {
    const { stdout } = await run("reclaim", "--db", "new", "--dry-run", "--json");
    expect(JSON.parse(stdout)).toEqual({
      dry_run: true,
      destinations: [
        {
          database: "new",
          destination: directory.file("here"),
          error: null,
          inspected: false,
          can_leave_uploads: false,
          uploads: [],
        },
      ],
    });
  });

  test("a malformed minimum age is refused", async () => {
    const { status, stdout, stderr } = await run("reclaim", "--min-age", "1 fortnight");
    expect([status, stdout]).toEqual([2, ""]);
    expect(stderr).toStartWith('bakelite: `--min-age`: "1 fortnight" is not a duration such as');
  });
});
