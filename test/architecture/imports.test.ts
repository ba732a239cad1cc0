import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { FLOORS, findViolations } from "./house-rules.ts";
import { readSourceFacts, type SourceFacts } from "./source-facts.ts";

const SOURCE = resolve(import.meta.dir, "../../src");

function readHouse(): Map<string, string> {
  const paths = [...new Bun.Glob("**/*.{ts,tsx,js,mjs,cjs}").scanSync({ cwd: SOURCE })].sort();
  return new Map(paths.map((path) => [path, readFileSync(join(SOURCE, path), "utf8")]));
}

/** A house of files that each consist of the given code. */
function house(sources: Readonly<Record<string, string>>): Map<string, SourceFacts> {
  return new Map(Object.entries(sources).map(([path, source]) => [path, readSourceFacts(source)]));
}

describe("the source tree", () => {
  test("keeps every rule of the house", () => {
    const facts = new Map([...readHouse()].map(([path, source]) => [path, readSourceFacts(source)]));
    expect(facts.size).toBeGreaterThan(0);
    expect(findViolations(facts)).toEqual([]);
  });

  test("has no import that the rules do not see", () => {
    const transpiler = new Bun.Transpiler({ loader: "ts" });
    for (const [path, source] of readHouse()) {
      const seen = readSourceFacts(source).imports.map(({ specifier }) => specifier);
      // Bun's own parser leaves out imports of types only, so its list is part of ours.
      const unseen = transpiler.scanImports(source).filter((found) => !seen.includes(found.path));
      expect({ path, unseen }).toEqual({ path, unseen: [] });
    }
  });
});

describe("the rules", () => {
  test("allow imports of the same floor and of floors below", () => {
    const files = house({
      "main.ts": 'import { run } from "./cli/run.ts";\nprocess.exit(await run());\n',
      "cli/run.ts": 'import { open } from "../storage/open.ts";\nimport { word } from "./word.ts";\n',
      "cli/word.ts": 'import cac from "cac";\n',
      "storage/open.ts": 'import { assert } from "../util/errors.ts";\nimport { stat } from "node:fs/promises";\n',
      "util/errors.ts": "export function assert() {}\n",
    });
    expect(findViolations(files)).toEqual([]);
  });

  test("catch an import from each floor to each floor above it", () => {
    const files = FLOORS.map((floor) => (floor.endsWith(".ts") ? floor : `${floor}/file.ts`));
    for (const [below, from] of files.entries()) {
      for (const to of files.slice(below + 1)) {
        const up = from.includes("/") ? `../${to}` : `./${to}`;
        const violations = findViolations(house({ [from]: `import { x } from "${up}";\n`, [to]: "" }));
        expect(violations).toContain(`${from} imports ${to}, which is a floor above it`);
      }
    }
  });

  test("count imports of types, for side effects, at run time, of another module's exports, and workers", () => {
    const above = "a.ts imports cli/b.ts, which is a floor above it".replace("a.ts", "util/a.ts");
    for (const statement of [
      'import type { B } from "../cli/b.ts";',
      'import { type B, c } from "../cli/b.ts";',
      'import {\n  type B,\n  c,\n} from "../cli/b.ts";',
      'import b, * as all from "../cli/b.ts";',
      'import "../cli/b.ts";',
      'export { b } from "../cli/b.ts";',
      'const b = await import("../cli/b.ts");',
      'const b = require("../cli/b.ts");',
      'let b: import("../cli/b.ts").B;',
    ]) {
      expect(findViolations(house({ "util/a.ts": `${statement}\n`, "cli/b.ts": "" }))).toEqual([above]);
    }
    const worker = house({ "util/a.ts": 'new Worker(workerUrl("cli/b.worker.ts"));\n', "cli/b.worker.ts": "" });
    expect(findViolations(worker)).toEqual(["util/a.ts imports cli/b.worker.ts, which is a floor above it"]);
  });

  test("do not take a comment for an import", () => {
    const files = house({ "util/a.ts": '// import { b } from "../cli/b.ts";\n/**\n * import("../cli/b.ts")\n */\n' });
    expect(findViolations(files)).toEqual([]);
  });

  test("keep sqlite/ and storage/ apart in both directions", () => {
    const storage = house({ "storage/a.ts": 'import { b } from "../sqlite/b.ts";\n', "sqlite/b.ts": "" });
    expect(findViolations(storage)).toEqual([
      "storage/a.ts imports sqlite/b.ts, and sqlite/ and storage/ have never met",
    ]);
    const sqlite = house({ "sqlite/b.ts": 'import { a } from "../storage/a.ts";\n', "storage/a.ts": "" });
    expect(findViolations(sqlite)).toContain(
      "sqlite/b.ts imports storage/a.ts, and sqlite/ and storage/ have never met",
    );
  });

  test("keep replica/ away from a live database", () => {
    const files = house({ "replica/a.ts": 'import { c } from "../sqlite/control.ts";\n', "sqlite/control.ts": "" });
    expect(findViolations(files)).toEqual([
      "replica/a.ts imports sqlite/control.ts, and replica/ never touches a live database",
    ]);
  });

  test("catch imports that go round, by their whole way", () => {
    const files = house({
      "util/a.ts": 'import { b } from "./b.ts";\n',
      "util/b.ts": 'import type { c } from "./c.ts";\n',
      "util/c.ts": 'import { a } from "./a.ts";\n',
      "util/d.ts": 'import { a } from "./a.ts";\n',
    });
    expect(findViolations(files)).toEqual(["imports go round: util/a.ts -> util/b.ts -> util/c.ts -> util/a.ts"]);
  });

  test("let a worker import the file that starts it", () => {
    const files = house({
      "replica/pool.ts": 'new Worker(workerUrl("replica/decode.worker.ts"));\n',
      "replica/decode.worker.ts": 'import type { Task } from "./pool.ts";\n',
    });
    expect(findViolations(files)).toEqual([]);
  });

  const doorways: readonly (readonly [name: string, wrong: string, right: string])[] = [
    ["aws4fetch", "storage/azure.ts", "storage/s3/client.ts"],
    ["fast-xml-parser", "storage/s3/list.ts", "storage/xml.ts"],
    ["@noble/ciphers/chacha.js", "format/chunk.ts", "format/envelope.ts"],
    ["@noble/hashes/hkdf.js", "util/hash.ts", "format/envelope.ts"],
    ["smol-toml", "setup/recipes.ts", "config/source.ts"],
    ["cac", "setup/wizard.ts", "cli/arguments.ts"],
    ["@clack/prompts", "cli/commands/init.ts", "setup/wizard.ts"],
    ["bun:sqlite", "sqlite/follow.ts", "sqlite/control.ts"],
    ["bun:sqlite", "replica/restore.ts", "replica/restore-check.ts"],
    ["bun:sqlite", "state/cursor.ts", "state/instance-lock.ts"],
  ];
  for (const [name, wrong, right] of doorways) {
    test(`let ${name} in at ${right} and not at ${wrong}`, () => {
      const importing = `import { x } from "${name}";\n`;
      expect(findViolations(house({ [right]: importing }))).toEqual([]);
      expect(findViolations(house({ [wrong]: importing }))).toHaveLength(1);
    });
  }

  test("ask for the doorway of a package they do not know", () => {
    expect(findViolations(house({ "util/a.ts": 'import pad from "left-pad";\n' }))[0]).toContain("no doorway yet");
  });

  test("want one importer of a package whose doorway is one file", () => {
    const importing = 'import { dlopen } from "bun:ffi";\n';
    expect(findViolations(house({ "daemon/notify.ts": importing }))).toEqual([]);
    expect(findViolations(house({ "daemon/notify.ts": importing, "util/umask.ts": importing }))).toEqual([
      "daemon/notify.ts and util/umask.ts import bun:ffi, whose doorway is one file",
    ]);
  });

  const habits: readonly (readonly [path: string, code: string, violation: string])[] = [
    ["cli/run.ts", "process.exit(1);", "cli/run.ts calls process.exit"],
    ["util/all.ts", 'export * from "node:fs";', "util/all.ts exports everything"],
    ["util/late.ts", "await import(path);", "util/late.ts computes an import"],
    ["util/late.ts", "require(path);", "util/late.ts computes an import"],
    ["util/pool.ts", 'new Worker(new URL("./a.worker.ts", import.meta.url));', "util/pool.ts starts a worker by path"],
    ["format/stamp.ts", "const now = Date.now();", "format/stamp.ts reads the clock"],
    ["format/seal.ts", "crypto.getRandomValues(nonce);", "format/seal.ts draws randomness"],
    ["sqlite/wal.ts", "await Bun.file(path).bytes();", "sqlite/wal.ts touches the world"],
    [
      "sqlite/database-file.ts",
      'import { readSync } from "node:fs";',
      "sqlite/database-file.ts imports node:fs, and pure files know no clock, file, network or randomness",
    ],
    ["util/index.ts", "", "util/index.ts: there are no index.ts files"],
    ["helpers/a.ts", "", "helpers/a.ts stands on no floor of the house"],
    ["util/a.ts", 'import { b } from "./gone.ts";', "util/a.ts imports util/gone.ts, which does not exist"],
    ["util/a.ts", 'import { b } from "../../test/b.ts";', "util/a.ts imports ../test/b.ts, which is outside src/"],
  ];
  for (const [path, code, violation] of habits) {
    test(`catch that ${violation}`, () => {
      expect(findViolations(house({ [path]: `${code}\n` }))).toEqual([violation]);
    });
  }

  test("let only main.ts end the process", () => {
    expect(findViolations(house({ "main.ts": "process.exit(0);\n" }))).toEqual([]);
  });
});
