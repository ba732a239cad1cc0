import { BakeliteError } from "../util/errors.ts";

const HINT = "run `bakelite repair` if another destination holds this database, else restore to an earlier --timestamp";

/**
 * The error for a stored object that is damaged, cut short or not what its name says. `subject` is the object's key;
 * `problem` completes "stored object is damaged: " and names the chunk or the page where one is known.
 */
export function damaged(subject: string, problem: string, cause?: unknown): BakeliteError {
  const message = `stored object is damaged: ${problem}`;
  return new BakeliteError("replica-corrupt", message, {
    subject,
    hint: HINT,
    ...(cause === undefined ? {} : { cause }),
  });
}
