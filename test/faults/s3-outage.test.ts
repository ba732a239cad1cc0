// deadline: 400 s
import { expect, test } from "bun:test";
import { readFileSync, statSync } from "node:fs";
import { mkdir, readdir } from "node:fs/promises";
import { configPathIn, type DaemonProcess, type Settings, startDaemon } from "../oracle/daemon-process.ts";
import type { Ack } from "../oracle/protocol.ts";
import { Restorer } from "../oracle/torture-restores.ts";
import { startWriter, type WriterProcess } from "../oracle/writer-process.ts";
import { openS3, s3Table, through } from "../servers/s3-backends.ts";
import { forRgw, type S3Place } from "../servers/s3-servers.ts";
import { eventually } from "../support/eventually.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";
import { FaultProxy } from "./proxy.ts";

const MIB = 1024 * 1024;
const TEST_MS = 200_000;
const OUTAGE_MS = 10_000;
/** What the daemon may take, whatever happens. */
const MEMORY_LIMIT_BYTES = 256 * MIB;
const WAL_LIMIT_MIB = 4;
/** Generous: a machine that runs other tests beside this one stalls by itself. */
const SLOW_COMMIT_MS = 2000;
const SETTINGS: Settings = { debounce: "50ms", max_batch_delay: "200ms", max_wal_size: `${WAL_LIMIT_MIB}MiB` };

interface Scene extends AsyncDisposable {
  readonly directory: TemporaryDirectory;
  readonly proxy: FaultProxy;
  readonly writer: WriterProcess;
  readonly daemon: DaemonProcess;
  readonly restorer: Restorer;
}

async function scene(place: S3Place, targetPort: number): Promise<Scene> {
  await using started = new AsyncDisposableStack();
  const directory = started.use(await temporaryDirectory("s3-outage"));
  const proxy = started.use(await FaultProxy.start({ targetPort }));
  await mkdir(directory.file("live"));
  const path = directory.file("live", "app.db");
  const writer = started.use(await startWriter({ database: path, id: 1, seed: 4, rate: 60 }));
  const table = s3Table(through(place, proxy.url), { timeout: "2s" });
  const daemon = started.use(
    await startDaemon({
      configPath: configPathIn(directory.path),
      databases: [{ name: "app", path, replicas: [], destinations: [table] }],
      settings: SETTINGS,
      logLevel: "debug",
      program: "executable",
    }),
  );
  const restorer = new Restorer({
    openReplica: () => openS3(place, { retries: 8 }),
    database: "app",
    databasePath: path,
    folder: directory.path,
    sealKey: null,
    acks: () => writer.acks,
  });
  const resources = started.move();
  return { directory, proxy, writer, daemon, restorer, [Symbol.asyncDispose]: () => resources.disposeAsync() };
}

await forRgw(({ rgw, newPlace, name }) => {
  test(
    "steady shipping costs one PUT for each change-set, and no listing",
    async () => {
      await using place = await newPlace();
      await using the = await scene(place, rgw.port);
      const { daemon, proxy } = the;
      await daemon.untilSaid("full backup stored", 30_000);
      // The first put after an attach is followed by a look at its index; then nothing is looked at any more.
      await changeSets(daemon, 3);
      const [from, before] = [proxy.requests.length, daemon.said("stored a change-set").length];
      await changeSets(daemon, before + 35);
      const counts = proxy.counts(from);
      const shipped = daemon.said("stored a change-set").length - before;
      expect(counts.list ?? 0).toBe(0);
      expect({ ...counts, put: 0 }).toEqual({ put: 0 });
      expect(Math.abs((counts.put ?? 0) - shipped)).toBeLessThanOrEqual(2);
      await daemon.stop();
    },
    TEST_MS,
  );

  test(
    "an outage of 20 s slows no commit, fills neither memory nor disk, and ends by itself with everything stored",
    async () => {
      await using place = await newPlace();
      await using the = await scene(place, rgw.port);
      const { daemon, proxy, writer, directory, restorer } = the;
      await daemon.untilSaid("full backup stored", 30_000);
      const beforeMs = Date.now();
      await changeSets(daemon, daemon.said("stored a change-set").length + 10);
      const outageMs = Date.now();
      const storedBefore = (await daemon.status())?.index ?? 0;
      let maxWalBytes = 0;
      for (const how of ["refuse", "hang"] as const) {
        await proxy.beginOutage(how);
        const endMs = performance.now() + OUTAGE_MS;
        while (performance.now() < endMs) {
          maxWalBytes = Math.max(maxWalBytes, statSync(directory.file("live", "app.db-wal")).size);
          await writer.checkRunning();
          daemon.checkRunning();
          await Bun.sleep(50);
        }
        if (how === "refuse") expect((await daemon.status())?.lag_seconds ?? 0).toBeGreaterThan(1);
        await proxy.endOutage();
      }
      const endedMs = Date.now();
      expect(writer.acks.filter((ack) => ack.beforeMs > outageMs).length).toBeGreaterThan(200);
      await writer.pause();
      const floorN = writer.acks.at(-1)?.n ?? 0;
      const status = await daemon.untilStatus(
        (each) => each.state === "live" && each.lag_seconds === 0 && Date.parse(each.last_synced_at ?? "") > endedMs,
        { what: "all to be stored", deadlineMs: 60_000 },
      );
      const [calm, during] = [latencies(writer.acks, beforeMs, outageMs), latencies(writer.acks, outageMs, endedMs)];
      console.log(
        `note: on ${name}, commits took p50 ${calm.p50} ms, p99 ${calm.p99} ms before the outage, p50 ${during.p50} ms, p99 ${during.p99} ms during it; ` +
          `the WAL reached ${(maxWalBytes / MIB).toFixed(1)} MiB, the daemon ${Math.round(peakBytes(daemon) / MIB)} MiB; ` +
          `all was stored ${((Date.now() - endedMs) / 1000).toFixed(1)} s after the end`,
      );
      expect(during.p99).toBeLessThan(SLOW_COMMIT_MS);
      expect(maxWalBytes).toBeLessThan(6 * WAL_LIMIT_MIB * MIB);
      expect(peakBytes(daemon)).toBeLessThan(MEMORY_LIMIT_BYTES);
      expect(await folderBytes(directory.file("live", ".bakelite"))).toBeLessThan(MIB);
      expect(status.index ?? 0).toBeGreaterThan(storedBefore);
      const restored = await restorer.restore({ kind: "latest" }, { floorN });
      expect(restored?.lastN).toBe(floorN);
      for (const timeMs of [beforeMs, outageMs - 100, (outageMs + endedMs) / 2, endedMs])
        await restorer.restore({ kind: "time", timeMs: Math.round(timeMs) });
      await daemon.stop();
      expect((await place.requests.listUploads(place.bucket)).length).toBe(0);
      await writer.resume();
      await writer.stop();
    },
    TEST_MS,
  );
});

async function changeSets(daemon: DaemonProcess, count: number): Promise<void> {
  await eventually(
    () => {
      daemon.checkRunning();
      return daemon.said("stored a change-set").length >= count;
    },
    { what: `${count} change-sets`, deadlineMs: 60_000, explain: () => daemon.tail },
  );
}

function latencies(acks: readonly Ack[], fromMs: number, toMs: number): { readonly p50: number; readonly p99: number } {
  const sorted = acks
    .filter(({ beforeMs }) => beforeMs >= fromMs && beforeMs < toMs)
    .map(({ beforeMs, afterMs }) => afterMs - beforeMs)
    .toSorted((a, b) => a - b);
  const at = (share: number) => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? 0;
  return { p50: at(0.5), p99: at(0.99) };
}

/** Peak resident memory of the process so far. Source: proc_pid_status(5), VmHWM. */
function peakBytes({ pid }: DaemonProcess): number {
  const [, kibibytes] = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8")) ?? [];
  return Number(kibibytes) * 1024;
}

async function folderBytes(path: string): Promise<number> {
  const names = await readdir(path, { recursive: true });
  return names.reduce((sum, each) => sum + statSync(`${path}/${each}`).size, 0);
}
