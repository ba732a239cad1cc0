import type { Catalog, ReplicaObject } from "./catalog.ts";
import type { Knowledge, ObjectFacts } from "./facts.ts";

export interface MergePlanInputs {
  readonly catalog: Catalog;
  readonly knowledge: (object: ReplicaObject) => Knowledge;
  /** Objects that are off our lineage: never merged. */
  readonly forks: ReadonlySet<ReplicaObject>;
  /** What is to be made: 1 to 9. */
  readonly level: number;
  /** Length of that level's windows. */
  readonly windowMs: number;
  /** So many of the newest change-sets of level 0 are left as they are. */
  readonly keepRecent: number;
  /** States that no merged object may step over: where full backups begin, where chains start, what was marked. */
  readonly cuts: ReadonlySet<number>;
  /** Copies under this seal are preferred. */
  readonly seal: string;
  /** Unix milliseconds; decides only whether the newest window is over. */
  readonly nowMs: number;
}

/** Neighbouring change-sets that become one. */
export interface Merge {
  readonly level: number;
  readonly first: number;
  readonly last: number;
  /** Two at least, ascending; each begins where the one before it ends. */
  readonly inputs: readonly ReplicaObject[];
}

export interface MergePlan {
  /** Ascending. */
  readonly merges: readonly Merge[];
  /** Objects that stand in the way because nothing is known of them yet, ascending: load them and plan again. */
  readonly unknown: readonly ReplicaObject[];
}

/** A window that has been over for this long gets nothing more. */
const WINDOW_SLACK_MS = 5 * 60_000;
/** What merging one run may take, and what one input takes of it: a data chunk, and its share of an index chunk. */
const MERGE_BYTES = 64 * 1024 * 1024;
const MAX_INPUT_BYTES = 320 * 1024;
const INPUT_OVERHEAD_BYTES = 16 * 1024;

/**
 * Which neighbouring change-sets of lower levels become one of level `level`: the rules are in docs/compaction-and-retention.md.
 * Pure. Planning the same catalog twice gives the same names, whoever plans.
 */
export function planMerges(inputs: MergePlanInputs): MergePlan {
  return new MergePlanner(inputs).plan();
}

interface Unit {
  readonly object: ReplicaObject;
  readonly facts: ObjectFacts;
}

/** The shortest run of units after which everything in it is settled. */
interface Atom {
  readonly units: readonly Unit[];
  readonly window: number;
  readonly bytes: number;
}

/** Why nothing more joins a run. */
type RunEnd =
  | "window" // what follows belongs to another window
  | "cut" // nothing steps over this state
  | "done" // what follows is of this level already
  | "gap" // nothing follows, though more may come
  | "end" // so it is at the end of all
  | "unknown" // what follows may belong to it: the run is left alone for now
  | "contradiction"; // what follows is of another lineage, so that nobody can say which of them is ours

class MergePlanner {
  readonly #inputs: MergePlanInputs;
  readonly #merges: Merge[] = [];
  readonly #unknown: ReplicaObject[] = [];
  /** First index of the oldest change-set that must stay as it is. */
  readonly #recentFirst: number;
  /** Ascending. */
  readonly #cuts: readonly number[];
  #run: Atom[] = [];
  #units: Unit[] = [];
  #settled = 0;
  /** The run may begin earlier than is known. */
  #isOpen = false;

  constructor(inputs: MergePlanInputs) {
    this.#inputs = inputs;
    this.#recentFirst = firstOfRecent(inputs);
    this.#cuts = [...inputs.cuts].sort((a, b) => a - b);
  }

  plan(): MergePlan {
    const steps = [...Map.groupBy(this.#candidates(), ({ first }) => first)].sort(([a], [b]) => a - b);
    let reached: number | null = null;
    for (const [first, objects] of steps) {
      // Inside of what the last step spans: an input of it, or an object that overlaps it.
      if (reached !== null && first <= reached) continue;
      if (reached !== null && first > reached + 1) this.#endRun("gap");
      const step = this.#bestStep(objects);
      if (step === null) continue;
      const rivals = this.#unknownRivals(step, objects);
      if (rivals.length === 0) this.#take(step);
      else this.#endRun("unknown");
      this.#unknown.push(...rivals);
      reached = step.last;
      if (this.#inputs.cuts.has(reached)) this.#endRun("cut");
    }
    this.#endRun("end");
    return { merges: this.#merges, unknown: this.#unknown };
  }

  /** Everything that lies on our lineage and can be read, as far as is known. */
  *#candidates(): Generator<ReplicaObject> {
    const { catalog, knowledge, forks } = this.#inputs;
    for (const object of catalog.changeSets)
      if (!forks.has(object) && knowledge(object) !== "unusable" && !this.#stepsOverCut(object)) yield object;
  }

  #stepsOverCut({ first, last }: ReplicaObject): boolean {
    const cuts = this.#cuts;
    let [low, high] = [0, cuts.length];
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((cuts[middle] ?? 0) < first) low = middle + 1;
      else high = middle;
    }
    return (cuts[low] ?? Number.POSITIVE_INFINITY) < last;
  }

  /**
   * The longest of the highest level; of its copies one that goes on from the state reached, under the configured seal, at the
   * first destination.
   */
  #bestStep(objects: readonly ReplicaObject[]): ReplicaObject | null {
    const { knowledge, seal } = this.#inputs;
    const [only] = objects;
    if (objects.length === 1 && only !== undefined) return only;
    const before = this.#before();
    const rank = (object: ReplicaObject) => {
      const facts = knowledge(object);
      if (typeof facts !== "object") return 2;
      return before === undefined || follows(before.facts, facts) ? 0 : 4;
    };
    const rated = objects.map((object) => ({ object, rank: rank(object) + (object.seal === seal ? 0 : 1) }));
    const [best] = rated
      .sort(
        (a, b) =>
          b.object.level - a.object.level ||
          b.object.last - a.object.last ||
          a.rank - b.rank ||
          a.object.destination - b.object.destination,
      )
      .map(({ object }) => object);
    return best ?? null;
  }

  /** What begins there too, is of that level under another name, and may be of another lineage: nothing is known of it. */
  #unknownRivals(step: ReplicaObject, objects: readonly ReplicaObject[]): readonly ReplicaObject[] {
    if (objects.length === 1 || step.level >= this.#inputs.level) return [];
    return objects.filter(
      (object) =>
        object.level === step.level && isOtherName(object, step) && this.#inputs.knowledge(object) === "unknown",
    );
  }

  /** The step that was taken last, where it can be joined. */
  #before(): Unit | undefined {
    return this.#units.at(-1) ?? this.#run.at(-1)?.units.at(-1);
  }

  #take(object: ReplicaObject): void {
    if (object.level >= this.#inputs.level) return this.#endRun("done");
    const facts = this.#inputs.knowledge(object);
    if (typeof facts === "string") {
      this.#unknown.push(object);
      return this.#endRun("unknown");
    }
    const before = this.#before();
    if (before !== undefined && !follows(before.facts, facts)) this.#endRun("contradiction");
    this.#units.push({ object, facts });
    this.#settled = Math.max(this.#settled, facts.settled);
    if (this.#settled <= object.last) this.#endAtom();
  }

  #endAtom(): void {
    const units = this.#units;
    const stampMs = units.at(-1)?.facts.lastCommitMs ?? 0;
    const window = Math.floor(stampMs / this.#inputs.windowMs);
    this.#units = [];
    this.#settled = 0;
    const running = this.#run[0];
    if (running !== undefined && running.window !== window) this.#closeRun("window");
    this.#run.push({ units, window, bytes: units.reduce((sum, unit) => sum + mergingBytes(unit), 0) });
  }

  /** What is not settled when a run ends stays as it is. */
  #endRun(why: Exclude<RunEnd, "window">): void {
    this.#units = [];
    this.#settled = 0;
    this.#closeRun(why);
    this.#isOpen = why === "unknown";
  }

  #closeRun(why: RunEnd): void {
    const run = this.#run;
    const isWhole = !this.#isOpen && why !== "unknown" && why !== "contradiction";
    this.#run = [];
    this.#isOpen = false;
    const [first] = run;
    if (first === undefined || !isWhole) return;
    const mayGrow = why === "gap" || why === "end";
    const windowEndMs = (first.window + 1) * this.#inputs.windowMs;
    if (mayGrow && this.#inputs.nowMs < windowEndMs + WINDOW_SLACK_MS) return;
    const last = run.at(-1)?.units.at(-1)?.object.last ?? 0;
    if (last >= this.#recentFirst) return;
    for (const part of splitByBytes(run)) this.#addMerge(part);
  }

  #addMerge(atoms: readonly Atom[]): void {
    const objects = atoms.flatMap(({ units }) => units.map(({ object }) => object));
    const [first, last] = [objects[0], objects.at(-1)];
    if (first === undefined || last === undefined || objects.length < 2) return;
    this.#merges.push({ level: this.#inputs.level, first: first.first, last: last.last, inputs: objects });
  }
}

/** First index of the oldest of the newest `keepRecent` change-sets of level 0; Infinity when none is to be kept. */
export function firstOfRecent({ catalog, keepRecent }: Pick<MergePlanInputs, "catalog" | "keepRecent">): number {
  if (keepRecent === 0) return Number.POSITIVE_INFINITY;
  const firsts = [...new Set((catalog.levels[0] ?? []).map(({ first }) => first))];
  return firsts.at(-keepRecent) ?? firsts[0] ?? Number.POSITIVE_INFINITY;
}

function isOtherName(a: ReplicaObject, b: ReplicaObject): boolean {
  return a.last !== b.last || a.seal !== b.seal;
}

function follows(before: ObjectFacts, after: ObjectFacts): boolean {
  return before.result === after.parent && before.chain === after.chain && before.pageSizeBytes === after.pageSizeBytes;
}

function mergingBytes({ facts }: Unit): number {
  const raw = facts.pageCount * (facts.pageSizeBytes ?? 0);
  return Math.min(raw, MAX_INPUT_BYTES) + INPUT_OVERHEAD_BYTES;
}

function splitByBytes(atoms: readonly Atom[]): readonly (readonly Atom[])[] {
  const parts: Atom[][] = [];
  let part: Atom[] = [];
  let bytes = 0;
  for (const atom of atoms) {
    if (part.length > 0 && bytes + atom.bytes > MERGE_BYTES) {
      parts.push(part);
      part = [];
      bytes = 0;
    }
    part.push(atom);
    bytes += atom.bytes;
  }
  if (part.length > 0) parts.push(part);
  return parts;
}
