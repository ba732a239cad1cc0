import { closeSync, fstatSync, openSync, statSync } from "node:fs";
import { assert, BakeliteError, systemErrorCode } from "../util/errors.ts";
import { PageSet } from "../util/page-set.ts";
import { assertSafeEngine, isBusy, readFileIdentity, type WalCounts } from "./control.ts";
import { DATABASE_HEADER_BYTES, type DatabaseHeader, parseDatabaseHeader } from "./database-file.ts";
import { FrameMap } from "./frame-map.ts";
import { Holds } from "./holds.ts";
import {
  checkFrame,
  parseFrameHeader,
  sameChecksum,
  sameSalt,
  startOfWal,
  WAL_FRAME_HEADER_BYTES,
  type WalChecksum,
  type WalHeader,
  type WalPosition,
} from "./wal.ts";
import { readFully, WalFile } from "./wal-file.ts";

/** Learns which pages each captured transaction changed, in commit order. */
export interface CaptureSink {
  /** The size after the next commit differs from the size before it. Called before that commit's `page`s. */
  resized(beforePages: number, afterPages: number): void;
  /** A page that the commit holds an image of; never above the size after the commit. */
  page(pageNumber: number): void;
  /** One transaction is complete. */
  committed(): void;
}

/** Why continuity ended: detach, attach anew, and compare with the ledger. */
export type FollowFault =
  | "wal-shrank"
  | "wal-chain-broken"
  | "wal-replaced"
  | "file-replaced"
  | "file-missing"
  | "left-wal-mode"
  | "page-size-changed";

export type CaptureResult =
  /** `complete`: everything committed when the call began is captured. Else call again. */
  | { readonly kind: "captured"; readonly complete: boolean; readonly commits: number; readonly counts: WalCounts }
  /** A lock or a race was in the way. Call again later. */
  | { readonly kind: "busy" }
  | { readonly kind: "fault"; readonly fault: FollowFault; readonly detail: string };

/** What an attach could prove about the time since the position that it was given. */
export type Continuity = { readonly kind: "proven" } | { readonly kind: "unproven"; readonly reason: string };

export interface FollowerOptions {
  readonly databasePath: string;
  readonly sink: CaptureSink;
  /** Memory for the page-to-frame table. */
  readonly frameMapBytes?: number;
}

const CAPTURE_SLICE_BYTES = 4 * 1024 * 1024;
/** How often a race with a restart of the WAL is run again before the caller is told "busy". */
const RACE_TRIES = 8;

/**
 * Follows one live database in WAL mode: captures which pages each commit changed, resolves page images at the position
 * reached, and keeps a hold from `open` to `close` so that nothing is missed. All methods are synchronous and short.
 *
 * One descriptor of the database file is kept from `open` to `close`, and closed after the last connection: closing any
 * descriptor of that file drops every POSIX lock that this process has on it (sqlite.org/howtocorrupt.html section 2.2).
 * For the same reason nothing else in this process may open the database file or its `-shm` while a follower stands.
 */
export class WalFollower {
  readonly databasePath: string;
  readonly pageSizeBytes: number;
  readonly device: bigint;
  readonly inode: bigint;
  readonly holds: Holds;
  readonly #file: number;
  readonly #wal: WalFile;
  readonly #sink: CaptureSink;
  readonly #map: FrameMap;
  /** Frames up to this one of the present WAL are in the database file and need not be in the map. */
  #mapBase = 0;
  #position: WalPosition | null = null;
  #sizePages: number;
  /** How far frames were read; beyond `#position` only inside a transaction that one slice did not hold. */
  #scan: WalPosition | null = null;
  /** Where the chain of checksums stands; null: at `#scan`. Unfinished frames are not part of the chain. */
  #runningChecksum: WalChecksum | null = null;
  #badChecksums = 0;
  #transaction = new PageSet();
  #counts: WalCounts = { busy: false, committedFrames: 0, backfilledFrames: 0 };
  /** What stood in the WAL at a proven attach is not all read yet. Under a zero hold, a restart would lose it. */
  #unreadSinceAttach = false;

  private constructor(options: FollowerOptions, file: number, header: DatabaseHeader, holds: Holds) {
    const stat = fstatSync(file, { bigint: true });
    this.databasePath = options.databasePath;
    this.pageSizeBytes = header.pageSizeBytes;
    this.device = stat.dev;
    this.inode = stat.ino;
    this.holds = holds;
    this.#file = file;
    this.#wal = new WalFile(options.databasePath);
    this.#sink = options.sink;
    this.#map = new FrameMap(options.frameMapBytes);
    this.#sizePages = holds.standing.sizePages();
  }

  /**
   * Opens the database and begins the first hold. Throws BakeliteError `database-busy` when a lock is in the way (try again),
   * `database-unfit` when it is not a SQLite database in WAL mode, `not-found` when there is no such file or nothing
   * in it yet.
   */
  static open(options: FollowerOptions): WalFollower {
    assertSafeEngine();
    const subject = options.databasePath;
    let file: number;
    try {
      file = openSync(options.databasePath, "r");
    } catch (error) {
      const missing = systemErrorCode(error) === "ENOENT";
      throw new BakeliteError(missing ? "not-found" : "io", "cannot open the database", { subject, cause: error });
    }
    let holds: Holds | null = null;
    try {
      const header = readDatabaseHeader(file, subject);
      if (!header.isWal) throw notWal(subject);
      holds = new Holds(options.databasePath);
      holds.begin();
      if (holds.standing.journalMode() !== "wal") throw notWal(subject);
      return new WalFollower(options, file, header, holds);
    } catch (error) {
      holds?.close();
      closeSync(file);
      if (isBusy(error)) {
        throw new BakeliteError("database-busy", "the database is locked by another process", {
          subject,
          hint: "if an application uses locking_mode=EXCLUSIVE, let it use NORMAL",
          cause: error,
        });
      }
      if (error instanceof BakeliteError) throw error;
      throw new BakeliteError("database-unfit", "SQLite cannot open the database", { subject, cause: error });
    }
  }

  /** Salts, frame and checksum after the last commit captured; null before the first frame of a WAL was seen. */
  get position(): WalPosition | null {
    return this.#position;
  }

  /** Size of the database in pages at `position`. */
  get sizePages(): number {
    return this.#sizePages;
  }

  /** As of the last capture. The `-wal` file itself may be larger: SQLite overwrites a restarted one from its beginning. */
  get counts(): WalCounts {
    return this.#counts;
  }

  /**
   * Committed frames so far whose checksum is wrong. SQLite does not look at checksums while it runs, but would stop at
   * such a frame when it recovers the WAL after a crash, and lose what follows.
   */
  get badChecksums(): number {
    return this.#badChecksums;
  }

  /** Bytes of the committed frames of the present WAL, as of the last capture. */
  get committedBytes(): number {
    return this.#counts.committedFrames * (WAL_FRAME_HEADER_BYTES + this.pageSizeBytes);
  }

  /** Bytes of committed frames that are not in the database file yet, as of the last capture. */
  get unbackfilledBytes(): number {
    const { committedFrames, backfilledFrames } = this.#counts;
    return Math.max(0, committedFrames - backfilledFrames) * (WAL_FRAME_HEADER_BYTES + this.pageSizeBytes);
  }

  /** Size of the `-wal` file on disk. */
  get walFileBytes(): number {
    return this.#wal.sizeBytes();
  }

  /** Images may be resolved: the standing hold's mark is at or before `position`, and no transaction is half captured. */
  get canResolve(): boolean {
    return !this.holds.needsCapture && this.#transaction.size === 0;
  }

  /**
   * Begins at the state that `cursor` describes, if it can be proven, under the hold, that nothing is missing since: the
   * WAL has the cursor's salts, its frame is committed, and that frame's running checksum is the cursor's. Otherwise begins at
   * frame 1 of the present WAL; the caller compares the file with its ledger, and need not read pages that capture
   * reports. Throws a busy BakeliteError when a writer kept the WAL moving.
   */
  attach(cursor: { readonly position: WalPosition | null; readonly sizePages: number } | null): Continuity {
    for (let attempt = 0; attempt < RACE_TRIES; attempt++) {
      this.#wal.refresh();
      const header = this.#wal.readHeader();
      const counts = this.holds.count();
      if (counts.busy || !sameLife(header, this.#wal.readHeader())) continue;
      const continuity = this.#proveContinuity(cursor?.position ?? null, header, counts);
      if (continuity.kind === "proven" && cursor !== null) {
        this.#startAt(cursor.position);
        this.#unreadSinceAttach = counts.committedFrames > (cursor.position?.frame ?? 0);
        this.#sizePages = cursor.sizePages;
        this.#scanForMap((page, frame) => this.#map.record(page, frame));
      } else {
        this.#startAt(header === null ? null : startOfWal(header));
      }
      return continuity;
    }
    throw new BakeliteError("database-busy", "the WAL restarted too often to attach", { subject: this.databasePath });
  }

  /** Reads at most about `maxBytes` of frames and tells the sink every transaction that is committed. */
  capture(maxBytes = CAPTURE_SLICE_BYTES): CaptureResult {
    const first = this.#captureOnce(maxBytes);
    if (first.kind !== "captured" || !first.complete || !this.#leaveZero(first.counts)) return first;
    // The new hold's mark may lie beyond what is captured, so there must be a count that was taken after it began.
    const second = this.#captureOnce(maxBytes);
    switch (second.kind) {
      case "captured":
        return { ...second, commits: first.commits + second.commits };
      case "busy":
        return { ...first, complete: false };
      case "fault":
        return second;
    }
  }

  /**
   * Bytes of committed frames that stand in the WAL beyond what was read; for a moment when both connections are in
   * transactions. The frames themselves cannot tell: those of a transaction that was rolled back look the same. Infinite
   * when the database file is gone.
   */
  committedBytesAhead(): number {
    if (readFileIdentity(this.databasePath) === null) return Number.POSITIVE_INFINITY;
    const header = this.#wal.readHeader();
    const { committedFrames } = this.holds.countAside();
    const read =
      this.#scan !== null && header !== null && sameSalt(this.#scan.salt, header.salt) ? this.#scan.frame : 0;
    return Math.max(0, committedFrames - read) * (WAL_FRAME_HEADER_BYTES + this.pageSizeBytes);
  }

  /**
   * Everything committed is captured and backfilled, under a hold that forbids further backfilling: every image is in
   * the database file from here on.
   */
  everythingIsInFile(): void {
    this.#map.reset();
    this.#mapBase = this.#position?.frame ?? 0;
  }

  /**
   * Reads the images of `pages` (ascending) at `position` into `images`, back to back. A page that lies beyond the end of
   * the file and in no frame is zeros. May be called only while `canResolve`; the images belong to one committed state as
   * long as they are read by one call (docs/following-the-wal.md, State P).
   */
  resolve(pages: Uint32Array, images: Uint8Array): void {
    assert(this.canResolve, "images are resolved only when capture has reached the hold's mark");
    const readFromWal = this.#resolveOnce(pages, images);
    if (!readFromWal || this.#walStillAt(this.#position)) return;
    // A writer restarted the WAL under a zero hold while we read, so everything up to the position is in the file.
    this.everythingIsInFile();
    this.#resolveOnce(pages, images);
  }

  /** Drops the holds, closes the connections, and then the database file. */
  close(): void {
    try {
      this.holds.close();
    } finally {
      this.#wal.close();
      closeSync(this.#file);
    }
  }

  #proveContinuity(cursor: WalPosition | null, header: WalHeader | null, counts: WalCounts): Continuity {
    const unproven = (reason: string): Continuity => ({ kind: "unproven", reason });
    if (cursor === null) return unproven("no position is known");
    if (header === null) return unproven("the WAL is absent or empty");
    if (!sameSalt(header.salt, cursor.salt)) return unproven("the WAL was restarted");
    if (cursor.frame > counts.committedFrames) return unproven("the WAL is shorter than it was");
    if (cursor.frame > 0 && sameChecksum(cursor.checksum, [0, 0])) {
      return unproven("the position's frame has no checksum");
    }
    if (!sameChecksum(this.#checksumAt(cursor.frame, header), cursor.checksum)) {
      return unproven("the WAL holds other frames than before");
    }
    return { kind: "proven" };
  }

  #checksumAt(frame: number, header: WalHeader): readonly [number, number] {
    if (frame === 0) return header.checksum;
    const bytes = new Uint8Array(WAL_FRAME_HEADER_BYTES);
    if (!this.#wal.readFrameHeader(frame, this.pageSizeBytes, bytes)) return [0, 0];
    const parsed = parseFrameHeader(new DataView(bytes.buffer), 0);
    return sameSalt(parsed.salt, header.salt) ? parsed.checksum : [0, 0];
  }

  #startAt(position: WalPosition | null): void {
    this.#position = position;
    this.#scan = position;
    this.#runningChecksum = null;
    this.#unreadSinceAttach = false;
    this.#transaction.clear();
    this.#map.reset();
    this.#mapBase = 0;
  }

  #captureOnce(maxBytes: number): CaptureResult {
    try {
      const moved = this.#filesMoved();
      if (moved !== null) return moved;
      for (let attempt = 0; attempt < RACE_TRIES; attempt++) {
        const before = this.#wal.readHeader();
        const counts = this.holds.count();
        // Only a count that was taken between two looks at the same salts belongs to these frames.
        const after = this.#wal.readHeader();
        if (counts.busy || !sameLife(before, after)) continue;
        const result = this.#captureUpTo(counts, after, maxBytes);
        if (result !== "again") return result;
      }
      return { kind: "busy" };
    } catch (error) {
      if (isBusy(error)) return { kind: "busy" };
      throw error;
    }
  }

  /** False when the hold is surely no zero hold, or everything is backfilled, or a lock is in the way. */
  #leaveZero(counts: WalCounts): boolean {
    if (!this.holds.mayBeZero || counts.committedFrames <= counts.backfilledFrames) return false;
    try {
      this.holds.leaveZero();
      return true;
    } catch (error) {
      if (isBusy(error)) return false;
      throw error;
    }
  }

  #filesMoved(): CaptureResult | null {
    let stat: { readonly dev: bigint; readonly ino: bigint };
    try {
      stat = statSync(this.databasePath, { bigint: true });
    } catch (error) {
      if (systemErrorCode(error) !== "ENOENT") throw error;
      return { kind: "fault", fault: "file-missing", detail: "the database file is gone" };
    }
    if (stat.dev !== this.device || stat.ino !== this.inode) {
      return { kind: "fault", fault: "file-replaced", detail: "another file stands at the database's path" };
    }
    // SQLite keeps the -wal file while a connection is open, so another or no file is somebody else's doing.
    const wal = this.#wal.refresh();
    return wal === "same" ? null : { kind: "fault", fault: "wal-replaced", detail: `the -wal file is ${wal}` };
  }

  #captureUpTo(counts: WalCounts, header: WalHeader | null, maxBytes: number): CaptureResult | "again" {
    this.#counts = counts;
    if (counts.committedFrames < 0) {
      return { kind: "fault", fault: "left-wal-mode", detail: "the database is no longer in WAL mode" };
    }
    if (counts.committedFrames === 0) {
      // Holds have overlapped, so an empty WAL follows only a state that we have.
      if (this.#lacksFrames) return chainBroken("the WAL was restarted before it was read to its end");
      this.holds.captured();
      return { kind: "captured", complete: true, commits: 0, counts };
    }
    if (header === null) return "again";
    if (header.pageSizeBytes !== this.pageSizeBytes) {
      return { kind: "fault", fault: "page-size-changed", detail: `the page size is ${header.pageSizeBytes} now` };
    }
    if (this.#scan === null || !sameSalt(this.#scan.salt, header.salt)) {
      // Holds have overlapped: whatever stood in the WAL before is captured, and this life begins at frame 1.
      if (this.#lacksFrames) return chainBroken("the WAL was restarted before it was read to its end");
      this.#startAt(startOfWal(header));
    }
    return this.#captureFrames(counts, header, maxBytes);
  }

  #captureFrames(counts: WalCounts, header: WalHeader, maxBytes: number): CaptureResult | "again" {
    let scan = this.#scan ?? startOfWal(header);
    if (counts.committedFrames < scan.frame) {
      const detail = `the WAL has ${counts.committedFrames} committed frames, fewer than the ${scan.frame} that were read`;
      return { kind: "fault", fault: "wal-shrank", detail };
    }
    const frameBytes = WAL_FRAME_HEADER_BYTES + this.pageSizeBytes;
    const until = Math.min(counts.committedFrames, scan.frame + Math.max(1, Math.floor(maxBytes / frameBytes)));
    let commits = 0;
    let broken: string | null = null;
    let running = this.#runningChecksum ?? scan.checksum;
    this.#wal.forEachFrame({ start: scan.frame + 1, end: until + 1 }, this.pageSizeBytes, (number, view, offset) => {
      const { frame, verdict } = checkFrame(view, offset, header, running);
      if (verdict === "salt-changed" || frame.pageNumber === 0) {
        broken = `frame ${number}: ${verdict}`;
        return false;
      }
      // Every frame up to the count is committed, and SQLite's own readers use it, whatever its checksum says. SQLite
      // 3.40 was seen to leave frames whose checksums were never computed, after ROLLBACK TO behind a cache spill.
      if (verdict !== "valid") this.#badChecksums++;
      if (verdict !== "unfinished") running = frame.checksum;
      scan = { salt: header.salt, frame: number, checksum: frame.checksum };
      this.#map.record(frame.pageNumber, number);
      this.#transaction.add(frame.pageNumber);
      if (frame.databaseSizePages > 0) {
        this.#commit(frame.databaseSizePages, scan);
        commits++;
      }
      return true;
    });
    this.#scan = scan;
    this.#runningChecksum = running;
    if (broken !== null || scan.frame < until) {
      if (!sameLife(header, this.#wal.readHeader())) return "again";
      return chainBroken(broken ?? `the WAL ends at frame ${scan.frame} of ${counts.committedFrames}`);
    }
    const complete = scan.frame === counts.committedFrames;
    if (complete && this.#transaction.size > 0) return chainBroken("the last committed frame is not a commit frame");
    if (complete) {
      this.holds.captured();
      this.#unreadSinceAttach = false;
    }
    return { kind: "captured", complete, commits, counts };
  }

  /** A restart of the WAL now would lose committed frames. */
  get #lacksFrames(): boolean {
    return this.#transaction.size > 0 || this.#unreadSinceAttach;
  }

  #commit(sizePages: number, position: WalPosition): void {
    if (sizePages !== this.#sizePages) this.#sink.resized(this.#sizePages, sizePages);
    for (const page of this.#transaction) if (page <= sizePages) this.#sink.page(page);
    this.#sink.committed();
    this.#transaction.clear();
    this.#sizePages = sizePages;
    this.#position = position;
  }

  #scanForMap(visit: (pageNumber: number, frame: number) => void): void {
    const range = { start: this.#mapBase + 1, end: (this.#position?.frame ?? 0) + 1 };
    this.#wal.forEachFrame(range, this.pageSizeBytes, (frame, view, offset) => {
      visit(view.getUint32(offset), frame);
      return true;
    });
  }

  /** True when at least one image came from the WAL, so that the WAL must be looked at again. */
  #resolveOnce(pages: Uint32Array, images: Uint8Array): boolean {
    const size = this.pageSizeBytes;
    let usedWal = false;
    for (let i = 0; i < pages.length; ) {
      const page = pages[i] ?? 0;
      const frame = this.#map.frameOf(page, (visit) => this.#scanForMap(visit));
      if (frame > 0) {
        usedWal = true;
        this.#wal.readImage(frame, size, images, i * size);
        i++;
        continue;
      }
      let run = 1;
      while (i + run < pages.length && pages[i + run] === page + run && this.#isInFile(page + run)) run++;
      const into = images.subarray(i * size, (i + run) * size);
      const got = readFully(this.#file, into, into.byteLength, (page - 1) * size);
      into.fill(0, got);
      i += run;
    }
    return usedWal;
  }

  #isInFile(page: number): boolean {
    return this.#map.frameOf(page, (visit) => this.#scanForMap(visit)) === 0;
  }

  #walStillAt(position: WalPosition | null): boolean {
    const header = this.#wal.readHeader();
    return header !== null && position !== null && sameSalt(header.salt, position.salt);
  }
}

function sameLife(a: WalHeader | null, b: WalHeader | null): boolean {
  return a === null || b === null ? a === b : sameSalt(a.salt, b.salt);
}

function chainBroken(detail: string): CaptureResult {
  return { kind: "fault", fault: "wal-chain-broken", detail };
}

function notWal(subject: string): BakeliteError {
  return new BakeliteError("database-unfit", "the database is not in WAL mode", {
    subject,
    hint: `run: sqlite3 '${subject}' 'PRAGMA journal_mode=WAL'`,
  });
}

function readDatabaseHeader(file: number, subject: string): DatabaseHeader {
  const bytes = new Uint8Array(DATABASE_HEADER_BYTES);
  const check = parseDatabaseHeader(bytes.subarray(0, readFully(file, bytes, bytes.byteLength, 0)));
  switch (check.kind) {
    case "sqlite":
      return check.header;
    case "empty":
      throw new BakeliteError("not-found", "the database file is empty: nothing was written to it yet", { subject });
    case "not-sqlite":
      throw new BakeliteError("database-unfit", "the file is not a SQLite database", { subject });
  }
}
