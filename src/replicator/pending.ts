import type { CaptureSink } from "../sqlite/follow.ts";
import { PageSet } from "../util/page-set.ts";

/** Everything captured up to one moment and not in an object yet; the input of one change-set. */
export interface TakenSet {
  readonly pages: PageSet;
  /** Those of `pages` that are written even if the ledger says that they did not change. */
  readonly forced: PageSet;
  readonly sizePages: number;
  readonly commits: number;
  /** When the first and the last commit were captured, Unix milliseconds; null when no commit was. */
  readonly firstCommitMs: number | null;
  readonly lastCommitMs: number | null;
  /** Some pages come from a comparison of the whole file, not from the WAL. */
  readonly compared: boolean;
}

/**
 * The pending set: the numbers of the pages that changed since the newest state that an object was begun for. It holds
 * numbers only, so an outage of any length needs no spool.
 */
export class PendingSet implements CaptureSink {
  readonly #nowMs: () => number;
  #pages = new PageSet();
  #forced = new PageSet();
  #forcing = false;
  /** SQLite's lock page is in no state. */
  readonly #lockPage: number;
  #sizePages = Number.POSITIVE_INFINITY;
  #commits = 0;
  #firstCommitMs: number | null = null;
  #lastCommitMs: number | null = null;
  #compared = false;
  #captures = 0;

  constructor(nowMs: () => number, lockPage: number) {
    this.#nowMs = nowMs;
    this.#lockPage = lockPage;
  }

  get pageCount(): number {
    return this.#pages.size;
  }

  get commits(): number {
    return this.#commits;
  }

  /** Grows with every commit that is captured. */
  get captures(): number {
    return this.#captures;
  }

  get firstCommitMs(): number | null {
    return this.#firstCommitMs;
  }

  has(pageNumber: number): boolean {
    return this.#pages.has(pageNumber);
  }

  resized(beforePages: number, afterPages: number): void {
    if (afterPages < beforePages) {
      this.#pages.deleteAbove(afterPages);
      this.#forced.deleteAbove(afterPages);
    } else {
      // A page that the growth skipped is in no frame, and still part of the new state. Nor may one be dropped that comes
      // back as it was: a full backup may have passed its place while it was gone.
      for (let page = beforePages + 1; page <= afterPages; page++) {
        if (page === this.#lockPage) continue;
        this.#pages.add(page);
        this.#forced.add(page);
      }
    }
    this.#sizePages = afterPages;
  }

  page(pageNumber: number): void {
    this.#pages.add(pageNumber);
    if (this.#forcing) this.#forced.add(pageNumber);
  }

  committed(): void {
    const nowMs = this.#nowMs();
    this.#captures++;
    this.#commits++;
    this.#firstCommitMs ??= nowMs;
    this.#lastCommitMs = nowMs;
  }

  /** A comparison with the ledger found this page to differ. */
  differs(pageNumber: number): void {
    this.page(pageNumber);
    this.#compared = true;
  }

  /**
   * A full backup begins to read: from here on every captured page is written whatever the ledger says, and so is every page
   * that is in the set already, since the backup may read an image of it that is gone again when the set is resolved.
   */
  startForcing(): void {
    this.#forcing = true;
    this.#forced.addAll(this.#pages);
  }

  /** What was captured until here stays forced until it is taken. */
  stopForcing(): void {
    this.#forcing = false;
  }

  /** Empties the set and gives what was in it. */
  take(sizePages: number): TakenSet {
    const taken: TakenSet = {
      pages: this.#pages,
      forced: this.#forced,
      sizePages,
      commits: this.#commits,
      firstCommitMs: this.#firstCommitMs,
      lastCommitMs: this.#lastCommitMs,
      compared: this.#compared,
    };
    this.#pages = new PageSet();
    this.#forced = new PageSet();
    this.#commits = 0;
    this.#firstCommitMs = null;
    this.#lastCommitMs = null;
    this.#compared = false;
    return taken;
  }

  /** Puts back what could not be stored; what was captured meanwhile stays. */
  giveBack(taken: TakenSet): void {
    this.#pages.addAll(taken.pages);
    this.#forced.addAll(taken.forced);
    this.#pages.deleteAbove(this.#sizePages);
    this.#forced.deleteAbove(this.#sizePages);
    this.#commits += taken.commits;
    this.#firstCommitMs = taken.firstCommitMs ?? this.#firstCommitMs;
    this.#lastCommitMs ??= taken.lastCommitMs;
    this.#compared ||= taken.compared;
  }
}
