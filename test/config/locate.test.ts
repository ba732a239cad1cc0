import { expect, test } from "bun:test";
import { parse } from "smol-toml";
import { locateKeys, positionAt } from "../../src/config/locate.ts";
import { isTable, type KeyPath } from "../../src/config/problems.ts";
import { fc } from "../support/properties.ts";

const TOML = `# first
top = """
[not.a.table]
x = 1 \\""" """""
[daemon]
"db" = 'a # b'
[[database]]
name = "one"
encryption.key_file = "/k" # [x]
  [[database.backends]]
  type = "file"
  [[database.backends]]
  levels = [ "1s", # ]
    [2, 3], { a = 1, b.c = "}" },
  ]
[[database]]
backends = [ { type = "s3", path = "," }, {
  type = "file" } ]
`;

test.each([
  [["top"], 2, 1],
  [["daemon"], 5, 1],
  [["daemon", "db"], 6, 1],
  [["database"], 7, 1],
  [["database", 0], 7, 1],
  [["database", 0, "name"], 8, 1],
  [["database", 0, "encryption", "key_file"], 9, 1],
  [["database", 0, "backends", 0, "type"], 11, 3],
  [["database", 0, "backends", 1], 12, 3],
  [["database", 0, "backends", 1, "levels", 1, 1], 14, 9],
  [["database", 0, "backends", 1, "levels", 2, "b", "c"], 14, 22],
  [["database", 1], 16, 1],
  [["database", 1, "backends", 0, "path"], 17, 29],
  [["database", 1, "backends", 1], 17, 43],
  [["database", 1, "backends", 1, "type"], 18, 3],
  // What is not written is found at the nearest table around it.
  [["database", 1, "path"], 16, 1],
  [["database", 0, "encryption", "mode"], 9, 1],
  [["defaults"], 1, 1],
  [[], 1, 1],
] as const)("%j stands at line %d, column %d", (path: KeyPath, line, column) => {
  expect(locateKeys(TOML)(path)).toEqual({ line, column });
});

test("every key of any document is found in front of its own name", () => {
  fc.assert(
    fc.property(document(), (toml) => {
      const locate = locateKeys(toml);
      const lines = toml.split("\n");
      for (const path of pathsOf(parse(toml))) {
        const { line, column } = locate(path);
        const rest = (lines[line - 1] ?? "").slice(column - 1);
        // Keys have one of a kind names; in front of one there may stand brackets and the parts before it.
        const key = path.findLast((part) => typeof part === "string") ?? "";
        if (typeof path.at(-1) === "string") expect(rest).toMatch(new RegExp(`^[[\\w. "]*\\b${key}\\b`));
      }
    }),
    { numRuns: 500 },
  );
});

test("locateKeys comes to an end for text that is not TOML at all", () => {
  fc.assert(
    fc.property(fc.string({ unit: fc.constantFrom(..."ab=[]{},.\"'#\n\\ "), maxLength: 60 }), (text) => {
      expect(locateKeys(text)(["a"]).line).toBeGreaterThan(0);
    }),
    { numRuns: 2_000 },
  );
});

test("positionAt counts lines and columns from 1", () => {
  expect(positionAt("ab\r\ncd", 0)).toEqual({ line: 1, column: 1 });
  expect(positionAt("ab\r\ncd", 5)).toEqual({ line: 2, column: 2 });
});

function pathsOf(value: unknown, path: KeyPath = []): KeyPath[] {
  if (Array.isArray(value)) return value.flatMap((element, i) => [[...path, i], ...pathsOf(element, [...path, i])]);
  if (!isTable(value)) return [];
  return Object.entries(value).flatMap(([key, inner]) => [[...path, key], ...pathsOf(inner, [...path, key])]);
}

/** Valid TOML in all its spellings, in which no two keys have the same name. */
function document(): fc.Arbitrary<string> {
  const scalar = fc.constantFrom(
    ...'1|-2.5e3|true|1979-05-27 07:32:00|""|\'\'|"a # [b] \\" = {"|\'c:\\\'|"""\n[x]\ny = 1 "" \\"\n"""|\'\'\'\n\'a\'\'\n\'\'\''.split(
      "|",
    ),
  );
  const { value } = fc.letrec<{ value: Render; array: Render; inline: Render }>((tie) => ({
    value: fc.oneof(
      { depthSize: "small" },
      scalar.map((text) => () => text),
      tie("array"),
      tie("inline"),
    ),
    array: fc
      .array(tie("value"), { maxLength: 3 })
      .map((items) => (name) => `[ ${renderAll(items, name).join(", # ,]\n")}\n]`),
    inline: fc
      .array(tie("value"), { maxLength: 3 })
      .map((items) => (name) => `{ ${items.map((item) => `${name()} = ${item(name)}`).join(", ")} }`),
  }));
  const pair = fc.tuple(fc.constantFrom("plain", "dotted", "quoted"), value).map(
    ([style, item]): Render =>
      (name) => {
        const key = style === "plain" ? name() : style === "dotted" ? `${name()} . ${name()}.${name()}` : `"${name()}"`;
        return `${key} = ${item(name)} # comment = [\n`;
      },
  );
  const pairs = fc.array(pair, { maxLength: 4 });
  const table = fc.tuple(fc.constantFrom("table", "array", "nested"), pairs).map(
    ([style, items]): Render =>
      (name) => {
        const [outer, inner] = [name(), name()];
        const header = style === "table" ? `[${outer}]\n` : style === "array" ? `[[${outer}]]\n[[ ${outer} ]]\n` : "";
        const nested = style === "nested" ? `[[${outer}]]\n[[${outer}.${inner}]]\n` : "";
        return header + nested + renderAll(items, name).join("");
      },
  );
  return fc.tuple(pairs, fc.array(table, { maxLength: 4 })).map(([top, tables]) => {
    let count = 0;
    return renderAll([...top, ...tables], () => `k${count++}`).join("");
  });
}

type Render = (name: () => string) => string;

function renderAll(items: readonly Render[], name: () => string): readonly string[] {
  return items.map((item) => item(name));
}
