/**
 * What an operator would do differently about a failure. `main.ts` turns a code into the exit status: the usage codes
 * are 2, everything else is 1.
 */
export type ErrorCode =
  | "usage" // the command line is wrong
  | "config-invalid" // the configuration file is wrong
  | "storage-unreachable" // a destination cannot be reached now; trying again later may help
  | "storage-denied" // a destination refuses us: credentials, permissions, a read-only file system
  | "storage-full" // a destination or a local disk has no room
  | "replica-missing" // there is nothing to restore from
  | "replica-corrupt" // a stored object is damaged, missing or not what its name says
  | "replica-foreign" // another writer, another database or a newer format owns what we found
  | "key-wrong" // the encryption key is absent, malformed or not the one the replica was written with
  | "database-unfit" // not a SQLite database, not in WAL mode, an unsupported engine
  | "database-busy" // another process holds a lock that we need
  | "locked" // another bakelite daemon holds this database
  | "output-exists" // a file is in the way and --force was not given
  | "not-found" // a local file or folder that must exist does not
  | "io" // any other failure of the local machine
  | "interrupted" // a signal ended the work
  | "internal"; // a bug in bakelite

export interface ErrorDetails {
  /** The path, object key or configuration line that the message is about. Never a credential. */
  readonly subject?: string;
  /** What to do next, as an imperative sentence without a full stop. */
  readonly hint?: string;
  readonly cause?: unknown;
}

/** Every expected failure. `message` is one clear sentence; `subject` and `hint` are printed after it. */
export class BakeliteError extends Error {
  override readonly name = "BakeliteError";
  readonly code: ErrorCode;
  readonly subject: string | undefined;
  readonly hint: string | undefined;

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.code = code;
    this.subject = details.subject;
    this.hint = details.hint;
  }
}

/** Throws an `internal` error unless `condition` holds. `invariant` states what only a bug in bakelite can break. */
export function assert(condition: unknown, invariant: string): asserts condition {
  if (!condition) throw new BakeliteError("internal", `invariant broken: ${invariant}`);
}

/** The end of an exhaustive switch; the compiler names the missing case. */
export function unreachable(value: never): never {
  throw new BakeliteError("internal", `invariant broken: unexpected value ${JSON.stringify(value)}`);
}

/** The message of anything that was thrown, and of its causes: `cannot write: no space left on device`. */
export function describeError(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const subject = error instanceof BakeliteError && error.subject !== undefined ? ` (${error.subject})` : "";
  const cause = error.cause === undefined ? "" : `: ${describeError(error.cause)}`;
  return `${error.message}${subject}${cause}`;
}

/** The `code` of a Node system error such as `ENOENT`, or undefined. */
export function systemErrorCode(error: unknown): string | undefined {
  if (typeof error !== "object" || error === null || !("code" in error)) return undefined;
  return typeof error.code === "string" ? error.code : undefined;
}
