import { BakeliteError } from "./errors.ts";

/** Largest first, the order in which a compound such as `1h30m` must name them. */
const UNITS = [
  ["w", 604_800_000],
  ["d", 86_400_000],
  ["h", 3_600_000],
  ["m", 60_000],
  ["s", 1_000],
  ["ms", 1],
] as const;

const COMPOUND = new RegExp(`^${UNITS.map(([unit]) => `(?:(\\d{1,15})${unit})?`).join("")}$`);

/** A hundred years: any longer is a slip of the pen, and times minus it must stay dates. */
const MAX_DURATION_MS = 100 * 365 * 86_400_000;

/** What `parseDuration` accepts, for messages that list accepted values. */
export const DURATION_FORMS = 'a duration such as "250ms", "5m", "1h30m" or "7d"';

/**
 * Milliseconds of `250ms`, `1s`, `5m`, `1h`, `1d`, `1w`, `0s`, or a compound with the largest unit first, each once:
 * `1h30m`. Whole numbers only, no spaces, at most a hundred years. Throws `usage` for anything else.
 */
export function parseDuration(text: string): number {
  const match = COMPOUND.exec(text);
  if (match === null || text === "")
    throw new BakeliteError("usage", `${JSON.stringify(text)} is not ${DURATION_FORMS}`);
  const totalMs = UNITS.reduce((sum, [, unitMs], i) => sum + Number(match[i + 1] ?? 0) * unitMs, 0);
  if (totalMs > MAX_DURATION_MS) throw new BakeliteError("usage", `${JSON.stringify(text)} is more than 100 years`);
  return totalMs;
}

/**
 * A duration for people: at most the two largest units that are not zero, rounded down, weeks as days: `3m12s`, `1d4h`,
 * `45s`, `250ms`, `0s`. Negative durations are shown as `0s`; milliseconds only below one second.
 */
export function formatDuration(durationMs: number): string {
  if (!(durationMs >= 1)) return "0s";
  if (durationMs < 1_000) return `${Math.floor(durationMs)}ms`;
  const units = UNITS.filter(([unit]) => unit !== "w" && unit !== "ms");
  const largest = units.findIndex(([, unitMs]) => durationMs >= unitMs);
  let restMs = durationMs;
  let shown = "";
  for (const [unit, unitMs] of units.slice(largest, largest + 2)) {
    const count = Math.floor(restMs / unitMs);
    if (count > 0) shown += `${count}${unit}`;
    restMs -= count * unitMs;
  }
  return shown;
}
