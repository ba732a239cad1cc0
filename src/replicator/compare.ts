import type { WalFollower } from "../sqlite/follow.ts";
import type { LedgerFile } from "../state/ledger-file.ts";
import { pagesThatDiffer } from "./ledger.ts";
import { pageRange, readPages } from "./page-batch.ts";
import type { StoredState } from "./stored-state.ts";

const SLICE_BYTES = 1024 * 1024;

export interface CompareInputs {
  readonly follower: WalFollower;
  readonly ledger: LedgerFile;
  /** What the ledger describes. */
  readonly state: StoredState;
  /** Pages that are going to be stored anyway need no look. */
  readonly skip: (pageNumber: number) => boolean;
  readonly differs: (pageNumber: number) => void;
  readonly nextCapture: () => Promise<void>;
  readonly signal: AbortSignal;
  readonly progress: (donePages: number, totalPages: number) => void;
}

/**
 * Hashes the live file slice by slice and reports each page that is not as the ledger says, while capture goes on: a page
 * that changes meanwhile is captured. Returns how many pages differed.
 */
export async function compareWithLedger(inputs: CompareInputs): Promise<number> {
  const { follower, ledger, state, skip, differs, nextCapture, signal, progress } = inputs;
  const perSlice = Math.max(1, Math.floor(SLICE_BYTES / follower.pageSizeBytes));
  let found = 0;
  for (let next = 1; next <= follower.sizePages; next += perSlice) {
    while (!follower.canResolve) await nextCapture();
    signal.throwIfAborted();
    const last = Math.min(next + perSlice - 1, follower.sizePages);
    const { pageNumbers, hashes } = readPages(follower, pageRange(next, last, skip));
    for (const page of pagesThatDiffer(ledger, pageNumbers, hashes, state)) {
      differs(page);
      found++;
    }
    progress(last, follower.sizePages);
    await new Promise<void>((resolve) => setImmediate(resolve));
  }
  return found;
}
