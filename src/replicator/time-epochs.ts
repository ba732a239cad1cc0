import { MAX_EPOCHS, type TimeEpoch } from "../format/trailer.ts";

export interface Stamped {
  readonly stampMs: number;
  readonly epochs: readonly TimeEpoch[];
}

/** A step back of no more than this is taken for the clock being slewed, and the stamp stands still meanwhile. */
const SLEW_MS = 1000;

/**
 * The stamp of state `index`, whose last commit was captured at `nowMs` by the writer's clock. Stamps do not fall within a
 * time epoch; a clock that steps back starts a new one (docs/storage-format.md section 9). A stamp may be later than the
 * moment it stands for, never earlier, so that a restore to a moment cannot hold a later commit.
 */
export function stampState(previous: Stamped | null, index: number, nowMs: number): Stamped {
  if (previous === null || previous.epochs.length === 0) {
    return { stampMs: nowMs, epochs: [{ number: 1, firstIndex: index, firstStampMs: nowMs }] };
  }
  if (nowMs >= previous.stampMs - SLEW_MS) {
    return { stampMs: Math.max(nowMs, previous.stampMs), epochs: previous.epochs };
  }
  const number = (previous.epochs.at(-1)?.number ?? 0) + 1;
  const epochs = [...previous.epochs, { number, firstIndex: index, firstStampMs: nowMs }].slice(-MAX_EPOCHS);
  return { stampMs: nowMs, epochs };
}
