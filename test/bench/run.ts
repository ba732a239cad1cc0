// `npm run bench`: figures to look at, taken with the executable that `npm run build` made.
//
//   npm run bench                         all of it, some fourteen minutes
//   npm run bench -- rate lag             only these: rate lag full restore fleet idle catalog s3 s3-latency
//                                         memory
//   npm run bench -- --quick              everything smaller and shorter: to see that it works
//   npm run bench -- --json file          writes what was measured there, too
//   npm run bench -- --markdown           puts the tables into docs/performance.md, between its markers
//   npm run bench -- --from file --markdown    the same from an earlier run's --json, measuring nothing
//
// Litestream is compared with when it is on the PATH or BAKELITE_BENCH_LITESTREAM names it:
//   go install github.com/benbjohnson/litestream/cmd/litestream@v0.5.18
// Databases and backups are written below TMPDIR, which should be on a disk: a file system in memory flatters everybody.
import { rmSync } from "node:fs";
import { mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { constants } from "node:os";
import { resolve } from "node:path";
import { parseArgs } from "node:util";
import { temporaryDirectory } from "../support/temporary-directory.ts";
import { benchCatalog } from "./catalog.ts";
import { benchFleet } from "./fleet.ts";
import { benchFullAndRestore } from "./full-restore.ts";
import { benchIdle } from "./idle.ts";
import { benchLag } from "./lag.ts";
import { findLitestream } from "./litestream.ts";
import { describeMachine } from "./machine.ts";
import { benchMemory } from "./memory.ts";
import { childPids, machineBusySeconds, ownCpuSeconds } from "./proc.ts";
import { benchRate } from "./rate.ts";
import {
  BENCH_NAMES,
  type BenchDocument,
  type BenchName,
  type BenchReport,
  type BenchRun,
  intoPage,
  textOfMachine,
  textOfRun,
} from "./report.ts";
import { benchS3 } from "./s3.ts";
import { benchS3Latency } from "./s3-latency.ts";
import type { BenchContext } from "./scene.ts";

const PAGE = resolve(import.meta.dir, "../../docs/performance.md");
/** The same databases and the same work in every run. */
const SEED = 20_261;
const KILL_DEADLINE_MS = 5000;
const KILL_POLL_MS = 5;

type Bench = (context: BenchContext) => Promise<BenchReport | readonly BenchReport[]>;

/** In the order of `BENCH_NAMES`; one may answer for several names. */
const BENCHES: readonly { readonly names: readonly BenchName[]; readonly bench: Bench }[] = [
  { names: ["rate"], bench: benchRate },
  { names: ["lag"], bench: benchLag },
  { names: ["full", "restore"], bench: benchFullAndRestore },
  { names: ["fleet"], bench: benchFleet },
  { names: ["idle"], bench: benchIdle },
  { names: ["catalog"], bench: benchCatalog },
  { names: ["s3"], bench: benchS3 },
  { names: ["s3-latency"], bench: benchS3Latency },
  { names: ["memory"], bench: benchMemory },
];

const { values: flags, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    quick: { type: "boolean", default: false },
    json: { type: "string" },
    markdown: { type: "boolean", default: false },
    from: { type: "string" },
  },
});

const names = chosen(positionals);
if (flags.markdown && flags.quick) refuse("`--quick` and `--markdown` do not go together");
const document = flags.from === undefined ? await measure(names) : await readDocument(flags.from);
if (flags.markdown && document.quick) refuse("the figures of a quick run mean too little for the page");
if (flags.json !== undefined) await writeFile(flags.json, `${JSON.stringify(document, null, 2)}\n`);
if (flags.markdown) {
  await writeFile(PAGE, intoPage(await readFile(PAGE, "utf8"), document));
  console.error(`wrote ${PAGE}`);
}

/** What the arguments name, in our order; all without any. A name that is none ends the process. */
function chosen(given: readonly string[]): readonly BenchName[] {
  const unknown = given.find((name) => !BENCH_NAMES.some((known) => known === name));
  if (unknown !== undefined) refuse(`there is no benchmark \`${unknown}\`; there are ${BENCH_NAMES.join(", ")}`);
  return BENCH_NAMES.filter((name) => given.length === 0 || given.includes(name));
}

function refuse(why: string): never {
  console.error(why);
  process.exit(2);
}

async function measure(asked: readonly BenchName[]): Promise<BenchDocument> {
  await using directory = await temporaryDirectory("bench");
  leaveNothingBehind(directory.path);
  // Servers make folders of their own, which have to go with ours.
  process.env["TMPDIR"] = directory.path;
  const litestream = findLitestream();
  const machine = describeMachine(directory.path, litestream);
  process.stdout.write(`${textOfMachine({ machine })}\n`);
  const runs: BenchRun[] = [];
  for (const { names: all, bench } of BENCHES) {
    const wanted = all.filter((name) => asked.includes(name));
    if (wanted.length === 0) continue;
    const name = wanted.join(", ");
    const own = directory.file(all.join("-"));
    await mkdir(own);
    const context: BenchContext = {
      quick: flags.quick,
      directory: own,
      seed: SEED,
      litestream,
      say: (what) => console.error(`${name}: ${what}`),
    };
    try {
      const found = (await observed(() => bench(context))).filter((run) => wanted.includes(run.name));
      for (const run of found) process.stdout.write(`${textOfRun(run)}\n`);
      runs.push(...found);
    } catch (error) {
      // What the others found is not to be lost with it.
      console.error(`${name} FAILED: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`);
      process.exitCode = 1;
    }
    await rm(own, { recursive: true, force: true, maxRetries: 3 });
  }
  return { machine, quick: flags.quick, runs };
}

/** With how long it took and what else the machine did meanwhile. */
async function observed(bench: () => ReturnType<Bench>): Promise<readonly BenchRun[]> {
  const startedAt = new Date().toISOString();
  const startMs = performance.now();
  const others = () => machineBusySeconds() - ownCpuSeconds();
  const before = others();
  const reports = [await bench()].flat();
  const tookSeconds = (performance.now() - startMs) / 1000;
  const otherCpuShare = (others() - before) / tookSeconds;
  return reports.map((report) => ({ ...report, startedAt, tookSeconds, otherCpuShare }));
}

/** Ctrl-C: every process that we started is killed by its pid, and everything written is removed. */
function leaveNothingBehind(directory: string): void {
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
    process.on(signal, () => {
      const untilMs = performance.now() + KILL_DEADLINE_MS;
      for (let pids = childPids(); pids.length > 0 && performance.now() < untilMs; pids = childPids()) {
        for (const pid of pids) kill(pid);
        Bun.sleepSync(KILL_POLL_MS);
      }
      rmSync(directory, { recursive: true, force: true, maxRetries: 10, retryDelay: 50 });
      process.exit(128 + constants.signals[signal]);
    });
  }
}

function kill(pid: number): void {
  try {
    process.kill(pid, "SIGKILL");
  } catch {
    // It has ended meanwhile.
  }
}

async function readDocument(path: string): Promise<BenchDocument> {
  return JSON.parse(await readFile(path, "utf8")) as BenchDocument;
}
