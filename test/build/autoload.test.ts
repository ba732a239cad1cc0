import { afterAll, beforeAll, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { compile } from "../../packaging/compile.ts";
import { executablePath } from "../support/executable.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";

const PROBE = join(import.meta.dir, "probe");

/** Holds the files that Bun would obey. */
let hostile: TemporaryDirectory;
/** Holds the probe, as built for release, and the same program as Bun builds it by default. */
let built: TemporaryDirectory;

beforeAll(async () => {
  hostile = await temporaryDirectory("hostile");
  await writeFile(hostile.file(".env"), "PROBE_FROM_DOTENV=1\n");
  await writeFile(hostile.file("bunfig.toml"), 'preload = ["./preload.ts"]\n');
  await writeFile(hostile.file("preload.ts"), `await Bun.write("${hostile.file("preload-ran")}", "");\n`);

  built = await temporaryDirectory("probe");
  const main = join(PROBE, "main.ts");
  const workers = [join(PROBE, "deep/echo.worker.ts")];
  const define = { BAKELITE_BUILD_TARGET: '"probe"', BAKELITE_BUILD_DATE: '""', BAKELITE_BUILD_COMMIT: '""' };
  await compile({ main, workers, root: PROBE, outfile: built.file("probe"), define });
  await Bun.build({
    entrypoints: [main, ...workers],
    root: PROBE,
    define,
    compile: { outfile: built.file("default") },
  });
});

afterAll(async () => {
  await hostile[Symbol.asyncDispose]();
  await built[Symbol.asyncDispose]();
});

async function run(executable: string, args: readonly string[], env: Readonly<Record<string, string>> = {}) {
  const inherited = { PATH: process.env["PATH"] ?? "", HOME: hostile.path };
  const child = Bun.spawn([executable, ...args], {
    cwd: hostile.path,
    env: { ...inherited, ...env },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  const [stdout, stderr, status] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  return { stdout, stderr, status };
}

test("bakelite does not run the preload of a bunfig.toml in the current directory", async () => {
  const { stdout, status } = await run(executablePath(), ["--version"]);
  expect(status).toBe(0);
  expect(stdout).toMatch(/\d+\.\d+\.\d+/);
  expect(existsSync(hostile.file("preload-ran"))).toBe(false);
});

test("a program built in the same way ignores both files, and starts its worker from inside", async () => {
  const { stdout, stderr, status } = await run(built.file("probe"), ["--env-file", "x"]);
  expect({ stderr, status }).toEqual({ stderr: "", status: 0 });
  expect(JSON.parse(stdout)).toEqual({ echo: "hello from a worker", dotenv: null, argv: ["--env-file", "x"] });
  expect(existsSync(hostile.file("preload-ran"))).toBe(false);
});

test("it runs no code that BUN_OPTIONS names", async () => {
  const { stderr, status } = await run(built.file("probe"), [], {
    BUN_OPTIONS: `--preload=${hostile.file("preload.ts")}`,
  });
  expect(status).not.toBe(0);
  expect(stderr).toContain("Code generation from strings disallowed");
  expect(existsSync(hostile.file("preload-ran"))).toBe(false);
});

test("its stack traces name our files, lines and functions", async () => {
  const { stderr } = await run(built.file("probe"), ["--throw"]);
  expect(stderr).toMatch(/at failOnPurpose .*main\.ts:\d+/);
  expect(stderr).not.toContain(PROBE);
});

test("bakelite names no folder of the machine that built it", async () => {
  const sourceFolder = resolve(import.meta.dir, "../../src/");
  const bytes = Buffer.from(await Bun.file(executablePath()).arrayBuffer());
  expect(bytes.indexOf(`${sourceFolder}/`)).toBe(-1);
});

test("Bun's default build does obey both files, so these tests would notice", async () => {
  const { stdout } = await run(built.file("default"), []);
  expect(JSON.parse(stdout)).toMatchObject({ dotenv: "1" });
  expect(existsSync(hostile.file("preload-ran"))).toBe(true);
});
