import { expect, test } from "bun:test";
import { BakeliteError } from "../../src/util/errors.ts";
import { formatAgo, formatTimestamp, formatTimestampAndAgo, parseTargetTime } from "../../src/util/timestamps.ts";
import { fc } from "../support/properties.ts";

const NOW_MS = Date.UTC(2026, 4, 25, 12, 0, 0, 500);

test.each([
  ["2026-05-25T12:00:00Z", "2026-05-25T12:00:00.000Z"],
  ["2026-05-25t12:00:00z", "2026-05-25T12:00:00.000Z"],
  ["2026-05-25 12:00:00 Z", "2026-05-25T12:00:00.000Z"],
  ["2026-05-25T12:00Z", "2026-05-25T12:00:00.000Z"],
  ["2026-05-25T12:00:00.123456789Z", "2026-05-25T12:00:00.123Z"],
  ["2026-05-25T12:00:00.9999Z", "2026-05-25T12:00:00.999Z"],
  ["2026-05-25T12:00:00.5Z", "2026-05-25T12:00:00.500Z"],
  ["2026-05-25T14:00:00+02:00", "2026-05-25T12:00:00.000Z"],
  ["2026-05-25T14:00:00+0200", "2026-05-25T12:00:00.000Z"],
  ["2026-05-25T06:30:00-05:30", "2026-05-25T12:00:00.000Z"],
  ["2026-01-01T00:30:00+01:00", "2025-12-31T23:30:00.000Z"],
  ["2026-05-25T12:00:00-00:00", "2026-05-25T12:00:00.000Z"],
  ["2026-05-25", "2026-05-25T00:00:00.000Z"],
  ["2024-02-29", "2024-02-29T00:00:00.000Z"],
  ["1970-01-01T00:00:00Z", "1970-01-01T00:00:00.000Z"],
  ["now", "2026-05-25T12:00:00.500Z"],
  ["NOW", "2026-05-25T12:00:00.500Z"],
  ["90s ago", "2026-05-25T11:58:30.500Z"],
  ["1 hour ago", "2026-05-25T11:00:00.500Z"],
  ["2 days ago", "2026-05-23T12:00:00.500Z"],
  ["2  Days  ago", "2026-05-23T12:00:00.500Z"],
  ["5 min ago", "2026-05-25T11:55:00.500Z"],
  ["1h30m ago", "2026-05-25T10:30:00.500Z"],
  ["1 week ago", "2026-05-18T12:00:00.500Z"],
  ["0s ago", "2026-05-25T12:00:00.500Z"],
  [" 2026-05-25 ", "2026-05-25T00:00:00.000Z"],
])("parseTargetTime takes %j for %s", (text, expected) => {
  expect(formatTimestamp(parseTargetTime(text, NOW_MS))).toBe(expected);
});

test.each([
  ["2026-02-31", "that month has 28 days"],
  ["2023-02-29T12:00:00Z", "that month has 28 days"],
  ["1900-02-29", "that month has 28 days"],
  ["2026-13-01", "there is no month 13"],
  ["2026-00-01", "there is no month 0"],
  ["2026-05-00", "that month has 31 days"],
  ["2026-05-25T24:00:00Z", "no such time of day"],
  ["2026-05-25T12:60:00Z", "no such time of day"],
  ["2026-05-25T12:00:60Z", "no such time of day"],
  ["2026-05-25T12:00:00+24:00", "no such offset"],
  ["2026-05-25T12:00:00", "does not say in which time zone"],
  ["2026-05-25 12:00", "does not say in which time zone"],
  ["1969-12-31", "before 1970"],
  ["0026-05-25", "before 1970"],
  ["9999 weeks ago", "before 1970"],
  ["2 months ago", "does not say how long ago"],
  ["-5s ago", "does not say how long ago"],
  ["ago", "is not a time"],
  ["yesterday", "is not a time"],
  ["", "is not a time"],
  ["1779710400", "is not a time"],
  ["2026-5-25", "is not a time"],
])("parseTargetTime refuses %j: %s", (text, reason) => {
  expect(() => parseTargetTime(text, NOW_MS)).toThrow(reason);
});

test("a formatted timestamp is read back as the same millisecond", () => {
  fc.assert(
    fc.property(fc.integer({ min: 0, max: Date.UTC(9999, 11, 31) }), (timeMs) => {
      expect(parseTargetTime(formatTimestamp(timeMs), NOW_MS)).toBe(timeMs);
    }),
  );
});

test("the same moment is read the same under every offset", () => {
  const offset = fc.integer({ min: -(23 * 60 + 59), max: 23 * 60 + 59 });
  fc.assert(
    fc.property(fc.integer({ min: 2 * 86_400_000, max: Date.UTC(9999, 0) }), offset, (timeMs, offsetMinutes) => {
      const local = new Date(timeMs + offsetMinutes * 60_000).toISOString().slice(0, -1);
      const minutes = Math.abs(offsetMinutes);
      const zone = [Math.floor(minutes / 60), minutes % 60].map((part) => String(part).padStart(2, "0")).join(":");
      expect(parseTargetTime(`${local}${offsetMinutes < 0 ? "-" : "+"}${zone}`, NOW_MS)).toBe(timeMs);
    }),
  );
});

test("parseTargetTime gives a moment from 1970 on or a BakeliteError for any text", () => {
  const dateLike = fc.string({ unit: fc.constantFrom(..."0123459-T: .Z+agodhsw"), maxLength: 30 });
  fc.assert(
    fc.property(
      fc.oneof(
        fc.string(),
        dateLike,
        dateLike.map((text) => `${text} ago`),
      ),
      (text) => {
        try {
          expect(parseTargetTime(text, NOW_MS)).toBeGreaterThanOrEqual(0);
        } catch (error) {
          expect(error).toBeInstanceOf(BakeliteError);
        }
      },
    ),
    { numRuns: 2_000 },
  );
});

test("formatAgo tells past, present and future apart", () => {
  expect(formatAgo(NOW_MS - 192_000, NOW_MS)).toBe("3m12s ago");
  expect(formatAgo(NOW_MS - 400, NOW_MS)).toBe("now");
  expect(formatAgo(NOW_MS + 5_000, NOW_MS)).toBe("in 5s");
  expect(formatTimestampAndAgo(NOW_MS - 60_000, NOW_MS)).toBe("2026-05-25T11:59:00.500Z (1m ago)");
});
