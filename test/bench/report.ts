import { formatTable } from "../../src/util/table.ts";

/** What one benchmark found. Plain data: a `--json` file holds it, and the documentation is made of it. */
export interface BenchReport {
  readonly name: BenchName;
  readonly tables: readonly BenchTable[];
  readonly budgets: readonly Budget[];
  /** Whatever else a reader has to know of this run, one sentence each. */
  readonly notes: readonly string[];
}

export const BENCH_NAMES = [
  "rate",
  "lag",
  "full",
  "restore",
  "fleet",
  "idle",
  "catalog",
  "s3",
  "s3-latency",
  "memory",
] as const;
export type BenchName = (typeof BENCH_NAMES)[number];

export interface BenchTable {
  readonly title: string;
  readonly columns: readonly string[];
  /** The first cell of a row says what it is; the others are figures. */
  readonly rows: readonly (readonly string[])[];
}

export interface Budget {
  readonly what: string;
  readonly limit: string;
  readonly measured: string;
  readonly met: boolean;
}

/** The kernel's own threads write back what benchmarks write; what uses more than this is somebody else. */
const QUIET_CPU_SHARE = 0.3;

/** A report and how it came about. */
export interface BenchRun extends BenchReport {
  readonly startedAt: string;
  readonly tookSeconds: number;
  /** CPU time of processes that were not ours, and of the kernel's threads, as a share of one core. */
  readonly otherCpuShare: number;
}

export interface BenchDocument {
  readonly machine: readonly (readonly [string, string])[];
  readonly quick: boolean;
  readonly runs: readonly BenchRun[];
}

export function textOfMachine(document: Pick<BenchDocument, "machine">): string {
  return formatTable(
    [{ title: "MACHINE" }, { title: "" }],
    document.machine.map((row) => [...row]),
  );
}

export function textOfRun(run: BenchRun): string {
  const tables = run.tables.map(({ title, columns, rows }) => {
    const heads = columns.map((column, i) => ({
      title: column.toUpperCase(),
      align: i === 0 ? ("left" as const) : ("right" as const),
    }));
    return `${title}\n${indent(formatTable(heads, rows))}`;
  });
  const budgets = run.budgets.map(
    ({ what, limit, measured, met }) => `  ${met ? "met    " : "NOT MET"}  ${what}: ${measured} (budget ${limit})\n`,
  );
  const notes = run.notes.map((note) => `  ${note}\n`);
  return `== ${run.name} ==\n${[...tables, budgets.join(""), notes.join("")].filter((part) => part !== "").join("\n")}  ${circumstances(run)}\n`;
}

/**
 * `page` with what stands between `<!-- bench:<name> -->` and `<!-- /bench:<name> -->` replaced by what the document says
 * of it: `machine`, `budgets` and each benchmark that was run. Other sections stay as they are. Throws where one of
 * those that were run has no markers.
 */
export function intoPage(page: string, document: BenchDocument): string {
  const sections = new Map<string, string>([
    ["machine", markdownTable(["", ""], document.machine, 2) + companyOf(document.runs)],
  ]);
  for (const run of document.runs) sections.set(run.name, markdownOfRun(run));
  const budgets = document.runs.flatMap((run) => run.budgets.map((budget) => ({ ...budget, name: run.name })));
  if (document.runs.length === BENCH_NAMES.length)
    sections.set(
      "budgets",
      markdownTable(
        ["", "what", "budget", "measured", ""],
        budgets.map(({ name, what, limit, measured, met }) => [
          name,
          what,
          limit,
          measured,
          met ? "met" : "**not met**",
        ]),
        2,
      ),
    );
  let result = page;
  for (const [name, content] of sections) {
    const section = new RegExp(`(<!-- bench:${name} -->\n)[^]*?(<!-- /bench:${name} -->)`);
    if (!section.test(result))
      throw new Error(`the page has no place for ${name}: <!-- bench:${name} --> … <!-- /bench:${name} -->`);
    result = result.replace(section, (_, begin: string, end: string) => `${begin}\n${content}\n${end}`);
  }
  return result;
}

function markdownOfRun(run: BenchRun): string {
  const tables = run.tables.map(({ title, columns, rows }) => `**${title}**\n\n${markdownTable(columns, rows)}`);
  const notes = run.notes.length === 0 ? [] : [run.notes.map((note) => `* ${note}\n`).join("")];
  return [...tables, ...notes, `*${circumstances(run)}*\n`].join("\n");
}

function circumstances({ startedAt, tookSeconds, otherCpuShare }: BenchRun): string {
  const others = Math.max(0, Math.round(otherCpuShare * 100));
  return `Measured ${startedAt.slice(0, 16).replace("T", " ")} UTC in ${Math.round(tookSeconds)} s, while everything else on the machine used ${others} % of one core.`;
}

/** Whether the machine was ours, which no figure shows by itself. */
function companyOf(runs: readonly BenchRun[]): string {
  const most = Math.max(0, ...runs.map((run) => run.otherCpuShare));
  if (most <= QUIET_CPU_SHARE) return "";
  return `\n**This run shared the machine with other work**, which used up to ${Math.round(most * 100)} % of one core: its times are rough, and mostly too long.\n`;
}

/** The first `textColumns` columns are text, and the others figures, which read better to the right. */
function markdownTable(columns: readonly string[], rows: readonly (readonly string[])[], textColumns = 1): string {
  const line = (cells: readonly string[]) => `| ${cells.map((cell) => cell.replaceAll("|", "\\|")).join(" | ")} |\n`;
  const rule = columns.map((_, i) => (i < textColumns ? "---" : "---:"));
  return line(columns) + line(rule) + rows.map(line).join("");
}

function indent(text: string): string {
  return text.replaceAll(/^(?=.)/gm, "  ");
}
