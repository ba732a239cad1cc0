export interface BackoffPolicy {
  /** The upper bound of the first wait. */
  readonly baseMs: number;
  /** No wait is longer; 60 s by default. */
  readonly capMs?: number;
  /** From 0 up to but not including 1; `Math.random` by default. */
  readonly random?: () => number;
}

/**
 * How long to wait after `failureCount` failures in a row, the first being 1: exponential with full jitter, evenly
 * distributed from 0 to the smaller of the cap and `baseMs` doubled with every failure. Many waiters thus spread out.
 * Source: AWS Architecture Blog, "Exponential Backoff And Jitter" (2015).
 */
export function backoffDelayMs(failureCount: number, policy: BackoffPolicy): number {
  const { baseMs, capMs = 60_000, random = Math.random } = policy;
  // Past 2^50 the cap has long been reached.
  const doublings = Math.min(50, Math.max(0, failureCount - 1));
  return random() * Math.min(capMs, baseMs * 2 ** doublings);
}
