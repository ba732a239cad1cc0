import { expect } from "bun:test";
import { writeFile } from "node:fs/promises";
import { CHANGE_SET, type Daemon, QUICK, Replication } from "../replication.ts";
import { startTrapped } from "../trapped.ts";

/** What a daemon goes on from. Each scenario throws unless the replica holds what the database does. */

/** Commits are made while no daemon runs, and SQLite takes the WAL away with its last connection. */
export async function walIsGone(): Promise<void> {
  await using r = await Replication.begin();
  await r.makeRows(30);
  await (await r.startSynced()).stop();
  await r.setRows("1", 4, 5);
  await r.stopWriter();
  const daemon = await r.startSynced();
  expect(daemon.log.find(/full backup begins/)).toEqual([]);
  await r.assertLatestIsLive();
}

/** A daemon is killed between a put and the cursor that knows of it. */
export async function killedAfterPut(): Promise<void> {
  await using r = await Replication.begin({ inDirectory: true });
  await r.makeRows(30);
  await (await r.startSynced()).stop();
  await using victim = startTrapped({
    databasePath: r.databasePath,
    backendPath: r.backend.location,
    settings: QUICK,
    traps: [{ step: "after the put of a change-set", nth: 1, action: "kill" }],
  });
  await r.writer.burst(2);
  await victim.killed();
  await r.writer.burst(2);
  const daemon = await r.startDaemon();
  await daemon.until("shipping, or a refusal", () => daemon.attachment?.starting === null || isInterrupted(daemon));
  expect(daemon.log.find(/interrupted/)).toEqual([]);
  await daemon.synced();
  await r.assertSound();
}

/** A bit of the ledger file has changed while no daemon ran, in the entry of a page that stays as it is. */
export async function ledgerIsWrongInOneBit(): Promise<void> {
  await using r = await Replication.begin();
  await r.makeRows(60);
  const first = await r.startSynced();
  await r.setRows("1", 10);
  await first.synced();
  await first.stop();
  const ledger = await Bun.file(r.paths.pages).bytes();
  const at = 1024 + 16 * 30 + 3;
  ledger[at] = (ledger[at] ?? 0) ^ 4;
  await writeFile(r.paths.pages, ledger);
  await r.setRows("2", 10);
  const daemon = await r.startSynced();
  expect(daemon.log.find(/full backup begins/)).toEqual([]);
  await r.assertSound();
}

/** A second daemon, of another database and without a cursor, has its object refused by one of the first. */
export async function secondWriterIsRefused(): Promise<void> {
  await using living = await Replication.begin();
  await living.makeRows(10);
  const first = await living.startSynced();
  await using other = await Replication.begin();
  await other.makeRows(20);
  const put = living.backend.gate("before", CHANGE_SET);
  const second = await other.startDaemon({ backend: living.backend });
  expect(await put.reached()).toBe("app/L0/0000000000000002-0000000000000002.p");
  expect(second.log.find(/there is no cursor/, "warn")).toHaveLength(1);
  await living.writer.burst(2);
  await first.synced();
  put.open();
  const line = await second.until(
    "the refusal, or the object",
    () => second.log.find(/interrupted|stored a change-set/)[0],
  );
  expect(String(line.fields["error"])).toMatch(
    /another bakelite writes to this replica .*L0\/0000000000000002-0000000000000002/,
  );
  expect(String(line.fields["hint"])).toMatch(/--take-over/);
  // It stays refused, for what follows its cursor is another session's.
  await second.until("the next refusal", () => second.log.find(/interrupted/, "error").length >= 2);
  expect(second.replicator.phase.kind).toBe("failed");
  second.assertNoLocks();
  await living.writer.burst(2);
  await first.synced();
  expect(first.log.find(/interrupted/)).toEqual([]);
  await living.assertSound();
}

/** A daemon is told to stop while its first full backup waits for its turn behind a put that does not end. */
export async function stopWhileFullWaitsForItsTurn(): Promise<void> {
  await using r = await Replication.begin();
  await r.makeRows(20);
  const full = r.backend.gate("stored", /\/full\//);
  const daemon = await r.startDaemon();
  await full.reached();
  const put = r.backend.gate("before", CHANGE_SET);
  await r.writer.burst(1);
  await put.reached();
  const shipper = await daemon.shipper();
  const isWaiting = Promise.withResolvers<void>();
  const between = shipper.between.bind(shipper);
  shipper.between = (...wanted) => {
    isWaiting.resolve();
    return between(...wanted);
  };
  full.open();
  await isWaiting.promise;
  await daemon.stop(4000);
  const next = await r.startSynced();
  expect(next.log.find(/full backup begins/)).toEqual([]);
  await r.assertLatestIsLive();
}

function isInterrupted(daemon: Daemon): boolean {
  return daemon.log.find(/interrupted/).length > 0;
}
