import { describeOtherKey } from "../format/envelope.ts";
import { PLAINTEXT_SEAL } from "../format/names.ts";
import { BakeliteError } from "../util/errors.ts";
import { plural } from "../util/plural.ts";
import { type Catalog, isEmpty, type ReplicaObject } from "./catalog.ts";
import type { StatePath } from "./paths.ts";
import type { Depth, Replica } from "./replica.ts";
import {
  newestPath,
  nextRestorePoint,
  oldestPath,
  pathAtTime,
  pathToIndex,
  type RestorePoint,
  restorePointOf,
} from "./restore-points.ts";

export type RestoreTarget =
  | { readonly kind: "latest" }
  | { readonly kind: "index"; readonly index: number }
  /** The newest restore point at or before a moment. */
  | { readonly kind: "time"; readonly timeMs: number };

/** Which objects make up one restore point. Their pages are yet unread. */
export interface RestorePlan {
  /**
   * All objects have been found to fit together. False: they do by name, and so do those that were read; each link has to be
   * looked at when the plan is carried out, as `layPages` does.
   */
  readonly proven: boolean;
  readonly index: number;
  readonly stampMs: number;
  /** 64 hex digits. */
  readonly lineage: string;
  readonly full: ReplicaObject;
  /** Ascending; empty when the full backup alone is the state. */
  readonly changeSets: readonly ReplicaObject[];
  readonly sizePages: number;
  readonly pageSizeBytes: number;
  /** The state digest as recorded, 32 hex digits, or null. */
  readonly digest: string | null;
  /** The stored size of all objects: at most this much has to be fetched. */
  readonly bytesToFetch: number;
}

/** A plan and what a person should know of it. */
export interface ExplainedPlan extends RestorePlan {
  readonly next: RestorePoint | null;
  /** Sentences: what was walked around, what is stored and cannot be restored. */
  readonly notes: readonly string[];
}

/**
 * Decides which objects restore `target`, reading headers and trailers only: by default of all of them, so that the plan is proven.
 * Throws `replica-missing` when nothing is stored or the target lies before the first restore point (which is named), `key-wrong` or
 * `replica-corrupt` when objects that would lead there cannot be read.
 */
export async function planRestore(
  replica: Replica,
  target: RestoreTarget,
  depth: Exclude<Depth, "ends"> = "whole",
): Promise<ExplainedPlan> {
  const plan = await planPath(replica, () => findPath(replica, target, depth));
  if (plan === null) throw await explainFailure(replica, target);
  const next = await nextRestorePoint(replica, plan.index);
  return { ...plan, next, notes: [...replica.warnings, ...(await notesOn(replica, plan, target))] };
}

/** As `planRestore` for one index, without explanations; null when it is not a restore point (any longer). */
export async function planForIndex(replica: Replica, index: number): Promise<RestorePlan | null> {
  return planPath(replica, () => pathToIndex(replica, index, "whole"));
}

/** The plan for the path that `find` gives, found anew when its last object, which says what the state is, cannot be opened. */
async function planPath(replica: Replica, find: () => Promise<StatePath | null>): Promise<RestorePlan | null> {
  for (;;) {
    const path = await find();
    if (path === null) return null;
    const opened = await replica.trailers.open(path.changeSets.at(-1) ?? path.full);
    if (opened === null) continue;
    const { header, trailer } = opened.reader;
    return {
      proven: replica.isProven(path),
      index: path.index,
      stampMs: trailer.lastCommitMs,
      lineage: trailer.result,
      full: path.full,
      changeSets: path.changeSets,
      sizePages: trailer.sizePages,
      pageSizeBytes: header.pageSizeBytes,
      digest: trailer.digest,
      bytesToFetch: path.changeSets.reduce((sum, object) => sum + object.sizeBytes, path.full.sizeBytes),
    };
  }
}

function findPath(replica: Replica, target: RestoreTarget, depth: Depth): Promise<StatePath | null> {
  switch (target.kind) {
    case "latest":
      return newestPath(replica, depth);
    case "index":
      return pathToIndex(replica, target.index, depth);
    case "time":
      return pathAtTime(replica, target.timeMs, depth);
  }
}

async function notesOn(replica: Replica, plan: RestorePlan, target: RestoreTarget): Promise<readonly string[]> {
  const notes: string[] = [];
  for (const { object, error } of replica.trailers.problems) {
    const passedBy = object.last > plan.full.last && object.first <= plan.index;
    if (!passedBy) continue;
    const consequence =
      object.kind === "full"
        ? `; restoring from the older full backup ${plan.full.last} and ${plural(plan.changeSets.length, "change-set")}`
        : "";
    notes.push(`walked around ${replica.describe(object)}: ${error.message}${consequence}`);
  }
  if (target.kind !== "latest") return notes;
  const beyond = await newestBeyond(replica, plan);
  if (beyond !== null) notes.push(beyond);
  const { current } = replica;
  if (beyond === null && current !== null && current.index > (replica.graph.newestIndex ?? 0))
    notes.push(
      `CURRENT knew of state ${current.index}, which is newer than all that is stored: backups have been lost or deleted`,
    );
  return notes;
}

/** What is stored after the newest restore point and leads nowhere, or null. */
async function newestBeyond(replica: Replica, plan: RestorePlan): Promise<string | null> {
  const newest = replica.graph.unreached.findLast((object) => object.first > plan.index);
  if (newest === undefined) return null;
  await replica.trailers.load([newest, plan.full]);
  const [chain, ours] = [newest, plan.full].map((object) => chainOf(replica, object));
  if (chain !== null && ours !== null && chain !== ours)
    return `this is the newest restorable state: a new chain has begun after it, and its first full backup is not stored yet`;
  return `change-sets up to state ${newest.last} are stored, but the way from state ${plan.index} to them is missing or damaged`;
}

function chainOf(replica: Replica, object: ReplicaObject): string | null {
  const known = replica.trailers.knowledge(object);
  return typeof known === "object" ? known.chain : null;
}

/** Why there is no plan. */
async function explainFailure(replica: Replica, target: RestoreTarget): Promise<BakeliteError> {
  const { database, catalog, trailers } = replica;
  const location = replica.options.backends.map((backend) => `${backend.location}/${database}`).join(", ");
  if (replica.isMissing())
    return new BakeliteError("replica-missing", `nothing is stored for database \`${database}\``, {
      subject: location,
      hint: "check the backend in the config; `bakelite status` says whether the daemon has stored anything yet",
    });

  const first = await oldestPath(replica, "ends");
  const firstPoint = first === null ? null : await restorePointOf(replica, first.index);
  if (firstPoint !== null) return tooEarly(target, firstPoint);

  // Before the first full backup change-sets are stored, below a reencrypt under two seals, and whoever reads some has the right key.
  const decisive = catalog.fulls.length > 0 ? catalog.fulls : catalog.changeSets;
  const [sealed] = decisive;
  if (sealed !== undefined && decisive.every((object) => !trailers.canUnseal(object)))
    return sealProblem(replica, sealed);
  const problem = trailers.problems.find(({ object }) => object.kind === "full") ?? trailers.problems[0];
  if (problem !== undefined)
    return new BakeliteError("replica-corrupt", "cannot restore: no sound full backup leads to any state", {
      subject: replica.describe(problem.object),
      hint: "run `bakelite verify` for all that is damaged, and `bakelite repair` if another destination is configured",
      cause: problem.error,
    });
  for (const error of trailers.failedDestinations.values()) return error;
  return new BakeliteError("replica-corrupt", `cannot restore: ${whatIsMissing(catalog)}`, {
    subject: location,
    hint: "if the daemon is still writing the first full backup (`bakelite status`), wait for it; else run `bakelite verify`",
  });
}

function whatIsMissing(catalog: Catalog): string {
  if (isEmpty(catalog)) return "every object is gone, although CURRENT or a manifest is there";
  if (catalog.fulls.length === 0) return "no full backup is stored yet";
  return "no full backup has reached a restorable state yet";
}

function tooEarly(target: RestoreTarget, first: RestorePoint): BakeliteError {
  const firstText = `${new Date(first.stampMs).toISOString()} (state ${first.index})`;
  const message =
    target.kind === "time"
      ? `cannot restore ${new Date(target.timeMs).toISOString()}: the first restore point is ${firstText}`
      : `cannot restore state ${target.kind === "index" ? target.index : ""}: it is not a restore point; the first one is ${firstText}`;
  return new BakeliteError("replica-missing", message, {
    hint: "choose a later --timestamp; `bakelite list` shows what can be restored",
  });
}

/**
 * Throws `key-wrong` when full backups are stored and none of them can be opened with the keys at hand: what would otherwise look like a
 * replica in which nothing can be restored. `doing`: `list`, as in "cannot list".
 */
export function assertReadable(replica: Replica, doing: string): void {
  const { catalog, trailers } = replica;
  const [first] = catalog.fulls;
  if (first !== undefined && catalog.fulls.every((object) => !trailers.canUnseal(object)))
    throw sealProblem(replica, first, doing);
}

function sealProblem(replica: Replica, object: ReplicaObject, doing = "restore"): BakeliteError {
  const subject = replica.describe(object);
  if (object.seal === PLAINTEXT_SEAL)
    return new BakeliteError("key-wrong", `cannot ${doing}: the replica is not encrypted, but the config names a key`, {
      subject,
      hint: "if it was stored before encryption was switched on, set accept_plaintext = true under [defaults.encryption], or run `bakelite reencrypt`; if not, somebody without the key has put it there: do neither",
    });
  const why = describeOtherKey(object.seal, replica.options.keys);
  return new BakeliteError("key-wrong", `cannot ${doing}: ${why}`, {
    subject,
    hint: `set [defaults.encryption] key_file to the file with key ${object.seal}`,
  });
}
