import { spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { endMarked, kill, MARK_VARIABLE, residentBytes } from "./processes.mjs";
import { parseReport } from "./report.mjs";

/** @typedef {import("./report.mjs").Tally} Tally */

/**
 * @typedef {object} RunOptions
 * @property {string} bun Path of the Bun executable.
 * @property {string} root The folder to run in.
 * @property {string} file Path of the test file, relative to `root`.
 * @property {number} deadlineMs How long the whole file may take.
 * @property {string} temporaryFolder An existing folder for the report and for what tests write.
 * @property {Readonly<NodeJS.ProcessEnv>} env
 * @property {number} [memoryLimitBytes]
 * @property {AbortSignal} [signal] Ends the file's processes at once.
 */

/**
 * @typedef {object} FileResult
 * @property {string} file
 * @property {Tally} tally
 * @property {readonly string[]} problems What went wrong beside failing tests; each counts as one failure.
 * @property {readonly string[]} failedNames
 * @property {readonly string[]} skippedNames
 * @property {string} output Everything that was printed.
 * @property {number} seconds
 */

/** One test; a file that needs more says so in the test itself. */
const TEST_TIMEOUT_MS = 60_000;
/** Of tests that a file declares concurrent. */
const CONCURRENT_TESTS = 4;
/** Nothing we test needs this much; a runaway loop takes all there is, and with it the machine. */
const DEFAULT_MEMORY_LIMIT_BYTES = 2 * 1024 ** 3;
const MEMORY_POLL_MS = 250;
/** What a process that was asked to end gets for ending its own children. */
const GRACE_MS = 2_000;

/**
 * Runs one test file in a process group of its own. Everything except a complete report and exit status 0 is a failure:
 * a file that crashes, exits early, overruns its deadline, holds no test, or leaves processes behind.
 *
 * @param {RunOptions} options
 * @returns {Promise<FileResult>}
 */
export async function runFile(options) {
  const startMs = performance.now();
  const mark = randomUUID();
  const reportPath = join(options.temporaryFolder, `${mark}.xml`);
  const { ending, left, output } = await runProcess(options, mark, reportPath);
  const report = readReport(reportPath);

  const problems = [];
  if (ending.kind === "overran") problems.push(`was stopped after ${options.deadlineMs / 1000} s, its deadline`);
  else if (ending.kind === "overgrew") problems.push(`was stopped when it held ${ending.mebibytes} MiB of memory`);
  else if (ending.kind === "interrupted") problems.push("was interrupted");
  else if (ending.kind === "not-started") problems.push(`could not be started: ${ending.reason}`);
  else if (report === null)
    problems.push(`ended with ${ending.status} before it had run all of its tests, or holds none`);
  else if (ending.status !== 0 && report.failed === 0)
    problems.push(`ended with ${ending.status} though no test failed`);
  if (ending.kind === "ended" && left.length > 0) problems.push(`left processes behind: ${left.join("; ")}`);

  const { passed, failed, skipped, failedNames, skippedNames } = report ?? EMPTY_REPORT;
  return {
    file: options.file,
    tally: { passed, failed: failed + problems.length, skipped },
    problems,
    failedNames,
    skippedNames,
    output,
    seconds: (performance.now() - startMs) / 1000,
  };
}

/** @type {NonNullable<ReturnType<typeof parseReport>>} */
const EMPTY_REPORT = { passed: 0, failed: 0, skipped: 0, failedNames: [], skippedNames: [] };

/**
 * @typedef {{ kind: "ended", status: number | string }
 *   | { kind: "overran" }
 *   | { kind: "interrupted" }
 *   | { kind: "overgrew", mebibytes: number }
 *   | { kind: "not-started", reason: string }} Ending
 */

/**
 * @param {RunOptions} options
 * @param {string} mark
 * @param {string} reportPath
 * @returns {Promise<{ ending: Ending, left: readonly string[], output: string }>}
 */
async function runProcess(options, mark, reportPath) {
  const child = spawn(options.bun, bunArguments(options.file, reportPath), {
    cwd: options.root,
    env: { ...options.env, [MARK_VARIABLE]: mark, TMPDIR: options.temporaryFolder },
    stdio: ["ignore", "pipe", "pipe"],
    detached: true,
  });
  /** @type {Buffer[]} */
  const chunks = [];
  child.stdout.on("data", (chunk) => chunks.push(chunk));
  child.stderr.on("data", (chunk) => chunks.push(chunk));
  const closed = new Promise((resolve) => child.on("close", resolve));
  /** @type {Promise<Ending>} */
  const ended = new Promise((resolve) => {
    child.on("error", (error) => resolve({ kind: "not-started", reason: error.message }));
    // Not "close": a process left behind may hold our pipes open for ever.
    child.on("exit", (code, killer) => resolve({ kind: "ended", status: code ?? killer ?? "no status" }));
  });

  const ending = await Promise.race([ended, watch(child.pid, options, ended)]);
  if (ending.kind !== "ended") await endProcessGroup(child.pid, ended);
  const left = await endMarked(mark, ending.kind === "ended" ? GRACE_MS : 0);
  if (child.pid !== undefined) kill(-child.pid, "SIGKILL");

  await Promise.race([closed, sleep(GRACE_MS, undefined, { ref: false })]);
  child.stdout.destroy();
  child.stderr.destroy();
  return { ending, left, output: Buffer.concat(chunks).toString("utf8") };
}

/**
 * @param {string} file
 * @param {string} reportPath
 * @returns {string[]}
 */
function bunArguments(file, reportPath) {
  return [
    "test",
    "--no-env-file",
    "--no-orphans",
    `--timeout=${TEST_TIMEOUT_MS}`,
    `--max-concurrency=${CONCURRENT_TESTS}`,
    "--reporter=junit",
    `--reporter-outfile=${reportPath}`,
    `./${file}`,
  ];
}

/**
 * Resolves when the file has overrun its deadline or outgrown its memory, or when the whole run was interrupted.
 *
 * @param {number | undefined} pid
 * @param {RunOptions} options
 * @param {Promise<Ending>} ended
 * @returns {Promise<Ending>}
 */
async function watch(pid, { deadlineMs, memoryLimitBytes = DEFAULT_MEMORY_LIMIT_BYTES, signal }, ended) {
  const endMs = performance.now() + deadlineMs;
  let over = false;
  void ended.then(() => {
    over = true;
  });
  while (!over && pid !== undefined) {
    const bytes = residentBytes(pid);
    if (bytes > memoryLimitBytes) return { kind: "overgrew", mebibytes: Math.round(bytes / 1024 ** 2) };
    if (performance.now() >= endMs) return { kind: "overran" };
    if (signal?.aborted === true) return { kind: "interrupted" };
    await Promise.race([ended, sleep(Math.min(MEMORY_POLL_MS, Math.max(0, endMs - performance.now())))]);
  }
  return await ended;
}

/**
 * Ends what is left of the process group that `pid` leads: politely first while its leader runs, so that tests may stop
 * their servers.
 *
 * @param {number | undefined} pid
 * @param {Promise<unknown>} leaderEnded
 */
async function endProcessGroup(pid, leaderEnded) {
  if (pid === undefined) return;
  kill(-pid, "SIGTERM");
  await Promise.race([leaderEnded, sleep(GRACE_MS, undefined, { ref: false })]);
  kill(-pid, "SIGKILL");
}

/**
 * @param {string} path
 * @returns {ReturnType<typeof parseReport>}
 */
function readReport(path) {
  try {
    return parseReport(readFileSync(path, "utf8"));
  } catch {
    return null; // never written
  }
}
