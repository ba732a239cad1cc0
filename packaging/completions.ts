import { GLOBAL_OPTIONS } from "../src/cli/arguments.ts";
import type { OptionSpec } from "../src/cli/option-values.ts";
import { registry } from "../src/cli/registry.ts";

interface Entry {
  readonly name: string;
  readonly summary: string;
  /** Its own and the global ones. */
  readonly options: readonly OptionSpec[];
}

async function entries(): Promise<readonly Entry[]> {
  return await Promise.all(
    registry.map(async ({ name, summary, load }) => ({
      name,
      summary,
      options: [...(await load()).options, ...GLOBAL_OPTIONS],
    })),
  );
}

/** What is completed for the value of an option. */
function kindOf({ name, value = "" }: OptionSpec): "nothing" | "file" | "database" | "anything" {
  if (value === "") return "nothing";
  if (/path|file|dir/.test(value)) return "file";
  return name === "db" ? "database" : "anything";
}

/** Names of databases, without asking anybody but the file: one `name = "…"` a line, as people write it. */
const NAMES = `sed -n 's/^[[:space:]]*name[[:space:]]*=[[:space:]]*"\\([A-Za-z0-9._-]*\\)".*/\\1/p' "\${BAKELITE_CONFIG:-/etc/bakelite/bakelite.toml}" 2>/dev/null`;

export async function bashCompletion(): Promise<string> {
  const all = await entries();
  const flags = (options: readonly OptionSpec[]) =>
    options.flatMap(({ name, short }) => [`--${name}`, ...(short === undefined ? [] : [`-${short}`])]).join(" ");
  const every = [...new Map(all.flatMap(({ options }) => options.map((option) => [option.name, option]))).values()];
  const taking = (kind: string) =>
    every
      .filter((option) => kindOf(option) === kind)
      .flatMap(({ name, short }) => [`--${name}`, ...(short === undefined ? [] : [`-${short}`])])
      .join("|");
  return `# bash completion for bakelite
_bakelite() {
  local word=\${COMP_WORDS[COMP_CWORD]} previous=\${COMP_WORDS[COMP_CWORD-1]} command="" i
  COMPREPLY=()
  case $previous in
    --db) mapfile -t COMPREPLY < <(compgen -W "$(${NAMES})" -- "$word"); return ;;
    ${taking("file")}) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    ${taking("anything")}) return ;;
  esac
  for ((i = 1; i < COMP_CWORD; i++)); do
    case \${COMP_WORDS[i]} in
      ${all.map(({ name }) => name).join("|")}) command=\${COMP_WORDS[i]}; break ;;
    esac
  done
  local words
  case $command in
${all.map(({ name, options }) => `    ${name}) words="${name === "help" ? `${all.map((entry) => entry.name).join(" ")} ` : ""}${flags(options)}" ;;`).join("\n")}
    *) words="${all.map(({ name }) => name).join(" ")} ${flags(GLOBAL_OPTIONS)}" ;;
  esac
  mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
}
complete -F _bakelite bakelite
`;
}

export async function zshCompletion(): Promise<string> {
  const all = await entries();
  const argument = ({ name, short, value, description }: OptionSpec, kind: ReturnType<typeof kindOf>) => {
    const names = short === undefined ? `--${name}` : `{-${short},--${name}}`;
    const action = {
      nothing: "",
      file: `:${value}:_files`,
      database: `:${value}:_bakelite_databases`,
      anything: `:${value}: `,
    }[kind];
    const text = description.replace(/[[\]:\\]/g, "\\$&").replaceAll("'", "'\\''");
    return short === undefined ? `'${names}[${text}]${action}'` : `${names}'[${text}]${action}'`;
  };
  const list = (options: readonly OptionSpec[]) =>
    options.map((option) => argument(option, kindOf(option))).join(" \\\n        ");
  return `#compdef bakelite
_bakelite_databases() {
  local -a names
  names=(\${(f)"$(${NAMES})"})
  compadd -a names
}
_bakelite() {
  local context state line
  _arguments -C \\
        ${list(GLOBAL_OPTIONS)} \\
        '1:command:->command' '*::argument:->argument'
  case $state in
    command)
      local -a commands
      commands=(
${all.map(({ name, summary }) => `        '${name}:${summary.replaceAll("'", "'\\''").replaceAll(":", "\\:")}'`).join("\n")}
      )
      _describe command commands ;;
    argument)
      case $words[1] in
${all.map(({ name, options }) => `      ${name}) _arguments \\\n        ${list(options)} ;;`).join("\n")}
      esac ;;
  esac
}
_bakelite "$@"
`;
}

export async function fishCompletion(): Promise<string> {
  const all = await entries();
  const quoted = (text: string) => `'${text.replace(/['\\]/g, "\\$&")}'`;
  const line = (condition: string, option: OptionSpec) => {
    const kind = kindOf(option);
    const value = {
      nothing: "",
      file: " -r -F",
      database: ` -x -a ${quoted("(__bakelite_databases)")}`,
      anything: " -x",
    }[kind];
    const short = option.short === undefined ? "" : ` -s ${option.short}`;
    return `complete -c bakelite${condition}${short} -l ${option.name}${value} -d ${quoted(option.description)}`;
  };
  const isGlobal = new Set(GLOBAL_OPTIONS.map(({ name }) => name));
  return `# fish completion for bakelite
function __bakelite_databases
  set -l file /etc/bakelite/bakelite.toml
  set -q BAKELITE_CONFIG; and set file $BAKELITE_CONFIG
  string match -rg '^\\s*name\\s*=\\s*"([A-Za-z0-9._-]*)"' <$file 2>/dev/null
end
complete -c bakelite -f
${GLOBAL_OPTIONS.map((option) => line("", option)).join("\n")}
${all.map(({ name, summary }) => `complete -c bakelite -n __fish_use_subcommand -a ${name} -d ${quoted(summary)}`).join("\n")}
${all
  .flatMap(({ name, options }) =>
    options
      .filter((option) => !isGlobal.has(option.name))
      .map((option) => line(` -n ${quoted(`__fish_seen_subcommand_from ${name}`)}`, option)),
  )
  .join("\n")}
`;
}
