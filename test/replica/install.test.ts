import { afterAll, beforeAll, expect, mock, test } from "bun:test";
import { existsSync, readdirSync } from "node:fs";
import * as realFs from "node:fs/promises";
import { join } from "node:path";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";
import { makeDatabase, makeDatabaseWithWal, rowsOf } from "./sqlite-history.ts";

/** Calls that change the directory. */
const CHANGES = ["link", "rename", "unlink"] as const;

/** How many of them are still let through; then the "process" is dead: the call is not carried out and never answered. */
let callsLeft = Number.POSITIVE_INFINITY;
let hardLinks = true;
let died: () => void = () => {};

const real = { ...realFs };
const passing = Object.fromEntries(
  CHANGES.map((name) => [
    name,
    async (...parameters: readonly [string, string]) => {
      if (name === "link" && !hardLinks) throw Object.assign(new Error("no links here"), { code: "ENOTSUP" });
      if (callsLeft-- <= 0) {
        died();
        await new Promise(() => {});
      }
      return (real[name] as (...given: readonly string[]) => Promise<void>)(...parameters);
    },
  ]),
);
mock.module("node:fs/promises", () => ({ ...real, ...passing }));
const { installDatabase } = await import("../../src/replica/install.ts");

let directory: TemporaryDirectory;
beforeAll(async () => {
  directory = await temporaryDirectory("install");
});
afterAll(async () => {
  mock.module("node:fs/promises", () => real);
  await directory[Symbol.asyncDispose]();
});

const OLD_ROWS = ["in the file 0", "in the file 1", "in the file 2", "only in the wal"];
const NEW_ROWS = ["new 0", "new 1"];

interface Scene {
  readonly folder: string;
  readonly target: string;
  readonly staged: string;
}

let scenes = 0;
async function scene(before: "nothing" | "database" | "database with wal" | "orphaned wal"): Promise<Scene> {
  const name = `${scenes++}`;
  await real.mkdir(directory.file(name));
  const target = directory.file(name, "app.db");
  const staged = directory.file(name, "app.db.bakelite-restore-0");
  makeDatabase(staged, 2, "new");
  if (before === "database") makeDatabase(target, 1, "old");
  if (before === "database with wal" || before === "orphaned wal") {
    const other = await makeDatabaseWithWal(directory, join(name, "other.db"));
    await real.rename(`${other}-wal`, `${target}-wal`);
    await Bun.write(`${target}-shm`, "left over");
    if (before === "database with wal") await real.rename(other, target);
    for (const file of readdirSync(directory.file(name)))
      if (file.startsWith("other.db")) await real.unlink(directory.file(name, file));
  }
  return { folder: directory.file(name), target, staged };
}

/** Runs until the process dies before its `calls`-th change, or to its end; true when it came to its end. */
async function installDyingAfter(calls: number, { staged, target }: Scene): Promise<boolean> {
  const dead = new Promise<boolean>((resolve) => (died = () => resolve(false)));
  callsLeft = calls;
  try {
    return await Promise.race([installDatabase(staged, target, true).then(() => true), dead]);
  } finally {
    callsLeft = Number.POSITIVE_INFINITY;
  }
}

function asideOf({ folder }: Scene): string | undefined {
  return readdirSync(folder).find((name) => /^app\.db\.bakelite-replaced-[0-9a-f]{16}$/.test(name));
}

test.each(["nothing", "database", "orphaned wal"] as const)(
  "a crash at any moment leaves the old database or the new one: %s there before",
  async (before) => {
    for (let calls = 0; ; calls++) {
      const at = await scene(before);
      const finished = await installDyingAfter(calls, at);
      if (existsSync(at.target))
        expect(rowsOf(at.target)).toEqual(
          before === "database" && !finished && existsSync(at.staged) ? ["old 0"] : NEW_ROWS,
        );
      else expect([finished, before === "database"]).toEqual([false, false]);
      if (!finished) continue;
      expect(rowsOf(at.target)).toEqual(NEW_ROWS);
      expect(readdirSync(at.folder)).toEqual(["app.db"]);
      break;
    }
  },
);

test("a crash at any moment never lets the old -wal meet the new database, nor loses what only the -wal holds", async () => {
  const seen = new Set<string>();
  for (let calls = 0; ; calls++) {
    const at = await scene("database with wal");
    const finished = await installDyingAfter(calls, at);
    const aside = asideOf(at);
    if (existsSync(at.target)) {
      const isOld = existsSync(at.staged);
      seen.add(isOld ? "old" : "new");
      expect(rowsOf(at.target)).toEqual(isOld ? OLD_ROWS : NEW_ROWS);
    } else {
      seen.add("none");
      expect(rowsOf(join(at.folder, aside ?? "missing"))).toEqual(OLD_ROWS);
    }
    if (!finished) {
      // Another restore puts it right.
      const again = `${at.target}.bakelite-restore-1`;
      makeDatabase(again, 2, "new");
      await installDatabase(again, at.target, true);
    }
    expect(rowsOf(at.target)).toEqual(NEW_ROWS);
    expect([existsSync(`${at.target}-wal`), existsSync(`${at.target}-shm`)]).toEqual([false, false]);
    if (!finished) continue;
    expect(readdirSync(at.folder)).toEqual(["app.db"]);
    break;
  }
  expect([...seen].sort()).toEqual(["new", "none", "old"]);
});

test("without hard links, too, no crash lets the old -wal meet the new database", async () => {
  hardLinks = false;
  try {
    for (let calls = 0; ; calls++) {
      const at = await scene("database with wal");
      const finished = await installDyingAfter(calls, at);
      if (existsSync(at.target)) expect(rowsOf(at.target)).toEqual(existsSync(at.staged) ? OLD_ROWS : NEW_ROWS);
      else expect(asideOf(at)).toBeDefined();
      if (!finished) continue;
      expect(readdirSync(at.folder)).toEqual(["app.db"]);
      break;
    }
    const fresh = await scene("nothing");
    await installDatabase(fresh.staged, fresh.target, false);
    expect(rowsOf(fresh.target)).toEqual(NEW_ROWS);
  } finally {
    hardLinks = true;
  }
});

test("a database that comes into being while the restore runs is not replaced", async () => {
  const at = await scene("nothing");
  makeDatabase(at.target, 1, "somebody else's");
  await expect(installDatabase(at.staged, at.target, false)).rejects.toMatchObject({ code: "output-exists" });
  expect(rowsOf(at.target)).toEqual(["somebody else's 0"]);
});
