import { expect, test } from "bun:test";
import { statSync } from "node:fs";
import { mkdir } from "node:fs/promises";
import { FileBackend } from "../../src/storage/file.ts";
import { MemoryBackend } from "../../src/storage/memory.ts";
import { BakeliteError } from "../../src/util/errors.ts";
import { FaultyBackend } from "../faults/faulty-backend.ts";
import { withSeed } from "../support/random.ts";
import { shortWaits } from "../support/short-waits.ts";
import { type Gate, GatedBackend, unreachable } from "./gated-backend.ts";
import { CHANGE_SET, type Daemon, FULL, Replication } from "./replication.ts";
import { LARGE_ROWS } from "./scenarios/large-sets.ts";

/** Destinations that fail, in all the ways that destinations do. */

const MIB = 1024 * 1024;

const begun = (daemon: Daemon) => daemon.log.find(/full backup begins/).map(({ fields }) => fields["reason"]);
const failed = (daemon: Daemon) => daemon.log.find(/a destination fails/, "warn").length > 0;
const isRoot = process.geteuid?.() === 0;

for (const at of ["before", "stored"] as const) {
  const how = at === "before" ? "is refused" : "is stored though the answer is lost";

  test(`a put of a change-set that ${how} is done once`, async () => {
    await using r = await Replication.begin();
    await r.makeRows(20);
    const daemon = await r.startSynced();
    const put = r.backend.gate(at, CHANGE_SET);
    await r.writer.burst(3);
    await put.reached();
    await r.writer.burst(3);
    put.fail(unreachable());
    await daemon.synced();
    expect(daemon.log.find(/interrupted/)).toEqual([]);
    expect((await r.changeSets()).length).toBeLessThanOrEqual(2);
    await r.assertLatestIsLive();
  });

  test(`a put of a large change-set that ${how} goes on without an attach`, async () => {
    await using r = await Replication.begin();
    await r.makeRows(LARGE_ROWS);
    const daemon = await r.startSynced();
    const put = r.backend.gate(at, CHANGE_SET);
    await r.setAllRows("1");
    await put.reached();
    await r.setRows("2", 1, LARGE_ROWS);
    await daemon.captured();
    put.fail(unreachable());
    await daemon.synced();
    expect(daemon.log.find(/interrupted/)).toEqual([]);
    await r.assertLatestIsLive();
    expect(await r.changeSets()).toHaveLength(at === "before" ? 1 : 2);
  });

  test(`a put of a first full backup that ${how} is not done again for nothing`, async () => {
    await using r = await Replication.begin();
    await r.makeRows(20);
    const put = r.backend.gate(at, FULL);
    const daemon = await r.startDaemon();
    await put.reached();
    await expectOneMore(r, daemon, put);
    expect(await r.fulls()).toHaveLength(1);
  });

  test(`a put of a later full backup that ${how} is not done again for nothing`, async () => {
    await using r = await Replication.begin();
    await r.makeRows(20);
    const daemon = await r.startSynced();
    await r.writer.burst(3);
    await daemon.synced();
    const put = r.backend.gate(at, FULL);
    await daemon.passDay(r.clock);
    await put.reached();
    await expectOneMore(r, daemon, put);
    expect(await r.fulls()).toHaveLength(2);
  });
}

/** The put fails at its gate while commits go on, and what follows goes well without an attach. */
async function expectOneMore(r: Replication, daemon: Daemon, put: Gate): Promise<void> {
  await r.writer.burst(3);
  await daemon.captured();
  put.fail(unreachable());
  await daemon.synced();
  await r.writer.burst(3);
  await daemon.synced();
  expect(daemon.log.find(/interrupted/)).toEqual([]);
  await r.assertLatestIsLive();
}

test("CURRENT is written as soon as the destination lets it, and no full backup is taken for it", async () => {
  await using r = await Replication.begin();
  await r.makeRows(20);
  const put = r.backend.gate("before", /CURRENT$/);
  const daemon = await r.startDaemon();
  await put.reached();
  put.fail(unreachable());
  await daemon.until("CURRENT", () => r.backend.stored.includes("app/CURRENT"));
  await daemon.synced();
  expect(begun(daemon)).toEqual(["first backup"]);
  expect((await r.openReplica()).current).toMatchObject({ full: 1, index: 1 });
});

test("where CURRENT may not be overwritten it is told once, and everything else goes on", async () => {
  await using r = await Replication.begin();
  await r.makeRows(20);
  const put = r.backend.gate("before", /CURRENT$/);
  const daemon = await r.startDaemon();
  await put.reached();
  put.fail(new BakeliteError("storage-denied", "the object is locked"));
  await daemon.until("the warning", () => daemon.log.find(/CURRENT may not be overwritten/).length === 1);
  await r.setRows("1", 1, 20);
  await daemon.synced();
  expect(daemon.log.find(/interrupted/)).toEqual([]);
  expect(begun(daemon)).toEqual(["first backup"]);
  await r.assertLatestIsLive();
});

test("a first full backup that cannot be read back just then is not taken again", async () => {
  await using faulty = await beginFaulty();
  const { r, backend } = faulty;
  await r.makeRows(800);
  const full = r.backend.gate("midway", FULL);
  const daemon = await r.startDaemon();
  await full.reached();
  await r.setRows("1", 1, 800);
  const shipper = await daemon.shipper();
  await daemon.until("the change-set", () => shipper.stored.index === 2);
  backend.failNext("list", "refuse");
  backend.failNext("get", "refuse");
  full.open();
  await daemon.synced();
  expect(begun(daemon)).toEqual(["first backup"]);
  expect(failed(daemon)).toBe(true);
  await r.assertLatestIsLive();
});

test("each of two destinations holds everything by itself, whichever of them failed meanwhile", async () => {
  await using r = await Replication.begin();
  const other = new GatedBackend(new MemoryBackend({ location: "memory:other" }));
  await r.makeRows(LARGE_ROWS);
  const answers = [r.backend.gate("stored", CHANGE_SET), other.gate("stored", CHANGE_SET)];
  const daemon = await r.startDaemon({ backends: [r.backend, other] });
  await daemon.synced();
  await r.setAllRows("1");
  for (const answer of answers) {
    await answer.reached();
    answer.fail(unreachable());
  }
  await daemon.synced();
  await r.writer.burst(2);
  await daemon.synced();
  expect(daemon.log.find(/interrupted/)).toEqual([]);
  for (const backend of [r.backend, other]) {
    r.backend = backend;
    await r.assertSound();
    expect(await r.fulls()).toHaveLength(1);
  }
});

test("a lost answer to a large change-set is asked after as long as the destination is away", async () => {
  await using faulty = await beginFaulty();
  const { r, backend } = faulty;
  await r.makeRows(LARGE_ROWS);
  const daemon = await r.startSynced();
  const put = r.backend.gate("stored", CHANGE_SET);
  await r.setAllRows("1");
  await put.reached();
  backend.isOffline = true;
  put.fail(unreachable());
  await daemon.until("the destination to be asked in vain", () => daemon.log.find(/a destination fails/).length >= 2);
  backend.isOffline = false;
  await daemon.synced();
  expect(daemon.log.find(/interrupted/)).toEqual([]);
  expect(await r.changeSets()).toHaveLength(1);
  await r.assertLatestIsLive();
});

test("a lost answer to a full backup is asked after until there is one, and nothing is attached anew for it", async () => {
  await using faulty = await beginFaulty();
  const { r, backend } = faulty;
  await r.makeRows(20);
  const daemon = await r.startSynced();
  await r.writer.burst(3);
  await daemon.synced();
  const put = r.backend.gate("stored", FULL);
  await daemon.passDay(r.clock);
  const key = await put.reached();
  const asked = () => backend.calls.filter((call) => call.key === key && call.fault === "refuse").length;
  for (const verb of ["stat", "get"] as const)
    backend.failNext(verb, "refuse", { times: 3, matches: (name) => name === key });
  put.fail(unreachable());
  await daemon.synced();
  expect(asked()).toBeGreaterThanOrEqual(3);
  expect(daemon.log.find(/interrupted/)).toEqual([]);
  expect(begun(daemon)).toHaveLength(2);
  expect(await r.fulls()).toHaveLength(2);
  await r.assertLatestIsLive();
});

test("a stop right after a large change-set was stored, with no answer yet, loses nothing", async () => {
  await using r = await Replication.begin();
  await r.makeRows(LARGE_ROWS);
  const daemon = await r.startSynced();
  const put = r.backend.gate("stored", CHANGE_SET);
  await r.setAllRows("1");
  await put.reached();
  expect(await daemon.stop()).toEqual({ kind: "stopped", detail: null });
  await r.assertLatestIsLive();
  const next = await r.startSynced();
  expect(next.log.find(/interrupted|warn/)).toEqual([]);
  expect(await r.fulls()).toHaveLength(1);
});

test("an outage while the application writes on costs one or two change-sets, and the WAL stays near its limit", async () => {
  await using faulty = await beginFaulty();
  const { r, backend } = faulty;
  await r.makeRows(60);
  const daemon = await r.startSynced({ settings: { maxWalSizeBytes: MIB / 4 } });
  backend.isOffline = true;
  await writeTenMebibytes(r, daemon);
  expect(daemon.log.find(/checkpoint/).some(({ fields }) => fields["outcome"] === "complete")).toBe(true);
  expect(failed(daemon)).toBe(true);
  expect(daemon.replicator.health.streak).not.toBeNull();
  expect(daemon.attachment?.oldestUnstoredMs).not.toBeNull();
  const before = (await countStored(r)).changeSets;
  backend.isOffline = false;
  await daemon.synced();
  expect((await r.changeSets()).length - before).toBeLessThanOrEqual(2);
  expect(daemon.replicator.health.streak).toBeNull();
  expect(begun(daemon)).toEqual(["first backup"]);
  await r.assertLatestIsLive();
});

test("an outage during the first full backup ends in one full backup", async () => {
  await using faulty = await beginFaulty();
  const { r, backend } = faulty;
  await r.makeRows(800);
  const gate = r.backend.gate("midway", FULL);
  const daemon = await r.startDaemon();
  await gate.reached();
  await r.writer.burst(5);
  backend.isOffline = true;
  gate.open();
  await daemon.until("the outage to be noticed", () => failed(daemon));
  await r.writer.burst(5);
  backend.isOffline = false;
  await daemon.synced();
  expect(await r.fulls()).toHaveLength(1);
  await r.assertLatestIsLive();
});

test("a destination that hangs does not stop the application, and a daemon that stops says what it left", async () => {
  await using faulty = await beginFaulty();
  const { r, backend, memory } = faulty;
  await r.makeRows(60);
  const daemon = await r.startSynced({ settings: { maxWalSizeBytes: MIB / 4 } });
  backend.failNext("put", "hang", { times: 1000 });
  await writeTenMebibytes(r, daemon);
  const phase = await daemon.stop();
  expect(phase.kind).toBe("stopped");
  expect(phase.kind === "stopped" ? phase.detail : null).toMatch(/^80 committed transaction\(s\) could not be shipped/);

  r.backend = new GatedBackend(memory);
  const next = await r.startSynced();
  expect(begun(next)).toEqual([]);
  await r.assertLatestIsLive();
});

test("a daemon stops at once in the middle of a full backup, whatever that waits for", async () => {
  for (const at of ["before", "midway", "read"] as const) {
    await using r = await Replication.begin();
    await r.makeRows(800);
    const gate = r.backend.gate(at, FULL);
    const daemon = await r.startDaemon();
    await gate.reached();
    await r.writer.burst(1);
    expect(await daemon.stop(4000)).toEqual({
      kind: "stopped",
      detail: "stopped before the full backup was stored: the next start takes it",
    });
    const next = await r.startSynced();
    expect(await r.fulls()).toHaveLength(1);
    await r.assertLatestIsLive();
    await next.stop();
  }
});

test("a foreign object in the way of a change-set ends the attachment, also while a full backup waits for its turn", async () => {
  await using r = await Replication.begin();
  await r.makeRows(20);
  const full = r.backend.gate("stored", FULL);
  const daemon = await r.startDaemon();
  await full.reached();
  const put = r.backend.gate("before", CHANGE_SET);
  await r.writer.burst(1);
  await put.reached();
  full.open();
  await daemon.until("the full backup to be there", () => r.backend.stored.some((key) => FULL.test(key)));
  put.fail(new BakeliteError("replica-foreign", "somebody else was here, says the test"));
  await daemon.until("the end of the attachment", () => daemon.log.find(/interrupted/, "error").length > 0);
  await daemon.synced();
  await r.assertLatestIsLive();
});

test.skipIf(!isRoot)(
  "a read-only destination is said to be one, and all is shipped when it can be written",
  async () => {
    await using disk = await mountedDisk("2M");
    const { r } = disk;
    await r.makeRows(20);
    await r.shell('mount -o remount,ro "$1"', disk.path);
    const daemon = await r.startDaemon();
    await daemon.until("the failure", () => failed(daemon));
    expect(daemon.replicator.health.lastError?.code).toBe("storage-denied");
    expect(daemon.replicator.health.lastError?.message).toMatch(/read-only/);
    await r.writer.burst(5);
    await r.shell('mount -o remount,rw "$1"', disk.path);
    await daemon.synced();
    await r.assertLatestIsLive();
    await r.shell('mount -o remount,ro "$1"', disk.path);
    await r.writer.burst(5);
    await daemon.until("the next failure", () => daemon.replicator.health.streak !== null);
    await r.shell('mount -o remount,rw "$1"', disk.path);
    await daemon.synced();
    await r.assertLatestIsLive();
    expect(await r.fulls()).toHaveLength(1);
  },
);

test.skipIf(!isRoot)(
  "a full destination is said to be one, leaves nothing half stored, and all is shipped when there is room",
  async () => {
    await using disk = await mountedDisk("512K");
    const { r } = disk;
    await r.makeRows(20);
    const daemon = await r.startSynced();
    for (let i = 0; i < 40 && !failed(daemon); i++) {
      await r.writer.sql(`UPDATE pad SET body = randomblob(3000) WHERE id <= 20`);
      await r.writer.burst(3);
      await daemon.captured();
      const shipper = await daemon.shipper();
      await daemon.until("the set to be stored or not", () => shipper.isIdle || failed(daemon));
    }
    await daemon.until("the disk to be full", () => failed(daemon));
    expect(daemon.replicator.health.lastError?.code).toBe("storage-full");
    await r.shell('mount -o remount,size=16M "$1"', disk.path);
    await daemon.synced();
    await r.assertLatestIsLive();
    expect(await r.fulls()).toHaveLength(1);
    expect((await r.shell('find "$1" -name ".tmp-*"', disk.path)).trim()).toBe("");
  },
);

test("a destination that is away at the start is waited for, and capture goes on meanwhile", async () => {
  await using faulty = await beginFaulty();
  const { r, backend } = faulty;
  await r.makeRows(20);
  backend.isOffline = true;
  const daemon = await r.startDaemon();
  await daemon.until("the failure", () => failed(daemon));
  await r.writer.burst(20);
  const attachment = await daemon.captured();
  expect(attachment.starting).not.toBeNull();
  expect(attachment.oldestUnstoredMs).not.toBeNull();
  backend.isOffline = false;
  await daemon.synced();
  await r.assertLatestIsLive();
});

test("a stop before it is known what is stored does not pass for one after which everything is", async () => {
  await using faulty = await beginFaulty();
  const { r, backend } = faulty;
  await r.makeRows(20);
  backend.isOffline = true;
  const daemon = await r.startDaemon();
  await daemon.until("the failure", () => failed(daemon));
  expect(await daemon.stop()).toMatchObject({
    kind: "stopped",
    detail: expect.stringContaining("before the database was compared with what is stored"),
  });
});

test("a stop while the destination is away says how much was not shipped", async () => {
  await using faulty = await beginFaulty();
  const { r, backend } = faulty;
  await r.makeRows(20);
  const daemon = await r.startSynced();
  backend.isOffline = true;
  await r.writer.burst(3);
  await daemon.until("the failure", () => failed(daemon));
  const phase = await daemon.stop();
  expect(phase).toMatchObject({
    kind: "stopped",
    detail: "3 committed transaction(s) could not be shipped before the stop",
  });
  backend.isOffline = false;
  const next = await r.startSynced();
  expect(next.log.find(/continuity is proven/)).toHaveLength(1);
  await r.assertLatestIsLive();
});

test("among faults of every kind every restore point stays sound, and no full backup is taken that nobody asked for", async () => {
  await withSeed(async (random) => {
    using _waits = shortWaits();
    const memory = new MemoryBackend();
    const backend = new FaultyBackend(memory, {
      seed: random.integer(1, 1e9),
      slowMs: 5,
      rates: {
        put: { refuse: 0.1, "lose-answer": 0.1, cut: 0.1, full: 0.03, slow: 0.1 },
        get: { refuse: 0.05, cut: 0.05 },
        stat: { refuse: 0.05 },
        list: { refuse: 0.05, cut: 0.05 },
      },
    });
    await using r = await Replication.begin({ backend, settings: { maxSegmentsPerSnapshot: 6 } });
    await r.makeRows(300);
    for (let round = 0; round < 3; round++) {
      const daemon = await r.startDaemon();
      for (let i = 0; i < 12; i++) {
        await r.writer.burst(random.integer(1, 5));
        await daemon.captured();
      }
      await daemon.synced(30_000);
      await daemon.stop();
      expect(begun(daemon).filter((reason) => reason !== "first backup" && reason !== "change-set count")).toEqual([]);
      expect(daemon.log.find(/interrupted|differ|not what was stored/).map(({ fields }) => fields["error"])).toEqual(
        [],
      );
    }
    r.backend = new GatedBackend(memory);
    await r.assertSound();
  });
}, 60_000);

/** In 80 commits. The WAL, whose file does not shrink, stays near its limit of a quarter of one. */
async function writeTenMebibytes(r: Replication, daemon: Daemon): Promise<void> {
  for (let i = 0; i < 40; i++) {
    await r.writer.burst(1);
    await r.writer.sql("UPDATE pad SET body = randomblob(3900)");
    await daemon.captured();
  }
  expect(statSync(`${r.databasePath}-wal`).size).toBeLessThan(2 * MIB);
}

async function countStored(r: Replication): Promise<{ changeSets: number }> {
  return { changeSets: r.backend.stored.filter((key) => CHANGE_SET.test(key)).length };
}

interface Faulty extends AsyncDisposable {
  readonly r: Replication;
  readonly backend: FaultyBackend;
  readonly memory: MemoryBackend;
}

async function beginFaulty(): Promise<Faulty> {
  const memory = new MemoryBackend();
  const backend = new FaultyBackend(memory, { seed: 1 });
  const r = await Replication.begin({ backend });
  return { r, backend, memory, [Symbol.asyncDispose]: () => r[Symbol.asyncDispose]() };
}

interface MountedDisk extends AsyncDisposable {
  readonly r: Replication;
  readonly path: string;
}

/** A file system of its own for the destination. */
async function mountedDisk(size: string): Promise<MountedDisk> {
  const r = await Replication.begin();
  const path = r.directory.file("disk");
  await mkdir(path);
  await r.shell('mount -t tmpfs -o size="$2" tmpfs "$1"', path, size);
  r.backend = new GatedBackend(new FileBackend({ path }));
  return {
    r,
    path,
    async [Symbol.asyncDispose]() {
      try {
        await r.stopDaemons();
      } finally {
        await r.shell('umount "$1"', path);
        await r[Symbol.asyncDispose]();
      }
    },
  };
}
