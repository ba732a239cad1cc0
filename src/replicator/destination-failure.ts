import { BakeliteError } from "../util/errors.ts";

/** A destination does not do what it should; the database is not at fault, and following it goes on. */
export function isDestinationFailure(error: unknown): boolean {
  if (!(error instanceof BakeliteError)) return false;
  return error.code === "storage-unreachable" || error.code === "storage-denied" || error.code === "storage-full";
}

/** The same where there are other destinations: whatever one of them does, the others go on. */
export function isMemberFailure(error: unknown): boolean {
  if (isDestinationFailure(error)) return true;
  return error instanceof BakeliteError && ["io", "replica-corrupt", "replica-missing"].includes(error.code);
}
