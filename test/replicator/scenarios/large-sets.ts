import { expect } from "bun:test";
import { writeCursor } from "../../../src/state/cursor.ts";
import { copyDatabase } from "../../support/truncate-checkpoint.ts";
import { type Gate, unreachable } from "../gated-backend.ts";
import { CHANGE_SET, type Daemon, QUICK, Replication } from "../replication.ts";
import { startTrapped } from "../trapped.ts";

/**
 * Change-sets too large to be read in one go. Each scenario throws unless every restore point is a committed state.
 * test/replicator/rules.ts names the rules that they stand for.
 */

/** One page each: more than a change-set may hold to be read in one go. */
export const LARGE_ROWS = 4110;

/** Commits arrive between the slices of a set too large to be read in one go. */
export async function largeSetIsTorn(): Promise<void> {
  await using r = await Replication.begin();
  const { daemon, gate } = await beginLargeSet(r);
  await r.setRows("2", 1, LARGE_ROWS);
  await r.noteCommitted("after it");
  await finishLargeSet(daemon, gate);
  expect(await r.restoreAll()).toEqual(
    new Map([
      [1, "before"],
      [3, "after it"],
    ]),
  );
  const [large] = await r.changeSets();
  expect(large?.reader.trailer).toMatchObject({ last: 2, settled: 3, pageCount: LARGE_ROWS });
}

/** The commit that arrives is read with the large set, so that nothing is left to store, and yet the next state is. */
export async function largeSetIsSettledByAnEmptyOne(): Promise<void> {
  await using r = await Replication.begin();
  const { daemon, gate } = await beginLargeSet(r);
  await r.setRows("2", LARGE_ROWS);
  await r.noteCommitted("after it");
  await finishLargeSet(daemon, gate);
  expect(await r.restoreAll()).toEqual(
    new Map([
      [1, "before"],
      [3, "after it"],
    ]),
  );
  const [, settling] = await r.changeSets();
  expect(settling?.reader.trailer).toMatchObject({ last: 3, settled: 3, pageCount: 0 });
}

/** Nothing is committed while a large set is read: it is a restore point like any other. */
export async function largeSetInPeace(): Promise<void> {
  await using r = await Replication.begin();
  const { daemon, gate } = await beginLargeSet(r);
  await finishLargeSet(daemon, gate);
  expect(await r.restoreAll()).toEqual(
    new Map([
      [1, "before"],
      [2, "the large one"],
    ]),
  );
}

/** A put of a large set fails midway; what was captured meanwhile goes with the second try. */
export async function largeSetIsGivenBack(): Promise<void> {
  await using r = await Replication.begin();
  const { daemon, gate } = await beginLargeSet(r);
  await r.setRows("2", 1, LARGE_ROWS);
  await r.noteCommitted("after it");
  await daemon.captured();
  gate.fail(unreachable());
  await daemon.synced();
  expect(await r.restoreAll()).toEqual(
    new Map([
      [1, "before"],
      [2, "after it"],
    ]),
  );
}

/** A large state is stored with images of commits after its position, and those commits are gone after the boot. */
export async function powerCutAfterLargeSet(): Promise<void> {
  await using r = await Replication.begin({ inDirectory: true });
  await r.makeRows(LARGE_ROWS);
  await (await r.startSynced()).stop();
  await using victim = startTrapped({
    databasePath: r.databasePath,
    backendPath: r.backend.location,
    settings: QUICK,
    traps: [
      { step: "midway in the put of a change-set", nth: 1, action: "pause" },
      { step: "after the attempt", nth: 2, action: "kill" },
    ],
  });
  await r.setAllRows("1");
  await victim.reached();
  const image = r.directory.file("image.db");
  await copyDatabase(r.databasePath, image);
  // Read by the set's last slices, and by nothing that reached the disk.
  await r.setRows("2", LARGE_ROWS);
  await victim.release();
  await victim.killed();
  await r.writer.kill();
  // The same files, by their inodes, with the content that the disk had.
  await r.shell('cat "$1" > "$2"; cat "$1-wal" > "$2-wal"; rm -f "$2-shm"', image, r.databasePath);
  const cursor = await r.cursor();
  expect(cursor.settled).toBe(cursor.index + 1);
  await writeCursor(r.paths.cursor, { ...cursor, bootId: "00000000-1111-2222-3333-444444444444" });
  const daemon = await r.startSynced();
  expect(daemon.log.find(/full backup begins/)).toEqual([]);
  await r.assertLatestIsLive();
}

export async function beginLargeSet(r: Replication): Promise<{ daemon: Daemon; gate: Gate }> {
  await r.makeRows(LARGE_ROWS);
  const daemon = await r.startSynced();
  await r.noteCommitted("before");
  const gate = r.backend.gate("midway", CHANGE_SET);
  await r.setAllRows("1");
  await r.noteCommitted("the large one");
  await gate.reached(() => daemon.log.text);
  return { daemon, gate };
}

async function finishLargeSet(daemon: Daemon, gate: Gate): Promise<void> {
  await daemon.captured();
  gate.open();
  await daemon.synced();
}
