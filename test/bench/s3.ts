import { mkdir, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { bakeliteCommand, configPathIn, DaemonProcess } from "../oracle/daemon-process.ts";
import { missingForRgw, startRgw } from "../servers/rgw.ts";
import { newBucketName, S3Requests } from "../servers/s3-account.ts";
import { distribution, mebibytes, ms, number, seconds } from "./figures.ts";
import { processFigures } from "./proc.ts";
import type { BenchReport, Budget } from "./report.ts";
import { ApplicationProcess, type BenchContext, fillDatabase, runToEnd, untilFullBackup } from "./scene.ts";

/** A full backup, a restore and the lag with a bucket as the destination. Times have no budget: they are mostly the server's. */

interface Bucket {
  /** For people. */
  readonly server: string;
  readonly endpoint: string;
  readonly bucket: string;
  readonly region: string;
  /** undefined: those of the usual AWS variables, which never pass through here. */
  readonly credentials?: { readonly accessKeyId: string; readonly secretAccessKey: string };
}

const MIB = 2 ** 20;
const PER_SECOND = 50;
const MEMORY_BUDGET_BYTES = 256 * MIB;

/**
 * `BAKELITE_BENCH_S3_ENDPOINT` and `BAKELITE_BENCH_S3_BUCKET` name a bucket, to which is written below a prefix that is new
 * in each run, with the credentials and the region of the usual AWS variables. Without them it is a Ceph RGW that is
 * started for it, where that is installed.
 */
export async function benchS3(context: BenchContext): Promise<BenchReport> {
  const given = bucketOf(process.env);
  if (given !== null) return await measure(context, given);
  const missing = missingForRgw();
  if (missing.length > 0) {
    const notes = [`Not measured: no bucket was named, and to start a server, ${missing.join(", ")} would be needed.`];
    return { name: "s3", tables: [], budgets: [], notes };
  }
  context.say("starting a server");
  await using server = await startRgw();
  const { account } = server;
  const bucket = newBucketName();
  await new S3Requests(account).createBucket(bucket);
  const { endpoint, region, ...credentials } = account;
  return await measure(context, {
    server: `${server.name} on this machine, in memory`,
    endpoint,
    region,
    bucket,
    credentials,
  });
}

async function measure(context: BenchContext, bucket: Bucket): Promise<BenchReport> {
  const bytes = (context.quick ? 32 : 256) * MIB;
  const path = join(context.directory, "app.db");
  context.say("making the database");
  await fillDatabase({ path, bytes, seed: context.seed });
  const configPath = configPathIn(context.directory);
  await writeFile(configPath, config(bucket, path));
  const { size } = await stat(path);
  const options = { configPath, databases: [], program: "executable" as const };

  context.say("full backup");
  const startMs = performance.now();
  await using daemon = new DaemonProcess(options);
  await untilFullBackup(daemon);
  const fullSeconds = (performance.now() - startMs) / 1000;
  const full = processFigures(daemon.pid);

  const spec = { path, seed: context.seed, rate: PER_SECOND, rowBytes: 100, warmUpSeconds: 0, marks: true };
  context.say(`${PER_SECOND} commits/s`);
  await using application = await ApplicationProcess.start({ ...spec, seconds: context.quick ? 4 : 15 });
  // Whatever the application has made to begin with is stored, and so is not counted among its commits.
  await Bun.sleep(2000);
  const before = storedCommits(daemon).at(-1)?.commits ?? 0;
  const { committedMs } = await application.run();
  await daemon.stop();
  await application.stop();
  const stored = storedCommits(daemon).map(({ atMs, commits }) => ({ atMs, commits: commits - before }));
  const lags = distribution(
    committedMs.map((at, i) => {
      const first = stored.find(({ commits }) => commits > i);
      if (first === undefined) throw new Error(`commit ${i + 1} was not stored:\n${daemon.tail}`);
      return first.atMs - at;
    }),
  );

  context.say("restore");
  const folder = join(context.directory, "restored");
  await mkdir(folder);
  const args = ["restore", "--config", configPath, "--db", "app", "--output", join(folder, "app.db")];
  const restored = await runToEnd(bakeliteCommand("executable", args));
  await rm(folder, { recursive: true });
  return {
    name: "s3",
    tables: [
      {
        title: `${mebibytes(size)}, to a bucket and back`,
        columns: ["", "time", "MB/s", "CPU s/GB", "peak memory"],
        rows: [
          row("first full backup", size, fullSeconds, full.cpuSeconds, full.peakBytes),
          row("restore, integrity_check", size, restored.seconds, restored.cpuSeconds, restored.peakBytes),
        ],
      },
      {
        title: `From commit to stored, ${PER_SECOND} commits/s`,
        columns: ["", "p50", "p99", "longest"],
        rows: [["to the bucket", ms(lags.p50), ms(lags.p99), ms(lags.max)]],
      },
    ],
    budgets: [
      memoryBudget("a full backup to a bucket", full.peakBytes),
      memoryBudget("a restore from a bucket", restored.peakBytes),
    ],
    notes: [
      `The server: ${bucket.server}. A commit counts as stored when the daemon's log says that its change-set is, which is after the server has answered.`,
    ],
  };
}

function memoryBudget(during: string, peakBytes: number): Budget {
  return {
    what: `resident memory during ${during}`,
    limit: mebibytes(MEMORY_BUDGET_BYTES),
    measured: mebibytes(peakBytes),
    met: peakBytes <= MEMORY_BUDGET_BYTES,
  };
}

function bucketOf(environment: NodeJS.ProcessEnv): Bucket | null {
  const endpoint = environment["BAKELITE_BENCH_S3_ENDPOINT"];
  const bucket = environment["BAKELITE_BENCH_S3_BUCKET"];
  if (endpoint === undefined || bucket === undefined) return null;
  const region = environment["AWS_REGION"] ?? "us-east-1";
  return { server: new URL(endpoint).hostname, endpoint, bucket, region };
}

function config({ endpoint, bucket, region, credentials }: Bucket, path: string): string {
  const text = JSON.stringify;
  const keys =
    credentials === undefined
      ? ""
      : `  access_key_id = ${text(credentials.accessKeyId)}\n  secret_access_key = ${text(credentials.secretAccessKey)}\n`;
  return `[daemon]
log_level = "debug"
log_format = "json"

[[database]]
name = "app"
path = ${text(path)}

  [[database.backends]]
  type = "s3"
  endpoint = ${text(endpoint)}
  bucket = ${text(bucket)}
  region = ${text(region)}
  prefix = ${text(`bench-${crypto.randomUUID()}`)}
${keys}`;
}

/** How many commits in all are stored, by the daemon's log, after each change-set. */
function storedCommits(daemon: DaemonProcess): readonly { readonly atMs: number; readonly commits: number }[] {
  let commits = 0;
  return daemon.said("stored a change-set").map((line) => {
    commits += Number(line["commits"]);
    return { atMs: Date.parse(line.time), commits };
  });
}

function row(what: string, size: number, time: number, cpuSeconds: number, peakBytes: number): readonly string[] {
  return [what, seconds(time), number(size / 1e6 / time), number(cpuSeconds / (size / 1e9)), mebibytes(peakBytes)];
}
