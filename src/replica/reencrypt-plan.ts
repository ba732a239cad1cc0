import { type ObjectName, objectKey, PLAINTEXT_SEAL } from "../format/names.ts";
import { type Catalog, keyOf, nameOf, type ReplicaObject } from "./catalog.ts";

/** One full backup or change-set that is not everywhere under the wanted seal only. */
export interface ReencryptItem {
  /** With the wanted seal. */
  readonly name: ObjectName;
  readonly key: string;
  /** Of its largest old copy. */
  readonly sizeBytes: number;
  /** Its copies under other seals, by destination. */
  readonly old: readonly ReplicaObject[];
}

export interface ReencryptPlan {
  readonly database: string;
  /** `p`, or the fingerprint of the key that everything is to be sealed with. */
  readonly seal: string;
  /**
   * In the order of the work: change-sets first, then full backups from the newest on. So whoever has the new key only sees no
   * full backup, which is told clearly, or everything: never an older state.
   */
  readonly items: readonly ReencryptItem[];
  /** Stored copies under other seals, and their size. */
  readonly objectCount: number;
  readonly sizeBytes: number;
  /** Stored copies that are as they should be. */
  readonly rightCount: number;
  /** The seals that are to go, with the number of copies that have them. */
  readonly oldSeals: ReadonlyMap<string, number>;
}

/** Decides what has to be rewritten to have everything in `catalog` under `seal`. */
export function planReencrypt(catalog: Catalog, seal: string): ReencryptPlan {
  const stored = [...catalog.changeSets, ...catalog.fulls.toReversed()];
  const groups = Map.groupBy(stored, (object) => objectKey(catalog.database, { ...nameOf(object), seal }));
  const oldSeals = new Map<string, number>();
  const items: ReencryptItem[] = [];
  let [objectCount, sizeBytes, rightCount] = [0, 0, 0];
  for (const [key, objects] of groups) {
    const old = objects.filter((object) => object.seal !== seal);
    rightCount += objects.length - old.length;
    const [first] = old;
    if (first === undefined) continue;
    for (const object of old) oldSeals.set(object.seal, (oldSeals.get(object.seal) ?? 0) + 1);
    objectCount += old.length;
    sizeBytes += old.reduce((sum, object) => sum + object.sizeBytes, 0);
    items.push({
      name: { ...nameOf(first), seal },
      key,
      sizeBytes: Math.max(...old.map((object) => object.sizeBytes)),
      old: old.toSorted((a, b) => a.destination - b.destination),
    });
  }
  return { database: catalog.database, seal, items, objectCount, sizeBytes, rightCount, oldSeals };
}

/** What stands under other seals although the plan does not know it, or although it was deleted: somebody has stored it since. */
export interface Newcomers {
  /** What a compaction or a repair stores that had begun before: it can be rewritten as well. */
  readonly late: readonly ReplicaObject[];
  /** New states, which only a daemon stores: it would go on. */
  readonly strangers: readonly ReplicaObject[];
}

/** Compares the plan with a new listing. `deleted` are the places of objects that were deleted since. */
export function newcomers(plan: ReencryptPlan, catalog: Catalog, deleted: ReadonlySet<string>): Newcomers {
  const planned = new Set(plan.items.flatMap(({ old }) => old.map((object) => placeOf(plan.database, object))));
  const known = new Set(plan.items.map(({ key }) => key));
  const came = [...catalog.fulls, ...catalog.changeSets].filter((object) => {
    const place = placeOf(plan.database, object);
    return object.seal !== plan.seal && (!planned.has(place) || deleted.has(place));
  });
  const isLate = (object: ReplicaObject) =>
    (object.kind === "change-set" && object.level > 0) ||
    known.has(objectKey(plan.database, { ...nameOf(object), seal: plan.seal }));
  return { late: came.filter(isLate), strangers: came.filter((object) => !isLate(object)) };
}

/** Both plans as one: what was planned, and what came later. */
export function joinPlans(plan: ReencryptPlan, later: ReencryptPlan): ReencryptPlan {
  const oldSeals = new Map(plan.oldSeals);
  for (const [seal, count] of later.oldSeals) oldSeals.set(seal, (oldSeals.get(seal) ?? 0) + count);
  return {
    ...plan,
    items: [...plan.items, ...later.items],
    objectCount: plan.objectCount + later.objectCount,
    sizeBytes: plan.sizeBytes + later.sizeBytes,
    oldSeals,
  };
}

/** Where a copy lies: destination and key. */
export function placeOf(database: string, object: ReplicaObject): string {
  return `${object.destination} ${keyOf(database, object)}`;
}

/** A seal in words. */
export function describeSeal(seal: string): string {
  return seal === PLAINTEXT_SEAL ? "plaintext" : `key ${seal}`;
}
