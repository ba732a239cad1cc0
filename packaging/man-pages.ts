import packageJson from "../package.json" with { type: "json" };
import { GLOBAL_OPTIONS } from "../src/cli/arguments.ts";
import type { Command } from "../src/cli/command.ts";
import type { OptionSpec } from "../src/cli/option-values.ts";
import { registry } from "../src/cli/registry.ts";
import { escapeRoff, inlineRoff, markdownToRoff, preformatted } from "./roff.ts";

/** bakelite(1), from what `--help` prints. `day`: `2026-01-31`, of the source. */
export async function programManPage(day: string): Promise<string> {
  const commands: string[] = [];
  for (const entry of registry) {
    const command = await entry.load();
    commands.push(commandSection(entry.name, entry.summary, command));
  }
  return [
    title("BAKELITE", 1, day),
    ".SH NAME",
    "bakelite \\- continuous point-in-time backup for SQLite",
    ".SH SYNOPSIS",
    ".B bakelite\n[\\fIflags\\fR] \\fIcommand\\fR [\\fIflags\\fR]",
    ".SH DESCRIPTION",
    "One daemon watches the write-ahead log of each configured database and ships what was committed within about a second to one or more destinations. A full backup and the change-sets after it restore any recorded moment. Nothing is added to the database, and the application is not changed.",
    ".SH FLAGS\nBefore or after the command:",
    ...GLOBAL_OPTIONS.map(optionEntry),
    ".SH COMMANDS",
    ...commands,
    ".SH EXIT STATUS",
    tagged("\\fB0\\fR", "Fine."),
    tagged("\\fB1\\fR", "The operation failed, or a check found trouble."),
    tagged("\\fB2\\fR", "Wrong usage, or the configuration is invalid."),
    tagged("128+\\fIn\\fR", "Ended by signal \\fIn\\fR."),
    ".SH ENVIRONMENT",
    tagged("\\fBBAKELITE_CONFIG\\fR", "The configuration file, where \\fB\\-\\-config\\fR does not name one."),
    tagged("\\fBBAKELITE_STATE_DIR\\fR", "Where the result of a verify goes on a host that has no such database."),
    tagged("\\fBBAKELITE_RECIPES_DIR\\fR", "Where \\fBbakelite init\\fR looks for recipes first."),
    tagged("\\fBNO_COLOR\\fR", "No colours, whatever the terminal."),
    tagged("\\fBTMPDIR\\fR", "Where \\fBverify \\-\\-deep\\fR restores to."),
    ".SH FILES",
    tagged("\\fI/etc/bakelite/bakelite.toml\\fR", "The configuration."),
    tagged("\\fI/etc/bakelite/recipes/\\fR", "What \\fBbakelite init\\fR offers."),
    tagged("\\fI/etc/bakelite/notify.d/\\fR", "Programs that are told when a unit fails."),
    tagged("\\fI.bakelite/\\fR", "Beside each database: what the daemon keeps and publishes."),
    ".SH SEE ALSO",
    ".BR bakelite.toml (5),\n.BR sqlite3 (1),\n.BR systemd.timer (5)",
    "",
  ].join("\n");
}

/** bakelite.toml(5), from the documentation that a test compares with the schema. */
export function configManPage(markdown: string, day: string): string {
  const body = markdown.replace(/^# .*\n/, "");
  return [
    title("BAKELITE.TOML", 5, day),
    ".SH NAME",
    "bakelite.toml \\- what bakelite backs up, and where to",
    ".SH DESCRIPTION",
    markdownToRoff(body),
    ".SH SEE ALSO",
    ".BR bakelite (1)",
    "",
  ].join("\n");
}

function title(name: string, section: number, day: string): string {
  return `.TH ${name} ${section} "${day}" "bakelite ${packageJson.version}" "bakelite"`;
}

function commandSection(name: string, summary: string, command: Command): string {
  return [
    `.SS "bakelite ${name}"`,
    `${inlineRoff(summary)}.`,
    ...(command.usage === "" ? [] : [`.PP\n\\fBbakelite ${name}\\fR ${escapeRoff(command.usage)}`]),
    ...(command.description ?? []).map((paragraph) => `.PP\n${inlineRoff(paragraph)}`),
    ...command.options.map(optionEntry),
    ...command.examples.map((example) => `.PP\n${inlineRoff(example.comment)}:\n${preformatted(example.command)}`),
  ].join("\n");
}

function optionEntry({ name, short, value, description }: OptionSpec): string {
  const flags = [...(short === undefined ? [] : [`\\fB\\-${short}\\fR`]), `\\fB\\-\\-${escapeRoff(name)}\\fR`].join(
    ", ",
  );
  return tagged(value === undefined ? flags : `${flags} \\fI${escapeRoff(value)}\\fR`, inlineRoff(description));
}

function tagged(tag: string, text: string): string {
  return `.TP\n${tag}\n${text}`;
}
