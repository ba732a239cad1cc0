import { assert } from "../util/errors.ts";
import { Connection, countFrames, type WalCounts } from "./control.ts";

/**
 * Two connections to a live database, of which one at least is in a read transaction (the *standing hold*) from `begin`
 * to `close`. A **mark hold** (SQLite's read locks 1 to 4) forbids a restart of the WAL. A **zero hold** (read lock 0,
 * given when everything is backfilled) forbids backfilling, but not a restart, so it is safe only when everything
 * committed is captured. Source: sqlite.org/walformat.html, "WAL-index locks".
 *
 * `NOOP` and `PASSIVE` fail inside a transaction, so they run on the idle connection.
 */
export class Holds {
  readonly #databasePath: string;
  #standing: Connection;
  #idle: Connection;
  #mayBeZero = true;
  #needsCapture = true;

  constructor(databasePath: string) {
    this.#databasePath = databasePath;
    this.#standing = new Connection(databasePath);
    try {
      this.#idle = new Connection(databasePath);
    } catch (error) {
      this.#standing.close();
      throw error;
    }
  }

  /** Begins the first hold. Throws a busy error when a lock is in the way. */
  begin(): void {
    this.#standing.begin();
    this.#took({ mayBeZero: true, needsCapture: true });
  }

  /** The standing hold may be a zero hold. */
  get mayBeZero(): boolean {
    return this.#mayBeZero;
  }

  /**
   * The standing hold's mark may lie beyond what is captured, so the database file may hold newer images than the
   * position: nothing may be encoded until capture has reached a count taken after the hold began.
   */
  get needsCapture(): boolean {
    return this.#needsCapture;
  }

  get standing(): Connection {
    return this.#standing;
  }

  get idle(): Connection {
    return this.#idle;
  }

  count(): WalCounts {
    return this.#idle.noop();
  }

  /** As `count`, when neither connection is idle. */
  countAside(): WalCounts {
    return countFrames(this.#databasePath);
  }

  /**
   * To be called when a count showed more committed than backfilled under a hold that may be a zero hold. The other
   * connection begins, and the old hold goes. If that was a zero hold, the new one is surely a mark hold, since nothing was
   * backfilled meanwhile. As for `advance`, all up to the old hold's mark must be captured: if that was a mark hold, somebody
   * may have backfilled up to it just now, and the new hold be a zero hold.
   */
  leaveZero(): void {
    this.#begin({ mayBeZero: false });
  }

  /**
   * Moves the hold to the newest commit: a second one begins, then the standing one goes. Only while everything up to the
   * standing hold's mark is captured. Then nothing can be lost, whatever kind of hold the new one is: while the old one
   * stood, nothing beyond its mark was backfilled (nothing at all, if it was a zero hold), so the new one can be a zero hold
   * only if nothing was committed beyond that mark, which is captured.
   */
  advance(): void {
    this.#begin({ mayBeZero: true });
  }

  /** The idle connection takes the write lock, which makes its transaction a hold; false when somebody else has it. */
  lockWriters(): boolean {
    return this.#idle.beginImmediate();
  }

  /**
   * While the idle connection holds the write lock: lets the standing hold go, and makes the lock's transaction it. That
   * forbids a restart whatever read lock it has, so `mayBeZero` is false.
   */
  standOnWriteLock(): void {
    this.#swap({ mayBeZero: false, needsCapture: true });
  }

  /** While the standing hold is the write lock and all is captured: a plain hold takes its place, and the lock goes. */
  unlockWriters(): void {
    this.#idle.begin();
    this.#swap({ mayBeZero: true, needsCapture: false });
  }

  /** Capture has reached a count that was taken after the standing hold began. */
  captured(): void {
    this.#needsCapture = false;
  }

  close(): void {
    this.#idle.close();
    this.#standing.close();
  }

  #begin(kind: { mayBeZero: boolean }): void {
    assert(!this.#needsCapture, "a hold moves on only when all up to its mark is captured");
    this.#idle.begin();
    this.#swap({ ...kind, needsCapture: true });
  }

  #swap(kind: { mayBeZero: boolean; needsCapture: boolean }): void {
    this.#standing.rollback();
    [this.#standing, this.#idle] = [this.#idle, this.#standing];
    this.#took(kind);
  }

  #took(kind: { mayBeZero: boolean; needsCapture: boolean }): void {
    this.#mayBeZero = kind.mayBeZero;
    this.#needsCapture = kind.needsCapture;
  }
}
