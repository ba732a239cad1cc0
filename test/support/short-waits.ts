/**
 * Until it is disposed of, this process waits a hundredth as long as it would before it tries again what failed (backoff.ts draws its
 * jitter from `Math.random`). For tests with faults by the dozen: full jitter may add up to minutes, and no deadline would be right.
 */
export function shortWaits(): Disposable {
  const draw = Math.random;
  Math.random = () => draw() / 100;
  return {
    [Symbol.dispose]() {
      Math.random = draw;
    },
  };
}
