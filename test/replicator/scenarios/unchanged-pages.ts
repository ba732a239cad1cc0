import { expect } from "bun:test";
import { unreachable } from "../gated-backend.ts";
import { CHANGE_SET, type Daemon, describe, pageWith, Replication } from "../replication.ts";
import { beginFull, SMALL_ROWS, secondFull, watchFull } from "./full-backups.ts";
import { beginLargeSet, LARGE_ROWS } from "./large-sets.ts";

/** What is left out of a change-set because the ledger proves it unchanged, and what must never be. */

/** Pages whose images are as the ledger says are not stored; a set of nothing else only moves the position on. */
export async function unchangedPagesAreDropped(): Promise<void> {
  await using r = await Replication.begin();
  await r.makeRows(20);
  const daemon = await r.startSynced();
  const before = (await r.cursor()).position;
  daemon.holdBack();
  await r.setRows("changed", 5, 6);
  await daemon.captured();
  await r.setRows("0", 5, 6);
  await daemon.captured();
  await daemon.letGo();
  await daemon.synced();
  expect(await r.changeSets()).toEqual([]);
  const { listCount } = r.backend;
  await daemon.stop();
  expect(r.backend.listCount).toBe(listCount);
  const after = await r.cursor();
  expect(after.index).toBe(1);
  expect(after.position?.frame).toBeGreaterThan(before?.frame ?? 0);

  const next = await r.startSynced();
  expect(next.log.find(/continuity is proven/)).toHaveLength(1);
  next.holdBack();
  await r.setRows("changed", 5);
  await next.captured();
  await r.setRows("0", 5);
  await r.setRows("changed", 6);
  await next.captured();
  await next.letGo();
  await next.synced();
  const [only, ...others] = await r.changeSets();
  expect(only?.reader.trailer).toMatchObject({ pageCount: 1, commits: 3 });
  expect(others).toEqual([]);
  await r.assertLatestIsLive();
}

/** A page changes, is read by a full backup, and changes back before its change-set is made. */
export async function pageChangesBackDuringFull(): Promise<void> {
  await using r = await Replication.begin();
  const { daemon, full, hasReadAll } = await beginFull(r);
  const put = r.backend.gate("before", CHANGE_SET);
  await r.setRows("2", 2);
  await r.noteCommitted("meanwhile");
  await put.reached();
  await r.setRows("changed", SMALL_ROWS);
  await daemon.captured();
  full.open();
  await hasReadAll();
  await r.setRows("0", SMALL_ROWS);
  await r.noteCommitted("changed back");
  await daemon.captured();
  put.open();
  await daemon.synced();
  const labels = [...(await r.restoreAll()).values()];
  // The page is as it was in "meanwhile", so the two states are one and the same file.
  expect(labels).toEqual(["first", "start", "changed back", "changed back"]);
  expect(describe((await r.restore()).plan.full)).toBe("full/0000000000000002.p");
  expect((await r.changeSets()).at(-1)?.reader.trailer).toMatchObject({ last: 4, pageCount: 1 });
}

/** The same while a set that fails is given back: what must be written stays so. */
export async function pageChangesBackInSetGivenBack(): Promise<void> {
  await using r = await Replication.begin();
  const { daemon, full, hasReadAll } = await beginFull(r, LARGE_ROWS);
  daemon.holdBack();
  await r.setAllRows("2");
  await daemon.captured();
  const put = r.backend.gate("midway", CHANGE_SET);
  await daemon.letGo();
  await put.reached();
  full.open();
  await hasReadAll();
  // All but the first row, which state 2 has in version 1, go back to what state 2 is.
  await r.setAllRows("0");
  await r.setRows("1", 1);
  await r.noteCommitted("start");
  await daemon.captured();
  put.fail(unreachable());
  await daemon.synced();
  const labels = [...(await r.restoreAll()).values()];
  expect(new Set(labels)).toEqual(new Set(["first", "start"]));
  const { plan } = await r.restore();
  expect(describe(plan.full)).toBe("full/0000000000000002.p");
}

/** A page waits with a new image, is read by a full backup, and changes back after its last read. */
export async function pageChangesBackAfterFull(): Promise<void> {
  await using r = await Replication.begin();
  await r.makeRows(SMALL_ROWS);
  const daemon = await r.startSynced();
  await r.noteCommitted("first");
  await r.setRows("1", 1);
  await daemon.synced();
  await r.noteCommitted("start");
  const put = r.backend.gate("before", CHANGE_SET);
  await r.setRows("2", 2);
  await put.reached();
  await r.noteCommitted("meanwhile");
  await r.setRows("changed", SMALL_ROWS);
  await daemon.captured();
  const hasReadAll = await watchFull(r, daemon);
  await daemon.passDay(r.clock);
  await hasReadAll();
  await r.setRows("0", SMALL_ROWS);
  await r.noteCommitted("changed back");
  await daemon.captured();
  put.open();
  await daemon.synced();
  expect([...(await r.restoreAll()).values()]).toEqual(["first", "start", "changed back", "changed back"]);
  expect(describe((await r.restore()).plan.full)).toBe("full/0000000000000002.p");
}

/** The same with a large set on its way, whose slice with that page is read after the full backup. */
export async function pageOfLargeSetChangesBackAfterFull(): Promise<void> {
  await using r = await Replication.begin();
  const { daemon, gate } = await beginLargeSet(r);
  const hasReadAll = await watchFull(r, daemon);
  // State 1 has a full backup, so this one needs a later label: by hand, since nothing was stored meanwhile.
  await daemon.passDay(r.clock);
  await daemon.until("the comparison", () => daemon.log.find(/nothing changed since/).length > 0);
  gate.open();
  await daemon.synced();
  const second = r.backend.gate("midway", CHANGE_SET);
  await r.setAllRows("2");
  await second.reached();
  await daemon.passDay(r.clock);
  await hasReadAll();
  await r.setRows("1", LARGE_ROWS);
  await r.noteCommitted("changed back");
  await daemon.captured();
  second.open();
  await daemon.synced();
  expect((await r.restoreAll()).get(4)).toBe("changed back");
  expect(describe((await r.restore()).plan.full)).toBe("full/0000000000000002.p");
}

/** The database shrinks before the last read of a full backup, and grows again after it to what it was. */
export async function pagesComeBackAfterFull(): Promise<void> {
  await using r = await Replication.begin({ writer: { autoVacuum: "incremental" } });
  await r.makeRows(SMALL_ROWS);
  const insert = "INSERT INTO pad VALUES (10000, CAST(printf('%.*c', 60000, 'x') AS BLOB))";
  await r.writer.sql(insert);
  const daemon = await r.startSynced();
  await r.noteCommitted("first");
  await r.setRows("1", 1);
  await daemon.synced();
  const put = r.backend.gate("before", CHANGE_SET);
  await r.setRows("2", 2);
  await put.reached();
  await r.noteCommitted("with it");
  await r.writer.sql("DELETE FROM pad WHERE id = 10000");
  await r.writer.sql("PRAGMA incremental_vacuum");
  await daemon.captured();
  const hasReadAll = await watchFull(r, daemon);
  await daemon.passDay(r.clock);
  await hasReadAll();
  await r.writer.sql(insert);
  await daemon.captured();
  put.open();
  await daemon.synced();
  expect(describe((await r.restore()).plan.full)).toBe("full/0000000000000002.p");
  await r.assertLatestIsLive();
}

/** Pages go and come back with the very images that they had. */
export async function pagesComeBackAsTheyWere(): Promise<void> {
  await using r = await Replication.begin({ writer: { autoVacuum: "incremental" } });
  await r.makeRows(20);
  const daemon = await r.startSynced();
  const blob = async (label: string) => {
    await r.writer.sql("INSERT INTO pad VALUES (1000, CAST(printf('%.*c', 60000, 'x') AS BLOB))");
    await daemon.synced();
    await r.noteCommitted(label);
  };
  await r.noteCommitted("without");
  await blob("with");
  await r.writer.sql("DELETE FROM pad WHERE id = 1000");
  await r.writer.sql("PRAGMA incremental_vacuum");
  await daemon.synced();
  await r.noteCommitted("without again");
  await blob("with again");
  const labels = [...(await r.restoreAll()).values()];
  expect(labels.at(0)).toMatch(/^without/);
  expect(labels.at(-1)).toMatch(/^with again/);
  await daemon.stop();
  await r.stopWriter();
  const next = await r.startSynced();
  expect(next.log.find(/compared the database/).map(({ fields }) => fields["differing"])).toEqual([0]);
}

/** A page of the file is altered by nobody's transaction; the next full backup finds it. */
export async function alteredPageIsFoundByFull(): Promise<void> {
  await using r = await Replication.begin();
  const { daemon, page } = await alterPage(r);
  await r.setRows("1", 2);
  await daemon.synced();
  await daemon.passDay(r.clock);
  await daemon.until("another full backup", () => daemon.log.find(/full backup stored/).length > 1);
  await daemon.synced();
  expect(daemon.log.find(/not what was stored/, "error").map(({ fields }) => fields["page"])).toEqual([page]);
  expect(await secondFull(r)).toMatchObject({ last: 2, settled: 3 });
  await r.assertLatestIsLive();
}

/** With nothing stored since the newest full backup the file is compared instead, which finds it as well. */
export async function alteredPageIsFoundByCheck(): Promise<void> {
  await using r = await Replication.begin();
  const { daemon, page } = await alterPage(r);
  await daemon.passDay(r.clock);
  await daemon.until("the comparison", () => daemon.log.find(/nothing changed since/).length > 0);
  await daemon.synced();
  expect(daemon.log.find(/not what was stored/, "error").map(({ fields }) => fields["page"])).toEqual([page]);
  expect(await r.fulls()).toHaveLength(1);
  await r.assertLatestIsLive();
}

/** The image that a full backup has read is gone again before the page is stored. */
export async function alteredPageIsAlteredBack(): Promise<void> {
  await using r = await Replication.begin();
  const { daemon, page } = await alterPage(r);
  await r.setRows("1", 2);
  await daemon.synced();
  await r.noteCommitted("first");
  const put = r.backend.gate("before", CHANGE_SET);
  await r.setRows("2", 2);
  await put.reached();
  await daemon.passDay(r.clock);
  await daemon.until("the page to be found", () => daemon.log.find(/not what was stored/, "error").length > 0);
  await r.overwriteInPage(page, 2048, "xxxxxxx");
  put.open();
  await daemon.until("another full backup", () => daemon.log.find(/full backup stored/).length > 1);
  await daemon.synced();
  expect(describe((await r.restore()).plan.full)).toBe("full/0000000000000002.p");
  await r.assertLatestIsLive();
}

/** In a page of a row, in its middle, with everything in the file and nobody looking. */
async function alterPage(r: Replication): Promise<{ daemon: Daemon; page: number }> {
  await r.makeRows(300);
  await r.writer.checkpoint("TRUNCATE");
  const daemon = await r.startSynced();
  const live = await r.noteCommitted("unaltered");
  const page = pageWith(live, "row 250 version");
  await r.overwriteInPage(page, 2048, "altered");
  return { daemon, page };
}
