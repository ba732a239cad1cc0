import { backgroundCheckpoints } from "../sqlite/background-checkpoint.ts";
import { Checkpointer } from "../sqlite/checkpoint.ts";
import type { CaptureResult, FollowFault, WalFollower } from "../sqlite/follow.ts";
import type { Clock } from "../util/clock.ts";
import { delay } from "../util/delay.ts";
import type { Logger } from "../util/logger.ts";
import { nextTurn } from "../util/turns.ts";
import type { Wakeup } from "../util/wakeup.ts";

export interface CaptureLoopInputs {
  readonly follower: WalFollower;
  readonly clock: Clock;
  readonly log: Logger;
  readonly settings: {
    readonly safetyPollMs: number;
    readonly maxWalSizeBytes: number;
    readonly busyTimeoutMs: number;
  };
  /** Fires when something in the database's directory changed. */
  readonly changed: Wakeup;
  /** Called after each capture of everything that was committed. */
  readonly onCaptured: (commits: number) => void;
}

/** What waits for a capture when following ends: its end says why, so this is nobody's news. */
export class FollowingEnded extends Error {
  override readonly name = "FollowingEnded";

  constructor() {
    super("following the database has ended");
  }
}

/** A burst of file events is looked at once in this time. */
const LOOK_INTERVAL_MS = 20;
/**
 * After a file event we look again, at growing intervals: SQLite writes frames, then syncs them, and only then tells in its
 * WAL index (in memory, without a file event) that they are committed. A look at the event comes too early when the disk is slow.
 */
const LOOK_AGAIN_MS = { first: 40, last: 5120 } as const;
const BUSY_RETRY_MS = 5;
/** How long a clean stop waits for a lock that is in the way of the last capture. */
const LAST_CAPTURE_PATIENCE_MS = 1000;
/** More than this is copied in another thread first: here it would keep other databases waiting. */
const BACKGROUND_BYTES = 8 * 1024 * 1024;
/** What is left after so many was added meanwhile or is held by readers, and copying on would never end. */
const MAX_BACKGROUND_COPIES = 3;
const CHECKPOINT_RETRY_MS = { min: 10, max: 1000 } as const;

/** Continuity is gone: the follower must be closed, and the file compared with the ledger at the next attach. */
export interface EndOfFollowing {
  readonly fault: FollowFault;
  readonly detail: string;
}

/**
 * Captures what is committed soon after it is, and checkpoints when the WAL has grown past its limit, whatever becomes of
 * uploads: the WAL is never held back by a slow destination.
 */
export class CaptureLoop {
  readonly #inputs: CaptureLoopInputs;
  readonly #checkpointer: Checkpointer;
  #waiting: { resolve: () => void; reject: (reason: unknown) => void }[] = [];
  #hasEnded = false;
  #busySinceMs: number | null = null;
  #checkpointRetry = { atMs: 0, delayMs: CHECKPOINT_RETRY_MS.min as number };
  #longestLockMs = 0;
  #isHeldBack = false;
  #background: Promise<void> | null = null;
  #backgroundFailure: unknown = null;
  /** Since the last checkpoint here. */
  #backgroundCopies = 0;
  #reportedBadChecksums = false;

  constructor(inputs: CaptureLoopInputs) {
    this.#inputs = inputs;
    const { follower, clock, settings } = inputs;
    this.#checkpointer = new Checkpointer(follower, {
      limitBytes: settings.maxWalSizeBytes,
      nowMs: () => clock.monotonicMs(),
    });
  }

  /** The last checkpoint did not get through to the end of the WAL, because others were reading or writing. */
  get isHeldBack(): boolean {
    return this.#isHeldBack;
  }

  /** The longest time so far for which we held the database's write lock. */
  get longestLockMs(): number {
    return this.#longestLockMs;
  }

  /** Since when, on the monotonic clock, a lock has kept us from capturing for longer than the configured patience. */
  get lockedOutSinceMs(): number | null {
    const since = this.#busySinceMs;
    const { clock, settings } = this.#inputs;
    return since !== null && clock.monotonicMs() - since > settings.busyTimeoutMs ? since : null;
  }

  /** Resolves after the next capture of everything that was committed; rejects with `FollowingEnded` when there is none. */
  nextCapture(): Promise<void> {
    if (this.#hasEnded) return Promise.reject(new FollowingEnded());
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    this.#waiting.push({ resolve, reject });
    this.#inputs.changed.wake();
    return promise;
  }

  /** Runs until the signal or a fault. Throws what reading the files throws. */
  async run(signal: AbortSignal): Promise<EndOfFollowing | null> {
    const { settings, changed } = this.#inputs;
    try {
      let lookAgainMs: number = LOOK_AGAIN_MS.first;
      while (!signal.aborted) {
        const waitMs = await this.#look(signal);
        if (typeof waitMs !== "number") return waitMs;
        const isWoken = await changed.wait(Math.min(waitMs, lookAgainMs, settings.safetyPollMs), signal);
        if (isWoken) lookAgainMs = LOOK_AGAIN_MS.first;
        else if (waitMs >= lookAgainMs)
          lookAgainMs = lookAgainMs < LOOK_AGAIN_MS.last ? 2 * lookAgainMs : Number.POSITIVE_INFINITY;
        if (isWoken && waitMs >= LOOK_INTERVAL_MS && !signal.aborted) await changed.rest(LOOK_INTERVAL_MS, signal);
      }
      return null;
    } finally {
      this.#hasEnded = true;
      this.#letWaitersGo((waiter) => waiter.reject(new FollowingEnded()));
    }
  }

  /** Resolves when nothing of ours has the database open in another thread. To be awaited before it is closed. */
  async settled(): Promise<void> {
    await this.#background;
  }

  /** Captures everything committed until now, in slices. For the last time at a clean stop. */
  async captureAll(): Promise<CaptureResult> {
    const { clock, follower } = this.#inputs;
    const untilMs = clock.monotonicMs() + LAST_CAPTURE_PATIENCE_MS;
    for (;;) {
      const result = follower.capture();
      if (result.kind === "busy" && clock.monotonicMs() < untilMs) await delay(BUSY_RETRY_MS);
      else if (result.kind !== "captured" || result.complete) return result;
      else await nextTurn();
    }
  }

  /** How long to wait for the next look at most, in milliseconds, or why following ended. */
  async #look(signal: AbortSignal): Promise<number | EndOfFollowing> {
    const { clock, onCaptured, follower, settings } = this.#inputs;
    let commits = 0;
    for (;;) {
      const result = follower.capture();
      if (result.kind === "fault") return { fault: result.fault, detail: result.detail };
      if (result.kind === "busy") {
        this.#busySinceMs ??= clock.monotonicMs();
        return BUSY_RETRY_MS;
      }
      commits += result.commits;
      if (result.complete || signal.aborted) break;
      await nextTurn();
    }
    this.#busySinceMs = null;
    this.#warnOfBadChecksums();
    onCaptured(commits);
    this.#letWaitersGo((waiter) => waiter.resolve());
    if (this.#backgroundFailure !== null) throw this.#backgroundFailure;
    if (!this.#checkpointer.isDue || this.#background !== null) return settings.safetyPollMs;
    // Waiters run before the checkpoint, which may move the hold beyond what is captured.
    await nextTurn();
    return this.#checkpoint();
  }

  #checkpoint(): number | EndOfFollowing {
    const { clock, log, settings } = this.#inputs;
    const nowMs = clock.monotonicMs();
    if (nowMs < this.#checkpointRetry.atMs) return this.#checkpointRetry.atMs - nowMs;
    const isLarge = this.#inputs.follower.unbackfilledBytes > BACKGROUND_BYTES;
    if (isLarge && this.#backgroundCopies < MAX_BACKGROUND_COPIES) return this.#copyInBackground();
    this.#backgroundCopies = 0;
    const report = this.#checkpointer.run();
    this.#isHeldBack = report.outcome === "deadline" || report.outcome === "busy";
    this.#longestLockMs = Math.max(this.#longestLockMs, report.lockMs);
    log.debug("checkpoint", { outcome: report.outcome, lockMs: Math.round(report.lockMs * 10) / 10 });
    if (report.fault !== null) return { fault: report.fault.fault, detail: report.fault.detail };
    switch (report.outcome) {
      case "complete":
        this.#checkpointRetry = { atMs: 0, delayMs: CHECKPOINT_RETRY_MS.min };
        return settings.safetyPollMs;
      case "behind":
        return 0;
      case "busy":
      case "deadline": {
        const { delayMs } = this.#checkpointRetry;
        this.#checkpointRetry = {
          atMs: clock.monotonicMs() + delayMs,
          delayMs: Math.min(2 * delayMs, CHECKPOINT_RETRY_MS.max),
        };
        return delayMs;
      }
    }
  }

  /** Nearly all of a large WAL is copied in another thread; what is left then is for a checkpoint here. */
  #copyInBackground(): number | EndOfFollowing {
    const { follower, changed, settings, log } = this.#inputs;
    const fault = this.#checkpointer.advance();
    if (fault !== null) return { fault: fault.fault, detail: fault.detail };
    log.debug("copying a large WAL in the background", { bytes: follower.unbackfilledBytes });
    this.#background = backgroundCheckpoints
      .passive(follower.databasePath)
      .catch((error: unknown) => {
        this.#backgroundFailure = error;
      })
      .finally(() => {
        this.#background = null;
        this.#backgroundCopies++;
        changed.wake();
      });
    return settings.safetyPollMs;
  }

  #warnOfBadChecksums(): void {
    const { follower, log } = this.#inputs;
    if (this.#reportedBadChecksums || follower.badChecksums === 0) return;
    this.#reportedBadChecksums = true;
    log.warn(
      "the application's SQLite commits WAL frames with wrong checksums; they are backed up, but a crash would lose them locally",
      {
        frames: follower.badChecksums,
        hint: "update the SQLite that the application uses",
      },
    );
  }

  #letWaitersGo(go: (waiter: { resolve: () => void; reject: (reason: unknown) => void }) => void): void {
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const waiter of waiting) go(waiter);
  }
}
