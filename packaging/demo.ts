// `npm run demo`: a shop writes to its database in a process of its own while bakelite backs it up. The daemon is killed, the
// shop has an accident, and then loses its database; each time what is restored is compared with what the shop had.
// Everything happens in a temporary folder that is gone afterwards. Any difference ends it with status 1.
import { Database } from "bun:sqlite";
import { existsSync } from "node:fs";
import { mkdtemp, readdir, rm, stat, writeFile } from "node:fs/promises";
import { constants, tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { type Content, contentDigest } from "./demo-content.ts";
import { Daemon, endAll, run, ShopProcess } from "./demo-processes.ts";

const ROOT = resolve(import.meta.dir, "..");
/** A commit is stored this soon even on a slow machine, unless the daemon is down. */
const MOST_BEHIND_MS = 5000;

const { values: flags } = parseArgs({
  options: {
    /** Use this one rather than build one. */
    executable: { type: "string" },
  },
});

const startedMs = performance.now();
let folder: string | null = null;
let isLeaving = false;
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const)
  process.on(signal, () => void leave(128 + constants.signals[signal]));
try {
  await demonstrate();
} catch (error) {
  // What fails because a signal has ended our processes is no failure.
  if (!isLeaving) console.error(`\nThe demo FAILED: ${error instanceof Error ? error.message : String(error)}`);
  await leave(1);
}
await leave(0);

async function demonstrate(): Promise<void> {
  const executable = flags.executable ?? (await build());
  const place = await makePlace();
  chapter("A shop takes orders, and bakelite backs its database up");
  const shop = await ShopProcess.open(place.database);
  say(`the shop opens with ${mebibytes(await sizeOf(place.database, "-wal"))}: ${place.database}`);
  const daemon = new Daemon(executable, place.config);
  await daemon.untilStored(shop.last.atMs);
  say(`the daemon (process ${daemon.pid}) has stored a full backup and all since`);
  await shop.untilOrders(300);
  say(`${shop.last.orders} orders are taken, and ${await countObjects(place.backups, "L0")} change-sets stored`);

  const successor = await killDaemon({ executable, place, shop, daemon });
  await undoAccident({ executable, place, shop, daemon: successor });
  await loseDatabase({ executable, place, shop, daemon: successor });

  chapter("All of it was as it should be");
  const lines = {
    orders: `${shop.last.orders} taken in ${shop.last.commit} transactions; none lost`,
    stored: `1 full backup and ${await countObjects(place.backups, "L0")} change-sets, ${mebibytes(await sizeOfFolder(place.backups))}`,
    time: `${since(startedMs)}${flags.executable === undefined ? ", with building the executable" : ""}`,
  };
  for (const [name, value] of Object.entries(lines)) console.log(`          ${name.padEnd(8)}${value}`);
}

interface Scene {
  readonly executable: string;
  readonly place: Place;
  readonly shop: ShopProcess;
  readonly daemon: Daemon;
}

/** The shop goes on while no daemon runs; the next one ships what was missed, from what it finds on disk. */
async function killDaemon({ executable, place, shop, daemon }: Scene): Promise<Daemon> {
  chapter("The daemon is killed with SIGKILL, and started again");
  const killedAt = shop.last.orders;
  await daemon.kill();
  say(`order ${killedAt}: killed; the shop does not notice`);
  await shop.untilOrders(killedAt + 200);
  const { orders, atMs } = shop.last;
  const startingMs = performance.now();
  const successor = new Daemon(executable, place.config);
  await successor.untilStored(atMs);
  say(
    `order ${orders}: started again; the ${orders - killedAt} orders of its absence are stored after ${since(startingMs)}`,
  );
  const fullBackups = await countObjects(place.backups, "full");
  if (fullBackups !== 1) throw new Error(`there are ${fullBackups} full backups, and one is all that it takes`);
  say("it went on from where the other one was: there is still the one full backup");
  await shop.untilOrders(shop.last.orders + 250);
  return successor;
}

/** A point in time, restored beside the live database while the shop goes on and the daemon ships. */
async function undoAccident({ executable, place, shop, daemon }: Scene): Promise<void> {
  chapter("Somebody deletes every order, and the moment before is wanted back");
  const { atMs, orders } = await shop.accident();
  const deletedMs = performance.now();
  await daemon.untilStored(atMs);
  say(`order ${orders}: DELETE FROM purchase, at ${clockTime(atMs)}; that is stored too, ${since(deletedMs)} later`);
  const output = join(place.folder, "before.db");
  const moment = new Date(atMs - 1).toISOString();
  const restored = await restore({
    executable,
    place,
    shop,
    output,
    args: ["--timestamp", moment, "--output", output],
  });
  const behindMs = atMs - restored.atMs;
  if (behindMs <= 0 || behindMs > MOST_BEHIND_MS) throw new Error(`it is from ${behindMs} ms before the accident`);
  const { count } = countPurchases(output);
  if (count === 0) throw new Error("it holds no orders");
  say(`it is from ${behindMs} ms before the accident, with ${count} orders on file`);
  await shop.untilOrders(shop.last.orders + 100);
}

/** The latest state, restored to where it was. */
async function loseDatabase({ executable, place, shop, daemon }: Scene): Promise<void> {
  chapter("The shop loses its database");
  const end = await shop.close();
  const stoppingMs = performance.now();
  await daemon.stop();
  say(`order ${end.orders}: the shop closes; the daemon ships the rest and ends, in ${since(stoppingMs)}`);
  for (const suffix of ["", "-wal", "-shm"]) await rm(`${place.database}${suffix}`, { force: true });
  await rm(join(place.folder, ".bakelite"), { recursive: true });
  say("deleted shop.db, and all that the daemon kept beside it");
  const restored = await restore({ executable, place, shop, output: place.database, args: ["--if-db-not-exists"] });
  if (restored.commit !== end.commit) throw new Error(`commits ${restored.commit + 1} to ${end.commit} are missing`);
  say("that was the shop's last commit: nothing is lost");
}

interface Place {
  readonly folder: string;
  readonly database: string;
  readonly backups: string;
  readonly config: string;
}

async function makePlace(): Promise<Place> {
  folder = await mkdtemp(join(tmpdir(), "bakelite-demo-"));
  const [database, backups, config] = [join(folder, "shop.db"), join(folder, "backups"), join(folder, "bakelite.toml")];
  const lines = [
    "[[database]]",
    'name = "shop"',
    `path = ${JSON.stringify(database)}`,
    "",
    "  [[database.backends]]",
    '  type = "file"',
    `  path = ${JSON.stringify(backups)}`,
  ];
  await writeFile(config, `${lines.join("\n")}\n`);
  return { folder, database, backups, config };
}

async function build(): Promise<string> {
  console.log("Building the executable");
  const told = await run([process.execPath, join(ROOT, "packaging", "build.ts")]);
  say(`${told.trim()}, in ${since(startedMs)}`);
  return join(ROOT, "dist", "bakelite");
}

interface RestoreOrder {
  readonly executable: string;
  readonly place: Place;
  readonly shop: ShopProcess;
  readonly output: string;
  readonly args: readonly string[];
}

/** Runs `bakelite restore`, and holds what it gives against what the shop had after the same commit; gives that. */
async function restore({ executable, place, shop, output, args }: RestoreOrder): Promise<Content> {
  const command = ["restore", "--db", "shop", ...args];
  say(`bakelite ${command.join(" ").replaceAll(`${place.folder}/`, "")}`);
  const restoringMs = performance.now();
  const told = JSON.parse(await run([executable, ...command, "--json", "--config", place.config])) as RestoreTold;
  const took = since(restoringMs);
  using db = new Database(output, { readonly: true });
  const integrity = db.query<{ integrity_check: string }, []>("PRAGMA integrity_check").get()?.integrity_check;
  if (integrity !== "ok") throw new Error(`SQLite's integrity_check of the restored database says: ${integrity}`);
  const commit = db.query<{ commits: number }, []>("SELECT commits FROM book").get()?.commits ?? 0;
  const had = shop.after(commit);
  const { digest, rows } = contentDigest(db);
  if (had === null || Buffer.from(digest).toString("hex") !== had.digest)
    throw new Error(`the restored database is not what the shop had after its commit ${commit}`);
  say(`restored ${mebibytes(told.size_bytes)} in ${took}: state ${told.restore_point.index}; integrity_check: ok`);
  say(`all ${rows} rows are as the shop had them after commit ${commit} (SHA-256 ${had.digest.slice(0, 8)}…)`);
  return had;
}

/** Of what `bakelite restore --json` says. */
interface RestoreTold {
  readonly restore_point: { readonly index: number };
  readonly size_bytes: number;
}

function countPurchases(path: string): { readonly count: number } {
  using db = new Database(path, { readonly: true });
  return db.query<{ count: number }, []>("SELECT count(*) AS count FROM purchase").get() ?? { count: 0 };
}

async function countObjects(backups: string, kind: "full" | "L0"): Promise<number> {
  const path = join(backups, "shop", kind);
  return existsSync(path) ? (await readdir(path)).length : 0;
}

async function sizeOf(path: string, ...companions: readonly string[]): Promise<number> {
  let total = 0;
  for (const suffix of ["", ...companions]) total += (await stat(`${path}${suffix}`)).size;
  return total;
}

async function sizeOfFolder(path: string): Promise<number> {
  let total = 0;
  for (const entry of await readdir(path, { recursive: true, withFileTypes: true }))
    if (entry.isFile()) total += await sizeOf(join(entry.parentPath, entry.name));
  return total;
}

function chapter(title: string): void {
  console.log(`\n${title}`);
}

function say(what: string): void {
  console.log(`${((performance.now() - startedMs) / 1000).toFixed(1).padStart(6)} s  ${what}`);
}

function since(fromMs: number): string {
  return `${((performance.now() - fromMs) / 1000).toFixed(2)} s`;
}

function clockTime(timeMs: number): string {
  return new Date(timeMs).toISOString().slice(11, 23);
}

function mebibytes(bytes: number): string {
  return `${(bytes / 2 ** 20).toFixed(1)} MiB`;
}

/** The only way out, taken once: no process and no file of the demo is left. */
async function leave(status: number): Promise<never> {
  if (isLeaving) return await new Promise<never>(() => {});
  isLeaving = true;
  await endAll();
  if (folder !== null) await rm(folder, { recursive: true, force: true, maxRetries: 3 });
  process.exit(status);
}
