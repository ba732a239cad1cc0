import { assert, BakeliteError } from "../util/errors.ts";
import { atOnce, STEP_LOOKS } from "../util/turns.ts";
import { upperBound } from "../util/upper-bound.ts";
import type { Catalog, ReplicaObject } from "./catalog.ts";
import type { Knowledge, ObjectFacts } from "./facts.ts";

/** How to lay down one state: the full backup, then the change-sets, ascending; each begins where the one before it ends. */
export interface StatePath {
  readonly index: number;
  readonly full: ReplicaObject;
  readonly changeSets: readonly ReplicaObject[];
}

export interface PathPreferences {
  /** The seal of the configured key, or `p`. Objects under another seal are used only where there is no other way. */
  readonly seal: string;
  /** What `CURRENT` names: it settles which of two equally long lineages is ours. */
  readonly current: { readonly index: number; readonly lineage: string } | null;
}

/** A node's number: the states in the order in which they were found. */
type Node = number;
/** An edge's number: the ways to states in the order in which they were found. */
type Edge = number;
const NONE = -1;

const UNDECIDED = 0;
const KEPT = 1;
const FORK = 2;
/** Only while a walk marks where it has been. */
const REACHED = 3;

type KnowledgeOf = (object: ReplicaObject) => Knowledge;

/**
 * Every state that the stored objects lead to from a full backup, and how (docs/storage-format.md section 8). Pure, and
 * optimistic: an object that nothing is known of is taken to fit by its name, and to be settled at its last index, so
 * that a caller can look at the few objects that matter and build the graph anew. Objects that are `unusable` are left
 * out, which walks around them. Building takes time (n log n) and memory in proportion to the number of objects: some 50 ms
 * and 10 MB for 100,000.
 */
export class LineageGraph {
  /** Restore points, ascending: states of a lineage that is not a fork, for which everything on some path is settled. */
  readonly restorePoints: readonly number[];
  /** Usable change-sets that no path from a full backup reaches: what follows a gap, or leftovers. */
  readonly unreached: readonly ReplicaObject[];
  readonly #states: StateTable;
  readonly #preferences: PathPreferences;
  #search: PathSearch | null = null;

  /** `built` is for `building` only. */
  constructor(
    catalog: Catalog,
    knowledge: KnowledgeOf,
    preferences: PathPreferences,
    built: BuiltStates = atOnce(buildStates(catalog, knowledge, preferences)),
  ) {
    this.#preferences = preferences;
    this.#states = built.states;
    this.unreached = built.unreached;
    this.restorePoints = built.restorePoints;
  }

  /** As the constructor, in steps of a few milliseconds for 100,000 objects: whoever shares a thread gives way in between. */
  static *building(
    catalog: Catalog,
    knowledge: KnowledgeOf,
    preferences: PathPreferences,
  ): Generator<void, LineageGraph> {
    const built = yield* buildStates(catalog, knowledge, preferences);
    return new LineageGraph(catalog, knowledge, preferences, built);
  }

  /** The newest state of all, restore point or not, or null. */
  get newestIndex(): number | null {
    const states = this.#states;
    for (let position = states.nodeCount - 1; position >= 0; position--)
      if (states.standingOf(states.nodeAt(position)) === KEPT) return states.indexOf(states.nodeAt(position));
    return null;
  }

  /** Change-sets and full backups that lead to states of a lineage which ours has left behind, and to no other. */
  get forks(): readonly ReplicaObject[] {
    const states = this.#states;
    const forks = new Set<ReplicaObject>();
    for (let position = 0; position < states.nodeCount; position++) {
      const node = states.nodeAt(position);
      if (states.standingOf(node) === FORK) for (const object of states.objectsAt(node)) forks.add(object);
    }
    if (forks.size > 0)
      for (let position = 0; position < states.nodeCount; position++) {
        const node = states.nodeAt(position);
        if (states.standingOf(node) !== FORK) for (const object of states.objectsAt(node)) forks.delete(object);
      }
    return [...forks];
  }

  /** Indexes at which two lineages are known and neither is known to be a fork: what follows them tells. */
  get contested(): ReadonlySet<number> {
    const states = this.#states;
    const contested = new Set<number>();
    let previousIndex = NONE;
    for (let position = 0; position < states.nodeCount; position++) {
      const node = states.nodeAt(position);
      if (states.lineageOf(node) === null || states.standingOf(node) !== KEPT) continue;
      const index = states.indexOf(node);
      if (previousIndex === index) contested.add(index);
      previousIndex = index;
    }
    return contested;
  }

  isRestorePoint(index: number): boolean {
    return this.#restorePoint(index) !== NONE;
  }

  /** The objects of which each tells the stamp of state `index`, the change-sets that lead to it first. */
  stampSources(index: number): readonly ReplicaObject[] {
    const objects = [...this.#states.at(index)]
      .filter((node) => this.#states.standingOf(node) === KEPT)
      .flatMap((node) => this.#states.objectsAt(node));
    return objects.toSorted((a, b) => (a.kind === "full" ? 1 : 0) - (b.kind === "full" ? 1 : 0));
  }

  /**
   * The path to restore point `index`: from the newest full backup that leads there with everything settled; from it the
   * path with the fewest objects under a foreign seal, then the most from the first destinations, then the fewest. null
   * when `index` is not a restore point. Looks at each way into the states from that full backup on once.
   */
  pathTo(index: number): StatePath | null {
    const states = this.#states;
    const target = this.#restorePoint(index);
    if (target === NONE) return null;
    this.#search ??= new PathSearch(states, this.#preferences);
    const search = this.#search;
    search.begin(target);
    // Backwards from the target: the first node with a full backup has the newest of all that lead there. Whatever leads to
    // a node has a lower index, so it comes later.
    for (let position = states.positionOf(target); position >= 0; position--) {
      const node = states.nodeAt(position);
      if (!search.hasReached(node)) continue;
      const full = this.#bestFull(node, index);
      if (full !== null) return { index, full, changeSets: search.follow(node) };
      for (let edge = states.firstEdge(node); edge !== NONE; edge = states.nextEdge(edge))
        if (states.edgeSettled(edge) <= index && states.edgeFrom(edge) !== NONE) search.reach(edge, node);
    }
    throw new BakeliteError("internal", `invariant broken: restore point ${index} has a path from a full backup`);
  }

  #restorePoint(index: number): Node {
    const states = this.#states;
    let found = NONE;
    for (let node = states.first(index); node !== NONE; node = states.next(node))
      if (states.isRestorePoint(node) && (found === NONE || states.lineageOf(found) === null)) found = node;
    return found;
  }

  #bestFull(node: Node, index: number): ReplicaObject | null {
    const states = this.#states;
    let best: ReplicaObject | null = null;
    for (let edge = states.firstEdge(node); edge !== NONE; edge = states.nextEdge(edge)) {
      if (states.edgeFrom(edge) !== NONE || states.edgeSettled(edge) > index) continue;
      const object = states.edgeObject(edge);
      if (best === null || this.#compareFulls(object, best) < 0) best = object;
    }
    return best;
  }

  #compareFulls(a: ReplicaObject, b: ReplicaObject): number {
    const { seal } = this.#preferences;
    return foreignness(a, seal) - foreignness(b, seal) || a.destination - b.destination;
  }
}

/** 1 for an object under another seal than the configured one. */
function foreignness(object: ReplicaObject, seal: string): number {
  return object.seal === seal ? 0 : 1;
}

interface BuiltStates {
  readonly states: StateTable;
  readonly unreached: readonly ReplicaObject[];
  readonly restorePoints: readonly number[];
}

function* buildStates(
  catalog: Catalog,
  knowledge: KnowledgeOf,
  preferences: PathPreferences,
): Generator<void, BuiltStates> {
  const states = new StateTable(catalog);
  yield;
  placeFulls(states, catalog, knowledge);
  const unreached = yield* placeChangeSets(states, catalog, knowledge);
  states.sort();
  yield;
  yield* tellForks(states, preferences);
  const restorePoints: number[] = [];
  for (let position = 0; position < states.nodeCount; position++) {
    const node = states.nodeAt(position);
    const index = states.indexOf(node);
    if (states.isRestorePoint(node) && restorePoints.at(-1) !== index) restorePoints.push(index);
    if (position % STEP_LOOKS === 0) yield;
  }
  return { states, unreached, restorePoints };
}

/** How a state is reached: by a change-set from another state, or by a full backup from none. */
interface Arrival {
  readonly object: ReplicaObject;
  /** NONE for a full backup. */
  readonly from: Node;
  readonly settled: number;
  /** Nothing but this change-set leads away from the states that it spans. */
  readonly original: boolean;
}

/**
 * States as nodes, one for each index and lineage (two nodes with one index are a fork, unless the lineage of one is not
 * known yet), and the objects that lead to them as edges. Typed columns rather than an object for each, and walks by number rather
 * than iterators: with 100,000 states their garbage is several times what is kept.
 */
class StateTable {
  /** Every index at which some object ends, ascending. A position here is a slot. */
  readonly #indexes: Float64Array;
  /** By slot: its newest node. */
  readonly #heads: Int32Array;
  readonly #objectCount: number;

  #nodeCount = 0;
  #slot: Int32Array;
  readonly #lineage: (string | null)[] = [];
  readonly #chain: (string | null)[] = [];
  /** Of all paths that lead to a node, the least of the greatest `settled` on each. */
  #settled: Float64Array;
  #standing: Uint8Array;
  /** The next node with the same index. */
  #sibling: Int32Array;
  #firstEdge: Int32Array;

  readonly #edgeObject: ReplicaObject[] = [];
  #edgeFrom: Int32Array;
  #edgeSettled: Float64Array;
  #edgeOriginal: Uint8Array;
  /** The next edge into the same node. */
  #nextEdge: Int32Array;

  /** The nodes by index, and each node's position among them. */
  #order = new Int32Array(0);
  #position = new Int32Array(0);

  constructor({ fulls, changeSets }: Catalog) {
    const count = fulls.length + changeSets.length;
    const lasts = new Float64Array(count);
    for (let i = 0; i < fulls.length; i++) lasts[i] = fulls[i]?.last ?? 0;
    for (let i = 0; i < changeSets.length; i++) lasts[fulls.length + i] = changeSets[i]?.last ?? 0;
    this.#indexes = distinct(lasts.sort());
    this.#heads = new Int32Array(this.#indexes.length).fill(NONE);
    this.#objectCount = count;
    this.#slot = new Int32Array(count);
    this.#settled = new Float64Array(count);
    this.#standing = new Uint8Array(count);
    this.#sibling = new Int32Array(count);
    this.#firstEdge = new Int32Array(count);
    this.#edgeFrom = new Int32Array(count);
    this.#edgeSettled = new Float64Array(count);
    this.#edgeOriginal = new Uint8Array(count);
    this.#nextEdge = new Int32Array(count);
  }

  get nodeCount(): number {
    return this.#nodeCount;
  }

  get slotCount(): number {
    return this.#indexes.length;
  }

  /** Nodes with the same index, and no others, have the same slot: a number from 0. */
  slotOf(node: Node): number {
    return this.#slot[node] ?? NONE;
  }

  indexOf(node: Node): number {
    return this.#indexes[this.#slot[node] ?? NONE] ?? 0;
  }

  lineageOf(node: Node): string | null {
    return this.#lineage[node] ?? null;
  }

  chainOf(node: Node): string | null {
    return this.#chain[node] ?? null;
  }

  settledOf(node: Node): number {
    return this.#settled[node] ?? Number.POSITIVE_INFINITY;
  }

  standingOf(node: Node): number {
    return this.#standing[node] ?? UNDECIDED;
  }

  setStanding(node: Node, standing: number): void {
    this.#standing[node] = standing;
  }

  isRestorePoint(node: Node): boolean {
    return this.standingOf(node) === KEPT && this.settledOf(node) <= this.indexOf(node);
  }

  /** A node with this index, or NONE; `next` gives the others. */
  first(index: number): Node {
    const slot = this.#findSlot(index);
    return slot === NONE ? NONE : (this.#heads[slot] ?? NONE);
  }

  next(node: Node): Node {
    return this.#sibling[node] ?? NONE;
  }

  /** The nodes with this index. */
  *at(index: number): Generator<Node> {
    for (let node = this.first(index); node !== NONE; node = this.next(node)) yield node;
  }

  /** An edge into the node, or NONE; `nextEdge` gives the others. */
  firstEdge(node: Node): Edge {
    return this.#firstEdge[node] ?? NONE;
  }

  nextEdge(edge: Edge): Edge {
    return this.#nextEdge[edge] ?? NONE;
  }

  edgeObject(edge: Edge): ReplicaObject {
    const object = this.#edgeObject[edge];
    assert(object !== undefined, "an edge has an object");
    return object;
  }

  /** NONE for a full backup. */
  edgeFrom(edge: Edge): Node {
    return this.#edgeFrom[edge] ?? NONE;
  }

  edgeSettled(edge: Edge): number {
    return this.#edgeSettled[edge] ?? 0;
  }

  edgeIsOriginal(edge: Edge): boolean {
    return this.#edgeOriginal[edge] === 1;
  }

  objectsAt(node: Node): readonly ReplicaObject[] {
    const objects: ReplicaObject[] = [];
    for (let edge = this.firstEdge(node); edge !== NONE; edge = this.nextEdge(edge))
      objects.push(this.edgeObject(edge));
    return objects;
  }

  /** The node of this state, made where there is none yet. `index` is one at which an object of the catalog ends. */
  place(index: number, lineage: string | null, chain: string | null): Node {
    const slot = this.#findSlot(index);
    const head = this.#heads[slot] ?? NONE;
    for (let node = head; node !== NONE; node = this.next(node))
      if (this.#lineage[node] === lineage && agree(this.chainOf(node), chain)) return node;
    const node = this.#nodeCount++;
    if (node === this.#slot.length) this.#growNodes();
    this.#slot[node] = slot;
    this.#lineage.push(lineage);
    this.#chain.push(chain);
    this.#settled[node] = Number.POSITIVE_INFINITY;
    this.#standing[node] = UNDECIDED;
    this.#sibling[node] = head;
    this.#firstEdge[node] = NONE;
    this.#heads[slot] = node;
    return node;
  }

  connect(node: Node, { object, from, settled, original }: Arrival): void {
    const edge = this.#edgeObject.push(object) - 1;
    if (edge === this.#edgeFrom.length) this.#growEdges();
    this.#edgeFrom[edge] = from;
    this.#edgeSettled[edge] = settled;
    this.#edgeOriginal[edge] = original ? 1 : 0;
    this.#nextEdge[edge] = this.#firstEdge[node] ?? NONE;
    this.#firstEdge[node] = edge;
    this.#settled[node] = Math.min(
      this.settledOf(node),
      from === NONE ? settled : Math.max(this.settledOf(from), settled),
    );
  }

  /** To be called when all is placed and connected, before any walk. */
  sort(): void {
    this.#order = new Int32Array(this.#nodeCount);
    this.#position = new Int32Array(this.#nodeCount);
    let position = this.#nodeCount;
    // From the end, since the newest node of a slot comes first in it and is to come last.
    for (let slot = this.#heads.length - 1; slot >= 0; slot--)
      for (let node = this.#heads[slot] ?? NONE; node !== NONE; node = this.next(node)) {
        position--;
        this.#order[position] = node;
        this.#position[node] = position;
      }
  }

  /** The node at this position, from 0, in ascending order of indexes. */
  nodeAt(position: number): Node {
    return this.#order[position] ?? NONE;
  }

  positionOf(node: Node): number {
    return this.#position[node] ?? NONE;
  }

  /** `tip` and all that leads to it, as far as it is undecided, ascending. */
  undecidedAncestors(tip: Node): Int32Array {
    if (this.#standing[tip] !== UNDECIDED) return new Int32Array(0);
    const positions: number[] = [this.positionOf(tip)];
    this.#standing[tip] = REACHED;
    for (let i = 0; i < positions.length; i++) {
      const node = this.nodeAt(positions[i] ?? 0);
      for (let edge = this.firstEdge(node); edge !== NONE; edge = this.nextEdge(edge)) {
        const from = this.edgeFrom(edge);
        if (from === NONE || this.#standing[from] !== UNDECIDED) continue;
        this.#standing[from] = REACHED;
        positions.push(this.positionOf(from));
      }
    }
    const nodes = Int32Array.from(positions).sort();
    for (let i = 0; i < nodes.length; i++) {
      const node = this.nodeAt(nodes[i] ?? 0);
      nodes[i] = node;
      this.#standing[node] = UNDECIDED;
    }
    return nodes;
  }

  #findSlot(index: number): number {
    let low = 0;
    let high = this.#indexes.length - 1;
    while (low <= high) {
      const middle = (low + high) >>> 1;
      const found = this.#indexes[middle] ?? 0;
      if (found === index) return middle;
      if (found < index) low = middle + 1;
      else high = middle - 1;
    }
    return NONE;
  }

  /** More nodes than objects: of forks, where one object follows several states. */
  #growNodes(): void {
    const capacity = this.#slot.length + this.#objectCount;
    this.#slot = copied(this.#slot, new Int32Array(capacity));
    this.#settled = copied(this.#settled, new Float64Array(capacity));
    this.#standing = copied(this.#standing, new Uint8Array(capacity));
    this.#sibling = copied(this.#sibling, new Int32Array(capacity));
    this.#firstEdge = copied(this.#firstEdge, new Int32Array(capacity));
  }

  #growEdges(): void {
    const capacity = this.#edgeFrom.length + this.#objectCount;
    this.#edgeFrom = copied(this.#edgeFrom, new Int32Array(capacity));
    this.#edgeSettled = copied(this.#edgeSettled, new Float64Array(capacity));
    this.#edgeOriginal = copied(this.#edgeOriginal, new Uint8Array(capacity));
    this.#nextEdge = copied(this.#nextEdge, new Int32Array(capacity));
  }
}

function copied<T extends Int32Array | Float64Array | Uint8Array>(from: T, to: T): T {
  to.set(from);
  return to;
}

/** The values of a sorted array, each once. Takes it over. */
function distinct(sorted: Float64Array): Float64Array {
  let count = 0;
  for (let i = 0; i < sorted.length; i++) {
    const value = sorted[i] ?? 0;
    if (count === 0 || sorted[count - 1] !== value) sorted[count++] = value;
  }
  return sorted.subarray(0, count);
}

function placeFulls(states: StateTable, catalog: Catalog, knowledge: KnowledgeOf): void {
  for (const object of catalog.fulls) {
    const known = knowledge(object);
    if (known === "unusable") continue;
    const facts = known === "unknown" ? null : known;
    const node = states.place(object.last, facts?.result ?? null, facts?.chain ?? null);
    states.connect(node, { object, from: NONE, settled: facts?.settled ?? object.last, original: false });
  }
}

/** Ascending by first: whatever leads to the state before a change-set has been placed when its turn comes. */
function* placeChangeSets(
  states: StateTable,
  catalog: Catalog,
  knowledge: KnowledgeOf,
): Generator<void, readonly ReplicaObject[]> {
  const unreached: ReplicaObject[] = [];
  let count = 0;
  for (const object of catalog.changeSets) {
    if (++count % STEP_LOOKS === 0) yield;
    const known = knowledge(object);
    if (known === "unusable") continue;
    const facts = known === "unknown" ? null : known;
    const settled = facts?.settled ?? object.last;
    const original = facts === null ? object.level === 0 : !facts.compacted;
    let isReached = false;
    for (let from = states.first(object.first - 1); from !== NONE; from = states.next(from)) {
      if (!follows(states, from, facts)) continue;
      isReached = true;
      const node = states.place(object.last, facts?.result ?? null, facts?.chain ?? states.chainOf(from));
      states.connect(node, { object, from, settled, original });
    }
    if (!isReached) unreached.push(object);
  }
  return unreached;
}

/** Whether a change-set with these facts can lead away from `from`; what is unknown of either fits. */
function follows(states: StateTable, from: Node, facts: ObjectFacts | null): boolean {
  return facts === null || (agree(states.lineageOf(from), facts.parent) && agree(states.chainOf(from), facts.chain));
}

function agree(a: string | null, b: string | null): boolean {
  return a === null || b === null || a === b;
}

/**
 * The lineage that goes on furthest is ours, with all that leads to it; then the furthest of what is left, and so on:
 * earlier chains, and what stands before a gap. A state is a fork if a kept state has its index and another lineage, or
 * if a kept change-set that was not compacted steps over it; and what only forks lead to is one too.
 */
function* tellForks(states: StateTable, preferences: PathPreferences): Generator<void, void> {
  const kept = new KeptStates(states);
  let count = 0;
  for (const tip of tipsFirst(states, preferences)) {
    for (const node of states.undecidedAncestors(tip)) {
      if (!isLedTo(states, node) || kept.exclude(node)) states.setStanding(node, FORK);
      if (++count % STEP_LOOKS === 0) yield;
    }
    // None when the tip itself has turned out to be a fork.
    for (const node of states.undecidedAncestors(tip)) {
      states.setStanding(node, KEPT);
      kept.add(node);
      if (++count % STEP_LOOKS === 0) yield;
    }
  }
}

/** Whether a full backup, or something that is not a fork, leads to the node. */
function isLedTo(states: StateTable, node: Node): boolean {
  for (let edge = states.firstEdge(node); edge !== NONE; edge = states.nextEdge(edge)) {
    const from = states.edgeFrom(edge);
    if (from === NONE || states.standingOf(from) !== FORK) return true;
  }
  return false;
}

/**
 * The undecided nodes in descending order, each as its turn comes; of those with one index that which `CURRENT` chose first, then
 * known before unknown, then newest.
 */
function* tipsFirst(states: StateTable, { current }: PathPreferences): Generator<Node> {
  let chosen: Uint8Array | null = null;
  let previousSlot = NONE;
  for (let position = states.nodeCount - 1; position >= 0; position--) {
    const node = states.nodeAt(position);
    const slot = states.slotOf(node);
    if (slot === previousSlot) continue;
    previousSlot = slot;
    // The newest of the slot: without a sibling it is the only one.
    if (states.next(node) === NONE) {
      if (states.standingOf(node) === UNDECIDED) yield node;
      continue;
    }
    chosen ??= chosenByCurrent(states, current);
    const favoured = chosen;
    const rank = (rival: Node) => (favoured[rival] === 1 ? 0 : states.lineageOf(rival) !== null ? 1 : 2);
    const rivals = [...states.at(states.indexOf(node))].sort(
      (a, b) => rank(a) - rank(b) || newestMs(states, b) - newestMs(states, a),
    );
    for (const rival of rivals) if (states.standingOf(rival) === UNDECIDED) yield rival;
  }
}

function newestMs(states: StateTable, node: Node): number {
  let newest = Number.NEGATIVE_INFINITY;
  for (let edge = states.firstEdge(node); edge !== NONE; edge = states.nextEdge(edge))
    newest = Math.max(newest, states.edgeObject(edge).modifiedMs);
  return newest;
}

/** By node: 1 for the one that `CURRENT` names and all that follow it. */
function chosenByCurrent(states: StateTable, current: PathPreferences["current"]): Uint8Array {
  const chosen = new Uint8Array(states.nodeCount);
  if (current === null) return chosen;
  for (let position = 0; position < states.nodeCount; position++) {
    const node = states.nodeAt(position);
    if (states.indexOf(node) < current.index) continue;
    let isChosen = states.indexOf(node) === current.index && states.lineageOf(node) === current.lineage;
    for (let edge = states.firstEdge(node); edge !== NONE && !isChosen; edge = states.nextEdge(edge))
      isChosen = states.edgeFrom(edge) !== NONE && chosen[states.edgeFrom(edge)] === 1;
    if (isChosen) chosen[node] = 1;
  }
  return chosen;
}

/** The states that were found to be of our lineage, as far as they exclude others. */
class KeptStates {
  readonly #states: StateTable;
  /** By slot. */
  readonly #lineages: (string | null)[];
  readonly #steppedOver = new Ranges();

  constructor(states: StateTable) {
    this.#states = states;
    this.#lineages = new Array<string | null>(states.slotCount).fill(null);
  }

  add(node: Node): void {
    const states = this.#states;
    const lineage = states.lineageOf(node);
    if (lineage !== null) this.#lineages[states.slotOf(node)] = lineage;
    for (let edge = states.firstEdge(node); edge !== NONE; edge = states.nextEdge(edge)) {
      if (!states.edgeIsOriginal(edge) || states.standingOf(states.edgeFrom(edge)) !== KEPT) continue;
      const { first, last } = states.edgeObject(edge);
      if (first < last) this.#steppedOver.add(first, last);
    }
  }

  exclude(node: Node): boolean {
    const kept = this.#lineages[this.#states.slotOf(node)] ?? null;
    const lineage = this.#states.lineageOf(node);
    if (kept !== null && lineage !== null && kept !== lineage) return true;
    return this.#steppedOver.has(this.#states.indexOf(node));
  }
}

/** A set of numbers, as half-open ranges that do not touch, ascending. */
class Ranges {
  readonly #starts: number[] = [];
  readonly #ends: number[] = [];

  add(start: number, end: number): void {
    // Those that the new one touches become one with it.
    const low = upperBound(this.#ends, start - 1);
    const high = upperBound(this.#starts, end);
    const merged = high > low;
    this.#starts.splice(low, high - low, merged ? Math.min(start, this.#starts[low] ?? start) : start);
    this.#ends.splice(low, high - low, merged ? Math.max(end, this.#ends[high - 1] ?? end) : end);
  }

  has(value: number): boolean {
    return (this.#ends[upperBound(this.#starts, value) - 1] ?? value) > value;
  }
}

/** The best way to get from each state to a target, as far as a search has come. One search's memory serves the next one. */
class PathSearch {
  readonly #states: StateTable;
  readonly #seal: string;
  /** The number of the search that reached a node last. */
  readonly #reachedIn: Int32Array;
  /** By node: the edge to go on by, and the node that it leads to; NONE at the target. */
  readonly #next: Int32Array;
  readonly #toward: Int32Array;
  /** Of the way from there: objects under another seal than the configured one, positions of destinations, objects. */
  readonly #foreign: Int32Array;
  readonly #distance: Float64Array;
  readonly #objects: Int32Array;
  #searchNumber = 0;

  constructor(states: StateTable, { seal }: PathPreferences) {
    const { nodeCount } = states;
    this.#states = states;
    this.#seal = seal;
    this.#reachedIn = new Int32Array(nodeCount);
    this.#next = new Int32Array(nodeCount);
    this.#toward = new Int32Array(nodeCount);
    this.#foreign = new Int32Array(nodeCount);
    this.#distance = new Float64Array(nodeCount);
    this.#objects = new Int32Array(nodeCount);
  }

  /** Forgets the search before. */
  begin(target: Node): void {
    this.#searchNumber++;
    this.#reachedIn[target] = this.#searchNumber;
    this.#next[target] = NONE;
    this.#toward[target] = NONE;
    this.#foreign[target] = 0;
    this.#distance[target] = 0;
    this.#objects[target] = 0;
  }

  hasReached(node: Node): boolean {
    return this.#reachedIn[node] === this.#searchNumber;
  }

  /** Tries the way by `edge` to `node`, which has been reached. */
  reach(edge: Edge, node: Node): void {
    const object = this.#states.edgeObject(edge);
    const from = this.#states.edgeFrom(edge);
    const foreign = (this.#foreign[node] ?? 0) + foreignness(object, this.#seal);
    const distance = (this.#distance[node] ?? 0) + object.destination;
    const objects = (this.#objects[node] ?? 0) + 1;
    if (this.hasReached(from)) {
      const difference =
        foreign - (this.#foreign[from] ?? 0) ||
        distance - (this.#distance[from] ?? 0) ||
        objects - (this.#objects[from] ?? 0);
      if (difference >= 0) return;
    }
    this.#reachedIn[from] = this.#searchNumber;
    this.#next[from] = edge;
    this.#toward[from] = node;
    this.#foreign[from] = foreign;
    this.#distance[from] = distance;
    this.#objects[from] = objects;
  }

  /** The change-sets from `node` to the target. */
  follow(node: Node): readonly ReplicaObject[] {
    const objects: ReplicaObject[] = [];
    for (let at = node; this.#next[at] !== NONE; at = this.#toward[at] ?? NONE)
      objects.push(this.#states.edgeObject(this.#next[at] ?? NONE));
    return objects;
  }
}
