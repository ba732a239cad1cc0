import { expect, test } from "bun:test";
import { didYouMean, editDistance, nearestName } from "../../src/util/suggest.ts";
import { fc } from "../support/properties.ts";

const COMMANDS = ["daemon", "list", "status", "usage", "restore", "reencrypt", "verify", "version"];

test.each([
  ["statsu", "status"],
  ["restor", "restore"],
  ["STATUS", "status"],
  ["verfiy", "verify"],
])("nearestName takes %s for %s", (name, nearest) => {
  expect(nearestName(name, COMMANDS)).toBe(nearest);
});

test.each(["", "x", "ls", "frobnicate"])("nearestName finds nothing like %j", (name) => {
  expect(nearestName(name, COMMANDS)).toBeUndefined();
});

test("didYouMean is a clause with the prefix, or nothing", () => {
  expect(didYouMean("ouptut", ["output", "force"], "--")).toBe("; did you mean `--output`?");
  expect(didYouMean("zzz", ["output", "force"], "--")).toBe("");
});

test("editDistance counts one swap of neighbours as one edit", () => {
  expect(editDistance("statsu", "status")).toBe(1);
  expect(editDistance("", "abc")).toBe(3);
});

test("editDistance is zero only for equal texts, symmetric, and at most the longer length", () => {
  const word = fc.string({ maxLength: 12, unit: fc.constantFrom("a", "b", "c") });
  fc.assert(
    fc.property(word, word, (a, b) => {
      expect(editDistance(a, b) === 0).toBe(a === b);
      expect(editDistance(a, b)).toBe(editDistance(b, a));
      expect(editDistance(a, b)).toBeLessThanOrEqual(Math.max(a.length, b.length));
    }),
  );
});

test("a very long name is not compared letter by letter", () => {
  expect(nearestName("x".repeat(1_000_000), COMMANDS)).toBeUndefined();
});
