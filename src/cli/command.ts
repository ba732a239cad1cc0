import type { Config, DatabaseConfig } from "../config/types.ts";
import type { Clock } from "../util/clock.ts";
import type { Logger } from "../util/logger.ts";
import type { LogStyle } from "../util/text-logger.ts";
import type { TextOutput } from "../util/text-output.ts";
import type { OptionSpec, OptionValues } from "./option-values.ts";

/** A subcommand. One file in `commands/` exports one as `command`, and a line in `registry.ts` names it. */
export interface Command {
  /** What follows `bakelite <name>`, such as `--output <path> [--force]`; "" for nothing. */
  readonly usage: string;
  /** Paragraphs for `--help`, after the summary of the registry. */
  readonly description?: readonly string[];
  /** Besides the global ones. */
  readonly options: readonly OptionSpec[];
  /** Names of the arguments that it accepts, all of which may be left out; more are an error. None by default. */
  readonly positionals?: readonly string[];
  readonly examples: readonly Example[];
  /** It opens stored objects: a key file that others can read is noted on standard error. False by default. */
  readonly readsObjects?: boolean;
  /**
   * Does the work and resolves to the exit code: 0 fine, 1 failed or trouble found. A thrown BakeliteError is printed
   * and turned into an exit code by the caller.
   */
  run(context: CommandContext): Promise<number>;
}

export interface Example {
  readonly comment: string;
  readonly command: string;
}

export interface GlobalFlags {
  /** `--config`, as given. */
  readonly config: string | undefined;
  /** `--db`: the name of one database. */
  readonly db: string | undefined;
  readonly json: boolean;
  readonly verbose: boolean;
}

/** The world of one run. Nothing in it is a process global, so that a test can give its own. */
export interface CliHost {
  readonly stdout: TextOutput;
  readonly stderr: TextOutput;
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly clock: Clock;
  /** Aborted by SIGINT, SIGTERM and, where the command does not listen for it, SIGHUP, with a BakeliteError of code `interrupted` as the reason. */
  readonly signal: AbortSignal;
}

export interface CommandContext extends CliHost {
  readonly flags: GlobalFlags;
  /** The command's own options. */
  readonly options: OptionValues;
  readonly positionals: readonly string[];
  /** To standard error: warnings, and with `--verbose` everything. */
  readonly logger: Logger;
  /** For a command whose logging is configured. `style` may change later. `--verbose` still shows everything. */
  createLogger(style: LogStyle): Logger;
  /** Reads the configuration that `--config` or the environment names. Throws `config-invalid`. */
  loadConfig(): Promise<Config>;
  /** Every database, or the one that `--db` names. Throws `usage` when there is none of that name. */
  selectDatabases(config: Config): readonly DatabaseConfig[];
  /** The text of `bakelite --help`, or of one command's. Throws `usage` for an unknown command. */
  help(command: string | undefined): Promise<string>;
}
