import type { z } from "zod";
import { BakeliteError } from "../util/errors.ts";
import { printable } from "../util/printable.ts";
import { didYouMean } from "../util/suggest.ts";
import { type CheckedDatabase, checkDatabase, checkDestinations, checkNames } from "./checks.ts";
import { describeIssue } from "./describe-issue.ts";
import { type Environment, interpolateDocument } from "./interpolate.ts";
import { locateKeys, type TextPosition } from "./locate.ts";
import { isTable, type KeyPath, type Problem, valueAt } from "./problems.ts";
import { resolveDaemon, resolveDatabase } from "./resolve.ts";
import { daemonSchema, databaseSchema, defaultsSchema, documentSchema } from "./schema.ts";
import { configSource, readConfigText } from "./source.ts";
import { parseToml } from "./toml.ts";
import type { Config } from "./types.ts";

/**
 * Reads and checks the configuration: the file of `flag` (`--config`), else `$BAKELITE_CONFIG`, else the default.
 * Throws one `config-invalid` that names every problem with its file, line and column.
 */
export async function loadConfig(flag: string | undefined, env: Environment): Promise<Config> {
  const source = configSource(flag, env);
  return parseConfig(await readConfigText(source), { sourcePath: source.path, env });
}

/** Checks the text of a bakelite.toml. Pure; throws as `loadConfig` does. */
export function parseConfig(
  toml: string,
  { sourcePath, env }: { readonly sourcePath: string; readonly env: Environment },
): Config {
  const parsed = documentOf(toml, sourcePath);
  if (isTable(parsed) && Object.keys(parsed).length === 0)
    throw invalid(
      [
        {
          line: 1,
          column: 1,
          message: "nothing is in it; it needs at least one [[database]], which `bakelite init` writes",
        },
      ],
      sourcePath,
    );
  const { document, problems: unset } = interpolateDocument(parsed, env);
  const unsetPaths = new Set(unset.map((problem) => JSON.stringify(problem.path)));
  const { config, problems } = checkDocument(document);
  // What else is said of a text that could not be completed would be noise.
  const others = problems.filter((problem) => problem.isUnknownKey || !unsetPaths.has(JSON.stringify(problem.path)));
  const all = [...unset, ...others];
  if (all.length > 0) throw invalid(locateProblems(toml, all), sourcePath);
  return deepFreeze({ sourcePath, ...config });
}

function checkDocument(document: unknown): {
  readonly config: Omit<Config, "sourcePath">;
  readonly problems: readonly Problem[];
} {
  const problems: Problem[] = [];
  /** The checked value of `raw`; undefined when there are problems with it, which have been noted. */
  const check = <S extends z.ZodType>(schema: S, raw: unknown, path: KeyPath): z.output<S> | undefined => {
    const result = schema.safeParse(raw);
    if (!result.success) problems.push(...result.error.issues.flatMap((issue) => describeIssue(issue, path, document)));
    return result.data;
  };

  // Part by part, so that a fault in one does not hide those of the others.
  check(documentSchema, document, []);
  const daemon = resolveDaemon(check(daemonSchema, valueAt(document, ["daemon"]) ?? {}, ["daemon"]) ?? {});
  const defaults = check(defaultsSchema, valueAt(document, ["defaults"]) ?? {}, ["defaults"]) ?? {};
  const tables = valueAt(document, ["database"]);
  const rawDatabases: readonly unknown[] = Array.isArray(tables) ? tables : [];
  const databases = rawDatabases.flatMap((raw, i): CheckedDatabase[] => {
    const path = ["database", i];
    const table = check(databaseSchema, raw, path);
    return table === undefined ? [] : [{ path, table, config: resolveDatabase(defaults, table) }];
  });
  problems.push(...checkNames(document), ...checkDestinations(databases));
  for (const database of databases) problems.push(...checkDatabase(database, defaults));

  const names = databases.map(({ config }) => config.name);
  // With a faulty [[database]] the name may be the one that is missing from the list.
  if (daemon.db !== undefined && names.length === rawDatabases.length && !names.includes(daemon.db)) {
    problems.push({ path: ["daemon", "db"], message: `\`db\` names no [[database]]${didYouMean(daemon.db, names)}` });
  }
  return { problems, config: { daemon, databases: databases.map(({ config }) => config) } };
}

function documentOf(toml: string, sourcePath: string): unknown {
  const parsed = parseToml(toml);
  if (parsed.kind === "document") return parsed.document;
  throw invalid([{ ...parsed.at, message: `not valid TOML: ${parsed.reason}` }], sourcePath);
}

type LocatedProblem = TextPosition & { readonly message: string };

function locateProblems(toml: string, problems: readonly Problem[]): readonly LocatedProblem[] {
  const locate = locateKeys(toml);
  const located = problems.map(({ path, message }) => ({ ...locate(path), message }));
  return located.toSorted((a, b) => a.line - b.line || a.column - b.column);
}

function invalid(problems: readonly LocatedProblem[], sourcePath: string): BakeliteError {
  const lines = problems.map(({ line, column, message }) => printable(`${sourcePath}:${line}:${column}: ${message}`));
  // A fault in [defaults] shows in every database that inherits it.
  const distinct = [...new Set(lines)];
  const [only, ...others] = distinct;
  return others.length === 0
    ? new BakeliteError("config-invalid", `invalid configuration: ${only}`)
    : new BakeliteError(
        "config-invalid",
        `invalid configuration, ${distinct.length} problems:\n  ${distinct.join("\n  ")}`,
      );
}

function deepFreeze<T>(value: T): T {
  if (typeof value !== "object" || value === null || Object.isFrozen(value)) return value;
  Object.freeze(value);
  for (const inner of Object.values(value)) deepFreeze(inner);
  return value;
}
