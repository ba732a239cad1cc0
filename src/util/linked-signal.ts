/** A signal that is aborted with whichever of several is aborted first, until it is unlinked. */
export interface LinkedSignal {
  readonly signal: AbortSignal;
  /** The others forget it: what outlives it keeps nothing of it in memory, as `AbortSignal.any` may. */
  unlink(): void;
}

export function linkSignals(...sources: readonly AbortSignal[]): LinkedSignal {
  const controller = new AbortController();
  const listeners = sources.map((source) => {
    const onAbort = () => controller.abort(source.reason);
    if (source.aborted) onAbort();
    else source.addEventListener("abort", onAbort, { once: true });
    return () => source.removeEventListener("abort", onAbort);
  });
  return {
    signal: controller.signal,
    unlink() {
      for (const forget of listeners) forget();
    },
  };
}
