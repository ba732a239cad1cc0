import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";

const SOURCE = join(import.meta.dir, "../../src");

/** What is loaded before the first command is: static imports from `main.ts` on, files and packages. */
function loadedAtStart(): ReadonlySet<string> {
  const transpiler = new Bun.Transpiler({ loader: "ts" });
  const loaded = new Set<string>();
  const visit = (file: string): void => {
    if (loaded.has(file)) return;
    loaded.add(file);
    for (const { path, kind } of transpiler.scanImports(readFileSync(file, "utf8"))) {
      if (kind !== "import-statement") continue;
      if (path.endsWith(".ts")) visit(join(dirname(file), path));
      else if (!path.startsWith(".")) loaded.add(path);
    }
  };
  visit(join(SOURCE, "main.ts"));
  return loaded;
}

test("before a command runs, nothing is loaded but the frame: `--version` must be quick", () => {
  const packages = [...loadedAtStart()].filter((name) => !name.startsWith("/") && !name.startsWith("node:"));
  expect(packages).toEqual(["cac"]);
  const floors = [...loadedAtStart()].flatMap((name) => /\/src\/([a-z]+)\//.exec(name)?.[1] ?? []);
  expect(new Set(floors)).toEqual(new Set(["cli", "util"]));
});
