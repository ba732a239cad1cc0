import { BakeliteError, describeError } from "../util/errors.ts";
import { printable } from "../util/printable.ts";

/** The signals that end a run, and what the exit code adds to 128 for them. */
export const SIGNAL_NUMBERS = { SIGINT: 2, SIGTERM: 15 } as const;

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
  const lines = [`bakelite: ${printable(describeError(error), "\n")}`];
  const hint = nearestHint(error);
  if (hint !== undefined) lines.push(`  hint: ${printable(hint)}`);
  if (verbose) {
    for (let cause = error; cause instanceof Error; cause = cause.cause) lines.push(printable(cause.stack ?? "", "\n"));
  } else if (!(error instanceof BakeliteError) || error.code === "internal") {
    lines.push("  hint: this is a fault in bakelite; run again with --verbose and report what it prints");
  }
  return `${lines.join("\n")}\n`;
}

/** The hint of the error, else that of the nearest cause that has one. */
function nearestHint(error: unknown): string | undefined {
  for (let cause = error; cause instanceof Error; cause = cause.cause) {
    if (cause instanceof BakeliteError && cause.hint !== undefined) return cause.hint;
  }
  return undefined;
}
