import { PLAINTEXT_SEAL } from "../format/names.ts";
import { STEP_LOOKS } from "../util/turns.ts";
import { type Catalog, copiesIn, type ReplicaObject } from "./catalog.ts";
import type { Knowledge } from "./facts.ts";
import { latePuts } from "./late-put.ts";
import { LineageGraph, type PathPreferences } from "./paths.ts";
import { planningRetention } from "./retention-plan.ts";
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
 * a deletion that was cut short at one destination is not undone from another. In steps of which each looks at all objects once or twice at
 * most: whoever shares a thread gives way in between.
 */
export function* planningFill(inputs: FillInputs): Generator<void, FillPlan> {
  const { catalog, target, sources, knowledge, preferences } = inputs;
  const isUsable = (object: ReplicaObject) => knowledge(object) !== "unusable";
  const at = new Set([target, ...sources]);
  const objects = [...catalog.fulls, ...catalog.changeSets].filter(({ destination }) => at.has(destination));
  const answering = catalogOf(catalog, target, ({ destination }) => at.has(destination));
  yield;
  const graph = yield* LineageGraph.building(answering, knowledge, preferences);
  yield;
  const forks = new Set(graph.forks);
  const late = latePuts(forks, answering.changeSets, knowledge);
  // They tell histories apart, also where nothing seems to be missing.
  const unknown = new Set(catalog.fulls.filter((full) => at.has(full.destination) && knowledge(full) === "unknown"));
  const forked = new Set([...forks].map(({ first }) => first));
  for (const object of forked.size === 0 ? [] : answering.changeSets)
    if (forked.has(object.first) && knowledge(object) === "unknown") unknown.add(object);
  const expired = new Set<ReplicaObject>();
  const lacking = () =>
    findingMissing({
      objects,
      target,
      seal: preferences.seal,
      isSound: (object) => isUsable(object) && !forks.has(object),
      isExpired: (object) => expired.has(object),
      isGone: () => false,
    });
  // The usual case, and what follows takes seconds with 100,000 objects.
  const isLacking = (yield* lacking()).candidates.size > 0;
  for (const destination of isLacking ? at : []) {
    const own = catalogOf(catalog, destination, (object) => object.destination === destination);
    const plan = yield* expiringIn(own, inputs);
    for (const object of plan.expired) expired.add(object);
    for (const object of plan.unknown) unknown.add(object);
  }
  const { candidates, blocked } = yield* lacking();
  const taken = new Set(blocked);
  const found = yield* keepingUseful(candidates, {
    target,
    catalog,
    stands: [],
    forks,
    preferences,
    knowledge,
    expiringIn: function* (hypothetical) {
      const plan = yield* expiringIn(hypothetical, inputs);
      for (const object of plan.unknown) unknown.add(object);
      return plan.expired;
    },
  });
  const newest = graph.restorePoints.at(-1);
  yield;
  const newestFull = newest === undefined ? undefined : graph.pathTo(newest)?.full.first;
  yield;
  const missing = yield* inOrderOfNeed(found.missing, newestFull ?? 0);
  yield;
  return {
    missing,
    forks: [...forks].filter(
      (object) => !late.has(object) && ((object.destination !== target && isUsable(object)) || taken.has(object)),
    ),
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
export function* expiringIn(
  catalog: Catalog,
  { preferences, policy, marks, nowMs, knowledge }: Omit<FillInputs, "catalog" | "target" | "sources">,
): Generator<void, Expired> {
  const plan = yield* planningRetention({
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
  /** At destinations that answer, in a catalog's order. */
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

export interface LackingThere {
  readonly candidates: ReadonlyMap<ReplicaObject, readonly ReplicaObject[]>;
  readonly blocked: readonly ReplicaObject[];
}

/** What the target has no sound copy of, under whichever seal: the first source of each, with all of them. */
export function* findingMissing({
  objects,
  target,
  seal,
  isSound,
  isExpired,
  isGone,
}: Lacking): Generator<void, LackingThere> {
  const candidates = new Map<ReplicaObject, readonly ReplicaObject[]>();
  const blocked: ReplicaObject[] = [];
  const rank = (object: ReplicaObject) => (object.seal === seal ? 0 : 1);
  let count = 0;
  for (const copies of copiesIn(objects)) {
    if (++count % STEP_LOOKS === 0) yield;
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
  readonly expiringIn: (catalog: Catalog) => Generator<void, readonly ReplicaObject[]>;
}

/** Of the candidates those that a target that had them all would keep, and that would lead to a restore point there. */
export function* keepingUseful(
  candidates: LackingThere["candidates"],
  hypothesis: Hypothesis,
): Generator<void, { readonly missing: readonly Missing[]; readonly bare: readonly ReplicaObject[] }> {
  if (candidates.size === 0) return { missing: [], bare: [] };
  const { target, catalog, forks, preferences, knowledge } = hypothesis;
  const stands = new Set([...candidates.keys(), ...hypothesis.stands]);
  const complete = catalogOf(
    catalog,
    target,
    (object) => (object.destination === target || stands.has(object)) && !forks.has(object),
  );
  yield;
  const doomed = new Set(yield* hypothesis.expiringIn(complete));
  yield;
  const known = (object: ReplicaObject) => (doomed.has(object) ? "unusable" : knowledge(object));
  const graph = yield* LineageGraph.building(complete, known, preferences);
  yield;
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
function* inOrderOfNeed(missing: readonly Missing[], newestFull: number): Generator<void, readonly Missing[]> {
  const newest: Needed[] = [];
  const following: Needed[] = [];
  const history: Needed[] = [];
  for (const one of missing) {
    const [object] = one.sources;
    if (object === undefined) continue;
    const { kind, first, last } = object;
    const group = kind === "full" && first === newestFull ? newest : last > newestFull ? following : history;
    group.push({ one, object });
  }
  yield;
  following.sort(({ object: a }, { object: b }) => a.first - b.first || b.last - a.last);
  yield;
  history.sort(({ object: a }, { object: b }) => b.last - a.last || kindOrder(a) - kindOrder(b));
  yield;
  return [...newest, ...following, ...history].map(({ one }) => one);
}

interface Needed {
  readonly one: Missing;
  readonly object: ReplicaObject;
}

/** Of what ends at one state, change-sets come before the full backup. */
function kindOrder({ kind }: ReplicaObject): number {
  return kind === "full" ? 1 : 0;
}
