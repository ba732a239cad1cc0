import { constants, fdatasync, fstatSync, ftruncateSync, readSync, writeSync } from "node:fs";
import { type FileHandle, open, rename } from "node:fs/promises";
import { dirname } from "node:path";
import { promisify } from "node:util";
import { syncDirectory } from "../util/atomic-file.ts";
import { assert, BakeliteError, systemErrorCode } from "../util/errors.ts";
import { inheritedOwner, localError } from "./layout.ts";
import { encodeLedgerSlot, LEDGER_SLOT_BYTES, type LedgerSlot, parseLedgerSlot } from "./ledger-slot.ts";

export const LEDGER_ENTRY_BYTES = 16;

const ENTRIES_OFFSET = 2 * LEDGER_SLOT_BYTES;
/** Entries closer than this travel in one read or write: a block of the file system, which moves as a whole anyway. */
const MAX_GAP_BYTES = 4096;
const MAX_RUN_BYTES = 1024 * 1024;
const FILE_MODE = 0o600;

const fdatasyncOf = promisify(fdatasync);

export interface OpenLedgerOptions {
  /** Create the file when there is none. Without it a missing file is `not-found`. */
  readonly create?: boolean;
  /** Begin with an empty file, whatever stood there. Implies `create`. */
  readonly fresh?: boolean;
}

/**
 * The page ledger on disk: two slots of 512 bytes, then the 16-byte page hash of page n at 1024 + 16 n (docs/state-files.md).
 * Entries may be newer than what `slot` says, never older: `commitSlot` syncs them first. Nothing is held in memory, and
 * an entry that was never written reads as zeros, so a hostile size in a slot costs nothing here. Entries of pages beyond
 * the database's present size must be cut off with `truncate`, else a page that comes back later meets its old hash.
 * One owner at a time; the instance lock sees to that.
 */
export class LedgerFile implements AsyncDisposable {
  readonly path: string;
  readonly #handle: FileHandle;
  #slot: LedgerSlot | null = null;
  #sequence = 0n;
  /** Where the newest slot is; the other one is written next. */
  #slotPosition: 0 | 1 = 1;
  #committing = false;

  private constructor(handle: FileHandle, path: string) {
    this.#handle = handle;
    this.path = path;
    this.#readSlots();
  }

  static async open(path: string, options: OpenLedgerOptions = {}): Promise<LedgerFile> {
    const handle = await openFile(path, options);
    try {
      return new LedgerFile(handle, path);
    } catch (error) {
      await handle.close();
      throw localError(error, "read the page ledger", path);
    }
  }

  /** The newest valid slot; null in a new file and when both are damaged, and then the entries mean nothing. */
  get slot(): LedgerSlot | null {
    return this.#slot;
  }

  /** The entries of strictly ascending page numbers, 16 bytes each, in that order. */
  read(pageNumbers: Uint32Array): Uint8Array {
    const entries = new Uint8Array(pageNumbers.length * LEDGER_ENTRY_BYTES);
    for (const run of runsOf(pageNumbers)) {
      const bytes = this.readRange(run.firstPage, run.pageCount);
      for (let i = run.start; i < run.end; i++)
        entries.set(entryOf(bytes, (pageNumbers[i] ?? 0) - run.firstPage), i * LEDGER_ENTRY_BYTES);
    }
    return entries;
  }

  /** The entries of `pageCount` pages from `firstPage` on. Zeros where nothing was written. */
  readRange(firstPage: number, pageCount: number): Uint8Array {
    assertPages(firstPage, pageCount);
    const bytes = new Uint8Array(pageCount * LEDGER_ENTRY_BYTES);
    this.#readAt(bytes, offsetOf(firstPage));
    return bytes;
  }

  /** Writes 16 bytes for each of the strictly ascending page numbers. Not durable before `commitSlot`. */
  write(pageNumbers: Uint32Array, hashes: Uint8Array): void {
    assert(hashes.byteLength === pageNumbers.length * LEDGER_ENTRY_BYTES, "one hash for each page number");
    for (const run of runsOf(pageNumbers)) {
      const isGapless = run.end - run.start === run.pageCount;
      // The entries in the gaps are written back as they were: one write of a block instead of many of 16 bytes.
      const bytes = isGapless
        ? new Uint8Array(run.pageCount * LEDGER_ENTRY_BYTES)
        : this.readRange(run.firstPage, run.pageCount);
      for (let i = run.start; i < run.end; i++)
        bytes.set(entryOf(hashes, i), ((pageNumbers[i] ?? 0) - run.firstPage) * LEDGER_ENTRY_BYTES);
      this.#writeAt(bytes, offsetOf(run.firstPage));
    }
  }

  /** Writes the entries of consecutive pages from `firstPage` on. Not durable before `commitSlot`. */
  writeRange(firstPage: number, hashes: Uint8Array): void {
    assert(hashes.byteLength % LEDGER_ENTRY_BYTES === 0, "whole hashes");
    assertPages(firstPage, hashes.byteLength / LEDGER_ENTRY_BYTES);
    this.#writeAt(hashes, offsetOf(firstPage));
  }

  /** Makes the entries of all pages beyond `sizePages` zeros. For a database that shrank. */
  truncate(sizePages: number): void {
    const sizeBytes = offsetOf(sizePages + 1);
    try {
      if (fstatSync(this.#handle.fd).size > sizeBytes) ftruncateSync(this.#handle.fd, sizeBytes);
    } catch (error) {
      throw localError(error, "shorten the page ledger", this.path);
    }
  }

  /** The XOR of the entries of `firstPage` to `lastPage`, both included, but for `skipPage` (0: none). Reads by pieces. */
  xorRange(firstPage: number, lastPage: number, skipPage: number): Uint8Array {
    const sum = new Uint8Array(LEDGER_ENTRY_BYTES);
    const step = MAX_RUN_BYTES / LEDGER_ENTRY_BYTES;
    // What is beyond the end of the file is zeros, which change no sum; a hostile `lastPage` must not cost the time.
    const last = Math.min(lastPage, this.#lastEntry());
    for (let page = firstPage; page <= last; page += step) {
      const piece = this.readRange(page, Math.min(step, last - page + 1));
      if (page <= skipPage && skipPage < page + step) entryOf(piece, skipPage - page).fill(0);
      xorInto(sum, piece);
    }
    return sum;
  }

  /** Makes all entries durable, then replaces the older slot and makes that durable. Entries may not be written meanwhile. */
  async commitSlot(slot: LedgerSlot): Promise<void> {
    assert(!this.#committing, "one ledger commit at a time");
    this.#committing = true;
    try {
      const sequence = this.#sequence + 1n;
      const position = this.#slotPosition === 0 ? 1 : 0;
      const bytes = encodeLedgerSlot(slot, sequence);
      await fdatasyncOf(this.#handle.fd);
      this.#writeAt(bytes, position * LEDGER_SLOT_BYTES);
      await fdatasyncOf(this.#handle.fd);
      this.#slot = slot;
      this.#sequence = sequence;
      this.#slotPosition = position;
    } catch (error) {
      throw localError(error, "write the page ledger", this.path);
    } finally {
      this.#committing = false;
    }
  }

  async close(): Promise<void> {
    await this.#handle.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #readSlots(): void {
    for (const position of [0, 1] as const) {
      const bytes = new Uint8Array(LEDGER_SLOT_BYTES);
      this.#readAt(bytes, position * LEDGER_SLOT_BYTES);
      const parsed = parseLedgerSlot(bytes);
      if (parsed === null || (this.#slot !== null && parsed.sequence <= this.#sequence)) continue;
      this.#slot = parsed.slot;
      this.#sequence = parsed.sequence;
      this.#slotPosition = position;
    }
  }

  #lastEntry(): number {
    try {
      return Math.floor((fstatSync(this.#handle.fd).size - ENTRIES_OFFSET - 1) / LEDGER_ENTRY_BYTES);
    } catch (error) {
      throw localError(error, "read the page ledger", this.path);
    }
  }

  /** Fills `bytes`; what lies beyond the end of the file stays zero. */
  #readAt(bytes: Uint8Array, offset: number): void {
    try {
      for (let done = 0; done < bytes.byteLength; ) {
        const count = readSync(this.#handle.fd, bytes, done, bytes.byteLength - done, offset + done);
        if (count === 0) return;
        done += count;
      }
    } catch (error) {
      throw localError(error, "read the page ledger", this.path);
    }
  }

  #writeAt(bytes: Uint8Array, offset: number): void {
    try {
      for (let done = 0; done < bytes.byteLength; )
        done += writeSync(this.#handle.fd, bytes, done, bytes.byteLength - done, offset + done);
    } catch (error) {
      throw localError(error, "write the page ledger", this.path);
    }
  }
}

/**
 * Puts the ledger that was built at `newPath` in the place of the one at `path`, durably. Both are in one directory; the
 * new one's slot is committed. An open LedgerFile of `newPath` stays usable; one of `path` must be closed before.
 */
export async function replaceLedger(path: string, newPath: string): Promise<void> {
  try {
    await rename(newPath, path);
    await syncDirectory(dirname(path));
  } catch (error) {
    throw localError(error, "replace the page ledger", path);
  }
}

async function openFile(path: string, options: OpenLedgerOptions): Promise<FileHandle> {
  const fresh = options.fresh === true;
  const flags = constants.O_RDWR | constants.O_NOFOLLOW | (fresh ? constants.O_TRUNC : 0);
  try {
    return await open(path, flags);
  } catch (error) {
    if (systemErrorCode(error) !== "ENOENT") throw localError(error, "open the page ledger", path);
    if (!fresh && options.create !== true)
      throw new BakeliteError("not-found", "there is no page ledger", { subject: path, cause: error });
  }
  try {
    const handle = await open(path, flags | constants.O_CREAT | constants.O_EXCL, FILE_MODE);
    const owner = await inheritedOwner(dirname(path));
    if (owner !== null) await handle.chown(owner.uid, owner.gid);
    return handle;
  } catch (error) {
    throw localError(error, "create the page ledger", path);
  }
}

interface Run {
  /** Half-open positions in the list of page numbers. */
  readonly start: number;
  readonly end: number;
  readonly firstPage: number;
  readonly pageCount: number;
}

/** Cuts strictly ascending page numbers into runs that are worth one read or write each. */
function* runsOf(pageNumbers: Uint32Array): Generator<Run, void> {
  for (let start = 0; start < pageNumbers.length; ) {
    const firstPage = pageNumbers[start] ?? 0;
    assert(firstPage >= 1, "pages are numbered from 1");
    let lastPage = firstPage;
    let end = start + 1;
    for (; end < pageNumbers.length; end++) {
      const page = pageNumbers[end] ?? 0;
      assert(page > lastPage, "page numbers ascend");
      const gapBytes = (page - lastPage - 1) * LEDGER_ENTRY_BYTES;
      const runBytes = (page - firstPage + 1) * LEDGER_ENTRY_BYTES;
      if (gapBytes > MAX_GAP_BYTES || runBytes > MAX_RUN_BYTES) break;
      lastPage = page;
    }
    yield { start, end, firstPage, pageCount: lastPage - firstPage + 1 };
    start = end;
  }
}

function offsetOf(pageNumber: number): number {
  return ENTRIES_OFFSET + pageNumber * LEDGER_ENTRY_BYTES;
}

function entryOf(entries: Uint8Array, position: number): Uint8Array {
  return entries.subarray(position * LEDGER_ENTRY_BYTES, (position + 1) * LEDGER_ENTRY_BYTES);
}

function assertPages(firstPage: number, pageCount: number): void {
  assert(firstPage >= 1 && firstPage + pageCount - 1 <= 0xffff_ffff, "pages are numbered from 1 to 2^32 - 1");
}

function xorInto(sum: Uint8Array, entries: Uint8Array): void {
  const words = new Uint32Array(entries.buffer, entries.byteOffset, entries.byteLength / 4);
  let a = 0;
  let b = 0;
  let c = 0;
  let d = 0;
  for (let i = 0; i < words.length; i += 4) {
    a ^= words[i] ?? 0;
    b ^= words[i + 1] ?? 0;
    c ^= words[i + 2] ?? 0;
    d ^= words[i + 3] ?? 0;
  }
  const total = new Uint32Array(sum.buffer, sum.byteOffset, 4);
  for (const [i, word] of [a, b, c, d].entries()) total[i] = (total[i] ?? 0) ^ word;
}
