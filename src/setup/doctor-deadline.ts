import { orAborted } from "../storage/abort.ts";
import { BakeliteError } from "../util/errors.ts";

export interface Deadline {
  readonly ms: number;
  /** What is being waited for, as it reads after "no answer within 10 s when ". */
  readonly what: string;
  readonly signal: AbortSignal;
}

/**
 * What `work` resolves to, or a rejection with `storage-unreachable` when the time is over, even if the work is stuck in the
 * kernel, as on a network share whose server is gone. The signal that it is given is aborted then. Rejects with the outer signal's
 * reason when that is aborted.
 */
export async function withinDeadline<T>(
  { ms, what, signal }: Deadline,
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  signal.throwIfAborted();
  const late = new AbortController();
  const timer = setTimeout(() => late.abort(noAnswer(ms, what)), ms);
  const both = AbortSignal.any([signal, late.signal]);
  try {
    return await orAborted(work(both), both);
  } finally {
    clearTimeout(timer);
  }
}

/** `what` reads after "no answer within 10 s when ". */
export function noAnswer(ms: number, what: string): BakeliteError {
  return new BakeliteError("storage-unreachable", `no answer within ${ms / 1000} s when ${what}`, {
    hint: "check the network, the server and the mount that it depends on",
  });
}
