import { formatDuration, parseDuration } from "./durations.ts";
import { BakeliteError } from "./errors.ts";

/** RFC 3339 in UTC with milliseconds: `2026-05-25T12:00:00.000Z`. `parseTargetTime` reads it back as the same moment. */
export function formatTimestamp(timeMs: number): string {
  return new Date(timeMs).toISOString();
}

/** How long ago, for people: `3m12s ago`, `in 5s` for what lies ahead, `now` within a second. */
export function formatAgo(timeMs: number, nowMs: number): string {
  const ageMs = nowMs - timeMs;
  if (Math.abs(ageMs) < 1_000) return "now";
  return ageMs > 0 ? `${formatDuration(ageMs)} ago` : `in ${formatDuration(-ageMs)}`;
}

/** `2026-05-25T12:00:00.000Z (3m12s ago)`. */
export function formatTimestampAndAgo(timeMs: number, nowMs: number): string {
  return `${formatTimestamp(timeMs)} (${formatAgo(timeMs, nowMs)})`;
}

/**
 * The moment that a person means, in Unix milliseconds: RFC 3339 with any offset (`2026-05-25T12:00:00Z`,
 * `2026-05-25 14:00+02:00`), a date (its midnight in UTC), `now`, or `<n> <unit> ago` (`90s ago`, `1 hour ago`,
 * `1h30m ago`). Fractions beyond milliseconds are cut off, so that the result is never later than what was asked for.
 * Throws `usage` for an impossible date, a time without an offset, a moment before 1970 and anything else.
 */
export function parseTargetTime(text: string, nowMs: number): number {
  const target = text.trim();
  const timeMs = parseNow(target, nowMs) ?? parseAgo(target, nowMs) ?? parseMoment(target);
  if (timeMs === null) {
    throw new BakeliteError("usage", `${JSON.stringify(text)} is not a time`, {
      hint: 'write "2026-05-25T12:00:00Z", "2026-05-25" (midnight UTC), "now" or "1 hour ago"',
    });
  }
  if (timeMs < 0) throw new BakeliteError("usage", `${JSON.stringify(text)} lies before 1970`);
  return timeMs;
}

const UNITS_MS: readonly (readonly [pattern: RegExp, unitMs: number])[] = [
  [/^(?:s|secs?|seconds?)$/, 1_000],
  [/^(?:m|mins?|minutes?)$/, 60_000],
  [/^(?:h|hrs?|hours?)$/, 3_600_000],
  [/^(?:d|days?)$/, 86_400_000],
  [/^(?:w|weeks?)$/, 604_800_000],
];

function parseNow(text: string, nowMs: number): number | null {
  return text.toLowerCase() === "now" ? nowMs : null;
}

function parseAgo(text: string, nowMs: number): number | null {
  const age = /^(.*\S)\s+ago$/is.exec(text)?.[1]?.toLowerCase();
  if (age === undefined) return null;
  const [, count, unit = ""] = /^(\d{1,9})\s*([a-z]+)$/.exec(age) ?? [];
  const unitMs = UNITS_MS.find(([pattern]) => pattern.test(unit))?.[1];
  if (count !== undefined && unitMs !== undefined) return nowMs - Number(count) * unitMs;
  try {
    return nowMs - parseDuration(age);
  } catch (cause) {
    throw new BakeliteError("usage", `${JSON.stringify(text)} does not say how long ago`, {
      hint: 'units are seconds, minutes, hours, days and weeks: "90s ago", "1 hour ago", "2 days ago"',
      cause,
    });
  }
}

const MOMENT =
  /^(\d{4})-(\d{2})-(\d{2})(?:[Tt ](\d{2}):(\d{2})(?::(\d{2})(?:\.(\d{1,30}))?)? ?(Z|z|([+-])(\d{2}):?(\d{2}))?)?$/;

function parseMoment(text: string): number | null {
  const match = MOMENT.exec(text);
  if (match === null) return null;
  const [, year = "", month = "", day = "", hour, minute = "", second = "0", fraction = "", zone, ...offset] = match;
  const midnightMs = parseDate(text, { year: Number(year), month: Number(month), day: Number(day) });
  if (hour === undefined) return midnightMs;
  if (Number(hour) > 23 || Number(minute) > 59 || Number(second) > 59)
    throw impossible(text, "there is no such time of day");
  if (zone === undefined) {
    throw new BakeliteError("usage", `${JSON.stringify(text)} does not say in which time zone`, {
      hint: `append "Z" for UTC or an offset such as "+02:00"`,
    });
  }
  const [sign, offsetHours = "0", offsetMinutes = "0"] = offset;
  if (Number(offsetHours) > 23 || Number(offsetMinutes) > 59) throw impossible(text, "there is no such offset");
  const offsetMs = (sign === "-" ? -1 : 1) * (Number(offsetHours) * 60 + Number(offsetMinutes)) * 60_000;
  const timeOfDayMs = ((Number(hour) * 60 + Number(minute)) * 60 + Number(second)) * 1_000;
  return midnightMs + timeOfDayMs + Number(fraction.padEnd(3, "0").slice(0, 3)) - offsetMs;
}

function parseDate(text: string, { year, month, day }: { year: number; month: number; day: number }): number {
  if (month < 1 || month > 12) throw impossible(text, `there is no month ${month}`);
  const dayCount = new Date(Date.UTC(2000 + (year % 400), month, 0)).getUTCDate();
  if (day < 1 || day > dayCount) throw impossible(text, `that month has ${dayCount} days`);
  // Date.UTC takes the years 0 to 99 for 1900 to 1999.
  return new Date(0).setUTCFullYear(year, month - 1, day);
}

function impossible(text: string, reason: string): BakeliteError {
  return new BakeliteError("usage", `${JSON.stringify(text)} is not a possible time: ${reason}`);
}
