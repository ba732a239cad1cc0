import { expect, test } from "bun:test";
import { readdir } from "node:fs/promises";
import { resolve } from "node:path";
import { eventually } from "../support/eventually.ts";
import { executablePath } from "../support/executable.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";

const DEMO = resolve(import.meta.dir, "../../packaging/demo.ts");
const TIMEOUT_MS = 90_000;

function start(temporaryFolder: string) {
  return Bun.spawn([process.execPath, DEMO, "--executable", executablePath()], {
    env: { ...process.env, TMPDIR: temporaryFolder },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
}

test(
  "the demo ends well, says so, and leaves nothing behind",
  async () => {
    await using directory = await temporaryDirectory("demo");
    const child = start(directory.path);
    const [stdout, stderr, status] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
    expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
    expect(stdout).toContain("All of it was as it should be");
    expect(stdout).not.toContain("\u001b");
    expect(await readdir(directory.path)).toEqual([]);
  },
  TIMEOUT_MS,
);

test(
  "the demo that is interrupted ends its processes and leaves nothing behind",
  async () => {
    await using directory = await temporaryDirectory("demo");
    const child = start(directory.path);
    let told = "";
    const reading = (async () => {
      for await (const chunk of child.stdout) told += new TextDecoder().decode(chunk);
    })();
    const pid = await eventually(() => /the daemon \(process (\d+)\)/.exec(told)?.[1], {
      what: "the demo's daemon to run",
      deadlineMs: 30_000,
      explain: () => told,
    });
    process.kill(child.pid, "SIGINT");
    expect(await child.exited).toBe(130);
    await reading;
    expect(await child.stderr.text()).toBe("");
    expect(() => process.kill(Number(pid), 0)).toThrow();
    expect(await readdir(directory.path)).toEqual([]);
  },
  TIMEOUT_MS,
);
