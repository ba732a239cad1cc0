import { reclaimUploads } from "../../src/replica/reclaim.ts";
import type { Backend } from "../../src/storage/backend.ts";
import { FileBackend } from "../../src/storage/file.ts";
import { withRetry } from "../../src/storage/retry.ts";
import { copyObjects } from "../backends/copy-objects.ts";
import { breakConnections } from "../faults/break-connections.ts";
import { FaultProxy, type FaultRates } from "../faults/proxy.ts";
import { AZURITE_ACCOUNT, azureTable, openAt as openAzureAt, startAzurite } from "../servers/azurite.ts";
import { GcsScene, openGcs } from "../servers/gcs/places.ts";
import { startRgw } from "../servers/rgw.ts";
import { newBucketName, S3Requests } from "../servers/s3-account.ts";
import { openS3, s3Table } from "../servers/s3-backends.ts";
import { openTable, startSshd } from "../servers/sshd.ts";
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

export const DESTINATION_KINDS = ["file", "s3", "gcs", "azure", "sftp"] as const;
export type DestinationKind = (typeof DESTINATION_KINDS)[number];

export async function openTortureDestination(
  kind: DestinationKind,
  directory: TemporaryDirectory,
  seed: number,
): Promise<TortureDestination> {
  const localPath = directory.file("replica");
  switch (kind) {
    case "file":
      return fileDestination(localPath);
    case "s3":
      return await s3Destination(localPath, seed);
    case "gcs":
      return await gcsDestination(localPath, seed);
    case "azure":
      return await azureDestination(localPath, seed);
    case "sftp":
      return await sftpDestination(localPath, seed);
  }
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

/** The service is ours, in this process, so it outlives every daemon. */
async function gcsDestination(localPath: string, seed: number): Promise<TortureDestination> {
  await using started = new AsyncDisposableStack();
  const scene = started.use(await GcsScene.start());
  const bucket = scene.newBucket();
  const table = (endpoint: string) => scene.table(bucket, { endpoint, prefix: "some/prefix", timeout: "3s" });
  return await behindProxies(started, localPath, seed, {
    port: scene.stub.port,
    url: scene.stub.url,
    tableAt: table,
    openAt: (endpoint) => openGcs({ ...table(endpoint), retries: 8 }),
    tell: () => `${scene.stub.name}; unfinished uploads: ${scene.stub.sessions.openCount}, which cost nothing`,
  });
}

/** Staged blocks that no blob was made of go by themselves, and no listing shows them. */
async function azureDestination(localPath: string, seed: number): Promise<TortureDestination> {
  await using started = new AsyncDisposableStack();
  const azurite = await startAzurite();
  if ("lacking" in azurite) throw new Error(azurite.lacking);
  started.use(azurite);
  const container = await azurite.newContainer();
  const more = { prefix: "some/prefix", timeout: "3s" };
  const at = (origin: string) => `${origin}/${AZURITE_ACCOUNT}`;
  return await behindProxies(started, localPath, seed, {
    port: azurite.port,
    url: `http://127.0.0.1:${azurite.port}`,
    tableAt: (origin) => azureTable(at(origin), container, more),
    openAt: (origin) => openAzureAt(at(origin), container, { ...more, retries: 8 }),
    tell: () => azurite.name,
  });
}

interface ServedOverHttp {
  readonly port: number;
  readonly url: string;
  readonly tableAt: (url: string) => Settings;
  readonly openAt: (url: string) => Backend;
  readonly tell: () => string;
}

/** As with S3: the daemon and the restores go through a proxy each. Takes over what was `started`. */
async function behindProxies(
  started: AsyncDisposableStack,
  localPath: string,
  seed: number,
  server: ServedOverHttp,
): Promise<TortureDestination> {
  const random = seededRandom(seed).fork("proxies");
  const start = async (label: string) =>
    started.use(await FaultProxy.start({ targetPort: server.port, seed: random.fork(label).seed }));
  const [forDaemon, forRestores] = [await start("daemon"), await start("restores")];
  for (const proxy of [forDaemon, forRestores]) proxy.rates = RATES;
  const resources = started.move();
  return {
    table: server.tableAt(forDaemon.url),
    localPath,
    open: () => server.openAt(forRestores.url),
    async settle() {
      for (const proxy of [forDaemon, forRestores]) proxy.rates = {};
      await copyObjects(server.openAt(server.url), new FileBackend({ path: localPath }));
    },
    async judge() {
      const faults = Object.values(forDaemon.faultCounts()).reduce((sum, count) => sum + count, 0);
      return `${server.tell()}: ${forDaemon.requests.length} requests of the daemon, ${faults} with a fault`;
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

/** The daemon and the restores go through a proxy each, which breaks half of the connections: only the daemon's has outages. */
async function sftpDestination(localPath: string, seed: number): Promise<TortureDestination> {
  await using started = new AsyncDisposableStack();
  const server = started.use(await startSshd());
  const random = seededRandom(seed).fork("proxies");
  const start = async (label: string) => {
    const proxy = started.use(await FaultProxy.start({ targetPort: server.port, protocol: "tcp" }));
    breakConnections(proxy, random.fork(label), 0.5);
    return proxy;
  };
  const [forDaemon, forRestores] = [await start("daemon"), await start("restores")];
  const path = server.newPath();
  const tableThrough = ({ port }: FaultProxy) => server.tableThrough(port, path, { timeout: "3s" });
  const [table, restoresTable] = [await tableThrough(forDaemon), await tableThrough(forRestores)];
  const open = (keys: Readonly<Record<string, unknown>>) =>
    withRetry(openTable(keys), { retries: 8, baseMs: 50, capMs: 1000, maxElapsedMs: 30_000 });
  const resources = started.move();
  return {
    table: table as Settings,
    localPath,
    open: () => open(restoresTable),
    async settle() {
      for (const proxy of [forDaemon, forRestores]) proxy.clearScripts();
      await copyObjects(open(server.table(path)), new FileBackend({ path: localPath }));
    },
    async judge() {
      const direct = open(server.table(path));
      const left = async () => (await Array.fromAsync((await direct.unlisted?.uploads("app/")) ?? [])).length;
      const leftBehind = await left();
      await reclaimUploads(direct, { database: "app", minAgeMs: 0, daemonRunningForMs: null, dryRun: false });
      if ((await left()) > 0) throw new Error("temporary files were not reclaimed");
      return `${server.name}: ${forDaemon.connectionCount} connections of the daemon; temporary files: ${leftBehind}, reclaimed`;
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
  /^not everything that is committed could be stored before the stop$/,
];
