import { dirname, join } from "node:path";
import { databaseName } from "../config/values.ts";
import { BakeliteError } from "../util/errors.ts";
import {
  currentText,
  type InitFlags,
  type InitWorld,
  proposedName,
  requestForWritten,
  requestOf,
  wantedKey,
  whyNoDatabase,
} from "./init-request.ts";
import type { Recipe } from "./recipe.ts";
import type { ChosenDatabase } from "./recipe-render.ts";
import { type ServiceUser, type SetupRequest, serviceUser, type WantedService } from "./setup-plan.ts";

/** What the placeholders of a starter configuration stand for, so that a person finds them. */
export interface Unattended {
  readonly request: SetupRequest;
  /** What has to be changed by hand before it can be used; empty: the setup is complete. */
  readonly toEdit: readonly string[];
}

const BACKUP_DIRECTORY = "backup_dir";
const STARTER_DATABASE: ChosenDatabase = { name: "app", path: "/var/lib/app/app.db" };

/**
 * What the flags ask for, with no question asked: a complete setup with `dbPath`, a starter configuration from a recipe without it,
 * and with neither the service for the configuration that is there. Throws `usage` for what the flags cannot express, and
 * `output-exists` for a configuration that is there, unless forced.
 */
export async function requestUnattended(
  flags: InitFlags,
  recipe: Recipe | null,
  world: InitWorld,
): Promise<Unattended> {
  const user =
    flags.serviceUser === undefined ? null : serviceUser(world.people, flags.serviceUser, flags.serviceGroup);
  const service = user === null && !flags.enable ? null : { user, isEnabled: flags.enable, timers: [] };
  if (recipe === null) {
    if (service === null)
      throw new BakeliteError("usage", "`--yes` needs to know what to set up", {
        hint: "give --db-path <file> for a complete setup, --recipe <name> for a starter configuration, or --service-user and --enable for a configuration that you wrote",
      });
    refuseUseless(flags, ["dbName", "backupDirectory", "keyFile"], "--db-path");
    if (flags.encrypt) throw needs("--encrypt", "--db-path");
    return { request: await requestForWritten(service, world), toEdit: [] };
  }
  await refuseOverwriting(flags, world);
  return flags.dbPath === undefined
    ? await starter(flags, recipe, service, world)
    : await complete({ ...flags, dbPath: flags.dbPath }, { recipe, user, service }, world);
}

async function refuseOverwriting({ force }: InitFlags, { source }: InitWorld): Promise<void> {
  if (force || (await currentText(source)) === null) return;
  throw new BakeliteError("output-exists", "there is a configuration already", {
    subject: source.path,
    hint: "add `--force` to replace it (the old one is kept beside it), or leave out --db-path and --recipe to set up the service for it",
  });
}

async function complete(
  flags: InitFlags & { readonly dbPath: string },
  {
    recipe,
    user,
    service,
  }: { readonly recipe: Recipe; readonly user: ServiceUser | null; readonly service: WantedService | null },
  world: InitWorld,
): Promise<Unattended> {
  const { dbPath, encrypt } = flags;
  const name = flags.dbName ?? proposedName(dbPath);
  if (name === undefined)
    throw new BakeliteError("usage", "the file's name cannot be the database's name: give one with `--db-name`", {
      subject: dbPath,
    });
  if (!databaseName.safeParse(name).success)
    throw new BakeliteError("usage", `\`--db-name\`: ${JSON.stringify(name)} is not letters, digits, "-", "_" and "."`);
  const problem = await whyNoDatabase(dbPath);
  if (problem !== null)
    throw new BakeliteError("usage", `\`--db-path\` cannot be backed up: ${problem}`, { subject: dbPath });
  const answers = new Map<string, string>();
  for (const { name: question, default: proposed, optional, needs, kind } of recipe.questions) {
    const given = question === BACKUP_DIRECTORY && kind === "directory" ? flags.backupDirectory : undefined;
    const answer = given ?? proposed ?? "";
    if (answer === "" && !optional && (needs === undefined || (answers.get(needs) ?? "") !== ""))
      throw new BakeliteError("usage", `the recipe ${recipe.name} asks for ${question}, which no flag can answer`, {
        hint: "run init on a terminal without --yes; or leave out --db-path for a starter configuration to edit, then use --service-user and --enable",
      });
    answers.set(question, answer);
  }
  if (flags.backupDirectory !== undefined && !recipe.questions.some((question) => question.name === BACKUP_DIRECTORY))
    throw new BakeliteError(
      "usage",
      `the recipe ${recipe.name} has no directory for backups, so \`--backup-dir\` means nothing`,
    );
  const configDirectory = dirname(world.source.path);
  const isSealed = encrypt || flags.keyFile !== undefined || recipe.encryption === "always";
  if (isSealed && recipe.encryption === "never")
    throw new BakeliteError("usage", `the recipe ${recipe.name} does not encrypt`);
  const wanted = {
    path: flags.keyFile ?? join(configDirectory, "key.txt"),
    mayMake: flags.keyFile === undefined || encrypt,
  };
  const keyFile = isSealed ? await wantedKey({ ...wanted, configDirectory }, user, world.people) : null;
  const choices = {
    databases: [{ name, path: dbPath }],
    answers,
    keyFile: keyFile?.path ?? null,
    configDirectory,
  };
  return { request: await requestOf(recipe, choices, { keyFile, service, convert: true }, world), toEdit: [] };
}

async function starter(
  flags: InitFlags,
  recipe: Recipe,
  service: WantedService | null,
  world: InitWorld,
): Promise<Unattended> {
  if (service !== null)
    throw new BakeliteError("usage", "a starter configuration has to be edited before a service can run it", {
      hint: "leave out --service-user and --enable now; run `bakelite init --yes --service-user <user> --enable` after editing",
    });
  refuseUseless(flags, ["dbName"], "--db-path");
  const answers = new Map<string, string>();
  const toEdit = [`name and path of [[database]]`];
  for (const { name, kind, default: proposed, example, optional } of recipe.questions) {
    const given = name === BACKUP_DIRECTORY && kind === "directory" ? flags.backupDirectory : undefined;
    // What nobody needs is left out rather than made up.
    answers.set(name, given ?? proposed ?? (optional || kind === "secret" ? "" : (example ?? `EDIT-${name}`)));
    if (given === undefined && !optional && kind !== "secret") toEdit.push(name);
  }
  const configDirectory = dirname(world.source.path);
  const isSealed = flags.encrypt || flags.keyFile !== undefined || recipe.encryption === "always";
  const wanted = {
    path: flags.keyFile ?? join(configDirectory, "key.txt"),
    mayMake: flags.keyFile === undefined || flags.encrypt,
  };
  const keyFile = isSealed ? await wantedKey({ ...wanted, configDirectory }, null, world.people) : null;
  const choices = { databases: [STARTER_DATABASE], answers, keyFile: keyFile?.path ?? null, configDirectory };
  return { request: await requestOf(recipe, choices, { keyFile, service: null, convert: false }, world), toEdit };
}

const FLAG_NAMES = { dbName: "--db-name", backupDirectory: "--backup-dir", keyFile: "--key-file" } as const;

function refuseUseless(flags: InitFlags, names: readonly (keyof typeof FLAG_NAMES)[], without: string): void {
  for (const name of names) if (flags[name] !== undefined) throw needs(FLAG_NAMES[name], without);
}

function needs(flag: string, other: string): BakeliteError {
  return new BakeliteError("usage", `\`${flag}\` only goes with \`${other}\``);
}
