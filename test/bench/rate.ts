import { mkdir, stat } from "node:fs/promises";
import { join } from "node:path";
import { count, distribution, mean, ms, percent } from "./figures.ts";
import { LitestreamProcess, writeLitestreamConfig } from "./litestream.ts";
import { processFigures } from "./proc.ts";
import type { BenchReport, BenchTable, Budget } from "./report.ts";
import { ApplicationProcess, type BenchContext, startBakelite, untilFullBackup } from "./scene.ts";

/** How an application's commits fare with nothing beside it, with bakelite, and with Litestream. */

type Companion = "alone" | "with bakelite" | "with bakelite, its own checkpoints off" | "with Litestream";

interface Load {
  readonly title: string;
  readonly rate: number;
  readonly seconds: number;
}

interface Round {
  readonly companion: Companion;
  readonly perSecond: number;
  readonly latenciesUs: readonly number[];
  /** Of the companion, as a share of one core while the application worked. */
  readonly cpuShare: number;
  /** The longest that the companion says to have held the write lock. */
  readonly longestLockMs: number;
}

const PACED_PER_SECOND = 1000;
const ROW_BYTES = 100;
const P99_BUDGET_MS = 5;
const RATE_BUDGET_SHARE = 0.99;
const READY_DEADLINE_MS = 60_000;

export async function benchRate(context: BenchContext): Promise<BenchReport> {
  const loads: readonly Load[] = [
    { title: `paced, ${count(PACED_PER_SECOND)} commits/s`, rate: PACED_PER_SECOND, seconds: context.quick ? 2 : 8 },
    { title: "as fast as it can", rate: 0, seconds: context.quick ? 1 : 5 },
  ];
  const companions: readonly Companion[] = [
    "alone",
    "with bakelite",
    "with bakelite, its own checkpoints off",
    ...(context.litestream === null ? [] : (["with Litestream"] as const)),
  ];
  const repetitions = context.quick ? 1 : 2;
  const tables: BenchTable[] = [];
  const budgets: Budget[] = [];
  for (const load of loads) {
    const rounds: Round[] = [];
    // Taken in turns, so that what else the machine does meets all of them alike.
    for (let repetition = 1; repetition <= repetitions; repetition++) {
      for (const companion of companions) {
        context.say(`${load.title}, ${companion}, round ${repetition} of ${repetitions}`);
        rounds.push(await measure(context, load, companion, `${load.rate}-${companion}-${repetition}`));
      }
    }
    const merged = companions.map((companion) => merge(rounds.filter((round) => round.companion === companion)));
    tables.push({
      title: `${load.title}; one row of ${ROW_BYTES} bytes each, ${repetitions} × ${load.seconds} s in turns`,
      columns: ["", "commits/s", "p50", "p99", "p99.9", "longest", "write lock", "its CPU"],
      rows: merged.map(rowOf),
    });
    if (load.rate > 0) budgets.push(...pacedBudgets(merged));
    else tables.push(ratios(load, merged));
  }
  const notes = [
    "A latency is the time from before `BEGIN IMMEDIATE` until `COMMIT` has returned, in a process of its own with `synchronous=NORMAL` and SQLite's default `wal_autocheckpoint`.",
    "*its own checkpoints off*: the application sets `wal_autocheckpoint=0`, since bakelite checkpoints.",
    "*write lock* is the longest time for which bakelite held the database's write lock, as its status says; Litestream does not tell.",
  ];
  return { name: "rate", tables, budgets, notes };
}

async function measure(
  { directory, litestream, seed }: BenchContext,
  load: Load,
  companion: Companion,
  name: string,
): Promise<Round> {
  const folder = join(directory, name.replaceAll(/[ ,]+/g, "-"));
  await mkdir(folder);
  const path = join(folder, "app.db");
  const replica = join(folder, "replica");
  const spec = {
    path,
    seed,
    rate: load.rate,
    rowBytes: ROW_BYTES,
    warmUpSeconds: 1,
    seconds: load.seconds,
    marks: false,
    ...(companion === "with bakelite, its own checkpoints off" ? { walAutocheckpoint: 0 } : {}),
  };
  await using application = await ApplicationProcess.start(spec);
  const result = async (pid: number | null) => {
    const before = pid === null ? 0 : processFigures(pid).cpuSeconds;
    const { count: commits, seconds, latenciesUs } = await application.run();
    const cpuSeconds = pid === null ? Number.NaN : processFigures(pid).cpuSeconds - before;
    const perSecond = commits / seconds;
    return {
      companion,
      perSecond,
      latenciesUs,
      cpuShare: cpuSeconds / (spec.warmUpSeconds + seconds),
      longestLockMs: Number.NaN,
    };
  };
  switch (companion) {
    case "alone":
      return await result(null);
    case "with bakelite":
    case "with bakelite, its own checkpoints off": {
      await using daemon = await startBakelite(folder, { path, replica });
      await untilFullBackup(daemon);
      const round = await result(daemon.pid);
      await daemon.stop();
      const status = await daemon.status();
      // Otherwise it would be measured what it costs to do nothing.
      if ((status?.change_sets ?? 0) === 0) throw new Error(`bakelite has stored nothing:\n${daemon.tail}`);
      return { ...round, longestLockMs: status?.longest_write_lock_ms ?? Number.NaN };
    }
    case "with Litestream": {
      if (litestream === null) throw new Error("there is no Litestream");
      await writeLitestreamConfig(join(folder, "litestream.yml"), [{ path, replica }]);
      await using other = new LitestreamProcess(litestream, join(folder, "litestream.yml"));
      await other.untilStored(replica, READY_DEADLINE_MS);
      const round = await result(other.pid);
      await stat(replica);
      return round;
    }
  }
}

function merge(rounds: readonly Round[]): Round {
  const [first] = rounds;
  if (first === undefined) throw new Error("nothing was measured");
  return {
    companion: first.companion,
    perSecond: mean(rounds.map((round) => round.perSecond)),
    latenciesUs: rounds.flatMap((round) => round.latenciesUs),
    cpuShare: mean(rounds.map((round) => round.cpuShare)),
    longestLockMs: Math.max(...rounds.map((round) => round.longestLockMs)),
  };
}

function rowOf({ companion, perSecond, latenciesUs, cpuShare, longestLockMs }: Round): readonly string[] {
  const { p50, p99, p999, max } = distribution(latenciesUs);
  const times = [p50, p99, p999, max].map((us) => ms(us / 1000));
  return [companion, count(perSecond), ...times, ms(longestLockMs), percent(cpuShare)];
}

function pacedBudgets(rounds: readonly Round[]): readonly Budget[] {
  const alone = find(rounds, "alone");
  const bakelite = find(rounds, "with bakelite");
  const share = bakelite.perSecond / alone.perSecond;
  const addedMs = (distribution(bakelite.latenciesUs).p99 - distribution(alone.latenciesUs).p99) / 1000;
  return [
    {
      what: "an application's paced rate beside bakelite",
      limit: `unchanged (${percent(RATE_BUDGET_SHARE)} at least)`,
      measured: percent(share),
      met: share >= RATE_BUDGET_SHARE,
    },
    {
      what: "what bakelite adds to the p99 of a paced commit, write lock included",
      limit: ms(P99_BUDGET_MS),
      measured: ms(addedMs),
      met: addedMs <= P99_BUDGET_MS,
    },
  ];
}

function ratios(load: Load, rounds: readonly Round[]): BenchTable {
  const alone = find(rounds, "alone");
  const others = rounds.filter((round) => round !== alone);
  return {
    title: `${load.title}: share of the rate that is left`,
    columns: ["", "of the rate alone"],
    rows: others.map((round) => [round.companion, percent(round.perSecond / alone.perSecond)]),
  };
}

function find(rounds: readonly Round[], companion: Companion): Round {
  const found = rounds.find((round) => round.companion === companion);
  if (found === undefined) throw new Error(`${companion} was not measured`);
  return found;
}
