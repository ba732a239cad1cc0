import { describe, expect, test } from "bun:test";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { eventually } from "../support/eventually.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";

const ROOT = join(import.meta.dir, "../..");

/** Runs `bakelite help <behaviour>` from source, with the stand-in for that command. */
function start(args: readonly string[], env: Readonly<Record<string, string>> = {}) {
  const preload = join(import.meta.dir, "stand-in-command.ts");
  return Bun.spawn([process.execPath, "--preload", preload, join(ROOT, "src/main.ts"), "help", ...args], {
    env: { PATH: process.env["PATH"], ...env },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
}

async function run(args: readonly string[], env: Readonly<Record<string, string>> = {}) {
  const child = start(args, env);
  const [stdout, stderr, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  return { stdout, stderr, code };
}

/** Starts a command that prints a line when it waits, and sends it each signal after the next line. */
async function interrupt(behaviour: string, signals: readonly NodeJS.Signals[]) {
  const child = start([behaviour]);
  let stdout = "";
  const reading = (async () => {
    for await (const chunk of child.stdout.pipeThrough(new TextDecoderStream())) stdout += chunk;
  })();
  for (const [i, signal] of signals.entries()) {
    await eventually(() => stdout.split("\n").length > i + 1, { what: `line ${i + 1} of ${behaviour}` });
    child.kill(signal);
  }
  const [stderr, code] = await Promise.all([new Response(child.stderr).text(), child.exited, reading]);
  return { stdout, stderr, code };
}

describe("signals", () => {
  test("a command may end in good order and says with what exit code", async () => {
    for (const signal of ["SIGINT", "SIGTERM"] as const) {
      const { stdout, stderr, code } = await interrupt("finish-on-signal", [signal]);
      expect({ stdout, stderr, code }).toEqual({ stdout: "waiting\nfinished in good order\n", stderr: "", code: 0 });
    }
  });

  test("a command that the signal cuts short exits with 128 and the signal's number", async () => {
    expect(await interrupt("fail-on-signal", ["SIGINT"])).toMatchObject({
      stderr: "bakelite: stopped by SIGINT\n",
      code: 130,
    });
    expect(await interrupt("fail-on-signal", ["SIGTERM"])).toMatchObject({
      stderr: "bakelite: stopped by SIGTERM\n",
      code: 143,
    });
    expect(await interrupt("fail-on-signal", ["SIGHUP"])).toMatchObject({
      stderr: "bakelite: stopped by SIGHUP\n",
      code: 129,
    });
  });

  test("a second signal does not wait for a command that ignores the first", async () => {
    expect(await interrupt("ignore-signals", ["SIGINT", "SIGTERM"])).toMatchObject({ code: 143 });
  });
});

describe("what nobody caught", () => {
  test.each([
    ["reject-unheard", "nobody listens"],
    ["throw-in-timer", "thrown in a timer"],
  ])("%s is one clear line and exit 1", async (behaviour, message) => {
    const { stdout, stderr, code } = await run([behaviour]);
    expect({ stdout, code }).toEqual({ stdout: "", code: 1 });
    expect(stderr).toBe(
      `bakelite: ${message}\n  hint: this is a fault in bakelite; run again with --verbose and report what it prints\n`,
    );
  });

  test("`--verbose` shows where it was thrown", async () => {
    expect((await run(["reject-unheard", "--verbose"])).stderr).toContain("stand-in-command.ts");
  });
});

describe("output", () => {
  test("all of a long output arrives before the process ends, however slow the reader", async () => {
    const child = start(["write-much"]);
    let bytes = 0;
    for await (const chunk of child.stdout) {
      bytes += chunk.byteLength;
      if (bytes < 1_000_000) await Bun.sleep(5);
    }
    expect(bytes).toBe(10_000_000);
    expect(await child.exited).toBe(3);
  });

  test("log lines go to standard error: warnings always, debug lines with --verbose", async () => {
    expect((await run(["log"])).stderr).toMatch(/^\S+ WARN {2}a warning\n$/);
    expect((await run(["log", "-v"])).stderr).toMatch(/^\S+ DEBUG a debug line\n\S+ WARN {2}a warning\n$/);
    expect((await run(["log"])).stdout).toBe("");
  });
});

describe("the configuration", () => {
  const DATABASE = (name: string) =>
    `[[database]]\nname = "${name}"\npath = "\${DATA}/${name}.db"\nbackends = [{ type = "file", path = "/b" }]\n`;

  test("--db chooses one database, exactly as it is written; without it all are chosen", async () => {
    await using directory = await temporaryDirectory();
    const file = directory.file("b.toml");
    await writeFile(file, ["app", "007", "1e3"].map(DATABASE).join(""));
    const env = { DATA: "/d", BAKELITE_CONFIG: file };
    expect(await run(["select"], env)).toMatchObject({ stdout: "app,007,1e3\n", code: 0 });
    expect(await run(["select", "--db", "007"], env)).toMatchObject({ stdout: "007\n", code: 0 });
    expect(await run(["select", "--config", file, "--db=1e3"], { DATA: "/d" })).toMatchObject({ stdout: "1e3\n" });
    const unknown = await run(["select", "--db", "7"], env);
    expect(unknown).toMatchObject({ stdout: "", code: 2 });
    expect(unknown.stderr).toBe(
      `bakelite: no database named \`7\` is configured (${file})\n  hint: configured: app, 007, 1e3\n`,
    );
  });

  test("a faulty configuration exits with 2 and names file, line and column", async () => {
    await using directory = await temporaryDirectory();
    const file = directory.file("b.toml");
    await writeFile(file, DATABASE("app").replace("path", "pth"));
    const { stderr, code } = await run(["select", "-c", file]);
    expect(code).toBe(2);
    expect(stderr).toBe(
      [
        "bakelite: invalid configuration, 3 problems:",
        `  ${file}:1:1: [[database]] \`app\` needs \`path\`, which must be an absolute path (\`~\` is not expanded; \`\${HOME}\` is)`,
        `  ${file}:3:1: \`pth\` needs the environment variable \`DATA\`, which is not set`,
        `  ${file}:3:1: unknown key \`pth\` in [[database]] \`app\`; did you mean \`path\`?`,
        "",
      ].join("\n"),
    );
  });

  test("without any configuration the error says where it was looked for", async () => {
    const { stderr, code } = await run(["select", "--config", "/nowhere/b.toml"]);
    expect(code).toBe(2);
    expect(stderr).toStartWith(
      "bakelite: there is no configuration file named by --config (/nowhere/b.toml)\n  hint: ",
    );
  });
});
