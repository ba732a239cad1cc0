import { BakeliteError } from "../../util/errors.ts";
import { throwIfAborted } from "../abort.ts";

/** After a refused deletion, for so long the next ones are refused without asking. */
const DENIED_MS = 3600_000;

export interface DeleteOutcome {
  /** Keys of which the server said that they are gone. */
  readonly deletedCount: number;
  /** What became of the others; null when there are none. */
  readonly error: BakeliteError | null;
  /** Nothing was deleted, and it is for want of a permission. */
  readonly isDenied: boolean;
}

/** Why one key was not deleted. */
export interface Undeleted {
  readonly error: BakeliteError;
  /** For want of a permission, so that all others would be refused as well. */
  readonly isDenied: boolean;
}

/**
 * Deletes keys by one request each. Those that fail do not hold up the rest, but for a denial before anything was deleted. Throws only
 * what `deleteOne` throws; null from it: the key is gone.
 */
export async function deleteOneByOne(
  keys: readonly string[],
  options: {
    readonly concurrency: number;
    readonly signal: AbortSignal | undefined;
    readonly deleteOne: (key: string) => Promise<Undeleted | null>;
  },
): Promise<DeleteOutcome> {
  const queue = [...keys];
  let deletedCount = 0;
  let error: BakeliteError | null = null;
  let deniedCount = 0;
  const worker = async (): Promise<void> => {
    for (let key = queue.shift(); key !== undefined; key = queue.shift()) {
      throwIfAborted(options.signal);
      const failure = await options.deleteOne(key);
      if (failure === null) {
        deletedCount++;
        continue;
      }
      error ??= failure.error;
      if (!failure.isDenied) continue;
      deniedCount++;
      if (deletedCount === 0) queue.length = 0;
    }
  };
  await Promise.all(Array.from({ length: Math.min(options.concurrency, keys.length) }, worker));
  return { deletedCount, error, isDenied: deletedCount === 0 && deniedCount > 0 };
}

/** Remembers that deletions are denied, so that retention does not ask thousands of times for nothing. */
export class DeleteDenial {
  #denied: { readonly error: BakeliteError; readonly untilMs: number } | null = null;

  /** Throws the last denial again while it is fresh. */
  throwIfFresh(nowMs: number): void {
    if (this.#denied !== null && nowMs < this.#denied.untilMs) throw sameError(this.#denied.error);
  }

  /** Throws what an outcome says, if anything; `onFirst` is called at the first denial. */
  settle(outcome: DeleteOutcome, nowMs: number, onFirst: () => void): void {
    if (outcome.error === null) return;
    if (outcome.isDenied) {
      const isFirst = this.#denied === null;
      this.#denied = { error: outcome.error, untilMs: nowMs + DENIED_MS };
      if (isFirst) onFirst();
    }
    throw sameError(outcome.error);
  }
}

/** A new one for each throw, with its own stack. */
function sameError({ code, message, subject, hint, cause }: BakeliteError): BakeliteError {
  const details = { ...(subject === undefined ? {} : { subject }), ...(hint === undefined ? {} : { hint }), cause };
  return new BakeliteError(code, message, details);
}
