import {
  type ConfigValue,
  type ExplainedDatabase,
  type ExplainedKey,
  explainConfig,
  type Origin,
} from "../../config/explain.ts";
import { parseConfig } from "../../config/load.ts";
import { type ConfigSource, configSource, readConfigText } from "../../config/source.ts";
import { printable } from "../../util/printable.ts";
import { formatTable, type TableColumn } from "../../util/table.ts";
import type { Command } from "../command.ts";

export const command: Command = {
  usage: "[--db <name>] [--json]",
  description: [
    "Shows every setting that is in force, and where each comes from: the database itself, [defaults], or the default that is built in, with the line of the file. What the environment puts in is in place; secrets are not shown.",
    "Checks the whole file, and touches nothing that it names.",
  ],
  options: [],
  examples: [
    { comment: "Every database", command: "bakelite config" },
    { comment: "Why this one is kept for 30 days", command: "bakelite config --db app" },
    { comment: "For a script", command: "bakelite config --json" },
  ],
  async run({ flags, env, stdout, selectDatabases }) {
    const source = configSource(flags.config, env);
    // Read once: the lines that are named are those of the text that was checked.
    const toml = await readConfigText(source);
    const config = parseConfig(toml, { sourcePath: source.path, env });
    const selected = new Set(selectDatabases(config).map(({ name }) => name));
    const explained = explainConfig(toml, config);
    const shown = { ...explained, databases: explained.databases.filter(({ name }) => selected.has(name)) };
    if (flags.json) stdout.write(`${JSON.stringify(configDocument(source, shown), null, 2)}\n`);
    else stdout.write(configText(source, shown, { withDaemon: flags.db === undefined }));
    return 0;
  },
};

type Explained = ReturnType<typeof explainConfig>;

const COLUMNS: readonly TableColumn[] = [{ title: "KEY" }, { title: "VALUE" }, { title: "FROM" }];

function configText(source: ConfigSource, { daemon, databases }: Explained, { withDaemon }: { withDaemon: boolean }) {
  const named = source.namedBy === "default" ? "the default place" : `named by ${source.namedBy}`;
  const sections = [
    `${printable(source.path)} (${named})\n`,
    ...(withDaemon ? [`daemon\n${keyTable(daemon)}`] : []),
    ...databases.flatMap(({ name, keys, backends }) => [
      `database ${name}\n${keyTable(keys)}`,
      ...backends.map(
        (backend, i) =>
          `database ${name}, backend ${i + 1} of ${backends.length}\n${keyTable(backend, "[[database.backends]]")}`,
      ),
    ]),
  ];
  return sections.join("\n");
}

/** `heading` is that of the table in the file that a database's own values come from. */
function keyTable(keys: readonly ExplainedKey[], heading = "[[database]]"): string {
  // What is not set and has no default would only be noise.
  const set = keys.filter(({ value, isSecret }) => value !== null || isSecret);
  const rows = set.map((key) => [`  ${key.key}`, showValue(key), showOrigin(key, heading)]);
  return formatTable([{ title: "  KEY" }, ...COLUMNS.slice(1)], rows);
}

function showValue({ value, isSecret }: ExplainedKey): string {
  return isSecret ? "(set, not shown)" : showPlain(value);
}

function showPlain(value: ConfigValue): string {
  if (typeof value === "object" && value !== null) return `[${value.join(", ")}]`;
  return value === "" ? '""' : String(value);
}

function showOrigin({ origin, variables }: ExplainedKey, heading: string): string {
  const environment = variables.length === 0 ? "" : `, with $${variables.join(", $")}`;
  return `${place(origin, heading)}${environment}`;
}

function place(origin: Origin, heading: string): string {
  switch (origin.kind) {
    case "built-in":
      return "built-in default";
    case "daemon":
      return `[daemon], line ${origin.at.line}`;
    case "defaults":
      return `[defaults], line ${origin.at.line}`;
    case "database":
      return `${heading}, line ${origin.at.line}`;
  }
}

function configDocument(source: ConfigSource, { daemon, databases }: Explained) {
  return {
    path: source.path,
    named_by: source.namedBy,
    daemon: keysDocument(daemon),
    databases: databases.map(databaseDocument),
  };
}

function databaseDocument({ name, keys, backends }: ExplainedDatabase) {
  return { name, keys: keysDocument(keys), backends: backends.map(keysDocument) };
}

function keysDocument(keys: readonly ExplainedKey[]) {
  return Object.fromEntries(
    keys.map(({ key, value, isSecret, origin, variables }) => [
      key,
      {
        value,
        secret: isSecret,
        from: origin.kind,
        line: origin.kind === "built-in" ? null : origin.at.line,
        variables,
      },
    ]),
  );
}
