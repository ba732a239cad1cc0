import { mkdir, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import type { Backend, ByteSource } from "../../src/storage/backend.ts";
import { bakeliteCommand, configPathIn, daemonConfig } from "../oracle/daemon-process.ts";
import { ReplicaBuilder } from "../replica/builder.ts";
import { MemoryBackend } from "../replica/memory-backend.ts";
import { seededRandom } from "../support/random.ts";
import { count, mebibytes, seconds } from "./figures.ts";
import { type FillPlan, measureFillPlans } from "./fill-plans.ts";
import type { BenchReport, Budget } from "./report.ts";
import { type BenchContext, type Finished, runToEnd } from "./scene.ts";

/** How long it takes to find out what there is, and what to restore, where there are very many objects. */

const TIME_BUDGET_SECONDS = 2;
/** No database holds up another one for longer. */
const STALL_BUDGET_SECONDS = 0.1;
const MEMORY_BUDGET_BYTES = 200 * 2 ** 20;
const PAGES = 4;
const SECOND_MS = 1000;
const HOUR_MS = 3600 * SECOND_MS;

/** How long a replica has been there, and how much of that its levels hold. */
interface Ages {
  readonly days: number;
  readonly level2Days: number;
  readonly level1Days: number;
  readonly level0Hours: number;
}

/** Some 100,000 objects. */
const YEAR: Ages = { days: 365, level2Days: 100, level1Days: 20, level0Hours: 9 };
const QUICK_YEAR: Ages = { days: 4, level2Days: 2, level1Days: 0.25, level0Hours: 1 };

export async function benchCatalog({ directory, quick, seed, say }: BenchContext): Promise<BenchReport> {
  const size = quick ? 3_000 : 100_000;
  const ages = quick ? QUICK_YEAR : YEAR;
  say(`making ${count(size)} change-sets`);
  const path = new Scene(join(directory, "path"));
  await storeChangeSets(path.replica, size, seed);
  say(`making ${ages.days} days`);
  const year = new Scene(join(directory, "year"));
  const yearObjects = await storeYear(year.replica, ages, seed);

  const ofPath: Row[] = [];
  const ofYear: Row[] = [];
  for (const [scene, rows] of [
    [path, ofPath],
    [year, ofYear],
  ] as const) {
    await scene.configure();
    for (const args of [["list"], ["list", "--db", "app"], ["usage", "--db", "app"]]) {
      say(args.join(" "));
      rows.push({ what: `\`${args.slice(0, 2).join(" ")}\``, budgeted: true, ...(await scene.run(args)) });
    }
    say("restore");
    const latest = await scene.restore([]);
    rows.push({ what: "`restore`", budgeted: true, ...latest });
    const { restore_point } = JSON.parse(latest.stdout) as { readonly restore_point: { readonly time: string } };
    const middle = new Date(Date.parse(restore_point.time) - (scene === path ? (size / 2) * SECOND_MS : 2 * HOUR_MS));
    const atTime = await scene.restore(["--timestamp", middle.toISOString()]);
    rows.push({ what: "`restore --timestamp`", budgeted: true, ...atTime });
    if (scene === path) {
      const told = JSON.parse(latest.stdout) as { readonly change_sets: number };
      if (told.change_sets !== size) throw new Error(`the restore used ${told.change_sets} change-sets, not ${size}`);
    }
    say("list --verbose");
    const verbose = await scene.run(["list", "--db", "app", "--verbose", "--json"]);
    rows.push({ what: "`list --db --verbose --json`", budgeted: false, ...verbose });
  }

  say("what a mirror lacks");
  const plans = await measureFillPlans(year.replica, { place: join(directory, "mirror"), fullBackups: ages.days });

  const columns = ["", "time", "CPU", "peak memory"];
  return {
    name: "catalog",
    tables: [
      {
        title: `One full backup and one path of ${count(size)} change-sets in a directory, none of them compacted`,
        columns,
        rows: ofPath.map(cells),
      },
      {
        title: `${ages.days} days of compaction in a directory: ${count(yearObjects)} objects, a full backup each day`,
        columns,
        rows: ofYear.map(cells),
      },
      {
        title: `A mirror of these ${ages.days} days finds out what it lacks`,
        columns: ["", "time", "longest stall", "lacking"],
        rows: plans.map((plan) => [
          plan.what,
          seconds(plan.seconds),
          seconds(plan.longestStallSeconds),
          count(plan.lacking),
        ]),
      },
    ],
    budgets: [
      ...budgetsOf(ofPath, `one path of ${count(size)}`),
      ...budgetsOf(ofYear, `${ages.days} days`),
      stallBudgetOf(plans, yearObjects),
    ],
    notes: [
      `The database has ${PAGES} pages and the restores are without integrity_check, so they are listing, planning and little else.`,
      "`list --verbose` reads the trailer of every object, and has no budget of time.",
      "*longest stall*: for so long the process did nothing else, least of all for another database; what it waited for a processor is not counted.",
    ],
  };
}

interface Row extends Finished {
  readonly what: string;
  /** Names and few trailers are enough for it. */
  readonly budgeted: boolean;
}

/** A replica and a configuration that names it. */
class Scene {
  readonly replica: string;
  readonly #directory: string;

  constructor(directory: string) {
    this.#directory = directory;
    this.replica = join(directory, "replica");
  }

  async configure(): Promise<void> {
    const configPath = configPathIn(this.#directory);
    const path = join(this.#directory, "app.db");
    const databases = [{ name: "app", path, replicas: [this.replica] }];
    await writeFile(configPath, daemonConfig({ configPath, databases }));
  }

  async run(args: readonly string[]): Promise<Finished> {
    return await runToEnd(bakeliteCommand("executable", [...args, "--config", configPathIn(this.#directory)]));
  }

  async restore(args: readonly string[]): Promise<Finished> {
    const output = join(this.#directory, "restored.db");
    const finished = await this.run([
      ...["restore", "--db", "app", "--output", output, "--json", "--integrity", "none"],
      ...args,
    ]);
    await rm(output);
    return finished;
  }
}

function cells({ what, seconds: time, cpuSeconds, peakBytes }: Row): readonly string[] {
  return [what, seconds(time), seconds(cpuSeconds), mebibytes(peakBytes)];
}

/** The worst of the commands that have a budget. */
function budgetsOf(rows: readonly Row[], of: string): readonly Budget[] {
  const budgeted = rows.filter((row) => row.budgeted);
  const slowest = Math.max(...budgeted.map((row) => row.seconds));
  const largest = Math.max(...budgeted.map((row) => row.peakBytes));
  return [
    {
      what: `listing, and planning a restore, with ${of}: the slowest`,
      limit: seconds(TIME_BUDGET_SECONDS),
      measured: seconds(slowest),
      met: slowest < TIME_BUDGET_SECONDS,
    },
    {
      what: `resident memory of the largest of them with ${of}`,
      limit: mebibytes(MEMORY_BUDGET_BYTES),
      measured: mebibytes(largest),
      met: largest < MEMORY_BUDGET_BYTES,
    },
  ];
}

function stallBudgetOf(plans: readonly FillPlan[], objects: number): Budget {
  const longest = Math.max(...plans.map(({ longestStallSeconds }) => longestStallSeconds));
  return {
    what: `how long a mirror that looks for what it lacks of ${count(objects)} objects stops everything else in the daemon`,
    limit: seconds(STALL_BUDGET_SECONDS),
    measured: seconds(longest),
    met: longest < STALL_BUDGET_SECONDS,
  };
}

/** A full backup of state 1 and a change-set of one page for each of the `size` states after it, a second apart. */
async function storeChangeSets(replica: string, size: number, seed: number): Promise<void> {
  const random = seededRandom(seed);
  const builder = new ReplicaBuilder({ backends: [await openUnsynced(replica)], random });
  builder.beginChain(Array.from({ length: PAGES }, () => builder.randomImage()));
  await builder.storeFull(1);
  for (let i = 0; i < size; i++) {
    builder.passTime(SECOND_MS);
    const { index } = builder.commit(new Map([[random.integer(1, PAGES), builder.randomImage()]]));
    await builder.storeChangeSet(index);
    // What the model remembers of states that nobody asks for again.
    builder.states.delete(index - 1);
    builder.stored.clear();
  }
}

/**
 * What is left of so many days under the default levels, but for the ages and a first window of a minute: L3 of an hour for ever, L2 of
 * five minutes, L1 and L0 for the younger ones. How many objects.
 */
async function storeYear(replica: string, ages: Ages, seed: number): Promise<number> {
  const random = seededRandom(seed);
  let kept = 0;
  let keepsLevel0 = false;
  const backend = await openUnsynced(replica, (key) => {
    const isKept = keepsLevel0 || !key.includes("/L0/");
    if (isKept) kept++;
    return isKept;
  });
  const builder = new ReplicaBuilder({ backends: [backend], random });
  builder.beginChain(Array.from({ length: PAGES }, () => builder.randomImage()));
  await builder.storeFull(1);
  const hours = ages.days * 24;
  for (let hour = 0; hour < hours; hour++) {
    const ageHours = hours - hour;
    keepsLevel0 = ageHours <= ages.level0Hours;
    // Finer than the finest level that is left would only cost time here.
    const [stepSeconds, windows] =
      ageHours > ages.level2Days * 24
        ? [1800, []]
        : ageHours > ages.level1Days * 24
          ? [150, [{ level: 2, seconds: 300 }]]
          : [
              keepsLevel0 ? 1 : 30,
              [
                { level: 1, seconds: 60 },
                { level: 2, seconds: 300 },
              ],
            ];
    const before = builder.newest.index;
    for (let second = stepSeconds; second <= 3600; second += stepSeconds) {
      builder.passTime(stepSeconds * SECOND_MS);
      const { index } = builder.commit(new Map([[random.integer(1, PAGES), builder.randomImage()]]));
      await builder.storeChangeSet(index);
      for (const window of windows)
        if (second % window.seconds === 0)
          await builder.compact(window.level, index - window.seconds / stepSeconds + 1, index);
    }
    const { index } = builder.newest;
    await builder.compact(3, before + 1, index);
    if (hour % 24 === 23) await builder.storeFull(index);
    for (const old of builder.states.keys()) if (old < index) builder.states.delete(old);
    builder.stored.clear();
  }
  return kept;
}

/** A directory to write to only: a sync for each of so many objects would take longer than what is to be measured. */
async function openUnsynced(directory: string, keeps: (key: string) => boolean = () => true): Promise<Backend> {
  const made = new Set<string>();
  return new (class extends MemoryBackend {
    override async put(key: string, body: ByteSource): Promise<"stored"> {
      if (!keeps(key)) return "stored";
      const path = join(directory, key);
      if (!made.has(dirname(path))) await mkdir(dirname(path), { recursive: true });
      made.add(dirname(path));
      await writeFile(path, Buffer.concat(await Array.fromAsync(body.open())));
      return "stored";
    }
  })(directory);
}
