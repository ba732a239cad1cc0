import { BakeliteError } from "../util/errors.ts";
import { upperBound } from "../util/upper-bound.ts";
import { isMergedOver } from "./catalog.ts";
import { StateDeleted } from "./lay-pages.ts";
import { type ExplainedPlan, planRestore, type RestorePlan, type RestoreTarget } from "./plan.ts";
import type { Replica } from "./replica.ts";
import { type RestorePoint, restorePointOf } from "./restore-points.ts";

export interface CarriedOut<T> {
  /** The plan that `work` was given last. */
  readonly plan: ExplainedPlan;
  readonly result: T;
}

/** How often a restore begins anew. What the policy leaves of a moment is coarser each time and kept for longer, so few will do. */
const MAX_PLANS = 10;

/**
 * Plans `target` and has `work` carry the plan out.
 *
 * Where very many objects would have to be read to prove a plan, `work` is given one that is not, since it reads them anyway: should
 * damage or a fork then show on the way, all is read, and `work` begins anew with what that leaves, so that `target` means the same as
 * with few objects. Where the planned state is merged away meanwhile, `work` begins anew with the newest restore point before it, as a
 * second restore of the same moment would, and a note says so; only who asked for an index has an error. Where damage or
 * retention has taken it away, the error names the newest restore point that is left before it.
 */
export async function carryOut<T>(
  replica: Replica,
  target: RestoreTarget,
  work: (plan: ExplainedPlan) => Promise<T>,
): Promise<CarriedOut<T>> {
  let plan = await planRestore(replica, target, "affordable");
  for (let attempt = 1; ; attempt++)
    try {
      return { plan, result: await work(plan) };
    } catch (error) {
      if (!isOfReplica(error)) throw error;
      const other = attempt === MAX_PLANS ? null : await planAnew(replica, target, plan, error);
      if (other === null) throw await namingWhatIsLeft(replica, plan, error);
      plan = other;
    }
}

function isOfReplica(error: unknown): error is BakeliteError {
  return error instanceof BakeliteError && (error.code === "replica-corrupt" || error.code === "replica-missing");
}

/** What `target` is after `failed` could not be carried out; null when that was not the plan's fault. */
async function planAnew(
  replica: Replica,
  target: RestoreTarget,
  failed: ExplainedPlan,
  error: BakeliteError,
): Promise<ExplainedPlan | null> {
  const isMerged = error instanceof StateDeleted && isMergedOver(replica.catalog, failed.index);
  if (isMerged ? target.kind === "index" : failed.proven) return null;
  // A state newer than the one that was the latest could be merged away in its turn, and the next one too.
  const left: RestoreTarget = isMerged && target.kind === "latest" ? { kind: "time", timeMs: failed.stampMs } : target;
  const plan = await planRestore(replica, left);
  // The links hold, so they were not what failed.
  if (plan.index === failed.index && plan.lineage === failed.lineage) return null;
  if (!isMerged) return plan;
  const note = `state ${failed.index} was merged into later ones while it was being restored: this is the newest restore point before it`;
  return { ...plan, notes: [note, ...plan.notes] };
}

/** `error`, which took the plan's state away, with the newest restore point before it by what is known now. */
async function namingWhatIsLeft(replica: Replica, plan: RestorePlan, error: BakeliteError): Promise<BakeliteError> {
  // Whatever goes wrong with this must not hide what went wrong before.
  const left = await newestBefore(replica, plan.index).catch(() => undefined);
  if (left === undefined) return error;
  const hint =
    left === null
      ? "no earlier state can be restored either: run `bakelite verify` for what is damaged"
      : `the newest restore point before it: --timestamp ${new Date(left.stampMs).toISOString()} (state ${left.index}); \`bakelite verify\` shows what is damaged, \`bakelite repair\` heals from another destination`;
  const { code, message, subject, cause } = error;
  return new BakeliteError(code, message, { ...(subject === undefined ? {} : { subject }), hint, cause });
}

async function newestBefore(replica: Replica, index: number): Promise<RestorePoint | null> {
  const path = await replica.settle(
    ({ restorePoints }) => restorePoints[upperBound(restorePoints, index - 1) - 1] ?? null,
    "affordable",
  );
  return path === null ? null : restorePointOf(replica, path.index);
}
