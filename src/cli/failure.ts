import { BakeliteError, describeError } from "../util/errors.ts";
import { printable } from "../util/printable.ts";

/** The signals that end a run, and what the exit code adds to 128 for them. */
export const SIGNAL_NUMBERS = { SIGHUP: 1, SIGINT: 2, SIGTERM: 15 } as const;

/** The reason of an aborted run. */
export class Interrupted extends BakeliteError {
  readonly signal: keyof typeof SIGNAL_NUMBERS;

  constructor(signal: keyof typeof SIGNAL_NUMBERS) {
    super("interrupted", `stopped by ${signal}`);
    this.signal = signal;
  }
}

/** 2 for wrong usage or an invalid configuration, 128+n after a signal, 1 for everything else. */
export function exitCode(error: unknown): number {
  if (error instanceof Interrupted) return 128 + SIGNAL_NUMBERS[error.signal];
  if (!(error instanceof BakeliteError)) return 1;
  switch (error.code) {
    case "usage":
    case "config-invalid":
      return 2;
    case "interrupted":
      return 128 + SIGNAL_NUMBERS.SIGINT;
    default:
      return 1;
  }
}

/**
 * The interruption behind `error`, when the run was aborted and the error came of that; else the error itself. What
 * fails for another reason after a signal keeps its own words.
 */
export function rootFailure(error: unknown, signal: AbortSignal): unknown {
  if (!signal.aborted) return error;
  for (let cause = error; cause instanceof Error; cause = cause.cause) {
    if (cause === signal.reason || cause.name === "AbortError") return signal.reason;
  }
  return error;
}

/** What a person sees of an error: what failed, on what and why, then what to do; with `verbose` the stack traces. */
export function describeFailure(error: unknown, { verbose }: { readonly verbose: boolean }): string {
  const sentence = printable(describeError(error), listsProblems(error) ? "\n" : "");
  const lines = [`bakelite: ${isUsage(error) ? shortened(sentence) : sentence}`];
  const hint = nearestHint(error);
  if (hint !== undefined) lines.push(`  hint: ${printable(hint)}`);
  if (verbose) {
    for (let cause = error; cause instanceof Error; cause = cause.cause) lines.push(printable(cause.stack ?? "", "\n"));
  } else if (!(error instanceof BakeliteError) || error.code === "internal") {
    lines.push("  hint: this is a fault in bakelite; run again with --verbose and report what it prints");
  }
  return `${lines.join("\n")}\n`;
}

function isUsage(error: unknown): boolean {
  return error instanceof BakeliteError && error.code === "usage";
}

/** What was typed may be as long as the system allows. Begin and end say which argument it was, and what is wrong. */
function shortened(sentence: string): string {
  return sentence.length <= 600 ? sentence : `${sentence.slice(0, 300)}…${sentence.slice(-200)}`;
}

/**
 * A list of problems is the only message of more than one line; its lines are without control characters. Elsewhere a
 * line feed comes from a name that somebody chose, and must not pass for the next line of ours.
 */
function listsProblems(error: unknown): boolean {
  return error instanceof BakeliteError && error.code === "config-invalid" && error.subject === undefined;
}

/** The hint of the error, else that of the nearest cause that has one. */
function nearestHint(error: unknown): string | undefined {
  for (let cause = error; cause instanceof Error; cause = cause.cause) {
    if (cause instanceof BakeliteError && cause.hint !== undefined) return cause.hint;
  }
  return undefined;
}
