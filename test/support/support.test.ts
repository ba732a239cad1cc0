import { Database } from "bun:sqlite";
import { expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { readFile, writeFile } from "node:fs/promises";
import { backoffDelayMs } from "../../src/util/backoff.ts";
import { eventually, withDeadline } from "./eventually.ts";
import { lockSummary, procLocks } from "./proc-locks.ts";
import { fc } from "./properties.ts";
import { runSeed, seededRandom, withSeed } from "./random.ts";
import { shortWaits } from "./short-waits.ts";
import { temporaryDirectory } from "./temporary-directory.ts";
import { sqliteTruncateCheckpointCopy } from "./truncate-checkpoint.ts";

test("a temporary directory is gone after its scope, with all it held", async () => {
  let path = "";
  {
    await using directory = await temporaryDirectory();
    path = directory.path;
    await writeFile(directory.file("a file"), "x");
    expect(existsSync(path)).toBe(true);
  }
  expect(existsSync(path)).toBe(false);
});

test("waiting ends when the condition holds, and says what it waited for when it never does", async () => {
  let calls = 0;
  expect(await eventually(() => (++calls === 3 ? "three" : null), { what: "the third call", pollMs: 1 })).toBe("three");
  const never = eventually(() => Promise.reject(new Error("no luck")), {
    what: "luck",
    deadlineMs: 30,
    pollMs: 1,
    explain: () => "as always",
  });
  await expect(never).rejects.toThrow("waited 30 ms for luck; it last threw: no luck; as always");
  expect(await withDeadline(Promise.resolve(7), { what: "seven" })).toBe(7);
  await expect(withDeadline(new Promise(() => {}), { what: "the end of time", deadlineMs: 10 })).rejects.toThrow(
    "waited 10 ms for the end of time",
  );
});

test("random numbers are repeated by their seed, and a failure names it", async () => {
  const draw = (seed: number): unknown => {
    const random = seededRandom(seed);
    return [
      random.next(),
      random.integer(-5, 5),
      [...random.bytes(7)],
      random.fork("a").next(),
      random.pick([1, 2, 3]),
    ];
  };
  expect(draw(42)).toEqual(draw(42));
  expect(draw(42)).not.toEqual(draw(43));
  expect(seededRandom(1).fork("a").next()).not.toBe(seededRandom(1).fork("b").next());
  const counts = [0, 0, 0];
  const random = seededRandom(5);
  for (let i = 0; i < 3000; i++) counts[random.integer(0, 2)] = (counts[random.integer(0, 2)] ?? 0) + 1;
  expect(Math.min(...counts)).toBeGreaterThan(0);
  await expect(withSeed(() => Promise.reject(new Error("oh")), 99)).rejects.toThrow(
    "oh\n(repeat with BAKELITE_TEST_SEED=99)",
  );
});

test("the run has the same seed each time, unless another is asked for, and properties take it", () => {
  const given = process.env["BAKELITE_TEST_SEED"];
  const seedWith = (value: string | undefined): number => {
    if (value === undefined) delete process.env["BAKELITE_TEST_SEED"];
    else process.env["BAKELITE_TEST_SEED"] = value;
    return runSeed();
  };
  try {
    expect([seedWith(undefined), seedWith(""), seedWith("77"), seedWith("4294967295")]).toEqual([1, 1, 77, 4294967295]);
    expect(seedWith("random")).toBe(seedWith("random"));
    expect(() => seedWith("-1")).toThrow("BAKELITE_TEST_SEED");
  } finally {
    seedWith(given);
  }
  const numbers = fc.array(fc.integer(), { minLength: 5 });
  expect(fc.readConfigureGlobal().seed).toBe(runSeed() | 0);
  expect(fc.sample(numbers, 10)).toEqual(fc.sample(numbers, 10));
});

test("waits before another attempt are short for a while, and as long as ever afterwards", () => {
  const longest = () => Math.max(...Array.from({ length: 100 }, () => backoffDelayMs(20, { baseMs: 100 })));
  {
    using _waits = shortWaits();
    expect(longest()).toBeLessThan(600);
    expect(longest()).toBeGreaterThan(0);
  }
  expect(longest()).toBeGreaterThan(600);
});

test("SQLite's locks of this process are seen under the names that SQLite gives them", async () => {
  await using directory = await temporaryDirectory();
  const path = directory.file("locks.db");
  expect(procLocks(process.pid, path)).toEqual([]);
  using database = new Database(path);
  database.run("PRAGMA journal_mode=WAL");
  database.run("CREATE TABLE t (x)");
  const locks = (): string => lockSummary(procLocks(process.pid, path));
  expect(locks()).toBe("database:shared(read) shm:dms(read)");
  database.run("BEGIN IMMEDIATE");
  expect(locks()).toMatch(/^database:shared\(read\) shm:write\(write\) shm:read\d\(read\) shm:dms\(read\)$/);
  database.run("ROLLBACK");
  expect(procLocks(1, path)).toEqual([]);
});

test("the judge gives the bytes after SQLite's own checkpoint and leaves the database as it is", async () => {
  await using directory = await temporaryDirectory();
  const path = directory.file("judged.db");
  using database = new Database(path);
  database.run("PRAGMA journal_mode=WAL");
  database.run("CREATE TABLE t (x)");
  for (let i = 0; i < 50; i++) database.run("INSERT INTO t VALUES (randomblob(3000))");
  const judged = await sqliteTruncateCheckpointCopy(path);
  expect(lockSummary(procLocks(process.pid, path))).toBe("database:shared(read) shm:dms(read)");
  database.run("PRAGMA wal_checkpoint(TRUNCATE)");
  expect(Buffer.compare(judged, await readFile(path))).toBe(0);
});
