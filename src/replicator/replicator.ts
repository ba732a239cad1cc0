import { convertToWal } from "../sqlite/control.ts";
import { inspectDatabase } from "../sqlite/inspect.ts";
import { acquireInstanceLock, type InstanceLock } from "../state/instance-lock.ts";
import { resolveDatabasePath, stateDirectory, statePaths, sweepStateDirectory } from "../state/layout.ts";
import { backoffDelayMs } from "../util/backoff.ts";
import { abortedLater, delay } from "../util/delay.ts";
import { BakeliteError, describeError } from "../util/errors.ts";
import { Wakeup } from "../util/wakeup.ts";
import type { FullBackupRecord } from "./adopt.ts";
import { Attachment, type AttachmentEnd, type AttachmentInputs, NOT_COMPARED } from "./attachment.ts";
import type { DirectoryWatch } from "./directory-watch.ts";
import { Health } from "./health.ts";
import type { StoredState } from "./stored-state.ts";

export interface ReplicatorInputs extends Omit<AttachmentInputs, "path" | "paths" | "changed" | "health" | "onChange"> {
  /** Absolute, as configured; links are followed. */
  readonly path: string;
  readonly convertToWal: boolean;
  readonly watch: DirectoryWatch;
}

/** What a replicator is doing, as far as it can be said in a word. */
export type Phase =
  | { readonly kind: "waiting"; readonly detail: string }
  | { readonly kind: "not wal"; readonly detail: string }
  | { readonly kind: "attached" }
  | { readonly kind: "failed" }
  | { readonly kind: "starting" }
  | { readonly kind: "stopped"; readonly detail: string | null };

const NOT_WAL = "the database is not backed up: it is not in WAL mode";

const RETRY_BASE_MS = 1000;
const FAULT_MEMORY_MS = 60_000;
const ABSENT_POLL_MS = 1000;
const BUSY_POLL_MS = 50;
/** How long a clean stop goes on with finding out what is stored, and shipping what is not. */
const STOP_PATIENCE_MS = 8000;
/** Older temporary files in the state directory are a dead process's. */
const LEFTOVER_AGE_MS = 60 * 60 * 1000;

/** What is known of the replica, also while nothing is attached. */
export interface Known {
  readonly stored: StoredState | null;
  readonly fullBackup: FullBackupRecord | null;
  /** When everything captured was last known to be stored, Unix milliseconds. */
  readonly lastSyncedMs: number | null;
}

export interface Totals {
  readonly changeSets: number;
  readonly bytesShipped: number;
  readonly longestLockMs: number;
  readonly fullBackupsByReason: Readonly<Record<string, number>>;
}

/** Keeps one database replicated for as long as the daemon runs, whatever happens to its file. */
export class Replicator {
  readonly inputs: ReplicatorInputs;
  readonly health: Health;
  readonly #changed = new Wakeup();
  #lock: InstanceLock | null = null;
  #attachment: Attachment | null = null;
  #phase: Phase = { kind: "starting" };
  #phaseSinceMs: number;
  #busySinceMs: number | null = null;
  #faults = 0;
  #lastFaultMs = Number.NEGATIVE_INFINITY;
  #knownBefore: Known = { stored: null, fullBackup: null, lastSyncedMs: null };
  #onChange: () => void = () => {};
  #before: Totals = { changeSets: 0, bytesShipped: 0, longestLockMs: 0, fullBackupsByReason: {} };

  constructor(inputs: ReplicatorInputs) {
    this.inputs = inputs;
    this.health = new Health(
      () => inputs.clock.nowMs(),
      () => this.#onChange(),
    );
    this.#phaseSinceMs = inputs.clock.nowMs();
  }

  get phase(): Phase {
    return this.#phase;
  }

  get isLocked(): boolean {
    return this.#lock !== null;
  }

  /** Counters of this run, over all attachments. */
  get totals(): Totals {
    const now = this.#attachment === null ? null : totalsOf(this.#attachment);
    return now === null ? this.#before : addTotals(this.#before, now);
  }

  get known(): Known {
    const shipper = this.#attachment?.shipper ?? null;
    if (this.#attachment === null || shipper === null) return this.#knownBefore;
    const lastSyncedMs =
      shipper.isIdle && this.#attachment.starting === null ? this.inputs.clock.nowMs() : shipper.lastSyncedMs;
    return { stored: shipper.stored, fullBackup: this.#attachment.local.fullBackup, lastSyncedMs };
  }

  get phaseSinceMs(): number {
    return this.#phaseSinceMs;
  }

  get attachment(): Attachment | null {
    return this.#attachment;
  }

  /** Real path of the database file once the lock is held; until then as configured. */
  get path(): string {
    return this.#lock?.databasePath ?? this.inputs.path;
  }

  /** Calls `listener` whenever what a status would say has changed in kind. */
  onChange(listener: () => void): void {
    this.#onChange = listener;
  }

  /**
   * Takes the lock on the database file, so that a second daemon is refused before anything runs. Throws `locked`. A
   * database whose directory is not there yet is locked later.
   */
  async prepare(): Promise<void> {
    // Somebody who removes `.bakelite/` takes the lock with it: another daemon could start, and nothing could be written.
    if (this.#lock !== null && !(await this.#lock.isInPlace())) await this.close();
    if (this.#lock !== null) return;
    try {
      const path = await resolveDatabasePath(this.inputs.path);
      this.#lock = await acquireInstanceLock(path, this.inputs.log);
      await sweepStateDirectory(stateDirectory(path), {
        olderThanMs: LEFTOVER_AGE_MS,
        nowMs: this.inputs.clock.nowMs(),
      });
    } catch (error) {
      if (error instanceof BakeliteError && error.code === "not-found") return;
      throw error;
    }
  }

  /**
   * Runs until `stop` is aborted; never throws. Everything committed is shipped before it resolves, if that is possible within some
   * seconds, for which a database whose following ended at that very moment is attached to once more; else the status says what is left.
   */
  async run(stop: AbortSignal): Promise<void> {
    const deadline = abortedLater(stop, STOP_PATIENCE_MS);
    let failures = 0;
    let left: string | null = NOT_COMPARED;
    // Something may have been committed since the last look.
    let isUnseen = false;
    let isLastTry = false;
    while (!stop.aborted || (isUnseen && !isLastTry)) {
      isLastTry = stop.aborted;
      isUnseen = false;
      left = NOT_COMPARED;
      try {
        const end = await this.#once(stop, deadline);
        failures = 0;
        this.#busySinceMs = null;
        if (end?.kind === "stopped") return this.#stopped(end.left);
        isUnseen = true;
        if (end === null) left = this.#phase.kind === "not wal" ? NOT_WAL : null;
        if (end?.kind === "fault") {
          this.inputs.log.warn("following is interrupted: attaching anew", { reason: end.detail });
          await this.#restAfterFault(stop);
        }
      } catch (error) {
        if (await this.#isPatient(error, deadline)) {
          // As when the application closes the database: soon over, and so waited for at a stop as well.
          isUnseen = true;
          isLastTry = deadline.aborted;
          continue;
        }
        failures++;
        this.health.failed(error);
        this.#enter({ kind: "failed" });
        left = `replication was interrupted before the stop: ${this.health.lastError?.message ?? ""}`;
        const waitMs = backoffDelayMs(failures, { baseMs: RETRY_BASE_MS });
        this.inputs.log.error(`replication is interrupted${stop.aborted ? "" : "; trying again"}`, {
          error: describeError(error),
          hint: error instanceof BakeliteError ? error.hint : undefined,
          waitMs: Math.round(waitMs),
        });
        await delay(waitMs, stop).catch(() => {});
      } finally {
        this.#before = this.totals;
        this.#knownBefore = this.known;
        this.#attachment = null;
      }
    }
    this.#stopped(left);
  }

  /** Gives the lock back. After `run`. */
  async close(): Promise<void> {
    await this.#lock?.[Symbol.asyncDispose]();
    this.#lock = null;
  }

  /** A lock that somebody else holds is no failure before `busy_timeout` has passed. */
  async #isPatient(error: unknown, deadline: AbortSignal): Promise<boolean> {
    if (!(error instanceof BakeliteError) || error.code !== "database-busy") return false;
    const { clock, settings } = this.inputs;
    this.#busySinceMs ??= clock.monotonicMs();
    if (clock.monotonicMs() - this.#busySinceMs >= settings.busyTimeoutMs) return false;
    await delay(BUSY_POLL_MS, deadline).catch(() => {});
    return true;
  }

  /** The first fault is attached after at once; those that follow one another closely are not to keep the machine busy. */
  async #restAfterFault(stop: AbortSignal): Promise<void> {
    const nowMs = this.inputs.clock.monotonicMs();
    this.#faults = nowMs - this.#lastFaultMs > FAULT_MEMORY_MS ? 1 : this.#faults + 1;
    if (this.#faults > 1)
      await delay(backoffDelayMs(this.#faults - 1, { baseMs: RETRY_BASE_MS }), stop).catch(() => {});
    this.#lastFaultMs = this.inputs.clock.monotonicMs();
  }

  async #once(stop: AbortSignal, deadline: AbortSignal): Promise<AttachmentEnd | null> {
    await this.prepare();
    if (this.#lock === null)
      return await this.#wait({ kind: "waiting", detail: "the database's directory does not exist yet" }, stop);
    const path = this.#lock.databasePath;
    const found = inspectDatabase(path);
    if (found.kind === "missing")
      return await this.#wait({ kind: "waiting", detail: "the database file does not exist yet" }, stop);
    if (found.kind === "empty")
      return await this.#wait({ kind: "waiting", detail: "the database file is empty" }, stop);
    if (found.kind === "not-sqlite") {
      throw new BakeliteError("database-unfit", "the file is not a SQLite database", {
        subject: path,
        hint: "correct `path` in the config, or move the file away",
      });
    }
    if (!found.header.isWal) {
      if (!this.inputs.convertToWal) return await this.#waitForWal(path, stop);
      convertToWal(path);
      this.inputs.log.warn("put the database into WAL mode, as convert_to_wal allows", { path });
    }
    return await this.#attach(path, stop, deadline);
  }

  async #attach(path: string, stop: AbortSignal, deadline: AbortSignal): Promise<AttachmentEnd> {
    using _watching = this.inputs.watch.add(path, this.#changed);
    const attachment = await Attachment.begin({
      ...this.inputs,
      path,
      paths: statePaths(path, this.inputs.database),
      changed: this.#changed,
      health: this.health,
      onChange: () => this.#onChange(),
    });
    this.#attachment = attachment;
    this.#enter({ kind: "attached" });
    return await attachment.run(stop, deadline);
  }

  async #waitForWal(path: string, stop: AbortSignal): Promise<null> {
    const detail = `run: sqlite3 '${path}' 'PRAGMA journal_mode=WAL'`;
    return await this.#wait({ kind: "not wal", detail }, stop);
  }

  async #wait(phase: Extract<Phase, { kind: "waiting" | "not wal" }>, stop: AbortSignal): Promise<null> {
    if (this.#phase.kind !== phase.kind) {
      const { log } = this.inputs;
      const fields = { path: this.path, reason: phase.detail };
      if (phase.kind === "not wal") log.warn(NOT_WAL, fields);
      else log.info("waiting for the database", fields);
    }
    this.#enter(phase);
    await this.#changed.wait(ABSENT_POLL_MS, stop);
    return null;
  }

  #stopped(detail: string | null): void {
    if (detail !== null) this.inputs.log.info("stopped before everything was stored", { reason: detail });
    this.#enter({ kind: "stopped", detail });
  }

  #enter(phase: Phase): void {
    if (phase.kind !== this.#phase.kind) this.#phaseSinceMs = this.inputs.clock.nowMs();
    this.#phase = phase;
    this.#onChange();
  }
}

function totalsOf({ shipper, fullBackups, capture }: Attachment): Totals {
  return {
    changeSets: shipper?.changeSets ?? 0,
    bytesShipped: (shipper?.bytesShipped ?? 0) + (fullBackups?.bytesShipped ?? 0),
    longestLockMs: capture.longestLockMs,
    fullBackupsByReason: Object.fromEntries(fullBackups?.byReason ?? []),
  };
}

function addTotals(a: Totals, b: Totals): Totals {
  const fullBackupsByReason: Record<string, number> = { ...a.fullBackupsByReason };
  for (const [reason, count] of Object.entries(b.fullBackupsByReason)) {
    fullBackupsByReason[reason] = (fullBackupsByReason[reason] ?? 0) + count;
  }
  return {
    changeSets: a.changeSets + b.changeSets,
    bytesShipped: a.bytesShipped + b.bytesShipped,
    longestLockMs: Math.max(a.longestLockMs, b.longestLockMs),
    fullBackupsByReason,
  };
}
