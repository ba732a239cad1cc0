import { afterAll, beforeAll, expect, test } from "bun:test";
import { readFileSync, truncateSync } from "node:fs";
import { frameOffset } from "../../src/sqlite/wal.ts";
import { startWriter } from "../oracle/writer-process.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";
import { copyDatabase } from "../support/truncate-checkpoint.ts";
import { Application } from "./application.ts";
import { commitWithoutChecksums, pythonLeavesBadChecksums } from "./bad-checksums.ts";
import { compareFiles } from "./hammer.ts";
import { COMMIT, MARK_HOLD, type Scene, scene, ZERO_HOLD } from "./scene.ts";
import { type Cursor, Shadow } from "./shadow.ts";

let application: Application;
beforeAll(async () => {
  application = await Application.start();
});
afterAll(async () => await application[Symbol.asyncDispose]());

/** Follows for a moment, and tells where it stood. */
function takeCursor(s: Scene): Cursor {
  using shadow = s.follow();
  return shadow.cursor;
}

function reasonOf(shadow: Shadow): string {
  return shadow.continuity.kind === "unproven" ? shadow.continuity.reason : "proven";
}

test("continuity is proven when nothing happened, and nothing is captured", async () => {
  await using s = await scene(application);
  const cursor = takeCursor(s);
  using shadow = s.follow({ cursor });
  expect(reasonOf(shadow)).toBe("proven");
  expect(shadow.sync()).toMatchObject({ kind: "captured", commits: 0 });
  expect(shadow.cursor).toEqual(cursor);
  s.judge(shadow);
});

test("continuity is proven when only commits followed, and just their pages are captured", async () => {
  await using s = await scene(application);
  const cursor = takeCursor(s);
  s.commit(2);
  using shadow = s.follow({ cursor });
  expect(reasonOf(shadow)).toBe("proven");
  expect(shadow.capture()).toMatchObject({ kind: "captured", commits: 2 });
  // Row 0 and two of the other three.
  expect(shadow.pending.size).toBe(3);
  shadow.write();
  s.checkCommitted(shadow);
  s.judge(shadow);
});

test("continuity is proven when commits followed that were checkpointed, and none that restarted the WAL", async () => {
  await using s = await scene(application);
  const cursor = takeCursor(s);
  s.commit(2);
  s.db.checkpoint("PASSIVE");
  using shadow = s.follow({ cursor });
  expect(s.locks()).toBe(ZERO_HOLD);
  expect(reasonOf(shadow)).toBe("proven");
  expect(shadow.sync()).toMatchObject({ kind: "captured", commits: 2 });
  s.commit();
  s.judge(shadow);
});

test("continuity is unproven without a position", async () => {
  await using s = await scene(application);
  takeCursor(s);
  using shadow = s.follow({ cursor: { position: null, sizePages: 3 } });
  expect(reasonOf(shadow)).toBe("no position is known");
  s.judge(shadow);
});

test("continuity is unproven when the WAL is gone, or empty", async () => {
  await using s = await scene(application);
  const cursor = takeCursor(s);
  s.db.checkpoint("TRUNCATE");
  using emptied = s.follow({ cursor });
  expect(reasonOf(emptied)).toBe("the WAL is absent or empty");
  s.judge(emptied);
  s.commit();
  // The last connection deletes it.
  s.db.close();
  using gone = s.follow({ cursor });
  expect(reasonOf(gone)).toBe("the WAL is absent or empty");
  expect(gone.sync()).toMatchObject({ kind: "captured", complete: true, commits: 0 });
});

test("continuity is unproven when the WAL was restarted, and for the cursor of another database", async () => {
  await using s = await scene(application);
  await using other = await scene(application);
  const cursor = takeCursor(s);
  const foreign = takeCursor(other);
  using confused = s.follow({ cursor: foreign });
  expect(reasonOf(confused)).toBe("the WAL was restarted");
  confused[Symbol.dispose]();
  s.db.checkpoint("PASSIVE");
  s.commit();
  using shadow = s.follow({ cursor });
  expect(reasonOf(shadow)).toBe("the WAL was restarted");
  s.judge(shadow);
});

test("continuity is unproven when frames were lost, however many others took their places under the same salts", async () => {
  await using s = await scene(application);
  const early = takeCursor(s);
  s.commit(3);
  const late = takeCursor(s);
  // As a power cut leaves it: the last commits never reached the disk.
  const path = s.file("after-power-cut.db");
  await copyDatabase(s.path, path);
  truncateSync(`${path}-wal`, frameOffset((early.position?.frame ?? 0) + 1, 4096));
  const db = application.connect(path);
  db.run("PRAGMA wal_autocheckpoint=0", "SELECT count(*) FROM tally");
  const attach = (cursor: Cursor) => {
    using shadow = new Shadow({ databasePath: path, shadowPath: s.file("shadow.db"), cursor });
    return reasonOf(shadow);
  };
  expect(attach(late)).toBe("the WAL is shorter than it was");
  expect(attach(early)).toBe("proven");
  for (let i = 0; i < 3; i++) db.run(COMMIT);
  expect(attach(late)).toBe("the WAL holds other frames than before");
  expect(attach(early)).toBe("proven");
  db.close();
});

test("frames without checksums are captured; a position at one proves nothing", async () => {
  await using directory = await temporaryDirectory("attach");
  const path = directory.file("app.db");
  await using writer = await startWriter({ database: path, id: 1, seed: 1, engine: "python", startPaused: true });
  await writer.sql("PRAGMA wal_autocheckpoint=0");
  await commitWithoutChecksums(writer);
  const hasFault = await pythonLeavesBadChecksums();
  using before = new Shadow({ databasePath: path, shadowPath: directory.file("shadow.db") });
  expect(before.sync().kind).toBe("captured");
  expect(before.follower.badChecksums > 0).toBe(hasFault);
  const { cursor } = before;
  before[Symbol.dispose]();
  using after = new Shadow({ databasePath: path, shadowPath: directory.file("shadow.db"), cursor });
  expect(reasonOf(after)).toBe(hasFault ? "the position's frame has no checksum" : "proven");
  expect(after.sync().kind).toBe("captured");
  after[Symbol.dispose]();
  expect((await writer.checkpoint("TRUNCATE")).busy).toBe(false);
  compareFiles(readFileSync(before.path), readFileSync(path), 4096);
  await writer.stop();
});

test("a restart of the WAL between a proven attach and the first capture is a fault, not a gap", async () => {
  await using s = await scene(application);
  const cursor = takeCursor(s);
  s.commit(2);
  s.db.checkpoint("PASSIVE");
  using shadow = s.follow({ cursor });
  expect(reasonOf(shadow)).toBe("proven");
  // Everything is backfilled, so that our hold is a zero hold, which does not forbid the restart.
  expect(s.locks()).toBe(ZERO_HOLD);
  s.commit();
  expect(shadow.capture()).toMatchObject({ kind: "fault", fault: "wal-chain-broken" });
  shadow[Symbol.dispose]();
  using again = s.follow({ cursor });
  expect(reasonOf(again)).toBe("the WAL was restarted");
  s.judge(again);
});

test("the same after a TRUNCATE that leaves the WAL empty", async () => {
  await using s = await scene(application);
  const cursor = takeCursor(s);
  s.commit(2);
  s.db.checkpoint("PASSIVE");
  using shadow = s.follow({ cursor });
  expect(reasonOf(shadow)).toBe("proven");
  expect(s.db.checkpoint("TRUNCATE").busy).toBe(false);
  expect(shadow.capture()).toMatchObject({ kind: "fault", fault: "wal-chain-broken" });
});

test("a restart after a proven attach at the newest commit is no gap", async () => {
  await using s = await scene(application);
  s.commit();
  s.db.checkpoint("PASSIVE");
  const cursor = takeCursor(s);
  using shadow = s.follow({ cursor });
  expect(reasonOf(shadow)).toBe("proven");
  expect(s.locks()).toBe(ZERO_HOLD);
  s.commit();
  s.db.checkpoint("TRUNCATE");
  s.commit();
  expect(shadow.sync()).toMatchObject({ kind: "captured", commits: 2 });
  expect(s.locks()).toMatch(MARK_HOLD);
  s.judge(shadow);
});

test("an unproven attach need not know the size: that of the file is corrected by the WAL's own history", async () => {
  await using s = await scene(application);
  s.grow(100_000);
  s.db.run("DELETE FROM filler", "VACUUM");
  s.grow(50_000);
  using shadow = s.follow();
  expect(shadow.follower.sizePages).toBe(Number(s.db.run("PRAGMA page_count")[0]?.["page_count"]));
  s.judge(shadow);
});

test("an attach that meets a WAL which restarts all the time is busy", async () => {
  await using s = await scene(application);
  using shadow = s.follow();
  const { follower } = shadow;
  follower.holds.count = () => ({ busy: true, committedFrames: 0, backfilledFrames: 0 });
  expect(() => follower.attach(null)).toThrow("the WAL restarted too often to attach");
  expect(follower.capture()).toEqual({ kind: "busy" });
});
