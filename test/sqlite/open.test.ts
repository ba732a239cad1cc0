import { afterAll, beforeAll, expect, test } from "bun:test";
import { readdirSync, readlinkSync } from "node:fs";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { convertToWal } from "../../src/sqlite/control.ts";
import { WalFollower } from "../../src/sqlite/follow.ts";
import { inspectDatabase } from "../../src/sqlite/inspect.ts";
import { BakeliteError } from "../../src/util/errors.ts";
import { lockSummary, procLocks } from "../support/proc-locks.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";
import { Application } from "./application.ts";
import { scene } from "./scene.ts";

let application: Application;
beforeAll(async () => {
  application = await Application.start();
});
afterAll(async () => await application[Symbol.asyncDispose]());

const NO_SINK = { resized() {}, page() {}, committed() {} };

/** The error of opening what stands at the path, after which no lock and no descriptor of ours may be left. */
function openingError(path: string): BakeliteError {
  try {
    WalFollower.open({ databasePath: path, sink: NO_SINK }).close();
  } catch (error) {
    if (!(error instanceof BakeliteError)) throw error;
    expect(lockSummary(procLocks(process.pid, path))).toBe("");
    expect(descriptorsOf(path)).toEqual([]);
    return error;
  }
  throw new Error("it was opened");
}

function descriptorsOf(path: string): readonly string[] {
  return readdirSync("/proc/self/fd").flatMap((descriptor) => {
    try {
      const target = readlinkSync(`/proc/self/fd/${descriptor}`);
      return target.startsWith(path) ? [target] : [];
    } catch {
      // The descriptor that listed the directory.
      return [];
    }
  });
}

test("a missing file and an empty one are not found, and nothing is created", async () => {
  await using directory = await temporaryDirectory();
  expect(openingError(directory.file("absent.db")).code).toBe("not-found");
  expect(inspectDatabase(directory.file("absent.db"))).toEqual({ kind: "missing" });
  await writeFile(directory.file("empty.db"), "");
  expect(openingError(directory.file("empty.db"))).toMatchObject({ code: "not-found" });
  expect(inspectDatabase(directory.file("empty.db"))).toEqual({ kind: "empty" });
  expect(readdirSync(directory.path)).toEqual(["empty.db"]);
});

test("what is not a SQLite database is unfit, and stays as it is", async () => {
  await using directory = await temporaryDirectory();
  const contents = {
    text: Buffer.from("To be, or not to be: that is the question.\n".repeat(100)),
    short: Buffer.from("SQLite format 3\0"),
    "no page size": databaseHeader({ pageSize: 1000 }),
    "a header and nothing more": databaseHeader({ pageSize: 4096 }),
  };
  for (const [name, bytes] of Object.entries(contents)) {
    const path = directory.file(name);
    await writeFile(path, bytes);
    expect(openingError(path).code, name).toBe("database-unfit");
    expect(Buffer.compare(await readFile(path), bytes), name).toBe(0);
  }
  expect(inspectDatabase(directory.file("text"))).toEqual({ kind: "not-sqlite" });
  await mkdir(directory.file("folder"));
  expect(openingError(directory.file("folder")).code).toBe("database-unfit");
});

function databaseHeader({ pageSize }: { pageSize: number }): Buffer {
  const bytes = Buffer.alloc(4096);
  bytes.write("SQLite format 3\0", 0, "latin1");
  bytes.writeUInt16BE(pageSize, 16);
  bytes.fill(2, 18, 20);
  return bytes;
}

test("a database that is not in WAL mode is unfit; its owner is told how to change that", async () => {
  await using directory = await temporaryDirectory();
  const path = directory.file("rollback.db");
  const db = application.connect(path);
  db.run("CREATE TABLE t (x)");
  const error = openingError(path);
  expect(error.code).toBe("database-unfit");
  expect(error.hint).toBe(`run: sqlite3 '${path}' 'PRAGMA journal_mode=WAL'`);
  expect(readdirSync(directory.path)).toEqual(["rollback.db"]);
  db.run("BEGIN IMMEDIATE");
  expect(() => convertToWal(path)).toThrow("cannot put the database into WAL mode while it is in use");
  db.run("ROLLBACK");
  convertToWal(path);
  expect(inspectDatabase(path)).toMatchObject({ kind: "sqlite", header: { isWal: true, pageSizeBytes: 4096 } });
  expect(db.run("SELECT * FROM t", "PRAGMA journal_mode")).toEqual([{ journal_mode: "wal" }]);
  db.close();
});

test("a database that an application holds with locking_mode=EXCLUSIVE is busy until it is let go", async () => {
  await using s = await scene(application);
  s.db.run("PRAGMA locking_mode=EXCLUSIVE");
  s.commit();
  const error = openingError(s.path);
  expect(error.code).toBe("database-busy");
  expect(error.hint).toContain("locking_mode=EXCLUSIVE");
  s.db.run("PRAGMA locking_mode=NORMAL");
  s.commit();
  using shadow = s.follow();
  s.judge(shadow);
});

test("while a database is followed, no application gets it for itself, and all others go on", async () => {
  await using s = await scene(application);
  using shadow = s.follow();
  s.db.run("PRAGMA locking_mode=EXCLUSIVE");
  expect(s.db.attempt("UPDATE tally SET n = n")).toBe("SQLITE_BUSY");
  s.db.run("PRAGMA locking_mode=NORMAL");
  s.commit();
  s.judge(shadow);
});

test("leaving WAL mode fails for the application while its database is followed, and works afterwards", async () => {
  await using s = await scene(application);
  using shadow = s.follow();
  expect(s.db.attempt("PRAGMA journal_mode=DELETE")).toBe("SQLITE_BUSY");
  expect(s.db.run("PRAGMA journal_mode")).toEqual([{ journal_mode: "wal" }]);
  s.commit();
  expect(shadow.sync().kind).toBe("captured");
  shadow[Symbol.dispose]();
  expect(s.db.run("PRAGMA journal_mode=DELETE")).toEqual([{ journal_mode: "delete" }]);
});

test("a path with spaces, quotes and non-ASCII letters is followed", async () => {
  await using directory: TemporaryDirectory = await temporaryDirectory();
  const path = directory.file("Kunden & 'Rechnungen' – été?#%20.db");
  const db = application.connect(path);
  db.run("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)");
  const pages: number[] = [];
  const follower = WalFollower.open({ databasePath: path, sink: { ...NO_SINK, page: (page) => pages.push(page) } });
  follower.attach(null);
  expect(follower.capture()).toMatchObject({ kind: "captured", complete: true });
  expect(pages).toContain(2);
  follower.close();
  db.close();
});

test("when the last application has gone and we detach, SQLite leaves one whole file and no WAL", async () => {
  await using s = await scene(application);
  using shadow = s.follow();
  s.commit();
  shadow.sync();
  s.db.close();
  shadow[Symbol.dispose]();
  expect(readdirSync(s.file("")).sort()).toEqual(["app.db", "shadow.db"]);
  expect(Buffer.compare(await readFile(s.file("app.db")), await readFile(s.file("shadow.db")))).toBe(0);
});
