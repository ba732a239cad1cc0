import type { ReplicaObject } from "./catalog.ts";
import { firstOfRecent } from "./compaction-plan.ts";
import { LineageGraph } from "./paths.ts";
import { RetentionClock } from "./retention-clock.ts";
import { keepBesideMs, type RetentionInputs } from "./retention-policy.ts";
import { Spans } from "./spans.ts";

/**
 * What deleting `doomed` would take away although the policy promises it, as a sentence; null when nothing. It knows nothing of how
 * the plan was made: it compares the states that can be restored with and without `doomed`, and the ages of what goes with the
 * policy, so that a mistake in the plan costs a deletion rather than data. `before` is the graph with everything. In steps, as `planningRetention`.
 */
export function* findingLoss(
  inputs: RetentionInputs,
  before: LineageGraph,
  doomed: ReadonlySet<ReplicaObject>,
): Generator<void, string | null> {
  const known = (object: ReplicaObject) => (doomed.has(object) ? "unusable" : inputs.knowledge(object));
  const after = yield* LineageGraph.building(inputs.catalog, known, inputs.preferences);
  yield;
  return yield* new LossSearch(inputs, { before, after }, doomed).find();
}

class LossSearch {
  readonly #inputs: RetentionInputs;
  readonly #before: LineageGraph;
  readonly #doomed: ReadonlySet<ReplicaObject>;
  readonly #after: LineageGraph;
  readonly #kept: ReadonlySet<number>;
  readonly #clock: RetentionClock;

  constructor(
    inputs: RetentionInputs,
    { before, after }: { readonly before: LineageGraph; readonly after: LineageGraph },
    doomed: ReadonlySet<ReplicaObject>,
  ) {
    this.#inputs = inputs;
    this.#before = before;
    this.#doomed = doomed;
    this.#after = after;
    this.#kept = new Set(this.#after.restorePoints);
    this.#clock = new RetentionClock(inputs.catalog, inputs.nowMs);
  }

  *find(): Generator<void, string | null> {
    const newest = this.#before.restorePoints.at(-1);
    if (newest !== undefined && !this.#kept.has(newest)) return lost(newest, "the newest restore point");
    const mark = this.#inputs.marks.find((one) => this.#before.isRestorePoint(one) && !this.#kept.has(one));
    if (mark !== undefined) return lost(mark, "a marked moment");
    yield;
    const stranded = this.#strandedFull();
    if (stranded !== null) return `full backup ${stranded.first} would lead nowhere`;
    for (const look of [this.#lostRecent, this.#lostYoung, this.#lostPoint]) {
      yield;
      const found = look.call(this);
      if (found !== null) return found;
    }
    return null;
  }

  /** A full backup that stays, not as history, and from which a change-set leads on now, but not then. */
  #strandedFull(): ReplicaObject | null {
    const { catalog, knowledge } = this.#inputs;
    const followers = new Set(catalog.fulls.map(({ first }) => first + 1));
    const startsNow = new Set<number>();
    const starts = new Set<number>();
    for (const object of catalog.changeSets) {
      if (!followers.has(object.first) || knowledge(object) === "unusable") continue;
      startsNow.add(object.first);
      if (!this.#doomed.has(object)) starts.add(object.first);
    }
    const isStranded = (full: ReplicaObject) => startsNow.has(full.first + 1) && !starts.has(full.first + 1);
    const end = this.#historyEnd();
    return catalog.fulls.find((full) => full.first >= end && !this.#doomed.has(full) && isStranded(full)) ?? null;
  }

  /** Of the newest `keepRecent` change-sets none may go, unless it is history. */
  #lostRecent(): string | null {
    const { catalog, policy } = this.#inputs;
    const recentFirst = firstOfRecent({ catalog, keepRecent: policy.keepRecent });
    const from = Math.max(recentFirst, this.#historyEnd() + 1);
    const recent = (catalog.levels[0] ?? []).find((object) => this.#doomed.has(object) && object.last >= from);
    return recent === undefined ? null : lost(recent.last, "one of the newest change-sets");
  }

  /** Of what is merged away, nothing is younger than the policy keeps it beside what is left to stand for it. */
  #lostYoung(): string | null {
    const { policy, knowledge } = this.#inputs;
    const floor = this.#historyEnd();
    const standIns = [...Map.groupBy(this.#standIns(), ({ level }) => level)]
      .sort(([a], [b]) => a - b)
      .map(([level, objects]) => ({ level, spans: new Spans(objects) }));
    for (const object of this.#doomed) {
      if (object.kind === "full" || object.last <= floor) continue;
      const facts = knowledge(object);
      // None: another object ends there and stays.
      const above = standIns.find(({ spans }) => spans.cover(object.last))?.level ?? object.level + 1;
      const keepMs = keepBesideMs(policy, object.level, above);
      if (typeof facts !== "object" || !this.#clock.wasStoredFor(keepMs, object))
        return lost(object.last, "a change-set younger than compaction_keep");
      if (!this.#clock.wasCommittedFor(keepMs, facts))
        return lost(object.last, "a state younger than compaction_keep by its stamp");
    }
    return null;
  }

  /** Restore points may go only where a merged change-set spans them, or below what `retention` promises. */
  #lostPoint(): string | null {
    const spans = new Spans(this.#standIns());
    const floor = this.#historyEnd();
    const point = this.#before.restorePoints.find(
      (index) => !this.#kept.has(index) && index >= floor && !spans.stepOver(index),
    );
    return point === undefined ? null : lost(point, "a state that the policy promises");
  }

  /** States before this one may be given up: below it nothing is promised. */
  #historyEnd(): number {
    const { policy, knowledge } = this.#inputs;
    if (policy.retentionMs > 0) return this.#newestOld(policy.retentionMs);
    if (policy.maxBackups === 0 && policy.maxTotalSizeBytes === 0) return 0;
    const newest = this.#before.restorePoints.at(-1);
    const full = newest === undefined ? undefined : this.#before.pathTo(newest)?.full;
    const facts = full === undefined ? "unknown" : knowledge(full);
    return typeof facts === "object" ? facts.settled : 0;
  }

  /** The newest restore point that stays and that both clocks call older than `ageMs`; 0 when there is none. */
  #newestOld(ageMs: number): number {
    const times = this.#clock.storedTimes(this.#inputs.catalog);
    const isOld = (index: number) => {
      const modifiedMs = times.get(index);
      if (modifiedMs === undefined || !this.#clock.wasStoredFor(ageMs, { modifiedMs })) return false;
      // What nobody has asked for its stamp is left to the other clock.
      return this.#before.stampSources(index).every((object) => {
        const facts = this.#inputs.knowledge(object);
        return typeof facts !== "object" || this.#clock.wasCommittedFor(ageMs, facts);
      });
    };
    return this.#after.restorePoints.findLast(isOld) ?? 0;
  }

  #usable(): readonly ReplicaObject[] {
    const { catalog, knowledge } = this.#inputs;
    return catalog.changeSets.filter((object) => knowledge(object) !== "unusable");
  }

  #survivors(): readonly ReplicaObject[] {
    return this.#usable().filter((object) => !this.#doomed.has(object));
  }

  #standIns(): readonly ReplicaObject[] {
    return this.#survivors().filter((object) => {
      const facts = this.#inputs.knowledge(object);
      return typeof facts === "object" && facts.compacted;
    });
  }
}

function lost(index: number, what: string): string {
  return `state ${index} must stay restorable and would not be: it is ${what}`;
}
