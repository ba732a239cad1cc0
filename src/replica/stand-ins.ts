import type { ReplicaObject } from "./catalog.ts";
import type { Knowledge, ObjectFacts } from "./facts.ts";
import { Spans } from "./spans.ts";

export interface StandInInputs {
  /** Those that can be used and are no forks, ascending by first. */
  readonly changeSets: readonly ReplicaObject[];
  /** Change-sets of lineages that ours has left behind. */
  readonly forks: readonly ReplicaObject[];
  readonly fulls: readonly ReplicaObject[];
  readonly knowledge: (object: ReplicaObject) => Knowledge;
  /** States that nothing may step over. */
  readonly cuts: readonly number[];
}

/** What a compacted change-set stands for. */
export interface StoodFor {
  /** Of a lower level, within its states, and joined to them by lineage; the newest first, and of those that end together the longest. */
  readonly inputs: readonly ReplicaObject[];
  /** What must be read before anything can be said; `inputs` is empty then. */
  readonly unknown: readonly ReplicaObject[];
}

const NOTHING: StoodFor = { inputs: [], unknown: [] };

/**
 * Tells what each compacted change-set stands for, from lineage alone: nothing is taken on trust that the facts do not show. Where two
 * lineages meet, where a change-set begins inside and ends behind, and where what follows does not follow, it stands for nothing. Nor
 * does it where there is a fork: without the states that exclude it, it would be taken for ours, and perhaps it is.
 */
export class StandIns {
  readonly #inputs: StandInInputs;
  /** Ascending. */
  readonly #cuts: readonly number[];
  readonly #forks: Spans;
  /** Ascending by last. */
  readonly #byLast: readonly ReplicaObject[];

  constructor(inputs: StandInInputs) {
    this.#inputs = inputs;
    this.#cuts = inputs.cuts.toSorted((a, b) => a - b);
    this.#forks = new Spans(inputs.forks.filter(({ kind }) => kind === "change-set").sort((a, b) => a.first - b.first));
    this.#byLast = inputs.changeSets.toSorted((a, b) => a.last - b.last);
  }

  /** Change-sets of lower levels within its states, by name alone. */
  spannedBy(result: ReplicaObject): readonly ReplicaObject[] {
    return this.#beginningIn(result.first, result.last).filter(
      ({ level, last }) => level < result.level && last <= result.last,
    );
  }

  examine(result: ReplicaObject): StoodFor {
    const { first, last } = result;
    if (hasWithin(this.#cuts, first, last) || this.#forks.overlap(result)) return NOTHING;
    const within = [...this.#reachingInto(result), ...this.#beginningIn(first, last)];
    if (within.some((object) => object.first > first && object.last > last)) return NOTHING;
    const followers = this.#beginningIn(last + 1, last + 1);
    const unknown = [result, ...within, ...followers].filter((object) => this.#inputs.knowledge(object) === "unknown");
    if (unknown.length > 0) return { ...NOTHING, unknown };

    const facts = this.#factsOf(result);
    // One that is settled later than where it ends would take away the restore point that it should leave.
    if (facts === null || !facts.compacted || facts.settled > last) return NOTHING;
    if (!this.#isFollowed(result, facts, followers) || this.#hasRivals(result, facts, within)) return NOTHING;
    if (followers.length === 0 && !this.#isConfirmed(result, facts, within)) return NOTHING;
    return { inputs: this.#joined(result, facts, within), unknown: [] };
  }

  /** Whether what begins where it ends, if anything does, goes on from its lineage. */
  #isFollowed({ last }: ReplicaObject, { result }: ObjectFacts, followers: readonly ReplicaObject[]): boolean {
    for (const full of this.#inputs.fulls) {
      const facts = full.first === last ? this.#factsOf(full) : null;
      if (facts !== null && facts.result !== result) return false;
    }
    return followers.length === 0 || followers.some((object) => this.#factsOf(object)?.parent === result);
  }

  /**
   * Whether something else that was read ends in the same state. Where nothing does and nothing follows, what led there may be damaged or
   * gone, and this one another writer's.
   */
  #isConfirmed(object: ReplicaObject, { result }: ObjectFacts, within: readonly ReplicaObject[]): boolean {
    return [...within, ...this.#inputs.fulls].some(
      (other) => other !== object && other.last === object.last && this.#factsOf(other)?.result === result,
    );
  }

  /** Whether the facts of `within` give any state another lineage than it has, or than each other. */
  #hasRivals({ first, last }: ReplicaObject, facts: ObjectFacts, within: readonly ReplicaObject[]): boolean {
    const lineages = new Map<number, string | null>([
      [first - 1, facts.parent],
      [last, facts.result],
    ]);
    const disagrees = (index: number, lineage: string | null) => {
      const known = lineages.get(index);
      if (known === undefined) lineages.set(index, lineage);
      return known !== undefined && known !== lineage;
    };
    return within.some((object) => {
      const { parent = null, result = null, chain = null } = this.#factsOf(object) ?? {};
      const isOfOtherChain = chain !== null && facts.chain !== null && chain !== facts.chain;
      return isOfOtherChain || disagrees(object.first - 1, parent) || disagrees(object.last, result);
    });
  }

  /** Those that lineage leads to from its beginning, or that lead to its end. */
  #joined(result: ReplicaObject, facts: ObjectFacts, within: readonly ReplicaObject[]): readonly ReplicaObject[] {
    const isInside = ({ level, first, last }: ReplicaObject) =>
      level < result.level && result.first <= first && last <= result.last;
    const lower = within.filter(isInside);
    const joined = new Set<ReplicaObject>();
    const forwards = new Set([facts.parent]);
    for (const object of lower) {
      const { parent = null, result: end = null } = this.#factsOf(object) ?? {};
      if (!forwards.has(parent)) continue;
      forwards.add(end);
      joined.add(object);
    }
    const newestFirst = lower.toSorted((a, b) => b.last - a.last || a.first - b.first);
    const backwards = new Set<string | null>([facts.result]);
    for (const object of newestFirst) {
      const { parent = null, result: end = null } = this.#factsOf(object) ?? {};
      if (!backwards.has(end)) continue;
      backwards.add(parent);
      joined.add(object);
    }
    return newestFirst.filter((object) => joined.has(object));
  }

  #factsOf(object: ReplicaObject): ObjectFacts | null {
    const facts = this.#inputs.knowledge(object);
    return typeof facts === "object" ? facts : null;
  }

  /** Change-sets whose first lies from `first` to `last`. */
  #beginningIn(first: number, last: number): readonly ReplicaObject[] {
    const { changeSets } = this.#inputs;
    const start = countBelow(changeSets, first, (object) => object.first);
    let end = start;
    while ((changeSets[end]?.first ?? Number.POSITIVE_INFINITY) <= last) end++;
    return changeSets.slice(start, end);
  }

  /** Change-sets that begin before it and end inside. */
  #reachingInto({ first, last }: ReplicaObject): readonly ReplicaObject[] {
    const found: ReplicaObject[] = [];
    for (let i = countBelow(this.#byLast, first, (object) => object.last); i < this.#byLast.length; i++) {
      const object = this.#byLast[i];
      if (object === undefined || object.last >= last) break;
      if (object.first < first) found.push(object);
    }
    return found;
  }
}

/** Whether one of the ascending states lies from `first` to before `last`. */
function hasWithin(ascending: readonly number[], first: number, last: number): boolean {
  return (ascending[countBelow(ascending, first, (index) => index)] ?? Number.POSITIVE_INFINITY) < last;
}

/** How many of `ascending` are below `value`. */
function countBelow<Item>(ascending: readonly Item[], value: number, indexOf: (item: Item) => number): number {
  let [low, high] = [0, ascending.length];
  while (low < high) {
    const middle = (low + high) >>> 1;
    const item = ascending[middle];
    if (item !== undefined && indexOf(item) < value) low = middle + 1;
    else high = middle;
  }
  return low;
}
