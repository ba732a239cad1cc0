import { closeSync, openSync, readdirSync, readSync } from "node:fs";
import { join } from "node:path";
import { addTallies, NOTHING } from "./report.mjs";
import { runFile } from "./run-file.mjs";

/** @typedef {import("./run-file.mjs").FileResult} FileResult */
/** @typedef {Omit<import("./run-file.mjs").RunOptions, "file" | "deadlineMs"> & {
 *   readonly files: readonly string[],
 *   readonly jobs: number,
 *   readonly deadlineMs?: number,
 *   readonly verbose?: boolean,
 *   readonly print: (line: string) => void,
 * }} SuiteOptions */

const DEFAULT_DEADLINE_MS = 300_000;
/** Long silences look like a hang, to people and to CI systems. */
const HEARTBEAT_MS = 30_000;

/**
 * The `*.test.ts` files below `root/test`, as paths relative to `root`, whose path contains one of `filters`; all when
 * there are none.
 *
 * @param {string} root
 * @param {readonly string[]} filters
 * @returns {readonly string[]}
 */
export function findTestFiles(root, filters) {
  /** @param {string} folder @returns {string[]} */
  const walk = (folder) =>
    readdirSync(join(root, folder), { withFileTypes: true }).flatMap((entry) => {
      const path = `${folder}/${entry.name}`;
      if (entry.isDirectory()) return entry.name === "node_modules" ? [] : walk(path);
      return entry.name.endsWith(".test.ts") ? [path] : [];
    });
  return walk("test")
    .filter((path) => filters.length === 0 || filters.some((filter) => path.includes(filter)))
    .sort();
}

/**
 * Runs every file in a process of its own, `jobs` at a time, those with the longest deadline first, and prints one line
 * for each that passes and everything about one that does not.
 *
 * @param {SuiteOptions} options
 * @returns {Promise<readonly FileResult[]>}
 */
export async function runSuite(options) {
  const waiting = options.files
    .map((file) => ({ file, deadlineMs: options.deadlineMs ?? readDeadline(join(options.root, file)) }))
    .sort((a, b) => b.deadlineMs - a.deadlineMs);
  /** @type {FileResult[]} */
  const results = [];
  /** @type {Map<string, number>} */
  const running = new Map();
  const heartbeat = setInterval(() => options.print(describeRunning(running)), HEARTBEAT_MS);

  const work = async () => {
    for (let next = waiting.shift(); next !== undefined && !aborted(options.signal); next = waiting.shift()) {
      running.set(next.file, performance.now());
      const result = await runFile({ ...options, ...next });
      running.delete(next.file);
      results.push(result);
      printResult(result, options);
      heartbeat.refresh();
    }
  };
  try {
    await Promise.all(Array.from({ length: options.jobs }, work));
  } finally {
    clearInterval(heartbeat);
  }
  return results;
}

/**
 * @param {readonly FileResult[]} results
 * @returns {import("./report.mjs").Tally}
 */
export function sumResults(results) {
  return results.reduce((sum, { tally }) => addTallies(sum, tally), NOTHING);
}

/**
 * A file that may take longer than others begins with a comment `// deadline: 900 s`.
 *
 * @param {string} path
 * @returns {number} milliseconds
 */
export function readDeadline(path) {
  const head = Buffer.alloc(2048);
  const file = openSync(path, "r");
  try {
    readSync(file, head, 0, head.length, 0);
  } finally {
    closeSync(file);
  }
  const seconds = /^\/\/ deadline: (\d+) s\b/m.exec(head.toString("utf8"))?.[1];
  return seconds === undefined ? DEFAULT_DEADLINE_MS : Number(seconds) * 1000;
}

/**
 * @param {FileResult} result
 * @param {SuiteOptions} options
 */
function printResult(result, { print, verbose = false }) {
  const { file, tally, problems, skippedNames, output, seconds } = result;
  const counts = [`${tally.passed} passed`];
  if (tally.failed > 0) counts.push(`${tally.failed} failed`);
  if (tally.skipped > 0) counts.push(`${tally.skipped} skipped`);
  if (tally.failed > 0 || verbose) print(output.trimEnd());
  print(`${tally.failed > 0 ? "FAIL" : "ok  "} ${file}: ${counts.join(", ")} (${seconds.toFixed(1)} s)`);
  for (const problem of problems) print(`       ${file} ${problem}`);
  for (const name of skippedNames) print(`       skipped: ${name}`);
  if (tally.failed === 0 && !verbose) for (const note of notesIn(output)) print(`       ${note}`);
}

/**
 * What a test wants the reader to know though it passes, such as the servers that it ran against: lines that begin with
 * `note: `.
 *
 * @param {string} output
 * @returns {readonly string[]}
 */
function notesIn(output) {
  return [...new Set(output.split("\n").filter((line) => line.startsWith("note: ")))];
}

/**
 * @param {ReadonlyMap<string, number>} running
 * @returns {string}
 */
function describeRunning(running) {
  const nowMs = performance.now();
  const files = [...running].map(([file, startMs]) => `${file} (${Math.round((nowMs - startMs) / 1000)} s)`);
  return `.... running: ${files.join(", ")}`;
}

/** @param {AbortSignal | undefined} signal */
function aborted(signal) {
  return signal?.aborted === true;
}
