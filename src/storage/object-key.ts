import { assert } from "../util/errors.ts";

const MAX_KEY_BYTES = 1024;
const SURROGATE = /[\ud800-\udfff]/;

/**
 * Asserts that a key is one or more names joined by `/`, at most 1,024 bytes of UTF-8, where no name is empty, `.` or `..`
 * and no character is NUL or half of a surrogate pair. Keys are made by `format/`, so a bad one is a bug, not bad input.
 */
export function assertObjectKey(key: string): void {
  assert(key.length > 0 && Buffer.byteLength(key) <= MAX_KEY_BYTES, "an object key has 1 to 1,024 bytes");
  assertNames(key.split("/"), key);
}

/** Whether `assertObjectKey` would pass: what others put beside our objects may have any name. */
export function isObjectKey(key: string): boolean {
  try {
    assertObjectKey(key);
    return true;
  } catch {
    return false;
  }
}

/** Asserts that a prefix is empty or the beginning of a key; it may end anywhere in a name or after a `/`. */
export function assertKeyPrefix(prefix: string): void {
  assert(Buffer.byteLength(prefix) <= MAX_KEY_BYTES, "a key prefix has at most 1,024 bytes");
  assertNames(prefix.split("/").slice(0, -1), prefix);
  assert(isWellFormed(prefix), `prefix is UTF-8 without NUL: ${JSON.stringify(prefix)}`);
}

function assertNames(names: readonly string[], key: string): void {
  for (const name of names)
    assert(
      name !== "" && name !== "." && name !== ".." && isWellFormed(name),
      `object key stays inside its destination: ${JSON.stringify(key)}`,
    );
}

function isWellFormed(text: string): boolean {
  return text.isWellFormed() && !text.includes("\0");
}

/**
 * Orders keys by their UTF-8 bytes: negative, 0 or positive. JavaScript's own `<` compares UTF-16 units, which puts
 * characters above U+FFFF before U+E000 to U+FFFF.
 */
export function compareKeys(a: string, b: string): number {
  const length = Math.min(a.length, b.length);
  for (let i = 0; i < length; i++) {
    const x = a.charCodeAt(i);
    const y = b.charCodeAt(i);
    if (x !== y) return rank(x) - rank(y);
  }
  return a.length - b.length;
}

/** Moves surrogates, which stand for characters above U+FFFF, behind every other UTF-16 unit. */
function rank(unit: number): number {
  return unit >= 0xd800 && unit <= 0xdfff ? unit + 0x10000 : unit;
}

/** Sorts in place by `compareKeys`; ten times faster where no key has a character above U+FFFF, as nearly always. */
export function sortKeys(keys: string[]): string[] {
  return keys.some((key) => SURROGATE.test(key)) ? keys.sort(compareKeys) : keys.sort();
}
