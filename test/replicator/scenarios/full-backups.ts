import { expect } from "bun:test";
import { type Gate, unreachable } from "../gated-backend.ts";
import { CHANGE_SET, type Daemon, describe, FULL, Replication } from "../replication.ts";
import { LARGE_ROWS } from "./large-sets.ts";

/** Full backups that are read while commits go on. Each scenario throws unless every restore point is a committed state. */

/** Enough that the encoder has not read the last of them when the put of a full backup stops midway. */
export const SMALL_ROWS = 800;

/** Pages wait for their change-set at the last read of a full backup. */
export async function fullWithPagesPending(): Promise<void> {
  await using r = await Replication.begin();
  const { daemon, full } = await beginFull(r);
  daemon.holdBack();
  await r.setRows("2", 2, SMALL_ROWS);
  await r.noteCommitted("meanwhile");
  await daemon.captured();
  full.open();
  await daemon.until("the second full backup", () => daemon.log.find(/full backup stored/).length === 2);
  await daemon.letGo();
  await daemon.synced();
  await expectStates(r, ["first", "start", "meanwhile"]);
  expect(await secondFull(r)).toMatchObject({ last: 2, settled: 3, digest: null });
}

/** Pages are on their way at the last read of a full backup, and it is finished only after them. */
export async function fullWithPagesInFlight(): Promise<void> {
  await using r = await Replication.begin();
  const { daemon, full, hasReadAll } = await beginFull(r);
  const put = r.backend.gate("before", CHANGE_SET);
  await r.setRows("2", 2, SMALL_ROWS);
  await r.noteCommitted("meanwhile");
  await put.reached();
  full.open();
  await hasReadAll();
  put.open();
  await daemon.synced();
  await expectStates(r, ["first", "start", "meanwhile"]);
  expect(await secondFull(r)).toMatchObject({ last: 2, settled: 3, digest: null });
  const order = r.backend.stored.map((key) => key.split("/").at(-1)).slice(-3);
  expect(order).toEqual(["0000000000000003-0000000000000003.p", "0000000000000002.p", "CURRENT"]);
}

/** Pages are on their way and others wait at the last read of a full backup. */
export async function fullWithPagesPendingAndInFlight(): Promise<void> {
  await using r = await Replication.begin();
  const { daemon, full, hasReadAll } = await beginFull(r);
  const put = r.backend.gate("before", CHANGE_SET);
  await r.setRows("2", 2, SMALL_ROWS);
  await r.noteCommitted("meanwhile");
  await put.reached();
  await r.setRows("3", 3, SMALL_ROWS - 1);
  await r.noteCommitted("later");
  await daemon.captured();
  full.open();
  await hasReadAll();
  put.open();
  await daemon.synced();
  await expectStates(r, ["first", "start", "meanwhile", "later"]);
  expect(await secondFull(r)).toMatchObject({ last: 2, settled: 4 });
}

/** What changed while a full backup was read is stored at its last read, and nothing else changed. */
export async function fullWithEverythingStored(): Promise<void> {
  await using r = await Replication.begin();
  const { daemon, full } = await beginFull(r);
  await r.setRows("2", 2, SMALL_ROWS);
  await r.noteCommitted("meanwhile");
  await daemon.captured();
  await daemon.until("the change-set to be stored", () =>
    r.backend.stored.some((key) => key.includes("0000000000000003")),
  );
  const shipper = await daemon.shipper();
  await daemon.until("the shipper to know", () => shipper.stored.index === 3);
  full.open();
  await daemon.synced();
  await expectStates(r, ["first", "start", "meanwhile"]);
  expect(await secondFull(r)).toMatchObject({ last: 2, settled: 3 });
}

/** Nothing changes while a full backup is read: it is complete by itself and says what its digest is. */
export async function fullInPeace(): Promise<void> {
  await using r = await Replication.begin();
  const { daemon, full } = await beginFull(r);
  full.open();
  await daemon.synced();
  await expectStates(r, ["first", "start"]);
  const { settled, digest } = await secondFull(r);
  expect(settled).toBe(2);
  expect(digest).not.toBeNull();
}

/** The put that a full backup waits for fails and is tried again with the same bytes. */
export async function fullWhoseChangeSetFails(): Promise<void> {
  await using r = await Replication.begin();
  const { daemon, full, hasReadAll } = await beginFull(r);
  const put = r.backend.gate("before", CHANGE_SET);
  await r.setRows("2", 2, SMALL_ROWS);
  await r.noteCommitted("meanwhile");
  await put.reached();
  full.open();
  await hasReadAll();
  await r.setRows("3", 3, SMALL_ROWS - 1);
  await r.noteCommitted("later");
  put.fail(unreachable());
  await daemon.synced();
  await expectStates(r, ["first", "start", "meanwhile", "later"]);
  expect(await secondFull(r)).toMatchObject({ last: 2, settled: 3 });
}

/** The large set that a full backup waits for fails midway, and its pages go into another object with newer ones. */
export async function fullWhoseChangeSetIsGivenBack(): Promise<void> {
  await using r = await Replication.begin();
  const { daemon, full, hasReadAll } = await beginFull(r, LARGE_ROWS);
  const put = r.backend.gate("midway", CHANGE_SET);
  await r.setAllRows("2");
  await r.noteCommitted("large");
  await put.reached();
  await r.setRows("3", 1, LARGE_ROWS);
  await r.noteCommitted("later");
  await daemon.captured();
  full.open();
  await hasReadAll();
  await r.setRows("4", 2, LARGE_ROWS - 1);
  await r.noteCommitted("latest");
  await daemon.captured();
  put.fail(unreachable());
  await daemon.synced();
  const labels = [...(await r.restoreAll()).values()];
  expect(labels.slice(0, 2)).toEqual(["first", "start"]);
  expect(labels.at(-1)).toBe("latest");
  expect(describe((await r.restore()).plan.full)).toBe("full/0000000000000002.p");
}

/** A first full backup has no ledger to go by, and the one that it leaves behind is right whatever happened meanwhile. */
export async function firstFullAmongCommits(): Promise<void> {
  await using r = await Replication.begin({ writer: { autoVacuum: "incremental" } });
  await r.makeRows(SMALL_ROWS);
  const full = r.backend.gate("midway", FULL);
  const daemon = await r.startDaemon();
  await full.reached(() => daemon.log.text);
  const note = async (label: string) => {
    await r.noteCommitted(label);
    await daemon.captured();
    const shipper = await daemon.shipper();
    await daemon.until("the change-set to be stored", () => shipper.isIdle);
  };
  await r.setRows("1", 1, SMALL_ROWS);
  await note("both ends");
  await r.setRows("0", 1, SMALL_ROWS);
  await note("back again");
  await r.writer.sql(`DELETE FROM pad WHERE id > ${SMALL_ROWS - 100}`);
  await r.writer.sql("PRAGMA incremental_vacuum");
  await note("shrunk");
  await r.writer.sql(`INSERT INTO pad SELECT id + 1000, body FROM pad WHERE id <= 50`);
  await note("grown");
  full.open();
  await daemon.synced();
  expect((await r.changeSets()).map(({ reader }) => reader.trailer.digest)).toEqual([null, null, null, null]);
  await r.setRows("2", 3);
  await r.noteCommitted("last");
  await daemon.synced();
  expect((await r.changeSets()).at(-1)?.reader.trailer.digest).not.toBeNull();
  expect([...(await r.restoreAll()).values()]).toEqual(["grown", "last"]);

  // The ledger file holds what the replica does: a comparison finds no difference.
  await daemon.stop();
  await r.stopWriter();
  const next = await r.startDaemon();
  await next.synced();
  expect(next.log.find(/compared the database/).map(({ fields }) => fields["differing"])).toEqual([0]);
  expect(await r.fulls()).toHaveLength(1);
}

/** A second full backup of a chain that has stopped midway: the first rows are read, the last ones are not. */
export interface Midway {
  readonly daemon: Daemon;
  readonly full: Gate;
  /** Resolves when the full backup has read all and waits for its n1, or, which it must not, is stored. */
  readonly hasReadAll: () => Promise<void>;
}

export async function beginFull(r: Replication, rows = SMALL_ROWS): Promise<Midway> {
  await r.makeRows(rows);
  const daemon = await r.startSynced();
  await r.noteCommitted("first");
  await r.setRows("1", 1);
  await daemon.synced();
  await r.noteCommitted("start");
  const full = r.backend.gate("midway", FULL);
  await daemon.passDay(r.clock);
  await full.reached(() => daemon.log.text);
  return { daemon, full, hasReadAll: await watchFull(r, daemon) };
}

export async function watchFull(r: Replication, daemon: Daemon): Promise<() => Promise<void>> {
  const before = r.backend.stored.filter((key) => FULL.test(key)).length;
  const shipper = await daemon.shipper();
  const untilStored = shipper.untilStored.bind(shipper);
  let isWaiting = false;
  shipper.untilStored = (...wanted) => {
    isWaiting = true;
    return untilStored(...wanted);
  };
  return async () => {
    const isStored = () => r.backend.stored.filter((key) => FULL.test(key)).length > before;
    await daemon.until("the full backup to have read all", () => isWaiting || isStored());
    if (isStored()) throw new Error("the full backup was stored before its n1");
  };
}

export async function secondFull(
  r: Replication,
): Promise<{ readonly settled: number; readonly last: number; readonly digest: string | null }> {
  const [, second] = await r.fulls();
  if (second === undefined) throw new Error(`there is no second full backup: ${await r.describeObjects()}`);
  return second.reader.trailer;
}

/** All restore points are right, and the newest of them comes from the second full backup. */
async function expectStates(r: Replication, states: readonly string[]): Promise<void> {
  expect([...(await r.restoreAll()).values()]).toEqual([...states]);
  const { plan } = await r.restore();
  expect(describe(plan.full)).toBe("full/0000000000000002.p");
}
