/** One dependency of a source file, as written in it. */
export interface SourceImport {
  readonly specifier: string;
  /** A worker runs in a module graph of its own: it counts for floors, not for cycles. */
  readonly kind: "module" | "worker";
}

/** What the rules of the house need to know about one source file. */
export interface SourceFacts {
  readonly imports: readonly SourceImport[];
  /** Habits that some rule forbids somewhere, by name. */
  readonly habits: ReadonlySet<Habit>;
}

export type Habit = keyof typeof HABITS;

/** Words of the code itself; `exports everything` is `export * from`. */
const HABITS = {
  "calls process.exit": /\bprocess\.exit\s*\(/,
  "exports everything": /^export \*/m,
  "computes an import": /\b(?:import|require)\((?!\s*["'])/,
  "starts a worker by path": /\bnew Worker\(\s*(?:["'`]|new URL\b)/,
  "reads the clock": /\bDate\.now\(|\bnew Date\(\)|\bperformance\.now\(/,
  "draws randomness": /\bMath\.random\(|\brandomBytes\(|\brandomUUID\(|\bgetRandomValues\(/,
  "touches the world": /\bfetch\(|\bBun\.(?:file|write|spawn|spawnSync|serve|connect|listen|env)\b|\bprocess\.env\b/,
} as const;

// Formatted code begins these statements in the first column. `[\w\s{},*$]` keeps a match from running past the
// statement: no other code consists of these characters only.
const STATIC_IMPORT = /^(?:import|export)\s(?:[\w\s{},*$]*?\sfrom\s)?\s*"([^"\n]+)"/gm;
const DYNAMIC_IMPORT = /\b(?:import|require)\(\s*["']([^"'\n]+)["']/g;
const WORKER = /\bworkerUrl\(\s*"([^"\n]+)"/g;

/** Reads the facts off the text of one formatted source file. Imports of types count as imports. */
export function readSourceFacts(source: string): SourceFacts {
  const code = withoutComments(source);
  const modules = [...matches(code, STATIC_IMPORT), ...matches(code, DYNAMIC_IMPORT)];
  return {
    imports: [
      ...modules.map((specifier) => ({ specifier, kind: "module" }) as const),
      ...matches(code, WORKER).map((specifier) => ({ specifier, kind: "worker" }) as const),
    ],
    habits: new Set(habitNames().filter((habit) => HABITS[habit].test(code))),
  };
}

function habitNames(): readonly Habit[] {
  // The keys of a constant object are its key type.
  return Object.keys(HABITS) as Habit[];
}

function matches(code: string, pattern: RegExp): readonly string[] {
  return [...code.matchAll(pattern)].flatMap((match) => match[1] ?? []);
}

/** Without the lines that are comments. What stands after code on a line stays, as `//` may be part of a string. */
function withoutComments(source: string): string {
  return source
    .split("\n")
    .filter((line) => !/^\s*(?:\/\/|\/?\*)/.test(line))
    .join("\n");
}
