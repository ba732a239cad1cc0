import { afterAll, beforeAll, expect, test } from "bun:test";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { FileBackend } from "../../src/storage/file.ts";
import { ReplicaBuilder } from "../replica/builder.ts";
import { eventually } from "../support/eventually.ts";
import { executablePath } from "../support/executable.ts";
import { seededRandom } from "../support/random.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";

const PAGE_SIZE = 65_536;
const PAGES = 1_200;
const STATUS = { SIGHUP: 129, SIGINT: 130, SIGTERM: 143, SIGKILL: 137 } as const;
const STARTED_MS = Date.UTC(2026, 4, 25, 11);
const TIMEOUT_MS = 60_000;

let directory: TemporaryDirectory;
let config: string;
/** Of the two states that are stored, a minute apart: 75 MiB of the same page, large enough to be caught at work. */
let states: readonly [string, string];

beforeAll(async () => {
  directory = await temporaryDirectory("interrupted");
  const builder = new ReplicaBuilder({
    backends: [new FileBackend({ path: directory.file("backups") })],
    random: seededRandom(1),
    pageSizeBytes: PAGE_SIZE,
    startMs: STARTED_MS,
    compression: "none",
  });
  const [first, second] = [builder.randomImage(), builder.randomImage()];
  builder.beginChain(Array.from({ length: PAGES }, () => first));
  await builder.storeFull(1);
  builder.passTime(60_000);
  const changed = new Map(Array.from({ length: PAGES }, (_, i) => [i + 1, second]));
  await builder.storeChangeSet(builder.commit(changed, PAGES).index);
  states = [digestOf(first), digestOf(second)];
  config = directory.file("bakelite.toml");
  writeFileSync(
    config,
    `[[database]]\nname = "app"\npath = "${directory.file("live", "app.db")}"\n[[database.backends]]\ntype = "file"\npath = "${directory.file("backups")}"\n`,
  );
  mkdirSync(directory.file("live"));
}, TIMEOUT_MS);

afterAll(() => directory[Symbol.asyncDispose]());

function digestOf(image: Uint8Array): string {
  const hasher = new Bun.CryptoHasher("sha256");
  for (let page = 0; page < PAGES; page++) hasher.update(image);
  return hasher.digest("hex");
}

function digestOfFile(path: string): string {
  return new Bun.CryptoHasher("sha256").update(readFileSync(path)).digest("hex");
}

let folders = 0;
function freshFolder(): string {
  const path = directory.file(`out${folders++}`);
  mkdirSync(path);
  return path;
}

function start(args: readonly string[], temporary?: string) {
  return Bun.spawn([executablePath(), ...args, "--config", config], {
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
    env: { ...process.env, ...(temporary === undefined ? {} : { TMPDIR: temporary }) },
  });
}

const restore = (output: string, ...more: readonly string[]) =>
  start(["restore", "--db", "app", "--output", output, "--integrity", "none", ...more]);

/** Waits until a staging file in `folder` holds this part of its bytes on disk; false when the process ended first. */
async function untilStaged(folder: string, share: number, child: Bun.Subprocess): Promise<boolean> {
  return (
    (await eventually(
      () => {
        if (child.exitCode !== null) return "ended";
        for (const name of readdirSync(folder)) {
          const info = name.includes(".bakelite-restore-")
            ? statSync(`${folder}/${name}`, { throwIfNoEntry: false })
            : undefined;
          if (info !== undefined && info.blocks * 512 >= share * PAGE_SIZE * PAGES) return "staged";
        }
        return null;
      },
      { what: `${share * 100} % of the staging file`, deadlineMs: 30_000, pollMs: 1 },
    )) === "staged"
  );
}

const MOMENTS = [0, 0.02, 0.3, 0.7] as const;

test.each(["SIGINT", "SIGTERM", "SIGHUP"] as const)(
  "%s at any moment of a restore leaves what stood there, and no file of its own",
  async (signal) => {
    let interrupted = 0;
    for (const share of MOMENTS) {
      const folder = freshFolder();
      const output = `${folder}/app.db`;
      writeFileSync(output, "what stood there");
      const child = restore(output, "--force");
      await untilStaged(folder, share, child);
      child.kill(signal);
      const [stderr, status] = await Promise.all([child.stderr.text(), child.exited]);
      expect(readdirSync(folder)).toEqual(["app.db"]);
      if (status === 0) {
        // It had gone past the last moment at which it could stop.
        expect(digestOfFile(output)).toBe(states[1]);
      } else {
        expect([status, stderr]).toEqual([STATUS[signal], `bakelite: stopped by ${signal}\n`]);
        expect(readFileSync(output, "utf8")).toBe("what stood there");
        interrupted++;
      }
      rmSync(folder, { recursive: true });
    }
    expect(interrupted).toBeGreaterThanOrEqual(2);
  },
  TIMEOUT_MS,
);

test.each(["SIGINT", "SIGTERM", "SIGHUP"] as const)(
  "%s in the middle of a deep check leaves no temporary file",
  async (signal) => {
    for (const share of [0, 0.3]) {
      const folder = freshFolder();
      const child = start(["verify", "--deep"], folder);
      // What is stored is no SQLite database, so that a check that runs to its end finds a problem: status 1.
      await untilStaged(folder, share, child);
      child.kill(signal);
      const [stderr, status] = await Promise.all([child.stderr.text(), child.exited]);
      expect([1, STATUS[signal]]).toContain(status);
      if (status !== 1) expect(stderr).toBe(`bakelite: stopped by ${signal}\n`);
      expect(readdirSync(folder)).toEqual([]);
    }
  },
  TIMEOUT_MS,
);

test(
  "a restore that was started with SIGHUP ignored, as by nohup, goes on when the terminal closes",
  async () => {
    const folder = freshFolder();
    const output = `${folder}/app.db`;
    const child = Bun.spawn(
      [
        "sh",
        "-c",
        'trap "" HUP; exec "$@"',
        "sh",
        executablePath(),
        "restore",
        "--config",
        config,
        "--output",
        output,
        "--integrity",
        "none",
      ],
      { stdin: "ignore", stdout: "ignore", stderr: "pipe" },
    );
    await untilStaged(folder, 0, child);
    child.kill("SIGHUP");
    expect([await child.stderr.text(), await child.exited]).toEqual(["", 0]);
    expect(digestOfFile(output)).toBe(states[1]);
    rmSync(folder, { recursive: true });
  },
  TIMEOUT_MS,
);

test(
  "what a killed restore leaves is removed by the next one, which says so, and a deep check does the same",
  async () => {
    const folder = freshFolder();
    const output = `${folder}/app.db`;
    const child = restore(output);
    await untilStaged(folder, 0, child);
    child.kill("SIGKILL");
    expect(await child.exited).toBe(STATUS.SIGKILL);
    expect(existsSync(output)).toBe(false);
    const [left] = readdirSync(folder);
    expect(left).toStartWith("app.db.bakelite-restore-");
    const next = restore(output);
    expect(await next.stderr.text()).toBe(
      `note: removed ${folder}/${left}, left over from a restore that was killed\n`,
    );
    expect(await next.exited).toBe(0);
    expect(readdirSync(folder)).toEqual(["app.db"]);
    rmSync(output);

    const check = start(["verify", "--deep"], folder);
    await untilStaged(folder, 0, check);
    check.kill("SIGKILL");
    await check.exited;
    expect(readdirSync(folder)).toHaveLength(1);
    await start(["verify", "--deep"], folder).exited;
    expect(readdirSync(folder)).toEqual([]);
  },
  TIMEOUT_MS,
);

test.each([{ exists: false }, { exists: true }])(
  "of two restores to one place at a time (%p) each ends well or says why not, and one whole state stands there",
  async ({ exists }) => {
    const folder = freshFolder();
    const output = `${folder}/app.db`;
    for (let round = 0; round < 2; round++) {
      rmSync(output, { force: true });
      if (exists) writeFileSync(output, "what stood there");
      const children = [
        restore(output, "--force"),
        restore(output, "--force", "--timestamp", new Date(STARTED_MS + 30_000).toISOString()),
      ];
      const ends = await Promise.all(
        children.map(async (child) => ({ stderr: await child.stderr.text(), status: await child.exited })),
      );
      expect(ends.map(({ status }) => status)).toContain(0);
      for (const { stderr, status } of ends)
        if (status === 0) expect(stderr).toBe("");
        else
          expect(stderr).toMatch(
            /^bakelite: cannot replace the database: process \d+ \(bakelite\) has .+ open \(.+\)\n {2}hint: .+\n$/,
          );
      expect(readdirSync(folder)).toEqual(["app.db"]);
      expect([...states]).toContain(digestOfFile(output));
    }
  },
  TIMEOUT_MS,
);
