import type { Command } from "./command.ts";
import type { OptionSpec } from "./option-values.ts";
import type { RegistryEntry } from "./registry.ts";

const TAGLINE = "bakelite: continuous point-in-time backup for SQLite";

/** The help of bakelite itself, wrapped at `columns`. */
export function generalHelp(
  registry: readonly RegistryEntry[],
  globals: readonly OptionSpec[],
  columns: number,
): string {
  return sections([
    TAGLINE,
    "Usage: bakelite [flags] <command> [flags]",
    `Commands:\n${twoColumns(
      registry.map(({ name, summary }) => [name, summary]),
      columns,
    )}`,
    `Flags, before or after the command:\n${optionList(globals, columns)}`,
    wrap("Run `bakelite <command> --help` for its options and examples.", columns),
  ]);
}

/** What a bare `bakelite` prints. */
export function shortHelp(registry: readonly RegistryEntry[], columns: number): string {
  return sections([
    "Usage: bakelite [flags] <command> [flags]",
    wrap(`Commands: ${registry.map(({ name }) => name).join(", ")}`, columns),
    wrap("Run `bakelite --help` for all of it.", columns),
  ]);
}

/** The help of one command, wrapped at `columns`. */
export function commandHelp(
  entry: RegistryEntry,
  command: Command,
  globals: readonly OptionSpec[],
  columns: number,
): string {
  const usage = `Usage: bakelite ${entry.name} ${command.usage}`.trimEnd();
  return sections([
    wrap(`${entry.summary}.`, columns),
    wrap(usage, columns, " ".repeat(`Usage: bakelite ${entry.name} `.length)),
    ...(command.description ?? []).map((paragraph) => wrap(paragraph, columns)),
    command.options.length === 0 ? "" : `Options:\n${optionList(command.options, columns)}`,
    `Global flags:\n${optionList(globals, columns)}`,
    command.examples.length === 0 ? "" : `Examples:\n${command.examples.map(renderExample).join("\n\n")}`,
  ]);
}

/** Breaks `text` at spaces into lines of at most `columns`, all but the first behind `indent`. Longer words stay whole. */
export function wrap(text: string, columns: number, indent = ""): string {
  const lines: string[] = [];
  let line = "";
  for (const word of text.split(/ +/)) {
    if (line !== "" && line.trim() !== "" && line.length + 1 + word.length > columns) {
      lines.push(line);
      line = indent + word;
    } else line = line === "" ? word : `${line} ${word}`;
  }
  return [...lines, line].join("\n");
}

/** Examples are for copying: a command is never wrapped. */
function renderExample({ comment, command }: Command["examples"][number]): string {
  return `  # ${comment}\n  ${command.replaceAll("\n", "\n  ")}`;
}

function optionList(options: readonly OptionSpec[], columns: number): string {
  const rows = options.map(({ name, short, value, description }): [string, string] => {
    const flag = `${short === undefined ? "    " : `-${short}, `}--${name}${value === undefined ? "" : ` <${value}>`}`;
    return [flag, description];
  });
  return twoColumns(rows, columns);
}

function twoColumns(rows: readonly (readonly [string, string])[], columns: number): string {
  const leftWidth = Math.min(32, Math.max(0, ...rows.map(([left]) => left.length)));
  const indent = " ".repeat(leftWidth + 4);
  return rows
    .map(([left, right]) => {
      const start = left.length > leftWidth ? `  ${left}\n${indent}` : `  ${left.padEnd(leftWidth)}  `;
      return start + wrap(right, columns - indent.length).replaceAll("\n", `\n${indent}`);
    })
    .join("\n");
}

function sections(texts: readonly string[]): string {
  return `${texts.filter((text) => text !== "").join("\n\n")}\n`;
}
