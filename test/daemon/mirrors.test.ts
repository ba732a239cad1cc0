import { Database } from "bun:sqlite";
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { rename, rm, writeFile } from "node:fs/promises";
import { dirname } from "node:path";
import { statePaths } from "../../src/state/layout.ts";
import { type MirrorEntry, readMirrorStatus } from "../../src/state/mirror-status.ts";
import {
  type DaemonOptions,
  type DaemonProcess,
  daemonConfig,
  runBakelite,
  startDaemon,
} from "../oracle/daemon-process.ts";
import { eventually } from "../support/eventually.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";

let directory: TemporaryDirectory;
let database: Database;
let daemon: DaemonProcess;

setDefaultTimeout(60_000);

beforeAll(async () => {
  directory = await temporaryDirectory("mirrors");
  database = new Database(directory.file("app.db"), { create: true, strict: true });
  database.run("PRAGMA journal_mode = WAL");
  database.run("CREATE TABLE work (number INTEGER PRIMARY KEY, content BLOB)");
  daemon = await start();
});

afterAll(async () => {
  await daemon[Symbol.asyncDispose]();
  database.close();
  await directory[Symbol.asyncDispose]();
});

function options(more: Partial<DaemonOptions> = {}): DaemonOptions {
  return {
    configPath: directory.file("bakelite.toml"),
    databases: [
      {
        name: "app",
        path: directory.file("app.db"),
        replicas: [directory.file("primary")],
        destinations: [{ type: "file", path: directory.file("mirror"), async: true }],
      },
    ],
    settings: { mirror_interval: "100ms", debounce: "20ms" },
    ...more,
  };
}

async function start(more: Partial<DaemonOptions> = {}): Promise<DaemonProcess> {
  return await startDaemon(options(more));
}

function work(rows: number): number {
  for (let i = 0; i < rows; i++) database.run("INSERT INTO work (content) VALUES (randomblob(3000))");
  return database.query<{ count: number }, []>("SELECT count(*) AS count FROM work").get()?.count ?? 0;
}

async function mirrorEntry(): Promise<MirrorEntry | null> {
  const read = await readMirrorStatus(statePaths(directory.file("app.db"), "app").mirror);
  return read.outcome === "read" ? (read.value.mirrors[0] ?? null) : null;
}

/** Everything committed until now is at the mirror. */
async function untilMirrored(): Promise<void> {
  const calledMs = Date.now();
  const status = await daemon.untilStatus(
    ({ oldest_unstored_at, last_synced_at, full_backup }) =>
      oldest_unstored_at === null && full_backup !== null && Date.parse(last_synced_at ?? "") > calledMs,
    { what: "everything to be stored", deadlineMs: 20_000 },
  );
  await eventually(
    async () => {
      const entry = await mirrorEntry();
      return entry?.state === "in sync" && (entry.index ?? 0) >= (status.index ?? 0);
    },
    { what: "the mirror to be in sync", deadlineMs: 30_000, explain: async () => JSON.stringify(await mirrorEntry()) },
  );
}

function objectsAt(place: string): readonly string[] {
  return readdirSync(directory.file(`${place}/app`), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => `${entry.parentPath.slice(directory.file(place).length)}/${entry.name}`)
    .sort();
}

/** What was stored at the primary a moment ago may be on its way while the mirror is still said to be in sync. */
async function untilMirrorHolds(wanted: () => readonly string[]): Promise<void> {
  await eventually(() => wanted().every((name) => objectsAt("mirror").includes(name)), {
    what: "the mirror to hold what it lacks",
    deadlineMs: 30_000,
    explain: () => JSON.stringify({ wanted: wanted(), there: objectsAt("mirror") }),
  });
}

async function run(...args: readonly string[]) {
  return await runBakelite("source", [...args, "--config", directory.file("bakelite.toml")]);
}

let restoreCount = 0;

/** How many rows a restore finds. */
async function restoredRows(...args: readonly string[]): Promise<number> {
  const output = directory.file(`restored-${++restoreCount}.db`);
  const { status, stderr } = await run("restore", "--db", "app", "--output", output, ...args);
  expect({ status, stderr }).toMatchObject({ status: 0 });
  using restored = new Database(output, { readonly: true });
  return restored.query<{ count: number }, []>("SELECT count(*) AS count FROM work").get()?.count ?? 0;
}

test("a mirror follows byte for byte, restores alone what the source holds, and status says so", async () => {
  const rows = work(5);
  await untilMirrored();
  // A change-set from before the first full backup is of use to nobody.
  const first = Math.min(...objectsAt("primary").flatMap((name) => Number(/full\/(\d+)/.exec(name)?.[1] ?? [])));
  const useful = (name: string) => !name.includes("/L0/") || Number(/(\d+)\.p$/.exec(name)?.[1]) > first;
  await untilMirrorHolds(() => objectsAt("primary").filter(useful));
  expect(objectsAt("mirror").filter(useful)).toEqual(objectsAt("primary").filter(useful));
  for (const name of objectsAt("mirror"))
    expect(readFileSync(directory.file(`mirror${name}`))).toEqual(readFileSync(directory.file(`primary${name}`)));
  expect(await restoredRows("--destination", "2")).toBe(rows);
  const { stdout } = await run("status");
  expect(stdout).toMatch(/^ {2}mirror \/.*\/mirror: in sync, last reconciled (?:now|\ds ago)$/m);
});

test("a mirror that is down holds up nothing, is named, and is in sync again when it is back", async () => {
  await rename(directory.file("mirror"), directory.file("unplugged"));
  await writeFile(directory.file("mirror"), "no directory");
  const rows = work(3);
  const status = await daemon.untilStatus(
    ({ destinations }) => destinations.some(({ async, state }) => async && state === "backing off"),
    { what: "a mirror that backs off", deadlineMs: 20_000 },
  );
  expect(status.state).toBe("live");
  expect(await restoredRows()).toBe(rows);
  expect((await run("status", "--check")).status).toBe(0);
  await rm(directory.file("mirror"));
  await rename(directory.file("unplugged"), directory.file("mirror"));
  await untilMirrored();
  expect(await restoredRows("--destination", directory.file("mirror"))).toBe(rows);
});

test("a wiped primary empties no mirror, and what the mirror alone holds restores", async () => {
  const before = objectsAt("mirror");
  const rows = work(0);
  expect((await daemon.stop()).tookMs).toBeLessThan(10_000);
  await rm(directory.file("primary"), { recursive: true });
  expect(await restoredRows()).toBe(rows);
  daemon = await start();
  const now = work(2);
  await untilMirrored();
  expect(objectsAt("mirror")).toEqual(expect.arrayContaining([...before]));
  expect(existsSync(directory.file("primary/app/CURRENT"))).toBe(true);
  expect(await restoredRows("--destination", "1")).toBe(now);
  expect(await restoredRows("--destination", "2")).toBe(now);
});

/** The newest state that some object at `place` leads to. */
function newestAt(place: string): number {
  return Math.max(...objectsAt(place).flatMap((name) => Number(/(\d+)\.\w+$/.exec(name)?.[1] ?? [])));
}

/** The daemon begins anew where only a mirror may hold what was, and the application goes on. How many rows there are then. */
async function beginAnew(): Promise<number> {
  await daemon.stop();
  await rm(directory.file("primary"), { recursive: true });
  await rm(dirname(statePaths(directory.file("app.db"), "app").mirror), { recursive: true });
  daemon = await start();
  return work(2);
}

test("when primary and local state are lost, a new history begins above the mirror's, and both can be restored", async () => {
  const old = work(1);
  await untilMirrored();
  const [before, newest] = [objectsAt("mirror"), newestAt("mirror")];
  const oldTime = new Date().toISOString();
  const rows = await beginAnew();
  await untilMirrored();
  const told = "a mirror holds an earlier history, and nothing else does: a new one begins above it";
  expect(daemon.said(told)).toHaveLength(1);
  const isOlder = (name: string) => Number(/(\d+)\.\w+$/.exec(name)?.[1]) <= newest;
  expect(objectsAt("primary").filter(isOlder)).toEqual([]);
  await untilMirrorHolds(() => [...before, ...objectsAt("primary")]);
  expect(await restoredRows()).toBe(rows);
  expect(await restoredRows("--destination", "2")).toBe(rows);
  expect(await restoredRows("--timestamp", oldTime)).toBe(old);
  expect(await run("verify", "--db", "app")).toMatchObject({ status: 0 });
  expect(await run("repair", "--db", "app")).toMatchObject({ status: 0 });
  expect(await restoredRows("--timestamp", oldTime, "--destination", "1")).toBe(old);
});

test("so it does where the mirror does not answer at that moment", async () => {
  await untilMirrored();
  const [before, newest] = [objectsAt("mirror"), newestAt("mirror")];
  await rename(directory.file("mirror"), directory.file("unplugged"));
  await writeFile(directory.file("mirror"), "no directory");
  const rows = await beginAnew();
  await daemon.untilSaid("full backup stored");
  await rm(directory.file("mirror"));
  await rename(directory.file("unplugged"), directory.file("mirror"));
  await untilMirrored();
  expect(newestAt("primary")).toBeGreaterThan(newest);
  await untilMirrorHolds(() => [...before, ...objectsAt("primary")]);
  expect(await restoredRows("--destination", "2")).toBe(rows);
});

test("restore takes from each destination what the others have lost, and says so", async () => {
  const rows = work(1);
  await untilMirrored();
  work(1);
  await untilMirrored();
  const [lost, damaged] = objectsAt("primary")
    .filter((name) => name.includes("/L0/"))
    .slice(-2);
  await rm(directory.file(`primary${lost}`));
  await rm(directory.file(`mirror${damaged}`));
  const output = directory.file("union.db");
  const { status, stdout } = await run("restore", "--db", "app", "--output", output, "--json");
  expect(status).toBe(0);
  expect(JSON.parse(stdout)).toMatchObject({ destinations: [{ state: "used" }, { state: "used", objects: 1 }] });
  using restored = new Database(output, { readonly: true });
  expect(restored.query("SELECT count(*) AS count FROM work").get()).toEqual({ count: rows + 1 });
  const unknown = await run("restore", "--db", "app", "--output", output, "--destination", "3");
  expect(unknown.status).toBe(2);
  expect(unknown.stderr).toMatch(
    /"3" is none of its destinations.*\n.*hint: one of 1 \(\/.*primary\), 2 \(\/.*mirror, a mirror\)/,
  );
  expect((await run("repair", "--db", "app")).status).toBe(0);
  expect(objectsAt("mirror")).toEqual(expect.arrayContaining([...objectsAt("primary")]));
});

test("a mirror that is away while everything is encrypted is filled with what is sealed, and nothing else is left there once reencrypt has seen it", async () => {
  const rows = work(0);
  await untilMirrored();
  await daemon.stop();
  const keyFile = directory.file("key.txt");
  expect(await run("keygen", "--output", keyFile)).toMatchObject({ status: 0 });
  await writeFile(directory.file("bakelite.toml"), daemonConfig(options({ keyFile })));
  await rename(directory.file("mirror"), directory.file("unplugged"));
  await writeFile(directory.file("mirror"), "no directory");
  expect(await run("reencrypt", "--db", "app")).toMatchObject({ status: 1 });
  await rm(directory.file("mirror"));
  await rename(directory.file("unplugged"), directory.file("mirror"));

  daemon = await start({ keyFile });
  await untilMirrored();
  expect(await restoredRows("--destination", "2")).toBe(rows);
  const isPlain = (name: string) => name.endsWith(".p");
  expect(objectsAt("primary").filter(isPlain)).toEqual([]);
  expect(objectsAt("mirror").filter(isPlain)).not.toEqual([]);
  await daemon.stop();
  expect(await run("reencrypt", "--db", "app")).toMatchObject({ status: 0 });
  expect(objectsAt("mirror").filter(isPlain)).toEqual([]);
  expect(await restoredRows("--destination", "2")).toBe(rows);
});
