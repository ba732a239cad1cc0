import { PLAINTEXT_SEAL } from "../format/names.ts";
import type { Catalog, ReplicaObject } from "./catalog.ts";
import type { Knowledge } from "./facts.ts";
import { LineageGraph, type PathPreferences } from "./paths.ts";
import { planRetention } from "./retention-plan.ts";
import type { RetentionPolicy } from "./retention-policy.ts";

/** What decides which objects one destination lacks. */
export interface FillInputs {
  /** Of all destinations. */
  readonly catalog: Catalog;
  /** The destination that is to be filled, by its position. */
  readonly target: number;
  /** Those that objects may be taken from. */
  readonly sources: readonly number[];
  /** `unusable` is neither copied nor counted on. An object of which nothing is known is taken to be what its name says. */
  readonly knowledge: (object: ReplicaObject) => Knowledge;
  readonly preferences: PathPreferences;
  readonly policy: RetentionPolicy;
  /** Marked states, at whichever destination. */
  readonly marks: readonly number[];
  /** Unix milliseconds. */
  readonly nowMs: number;
}

/** An object that a destination lacks. */
export interface Missing {
  /** Copies of it under one name at other destinations, at least one, in the order of preference. */
  readonly sources: readonly ReplicaObject[];
}

export interface FillPlan {
  /** In the order in which to copy: what restores the newest state, then history backwards. */
  readonly missing: readonly Missing[];
  /** Of another history than what goes on furthest: never copied, and never written over. */
  readonly forks: readonly ReplicaObject[];
  /** Not encrypted although a key is configured: never copied, for that cannot be taken back. */
  readonly bare: readonly ReplicaObject[];
  /** The name is taken there by something that cannot be used. */
  readonly blocked: readonly ReplicaObject[];
  /** Load them and plan again: until then too much may be missing. */
  readonly unknown: readonly ReplicaObject[];
}

/**
 * What to copy to one destination from its siblings, so that every restore point that the policy keeps can be restored from it alone.
 * Pure. What it lacks because it was merged there, or because the policy gives it up at either side, is not brought back:
 * a deletion that was cut short at one destination is not undone from another.
 */
export function planFill(inputs: FillInputs): FillPlan {
  const { catalog, target, sources, knowledge, preferences } = inputs;
  const isUsable = (object: ReplicaObject) => knowledge(object) !== "unusable";
  const at = new Set([target, ...sources]);
  const objects = [...catalog.fulls, ...catalog.changeSets].filter(({ destination }) => at.has(destination));
  const graph = new LineageGraph(
    catalogOf(catalog, target, ({ destination }) => at.has(destination)),
    knowledge,
    preferences,
  );
  const forks = new Set(graph.forks);
  // They tell histories apart, also where nothing seems to be missing.
  const unknown = new Set(catalog.fulls.filter((full) => at.has(full.destination) && knowledge(full) === "unknown"));
  const expired = new Set<ReplicaObject>();
  const lacking = () =>
    findMissing({
      objects,
      target,
      seal: preferences.seal,
      isSound: (object) => isUsable(object) && !forks.has(object),
      isExpired: (object) => expired.has(object),
      isGone: () => false,
    });
  // The usual case, and what follows takes seconds with 100,000 objects.
  const isLacking = lacking().candidates.size > 0;
  for (const destination of isLacking ? at : []) {
    const own = catalogOf(catalog, destination, (object) => object.destination === destination);
    const plan = expiredIn(own, inputs);
    for (const object of plan.expired) expired.add(object);
    for (const object of plan.unknown) unknown.add(object);
  }
  const { candidates, blocked } = lacking();
  const taken = new Set(blocked);
  const found = keepUseful(candidates, {
    target,
    catalog,
    stands: [],
    forks,
    preferences,
    knowledge,
    expiredIn: (hypothetical) => {
      const plan = expiredIn(hypothetical, inputs);
      for (const object of plan.unknown) unknown.add(object);
      return plan.expired;
    },
  });
  const newest = graph.restorePoints.at(-1);
  const newestFull = newest === undefined ? undefined : graph.pathTo(newest)?.full.first;
  return {
    missing: found.missing.toSorted((a, b) => compareNeed(a, b, newestFull ?? 0)),
    forks: [...forks].filter((object) => (object.destination !== target && isUsable(object)) || taken.has(object)),
    bare: found.bare,
    blocked: blocked.filter((object) => !expired.has(object) && !forks.has(object)),
    unknown: [...unknown],
  };
}

export interface Expired {
  readonly expired: readonly ReplicaObject[];
  readonly unknown: readonly ReplicaObject[];
}

/**
 * What one destination is going to delete, by its own catalog. Without the grace that protects restores under way: what is deleted
 * in ten minutes is not to be copied now. What a failed verify or a refused pass keeps is kept for the sake of caution only.
 */
export function expiredIn(
  catalog: Catalog,
  { preferences, policy, marks, nowMs, knowledge }: Omit<FillInputs, "catalog" | "target" | "sources">,
): Expired {
  const plan = planRetention({
    catalog,
    knowledge,
    preferences,
    policy: { ...policy, graceMs: 0 },
    marks,
    frozen: null,
    nowMs,
  });
  return { expired: plan.expired.map(({ object }) => object), unknown: plan.unknown };
}

/** The objects that `accept` takes, as if one destination held them all. */
export function catalogOf(catalog: Catalog, destination: number, accept: (object: ReplicaObject) => boolean): Catalog {
  return {
    database: catalog.database,
    fulls: catalog.fulls.filter(accept),
    levels: catalog.levels.map((level) => level.filter(accept)),
    changeSets: catalog.changeSets.filter(accept),
    twins: new Map(),
    current: [catalog.current[destination] ?? null],
    manifest: [catalog.manifest[destination] ?? null],
    marks: catalog.marks.filter((mark) => mark.destination === destination),
    anomalies: [],
    anomalyCount: 0,
  };
}

export interface Lacking {
  /** At destinations that answer. */
  readonly objects: Iterable<ReplicaObject>;
  readonly target: number;
  /** That of the configured key. */
  readonly seal: string;
  /** Can be used, and is of our history. */
  readonly isSound: (object: ReplicaObject) => boolean;
  readonly isExpired: (object: ReplicaObject) => boolean;
  /** It was listed, and is not there. */
  readonly isGone: (object: ReplicaObject) => boolean;
}

/** What the target has no sound copy of, under whichever seal: the first source of each, with all of them. */
export function findMissing({ objects, target, seal, isSound, isExpired, isGone }: Lacking): {
  readonly candidates: ReadonlyMap<ReplicaObject, readonly ReplicaObject[]>;
  readonly blocked: readonly ReplicaObject[];
} {
  const candidates = new Map<ReplicaObject, readonly ReplicaObject[]>();
  const blocked: ReplicaObject[] = [];
  const rank = (object: ReplicaObject) => (object.seal === seal ? 0 : 1);
  for (const copies of Map.groupBy(objects, statesOf).values()) {
    const sound = copies.filter(isSound).sort((a, b) => rank(a) - rank(b) || a.destination - b.destination);
    // One that is being given up counts as there: it was there, and is not to come back.
    if (sound.some((copy) => copy.destination === target)) continue;
    const staying = sound.filter((copy) => !isExpired(copy));
    const [first] = staying;
    if (first === undefined) continue;
    const taken = copies.find((copy) => copy.destination === target && copy.seal === first.seal);
    const isFree = copies.some((copy) => copy.destination === target && isGone(copy));
    if (taken !== undefined && !isFree) blocked.push(taken);
    else
      candidates.set(
        first,
        staying.filter((copy) => copy.seal === first.seal),
      );
  }
  return { candidates, blocked };
}

export interface Hypothesis {
  readonly target: number;
  readonly catalog: Catalog;
  /** What stands in for damaged objects of the target that are about to be replaced. */
  readonly stands: Iterable<ReplicaObject>;
  readonly forks: ReadonlySet<ReplicaObject>;
  readonly preferences: PathPreferences;
  readonly knowledge: (object: ReplicaObject) => Knowledge;
  readonly expiredIn: (catalog: Catalog) => readonly ReplicaObject[];
}

/** Of the candidates those that a target that had them all would keep, and that would lead to a restore point there. */
export function keepUseful(
  candidates: ReadonlyMap<ReplicaObject, readonly ReplicaObject[]>,
  hypothesis: Hypothesis,
): { readonly missing: readonly Missing[]; readonly bare: readonly ReplicaObject[] } {
  if (candidates.size === 0) return { missing: [], bare: [] };
  const { target, catalog, forks, preferences, knowledge } = hypothesis;
  const stands = new Set([...candidates.keys(), ...hypothesis.stands]);
  const complete = catalogOf(
    catalog,
    target,
    (object) => (object.destination === target || stands.has(object)) && !forks.has(object),
  );
  const doomed = new Set(hypothesis.expiredIn(complete));
  const known = (object: ReplicaObject) => (doomed.has(object) ? "unusable" : knowledge(object));
  const graph = new LineageGraph(complete, known, preferences);
  const useless = new Set([...graph.unreached, ...graph.forks]);
  const missing: Missing[] = [];
  const bare: ReplicaObject[] = [];
  for (const [object, sources] of candidates) {
    if (doomed.has(object) || useless.has(object)) continue;
    // Whoever encrypts does not want plaintext carried to yet another place: that cannot be taken back.
    if (object.seal === PLAINTEXT_SEAL && preferences.seal !== PLAINTEXT_SEAL) bare.push(object);
    else missing.push({ sources });
  }
  return { missing, bare };
}

/** Equal for objects that lead between the same states, whatever their seal and destination. */
export function statesOf({ kind, level, first, last }: ReplicaObject): string {
  return `${kind} ${level} ${first} ${last}`;
}

/** The newest full backup, what follows it ascending, and then history backwards. */
function compareNeed(a: Missing, b: Missing, newestFull: number): number {
  const [left, right] = [a.sources[0], b.sources[0]];
  if (left === undefined || right === undefined) return 0;
  const [leftRank, rightRank] = [rankOf(left, newestFull), rankOf(right, newestFull)];
  if (leftRank !== rightRank) return leftRank - rightRank;
  if (leftRank < HISTORY) return left.first - right.first || right.last - left.last;
  return right.last - left.last || (left.kind === "full" ? 1 : 0) - (right.kind === "full" ? 1 : 0);
}

const HISTORY = 2;

function rankOf({ kind, first, last }: ReplicaObject, newestFull: number): number {
  if (kind === "full" && first === newestFull) return 0;
  return last > newestFull ? 1 : HISTORY;
}
