import { afterAll, beforeAll, expect, test } from "bun:test";
import { readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { registry } from "../../src/cli/registry.ts";
import { backendTables } from "../../src/config/backends.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";
import { type Outcome, run } from "./wrong-runs.ts";

let directory: TemporaryDirectory;

beforeAll(async () => {
  directory = await temporaryDirectory("wrong-secrets");
});

afterAll(() => directory[Symbol.asyncDispose]());

/** What must never be seen; nothing else in these files looks like it. */
const SECRET = "hUsH-0123456789/+Zz";
const DATABASE = '[[database]]\nname = "only"\npath = "/nowhere/d.db"\n';

/** The tables that hold secrets, with the one to be tried as `@`. */
const TABLES: Readonly<Record<string, string>> = {
  secret_access_key: 'type = "s3"\nbucket = "b"\nregion = "eu-west-1"\naccess_key_id = "AKIA"\nsecret_access_key = @\n',
  session_token:
    'type = "s3"\nbucket = "b"\nregion = "eu-west-1"\naccess_key_id = "AKIA"\nsecret_access_key = "x"\nsession_token = @\n',
  account_key: 'type = "azure"\naccount = "a"\ncontainer = "c"\naccount_key = @\n',
  sas_token: 'type = "azure"\naccount = "a"\ncontainer = "c"\nsas_token = @\n',
  password: 'type = "sftp"\nhost = "127.0.0.1"\nport = 9\nuser = "u"\npath = "p"\npassword = @\n',
  key_passphrase:
    'type = "sftp"\nhost = "127.0.0.1"\nport = 9\nuser = "u"\npath = "p"\nkey_file = "/k"\nkey_passphrase = @\n',
};

function config(table: string, value: string): string {
  // A replacement text would give `$` a meaning.
  return `${DATABASE}[[database.backends]]\nretries = 0\n${table.replace("@", () => value)}`;
}

/** Every command but the daemon, which would go on. */
const commands = registry.map(({ name }) => name).filter((name) => name !== "daemon" && name !== "init");

function companions(name: string): readonly string[] {
  return name === "restore" ? ["--db", "only", "--output", directory.file("out.db")] : [];
}

function expectSilent({ argv, stdout, stderr }: Outcome, secret = SECRET): void {
  const printed = `${JSON.stringify(argv)}\n${stdout}${stderr}`;
  // Also not in part: a message may quote the line, or cut it.
  for (const piece of [
    secret,
    secret.slice(0, 8),
    secret.slice(-8),
    Buffer.from(secret).toString("base64").slice(0, 12),
  ])
    expect(printed).not.toContain(piece);
}

test("each key that the schema has for a secret is tried here", () => {
  const secretKeys = Object.values(backendTables)
    .flatMap(({ shape }) => Object.keys(shape))
    .filter((key) => /secret|token|password|passphrase|_key$/.test(key) && !key.endsWith("_file"));
  expect(new Set(secretKeys)).toEqual(new Set(Object.keys(TABLES)));
});

test.each(Object.entries(TABLES))("%s is in nothing that any command prints", async (key, table) => {
  for (const [i, value] of [`"${SECRET}"`, `"a\${HIDDEN}b"`].entries()) {
    const path = directory.file(`${key}-${i}.toml`);
    writeFileSync(path, config(table, value));
    const env = { HIDDEN: SECRET, BAKELITE_CONFIG: path, TMPDIR: directory.path };
    const flags = [[], ["--json", "--verbose"]];
    const outcomes = await Promise.all(
      commands.flatMap((name) => flags.map((more) => run([name, ...companions(name), ...more], { env }))),
    );
    for (const outcome of outcomes) expectSilent(outcome);
    const shown = outcomes.find(({ argv }) => argv.join() === "config");
    expect(shown?.code).toBe(0);
    expect(shown?.stdout).toMatch(new RegExp(`${key} +\\(set, not shown\\)`));
  }
});

test.each(Object.entries(TABLES))(
  "%s is in no message about its own line, however that is broken",
  async (key, table) => {
    const broken = [
      `"${SECRET}`,
      `${SECRET}"`,
      SECRET,
      `'${SECRET}`,
      `"${SECRET}" x`,
      `"${SECRET}" = 1`,
      `"${SECRET}\\q"`,
      `"${SECRET}\\ud800"`,
      `"""${SECRET}`,
      `["${SECRET}"]`,
      `{ a = "${SECRET}" }`,
      `{ "${SECRET}" = 1`,
      `"${SECRET}\u0001"`,
      `"${SECRET}\\n"`,
      `"${SECRET}\${"`,
      `"${SECRET}\${NOT_SET}"`,
      `"\${HIDDEN}\${NOT_SET}"`,
      `1${SECRET}`,
      `0x${SECRET}`,
      `2026-01-01${SECRET}`,
      `true${SECRET}`,
      `"${SECRET}"\n${key} = "${SECRET}"`,
      `"${SECRET}"\nunknown = "${SECRET}"`,
      `"${SECRET}"\n[[database.backends]]\ntype = "${SECRET}"`,
      `"${SECRET}"\nasync = "${SECRET}"\ntimeout = "${SECRET}"\nprefix = ["${SECRET}"]`,
      `"${SECRET}"\nendpoint = "https://user:${SECRET}@host"`,
      `"${SECRET}"\nendpoint = "${SECRET}"`,
    ];
    await Promise.all(
      broken.map(async (value, i) => {
        const path = directory.file(`${key}-broken-${i}.toml`);
        writeFileSync(path, config(table, value));
        for (const more of [["--verbose"]]) {
          const outcome = await run(["config", "-c", path, ...more], { env: { HIDDEN: SECRET } });
          expect({ value, code: outcome.code, stdout: outcome.stdout }).toEqual({ value, code: 2, stdout: "" });
          expect(outcome.stderr).toStartWith(`bakelite: invalid configuration`);
          expectSilent(outcome);
        }
      }),
    );
  },
);

test("a secret beside a key that is misspelt, in a wrong table or in a comment is not quoted", async () => {
  const texts = [
    `secret_acces_key = "${SECRET}"\n${DATABASE}`,
    `[daemon]\npassword = "${SECRET}"\n`,
    `[daemon]\nlog_level = "${SECRET}"\n`,
    `[daemon]\nmetrics_addr = "user:${SECRET}@host:1"\n`,
    `[daemon]\ndb = "${SECRET}"\n`,
    `[daemon]\nheartbeat_url = "${SECRET}"\n`,
    `[daemon]\nheartbeat_url = "https://host/${SECRET}"\nheartbeat_interval = "0s"\n`,
    `# ${SECRET}\n[broken\n`,
    `x = 1 # ${SECRET}\ny = \n`,
    `a = "${SECRET}\nb = 1\n`,
    `[[database]]\nname = "\${HIDDEN}"\npath = "\${HIDDEN}"\nretention = "\${HIDDEN}"\nbackends = "\${HIDDEN}"\n`,
    `[defaults.encryption]\nkey_file = "${SECRET}"\n`,
  ];
  for (const [i, text] of texts.entries()) {
    const path = directory.file(`beside-${i}.toml`);
    writeFileSync(path, text);
    for (const more of [[], ["--verbose"], ["--json"]]) {
      const outcome = await run(["config", "-c", path, ...more], { env: { HIDDEN: SECRET } });
      expect(outcome.code).toBe(2);
      expectSilent(outcome);
    }
  }
});

test("the text of a key is in no message, whether the file holds a right one, a wrong one or none", async () => {
  const { stdout } = await run(["keygen"]);
  const right = stdout.trim();
  expect(right).toStartWith("BAKELITE-KEY-V1-");
  const keys = [
    right,
    right.slice(0, -1),
    `${right}x`,
    right.toLowerCase(),
    `${SECRET}\n`,
    `key: ${right}`,
    `${right}\n${right}`,
  ];
  for (const [i, key] of keys.entries()) {
    const [keyFile, path] = [directory.file(`${i}.key`), directory.file(`key-${i}.toml`)];
    writeFileSync(keyFile, key);
    writeFileSync(
      path,
      `[defaults.encryption]\nkey_file = "${keyFile}"\n${DATABASE}[[database.backends]]\ntype = "file"\npath = "${directory.file("replica")}"\n`,
    );
    await Promise.all(
      commands
        .filter((name) => name !== "keygen")
        .flatMap((name) =>
          [["--verbose"]].map(async (more) => {
            const outcome = await run(
              [name, "-c", path, ...companions(name), ...more].filter((arg) => keepFor(name, arg, path)),
            );
            expectSilent(outcome, right.slice("BAKELITE-KEY-V1-".length));
            expectSilent(outcome);
          }),
        ),
    );
  }
});

/** The two that take no configuration are run without. */
function keepFor(name: string, argument: string, path: string): boolean {
  return (name !== "version" && name !== "help") || (argument !== "-c" && argument !== path);
}

test("no file that a command wrote holds a secret", () => {
  for (const name of readdirSync(directory.path, { recursive: true, encoding: "utf8" })) {
    const path = directory.file(name);
    if (!statSync(path).isFile() || /\.(toml|key)$/.test(name)) continue;
    expect(readFileSync(path, "latin1")).not.toContain(SECRET);
  }
});
