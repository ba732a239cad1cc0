import { expect, test } from "bun:test";
import { displayWidth, formatTable } from "../../src/util/table.ts";
import { fc } from "../support/properties.ts";

test("columns are aligned to the widest cell, without trailing spaces", () => {
  const table = formatTable(
    [{ title: "NAME" }, { title: "SIZE", align: "right" }, { title: "NOTE" }],
    [
      ["app", "1.50 KiB", "ok"],
      ["a-longer-name", "9 B"],
    ],
  );
  expect(table).toBe(
    ["NAME               SIZE  NOTE", "app            1.50 KiB  ok", "a-longer-name       9 B", ""].join("\n"),
  );
});

test("wide and combining characters keep columns aligned", () => {
  const table = formatTable(
    [{ title: "N" }, { title: "V" }],
    [
      ["データ", "1"],
      ["e\u0301", "2"],
      ["🎉", "3"],
    ],
  );
  expect(table).toBe("N       V\nデータ  1\ne\u0301       2\n🎉      3\n");
});

test("every line of any table starts its last column at the same place, and no cell breaks out of its line", () => {
  const cell = fc.string({ unit: "grapheme", maxLength: 10 });
  fc.assert(
    fc.property(fc.array(fc.tuple(cell, cell), { maxLength: 8 }), (rows) => {
      const lines = formatTable(
        [{ title: "A" }, { title: "B" }],
        rows.map(([a]) => [`${a}\n\u001b[1m`, "|"]),
      );
      const split = lines.trimEnd().split("\n");
      expect(split).toHaveLength(rows.length + 1);
      const starts = split.slice(1).map((line) => displayWidth(line.slice(0, line.lastIndexOf("|"))));
      expect(new Set(starts).size).toBeLessThanOrEqual(1);
    }),
  );
});
