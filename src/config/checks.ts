import { type KeyPath, type Problem, valueAt } from "./problems.ts";
import type { DatabaseTable, DefaultsTable } from "./schema.ts";
import type { BackendConfig, DatabaseConfig } from "./types.ts";

/** A database as it was written and as it was resolved, and where. */
export interface CheckedDatabase {
  readonly path: KeyPath;
  readonly table: DatabaseTable;
  readonly config: DatabaseConfig;
}

/** What is wrong with one database although each of its keys is right. */
export function checkDatabase(database: CheckedDatabase, defaults: DefaultsTable): readonly Problem[] {
  return [...checkCompaction(database, defaults), ...checkEncryption(database, defaults), ...checkBackends(database)];
}

function checkCompaction({ path, table, config }: CheckedDatabase, defaults: DefaultsTable): Problem[] {
  const problems: Problem[] = [];
  const at = (key: "compaction_levels" | "compaction_keep"): KeyPath =>
    table[key] === undefined && defaults[key] !== undefined ? ["defaults", key] : [...path, key];
  const levels = config.compactionLevelsMs;
  if (levels.some((level, i) => i > 0 && level <= (levels[i - 1] ?? 0))) {
    problems.push({ path: at("compaction_levels"), message: "`compaction_levels` must be in ascending order" });
  }
  if (levels.length > 0 && config.compactionKeepMs.length !== levels.length) {
    problems.push({
      path: at("compaction_keep"),
      message: `\`compaction_keep\` must have one duration for each of the ${levels.length} \`compaction_levels\``,
    });
  }
  return problems;
}

function checkEncryption({ path, table }: CheckedDatabase, defaults: DefaultsTable): Problem[] {
  const own = table.encryption;
  if (own === undefined || own.mode === "none" || (own.key_file ?? defaults.encryption?.key_file) !== undefined)
    return [];
  return [{ path: [...path, "encryption"], message: '`encryption` needs `key_file`, or `mode = "none"`' }];
}

function checkBackends({ path, config }: CheckedDatabase): Problem[] {
  if (config.backends.some((backend) => !backend.async)) return [];
  return [{ path: [...path, "backends", 0, "async"], message: "at least one backend must not be `async`" }];
}

/** No two databases may have one name; faulty ones are looked at too. `document` is what was parsed. */
export function checkNames(document: unknown): readonly Problem[] {
  const databases = valueAt(document, ["database"]);
  const seen = new Set<string>();
  return (Array.isArray(databases) ? databases : []).flatMap((_, i): readonly Problem[] => {
    const path = ["database", i, "name"];
    const name = valueAt(document, path);
    if (typeof name !== "string") return [];
    if (seen.has(name)) return [{ path, message: `there is already a database named \`${name}\`` }];
    seen.add(name);
    return [];
  });
}

/** No destination of a database may be another's, or a folder inside another's. */
export function checkDestinations(databases: readonly CheckedDatabase[]): readonly Problem[] {
  const owners = new Map<string, { readonly name: string; readonly path: KeyPath }>();
  const problems: Problem[] = [];
  for (const { path, config } of databases) {
    for (const [i, backend] of config.backends.entries()) {
      const place = `${destinationOf(backend)}/${config.name}`;
      const owner = owners.get(place);
      // Two databases of one name are reported as that.
      if (owner === undefined) owners.set(place, { name: config.name, path: [...path, "backends", i] });
      else if (owner.path[1] === path[1]) {
        problems.push({ path: [...path, "backends", i], message: "the same destination stands here twice" });
      }
    }
  }
  for (const [place, { path, name }] of owners) {
    const outer = enclosing(place, owners);
    if (outer === undefined) continue;
    problems.push({ path, message: `\`${name}\` would be stored inside the destination of \`${outer.name}\`` });
  }
  return problems;
}

/** The entry whose place is a folder around `place`. */
function enclosing<T>(place: string, owners: ReadonlyMap<string, T>): T | undefined {
  for (let end = place.lastIndexOf("/"); end > 0; end = place.lastIndexOf("/", end - 1)) {
    const owner = owners.get(place.slice(0, end));
    if (owner !== undefined) return owner;
  }
  return undefined;
}

/** A text that is equal for two backends exactly when they store into the same place. */
function destinationOf(backend: BackendConfig): string {
  switch (backend.type) {
    case "file":
      return joined("file:", backend.path);
    case "s3":
      return joined("s3:", backend.endpoint ?? "", backend.bucket, backend.prefix);
    case "gcs":
      return joined("gcs:", backend.endpoint ?? "", backend.bucket, backend.prefix);
    case "azure":
      return joined("azure:", backend.endpoint ?? "", backend.account, backend.container, backend.prefix);
    case "sftp": {
      const home = backend.path.startsWith("/") ? "" : `~${backend.user}`;
      return joined("sftp:", `${backend.host}:${backend.port}`, home, backend.path);
    }
  }
}

function joined(...parts: readonly string[]): string {
  return parts
    .flatMap((part) => part.split("/"))
    .filter((part) => part !== "")
    .join("/");
}
