import { objectKey, PLAINTEXT_SEAL } from "../../src/format/names.ts";
import { type Catalog, CatalogBuilder, keyOf, type ReplicaObject } from "../../src/replica/catalog.ts";
import { type MergePlan, type MergePlanInputs, planMerges } from "../../src/replica/compaction-plan.ts";
import type { Knowledge, ObjectFacts } from "../../src/replica/facts.ts";
import { LineageGraph } from "../../src/replica/paths.ts";
import { planRetention, type RetentionPlan } from "../../src/replica/retention-plan.ts";
import type { RetentionPolicy } from "../../src/replica/retention-policy.ts";

/** One committed state, as the writer knew it. */
export interface PaperState {
  readonly index: number;
  readonly chain: string;
  readonly lineage: string;
  /** By the writer's clock. */
  readonly stampMs: number;
  /** In truth. */
  readonly committedMs: number;
}

/** Every state that there was, in order and without a gap. A year has thirteen million, so only numbers are kept. */
export class PaperStates {
  #firstIndex = 0;
  #stampsMs = new Float64Array(1024);
  #committedMs = new Float64Array(1024);
  readonly #chains: { readonly from: number; readonly chain: string }[] = [];
  size = 0;

  add({ index, chain, stampMs, committedMs }: Omit<PaperState, "lineage">): PaperState {
    if (this.size === 0) this.#firstIndex = index;
    if (index !== this.#firstIndex + this.size) throw new Error(`state ${index} does not follow`);
    if (this.size === this.#stampsMs.length) {
      this.#stampsMs = grown(this.#stampsMs);
      this.#committedMs = grown(this.#committedMs);
    }
    this.#stampsMs[this.size] = stampMs;
    this.#committedMs[this.size] = committedMs;
    if (this.#chains.at(-1)?.chain !== chain) this.#chains.push({ from: index, chain });
    this.size++;
    return { index, chain, lineage: lineageOf(index), stampMs, committedMs };
  }

  get(index: number): PaperState | undefined {
    const i = index - this.#firstIndex;
    const [stampMs, committedMs] = [this.#stampsMs[i], this.#committedMs[i]];
    const chain = this.#chains.findLast(({ from }) => from <= index)?.chain;
    if (i < 0 || i >= this.size || stampMs === undefined || committedMs === undefined || chain === undefined) return;
    return { index, chain, lineage: lineageOf(index), stampMs, committedMs };
  }

  /** The newest one that was committed before this moment; 0 for none. Only while the true clock never steps back. */
  newestBefore(ms: number): number {
    const committed = this.#committedMs;
    let [low, high] = [0, this.size];
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((committed[middle] ?? 0) < ms) low = middle + 1;
      else high = middle;
    }
    return low === 0 ? 0 : this.#firstIndex + low - 1;
  }
}

function lineageOf(index: number): string {
  return `state ${index}`;
}

function grown(numbers: Float64Array<ArrayBuffer>): Float64Array<ArrayBuffer> {
  const larger = new Float64Array(numbers.length * 2);
  larger.set(numbers);
  return larger;
}

interface PaperObject {
  readonly key: string;
  readonly modifiedMs: number;
  readonly sizeBytes: number;
  readonly facts: ObjectFacts | "unusable";
}

export interface PaperPolicy {
  readonly levelWindowsMs: readonly number[];
  readonly retention: RetentionPolicy;
}

/** How far ahead of the truth each clock is. */
export interface Skews {
  hostMs: number;
  destinationMs: number;
}

const ROUNDS = 100;

/**
 * A replica at one destination of which only names and facts exist, so that years of it fit into seconds. Planning is that of
 * src/replica/; what a plan does is done here. An object's facts are unknown until a plan asked for them.
 */
export class PaperReplica {
  /** In truth, Unix milliseconds. */
  nowMs: number;
  readonly skews: Skews = { hostMs: 0, destinationMs: 0 };
  readonly states = new PaperStates();
  readonly objects = new Map<string, PaperObject>();
  readonly marks: number[] = [];
  #newest: PaperState | null = null;
  #chains = 0;
  #known = new Set<string>();
  #catalog: Catalog | null = null;
  /** How many facts were asked for. */
  loadCount = 0;

  constructor(startMs: number) {
    this.nowMs = startMs;
  }

  get newest(): PaperState {
    if (this.#newest === null) throw new Error("no chain was begun");
    return this.#newest;
  }

  get hostNowMs(): number {
    return this.nowMs + this.skews.hostMs;
  }

  get catalog(): Catalog {
    if (this.#catalog === null) {
      const builder = new CatalogBuilder("app");
      for (const { key, modifiedMs, sizeBytes } of this.objects.values())
        builder.add(0, { key, modifiedMs, sizeBytes });
      this.#catalog = builder.build();
    }
    return this.#catalog;
  }

  /** Has read everything. */
  learnAll(): void {
    this.#known = new Set(this.objects.keys());
  }

  /** Forgets what was read, as a new process does. */
  forget(): void {
    this.#known = new Set();
  }

  beginChain(): PaperState {
    this.#chains++;
    return this.#addState((this.#newest?.index ?? 0) + 1, `chain ${this.#chains}`);
  }

  /** The next state and its change-set. */
  commit(settledAfter = 0): PaperState {
    const before = this.newest;
    const state = this.#addState(before.index + 1, before.chain);
    const { index } = state;
    this.#putChangeSet(0, [before, state], { settled: index + settledAfter, compacted: false, sizeBytes: 1_000 });
    return state;
  }

  storeFull(index: number, settled = index, sizeBytes = 100_000): void {
    const state = this.states.get(index);
    if (state === undefined) throw new Error(`no state ${index}`);
    const facts = { ...this.#facts(state, state), parent: null, settled: Math.max(settled, index) };
    this.#put(objectKey("app", { kind: "full", index, seal: PLAINTEXT_SEAL }), sizeBytes, facts);
  }

  /** A change-set from the state before `first` to a state that is none of ours. */
  storeFork(level: number, first: number, last: number): void {
    const before = this.states.get(first - 1);
    if (before === undefined) return;
    const after = { ...before, index: last, lineage: `fork ${level} ${first} ${last}` };
    this.#putChangeSet(level, [before, after], { settled: last, compacted: level > 0, sizeBytes: 1_000 }, "f0f0f0f0");
  }

  putMerged(level: number, inputs: readonly ReplicaObject[]): void {
    const all = inputs.map((object) => this.#usableFacts(object));
    const [firstFacts, lastFacts] = [all[0], all.at(-1)];
    const [first, last] = [inputs[0]?.first, inputs.at(-1)?.last];
    if (firstFacts === undefined || lastFacts === undefined || first === undefined || last === undefined) return;
    const key = objectKey("app", { kind: "change-set", level, first, last, seal: PLAINTEXT_SEAL });
    if (this.objects.has(key)) return;
    const sizeBytes = inputs.reduce((sum, object) => sum + object.sizeBytes, 0) / 2;
    const settled = Math.max(...all.map((facts) => facts.settled));
    this.#put(key, sizeBytes, { ...lastFacts, parent: firstFacts.parent, settled, compacted: true });
  }

  remove(key: string): void {
    this.objects.delete(key);
    this.#catalog = null;
  }

  /** What a stored object says of itself becomes something else. */
  alter(key: string, changes: Partial<ObjectFacts>): void {
    const object = this.objects.get(key);
    if (object !== undefined && object.facts !== "unusable")
      this.objects.set(key, { ...object, facts: { ...object.facts, ...changes } });
  }

  damage(key: string): void {
    const object = this.objects.get(key);
    if (object !== undefined) this.objects.set(key, { ...object, facts: "unusable" });
  }

  /** As a plan sees it. */
  knowledge(object: ReplicaObject): Knowledge {
    const key = keyOf("app", object);
    return this.#known.has(key) ? (this.objects.get(key)?.facts ?? "unusable") : "unknown";
  }

  /** As it is. */
  facts(object: ReplicaObject): ObjectFacts | "unusable" {
    return this.objects.get(keyOf("app", object))?.facts ?? "unusable";
  }

  /** With all facts. */
  graph(): LineageGraph {
    return new LineageGraph(this.catalog, (object) => this.facts(object), { seal: PLAINTEXT_SEAL, current: null });
  }

  /** What would be merged at this moment at one level. */
  planLevel(level: number, windowMs: number, keepRecent: number, cuts: Iterable<number> = []): MergePlan {
    for (let round = 0; round < ROUNDS; round++) {
      const { catalog } = this;
      const knowledge = (object: ReplicaObject) => this.knowledge(object);
      const graph = new LineageGraph(catalog, knowledge, { seal: PLAINTEXT_SEAL, current: null });
      const inputs: MergePlanInputs = {
        catalog,
        knowledge,
        forks: new Set(graph.forks),
        level,
        windowMs,
        keepRecent,
        cuts: new Set([...catalog.fulls.map(({ first }) => first), ...this.marks, ...cuts]),
        seal: PLAINTEXT_SEAL,
        nowMs: this.hostNowMs,
      };
      const plan = planMerges(inputs);
      if (plan.unknown.length === 0) return plan;
      this.#load(plan.unknown);
    }
    throw new Error("planning merges does not come to an end");
  }

  compact({ levelWindowsMs, retention }: PaperPolicy, cuts: Iterable<number> = []): number {
    let merged = 0;
    for (const [i, windowMs] of levelWindowsMs.entries()) {
      const { merges } = this.planLevel(i + 1, windowMs, retention.keepRecent, cuts);
      for (const { level, inputs } of merges) this.putMerged(level, inputs);
      merged += merges.length;
    }
    return merged;
  }

  planPrune(policy: RetentionPolicy, frozen: string | null = null): RetentionPlan {
    for (let round = 0; round < ROUNDS; round++) {
      const plan = planRetention({
        catalog: this.catalog,
        knowledge: (object) => this.knowledge(object),
        preferences: { seal: PLAINTEXT_SEAL, current: null },
        policy,
        marks: this.marks,
        frozen,
        nowMs: this.hostNowMs,
      });
      if (plan.unknown.length === 0) return plan;
      this.#load(plan.unknown);
    }
    throw new Error("planning retention does not come to an end");
  }

  /** Carries a plan out, or the first `atMost` of its deletions. */
  prune(policy: RetentionPolicy, atMost = Number.POSITIVE_INFINITY): RetentionPlan {
    const plan = this.planPrune(policy);
    for (const { object } of plan.expired.slice(0, atMost)) this.remove(keyOf("app", object));
    return plan;
  }

  /** Our states that are restorable, found by trying every path. */
  restorable(): ReadonlySet<number> {
    const points = new Set<number>();
    const usable = [...this.objects.values()].flatMap(({ key, facts }) =>
      facts === "unusable" ? [] : [{ key, facts }],
    );
    const byParent = Map.groupBy(usable, ({ facts }) => facts.parent);
    for (const { facts: full } of byParent.get(null) ?? []) {
      const ways = [{ lineage: full.result, settled: full.settled }];
      const best = new Map<string, number>();
      for (const way of ways) {
        const state = this.#stateOf(way.lineage);
        if (state !== undefined && way.settled <= state.index) points.add(state.index);
        for (const { facts } of byParent.get(way.lineage) ?? []) {
          const settled = Math.max(way.settled, facts.settled);
          if (settled >= (best.get(facts.result) ?? Number.POSITIVE_INFINITY)) continue;
          best.set(facts.result, settled);
          ways.push({ lineage: facts.result, settled });
        }
      }
    }
    return points;
  }

  #stateOf(lineage: string): PaperState | undefined {
    const index = Number(lineage.split(" ")[1]);
    const state = this.states.get(index);
    return state?.lineage === lineage ? state : undefined;
  }

  #usableFacts(object: ReplicaObject): ObjectFacts {
    const facts = this.objects.get(keyOf("app", object))?.facts;
    if (facts === undefined || facts === "unusable")
      throw new Error(`merging ${keyOf("app", object)}, which is damaged`);
    return facts;
  }

  #load(objects: readonly ReplicaObject[]): void {
    for (const object of objects) this.#known.add(keyOf("app", object));
    this.loadCount += objects.length;
  }

  #addState(index: number, chain: string): PaperState {
    this.#newest = this.states.add({ index, chain, stampMs: this.hostNowMs, committedMs: this.nowMs });
    return this.#newest;
  }

  #facts(before: PaperState, state: PaperState): ObjectFacts {
    return {
      chain: state.chain,
      pageSizeBytes: 4096,
      parent: before.lineage,
      result: state.lineage,
      settled: state.index,
      sizePages: 100,
      pageCount: 1,
      commits: 1,
      firstCommitMs: state.stampMs,
      lastCommitMs: state.stampMs,
      compacted: false,
    };
  }

  #putChangeSet(
    level: number,
    [before, after]: readonly [PaperState, PaperState],
    { settled, compacted, sizeBytes }: { settled: number; compacted: boolean; sizeBytes: number },
    seal: string = PLAINTEXT_SEAL,
  ): void {
    const name = { kind: "change-set", level, first: before.index + 1, last: after.index, seal } as const;
    this.#put(objectKey("app", name), sizeBytes, { ...this.#facts(before, after), settled, compacted });
  }

  #put(key: string, sizeBytes: number, facts: ObjectFacts): void {
    const modifiedMs = this.nowMs + this.skews.destinationMs;
    this.objects.set(key, { key, modifiedMs, sizeBytes, facts });
    this.#catalog = null;
  }
}
