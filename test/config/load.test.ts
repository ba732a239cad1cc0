import { describe, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { chmod, mkdir, writeFile } from "node:fs/promises";
import { loadConfig, parseConfig } from "../../src/config/load.ts";
import { DEFAULT_CONFIG_PATH } from "../../src/config/source.ts";
import type { BackendConfig, Config } from "../../src/config/types.ts";
import { BakeliteError } from "../../src/util/errors.ts";
import { fc } from "../support/properties.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";

const MINIMAL = `
[[database]]
name = "app"
path = "/var/lib/app/app.db"

  [[database.backends]]
  type = "file"
  path = "/var/backups/bakelite"
`;

function parse(toml: string, env: Record<string, string> = {}): Config {
  return parseConfig(toml, { sourcePath: "/etc/b.toml", env });
}

/** The problems of a faulty configuration, without the path of the file: `12:3: unknown key …`. */
function problemsOf(toml: string, env: Record<string, string> = {}): readonly string[] {
  try {
    parse(toml, env);
  } catch (error) {
    if (!(error instanceof BakeliteError)) throw error;
    expect(error.code).toBe("config-invalid");
    return error.message
      .split("/etc/b.toml:")
      .slice(1)
      .map((problem) => problem.trim());
  }
  return [];
}

/** One database with the given lines in its only backend. */
function backend(lines: string): string {
  return `[[database]]\nname = "app"\npath = "/app.db"\n[[database.backends]]\n${lines}\n`;
}

function parseBackend(lines: string, env: Record<string, string> = {}): BackendConfig | undefined {
  return parse(backend(lines), env).databases[0]?.backends[0];
}

describe("defaults", () => {
  test("a minimal file gets every default that the manual names", () => {
    expect(parse(MINIMAL)).toEqual({
      sourcePath: "/etc/b.toml",
      daemon: {
        metricsAddress: undefined,
        maxConcurrentSnapshots: 2,
        db: undefined,
        logLevel: "info",
        logFormat: "text",
        heartbeatUrl: undefined,
        heartbeatIntervalMs: 60_000,
      },
      databases: [
        {
          name: "app",
          path: "/var/lib/app/app.db",
          debounceMs: 250,
          maxBatchDelayMs: 1_000,
          safetyPollMs: 30_000,
          busyTimeoutMs: 5_000,
          maxWalSizeBytes: 16_777_216,
          manifestFlushMs: 10_000,
          snapshotIntervalMs: 86_400_000,
          retentionMs: 0,
          compactionLevelsMs: [30_000, 300_000, 3_600_000],
          compactionKeepRecent: 16,
          compactionKeepMs: [3_600_000, 86_400_000, 604_800_000],
          maxSegmentsPerSnapshot: 0,
          maxTotalSizeBytes: 0,
          maxBackups: 0,
          multipartSweepIntervalMs: 3_600_000,
          multipartMinAgeMs: 3_600_000,
          mirrorIntervalMs: 60_000,
          compression: "zstd",
          compressionLevel: 3,
          validateOnRestore: true,
          onIncompleteDestination: "backfill",
          convertToWal: false,
          encryption: { mode: "none" },
          backends: [
            {
              type: "file",
              path: "/var/backups/bakelite",
              async: false,
              timeoutMs: 60_000,
              retries: 5,
              uploadBytesPerSecond: 0,
              downloadBytesPerSecond: 0,
            },
          ],
        },
      ],
    });
  });

  test("a database's own key wins over [defaults], and [defaults] over ours", () => {
    const { databases } = parse(`
[defaults]
debounce = "1s"
retention = "30d"
max_total_size = "5GiB"
compaction_levels = []
${MINIMAL.replace("[[database.backends]]", 'debounce = "2s"\nmax_total_size = 0\n[[database.backends]]')}
[[database]]
name = "other"
path = "/other.db"
backends = [{ type = "file", path = "/b" }]
`);
    expect(databases).toMatchObject([
      { name: "app", debounceMs: 2_000, retentionMs: 30 * 86_400_000, maxTotalSizeBytes: 0, compactionKeepMs: [] },
      { name: "other", debounceMs: 1_000, retentionMs: 30 * 86_400_000, maxTotalSizeBytes: 5 * 2 ** 30 },
    ]);
  });

  test("every key of [daemon] is read", () => {
    const toml = `[daemon]
metrics_addr = "[::1]:9090"
max_concurrent_snapshots = 4
db = "app"
log_level = "debug"
log_format = "json"
heartbeat_url = "https://heartbeat.example/id?status=up"
heartbeat_interval = "5m"
${MINIMAL}`;
    expect(parse(toml).daemon).toEqual({
      metricsAddress: { host: "::1", port: 9_090 },
      maxConcurrentSnapshots: 4,
      db: "app",
      logLevel: "debug",
      logFormat: "json",
      heartbeatUrl: "https://heartbeat.example/id?status=up",
      heartbeatIntervalMs: 300_000,
    });
  });

  test("the result cannot be changed, at any depth, and can be sent to a worker", () => {
    const config = parse(MINIMAL);
    expect(Object.isFrozen(config)).toBe(true);
    expect(Object.isFrozen(config.databases)).toBe(true);
    expect(Object.isFrozen(config.databases[0]?.backends[0])).toBe(true);
    expect(Object.isFrozen(config.databases[0]?.compactionLevelsMs)).toBe(true);
    expect(structuredClone(config)).toEqual(config);
  });
});

describe("encryption", () => {
  const KEY = '[defaults.encryption]\nkey_file = "/etc/key.txt"\n';
  const withOwn = (own: string) => MINIMAL.replace("[[database.backends]]", `${own}\n[[database.backends]]`);

  test.each([
    ["[defaults] alone", KEY, "", { mode: "key-file", keyFile: "/etc/key.txt", acceptPlaintext: false }],
    ["opting out", KEY, 'encryption = { mode = "none" }', { mode: "none" }],
    [
      "a key of its own",
      KEY,
      'encryption = { key_file = "/own" }',
      { mode: "key-file", keyFile: "/own", acceptPlaintext: false },
    ],
    [
      "one more key beside the default's",
      KEY,
      "encryption.accept_plaintext = true",
      { mode: "key-file", keyFile: "/etc/key.txt", acceptPlaintext: true },
    ],
    [
      "a key of its own where the default is none",
      '[defaults.encryption]\nmode = "none"\n',
      'encryption = { key_file = "/own" }',
      { mode: "key-file", keyFile: "/own", acceptPlaintext: false },
    ],
  ])("%s", (_, defaults, own, expected) => {
    expect(parse(defaults + withOwn(own)).databases[0]?.encryption).toEqual(expected as never);
  });

  test("a heading without a key does not pass for encrypted", () => {
    expect(problemsOf(`[defaults.encryption]\n${MINIMAL}`)).toEqual([
      '1:1: `encryption` needs `key_file`, or `mode = "none"`',
    ]);
    expect(problemsOf(withOwn("encryption = { accept_plaintext = true }"))[0]).toContain("needs `key_file`");
  });

  test("`mode` is none or absent, and none stands alone", () => {
    expect(problemsOf(withOwn('encryption = { mode = "aes" }'))[0]).toContain('`mode` must be "none"; to encrypt');
    expect(problemsOf(withOwn('encryption = { mode = "none", key_file = "/k" }'))[0]).toContain(
      "must have nothing beside",
    );
  });
});

describe("backends", () => {
  test("s3 takes every key", () => {
    expect(
      parseBackend(
        `type = "s3"
bucket = "backups"
prefix = "/a//b/"
region = "eu-central-1"
endpoint = "https://s3.example.com/"
path_style = false
storage_class = "GLACIER_IR"
change_set_storage_class = "STANDARD"
access_key_id = "AKIA"
secret_access_key = "\${SECRET}"
session_token = "token"
credentials_file = "/etc/aws"
profile = "backup"
sse = "aws:kms"
sse_kms_key_id = "arn:aws:kms:x"
part_size = "8MiB"
concurrency = 8
ca_file = "/etc/ca.pem"
async = false
timeout = "10s"
retries = 0
upload_rate_limit = "10MB"
download_rate_limit = 5`,
        { SECRET: "hush" },
      ),
    ).toEqual({
      type: "s3",
      bucket: "backups",
      prefix: "a/b",
      region: "eu-central-1",
      endpoint: "https://s3.example.com",
      pathStyle: false,
      storageClass: "GLACIER_IR",
      changeSetStorageClass: "STANDARD",
      credentials: { accessKeyId: "AKIA", secretAccessKey: "hush", sessionToken: "token" },
      credentialsFile: "/etc/aws",
      profile: "backup",
      sse: "aws:kms",
      sseKmsKeyId: "arn:aws:kms:x",
      partSizeBytes: 8 * 2 ** 20,
      concurrency: 8,
      caFile: "/etc/ca.pem",
      async: false,
      timeoutMs: 10_000,
      retries: 0,
      uploadBytesPerSecond: 10_000_000,
      downloadBytesPerSecond: 5,
    });
  });

  test("s3 addresses buckets by path when it has an endpoint", () => {
    expect(parseBackend('type = "s3"\nbucket = "b"')).toMatchObject({ pathStyle: false, credentials: undefined });
    expect(parseBackend('type = "s3"\nbucket = "b"\nendpoint = "http://127.0.0.1:9000"')).toMatchObject({
      endpoint: "http://127.0.0.1:9000",
      pathStyle: true,
    });
  });

  test.each([
    ["key_file", 'key_file = "/k"\nkey_passphrase = "p"', { method: "key-file", keyFile: "/k", keyPassphrase: "p" }],
    ["password", 'password = "${P}"', { method: "password", password: "hush" }],
    ["password_file", 'password_file = "/p"', { method: "password-file", passwordFile: "/p" }],
    ["nothing but an agent", "", { method: "agent" }],
  ])("sftp authenticates by %s", (_, lines, authentication) => {
    const keys = 'type = "sftp"\nhost = "h.example"\nuser = "u"\npath = "backups/"\n';
    expect(parseBackend(keys + lines, { P: "hush" })).toMatchObject({
      host: "h.example",
      port: 22,
      path: "backups",
      knownHosts: undefined,
      authentication,
    } as never);
  });

  test.each([
    ["nothing", "", { method: "environment", managedIdentityClientId: undefined }],
    ["account_key", 'account_key = "k"', { method: "account-key", accountKey: "k" }],
    ["account_key_file", 'account_key_file = "/k"', { method: "account-key-file", accountKeyFile: "/k" }],
    ["sas_token", 'sas_token = "s"', { method: "sas", sasToken: "s" }],
    ["sas_token_file", 'sas_token_file = "/s"', { method: "sas-file", sasTokenFile: "/s" }],
    ["an identity", 'managed_identity_client_id = "i"', { method: "environment", managedIdentityClientId: "i" }],
  ])("azure authenticates by %s", (_, lines, authentication) => {
    const parsed = parseBackend(`type = "azure"\naccount = "a"\ncontainer = "c"\n${lines}`);
    expect(parsed).toMatchObject({ account: "a", container: "c", prefix: "", authentication } as never);
  });

  test("gcs uses Application Default Credentials unless a file is named", () => {
    expect(parseBackend('type = "gcs"\nbucket = "b"')).toMatchObject({ serviceAccountFile: undefined, prefix: "" });
    expect(parseBackend('type = "gcs"\nbucket = "b"\nservice_account_file = "/s"')).toMatchObject({
      serviceAccountFile: "/s",
    });
  });

  test.each([
    ['type = "s3"\nbucket = "b"\naccess_key_id = "x"', "7:1: `access_key_id` needs `secret_access_key` beside it"],
    ['type = "s3"\nbucket = "b"\nsession_token = "x"', "7:1: `session_token` needs `access_key_id`"],
    ['type = "s3"\nbucket = "b"\nsse_kms_key_id = "x"', '7:1: `sse_kms_key_id` only goes with sse = "aws:kms"'],
    ['type = "s3"\nbucket = "b"\npart_size = "1MiB"', "7:1: `part_size` must be a size in bytes"],
    ['type = "s3"\nbucket = "b"\nendpoint = "s3.example.com"', "7:1: `endpoint` must be a URL"],
    ['type = "s3"\nbucket = "b"\nendpoint = "https://u:p@x"', "7:1: `endpoint` must be a URL"],
    ['type = "s3"\nbucket = "b"\nprefix = "a/../b"', "7:1: `prefix` must be a key prefix"],
    [
      'type = "sftp"\nhost = "h"\nuser = "u"\npath = "p"\nkey_passphrase = "x"',
      "9:1: `key_passphrase` only goes with `key_file`",
    ],
    ['type = "sftp"\nhost = "-oProxyCommand=x"\nuser = "u"\npath = "p"\npassword = "x"', "6:1: `host` must be"],
    [
      'type = "sftp"\nhost = "h"\nuser = "u"\npath = "p"\npassword = "x"\nkey_file = "/k"',
      "9:1: `password` cannot stand beside `key_file`",
    ],
    [
      'type = "azure"\naccount = "a"\ncontainer = "c"\nsas_token = "s"\naccount_key = "k"',
      "8:1: `sas_token` cannot stand",
    ],
    ['type = "fil"\npath = "/x"', '5:1: `type` must be "file", "s3", "gcs", "azure" or "sftp"; did you mean `file`?'],
    ['path = "/x"', "4:1: [[database.backends]] of `app` needs `type`, which must be"],
    ['type = "file"\npath = "backups"', "6:1: `path` must be an absolute path"],
    ['type = "file"\npath = "/b"\nasync = true', "7:1: at least one backend must not be `async`"],
    ['type = "file"\npath = "/b"\n[[database.backends]]\ntype = "file"\npath = "/b/"', "7:1: the same destination"],
  ])("refused: %j", (lines, problem) => {
    const problems = problemsOf(backend(lines));
    expect(problems).toHaveLength(1);
    expect(problems[0]).toStartWith(problem);
  });
});

describe("errors", () => {
  test("all problems are reported at once, in the order of the file", () => {
    const problems = problemsOf(`retention = "7d"
[daemon]
log_level = "inf"
[defaults]
debonce = "1s"
safety_poll = 5
compaction_levels = ["1h", "5x"]
[[database]]
name = "app"
path = "app.db"
encryption = { mode = "none", key_fil = "x" }
[[database.backends]]
type = "file"
path = "/b"
retention = "5d"
[[database]]
name = "app"
`);
    expect(problems).toEqual([
      "1:1: unknown key `retention` at the top level; it belongs in [defaults] or [[database]]",
      '3:1: `log_level` must be "error", "warn", "info" or "debug"; did you mean `info`?',
      "5:1: unknown key `debonce` in [defaults]; did you mean `debounce`?",
      '6:1: `safety_poll` must be a duration such as "250ms", "5m", "1h30m" or "7d", more than zero',
      '7:28: `compaction_levels[1]` must be a duration such as "250ms", "5m", "1h30m" or "7d", more than zero',
      "10:1: `path` must be an absolute path (`~` is not expanded; `${HOME}` is)",
      "11:31: unknown key `key_fil` in [database.encryption] of `app`; did you mean `key_file`?",
      "15:1: unknown key `retention` in [[database.backends]] of `app`; it belongs in [defaults] or [[database]]",
      "16:1: [[database]] `app` needs `path`, which must be an absolute path (`~` is not expanded; `${HOME}` is)",
      "16:1: [[database]] `app` needs `backends`, which must be given as [[database.backends]]",
      "17:1: there is already a database named `app`",
    ]);
  });

  test("an unknown key without a near one lists the accepted keys", () => {
    expect(problemsOf(`[daemon]\nfrobnicate = 1\n${MINIMAL}`)).toEqual([
      "2:1: unknown key `frobnicate` in [daemon]; accepted: metrics_addr, max_concurrent_snapshots, db, log_level, log_format, heartbeat_url, heartbeat_interval",
    ]);
  });

  test.each([
    ["", "1:1: nothing is in it; it needs at least one [[database]], which `bakelite init` writes"],
    ["[daemon]\n", "1:1: the file needs `database`, which must be given as [[database]]"],
    ["database = []", "1:1: `database` must have at least one entry"],
    ["[database]\nname = 'x'", "1:1: `database` must be given as [[database]]"],
    ["x = ", "1:5: not valid TOML: "],
    ["[a]\n[a]", "2:2: not valid TOML: "],
    ["[defaults]\nretention = 99999999999999999999", "2:13: not valid TOML: "],
    ["__proto__ = 1", "1:1: not valid TOML: "],
    [`[daemon]\ndb = "ap"\n${MINIMAL}`, "2:1: `db` names no [[database]]; did you mean `app`?"],
    [`daemon = 5\n${MINIMAL}`, "1:1: `daemon` must be a table"],
    [`defaults = []\n${MINIMAL}`, "1:1: `defaults` must be a table"],
    [MINIMAL.replace('"app"', '".app"'), '3:1: `name` must be letters, digits, "-", "_" and "."'],
    [MINIMAL.replace('"app"', '"a/b"'), "3:1: `name` must be"],
    [MINIMAL.replace('"app"', `"${"a".repeat(129)}"`), "3:1: `name` must be"],
    [MINIMAL.replace('"app"', "5"), "3:1: `name` must be"],
    [
      `[defaults]\ncompaction_levels = ["1h", "1m"]\ncompaction_keep = ["1h", "1h"]\n${MINIMAL}`,
      "2:1: `compaction_levels` must be in ascending",
    ],
    [
      `[defaults]\ncompaction_levels = ["1m", "1h"]\ncompaction_keep = ["1h"]\n${MINIMAL}`,
      "3:1: `compaction_keep` must have one duration for each of the 2",
    ],
    [`[defaults]\ncompression_level = 23\n${MINIMAL}`, "2:1: `compression_level` must be a whole number from 1 to 22"],
    [`[defaults]\nmax_backups = 1.5\n${MINIMAL}`, "2:1: `max_backups` must be a whole number"],
    [`[defaults]\nmax_total_size = -1\n${MINIMAL}`, "2:1: `max_total_size` must be a size in bytes"],
    [`[defaults]\nsafety_poll = "0s"\n${MINIMAL}`, "2:1: `safety_poll` must be a duration"],
    [`[defaults]\nvalidate_on_restore = "yes"\n${MINIMAL}`, "2:1: `validate_on_restore` must be true or false"],
    [`[defaults]\nretention = 1979-05-27\n${MINIMAL}`, "2:1: `retention` must be a duration"],
  ])("refused: %j", (toml, problem) => {
    const problems = problemsOf(toml);
    expect(problems).toHaveLength(1);
    expect(problems[0]).toStartWith(problem);
  });

  test("an unset variable is one problem, not also a wrong value", () => {
    expect(problemsOf(MINIMAL.replace("/var/lib/app", "${DATA}"))).toEqual([
      "4:1: `path` needs the environment variable `DATA`, which is not set",
    ]);
  });

  test("no error shows a value, which may be a secret, from the file or from the environment", () => {
    const toml = backend(
      'type = "s3"\nbucket = "${SECRET}"\nsecret_access_key = "${SECRET}"\nendpoint = "${SECRET}"\npath_style = "hush hush"',
    );
    expect(problemsOf(toml, { SECRET: "hush hush" }).join()).not.toContain("hush");
    expect(
      problemsOf(backend('type = "s3"\nsecret_access_key = "hush hush').replace(/"\n$/, "\n")).join(),
    ).not.toContain("hush");
  });

  test("one faulty default is one problem however many databases inherit it", () => {
    const databases = ["a", "b", "c"].map((name) => MINIMAL.replace('"app"', `"${name}"`)).join("");
    expect(problemsOf(`[defaults]\ncompaction_levels = ["2h", "1h", "3h"]\n${databases}`)).toHaveLength(1);
  });
});

describe("destinations", () => {
  const database = (name: string, path: string) =>
    `[[database]]\nname = "${name}"\npath = "/${name}.db"\nbackends = [{ type = "file", path = "${path}" }]\n`;

  test("many databases share one destination, each under its name", () => {
    const names = Array.from({ length: 500 }, (_, i) => `app-${i}`);
    expect(parse(names.map((name) => database(name, "/b")).join("")).databases).toHaveLength(500);
  });

  test("two databases may not share one destination and name", () => {
    expect(problemsOf(database("app", "/b") + database("app", "/b"))).toEqual([
      "6:1: there is already a database named `app`",
    ]);
  });

  test("the folder of one database may not lie inside another's", () => {
    expect(problemsOf(database("app", "/b") + database("full", "/b/app"))).toEqual([
      "8:13: `full` would be stored inside the destination of `app`",
    ]);
    expect(problemsOf(database("app", "/b") + database("full", "/b/app-2"))).toEqual([]);
  });

  test("two names may have one database file: the instance lock decides at run time", () => {
    expect(problemsOf(database("a", "/b") + database("b", "/b").replace("/b.db", "/a.db"))).toEqual([]);
  });
});

describe("hostile input", () => {
  test("any text is a configuration or a BakeliteError of code config-invalid", () => {
    const tomlLike = fc
      .array(
        fc.oneof(
          fc.constantFrom(
            ...MINIMAL.split("\n"),
            "[defaults]",
            "[daemon]",
            "encryption = {}",
            "backends = [[]]",
            "a.b.c = []",
          ),
          fc.string({ unit: fc.constantFrom(..."ab=[]{},.\"'#\n 1") }),
        ),
      )
      .map((lines) => lines.join("\n"));
    fc.assert(
      fc.property(fc.oneof(tomlLike, fc.string()), (toml) => {
        problemsOf(toml);
      }),
      { numRuns: 1_000 },
    );
  });

  test("any value at any key is accepted or a BakeliteError", () => {
    const keys = [
      "name",
      "path",
      "debounce",
      "max_wal_size",
      "compaction_levels",
      "encryption",
      "backends",
      "compression",
    ];
    const value = fc.oneof(
      fc.integer().map(String),
      fc.constantFrom("true", "[]", "{}", "[[]]", "[{}]", "1.5", "nan", "1979-05-27", '[{ type = "s3" }]', '"1s"'),
      fc.string().map((text) => JSON.stringify(text).replaceAll("\u007f", "")),
    );
    fc.assert(
      fc.property(fc.dictionary(fc.constantFrom(...keys), value), (table) => {
        const lines = Object.entries(table).map(([key, text]) => `${key} = ${text}`);
        problemsOf(`[[database]]\n${lines.join("\n")}`);
      }),
      { numRuns: 1_000 },
    );
  });

  test.each([
    ["deep arrays", `a = ${"[".repeat(100_000)}`],
    ["a long dotted key", `${"a.".repeat(100_000)}b = 1`],
    ["a long heading", `[${"a.".repeat(100_000)}b]`],
    ["deep inline tables", `a = ${"{ a = ".repeat(100_000)}`],
  ])("%s end in a clean error", (_, toml) => {
    expect(problemsOf(toml).length).toBeGreaterThan(0);
  });
});

describe("the file", () => {
  test("--config wins over $BAKELITE_CONFIG, which wins over the default, and a relative path is resolved", async () => {
    await using directory = await temporaryDirectory();
    await writeFile(directory.file("a.toml"), MINIMAL);
    await writeFile(directory.file("b.toml"), `\uFEFF${MINIMAL}`);
    const env = { BAKELITE_CONFIG: directory.file("b.toml") };
    expect((await loadConfig(directory.file("x", "..", "a.toml"), env)).sourcePath).toBe(directory.file("a.toml"));
    expect((await loadConfig(undefined, env)).sourcePath).toBe(directory.file("b.toml"));
  });

  test.each([
    ["--config", "/nowhere/b.toml", {}, "/nowhere/b.toml"],
    ["$BAKELITE_CONFIG", undefined, { BAKELITE_CONFIG: "/nowhere/e.toml" }, "/nowhere/e.toml"],
  ])("a missing file named by %s says so", async (named, flag, env, path) => {
    const error = await thrownBy(loadConfig(flag, env));
    expect(error).toMatchObject({ code: "config-invalid", subject: path });
    expect(error.message).toBe(`there is no configuration file named by ${named}`);
    expect(error.hint).toContain(DEFAULT_CONFIG_PATH);
  });

  test.if(!existsSync(DEFAULT_CONFIG_PATH))("a missing default names all three places", async () => {
    const error = await thrownBy(loadConfig(undefined, { BAKELITE_CONFIG: "" }));
    expect(error.subject).toBe(DEFAULT_CONFIG_PATH);
    expect(error.hint).toBe("give --config <path>, set $BAKELITE_CONFIG, or make one with `bakelite init`");
  });

  test("a directory and a file that is not UTF-8 are told apart from a missing file", async () => {
    await using directory = await temporaryDirectory();
    await mkdir(directory.file("folder"));
    await writeFile(directory.file("latin1.toml"), new Uint8Array([0x61, 0xff]));
    expect((await thrownBy(loadConfig(directory.file("folder"), {}))).message).toBe(
      "the configuration named by --config is a directory",
    );
    expect((await thrownBy(loadConfig(directory.file("latin1.toml"), {}))).message).toContain("not UTF-8");
  });

  test.if(process.getuid?.() !== 0)("a file without permission says what to do", async () => {
    await using directory = await temporaryDirectory();
    await writeFile(directory.file("b.toml"), MINIMAL);
    await chmod(directory.file("b.toml"), 0o000);
    expect((await thrownBy(loadConfig(directory.file("b.toml"), {}))).message).toStartWith("no permission");
  });
});

async function thrownBy(work: Promise<unknown>): Promise<BakeliteError> {
  const error = await work.then(
    () => undefined,
    (thrown: unknown) => thrown,
  );
  if (error instanceof BakeliteError) return error;
  throw new Error("no BakeliteError was thrown", { cause: error });
}
