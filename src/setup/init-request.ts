import { realpath } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { readKeyFile } from "../config/key-file.ts";
import { parseConfig } from "../config/load.ts";
import { type ConfigSource, readConfigText } from "../config/source.ts";
import { databaseName } from "../config/values.ts";
import { BakeliteError } from "../util/errors.ts";
import { ENTER, findObstacle } from "./doctor-access.ts";
import { lookAtDatabase } from "./doctor-database.ts";
import { kindOf, nearestExisting, statOrNull } from "./doctor-files.ts";
import type { People } from "./doctor-users.ts";
import type { Recipe } from "./recipe.ts";
import { type Choices, renderRecipe } from "./recipe-render.ts";
import {
  databasesToConvert,
  type ServiceUser,
  type SetupRequest,
  type WantedKey,
  type WantedService,
} from "./setup-plan.ts";
import type { SystemService } from "./system-service.ts";

/** What init knows of the world that it sets up. */
export interface InitWorld {
  /** Where the configuration is, or is to be. */
  readonly source: ConfigSource;
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly people: People;
  readonly system: SystemService;
  readonly signal: AbortSignal;
}

/** The flags of init, as given. Paths are absolute. */
export interface InitFlags {
  readonly dbPath: string | undefined;
  readonly dbName: string | undefined;
  readonly backupDirectory: string | undefined;
  readonly encrypt: boolean;
  readonly keyFile: string | undefined;
  readonly serviceUser: string | undefined;
  readonly serviceGroup: string | undefined;
  readonly enable: boolean;
  readonly force: boolean;
}

/** The name under which a database is stored, unless somebody says otherwise; undefined: its file's name cannot be one. */
export function proposedName(path: string): string | undefined {
  const stem = basename(path).replace(/\.[^.]+$/, "");
  return databaseName.safeParse(stem).success ? stem : undefined;
}

/** Why the file at `path` (absolute) cannot be backed up; null: it can, or is not there yet. */
export async function whyNoDatabase(path: string): Promise<string | null> {
  const { info, header } = await lookAtDatabase(await realpath(path).catch(() => path));
  if (info === null) return null;
  if (!info.isFile()) return `it is ${kindOf(info)}, not a file`;
  return header === null || header.kind === "sqlite" || header.kind === "empty" ? null : "it is not a SQLite database";
}

/** The key file for `path`, as asked for. Throws `key-wrong` when one is there that holds no key, `not-found` when none is and none may be made. */
export async function wantedKey(
  {
    path,
    mayMake,
    configDirectory,
  }: { readonly path: string; readonly mayMake: boolean; readonly configDirectory: string },
  user: ServiceUser | null,
  people: People,
): Promise<WantedKey> {
  if ((await statOrNull(path)) === null) {
    if (!mayMake)
      throw new BakeliteError("not-found", "the key file does not exist", {
        subject: path,
        hint: "correct `--key-file`, or add `--encrypt` to make a new key there",
      });
    return { path, from: "new" };
  }
  const wanted = await readKeyFile(path, "--key-file");
  if (user === null) return { path, from: "there" };
  const folder = await findObstacle(user.access, people, { path: dirname(await realpath(path)), wanted: ENTER });
  if (folder === null) return { path, from: "there" };
  const copy = join(configDirectory, "key.txt");
  if ((await statOrNull(copy)) === null) return { path: copy, from: { copyOf: path } };
  // What is there stays, and must be the same one.
  if (!Buffer.from(await readKeyFile(copy, "--key-file")).equals(wanted))
    throw new BakeliteError("output-exists", `${user.name} cannot reach ${path}, and another key is at ${copy}`, {
      hint: `put the key where ${user.name} can read it, and name that place with \`--key-file\``,
    });
  return { path: copy, from: "there" };
}

/** The request that a recipe and its answers come to. Throws `config-invalid` when they yield no valid configuration. */
export async function requestOf(
  recipe: Recipe,
  choices: Choices,
  more: { readonly keyFile: WantedKey | null; readonly service: WantedService | null; readonly convert: boolean },
  world: InitWorld,
): Promise<SetupRequest> {
  const { source, env } = world;
  const { toml, credentials } = renderRecipe(recipe, choices);
  const config = parseConfig(toml, { sourcePath: source.path, env });
  const current = await currentText(source);
  return {
    config,
    toml: current === toml ? null : toml,
    keepOldAs: current === null || current === toml ? null : await freeNameFor(source.path),
    credentials,
    keyFile: more.keyFile,
    convert: more.convert ? await databasesToConvert(config) : [],
    service: more.service,
  };
}

/** The service for a configuration that somebody wrote. Throws `config-invalid`, and `not-found` when there is none. */
export async function requestForWritten(service: WantedService, world: InitWorld): Promise<SetupRequest> {
  const { source, env } = world;
  const config = parseConfig(await readConfigText(source), { sourcePath: source.path, env });
  return { config, toml: null, keepOldAs: null, credentials: null, keyFile: null, convert: [], service };
}

/** The configuration that is there; null: none is. Throws as `readConfigText`. */
export async function currentText(source: ConfigSource): Promise<string | null> {
  return (await statOrNull(source.path)) === null ? null : await readConfigText(source);
}

async function freeNameFor(path: string): Promise<string> {
  for (let i = 0; ; i++) {
    const name = `${path}.old${i === 0 ? "" : `.${i}`}`;
    if ((await statOrNull(name)) === null) return name;
  }
}

/** Who owns the database's file, or else the directory that it will be in; null: nobody that has a name here. */
export async function ownerOf(databasePath: string, people: People): Promise<string | null> {
  const place = await nearestExisting(databasePath);
  const info = await statOrNull(place);
  return info === null ? null : (people.account(String(info.uid))?.name ?? null);
}
