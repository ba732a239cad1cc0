import { mkdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { statePaths } from "../../src/state/layout.ts";
import { readMirrorStatus } from "../../src/state/mirror-status.ts";
import { FileBackend } from "../../src/storage/file.ts";
import { compareFiles } from "../sqlite/hammer.ts";
import { eventually } from "../support/eventually.ts";
import { pythonPath } from "../support/python.ts";
import { type Random, seededRandom } from "../support/random.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";
import { copyDatabase } from "../support/truncate-checkpoint.ts";
import {
  configPathIn,
  type DaemonLogLine,
  type DaemonOptions,
  type DaemonProcess,
  daemonConfig,
  type Program,
  runBakelite,
  type Settings,
  startDaemon,
} from "./daemon-process.ts";
import { compareLogical } from "./grade.ts";
import type { WriterSpec } from "./protocol.ts";
import { Cast, type RoleName, rolesFor } from "./torture-cast.ts";
import { type DestinationKind, openTortureDestination, type TortureDestination } from "./torture-destination.ts";
import { describe, type Graded, isRefusal, type Refusal, Restorer } from "./torture-restores.ts";
import { Rotation, type RotationCounts, type Sealing, type Ways } from "./torture-rotation.ts";

export interface TortureOptions {
  readonly seed: number;
  readonly seconds: number;
  /** How many, of all kinds in turn; or of which. */
  readonly writers: number | readonly RoleName[];
  /** SIGKILLs of the daemon; some are followed by another one at once. */
  readonly kills: number;
  /** SIGKILLs of writers; a quarter of `kills` if not given. */
  readonly writerKills?: number;
  /** SIGSTOPs of the daemon, each followed by SIGCONT; a quarter of `kills` if not given. */
  readonly stops?: number;
  /** Ends of the daemon in good order, each followed by a start; a quarter of `kills` if not given. */
  readonly restarts?: number;
  /** SIGKILL of everything at once, so that the next to open the database recovers its WAL; an eighth of `kills` if not given. */
  readonly crashes?: number;
  /** Moments at which all writers pause and everything must be stored; one for each 20 s if not given. */
  readonly calms?: number;
  readonly writerOptions?: Partial<Pick<WriterSpec, "pageSizeBytes" | "autoVacuum" | "targetBytes" | "rate">>;
  /** Of rows that are there from the beginning, so that a full backup takes its time. */
  readonly ballastBytes?: number;
  /** `[defaults]` of the daemon's config. */
  readonly settings?: Settings;
  readonly program?: Program;
  /** With this the replica is sealed. */
  readonly encrypted?: boolean;
  /**
   * SIGKILLs of the daemon after each of which `bakelite reencrypt` changes the encryption: plaintext, a key, another key,
   * plaintext. It is killed as well, now and then, and run again. None if not given.
   */
  readonly rotations?: number;
  /** Where it ships to: a directory by default; the others are servers behind a line with faults and outages. */
  readonly destination?: DestinationKind;
  /** A background mirror in a directory besides, which must hold the same at the end. */
  readonly mirror?: boolean;
  /** Outages of some seconds, but for "file"; one for each 15 s if not given. */
  readonly outages?: number;
  /** One after the other, with about this much time between two. */
  readonly restoreEveryMs?: number;
  /** Ends it early, with this as the failure. */
  readonly signal?: AbortSignal;
  /** Told what happens, as it happens. */
  readonly tell?: (what: string) => void;
}

export interface TortureReport {
  readonly seed: number;
  readonly seconds: number;
  readonly commits: number;
  readonly daemonKills: number;
  readonly daemonStops: number;
  readonly daemonRestarts: number;
  readonly writerKills: number;
  readonly crashes: number;
  readonly calms: number;
  readonly encryption: RotationCounts;
  /** Graded restores: while writers wrote, then at rest. */
  readonly restoredLatest: number;
  readonly restoredAtTimes: number;
  readonly restoredAtRest: number;
  readonly indexes: number;
  readonly restorePoints: number;
  /** Stored full backups by reason. */
  readonly fullBackups: Readonly<Record<string, number>>;
  /** Begun ones, by reason: a killed one begins again. */
  readonly fullBackupsBegun: Readonly<Record<string, number>>;
  /** Attaches that could not prove continuity, and so compared the file with the ledger. */
  readonly comparisons: number;
  /** Age of the oldest commit that a restore of the latest state lacked, in ms, while the daemon had run undisturbed for 3 s. */
  readonly ageMs: { readonly p50: number; readonly p99: number; readonly max: number } | null;
  readonly maxWalBytes: number;
  readonly databaseBytes: number;
  readonly stopMs: number;
  /** What else the destination has to tell, in a line for people. */
  readonly destination: string;
}

const NAME = "app";
const UNDISTURBED_MS = 3000;
/** The daemon looks within some tens of milliseconds; what it says it knew this long after a commit covers that commit. */
const LOOK_MARGIN_MS = 1000;
const SYNC_DEADLINE_MS = 45_000;
const MIN_LIVE_RESTORES = 6;
const OVERTIME_MS = 30_000;
/** How many restores are graded at rest; over a line that has been faulty all the while each takes long. */
const AT_REST = { near: { times: 15, points: 40 }, remote: { times: 8, points: 15 } } as const;
/** So many of them the independent reader restores, too. */
const JUDGED_TIMES = 3;
const JUDGE = fileURLToPath(new URL("../judge/bakelite_reader.py", import.meta.url));

/** An undisturbed daemon that is so far behind is not slow but stuck. */
const STUCK_MS = 15_000;
const STOP_DEADLINE_MS = 10_000;
const MAX_OUTAGE_MS = 5000;

/** What a daemon may say above `info` although nothing is wrong with it. */
const HARMLESS = [
  // Whatever it reads from has outages, and it is killed and stopped with all the rest.
  "cannot fill the mirror; trying again",
  // SQLite 3.40, which Python brings on Debian 12; see `savepointSpills`.
  "the application's SQLite commits WAL frames with wrong checksums; they are backed up, but a crash would lose them locally",
];

/** What one says that was killed between its first full backup and its first cursor; of any later state it is wrong. */
const NO_CURSOR_YET = "there is no cursor: going on from the newest stored state";

/** A writer may restart a WAL that is wholly backfilled just when a daemon attaches to it: it is not proven after all. */
const RESTARTED_AT_ATTACH = "the WAL was restarted before it was read to its end";

/**
 * Writers of all kinds on one database, the daemon shipping it to a directory and killed again and again, restores all the
 * while and at the end, each of them graded; and at the end the newest state must be the live database byte for byte.
 * Throws at the first thing that is wrong, with what repeats it.
 */
export async function torture(options: TortureOptions): Promise<TortureReport> {
  await using directory = await temporaryDirectory("torture");
  try {
    await using run = await TortureRun.start(options, directory);
    return await run.finish();
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    throw new Error(`${message}\n(repeat with: ${commandLine(options)})`, { cause: error });
  }
}

type Disturbance =
  | "kill the daemon"
  | "stop the daemon"
  | "restart the daemon"
  | "change the encryption"
  | "outage"
  | "kill a writer"
  | "crash"
  | "calm"
  | "checkpoint";

class TortureRun implements AsyncDisposable {
  readonly #options: TortureOptions;
  readonly #random: Random;
  readonly #directory: TemporaryDirectory;
  readonly #daemonOptions: DaemonOptions;
  readonly #rotation: Rotation;
  readonly #cast: Cast;
  readonly #destination: TortureDestination;
  readonly #restorer: Restorer;
  readonly #daemons: DaemonProcess[] = [];
  readonly #agesMs: number[] = [];
  #undisturbedSinceMs = Number.POSITIVE_INFINITY;
  #maxWalBytes = 0;
  #daemonKills = 0;
  #daemonStops = 0;
  #daemonRestarts = 0;
  #crashes = 0;
  #calms = 0;
  #ended = false;

  private constructor(options: TortureOptions, { directory, cast, rotation, destination }: Parts) {
    this.#options = options;
    this.#destination = destination;
    this.#random = seededRandom(options.seed).fork("torture");
    this.#directory = directory;
    this.#cast = cast;
    const databasePath = databasePathIn(directory);
    const mirrors = options.mirror === true ? [{ type: "file", path: directory.file("mirror"), async: true }] : [];
    this.#daemonOptions = {
      configPath: configPathIn(directory.path),
      databases: [{ name: NAME, path: databasePath, replicas: [], destinations: [destination.table, ...mirrors] }],
      settings: { ...(options.mirror === true ? { mirror_interval: "500ms" } : {}), ...options.settings },
      logLevel: "debug",
      program: options.program ?? "source",
    };
    this.#rotation = rotation;
    this.#restorer = new Restorer({
      openReplica: () => destination.open(),
      database: NAME,
      databasePath,
      folder: directory.path,
      sealKey: null,
      readings: () => rotation.readings,
      acks: () => cast.acks,
    });
  }

  static async start(options: TortureOptions, directory: TemporaryDirectory): Promise<TortureRun> {
    const random = seededRandom(options.seed).fork("cast");
    const common = options.writerOptions ?? {};
    await mkdir(directory.file("live"));
    const roles = typeof options.writers === "number" ? rolesFor(options.writers) : options.writers;
    const { ballastBytes = 0 } = options;
    const kind = options.destination ?? "file";
    const destination = await openTortureDestination(kind, directory, options.seed);
    try {
      const rotation = await Rotation.begin({
        directory,
        database: NAME,
        configPath: configPathIn(directory.path),
        program: options.program ?? "source",
        random: seededRandom(options.seed).fork("rotation"),
        sealed: options.encrypted === true,
        open: () => destination.open(),
        folder: kind === "file" ? destination.localPath : null,
        isLineFaulty: kind !== "file",
      });
      const cast = await Cast.start({ database: databasePathIn(directory), roles, random, common, ballastBytes });
      return new TortureRun(options, { directory, cast, rotation, destination });
    } catch (error) {
      await destination[Symbol.asyncDispose]();
      throw error;
    }
  }

  async finish(): Promise<TortureReport> {
    await this.#startDaemon();
    const endMs = performance.now() + this.#options.seconds * 1000;
    const tasks = [this.#disturb(endMs), this.#restoreAllTheWhile(endMs), this.#watch(endMs)];
    const stopOthers = (error: unknown) => {
      this.#ended = true;
      throw error;
    };
    const { signal } = this.#options;
    const end = () => {
      this.#ended = true;
    };
    signal?.addEventListener("abort", end, { once: true });
    const outcomes = await Promise.allSettled(tasks.map((task) => task.catch(stopOthers)));
    signal?.throwIfAborted();
    for (const outcome of outcomes) if (outcome.status === "rejected") throw outcome.reason;
    return await this.#judge();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#ended = true;
    for (const daemon of this.#daemons) await daemon[Symbol.asyncDispose]();
    await this.#cast[Symbol.asyncDispose]();
    await this.#destination[Symbol.asyncDispose]();
    // For whoever keeps the folder to look into a failure.
    const log = this.#lines().map((line) => `${JSON.stringify(line)}\n`);
    await writeFile(this.#directory.file("daemon.log"), log.join(""));
  }

  get #daemon(): DaemonProcess {
    const daemon = this.#daemons.at(-1);
    if (daemon === undefined) throw new Error("no daemon was started");
    return daemon;
  }

  async #startDaemon(): Promise<void> {
    this.#daemons.push(await startDaemon(this.#optionsWith(this.#rotation.sealing)));
    this.#undisturbedSinceMs = Date.now();
  }

  #optionsWith(sealing: Sealing | null): DaemonOptions {
    return { ...this.#daemonOptions, ...(sealing === null ? {} : { keyFile: sealing.keyFile }) };
  }

  /** One disturbance after the other, at moments drawn at random. */
  async #disturb(endMs: number): Promise<void> {
    const { kills, seconds } = this.#options;
    const outages = this.#destination.outage === undefined ? 0 : (this.#options.outages ?? Math.ceil(seconds / 15));
    const quarter = Math.ceil(kills / 4);
    const schedule = [
      ...Array.from({ length: kills }, () => "kill the daemon" as const),
      ...Array.from({ length: this.#options.rotations ?? 0 }, () => "change the encryption" as const),
      ...Array.from({ length: outages }, () => "outage" as const),
      ...Array.from({ length: this.#options.stops ?? quarter }, () => "stop the daemon" as const),
      ...Array.from({ length: this.#options.restarts ?? quarter }, () => "restart the daemon" as const),
      ...Array.from({ length: this.#options.writerKills ?? quarter }, () => "kill a writer" as const),
      ...Array.from({ length: this.#options.crashes ?? Math.floor(kills / 8) }, () => "crash" as const),
      ...Array.from({ length: this.#options.calms ?? Math.floor(seconds / 20) }, () => "calm" as const),
      ...Array.from({ length: Math.ceil(seconds / 4) }, () => "checkpoint" as const),
    ].map((what) => ({ what, atMs: endMs - this.#random.next() * seconds * 1000 }));
    for (const { what, atMs } of schedule.sort((a, b) => a.atMs - b.atMs)) {
      while (performance.now() < atMs && !this.#ended)
        await Bun.sleep(Math.min(50, Math.max(0, atMs - performance.now())));
      if (this.#ended) return;
      this.#tell(what);
      await this.#disturbOnce(what);
    }
    while (performance.now() < endMs && !this.#ended) await Bun.sleep(20);
  }

  async #disturbOnce(what: Disturbance): Promise<void> {
    const random = this.#random;
    switch (what) {
      case "kill the daemon":
        return await this.#killDaemon();
      case "stop the daemon":
        this.#undisturbedSinceMs = Number.POSITIVE_INFINITY;
        this.#daemonStops++;
        this.#daemon.signal("SIGSTOP");
        await Bun.sleep(random.integer(20, 2500));
        this.#daemon.signal("SIGCONT");
        this.#undisturbedSinceMs = Date.now();
        return;
      case "restart the daemon":
        return await this.#restartDaemon();
      case "change the encryption":
        return await this.#changeEncryption();
      case "outage":
        this.#undisturbedSinceMs = Number.POSITIVE_INFINITY;
        await this.#destination.outage?.(random.pick(["refuse", "hang"] as const), random.integer(200, MAX_OUTAGE_MS));
        this.#undisturbedSinceMs = Date.now();
        return;
      case "kill a writer":
        return await this.#cast.killOne(random);
      case "crash":
        this.#undisturbedSinceMs = Number.POSITIVE_INFINITY;
        await this.#cast.crash(async () => {
          await this.#daemon.kill();
          if (random.chance(0.5)) await this.#startDaemon();
        });
        if (!this.#daemon.running) await this.#startDaemon();
        this.#crashes++;
        return;
      case "calm":
        await this.#calmDown();
        await this.#cast.resume();
        return;
      case "checkpoint":
        await this.#cast.first.checkpoint(random.pick(["PASSIVE", "FULL", "RESTART", "TRUNCATE"] as const), 100);
    }
  }

  /** Now and then soon after its start, or twice in a row, or followed by a pause in which applications go on alone. */
  async #killDaemon(): Promise<void> {
    const random = this.#random;
    this.#daemon.checkRunning();
    this.#undisturbedSinceMs = Number.POSITIVE_INFINITY;
    await this.#daemon.kill();
    this.#daemonKills++;
    await Bun.sleep(random.chance(0.3) ? random.integer(500, 3000) : random.integer(0, 100));
    await this.#startDaemon();
    if (random.chance(0.25)) {
      await Bun.sleep(random.integer(50, 800));
      await this.#daemon.kill();
      this.#daemonKills++;
      await this.#startDaemon();
    }
  }

  /** The writers go on, and restores as well; the daemon then goes on where it was, under another key. */
  async #changeEncryption(): Promise<void> {
    this.#daemon.checkRunning();
    this.#undisturbedSinceMs = Number.POSITIVE_INFINITY;
    await this.#daemon.kill();
    this.#daemonKills++;
    const newest = await this.#restorer.restore({ kind: "latest" });
    await this.#rotation.turn({
      configure: (sealing) => writeFile(this.#daemonOptions.configPath, daemonConfig(this.#optionsWith(sealing))),
      judgeInterrupted: (ways) => this.#judgeInterrupted(ways, newest),
      tell: (what) => this.#tell(what),
    });
    if (newest !== null) await this.#restorer.restore({ kind: "latest" }, { floorN: newest.lastN });
    await this.#startDaemon();
    // One that is asked to stop before it has taken the replica up stores nothing, and does not say so.
    await this.#daemon.untilStatus((status) => status.state === "live", {
      what: "it to go on under another encryption",
      deadlineMs: SYNC_DEADLINE_MS,
    });
  }

  /** Whatever is configured restores the newest state or says which key it takes, and never gives an older one. */
  async #judgeInterrupted({ oneOf, always }: Ways, newest: Graded | null): Promise<void> {
    if (newest === null) return;
    const time = { kind: "time", timeMs: this.#anyTime(this.#random) } as const;
    for (const target of [{ kind: "latest" } as const, time]) {
      const floorN = target.kind === "latest" ? newest.lastN : 0;
      const restore = async (ways: Ways["oneOf"]) => {
        const outcomes: (Graded | null | Refusal)[] = [];
        for (const way of ways) outcomes.push(await this.#restorer.restoreAs(way, target, { floorN }));
        return outcomes.filter((outcome) => outcome === null || isRefusal(outcome));
      };
      const [refused, refusedAlways] = [await restore(oneOf), await restore(always)];
      if (refused.length === oneOf.length || refusedAlways.length > 0)
        throw new Error(
          `after a killed reencrypt, ${describe(target)} is refused: ${JSON.stringify([refused, refusedAlways])}`,
        );
    }
  }

  /** The writers go on: what was committed when it was asked to end is stored when it has ended, unless it says otherwise. */
  async #restartDaemon(): Promise<void> {
    this.#undisturbedSinceMs = Number.POSITIVE_INFINITY;
    const daemon = this.#daemon;
    await daemon.untilSaid("bakelite is running");
    const wasRestorable = this.#restorer.graded.length > 0;
    const floorN = this.#cast.acks.at(-1)?.n ?? 0;
    await daemon.stop(STOP_DEADLINE_MS);
    this.#daemonRestarts++;
    const status = await daemon.status();
    if (status?.state !== "stopped") throw new Error(`a daemon that was stopped leaves ${JSON.stringify(status)}`);
    if (wasRestorable && status.detail === null) await this.#restorer.restore({ kind: "latest" }, { floorN });
    await this.#startDaemon();
  }

  /** All writers pause; once the daemon says that it has everything, a restore must hold every commit. */
  async #calmDown(): Promise<Graded> {
    await this.#cast.pause();
    const pausedMs = Date.now();
    const floorN = this.#cast.acks.at(-1)?.n ?? 0;
    await this.#daemon.untilStatus(
      (status) =>
        status.state === "live" &&
        status.lag_seconds === 0 &&
        // Before the first one change-sets are stored, and nothing can be restored.
        status.full_backup !== null &&
        Date.parse(status.last_synced_at ?? "") >= pausedMs + LOOK_MARGIN_MS,
      { what: "everything to be stored", deadlineMs: SYNC_DEADLINE_MS, pollMs: 100 },
    );
    const restored = await this.#restorer.restore({ kind: "latest" }, { floorN, keep: this.#ended });
    if (restored === null) throw new Error("the status says that everything is stored, but nothing can be restored");
    this.#calms++;
    return restored;
  }

  /** To the end, and somewhat longer where a slow machine or long outages have left too few of them. */
  async #restoreAllTheWhile(endMs: number): Promise<void> {
    const random = this.#random.fork("restores");
    const isEnough = () =>
      this.#restorer.graded.length >= MIN_LIVE_RESTORES || performance.now() >= endMs + OVERTIME_MS;
    while ((performance.now() < endMs || !isEnough()) && !this.#ended) {
      const latest = random.chance(0.5);
      const undisturbedSinceMs = this.#undisturbedSinceMs;
      // What could be restored once is never lost again.
      const floorN = latest ? Math.max(0, ...this.#restorer.graded.map(({ lastN }) => lastN)) : 0;
      const restored = await this.#restorer.restore(
        latest ? { kind: "latest" } : { kind: "time", timeMs: this.#anyTime(random) },
        { floorN },
      );
      if (latest && restored !== null) this.#noteAge(restored, undisturbedSinceMs);
      await Bun.sleep(random.integer(0, this.#options.restoreEveryMs ?? 1000));
    }
  }

  /** From the first restore point that we know of to now; sometimes the very moment of one, or the one before it. */
  #anyTime(random: Random): number {
    const { graded } = this.#restorer;
    if (graded.length === 0) return Date.now();
    const known = random.pick(graded);
    const firstMs = Math.min(...graded.map(({ stampMs }) => stampMs));
    if (random.chance(0.2)) return Math.max(firstMs, known.stampMs - random.integer(0, 1));
    return random.integer(firstMs, Date.now());
  }

  #noteAge({ askedMs, lastN }: { readonly askedMs: number; readonly lastN: number }, undisturbedSinceMs: number): void {
    if (askedMs - undisturbedSinceMs < UNDISTURBED_MS) return;
    const oldest = this.#cast.acks.find((ack) => ack.n > lastN);
    const ageMs = oldest === undefined ? 0 : Math.max(0, askedMs - oldest.afterMs);
    if (ageMs > STUCK_MS)
      throw new Error(`commit ${oldest?.n} is ${ageMs} ms old and not stored: ${this.#daemon.tail}`);
    this.#agesMs.push(ageMs);
  }

  async #watch(endMs: number): Promise<void> {
    while (performance.now() < endMs && !this.#ended) {
      this.#daemon.checkRunning();
      await this.#cast.check();
      const walBytes = await sizeOf(`${databasePathIn(this.#directory)}-wal`);
      this.#maxWalBytes = Math.max(this.#maxWalBytes, walBytes);
      await Bun.sleep(100);
    }
  }

  /** At rest: the newest state is the live database, every restore point that is asked for is graded, and judges agree. */
  async #judge(): Promise<TortureReport> {
    const liveRestores = [...this.#restorer.graded];
    this.#tell("the end: pausing the writers");
    this.#ended = true;
    const newest = await this.#calmDown();
    const { index } = newest;
    const { tookMs: stopMs } = await this.#daemon.stop(STOP_DEADLINE_MS);
    await this.#compareWithLive(newest);
    await this.#restoreByCommand(newest);
    await this.#restartAtRest(newest);
    if (this.#options.mirror === true) await this.#compareWithMirror(newest);
    await this.#destination.settle();
    this.#tell("grading restores at rest");
    await this.#restoreAtRest(index);
    const begun = countBy(this.#said("full backup begins").map((line) => String(line["reason"])));
    const { points, fullBackups } = await this.#readReplica();
    this.#checkFullBackups(fullBackups);
    this.#checkLog();
    this.#tell("asking the independent reader");
    const destination = await this.#destination.judge();
    await this.#askJudge("verify");
    if (this.#rotation.counts.rotations > 0) await this.#verifyByCommand();
    await this.#cast.resume();
    await this.#cast.stop();
    const atTimes = liveRestores.filter(({ target }) => target.kind === "time").length;
    return {
      seed: this.#options.seed,
      seconds: this.#options.seconds,
      commits: this.#cast.acks.length,
      daemonKills: this.#daemonKills,
      daemonStops: this.#daemonStops,
      daemonRestarts: this.#daemonRestarts,
      writerKills: this.#cast.kills,
      crashes: this.#crashes,
      calms: this.#calms,
      encryption: this.#rotation.counts,
      restoredLatest: liveRestores.length - atTimes,
      restoredAtTimes: atTimes,
      restoredAtRest: this.#restorer.graded.length - liveRestores.length,
      indexes: index,
      restorePoints: points.length,
      fullBackups,
      fullBackupsBegun: begun,
      comparisons: this.#said(
        "compared the database with the page ledger, because nothing proves that every change was seen",
      ).length,
      ageMs: percentiles(this.#agesMs),
      maxWalBytes: this.#maxWalBytes,
      databaseBytes: await sizeOf(databasePathIn(this.#directory)),
      stopMs,
      destination,
    };
  }

  /** The daemon is gone: SQLite's own checkpoint, on a connection that was open all the time, says what the file should be. */
  async #compareWithLive({ path: restoredPath }: Graded): Promise<void> {
    const databasePath = databasePathIn(this.#directory);
    const checkpoint = await this.#cast.first.checkpoint("TRUNCATE", 5000);
    if (checkpoint.busy) throw new Error("the judge's checkpoint was busy");
    const copyPath = this.#directory.file("live-copy.db");
    await copyDatabase(databasePath, copyPath);
    const [restored, live] = [await readFile(restoredPath), await readFile(copyPath)];
    compareLogical(restoredPath, copyPath);
    compareFiles(restored, live, pageSizeOf(live));
  }

  /** A daemon that finds everything as it was left stores nothing, though no WAL is left that could prove it. */
  async #restartAtRest({ index }: Graded): Promise<void> {
    await this.#startDaemon();
    const status = await this.#daemon.untilStatus((each) => each.state === "live" && each.lag_seconds === 0, {
      what: "it to be live again",
      deadlineMs: SYNC_DEADLINE_MS,
    });
    if (this.#options.mirror === true) await this.#untilMirrored(index);
    await this.#daemon.stop(STOP_DEADLINE_MS);
    if (status.index !== index)
      throw new Error(`state ${index} was the newest, and after a restart ${status.index} is`);
  }

  async #untilMirrored(index: number): Promise<void> {
    const { mirror } = statePaths(databasePathIn(this.#directory), NAME);
    let last: unknown = null;
    await eventually(
      async () => {
        const read = await readMirrorStatus(mirror);
        const entry = read.outcome === "read" ? read.value.mirrors[0] : undefined;
        last = entry;
        return read.outcome === "read" && entry?.state === "in sync" && entry.index === index;
      },
      { what: "the mirror to be in sync", deadlineMs: SYNC_DEADLINE_MS, explain: () => JSON.stringify(last) },
    );
  }

  /** The mirror holds bytes of the destination only, leads to every restore point, and alone restores the same file. */
  async #compareWithMirror(newest: Graded): Promise<void> {
    const [source, mirror] = [this.#destination.open(), new FileBackend({ path: this.#directory.file("mirror") })];
    for await (const { key } of mirror.list(`${NAME}/`)) {
      const [theirs, ours] = [await source.get(key), await mirror.get(key)];
      if (theirs === null || ours === null) throw new Error(`the mirror alone holds ${key}`);
      const [left, right] = [Buffer.concat(await Array.fromAsync(theirs)), Buffer.concat(await Array.fromAsync(ours))];
      if (!left.equals(right)) throw new Error(`the mirror holds something else under ${key}`);
    }
    const [all, mirrored] = [await this.#restorer.restorePoints(), await this.#restorer.restorePoints(mirror)];
    if (String(all) !== String(mirrored))
      throw new Error(`the mirror leads to states ${String(mirrored)}, and the destination to ${String(all)}`);
    await this.#restoreByCommand(newest, "--destination", "2", "--force");
  }

  /** As a user would, and the same file comes of it. */
  async #restoreByCommand({ index, path }: Graded, ...more: readonly string[]): Promise<void> {
    const outputPath = this.#directory.file("by command.db");
    const { configPath, program = "source" } = this.#daemonOptions;
    const args = ["restore", "--config", configPath, "--db", NAME, "--output", outputPath, "--json", ...more];
    const { status, stdout, stderr } = await runBakelite(program, args);
    if (status !== 0 || stderr !== "") throw new Error(`\`bakelite restore\` ended with status ${status}: ${stderr}`);
    const told = (JSON.parse(stdout) as { readonly restore_point: { readonly index: number } }).restore_point.index;
    if (told !== index) throw new Error(`\`bakelite restore\` restored state ${told}, and ${index} is the newest`);
    const [byCommand, restored] = [await readFile(outputPath), await readFile(path)];
    compareFiles(byCommand, restored, pageSizeOf(restored));
  }

  async #verifyByCommand(): Promise<void> {
    const { configPath, program = "source" } = this.#daemonOptions;
    const { status, stdout, stderr } = await runBakelite(program, ["verify", "--config", configPath, "--db", NAME]);
    if (status !== 0 || stderr !== "")
      throw new Error(`\`bakelite verify\` ended with status ${status}: ${stderr}${stdout}`);
  }

  async #restoreAtRest(lastIndex: number): Promise<void> {
    const random = this.#random.fork("at rest");
    const count = AT_REST[(this.#options.destination ?? "file") === "file" ? "near" : "remote"];
    for (let i = 0; i < count.times; i++) {
      const timeMs = this.#anyTime(random);
      const restored = await this.#restorer.restore({ kind: "time", timeMs }, { keep: i < JUDGED_TIMES });
      if (restored !== null && i < JUDGED_TIMES) await this.#compareWithJudge(timeMs, restored);
    }
    const points = await this.#restorer.restorePoints();
    for (const point of points.filter((each) => each > lastIndex - count.points))
      await this.#restorer.restore({ kind: "index", index: point });
  }

  /** The independent reader, asked for the same moment, gives the same file. */
  async #compareWithJudge(timeMs: number, { index, stampMs, path }: Graded): Promise<void> {
    const output = this.#directory.file("judged.db");
    const told = await this.#askJudge("restore", "--at-ms", String(timeMs), "--output", output, "--force");
    if ((JSON.parse(told) as { readonly index: number }).index !== index)
      throw new Error(`at ${timeMs} we restore state ${index} of ${stampMs}, and the independent reader: ${told}`);
    const [restored, judged] = [await readFile(path), await readFile(output)];
    compareFiles(restored, judged, pageSizeOf(judged));
    await rm(path);
  }

  /** Runs the independent reader; exit status 0 means that all is in order. Gives its report. */
  async #askJudge(command: "verify" | "restore", ...args: readonly string[]): Promise<string> {
    const { sealing } = this.#rotation;
    const keys = sealing === null ? [] : ["--key-file", sealing.keyFile];
    const program = [pythonPath(), JUDGE, command, this.#destination.localPath, "--database", NAME];
    const child = Bun.spawn([...program, ...keys, ...args], { stdin: "ignore", stdout: "pipe", stderr: "pipe" });
    const [stdout, stderr, status] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
    if (status !== 0)
      throw new Error(`the independent reader ends ${command} with ${status}: ${stderr}\n${stdout.slice(0, 4000)}`);
    return stdout;
  }

  async #readReplica(): Promise<{ points: readonly number[]; fullBackups: Record<string, number> }> {
    const replica = await this.#restorer.open();
    const reasons: string[] = [];
    for (const full of replica.catalog.fulls) {
      const opened = await replica.trailers.open(full);
      reasons.push(opened?.reader.trailer.reason ?? "unreadable");
    }
    return { points: await this.#restorer.restorePoints(), fullBackups: countBy(reasons) };
  }

  #checkFullBackups(stored: Readonly<Record<string, number>>): void {
    const { settings = {} } = this.#options;
    const asked = new Set(["first backup"]);
    if (settings["snapshot_interval"] !== undefined) asked.add("interval");
    if (settings["max_segments_per_snapshot"] !== undefined) asked.add("change-set count");
    const unasked = Object.keys(stored).filter((reason) => !asked.has(reason));
    if (stored["first backup"] !== 1 || unasked.length > 0)
      throw new Error(
        `one first backup and otherwise only those asked for are expected, and stored are ${JSON.stringify(stored)}`,
      );
  }

  #checkLog(): void {
    const complaints = this.#daemons.map((daemon) => daemon.complaints).join("");
    if (complaints !== "") throw new Error(`a daemon said: ${complaints}`);
    const bad = this.#lines().filter(
      ({ level, message, reason, index }) =>
        (level === "error" || level === "warn") &&
        !HARMLESS.includes(message) &&
        !(message === NO_CURSOR_YET && index === 1) &&
        !this.#destination.harmless(message) &&
        reason !== RESTARTED_AT_ATTACH,
    );
    if (bad.length > 0)
      throw new Error(
        `the daemon complained ${bad.length} times: ${bad
          .slice(0, 5)
          .map((line) => JSON.stringify(line))
          .join("\n")}`,
      );
  }

  #said(message: string): readonly DaemonLogLine[] {
    return this.#lines().filter((line) => line.message === message);
  }

  #lines(): readonly DaemonLogLine[] {
    return this.#daemons.flatMap((daemon) => daemon.log);
  }

  #tell(what: string): void {
    this.#options.tell?.(what);
  }
}

/** What the report says, in lines for people. */
export function describeReport(report: TortureReport): string {
  const age =
    report.ageMs === null
      ? "not measured"
      : `p50 ${report.ageMs.p50} ms, p99 ${report.ageMs.p99} ms, max ${report.ageMs.max} ms`;
  const mebibytes = (bytes: number) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;
  return [
    `seed ${report.seed}: ${report.seconds} s, ${report.commits} commits, ${report.indexes} indexes, database ${mebibytes(report.databaseBytes)}`,
    `  daemon: ${report.daemonKills} kills, ${report.daemonStops} stops, ${report.daemonRestarts} restarts; writers: ${report.writerKills} kills; ${report.crashes} crashes of all, ${report.calms} calms`,
    `  restores graded: ${report.restoredLatest} latest and ${report.restoredAtTimes} at a time under load, ${report.restoredAtRest} at rest, of ${report.restorePoints} restore points`,
    `  full backups stored: ${JSON.stringify(report.fullBackups)}, begun: ${JSON.stringify(report.fullBackupsBegun)}; comparisons: ${report.comparisons}`,
    `  age of the oldest commit not restorable: ${age}; largest WAL ${mebibytes(report.maxWalBytes)}; stopped in ${report.stopMs.toFixed(0)} ms`,
    ...(report.encryption.rotations === 0
      ? []
      : [
          `  encryption: ${report.encryption.rotations} changes; reencrypt: ${report.encryption.kills} kills, ${report.encryption.killsMidway} of them with objects under two seals`,
        ]),
    ...(report.destination === "" ? [] : [`  ${report.destination}`]),
  ].join("\n");
}

interface Parts {
  readonly directory: TemporaryDirectory;
  readonly cast: Cast;
  readonly rotation: Rotation;
  readonly destination: TortureDestination;
}

function databasePathIn(directory: TemporaryDirectory): string {
  return directory.file("live", "with space and ü.db");
}

function commandLine({
  seed,
  seconds,
  kills,
  writers,
  writerOptions = {},
  settings = {},
  program,
  encrypted,
  rotations,
  ballastBytes,
  destination,
  mirror,
}: TortureOptions): string {
  const parts = [
    `npm run torture -- --seconds ${seconds} --kills ${kills} --writers ${String(writers)} --seed ${seed}`,
  ];
  if (writerOptions.pageSizeBytes !== undefined) parts.push(`--page-size ${writerOptions.pageSizeBytes}`);
  if (writerOptions.autoVacuum !== undefined) parts.push(`--auto-vacuum ${writerOptions.autoVacuum}`);
  if (writerOptions.targetBytes !== undefined) parts.push(`--target-bytes ${writerOptions.targetBytes}`);
  if (ballastBytes !== undefined && ballastBytes > 0) parts.push(`--ballast ${ballastBytes}`);
  if (destination !== undefined && destination !== "file") parts.push(`--to ${destination}`);
  if (mirror === true) parts.push("--mirror");
  if (encrypted === true) parts.push("--encrypted");
  if (rotations !== undefined && rotations > 0) parts.push(`--rotations ${rotations}`);
  if (program === "executable") parts.push("--executable");
  for (const [key, value] of Object.entries(settings)) parts.push(`--set ${key}=${String(value)}`);
  return parts.join(" ");
}

/** Source: https://sqlite.org/fileformat2.html section 1.3. */
function pageSizeOf(database: Buffer): number {
  const field = database.readUInt16BE(16);
  return field === 1 ? 65_536 : field;
}

async function sizeOf(path: string): Promise<number> {
  return (await stat(path).catch(() => null))?.size ?? 0;
}

function countBy(words: readonly string[]): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const word of words) counts[word] = (counts[word] ?? 0) + 1;
  return counts;
}

function percentiles(values: readonly number[]): TortureReport["ageMs"] {
  if (values.length === 0) return null;
  const sorted = values.toSorted((a, b) => a - b);
  const at = (share: number) => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? 0;
  return { p50: at(0.5), p99: at(0.99), max: sorted.at(-1) ?? 0 };
}
