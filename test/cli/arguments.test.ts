import { describe, expect, test } from "bun:test";
import { GLOBAL_OPTIONS, parseArguments, splitCommandLine } from "../../src/cli/arguments.ts";
import { type OptionSpec, OptionValues } from "../../src/cli/option-values.ts";
import { BakeliteError } from "../../src/util/errors.ts";
import { fc } from "../support/properties.ts";

const OPTIONS: readonly OptionSpec[] = [
  ...GLOBAL_OPTIONS,
  { name: "output", short: "o", value: "path", description: "" },
  { name: "tag", value: "text", repeatable: true, description: "" },
  { name: "max-lag", value: "duration", description: "" },
  { name: "if-db-not-exists", description: "" },
];

function parse(...argv: readonly string[]) {
  const { values, positionals } = parseArguments(argv, OPTIONS, "for `bakelite x`");
  return { values: Object.fromEntries(values), positionals };
}

describe("parseArguments", () => {
  test("`--flag value` and `--flag=value` and short flags mean the same", () => {
    for (const argv of [["--db", "app"], ["--db=app"]]) expect(parse(...argv).values).toEqual({ db: ["app"] });
    for (const argv of [["-o", "/x"], ["-o=/x"], ["--output", "/x"]]) {
      expect(parse(...argv).values).toEqual({ output: ["/x"] });
    }
  });

  test("every value stays the text that was typed", () => {
    const value = fc.oneof(
      fc.string(),
      fc.constantFrom("007", "1e3", "0x10", "true", "-1", "--json", "=", "a=b", " ", "NaN"),
    );
    fc.assert(
      fc.property(value, (text) => {
        fc.pre(text !== "");
        expect(parse(`--db=${text}`).values).toEqual({ db: [text] });
        if (!text.startsWith("-")) expect(parse("--db", text, "--json").values).toEqual({ db: [text], json: [] });
      }),
    );
  });

  test("a switch does not swallow what follows it, and may be repeated", () => {
    expect(parse("--json", "7", "--if-db-not-exists", "--json")).toEqual({
      values: { json: [], "if-db-not-exists": [] },
      positionals: ["7"],
    });
  });

  test("after `--` everything is a positional argument, and a lone dash is a value", () => {
    expect(parse("--output", "-", "--", "--json", "--", "-x")).toEqual({
      values: { output: ["-"] },
      positionals: ["--json", "--", "-x"],
    });
  });

  test("a repeatable option keeps its values in order", () => {
    expect(parse("--tag", "1", "--tag=01").values).toEqual({ tag: ["1", "01"] });
  });

  test.each([
    [["--ouptut", "x"], "unknown flag `--ouptut` for `bakelite x`; did you mean `--output`?"],
    [["--outputs=secret"], "unknown flag `--outputs` for `bakelite x`; did you mean `--output`?"],
    [["-x"], "unknown flag `-x` for `bakelite x`"],
    [["--no-json"], "unknown flag `--no-json`"],
    [["---json"], "unknown flag `---json`"],
    [["-json"], "unknown flag `-json` for `bakelite x`; did you mean `--json`?"],
    [["-vh"], "unknown flag `-vh`"],
    [["--db.x=1"], "unknown flag `--db.x`"],
    [["--ifDbNotExists"], "unknown flag `--ifDbNotExists`"],
    [["--__proto__=1"], "unknown flag `--__proto__`"],
    [["--constructor"], "unknown flag `--constructor`"],
    [["--db"], "`--db` needs a value: --db <name>"],
    [["--db="], "`--db` needs a value: --db <name>"],
    [["--db", ""], "`--db` needs a value: --db <name>"],
    [["--db", "--json"], "`--db` needs a value: --db <name>"],
    [["-c", "--"], "`-c` needs a value: --config <path>"],
    [["--json=true"], "`--json` takes no value"],
    [["--json="], "`--json` takes no value"],
    [["--db", "a", "--db=a"], "`--db` was given more than once"],
    [["-o", "a", "--output", "b"], "`--output` was given more than once"],
  ])("refused: %j", (argv, message) => {
    expect(() => parse(...argv)).toThrow(message);
  });

  test("a value with a dash in front is asked for in the form that works", () => {
    try {
      parse("--db", "-app");
      throw new Error("was accepted");
    } catch (error) {
      expect(error).toMatchObject({ code: "usage", hint: "write `--db=-app` if that is the value" });
    }
  });

  test("any arguments are parsed or a BakeliteError of code usage", () => {
    const token = fc.oneof(
      fc.constantFrom(
        "--db",
        "--db=",
        "-c",
        "--json",
        "--",
        "-",
        "--tag",
        "--no-json",
        "--__proto__",
        "x",
        "5",
        "--tag=1",
      ),
      fc.string({ unit: fc.constantFrom(..."-=adbjson.07") }),
    );
    fc.assert(
      fc.property(fc.array(token, { maxLength: 8 }), (argv) => {
        try {
          splitCommandLine(argv);
          parse(...argv);
        } catch (error) {
          expect(error).toBeInstanceOf(BakeliteError);
          expect(error).toHaveProperty("code", "usage");
        }
      }),
      { numRuns: 1_000 },
    );
  });
});

describe("splitCommandLine", () => {
  test.each([
    [["restore", "--db", "x"], "restore", [], ["--db", "x"]],
    [["--db", "list", "restore"], "restore", ["--db", "list"], []],
    [["-c=x", "--json", "restore", "a"], "restore", ["-c=x", "--json"], ["a"]],
    [["--help"], undefined, ["--help"], []],
    [[], undefined, [], []],
  ])("%j", (argv, command, before, after) => {
    expect(splitCommandLine(argv)).toEqual({ command, before, after });
  });

  test("a command's own flag before its name is told where it goes", () => {
    try {
      splitCommandLine(["--output", "x", "restore"]);
      throw new Error("was accepted");
    } catch (error) {
      expect(error).toMatchObject({ code: "usage", hint: "flags of a subcommand go after its name" });
    }
  });
});

describe("OptionValues", () => {
  const given = (...argv: readonly string[]) => new OptionValues(OPTIONS, parseArguments(argv, OPTIONS, "").values);

  test("values are read in their kind", () => {
    expect(given("--max-lag", "10m").durationMs("max-lag")).toBe(600_000);
    expect(given("--tag", "5MiB").byteSize("tag")).toBe(5_242_880);
    expect(given("--tag", "007").integer("tag", 1)).toBe(7);
    expect(given("--tag", "b").oneOf("tag", ["a", "b"])).toBe("b");
    expect(given("--output", "x").requiredText("output")).toBe("x");
    expect(given("--json").has("json")).toBe(true);
  });

  test("what was not given is undefined", () => {
    const values = given();
    expect([values.text("output"), values.durationMs("max-lag"), values.integer("tag", 0), values.has("json")]).toEqual(
      [undefined, undefined, undefined, false],
    );
    expect(() => values.requiredText("output")).toThrow("`--output` is required");
  });

  test.each([
    [() => given("--max-lag", "10").durationMs("max-lag"), '`--max-lag`: "10" is not a duration'],
    [() => given("--tag", "0").integer("tag", 1), '`--tag`: "0" is not a whole number of at least 1'],
    [() => given("--tag", "1e3").integer("tag", 1), '`--tag`: "1e3" is not a whole number'],
    [() => given("--tag", "c").oneOf("tag", ["a", "b"]), '`--tag`: "c" is not one of a, b'],
    [() => given().text("undeclared"), "invariant broken"],
  ])("a wrong value names its flag %#", (read, message) => {
    expect(read).toThrow(message);
  });
});
