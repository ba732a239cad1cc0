import { expect, test } from "bun:test";
import { TokenBucket } from "../../src/util/token-bucket.ts";
import { fc } from "../support/properties.ts";

const KIB = 1024;

/** A clock that stands still until somebody sleeps, and then goes on by just that. */
function sleepers() {
  let nowMs = 0;
  return {
    clock: { nowMs: () => nowMs, monotonicMs: () => nowMs },
    sleep: async (ms: number, signal?: AbortSignal) => {
      signal?.throwIfAborted();
      nowMs += ms;
    },
    pass: (ms: number) => {
      nowMs += ms;
    },
    get nowMs() {
      return nowMs;
    },
  };
}

test("what passes never exceeds the rate by more than one burst, and the line is never idle while somebody waits", async () => {
  const takes = fc.array(fc.integer({ min: 1, max: 3000 * KIB }), { minLength: 1, maxLength: 20 });
  await fc.assert(
    fc.asyncProperty(takes, fc.integer({ min: 50 * KIB, max: 5000 * KIB }), async (sizes, rate) => {
      const time = sleepers();
      const bucket = new TokenBucket(rate, time);
      const burst = Math.max(64 * KIB, rate);
      let granted = 0;
      for (const size of sizes) {
        await bucket.take(size);
        granted += size;
        expect(granted).toBeLessThanOrEqual(burst + (rate * time.nowMs) / 1000 + 1);
      }
      // No wait is longer than it has to be, but for the millisecond that each is rounded up by.
      const turns = sizes.reduce((sum, size) => sum + Math.ceil(size / (64 * KIB)), 0);
      const leastMs = (Math.max(0, granted - burst) / rate) * 1000;
      expect(time.nowMs).toBeLessThanOrEqual(leastMs + turns + 1);
    }),
    { numRuns: 60 },
  );
});

test("a pause saves up one second's worth and no more", async () => {
  const time = sleepers();
  const bucket = new TokenBucket(100 * KIB, time);
  await bucket.take(100 * KIB);
  time.pass(3600_000);
  const startMs = time.nowMs;
  await bucket.take(100 * KIB);
  expect(time.nowMs).toBe(startMs);
  await bucket.take(100 * KIB);
  expect(time.nowMs - startMs).toBeGreaterThanOrEqual(1000);
});

test("without a limit nothing waits", async () => {
  const time = sleepers();
  await new TokenBucket(0, time).take(1e12);
  expect(time.nowMs).toBe(0);
});

test("a small body waits for a turn of a large one, not for its end", async () => {
  const time = sleepers();
  const bucket = new TokenBucket(64 * KIB, time);
  let isLargeDone = false;
  const large = bucket.take(640 * KIB).then(() => {
    isLargeDone = true;
  });
  await bucket.take(1 * KIB);
  expect(isLargeDone).toBe(false);
  await large;
});

test("another rate counts at once, also for who waits already", async () => {
  const time = sleepers();
  const bucket = new TokenBucket(1, {
    clock: time.clock,
    sleep: async (ms, signal) => {
      bucket.setRate(0);
      await time.sleep(ms, signal);
    },
  });
  await bucket.take(1000 * KIB);
  expect(time.nowMs).toBeLessThanOrEqual(250);
  bucket.setRate(1000);
  await bucket.take(10);
  expect(bucket.bytesPerSecond).toBe(1000);
});

test("who leaves takes nothing, and lets the next one go on", async () => {
  const time = sleepers();
  const abort = new AbortController();
  let sleeps = 0;
  const bucket = new TokenBucket(1000, {
    clock: time.clock,
    sleep: async (ms, signal) => {
      if (++sleeps === 2) abort.abort(new Error("stopped"));
      await time.sleep(ms, signal);
    },
  });
  await bucket.take(64 * KIB);
  const leaving = bucket.take(64 * KIB, abort.signal);
  const next = bucket.take(1);
  await expect(leaving).rejects.toThrow("stopped");
  await next;
  // One byte, and not the 64 KiB of who left.
  expect(time.nowMs).toBeLessThan(1000);
});
