import { BakeliteError } from "../util/errors.ts";

/** Throws what `abortError` says when `signal` is aborted. */
export function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw abortError(signal);
}

/** The signal's reason if that is one of our errors (a deadline names itself so), else `interrupted` with the reason. */
export function abortError(signal: AbortSignal): BakeliteError {
  if (signal.reason instanceof BakeliteError) return signal.reason;
  return new BakeliteError("interrupted", "stopped before it was finished", { cause: signal.reason });
}

/** `promise`, or a rejection as soon as `signal` is aborted. The work behind the promise is not stopped by that. */
export async function orAborted<T>(promise: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) return promise;
  const { promise: aborted, reject } = Promise.withResolvers<never>();
  const onAbort = () => reject(abortError(signal));
  if (signal.aborted) onAbort();
  else signal.addEventListener("abort", onAbort, { once: true });
  try {
    return await Promise.race([promise, aborted]);
  } finally {
    signal.removeEventListener("abort", onAbort);
    aborted.catch(() => {});
    promise.catch(() => {});
  }
}

/** The items of `source` until `signal` is aborted, then a rejection, even while the source is stuck in an await. */
export async function* untilAborted<T>(
  source: AsyncIterable<T>,
  signal: AbortSignal | undefined,
): AsyncGenerator<T, void> {
  const iterator = source[Symbol.asyncIterator]();
  let finished = false;
  try {
    for (;;) {
      const next = await orAborted(iterator.next(), signal);
      if (next.done === true) {
        finished = true;
        return;
      }
      yield next.value;
    }
  } finally {
    const closed = finished ? undefined : iterator.return?.();
    // After an abort not awaited: a generator that is stuck answers its return() only after what it is stuck in.
    if (signal?.aborted) closed?.catch(() => {});
    else await closed;
  }
}
