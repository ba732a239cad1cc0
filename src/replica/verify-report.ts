import type { VerifyMode } from "../state/verify-marker.ts";
import type { BakeliteError } from "../util/errors.ts";
import type { IntegrityAnswer } from "./restore-check.ts";
import type { RestorePoint } from "./restore-points.ts";

/** What is wrong: each makes verify fail. docs/json.md says what each means and what to do. */
export type ProblemKind =
  | "corrupt" // damaged bytes
  | "missing" // what must be stored and is not
  | "reordered" // a sound object under the name of another one
  | "unreadable-key" // sealed with a key that is not configured, or not sealed although a key is
  | "unreadable" // the destination does not give it
  | "foreign" // of another database or a newer format
  | "fork" // of a history that ours has left behind, or that never was ours
  | "stale-current" // CURRENT points at an older backup or another history
  | "ledger" // the page ledger of this host does not describe what is stored
  | "mark-lost" // a marked state that cannot be restored
  | "unreachable" // the destination does not answer
  | "unrestorable" // sound objects that do not make up the state that they claim
  | "integrity" // SQLite finds the restored database damaged
  | "not-checked"; // what was asked for could not be carried out

/** What is odd and costs nothing: told, and no failure. */
export type WarningKind =
  | "foreign-name" // not a name that bakelite gives
  | "two-seals" // one state change under two keys, or sealed and in plaintext
  | "leftover" // of a chain that was never finished, of a compaction, or of a daemon that was killed
  | "first-backup" // a chain whose first full backup is not stored yet
  | "no-current" // CURRENT is not there
  | "stale-current" // as the problem, where it may be on its way
  | "behind" // a destination to which what others hold is still being copied
  | "local-state" // a file in .bakelite/ that cannot be read
  | "not-checkable"; // SQLite lacks something that only the application has

export interface Finding<Kind extends string = string> {
  readonly kind: Kind;
  /** The destination's location; the path for what concerns a local file. */
  readonly destination: string;
  /** Key of the object below the destination's prefix; null when it concerns no single object. */
  readonly key: string | null;
  /** One sentence without a full stop. */
  readonly message: string;
  /** What to do, as an imperative sentence without a full stop. */
  readonly nextStep: string;
}

export type Problem = Finding<ProblemKind>;
export type Warning = Finding<WarningKind>;

/** More than these are counted only: a replica in ruins must not fill the memory. */
export const MAX_LISTED_FINDINGS = 1000;

/** Findings, of which the first are kept and all are counted. */
export class FindingList<F extends Finding> {
  readonly #listed: F[] = [];
  #count = 0;

  get listed(): readonly F[] {
    return this.#listed;
  }

  get count(): number {
    return this.#count;
  }

  add(finding: F): void {
    this.#count++;
    if (this.#listed.length < MAX_LISTED_FINDINGS) this.#listed.push(finding);
  }
}

/** What verify learnt about restoring, from objects that were read whole and found sound. */
export interface Restorability {
  /** null: a restore is not possible. */
  readonly newest: RestorePoint | null;
  readonly oldest: RestorePoint | null;
  /** How many states can be restored. */
  readonly pointCount: number;
  /** The same for each destination by itself, in the order of preference. */
  readonly destinations: readonly {
    readonly location: string;
    readonly newest: RestorePoint | null;
  }[];
}

/** One full backup that was restored with its chain of change-sets. */
export interface DeepCheck {
  readonly destination: string;
  readonly key: string;
  readonly fullBackup: number;
  readonly changeSetCount: number;
  readonly point: RestorePoint;
  readonly sizeBytes: number;
  /** Whether the writer had recorded the digest, so that the result could be compared. */
  readonly digestCompared: boolean;
  /** null: it could not be put together; a problem says why. */
  readonly integrity: IntegrityAnswer["outcome"] | null;
}

/** What one verify of one database found. */
export interface VerifyReport {
  readonly database: string;
  readonly mode: VerifyMode;
  /** The replica could not be looked at at all; a problem says the same. */
  readonly failure: BakeliteError | null;
  readonly problems: FindingList<Problem>;
  readonly warnings: FindingList<Warning>;
  readonly fullBackupCount: number;
  readonly changeSetCount: number;
  /** Copies at every destination, CURRENT and manifest included. */
  readonly objectsChecked: number;
  readonly bytesRead: number;
  readonly restorability: Restorability;
  /** null when not asked for. */
  readonly deep: readonly DeepCheck[] | null;
}
