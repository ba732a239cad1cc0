import { BakeliteError, describeError } from "../util/errors.ts";
import { printable } from "../util/printable.ts";
import type { TextOutput } from "../util/text-output.ts";

/** A part of a command's work that failed while the rest goes on, in its JSON document; null: it did not fail. */
export function errorDocument(error: BakeliteError | null): Record<string, unknown> | null {
  return error === null ? null : { code: error.code, message: describeError(error) };
}

/** The same for people, on standard error. `part` is what failed: a database, a destination. */
export function writeFailedPart(stderr: TextOutput, part: string, error: BakeliteError): void {
  stderr.write(`${printable(`${part}: ${describeError(error)}`)}\n`);
  if (error.hint !== undefined) stderr.write(`  hint: ${printable(error.hint)}\n`);
}

/** `error` when it is one that a single part may fail with; throws it when it ends the whole command. */
export function failureOfPart(error: unknown): BakeliteError {
  if (!(error instanceof BakeliteError) || error.code === "interrupted" || error.code === "internal") throw error;
  return error;
}
