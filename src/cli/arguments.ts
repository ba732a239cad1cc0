import { cac } from "cac";
import { assert, BakeliteError } from "../util/errors.ts";
import { didYouMean } from "../util/suggest.ts";
import type { OptionSpec } from "./option-values.ts";

/** Accepted before and after the subcommand. */
export const GLOBAL_OPTIONS: readonly OptionSpec[] = [
  {
    name: "config",
    short: "c",
    value: "path",
    description: "Configuration file; else $BAKELITE_CONFIG, else /etc/bakelite/bakelite.toml",
  },
  { name: "db", value: "name", description: "Only this configured database; else every one" },
  { name: "json", description: "One JSON document on standard output" },
  { name: "verbose", short: "v", description: "More detail, and debug logging on standard error" },
  { name: "help", short: "h", description: "Show help" },
  { name: "version", short: "V", description: "Show the version" },
];

export interface CommandLine {
  /** The first argument that is no option, else undefined. */
  readonly command: string | undefined;
  /** What stands before it, and what after. */
  readonly before: readonly string[];
  readonly after: readonly string[];
}

/** Finds the subcommand. Throws `usage` for what cannot stand before one. */
export function splitCommandLine(argv: readonly string[]): CommandLine {
  for (let i = 0; i < argv.length; ) {
    const token = argv[i] ?? "";
    if (!isOption(token)) return { command: token, before: argv.slice(0, i), after: argv.slice(i + 1) };
    if (token === "--") break;
    i += readOption(argv, i, GLOBAL_OPTIONS, "before the subcommand").tokenCount;
  }
  return { command: undefined, before: argv, after: [] };
}

export interface ParsedArguments {
  /** By the option's name; a switch has no values. */
  readonly values: ReadonlyMap<string, readonly string[]>;
  readonly positionals: readonly string[];
}

/**
 * Parses the arguments of one command. Every value stays the text that was typed. `--flag value` and `--flag=value`
 * mean the same; after `--` everything is a positional argument. Throws `usage` for an option that is unknown, given
 * twice, without its value or with a value that it does not take. `where` completes the message: "for `bakelite list`".
 */
export function parseArguments(
  argv: readonly string[],
  options: readonly OptionSpec[],
  where: string,
): ParsedArguments {
  const { canonical, positionals } = canonicalArguments(argv, options, where);
  const cli = cac();
  for (const option of options) cli.option(`--${option.name}${option.value === undefined ? "" : " <value>"}`, "");
  const parsed = cli.parse(["", "", ...canonical], { run: false });
  const values = new Map<string, readonly string[]>();
  for (const [i, option] of options.entries()) {
    const key = cli.globalCommand.options[i]?.name;
    assert(key !== undefined, "cac keeps options in order");
    const found: unknown = parsed.options[key];
    if (found === undefined) continue;
    const texts = option.value === undefined ? [] : [found].flat().map((text) => String(text).slice(GUARD.length));
    if (texts.length > 1 && option.repeatable !== true) throw usage(`\`--${option.name}\` was given more than once`);
    values.set(option.name, texts);
  }
  return { values, positionals };
}

/**
 * Stands before each value. cac turns what looks like a number into one (`--db 007`), takes the next argument for an
 * empty value, and cannot take a value with a dash in front; with a guard none of this applies.
 */
const GUARD = "=";

/** Options spelled in one way, `--name=value` with a guard or `--name=true`; everything that cac would let pass is refused. */
function canonicalArguments(argv: readonly string[], options: readonly OptionSpec[], where: string) {
  const canonical: string[] = [];
  const positionals: string[] = [];
  for (let i = 0; i < argv.length; ) {
    const token = argv[i] ?? "";
    if (token === "--") {
      positionals.push(...argv.slice(i + 1));
      break;
    }
    if (!isOption(token)) {
      positionals.push(token);
      i++;
      continue;
    }
    const { option, value, tokenCount } = readOption(argv, i, options, where);
    canonical.push(value === undefined ? `--${option.name}=true` : `--${option.name}=${GUARD}${value}`);
    i += tokenCount;
  }
  return { canonical, positionals };
}

interface ReadOption {
  readonly option: OptionSpec;
  /** undefined for a switch. */
  readonly value: string | undefined;
  /** 2 when the value was an argument of its own. */
  readonly tokenCount: number;
}

function readOption(argv: readonly string[], at: number, options: readonly OptionSpec[], where: string): ReadOption {
  const [, flag = "", attached] = /^(--?[^=]*)(?:=(.*))?$/s.exec(argv[at] ?? "") ?? [];
  const option = options.find(
    ({ name, short }) => flag === `--${name}` || (short !== undefined && flag === `-${short}`),
  );
  if (option === undefined) throw unknownFlag(flag, options, where);
  if (option.value === undefined) {
    if (attached !== undefined) throw usage(`\`${flag}\` takes no value`);
    return { option, value: undefined, tokenCount: 1 };
  }
  const next = argv[at + 1];
  const value = attached ?? (next !== undefined && !isOption(next) ? next : "");
  if (value === "") {
    const dashed = attached === undefined && next !== undefined && next !== "" && next !== "--";
    throw usage(`\`${flag}\` needs a value: --${option.name} <${option.value}>`, {
      ...(dashed && { hint: `write \`--${option.name}=${next}\` if that is the value` }),
    });
  }
  return { option, value, tokenCount: attached === undefined ? 2 : 1 };
}

/** A lone dash is a value, the usual name of standard input or output. */
function isOption(token: string): boolean {
  return token.startsWith("-") && token !== "-";
}

function unknownFlag(flag: string, options: readonly OptionSpec[], where: string): BakeliteError {
  const suggestion = didYouMean(
    flag.replace(/^-+/, ""),
    options.map((option) => option.name),
    "--",
  );
  const isGlobal = options === GLOBAL_OPTIONS;
  const shorts = [...flag.slice(1)].map((letter) => `-${letter}`);
  const areShorts =
    shorts.length > 1 && shorts.every((short) => options.some((option) => short === `-${option.short}`));
  return usage(`unknown flag \`${flag}\` ${where}${suggestion}`, {
    hint: areShorts
      ? `write each flag by itself: ${shorts.join(" ")}`
      : isGlobal
        ? "flags of a subcommand go after its name"
        : "run the command with --help for the flags it accepts",
  });
}

function usage(message: string, details: { readonly hint?: string } = {}): BakeliteError {
  return new BakeliteError("usage", message, details);
}
