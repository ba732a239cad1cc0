import { printable } from "../util/printable.ts";
import { displayWidth } from "../util/table.ts";
import { allChecks, type Check, countLevels, type DoctorReport, type Level } from "./doctor-report.ts";

const COLOURS: Readonly<Record<Level, number>> = { pass: 32, warn: 33, fail: 31 };
/** A failure is to be found at a glance where there is no colour too. */
const WORDS: Readonly<Record<Level, string>> = { pass: "pass", warn: "warn", fail: "FAIL" };
const INDENT = "  ";

/**
 * The report for people: what concerns the host, then each database with its destinations; a line for each check, a second
 * one with the fix where something is wrong, and the counts at the end. Pure.
 */
export function doctorText(report: DoctorReport, { colour }: { readonly colour: boolean }): string {
  const width = Math.max(...allChecks(report).map(({ check }) => displayWidth(printable(check))));
  const render = (checks: readonly Check[], indent: string) =>
    checks.flatMap((check) => checkLines(check, { indent, width, colour }));
  const lines = [
    `host${describeUser(report)}`,
    ...render(report.host, INDENT),
    ...report.databases.flatMap(({ name, path, checks, destinations }) => [
      "",
      printable(`${name}  ${path}`),
      ...render(checks, INDENT),
      ...destinations.flatMap(({ location, async, checks }) => [
        printable(`${INDENT}${location}${async ? " (background mirror)" : ""}`),
        ...render(checks, INDENT + INDENT),
      ]),
    ]),
    "",
    summary(report),
  ];
  return `${lines.join("\n")}\n`;
}

function describeUser({ user, service }: DoctorReport): string {
  const who = user === null ? "" : `, for the user ${user}`;
  return printable(`${who}${service === null ? "" : ` of ${service}`}`);
}

interface LineStyle {
  readonly indent: string;
  /** Of the column with the checks' names. */
  readonly width: number;
  readonly colour: boolean;
}

function checkLines({ check, level, message, fix }: Check, { indent, width, colour }: LineStyle): readonly string[] {
  const word = colour ? `\u001b[${COLOURS[level]}m${WORDS[level]}\u001b[0m` : WORDS[level];
  const name = printable(check);
  const lead = `${indent}${word}  ${name}${" ".repeat(width - displayWidth(name))}  `;
  const line = `${lead}${printable(message)}`;
  // Under the message, where the eye is.
  const below = " ".repeat(indent.length + WORDS[level].length + width + 4);
  return fix === null ? [line] : [line, `${below}fix: ${printable(fix)}`];
}

/** `1 failure, 2 warnings, 31 passed`; what there is none of is left out, but for what passed. */
function summary(report: DoctorReport): string {
  const counts = countLevels(allChecks(report));
  const parts = [
    ...(counts.fail === 0 ? [] : [`${counts.fail} ${counts.fail === 1 ? "failure" : "failures"}`]),
    ...(counts.warn === 0 ? [] : [`${counts.warn} ${counts.warn === 1 ? "warning" : "warnings"}`]),
    `${counts.pass} passed`,
  ];
  return parts.join(", ");
}
