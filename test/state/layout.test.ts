import { expect, test } from "bun:test";
import {
  chmodSync,
  chownSync,
  mkdirSync,
  readdirSync,
  realpathSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import {
  ensureStateDirectory,
  inheritedOwner,
  resolveDatabasePath,
  stateDirectory,
  statePaths,
  sweepStateDirectory,
} from "../../src/state/layout.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";

const asRoot = process.geteuid?.() === 0;

test("state files are named after the entry, the lock after the database file", () => {
  expect(stateDirectory("/srv/data/app.db")).toBe("/srv/data/.bakelite");
  expect(statePaths("/srv/data/app.db", "shop")).toEqual({
    directory: "/srv/data/.bakelite",
    cursor: "/srv/data/.bakelite/shop.cursor",
    pages: "/srv/data/.bakelite/shop.pages",
    newPages: "/srv/data/.bakelite/shop.pages.new",
    status: "/srv/data/.bakelite/shop.status.json",
    verify: "/srv/data/.bakelite/shop.verify.json",
    mirror: "/srv/data/.bakelite/shop.mirror.json",
    lock: "/srv/data/.bakelite/app.db.lock",
  });
  expect(() => stateDirectory("app.db")).toThrow("absolute");
});

test("a database's path is resolved through every link, also before the file exists", async () => {
  await using directory = await temporaryDirectory("layout");
  mkdirSync(directory.file("a", "b"), { recursive: true });
  symlinkSync("a", directory.file("link"));
  symlinkSync("../b/app.db", directory.file("a", "b", "relative.db"));
  symlinkSync(directory.file("link", "b", "app.db"), directory.file("absolute.db"));
  const real = directory.file("a", "b", "app.db");
  const spellings = [
    real,
    directory.file("link", "b", "app.db"),
    directory.file("a", "b", "relative.db"),
    directory.file("absolute.db"),
  ];
  for (const spelling of spellings) expect(await resolveDatabasePath(spelling)).toBe(real);
  writeFileSync(real, "");
  for (const spelling of spellings) {
    expect(await resolveDatabasePath(spelling)).toBe(real);
    expect(await resolveDatabasePath(spelling)).toBe(realpathSync(spelling));
  }
});

test("a path whose folder is missing, or whose links go round, is refused with the next step", async () => {
  await using directory = await temporaryDirectory("layout");
  await expect(resolveDatabasePath(directory.file("none", "app.db"))).rejects.toMatchObject({
    code: "not-found",
    subject: directory.file("none", "app.db"),
    hint: expect.stringContaining("create"),
  });
  symlinkSync(directory.file("two"), directory.file("one"));
  symlinkSync(directory.file("one"), directory.file("two"));
  await expect(resolveDatabasePath(directory.file("one"))).rejects.toMatchObject({ code: "io" });
});

test("the state directory is made once, 0700, and an existing one keeps its mode", async () => {
  await using directory = await temporaryDirectory("layout");
  const path = directory.file("app.db");
  const old = process.umask(0);
  try {
    expect(await ensureStateDirectory(path)).toBe(directory.file(".bakelite"));
  } finally {
    process.umask(old);
  }
  expect(statSync(directory.file(".bakelite")).mode & 0o7777).toBe(0o700);
  chmodSync(directory.file(".bakelite"), 0o750);
  await ensureStateDirectory(path);
  expect(statSync(directory.file(".bakelite")).mode & 0o7777).toBe(0o750);
  await expect(ensureStateDirectory(directory.file("none", "app.db"))).rejects.toMatchObject({ name: "BakeliteError" });
  writeFileSync(directory.file("file"), "");
  await expect(ensureStateDirectory(directory.file("file", "app.db"))).rejects.toMatchObject({ code: "io" });
});

test.skipIf(!asRoot)(
  "run as root, the state directory follows the database's owner, and files follow the directory's",
  async () => {
    await using directory = await temporaryDirectory("layout");
    chownSync(directory.path, 1111, 2222);
    const path = directory.file("app.db");
    const ownerOf = (file: string) => [statSync(file).uid, statSync(file).gid];
    await ensureStateDirectory(path);
    expect(ownerOf(directory.file(".bakelite"))).toEqual([1111, 2222]);
    writeFileSync(path, "");
    chownSync(path, 3333, 4444);
    await ensureStateDirectory(path);
    expect(ownerOf(directory.file(".bakelite"))).toEqual([3333, 4444]);
    expect(await inheritedOwner(directory.file(".bakelite"))).toEqual({ uid: 3333, gid: 4444 });
  },
);

test("the sweep removes old leftovers of interrupted writes, and nothing else", async () => {
  await using directory = await temporaryDirectory("layout");
  const names = [
    ".app.cursor.0123456789ab.tmp",
    ".app.status.json.ba9876543210.tmp",
    "app.cursor",
    ".tmp",
    "app.pages.new",
  ];
  for (const name of names) writeFileSync(directory.file(name), "");
  utimesSync(directory.file(".app.cursor.0123456789ab.tmp"), 1000, 1000);
  utimesSync(directory.file("app.cursor"), 1000, 1000);
  await sweepStateDirectory(directory.path, { olderThanMs: 3_600_000, nowMs: Date.now() });
  expect(readdirSync(directory.path).toSorted()).toEqual(names.slice(1).toSorted());
  await sweepStateDirectory(directory.file("none"), { olderThanMs: 0, nowMs: Date.now() });
});
