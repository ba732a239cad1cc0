import { Database } from "bun:sqlite";
import { expect, test } from "bun:test";
import { chmodSync, mkdirSync, symlinkSync, utimesSync, writeFileSync } from "node:fs";
import { findDatabases } from "../../src/setup/find-databases.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";

const within = (directory: TemporaryDirectory, more = {}) =>
  findDatabases({ roots: [directory.path], maxDepth: 3, maxEntries: 1000, deadlineMs: 10_000, ...more });

function make(path: string, wal = false): Database {
  const db = new Database(path, { create: true });
  if (wal) db.run("PRAGMA journal_mode=WAL");
  db.run("CREATE TABLE t (x)");
  return db;
}

test("finds databases by their content, the one written last first, and passes over everything else", async () => {
  await using directory = await temporaryDirectory("find");
  for (const folder of ["shop/data", "blog", "node_modules/x", "blog/.bakelite"])
    mkdirSync(directory.file(folder), { recursive: true });
  make(directory.file("shop/data/shop.sqlite3")).close();
  utimesSync(directory.file("shop/data/shop.sqlite3"), 1_000, 1_000);
  using live = make(directory.file("blog/content"), true);
  live.run("INSERT INTO t VALUES (1)");
  make(directory.file("node_modules/x/cache.db")).close();
  make(directory.file("blog/.bakelite/lock.db")).close();
  writeFileSync(directory.file("blog/text.db"), "no database");
  writeFileSync(directory.file("blog/empty.db"), "");
  mkdirSync(directory.file("blog/folder.db"));
  symlinkSync(directory.path, directory.file("blog/round.db"));
  Bun.spawnSync(["mkfifo", directory.file("blog/pipe.db")]);

  const found = await within(directory);
  expect(found.map(({ path, isWal }) => [path, isWal])).toEqual([
    [directory.file("blog/content"), true],
    [directory.file("shop/data/shop.sqlite3"), false],
  ]);
});

test("gives up quietly at its limits, and at what it may not read", async () => {
  await using directory = await temporaryDirectory("find");
  mkdirSync(directory.file("a/b/c/d"), { recursive: true });
  make(directory.file("a/b/c/d/deep.db")).close();
  make(directory.file("a/near.db")).close();
  chmodSync(directory.file("a/b"), 0);
  try {
    expect((await within(directory, { maxDepth: 1 })).map(({ path }) => path)).toEqual([directory.file("a/near.db")]);
    expect(await within(directory, { deadlineMs: -1 })).toEqual([]);
    expect(await within(directory, { roots: [directory.file("none")] })).toEqual([]);
  } finally {
    chmodSync(directory.file("a/b"), 0o755);
  }
});
