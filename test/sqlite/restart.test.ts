import { afterAll, beforeAll, expect, test } from "bun:test";
import { Application } from "./application.ts";
import { COMMIT, MARK_HOLD, type Scene, scene, ZERO_HOLD } from "./scene.ts";
import type { Shadow } from "./shadow.ts";
import { interposeSteps } from "./steps.ts";

// A zero hold forbids backfilling and allows a restart of the WAL; a mark hold the other way round.

let application: Application;
beforeAll(async () => {
  application = await Application.start();
});
afterAll(async () => await application[Symbol.asyncDispose]());

for (const mode of ["TRUNCATE", "RESTART"] as const) {
  test(`${mode} by the application under a zero hold, several times in a row, loses nothing`, async () => {
    await using s = await scene(application);
    using shadow = s.follow();
    s.commit();
    expect(shadow.checkpoint().outcome).toBe("complete");
    expect(s.locks()).toBe(ZERO_HOLD);
    const before = shadow.cursor.position?.salt;
    for (let i = 0; i < 3; i++) expect(s.db.checkpoint(mode).busy).toBe(false);
    expect(shadow.sync()).toMatchObject({ kind: "captured", complete: true, commits: 0 });
    s.commit(2);
    expect(shadow.sync()).toMatchObject({ kind: "captured", complete: true, commits: 2 });
    // No arithmetic on salts is used anywhere: TRUNCATE counts them up each time, RESTART leaves that to the next writer.
    const [first = 0, second = 0] = [before?.[0], shadow.cursor.position?.salt[0]];
    expect((second - first) >>> 0).toBe(mode === "TRUNCATE" ? 3 : 1);
    expect(s.locks()).toMatch(MARK_HOLD);
    s.checkCommitted(shadow);
    s.judge(shadow);
  });

  test(`${mode} by the application has to wait for a mark hold, and is busy when it does not`, async () => {
    await using s = await scene(application);
    using shadow = s.follow();
    s.commit();
    shadow.sync();
    expect(s.locks()).toMatch(MARK_HOLD);
    expect(s.db.checkpoint(mode)).toMatchObject({ busy: true });
    s.judge(shadow);
  });
}

test("commits and checkpoints in turn, unseen between a complete checkpoint and the next capture, lose nothing", async () => {
  await using s = await scene(application);
  using shadow = s.follow();
  for (let round = 0; round < 3; round++) {
    s.commit();
    expect(shadow.checkpoint().outcome).toBe("complete");
    s.db.checkpoint("TRUNCATE");
    s.commit(2);
    // The zero hold forbids to backfill these, so the WAL cannot restart over them.
    expect(s.db.checkpoint("PASSIVE").backfilled).toBe(0);
    expect(s.db.checkpoint("TRUNCATE").busy).toBe(true);
    s.commit();
    expect(shadow.sync()).toMatchObject({ kind: "captured", commits: 3 });
    s.checkCommitted(shadow);
  }
  s.judge(shadow);
});

test("each writer that finds everything backfilled restarts the WAL, whatever it makes of the salts", async () => {
  await using s = await scene(application);
  const other = s.connect();
  other.run("SELECT count(*) FROM tally");
  using shadow = s.follow();
  const salts = new Set<string>();
  for (const writer of [s.db, other, other, s.db, other, s.db]) {
    expect(shadow.checkpoint().outcome).toBe("complete");
    writer.run(COMMIT);
    expect(shadow.sync()).toMatchObject({ kind: "captured", commits: 1 });
    expect(shadow.cursor.position?.frame).toBe(shadow.follower.counts.committedFrames);
    salts.add(String(shadow.cursor.position?.salt));
  }
  expect(salts.size).toBe(6);
  s.judge(shadow);
});

test("a restart that starts with a transaction that is rolled back is followed", async () => {
  await using s = await scene(application, ["PRAGMA cache_size=2"]);
  using shadow = s.follow();
  shadow.checkpoint();
  s.db.run(
    "BEGIN IMMEDIATE",
    "INSERT INTO filler SELECT NULL, randomblob(3000) FROM tally AS x, tally AS y",
    "ROLLBACK",
  );
  expect(shadow.sync()).toMatchObject({ kind: "captured", complete: true, commits: 0 });
  s.commit();
  expect(shadow.sync()).toMatchObject({ kind: "captured", commits: 1 });
  s.judge(shadow);
});

test("when the WAL restarts while images are read, they are read from the file: State P (c)", async () => {
  await using s = await scene(application);
  using shadow = s.follow();
  s.commit();
  shadow.capture();
  backfillByApplication(s, shadow);
  expect(s.locks()).toBe(ZERO_HOLD);
  let images = 0;
  {
    using _ = interposeSteps((_number, name) => {
      if (name !== "readImage") return;
      // After the first image, all of the WAL that we were reading is overwritten.
      if (images++ === 1) s.commit(4);
    });
    shadow.write();
  }
  expect(images).toBeGreaterThan(1);
  s.checkCommitted(shadow);
  expect(shadow.sync()).toMatchObject({ kind: "captured", commits: 4 });
  s.judge(shadow);
});

/**
 * Everything is captured, and backfilled by the application and not by us; the hold moves on, and is a zero hold. The map
 * of frames is not emptied by that.
 */
function backfillByApplication(s: Scene, shadow: Shadow): void {
  shadow.follower.holds.advance();
  expect(shadow.capture().kind).toBe("captured");
  const { committed, backfilled } = s.db.checkpoint("PASSIVE");
  expect(backfilled).toBe(committed);
  shadow.follower.holds.advance();
  expect(shadow.capture().kind).toBe("captured");
}

test("a checkpoint by the application while our hold moves on loses nothing", async () => {
  await using s = await scene(application);
  using shadow = s.follow();
  s.commit();
  shadow.sync();
  s.commit();
  // The mark of this hold lies beyond what is captured.
  shadow.follower.holds.advance();
  let acts = 0;
  {
    using _ = interposeSteps((_number, name) => {
      if (name === "begin" && acts === 0) acts += s.db.checkpoint("PASSIVE").backfilled > 0 ? 1 : 0;
      else if (name === "noop" && acts === 1) acts += s.db.attempt(COMMIT) === "done" ? 1 : 0;
    });
    expect(shadow.sync()).toMatchObject({ kind: "captured" });
  }
  expect(acts).toBe(2);
  s.checkCommitted(shadow);
  s.judge(shadow);
});

test("a commit that slips in before our own RESTART is captured", async () => {
  await using s = await scene(application);
  using shadow = s.follow();
  s.commit();
  const reader = s.connect();
  reader.run("BEGIN", "SELECT count(*) FROM tally");
  expect(shadow.checkpoint().outcome).toBe("complete");
  // The reader is on the WAL, so this is appended and does not restart it.
  s.commit();
  const salt = String(shadow.cursor.position?.salt);
  expect(shadow.sync().kind).toBe("captured");
  expect(String(shadow.cursor.position?.salt)).toBe(salt);
  let restarts = 0;
  {
    using _ = interposeSteps((_number, name) => {
      if (name === "begin") reader.attempt("COMMIT");
      if (name !== "restart") return;
      restarts++;
      s.commit();
    });
    expect(shadow.checkpoint().outcome).toBe("complete");
  }
  expect(restarts).toBe(1);
  expect(shadow.sync()).toMatchObject({ kind: "captured", commits: 1 });
  s.judge(shadow);
});
