/** What a stored object is, as its name alone tells. `seal` is `p` or the 8 hex digits of a key's fingerprint. */
export type ObjectName =
  | { readonly kind: "full"; readonly index: number; readonly seal: string }
  | {
      readonly kind: "change-set";
      readonly level: number;
      readonly first: number;
      readonly last: number;
      readonly seal: string;
    };

/** What the name of a mark tells: the state that stays restorable. */
export interface MarkName {
  readonly kind: "mark";
  readonly index: number;
  readonly seal: string;
}

/** The `seal` of an object that is not encrypted. */
export const PLAINTEXT_SEAL = "p";

export const HIGHEST_LEVEL = 9;

const INDEX_DIGITS = 16;
const DATABASE_NAME = /^[A-Za-z0-9_-][A-Za-z0-9._-]*$/;
/** Whether `text` can be a database's name and so a folder of the destination (docs/storage-format.md section 2). */
export function isDatabaseName(text: string): boolean {
  return DATABASE_NAME.test(text);
}

/**
 * The part of an object's key below the database's folder: `full/0000000000000001.p` or
 * `L0/0000000000000002-0000000000000002.1a2b3c4d` (docs/storage-format.md section 2). Checks nothing.
 */
export function formatName(name: ObjectName): string {
  if (name.kind === "full") return `full/${formatIndex(name.index)}.${name.seal}`;
  return `L${name.level}/${formatIndex(name.first)}-${formatIndex(name.last)}.${name.seal}`;
}

/**
 * The inverse of `formatName`, for what stands in `text` from position `start` on: null for anything else that may lie in the folder,
 * `CURRENT` and `manifest` included. Indexes are from 1 to 2^53 - 1 and a change-set's first is not above its last. A listing has
 * 100,000 of them, so characters are looked at one by one, and nothing is cut out but the seal.
 */
export function parseName(text: string, start = 0): ObjectName | null {
  if (text.startsWith("full/", start)) {
    const index = parseIndex(text, start + 5);
    const seal = parseSeal(text, start + 5 + INDEX_DIGITS);
    return index === null || seal === null ? null : { kind: "full", index, seal };
  }
  const level = text.charCodeAt(start + 1) - DIGIT_ZERO;
  if (text.charAt(start) !== "L" || text.charAt(start + 2) !== "/" || !(level >= 0 && level <= HIGHEST_LEVEL))
    return null;
  const first = parseIndex(text, start + 3);
  const last = parseIndex(text, start + 4 + INDEX_DIGITS);
  const seal = parseSeal(text, start + 4 + 2 * INDEX_DIGITS);
  if (first === null || last === null || seal === null || text.charAt(start + 3 + INDEX_DIGITS) !== "-") return null;
  return first <= last ? { kind: "change-set", level, first, last, seal } : null;
}

/** The key of an object below the destination's prefix: `app/full/0000000000000001.p`. */
export function objectKey(database: string, name: ObjectName): string {
  return `${database}/${formatName(name)}`;
}

/** The key of a mark below the destination's prefix: `app/keep/0000000000000001.p` (docs/storage-format.md section 7). Checks nothing. */
export function markKey(database: string, { index, seal }: Omit<MarkName, "kind">): string {
  return `${database}/keep/${formatIndex(index)}.${seal}`;
}

/** What a mark's key below the database's folder, from position `start` of `text` on, says; null for anything else. */
export function parseMarkName(text: string, start = 0): MarkName | null {
  if (!text.startsWith("keep/", start)) return null;
  const index = parseIndex(text, start + 5);
  const seal = parseSeal(text, start + 5 + INDEX_DIGITS);
  return index === null || seal === null ? null : { kind: "mark", index, seal };
}

/** The key of the hint at the newest full backup (docs/storage-format.md section 7). */
export function currentKey(database: string): string {
  return `${database}/CURRENT`;
}

/** The key of the cache of names and trailers (docs/storage-format.md section 7). */
export function manifestKey(database: string): string {
  return `${database}/manifest`;
}

/** 16 decimal digits, so that byte order is number order: also a `startAfter` for listings is made of it. */
export function formatIndex(index: number): string {
  return String(index).padStart(INDEX_DIGITS, "0");
}

const DIGIT_ZERO = 0x30;
const LOWER_A = 0x61;
const SEAL_DIGITS = 8;

/** The 16 digits at `start`, or null where they are not 16 digits or out of range. */
function parseIndex(text: string, start: number): number | null {
  let index = 0;
  for (let at = start; at < start + INDEX_DIGITS; at++) {
    const digit = text.charCodeAt(at) - DIGIT_ZERO;
    // Not a number where the text has ended.
    if (!(digit >= 0 && digit <= 9)) return null;
    index = index * 10 + digit;
  }
  return Number.isSafeInteger(index) && index >= 1 ? index : null;
}

/** What follows the dot at `start`, to the end of the text: a seal, or null. */
function parseSeal(text: string, start: number): string | null {
  if (text.charAt(start) !== ".") return null;
  if (text.length === start + 2 && text.charAt(start + 1) === PLAINTEXT_SEAL) return PLAINTEXT_SEAL;
  if (text.length !== start + 1 + SEAL_DIGITS) return null;
  for (let at = start + 1; at < text.length; at++) {
    const code = text.charCodeAt(at);
    const isHex = (code >= DIGIT_ZERO && code <= DIGIT_ZERO + 9) || (code >= LOWER_A && code <= LOWER_A + 5);
    if (!isHex) return null;
  }
  return text.slice(start + 1);
}
