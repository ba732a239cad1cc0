import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { backendTables } from "../../src/config/backends.ts";
import { daemonSchema, databaseSchema, defaultsSchema, documentSchema } from "../../src/config/schema.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";
import { expectRefused, run } from "./wrong-runs.ts";

let directory: TemporaryDirectory;
let fileCount = 0;

beforeAll(async () => {
  directory = await temporaryDirectory("wrong-keys");
});

afterAll(() => directory[Symbol.asyncDispose]());

function file(toml: string): string {
  fileCount++;
  const path = directory.file(`${fileCount}.toml`);
  writeFileSync(path, toml);
  return path;
}

/** What a key takes, as TOML: one value that is right, several that are not, and what is said of those. */
interface Kind {
  readonly right: string;
  readonly wrong: readonly string[];
  readonly says: string;
}

const NO_TEXT = ["5", "true", "[]", "{}", "1979-05-27"];
const duration: Kind = {
  right: '"90s"',
  wrong: ["90", '"90"', '"1.5h"', '"-1s"', '"1h 30m"', '"5300w"', '""', "[]", "true"],
  says: 'must be a duration such as "250ms", "5m", "1h30m" or "7d"',
};
const positive: Kind = {
  ...duration,
  wrong: [...duration.wrong, '"0s"'],
  says: `${duration.says}, more than zero`,
};
const size: Kind = {
  right: '"6MiB"',
  wrong: ['"6 potatoes"', '"-1"', "-1", "1.5", '"99999999TiB"', "true", "[]", '""', "nan"],
  says: 'must be a size in bytes or such as "16MiB"',
};
const flag: Kind = { right: "true", wrong: ['"true"', "1", '"yes"', "[]"], says: "must be true or false" };
const path: Kind = { right: '"/a/b"', wrong: [...NO_TEXT, '"a/b"', '"~/a"', '""'], says: "must be an absolute path (" };
const text: Kind = {
  right: '"some text"',
  wrong: [...NO_TEXT, '""', '"a\\nb"'],
  says: "must be one line of text, not empty",
};
const word: Kind = {
  right: '"some-word"',
  wrong: [...NO_TEXT, '""', '"a b"', '"-oProxyCommand"', '"a/b"'],
  says: "must be text without spaces that does not start with `-`",
};
const prefix: Kind = {
  right: '"a/b"',
  wrong: ["5", "[]", '"../a"', '"a/./b"', '"a\\nb"'],
  says: "must be a key prefix such as",
};
const url: Kind = {
  right: '"https://host.example:9000"',
  wrong: [...NO_TEXT, '"host.example"', '"ftp://host"', '"https://user:pass@host"', '"https://host/?a=b"', '""'],
  says: 'must be a URL such as "https://s3.example.com"',
};
const name: Kind = {
  right: '"only"',
  wrong: [...NO_TEXT, '""', '".a"', '"a b"', '"a/b"', `"${"a".repeat(129)}"`],
  says: "must be letters, digits",
};

function whole(min: number, max: number): Kind {
  const wrong = [min - 1, max + 1, 1.5].map(String);
  return {
    right: String(max),
    wrong: [...wrong, '"1"', "true", "[]"],
    says: `must be a whole number from ${min} to ${max}`,
  };
}

function oneOf(...accepted: readonly string[]): Kind {
  const quoted = accepted.map((value) => `"${value}"`);
  const says = `must be ${quoted.slice(0, -1).join(", ")} or ${quoted.at(-1)}`;
  return { right: quoted[0] ?? "", wrong: ["5", "true", '""', '"something-else"', `"${accepted[0]}s"`], says };
}

function durations(element: Kind): Kind {
  const wrong = ['"1h"', "5", "true"];
  return { right: `[${element.right}]`, wrong, says: "must be an array of durations" };
}

const MANY = 1_000_000_000;
const SETTINGS: Readonly<Record<string, Kind>> = {
  debounce: duration,
  max_batch_delay: positive,
  safety_poll: positive,
  busy_timeout: duration,
  max_wal_size: {
    ...size,
    wrong: [...size.wrong, '"1KiB"', "4095"],
    says: `${size.says}, "5GiB" or "500MB", at least "4KiB"`,
  },
  manifest_flush: positive,
  snapshot_interval: duration,
  retention: duration,
  compaction_levels: durations(positive),
  compaction_keep_recent: whole(0, MANY),
  compaction_keep: durations(duration),
  max_segments_per_snapshot: whole(0, MANY),
  max_total_size: size,
  max_backups: whole(0, MANY),
  multipart_sweep_interval: duration,
  multipart_min_age: duration,
  mirror_interval: positive,
  compression: oneOf("zstd", "none"),
  compression_level: whole(1, 22),
  validate_on_restore: flag,
  on_incomplete_destination: oneOf("backfill", "refuse", "warn"),
  convert_to_wal: flag,
};

/** What lies in the archive takes hours to become readable. */
const tier: Kind = { ...oneOf("Hot", "Cool", "Cold"), wrong: ['"Archive"', '"archive"', '"hot"', "5", '""'] };

const COMMON: Readonly<Record<string, Kind>> = {
  async: flag,
  timeout: positive,
  retries: whole(0, 100),
  upload_rate_limit: size,
  download_rate_limit: size,
};

const BACKENDS: Readonly<Record<keyof typeof backendTables, Readonly<Record<string, Kind>>>> = {
  file: { path, ...COMMON },
  s3: {
    bucket: word,
    prefix,
    region: word,
    endpoint: url,
    path_style: flag,
    storage_class: word,
    change_set_storage_class: word,
    access_key_id: text,
    secret_access_key: text,
    session_token: text,
    credentials_file: path,
    profile: text,
    sse: oneOf("AES256", "aws:kms"),
    sse_kms_key_id: text,
    part_size: { ...size, wrong: [...size.wrong, '"4MiB"', '"6GiB"', "0"] },
    concurrency: whole(1, 64),
    ca_file: path,
    ...COMMON,
  },
  gcs: {
    bucket: word,
    prefix,
    service_account_file: path,
    storage_class: word,
    change_set_storage_class: word,
    endpoint: url,
    ca_file: path,
    ...COMMON,
  },
  azure: {
    account: word,
    container: word,
    prefix,
    account_key: text,
    account_key_file: path,
    sas_token: text,
    sas_token_file: path,
    managed_identity_client_id: text,
    storage_class: tier,
    change_set_storage_class: tier,
    endpoint: url,
    ca_file: path,
    ...COMMON,
  },
  sftp: {
    host: word,
    port: whole(1, 65_535),
    user: word,
    path: text,
    key_file: path,
    key_passphrase: text,
    key_passphrase_file: path,
    password: text,
    password_file: path,
    known_hosts: path,
    ...COMMON,
  },
};

/** What a backend must have besides, so that the key that is tried is all that may be wrong. */
const REQUIRED: Readonly<Record<keyof typeof backendTables, Readonly<Record<string, string>>>> = {
  file: { path: '"/elsewhere"' },
  s3: { bucket: '"b"' },
  gcs: { bucket: '"b"' },
  azure: { account: '"a"', container: '"c"' },
  sftp: { host: '"h"', user: '"u"', path: '"p"', password: '"x"' },
};

/** The keys that go with `key`, and those of the required ones that do not. */
function besides(key: string): {
  readonly with: Readonly<Record<string, string>>;
  readonly without: readonly string[];
} {
  switch (key) {
    case "access_key_id":
      return { with: { secret_access_key: '"x"' }, without: [] };
    case "secret_access_key":
      return { with: { access_key_id: '"x"' }, without: [] };
    case "session_token":
      return { with: { access_key_id: '"x"', secret_access_key: '"x"' }, without: [] };
    case "sse_kms_key_id":
      return { with: { sse: '"aws:kms"' }, without: [] };
    case "key_passphrase":
    case "key_passphrase_file":
      return { with: { key_file: '"/k"' }, without: ["password"] };
    case "key_file":
    case "password_file":
      return { with: {}, without: ["password"] };
    case "compaction_levels":
      return { with: { compaction_keep: '["1h"]' }, without: [] };
    case "compaction_keep":
      return { with: { compaction_levels: '["1h"]' }, without: [] };
    default:
      return { with: {}, without: [] };
  }
}

const DATABASE = '[[database]]\nname = "only"\npath = "/d.db"\n';
const BACKEND = '[[database.backends]]\ntype = "file"\npath = "/b"\n';

interface Place {
  /** As messages call the table. */
  readonly table: string;
  readonly kinds: Readonly<Record<string, Kind>>;
  /** The file with `key = value` in this table, on the line `line`. */
  toml(key: string, value: string): { readonly toml: string; readonly line: number };
}

/** `before`, the key, what goes with it, `after`. The value may go on with lines for further keys. */
function written(
  before: string,
  key: string,
  value: string,
  after: string,
  required: Readonly<Record<string, string>>,
) {
  const others = besides(key);
  const given = new Set([key, ...[...value.matchAll(/^(\w+) = /gm)].map(([, name]) => name)]);
  const beside = Object.entries({ ...required, ...others.with }).filter(
    ([name]) => !given.has(name) && !others.without.includes(name),
  );
  const lines = beside.map(([name, text]) => `${name} = ${text}\n`).join("");
  return { toml: `${before}${key} = ${value}\n${lines}${after}`, line: before.split("\n").length };
}

const PLACES: readonly Place[] = [
  {
    table: "[daemon]",
    kinds: {
      metrics_addr: {
        right: '"127.0.0.1:9090"',
        wrong: [...NO_TEXT, '"9090"', '":9090"', '"host"', '"host:99999"', '"::1:9090"', '""'],
        says: 'must be an address and port such as "127.0.0.1:9090" or "[::1]:9090"',
      },
      max_concurrent_snapshots: whole(1, 1000),
      db: name,
      log_level: oneOf("error", "warn", "info", "debug"),
      log_format: oneOf("text", "json"),
      heartbeat_url: {
        right: '"https://heartbeat.example/some-id?status=up"',
        wrong: [
          ...NO_TEXT,
          '"host.example/id"',
          '"file:///etc/passwd"',
          '"https://user:pass@host/id"',
          '"https://h/a b"',
          '""',
        ],
        says: 'must be a URL such as "https://heartbeat.example/your-id"',
      },
      heartbeat_interval: positive,
    },
    toml: (key, value) => written("\n[daemon]\n", key, value, `${DATABASE}${BACKEND}`, {}),
  },
  {
    table: "[defaults]",
    kinds: SETTINGS,
    toml: (key, value) => written("# settings\n[defaults]\n", key, value, `${DATABASE}${BACKEND}`, {}),
  },
  {
    table: "[defaults.encryption]",
    kinds: { key_file: path, accept_plaintext: flag },
    toml: (key, value) =>
      written(
        "[defaults.encryption]\n",
        key,
        value,
        `${DATABASE}${BACKEND}`,
        key === "key_file" ? {} : { key_file: '"/k"' },
      ),
  },
  {
    table: "[database.encryption]",
    kinds: {
      mode: {
        right: '"none"',
        wrong: ['"key"', "5", '""'],
        says: 'must be "none"; to encrypt, give `key_file` instead',
      },
    },
    toml: (key, value) => written(`${DATABASE}[database.encryption]\n`, key, value, BACKEND, {}),
  },
  {
    table: "[[database]] `only`",
    kinds: SETTINGS,
    toml: (key, value) => written(DATABASE, key, value, BACKEND, {}),
  },
  {
    table: "[[database]]",
    kinds: { name, path },
    toml: (key, value) => written("[[database]]\n", key, value, BACKEND, { name: '"only"', path: '"/d.db"' }),
  },
  ...Object.entries(BACKENDS).map(
    ([type, kinds]): Place => ({
      table: `[[database.backends]] of \`only\``,
      kinds,
      toml: (key, value) =>
        written(
          `${DATABASE}${BACKEND}\n[[database.backends]]\ntype = "${type}"\n`,
          key,
          value,
          "",
          REQUIRED[type as keyof typeof backendTables],
        ),
    }),
  ),
];

test("every key of the schema stands in the tables of this test", () => {
  const keysOf = (shape: object) => Object.keys(shape).toSorted();
  const kindsOf = (table: string) =>
    PLACES.filter((place) => place.table === table).flatMap(({ kinds }) => Object.keys(kinds));
  expect(Object.keys(documentSchema.shape)).toEqual(["daemon", "defaults", "database"]);
  expect(kindsOf("[daemon]").toSorted()).toEqual(keysOf(daemonSchema.shape));
  expect([...kindsOf("[defaults]"), "encryption"].toSorted()).toEqual(keysOf(defaultsSchema.shape));
  expect([...kindsOf("[[database]] `only`"), ...kindsOf("[[database]]"), "encryption", "backends"].toSorted()).toEqual(
    keysOf(databaseSchema.shape),
  );
  expect([...kindsOf("[defaults.encryption]"), ...kindsOf("[database.encryption]")].toSorted()).toEqual(
    keysOf(defaultsSchema.shape.encryption.unwrap().shape),
  );
  for (const [type, { shape }] of Object.entries(backendTables))
    expect([...Object.keys(BACKENDS[type as keyof typeof backendTables]), "type"].toSorted()).toEqual(keysOf(shape));
});

describe.each(PLACES.map((place, i) => [place.table, i, place] as const))("%s (%i)", (_table, _i, place) => {
  const keys = Object.entries(place.kinds);

  test("each key is taken when it is right, and shown", async () => {
    await Promise.all(
      keys.map(async ([key, { right }]) => {
        const { code, stdout, stderr } = await run(["config", "--json", "-c", file(place.toml(key, right).toml)]);
        expect({ key, code, stderr }).toEqual({ key, code: 0, stderr: "" });
        expect(stdout).toContain(`${key}": {`);
      }),
    );
  });

  test("each key is refused with each wrong value, with file, line, column and what is accepted", async () => {
    const rounds = Math.max(...keys.map(([, { wrong }]) => wrong.length));
    await Promise.all(
      Array.from({ length: rounds }, async (_, round) => {
        // All that have so many wrong values at once: each of them has a line in the list.
        const tried = keys.flatMap(([key, { wrong, says }]) => {
          const value = wrong[round];
          return value === undefined ? [] : [{ key, value, says }];
        });
        const { path, line } = fileWith(place, tried);
        const outcome = await run(["config", "-c", path]);
        for (const [i, { key, says }] of tried.entries())
          expectRefused(outcome, { code: 2, says: `${path}:${line + i}:1: \`${key}\` ${says}` });
        expect(outcome.stderr.split(`${path}:`).length - 1).toBe(tried.length);
      }),
    );
  });

  test("each key is suggested where it is misspelt", async () => {
    const tried = keys.map(([key, { right }]) => ({ key: `${key.slice(0, 1)}${key}`, value: right }));
    const { path, line } = fileWith(place, tried);
    const { code, stdout, stderr } = await run(["config", "-c", path]);
    expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
    for (const [i, [key]] of keys.entries()) {
      const said = stderr.split("\n").find((each) => each.includes(`unknown key \`${tried[i]?.key}\``)) ?? "";
      expect(said).toContain(`${path}:${line + i}:1: unknown key `);
      expect(said).toContain(` in ${place.table.split(" ")[0]}`);
      expect(said).toEndWith(`; did you mean \`${key}\`?`);
    }
  });
});

/** A file with all these keys in the table, one after the other from `line` on. */
function fileWith(place: Place, tried: readonly { readonly key: string; readonly value: string }[]) {
  const text = tried.map(({ key, value }) => `${key} = ${value}`).join("\n");
  const [first, rest = ""] = [tried[0]?.key ?? "", text.slice(text.indexOf(" = ") + 3)];
  const { toml, line } = place.toml(first, rest);
  return { path: file(toml), line };
}
