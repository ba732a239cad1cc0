import { afterAll, beforeAll, beforeEach, describe, expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { resolve } from "node:path";
import * as z from "zod";
import { runCli } from "../../src/cli/run.ts";
import { backendTables } from "../../src/config/backends.ts";
import { daemonSchema, databaseSchema } from "../../src/config/schema.ts";
import { runBakelite } from "../oracle/daemon-process.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";
import { fakeHost } from "./fake-host.ts";

let directory: TemporaryDirectory;
let path: string;

beforeAll(async () => {
  directory = await temporaryDirectory("cli-config");
  path = directory.file("bakelite.toml");
});

afterAll(() => directory[Symbol.asyncDispose]());
beforeEach(() => writeFileSync(path, CONFIG));

const CONFIG = `[daemon]
log_level = "debug"

[defaults]
retention = "30d"
compaction_keep = ["90m", "1d", "1w"]
max_wal_size = 5000000
encryption.key_file = "/etc/\${PLACE}/key.txt"

[[database]]
name = "app"
path = "/srv/app.db"
retention = "1d12h"
max_wal_size = "32MiB"

  [[database.backends]]
  type = "s3"
  bucket = "backups"
  access_key_id = "AKIAEXAMPLE"
  secret_access_key = "\${SECRET}"
  session_token = "hush-hush"

  [[database.backends]]
  type = "file"
  path = "/mnt/backups"
  async = true

[[database]]
name = "open"
path = "/srv/open.db"
encryption = { mode = "none" }
backends = [{ type = "sftp", host = "h", user = "u", path = "p", password = "pa$\${ss" }]
`;
/** Without anything that the environment of this process would have to hold. */
const LITERAL = CONFIG.replace(/\$\{(PLACE|SECRET)\}/g, "$1");
const ENV = { PLACE: "bakelite", SECRET: "s3cr3t" };

async function run(argv: readonly string[] = [], env: Readonly<Record<string, string>> = ENV) {
  const host = fakeHost({ env });
  const code = await runCli(["config", "--config", path, ...argv], host);
  return { code, stdout: host.stdout.text, stderr: host.stderr.text };
}

/** The rows of the section under `title`, by key. */
async function rows(title: string, ...argv: readonly string[]): Promise<ReadonlyMap<string, string>> {
  const { code, stdout, stderr } = await run(argv);
  expect([code, stderr]).toEqual([0, ""]);
  const section = stdout.split("\n\n").find((text) => text.startsWith(`${title}\n`)) ?? "";
  const cells = section
    .trimEnd()
    .split("\n")
    .slice(2)
    .map((row) => row.trim().split(/ {2,}/));
  return new Map(cells.map(([key = "", ...rest]) => [key, rest.join(" | ")]));
}

describe("where each value comes from", () => {
  test("the file and what named it come first", async () => {
    expect((await run()).stdout).toStartWith(`${path} (named by --config)\n\ndaemon\n  KEY `);
    const host = fakeHost({ env: { ...ENV, BAKELITE_CONFIG: path } });
    expect(await runCli(["config"], host)).toBe(0);
    expect(host.stdout.text).toStartWith(`${path} (named by $BAKELITE_CONFIG)\n`);
  });

  test("the database itself, [defaults] or the built-in default, with the line", async () => {
    const app = await rows("database app");
    expect(app.get("name")).toBe("app | [[database]], line 11");
    expect(app.get("retention")).toBe("1d12h | [[database]], line 13");
    expect(app.get("max_wal_size")).toBe("32MiB | [[database]], line 14");
    expect(app.get("compaction_keep")).toBe("[1h30m, 1d, 7d] | [defaults], line 6");
    expect(app.get("compaction_levels")).toBe("[30s, 5m, 1h] | built-in default");
    expect(app.get("encryption.key_file")).toBe("/etc/bakelite/key.txt | [defaults], line 8, with $PLACE");
    expect(app.get("encryption.accept_plaintext")).toBe("false | built-in default");
    const open = await rows("database open");
    expect(open.get("retention")).toBe("30d | [defaults], line 5");
    expect(open.get("max_wal_size")).toBe("5000000 | [defaults], line 7");
    expect(open.get("encryption.mode")).toBe("none | [[database]], line 31");
    expect(open.has("encryption.key_file")).toBe(false);
    const daemon = await rows("daemon");
    expect(daemon.get("log_level")).toBe("debug | [daemon], line 2");
    expect(daemon.has("metrics_addr")).toBe(false);
  });

  test("each backend has a section", async () => {
    const s3 = await rows("database app, backend 1 of 2");
    expect(s3.get("bucket")).toBe("backups | [[database.backends]], line 18");
    expect(s3.get("part_size")).toBe("8MiB | built-in default");
    expect(s3.get("prefix")).toBe('"" | built-in default');
    expect((await rows("database app, backend 2 of 2")).get("async")).toBe("true | [[database.backends]], line 26");
    expect((await rows("database open, backend 1 of 1")).get("host")).toBe("h | [[database.backends]], line 32");
  });

  test("without any [defaults] nothing comes from there", async () => {
    const backend = 'backends = [{ type = "file", path = "/b" }]';
    writeFileSync(path, `database = [{ name = "a", path = "/a.db", retention = "7d", ${backend} }]`);
    const app = await rows("database a");
    expect(app.get("encryption.mode")).toBe("none | built-in default");
    expect([...app.values()].filter((row) => !row.endsWith("built-in default"))).toHaveLength(3);
  });
});

test("a secret is shown nowhere, whatever it came from", async () => {
  for (const argv of [[], ["--json"], ["--verbose"]]) {
    const { stdout, stderr } = await run(argv);
    for (const secret of ["s3cr3t", "hush", "pa$", "${ss"]) expect(stdout + stderr).not.toContain(secret);
  }
  const s3 = await rows("database app, backend 1 of 2");
  expect(s3.get("secret_access_key")).toBe("(set, not shown) | [[database.backends]], line 20, with $SECRET");
  expect(s3.get("session_token")).toBe("(set, not shown) | [[database.backends]], line 21");
  expect(s3.get("access_key_id")).toBe("AKIAEXAMPLE | [[database.backends]], line 19");
  expect((await rows("database open, backend 1 of 1")).get("password")).toStartWith("(set, not shown)");
  expect((await rows("database open, backend 1 of 1")).has("key_passphrase")).toBe(false);
});

const keys = z.record(
  z.string(),
  z.strictObject({
    value: z.union([z.string(), z.number(), z.boolean(), z.array(z.string()), z.null()]),
    secret: z.boolean(),
    from: z.enum(["daemon", "defaults", "database", "built-in"]),
    line: z.int().min(1).nullable(),
    variables: z.array(z.string()),
  }),
);
const configDocument = z.strictObject({
  path: z.string(),
  named_by: z.enum(["--config", "$BAKELITE_CONFIG", "default"]),
  daemon: keys,
  databases: z.array(z.strictObject({ name: z.string(), keys, backends: z.array(keys) })),
});

describe("--json", () => {
  test("holds every key of the schema, set or not", async () => {
    const document = configDocument.parse(JSON.parse((await run(["--json"])).stdout));
    expect(document).toMatchObject({ path, named_by: "--config" });
    expect(Object.keys(document.daemon)).toEqual(Object.keys(daemonSchema.shape));
    const [app, open] = document.databases;
    const settings = Object.keys(databaseSchema.shape).filter((key) => key !== "backends" && key !== "encryption");
    expect(Object.keys(app?.keys ?? {})).toEqual([...settings, "encryption.key_file", "encryption.accept_plaintext"]);
    expect(Object.keys(open?.keys ?? {})).toEqual([...settings, "encryption.mode"]);
    const [s3, file] = app?.backends ?? [];
    for (const [backend, type] of [
      [s3, "s3"],
      [file, "file"],
      [open?.backends[0], "sftp"],
    ] as const)
      expect(Object.keys(backend ?? {}).toSorted()).toEqual(Object.keys(backendTables[type].shape).toSorted());
    expect(s3?.["secret_access_key"]).toEqual({
      value: null,
      secret: true,
      from: "database",
      line: 20,
      variables: ["SECRET"],
    });
    expect(app?.keys["compaction_keep"]?.value).toEqual(["1h30m", "1d", "7d"]);
    expect(document.daemon["metrics_addr"]).toEqual({
      value: null,
      secret: false,
      from: "built-in",
      line: null,
      variables: [],
    });
  });

  test("every other kind of backend has all its keys", async () => {
    const common = 'name = "a"\npath = "/a.db"\n';
    const backends =
      '[[database.backends]]\ntype = "gcs"\nbucket = "b"\n[[database.backends]]\ntype = "azure"\naccount = "a"\ncontainer = "c"\nsas_token_file = "/sas"\n';
    writeFileSync(path, `[[database]]\n${common}${backends}`);
    const [gcs, azure] = configDocument.parse(JSON.parse((await run(["--json"])).stdout)).databases[0]?.backends ?? [];
    expect(Object.keys(gcs ?? {}).toSorted()).toEqual(Object.keys(backendTables.gcs.shape).toSorted());
    expect(Object.keys(azure ?? {}).toSorted()).toEqual(Object.keys(backendTables.azure.shape).toSorted());
    expect(azure?.["sas_token_file"]).toMatchObject({ value: "/sas", from: "database" });
  });

  test("what it says can be written back, and means the same", async () => {
    const before = configDocument.parse(JSON.parse((await run(["--json"])).stdout));
    const open = before.databases.find(({ name }) => name === "open");
    const lines = Object.entries(open?.keys ?? {}).map(([key, { value }]) => `${key} = ${JSON.stringify(value)}`);
    writeFileSync(path, `[[database]]\n${lines.join("\n")}\nbackends = [{ type = "file", path = "/b" }]\n`);
    const after = configDocument.parse(JSON.parse((await run(["--json"])).stdout));
    const values = (document: typeof before, name: string) =>
      Object.entries(document.databases.find((each) => each.name === name)?.keys ?? {}).map(([k, { value }]) => [
        k,
        value,
      ]);
    expect(values(after, "open")).toEqual(values(before, "open"));
  });
});

describe("through the executable", () => {
  test("one database is shown without the daemon's keys", async () => {
    writeFileSync(path, LITERAL);
    const { status, stdout, stderr } = await runBakelite("executable", ["config", "--db", "open", "-c", path]);
    expect([status, stderr]).toEqual([0, ""]);
    expect(stdout).not.toContain("\ndaemon\n");
    expect(stdout).not.toContain("database app");
    expect(stdout).toContain("\ndatabase open\n");
  });

  test.each([
    [["--db", "ap"], "bakelite: no database named `ap` is configured; did you mean `app`?"],
    [["app"], "bakelite: unexpected argument `app` for `bakelite config`"],
    [["--output", "x"], "bakelite: unknown flag `--output` for `bakelite config`"],
  ])("%j is refused with one sentence", async (argv, expected) => {
    writeFileSync(path, LITERAL);
    const { status, stdout, stderr } = await runBakelite("executable", ["config", "-c", path, ...argv]);
    expect([status, stdout]).toEqual([2, ""]);
    expect(stderr).toStartWith(expected);
  });

  test("no file, an empty one, an invalid one and an unset variable are refused", async () => {
    const refused = async (expected: string) => {
      const { status, stdout, stderr } = await runBakelite("executable", ["config", "-c", path]);
      expect([status, stdout]).toEqual([2, ""]);
      expect(stderr).toStartWith(expected);
    };
    await refused(`bakelite: invalid configuration, 2 problems:\n  ${path}:8:1: \`key_file\` needs the environment`);
    writeFileSync(path, "");
    await refused(`bakelite: invalid configuration: ${path}:1:1: `);
    writeFileSync(path, `${LITERAL}retension = "1d"\n`);
    await refused(`bakelite: invalid configuration: ${path}:33:1: unknown key \`retension\``);
    path = directory.file("gone.toml");
    await refused("bakelite: there is no configuration file named by --config");
    path = directory.file("bakelite.toml");
  });
});

test("the example in docs/json.md has the shape of the document, and its table names every field", async () => {
  const text = await Bun.file(resolve(import.meta.dir, "../../docs/json.md")).text();
  const section = text.split("\n## ").find((part) => part.startsWith("config\n")) ?? "";
  configDocument.parse(JSON.parse(/^```json\n(.*?)^```$/ms.exec(section)?.[1] ?? ""));
  const explained = section.slice(section.indexOf("| field |"));
  for (const field of [
    "path",
    "named_by",
    "daemon",
    "keys",
    "backends",
    "value",
    "secret",
    "from",
    "line",
    "variables",
  ])
    expect(explained).toMatch(new RegExp(`\\b${field}\``));
});
