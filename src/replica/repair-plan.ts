import { atOnce } from "../util/turns.ts";
import { type Catalog, keyBelow, type ReplicaObject } from "./catalog.ts";
import type { ObjectFacts } from "./facts.ts";
import { catalogOf, expiringIn, findingMissing, keepingUseful, statesOf } from "./fill.ts";
import { latePuts } from "./late-put.ts";
import { LineageGraph, type PathPreferences } from "./paths.ts";
import type { Verdict } from "./repair-scan.ts";
import type { RetentionPolicy } from "./retention-policy.ts";

/** Everything that a decision about repairing is made of. */
export interface RepairInputs {
  /** Of all destinations. */
  readonly catalog: Catalog;
  readonly destinationCount: number;
  /** null: not read. */
  readonly verdictOf: (object: ReplicaObject) => Verdict | null;
  /** Destinations that do not answer: nothing is taken from there and nothing written. */
  readonly isDown: (destination: number) => boolean;
  readonly preferences: PathPreferences;
  readonly policy: RetentionPolicy;
  /** Marked states, at whichever destination. */
  readonly marks: readonly number[];
  /** Unix milliseconds. */
  readonly nowMs: number;
}

/** One object to be written at one destination, byte for byte as it is at another one. */
export interface Healing {
  readonly action: "replace" | "add";
  readonly destination: number;
  /** The damaged copy; null when there is none. */
  readonly damaged: ReplicaObject | null;
  /** Sound copies under the same name, at least one, in the order of preference. */
  readonly sources: readonly ReplicaObject[];
}

export type TroubleKind =
  | "lost" // damaged, and no destination that answers has a sound copy
  | "fork" // of another history than the rest: it is left alone
  | "sealed" // the configured key does not open it
  | "foreign" // of another database or a newer format
  | "denied" // the destination does not give it
  | "plaintext"; // needed at another destination, and not encrypted although a key is configured

/** What cannot be repaired, and why. */
export interface PlannedTrouble {
  readonly kind: TroubleKind;
  readonly object: ReplicaObject;
  /** Restore points that only this object stands in the way of, where it is lost. */
  readonly cost: LostPoints | null;
}

export interface LostPoints {
  readonly count: number;
  readonly oldest: number;
  readonly newest: number;
}

export interface RepairPlan {
  /** Those that matter most first: damaged objects, then what leads to the newest states. */
  readonly healings: readonly Healing[];
  readonly troubles: readonly PlannedTrouble[];
}

/** Of so many lost objects it is found out what each costs; each takes a graph. */
const MAX_COSTED = 20;

/**
 * What to write where, so that every destination has a sound copy of all that its kept restore points need: the rules are in
 * docs/repair.md. Pure. It takes nothing away, and what a destination lacks because it was merged, or because the policy gives
 * it up at either side, is not brought back.
 */
export function planRepair(inputs: RepairInputs): RepairPlan {
  return new RepairPlanner(inputs).plan();
}

class RepairPlanner {
  readonly #inputs: RepairInputs;
  /** At destinations that answer. */
  readonly #objects: readonly ReplicaObject[];
  /** By what states it leads between, whatever the seal. */
  readonly #copies: ReadonlyMap<string, readonly ReplicaObject[]>;
  readonly #graph: LineageGraph;
  readonly #forks: ReadonlySet<ReplicaObject>;
  readonly #troubles: PlannedTrouble[] = [];

  constructor(inputs: RepairInputs) {
    this.#inputs = inputs;
    const { fulls, changeSets } = inputs.catalog;
    this.#objects = [...fulls, ...changeSets].filter(({ destination }) => !inputs.isDown(destination));
    this.#copies = Map.groupBy(this.#objects, statesOf);
    this.#graph = this.#graphOf(inputs.catalog, (object) => this.#factsOf(object));
    this.#forks = this.#findForks();
  }

  plan(): RepairPlan {
    const healings: Healing[] = [];
    const lost: ReplicaObject[] = [];
    const late = latePuts(this.#forks, this.#inputs.catalog.changeSets, (object) => this.#factsOf(object));
    for (const object of this.#objects) {
      if (late.has(object)) continue;
      const verdict = this.#inputs.verdictOf(object);
      if (this.#forks.has(object)) this.#trouble("fork", object);
      else if (verdict?.kind === "damaged") {
        const answer = this.#sourcesFor(object, verdict.facts);
        if (answer === "fork") this.#trouble("fork", object);
        else if (answer.length === 0) lost.push(object);
        else healings.push({ action: "replace", destination: object.destination, damaged: object, sources: answer });
      } else if (verdict?.kind === "sealed" || verdict?.kind === "foreign" || verdict?.kind === "denied") {
        this.#trouble(verdict.kind, object);
      }
    }
    this.#addLost(lost);
    const replaced = healings.toSorted(byUse);
    const added: Healing[] = [];
    const expired = this.#findExpired();
    for (let destination = 0; destination < this.#inputs.destinationCount; destination++)
      if (!this.#inputs.isDown(destination)) added.push(...this.#findMissing(destination, expired, replaced));
    return { healings: [...replaced, ...added.sort(byUse)], troubles: this.#troubles };
  }

  #trouble(kind: TroubleKind, object: ReplicaObject, cost: LostPoints | null = null): void {
    this.#troubles.push({ kind, object, cost });
  }

  #factsOf(object: ReplicaObject): ObjectFacts | null {
    if (this.#inputs.isDown(object.destination)) return null;
    const verdict = this.#inputs.verdictOf(object);
    return verdict?.kind === "sound" ? verdict.facts : null;
  }

  #graphOf(catalog: Catalog, factsOf: (object: ReplicaObject) => ObjectFacts | "unknown" | null): LineageGraph {
    return new LineageGraph(catalog, (object) => factsOf(object) ?? "unusable", this.#inputs.preferences);
  }

  /** What the graph calls so, and sound copies of one name that disagree about the history where the graph cannot tell. */
  #findForks(): ReadonlySet<ReplicaObject> {
    const forks = new Set(this.#graph.forks);
    const unreached = new Set(this.#graph.unreached);
    for (const copies of this.#copies.values()) {
      const sound = copies.filter((object) => this.#factsOf(object) !== null && !forks.has(object));
      const [first] = sound;
      if (first === undefined || sound.every((object) => this.#isSameHistory(first, object))) continue;
      const ours = sound.find((object) => !unreached.has(object));
      for (const object of sound) if (ours === undefined || !this.#isSameHistory(ours, object)) forks.add(object);
    }
    return forks;
  }

  #isSameHistory(a: ReplicaObject, b: ReplicaObject): boolean {
    const [left, right] = [this.#factsOf(a), this.#factsOf(b)];
    return left !== null && right !== null && agrees(left, right);
  }

  /** Sound copies of the same name; "fork" when what is left of the damaged one, or what stands beside it, is of another history. */
  #sourcesFor(damaged: ReplicaObject, left: ObjectFacts | null): readonly ReplicaObject[] | "fork" {
    const sources = this.#soundCopies(damaged).filter(({ seal }) => seal === damaged.seal);
    const [first] = sources;
    const facts = first === undefined ? null : this.#factsOf(first);
    if (facts === null) return [];
    const isOther = (left !== null && !agrees(left, facts)) || !this.#fits(damaged, facts);
    return isOther ? "fork" : sources;
  }

  #soundCopies(object: ReplicaObject): readonly ReplicaObject[] {
    const copies = this.#copies.get(statesOf(object)) ?? [];
    return copies
      .filter((copy) => this.#factsOf(copy) !== null && !this.#forks.has(copy))
      .sort((a, b) => this.#rank(a) - this.#rank(b) || a.destination - b.destination);
  }

  #rank({ seal }: ReplicaObject): number {
    return seal === this.#inputs.preferences.seal ? 0 : 1;
  }

  /** Whether the sound objects beside it at the same destination can be of one history with an object with these facts. */
  #fits(place: ReplicaObject, facts: ObjectFacts): boolean {
    const { destination, kind } = place;
    const before = kind === "full" ? [] : this.#resultsAt(destination, place.first - 1);
    const beside = this.#resultsAt(destination, place.last);
    const after = this.#parentsAfter(destination, place.last);
    const isAmong = (lineages: readonly string[], lineage: string | null) =>
      lineages.length === 0 || lineage === null || lineages.includes(lineage);
    // A chain begins anew beside the end of another one: what follows says less than what is there.
    return isAmong(before, facts.parent) && isAmong(beside.length > 0 ? beside : after, facts.result);
  }

  #resultsAt(destination: number, index: number): readonly string[] {
    return this.#neighbours.results.get(`${destination} ${index}`) ?? [];
  }

  #parentsAfter(destination: number, index: number): readonly string[] {
    return this.#neighbours.parents.get(`${destination} ${index}`) ?? [];
  }

  #neighboursFound: Neighbours | null = null;
  get #neighbours(): Neighbours {
    if (this.#neighboursFound !== null) return this.#neighboursFound;
    const results = new Map<string, string[]>();
    const parents = new Map<string, string[]>();
    const add = (map: Map<string, string[]>, key: string, lineage: string) => {
      const known = map.get(key);
      if (known === undefined) map.set(key, [lineage]);
      else known.push(lineage);
    };
    for (const object of this.#objects) {
      const facts = this.#factsOf(object);
      if (facts === null) continue;
      add(results, `${object.destination} ${object.last}`, facts.result);
      if (facts.parent !== null) add(parents, `${object.destination} ${object.first - 1}`, facts.parent);
    }
    this.#neighboursFound = { results, parents };
    return this.#neighboursFound;
  }

  /** By how many restore points there would be if all lost objects were sound, and if all but this one were. */
  #addLost(lost: readonly ReplicaObject[]): void {
    if (lost.length === 0) return;
    const names = Map.groupBy(lost, keyBelow);
    const leftOf = (object: ReplicaObject) => {
      const verdict = this.#inputs.verdictOf(object);
      return verdict?.kind === "damaged" ? (verdict.facts ?? "unknown") : null;
    };
    const all = new Set(lost);
    const { catalog } = this.#inputs;
    const pointsWith = (found: (object: ReplicaObject) => boolean) =>
      this.#graphOf(catalog, (object) => this.#factsOf(object) ?? (found(object) ? leftOf(object) : null))
        .restorePoints;
    const complete = lost.length > 0 && names.size <= MAX_COSTED ? pointsWith((object) => all.has(object)) : null;
    for (const [name, objects] of names) {
      const rest =
        complete === null ? null : new Set(pointsWith((object) => all.has(object) && keyBelow(object) !== name));
      const points = rest === null ? [] : (complete ?? []).filter((index) => !rest.has(index));
      const cost = rest === null ? null : { count: points.length, oldest: points[0] ?? 0, newest: points.at(-1) ?? 0 };
      for (const object of objects) this.#trouble("lost", object, cost);
    }
  }

  /** What each destination is about to delete, by its own catalog. */
  #findExpired(): ReadonlySet<ReplicaObject> {
    const { catalog, destinationCount, isDown } = this.#inputs;
    const expired = new Set<ReplicaObject>();
    for (let destination = 0; destination < destinationCount; destination++) {
      if (isDown(destination)) continue;
      const own = catalogOf(catalog, destination, (object) => object.destination === destination);
      for (const object of atOnce(this.#expiringIn(own))) expired.add(object);
    }
    return expired;
  }

  *#expiringIn(catalog: Catalog): Generator<void, readonly ReplicaObject[]> {
    const knowledge = (object: ReplicaObject) => this.#factsOf(object) ?? "unusable";
    return (yield* expiringIn(catalog, { ...this.#inputs, knowledge })).expired;
  }

  #findMissing(target: number, expired: ReadonlySet<ReplicaObject>, replaced: readonly Healing[]): readonly Healing[] {
    const frontier = this.#ownHistoryFrom(target);
    const lacking = findingMissing({
      objects: this.#objects.filter(({ last }) => last < frontier),
      target,
      seal: this.#inputs.preferences.seal,
      isSound: (object) => this.#factsOf(object) !== null && !this.#forks.has(object),
      isExpired: (object) => expired.has(object),
      isGone: (object) => this.#inputs.verdictOf(object)?.kind === "gone",
    });
    const useful = keepingUseful(atOnce(lacking).candidates, {
      target,
      catalog: this.#inputs.catalog,
      stands: replaced.flatMap(({ destination, sources }) => (destination === target ? sources.slice(0, 1) : [])),
      forks: this.#forks,
      preferences: this.#inputs.preferences,
      knowledge: (object) => this.#factsOf(object) ?? "unusable",
      expiringIn: (catalog) => this.#expiringIn(catalog),
    });
    const { missing, bare } = atOnce(useful);
    for (const object of bare) this.#trouble("plaintext", object);
    return missing.map(({ sources }) => ({ action: "add", destination: target, damaged: null, sources }));
  }

  /**
   * The first state of a history that only this destination goes on with; infinite where it goes on with the common one. Whoever
   * writes there would meet objects of ours in his way.
   */
  #ownHistoryFrom(destination: number): number {
    const own = this.#objects.filter((object) => object.destination === destination && this.#factsOf(object) !== null);
    const newest = own.reduce((max, { last }) => Math.max(max, last), 0);
    const isAside = own.some((object) => object.last === newest && this.#forks.has(object));
    if (!isAside) return Number.POSITIVE_INFINITY;
    return own.reduce((min, object) => (this.#forks.has(object) ? Math.min(min, object.first) : min), newest);
  }
}

interface Neighbours {
  /** Lineages, by destination and the index that an object ends at. */
  readonly results: ReadonlyMap<string, readonly string[]>;
  /** Lineages, by destination and the index that a change-set leads away from. */
  readonly parents: ReadonlyMap<string, readonly string[]>;
}

/** Whether two objects of one name say the same of the history; how they are encoded does not matter. */
export function agrees(a: ObjectFacts, b: ObjectFacts): boolean {
  return a.parent === b.parent && a.result === b.result && a.chain === b.chain;
}

/** What leads to the newest states first; of what begins at one state the change-sets before the full backup. */
function byUse(a: Healing, b: Healing): number {
  const [left, right] = [a.sources[0], b.sources[0]];
  if (left === undefined || right === undefined) return 0;
  return (
    right.last - left.last ||
    (left.kind === "full" ? 1 : 0) - (right.kind === "full" ? 1 : 0) ||
    a.destination - b.destination
  );
}
