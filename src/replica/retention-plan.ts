import { atOnce, STEP_LOOKS } from "../util/turns.ts";
import { keyBelow, type ReplicaObject } from "./catalog.ts";
import { firstOfRecent } from "./compaction-plan.ts";
import type { ObjectFacts } from "./facts.ts";
import { LineageGraph, type StatePath } from "./paths.ts";
import { RetentionClock } from "./retention-clock.ts";
import { findingLoss } from "./retention-loss.ts";
import { keepBesideMs, type RetentionInputs } from "./retention-policy.ts";
import { Spans } from "./spans.ts";
import { StandIns } from "./stand-ins.ts";

export type ExpiryReason =
  | "merged" // a change-set of a higher level stands for it
  | "retention"
  | "max_backups"
  | "max_total_size";

export interface Expiry {
  readonly object: ReplicaObject;
  readonly reason: ExpiryReason;
  /** What stands for it, which stays and must have been read back before it goes; null for other reasons. */
  readonly supersededBy: ReplicaObject | null;
}

/** A limit that cannot be met without deleting what must stay. */
export interface UnmetLimit {
  readonly limit: "max_backups" | "max_total_size";
  readonly allowed: number;
  /** What is there when everything is deleted that may be. */
  readonly remaining: number;
}

export interface RetentionPlan {
  /** In the order in which to delete: change-sets before full backups, the newest first. */
  readonly expired: readonly Expiry[];
  /** The full backup that history is cut at, on which all that is older than it then rests; null when it is not cut. */
  readonly cutAt: ReplicaObject | null;
  /** The oldest state that stays restorable; null when nothing is. */
  readonly floor: number | null;
  readonly unmet: readonly UnmetLimit[];
  /** Why nothing is deleted although something would be; else null. */
  readonly refused: string | null;
  /** Objects about which too little is known: load them and plan again. What depends on them is not expired. */
  readonly unknown: readonly ReplicaObject[];
}

/** Older than any restore that may still count on what goes. */
const GRACE_MS = 10 * 60_000;

/**
 * What one destination may delete: the rules are in docs/compaction-and-retention.md. Pure. Ages are by the destination's clock and by
 * the stamps, whichever makes things younger, so that no single wrong clock makes anything look old.
 */
export function planRetention(inputs: RetentionInputs): RetentionPlan {
  return atOnce(planningRetention(inputs));
}

/** As `planRetention`, in steps of which each looks at all objects once or twice at most: whoever shares a thread gives way in between. */
export function* planningRetention(inputs: RetentionInputs): Generator<void, RetentionPlan> {
  const graph = yield* LineageGraph.building(inputs.catalog, inputs.knowledge, inputs.preferences);
  yield;
  return yield* new RetentionPlanner(inputs, graph).plan();
}

/** Why the floor is where it is. */
interface Floor {
  readonly full: ReplicaObject;
  readonly reason: Exclude<ExpiryReason, "merged">;
}

class RetentionPlanner {
  readonly #inputs: RetentionInputs;
  readonly #clock: RetentionClock;
  readonly #graceMs: number;
  /** The states of everything but forks. */
  readonly #spans: Spans;
  readonly #graph: LineageGraph;
  readonly #forks: ReadonlySet<ReplicaObject>;
  readonly #unknown = new Set<ReplicaObject>();
  /** First index of the oldest change-set that must stay because it is recent. */
  readonly #recentFirst: number;
  /** Everything that marks keep. */
  readonly #marked: ReadonlySet<ReplicaObject>;

  /** `graph`: of everything. */
  constructor(inputs: RetentionInputs, graph: LineageGraph) {
    this.#inputs = inputs;
    this.#clock = new RetentionClock(inputs.catalog, inputs.nowMs);
    this.#graceMs = inputs.policy.graceMs ?? GRACE_MS;
    this.#graph = graph;
    this.#forks = new Set(graph.forks);
    this.#spans = new Spans(this.#usableChangeSets());
    this.#recentFirst = firstOfRecent({ catalog: inputs.catalog, keepRecent: inputs.policy.keepRecent });
    this.#marked = this.#findMarked();
    for (const full of inputs.catalog.fulls) if (inputs.knowledge(full) === "unknown") this.#unknown.add(full);
    // Where two lineages meet, what follows tells which of them is ours.
    const { contested } = graph;
    if (contested.size > 0)
      for (const object of inputs.catalog.changeSets)
        if (contested.has(object.first - 1) && inputs.knowledge(object) === "unknown") this.#unknown.add(object);
  }

  *plan(): Generator<void, RetentionPlan> {
    yield;
    const { restorePoints } = this.#graph;
    const newest = restorePoints.at(-1);
    const nothing = { expired: [], cutAt: null, floor: restorePoints[0] ?? null, unmet: [], refused: null };
    // Without a restore point nobody knows what the rest is good for; without the full backups' facts, neither.
    if (newest === undefined || this.#unknown.size > 0) return { ...nothing, unknown: [...this.#unknown] };

    const merged = yield* this.#findMerged();
    yield;
    const afterMerging = merged.size === 0 ? this.#graph : yield* this.#graphWithout(merged);
    yield;
    const { floors, unmet } = yield* this.#chooseFloors(afterMerging, newest, merged);
    yield;
    const expired = yield* this.#collect(merged, floors);
    const isIdle = expired.length === 0;
    const doomed = new Set(expired.map(({ object }) => object));
    yield;
    const refused = isIdle
      ? null
      : (this.#whyFrozen(doomed) ?? (yield* findingLoss(this.#inputs, this.#graph, doomed)));
    yield;
    const floor = floors.at(-1)?.full ?? null;
    return {
      expired: refused === null ? expired : [],
      cutAt: expired.some(({ supersededBy }) => supersededBy === null) ? floor : null,
      floor: restorePoints.find((point) => point >= (floor === null ? 0 : this.#settledOf(floor))) ?? null,
      unmet,
      refused,
      unknown: [...this.#unknown],
    };
  }

  /** Why nothing may go. Where all that is damaged goes itself, what stays was found sound. */
  #whyFrozen(doomed: ReadonlySet<ReplicaObject>): string | null {
    const { catalog, frozen, damaged } = this.#inputs;
    if (damaged === undefined) return frozen;
    const goes = new Set([...doomed].map((object) => keyBelow(object)));
    const stays = [...catalog.fulls, ...catalog.changeSets].some((object) => {
      const key = keyBelow(object);
      return damaged.has(key) && !goes.has(key);
    });
    return stays ? frozen : null;
  }

  *#graphWithout(gone: ReadonlyMap<ReplicaObject, unknown>): Generator<void, LineageGraph> {
    const { catalog, knowledge, preferences } = this.#inputs;
    const known = (object: ReplicaObject) => (gone.has(object) ? "unusable" : knowledge(object));
    return yield* LineageGraph.building(catalog, known, preferences);
  }

  /** The full backup of each marked moment, and the change-sets from there to it; where it cannot be restored, those that it may need. */
  #findMarked(): ReadonlySet<ReplicaObject> {
    const { catalog, marks } = this.#inputs;
    const marked = new Set<ReplicaObject>();
    for (const mark of marks) {
      const path = this.#graph.isRestorePoint(mark) ? this.#graph.pathTo(mark) : null;
      const full = path?.full ?? catalog.fulls.findLast(({ first }) => first <= mark);
      if (full === undefined) continue;
      for (const object of catalog.fulls) if (object.first === full.first) marked.add(object);
      for (const object of catalog.changeSets) if (full.first < object.first && object.last <= mark) marked.add(object);
    }
    return marked;
  }

  /** What goes because something of a higher level stands for it and stays, and what that is. */
  *#findMerged(): Generator<void, ReadonlyMap<ReplicaObject, ReplicaObject>> {
    const { catalog, knowledge, marks } = this.#inputs;
    const merged = new Map<ReplicaObject, ReplicaObject>();
    const usable = this.#usableChangeSets();
    yield;
    const cuts = [...catalog.fulls.map(({ first }) => first), ...marks];
    const standIns = new StandIns({
      changeSets: usable,
      forks: [...this.#forks],
      fulls: catalog.fulls,
      knowledge,
      cuts,
    });
    // From the highest level down: what goes itself stands for nothing.
    for (const result of usable.toSorted((a, b) => b.level - a.level)) {
      if (result.level === 0) break;
      yield;
      if (merged.has(result) || !this.#clock.wasStoredFor(this.#graceMs, result)) continue;
      const spanned = standIns.spannedBy(result);
      if (!spanned.some((object) => !merged.has(object) && this.#mayBeMerged(object, result))) continue;
      const answer = standIns.examine(result);
      for (const object of answer.unknown) this.#unknown.add(object);
      // The newest first, and no further than to one that stays: without those before it, it would lead nowhere.
      for (const object of answer.inputs) {
        if (merged.has(object)) continue;
        if (!this.#mayBeMerged(object, result) || !this.#isOldByStamp(object, result)) break;
        merged.set(object, result);
      }
    }
    return merged;
  }

  #usableChangeSets(): readonly ReplicaObject[] {
    const { catalog, knowledge } = this.#inputs;
    return catalog.changeSets.filter((object) => !this.#forks.has(object) && knowledge(object) !== "unusable");
  }

  #mayBeMerged(object: ReplicaObject, result: ReplicaObject): boolean {
    const keepMs = keepBesideMs(this.#inputs.policy, object.level, result.level);
    return object.last < this.#recentFirst && this.#clock.wasStoredFor(keepMs, object);
  }

  #isOldByStamp(object: ReplicaObject, result: ReplicaObject): boolean {
    const facts = this.#inputs.knowledge(object);
    const keepMs = keepBesideMs(this.#inputs.policy, object.level, result.level);
    return typeof facts === "object" && this.#clock.wasCommittedFor(keepMs, facts);
  }

  /** The full backups that the policy's parts go back to, each newer than the one before; what is older than the last goes. */
  *#chooseFloors(
    graph: LineageGraph,
    newest: number,
    merged: ReadonlyMap<ReplicaObject, ReplicaObject>,
  ): Generator<void, { readonly floors: readonly Floor[]; readonly unmet: readonly UnmetLimit[] }> {
    const { policy } = this.#inputs;
    const newestFull = graph.pathTo(newest)?.full;
    if (newestFull === undefined) return { floors: [], unmet: [] };
    const promised = policy.retentionMs === 0 ? null : yield* this.#promisedFull(graph);
    const floors: Floor[] = promised === null ? [] : [{ full: promised, reason: "retention" }];
    // No limit goes above what retention promises; without a promise, not above the newest full backup that can be used.
    const highest = policy.retentionMs === 0 ? newestFull : promised;
    const usable = this.#usableFulls(highest);
    const unmet: UnmetLimit[] = [];
    const raise = (full: ReplicaObject | undefined, reason: Floor["reason"]) => {
      if (full !== undefined && full.first > (floors.at(-1)?.full.first ?? 0)) floors.push({ full, reason });
    };

    if (policy.maxBackups > 0) {
      const indexes = [...new Set(this.#inputs.catalog.fulls.map(({ first }) => first))];
      const wanted = indexes.at(-policy.maxBackups) ?? indexes[0] ?? 0;
      raise(yield* this.#newestFloor(graph, usable, wanted), "max_backups");
      const remaining = new Set(
        this.#inputs.catalog.fulls.filter((full) => !this.#isHistory(full, floors)).map(({ first }) => first),
      ).size;
      if (remaining > policy.maxBackups) unmet.push({ limit: "max_backups", allowed: policy.maxBackups, remaining });
    }
    if (policy.maxTotalSizeBytes > 0) {
      const sizes = this.#sizesByFloor(merged);
      const bytesLeft = () => sizes.leftAbove(floors.at(-1)?.full.first ?? 0);
      for (const full of usable) {
        yield;
        if (bytesLeft() <= policy.maxTotalSizeBytes) break;
        if (this.#leadsOn(graph, full)) raise(full, "max_total_size");
      }
      const remaining = bytesLeft();
      if (remaining > policy.maxTotalSizeBytes)
        unmet.push({ limit: "max_total_size", allowed: policy.maxTotalSizeBytes, remaining });
    }
    return { floors, unmet };
  }

  /** What serves the newest restore point that was stored and committed `retention` or longer ago; null when none was. */
  *#promisedFull(graph: LineageGraph): Generator<void, ReplicaObject | null> {
    const { catalog, policy } = this.#inputs;
    const times = this.#clock.storedTimes(catalog);
    const isStoredLong = (index: number) => {
      const modifiedMs = times.get(index);
      return modifiedMs !== undefined && this.#clock.wasStoredFor(policy.retentionMs, { modifiedMs });
    };
    let point = graph.restorePoints.findLast(isStoredLong);
    while (point !== undefined) {
      yield;
      const full = graph.pathTo(point)?.full;
      if (full === undefined || !this.#hasHistoryBelow(full)) return null;
      const isFloor = this.#mayBeFloor(full) && this.#isCommittedLong(graph, point) && this.#isProven(graph, point);
      if (isFloor) return full;
      // Too young, by its stamp perhaps, or not certain to be there: what the full backup before serves is asked in its turn.
      point = graph.restorePoints.findLast((index) => index < full.first && isStoredLong(index));
    }
    return null;
  }

  /** By its stamp; "no" as long as nobody knows it. */
  #isCommittedLong(graph: LineageGraph, point: number): boolean {
    const sources = graph.stampSources(point);
    for (const object of sources) {
      const facts = this.#inputs.knowledge(object);
      if (typeof facts === "object") return this.#clock.wasCommittedFor(this.#inputs.policy.retentionMs, facts);
    }
    for (const object of sources.slice(0, 1)) this.#unknown.add(object);
    return false;
  }

  /**
   * Whether all that leads to the restore point was read, since what is only listed may be damaged, and what begins there goes on from
   * it, if anything does: else it may be another writer's. So may the full backup be, where a change-set that ends at it was not read: it
   * may bring another lineage there, and that one may be ours. "No" as long as nobody knows it.
   */
  #isProven(graph: LineageGraph, point: number): boolean {
    const { catalog, knowledge } = this.#inputs;
    const path = graph.pathTo(point);
    if (path === null || !this.#isSettledByItsOwn(path)) return false;
    const usable = catalog.changeSets.filter((object) => knowledge(object) !== "unusable");
    const followers = usable.filter(({ first }) => first === point + 1);
    const arrivals = usable.filter(({ last }) => last === path.full.last);
    const unread = [...path.changeSets, ...arrivals, ...followers].filter((object) => knowledge(object) === "unknown");
    for (const object of unread) this.#unknown.add(object);
    if (unread.length > 0) return false;
    const lineage = this.#factsOf(path.changeSets.at(-1) ?? path.full)?.result;
    return followers.length === 0 || followers.some((object) => this.#factsOf(object)?.parent === lineage);
  }

  /**
   * Whether what was stored while the full backup was taken is under the same key: what is not may be another writer's, whose pages do
   * not belong to those that the full backup took too late.
   */
  #isSettledByItsOwn({ full, changeSets }: StatePath): boolean {
    const settled = this.#settledOf(full);
    return changeSets.every(({ first, seal }) => first > settled || seal === full.seal);
  }

  #factsOf(object: ReplicaObject): ObjectFacts | null {
    const facts = this.#inputs.knowledge(object);
    return typeof facts === "object" ? facts : null;
  }

  /** The newest full backup up to `wanted` that a limit may cut the history at. */
  *#newestFloor(
    graph: LineageGraph,
    usable: readonly ReplicaObject[],
    wanted: number,
  ): Generator<void, ReplicaObject | undefined> {
    for (const full of usable.toReversed()) {
      if (full.first > wanted) continue;
      yield;
      if (this.#leadsOn(graph, full)) return full;
    }
    return undefined;
  }

  /** Whether a state is certain to be restorable from this full backup. */
  #leadsOn(graph: LineageGraph, full: ReplicaObject): boolean {
    if (!this.#hasHistoryBelow(full)) return false;
    const settled = this.#settledOf(full);
    const point = graph.restorePoints.find((index) => index >= settled);
    return point !== undefined && graph.pathTo(point)?.full.first === full.first && this.#isProven(graph, point);
  }

  /** Whether anything would go if the history were cut at this full backup. */
  #hasHistoryBelow(full: ReplicaObject): boolean {
    const { fulls, changeSets } = this.#inputs.catalog;
    const oldest = [fulls.find((object) => !this.#marked.has(object)), changeSets[0]];
    return oldest.some((object) => object !== undefined && full.first >= historyFrom(object));
  }

  /** Full backups that the history may be cut at, ascending, up to `highest`; none without it. */
  #usableFulls(highest: ReplicaObject | null): readonly ReplicaObject[] {
    if (highest === null) return [];
    return this.#inputs.catalog.fulls.filter(
      (full) => full.first <= highest.first && !this.#forks.has(full) && this.#mayBeFloor(full),
    );
  }

  /** One that a change-set steps over may lead nowhere: a compaction that did not know of it has been there. */
  #mayBeFloor(full: ReplicaObject): boolean {
    return (
      typeof this.#inputs.knowledge(full) === "object" &&
      this.#clock.wasStoredFor(this.#graceMs, full) &&
      !this.#spans.stepOver(full.first)
    );
  }

  #isHistory(object: ReplicaObject, floors: readonly Floor[]): boolean {
    const floor = floors.at(-1)?.full;
    return floor !== undefined && !this.#marked.has(object) && floor.first >= historyFrom(object);
  }

  #sizesByFloor(merged: ReadonlyMap<ReplicaObject, ReplicaObject>): SizesByFloor {
    const { fulls, changeSets, current, manifest } = this.#inputs.catalog;
    const sizes = [...fulls, ...changeSets]
      .filter((object) => !merged.has(object))
      .map((object) => ({
        from: this.#marked.has(object) ? Number.POSITIVE_INFINITY : historyFrom(object),
        sizeBytes: object.sizeBytes,
      }));
    for (const document of [...current, ...manifest])
      sizes.push({ from: Number.POSITIVE_INFINITY, sizeBytes: document?.sizeBytes ?? 0 });
    return new SizesByFloor(sizes);
  }

  *#collect(
    merged: ReadonlyMap<ReplicaObject, ReplicaObject>,
    floors: readonly Floor[],
  ): Generator<void, readonly Expiry[]> {
    const { fulls, changeSets } = this.#inputs.catalog;
    const expired: Expiry[] = [];
    let count = 0;
    for (const object of [...changeSets, ...fulls]) {
      if (++count % STEP_LOOKS === 0) yield;
      const supersededBy = merged.get(object) ?? null;
      if (this.#isHistory(object, floors)) {
        // The first of the floors that it lies below: the mildest rule that takes it.
        const floor = floors.find((one) => this.#isHistory(object, [one]));
        expired.push({ object, reason: floor?.reason ?? "retention", supersededBy: null });
      } else if (supersededBy !== null) {
        expired.push({ object, reason: "merged", supersededBy });
      }
    }
    yield;
    return expired.sort(inDeletionOrder);
  }

  #settledOf(full: ReplicaObject): number {
    return this.#factsOf(full)?.settled ?? full.last;
  }
}

/** The lowest n0 of a floor below which the object lies. */
function historyFrom({ kind, first, last }: ReplicaObject): number {
  return kind === "full" ? first + 1 : last;
}

/** How much is left for each floor, asked for floors in ascending order. */
class SizesByFloor {
  readonly #ascending: readonly { readonly from: number; readonly sizeBytes: number }[];
  #position = 0;
  #left: number;

  constructor(sizes: readonly { readonly from: number; readonly sizeBytes: number }[]) {
    this.#ascending = sizes.toSorted((a, b) => a.from - b.from);
    this.#left = sizes.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
  }

  leftAbove(floor: number): number {
    for (;;) {
      const next = this.#ascending[this.#position];
      if (next === undefined || next.from > floor) return this.#left;
      this.#left -= next.sizeBytes;
      this.#position++;
    }
  }
}

function inDeletionOrder(a: Expiry, b: Expiry): number {
  if (a.object.kind !== b.object.kind) return a.object.kind === "full" ? 1 : -1;
  return b.object.last - a.object.last || b.object.first - a.object.first;
}
