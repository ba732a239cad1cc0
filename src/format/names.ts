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
const FULL_NAME = /^full\/([0-9]{16})\.(p|[0-9a-f]{8})$/;
const CHANGE_SET_NAME = /^L([0-9])\/([0-9]{16})-([0-9]{16})\.(p|[0-9a-f]{8})$/;

const MARK_NAME = /^keep\/([0-9]{16})\.(p|[0-9a-f]{8})$/;

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
 * The inverse of `formatName`: null for anything else that may lie in the folder, `CURRENT` and `manifest` included.
 * Indexes are from 1 to 2^53 - 1 and a change-set's first is not above its last.
 */
export function parseName(text: string): ObjectName | null {
  const full = FULL_NAME.exec(text);
  if (full !== null) {
    const index = parseIndex(full[1]);
    const seal = full[2];
    return index === null || seal === undefined ? null : { kind: "full", index, seal };
  }
  const changeSet = CHANGE_SET_NAME.exec(text);
  if (changeSet === null) return null;
  const level = Number(changeSet[1]);
  const first = parseIndex(changeSet[2]);
  const last = parseIndex(changeSet[3]);
  const seal = changeSet[4];
  if (first === null || last === null || seal === undefined) return null;
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

/** What a mark's key below the database's folder says; null for anything else. */
export function parseMarkName(text: string): MarkName | null {
  const [, digits, seal] = MARK_NAME.exec(text) ?? [];
  const index = parseIndex(digits);
  return index === null || seal === undefined ? null : { kind: "mark", index, seal };
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

function parseIndex(digits: string | undefined): number | null {
  const index = Number(digits);
  return Number.isSafeInteger(index) && index >= 1 ? index : null;
}
