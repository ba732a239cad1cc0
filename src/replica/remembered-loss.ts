import { formatTimestamp } from "../util/timestamps.ts";
import type { RestorePlan } from "./plan.ts";
import type { Replica } from "./replica.ts";
import { newestPath, type RestorePoint, restorePointOf } from "./restore-points.ts";
import type { LocalState } from "./verify-local.ts";

/** States that this host's daemon has stored, and that nothing stored leads to any more. */
export interface RememberedLoss {
  /** Ascending, both included. */
  readonly firstIndex: number;
  readonly lastIndex: number;
  /** When the last commit of `lastIndex` was seen. */
  readonly lastStampMs: number;
  /** The newest state that can be restored; null: there is none. */
  readonly newest: RestorePoint | null;
  /** Objects up to `lastIndex` are listed all the same: they are damaged, or something before them is gone. */
  readonly isListed: boolean;
}

/**
 * What is missing at the end of a replica by the cursor of this host, which must have been read before the replica was listed; null when
 * nothing is, or when nothing can be said: no cursor, a chain whose first full backup is under way, or no destination that
 * answered and that the cursor says is whole (a mirror is not in it). `plan` is what was restored of it; null: nothing can be.
 * It may look at the newest objects, and reads no more than ends of paths.
 */
export async function findRememberedLoss(
  replica: Replica,
  local: LocalState | null,
  plan: RestorePlan | null,
): Promise<RememberedLoss | null> {
  const cursor = local?.cursor ?? null;
  if (cursor === null || (cursor.fullBackup === null && chainOf(replica, plan) !== cursor.chain)) return null;
  const lastIndex = replica.options.backends.reduce((max, { location }, destination) => {
    const known = replica.trailers.failedDestinations.has(destination) ? undefined : cursor.destinations[location];
    return known === undefined || known.incomplete === true ? max : Math.max(max, known.index);
  }, 0);
  if (lastIndex <= (plan?.index ?? 0)) return null;
  const newest = plan === null ? null : await newestOf(replica, plan);
  if (lastIndex <= (newest?.index ?? 0)) return null;
  const { fulls, changeSets } = replica.catalog;
  return {
    firstIndex: (newest?.index ?? 0) + 1,
    lastIndex,
    lastStampMs: cursor.stampMs,
    newest,
    isListed: [...fulls, ...changeSets].some(({ last }) => last >= lastIndex),
  };
}

/** For people: what is missing, until when it can be restored, and what to do. */
export function describeRememberedLoss(loss: RememberedLoss): { readonly message: string; readonly hint: string } {
  const { firstIndex, lastIndex, lastStampMs, newest, isListed } = loss;
  const states = firstIndex === lastIndex ? `state ${lastIndex}` : `states ${firstIndex} to ${lastIndex}`;
  const stored = `this host has stored ${states}, the last of ${formatTimestamp(lastStampMs)}`;
  const until =
    newest === null
      ? "nothing can be restored"
      : `restorable until ${formatTimestamp(newest.stampMs)} (state ${newest.index})`;
  if (isListed)
    return {
      message: `the newest backups cannot be restored: ${stored}, and no sound way leads there; ${until}`,
      hint: "run `bakelite verify`: it names what is damaged or gone before them, and what to do about each",
    };
  return {
    message: `the newest backups are missing: ${stored}, and nothing of that is there any more; ${until}`,
    hint: "find out who deleted them or put the destination back to an older state; another destination, versions of a bucket or the database file itself may still have them",
  };
}

async function newestOf(replica: Replica, plan: RestorePlan): Promise<RestorePoint> {
  const path = await newestPath(replica, "ends");
  const newest = path === null || path.index <= plan.index ? null : await restorePointOf(replica, path.index);
  return newest ?? { index: plan.index, stampMs: plan.stampMs };
}

function chainOf(replica: Replica, plan: RestorePlan | null): string | null {
  const known = plan === null ? null : replica.trailers.knowledge(plan.full);
  return known !== null && typeof known === "object" ? known.chain : null;
}
