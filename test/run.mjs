// `npm test`: everything that has to hold, from a fresh clone with nothing but git, Node and npm.
//
//   npm test                       install what is missing, check types, lint, build the executable, run all test files
//   npm test -- storage names      only build, and run the test files whose path contains "storage" or "names"
//   npm test -- --jobs 4           as many test files at a time (3 otherwise: many of them mostly wait)
//   npm test -- --verbose          print the output of files that pass, too
//
// The last line is always `N passed, N failed` (`, N skipped` when there are any). The exit status is 0 only when
// something passed and nothing failed.
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { constants, tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { bunPath, ensureDependencies } from "../packaging/dependencies.mjs";
import { addTallies, closingLine, NOTHING } from "./runner/report.mjs";
import { findTestFiles, runSuite, sumResults } from "./runner/suite.mjs";

/** @typedef {import("./runner/report.mjs").Tally} Tally */

const root = fileURLToPath(new URL("..", import.meta.url));
/** @type {Tally} */
let tally = NOTHING;
try {
  await main();
} catch (error) {
  print(error instanceof Error ? (error.stack ?? error.message) : String(error));
  tally = addTallies(tally, { ...NOTHING, failed: 1 });
}
print(closingLine(tally));
process.exitCode = tally.failed > 0 || tally.passed === 0 ? 1 : 0;

async function main() {
  const { values, positionals: filters } = parseArgs({
    allowPositionals: true,
    options: { jobs: { type: "string", default: "3" }, verbose: { type: "boolean", default: false } },
  });
  const jobs = Number(values.jobs);
  if (!Number.isInteger(jobs) || jobs < 1)
    throw new Error(`--jobs is ${values.jobs}, and must be a whole number from 1`);

  const files = findTestFiles(root, filters);
  if (files.length === 0) {
    print(filters.length === 0 ? "there are no test files" : `no test file has ${filters.join(" or ")} in its path`);
    return;
  }
  ensureDependencies(root);
  const env = testEnvironment();
  if (filters.length === 0) {
    runStep("types", ["node_modules/typescript/bin/tsc", "--noEmit"], env);
    runStep(
      "lint",
      [
        "node_modules/@biomejs/biome/bin/biome",
        "check",
        "--max-diagnostics=100",
        "--error-on-warnings",
        "--diagnostic-level=warn",
      ],
      env,
    );
  }
  // No test may meet an executable that an earlier build left behind.
  if (!runStep("build", ["packaging/bun.mjs", "packaging/build.ts"], env)) {
    rmSync(join(root, "dist", "bakelite"), { force: true });
  }
  await runTestFiles(files, jobs, values.verbose, env);
}

/**
 * @param {readonly string[]} files
 * @param {number} jobs
 * @param {boolean} verbose
 * @param {NodeJS.ProcessEnv} env
 */
async function runTestFiles(files, jobs, verbose, env) {
  const temporaryFolder = mkdtempSync(join(tmpdir(), "bakelite-test-"));
  const interrupted = new AbortController();
  for (const name of /** @type {const} */ (["SIGINT", "SIGTERM", "SIGHUP"])) {
    process.once(name, () => {
      interrupted.abort();
      process.on("exit", () => {
        process.exitCode = 128 + constants.signals[name];
      });
    });
  }
  try {
    const options = { bun: bunPath(root), root, files, jobs, verbose, env, temporaryFolder, print };
    const results = await runSuite({ ...options, signal: interrupted.signal });
    tally = addTallies(tally, sumResults(results));
    for (const { file, failedNames, problems } of results) {
      for (const what of [...failedNames, ...problems]) print(`FAIL ${file}: ${what}`);
    }
    if (interrupted.signal.aborted) print("interrupted");
  } finally {
    if (env["BAKELITE_TEST_KEEP"] === "1") print(`kept ${temporaryFolder}`);
    else rmSync(temporaryFolder, { recursive: true, force: true });
  }
}

/**
 * Runs a Node program of the project as one check of its own.
 *
 * @param {string} name
 * @param {readonly string[]} command
 * @param {NodeJS.ProcessEnv} env
 * @returns {boolean} whether it passed
 */
function runStep(name, command, env) {
  const startMs = performance.now();
  const result = spawnSync(process.execPath, command, {
    cwd: root,
    env,
    stdio: ["ignore", "pipe", "pipe"],
    maxBuffer: 64 << 20,
  });
  const passed = result.status === 0;
  if (!passed) print(`${result.stdout ?? ""}${result.stderr ?? ""}${result.error?.message ?? ""}`.trimEnd());
  print(`${passed ? "ok  " : "FAIL"} ${name} (${((performance.now() - startMs) / 1000).toFixed(1)} s)`);
  tally = addTallies(tally, { ...NOTHING, [passed ? "passed" : "failed"]: 1 });
  return passed;
}

/**
 * The caller's environment without what would change what a test sees: settings of bakelite and of Bun, credentials of
 * real clouds, settings of the npm that runs us. `CI` makes Bun refuse `test.only`.
 *
 * @returns {NodeJS.ProcessEnv}
 */
function testEnvironment() {
  const foreign =
    /^(?:BAKELITE_(?!TEST_)|BUN_|AWS_|AZURE_|GOOGLE_|CLOUDSDK_|npm_|NODE_OPTIONS$|FORCE_COLOR$|NOTIFY_SOCKET$)/i;
  const own = Object.entries(process.env).filter(([name]) => !foreign.test(name));
  return { ...Object.fromEntries(own), CI: "true", NO_COLOR: "1" };
}

/** @param {string} line */
function print(line) {
  process.stdout.write(`${line}\n`);
}
