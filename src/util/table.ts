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
  const lines = [columns.map((column) => column.title), ...rows].map((row) => row.map((cell) => printable(cell)));
  const widths = columns.map((_, i) => lines.reduce((width, row) => Math.max(width, displayWidth(row[i] ?? "")), 0));
  const renderRow = (row: readonly string[]) =>
    columns.map((column, i) => pad(row[i] ?? "", widths[i] ?? 0, column.align)).join("  ");
  return lines.map((row) => `${renderRow(row).trimEnd()}\n`).join("");
}

/** Columns that the text takes on a terminal. */
export function displayWidth(text: string): number {
  return Bun.stringWidth(text);
}

function pad(cell: string, width: number, align: TableColumn["align"]): string {
  const blank = " ".repeat(width - displayWidth(cell));
  return align === "right" ? blank + cell : cell + blank;
}
