import { Database } from "bun:sqlite";
import { mkdir, rm } from "node:fs/promises";
import { statePaths } from "../../src/state/layout.ts";
import { readStatus } from "../../src/state/status.ts";
import {
  configPathIn,
  type DaemonOptions,
  type DaemonProcess,
  type Program,
  runBakelite,
  type Settings,
  startDaemon,
} from "../oracle/daemon-process.ts";
import { eventually, withDeadline } from "../support/eventually.ts";
import type { Random } from "../support/random.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";

/**
 * Commits, stops the daemon at once with SIGTERM, restores, and compares: what was committed before the signal is in the restore, or
 * the daemon's last status says that something is not.
 */
export interface StopStormOptions {
  readonly random: Random;
  /** Ends with the scene in which so much time has passed. */
  readonly seconds: number;
  readonly program: Program;
  readonly tell?: (what: string) => void;
}

export interface StopStormReport {
  scenes: number;
  rounds: number;
  /** Rounds after which everything was in the restore, and the status said nothing else. */
  whole: number;
  /** Rounds that ended by a signal: it came before the daemon listened. */
  unheard: number;
  /** Rounds whose last status said that something was left, by what it said. */
  readonly left: Record<string, number>;
  /** Rounds by what was waited for before the commit. */
  readonly after: Record<string, number>;
  longestStopMs: number;
}

const MOMENTS = ["live", "well", "published", "any"] as const;
/** What is waited for before the commit: the state `live`, what `status --check` is content with, any status, or nothing. */
type Moment = (typeof MOMENTS)[number];

const WRITERS = ["here", "process", "kept"] as const;
/** A connection of this process that is opened, commits and is closed; the same in a process of its own; one that stays. */
type WriterKind = (typeof WRITERS)[number];

const ROUNDS_IN_SCENE = 12;
const STOP_DEADLINE_MS = 20_000;
const DEADLINE_MS = 60_000;

/** Throws with the scene's story when a commit is missing that nobody said to be missing. */
export async function stopStorm(options: StopStormOptions): Promise<StopStormReport> {
  const report: StopStormReport = {
    scenes: 0,
    rounds: 0,
    whole: 0,
    unheard: 0,
    left: {},
    after: {},
    longestStopMs: 0,
  };
  const endMs = performance.now() + options.seconds * 1000;
  while (report.scenes === 0 || performance.now() < endMs) {
    const random = options.random.fork(report.scenes++);
    await using scene = await Scene.begin(random, options, report);
    for (let round = 0; round < ROUNDS_IN_SCENE && (round === 0 || performance.now() < endMs); round++) {
      report.rounds++;
      // The first scene begins with a full backup that is stored; in some of the others it is cut off.
      const isLive = round === 0 && (report.scenes === 1 || random.chance(0.6));
      await scene.round(isLive ? "live" : random.pick(MOMENTS));
    }
  }
  return report;
}

/** One database, its daemons, one after the other, and what was done, in words. */
class Scene implements AsyncDisposable {
  readonly #random: Random;
  readonly #options: StopStormOptions;
  readonly #report: StopStormReport;
  readonly #directory: Awaited<ReturnType<typeof temporaryDirectory>>;
  readonly #daemonOptions: DaemonOptions;
  readonly #autocheckpoint: number;
  readonly #story: string[] = [];
  #kept: Database | null = null;
  /** Rows that are committed: 1 to this. */
  #rows = 0;

  private constructor(
    random: Random,
    options: StopStormOptions,
    report: StopStormReport,
    directory: Awaited<ReturnType<typeof temporaryDirectory>>,
  ) {
    this.#random = random;
    this.#options = options;
    this.#report = report;
    this.#directory = directory;
    const settings: Settings = random.chance(0.5)
      ? {}
      : { debounce: random.pick(["10ms", "200ms", "1h"]), max_batch_delay: "1h", max_wal_size: "64KiB" };
    const replicas = random.chance(0.7) ? ["replica"] : ["replica", "second"];
    this.#autocheckpoint = random.pick([0, 5, 1000]);
    this.#daemonOptions = {
      configPath: configPathIn(directory.path),
      databases: [{ name: "app", path: this.#path, replicas: replicas.map((name) => directory.file(name)) }],
      settings,
      program: options.program,
      logLevel: "debug",
    };
    this.#note(`settings ${JSON.stringify(settings)}, ${replicas.length} destinations, ${this.#autocheckpoint} frames`);
  }

  static async begin(random: Random, options: StopStormOptions, report: StopStormReport): Promise<Scene> {
    const directory = await temporaryDirectory("stop");
    await mkdir(directory.file("db"));
    const scene = new Scene(random, options, report, directory);
    const db = scene.#open();
    db.run("PRAGMA journal_mode=WAL");
    db.run("CREATE TABLE t (x INTEGER PRIMARY KEY, body BLOB)");
    db.close();
    scene.#commitHere(scene.#random.pick([1, 50, 2000]));
    return scene;
  }

  get #path(): string {
    return this.#directory.file("db", "app.db");
  }

  async round(moment: Moment): Promise<void> {
    const random = this.#random;
    const writer: WriterKind = random.pick(WRITERS);
    if (random.chance(0.1)) await this.#forget();
    if (random.chance(0.3)) this.#commitHere(random.integer(1, 20));
    if (random.chance(0.2)) this.#keepOrLetGo();
    await using daemon = await startDaemon(this.#daemonOptions);
    this.#report.after[moment] = (this.#report.after[moment] ?? 0) + 1;
    await this.#await(moment, daemon);
    if (random.chance(0.3)) await this.#commit(random.pick(WRITERS), random.integer(1, 300));
    if (random.chance(0.3)) await Bun.sleep(random.integer(0, 100));
    const before = (await daemon.status())?.state ?? "no status";
    await this.#commit(writer, random.integer(1, 3));
    const delayMs = random.chance(0.5) ? 0 : random.integer(1, 50);
    if (delayMs > 0) await Bun.sleep(delayMs);
    const committed = this.#rows;
    const going = random.chance(0.2) ? this.#commit("process", 200) : null;
    const startedMs = performance.now();
    const how = await this.#stop(daemon);
    this.#report.longestStopMs = Math.max(this.#report.longestStopMs, performance.now() - startedMs);
    await going;
    this.#note(`${moment}, ${writer}: ${committed} rows in state ${before}, SIGTERM after ${delayMs} ms: ${how}`);
    await this.#judge(how, committed, daemon);
    // Nothing is in the way of one that has begun to ship.
    if (moment === "live" && how !== "stopped")
      throw new Error(`a daemon that was live left something:\n${this.#told(daemon)}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#kept?.close();
    await this.#directory[Symbol.asyncDispose]();
  }

  async #await(moment: Moment, daemon: DaemonProcess): Promise<void> {
    switch (moment) {
      case "live":
        await daemon.untilStatus((status) => status.state === "live" && status.full_backup !== null, {
          what: "live",
          deadlineMs: DEADLINE_MS,
        });
        return;
      case "well":
        await daemon.untilStatus(({ state }) => ["starting", "live", "snapshotting"].includes(state), {
          what: "well",
          pollMs: 1,
          deadlineMs: DEADLINE_MS,
        });
        return;
      case "published":
        await eventually(async () => (await daemon.status()) !== null, {
          what: "a status",
          pollMs: 1,
          deadlineMs: DEADLINE_MS,
        });
        return;
      case "any":
        await Bun.sleep(this.#random.integer(0, 400));
    }
  }

  /** How it ended: `stopped`, what its last status says is left, or `unheard`. */
  async #stop(daemon: DaemonProcess): Promise<string> {
    try {
      await daemon.stop(STOP_DEADLINE_MS);
    } catch (error) {
      // The signal came before the program listened to it, or before the daemon ran.
      if (/ended with (?:SIGTERM|status 143):/.test(String(error))) return "unheard";
      throw error;
    }
    const read = await readStatus(statePaths(this.#path, "app").status);
    if (read.outcome !== "read") throw new Error(`there is no status: ${read.outcome}`);
    const { state, detail, process } = read.value;
    if (process.pid !== daemon.pid || state !== "stopped")
      throw new Error(`the last status, of process ${process.pid}, is ${state}:\n${daemon.tail}`);
    return detail ?? "stopped";
  }

  async #judge(how: string, committed: number, daemon: DaemonProcess): Promise<void> {
    const restored = this.#directory.file("restored.db");
    const { configPath } = this.#daemonOptions;
    const result = await runBakelite(this.#options.program, [
      ...["restore", "--db", "app", "--output", restored, "--force", "--config", configPath],
    ]);
    const rows = result.status === 0 ? countRows(restored) : null;
    if (how === "unheard") this.#report.unheard++;
    else if (how !== "stopped") this.#report.left[how] = (this.#report.left[how] ?? 0) + 1;
    else if (rows !== null && rows >= committed) this.#report.whole++;
    else
      throw new Error(
        `${rows ?? result.stderr} of ${committed} rows are restored after a stop that says nothing of it:\n${this.#told(daemon)}`,
      );
  }

  async #commit(kind: WriterKind, count: number): Promise<void> {
    switch (kind) {
      case "here":
        this.#commitHere(count);
        return;
      case "kept":
        if (this.#kept === null) this.#kept = this.#open();
        this.#insert(this.#kept, count);
        return;
      case "process": {
        const statements = rowsToInsert(this.#rows, count).map((sql) => `db.run(${JSON.stringify(sql)});`);
        const pragmas = `db.run("PRAGMA busy_timeout=5000; PRAGMA wal_autocheckpoint=${this.#autocheckpoint}");`;
        const program = `import { Database } from "bun:sqlite"; const db = new Database(process.argv[1]); ${pragmas} ${statements.join(" ")} db.close();`;
        const child = Bun.spawn([process.execPath, "-e", program, this.#path], { stderr: "pipe" });
        const status = await withDeadline(child.exited, { what: "a writer", deadlineMs: DEADLINE_MS });
        if (status !== 0) throw new Error(await child.stderr.text());
        this.#rows += count;
      }
    }
  }

  #commitHere(count: number): void {
    const db = this.#open();
    this.#insert(db, count);
    db.close();
  }

  #insert(db: Database, count: number): void {
    for (const sql of rowsToInsert(this.#rows, count)) db.run(sql);
    this.#rows += count;
  }

  #open(): Database {
    const db = new Database(this.#path);
    db.run(`PRAGMA busy_timeout=5000; PRAGMA wal_autocheckpoint=${this.#autocheckpoint}; PRAGMA synchronous=NORMAL`);
    return db;
  }

  /** While it stays, the WAL outlives the daemon, which can then prove that it missed nothing. */
  #keepOrLetGo(): void {
    this.#note(this.#kept === null ? "a connection stays from here on" : "the connection that stayed is closed");
    if (this.#kept === null) this.#kept = this.#open();
    else {
      this.#kept.close();
      this.#kept = null;
    }
  }

  async #forget(): Promise<void> {
    this.#note("the state directory is removed");
    await rm(this.#directory.file("db", ".bakelite"), { recursive: true, force: true });
  }

  #told(daemon: DaemonProcess): string {
    return [...this.#story, ...daemon.log.map((line) => JSON.stringify(line))].join("\n");
  }

  #note(what: string): void {
    this.#story.push(what);
    this.#options.tell?.(what);
  }
}

/** One statement, and so one commit, for each row. */
function rowsToInsert(after: number, count: number): readonly string[] {
  return Array.from({ length: count }, (_, i) => `INSERT INTO t VALUES (${after + i + 1}, randomblob(400))`);
}

/** Throws unless the file is sound and its rows are 1 to n. */
function countRows(path: string): number {
  using db = new Database(path, { readonly: true });
  const check = db.query<{ integrity_check: string }, []>("PRAGMA integrity_check").get()?.integrity_check;
  const found = db.query<{ n: number; last: number | null }, []>("SELECT count(*) AS n, max(x) AS last FROM t").get();
  if (check !== "ok" || found === null || found.n !== (found.last ?? 0))
    throw new Error(`the restored file is not sound: ${check}, ${JSON.stringify(found)}`);
  return found.n;
}

export function describeStopStorm(report: StopStormReport): string {
  const { scenes, rounds, whole, unheard, left, after, longestStopMs } = report;
  const list = (counts: Readonly<Record<string, number>>) =>
    Object.entries(counts)
      .map(([what, count]) => `${count} ${what}`)
      .join(", ");
  return `${scenes} scenes, ${rounds} stops (${list(after)}): ${whole} whole, ${unheard} unheard, left: ${list(left) || "none"}; longest stop ${Math.round(longestStopMs)} ms`;
}
