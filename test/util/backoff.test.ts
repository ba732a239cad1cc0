import { expect, test } from "bun:test";
import { backoffDelayMs } from "../../src/util/backoff.ts";
import { fc } from "../support/properties.ts";

test("the longest possible wait doubles with each failure up to the cap", () => {
  const random = () => 1;
  const waits = [1, 2, 3, 4, 8, 9].map((failureCount) => backoffDelayMs(failureCount, { baseMs: 250, random }));
  expect(waits).toEqual([250, 500, 1_000, 2_000, 32_000, 60_000]);
});

test("a wait lies between zero and the cap after any number of failures", () => {
  const random = fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true });
  fc.assert(
    fc.property(fc.integer(), fc.integer({ min: 1, max: 10_000 }), random, (failureCount, baseMs, share) => {
      const waitMs = backoffDelayMs(failureCount, { baseMs, capMs: 5_000, random: () => share });
      expect(waitMs).toBeGreaterThanOrEqual(0);
      expect(waitMs).toBeLessThanOrEqual(5_000);
    }),
  );
});
