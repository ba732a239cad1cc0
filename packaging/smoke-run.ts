import { Database } from "bun:sqlite";
import { mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import packageJson from "../package.json" with { type: "json" };
import { contentDigest } from "./demo-content.ts";
import { TARGETS, type TargetName } from "./targets.ts";

/** Under an emulator everything takes ten times as long. */
const PATIENCE_MS = 120_000;
const POLL_MS = 50;
const COMMITS = 40;

const living = new Set<Bun.Subprocess>();
const folders = new Set<string>();

/** Ends what `smoke` has started, and removes its folder: for the way out after a signal. */
export async function endSmoke(): Promise<void> {
  for (const child of living) child.kill("SIGKILL");
  await Promise.all([...living].map((child) => child.exited));
  for (const folder of folders) await rm(folder, { recursive: true, force: true });
}

/**
 * Has `command` (an executable, perhaps behind an emulator) tell its version, back up a database that is being written to,
 * list, restore and verify it, all in a temporary folder. What is restored must hold what was written. Returns a line for each
 * step; throws for the first that went wrong, with what the program printed.
 */
export async function smoke(command: readonly string[], target: TargetName): Promise<readonly string[]> {
  const folder = await mkdtemp(join(tmpdir(), "bakelite-smoke-"));
  folders.add(folder);
  try {
    return await new Smoke(command, folder).run(target);
  } finally {
    await endSmoke();
    folders.delete(folder);
  }
}

class Smoke {
  readonly #command: readonly string[];
  readonly #folder: string;
  readonly #config: string;
  readonly #database: string;
  readonly #steps: string[] = [];

  constructor(command: readonly string[], folder: string) {
    this.#command = command;
    this.#folder = folder;
    this.#config = join(folder, "bakelite.toml");
    this.#database = join(folder, "shop.db");
  }

  async run(target: TargetName): Promise<readonly string[]> {
    await this.#step("version", () => this.#checkVersion(target));
    await this.#step("--help", async () => this.#mustSay(await this.#bakelite("--help"), "Usage: bakelite"));
    await this.#writeConfig();
    await this.#step("config", async () =>
      this.#mustSay(await this.#bakelite("config", "--config", this.#config), "shop"),
    );
    using db = new Database(this.#database, { create: true });
    db.run("PRAGMA journal_mode = WAL");
    db.run("CREATE TABLE purchase (id INTEGER PRIMARY KEY, goods TEXT, letter BLOB)");
    await this.#step("daemon", () => this.#backUp(db));
    const wanted = contentDigest(db);
    await this.#step("list", async () => this.#mustSay(await this.#bakelite("list", "--config", this.#config), "shop"));
    await this.#step("restore", () => this.#restore(wanted));
    await this.#step("verify --deep", () => this.#verify());
    return this.#steps;
  }

  async #checkVersion(target: TargetName): Promise<string> {
    const told = await this.#bakelite("version");
    await this.#mustSay(told, packageJson.version);
    await this.#mustSay(told, TARGETS[target].triple);
    return `${packageJson.version}, ${TARGETS[target].triple}`;
  }

  async #writeConfig(): Promise<void> {
    const lines = [
      "[[database]]",
      'name = "shop"',
      `path = ${JSON.stringify(this.#database)}`,
      "[[database.backends]]",
      'type = "file"',
      `path = ${JSON.stringify(join(this.#folder, "backups"))}`,
    ];
    await writeFile(this.#config, `${lines.join("\n")}\n`);
  }

  /** The daemon runs while all is written, and stops as systemd would have it. */
  async #backUp(db: Database): Promise<string> {
    const daemon = Bun.spawn([...this.#command, "daemon", "--config", this.#config], {
      stdin: "ignore",
      stdout: "ignore",
      stderr: "pipe",
    });
    living.add(daemon);
    const log = daemon.stderr.text();
    const failure = async (what: string) => new Error(`the daemon ${what}:\n${await log}`);
    const insert = db.query("INSERT INTO purchase (goods, letter) VALUES (?, randomblob(3000))");
    let newestMs = 0;
    for (let commit = 1; commit <= COMMITS; commit++) {
      newestMs = Date.now();
      insert.run(`teapot ${commit}`);
      // Half before the first full backup, and half while changes are shipped.
      if (commit === COMMITS / 2) await this.#untilStored(daemon, 0, failure);
    }
    await this.#untilStored(daemon, newestMs, failure);
    daemon.kill("SIGTERM");
    const status = await daemon.exited;
    living.delete(daemon);
    if (status !== 0) throw await failure(`stopped with status ${status}`);
    const changeSets = (await readdir(join(this.#folder, "backups", "shop", "L0"))).length;
    return `${COMMITS} commits in a full backup and ${changeSets} change-set${changeSets === 1 ? "" : "s"}`;
  }

  /** Until a restore point from `timeMs` on is listed. */
  async #untilStored(daemon: Bun.Subprocess, timeMs: number, failure: (what: string) => Promise<Error>): Promise<void> {
    const startedMs = performance.now();
    for (;;) {
      const listed = JSON.parse(await this.#bakelite("list", "--json", "--config", this.#config)) as {
        readonly databases: readonly { readonly newest_restore_point: { readonly time: string } | null }[];
      };
      const newest = listed.databases[0]?.newest_restore_point?.time;
      if (newest !== undefined && Date.parse(newest) >= timeMs) return;
      if (daemon.exitCode !== null) throw await failure("ended by itself");
      if (performance.now() - startedMs > PATIENCE_MS) throw await this.#late(daemon, failure);
      await Bun.sleep(POLL_MS);
    }
  }

  async #late(daemon: Bun.Subprocess, failure: (what: string) => Promise<Error>): Promise<Error> {
    daemon.kill("SIGKILL");
    return await failure(`had not stored all after ${PATIENCE_MS / 1000} s`);
  }

  async #restore(wanted: ReturnType<typeof contentDigest>): Promise<string> {
    const output = join(this.#folder, "restored.db");
    await this.#bakelite("restore", "--db", "shop", "--output", output, "--config", this.#config);
    using db = new Database(output, { readonly: true });
    const integrity = db.query<{ integrity_check: string }, []>("PRAGMA integrity_check").get()?.integrity_check;
    if (integrity !== "ok") throw new Error(`SQLite's integrity_check of the restored database says: ${integrity}`);
    const found = contentDigest(db);
    if (found.rows !== wanted.rows || !Bun.deepEquals(found.digest, wanted.digest))
      throw new Error(`the restored database has ${found.rows} rows that are not the ${wanted.rows} that were written`);
    return `${found.rows} rows, as they were written`;
  }

  async #verify(): Promise<string> {
    const told = JSON.parse(await this.#bakelite("verify", "--deep", "--json", "--config", this.#config)) as {
      readonly databases: readonly unknown[];
    };
    // With a problem its exit status is 1.
    if (told.databases.length !== 1) throw new Error("verify did not check the database");
    return "no problem";
  }

  async #step(name: string, work: () => Promise<string>): Promise<void> {
    const startedMs = performance.now();
    try {
      const told = await work();
      this.#steps.push(`${name}: ${told} (${((performance.now() - startedMs) / 1000).toFixed(1)} s)`);
    } catch (error) {
      throw new Error(`${name}: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
    }
  }

  async #mustSay(told: string, words: string): Promise<string> {
    if (!told.includes(words)) throw new Error(`it does not say "${words}":\n${told}`);
    return "ok";
  }

  /** What it prints; throws unless it ends well. */
  async #bakelite(...args: readonly string[]): Promise<string> {
    const child = Bun.spawn([...this.#command, ...args], { stdin: "ignore", stdout: "pipe", stderr: "pipe" });
    living.add(child);
    const [stdout, stderr, status] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
    living.delete(child);
    if (status !== 0)
      throw new Error(`bakelite ${args[0]} ended with status ${status}:\n${stderr.trim() || stdout.trim()}`);
    return stdout;
  }
}
