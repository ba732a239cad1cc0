import { describe, expect, test } from "bun:test";
import { GLOBAL_OPTIONS } from "../../src/cli/arguments.ts";
import { describeFailure, exitCode, Interrupted, rootFailure } from "../../src/cli/failure.ts";
import { wrap } from "../../src/cli/help.ts";
import { registry } from "../../src/cli/registry.ts";
import { runCli } from "../../src/cli/run.ts";
import { BakeliteError, type ErrorCode } from "../../src/util/errors.ts";
import { MemoryOutput } from "../support/memory-output.ts";
import { fakeHost } from "./fake-host.ts";

async function run(...argv: readonly string[]) {
  const host = fakeHost();
  const code = await runCli(argv, host);
  return { code, stdout: host.stdout.text, stderr: host.stderr.text };
}

describe("help", () => {
  test("`--help`, `-h` and `help` list every command on standard output", async () => {
    for (const argv of [["--help"], ["-h"], ["help"], ["--verbose", "-h"]]) {
      const { code, stdout, stderr } = await run(...argv);
      expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
      for (const { name, summary } of registry)
        expect(stdout).toMatch(new RegExp(`^  ${name} +${summary.slice(0, 20)}`, "m"));
      for (const { name } of GLOBAL_OPTIONS) expect(stdout).toContain(`--${name}`);
    }
  });

  test("a bare `bakelite` prints the short help on standard error and fails", async () => {
    const { code, stdout, stderr } = await run();
    expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
    expect(stderr).toStartWith("Usage: bakelite [flags] <command> [flags]\n");
  });

  test.each(registry.map(({ name }) => name))(
    "`bakelite %s` has the same help in every spelling, with examples",
    async (name) => {
      const { code, stdout } = await run(name, "--help");
      expect(code).toBe(0);
      expect(stdout).toContain(`Usage: bakelite ${name}`);
      expect(stdout).toMatch(new RegExp(`^Examples:\n  # .+\n  (?:.* )?bakelite ${name}\\b`, "m"));
      expect((await run("help", name)).stdout).toBe(stdout);
      expect((await run("-h", name)).stdout).toBe(stdout);
      expect((await run(name, "-h", "superfluous")).stdout).toBe(stdout);
    },
  );

  test.each(registry)("the options of `bakelite $name` are well formed", async ({ name, summary, load }) => {
    const command = await load();
    const options = [...GLOBAL_OPTIONS, ...command.options];
    expect(new Set(options.map((option) => option.name)).size).toBe(options.length);
    const shorts = options.flatMap((option) => option.short ?? []);
    expect(new Set(shorts).size).toBe(shorts.length);
    expect(name).toMatch(/^[a-z]+$/);
    expect(summary).toMatch(/^[A-Z].*[^.]$/);
    for (const option of command.options) {
      expect(option.name).toMatch(/^(?!no-)[a-z][a-z0-9]*(?:-[a-z0-9]+)*$/);
      expect(option.description).toMatch(/[^.]$/);
      expect(command.usage).toContain(`--${option.name}`);
    }
  });

  test("no line of help but that of an example is wider than the terminal, nor than 100 columns", async () => {
    for (const [columns, widest] of [
      [70, 70],
      [80, 80],
      [300, 100],
    ] as const) {
      for (const name of [undefined, ...registry.map((entry) => entry.name)]) {
        const host = fakeHost({ stdout: new MemoryOutput({ isTerminal: true, columns }) });
        await runCli(name === undefined ? ["--help"] : [name, "--help"], host);
        const [explained = ""] = host.stdout.text.split("Examples:\n");
        for (const line of explained.split("\n")) expect(line.length).toBeLessThanOrEqual(widest);
      }
    }
  });

  test("wrap breaks at spaces only, and keeps a long word whole", () => {
    expect(wrap("aaa bbb ccc", 7)).toBe("aaa bbb\nccc");
    expect(wrap("aaa bbb ccc", 7, "  ")).toBe("aaa bbb\n  ccc");
    expect(wrap("a verylongword b", 5)).toBe("a\nverylongword\nb");
  });
});

describe("version", () => {
  test("`--version` is one line, alone and with every command", async () => {
    for (const argv of [["--version"], ["-V"], ["version", "-V"], ["help", "--version"]]) {
      const { code, stdout } = await run(...argv);
      expect(code).toBe(0);
      expect(stdout).toMatch(/^bakelite \d+\.\d+\.\d+\S*\n$/);
    }
  });

  test("`version` names the storage format, the target, Bun and SQLite", async () => {
    const { stdout } = await run("version");
    expect(stdout).toMatch(
      /^bakelite +\d+\.\d+\.\d+.*\nstorage format +reads 1, writes 1\ntarget +\S+-\S+\nbun +\d+\.\d+\.\d+\nsqlite +3\.\d+\.\d+\n$/,
    );
  });

  test("`version --json`, in any order, is one document", async () => {
    for (const argv of [
      ["version", "--json"],
      ["--json", "version"],
      ["--version", "--json"],
    ]) {
      const { code, stdout } = await run(...argv);
      expect(code).toBe(0);
      expect(JSON.parse(stdout)).toMatchObject({
        version: expect.stringMatching(/^\d+\.\d+\.\d+/),
        storage_format: { read: [1], write: 1 },
        target: expect.any(String),
        bun_version: Bun.version,
        sqlite_version: expect.stringMatching(/^3\./),
      });
    }
  });
});

describe("wrong usage", () => {
  test.each([
    [["verion"], "bakelite: unknown command `verion`; did you mean `version`?\n  hint: run `bakelite --help`"],
    [["help", "verion"], "bakelite: unknown command `verion`; did you mean `version`?"],
    [["version", "extra"], "bakelite: unexpected argument `extra` for `bakelite version`\n  hint: "],
    [["help", "version", "extra"], "bakelite: unexpected argument `extra` for `bakelite help`"],
    [["version", "--jsn"], "bakelite: unknown flag `--jsn` for `bakelite version`; did you mean `--json`?"],
    [["--jsn", "version"], "bakelite: unknown flag `--jsn` before the subcommand; did you mean `--json`?"],
    [["--db", "a", "version", "--db=b"], "bakelite: `--db` was given more than once"],
    [["--", "version"], "bakelite: the subcommand must stand before `--`"],
    [["\u001b[2J"], "bakelite: unknown command `\\u001b[2J`"],
  ])("%j exits with 2 and says why on standard error", async (argv, message) => {
    const { code, stdout, stderr } = await run(...argv);
    expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
    expect(stderr).toStartWith(message);
    expect(stderr).not.toContain("    at ");
  });

  test("`--verbose` adds the stack trace", async () => {
    expect((await run("verion", "--verbose")).code).toBe(2);
    expect((await run("-v", "verion")).stderr).toContain("    at ");
  });
});

describe("failures", () => {
  test("an error is one sentence, its subject and cause, then the hint", () => {
    const cause = new BakeliteError("io", "no space left", { hint: "make room" });
    const error = new BakeliteError("storage-full", "cannot store the object", { subject: "s3://b/app", cause });
    expect(describeFailure(error, { verbose: false })).toBe(
      "bakelite: cannot store the object (s3://b/app): no space left\n  hint: make room\n",
    );
  });

  test("what is no BakeliteError is owned up to as a fault in bakelite", () => {
    const shown = describeFailure(new TypeError("x is undefined"), { verbose: false });
    expect(shown).toStartWith("bakelite: x is undefined\n  hint: this is a fault in bakelite");
    expect(describeFailure("thrown text", { verbose: true })).toBe("bakelite: thrown text\n");
  });

  test("usage and configuration exit with 2, a signal with 128+n, everything else with 1", () => {
    const codes: readonly (readonly [ErrorCode, number])[] = [
      ["usage", 2],
      ["config-invalid", 2],
      ["interrupted", 130],
      ["replica-corrupt", 1],
      ["internal", 1],
    ];
    for (const [code, exit] of codes) expect(exitCode(new BakeliteError(code, ""))).toBe(exit);
    expect(exitCode(new Interrupted("SIGINT"))).toBe(130);
    expect(exitCode(new Interrupted("SIGTERM"))).toBe(143);
    expect(exitCode(new Error("x"))).toBe(1);
    expect(exitCode(undefined)).toBe(1);
  });

  test("after a signal an abort is told as the signal, and another failure as itself", () => {
    const reason = new Interrupted("SIGTERM");
    const signal = AbortSignal.abort(reason);
    const aborted = new DOMException("The operation was aborted", "AbortError");
    expect(rootFailure(reason, signal)).toBe(reason);
    expect(rootFailure(new BakeliteError("io", "put failed", { cause: aborted }), signal)).toBe(reason);
    const other = new BakeliteError("io", "disk on fire");
    expect(rootFailure(other, signal)).toBe(other);
    expect(rootFailure(aborted, new AbortController().signal)).toBe(aborted);
  });
});
