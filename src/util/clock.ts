/** Where time comes from, so that tests can say what time it is. */
export interface Clock {
  /** Unix time in milliseconds. It may step backwards. */
  nowMs(): number;
  /** Milliseconds since an arbitrary start. It never goes backwards. */
  monotonicMs(): number;
}

export const systemClock: Clock = {
  nowMs: () => Date.now(),
  monotonicMs: () => performance.now(),
};
