import { Database } from "bun:sqlite";
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { registry } from "../../src/cli/registry.ts";
import { configPathIn, startDaemon } from "../oracle/daemon-process.ts";
import { withDeadline } from "../support/eventually.ts";
import { executablePath } from "../support/executable.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";
import { run } from "./wrong-runs.ts";

let directory: TemporaryDirectory;
let config: string;

/** A database with something stored, and no daemon. */
beforeAll(async () => {
  directory = await temporaryDirectory("wrong-output");
  config = configPathIn(directory.path);
  using db = new Database(directory.file("app.db"));
  db.run("PRAGMA journal_mode = WAL");
  db.run("CREATE TABLE t (x)");
  const databases = [{ name: "app", path: directory.file("app.db"), replicas: [directory.file("replica")] }];
  await using daemon = await startDaemon({ configPath: config, databases, program: "executable" });
  await daemon.untilStatus(({ state, full_backup }) => state === "live" && full_backup !== null, { what: "live" });
  db.run("INSERT INTO t VALUES (1)");
  await daemon.untilStatus(({ change_sets, lag_seconds }) => change_sets > 0 && lag_seconds === 0, { what: "shipped" });
  await daemon.stop();
});

afterAll(() => directory[Symbol.asyncDispose]());

/** They have no document: the flag changes nothing there. docs/json.md says so. */
const WITHOUT_DOCUMENT: ReadonlySet<string> = new Set(["help", "daemon", "init"]);
/** Everything that ends by itself. */
const names = registry.map(({ name }) => name).filter((name) => name !== "daemon" && name !== "init");
let runCount = 0;

/** The arguments with which the command works; nothing that one run leaves behind is in the way of the next. */
function working(name: string): readonly string[] {
  runCount++;
  switch (name) {
    case "restore":
      return [name, "-c", config, "--db", "app", "--output", directory.file(`${runCount}.db`)];
    case "reencrypt":
      return [name, "-c", config, "--dry-run"];
    case "verify":
      return [name, "-c", config, "--deep"];
    case "help":
    case "version":
    case "keygen":
      return [name];
    default:
      return [name, "-c", config];
  }
}

/** What the command writes to a terminal of 100 columns, standard output and error together. */
async function onTerminal(argv: readonly string[], env: Readonly<Record<string, string>> = {}) {
  let written = "";
  const decoder = new TextDecoder();
  const child = Bun.spawn([executablePath(), ...argv], {
    env: { PATH: process.env["PATH"], TERM: "xterm-256color", ...env },
    terminal: {
      cols: 100,
      rows: 30,
      data(_terminal, bytes) {
        written += decoder.decode(bytes, { stream: true });
      },
    },
  });
  await withDeadline(child.exited, { what: `${argv.join(" ")} on a terminal`, deadlineMs: 20_000 });
  child.terminal?.close();
  return { code: child.exitCode, written };
}

const COLOUR = /\p{Cc}\[[\d;]*m/u;

describe("colour", () => {
  test("is there on a terminal, and not with NO_COLOR, TERM=dumb or --json, nor in what --verbose adds", async () => {
    expect((await onTerminal(["status", "-c", config])).written).toMatch(COLOUR);
    expect((await onTerminal(["status", "-c", config], { NO_COLOR: "" })).written).toMatch(COLOUR);
    expect((await onTerminal(["verify", "-c", config, "-v"])).written).toMatch(COLOUR);
    for (const name of names) {
      const [command = "", ...rest] = working(name);
      for (const [argv, env] of [
        [[command, ...rest, "--json"], {}],
        [[command, ...rest.map((arg) => arg.replace(/\.db$/, "-2.db")), "--json", "--verbose"], {}],
        [working(name), { NO_COLOR: "1" }],
        [[...working(name), "--verbose"], { TERM: "dumb" }],
      ] as const)
        expect((await onTerminal(argv, env)).written).not.toMatch(COLOUR);
    }
  });

  test("and progress are in nothing that goes into a file or a pipe", async () => {
    await Promise.all(
      names.map(async (name) => {
        const { stdout, stderr } = await run([...working(name), "--verbose"]);
        expect((stdout + stderr).replaceAll("\n", "")).not.toMatch(/\p{Cc}/u);
      }),
    );
  });

  test("an error on a terminal is the same sentence", async () => {
    const { code, written } = await onTerminal(["list", "--db", "\u001b[31mx", "-c", config]);
    expect(code).toBe(2);
    expect(written.replaceAll("\r\n", "\n")).toStartWith("bakelite: no database named `\\u001b[31mx` is configured (");
    expect(written).not.toContain("\u001b");
  });
});

describe("--json", () => {
  test("is one document and nothing else, alike on a terminal and with --verbose", async () => {
    await Promise.all(
      names.map(async (name) => {
        const { stdout } = await run([...working(name), "--json"]);
        if (WITHOUT_DOCUMENT.has(name)) return;
        const document: unknown = JSON.parse(stdout);
        expect(document).toBeObject();
        expect(stdout).toBe(`${JSON.stringify(document, null, 2)}\n`);
        const verbose = await run([...working(name), "--json", "--verbose"]);
        const keys = Object.keys(JSON.parse(verbose.stdout));
        for (const key of Object.keys(document ?? {})) expect(keys).toContain(key);
      }),
    );
  });

  test("after a failure there is no half of a document: nothing, or one that tells of it", async () => {
    const broken = directory.file("broken.toml");
    writeFileSync(broken, "[[database]]\n");
    const empty = directory.file("empty.toml");
    mkdirSync(directory.file("nothing"));
    writeFileSync(
      empty,
      `[[database]]\nname = "app"\npath = "${directory.file("no.db")}"\n[[database.backends]]\ntype = "file"\npath = "${directory.file("nothing")}/replica"\nretries = 0\n`,
    );
    await Promise.all(
      names
        .filter((name) => working(name).includes("-c"))
        .flatMap((name) =>
          [broken, empty, directory.file("gone.toml")].map(async (path) => {
            const argv = working(name).map((arg) => (arg === config ? path : arg));
            const { code, stdout, stderr } = await run([...argv, "--json"]);
            if (path !== empty) expect({ name, code, stdout }).toEqual({ name, code: 2, stdout: "" });
            if (stdout === "") expect(stderr).toMatch(/^bakelite: \S.*\n/);
            else expect(JSON.parse(stdout)).toBeObject();
          }),
        ),
    );
  });

  test("the page on documents has a section for each command, or says that it has none", async () => {
    const text = await Bun.file(new URL("../../docs/json.md", import.meta.url)).text();
    for (const { name } of registry)
      if (WITHOUT_DOCUMENT.has(name)) expect(text).toContain(`\`${name}\``);
      else expect(text).toMatch(new RegExp(`^## (?:.*, )?${name}\\b`, "m"));
  });
});

describe("standard output", () => {
  /** A shell line in which `"$@"` is the command. */
  async function shell(line: string, argv: readonly string[]) {
    const child = Bun.spawn(["bash", "-c", line, "bash", executablePath(), ...argv], {
      env: { PATH: process.env["PATH"] },
      stdin: "ignore",
      stdout: "pipe",
      stderr: "pipe",
      timeout: 20_000,
    });
    const [stdout, stderr, code] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
    return { stdout, stderr, code };
  }

  test("a reader that goes away, at once or after a line, changes neither the exit code nor what is said", async () => {
    for (const name of names) {
      const plain = await run(working(name));
      for (const reader of ["true", "head -n 1 > /dev/null", "head -c 1 > /dev/null"]) {
        const { stderr, code } = await shell(`"$@" | ${reader}; exit "\${PIPESTATUS[0]}"`, working(name));
        expect(`${name} ${code}`).toBe(`${name} ${plain.code}`);
        expect(stderr).not.toMatch(/EPIPE|\n\s+at |fault in bakelite/);
      }
    }
  });

  test.skipIf(!existsSync("/dev/full"))("a full disk is a failure of every command, with one sentence", async () => {
    for (const name of names)
      for (const more of [[], ["--json"]]) {
        const { stderr, code } = await shell('"$@" > /dev/full', [...working(name), ...more]);
        expect({ name, code }).toEqual({ name, code: 1 });
        expect(stderr).toMatch(/^bakelite: cannot write to standard output: ENOSPC: no space left on device\b.*$/m);
        expect(stderr).not.toContain("    at ");
      }
  });

  test("closed outputs are no reason to crash", async () => {
    for (const name of names)
      for (const closed of [">&-", "2>&-", ">&- 2>&- <&-"]) {
        const { code, stderr } = await shell(`"$@" ${closed}`, working(name));
        expect(code).toBeLessThan(3);
        expect(stderr).not.toContain("    at ");
      }
  });
});
