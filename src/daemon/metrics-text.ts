/**
 * The Prometheus text exposition format 0.0.4: one `# HELP` and one `# TYPE` line for each series name, then its samples.
 * Source: https://prometheus.io/docs/instrumenting/exposition_formats/ "Text-based format".
 */
export const METRICS_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8";

export type Labels = Readonly<Record<string, string>>;

export interface Sample {
  readonly labels: Labels;
  /** Finite. */
  readonly value: number;
}

/** All samples of one name. */
export interface Family {
  readonly name: string;
  readonly type: "gauge" | "counter";
  /** One sentence. */
  readonly help: string;
  readonly samples: readonly Sample[];
}

/** The text of one scrape. A family without a sample is left out altogether. Pure. */
export function encodeMetrics(families: readonly Family[]): string {
  return families
    .filter(({ samples }) => samples.length > 0)
    .map(encodeFamily)
    .join("");
}

function encodeFamily({ name, type, help, samples }: Family): string {
  const lines = samples.map(({ labels, value }) => `${name}${encodeLabels(labels)} ${formatValue(value)}\n`);
  return `# HELP ${name} ${escapeHelp(help)}\n# TYPE ${name} ${type}\n${lines.join("")}`;
}

function encodeLabels(labels: Labels): string {
  const pairs = Object.entries(labels).map(([name, value]) => `${name}="${escapeLabelValue(value)}"`);
  return pairs.length === 0 ? "" : `{${pairs.join(",")}}`;
}

/** Backslash, double quote and line feed, as the format has it; half a surrogate pair would not be UTF-8. */
export function escapeLabelValue(value: string): string {
  return value.toWellFormed().replaceAll("\\", "\\\\").replaceAll('"', '\\"').replaceAll("\n", "\\n");
}

/** Backslash and line feed. */
function escapeHelp(text: string): string {
  return text.toWellFormed().replaceAll("\\", "\\\\").replaceAll("\n", "\\n");
}

/** Nothing here is finer than a microsecond; whole numbers stay exact. */
function formatValue(value: number): string {
  return Number.isInteger(value) ? String(value) : String(Math.round(value * 1e6) / 1e6);
}
