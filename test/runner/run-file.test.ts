import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { mkdir, writeFile } from "node:fs/promises";
import { dirname } from "node:path";
import { eventually } from "../support/eventually.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";
import { findMarked } from "./processes.mjs";
import { closingLine, parseReport } from "./report.mjs";
import { runFile } from "./run-file.mjs";
import { findTestFiles, readDeadline, runSuite, sumResults } from "./suite.mjs";

/** Runs a test file that consists of `body` as the runner would. */
async function runBody(body: string, limits: { deadlineMs?: number; memoryLimitBytes?: number } = {}) {
  await using folder = await temporaryDirectory("runner");
  await writeFile(folder.file("x.test.ts"), `import { afterAll, beforeAll, expect, test } from "bun:test";\n${body}\n`);
  return await runFile({
    bun: process.execPath,
    root: folder.path,
    file: "x.test.ts",
    deadlineMs: 20_000,
    temporaryFolder: folder.path,
    env: process.env,
    ...limits,
  });
}

test("counts what passed, failed and was skipped, and names the last two", async () => {
  const result = await runBody(`
    test("a", () => {});
    test("b < c & d", () => { expect(1).toBe(2); });
    test.skip("s", () => {});
    test.todo("t");
  `);
  expect(result.tally).toEqual({ passed: 1, failed: 1, skipped: 2 });
  expect(result.failedNames).toEqual(["b < c & d"]);
  expect(result.skippedNames).toEqual(["s", "t"]);
  expect(result.problems).toEqual([]);
  expect(result.output).toContain("Expected: 2");
});

const failures: readonly (readonly [what: string, body: string, passed: number, problem: string | null])[] = [
  ["does not load", 'test("a", () => {}); throw new Error("broken");', 0, "ended with 1 before"],
  [
    "is killed",
    'test("a", () => {}); test("b", () => { process.kill(process.pid, "SIGKILL"); });',
    0,
    "SIGKILL before",
  ],
  [
    "exits with status 0 in the middle",
    'test("a", () => {}); test("b", () => process.exit(0));',
    0,
    "ended with 0 before",
  ],
  ["holds no tests", "", 0, "ended with 0 before"],
  ["fails in beforeAll", 'beforeAll(() => { throw new Error("no"); }); test("a", () => {});', 0, null],
  ["fails in afterAll", 'afterAll(() => { throw new Error("no"); }); test("a", () => {});', 1, null],
  [
    "throws after a test has ended",
    'test("a", () => { setTimeout(() => { throw new Error("late"); }, 1); }); test("b", () => Bun.sleep(200));',
    1,
    null,
  ],
];
for (const [what, body, passed, problem] of failures) {
  test(`counts a failure when a file ${what}`, async () => {
    const result = await runBody(body);
    expect(result.tally).toEqual({ passed, failed: 1, skipped: 0 });
    if (problem === null) expect(result.problems).toEqual([]);
    else expect(result.problems).toEqual([expect.stringContaining(problem)]);
  });
}

// Processes that left the group of their test file are found by way of /proc, which only Linux has.
const linuxTest = test.skipIf(process.platform !== "linux");

linuxTest("stops a file that overruns its deadline, with everything that it started", async () => {
  const seconds = 86_400 + process.pid; // tells this sleep from anybody else's
  const result = await runBody(
    `test("a", async () => { Bun.spawn(["sh", "-c", "setsid sleep ${seconds} & sleep ${seconds}"]); await Bun.sleep(60_000); }, 60_000);`,
    { deadlineMs: 1_500 },
  );
  expect(result.tally).toEqual({ passed: 0, failed: 1, skipped: 0 });
  expect(result.problems).toEqual(["was stopped after 1.5 s, its deadline"]);
  expect(result.seconds).toBeLessThan(20);
  await eventually(() => !isRunning(`sleep\0${seconds}`), { what: "the sleep to end" });
});

linuxTest("ends and reports a daemon that a file leaves behind", async () => {
  const result = await runBody(`
    test("a", async () => {
      Bun.spawn(["sh", "-c", "setsid sh -c 'touch up; exec sleep 86399' >/dev/null 2>&1 &"]);
      while (!(await Bun.file("up").exists())) await Bun.sleep(1);
    });
  `);
  expect(result.problems).toEqual([expect.stringMatching(/^left processes behind: .*sleep 86399/)]);
  expect(result.tally).toEqual({ passed: 1, failed: 1, skipped: 0 });
});

linuxTest("stops a file whose memory grows without end", async () => {
  const result = await runBody(
    `test("a", async () => {
      const hoard = [];
      for (;;) {
        hoard.push(new Uint8Array(1 << 20).fill(1));
        await Bun.sleep(1);
      }
    });`,
    { memoryLimitBytes: 200 << 20 },
  );
  expect(result.problems).toEqual([expect.stringMatching(/^was stopped when it held \d{3} MiB of memory$/)]);
  expect(result.tally).toEqual({ passed: 0, failed: 1, skipped: 0 });
});

test("gives a file no terminal and nothing to read", async () => {
  const result = await runBody(`
    test("a", async () => {
      expect(process.stdin.isTTY).toBeFalsy();
      expect(await Bun.stdin.text()).toBe("");
    });
  `);
  expect(result.output).not.toContain("(fail)");
  expect(result.tally).toEqual({ passed: 1, failed: 0, skipped: 0 });
});

test("a suite adds up its files and prints notes, skips and failures", async () => {
  await using folder = await temporaryDirectory("suite");
  const files = {
    "test/a/good.test.ts": 'test("a", () => console.log("note: ran against nothing"));\ntest.skip("b", () => {});',
    "test/bad.test.ts": 'test("c", () => { throw new Error("the reason"); });',
    "test/helper.ts": 'throw new Error("not a test");',
  };
  for (const [path, body] of Object.entries(files)) {
    await mkdir(dirname(folder.file(path)), { recursive: true });
    await writeFile(folder.file(path), `import { test } from "bun:test";\n${body}\n`);
  }
  const found = findTestFiles(folder.path, []);
  expect(found).toEqual(["test/a/good.test.ts", "test/bad.test.ts"]);
  expect(findTestFiles(folder.path, ["good", "nowhere"])).toEqual(["test/a/good.test.ts"]);

  const lines: string[] = [];
  const options = { bun: process.execPath, root: folder.path, temporaryFolder: folder.path, env: process.env };
  const results = await runSuite({ ...options, files: found, jobs: 2, print: (line) => lines.push(line) });
  expect(sumResults(results)).toEqual({ passed: 1, failed: 1, skipped: 1 });
  const printed = lines.join("\n");
  expect(printed).toMatch(/^ok {3}test\/a\/good\.test\.ts: 1 passed, 1 skipped \(/m);
  expect(printed).toContain("note: ran against nothing");
  expect(printed).toContain("skipped: b");
  expect(printed).toMatch(/^FAIL test\/bad\.test\.ts: 0 passed, 1 failed \(/m);
  expect(printed).toContain("the reason");
});

test("a file may ask for a longer deadline", async () => {
  await using folder = await temporaryDirectory("deadline");
  await writeFile(folder.file("long.test.ts"), "// Hostile writers for a while.\n// deadline: 900 s\n");
  await writeFile(folder.file("usual.test.ts"), "");
  expect(readDeadline(folder.file("long.test.ts"))).toBe(900_000);
  expect(readDeadline(folder.file("usual.test.ts"))).toBe(300_000);
});

test("a report that was cut short at any byte is not taken for one", async () => {
  const xml =
    '<?xml version="1.0"?>\n<testsuites name="bun test" tests="3" assertions="9" failures="1" skipped="1" time="0.1">\n' +
    '<testsuite name="x" tests="3" failures="1" skipped="1">\n<testcase name="a" />\n' +
    '<testcase name="b"><failure message="no"/></testcase>\n<testcase name="c"><skipped /></testcase>\n' +
    "</testsuite>\n</testsuites>";
  expect(parseReport(xml)).toEqual({ passed: 1, failed: 1, skipped: 1, failedNames: ["b"], skippedNames: ["c"] });
  for (let length = 0; length < xml.length; length++) expect(parseReport(xml.slice(0, length))).toBeNull();
});

test("the closing line names skipped tests only when there are any", () => {
  expect(closingLine({ passed: 12, failed: 0, skipped: 0 })).toBe("12 passed, 0 failed");
  expect(closingLine({ passed: 12, failed: 1, skipped: 3 })).toBe("12 passed, 1 failed, 3 skipped");
});

test("a run in which no test matches fails", async () => {
  const child = Bun.spawn(["node", "test/run.mjs", "no file has this in its path"], {
    cwd: `${import.meta.dir}/../..`,
    stdin: "ignore",
    stdout: "pipe",
  });
  const output = await child.stdout.text();
  expect(await child.exited).toBe(1);
  expect(output).toEndWith("\n0 passed, 0 failed\n");
});

function isRunning(commandLine: string): boolean {
  return [...new Bun.Glob("[0-9]*/cmdline").scanSync({ cwd: "/proc", onlyFiles: false })].some((path) => {
    try {
      return readFileSync(`/proc/${path}`, "latin1").startsWith(commandLine);
    } catch {
      return false; // ended meanwhile
    }
  });
}

test("finds no process for a mark that nobody carries", () => {
  expect(findMarked("00000000-0000-0000-0000-000000000000")).toEqual([]);
});
