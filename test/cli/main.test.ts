import { describe, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { join } from "node:path";

const ROOT = join(import.meta.dir, "../..");
const EXECUTABLE = join(ROOT, "dist/bakelite");
const COMMAND = existsSync(EXECUTABLE) ? [EXECUTABLE] : [process.execPath, join(ROOT, "src/main.ts")];

/** Runs a shell line in which `"$@"` is bakelite, so that it can be put into pipelines. */
async function shell(line: string) {
  const child = Bun.spawn(["bash", "-c", line, "bash", ...COMMAND], {
    stdout: "pipe",
    stderr: "pipe",
    stdin: "ignore",
  });
  const [stdout, stderr, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  return { stdout, stderr, code };
}

describe("the process", () => {
  test("results go to standard output, errors to standard error, and the exit code tells which", async () => {
    expect(await shell('"$@" --version')).toMatchObject({
      stdout: expect.stringMatching(/^bakelite \d/),
      stderr: "",
      code: 0,
    });
    expect(await shell('"$@" no-such-command')).toMatchObject({ stdout: "", code: 2 });
    expect(await shell('"$@"')).toMatchObject({ stdout: "", code: 2 });
  });

  test("a reader that goes away is not an error", async () => {
    const { stdout, stderr } = await shell('"$@" --help | head -c 1; echo "${PIPESTATUS[0]}"');
    expect({ stdout, stderr }).toEqual({ stdout: "b0\n", stderr: "" });
    expect(await shell('"$@" --help | true; exit "${PIPESTATUS[0]}"')).toMatchObject({ stderr: "", code: 0 });
  });

  test.if(existsSync("/dev/full"))("a full disk under standard output is a failure", async () => {
    const { code, stderr } = await shell('"$@" --help > /dev/full');
    expect(code).toBe(1);
    expect(stderr).toStartWith("bakelite: cannot write to standard output: ");
  });

  test("a closed standard output or error does not keep it from ending", async () => {
    expect((await shell('"$@" --version >&-')).code).toBeLessThan(128);
    expect((await shell('"$@" no-such-command 2>&-')).code).toBe(2);
  });

  test("the versions in `version --json` agree with `--version`", async () => {
    const { stdout } = await shell('"$@" --version; "$@" version --json');
    const [line = "", ...rest] = stdout.split("\n");
    expect(JSON.parse(rest.join("\n"))).toHaveProperty("version", line.replace("bakelite ", ""));
  });
});
