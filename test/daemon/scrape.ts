/** One line of a scrape, with the type that was announced for its name. */
export interface ScrapedSample {
  readonly name: string;
  readonly type: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly value: number;
}

const LINE = /^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$/s;
const LABEL = /([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"(?:,|$)/gs;

/**
 * A reader of the text exposition format, written apart from its writer. Throws for a line that is none, for a name that
 * comes back after another one, without a type, or twice with the same labels.
 */
export function parseMetrics(text: string): readonly ScrapedSample[] {
  if (text !== "" && !text.endsWith("\n")) throw new Error("the last line does not end");
  const types = new Map<string, string>();
  const seen = new Set<string>();
  const samples: ScrapedSample[] = [];
  let current = "";
  for (const line of text.split("\n").slice(0, -1)) {
    const type = /^# TYPE (\S+) (gauge|counter)$/.exec(line);
    if (type?.[1] !== undefined && type[2] !== undefined) {
      if (types.has(type[1])) throw new Error(`${type[1]} is begun twice`);
      types.set(type[1], type[2]);
      current = type[1];
    }
    if (line.startsWith("# ")) continue;
    const [, name = "", labelText = "", number = ""] = LINE.exec(line) ?? [];
    if (name !== current) throw new Error(`not a sample of ${current}: ${line}`);
    if (!/^\d+(?:\.\d+)?(?:e[+-]\d+)?$/.test(number)) throw new Error(`not a value: ${line}`);
    const id = `${name}{${labelText}}`;
    if (seen.has(id)) throw new Error(`twice: ${id}`);
    seen.add(id);
    samples.push({ name, type: types.get(name) ?? "", labels: parseLabels(labelText), value: Number(number) });
  }
  return samples;
}

function parseLabels(text: string): Readonly<Record<string, string>> {
  const matches = [...text.matchAll(LABEL)];
  if (matches.map(([whole]) => whole).join("") !== text) throw new Error(`not labels: ${text}`);
  return Object.fromEntries(
    matches.map(([, name = "", value = ""]) => [
      name,
      value.replace(/\\(.)/gs, (_, escaped: string) => (escaped === "n" ? "\n" : escaped)),
    ]),
  );
}

export interface Promtool {
  run(args: readonly string[], stdin?: string): Promise<{ readonly status: number; readonly output: string }>;
}

/** Prometheus' own judge of formats and rules; null where it is not installed. */
export function promtool(): Promtool | null {
  const path = Bun.which("promtool");
  if (path === null) return null;
  return {
    async run(args, stdin = "") {
      const child = Bun.spawn([path, ...args], { stdin: Buffer.from(stdin), stdout: "pipe", stderr: "pipe" });
      const [out, err, status] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
      return { status, output: `${out}${err}` };
    },
  };
}
