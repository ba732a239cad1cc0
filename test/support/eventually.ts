export interface EventuallyOptions {
  /** What is being waited for, as it reads after "waited 5000 ms for". */
  readonly what: string;
  readonly deadlineMs?: number;
  readonly pollMs?: number;
  /** Added to the message when the deadline passes; called only then. */
  readonly explain?: () => string | Promise<string>;
}

/** No measure of anything: what never comes is to fail, and a busy machine is not. */
const DEFAULT_DEADLINE_MS = 30_000;
const DEFAULT_POLL_MS = 10;

type Falsy = false | null | undefined;

/**
 * Calls `condition` until it gives something that is not false, null or undefined, and returns that. Throws when the
 * deadline has passed, with the last error if the condition threw; it is always called at least once more at the end.
 */
export async function eventually<T>(
  condition: () => T | Falsy | Promise<T | Falsy>,
  options: EventuallyOptions,
): Promise<T> {
  const deadlineMs = options.deadlineMs ?? DEFAULT_DEADLINE_MS;
  const startMs = performance.now();
  for (;;) {
    const last = performance.now() - startMs >= deadlineMs;
    let thrown: unknown;
    try {
      const value = await condition();
      if (value !== false && value !== null && value !== undefined) return value;
    } catch (error) {
      thrown = error;
    }
    if (last) throw await timedOut(options, deadlineMs, thrown);
    await Bun.sleep(options.pollMs ?? DEFAULT_POLL_MS);
  }
}

/** The value of `promise`, or an error that names `what` once the deadline has passed. The promise itself runs on. */
export async function withDeadline<T>(promise: Promise<T>, options: EventuallyOptions): Promise<T> {
  const deadlineMs = options.deadlineMs ?? DEFAULT_DEADLINE_MS;
  const { promise: late, resolve } = Promise.withResolvers<"late">();
  const timer = setTimeout(() => resolve("late"), deadlineMs);
  try {
    const winner = await Promise.race([promise.then((value) => ({ value })), late]);
    if (winner === "late") throw await timedOut(options, deadlineMs, undefined);
    return winner.value;
  } finally {
    clearTimeout(timer);
  }
}

async function timedOut(options: EventuallyOptions, deadlineMs: number, cause: unknown): Promise<Error> {
  const reason =
    cause === undefined ? "" : `; it last threw: ${cause instanceof Error ? cause.message : String(cause)}`;
  const explanation = options.explain === undefined ? "" : `; ${await options.explain()}`;
  return new Error(`waited ${deadlineMs} ms for ${options.what}${reason}${explanation}`, { cause });
}
