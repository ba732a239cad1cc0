import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { Checkpointer } from "../../src/sqlite/checkpoint.ts";
import { Application, type ApplicationConnection } from "./application.ts";
import { COMMIT, MARK_HOLD, type Scene, scene, ZERO_HOLD } from "./scene.ts";
import { interposeSteps } from "./steps.ts";

let application: Application;
beforeAll(async () => {
  application = await Application.start();
});
afterAll(async () => await application[Symbol.asyncDispose]());

const READ = ["BEGIN", "SELECT count(*) FROM tally"] as const;

/** A reader of the application's that sees the newest commit until it is let go. */
function startReading(s: Scene): ApplicationConnection {
  const reader = s.connect();
  reader.run(...READ);
  return reader;
}

/** Both that the write lock is free, and that the follower still follows. */
function expectWritersToGoOn(s: Scene): void {
  expect(s.db.attempt(COMMIT)).toBe("done");
}

describe("the outcome of a checkpoint is", () => {
  test("complete when nobody is in the way; the next commit restarts the WAL", async () => {
    await using s = await scene(application);
    using shadow = s.follow();
    s.commit(3);
    const report = shadow.checkpoint();
    expect(report).toMatchObject({ outcome: "complete", fault: null });
    expect(report.lockMs).toBeGreaterThan(0);
    const { committed, backfilled } = s.db.checkpoint("NOOP");
    expect(backfilled).toBe(committed);
    expect(s.locks()).toBe(ZERO_HOLD);
    const before = shadow.cursor.position;
    expectWritersToGoOn(s);
    expect(shadow.sync()).toMatchObject({ commits: 1 });
    expect(shadow.cursor.position?.salt).not.toEqual(before?.salt);
    expect(shadow.cursor.position?.frame).toBeLessThan(before?.frame ?? 0);
    expect(s.locks()).toMatch(MARK_HOLD);
    s.judge(shadow);
  });

  test("deadline when a reader keeps a part of the WAL; writers waited that long and no longer", async () => {
    await using s = await scene(application);
    using shadow = s.follow();
    const reader = startReading(s);
    s.commit(3);
    const report = shadow.checkpoint();
    expect(report).toMatchObject({ outcome: "deadline", fault: null });
    expect(report.lockMs).toBeGreaterThanOrEqual(20);
    const { committed, backfilled } = s.db.checkpoint("NOOP");
    expect(backfilled).toBeLessThan(committed);
    expectWritersToGoOn(s);
    shadow.sync();
    s.checkCommitted(shadow);
    reader.run("COMMIT");
    expect(shadow.checkpoint().outcome).toBe("complete");
    s.judge(shadow);
  });

  test("deadline later, the further the WAL is beyond its limit", async () => {
    await using s = await scene(application);
    using shadow = s.follow();
    const reader = startReading(s);
    s.grow(100_000);
    shadow.sync();
    const waited = (limitBytes: number) => {
      let nowMs = 0;
      const { follower } = shadow;
      const report = new Checkpointer(follower, { limitBytes, nowMs: () => (nowMs += 0.25) }).run();
      expect(report.outcome).toBe("deadline");
      return report.lockMs;
    };
    const { committedBytes } = shadow.follower;
    const [atLimit, atTwice, beyond] = [1, 2, 100].map((times) => waited(committedBytes / times));
    expect(atLimit).toBeWithin(20, 25);
    expect(atTwice).toBeWithin(46, 52);
    expect(beyond).toBeWithin(100, 105);
    reader.run("COMMIT");
    s.judge(shadow);
  });

  test("busy, without having held it, while an application has the write lock", async () => {
    await using s = await scene(application);
    using shadow = s.follow();
    s.commit();
    const writer = s.connect();
    writer.run("BEGIN IMMEDIATE", COMMIT);
    expect(shadow.checkpoint()).toEqual({ outcome: "busy", lockMs: 0, fault: null });
    expect(s.locks()).toMatch(MARK_HOLD);
    writer.run("COMMIT");
    expect(shadow.checkpoint().outcome).toBe("complete");
    s.judge(shadow);
  });

  test("behind when more than 1 MiB was committed before the write lock was had; nothing is held then", async () => {
    await using s = await scene(application);
    using shadow = s.follow();
    {
      let grown = false;
      using _ = interposeSteps((_number, name) => {
        if (name !== "beginImmediate" || grown) return;
        grown = true;
        s.grow(700_000);
        s.grow(700_000);
      });
      expect(shadow.checkpoint()).toMatchObject({ outcome: "behind", fault: null });
    }
    expect(s.locks()).toMatch(MARK_HOLD);
    expectWritersToGoOn(s);
    expect(shadow.sync()).toMatchObject({ commits: 3 });
    expect(shadow.checkpoint().outcome).toBe("complete");
    s.judge(shadow);
  });

  test("complete when less than that was committed, and it is captured with writers waiting", async () => {
    await using s = await scene(application);
    using shadow = s.follow();
    {
      using _ = interposeSteps((_number, name) => {
        if (name === "beginImmediate") s.commit(2);
      });
      expect(shadow.checkpoint().outcome).toBe("complete");
    }
    expect(shadow.commits).toBeGreaterThanOrEqual(2);
    s.judge(shadow);
  });

  test("complete behind a large transaction that was rolled back, whose frames stand in the WAL yet", async () => {
    await using s = await scene(application, ["PRAGMA cache_size=2"]);
    using shadow = s.follow();
    for (let round = 0; round < 3; round++) {
      s.db.run("BEGIN IMMEDIATE", "INSERT INTO filler VALUES (NULL, zeroblob(3000000))", "ROLLBACK");
      s.commit();
      expect(shadow.sync()).toMatchObject({ commits: 1 });
      expect(shadow.follower.walFileBytes).toBeGreaterThan(2_500_000);
      expect(shadow.checkpoint().outcome).toBe("complete");
    }
    s.judge(shadow);
  });
});

test("no hold to take the write lock's place is a fault, so that the lock goes with the follower", async () => {
  await using s = await scene(application);
  using shadow = s.follow();
  s.commit();
  let nowMs = 0;
  const checkpointer = new Checkpointer(shadow.follower, { limitBytes: 1, nowMs: () => (nowMs += 50) });
  shadow.follower.holds.unlockWriters = () => s.throwBusy();
  expect(checkpointer.run()).toMatchObject({ outcome: "busy", fault: { fault: "wal-chain-broken" } });
  expect(s.locks()).toContain("shm:write(write)");
  shadow[Symbol.dispose]();
  expect(s.locks()).toBe("");
  expectWritersToGoOn(s);
});

test("a busy lock while the write lock is held, and the hold stands, gives the write lock back", async () => {
  await using s = await scene(application);
  using shadow = s.follow();
  s.commit();
  const { holds } = shadow.follower;
  const { countAside } = holds;
  holds.countAside = () => s.throwBusy();
  expect(shadow.checkpoint()).toEqual({ outcome: "busy", lockMs: 0, fault: null });
  expect(s.locks()).toMatch(MARK_HOLD);
  expectWritersToGoOn(s);
  holds.countAside = countAside;
  expect(shadow.checkpoint().outcome).toBe("complete");
  s.judge(shadow);
});

describe("a checkpoint is due", () => {
  test("when the WAL is larger than its limit and not all of it is backfilled", async () => {
    await using s = await scene(application);
    using shadow = s.follow({ limitBytes: 200_000 });
    expect(shadow.checkpointer.isDue).toBe(false);
    s.grow(200_000);
    expect(shadow.checkpointer.isDue).toBe(false);
    shadow.sync();
    expect(shadow.checkpointer.isDue).toBe(true);
    // Somebody else did it.
    shadow.follower.holds.advance();
    shadow.sync();
    s.db.checkpoint("PASSIVE");
    shadow.sync();
    expect(shadow.checkpointer.isDue).toBe(false);
    s.judge(shadow);
  });

  test("not again before a writer has restarted the WAL and filled it", async () => {
    await using s = await scene(application);
    using shadow = s.follow({ limitBytes: 200_000 });
    s.grow(200_000);
    shadow.sync();
    expect(shadow.checkpointIfDue()?.outcome).toBe("complete");
    shadow.sync();
    expect(shadow.checkpointIfDue()).toBe(null);
    s.commit();
    shadow.sync();
    expect(shadow.checkpointIfDue()).toBe(null);
    s.grow(200_000);
    shadow.sync();
    expect(shadow.checkpointIfDue()?.outcome).toBe("complete");
    s.judge(shadow);
  });

  test("again when a quarter of the limit was added, if a reader kept the writers from restarting the WAL", async () => {
    await using s = await scene(application);
    using shadow = s.follow({ limitBytes: 400_000 });
    s.grow(500_000);
    shadow.sync();
    const reader = startReading(s);
    expect(shadow.checkpointIfDue()?.outcome).toBe("complete");
    s.commit();
    shadow.sync();
    expect(shadow.follower.committedBytes).toBeGreaterThan(500_000);
    expect(shadow.checkpointer.isDue).toBe(false);
    s.grow(110_000);
    shadow.sync();
    expect(shadow.checkpointer.isDue).toBe(true);
    reader.run("COMMIT");
    s.judge(shadow);
  });
});

test("only where no writer restarted the WAL since the last complete checkpoint, RESTART is tried, for 50 ms at most", async () => {
  await using s = await scene(application);
  using shadow = s.follow({ limitBytes: 1 });
  const restarts = { count: 0 };
  using _ = interposeSteps((_number, name) => {
    if (name === "restart") restarts.count++;
  });
  // Readers that overlap: one is always on the WAL.
  let reader = startReading(s);
  const nextReader = () => {
    const next = startReading(s);
    reader.run("COMMIT");
    reader.close();
    reader = next;
  };
  s.commit();
  nextReader();
  expect(shadow.checkpoint().outcome).toBe("complete");
  expect(restarts.count).toBe(0);
  const salt = () => String(shadow.cursor.position?.salt);
  const first = salt();

  s.commit();
  shadow.sync();
  nextReader();
  expect(salt()).toBe(first);
  const waited = shadow.checkpoint();
  expect(waited).toMatchObject({ outcome: "complete", fault: null });
  expect(restarts.count).toBe(1);
  expect(waited.lockMs).toBeGreaterThanOrEqual(45);
  expectWritersToGoOn(s);
  shadow.sync();
  expect(salt()).toBe(first);

  reader.run("COMMIT");
  expect(shadow.checkpoint().outcome).toBe("complete");
  expect(restarts.count).toBe(2);
  s.commit();
  shadow.sync();
  expect(salt()).not.toBe(first);
  s.judge(shadow);
});
