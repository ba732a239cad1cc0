/** A timer of more than 2^31-1 ms fires at once; longer waits are made of several. */
const MAX_TIMER_MS = 2 ** 31 - 1;

/** Resolves after `ms` milliseconds, of any length. Rejects with the signal's reason as soon as it is aborted. */
export async function delay(ms: number, signal?: AbortSignal): Promise<void> {
  let restMs = ms;
  for (; restMs > MAX_TIMER_MS; restMs -= MAX_TIMER_MS) await delayOnce(MAX_TIMER_MS, signal);
  await delayOnce(restMs, signal);
}

function delayOnce(ms: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted === true) {
      reject(signal.reason);
      return;
    }
    const stop = () => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, ms);
    signal?.addEventListener("abort", stop, { once: true });
  });
}

/** A signal that is aborted `ms` milliseconds after `signal`. */
export function abortedLater(signal: AbortSignal, ms: number): AbortSignal {
  const later = new AbortController();
  const begin = () => {
    const end = () => later.abort(new DOMException(`stopped for ${ms} ms`, "TimeoutError"));
    // Nothing stays alive for its sake.
    setTimeout(end, ms).unref();
  };
  if (signal.aborted) begin();
  else signal.addEventListener("abort", begin, { once: true });
  return later.signal;
}
