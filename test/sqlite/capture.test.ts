import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { closeSync, openSync, readFileSync, renameSync, rmSync, statSync, writeFileSync, writeSync } from "node:fs";
import { WalFollower } from "../../src/sqlite/follow.ts";
import { walChecksum } from "../../src/sqlite/wal.ts";
import { Application } from "./application.ts";
import { COMMIT, type Scene, scene } from "./scene.ts";
import { interposeSteps } from "./steps.ts";

let application: Application;
beforeAll(async () => {
  application = await Application.start();
});
afterAll(async () => await application[Symbol.asyncDispose]());

const MIB = 1024 * 1024;

test("nothing is written to an idle database, its WAL or its counters by following it", async () => {
  await using s = await scene(application);
  using shadow = s.follow();
  s.commit();
  shadow.sync();
  // The -wal may be read at will; the database file only through the child, which has no locks to lose.
  const state = () => ({
    wal: Bun.hash(readFileSync(`${s.path}-wal`)),
    file: Bun.spawnSync(["cksum", s.path]).stdout.toString(),
    modifiedNs: [s.path, `${s.path}-wal`].map((path) => statSync(path, { bigint: true }).mtimeNs),
    dataVersion: s.db.run("PRAGMA data_version"),
    counts: s.db.checkpoint("NOOP"),
  });
  const before = state();
  for (let i = 0; i < 5; i++) {
    expect(shadow.sync()).toMatchObject({ kind: "captured", commits: 0 });
    shadow.follower.holds.advance();
  }
  shadow.pending.addRange(1, shadow.follower.sizePages + 1);
  expect(shadow.sync().kind).toBe("captured");
  expect(state()).toEqual(before);
  // A checkpoint changes the file, and nothing that an application would see as a change.
  expect(shadow.checkpoint().outcome).toBe("complete");
  expect(state().dataVersion).toEqual(before.dataVersion);
  expect(state().wal).toEqual(before.wal);
  s.judge(shadow);
});

test("an application that reads and then writes meets no SQLITE_BUSY_SNAPSHOT because of us", async () => {
  await using s = await scene(application);
  using shadow = s.follow();
  const reader = s.connect();
  for (const ours of [() => shadow.sync(), () => shadow.checkpoint(), () => shadow.sync()]) {
    reader.run("BEGIN", "SELECT n FROM tally WHERE id = 0");
    ours();
    reader.run(COMMIT, "COMMIT");
  }
  s.judge(shadow);
});

test("a commit that changes neither the size nor the header of the WAL is captured", async () => {
  await using s = await scene(application);
  s.grow(200_000);
  using shadow = s.follow();
  expect(shadow.checkpoint().outcome).toBe("complete");
  // The WAL starts anew in a file that is large enough.
  s.commit();
  shadow.sync();
  const look = () => ({
    size: statSync(`${s.path}-wal`).size,
    header: readFileSync(`${s.path}-wal`).toString("hex", 0, 32),
  });
  const before = look();
  s.commit();
  expect(look()).toEqual(before);
  expect(shadow.sync()).toMatchObject({ kind: "captured", commits: 1 });
  s.judge(shadow);
});

test("frames of a transaction that is open, or was rolled back, are not captured", async () => {
  await using s = await scene(application, ["PRAGMA cache_size=2"]);
  using shadow = s.follow();
  const { cursor } = shadow;
  const many = "INSERT INTO filler SELECT NULL, randomblob(3000) FROM tally AS x, tally AS y, tally";
  s.db.run("BEGIN IMMEDIATE", many);
  expect(statSync(`${s.path}-wal`).size).toBeGreaterThan(100_000);
  expect(shadow.sync()).toMatchObject({ kind: "captured", complete: true, commits: 0 });
  s.db.run("ROLLBACK");
  expect(shadow.sync()).toMatchObject({ kind: "captured", complete: true, commits: 0 });
  expect(shadow.cursor).toEqual(cursor);
  s.db.run("BEGIN IMMEDIATE", COMMIT, "SAVEPOINT inside", many, "ROLLBACK TO inside", "COMMIT");
  expect(shadow.sync()).toMatchObject({ kind: "captured", complete: true, commits: 1 });
  s.checkCommitted(shadow);
  s.judge(shadow);
});

describe("within one capture", () => {
  test("pages that appear and are freed in one transaction are followed", async () => {
    await using s = await scene(application);
    using shadow = s.follow();
    const before = shadow.follower.sizePages;
    s.db.run("BEGIN", "CREATE TABLE x (y)", "INSERT INTO x VALUES (zeroblob(400000))", "DROP TABLE x", "COMMIT");
    expect(shadow.capture()).toMatchObject({ commits: 1 });
    expect(shadow.follower.sizePages - before).toBeGreaterThan(90);
    for (let page = before + 1; page <= shadow.follower.sizePages; page++) expect(shadow.pending.has(page)).toBe(true);
    s.judge(shadow);
  });

  test("shrinking and growing again is followed", async () => {
    await using s = await scene(application, ["PRAGMA auto_vacuum=FULL"]);
    s.grow(300_000);
    using shadow = s.follow();
    s.db.run("DELETE FROM filler");
    s.grow(100_000);
    s.db.run("DELETE FROM filler");
    s.grow(200_000);
    expect(shadow.capture()).toMatchObject({ commits: 4 });
    s.judge(shadow);
  });

  test("shrinking for good is followed, and pages beyond the end are not asked for", async () => {
    await using s = await scene(application, ["PRAGMA auto_vacuum=INCREMENTAL"]);
    s.grow(300_000);
    using shadow = s.follow();
    s.db.run("UPDATE filler SET body = randomblob(250000)", "DELETE FROM filler", "PRAGMA incremental_vacuum");
    shadow.capture();
    expect(Math.max(...shadow.pending)).toBeLessThanOrEqual(shadow.follower.sizePages);
    s.judge(shadow);
  });

  test("VACUUM is followed", async () => {
    await using s = await scene(application);
    s.grow(300_000);
    s.grow(100_000);
    using shadow = s.follow();
    s.db.run("DELETE FROM filler WHERE id = 1", "VACUUM");
    s.commit();
    expect(shadow.capture()).toMatchObject({ commits: 3 });
    s.judge(shadow);
  });
});

test("a transaction larger than a slice counts only when all of it is read, and what follows it too", async () => {
  await using s = await scene(application);
  using shadow = s.follow();
  const { cursor, follower } = shadow;
  s.grow(500_000);
  s.commit();
  s.grow(1000);
  const slices: { kind: string; complete: boolean; commits: number; moved: boolean; canResolve: boolean }[] = [];
  do {
    const { kind, ...slice } = follower.capture(100_000);
    if (!("complete" in slice)) throw new Error(kind);
    const moved = follower.position?.frame !== cursor.position?.frame;
    slices.push({ kind, complete: slice.complete, commits: slice.commits, moved, canResolve: follower.canResolve });
  } while (slices.at(-1)?.complete === false);
  // 123 frames of the first transaction, 24 to a slice.
  const middle = { kind: "captured", complete: false, commits: 0, moved: false, canResolve: false };
  expect(slices.slice(0, -1)).toEqual([middle, middle, middle, middle, middle]);
  expect(slices.at(-1)).toEqual({ kind: "captured", complete: true, commits: 3, moved: true, canResolve: true });
  s.judge(shadow);
});

test("a transaction of 64 MiB is captured in slices, and nothing of it is told before its end", async () => {
  await using s = await scene(application);
  using shadow = s.follow();
  const { follower } = shadow;
  s.db.run(
    "WITH RECURSIVE c (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM c WHERE i < 64) INSERT INTO filler SELECT NULL, zeroblob(1024 * 1024) FROM c",
  );
  let slices = 0;
  for (;;) {
    const result = follower.capture();
    slices++;
    if (result.kind !== "captured") throw new Error(result.kind);
    if (result.complete) break;
    expect(result.commits).toBe(0);
    expect(shadow.pending.size).toBe(0);
    expect(follower.canResolve).toBe(false);
  }
  expect(slices).toBeGreaterThan(7);
  expect(follower.canResolve).toBe(true);
  expect(shadow.pending.size).toBeGreaterThan(64 * 256);
  expect(follower.committedBytes).toBeGreaterThan(64 * MIB);
  s.judge(shadow);
});

test("images are not resolved between a new hold and the capture of what was committed before it began", async () => {
  await using s = await scene(application);
  using shadow = s.follow();
  s.commit();
  shadow.capture();
  s.commit();
  shadow.follower.holds.advance();
  expect(shadow.follower.canResolve).toBe(false);
  expect(() => shadow.write()).toThrow("images are resolved only when capture has reached the hold's mark");
  expect(shadow.capture()).toMatchObject({ commits: 1 });
  expect(shadow.follower.canResolve).toBe(true);
  shadow.write();
  s.checkCommitted(shadow);
  s.judge(shadow);
});

test("commits after the capture are not in the images, wherever these come from", async () => {
  await using s = await scene(application);
  using shadow = s.follow();
  s.commit(2);
  shadow.capture();
  // Some of the pages that are asked for stand in the WAL, some in the file, and all get newer images now.
  s.commit(3);
  s.db.checkpoint("PASSIVE");
  shadow.pending.addRange(1, shadow.follower.sizePages + 1);
  shadow.write();
  s.checkCommitted(shadow);
  s.judge(shadow);
});

describe("following ends with a fault when", () => {
  const faults: Record<string, { readonly fault: string; readonly happens: (s: Scene) => void }> = {
    "another file takes the database's place": {
      fault: "file-replaced",
      happens(s) {
        Bun.spawnSync(["cp", s.path, s.file("copy.db")]);
        renameSync(s.file("copy.db"), s.path);
      },
    },
    "the database file is removed": { fault: "file-missing", happens: (s) => rmSync(s.path) },
    "the WAL is removed": { fault: "wal-replaced", happens: (s) => rmSync(`${s.path}-wal`) },
    "another WAL takes its place": {
      fault: "wal-replaced",
      happens(s) {
        writeFileSync(s.file("other"), readFileSync(`${s.path}-wal`));
        renameSync(s.file("other"), `${s.path}-wal`);
      },
    },
    "the WAL is cut off": {
      fault: "wal-chain-broken",
      happens(s) {
        s.commit();
        Bun.spawnSync(["truncate", "-s", "-1", `${s.path}-wal`]);
      },
    },
    "a committed frame has foreign salts": {
      fault: "wal-chain-broken",
      happens(s) {
        const end = statSync(`${s.path}-wal`).size;
        s.commit();
        overwrite(`${s.path}-wal`, end + 8, Uint8Array.of(1, 2, 3, 4));
      },
    },
    "a committed frame is of page 0": {
      fault: "wal-chain-broken",
      happens(s) {
        const end = statSync(`${s.path}-wal`).size;
        s.commit();
        overwrite(`${s.path}-wal`, end, new Uint8Array(4));
      },
    },
    "the last committed frame ends no transaction": {
      fault: "wal-chain-broken",
      happens(s) {
        s.commit();
        const end = statSync(`${s.path}-wal`).size;
        overwrite(`${s.path}-wal`, end - 4096 - 24 + 4, new Uint8Array(4));
      },
    },
    "the header of the WAL names another page size": {
      fault: "page-size-changed",
      happens(s) {
        s.commit();
        const header = readFileSync(`${s.path}-wal`).subarray(0, 32);
        header.writeUInt32BE(8192, 8);
        const view = new DataView(header.buffer, header.byteOffset, 32);
        const checksum = walChecksum(view, { start: 0, end: 24 }, [0, 0], (header[3] ?? 0) % 2 === 1);
        header.writeUInt32BE(checksum[0], 24);
        header.writeUInt32BE(checksum[1], 28);
        overwrite(`${s.path}-wal`, 0, header);
      },
    },
  };
  for (const [what, { fault, happens }] of Object.entries(faults)) {
    test(what, async () => {
      await using s = await scene(application);
      using shadow = s.follow();
      happens(s);
      expect(shadow.sync()).toMatchObject({ kind: "fault", fault });
      shadow[Symbol.dispose]();
      expect(s.locks()).toBe("");
    });
  }

  test("any of these is met in a checkpoint", async () => {
    await using s = await scene(application);
    using shadow = s.follow();
    rmSync(s.path);
    expect(shadow.checkpointer.run()).toMatchObject({ outcome: "busy", lockMs: 0, fault: { fault: "file-missing" } });
  });

  test("SQLite counts fewer frames than were read, or says that there is no WAL mode", async () => {
    for (const [committedFrames, fault] of [
      [1, "wal-shrank"],
      [-1, "left-wal-mode"],
    ] as const) {
      await using s = await scene(application);
      using shadow = s.follow();
      shadow.follower.holds.count = () => ({ busy: false, committedFrames, backfilledFrames: committedFrames });
      expect(shadow.sync()).toMatchObject({ kind: "fault", fault });
    }
  });
});

test("the trap: SQLite serves the WAL of the old file to whoever opens the new one in its place", async () => {
  await using s = await scene(application);
  using shadow = s.follow();
  Bun.spawnSync(["cp", s.path, s.file("copy.db")]);
  s.commit(5);
  renameSync(s.file("copy.db"), s.path);
  const visitor = s.connect();
  expect(visitor.run("SELECT n FROM tally WHERE id = 0")).toEqual([{ n: 5 }]);
  visitor.close();
  // Which is why we let go at once.
  expect(shadow.sync()).toMatchObject({ kind: "fault", fault: "file-replaced" });
});

function overwrite(path: string, offset: number, bytes: Uint8Array): void {
  const file = openSync(path, "r+");
  try {
    writeSync(file, bytes, 0, bytes.byteLength, offset);
  } finally {
    closeSync(file);
  }
}

test("a frame whose checksum is wrong counts as SQLite's own readers take it: committed", async () => {
  await using s = await scene(application);
  using shadow = s.follow();
  const end = statSync(`${s.path}-wal`).size;
  s.commit();
  overwrite(`${s.path}-wal`, end + 16, Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8));
  s.commit();
  expect(shadow.sync()).toMatchObject({ kind: "captured", commits: 2 });
  // The one that is wrong, and the one whose chain it breaks.
  expect(shadow.follower.badChecksums).toBe(2);
  s.judge(shadow);
});

test("a WAL that restarts at every look is busy, and captured when it rests", async () => {
  await using s = await scene(application);
  using shadow = s.follow();
  shadow.checkpoint();
  {
    using _ = interposeSteps((_number, name) => {
      if (name === "noop") s.db.run("PRAGMA wal_checkpoint(TRUNCATE)", COMMIT, "PRAGMA wal_checkpoint(PASSIVE)");
    });
    expect(shadow.follower.capture().kind).not.toBe("fault");
  }
  expect(shadow.sync().kind).toBe("captured");
  s.judge(shadow);
});

test("a capture that cannot leave a zero hold at once keeps it, and what it captured", async () => {
  await using s = await scene(application);
  using shadow = s.follow();
  shadow.checkpoint();
  s.commit();
  const { holds } = shadow.follower;
  const leaveZero = holds.leaveZero;
  holds.leaveZero = () => s.throwBusy();
  expect(shadow.sync()).toMatchObject({ kind: "captured", complete: true, commits: 1 });
  s.checkCommitted(shadow);
  expect(holds.mayBeZero).toBe(true);
  holds.leaveZero = leaveZero;
  expect(shadow.sync()).toMatchObject({ kind: "captured", complete: true, commits: 0 });
  expect(holds.mayBeZero).toBe(false);
  s.judge(shadow);
});

test("the trap: SQLite's NOOP and PASSIVE fail inside a transaction, so they need the idle connection", async () => {
  await using s = await scene(application);
  using shadow = s.follow();
  const { standing } = shadow.follower.holds;
  expect(() => standing.noop()).toThrow("locked");
  expect(() => standing.passive()).toThrow("locked");
  s.judge(shadow);
});

test("only one WAL is read when two databases are followed at once", async () => {
  await using one = await scene(application);
  await using two = await scene(application);
  using first = one.follow();
  using second = two.follow();
  one.commit();
  expect(second.sync()).toMatchObject({ commits: 0 });
  expect(first.sync()).toMatchObject({ commits: 1 });
  first[Symbol.dispose]();
  two.commit();
  expect(second.sync()).toMatchObject({ commits: 1 });
  two.judge(second);
});

test("nothing is told before the first capture, which begins at frame 1 when nothing was proven", async () => {
  await using s = await scene(application);
  const told: string[] = [];
  const sink = {
    resized: () => void told.push("resized"),
    page: () => void told.push("page"),
    committed: () => void told.push("committed"),
  };
  const follower = WalFollower.open({ databasePath: s.path, sink });
  follower.attach(null);
  expect(told).toEqual([]);
  expect(follower.position?.frame).toBe(0);
  follower.close();
});
