import { expect, test } from "bun:test";
import { assertKeyPrefix, assertObjectKey, compareKeys, sortKeys } from "../../src/storage/object-key.ts";
import { fc } from "../support/properties.ts";

const unicode = fc.string({ unit: "binary" });
const nearSurrogates = fc.string({
  unit: fc.constantFrom("a", "/", "\ud7ff", "\ue000", "\uffff", "\u{10000}", "\u{10ffff}"),
});

function byBytes(a: string, b: string): number {
  return Buffer.compare(Buffer.from(a), Buffer.from(b));
}

test("keys are ordered as their UTF-8 bytes are", () => {
  fc.assert(
    fc.property(fc.oneof(unicode, nearSurrogates), fc.oneof(unicode, nearSurrogates), (a, b) => {
      expect(Math.sign(compareKeys(a, b))).toBe(byBytes(a, b));
    }),
  );
  fc.assert(
    fc.property(fc.array(fc.oneof(fc.string(), unicode, nearSurrogates)), (keys) => {
      expect(sortKeys([...keys])).toEqual(keys.toSorted(byBytes));
    }),
  );
});

test("every beginning of a key is a prefix, and no prefix leads outside", () => {
  const name = fc
    .string({ unit: "binary", minLength: 1, maxLength: 20 })
    .filter((part) => !/^\.{1,2}$|[/\0]/.test(part));
  fc.assert(
    fc.property(fc.array(name, { minLength: 1, maxLength: 6 }), fc.nat(), (names, cut) => {
      const key = names.join("/");
      assertObjectKey(key);
      const prefix = key.slice(0, cut % (key.length + 1));
      if (prefix.isWellFormed()) assertKeyPrefix(prefix);
    }),
  );
  for (const prefix of ["../", "a/../b", "./", "/", "a//", "\0"])
    expect(() => assertKeyPrefix(prefix)).toThrow("invariant");
  for (const key of ["", "a/", "/a", ".", "..", "a/./b", "x".repeat(1025)])
    expect(() => assertObjectKey(key)).toThrow("invariant");
});
