import { Database } from "bun:sqlite";
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { existsSync, readdirSync } from "node:fs";
import { resolve } from "node:path";
import type { ShownState, TroubleKind } from "../../src/state/observe.ts";
import { configPathIn, runBakelite, startDaemon } from "../oracle/daemon-process.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";

const DOCS = resolve(import.meta.dir, "../../docs");
const read = async (name: string) => await Bun.file(resolve(DOCS, name)).text();

const STATES: Readonly<Record<ShownState, true>> = {
  live: true,
  starting: true,
  snapshotting: true,
  waiting: true,
  "not wal": true,
  "backing off": true,
  stopped: true,
  "not running": true,
  stale: true,
  "no status": true,
  unreadable: true,
};

const KINDS: Readonly<Record<Exclude<TroubleKind, ShownState>, true>> = {
  "no full backup": true,
  "incomplete destination": true,
  "failing destination": true,
  lag: true,
  verify: true,
};

test("docs/troubleshooting.md says what to do about every state", async () => {
  const text = await read("troubleshooting.md");
  for (const state of Object.keys(STATES))
    expect(text).toMatch(new RegExp(`^\\| \`${state}\` \\| .+ \\| .+ \\|$`, "m"));
});

test("docs/json.md has every state and every kind of reason", async () => {
  const text = await read("json.md");
  for (const word of [...Object.keys(STATES), ...Object.keys(KINDS)]) expect(text).toContain(`\`${word}\``);
});

test("no link between the pages of docs/ leads nowhere", async () => {
  const slug = (heading: string) =>
    heading
      .toLowerCase()
      .replace(/[^\p{L}\p{N} _-]/gu, "")
      .replaceAll(" ", "-");
  for (const name of readdirSync(DOCS).filter((file) => file.endsWith(".md"))) {
    const text = (await read(name)).replace(/^```.*?^```$/gms, "");
    for (const [, target = ""] of text.matchAll(/\]\((?!https?:)([^)\s]+)\)/g)) {
      const [file = "", anchor] = target.split("#");
      const path = file === "" ? resolve(DOCS, name) : resolve(DOCS, file);
      expect([name, target, existsSync(path)]).toEqual([name, target, true]);
      if (anchor === undefined) continue;
      const headings = [...(await Bun.file(path).text()).matchAll(/^#+ (.+)$/gm)].map(([, heading = ""]) =>
        slug(heading),
      );
      expect([name, headings]).toEqual([name, expect.arrayContaining([anchor])]);
    }
  }
});

describe("docs/json.md names every field that is printed by", () => {
  let directory: TemporaryDirectory;
  let configPath: string;

  beforeAll(async () => {
    directory = await temporaryDirectory("json-docs");
    configPath = configPathIn(directory.path);
    using db = new Database(directory.file("app.db"));
    db.run("PRAGMA journal_mode = WAL");
    db.run("CREATE TABLE t (x)");
    const databases = [{ name: "app", path: directory.file("app.db"), replicas: [directory.file("replica")] }];
    await using daemon = await startDaemon({ configPath, databases, program: "executable" });
    await daemon.untilStatus(({ state, full_backup }) => state === "live" && full_backup !== null, { what: "live" });
    db.run("INSERT INTO t VALUES (1)");
    await daemon.untilStatus(({ change_sets }) => change_sets > 0, { what: "a change-set" });
    await daemon.stop();
    // Its status is published every five seconds.
  }, 60_000);

  afterAll(() => directory[Symbol.asyncDispose]());

  test.each([
    ["version", ["version"]],
    ["usage", ["usage"]],
    ["reclaim", ["reclaim"]],
    ["repair", ["repair"]],
    ["compact", ["compact"]],
    ["prune", ["prune"]],
    ["keep", ["keep", "--db", "app", "--label", "documented"]],
    ["keep", ["keep"]],
    ["list", ["list"]],
    ["list", ["list", "--db", "app", "--verbose"]],
    ["restore", ["restore", "--db", "app", "--output", "restored.db", "--timestamp", "now"]],
    ["restore", ["restore", "--db", "app", "--if-db-not-exists"]],
    ["keep", ["keep", "--drop", "documented"]],
  ])("%s: %j", async (section, argv) => {
    const output = argv.map((argument) => (argument === "restored.db" ? directory.file(argument) : argument));
    const { status, stdout } = await runBakelite("executable", [...output, "--json", "--config", configPath]);
    expect(status).toBe(0);
    const text = (await read("json.md")).split("\n## ").find((part) => part.startsWith(`${section}\n`)) ?? "";
    const undocumented = fieldsOf(JSON.parse(stdout)).filter((field) => !new RegExp(`\\b${field}\\b`).test(text));
    expect(undocumented).toEqual([]);
  });
});

/** The names of all fields, at every depth. */
function fieldsOf(value: unknown): readonly string[] {
  if (Array.isArray(value)) return value.flatMap(fieldsOf);
  if (typeof value !== "object" || value === null) return [];
  return [...new Set(Object.entries(value).flatMap(([name, inner]) => [name, ...fieldsOf(inner)]))];
}
