import { BakeliteError } from "./errors.ts";

const UNITS: ReadonlyMap<string, number> = new Map([
  ["", 1],
  ["B", 1],
  ["KB", 1e3],
  ["MB", 1e6],
  ["GB", 1e9],
  ["TB", 1e12],
  ["KiB", 2 ** 10],
  ["MiB", 2 ** 20],
  ["GiB", 2 ** 30],
  ["TiB", 2 ** 40],
]);

/** What `parseByteSize` accepts, for messages that list accepted values. */
export const BYTE_SIZE_FORMS = 'a size in bytes or such as "16MiB", "5GiB" or "500MB"';

/** Bytes of `1048576`, `512KiB`, `16MiB`, `5GiB`, `1TiB`, `500MB` and so on. Throws `usage` for anything else. */
export function parseByteSize(text: string): number {
  const match = /^(\d{1,16}) ?([A-Za-z]*)$/.exec(text);
  const unitBytes = match === null ? undefined : UNITS.get(match[2] ?? "");
  if (unitBytes === undefined) throw new BakeliteError("usage", `${JSON.stringify(text)} is not ${BYTE_SIZE_FORMS}`);
  const bytes = Number(match?.[1]) * unitBytes;
  if (!Number.isSafeInteger(bytes)) throw new BakeliteError("usage", `${JSON.stringify(text)} is too large`);
  return bytes;
}

/** A size for people, in binary units with three significant digits: `0 B`, `999 B`, `1.50 KiB`, `16.0 MiB`, `512 GiB`. */
export function formatByteSize(bytes: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let value = bytes;
  let unit = 0;
  // 999.5 and more would print as four digits.
  while (Math.abs(value) >= (unit === 0 ? 1024 : 999.5) && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  const digits = unit === 0 || Math.abs(value) >= 99.95 ? 0 : Math.abs(value) >= 9.995 ? 1 : 2;
  return `${value.toFixed(digits)} ${units[unit]}`;
}
