import { expect, test } from "bun:test";
import { mkdirSync } from "node:fs";
import { emptyKeyRing } from "../../src/format/envelope.ts";
import { planRestore } from "../../src/replica/plan.ts";
import { Replica } from "../../src/replica/replica.ts";
import { restoreDatabase } from "../../src/replica/restore.ts";
import { readCursor, writeCursor } from "../../src/state/cursor.ts";
import { statePaths } from "../../src/state/layout.ts";
import { FileBackend } from "../../src/storage/file.ts";
import { configPathIn, type DaemonProcess, startDaemon } from "../oracle/daemon-process.ts";
import { compareLogical, gradeDatabase } from "../oracle/grade.ts";
import { startWriter } from "../oracle/writer-process.ts";
import { eventually } from "../support/eventually.ts";
import { withSeed } from "../support/random.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";
import { copyDatabase } from "../support/truncate-checkpoint.ts";

/**
 * Pages that were not synced to a loop-mounted ext4 are not in its image, so a copy of the image is the disk as a power cut
 * would leave it: commits that the application was told of, and that we have shipped, may be gone from the database.
 */
const mayMount =
  process.geteuid?.() === 0 && (await succeeds(["sh", "-c", "command -v mkfs.ext4 && test -e /dev/loop-control"]));

// Skipped where loop devices cannot be had: the test needs root.
test.skipIf(!mayMount)(
  "after a power cut the daemon goes on without a new full backup, and the replica equals the database",
  async () => {
    await withSeed(async (random) => {
      for (let cut = 0; cut < 3; cut++) {
        await using directory = await temporaryDirectory("power");
        await cutThePower(directory, {
          seed: random.integer(1, 2 ** 31),
          commits: random.integer(100, 400),
          synchronous: cut === 0 ? "OFF" : "NORMAL",
        });
      }
    });
  },
  230_000,
);

async function cutThePower(
  directory: TemporaryDirectory,
  options: { seed: number; commits: number; synchronous: "OFF" | "NORMAL" },
): Promise<void> {
  const { seed, commits, synchronous } = options;
  const disk = directory.file("disk");
  const [image, afterCut] = [directory.file("disk.img"), directory.file("after.img")];
  mkdirSync(disk);
  await run([
    "sh",
    "-c",
    `truncate -s 128M '${image}' && mkfs.ext4 -q '${image}' && mount -o loop,commit=600 '${image}' '${disk}'`,
  ]);
  try {
    const database = `${disk}/app.db`;
    let storedBefore = 0;
    {
      await using writer = await startWriter({ database, id: 1, seed, mode: "normal", rate: 200, synchronous });
      await using daemon = await start(directory, database);
      await daemon.untilStatus((status) => status.full_backup !== null, { what: "the first full backup" });
      // The file system is synced once, so that there is a database after the cut; what follows is up to SQLite and to us.
      await run(["sync", "-f", disk]);
      await writer.waitForAcks(commits);
      storedBefore =
        (await daemon.untilStatus((status) => (status.index ?? 0) > 2, { what: "change-sets" })).index ?? 0;
      daemon.signal("SIGSTOP");
      process.kill(writer.pid, "SIGSTOP");
      await run(["cp", "--sparse=always", image, afterCut]);
      await daemon.kill();
      await writer.kill();
    }
    await run(["umount", disk]);
    await run(["mount", "-o", "loop", afterCut, disk]);
    await pretendToHaveBooted(database);

    await using daemon = await start(directory, database);
    await using writer = await startWriter({ database, id: 1, seed: seed + 1, mode: "normal", rate: 200, synchronous });
    await writer.waitForAcks(50);
    await writer.pause();
    const lastAckMs = writer.lastAck?.afterMs ?? 0;
    const status = await daemon.untilStatus(
      (now) => now.lag_seconds === 0 && Date.parse(now.last_synced_at ?? "") > lastAckMs,
      { what: "the last commits to be stored", deadlineMs: 30_000 },
    );
    expect(status.full_backups_by_reason).toEqual({});
    expect(status.index ?? 0).toBeGreaterThan(storedBefore);
    await daemon.stop();
    await expectEqualToLive(directory, database);
  } finally {
    await run(["sh", "-c", `umount '${disk}' || umount -l '${disk}'`]);
  }
}

async function expectEqualToLive(directory: TemporaryDirectory, database: string): Promise<void> {
  const copy = directory.file("copy.db");
  await copyDatabase(database, copy);
  const replica = await openReplica(directory);
  const latest = directory.file("latest.db");
  await restore(replica, "latest", latest);
  compareLogical(latest, copy);
  gradeDatabase(latest);
  // What was shipped and then lost by the machine is still in the replica's past, whole.
  for (const index of replica.graph.restorePoints.filter((_, i) => i % 3 === 0)) {
    const output = directory.file(`state-${index}.db`);
    await restore(replica, index, output);
    gradeDatabase(output);
  }
}

async function restore(replica: Replica, target: "latest" | number, outputPath: string): Promise<void> {
  const plan = await planRestore(replica, target === "latest" ? { kind: "latest" } : { kind: "index", index: target });
  await restoreDatabase(replica, plan, { outputPath, configuredPath: outputPath, overwrite: false, integrity: "none" });
}

async function openReplica(directory: TemporaryDirectory): Promise<Replica> {
  const backends = [new FileBackend({ path: directory.file("replica") })];
  return await Replica.open({ database: "app", backends, keys: emptyKeyRing, seal: "p", acceptPlaintext: true });
}

async function start(directory: TemporaryDirectory, path: string): Promise<DaemonProcess> {
  const databases = [{ name: "app", path, replicas: [directory.file("replica")] }];
  return await startDaemon({ configPath: configPathIn(directory.path), databases, logLevel: "debug" });
}

/** The machine of this test has not booted; the daemon must be told by the cursor, if that survived. */
async function pretendToHaveBooted(database: string): Promise<void> {
  const path = statePaths(database, "app").cursor;
  const found = await readCursor(path);
  if (!("cursor" in found)) return;
  await writeCursor(path, { ...found.cursor, bootId: "00000000-0000-4000-8000-000000000000" });
}

async function run(command: readonly string[]): Promise<void> {
  await eventually(() => succeeds(command), { what: command.join(" "), deadlineMs: 10_000, pollMs: 200 });
}

async function succeeds(command: readonly string[]): Promise<boolean> {
  return (await Bun.spawn([...command], { stdout: "ignore", stderr: "ignore" }).exited) === 0;
}
