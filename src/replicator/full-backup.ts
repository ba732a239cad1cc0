import { encodeObject, type PageBatch, type TrailerFields } from "../format/encode.ts";
import type { ObjectHeader } from "../format/header.ts";
import { PLAINTEXT_SEAL } from "../format/names.ts";
import type { WalFollower } from "../sqlite/follow.ts";
import type { LedgerFile } from "../state/ledger-file.ts";
import { digestOfLedger } from "./digest.ts";
import { type EncodedObject, streamEncoded } from "./encoded-object.ts";
import { pageRange, readPages } from "./page-batch.ts";
import type { StoredState } from "./stored-state.ts";

/** Why a full backup is taken. Anything that nobody asked for is a warning in the log. */
export type FullBackupReason =
  | "first backup"
  | "interval"
  | "change-set count"
  | "page size changed"
  | "encryption changed"
  | "destination gap"
  | "replica unreadable";

const SLICE_BYTES = 256 * 1024;

export interface FullBackupInputs {
  readonly follower: WalFollower;
  readonly from: StoredState;
  readonly reason: FullBackupReason;
  readonly header: ObjectHeader;
  readonly encoding: { readonly sealKey: Uint8Array | null; readonly compressionLevel: number };
  readonly startedMs: number;
  /** Receives the page hashes of a chain's first full backup, in the order of the pages. */
  readonly newLedger: LedgerFile | null;
  /** Resolves after the next capture; throws when the attachment ends. */
  readonly nextCapture: () => Promise<void>;
  /** Called with each slice as it was read: a later full backup is a check of the ledger for free. */
  readonly check: (batch: PageBatch) => void;
  /**
   * Called right after the last page was read, in the same turn: the index of the change-set that carries everything
   * captured until then, as yet to be stored or not.
   */
  readonly lastPageRead: () => number;
  /** Resolves when state `index` is stored. */
  readonly stored: (index: number) => Promise<void>;
  readonly progress: (donePages: number, totalPages: number) => void;
}

export interface FullBackup {
  readonly object: EncodedObject;
  /** First restore point that it gives; known once its source was read to the end. */
  settled(): number;
}

/**
 * Every page of the database in order, each slice resolved at the position of its own moment, while change-sets go on: no
 * reader of ours pins the WAL, however slow the upload. What changes meanwhile is in a change-set after n0, and the
 * trailer, and so the object, is finished only when the change-set that carries the last of that is stored.
 */
export function fullBackup(inputs: FullBackupInputs): FullBackup {
  const { from, header, encoding, reason, stored, lastPageRead } = inputs;
  const seal = header.keyFingerprint ?? PLAINTEXT_SEAL;
  let settled = 0;
  let sizePages = 0;
  const pages = () =>
    slices(inputs, (read) => {
      sizePages = read;
      settled = lastPageRead();
    });
  const finish = async (): Promise<TrailerFields> => {
    await stored(settled);
    return {
      last: from.index,
      settled,
      sizePages,
      parent: null,
      result: from.lineage,
      digest: settled === from.index ? digestOf(inputs, sizePages) : null,
      firstCommitMs: from.stampMs,
      lastCommitMs: from.stampMs,
      commits: 0,
      epochs: from.epochs,
      wal: from.position,
      reason,
    };
  };
  const name = { kind: "full", index: from.index, seal } as const;
  return {
    object: streamEncoded(name, () => encodeObject({ header, ...encoding }, pages(), finish)),
    settled: () => settled,
  };
}

/** The digest of state n0, when nothing was captured while it was read: a chain's first one has just learned the hashes. */
function digestOf({ from, newLedger, follower }: FullBackupInputs, sizePages: number): string | null {
  return newLedger === null ? from.digest : digestOfLedger(newLedger, sizePages, follower.pageSizeBytes);
}

async function* slices(inputs: FullBackupInputs, done: (sizePages: number) => void): AsyncGenerator<PageBatch> {
  const { follower, nextCapture, check, newLedger, progress } = inputs;
  const perSlice = Math.max(1, Math.floor(SLICE_BYTES / follower.pageSizeBytes));
  let next = 1;
  let highest = 0;
  for (;;) {
    while (!follower.canResolve) await nextCapture();
    // The size of this moment: pages that a commit cut off are gone, pages that it added are read here or carried by it.
    const size = follower.sizePages;
    if (next > size) break;
    const end = Math.min(size, next + perSlice - 1);
    const batch = readPages(follower, pageRange(next, end));
    newLedger?.write(batch.pageNumbers, batch.hashes);
    check(batch);
    highest = end;
    next = end + 1;
    if (next > size) {
      // In the turn of the last read, before anything else can be captured.
      done(Math.max(size, highest));
      if (batch.pageNumbers.length > 0) yield batch;
      return;
    }
    progress(highest, size);
    if (batch.pageNumbers.length > 0) yield batch;
  }
  done(Math.max(follower.sizePages, highest));
}
