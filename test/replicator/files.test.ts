import { expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { mkdir, rename, rm, symlink, writeFile } from "node:fs/promises";
import { planRestore } from "../../src/replica/plan.ts";
import { restoreDatabase } from "../../src/replica/restore.ts";
import { Semaphore } from "../../src/util/semaphore.ts";
import { lockSummary, procLocks } from "../support/proc-locks.ts";
import { type Daemon, Replication } from "./replication.ts";

/** What may happen to the database file itself. */

const begun = (daemon: Daemon) => daemon.log.find(/full backup begins/).map(({ fields }) => fields["reason"]);
const compared = (daemon: Daemon) => daemon.log.find(/compared the database/).map(({ fields }) => fields["differing"]);

test("a database that does not exist yet, nor its directory, is waited for", async () => {
  await using r = await Replication.begin({ idle: true });
  await rm(r.directory.file("db"), { recursive: true });
  const daemon = await r.startDaemon();
  await daemon.until("the wait", () => daemon.replicator.phase.kind === "waiting");
  await mkdir(r.directory.file("db"));
  await r.startWriter();
  await r.writer.burst(5);
  await daemon.synced();
  expect(begun(daemon)).toEqual(["first backup"]);
  await r.assertLatestIsLive();
});

test("a file without a byte in it is waited for", async () => {
  await using r = await Replication.begin({ idle: true });
  await writeFile(r.databasePath, "");
  const daemon = await r.startDaemon();
  await daemon.until("the wait", () => daemon.replicator.phase.kind === "waiting");
  expect(daemon.replicator.phase).toMatchObject({ detail: "the database file is empty" });
  await r.startWriter();
  await daemon.synced();
  await r.assertLatestIsLive();
});

test("a file that is no SQLite database is said to be none, and a database in its place is backed up", async () => {
  await using r = await Replication.begin({ idle: true });
  await writeFile(r.databasePath, Buffer.alloc(4096, "just some text. "));
  const daemon = await r.startDaemon();
  await daemon.until("the failure", () => daemon.replicator.phase.kind === "failed");
  expect(daemon.replicator.health.lastError?.message).toMatch(/not a SQLite database/);
  daemon.assertNoLocks();
  await rm(r.databasePath);
  await r.startWriter();
  await daemon.synced();
  await r.assertLatestIsLive();
});

test("a database that is not in WAL mode is left alone until it is", async () => {
  await using r = await Replication.begin();
  await r.writer.burst(3);
  await r.writer.sql("PRAGMA journal_mode=DELETE");
  const daemon = await r.startDaemon();
  await daemon.until("the wait", () => daemon.replicator.phase.kind === "not wal");
  expect(daemon.replicator.phase).toMatchObject({ detail: expect.stringContaining("PRAGMA journal_mode=WAL") });
  expect(daemon.log.find(/not in WAL mode/, "warn")).toHaveLength(1);
  expect(existsSync(`${r.databasePath}-wal`)).toBe(false);
  daemon.assertNoLocks();
  await r.writer.sql("PRAGMA journal_mode=WAL");
  await r.writer.burst(3);
  await daemon.synced();
  await r.assertLatestIsLive();
});

test("a database that is not in WAL mode is put into it where that is allowed", async () => {
  await using r = await Replication.begin();
  await r.writer.sql("PRAGMA journal_mode=DELETE");
  const daemon = await r.startSynced({ convertToWal: true });
  expect(daemon.log.find(/put the database into WAL mode/, "warn")).toHaveLength(1);
  await r.writer.burst(3);
  await daemon.synced();
  await r.assertLatestIsLive();
});

test("a database leaves WAL mode while no daemon follows it, is changed, and comes back", async () => {
  await using r = await Replication.begin({ writer: { busyTimeoutMs: 200 } });
  await r.makeRows(30);
  const first = await r.startSynced();
  await expect(r.writer.sql("PRAGMA journal_mode=DELETE")).rejects.toThrow(/locked/);
  await first.stop();
  await r.writer.sql("PRAGMA journal_mode=DELETE");
  await r.setRows("1", 5, 6);
  const daemon = await r.startDaemon();
  await daemon.until("the wait", () => daemon.replicator.phase.kind === "not wal");
  await r.writer.sql("PRAGMA journal_mode=WAL");
  await daemon.synced();
  expect(compared(daemon)).toHaveLength(1);
  expect(begun(daemon)).toEqual([]);
  await r.assertLatestIsLive();
});

/** Commits, a copy of the database there, more commits; `replace` puts the copy in the database's place. */
async function replaceByOlderCopy(
  r: Replication,
  daemon: () => Promise<Daemon>,
  replace: () => Promise<void>,
): Promise<void> {
  await r.makeRows(40);
  const before = await daemon();
  await r.setRows("1", 7);
  await before.synced();
  await r.noteCommitted("older");
  await before.until("everything in the file", async () => !(await r.writer.checkpoint("TRUNCATE")).busy);
  await r.shell('cp "$1" "$2"', r.databasePath, r.directory.file("older.db"));
  await r.setRows("2", 8, 9);
  await r.writer.burst(4);
  await before.synced();
  await r.noteCommitted("newer");
  const changeSets = (await r.changeSets()).length;
  // SQLite would serve a WAL that is left to the users of the file that takes the place of its own.
  await before.until("an empty WAL", async () => !(await r.writer.checkpoint("TRUNCATE")).busy);
  await r.stopWriter();
  await replace();
  const after = await daemon();
  await after.until("the comparison", () => compared(after).length === 1);
  await after.synced();
  expect(await r.changeSets()).toHaveLength(changeSets + 1);
  expect(begun(after).slice(-1)).not.toContain("destination gap");
  expect(await r.fulls()).toHaveLength(1);
  const live = await r.noteCommitted("older again");
  expect(Buffer.compare((await r.restore()).bytes, live)).toBe(0);
  const newer = await r.restore({ kind: "index", index: (await r.restorePoints()).at(-2) ?? 0 });
  await r.grade(newer.bytes);
}

test("a file replaced by an older copy of itself while the daemon is stopped becomes the next state", async () => {
  await using r = await Replication.begin({ settings: { maxWalSizeBytes: 1 } });
  await replaceByOlderCopy(
    r,
    () => r.startSynced(),
    async () => {
      await r.stopDaemons();
      await r.shell(
        'cp "$1" "$2.new"; rm -f "$2-wal" "$2-shm"; mv "$2.new" "$2"',
        r.directory.file("older.db"),
        r.databasePath,
      );
    },
  );
});

test("a file replaced by an older copy of itself under a running daemon becomes the next state", async () => {
  await using r = await Replication.begin({ settings: { maxWalSizeBytes: 1 } });
  const daemon = await r.startDaemon();
  await replaceByOlderCopy(
    r,
    async () => {
      await daemon.synced();
      return daemon;
    },
    async () => {
      await r.shell('cp "$1" "$2.new"; mv "$2.new" "$2"', r.directory.file("older.db"), r.databasePath);
    },
  );
});

test("a database deleted and made anew under a running daemon goes on in the same chain", async () => {
  await using r = await Replication.begin();
  await r.makeRows(40);
  await r.writer.burst(5);
  const daemon = await r.startSynced();
  await r.noteCommitted("the old one");
  await r.stopWriter();
  await r.shell('rm -f "$1" "$1-wal" "$1-shm"', r.databasePath);
  await daemon.until("the wait", () => daemon.replicator.phase.kind === "waiting");
  daemon.assertNoLocks();
  const old = r.writers.splice(0);
  await r.startWriter();
  await r.writer.burst(3);
  await daemon.synced();
  await r.noteCommitted("the new one");
  expect([...(await r.restoreAll()).values()].at(0)).toBe("the old one");
  expect([...(await r.restoreAll()).values()].at(-1)).toBe("the new one");
  expect(begun(daemon)).toEqual(["first backup"]);
  await r.assertLatestIsLive();
  r.writers.push(...old);
});

test("another page size makes a new chain, with the reason in the log, and the old chain stays restorable", async () => {
  await using r = await Replication.begin();
  await r.makeRows(40);
  const first = await r.startSynced();
  await r.writer.burst(5);
  await first.synced();
  await r.noteCommitted("4096");
  await first.stop();
  await r.writer.sql("PRAGMA journal_mode=DELETE");
  await r.writer.sql("PRAGMA page_size=8192");
  await r.writer.sql("VACUUM");
  await r.writer.sql("PRAGMA journal_mode=WAL");
  await r.writer.burst(1);
  await r.noteCommitted("8192");
  const daemon = await r.startSynced();
  expect(daemon.log.find(/full backup begins/, "warn").map(({ fields }) => fields["reason"])).toEqual([
    "page size changed",
  ]);
  await r.assertLatestIsLive();
  const old = (await r.restorePoints()).at(-2) ?? 0;
  expect((await r.restore({ kind: "index", index: old })).plan.pageSizeBytes).toBe(4096);
  await r.writer.burst(2);
  await daemon.synced();
  await r.assertLatestIsLive();
  await daemon.stop();
  expect(begun(await r.startSynced())).toEqual([]);
});

test("a database restored in place to an older state goes on from there as the next state", async () => {
  await using r = await Replication.begin();
  await r.makeRows(40);
  const first = await r.startSynced();
  await r.noteCommitted("oldest");
  await r.setRows("1", 4);
  await first.synced();
  await r.noteCommitted("older");
  const older = (await r.restorePoints()).at(-1) ?? 0;
  await r.setRows("2", 5, 6);
  await first.synced();
  await r.noteCommitted("newer");
  await first.stop();
  await r.stopWriter();
  const replica = await r.openReplica();
  await restoreDatabase(replica, await planRestore(replica, { kind: "index", index: older }), {
    outputPath: r.databasePath,
    configuredPath: r.databasePath,
    overwrite: true,
    integrity: "quick",
  });
  const daemon = await r.startSynced();
  expect(compared(daemon)).toHaveLength(1);
  expect(begun(daemon)).toEqual([]);
  const labels = [...(await r.restoreAll()).values()];
  expect(labels.slice(-2)).toEqual(["newer", "older"]);
  await r.startWriter();
  await r.writer.burst(3);
  await daemon.synced();
  await r.assertLatestIsLive();
});

test("the latest state restored in place costs a comparison that finds nothing", async () => {
  await using r = await Replication.begin();
  await r.makeRows(40);
  const first = await r.startSynced();
  await r.writer.burst(5);
  await first.synced();
  await first.stop();
  await r.stopWriter();
  const replica = await r.openReplica();
  await restoreDatabase(replica, await planRestore(replica, { kind: "latest" }), {
    outputPath: r.databasePath,
    configuredPath: r.databasePath,
    overwrite: true,
    integrity: "quick",
  });
  const keys = await r.keys();
  expect(compared(await r.startSynced())).toEqual([0]);
  expect(await r.keys()).toEqual(keys);
});

test("a database in WAL mode with nothing in it is backed up, and so is what comes into it", async () => {
  await using r = await Replication.begin({ idle: true });
  await r.shell(
    '"$1" -e \'import { Database } from "bun:sqlite"; const db = new Database(process.argv[1], { create: true }); db.run("PRAGMA journal_mode=WAL"); db.close();\' "$2"',
    process.execPath,
    r.databasePath,
  );
  const daemon = await r.startSynced();
  const [full] = await r.fulls();
  expect(full?.reader.trailer).toMatchObject({ sizePages: 1, pageCount: 1 });
  expect((await r.restore()).bytes).toHaveLength(4096);
  await r.startWriter();
  await r.writer.burst(3);
  await daemon.synced();
  await r.assertLatestIsLive();
  expect(await r.fulls()).toHaveLength(1);
});

for (const autoVacuum of ["full", "incremental"] as const) {
  test(`a database with auto_vacuum=${autoVacuum} grows, shrinks and grows again`, async () => {
    await using r = await Replication.begin({ writer: { autoVacuum } });
    await r.makeRows(300);
    const daemon = await r.startSynced();
    for (let round = 0; round < 3; round++) {
      await r.writer.sql(`DELETE FROM pad WHERE id % ${round + 2} = 0`);
      if (autoVacuum === "incremental") await r.writer.sql("PRAGMA incremental_vacuum(40)");
      await r.noteCommitted(`shrunk ${round}`);
      await daemon.synced();
      await r.writer.burst(3);
      await r.writer.sql(`INSERT INTO pad SELECT max(id) + ${round + 1}, randomblob(50000) FROM pad`);
      await r.noteCommitted(`grown ${round}`);
      await daemon.synced();
    }
    await r.writer.sql("VACUUM");
    await r.noteCommitted("vacuumed");
    await daemon.synced();
    await r.assertSound();
    await daemon.stop();
    await r.stopWriter();
    const next = await r.startSynced();
    expect(compared(next)).toEqual([0]);
    expect(await r.fulls()).toHaveLength(1);
  });
}

for (const pageSizeBytes of [512, 65_536]) {
  test(`pages of ${pageSizeBytes} bytes are followed, compared and restored`, async () => {
    await using r = await Replication.begin({ writer: { pageSizeBytes } });
    await r.writer.burst(20);
    const daemon = await r.startSynced();
    await r.writer.burst(20);
    await daemon.synced();
    await r.assertLatestIsLive();
    await daemon.stop();
    await r.writer.burst(5);
    await r.stopWriter();
    const next = await r.startSynced();
    expect(compared(next)).toHaveLength(1);
    await r.assertSound();
  });
}

test("a database that an application has locked for itself is followed when it lets go", async () => {
  await using r = await Replication.begin();
  await r.writer.sql("PRAGMA locking_mode=EXCLUSIVE");
  await r.writer.burst(2);
  const daemon = await r.startDaemon({ settings: { busyTimeoutMs: 300 } });
  await daemon.until("the lock to be said", () => daemon.replicator.phase.kind === "failed");
  expect(daemon.replicator.health.lastError?.code).toBe("database-busy");
  daemon.assertNoLocks();
  await r.writer.burst(2);
  await r.writer.sql("PRAGMA locking_mode=NORMAL");
  await r.writer.burst(1);
  await daemon.synced(20_000);
  await r.assertLatestIsLive();
});

test("the locks of a daemon are those of one reader, whatever it does, and none when it has stopped", async () => {
  await using r = await Replication.begin({ settings: { maxWalSizeBytes: 64 * 1024 } });
  await r.makeRows(800);
  const locks = () => lockSummary(procLocks(process.pid, r.databasePath));
  const ofOneReader = /^database:shared\(read\) shm:read[0-4]\(read\) shm:dms\(read\)$/;
  const full = r.backend.gate("midway", /\/full\//);
  const daemon = await r.startDaemon();
  await full.reached();
  expect(locks()).toMatch(ofOneReader);
  await r.setRows("1", ...Array.from({ length: 40 }, (_, i) => i + 1));
  await daemon.captured();
  await daemon.until("a checkpoint", () => daemon.log.find(/^checkpoint$/).length > 0);
  expect(locks()).toMatch(ofOneReader);
  full.open();
  await daemon.synced();
  expect(locks()).toMatch(ofOneReader);
  await daemon.stop();
  expect(locks()).toBe("");
});

test("a daemon that is kept from a last look by a lock stops all the same, and says so", async () => {
  await using r = await Replication.begin();
  const daemon = await r.startSynced();
  const { follower } = await daemon.shipping();
  follower.capture = () => ({ kind: "busy" });
  await r.writer.burst(2);
  expect(await daemon.stop(4000)).toMatchObject({ kind: "stopped", detail: expect.stringContaining("not be shipped") });
  expect(daemon.log.find(/could not be captured/, "warn")).toHaveLength(1);
  const next = await r.startSynced();
  expect(next.log.find(/continuity is proven/)).toHaveLength(1);
  await r.assertLatestIsLive();
});

test("a file that is replaced in the middle of a full backup ends the attachment, not the replication", async () => {
  await using r = await Replication.begin();
  await r.makeRows(800);
  const full = r.backend.gate("midway", /\/full\//);
  const daemon = await r.startDaemon();
  await full.reached();
  await r.stopWriter();
  await r.shell('rm -f "$1" "$1-wal" "$1-shm"', r.databasePath);
  await daemon.until("the wait", () => daemon.replicator.phase.kind === "waiting");
  daemon.assertNoLocks();
  expect(daemon.log.find(/following is interrupted/, "warn")).toHaveLength(1);
  expect(daemon.log.find(/replication is interrupted/)).toEqual([]);
  r.writers.splice(0);
  await r.startWriter();
  await r.writer.burst(2);
  await daemon.synced();
  expect(begun(daemon)).toEqual(["first backup", "first backup"]);
  await r.assertSound();
});

test("a chain for another page size whose first full backup was cut short is begun again, and the old one kept", async () => {
  await using r = await Replication.begin({ writer: { busyTimeoutMs: 200 } });
  await r.makeRows(800);
  const first = await r.startSynced();
  const last = await r.noteCommitted("4096");
  await first.stop();
  await r.writer.sql("PRAGMA journal_mode=DELETE");
  await r.writer.sql("PRAGMA page_size=1024");
  await r.writer.sql("VACUUM");
  await r.writer.sql("PRAGMA journal_mode=WAL");
  const full = r.backend.gate("midway", /\/full\//);
  const cut = await r.startDaemon();
  await full.reached();
  await r.writer.burst(1);
  const shipper = await cut.shipper();
  await cut.until("a change-set", () => shipper.changeSets === 1);
  await cut.stop();
  expect(Buffer.compare((await r.restore()).bytes, last)).toBe(0);
  const daemon = await r.startSynced();
  expect(begun(daemon)).toHaveLength(1);
  await r.assertLatestIsLive();
  expect(Buffer.compare((await r.restore({ kind: "index", index: 1 })).bytes, last)).toBe(0);
});

test("a daemon that waits for a slot, to compare or for a full backup, stops at once", async () => {
  await using r = await Replication.begin();
  await r.makeRows(20);
  const slots = new Semaphore(1);
  const held = await slots.acquire();
  const first = await r.startDaemon({ slots });
  await first.until("the wait for a slot", () => slots.waiterCount === 1);
  await first.stop(2000);
  held[Symbol.dispose]();
  const second = await r.startSynced({ slots });
  await second.stop();
  await r.stopWriter();
  using _slot = await slots.acquire();
  const third = await r.startDaemon({ slots });
  await third.until("the wait for a slot", () => slots.waiterCount === 1);
  await third.stop(2000);
});

test("a path with spaces and letters of all kinds, reached through a link, is one database", async () => {
  await using r = await Replication.begin({ idle: true });
  const folder = r.directory.file("db", "Größe und ñ 数据");
  await mkdir(folder);
  await symlink(`${folder}/the app's.db`, r.databasePath);
  await r.startWriter();
  await r.writer.burst(5);
  const daemon = await r.startSynced();
  await r.writer.burst(5);
  await daemon.synced();
  expect(daemon.replicator.path).toBe(`${folder}/the app's.db`);
  await r.assertLatestIsLive();
  expect(existsSync(`${folder}/.bakelite/app.cursor`)).toBe(true);
  await expect(r.startDaemon({ databasePath: `${folder}/the app's.db` })).rejects.toThrow(/already follows/);
});

test("a second daemon on the same file is refused, and the first goes on", async () => {
  await using r = await Replication.begin();
  const daemon = await r.startSynced();
  await expect(r.startDaemon()).rejects.toMatchObject({ code: "locked" });
  await r.writer.burst(3);
  await daemon.synced();
  await r.assertLatestIsLive();
});

test("the directory of the database may be moved away and back", async () => {
  await using r = await Replication.begin();
  await r.makeRows(10);
  const daemon = await r.startSynced();
  await r.stopWriter();
  await rename(r.directory.file("db"), r.directory.file("away"));
  await daemon.until("the wait", () => daemon.replicator.phase.kind === "waiting");
  await rename(r.directory.file("away"), r.directory.file("db"));
  await r.startWriter();
  await r.writer.burst(3);
  await daemon.synced();
  await r.assertLatestIsLive();
  expect(await r.fulls()).toHaveLength(1);
});
