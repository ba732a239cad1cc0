import { printable } from "./printable.ts";

export interface TableColumn {
  readonly title: string;
  /** "left" by default; numbers read better to the right. */
  readonly align?: "left" | "right";
}

/**
 * A table with aligned columns, two spaces apart, without trailing spaces; every line ends in a newline. A row may have
 * fewer cells than there are columns. Widths are those on a terminal (CJK and emoji take two columns), and control
 * characters are shown as escapes.
 */
export function formatTable(columns: readonly TableColumn[], rows: readonly (readonly string[])[]): string {
  return [...formatTableLines(columns, () => rows)].join("");
}

/** As `formatTable`, line by line, for tables that are too long to stand in memory: `rows` is called twice, and gives the same each time. */
export function* formatTableLines(
  columns: readonly TableColumn[],
  rows: () => Iterable<readonly string[]>,
): Generator<string> {
  const widths = columns.map(({ title }) => displayWidth(printable(title)));
  for (const row of rows())
    for (const [i, cell] of row.entries())
      if (i < widths.length) widths[i] = Math.max(widths[i] ?? 0, displayWidth(printable(cell)));
  const renderRow = (row: readonly string[]) => {
    const cells = columns.map((column, i) => pad(printable(row[i] ?? ""), widths[i] ?? 0, column.align));
    return `${cells.join("  ").trimEnd()}\n`;
  };
  yield renderRow(columns.map(({ title }) => title));
  for (const row of rows()) yield renderRow(row);
}

/** Columns that the text takes on a terminal. */
export function displayWidth(text: string): number {
  return Bun.stringWidth(text);
}

function pad(cell: string, width: number, align: TableColumn["align"]): string {
  const blank = " ".repeat(width - displayWidth(cell));
  return align === "right" ? blank + cell : cell + blank;
}
