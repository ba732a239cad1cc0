/** What becomes of measured numbers: percentiles, and how they are written. Pure. */

/** The value below or at which `share` (0 to 1) of `sorted` lies, by nearest rank; NaN of nothing. `sorted` ascends. */
export function percentile(sorted: ArrayLike<number>, share: number): number {
  const rank = Math.ceil(share * sorted.length);
  return sorted[Math.max(0, Math.min(sorted.length, rank) - 1)] ?? Number.NaN;
}

export interface Distribution {
  readonly count: number;
  readonly p50: number;
  readonly p99: number;
  readonly p999: number;
  readonly max: number;
}

/** Takes values in any order and unit. All NaN but `count` when there are none. */
export function distribution(values: Iterable<number>): Distribution {
  const sorted = Float64Array.from(values).sort();
  return {
    count: sorted.length,
    p50: percentile(sorted, 0.5),
    p99: percentile(sorted, 0.99),
    p999: percentile(sorted, 0.999),
    max: percentile(sorted, 1),
  };
}

export function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}

/** NaN of nothing. */
export function mean(values: readonly number[]): number {
  return sum(values) / values.length;
}

/** Three significant digits at least, never an exponent: `0.0123`, `1.23`, `45.6`, `1,234`. "–" for what was not measured. */
export function number(value: number): string {
  if (!Number.isFinite(value)) return "–";
  const magnitude = Math.abs(value);
  if (magnitude >= 99.95) return Math.round(value).toLocaleString("en-US");
  if (magnitude >= 9.995) return value.toFixed(1);
  if (magnitude >= 0.9995 || magnitude === 0) return value.toFixed(2);
  return value.toFixed(magnitude >= 0.0995 ? 3 : 4);
}

/** A whole number: `1,234`. */
export function count(value: number): string {
  return Number.isFinite(value) ? Math.round(value).toLocaleString("en-US") : "–";
}

export function ms(value: number): string {
  return Number.isFinite(value) ? `${number(value)} ms` : "–";
}

export function seconds(value: number): string {
  return Number.isFinite(value) ? `${number(value)} s` : "–";
}

export function mebibytes(bytes: number): string {
  return Number.isFinite(bytes) ? `${number(bytes / 2 ** 20)} MiB` : "–";
}

export function percent(share: number): string {
  return Number.isFinite(share) ? `${number(share * 100)} %` : "–";
}
