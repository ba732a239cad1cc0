import { expect, test } from "bun:test";
import { copyFile, rm, truncate, writeFile } from "node:fs/promises";
import { writeCursor } from "../../src/state/cursor.ts";
import { encodeLedgerSlot, parseLedgerSlot } from "../../src/state/ledger-slot.ts";
import { CHANGE_SET, type Daemon, describe, FULL, Replication } from "./replication.ts";

/** What an attach does with what it finds: in the WAL, in `.bakelite/`, and at the destination. */

const proven = (daemon: Daemon) => daemon.log.find(/continuity is proven/).length;
const compared = (daemon: Daemon) => daemon.log.find(/compared the database/).map(({ fields }) => fields["differing"]);
const begun = (daemon: Daemon) => daemon.log.find(/full backup begins/).map(({ fields }) => fields["reason"]);

/** A replica with a full backup and some change-sets, its daemon stopped, the application connected and quiet. */
async function beginStopped(): Promise<Replication> {
  const r = await Replication.begin();
  await r.makeRows(30);
  const daemon = await r.startSynced();
  for (let i = 0; i < 3; i++) {
    await r.writer.burst(5);
    await daemon.synced();
  }
  await daemon.stop();
  return r;
}

test("commits made while the daemon was stopped are taken from the WAL, without a comparison", async () => {
  await using r = await beginStopped();
  await r.writer.burst(30);
  const daemon = await r.startSynced();
  expect(proven(daemon)).toBe(1);
  expect(compared(daemon)).toEqual([]);
  expect(begun(daemon)).toEqual([]);
  await r.assertLatestIsLive();
  expect((await r.changeSets()).at(-1)?.reader.trailer.reason).toBe("wal");
});

test("when the WAL is gone, the pages that differ are found by comparison and shipped as one change-set", async () => {
  await using r = await beginStopped();
  const before = (await r.changeSets()).length;
  await r.writer.burst(30);
  await r.stopWriter();
  const daemon = await r.startSynced();
  expect(proven(daemon)).toBe(0);
  expect(compared(daemon)).toHaveLength(1);
  expect(begun(daemon)).toEqual([]);
  await r.assertLatestIsLive();
  const changeSets = await r.changeSets();
  expect(changeSets).toHaveLength(before + 1);
  expect(changeSets.at(-1)?.reader.trailer).toMatchObject({ reason: "comparison", pageCount: compared(daemon)[0] });
});

test("a comparison that finds nothing stores nothing, and the next attach is proven", async () => {
  await using r = await beginStopped();
  await r.stopWriter();
  const keys = await r.keys();
  const daemon = await r.startSynced();
  expect(compared(daemon)).toEqual([0]);
  expect(await r.keys()).toEqual(keys);
  await r.startWriter();
  await r.writer.burst(1);
  await daemon.synced();
  await daemon.stop();
  const next = await r.startSynced();
  expect(proven(next)).toBe(1);
  await r.assertLatestIsLive();
});

test("commits that arrive while a comparison runs are in the change-set that follows it", async () => {
  await using r = await beginStopped();
  await r.stopWriter();
  await r.startWriter();
  await r.writer.burst(10);
  await r.writer.checkpoint("TRUNCATE");
  const daemon = await r.startDaemon();
  for (let i = 0; i < 10; i++) await r.writer.burst(3);
  await daemon.synced();
  expect(compared(daemon)).toHaveLength(1);
  await r.assertLatestIsLive();
});

test("a stop in the middle of a comparison stores nothing, and the next daemon starts it again", async () => {
  await using r = await beginStopped();
  await r.writer.burst(10);
  await r.stopWriter();
  const keys = await r.keys();
  const daemon = await r.startDaemon();
  await daemon.until("an attachment", () => daemon.attachment);
  await daemon.stop();
  // Whether it came to comparing before it was stopped is a matter of luck; that nothing is half done is not.
  const next = await r.startSynced();
  expect(begun(next)).toEqual([]);
  await r.assertLatestIsLive();
  expect((await r.keys()).length).toBeLessThanOrEqual(keys.length + 1);
});

const damage: Readonly<Record<string, (path: string) => Promise<void>>> = {
  missing: (path) => rm(path),
  empty: (path) => truncate(path, 0),
  "cut short": (path) => truncate(path, 700),
  garbage: (path) => writeFile(path, Buffer.alloc(3000, "no such thing ")),
};

for (const [how, spoil] of Object.entries(damage)) {
  for (const what of ["cursor", "ledger", "cursor and ledger"] as const) {
    test(`a ${what} that is ${how} is built again from the replica, without a full backup`, async () => {
      await using r = await beginStopped();
      await r.writer.burst(5);
      if (what !== "ledger") await spoil(r.paths.cursor);
      if (what !== "cursor") await spoil(r.paths.pages);
      const daemon = await r.startSynced();
      expect(begun(daemon)).toEqual([]);
      expect(compared(daemon)).toHaveLength(what === "ledger" ? 0 : 1);
      if (what !== "ledger") expect(daemon.log.find(/there is no cursor/, "warn")).toHaveLength(1);
      expect(daemon.log.find(/rebuilding the page ledger/)).toHaveLength(what === "cursor" ? 0 : 1);
      await r.assertLatestIsLive();
      await r.writer.burst(5);
      await daemon.synced();
      await r.assertLatestIsLive();
      await daemon.stop();
      const next = await r.startSynced();
      expect(proven(next)).toBe(1);
      expect(await r.fulls()).toHaveLength(1);
    });
  }
}

/** The entries of the ledger file, one after the other. */
const ENTRIES_OFFSET = 1024;

const wrongLedgers: Readonly<Record<string, (now: Uint8Array, older: Uint8Array) => Uint8Array>> = {
  "an older copy": (_now, older) => older,
  "as it was before, but for its slots": (now, older) =>
    Buffer.concat([now.subarray(0, ENTRIES_OFFSET), older.subarray(ENTRIES_OFFSET)]),
  "newer than its slots": (now, older) =>
    Buffer.concat([older.subarray(0, ENTRIES_OFFSET), now.subarray(ENTRIES_OFFSET)]),
  "half as it was before": (now, older) => {
    const half = ENTRIES_OFFSET + ((now.length - ENTRIES_OFFSET) >>> 5) * 16;
    return Buffer.concat([now.subarray(0, half), older.subarray(half), now.subarray(older.length)]);
  },
  "all zeros behind its slots": (now) =>
    Buffer.concat([now.subarray(0, ENTRIES_OFFSET), Buffer.alloc(now.length - ENTRIES_OFFSET)]),
  "wrong in one bit": (now) => {
    const bytes = now.slice();
    const at = ENTRIES_OFFSET + 16 * 20 + 3;
    bytes[at] = (bytes[at] ?? 0) ^ 4;
    return bytes;
  },
  "of another chain": (now) => {
    const bytes = now.slice();
    for (const at of [0, 512]) {
      const parsed = parseLedgerSlot(bytes.subarray(at, at + 512));
      if (parsed !== null) bytes.set(encodeLedgerSlot({ ...parsed.slot, chain: "0".repeat(32) }, parsed.sequence), at);
    }
    return bytes;
  },
};

for (const [how, change] of Object.entries(wrongLedgers)) {
  test(`a ledger that is ${how} does no harm to what is stored after it`, async () => {
    await using r = await Replication.begin();
    await r.makeRows(60);
    const first = await r.startSynced();
    await r.writer.burst(5);
    await first.synced();
    await first.stop();
    const older = await Bun.file(r.paths.pages).bytes();
    const second = await r.startSynced();
    await r.setRows("1", 10, 40);
    await r.writer.burst(5);
    await second.synced();
    await second.stop();
    await writeFile(r.paths.pages, change(await Bun.file(r.paths.pages).bytes(), older));
    await r.setRows("0", 10);
    for (const isConnected of [true, false]) {
      if (!isConnected) await r.stopWriter();
      const daemon = await r.startSynced();
      expect(begun(daemon)).toEqual([]);
      await r.assertLatestIsLive();
      if (isConnected) {
        await r.setRows("2", 41);
        await daemon.synced();
        await r.assertLatestIsLive();
      }
      await daemon.stop();
    }
    expect(await r.fulls()).toHaveLength(1);
  });
}

test("an older cursor is refused while the replica is fresh, for a clone may live, and adopted with a warning later", async () => {
  await using r = await beginStopped();
  await copyFile(r.paths.cursor, r.directory.file("older.cursor"));
  const between = await r.startSynced();
  await r.writer.burst(5);
  await between.synced();
  await between.stop();
  await copyFile(r.directory.file("older.cursor"), r.paths.cursor);

  const refused = await r.startDaemon();
  const line = await refused.until("the refusal", () => refused.log.find(/interrupted/, "error")[0]);
  expect(line.fields["error"]).toMatch(/a clone of it may still be running/);
  expect(line.fields["hint"]).toMatch(/--take-over/);
  await refused.stop();

  r.clock.step(11 * 60_000);
  const daemon = await r.startSynced();
  expect(daemon.log.find(/does not remember storing/, "warn").length).toBeGreaterThan(0);
  expect(compared(daemon)).toHaveLength(1);
  expect(begun(daemon)).toEqual([]);
  await r.writer.burst(5);
  await daemon.synced();
  await r.assertLatestIsLive();
});

test("a cloned machine is refused beside the living one, and may take over when told so", async () => {
  await using r = await beginStopped();
  const cursor = await r.cursor();
  const living = await r.startSynced();
  await r.writer.burst(3);
  await living.synced();
  await living.stop();
  // The clone has the same session and an older position, as its disk was copied, and another machine id.
  await writeCursor(r.paths.cursor, { ...cursor, machineId: "0123456789abcdef0123456789abcdef" });
  const clone = await r.startDaemon();
  const line = await clone.until("the refusal", () => clone.log.find(/interrupted/, "error")[0]);
  expect(line.fields["error"]).toMatch(/a clone of it may still be running/);
  expect(clone.replicator.phase.kind).toBe("failed");
  await clone.stop();

  const taker = await r.startDaemon({ takeOver: true });
  await taker.synced();
  expect(taker.log.find(/taking over/, "warn")).toHaveLength(1);
  await r.writer.burst(3);
  await taker.synced();
  await r.assertLatestIsLive();
  expect(await r.fulls()).toHaveLength(1);
});

test("a new container on an old volume goes on at once when it stored everything itself", async () => {
  await using r = await beginStopped();
  await writeCursor(r.paths.cursor, { ...(await r.cursor()), machineId: "host:0a1b2c3d" });
  await r.writer.burst(3);
  const daemon = await r.startSynced();
  expect(begun(daemon)).toEqual([]);
  await r.assertLatestIsLive();
  expect((await r.cursor()).machineId).not.toBe("host:0a1b2c3d");
});

test("a new container on an old volume adopts what the replica has beyond it with a warning, once that is old", async () => {
  await using r = await beginStopped();
  const cursor = await r.cursor();
  const old = await r.startSynced();
  await r.writer.burst(3);
  await old.synced();
  await old.stop();
  await writeCursor(r.paths.cursor, { ...cursor, machineId: "host:0a1b2c3d" });
  r.clock.step(11 * 60_000);
  const daemon = await r.startSynced();
  expect(daemon.log.find(/does not remember storing/, "warn")).toHaveLength(1);
  await r.assertLatestIsLive();
});

test("after a boot of the same machine what our own session stored beyond the cursor is ours", async () => {
  await using r = await beginStopped();
  const cursor = await r.cursor();
  const before = await r.startSynced();
  await r.writer.burst(3);
  await before.synced();
  await before.stop();
  await writeCursor(r.paths.cursor, { ...cursor, bootId: "00000000-1111-2222-3333-444444444444" });
  const daemon = await r.startSynced();
  expect(daemon.log.find(/interrupted/)).toEqual([]);
  expect(compared(daemon)).toHaveLength(1);
  await r.assertLatestIsLive();
});

test("an emptied replica gets one full backup, as a gap of the destination", async () => {
  await using r = await beginStopped();
  await r.backend.delete(await r.keys());
  await r.writer.burst(3);
  const daemon = await r.startSynced();
  expect(begun(daemon)).toEqual(["destination gap"]);
  expect(daemon.log.find(/full backup begins/, "warn")).toHaveLength(1);
  await r.assertLatestIsLive();
  await daemon.stop();
  const next = await r.startSynced();
  expect(begun(next)).toEqual([]);
  expect(await r.fulls()).toHaveLength(1);
});

test("an emptied replica with no local state either is a first backup", async () => {
  await using r = await beginStopped();
  await r.backend.delete(await r.keys());
  await rm(r.paths.cursor);
  await rm(r.paths.pages);
  const daemon = await r.startSynced();
  expect(begun(daemon)).toEqual(["first backup"]);
  await r.assertLatestIsLive();
});

test("when the newest objects are deleted, a full backup closes the gap and what is older stays restorable", async () => {
  await using r = await beginStopped();
  const points = await r.restorePoints();
  const newest = (await r.changeSets()).slice(-2).map(({ object }) => `app/${describe(object)}`);
  await r.backend.delete(newest);
  await r.writer.burst(3);
  const daemon = await r.startSynced();
  expect(begun(daemon)).toEqual(["destination gap"]);
  await r.assertLatestIsLive();
  const after = await r.restorePoints();
  expect(after.slice(0, points.length - 2)).toEqual(points.slice(0, -2));
  for (const index of after) await r.grade((await r.restore({ kind: "index", index })).bytes, { storedFloorN: 0 });
});

test("when an object in the middle is deleted, a full backup closes the gap", async () => {
  await using r = await beginStopped();
  const [, middle] = await r.changeSets();
  await r.backend.delete([`app/${describe(middle?.object ?? fail())}`]);
  const daemon = await r.startSynced();
  expect(begun(daemon)).toEqual(["destination gap"]);
  await r.assertLatestIsLive();
});

/** A first full backup, change-sets, a second one, change-sets; the daemon is stopped. */
async function beginWithTwoFulls(): Promise<Replication> {
  const r = await Replication.begin();
  await r.makeRows(30);
  const daemon = await r.startSynced();
  await r.writer.burst(5);
  await daemon.synced();
  await daemon.passDay(r.clock);
  await daemon.until("the second full backup", () => daemon.log.find(/full backup stored/).length === 2);
  await r.writer.burst(5);
  await daemon.synced();
  await daemon.stop();
  return r;
}

/** Flips a bit of the stored object's trailer. */
async function damageObject(r: Replication, key: string): Promise<void> {
  const stored = Buffer.concat(await Array.fromAsync((await r.backend.get(key)) ?? fail()));
  const at = stored.length - 100;
  stored[at] = (stored[at] ?? 0) ^ 1;
  await r.backend.inner.put(key, bytes(stored));
}

test("a damaged newest full backup is passed by when the ledger must be built again", async () => {
  await using r = await beginWithTwoFulls();
  const keys = (await r.keys()).filter((key) => FULL.test(key));
  await damageObject(r, keys.at(-1) ?? fail());
  await rm(r.paths.pages);
  const daemon = await r.startSynced();
  expect(daemon.log.find(/rebuilding the page ledger/).map(({ fields }) => fields["fullBackup"])).toEqual([1]);
  // Which the older one is due for by its age.
  expect(begun(daemon)).toEqual(["interval"]);
  await r.assertLatestIsLive();
});

test("when no full backup can be read and the ledger is lost, a new chain begins", async () => {
  await using r = await beginWithTwoFulls();
  for (const key of (await r.keys()).filter((candidate) => FULL.test(candidate))) await damageObject(r, key);
  await rm(r.paths.pages);
  const chain = (await r.cursor()).chain;
  const daemon = await r.startSynced();
  expect(begun(daemon)).toEqual(["replica unreadable"]);
  expect((await r.cursor()).chain).not.toBe(chain);
  await r.assertLatestIsLive();
  await daemon.stop();
  const next = await r.startSynced();
  expect(begun(next)).toEqual([]);
});

test("when no full backup can be read, another is taken although ledger and cursor are whole", async () => {
  await using r = await beginStopped();
  const key = (await r.keys()).find((candidate) => FULL.test(candidate)) ?? fail();
  await damageObject(r, key);
  const daemon = await r.startSynced();
  expect(begun(daemon)).toHaveLength(1);
  await r.assertLatestIsLive();
});

test("when the only full backup is that of the present state and cannot be read, another is taken", async () => {
  await using r = await Replication.begin();
  await r.makeRows(10);
  await (await r.startSynced()).stop();
  const key = (await r.keys()).find((candidate) => FULL.test(candidate)) ?? fail();
  await damageObject(r, key);
  const daemon = await r.startSynced();
  expect(begun(daemon)).toHaveLength(1);
  await r.assertLatestIsLive();
});

test("a damaged change-set makes a new chain when the ledger must be built from it, and is not looked at else", async () => {
  await using r = await beginStopped();
  const [, middle] = await r.changeSets();
  await damageObject(r, `app/${describe(middle?.object ?? fail())}`);
  const unaware = await r.startSynced();
  expect(begun(unaware)).toEqual([]);
  await unaware.stop();
  await rm(r.paths.pages);
  const daemon = await r.startSynced();
  expect(begun(daemon)).toEqual(["replica unreadable"]);
  await r.assertLatestIsLive();
});

test("files that are not ours in the replica's folder are left alone", async () => {
  await using r = await beginStopped();
  const garbage = [
    "app/README.txt",
    "app/full/notes",
    "app/L0/0000000000000002.p",
    "app/L0/0000000000000009-0000000000000003.p",
    "app/x/y/z",
  ];
  for (const key of garbage) await r.backend.inner.put(key, bytes("what is this?"));
  const daemon = await r.startSynced();
  await r.writer.burst(3);
  await daemon.synced();
  expect(begun(daemon)).toEqual([]);
  await r.assertLatestIsLive();
  expect(await r.keys()).toEqual(expect.arrayContaining(garbage));
});

test("files with names of ours that hold something else are stepped over", async () => {
  await using r = await beginStopped();
  const next = (await r.cursor()).index + 1;
  await r.backend.inner.put(changeSetKey(next), bytes("not an object"));
  await r.backend.inner.put(changeSetKey(next + 3), bytes(""));
  await r.backend.inner.put(`app/full/${String(next + 1).padStart(16, "0")}.p`, bytes("nor is this"));
  const daemon = await r.startSynced();
  await r.writer.burst(3);
  await daemon.synced();
  await r.writer.burst(3);
  await daemon.synced();
  expect(begun(daemon)).toEqual([]);
  await r.assertLatestIsLive();
});

test("objects of another database and renamed ones are not adopted", async () => {
  await using r = await beginStopped();
  await using other = await beginStopped();
  const index = (await r.cursor()).index;
  // The other database's objects beside and beyond ours, and one of ours under another name.
  for (const key of (await other.keys()).filter((candidate) => CHANGE_SET.test(candidate))) {
    const stored = Buffer.concat(await Array.fromAsync((await other.backend.get(key)) ?? fail()));
    const first = Number(/\/(\d+)-/.exec(key)?.[1]);
    await r.backend.inner.put(changeSetKey(index + first), bytes(stored));
  }
  const ours = Buffer.concat(await Array.fromAsync((await r.backend.get(changeSetKey(index))) ?? fail()));
  await r.backend.inner.put(changeSetKey(index + 100), bytes(ours));
  const daemon = await r.startSynced();
  await r.writer.burst(3);
  await daemon.synced();
  expect(begun(daemon)).toEqual([]);
  await r.assertLatestIsLive();
});

test("the state directory may vanish while the daemon runs", async () => {
  await using r = await beginStopped();
  const daemon = await r.startSynced();
  await rm(r.paths.directory, { recursive: true });
  await r.writer.burst(3);
  await daemon.until(
    "the daemon to go on",
    async () => {
      await daemon.synced(2000).catch(() => {});
      return (
        (await r.restore().catch(() => null)) !== null &&
        daemon.log.find(/there is no cursor/).length > 0 &&
        daemon.attachment?.shipper?.isIdle === true
      );
    },
    20_000,
  );
  await daemon.synced();
  await r.assertLatestIsLive();
  expect(await r.fulls()).toHaveLength(1);
});

function changeSetKey(index: number): string {
  const digits = String(index).padStart(16, "0");
  return `app/L0/${digits}-${digits}.p`;
}

function bytes(content: string | Uint8Array) {
  const stored = typeof content === "string" ? Buffer.from(content) : content;
  return {
    sizeBytes: stored.length,
    replayable: true,
    async *open() {
      yield stored;
    },
  };
}

function fail(): never {
  throw new Error("there is no such object");
}
