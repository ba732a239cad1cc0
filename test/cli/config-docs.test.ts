import { describe, expect, test } from "bun:test";
import { resolve } from "node:path";
import { backendTables } from "../../src/config/backends.ts";
import { type ConfigValue, explainConfig } from "../../src/config/explain.ts";
import { parseConfig } from "../../src/config/load.ts";
import { daemonSchema, databaseSchema, defaultsSchema } from "../../src/config/schema.ts";

const text = await Bun.file(resolve(import.meta.dir, "../../docs/configuration.md")).text();
const examples = [...text.matchAll(/^```toml\n(.*?)^```$/gms)].map(([, example = ""]) => example);
/** Where a `#` begins a heading, not a comment. */
const prose = text.replace(/^```.*?^```$/gms, "");

interface Row {
  readonly key: string;
  readonly type: string;
  /** Without its back-ticks. */
  readonly fallback: string;
}

/** The rows of every table below the first heading that begins with `heading`, up to the next one of that depth. */
function rowsBelow(heading: string): readonly Row[] {
  const start = prose.indexOf(`\n${heading}`) + 1;
  expect(start).toBeGreaterThan(0);
  const depth = /^#+/.exec(heading)?.[0].length ?? 0;
  const rest = prose.slice(prose.indexOf("\n", start));
  const end = rest.search(new RegExp(`\\n#{1,${depth}} `));
  const section = end === -1 ? rest : rest.slice(0, end);
  return [...section.matchAll(/^\| `(\w+)` \| (.*?) \| (.*?) \| .*\|$/gm)].map(
    ([, key = "", type = "", fallback = ""]) => ({
      key,
      type,
      fallback: fallback.replace(/^`(.*)`$/, "$1"),
    }),
  );
}

/** Every `key = …` of the examples, also of lines that are commented out. */
const exampleKeys = new Set(
  examples.flatMap((example) => [...example.matchAll(/(?:^ *(?:# )?|\{ |, )(\w+) = /gm)].map(([, key = ""]) => key)),
);

/** What the file says when nothing is set. */
function builtIn(backend: string) {
  const toml = `[[database]]\nname = "a"\npath = "/a"\nbackends = [{ ${backend} }]`;
  return explainConfig(toml, parseConfig(toml, { sourcePath: "/c", env: {} }));
}

const REQUIRED = {
  file: 'type = "file", path = "/b"',
  s3: 'type = "s3", bucket = "b"',
  gcs: 'type = "gcs", bucket = "b"',
  azure: 'type = "azure", account = "a", container = "c"',
  sftp: 'type = "sftp", host = "h", user = "u", path = "p", password = "x"',
} as const;

/** A value as the table of the documentation shows it. */
function shown(value: ConfigValue): string {
  if (value === null) return "not set";
  return JSON.stringify(value).replaceAll('","', '", "');
}

function expectRows(rows: readonly Row[], keys: readonly string[], values: ReadonlyMap<string, string>): void {
  expect(rows.map(({ key }) => key).toSorted()).toEqual([...keys].toSorted());
  for (const { key, fallback } of rows) expect(`${key}: ${fallback}`).toBe(`${key}: ${values.get(key) ?? "required"}`);
  for (const key of keys) expect([...exampleKeys]).toContain(key);
}

describe("docs/configuration.md has every key of the schema, no other, its default and an example", () => {
  const explained = builtIn(REQUIRED.file);

  test("[daemon]", () => {
    const values = new Map(explained.daemon.map(({ key, value }) => [key, shown(value)]));
    expectRows(rowsBelow("## `[daemon]`"), Object.keys(daemonSchema.shape), values);
  });

  test("[[database]] and [defaults]", () => {
    const values = new Map(
      (explained.databases[0]?.keys ?? [])
        .filter(({ origin }) => origin.kind === "built-in")
        .map(({ key, value }) => [key, shown(value)]),
    );
    const settings = Object.keys(defaultsSchema.shape).filter((key) => key !== "encryption");
    const encryption = rowsBelow("### `[defaults.encryption]`");
    const rows = rowsBelow("## `[defaults]`").filter(({ key }) => !encryption.some((row) => row.key === key));
    expectRows(rows, settings, values);
    const own = Object.keys(databaseSchema.shape).filter((key) => !settings.includes(key));
    expectRows(
      rowsBelow("## `[[database]]`"),
      own.filter((key) => key !== "encryption" && key !== "backends"),
      new Map(),
    );
    expectRows(
      encryption,
      Object.keys(defaultsSchema.shape.encryption.unwrap().shape),
      new Map([
        ["key_file", "not set"],
        ["mode", "not set"],
        ["accept_plaintext", "false"],
      ]),
    );
  });

  const common = ["type", "async", "timeout", "retries", "upload_rate_limit", "download_rate_limit"];
  test.each(Object.entries(backendTables))("a backend of type %s", (type, schema) => {
    const required = REQUIRED[type as keyof typeof REQUIRED];
    const keys = builtIn(required).databases[0]?.backends[0] ?? [];
    // A value that this test had to give is no default: those of the schema that are not optional, and one of many ways.
    const values = new Map(
      keys
        .filter(({ origin, isSecret }) => origin.kind === "built-in" || isSecret)
        .map(({ key, value }) => [key, shown(value)]),
    );
    expectRows(
      rowsBelow(`### \`type = "${type}"\``),
      Object.keys(schema.shape).filter((key) => !common.includes(key)),
      values,
    );
    const shared = prose.indexOf("These keys go with every type");
    expect(shared).toBeGreaterThan(0);
    for (const key of common) {
      const row = new RegExp(`^\\| \`${key}\` \\| .*? \\| (.*?) \\|`, "m").exec(prose.slice(shared))?.[1];
      expect(`${key}: ${row?.replaceAll("`", "")}`).toBe(`${key}: ${values.get(key) ?? "required"}`);
    }
  });
});

test("the examples are accepted as they stand", () => {
  const env = new Proxy({}, { get: () => "x", has: () => true, getOwnPropertyDescriptor: () => property });
  expect(examples.length).toBeGreaterThan(10);
  const daemonless = '[[database]]\nname = "app"\npath = "/a"\nbackends = [{ type = "file", path = "/b" }]\n';
  for (const example of examples) {
    const isBackend = example.startsWith("  [[database.backends]]");
    const isSetting = !example.includes("[[database");
    const isOpen = !isBackend && !isSetting && !example.includes("backends");
    const toml = isBackend
      ? `[[database]]\nname = "a"\npath = "/a"\n${example}`
      : isSetting
        ? `${example}\n${daemonless}`
        : isOpen
          ? `${example}\n[[database.backends]]\ntype = "file"\npath = "/b"\n`
          : example;
    expect(() => parseConfig(toml, { sourcePath: "/example", env })).not.toThrow();
  }
});

const property: PropertyDescriptor = { value: "x", enumerable: true, configurable: true };
