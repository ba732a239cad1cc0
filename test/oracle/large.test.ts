// deadline: 400 s
import { expect, test } from "bun:test";
import { readFileSync, statSync } from "node:fs";
import { rename } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";
import { copyDatabase } from "../support/truncate-checkpoint.ts";
import { bakeliteCommand, configPathIn, type DaemonProcess, startDaemon } from "./daemon-process.ts";
import { contentDigest } from "./grade.ts";

const MIB = 1024 * 1024;
/** What anything may take, whatever the size of the database, a transaction or an outage. */
const MEMORY_LIMIT_BYTES = 256 * MIB;
const BULK_WRITER = fileURLToPath(new URL("bulk-writer.ts", import.meta.url));
const TEST_MS = 300_000;

test(
  "a full backup and a restore of 1 GiB stream, in bounded memory",
  async () => {
    await using directory = await temporaryDirectory("large");
    const path = directory.file("app.db");
    await write({ path, transactions: 64, bytes: 16 * MIB });
    await using daemon = await start(directory);
    await daemon.untilStatus((status) => status.full_backup !== null && status.state === "live", {
      what: "the full backup",
      deadlineMs: 120_000,
    });
    expect(peakBytes(daemon)).toBeLessThan(MEMORY_LIMIT_BYTES);
    expect(daemon.said("full backup stored")).toHaveLength(1);
    await daemon.stop();
    await expectRestored(directory, daemon);
  },
  TEST_MS,
);

test(
  "one transaction of 512 MiB is shipped as one change-set, in bounded memory",
  async () => {
    await using directory = await temporaryDirectory("large");
    const path = directory.file("app.db");
    await write({ path, transactions: 4, bytes: MIB });
    await using daemon = await start(directory);
    const before = await daemon.untilStatus((status) => status.full_backup !== null, { what: "the full backup" });
    await write({ path, transactions: 1, bytes: 512 * MIB });
    await daemon.untilStatus((status) => (status.index ?? 0) > (before.index ?? 0) && status.lag_seconds === 0, {
      what: "it to be stored",
      deadlineMs: 120_000,
    });
    expect(peakBytes(daemon)).toBeLessThan(MEMORY_LIMIT_BYTES);
    await daemon.stop();
    await expectRestored(directory, daemon);
  },
  TEST_MS,
);

test(
  "an outage during 512 MiB of writes keeps the WAL near its limit, and one change-set ships it",
  async () => {
    await using directory = await temporaryDirectory("large");
    const path = directory.file("app.db");
    await write({ path, transactions: 4, bytes: MIB });
    await using daemon = await start(directory);
    const before = await daemon.untilStatus((status) => status.full_backup !== null && status.state === "live", {
      what: "the full backup",
    });
    await rename(directory.file("replica"), directory.file("away"));
    // Slower than a busy disk: what is written while one checkpoint runs is part of "near its limit".
    await write({ path, transactions: 256, bytes: 2 * MIB, bytesPerSecond: 25 * MIB });
    const during = await daemon.untilStatus((status) => status.state === "backing off", {
      what: "the outage to be noticed",
    });
    expect(during.unhealthy?.last_error.message).toContain("backup directory");
    expect(statSync(`${path}-wal`).size).toBeLessThan(6 * 16 * MIB);
    await rename(directory.file("away"), directory.file("replica"));
    await daemon.untilStatus((status) => (status.index ?? 0) > (before.index ?? 0) && status.lag_seconds === 0, {
      what: "all to be stored",
      deadlineMs: 120_000,
    });
    expect(peakBytes(daemon)).toBeLessThan(MEMORY_LIMIT_BYTES);
    const after = await daemon.status();
    // One carries what was written during the outage; what came before it was noticed may be in one of its own.
    expect((after?.index ?? 0) - (before.index ?? 0)).toBeLessThanOrEqual(2);
    expect(after?.full_backups_by_reason).toEqual({ "first backup": 1 });
    await daemon.stop();
    await expectRestored(directory, daemon);
  },
  TEST_MS,
);

async function start(directory: TemporaryDirectory): Promise<DaemonProcess> {
  const databases = [{ name: "app", path: directory.file("app.db"), replicas: [directory.file("replica")] }];
  return await startDaemon({ configPath: configPathIn(directory.path), databases, program: "executable" });
}

async function write(spec: {
  path: string;
  transactions: number;
  bytes: number;
  bytesPerSecond?: number;
}): Promise<void> {
  const child = Bun.spawn([process.execPath, BULK_WRITER, JSON.stringify({ bytesPerSecond: 0, ...spec })], {
    stdout: "inherit",
    stderr: "inherit",
  });
  expect(await child.exited).toBe(0);
}

/** Peak resident memory of the process so far. Source: proc_pid_status(5), VmHWM. */
function peakBytes({ pid }: DaemonProcess): number {
  const [, kibibytes] = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8")) ?? [];
  return Number(kibibytes) * 1024;
}

async function expectRestored(directory: TemporaryDirectory, daemon: DaemonProcess): Promise<void> {
  const output = directory.file("restored.db");
  const args = [
    "restore",
    "--db",
    "app",
    "--output",
    output,
    "--config",
    daemon.options.configPath,
    "--integrity",
    "quick",
  ];
  const restore = Bun.spawn(bakeliteCommand("executable", args), { stdout: "ignore", stderr: "pipe" });
  const complaints = await restore.stderr.text();
  expect(await restore.exited, complaints).toBe(0);
  expect(restore.resourceUsage()?.maxRSS ?? Number.POSITIVE_INFINITY).toBeLessThan(MEMORY_LIMIT_BYTES);
  const copy = directory.file("copy.db");
  await copyDatabase(directory.file("app.db"), copy);
  expect(contentDigest(output)).toBe(contentDigest(copy));
}
