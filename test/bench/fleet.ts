import { existsSync, readdirSync } from "node:fs";
import { copyFile, mkdir } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { configPathIn, type DaemonDatabase, type DaemonProcess, startDaemon } from "../oracle/daemon-process.ts";
import { eventually } from "../support/eventually.ts";
import { count, mebibytes, percent, seconds } from "./figures.ts";
import { type Litestream, LitestreamProcess, writeLitestreamConfig } from "./litestream.ts";
import { ReadinessListener } from "./notify.ts";
import { type ProcessFigures, processFigures } from "./proc.ts";
import type { BenchReport, BenchTable, Budget } from "./report.ts";
import { type BenchContext, fillDatabase, runToEnd } from "./scene.ts";

/** What it costs to look after 1, 100 and 500 databases in which nothing happens. */

interface Fleet {
  readonly count: number;
  readonly folder: string;
  readonly databases: readonly DaemonDatabase[];
}

/** A daemon of bakelite or Litestream with a fleet that is wholly stored. */
interface Attended extends AsyncDisposable {
  readonly label: string;
  readonly fleet: Fleet;
  readonly pid: number;
  /** From the start of the process until every database was backed up for the first time. */
  readonly firstBackupSeconds: number;
}

interface Observed {
  readonly attended: Attended;
  readonly before: ProcessFigures;
  readonly after: ProcessFigures;
}

const MIB = 2 ** 20;
const BUDGETS_BYTES: ReadonlyMap<number, number> = new Map([
  [1, 64 * MIB],
  [100, 130 * MIB],
  [500, 320 * MIB],
]);
const DATABASE_BYTES = 256 * 1024;
const DEADLINE_MS = 240_000;
const TOUCH = fileURLToPath(new URL("touch.ts", import.meta.url));

export async function benchFleet(context: BenchContext): Promise<BenchReport> {
  const { quick, litestream } = context;
  const sizes = quick ? [1, 10] : [1, 100, 500];
  const windowSeconds = quick ? 5 : 60;
  const template = join(context.directory, "template.db");
  await fillDatabase({ path: template, bytes: DATABASE_BYTES, seed: context.seed });
  const fleets: Fleet[] = [];
  for (const size of sizes) fleets.push(await makeFleet(join(context.directory, `bakelite-${size}`), size, template));

  const observed = await observe(context, fleets, windowSeconds, startBakeliteOn);
  const restarts = new Map<Fleet, number>();
  for (const fleet of fleets) {
    context.say(`${many(fleet.count)}: another start`);
    restarts.set(fleet, await restartSeconds(fleet));
  }
  if (litestream !== null) {
    const others: Fleet[] = [];
    for (const size of sizes)
      others.push(await makeFleet(join(context.directory, `litestream-${size}`), size, template));
    observed.push(...(await observe(context, others, windowSeconds, (fleet) => startLitestreamOn(litestream, fleet))));
  }
  return {
    name: "fleet",
    tables: [tableOf(observed, restarts, windowSeconds)],
    budgets: observed.flatMap(budgetsOf),
    notes: [
      `Databases of ${mebibytes(DATABASE_BYTES)}, each in a directory of its own with a \`-wal\`; each was backed up and had one commit shipped before. Daemons of one kind were idle side by side for ${windowSeconds} s.`,
      "*first start* lasts until every first full backup is stored (two at a time), *next start* until the daemon tells systemd that it is ready. CPU is of one core. *Resident* counts the pages of the executable that were read, which the kernel may drop and processes share; *of its own* is the rest, without SQLite's shared memory.",
    ],
  };
}

async function makeFleet(folder: string, size: number, template: string): Promise<Fleet> {
  const databases: DaemonDatabase[] = [];
  for (let i = 1; i <= size; i++) {
    const name = `db-${i}`;
    await mkdir(join(folder, name), { recursive: true });
    const path = join(folder, name, "app.db");
    await copyFile(template, path);
    databases.push({ name, path, replicas: [join(folder, "replica")] });
  }
  return { count: size, folder, databases };
}

/** Starts one after the other, commits once to each database, and lets all of them be idle at the same time. */
async function observe(
  context: BenchContext,
  fleets: readonly Fleet[],
  windowSeconds: number,
  start: (fleet: Fleet) => Promise<Attended>,
): Promise<Observed[]> {
  await using attended = new AsyncDisposableStack();
  const all: Attended[] = [];
  for (const fleet of fleets) {
    context.say(`${many(fleet.count)}: first start`);
    all.push(attended.use(await start(fleet)));
  }
  context.say(`all idle for ${windowSeconds} s`);
  const before = all.map(({ pid }) => processFigures(pid));
  await Bun.sleep(windowSeconds * 1000);
  return all.map((one, i) => {
    const after = processFigures(one.pid);
    return { attended: one, before: before[i] ?? after, after };
  });
}

async function startBakeliteOn(fleet: Fleet): Promise<Attended> {
  const startMs = performance.now();
  const daemon = await startFleetDaemon(fleet);
  try {
    await eventually(
      () => {
        daemon.checkRunning();
        return daemon.said("full backup stored").length >= fleet.count;
      },
      { what: `${fleet.count} first full backups`, deadlineMs: DEADLINE_MS, explain: () => daemon.tail },
    );
    const firstBackupSeconds = (performance.now() - startMs) / 1000;
    await commitToEach(fleet);
    // The status is published too rarely in a large fleet to wait for it.
    await untilEach(fleet, "a shipped commit", ({ name, replicas }) => holdsFile(join(replicas[0] ?? "", name, "L0")));
    const dispose = () => daemon[Symbol.asyncDispose]();
    return { label: "bakelite", fleet, pid: daemon.pid, firstBackupSeconds, [Symbol.asyncDispose]: dispose };
  } catch (error) {
    await daemon.kill();
    throw error;
  }
}

async function startLitestreamOn(litestream: Litestream, fleet: Fleet): Promise<Attended> {
  const config = join(fleet.folder, "litestream.yml");
  const replicaOf = ({ name, replicas }: DaemonDatabase) => join(replicas[0] ?? "", name);
  await writeLitestreamConfig(
    config,
    fleet.databases.map((database) => ({ path: database.path, replica: replicaOf(database) })),
  );
  const startMs = performance.now();
  const other = new LitestreamProcess(litestream, config);
  try {
    const filesOf = (database: DaemonDatabase) => countFiles(join(replicaOf(database), "ltx", "0"));
    await untilEach(fleet, "a first backup", (database) => filesOf(database) > 0);
    const firstBackupSeconds = (performance.now() - startMs) / 1000;
    const stored = new Map(fleet.databases.map((database) => [database, filesOf(database)]));
    await commitToEach(fleet);
    await untilEach(fleet, "a shipped commit", (database) => filesOf(database) > (stored.get(database) ?? 0));
    const dispose = () => other[Symbol.asyncDispose]();
    return { label: "Litestream", fleet, pid: other.pid, firstBackupSeconds, [Symbol.asyncDispose]: dispose };
  } catch (error) {
    await other[Symbol.asyncDispose]();
    throw error;
  }
}

async function startFleetDaemon(
  fleet: Fleet,
  environment: Readonly<Record<string, string>> = {},
): Promise<DaemonProcess> {
  const { folder, databases } = fleet;
  return await startDaemon({ configPath: configPathIn(folder), databases, program: "executable", environment });
}

/** Until the daemon says to systemd that it is ready: each database is attached, and nothing was missed. */
async function restartSeconds(fleet: Fleet): Promise<number> {
  await using listener = await ReadinessListener.start(join(fleet.folder, "notify"));
  const startMs = performance.now();
  await using daemon = await startFleetDaemon(fleet, { NOTIFY_SOCKET: listener.path });
  await listener.untilReady(DEADLINE_MS);
  const tookSeconds = (performance.now() - startMs) / 1000;
  daemon.checkRunning();
  return tookSeconds;
}

async function commitToEach({ databases }: Fleet): Promise<void> {
  await runToEnd([process.execPath, TOUCH, ...databases.map(({ path }) => path)]);
}

async function untilEach({ databases }: Fleet, what: string, is: (database: DaemonDatabase) => boolean): Promise<void> {
  let waiting = databases;
  await eventually(
    () => {
      waiting = waiting.filter((database) => !is(database));
      return waiting.length === 0;
    },
    {
      what: `${what} of each database`,
      deadlineMs: DEADLINE_MS,
      pollMs: 50,
      explain: () => `${waiting.length} are left`,
    },
  );
}

function many(databases: number): string {
  return databases === 1 ? "1 database" : `${count(databases)} databases`;
}

function holdsFile(directory: string): boolean {
  return countFiles(directory) > 0;
}

/** What is hidden, or being written under another ending, does not count. */
function countFiles(directory: string): number {
  if (!existsSync(directory)) return 0;
  return readdirSync(directory).filter((name) => !name.startsWith(".") && !name.endsWith(".tmp")).length;
}

function tableOf(
  observed: readonly Observed[],
  restarts: ReadonlyMap<Fleet, number>,
  windowSeconds: number,
): BenchTable {
  return {
    title: "Idle databases in one process",
    columns: [
      "",
      "resident",
      "of its own",
      "peak",
      "descriptors",
      "threads",
      "idle CPU",
      "written in an hour",
      "first start",
      "next start",
    ],
    rows: observed.map(({ attended: { label, fleet, firstBackupSeconds }, before, after }) => [
      `${label}, ${fleet.count}`,
      mebibytes(after.residentBytes),
      mebibytes(after.anonymousBytes),
      mebibytes(after.peakBytes),
      count(after.descriptors),
      `${after.threads}`,
      percent((after.cpuSeconds - before.cpuSeconds) / windowSeconds),
      mebibytes(((after.writtenBytes - before.writtenBytes) * 3600) / windowSeconds),
      seconds(firstBackupSeconds),
      seconds(restarts.get(fleet) ?? Number.NaN),
    ]),
  };
}

function budgetsOf({ attended: { label, fleet }, after }: Observed): readonly Budget[] {
  const limit = BUDGETS_BYTES.get(fleet.count);
  if (label !== "bakelite" || limit === undefined) return [];
  return [
    {
      what: `resident memory with ${many(fleet.count)}`,
      limit: mebibytes(limit),
      measured: mebibytes(after.residentBytes),
      met: after.residentBytes < limit,
    },
  ];
}
