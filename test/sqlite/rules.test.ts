import { afterAll, beforeAll, expect, test } from "bun:test";
import { WalFile } from "../../src/sqlite/wal-file.ts";
import { Application } from "./application.ts";
import { COMMIT, type Scene, scene, ZERO_HOLD } from "./scene.ts";
import type { Shadow } from "./shadow.ts";
import { replaceMethod } from "./steps.ts";

// Each rule of docs/following-the-wal.md has a story here that ends well with it, and in front of the same judge does not
// when the rule is left out: the proof that the other tests would notice.

let application: Application;
beforeAll(async () => {
  application = await Application.start();
});
afterAll(async () => await application[Symbol.asyncDispose]());

type Rule = "kept" | "broken";
type Story = (s: Scene, shadow: Shadow, rule: Rule) => void;

const DIFFERENT = /mixes two states|is damaged|differs from SQLite's/;

/** The story ends well when the rule is kept, and the judge complains when it is broken. */
async function compare(story: Story, complaint: string | RegExp): Promise<void> {
  await tell("kept", story);
  await expect(tell("broken", story)).rejects.toThrow(complaint);
}

async function tell(rule: Rule, story: Story): Promise<void> {
  await using s = await scene(application);
  using shadow = s.follow();
  // The WAL starts anew with the first commit of the story, and the map of frames is empty.
  expect(shadow.checkpoint().outcome).toBe("complete");
  story(s, shadow, rule);
  s.checkCommitted(shadow);
  s.judge(shadow);
}

/** Everything that is committed is backfilled by the application. */
function backfill(s: Scene): void {
  const { committed, backfilled } = s.db.checkpoint("PASSIVE");
  if (backfilled !== committed) throw new Error(`${backfilled} of ${committed} frames are backfilled`);
}

test("encoding before capture has reached the mark of the hold is refused, and would be noticed", async () => {
  const story: Story = (s, shadow, rule) => {
    s.commit();
    shadow.capture();
    s.commit();
    // The new hold lets the second commit into the file, which is not captured.
    shadow.follower.holds.advance();
    backfill(s);
    // As in a full backup, pages are asked for that stand in the file only.
    shadow.pending.addRange(1, shadow.follower.sizePages + 1);
    expect(shadow.follower.canResolve).toBe(false);
    if (rule === "kept") expect(() => shadow.write()).toThrow("images are resolved only when capture has reached");
    else Object.defineProperty(shadow.follower, "canResolve", { get: () => true });
    if (rule === "kept") shadow.capture();
    shadow.write();
    s.checkCommitted(shadow);
  };
  await compare(story, DIFFERENT);
});

test("not to look at the header of the WAL again after reading images would be noticed", async () => {
  const story: Story = (s, shadow, rule) => {
    s.commit(2);
    shadow.capture();
    shadow.follower.holds.advance();
    shadow.capture();
    backfill(s);
    shadow.follower.holds.advance();
    shadow.capture();
    expect(s.locks()).toBe(ZERO_HOLD);
    const header = new WalFile(s.path);
    header.refresh();
    const before = header.readHeader();
    header.close();
    // The WAL restarts, and is overwritten where our map of frames points.
    s.commit(3);
    const restore = rule === "kept" ? () => {} : replaceMethod(WalFile.prototype, "readHeader", () => () => before);
    try {
      shadow.write();
    } finally {
      restore();
    }
    s.checkCommitted(shadow);
  };
  await compare(story, DIFFERENT);
});

test("to stay in a zero hold after a commit would be noticed: nobody could backfill", async () => {
  const story: Story = (s, shadow, rule) => {
    if (rule === "broken") shadow.follower.holds.leaveZero = () => {};
    s.commit();
    shadow.sync();
    backfill(s);
  };
  await compare(story, "frames are backfilled");
});

test("a hold does not move on before all up to its mark is captured, and if it did that would be noticed", async () => {
  const story: Story = (s, shadow, rule) => {
    const { holds } = shadow.follower;
    s.commit();
    shadow.sync();
    s.commit();
    holds.advance();
    if (rule === "kept") {
      expect(() => holds.advance()).toThrow("a hold moves on only when all up to its mark is captured");
      shadow.capture();
    } else {
      holds.captured();
    }
    backfill(s);
    // A zero hold now: the next commit restarts the WAL.
    holds.advance();
    s.commit();
  };
  await compare(story, DIFFERENT);
});

test("a moment without any hold would be noticed", async () => {
  const story: Story = (s, shadow, rule) => {
    const { holds } = shadow.follower;
    s.commit();
    shadow.sync();
    if (rule === "broken") holds.standing.rollback();
    s.commit();
    s.db.checkpoint("PASSIVE");
    s.commit();
    holds.advance();
  };
  await compare(story, DIFFERENT);
});

test("to take images from the file before they are all there would be noticed", async () => {
  const story: Story = (s, shadow, rule) => {
    s.commit();
    shadow.capture();
    if (rule === "broken") shadow.follower.everythingIsInFile();
    shadow.write();
  };
  await compare(story, DIFFERENT);
});

test("to let the writers go on during steps 3 to 5 of a checkpoint would be noticed", async () => {
  const story: Story = (s, shadow, rule) => {
    const { holds } = shadow.follower;
    s.commit();
    shadow.sync();
    if (rule === "broken") holds.lockWriters = () => true;
    // While the standing hold goes and the other comes, an application commits and checkpoints.
    const stand = holds.standOnWriteLock.bind(holds);
    let done = "";
    holds.standOnWriteLock = () => {
      stand();
      done = [COMMIT, "PRAGMA wal_checkpoint(PASSIVE)", COMMIT].map((sql) => s.db.attempt(sql)).join();
    };
    shadow.checkpoint();
    expect(done).toContain(rule === "kept" ? "SQLITE_BUSY" : "done");
  };
  await compare(story, DIFFERENT);
});
