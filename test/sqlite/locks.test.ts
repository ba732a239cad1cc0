import { afterAll, beforeAll, expect, test } from "bun:test";
import { closeSync, openSync } from "node:fs";
import { WalFollower } from "../../src/sqlite/follow.ts";
import { WalFile } from "../../src/sqlite/wal-file.ts";
import { Application } from "./application.ts";
import { MARK_HOLD, type Scene, scene, ZERO_HOLD } from "./scene.ts";
import { interposeSteps } from "./steps.ts";

// The judge is the kernel: /proc/locks.

let application: Application;
beforeAll(async () => {
  application = await Application.start();
});
afterAll(async () => await application[Symbol.asyncDispose]());

test("one read lock stands from open to close, whatever was done in between, and no other is left over", async () => {
  await using s = await scene(application);
  expect(s.locks()).toBe("");
  const follower = WalFollower.open({ databasePath: s.path, sink: { resized() {}, page() {}, committed() {} } });
  expect(s.locks()).toMatch(MARK_HOLD);
  follower.attach(null);
  expect(s.locks()).toMatch(MARK_HOLD);
  follower.capture();
  expect(s.locks()).toMatch(MARK_HOLD);
  follower.close();
  expect(s.locks()).toBe("");

  s.db.checkpoint("PASSIVE");
  using shadow = s.follow();
  expect(s.locks()).toBe(ZERO_HOLD);
  s.commit();
  expect(s.locks()).toBe(ZERO_HOLD);
  shadow.capture();
  expect(s.locks()).toMatch(MARK_HOLD);
  shadow.write();
  expect(s.locks()).toMatch(MARK_HOLD);
  s.commit();
  shadow.capture();
  shadow.follower.holds.advance();
  expect(s.locks()).toMatch(MARK_HOLD);
  shadow.capture();
  shadow[Symbol.dispose]();
  expect(s.locks()).toBe("");
});

test("every outcome of a checkpoint leaves one read lock", async () => {
  await using s = await scene(application);
  using shadow = s.follow();
  const other = s.connect();

  s.commit();
  other.run("BEGIN IMMEDIATE");
  expect(shadow.checkpoint().outcome).toBe("busy");
  expect(s.locks()).toMatch(MARK_HOLD);
  other.run("COMMIT", "BEGIN", "SELECT count(*) FROM tally");
  s.commit();
  expect(shadow.checkpoint().outcome).toBe("deadline");
  expect(s.locks()).toMatch(MARK_HOLD);
  other.run("COMMIT");
  {
    using _ = interposeSteps((_number, name) => {
      if (name === "beginImmediate") s.grow(1_500_000);
    });
    expect(shadow.checkpoint().outcome).toBe("behind");
  }
  expect(s.locks()).toMatch(MARK_HOLD);
  shadow.sync();
  expect(shadow.checkpoint().outcome).toBe("complete");
  expect(s.locks()).toBe(ZERO_HOLD);
  s.judge(shadow);
  expect(s.locks()).toBe("");
});

test("at every step between open and close a hold stands, and the write lock only from step 2 of a checkpoint to step 6", async () => {
  await using s = await scene(application);
  using shadow = s.follow();
  const seen: string[] = [];
  {
    using _ = interposeSteps((_number, name) => void seen.push(`${name}: ${s.locks()}`));
    for (let round = 0; round < 3; round++) {
      s.commit();
      shadow.sync();
      shadow.checkpoint();
      shadow.pending.addRange(1, shadow.follower.sizePages + 1);
      shadow.sync();
    }
  }
  expect(seen.length).toBeGreaterThan(50);
  for (const step of seen) expect(step).toMatch(/shm:read[0-4]\(read\)/);
  expect(seen.filter((step) => /checkpoint|recover|pending|reserved/.test(step))).toEqual([]);
  const withWriteLock = seen.filter((step) => step.includes("shm:write(write)"));
  expect(withWriteLock.length).toBeGreaterThan(10);
  for (const step of withWriteLock)
    expect(step).toMatch(/^(noop|passive|rollback|begin|refresh|readHeader|forEachFrame):/);
  s.judge(shadow);
});

test("faults and errors leave what was there, and close drops it", async () => {
  await using s = await scene(application);
  using shadow = s.follow();
  const { holds } = shadow.follower;
  s.commit();
  holds.advance();
  expect(() => holds.advance()).toThrow("invariant broken");
  expect(() => shadow.write()).toThrow("invariant broken");
  expect(() => holds.standing.passive()).toThrow("locked");
  expect(s.locks()).toMatch(MARK_HOLD);
  holds.count = () => ({ busy: false, committedFrames: 1, backfilledFrames: 0 });
  expect(shadow.capture()).toMatchObject({ kind: "fault", fault: "wal-shrank" });
  expect(s.locks()).toMatch(MARK_HOLD);
  shadow[Symbol.dispose]();
  expect(s.locks()).toBe("");
});

test("a second connection that cannot be had leaves no lock of the first", async () => {
  await using s = await scene(application);
  let connections = 0;
  using _ = interposeSteps((_number, name) => {
    // The hold begins after both connections were opened.
    if (name === "begin" && connections++ === 0) s.throwBusy();
  });
  expect(() => s.follow()).toThrow("the database is locked by another process");
  expect(s.locks()).toBe("");
});

test("reading the -wal through a descriptor of its own, and closing that, drops no lock", async () => {
  await using s = await scene(application);
  using shadow = s.follow();
  const before = s.locks();
  const wal = new WalFile(s.path);
  expect(wal.refresh()).toBe("same");
  expect(wal.readHeader()).not.toBe(null);
  wal.close();
  closeSync(openSync(`${s.path}-wal`, "r"));
  expect(s.locks()).toBe(before);
  s.judge(shadow);
});

test("a short connection beside the two, as in a checkpoint, drops no lock", async () => {
  await using s = await scene(application);
  using shadow = s.follow();
  const before = s.locks();
  const { committedFrames } = shadow.follower.counts;
  for (let i = 0; i < 3; i++) expect(shadow.follower.holds.countAside()).toMatchObject({ committedFrames });
  expect(s.locks()).toBe(before);
  s.judge(shadow);
});

test("the trap: closing any other descriptor of the database file or the -shm drops every lock on it", async () => {
  for (const [suffix, left] of [
    ["", /^shm:read\d\(read\) shm:dms\(read\)$/],
    ["-shm", /^database:shared\(read\)$/],
  ] as const) {
    await using s: Scene = await scene(application);
    using _ = s.follow();
    expect(s.locks()).toMatch(MARK_HOLD);
    closeSync(openSync(`${s.path}${suffix}`, "r"));
    expect(s.locks()).toMatch(left);
  }
});
