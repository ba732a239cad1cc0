import { expect, test } from "bun:test";
import { delay } from "../../src/util/delay.ts";
import { withDeadline } from "../support/eventually.ts";

test("delay resolves when the time has passed", async () => {
  const startMs = performance.now();
  await delay(20);
  expect(performance.now() - startMs).toBeGreaterThanOrEqual(19);
});

test("delay rejects with the reason at once when aborted, before or while it waits", async () => {
  const reason = new Error("stop");
  const abort = new AbortController();
  const delays = [delay(60_000, AbortSignal.abort(reason)), delay(60_000, abort.signal)];
  abort.abort(reason);
  const ends = await withDeadline(Promise.allSettled(delays), { what: "the aborted delays", deadlineMs: 20_000 });
  expect(ends).toEqual([
    { status: "rejected", reason },
    { status: "rejected", reason },
  ]);
});

test("a delay longer than the longest timer does not fire at once", async () => {
  const abort = new AbortController();
  let hasFired = false;
  const waiting = delay(2 ** 31 + 5, abort.signal).then(
    () => (hasFired = true),
    () => {},
  );
  await delay(30);
  expect(hasFired).toBe(false);
  abort.abort();
  await waiting;
});
