import type { TimeEpoch } from "../format/trailer.ts";
import { upperBound } from "../util/upper-bound.ts";
import type { ReplicaObject } from "./catalog.ts";
import type { LineageGraph, StatePath } from "./paths.ts";
import type { Depth, Replica } from "./replica.ts";

/** A state that can be restored, and when its last commit was seen. */
export interface RestorePoint {
  readonly index: number;
  readonly stampMs: number;
}

/** The path to the newest restore point, or null when there is none. */
export async function newestPath(replica: Replica, depth: Depth): Promise<StatePath | null> {
  return replica.settle((graph) => graph.restorePoints.at(-1) ?? null, depth);
}

/** The path to the oldest restore point, or null when there is none. */
export async function oldestPath(replica: Replica, depth: Depth): Promise<StatePath | null> {
  return replica.settle((graph) => graph.restorePoints[0] ?? null, depth);
}

/** The path to state `index`, or null when that is not a restore point. */
export async function pathToIndex(replica: Replica, index: number, depth: Depth): Promise<StatePath | null> {
  return replica.settle((graph) => (graph.isRestorePoint(index) ? index : null), depth);
}

/**
 * The path to the newest restore point at or before the moment `timeMs`, by the rule of docs/storage-format.md section 9;
 * null when all are later. Where the epoch that the rule names has no such restore point, the epochs before it are
 * searched: what they hold was committed earlier still.
 */
export async function pathAtTime(replica: Replica, timeMs: number, depth: Depth): Promise<StatePath | null> {
  return replica.settle((graph) => new TimeSearch(replica, graph).newestAt(timeMs), depth);
}

/**
 * For each moment the newest restore point at or before it, as `pathAtTime` finds it, or null; by the stamps alone, without a look at
 * what leads there, which is enough to show.
 */
export async function indexesAtTimes(
  replica: Replica,
  timesMs: readonly number[],
): Promise<readonly (number | null)[]> {
  const search = new TimeSearch(replica, replica.graph);
  const found: (number | null)[] = [];
  for (const timeMs of timesMs) found.push(await search.newestAt(timeMs));
  return found;
}

/** The first restore point after state `index`, or null. Looks at the objects that end there only. */
export async function nextRestorePoint(replica: Replica, index: number): Promise<RestorePoint | null> {
  const path = await replica.settle(
    (graph) => graph.restorePoints[upperBound(graph.restorePoints, index)] ?? null,
    "ends",
  );
  return path === null ? null : restorePointOf(replica, path.index);
}

/** Restore point `index` with its stamp, or null when nothing readable tells it any longer. */
export async function restorePointOf(replica: Replica, index: number): Promise<RestorePoint | null> {
  const stampMs = await readStamp(replica, replica.graph, index);
  return stampMs === null ? null : { index, stampMs };
}

/** Reads what tells the stamps of the states, several at a time, so that `restorePointOf` need not read for them one by one. */
export async function readStamps(replica: Replica, indexes: readonly number[]): Promise<void> {
  const { graph } = replica;
  await replica.trailers.load(indexes.flatMap((index) => preferKnown(replica, graph.stampSources(index)).slice(0, 1)));
}

/** How often a search starts again because an object that it asked turned out to be damaged. */
const MAX_SEARCHES = 1000;

/** The search for a moment among one graph's restore points: a few reads, since stamps do not fall within an epoch. */
class TimeSearch {
  readonly #replica: Replica;
  #points: readonly number[];
  #graph: LineageGraph;

  constructor(replica: Replica, graph: LineageGraph) {
    this.#replica = replica;
    this.#graph = graph;
    this.#points = graph.restorePoints;
  }

  /** An object that cannot be read after all changes the graph, and the search begins again without it. */
  async newestAt(timeMs: number): Promise<number | null> {
    for (let search = 0; search < MAX_SEARCHES; search++) {
      const found = await this.#search(timeMs);
      if (found !== "damaged") return found;
      this.#graph = this.#replica.graph;
      this.#points = this.#graph.restorePoints;
    }
    return null;
  }

  async #search(timeMs: number): Promise<number | null | "damaged"> {
    let end = this.#points.length;
    while (end > 0) {
      const newest = this.#points[end - 1];
      const epochs = newest === undefined ? "damaged" : await this.#epochsAt(newest);
      if (epochs === "damaged") return "damaged";
      // Newest first; what is older than the oldest epoch that this object knows is searched with an older object's.
      for (const epoch of epochs.toReversed()) {
        const start = upperBound(this.#points, epoch.firstIndex - 1);
        const found = epoch.firstStampMs > timeMs ? null : await this.#newestWithin(start, end, timeMs);
        if (found !== null) return found;
        end = Math.min(end, start);
      }
    }
    return null;
  }

  /** The newest of the points at positions `start` to `end` (half-open) whose stamp is not after `timeMs`. */
  async #newestWithin(start: number, end: number, timeMs: number): Promise<number | null | "damaged"> {
    let low = start;
    let high = end;
    while (low < high) {
      const middle = (low + high) >>> 1;
      const point = this.#points[middle];
      const stampMs = point === undefined ? null : await readStamp(this.#replica, this.#graph, point);
      if (stampMs === null) return "damaged";
      if (stampMs <= timeMs) low = middle + 1;
      else high = middle;
    }
    return low === start ? null : (this.#points[low - 1] ?? null);
  }

  /** The epochs that reach down from `index`, ascending, one at least: what an object knows nothing of counts as one. */
  async #epochsAt(index: number): Promise<readonly TimeEpoch[] | "damaged"> {
    for (const object of preferKnown(this.#replica, this.#graph.stampSources(index))) {
      const opened = await this.#replica.trailers.open(object);
      if (opened === null) continue;
      const epochs = opened.reader.trailer.epochs.filter((epoch) => epoch.firstIndex <= index);
      return epochs.length > 0 ? epochs : [{ number: 0, firstIndex: 0, firstStampMs: 0 }];
    }
    return "damaged";
  }
}

/** The stamp of a state, read where it is not known; null when no object that tells it can be read. */
async function readStamp(replica: Replica, graph: LineageGraph, index: number): Promise<number | null> {
  for (const object of preferKnown(replica, graph.stampSources(index))) {
    await replica.trailers.load([object]);
    const known = replica.trailers.knowledge(object);
    if (typeof known === "object") return known.lastCommitMs;
  }
  return null;
}

/** Those whose facts are at hand first, then the smallest. */
function preferKnown(replica: Replica, objects: readonly ReplicaObject[]): readonly ReplicaObject[] {
  const isKnown = (object: ReplicaObject) => (typeof replica.trailers.knowledge(object) === "object" ? 0 : 1);
  return objects.toSorted((a, b) => isKnown(a) - isKnown(b) || a.sizeBytes - b.sizeBytes);
}
