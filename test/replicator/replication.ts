import { realpathSync } from "node:fs";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { emptyKeyRing, keyRing, type SealKey } from "../../src/format/envelope.ts";
import { PLAINTEXT_SEAL } from "../../src/format/names.ts";
import { keyOf, type ReplicaObject } from "../../src/replica/catalog.ts";
import { type ExplainedPlan, planRestore, type RestoreTarget } from "../../src/replica/plan.ts";
import { Replica } from "../../src/replica/replica.ts";
import type { OpenedObject } from "../../src/replica/trailers.ts";
import type { Attachment, ReplicationSettings } from "../../src/replicator/attachment.ts";
import { Destinations, type DestinationsOptions } from "../../src/replicator/destinations.ts";
import { DirectoryWatch } from "../../src/replicator/directory-watch.ts";
import { type Phase, Replicator, type ReplicatorInputs } from "../../src/replicator/replicator.ts";
import type { Shipper } from "../../src/replicator/shipper.ts";
import { type Cursor, readCursor } from "../../src/state/cursor.ts";
import { type StatePaths, statePaths } from "../../src/state/layout.ts";
import type { Backend } from "../../src/storage/backend.ts";
import { FileBackend } from "../../src/storage/file.ts";
import { MemoryBackend } from "../../src/storage/memory.ts";
import type { Clock } from "../../src/util/clock.ts";
import type { LogFields, Logger, LogLevel } from "../../src/util/logger.ts";
import { Semaphore } from "../../src/util/semaphore.ts";
import { type Grade, gradeRestore } from "../oracle/grade.ts";
import type { WriterSpec } from "../oracle/protocol.ts";
import { allAcks, startWriter, type WriterProcess } from "../oracle/writer-process.ts";
import { layInMemory } from "../replica/lay.ts";
import { eventually, withDeadline } from "../support/eventually.ts";
import { lockSummary, procLocks } from "../support/proc-locks.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";
import { copyDatabase } from "../support/truncate-checkpoint.ts";
import { GatedBackend } from "./gated-backend.ts";

export const DATABASE = "app";
export const FULL = /\/full\//;
export const CHANGE_SET = /\/L0\//;

export interface LogLine {
  readonly level: LogLevel;
  readonly message: string;
  readonly fields: LogFields;
}

/** Remembers every line. */
export class MemoryLog implements Logger {
  readonly lines: LogLine[] = [];

  error(message: string, fields: LogFields = {}): void {
    this.lines.push({ level: "error", message, fields });
  }

  warn(message: string, fields: LogFields = {}): void {
    this.lines.push({ level: "warn", message, fields });
  }

  info(message: string, fields: LogFields = {}): void {
    this.lines.push({ level: "info", message, fields });
  }

  debug(message: string, fields: LogFields = {}): void {
    this.lines.push({ level: "debug", message, fields });
  }

  child(): Logger {
    return this;
  }

  find(pattern: RegExp, level?: LogLevel): readonly LogLine[] {
    return this.lines.filter((line) => pattern.test(line.message) && (level === undefined || line.level === level));
  }

  get text(): string {
    return this.lines.map(({ level, message, fields }) => `${level} ${message} ${JSON.stringify(fields)}`).join("\n");
  }
}

/** The real clocks, with a wall clock that a test may set. */
export class SteppedClock implements Clock {
  #offsetMs = 0;

  nowMs(): number {
    return Date.now() + this.#offsetMs;
  }

  monotonicMs(): number {
    return performance.now();
  }

  step(ms: number): void {
    this.#offsetMs += ms;
  }
}

/** Fast, and without anything that happens by time alone. */
export const QUICK: ReplicationSettings = {
  debounceMs: 5,
  maxBatchDelayMs: 50,
  safetyPollMs: 200,
  busyTimeoutMs: 5000,
  maxWalSizeBytes: 64 * 1024 * 1024,
  snapshotIntervalMs: 24 * 3600_000,
  maxSegmentsPerSnapshot: 0,
  compression: "none",
  compressionLevel: 1,
};

/** Nothing that is waited for takes a second on a machine with nothing else to do. */
const DEADLINE_MS = 20_000;

type Settings = { -readonly [Name in keyof ReplicationSettings]: ReplicationSettings[Name] };

export interface DaemonOptions {
  readonly settings?: Partial<ReplicationSettings>;
  /** The test's own by default. */
  readonly backend?: Backend;
  /** Several of them, in lock-step. */
  readonly backends?: readonly Backend[];
  readonly lockStep?: Pick<DestinationsOptions, "onIncomplete" | "times" | "policy">;
  readonly key?: SealKey | null;
  readonly acceptPlaintext?: boolean;
  readonly takeOver?: boolean;
  readonly convertToWal?: boolean;
  readonly databasePath?: string;
  readonly slots?: Semaphore;
}

export interface Restored {
  readonly plan: ExplainedPlan;
  readonly bytes: Uint8Array;
}

/** One replicator that runs in this process, as a daemon would run it. */
export class Daemon implements AsyncDisposable {
  readonly replicator: Replicator;
  readonly log: MemoryLog;
  readonly databasePath: string;
  /** Those that the replicator uses: a change takes effect at once. */
  readonly settings: Settings;
  readonly #watch: DirectoryWatch;
  readonly #stop = new AbortController();
  #ended: Promise<void> = Promise.resolve();
  #isClosed = false;

  constructor(
    inputs: Omit<ReplicatorInputs, "watch" | "log" | "run" | "randomHex" | "settings"> & {
      settings: Settings;
      log: MemoryLog;
    },
  ) {
    this.log = inputs.log;
    this.databasePath = inputs.path;
    this.settings = inputs.settings;
    this.#watch = new DirectoryWatch(this.log);
    this.replicator = new Replicator({ ...inputs, watch: this.#watch, log: this.log, run: randomHex(16), randomHex });
  }

  async start(): Promise<this> {
    await this.replicator.prepare();
    this.#ended = this.replicator.run(this.#stop.signal);
    return this;
  }

  get attachment(): Attachment | null {
    return this.replicator.attachment;
  }

  /** Resolves when change-sets are shipped. */
  async shipping(deadlineMs?: number): Promise<Attachment> {
    return await this.until(
      "shipping to begin",
      () => (this.attachment?.starting === null ? this.attachment : null),
      deadlineMs,
    );
  }

  async shipper(): Promise<Shipper> {
    const { shipper } = await this.shipping();
    if (shipper === null) throw new Error("an attachment that has started has a shipper");
    return shipper;
  }

  /** Resolves when all that is committed by now is captured. */
  async captured(): Promise<Attachment> {
    return await this.until("a capture", async () => {
      const { attachment } = this;
      const capture = attachment?.capture.nextCapture();
      // An attachment that ends meanwhile is followed by another one.
      await (capture === undefined ? undefined : withDeadline(capture, { what: "the next capture" }));
      return attachment;
    });
  }

  /** Resolves when all that is committed by now is stored, with no full backup on its way. */
  async synced(deadlineMs?: number): Promise<void> {
    await this.shipping(deadlineMs);
    await this.captured();
    await this.until(
      "everything to be stored",
      () => {
        const { attachment } = this;
        return (
          attachment?.shipper?.isIdle === true &&
          attachment.fullBackups?.underWay === null &&
          attachment.fullBackups.due() === null
        );
      },
      deadlineMs,
    );
  }

  /** Lets a day pass, after which a full backup is due by its interval, and has that looked at. */
  async passDay(clock: SteppedClock): Promise<void> {
    clock.step(25 * 3_600_000);
    await this.lookAtSchedule();
  }

  /** Has it looked at now whether a full backup is due. */
  async lookAtSchedule(): Promise<void> {
    const { fullBackups } = await this.shipping();
    // Stored objects are what a schedule by count looks at; that one is never due here.
    this.settings.maxSegmentsPerSnapshot = 1_000_000;
    fullBackups?.noteStored();
  }

  /** From now on nothing is shipped for the passing of time alone. */
  holdBack(): void {
    Object.assign(this.settings, { debounceMs: 3_600_000, maxBatchDelayMs: 3_600_000 });
  }

  /** Undoes `holdBack`. */
  async letGo(): Promise<void> {
    Object.assign(this.settings, { debounceMs: QUICK.debounceMs, maxBatchDelayMs: QUICK.maxBatchDelayMs });
    (await this.shipper()).captured(0);
  }

  async until<T>(what: string, condition: Parameters<typeof eventually<T>>[0], deadlineMs?: number): Promise<T> {
    return await eventually(condition, {
      what,
      explain: () => this.log.text,
      deadlineMs: deadlineMs ?? DEADLINE_MS,
    });
  }

  /** Stops in an orderly way and gives the last phase. Throws if a lock on the database is left. */
  async stop(deadlineMs = 12_000): Promise<Phase> {
    // Who has waited once in vain is not made to wait as long again when the test cleans up.
    const isRepeated = this.#stop.signal.aborted;
    this.#stop.abort();
    await withDeadline(this.#ended, {
      what: "the replicator to stop",
      deadlineMs: isRepeated ? 100 : deadlineMs,
      explain: () => this.log.text,
    });
    if (!this.#isClosed) {
      this.#isClosed = true;
      this.#watch[Symbol.dispose]();
      await this.replicator.close();
    }
    this.assertNoLocks();
    return this.replicator.phase;
  }

  /** This process has no lock on the database; no other replicator may follow it here. */
  assertNoLocks(): void {
    const locks = lockSummary(procLocks(process.pid, this.databasePath));
    if (locks !== "") throw new Error(`locks are left on ${this.databasePath}: ${locks}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#isClosed) await this.stop();
  }
}

export interface ReplicationOptions {
  /** Where to store; by default in memory. */
  readonly backend?: Backend;
  /** Store in a directory, for daemons in processes of their own. */
  readonly inDirectory?: boolean;
  readonly settings?: Partial<ReplicationSettings>;
  readonly writer?: Partial<WriterSpec>;
}

/**
 * A database with an application in a process of its own, a destination, and the daemons that come and go, which run in
 * this process: so nothing here may open the database, for closing it would drop their locks.
 */
export class Replication implements AsyncDisposable {
  readonly directory: TemporaryDirectory;
  readonly databasePath: string;
  /** What daemons store to and restores read from; a test may put another one in its place. */
  backend: GatedBackend;
  readonly clock = new SteppedClock();
  readonly writers: WriterProcess[] = [];
  readonly daemons: Daemon[] = [];
  readonly #options: ReplicationOptions;
  /** Committed states by the SHA-256 of the file that they are. */
  readonly #committed = new Map<string, string>();

  private constructor(directory: TemporaryDirectory, options: ReplicationOptions) {
    this.directory = directory;
    this.databasePath = directory.file("db", "app.db");
    const inDirectory = options.inDirectory === true ? new FileBackend({ path: directory.file("backup") }) : null;
    this.backend = new GatedBackend(options.backend ?? inDirectory ?? new MemoryBackend());
    this.#options = options;
  }

  /** With a paused writer that has made its tables; `idle`: with an empty directory. */
  static async begin(options: ReplicationOptions & { readonly idle?: boolean } = {}): Promise<Replication> {
    const replication = new Replication(await temporaryDirectory("replication"), options);
    await mkdir(replication.directory.file("db"));
    if (options.idle !== true) await replication.startWriter();
    return replication;
  }

  get paths(): StatePaths {
    return statePaths(this.databasePath, DATABASE);
  }

  get writer(): WriterProcess {
    const writer = this.writers.findLast((candidate) => candidate.running);
    if (writer === undefined) throw new Error("no writer runs");
    return writer;
  }

  async startWriter(spec: Partial<WriterSpec> = {}): Promise<WriterProcess> {
    const writer = await startWriter({
      database: this.databasePath,
      id: this.writers.length + 1,
      seed: 7,
      startPaused: true,
      walAutocheckpoint: 0,
      ...this.#options.writer,
      ...spec,
    });
    this.writers.push(writer);
    return writer;
  }

  /** Ends the writer in an orderly way; as the last connection it takes the WAL with it. */
  async stopWriter(): Promise<void> {
    await this.writer.stop();
  }

  async startDaemon(options: DaemonOptions = {}): Promise<Daemon> {
    const key = options.key ?? null;
    const backends = options.backends ?? [options.backend ?? this.backend];
    const log = new MemoryLog();
    const daemon = new Daemon({
      database: DATABASE,
      path: options.databasePath ?? this.databasePath,
      destinations: new Destinations(
        DATABASE,
        backends.map((backend) => ({ backend, type: "memory" })),
        { ...options.lockStep, clock: this.clock, log },
      ),
      settings: { ...QUICK, ...this.#options.settings, ...options.settings },
      convertToWal: options.convertToWal ?? false,
      keys: key === null ? emptyKeyRing : keyRing([key]),
      sealKey: key,
      acceptPlaintext: options.acceptPlaintext ?? key === null,
      takeOver: options.takeOver ?? false,
      writer: "bakelite/test",
      slots: options.slots ?? new Semaphore(1),
      clock: this.clock,
      log,
    });
    this.daemons.push(daemon);
    return await daemon.start();
  }

  /** A daemon that has stored the whole database and stays. */
  async startSynced(options: DaemonOptions = {}): Promise<Daemon> {
    const daemon = await this.startDaemon(options);
    await daemon.synced();
    return daemon;
  }

  /**
   * A table of `rows` rows of one page each, their page numbers ascending with `id`, and after all other pages. All in the
   * file, with a WAL begun anew. For the beginning, when no daemon follows.
   */
  async makeRows(rows: number): Promise<void> {
    await this.writer.sql("CREATE TABLE pad (id INTEGER PRIMARY KEY, body BLOB)");
    await this.writer.sql(
      `WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n WHERE id < ${rows}) INSERT INTO pad SELECT id, ${rowBody("id", "'0'")} FROM n`,
    );
    await this.writer.checkpoint("TRUNCATE");
    await this.writer.sql("PRAGMA user_version=1");
  }

  /** Gives these rows, in one transaction, the content of `version`: the same version gives the same page images. */
  async setRows(version: string, ...ids: readonly number[]): Promise<void> {
    await this.writer.sql(`UPDATE pad SET body = ${rowBody("id", `'${version}'`)} WHERE id IN (${ids.join()})`);
  }

  async setAllRows(version: string): Promise<void> {
    await this.writer.sql(`UPDATE pad SET body = ${rowBody("id", `'${version}'`)}`);
  }

  /** Notes the committed state of this moment, as SQLite's own checkpoint writes it. Nothing may be written meanwhile. */
  async noteCommitted(label: string): Promise<Uint8Array> {
    const bytes = await checkpointedCopy(realpathSync(this.databasePath));
    this.#committed.set(sha256(bytes), label);
    return bytes;
  }

  async openReplica(options: { readonly key?: SealKey | null; readonly backend?: Backend } = {}): Promise<Replica> {
    const key = options.key ?? null;
    return await Replica.open({
      database: DATABASE,
      backends: [options.backend ?? this.backend],
      keys: key === null ? emptyKeyRing : keyRing([key]),
      seal: key?.fingerprint ?? PLAINTEXT_SEAL,
      acceptPlaintext: key === null,
    });
  }

  /** Every restore point, after reading all trailers. */
  async restorePoints(): Promise<readonly number[]> {
    const replica = await this.openReplica();
    await replica.trailers.load([...replica.catalog.fulls, ...replica.catalog.changeSets]);
    return replica.graph.restorePoints;
  }

  async restore(
    target: RestoreTarget = { kind: "latest" },
    options: { readonly key?: SealKey | null } = {},
  ): Promise<Restored> {
    const replica = await this.openReplica(options);
    const plan = await planRestore(replica, target);
    const { file, laid } = await layInMemory(replica, plan);
    if (laid.plan.index !== plan.index) throw new Error("another state was laid down than planned");
    return { plan, bytes: file };
  }

  /** Restores every restore point and throws unless each is a state that was noted; gives the labels by index. */
  async restoreAll(): Promise<ReadonlyMap<number, string>> {
    const labels = new Map<number, string>();
    for (const index of await this.restorePoints()) {
      const { bytes } = await this.restore({ kind: "index", index });
      const label = this.#committed.get(sha256(bytes));
      if (label === undefined) throw new Error(`state ${index} is no committed state: ${await this.describeObjects()}`);
      labels.set(index, label);
    }
    return labels;
  }

  /** The newest restore point equals the live database byte for byte, and the oracle finds all its commits there. */
  async assertLatestIsLive(options: { readonly key?: SealKey | null } = {}): Promise<Grade> {
    const live = await checkpointedCopy(realpathSync(this.databasePath));
    const { bytes, plan } = await this.restore({ kind: "latest" }, options);
    if (Buffer.compare(bytes, live) !== 0) {
      throw new Error(
        `state ${plan.index} is not the live database (${firstDifference(bytes, live)}): ${await this.describeObjects(options)}`,
      );
    }
    return await this.grade(bytes);
  }

  /** Grades a restored file; by default nothing that was acknowledged may be missing. */
  async grade(
    bytes: Uint8Array,
    held: { readonly storedFloorN?: number; readonly targetMs?: number } = {},
  ): Promise<Grade> {
    const path = this.directory.file("graded.db");
    await writeFile(path, bytes);
    return gradeRestore({ path, acks: allAcks(this.writers), storedFloorN: this.commits, ...held });
  }

  /** How many numbered commits were acknowledged. */
  get commits(): number {
    return allAcks(this.writers).at(-1)?.n ?? 0;
  }

  async keys(): Promise<readonly string[]> {
    const keys: string[] = [];
    for await (const { key } of this.backend.list(`${DATABASE}/`)) keys.push(key);
    return keys;
  }

  /** Full backups and change-sets with their trailers, by kind, then index. */
  async objects(options: { readonly key?: SealKey | null } = {}): Promise<readonly OpenedObject[]> {
    const replica = await this.openReplica(options);
    const opened: OpenedObject[] = [];
    for (const object of [...replica.catalog.fulls, ...replica.catalog.changeSets]) {
      const reader = await replica.trailers.open(object);
      if (reader !== null) opened.push(reader);
    }
    return opened;
  }

  async fulls(options: { readonly key?: SealKey | null } = {}): Promise<readonly OpenedObject[]> {
    return (await this.objects(options)).filter(({ object }) => object.kind === "full");
  }

  async changeSets(options: { readonly key?: SealKey | null } = {}): Promise<readonly OpenedObject[]> {
    return (await this.objects(options)).filter(({ object }) => object.kind === "change-set");
  }

  async describeObjects(options: { readonly key?: SealKey | null } = {}): Promise<string> {
    return (await this.objects(options))
      .map(
        ({ object, reader: { trailer } }) =>
          `${describe(object)} settled ${trailer.settled} size ${trailer.sizePages} pages ${trailer.pageCount}`,
      )
      .join("; ");
  }

  async cursor(): Promise<Cursor> {
    const found = await readCursor(this.paths.cursor);
    if ("cursor" in found) return found.cursor;
    throw new Error(`no cursor: ${JSON.stringify(found)}`);
  }

  /** Runs a program outside this process, which must never open the database file itself. */
  async shell(script: string, ...parameters: readonly string[]): Promise<string> {
    const child = Bun.spawn(["sh", "-euc", script, "sh", ...parameters], {
      stdin: "ignore",
      stdout: "pipe",
      stderr: "pipe",
    });
    const [output, message, status] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
    if (status !== 0) throw new Error(`${script} ended with status ${status}: ${message}`);
    return output;
  }

  /** Copies the quiet database and its `-wal` to `name` in the test's directory. */
  async copyDatabase(name: string): Promise<string> {
    const path = this.directory.file(name);
    await this.shell(
      'cp "$1" "$2"; rm -f "$2-wal"; if [ -e "$1-wal" ]; then cp "$1-wal" "$2-wal"; fi',
      this.databasePath,
      path,
    );
    return path;
  }

  /** Writes into page `page` of the file, behind SQLite's back. Only where nothing of the page stands in the WAL. */
  async overwriteInPage(page: number, offset: number, text: string, pageSizeBytes = 4096): Promise<void> {
    await this.shell(
      'printf %s "$1" | dd of="$2" bs=1 seek="$3" conv=notrunc status=none',
      text,
      this.databasePath,
      String((page - 1) * pageSizeBytes + offset),
    );
  }

  /** Every restore point is a state that the oracle accepts, and the newest is the live database. */
  async assertSound(): Promise<void> {
    await this.assertLatestIsLive();
    for (const index of await this.restorePoints())
      await this.grade((await this.restore({ kind: "index", index })).bytes, { storedFloorN: 0 });
  }

  async stopDaemons(): Promise<void> {
    for (const daemon of this.daemons) await daemon[Symbol.asyncDispose]();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.stopDaemons();
    } finally {
      for (const writer of this.writers) await writer[Symbol.asyncDispose]();
      await this.directory[Symbol.asyncDispose]();
    }
  }
}

/** The page in which `text` stands for the first time. */
export function pageWith(bytes: Uint8Array, text: string, pageSizeBytes = 4096): number {
  const at = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).indexOf(text);
  if (at < 0) throw new Error(`${text} is nowhere in the database`);
  return Math.floor(at / pageSizeBytes) + 1;
}

export function describe(object: ReplicaObject): string {
  return keyOf(DATABASE, object).slice(DATABASE.length + 1);
}

/** 3,900 bytes that begin with `row <id> version <version>.`, so that a row fills most of a page of 4 KiB. */
function rowBody(id: string, version: string): string {
  return `CAST(substr('row ' || ${id} || ' version ' || ${version} || '.' || printf('%.*c', 3900, 'x'), 1, 3900) AS BLOB)`;
}

/** Its first argument is the database whose WAL it checkpoints; nothing of it need be durable. */
const CHECKPOINT_PROGRAM = `
import { Database } from "bun:sqlite";
const db = new Database(process.argv[1], { readwrite: true, create: false });
db.run("PRAGMA synchronous=OFF");
const { busy } = db.query("PRAGMA wal_checkpoint(TRUNCATE)").get();
if (busy !== 0) throw new Error("the checkpoint of a copy is busy");
db.close();
`;

/** The bytes of the database file after SQLite's own checkpoint of a copy. The database must be quiet meanwhile. */
async function checkpointedCopy(databasePath: string): Promise<Uint8Array> {
  await using directory = await temporaryDirectory("judge");
  const copy = directory.file("database");
  await copyDatabase(databasePath, copy);
  const child = Bun.spawn([process.execPath, "-e", CHECKPOINT_PROGRAM, copy], {
    stdin: "ignore",
    stdout: "ignore",
    stderr: "pipe",
  });
  const [errors, status] = await Promise.all([child.stderr.text(), child.exited]);
  if (status !== 0) throw new Error(`the judge ended with status ${status}: ${errors}`);
  return await readFile(copy);
}

function firstDifference(a: Uint8Array, b: Uint8Array): string {
  if (a.length !== b.length) return `${a.length} bytes and ${b.length}`;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return `byte ${i}`;
  return "none";
}

function sha256(bytes: Uint8Array): string {
  return new Bun.CryptoHasher("sha256").update(bytes).digest("hex");
}

function randomHex(bytes: number): string {
  return Buffer.from(crypto.getRandomValues(new Uint8Array(bytes))).toString("hex");
}
