import { expect } from "bun:test";
import { Semaphore } from "../../src/util/semaphore.ts";
import { executablePath } from "../support/executable.ts";

/** How one run of the executable ended, and what it printed. */
export interface Outcome {
  readonly argv: readonly string[];
  /** null: it had to be killed, or a signal ended it. */
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface RunOptions {
  /** All of the environment but PATH. */
  readonly env?: Readonly<Record<string, string>>;
  readonly cwd?: string;
  /** Stands before the executable: a program that starts another. */
  readonly launcher?: readonly string[];
}

/** Nothing that is tried wrongly may take as long as this, however busy the machine is. */
const DEADLINE_MS = 20_000;
const slots = new Semaphore(8);

/** Runs the executable to its end, at most eight at a time, with nothing on standard input and no terminal. */
export async function run(
  argv: readonly string[],
  { env = {}, cwd, launcher = [] }: RunOptions = {},
): Promise<Outcome> {
  using _slot = await slots.acquire();
  const child = Bun.spawn([...launcher, executablePath(), ...argv], {
    env: { PATH: process.env["PATH"], ...env },
    ...(cwd !== undefined && { cwd }),
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
    timeout: DEADLINE_MS,
    killSignal: "SIGKILL",
  });
  const [stdout, stderr] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  return { argv, code: child.exitCode, stdout, stderr };
}

/** Root may read everything, unless it gives up its capabilities. */
export const WITHOUT_CAPABILITIES = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] as const;

/** undefined where permissions cannot be tried: as root without setpriv. */
export function unprivilegedLauncher(): readonly string[] | undefined {
  if (process.geteuid?.() !== 0) return [];
  return Bun.which("setpriv") === null ? undefined : WITHOUT_CAPABILITIES;
}

/** Words that only a fault of ours, or text that nobody looked at, puts in front of a person. */
const UNFIT = /\n\s+at |invariant|fault in bakelite|undefined|\[object|NaN|TypeError|RangeError|ZodError/;

/**
 * Nothing on standard output; on standard error one sentence behind `bakelite: `, or a list of problems of which each
 * has a line, then at most one hint; no stack trace, and no control character. `says` is part of the sentence.
 */
export function expectRefused(
  outcome: Outcome,
  { code, says }: { readonly code: number; readonly says: string },
): void {
  const { stdout, stderr } = outcome;
  const shown = `${JSON.stringify(outcome.argv)}\n${stderr}`;
  expect({ shown, code: outcome.code, stdout }).toEqual({ shown, code, stdout: "" });
  const lines = stderr.split("\n");
  expect({ shown, end: lines.pop() }).toEqual({ shown, end: "" });
  const hints = lines.filter((line) => line.startsWith("  hint: "));
  expect({ shown, hints: Math.min(1, hints.length) }).toEqual({ shown, hints: hints.length });
  const [sentence = "", ...others] = lines.filter((line) => !line.startsWith("  hint: "));
  expect({ shown, begins: sentence.startsWith("bakelite: ") }).toEqual({ shown, begins: true });
  // A list is announced by its number, and each of its lines has a place in a file.
  const announced = Number(/, (\d+) problems:$/.exec(sentence)?.[1] ?? 0);
  expect({ shown, listed: others.length }).toEqual({ shown, listed: announced });
  for (const line of others) expect(line).toMatch(/^ {2}\/.*:\d+:\d+: ./);
  expect(shown).toContain(says);
  expect(stderr).not.toMatch(UNFIT);
  expect(stderr.replaceAll("\n", "")).not.toMatch(/[\p{Cc}\u2028\u2029\u202a-\u202e\u2066-\u2069]/u);
}

/** A configuration with the databases `app` and `billing`, whose paths and destinations lie in `directory`. */
export function plainConfig(directory: string): string {
  return ["app", "billing"]
    .map(
      (name) => `[[database]]
name = "${name}"
path = "${directory}/${name}.db"

  [[database.backends]]
  type = "file"
  path = "${directory}/replica"
`,
    )
    .join("\n");
}
