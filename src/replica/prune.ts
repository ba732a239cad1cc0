import { verifyObject } from "../format/decode.ts";
import { backendRangeSource } from "../storage/range-source.ts";
import { BakeliteError } from "../util/errors.ts";
import { inTurns, nextTurn } from "../util/turns.ts";
import { keyOf, markedIndexes, nameOf, type ReplicaObject } from "./catalog.ts";
import { factsOf } from "./facts.ts";
import type { Replica } from "./replica.ts";
import { type Expiry, planningRetention, type RetentionPlan } from "./retention-plan.ts";
import type { RetentionPolicy } from "./retention-policy.ts";

export interface PruneOptions {
  readonly policy: RetentionPolicy;
  readonly marks: readonly number[];
  /** Why nothing may be deleted now; null: nothing speaks against it. */
  readonly frozen: string | null;
  /** As `RetentionInputs.damaged`. */
  readonly damaged?: ReadonlySet<string> | undefined;
  /** Unix milliseconds by our own clock, which can make things look younger, never older. */
  readonly nowMs: number;
  /** Plan only. */
  readonly dryRun: boolean;
  /** Read back the full backup that history is cut at, too, before anything older goes. */
  readonly readsFullBackup?: boolean | undefined;
  /** What was read back before, by `identityOf`: it is not read again, and what is read now is added. */
  readonly readBack: Set<string>;
  readonly signal?: AbortSignal | undefined;
  readonly onDeleted?: (expired: readonly Expiry[]) => void;
}

export interface PruneReport {
  readonly plan: RetentionPlan;
  /** What was deleted; with `dryRun` what would be, as far as that can be told without reading back. */
  readonly deleted: readonly Expiry[];
  /** Objects that could not be read back whole: what would rest on them stays. */
  readonly unsound: readonly { readonly object: ReplicaObject; readonly error: BakeliteError }[];
  /** The destination does not allow to delete (credentials, Object Lock); else null. */
  readonly denied: BakeliteError | null;
}

const DELETE_AT_ONCE = 500;
/** Reading back takes its time, and what was planned before it may no longer be right: so often a pass lists and plans again. */
const MAX_ROUNDS = 3;

/**
 * Deletes what the policy gives up at one destination, by the rules of docs/compaction-and-retention.md. `replica` is open on that
 * destination alone. Rejects when interrupted and when the destination does not answer; what was deleted until then is
 * gone, and nothing stands without what it needs.
 */
export async function pruneReplica(replica: Replica, options: PruneOptions): Promise<PruneReport> {
  const { signal } = options;
  const unsound: { readonly object: ReplicaObject; readonly error: BakeliteError }[] = [];
  let plan = await planWithFacts(replica, options);
  if (options.dryRun) return { plan, deleted: plan.expired, unsound, denied: null };
  for (let round = 0; round < MAX_ROUNDS; round++) {
    const unread = [...reliedOn(plan, options)].filter((object) => !options.readBack.has(identityOf(object)));
    if (unread.length === 0) break;
    unsound.push(...(await readBackAll(replica, unread, options)));
    await replica.refresh();
    plan = await planWithFacts(replica, options);
  }
  const wasRead = (object: ReplicaObject) => options.readBack.has(identityOf(object));
  const mayCut = options.readsFullBackup !== true || (plan.cutAt !== null && wasRead(plan.cutAt));
  const certain = plan.expired.filter(({ supersededBy }) => (supersededBy === null ? mayCut : wasRead(supersededBy)));

  const [backend] = replica.options.backends;
  const deleted: Expiry[] = [];
  for (let start = 0; start < certain.length; start += DELETE_AT_ONCE) {
    signal?.throwIfAborted();
    const batch = certain.slice(start, start + DELETE_AT_ONCE);
    const keys = batch.map(({ object }) => keyOf(replica.database, object));
    try {
      await backend?.delete(keys, signal === undefined ? {} : { signal });
    } catch (error) {
      if (!(error instanceof BakeliteError) || error.code !== "storage-denied") throw error;
      return { plan, deleted, unsound, denied: error };
    }
    deleted.push(...batch);
    options.onDeleted?.(batch);
  }
  return { plan, deleted, unsound, denied: null };
}

/** What tells a stored object from every other one that had or will have its name. */
export function identityOf(object: ReplicaObject): string {
  const { kind, level, first, last, seal, sizeBytes, modifiedMs } = object;
  return `${kind} ${level} ${first} ${last} ${seal} ${sizeBytes} ${modifiedMs}`;
}

/** Loads facts until the plan wants no more; each round makes some objects known for good. */
async function planWithFacts(replica: Replica, options: PruneOptions): Promise<RetentionPlan> {
  const { policy, marks, frozen, damaged, nowMs, signal } = options;
  for (;;) {
    signal?.throwIfAborted();
    const { catalog, trailers, current } = replica;
    await nextTurn();
    const planning = planningRetention({
      catalog,
      knowledge: (object) => trailers.knowledge(object),
      preferences: { seal: replica.options.seal, current },
      policy,
      // One that was set since the options were made counts too.
      marks: [...new Set([...marks, ...markedIndexes(catalog)])],
      frozen,
      damaged,
      nowMs,
    });
    const plan = await inTurns(planning);
    if (plan.unknown.length === 0) return plan;
    await trailers.load(plan.unknown);
  }
}

/** What must be sound once the rest is gone. */
function reliedOn({ expired, cutAt }: RetentionPlan, { readsFullBackup }: PruneOptions): ReadonlySet<ReplicaObject> {
  const objects = new Set(expired.flatMap(({ supersededBy }) => (supersededBy === null ? [] : [supersededBy])));
  if (readsFullBackup === true && cutAt !== null) objects.add(cutAt);
  return objects;
}

/** Those that are not sound; from then on they count as unusable, and what else stands for their inputs may be found. */
async function readBackAll(
  replica: Replica,
  objects: readonly ReplicaObject[],
  { readBack, signal }: PruneOptions,
): Promise<PruneReport["unsound"]> {
  const unsound: { object: ReplicaObject; error: BakeliteError }[] = [];
  for (const object of objects) {
    signal?.throwIfAborted();
    try {
      await readWhole(replica, object, signal);
      readBack.add(identityOf(object));
    } catch (error) {
      if (!(error instanceof BakeliteError) || !isOfObject(error)) throw error;
      replica.trailers.setUnusable(object, error, error.code === "replica-missing");
      unsound.push({ object, error });
    }
  }
  return unsound;
}

const OBJECT_ERRORS: ReadonlySet<string> = new Set([
  "replica-corrupt",
  "replica-missing",
  "replica-foreign",
  "key-wrong",
  "io", // one file of a disk with a bad sector
]);

function isOfObject({ code }: BakeliteError): boolean {
  return OBJECT_ERRORS.has(code);
}

async function readWhole(replica: Replica, object: ReplicaObject, signal: AbortSignal | undefined): Promise<void> {
  const { keys, acceptPlaintext, backends } = replica.options;
  const backend = backends[object.destination];
  if (backend === undefined) return;
  const key = keyOf(replica.database, object);
  const source = backendRangeSource(backend, key, object.sizeBytes, signal === undefined ? {} : { signal });
  const options = { name: nameOf(object), database: replica.database, subject: replica.describe(object) };
  const { header, trailer } = await verifyObject(source, { ...options, keys, acceptPlaintext });
  // A manifest may have told us something else of it; opening it makes its own word the one that counts.
  if (!Bun.deepEquals(replica.trailers.knowledge(object), factsOf(header, trailer)))
    await replica.trailers.open(object);
}
