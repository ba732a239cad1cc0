import { isBusy } from "./control.ts";
import type { CaptureResult, WalFollower } from "./follow.ts";

export interface CheckpointOptions {
  /** The WAL may grow to about this size; the further beyond, the longer writers may be made to wait. */
  readonly limitBytes: number;
  /** Milliseconds, monotone. */
  readonly nowMs: () => number;
}

export interface CheckpointReport {
  /**
   * `complete`: all is backfilled, and the next writer that finds no reader on the WAL restarts it. `deadline`: readers
   * kept a part of it. `busy`: the write lock, or a lock that SQLite needs, was not to be had. `behind`: more was
   * committed meanwhile than may be read with writers waiting; capture and call again. All are normal.
   */
  readonly outcome: "complete" | "deadline" | "busy" | "behind";
  /** How long we held the write lock. */
  readonly lockMs: number;
  /** A capture inside the checkpoint ended so. */
  readonly fault: Extract<CaptureResult, { kind: "fault" }> | null;
}

/** With writers waiting, no more than this is read from the WAL. */
const READ_UNDER_LOCK_BYTES = 1024 * 1024;
const LOCK_POLL_MS = 0.05;
const RESTART_WAIT_MS = 50;
const ADVANCE_TRIES = 5;
/** What a checkpoint may make writers wait for readers: at the limit, and at four times the limit and beyond. */
const DEADLINE_MS = { min: 20, max: 100 } as const;
const CAPTURE_PATIENCE_MS = 1000;
/** Writers wait for as long as the follower stands on the write lock, so it has to be closed. */
const NO_HOLD = {
  kind: "fault",
  fault: "wal-chain-broken",
  detail: "no hold could be begun to take the write lock's place",
} as const;

/**
 * Brings the WAL to a point where SQLite's writers restart it, without losing a frame: docs/following-the-wal.md,
 * "A checkpoint". Steps 2 to 6 are one synchronous block, so the event loop can never delay a writer. The thread is blocked
 * for at most about 200 ms and the write lock held for at most about 100 ms beyond the copying itself. After a fault, or
 * anything thrown, close the follower and attach anew: its locks are in no state to go on with.
 */
export class Checkpointer {
  readonly #follower: WalFollower;
  readonly #options: CheckpointOptions;
  /** Salts after the last complete checkpoint, while no writer has restarted the WAL since. */
  #unrestartedSalt: string | null = null;

  constructor(follower: WalFollower, options: CheckpointOptions) {
    this.#follower = follower;
    this.#options = options;
  }

  /**
   * The WAL has grown past its limit. After a complete checkpoint that no writer followed with a restart (a reader stood in
   * the way), it is due again only when a quarter of the limit was added.
   */
  get isDue(): boolean {
    const { unbackfilledBytes, committedBytes } = this.#follower;
    if (committedBytes <= this.#options.limitBytes || unbackfilledBytes === 0) return false;
    const salt = this.#follower.position?.salt.join() ?? null;
    return salt !== this.#unrestartedSalt || unbackfilledBytes > this.#options.limitBytes / 4;
  }

  /**
   * The first step of `run` alone: captures to the end and moves the hold there, so that a PASSIVE checkpoint elsewhere can
   * copy nearly all of a large WAL beforehand. Returns a fault that the capture met, or null.
   */
  advance(): CheckpointReport["fault"] {
    try {
      return this.#advanceHold();
    } catch (error) {
      if (isBusy(error)) return null;
      throw error;
    }
  }

  run(): CheckpointReport {
    const { holds } = this.#follower;
    try {
      const advanced = this.#advanceHold();
      if (advanced !== null) return { outcome: "busy", lockMs: 0, fault: advanced };
      holds.idle.passive();
      const deadlineMs = this.#deadlineMs();
      if (!this.#lockWriters(deadlineMs)) return { outcome: "busy", lockMs: 0, fault: null };
      return this.#withWritersWaiting(deadlineMs);
    } catch (error) {
      if (!isBusy(error)) throw error;
      holds.idle.rollback();
      return { outcome: "busy", lockMs: 0, fault: null };
    }
  }

  /** Step 1. Nearly all the copying and all big syncs happen after it without any lock that a writer waits for. */
  #advanceHold(): CheckpointReport["fault"] {
    for (let attempt = 0; attempt < ADVANCE_TRIES; attempt++) {
      const captured = this.#follower.capture();
      if (captured.kind === "fault") return captured;
      if (captured.kind === "busy" || !captured.complete) continue;
      this.#follower.holds.advance();
      return null;
    }
    return null;
  }

  /**
   * Step 2. SQLite's own busy handler sleeps for 1, 2, 5, 10 … ms between two looks, and among writers that wait in the
   * same way or not at all it hardly ever gets the lock; short sleeps do.
   */
  #lockWriters(timeoutMs: number): boolean {
    const untilMs = this.#options.nowMs() + timeoutMs;
    while (!this.#follower.holds.lockWriters()) {
      if (this.#options.nowMs() >= untilMs) return false;
      Bun.sleepSync(LOCK_POLL_MS);
    }
    return true;
  }

  /** Steps 3 to 6. On entry the idle connection has the write lock; on exit none has it. */
  #withWritersWaiting(deadlineMs: number): CheckpointReport {
    const lockedAtMs = this.#options.nowMs();
    const { holds } = this.#follower;
    // The standing hold goes only when the rest is known to be little: dropped too early, the hold that takes its place
    // might be a zero hold with frames unread, and the next writer would restart the WAL over them.
    if (this.#follower.committedBytesAhead() > READ_UNDER_LOCK_BYTES) {
      holds.idle.rollback();
      return this.#report("behind", lockedAtMs);
    }
    holds.standOnWriteLock();
    const fault = this.#captureRest(lockedAtMs + CAPTURE_PATIENCE_MS);
    if (fault !== null) return { ...this.#report("busy", lockedAtMs), fault };
    const complete = this.#backfill(lockedAtMs + deadlineMs);
    if (!this.#unlock(lockedAtMs + deadlineMs + CAPTURE_PATIENCE_MS)) {
      return { ...this.#report("busy", lockedAtMs), fault: NO_HOLD };
    }
    const report = this.#report(complete ? "complete" : "deadline", lockedAtMs);
    if (!complete) return report;
    this.#follower.everythingIsInFile();
    return { ...report, lockMs: report.lockMs + this.#restartIfNobodyDoes(deadlineMs) };
  }

  /** With writers waiting, what is left is little and cannot grow. A failure here costs continuity, never a page. */
  #captureRest(untilMs: number): CheckpointReport["fault"] {
    for (;;) {
      const captured = this.#follower.capture(2 * READ_UNDER_LOCK_BYTES);
      if (captured.kind === "fault") return captured;
      if (captured.kind === "captured" && captured.complete) return null;
      if (captured.kind === "busy" && this.#options.nowMs() >= untilMs) {
        return { kind: "fault", fault: "wal-chain-broken", detail: "the WAL could not be read to its end" };
      }
      if (captured.kind === "busy") Bun.sleepSync(1);
    }
  }

  /** Step 4. PASSIVE waits for nobody; readers that keep pages back may leave until the deadline. */
  #backfill(untilMs: number): boolean {
    const { holds } = this.#follower;
    for (;;) {
      const counts = holds.idle.passive();
      if (!counts.busy && counts.backfilledFrames === counts.committedFrames) return true;
      if (this.#options.nowMs() >= untilMs) return false;
      Bun.sleepSync(1);
    }
  }

  /**
   * Steps 5 and 6: a plain hold takes the write lock's place. All is captured, so any kind of hold will do. False when none
   * was to be had in time.
   */
  #unlock(untilMs: number): boolean {
    for (;;) {
      try {
        this.#follower.holds.unlockWriters();
        return true;
      } catch (error) {
        if (!isBusy(error)) throw error;
        if (this.#options.nowMs() >= untilMs) return false;
        Bun.sleepSync(1);
      }
    }
  }

  /**
   * A writer restarts a WAL that is wholly backfilled, unless a reader of the old WAL is always there. Where the checkpoint
   * before this one was not followed by new salts, RESTART drains those readers, for a moment, with the write lock held.
   * Returns how long that took, in milliseconds.
   */
  #restartIfNobodyDoes(deadlineMs: number): number {
    const salt = this.#follower.position?.salt.join() ?? null;
    const again = salt !== null && salt === this.#unrestartedSalt;
    this.#unrestartedSalt = salt;
    if (!again) return 0;
    const { holds } = this.#follower;
    const counts = holds.count();
    if (counts.committedFrames === 0 || counts.committedFrames !== counts.backfilledFrames) return 0;
    const startedMs = this.#options.nowMs();
    holds.idle.restart(Math.min(deadlineMs, RESTART_WAIT_MS));
    return this.#options.nowMs() - startedMs;
  }

  #deadlineMs(): number {
    const times = this.#follower.committedBytes / Math.max(1, this.#options.limitBytes);
    return Math.min(DEADLINE_MS.max, Math.max(DEADLINE_MS.min, DEADLINE_MS.min + ((times - 1) * 80) / 3));
  }

  #report(outcome: CheckpointReport["outcome"], lockedAtMs: number): CheckpointReport {
    return { outcome, lockMs: this.#options.nowMs() - lockedAtMs, fault: null };
  }
}
