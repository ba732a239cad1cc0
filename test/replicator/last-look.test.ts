import { describe, expect, test } from "bun:test";
import { encodingBudget } from "../../src/replicator/encoding-budget.ts";
import { WalFollower } from "../../src/sqlite/follow.ts";
import { WalFile } from "../../src/sqlite/wal-file.ts";
import { MemoryBackend } from "../../src/storage/memory.ts";
import { nextTurn } from "../../src/util/turns.ts";
import { withDeadline } from "../support/eventually.ts";
import { GatedBackend } from "./gated-backend.ts";
import { CHANGE_SET, type Daemon, FULL, Replication } from "./replication.ts";

/** What is committed before a stop and seen by nothing but the look after it. */

const KIB = 1024;
const STOPPED = { kind: "stopped", detail: null } as const;

/** From now on nothing is seen of what is committed, as between two looks, until the function is called that this gives. */
async function lookAway(daemon: Daemon): Promise<() => void> {
  const { follower } = await daemon.captured();
  const { counts } = follower;
  follower.capture = () => ({ kind: "captured", complete: true, commits: 0, counts });
  // Whatever was about to look has done so.
  await daemon.captured();
  return () => void Reflect.deleteProperty(follower, "capture");
}

/** Commits what no look sees but the last one, stops, and compares what is stored with the live database. */
async function stopAfter(r: Replication, daemon: Daemon, commit: () => Promise<void>): Promise<void> {
  const lookAgain = await lookAway(daemon);
  await commit();
  lookAgain();
  expect(await daemon.stop()).toEqual(STOPPED);
  await r.assertLatestIsLive();
  expect(await r.fulls()).toHaveLength(1);
}

function readWal(r: Replication): { readonly sizeBytes: number; readonly salt: string } {
  const wal = new WalFile(r.databasePath);
  wal.refresh();
  const read = { sizeBytes: wal.sizeBytes(), salt: wal.readHeader()?.salt.join() ?? "none" };
  wal.close();
  return read;
}

describe("the last look sees a commit", () => {
  test("behind those that were seen", async () => {
    await using r = await Replication.begin();
    await r.makeRows(20);
    const daemon = await r.startSynced();
    await r.writer.burst(3);
    await stopAfter(r, daemon, () => r.writer.burst(1));
  });

  for (const { frames, commits } of [
    { frames: "fewer frames than the WAL had", commits: 1 },
    { frames: "more frames than the WAL had", commits: 60 },
  ])
    test(`that restarted the WAL, with ${frames}`, async () => {
      await using r = await Replication.begin({ settings: { maxWalSizeBytes: 64 * KIB } });
      await r.makeRows(20);
      const daemon = await r.startSynced();
      const complete = () => daemon.log.find(/^checkpoint$/).filter(({ fields }) => fields["outcome"] === "complete");
      await daemon.until("a checkpoint after which nothing is committed", async () => {
        const before = complete().length;
        await r.writer.burst(1);
        await daemon.captured();
        // The checkpoint comes after the look at that commit, and before the next one.
        await daemon.captured();
        return complete().length > before;
      });
      await daemon.synced();
      const before = readWal(r);
      await stopAfter(r, daemon, async () => {
        await r.writer.burst(commits);
        const after = readWal(r);
        expect(after.salt).not.toBe(before.salt);
        if (commits === 1) expect(after.sizeBytes).toBe(before.sizeBytes);
      });
    });

  test("that is the first in a WAL, of an application that opens, commits and closes", async () => {
    await using r = await Replication.begin();
    await r.makeRows(20);
    await r.stopWriter();
    const daemon = await r.startSynced();
    expect(readWal(r).sizeBytes).toBe(0);
    await stopAfter(r, daemon, async () => {
      await r.startWriter();
      await r.writer.burst(1);
      await r.stopWriter();
    });
  });

  test("that is larger than what is read or encoded at once", async () => {
    await using r = await Replication.begin();
    await r.makeRows(4300);
    const daemon = await r.startSynced();
    await stopAfter(r, daemon, () => r.setAllRows("later"));
  });
});

test("a last look that a lock keeps waiting for a while still sees what was committed", async () => {
  await using r = await Replication.begin();
  await r.makeRows(20);
  const daemon = await r.startSynced();
  await lookAway(daemon);
  await r.writer.burst(1);
  const { follower } = await daemon.shipping();
  let looks = 0;
  follower.capture = () => (looks++ < 20 ? { kind: "busy" } : WalFollower.prototype.capture.call(follower));
  expect(await daemon.stop()).toEqual(STOPPED);
  expect(looks).toBeGreaterThan(20);
  await r.assertLatestIsLive();
});

test("a last look that a lock keeps waiting to the end says that something may be left", async () => {
  await using r = await Replication.begin();
  await r.makeRows(20);
  const daemon = await r.startSynced();
  await lookAway(daemon);
  await r.writer.burst(1);
  const { follower } = await daemon.shipping();
  follower.capture = () => ({ kind: "busy" });
  expect(await daemon.stop()).toEqual({
    kind: "stopped",
    detail: "1 committed transaction(s) could not be shipped before the stop",
  });
  expect(daemon.log.find(/^what was committed last could not be captured/, "warn")).toHaveLength(1);
});

for (const at of ["before", "read", "stored"] as const)
  test(`a commit during a put that the stop cuts off (${at}) is stored after what the put holds`, async () => {
    await using r = await Replication.begin();
    await r.makeRows(20);
    const daemon = await r.startSynced();
    const gate = r.backend.gate(at, CHANGE_SET);
    await r.writer.burst(1);
    await gate.reached();
    await stopAfter(r, daemon, () => r.writer.burst(1));
  });

for (const step of ["attempt", "write"] as const)
  test(`a commit while the cursor is written (${step}) is stored`, async () => {
    await using r = await Replication.begin();
    await r.makeRows(20);
    const daemon = await r.startSynced();
    const { local } = await daemon.shipping();
    const [reached, passed] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
    const original = local[step];
    local[step] = async (...given: never[]) => {
      Reflect.deleteProperty(local, step);
      reached.resolve();
      await passed.promise;
      await Reflect.apply(original, local, given);
    };
    await r.writer.burst(1);
    await withDeadline(reached.promise, { what: "the cursor's writing" });
    const lookAgain = await lookAway(daemon);
    await r.writer.burst(1);
    lookAgain();
    const stopping = daemon.stop();
    passed.resolve();
    expect(await stopping).toEqual(STOPPED);
    await r.assertLatestIsLive();
  });

for (const at of ["before", "midway", "stored"] as const)
  test(`a commit during a full backup that the stop cuts off (${at}) is stored, for an earlier one is there`, async () => {
    await using r = await Replication.begin();
    await r.makeRows(100);
    const daemon = await r.startSynced();
    await r.writer.burst(1);
    await daemon.synced();
    const gate = r.backend.gate(at, FULL);
    await daemon.passDay(r.clock);
    await gate.reached();
    const lookAgain = await lookAway(daemon);
    await r.writer.burst(1);
    lookAgain();
    expect(await daemon.stop()).toEqual(STOPPED);
    await r.assertLatestIsLive();
    expect(await r.fulls()).toHaveLength(at === "stored" ? 2 : 1);
  });

test("a commit in a batch that waits for its time is stored", async () => {
  await using r = await Replication.begin();
  await r.makeRows(20);
  const daemon = await r.startSynced();
  daemon.holdBack();
  await r.writer.burst(2);
  await daemon.captured();
  expect((await daemon.shipper()).isIdle).toBe(false);
  expect(await daemon.stop()).toEqual(STOPPED);
  await r.assertLatestIsLive();
});

test("a commit that waits for other databases to be encoded is stored once they are", async () => {
  await using r = await Replication.begin();
  await r.makeRows(20);
  const daemon = await r.startSynced();
  const others = await encodingBudget.take(Number.MAX_SAFE_INTEGER, new AbortController().signal);
  await r.writer.burst(1);
  await daemon.captured();
  const stopping = daemon.stop();
  // It has asked again, after the stop cut the first wait off.
  await nextTurn();
  others[Symbol.dispose]();
  expect(await stopping).toEqual(STOPPED);
  await r.assertLatestIsLive();
});

test("of two destinations, one of which hangs, the other has the last commit", async () => {
  await using r = await Replication.begin();
  await r.makeRows(20);
  const hanging = new GatedBackend(new MemoryBackend());
  const daemon = await r.startSynced({
    backends: [r.backend, hanging],
    lockStep: { times: { patienceMs: 100 } },
  });
  daemon.holdBack();
  const gate = hanging.gate("before", CHANGE_SET);
  const lookAgain = await lookAway(daemon);
  await r.writer.burst(1);
  lookAgain();
  const stopping = daemon.stop();
  await gate.reached();
  expect(await stopping).toEqual(STOPPED);
  await r.assertLatestIsLive();
  const cursor = await r.cursor();
  expect(Object.values(cursor.destinations).filter(({ incomplete }) => incomplete === true)).toHaveLength(1);
});

test("a stop while another process has the database to itself waits for that to end, and ships what it committed", async () => {
  await using r = await Replication.begin();
  await r.makeRows(20);
  await (await r.startSynced()).stop();
  await r.stopWriter();
  await r.startWriter();
  await r.writer.sql("PRAGMA locking_mode=EXCLUSIVE");
  await r.writer.burst(3);
  const daemon = await r.startDaemon();
  const stopping = daemon.stop();
  await r.stopWriter();
  expect(await stopping).toEqual(STOPPED);
  await r.assertLatestIsLive();
});

test("a stop is over within its patience although what is stored cannot be found out for want of a look", async () => {
  await using r = await Replication.begin();
  await r.makeRows(20);
  const { capture } = WalFollower.prototype;
  const { setTimeout } = globalThis;
  WalFollower.prototype.capture = () => ({ kind: "busy" });
  try {
    const daemon = await r.startDaemon();
    await daemon.until("the attach", () => daemon.attachment?.starting?.detail === "reading the replica");
    // Its patience is over ten times as soon. What the type has besides the call is used by nobody here.
    globalThis.setTimeout = ((work: () => void, ms = 0) => setTimeout(work, ms / 10)) as typeof setTimeout;
    const stopping = daemon.stop();
    globalThis.setTimeout = setTimeout;
    expect(await stopping).toMatchObject({
      kind: "stopped",
      detail: expect.stringContaining("before the database was compared"),
    });
  } finally {
    globalThis.setTimeout = setTimeout;
    WalFollower.prototype.capture = capture;
  }
});
