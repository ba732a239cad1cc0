import { resolve } from "node:path";
import { explainConfig, holdsSecrets } from "../../config/explain.ts";
import { configSource, readConfigText } from "../../config/source.ts";
import { runDoctor } from "../../setup/doctor.ts";
import { allChecks, type Level, worstLevel } from "../../setup/doctor-report.ts";
import { doctorText } from "../../setup/doctor-text.ts";
import { readPeople } from "../../setup/doctor-users.ts";
import { Prompts } from "../../setup/init-prompts.ts";
import type { InitFlags, InitWorld } from "../../setup/init-request.ts";
import { requestUnattended } from "../../setup/init-unattended.ts";
import { runWizard } from "../../setup/init-wizard.ts";
import type { Recipe } from "../../setup/recipe.ts";
import { RecipeShelf, readRecipe } from "../../setup/recipe-shelf.ts";
import { planSetup, type SetupPlan, type SetupRequest } from "../../setup/setup-plan.ts";
import { applySteps } from "../../setup/setup-steps.ts";
import { lookAtService } from "../../setup/system-service.ts";
import { BakeliteError, describeError } from "../../util/errors.ts";
import { printable } from "../../util/printable.ts";
import { mayColour } from "../../util/text-output.ts";
import type { Command, CommandContext } from "../command.ts";
import type { OptionValues } from "../option-values.ts";

export const command: Command = {
  usage:
    "[--recipe <name> | --recipe-file <path>] [--yes] [--force] [--db-path <path>] [--db-name <name>] [--backup-dir <path>] [--encrypt] [--key-file <path>] [--service-user <user>] [--service-group <group>] [--enable]",
  description: [
    "On a terminal it asks its way from nothing to a running backup: where the backups go, which database, whether to encrypt, and which user the service runs as. It tests the destination, shows every change and makes none before all are agreed to. Ctrl-C at any question leaves everything as it was, and it can be run again.",
    "With --yes it asks nothing. With --db-path it sets up everything: configuration, key, backup directory, systemd drop-in and service. With --recipe alone it writes a starter configuration to edit. With neither, --service-user and --enable set up the service for a configuration that is there.",
  ],
  options: [
    {
      name: "recipe",
      value: "name",
      description: "The recipe: local, s3, s3-local, encrypted-worm, multi-db, sftp or one of yours",
    },
    {
      name: "recipe-file",
      value: "path",
      description: "A recipe from anywhere, <name>.recipe with <name>.toml beside it",
    },
    { name: "yes", description: "Ask nothing" },
    {
      name: "force",
      description: "Replace a configuration that is there; the old one is kept beside it, and a key is never replaced",
    },
    { name: "db-path", value: "path", description: "The database to back up" },
    {
      name: "db-name",
      value: "name",
      description: "The name to store it under; its file's name without the ending by default",
    },
    { name: "backup-dir", value: "path", description: "The directory for backups; /var/backups/bakelite by default" },
    { name: "encrypt", description: "Encrypt what is stored, with a new key if none is there" },
    { name: "key-file", value: "path", description: "Encrypt with the key in this file" },
    { name: "service-user", value: "user", description: "Run the service as this user, by a systemd drop-in" },
    { name: "service-group", value: "group", description: "And as this group; the user's own by default" },
    { name: "enable", description: "Start the service now and at every boot" },
  ],
  examples: [
    { comment: "Ask me", command: "sudo bakelite init" },
    { comment: "A starter configuration to edit", command: "sudo bakelite init --recipe s3 --yes" },
    {
      comment: "Everything at once, encrypted, as the application's user",
      command: "sudo bakelite init --yes --db-path /var/lib/app/app.db --encrypt --service-user app --enable",
    },
    {
      comment: "The service for a configuration that you wrote",
      command: "sudo bakelite init --yes --service-user app --enable",
    },
  ],
  async run(context) {
    const { flags, options, env, stdout, stderr, signal } = context;
    if (flags.db !== undefined)
      throw new BakeliteError("usage", "init has no `--db`: the name of the new database is `--db-name`");
    const given = readFlags(options);
    const isUnattended = options.has("yes");
    if (!isUnattended) refuseWithoutTerminal(context);
    const world: InitWorld = {
      source: configSource(flags.config, env),
      env,
      people: await readPeople(),
      system: await lookAtService(env),
      signal,
    };
    const shelf = await RecipeShelf.open(env);
    const recipe = await chosenRecipe(options, shelf, given);
    if (!isUnattended) {
      const wizard = await runWizard(given, { shelf, recipe }, world, new Prompts(signal));
      if (wizard === null) return 1;
      return await setUp(wizard.request, wizard.plan, [], context);
    }
    const { request, toEdit } = await requestUnattended(given, recipe, world);
    const plan = await planSetup(request, world.people, world.system);
    if (!flags.json) stderr.write(printable(`setting up ${request.config.sourcePath}\n`, "\n"));
    return await setUp(request, plan, toEdit, context);

    async function setUp(
      wanted: SetupRequest,
      { steps, notes }: SetupPlan,
      placeholders: readonly string[],
      { clock }: CommandContext,
    ): Promise<number> {
      const say = (line: string) => {
        if (!flags.json) stdout.write(`${printable(line)}\n`);
      };
      const failures: string[] = [];
      await applySteps(
        steps,
        {
          done: ({ what }) => say(`done: ${what}`),
          failed: ({ what }, error) => {
            failures.push(`${what}: ${describeError(error)}`);
            stderr.write(printable(`warning: could not ${what}: ${describeError(error)}${hintOf(error)}\n`, "\n"));
          },
        },
        signal,
      );
      for (const note of notes) say(`note: ${note}`);
      const { config } = wanted;
      let outcome: Level | null = null;
      if (placeholders.length === 0) {
        const toml = await readConfigText({ path: config.sourcePath, namedBy: "--config" });
        const report = await runDoctor({
          config,
          databases: config.databases,
          holdsSecrets: holdsSecrets(explainConfig(toml, config)),
          env,
          nowMs: clock.nowMs(),
          signal,
        });
        outcome = worstLevel(allChecks(report));
        if (!flags.json) stdout.write(`\n${doctorText(report, { colour: mayColour(stdout, env) })}`);
      }
      if (flags.json)
        stdout.write(
          `${JSON.stringify({ config: config.sourcePath, key_file: keyFileOf(wanted), steps: steps.map(({ what }) => what), notes, failures, to_edit: placeholders, doctor: outcome }, null, 2)}\n`,
        );
      else for (const line of nextSteps(wanted, placeholders)) say(line);
      return failures.length > 0 || outcome === "fail" ? 1 : 0;
    }
  },
};

function readFlags(options: OptionValues): InitFlags {
  const path = (name: string) => {
    const text = options.text(name);
    return text === undefined ? undefined : resolve(text);
  };
  return {
    dbPath: path("db-path"),
    dbName: options.text("db-name"),
    backupDirectory: path("backup-dir"),
    encrypt: options.has("encrypt"),
    keyFile: path("key-file"),
    serviceUser: options.text("service-user"),
    serviceGroup: groupOf(options),
    enable: options.has("enable"),
    force: options.has("force"),
  };
}

function groupOf(options: OptionValues): string | undefined {
  const group = options.text("service-group");
  if (group !== undefined && !options.has("service-user"))
    throw new BakeliteError("usage", "`--service-group` only goes with `--service-user`");
  return group;
}

/** A prompt on something that is no terminal would wait for ever. */
function refuseWithoutTerminal({ stdout, flags }: CommandContext): void {
  if (flags.json)
    throw new BakeliteError("usage", "`--json` only goes with `--yes`: there is a conversation otherwise");
  if (stdout.isTerminal && process.stdin.isTTY === true) return;
  throw new BakeliteError("usage", "init asks questions, and there is no terminal to ask on", {
    hint: "add `--yes` with --db-path <file> for a complete setup, or with --recipe <name> for a starter configuration",
  });
}

async function chosenRecipe(options: OptionValues, shelf: RecipeShelf, given: InitFlags): Promise<Recipe | null> {
  const [name, file] = [options.text("recipe"), options.text("recipe-file")];
  if (name !== undefined && file !== undefined)
    throw new BakeliteError("usage", "`--recipe` and `--recipe-file` cannot stand together; give one of them");
  if (file !== undefined) return await readRecipe(resolve(file));
  if (name !== undefined) return await shelf.recipe(name);
  return options.has("yes") && given.dbPath !== undefined ? await shelf.recipe("local") : null;
}

function hintOf(error: unknown): string {
  return error instanceof BakeliteError && error.hint !== undefined ? `\n  hint: ${error.hint}` : "";
}

function keyFileOf({ config }: SetupRequest): string | null {
  for (const { encryption } of config.databases) if (encryption.mode === "key-file") return encryption.keyFile;
  return null;
}

function nextSteps(request: SetupRequest, toEdit: readonly string[]): readonly string[] {
  const { config, keyFile, service } = request;
  const lines: string[] = [""];
  if (keyFile?.from === "new")
    lines.push(
      `Keep a copy of ${keyFile.path} off this host and apart from the backups: without it they cannot be read.`,
    );
  if (toEdit.length > 0)
    return [
      ...lines,
      `Now edit ${config.sourcePath}: ${toEdit.join(", ")}. Then: bakelite doctor, and bakelite init --yes --service-user <user> --enable`,
    ];
  const flag = config.sourcePath === "/etc/bakelite/bakelite.toml" ? "" : ` --config ${config.sourcePath}`;
  const started = service?.isEnabled === true;
  return [
    ...lines,
    ...(started
      ? []
      : [`Start it: ${service === null ? `bakelite daemon${flag}` : "systemctl enable --now bakelite"}`]),
    `Look at it: bakelite status${flag}`,
    `See what can be restored: bakelite list${flag}`,
    `Prove that it restores: bakelite verify --deep${flag}`,
  ];
}
