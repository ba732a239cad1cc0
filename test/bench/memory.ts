import { copyFile, mkdir, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { bakeliteCommand, configPathIn, type DaemonDatabase, startDaemon } from "../oracle/daemon-process.ts";
import { missingForRgw, startRgw } from "../servers/rgw.ts";
import { newBucketName, S3Requests } from "../servers/s3-account.ts";
import { eventually } from "../support/eventually.ts";
import { count, mebibytes, seconds } from "./figures.ts";
import { processFigures } from "./proc.ts";
import type { BenchReport, BenchTable, Budget } from "./report.ts";
import { type BenchContext, fillDatabase, runToEnd, untilFullBackup } from "./scene.ts";

/** The most memory that is resident while much is under way: a large database and a bucket, and many databases at once. */

interface Peak {
  readonly what: string;
  readonly seconds: number;
  readonly peakBytes: number;
  readonly limitBytes: number;
}

const MIB = 2 ** 20;
const LARGE_BUDGET_BYTES = 256 * MIB;
const BURST_BUDGET_BYTES = 320 * MIB;
const DEADLINE_MS = 300_000;
const HALF = fileURLToPath(new URL("half.ts", import.meta.url));
const BURST = fileURLToPath(new URL("burst.ts", import.meta.url));

export async function benchMemory(context: BenchContext): Promise<BenchReport> {
  const burst = await benchBurst(context);
  const missing = missingForRgw();
  const large = missing.length > 0 ? [] : await benchLarge(context);
  const peaks = [...large, ...burst];
  const absent =
    missing.length === 0 ? [] : [`Nothing to a bucket: to start a server, ${missing.join(", ")} would be needed.`];
  return {
    name: "memory",
    tables: [tableOf(peaks)],
    budgets: peaks.map(budgetOf),
    notes: [
      ...absent,
      "The bucket is one of Ceph RGW on this machine, in memory. The daemon is a new process for each line, the database one of words and one fifth random bytes. The transaction rewrites every second page.",
      "The databases of the last line are written while the daemon stands still (SIGSTOP), so that it finds all of them at the same moment. Their content is random and does not compress.",
    ],
  };
}

/** A full backup, one transaction over half of the pages, and a restore of both. */
async function benchLarge(context: BenchContext): Promise<readonly Peak[]> {
  const bytes = (context.quick ? 64 : 2048) * MIB;
  context.say("starting a server");
  await using server = await startRgw();
  const { endpoint, region, accessKeyId, secretAccessKey } = server.account;
  const bucket = newBucketName();
  await new S3Requests(server.account).createBucket(bucket);
  const path = join(context.directory, "app.db");
  context.say("making the database");
  await fillDatabase({ path, bytes, seed: context.seed });
  const { size } = await stat(path);
  const destination = {
    type: "s3",
    bucket,
    endpoint,
    region,
    access_key_id: accessKeyId,
    secret_access_key: secretAccessKey,
  };
  const options = {
    configPath: configPathIn(context.directory),
    databases: [{ name: "app", path, replicas: [], destinations: [destination] }],
    program: "executable" as const,
    logLevel: "debug" as const,
  };
  context.say("full backup");
  const full = await peakOf(`full backup of ${mebibytes(size)} to a bucket`, async () => {
    const daemon = await startDaemon(options);
    return { daemon, done: untilFullBackup(daemon) };
  });
  context.say("one large transaction");
  const transaction = await peakOf(`a transaction over half of its pages to a bucket`, async () => {
    const daemon = await startDaemon(options);
    await daemon.untilSaid("attached", DEADLINE_MS);
    await runToEnd([process.execPath, HALF, path]);
    return { daemon, done: daemon.untilSaid("stored a change-set", DEADLINE_MS) };
  });
  context.say("restore");
  const folder = join(context.directory, "restored");
  await mkdir(folder);
  const args = ["restore", "--config", options.configPath, "--db", "app", "--output", join(folder, "app.db")];
  const restored = await runToEnd(bakeliteCommand("executable", args));
  await rm(folder, { recursive: true });
  const restore = { what: "restore of both, integrity_check", ...restored, limitBytes: LARGE_BUDGET_BYTES };
  return [full, transaction, restore];
}

type Started = Awaited<ReturnType<typeof startDaemon>>;

async function peakOf(
  what: string,
  begin: () => Promise<{ readonly daemon: Started; readonly done: Promise<unknown> }>,
): Promise<Peak> {
  const { daemon, done } = await begin();
  await using _ = daemon;
  const startMs = performance.now();
  await done;
  const tookSeconds = (performance.now() - startMs) / 1000;
  const { peakBytes } = processFigures(daemon.pid);
  await daemon.stop();
  return { what, seconds: tookSeconds, peakBytes, limitBytes: LARGE_BUDGET_BYTES };
}

/** Many databases that each have something to store at the same moment. */
async function benchBurst(context: BenchContext): Promise<readonly Peak[]> {
  const [databaseCount, bytes] = context.quick ? [10, MIB] : [200, 4 * MIB];
  const template = join(context.directory, "template.db");
  await fillDatabase({ path: template, bytes: MIB / 4, seed: context.seed });
  const databases: DaemonDatabase[] = [];
  for (let i = 1; i <= databaseCount; i++) {
    const folder = join(context.directory, `db-${i}`);
    await mkdir(folder);
    await copyFile(template, join(folder, "app.db"));
    databases.push({ name: `db-${i}`, path: join(folder, "app.db"), replicas: [join(context.directory, "replica")] });
  }
  const options = {
    configPath: configPathIn(context.directory),
    databases,
    program: "executable" as const,
    logLevel: "debug" as const,
  };
  context.say(`${databaseCount} databases: first full backups`);
  {
    await using first = await startDaemon(options);
    await untilSaidTimes(first, "full backup stored", databaseCount);
    await first.stop();
  }
  context.say(`${databaseCount} databases: a burst`);
  await using daemon = await startDaemon(options);
  await untilSaidTimes(daemon, "attached", databaseCount);
  process.kill(daemon.pid, "SIGSTOP");
  try {
    await runToEnd([process.execPath, BURST, `${bytes}`, ...databases.map(({ path }) => path)]);
  } finally {
    process.kill(daemon.pid, "SIGCONT");
  }
  const startMs = performance.now();
  await untilSaidTimes(daemon, "stored a change-set", databaseCount);
  const what = `${count(databaseCount)} databases with ${mebibytes(bytes)} each at the same moment, to a directory`;
  const tookSeconds = (performance.now() - startMs) / 1000;
  const { peakBytes } = processFigures(daemon.pid);
  return [{ what, seconds: tookSeconds, peakBytes, limitBytes: BURST_BUDGET_BYTES }];
}

async function untilSaidTimes(daemon: Started, message: string, times: number): Promise<void> {
  await eventually(
    () => {
      daemon.checkRunning();
      return daemon.said(message).length >= times;
    },
    { what: `${times} × "${message}"`, deadlineMs: DEADLINE_MS, explain: () => daemon.tail },
  );
}

function tableOf(peaks: readonly Peak[]): BenchTable {
  return {
    title: "The most that was resident",
    columns: ["", "time", "peak memory"],
    rows: peaks.map((peak) => [peak.what, seconds(peak.seconds), mebibytes(peak.peakBytes)]),
  };
}

function budgetOf({ what, peakBytes, limitBytes }: Peak): Budget {
  return {
    what: `resident memory: ${what}`,
    limit: mebibytes(limitBytes),
    measured: mebibytes(peakBytes),
    met: peakBytes <= limitBytes,
  };
}
