import { afterAll, beforeAll, expect, test } from "bun:test";
import { readFileSync, renameSync, rmSync } from "node:fs";
import { backgroundCheckpoints } from "../../src/sqlite/background-checkpoint.ts";
import { Application } from "./application.ts";
import { MARK_HOLD, type Scene, scene } from "./scene.ts";
import type { Shadow } from "./shadow.ts";
import { interposeSteps } from "./steps.ts";

// While a database is followed, its WAL stands at its path even when the application has gone. A file that takes the
// database's place then must not meet that WAL through us: SQLite would copy the old database over it.

let application: Application;
beforeAll(async () => {
  application = await Application.start();
});
afterAll(async () => await application[Symbol.asyncDispose]());

/** The application ends, and somebody puts another database in the place of its own. The bytes of that. */
function swap(s: Scene): Buffer {
  const other = application.connect(s.file("other.db"));
  other.run("CREATE TABLE other (body)", "INSERT INTO other VALUES (randomblob(100000))");
  other.close();
  s.db.close();
  const bytes = readFileSync(s.file("other.db"));
  renameSync(s.file("other.db"), s.path);
  return bytes;
}

/** We find out and let go, and the new file is as it was put there. The old WAL stays: SQLite does not delete it then. */
function expectUnharmed(s: Scene, shadow: Shadow, bytes: Buffer): void {
  expect(shadow.capture()).toMatchObject({ kind: "fault", fault: "file-replaced" });
  shadow[Symbol.dispose]();
  expect(Buffer.compare(readFileSync(s.path), bytes)).toBe(0);
}

test("a file that takes the database's place is let alone", async () => {
  await using s = await scene(application);
  using shadow = s.follow();
  s.commit();
  const bytes = swap(s);
  expectUnharmed(s, shadow, bytes);
});

test("the same in the middle of a checkpoint, at any step of it", async () => {
  // The first time nothing happens, and the steps are counted.
  let steps = 0;
  for (let at = -1; at < steps; at++) {
    await using s = await scene(application);
    using shadow = s.follow();
    s.commit();
    let bytes: Buffer | null = null;
    {
      using _ = interposeSteps((step) => {
        steps = Math.max(steps, step + 1);
        if (step === at) bytes = swap(s);
      });
      const { fault } = shadow.checkpointer.run();
      expect([null, "file-replaced"]).toContain(fault?.fault ?? null);
    }
    if (bytes !== null) expectUnharmed(s, shadow, bytes);
  }
  expect(steps).toBeGreaterThan(15);
});

test("a database that is removed in the middle of a checkpoint is a fault at the next capture", async () => {
  await using s = await scene(application);
  using shadow = s.follow();
  s.commit();
  {
    using _ = interposeSteps((_step, name) => {
      if (name === "beginImmediate") rmSync(s.path);
    });
    expect(shadow.checkpoint().outcome).toBe("behind");
  }
  expect(shadow.capture()).toMatchObject({ kind: "fault", fault: "file-missing" });
});

test("a checkpoint in a thread of its own copies all that the hold allows, and drops no lock", async () => {
  await using s = await scene(application);
  using shadow = s.follow();
  s.commit(2);
  expect(shadow.checkpointer.advance()).toBe(null);
  const locks = s.locks();
  expect(locks).toMatch(MARK_HOLD);
  await backgroundCheckpoints.passive(s.path);
  expect(s.locks()).toBe(locks);
  const { committed, backfilled } = s.db.checkpoint("NOOP");
  expect(backfilled).toBe(committed);
  s.judge(shadow);
});

test("a checkpoint in a thread that comes too late does nothing to the file that stands there by then", async () => {
  await using s = await scene(application);
  using shadow = s.follow();
  s.commit();
  const copying = backgroundCheckpoints.passive(s.path);
  const bytes = swap(s);
  await copying;
  expectUnharmed(s, shadow, bytes);
});
