import type { Config, DatabaseConfig } from "../config/types.ts";
import { buildInfo } from "../util/build-info.ts";
import { BakeliteError } from "../util/errors.ts";
import { printable } from "../util/printable.ts";
import { didYouMean } from "../util/suggest.ts";
import { createTextLogger } from "../util/text-logger.ts";
import type { TextOutput } from "../util/text-output.ts";
import { GLOBAL_OPTIONS, type ParsedArguments, parseArguments, splitCommandLine } from "./arguments.ts";
import type { CliHost, Command, CommandContext, GlobalFlags } from "./command.ts";
import { describeFailure, exitCode, rootFailure } from "./failure.ts";
import { commandHelp, generalHelp, shortHelp } from "./help.ts";
import { OptionValues } from "./option-values.ts";
import { type RegistryEntry, registry } from "./registry.ts";

/** Runs bakelite with the arguments after the program's name. Prints any error and resolves to the exit code. */
export async function runCli(argv: readonly string[], host: CliHost): Promise<number> {
  try {
    return await dispatch(argv, host);
  } catch (error) {
    const failure = rootFailure(error, host.signal);
    host.stderr.write(describeFailure(failure, { verbose: argv.includes("--verbose") || argv.includes("-v") }));
    return exitCode(failure);
  }
}

async function dispatch(argv: readonly string[], host: CliHost): Promise<number> {
  const { command: name, before, after } = splitCommandLine(argv);
  if (name === undefined) return await runWithoutCommand(before, host);
  const entry = findEntry(name);
  const command = await entry.load();
  const where = `for \`bakelite ${entry.name}\``;
  const parsed = parseArguments([...before, ...after], [...GLOBAL_OPTIONS, ...command.options], where);
  if (parsed.values.has("help")) return await printHelp(entry.name, host);
  if (parsed.values.has("version")) return await printVersion(parsed, host);
  checkPositionals(entry, command, parsed);
  return await command.run(createContext(command, parsed, host));
}

async function runWithoutCommand(argv: readonly string[], host: CliHost): Promise<number> {
  const parsed = parseArguments(argv, GLOBAL_OPTIONS, "before the subcommand");
  if (parsed.positionals.length > 0) throw new BakeliteError("usage", "the subcommand must stand before `--`");
  if (parsed.values.has("help")) return await printHelp(undefined, host);
  if (parsed.values.has("version")) return await printVersion(parsed, host);
  host.stderr.write(shortHelp(registry, helpColumns(host)));
  return 2;
}

async function printHelp(name: string | undefined, host: CliHost): Promise<number> {
  host.stdout.write(await helpText(name, host));
  return 0;
}

async function helpText(name: string | undefined, host: CliHost): Promise<string> {
  if (name === undefined) return generalHelp(registry, GLOBAL_OPTIONS, helpColumns(host));
  const entry = findEntry(name);
  return commandHelp(entry, await entry.load(), GLOBAL_OPTIONS, helpColumns(host));
}

/** Lines longer than 100 characters are hard to read, and on a narrow terminal columns need some room. */
function helpColumns(host: CliHost): number {
  return Math.max(60, Math.min(100, host.stdout.columns));
}

/** `--version` is one line; with `--json` it is all that `bakelite version` knows. */
async function printVersion(parsed: ParsedArguments, host: CliHost): Promise<number> {
  if (parsed.values.has("json")) return await dispatch(["version", "--json"], host);
  host.stdout.write(`bakelite ${buildInfo.version}\n`);
  return 0;
}

function findEntry(name: string): RegistryEntry {
  const entry = registry.find((candidate) => candidate.name === name);
  if (entry !== undefined) return entry;
  const names = registry.map((candidate) => candidate.name);
  throw new BakeliteError("usage", `unknown command \`${name}\`${didYouMean(name, names)}`, {
    hint: "run `bakelite --help` for the list of commands",
  });
}

function checkPositionals(entry: RegistryEntry, command: Command, parsed: ParsedArguments): void {
  const unexpected = parsed.positionals[command.positionals?.length ?? 0];
  if (unexpected === undefined) return;
  throw new BakeliteError("usage", `unexpected argument \`${unexpected}\` for \`bakelite ${entry.name}\``, {
    hint: `run \`bakelite ${entry.name} --help\` for what it accepts; a database is named with --db`,
  });
}

function createContext(command: Command, parsed: ParsedArguments, host: CliHost): CommandContext {
  const globals = new OptionValues(GLOBAL_OPTIONS, parsed.values);
  const flags: GlobalFlags = {
    config: globals.text("config"),
    db: globals.text("db"),
    json: globals.has("json"),
    verbose: globals.has("verbose"),
  };
  const createLogger: CommandContext["createLogger"] = (style) =>
    createTextLogger({
      get level() {
        return flags.verbose ? "debug" : style.level;
      },
      get format() {
        return style.format;
      },
      output: host.stderr,
      clock: host.clock,
      // With --json there is no colour anywhere.
      env: flags.json ? { ...host.env, NO_COLOR: "1" } : host.env,
    });
  return {
    ...host,
    stdout: flags.json ? escapingOutput(host.stdout) : host.stdout,
    flags,
    options: new OptionValues(command.options, parsed.values),
    positionals: parsed.positionals,
    logger: createLogger({ level: "warn", format: "text" }),
    createLogger,
    // Imported when asked for: the schema takes longer to load than many commands take to run.
    loadConfig: async () => {
      const config = (await import("../config/load.ts")).loadConfig(flags.config, host.env);
      if (command.readsObjects === true) await noteExposedKeys(await config, flags.db, host.stderr);
      return config;
    },
    selectDatabases: (config) => selectDatabases(config, flags.db),
    help: (name) => helpText(name, host),
  };
}

/** JSON leaves some control characters as they are. In its strings `\u009b` means the same, and moves no cursor. */
function escapingOutput(output: TextOutput): TextOutput {
  return {
    isTerminal: output.isTerminal,
    columns: output.columns,
    write: (text) => output.write(printable(text, "\n")),
  };
}

/** Once for each key file that this run may read. */
async function noteExposedKeys(config: Config, db: string | undefined, stderr: TextOutput): Promise<void> {
  const { describeExposure, keyFileExposure } = await import("../config/key-file.ts");
  const paths = new Set<string>();
  for (const { name, encryption } of config.databases)
    if (encryption.mode === "key-file" && (db === undefined || db === name)) paths.add(encryption.keyFile);
  for (const path of paths) {
    const exposure = await keyFileExposure(path);
    if (exposure !== null) stderr.write(`note: ${printable(describeExposure(exposure))}\n`);
  }
}

function selectDatabases(config: Config, name: string | undefined): readonly DatabaseConfig[] {
  if (name === undefined) return config.databases;
  const selected = config.databases.filter((database) => database.name === name);
  if (selected.length > 0) return selected;
  const names = config.databases.map((database) => database.name);
  throw new BakeliteError("usage", `no database named \`${name}\` is configured${didYouMean(name, names)}`, {
    subject: config.sourcePath,
    hint: `configured: ${names.slice(0, 20).join(", ")}${names.length > 20 ? ", …" : ""}`,
  });
}
