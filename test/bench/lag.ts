import { mkdir, readdir, readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { verifyObject } from "../../src/format/decode.ts";
import { emptyKeyRing } from "../../src/format/envelope.ts";
import { parseName } from "../../src/format/names.ts";
import type { DaemonProcess, Settings } from "../oracle/daemon-process.ts";
import { greatestMark } from "./application-protocol.ts";
import { count, type Distribution, distribution, ms, number, percent, sum } from "./figures.ts";
import type { BenchReport, Budget } from "./report.ts";
import { ApplicationProcess, type BenchContext, fillDatabase, startBakelite, untilFullBackup } from "./scene.ts";

/** How long a commit takes until it is in an object at the destination. */

interface Scene {
  readonly perSecond: number;
  readonly seconds: number;
  /** 0: the database starts empty, and no full backup runs but the first one, before. Else one runs all the time. */
  readonly databaseBytes: number;
}

interface Period {
  readonly startMs: number;
  readonly endMs: number;
}

/** The default of `max_batch_delay`, which the budget is reckoned from. */
const MAX_BATCH_DELAY_MS = 1000;
const ALLOWANCE_MS = 300;
const MIB = 2 ** 20;

export async function benchLag(context: BenchContext): Promise<BenchReport> {
  const { quick } = context;
  const seconds = quick ? 4 : 15;
  const scenes: readonly Scene[] = [0, (quick ? 32 : 512) * MIB].flatMap((databaseBytes) =>
    [10, 200].map((perSecond) => ({ perSecond, seconds, databaseBytes })),
  );
  const rows: string[][] = [];
  const budgets: Budget[] = [];
  for (const scene of scenes) {
    const label = describe(scene);
    context.say(label);
    const { lags, share } = await measure(context, scene);
    rows.push([
      label,
      count(lags.count),
      ms(lags.p50),
      ms(lags.p99),
      ms(lags.max),
      share === null ? "–" : percent(share),
    ]);
    budgets.push({
      what: `p99 from commit to stored, ${label}`,
      limit: ms(MAX_BATCH_DELAY_MS + ALLOWANCE_MS),
      measured: ms(lags.p99),
      met: lags.p99 < MAX_BATCH_DELAY_MS + ALLOWANCE_MS,
    });
  }
  return {
    name: "lag",
    tables: [
      {
        title:
          "From COMMIT having returned until the change-set that holds it has its name at a directory on the same disk",
        columns: ["", "commits", "p50", "p99", "longest", "full backup ran"],
        rows,
      },
    ],
    budgets,
    notes: [
      "Each commit leaves a number in the database; afterwards every change-set is decoded, and the first one that holds this number or a greater one is when the commit was stored. The time is the file's ctime, which the kernel keeps to 4 ms or better.",
      "`debounce` and `max_batch_delay` are the defaults (250 ms and 1 s). During a full backup only the commits are counted that came while one was being written, and `max_segments_per_snapshot = 1` has the next one begin when one is stored.",
    ],
  };
}

function describe({ perSecond, databaseBytes }: Scene): string {
  const during = databaseBytes === 0 ? "" : `, a full backup of ${number(databaseBytes / MIB)} MiB running`;
  return `${perSecond} commits/s${during}`;
}

async function measure(
  { directory, seed }: BenchContext,
  { perSecond, seconds, databaseBytes }: Scene,
): Promise<{ readonly lags: Distribution; readonly share: number | null }> {
  const folder = join(directory, `${perSecond}-${databaseBytes}`);
  await mkdir(folder);
  const path = join(folder, "app.db");
  const replica = join(folder, "replica");
  const isBusy = databaseBytes > 0;
  if (isBusy) await fillDatabase({ path, bytes: databaseBytes, seed });
  const settings: Settings = isBusy ? { max_segments_per_snapshot: 1 } : {};
  const spec = { path, seed, rate: perSecond, rowBytes: 100, warmUpSeconds: 1, seconds, marks: true };
  await using application = await ApplicationProcess.start(spec);
  await using daemon = await startBakelite(folder, { path, replica }, { settings, logLevel: "debug" });
  await untilFullBackup(daemon);
  const { committedMs, firstSequence } = await application.run();
  await daemon.stop();
  const stored = await readStored(join(replica, "app", "L0"));
  const periods = isBusy ? fullBackupsOf(daemon) : null;
  const counted = committedMs.map((at, i) => ({ at, sequence: firstSequence + i }));
  const wanted =
    periods === null ? counted : counted.filter(({ at }) => periods.some((p) => p.startMs <= at && at < p.endMs));
  const lags = distribution(wanted.map(({ at, sequence }) => storedAt(stored, sequence) - at));
  const firstMs = committedMs[0] ?? Number.NaN;
  const lastMs = committedMs.at(-1) ?? Number.NaN;
  const covered = (periods ?? []).map((p) => Math.max(0, Math.min(p.endMs, lastMs) - Math.max(p.startMs, firstMs)));
  return { lags, share: periods === null ? null : sum(covered) / (lastMs - firstMs) };
}

interface Stored {
  readonly greatestMark: number;
  readonly atMs: number;
}

/** Each change-set with the newest commit that it holds and when it appeared under its name, in the order of the commits. */
async function readStored(directory: string): Promise<readonly Stored[]> {
  const stored: Stored[] = [];
  for (const file of (await readdir(directory)).sort()) {
    const name = parseName(`L0/${file}`);
    if (name === null) continue;
    const path = join(directory, file);
    const bytes = await readFile(path);
    const source = { sizeBytes: bytes.length, read: async (start: number, end: number) => bytes.subarray(start, end) };
    const options = { name, database: "app", subject: path, keys: emptyKeyRing, acceptPlaintext: true };
    let greatest = 0;
    await verifyObject(source, options, {
      onPages: ({ images }) => {
        greatest = Math.max(greatest, greatestMark(images));
      },
    });
    stored.push({ greatestMark: greatest, atMs: Number((await stat(path, { bigint: true })).ctimeNs) / 1e6 });
  }
  return stored;
}

/** Throws for a commit that was never stored: the daemon was stopped in an orderly way, so that would be a loss. */
function storedAt(stored: readonly Stored[], sequence: number): number {
  const first = stored.find(({ greatestMark: greatest }) => greatest >= sequence);
  if (first === undefined) throw new Error(`commit ${sequence} is in no change-set`);
  return first.atMs;
}

/** When full backups were being taken, by the daemon's log. */
function fullBackupsOf(daemon: DaemonProcess): readonly Period[] {
  const ends = daemon.said("full backup stored").map(({ time }) => Date.parse(time));
  return daemon
    .said("full backup begins")
    .map(({ time }) => Date.parse(time))
    .map((startMs) => ({ startMs, endMs: ends.find((end) => end >= startMs) ?? Number.POSITIVE_INFINITY }));
}
