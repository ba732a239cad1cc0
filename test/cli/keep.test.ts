import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { z } from "zod";
import { runBakelite } from "../oracle/daemon-process.ts";
import { pythonPath } from "../support/python.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";
import { type AgedOptions, type AgedReplica, agedReplica, hashTree, objectsIn } from "./aged-replica.ts";

const digits = (index: number) => String(index).padStart(16, "0");
let directory: TemporaryDirectory;

// Each test runs the program many times, and the machine may be busy.
setDefaultTimeout(60_000);

beforeAll(async () => {
  directory = await temporaryDirectory("cli-keep");
});

afterAll(() => directory[Symbol.asyncDispose]());

let scenes = 0;
/** 20 states, a minute apart from midnight on, with full backups at 1 and 10. */
async function scene(options: Partial<AgedOptions> = {}): Promise<AgedReplica> {
  return await agedReplica(directory, `scene${scenes++}`, { states: 20, spacingMs: 60_000, fullEvery: 10, ...options });
}

async function run(replica: AgedReplica, ...argv: readonly string[]) {
  return await runBakelite("executable", ["keep", ...argv, "--config", replica.configPath]);
}

async function verify(replica: AgedReplica) {
  return await runBakelite("executable", ["verify", "--config", replica.configPath]);
}

const failures = z.array(
  z.strictObject({ destination: z.string(), error: z.strictObject({ code: z.string(), message: z.string() }) }),
);
const placed = z.strictObject({
  database: z.string(),
  action: z.literal("marked"),
  label: z.string(),
  index: z.int(),
  time: z.iso.datetime(),
  created: z.iso.datetime(),
  stored_at: z.array(z.string()),
  failures,
});
const listed = z.strictObject({
  databases: z.array(
    z.strictObject({
      name: z.string(),
      error: z.strictObject({ code: z.string(), message: z.string() }).nullable(),
      marks: z.array(
        z.strictObject({
          label: z.string().nullable(),
          index: z.int(),
          time: z.iso.datetime().nullable(),
          created: z.iso.datetime().nullable(),
          destinations: z.array(z.string()),
          error: z.strictObject({ code: z.string(), message: z.string() }).nullable(),
          notes: z.array(z.string()),
        }),
      ),
      warnings: z.array(z.string()),
    }),
  ),
});

async function list(replica: AgedReplica) {
  const { status, stdout } = await run(replica, "--json");
  return { status, marks: listed.parse(JSON.parse(stdout)).databases[0]?.marks ?? [] };
}

/** What the independent reader finds wrong, of the marks. */
async function judge(store: string): Promise<readonly unknown[]> {
  const reader = new URL("../judge/bakelite_reader.py", import.meta.url).pathname;
  const child = Bun.spawn([pythonPath(), reader, "verify", store, "--database", "app"], { stdout: "pipe" });
  const document = z
    .object({ problems: z.array(z.looseObject({ object: z.string() })), warnings: z.array(z.string()) })
    .parse(JSON.parse(await child.stdout.text()));
  expect(document.warnings.filter((warning) => warning.includes("is not ours"))).toEqual([]);
  return document.problems.filter(({ object }) => object.startsWith("keep/"));
}

describe.each([{ sealed: false }, { sealed: true }])("%p", (options) => {
  test("marks the newest restore point, or the newest at or before a time, at every destination", async () => {
    const replica = await scene({ ...options, stores: ["a", "b"] });
    const [a = "", b = ""] = replica.stores;
    const latest = await run(replica, "--db", "app", "--label", "now");
    expect(latest).toMatchObject({ status: 0, stderr: "" });
    expect(latest.stdout).toMatch(
      /^app: marked as now: state 20 of 2026-01-01T00:19:00\.000Z \(.+\) stays restorable\n$/,
    );
    const { status, stdout } = await run(replica, "--label", "early", "--at", "2026-01-01T00:05:59.999Z", "--json");
    expect(status).toBe(0);
    expect(placed.parse(JSON.parse(stdout))).toMatchObject({
      label: "early",
      index: 6,
      time: "2026-01-01T00:05:00.000Z",
      stored_at: [a, b],
      failures: [],
    });
    const seal = replica.builder.sealText;
    const names = [6, 20].map((index) => `keep/${digits(index)}.${seal}`);
    for (const store of [a, b]) expect(objectsIn(store).filter((name) => name.startsWith("keep/"))).toEqual(names);
    if (options.sealed) expect(readFileSync(`${a}/app/${names[0]}`).includes("early")).toBe(false);

    expect(await list(replica)).toMatchObject({
      status: 0,
      marks: [
        { label: "early", index: 6, destinations: [a, b], error: null, notes: [] },
        { label: "now", index: 20 },
      ],
    });
    if (!options.sealed) expect(await judge(a)).toEqual([]);
    const table = (await run(replica, "--db", "app")).stdout;
    expect(table).toContain("early");
    const detailed = await runBakelite("executable", ["list", "--db", "app", "--config", replica.configPath]);
    expect(detailed.stdout).toMatch(/^early +state 6, 2026-01-01T00:05:00\.000Z/m);
    expect(detailed.stderr).toBe("");
    expect((await verify(replica)).status).toBe(0);

    expect(await run(replica, "--drop", "early")).toMatchObject({
      status: 0,
      stdout: "app: dropped early: state 6 may go as the policy says\n",
    });
    expect((await list(replica)).marks.map(({ label }) => label)).toEqual(["now"]);
  });
});

test("a label stands for one state, and a state has one label", async () => {
  const replica = await scene();
  const [store = ""] = replica.stores;
  expect(await run(replica, "--label", "one", "--at", "2026-01-01T00:05:00Z")).toMatchObject({ status: 0 });
  const before = hashTree(store);
  const taken = await run(replica, "--label", "one");
  expect(taken.status).toBe(2);
  expect(taken.stderr).toContain('the label "one" already marks state 6');
  const again = await run(replica, "--label", "two", "--at", "2026-01-01T00:05:00Z");
  expect(again.status).toBe(2);
  expect(again.stderr).toContain('state 6 is marked already, as "one"');
  const same = await run(replica, "--label", "one", "--at", "2026-01-01T00:05:30Z");
  expect(same).toMatchObject({ status: 0, stdout: expect.stringContaining("was marked already as one") });
  expect(hashTree(store)).toBe(before);
});

test.each([
  [["--at", "now"], "`--at` needs a `--label`"],
  [["--label", "a", "--drop", "b"], "`--drop` goes with neither"],
  [["--label", " a"], "cannot be a label"],
  [["--label", "a\tb"], "cannot be a label"],
  [["--label", "x".repeat(65)], "cannot be a label"],
  [["--label", "a", "--at", "teatime"], "is not a time"],
  [["--drop", "nothing"], 'there is no mark "nothing"'],
  [["--label", "a", "--db", "nope"], "nope"],
])("%j is a mistake on the command line", async (argv, message) => {
  const { status, stdout, stderr } = await run(await scene({ states: 3 }), ...argv);
  expect({ status, stdout }).toEqual({ status: 2, stdout: "" });
  expect(stderr).toContain(message);
});

test("before the first restore point there is nothing to mark", async () => {
  const { status, stderr } = await run(await scene(), "--label", "a", "--at", "2025-12-31");
  expect(status).toBe(1);
  expect(stderr).toContain("2026-01-01T00:00:00.000Z");
});

test("a destination that is down makes it fail, and the same command completes the mark later", async () => {
  const replica = await scene({ stores: ["a", "b"] });
  const [a = "", b = ""] = replica.stores;
  renameSync(b, `${b}.away`);
  writeFileSync(b, "a file where the directory was");
  const half = await run(replica, "--label", "x");
  expect(half.status).toBe(1);
  expect(half.stdout).toContain("marked as x: state 20");
  expect(half.stderr).toContain(`the mark is not at ${b}`);
  rmSync(b);
  renameSync(`${b}.away`, b);
  expect((await list(replica)).marks).toMatchObject([{ destinations: [a], notes: [`not at ${b}`] }]);
  const verified = await verify(replica);
  expect(verified.status).toBe(0);
  expect(verified.stdout).toContain("the mark of state 20 is at another destination and not here");
  expect(await run(replica, "--label", "x")).toMatchObject({ status: 0, stderr: "" });
  const name = `app/keep/${digits(20)}.p`;
  expect(Buffer.compare(readFileSync(`${a}/${name}`), readFileSync(`${b}/${name}`))).toBe(0);
});

test("verify finds a marked state that cannot be restored, and a mark that is damaged", async () => {
  const replica = await scene();
  const [store = ""] = replica.stores;
  expect(await run(replica, "--label", "lost", "--at", "2026-01-01T00:05:00Z")).toMatchObject({ status: 0 });
  expect(await run(replica, "--label", "damaged", "--at", "2026-01-01T00:15:00Z")).toMatchObject({ status: 0 });
  rmSync(`${store}/app/L0/${digits(5)}-${digits(5)}.p`);
  const mark = `${store}/app/keep/${digits(16)}.p`;
  const bytes = readFileSync(mark);
  bytes[bytes.length >> 1] = (bytes[bytes.length >> 1] ?? 0) ^ 1;
  writeFileSync(mark, bytes);
  const { status, stdout } = await verify(replica);
  expect(status).toBe(1);
  expect(stdout).toMatch(/^ +mark-lost +.+keep\/0{15}6\.p: state 6, marked lost, cannot be restored$/m);
  expect(stdout).toMatch(/^ +corrupt +.+keep\/0{14}16\.p: the mark of state 16 cannot be read: /m);
  expect(await judge(store)).toEqual([
    { object: `keep/${digits(16)}.p`, problem: expect.any(String) },
    { object: `keep/${digits(6)}.p`, problem: expect.stringContaining("is not a restore point") },
  ]);
  const shown = await list(replica);
  expect(shown.status).toBe(1);
  expect(shown.marks).toMatchObject([
    { label: "lost", notes: ["not a restore point any longer: run `bakelite verify`"] },
    { label: null, index: 16, error: { code: "replica-corrupt" } },
  ]);
  expect(existsSync(mark)).toBe(true);
});
