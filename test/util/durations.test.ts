import { expect, test } from "bun:test";
import { formatDuration, parseDuration } from "../../src/util/durations.ts";
import { BakeliteError } from "../../src/util/errors.ts";
import { fc } from "../support/properties.ts";

test.each([
  ["250ms", 250],
  ["1s", 1_000],
  ["5m", 300_000],
  ["1h", 3_600_000],
  ["1d", 86_400_000],
  ["1w", 604_800_000],
  ["0s", 0],
  ["1h30m", 5_400_000],
  ["1w2d3h4m5s6ms", 788_645_006],
  ["90s", 90_000],
])("parseDuration reads %s as %d ms", (text, durationMs) => {
  expect(parseDuration(text)).toBe(durationMs);
});

test.each([
  "",
  "5",
  "5 m",
  "m",
  "-1s",
  "1.5h",
  "30m1h",
  "1h1h",
  "1H",
  "5min",
  "1h30",
  "١s",
  "1s\n",
  "99999999w",
  "9".repeat(99),
])("parseDuration refuses %j", (text) => {
  expect(() => parseDuration(text)).toThrow(BakeliteError);
});

test("parseDuration sums each unit of any compound", () => {
  const count = fc.option(fc.nat(999), { nil: undefined });
  fc.assert(
    fc.property(fc.tuple(count, count, count, count, count, count), (counts) => {
      const units = ["w", "d", "h", "m", "s", "ms"] as const;
      const unitsMs = [604_800_000, 86_400_000, 3_600_000, 60_000, 1_000, 1];
      const text = counts.map((n, i) => (n === undefined ? "" : `${n}${units[i]}`)).join("");
      fc.pre(text !== "");
      expect(parseDuration(text)).toBe(counts.reduce<number>((sum, n, i) => sum + (n ?? 0) * (unitsMs[i] ?? 0), 0));
    }),
  );
});

test("parseDuration gives a number or a BakeliteError for any text", () => {
  fc.assert(
    fc.property(fc.oneof(fc.string(), fc.string({ unit: fc.constantFrom(..."0129smhdw. -") })), (text) => {
      try {
        expect(parseDuration(text)).toBeGreaterThanOrEqual(0);
      } catch (error) {
        expect(error).toBeInstanceOf(BakeliteError);
      }
    }),
  );
});

test.each([
  [0, "0s"],
  [-5, "0s"],
  [Number.NaN, "0s"],
  [250, "250ms"],
  [999.9, "999ms"],
  [1_999, "1s"],
  [192_000, "3m12s"],
  [3_600_000, "1h"],
  [3_605_000, "1h"],
  [5_400_000, "1h30m"],
  [100_800_000, "1d4h"],
  [30 * 86_400_000, "30d"],
])("formatDuration shows %d ms as %s", (durationMs, text) => {
  expect(formatDuration(durationMs)).toBe(text);
});

test("what formatDuration shows is at most the duration, and from a minute on off by less than a twentieth", () => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 10 * 365 * 86_400_000 }), (durationMs) => {
      const shownMs = parseDuration(formatDuration(durationMs));
      expect(shownMs).toBeLessThanOrEqual(durationMs);
      expect(durationMs - shownMs).toBeLessThan(durationMs < 60_000 ? 1_000 : durationMs / 20);
    }),
  );
});
