import { expect, test } from "bun:test";
import {
  currentKey,
  formatName,
  isDatabaseName,
  manifestKey,
  markKey,
  type ObjectName,
  objectKey,
  parseMarkName,
  parseName,
} from "../../src/format/names.ts";
import { fc } from "../support/properties.ts";

const index = fc.integer({ min: 1, max: Number.MAX_SAFE_INTEGER });
const seal = fc.oneof(
  fc.constant("p"),
  fc.integer({ min: 0, max: 0xffff_ffff }).map((n) => n.toString(16).padStart(8, "0")),
);
const name: fc.Arbitrary<ObjectName> = fc.oneof(
  fc.record({ kind: fc.constant("full" as const), index, seal }),
  fc
    .record({
      kind: fc.constant("change-set" as const),
      level: fc.nat(9),
      range: fc.tuple(index, index),
      seal,
    })
    .map(({ range, ...fields }) => ({
      ...fields,
      first: Math.min(...range),
      last: Math.max(...range),
    })),
);

test("a name survives being written and read", () => {
  fc.assert(fc.property(name, (name) => expect(parseName(formatName(name))).toEqual(name)));
});

test("names of one folder sort by index", () => {
  fc.assert(
    fc.property(index, index, (a, b) => {
      const text = (index: number) => formatName({ kind: "full", index, seal: "p" });
      expect(Math.sign(Buffer.compare(Buffer.from(text(a)), Buffer.from(text(b))))).toBe(Math.sign(a - b));
    }),
  );
});

test("names are those of the documented layout", () => {
  expect(objectKey("app", { kind: "full", index: 12, seal: "p" })).toBe("app/full/0000000000000012.p");
  expect(objectKey("app", { kind: "change-set", level: 3, first: 7, last: 1234567, seal: "00ab12cd" })).toBe(
    "app/L3/0000000000000007-0000000001234567.00ab12cd",
  );
  expect(currentKey("app")).toBe("app/CURRENT");
  expect(manifestKey("app")).toBe("app/manifest");
  expect(markKey("app", { index: 7, seal: "p" })).toBe("app/keep/0000000000000007.p");
});

test("a mark's name survives being written and read, and nothing else is one", () => {
  fc.assert(
    fc.property(index, seal, (at, with_) => {
      const below = markKey("app", { index: at, seal: with_ }).slice("app/".length);
      expect(parseMarkName(below)).toEqual({ kind: "mark", index: at, seal: with_ });
      expect(parseName(below)).toBeNull();
    }),
  );
  for (const text of [
    "",
    "keep/1.p",
    "keep/0000000000000000.p",
    "keep/0000000000000001.q",
    "keep/0000000000000001.p.tmp",
  ])
    expect(parseMarkName(text)).toBeNull();
});

test.each([
  "",
  "CURRENT",
  "manifest",
  "full/1.p",
  "full/0000000000000000.p",
  "full/9999999999999999.p",
  "full/0000000000000001.P",
  "full/0000000000000001",
  "full/0000000000000001.p.tmp",
  "full/0000000000000001.0123456",
  "full/0000000000000001.0123456G",
  "full/0000000000000001.p\n",
  " full/0000000000000001.p",
  "/full/0000000000000001.p",
  "Full/0000000000000001.p",
  "full/-000000000000001.p",
  "L10/0000000000000001-0000000000000001.p",
  "L0/0000000000000001.p",
  "L0/0000000000000002-0000000000000001.p",
  "L1/0000000000000002-0000000000000001.p",
  "L1/0000000000000000-0000000000000001.p",
  "L1/0000000000000001-9007199254740992.p",
])("%j is not an object's name", (text) => {
  expect(parseName(text)).toBeNull();
});

test("reading any text gives a name that writes the same text, or null", () => {
  const nearly = fc.stringMatching(/^(full|L[0-9]{1,2})\/[0-9]{15,17}(-[0-9]{16})?\.(p|[0-9a-fg]{7,9})$/);
  fc.assert(
    fc.property(fc.oneof(fc.string(), nearly), (text) => {
      const name = parseName(text);
      if (name !== null) expect(formatName(name)).toBe(text);
    }),
  );
});

test.each([
  ["app", true],
  ["_App-1.db", true],
  ["-", true],
  ["", false],
  [".hidden", false],
  ["a/b", false],
  ["a b", false],
  ["app\n", false],
  ["ä", false],
])("%j as a database's name: %p", (text, valid) => {
  expect(isDatabaseName(text)).toBe(valid);
});
