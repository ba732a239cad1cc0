import { reclaimUploads } from "../../src/replica/reclaim.ts";
import type { Backend } from "../../src/storage/backend.ts";
import { FileBackend } from "../../src/storage/file.ts";
import { copyObjects } from "../backends/copy-objects.ts";
import { FaultProxy, type FaultRates } from "../faults/proxy.ts";
import { startRgw } from "../servers/rgw.ts";
import { newBucketName, S3Requests } from "../servers/s3-account.ts";
import { openS3, s3Table } from "../servers/s3-backends.ts";
import { seededRandom } from "../support/random.ts";
import type { TemporaryDirectory } from "../support/temporary-directory.ts";
import type { Settings } from "./daemon-process.ts";

/** Where a torture ships to, and what may be done to it. */
export interface TortureDestination extends AsyncDisposable {
  /** The keys of its `[[database.backends]]`, for the daemon. */
  readonly table: Settings;
  /** A directory in which the independent reader finds the replica, once `settle` has resolved. */
  readonly localPath: string;
  /** A client with retries, as commands have it. */
  open(): Backend;
  /** No faults any more, and `localPath` holds all that is stored. The daemon is gone. */
  settle(): Promise<void>;
  /** Throws when something is left that nobody can clean up; else what there is to tell. */
  judge(): Promise<string>;
  /** Log messages above `info` that its faults explain. */
  harmless(message: string): boolean;
  /** Nothing reaches it for so long; undefined where there is no such thing. */
  readonly outage?: (how: "refuse" | "hang", durationMs: number) => Promise<void>;
}

/** Of all requests together about one in ten. */
const RATES: FaultRates = {
  refuse: 0.01,
  "cut-request": 0.01,
  "lose-answer": 0.02,
  "cut-head": 0.01,
  "cut-body": 0.01,
  truncate: 0.005,
  "error-500": 0.01,
  "error-503": 0.02,
  "error-429": 0.005,
  slow: 0.02,
  hang: 0.001,
  stall: 0.001,
};

export async function openTortureDestination(
  kind: "file" | "s3",
  directory: TemporaryDirectory,
  seed: number,
): Promise<TortureDestination> {
  return kind === "file"
    ? fileDestination(directory.file("replica"))
    : await s3Destination(directory.file("replica"), seed);
}

function fileDestination(path: string): TortureDestination {
  return {
    table: { type: "file", path },
    localPath: path,
    open: () => new FileBackend({ path }),
    async settle() {},
    judge: async () => "",
    harmless: () => false,
    async [Symbol.asyncDispose]() {},
  };
}

/** The daemon and the restores go through a proxy each: only the daemon's has outages. */
async function s3Destination(localPath: string, seed: number): Promise<TortureDestination> {
  await using started = new AsyncDisposableStack();
  const rgw = started.use(await startRgw());
  const random = seededRandom(seed).fork("proxies");
  const start = async (label: string) =>
    started.use(await FaultProxy.start({ targetPort: rgw.port, seed: random.fork(label).seed }));
  const [forDaemon, forRestores] = [await start("daemon"), await start("restores")];
  const [requests, bucket] = [new S3Requests(rgw.account), newBucketName()];
  await requests.createBucket(bucket);
  for (const proxy of [forDaemon, forRestores]) proxy.rates = RATES;
  const target = (endpoint: string) => ({ account: { ...rgw.account, endpoint }, bucket, prefix: "some/prefix" });
  const table = (endpoint: string) => s3Table(target(endpoint), { timeout: "3s" });
  const open = (endpoint: string) => openS3(target(endpoint), { retries: 8, timeout: "3s" });
  const resources = started.move();
  return {
    table: table(forDaemon.url),
    localPath,
    open: () => open(forRestores.url),
    async settle() {
      for (const proxy of [forDaemon, forRestores]) proxy.rates = {};
      await copyObjects(open(rgw.account.endpoint), new FileBackend({ path: localPath }));
    },
    async judge() {
      // A kill leaves one, and so does an outage that swallows the answer to its begin or the request to abort it.
      const uploads = await requests.listUploads(bucket);
      const sweep = { database: "app", minAgeMs: 0, daemonRunningForMs: null, dryRun: false };
      await reclaimUploads(open(rgw.account.endpoint), sweep);
      const left = await requests.listUploads(bucket);
      if (left.length > 0) throw new Error(`unfinished uploads were not reclaimed: ${JSON.stringify(left)}`);
      const faults = Object.values(forDaemon.faultCounts()).reduce((sum, count) => sum + count, 0);
      return `${rgw.name}: ${forDaemon.requests.length} requests of the daemon, ${faults} with a fault: ${JSON.stringify(forDaemon.counts())}; unfinished uploads: ${uploads.length}, reclaimed`;
    },
    harmless: (message) => EXPECTED_WARNINGS.some((pattern) => pattern.test(message)),
    async outage(how, durationMs) {
      await forDaemon.beginOutage(how);
      await Bun.sleep(durationMs);
      await forDaemon.endOutage();
    },
    [Symbol.asyncDispose]: () => resources.disposeAsync(),
  };
}

/** What a daemon says of a destination that cannot be reached. */
const EXPECTED_WARNINGS: readonly RegExp[] = [
  /^a destination fails; trying again$/,
  // Attaching needs a listing.
  /^replication is interrupted; trying again$/,
  /^cannot abort unfinished uploads;/,
];
