/** A step that was begun before this is over is followed by the next one at once; some 10 ms delay no commit noticeably. */
const TURN_MS = 10;

/** So many short looks, at an object each, are one step of a loop over very many: a few milliseconds. */
export const STEP_LOOKS = 8192;

/** Lets the event loop run: timers, and whatever has arrived meanwhile. */
export function nextTurn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

/** The result of work that is made in steps. After 10 ms of them the event loop runs, so that it waits for one long step at most. */
export async function inTurns<Result>(
  steps: Iterator<void, Result>,
  monotonicMs: () => number = () => performance.now(),
): Promise<Result> {
  let startedMs = monotonicMs();
  for (;;) {
    const step = steps.next();
    if (step.done === true) return step.value;
    if (monotonicMs() - startedMs < TURN_MS) continue;
    await nextTurn();
    startedMs = monotonicMs();
  }
}

/** The same result without giving way: for whoever shares its thread with nobody. */
export function atOnce<Result>(steps: Iterator<void, Result>): Result {
  for (;;) {
    const step = steps.next();
    if (step.done === true) return step.value;
  }
}
