import { upperBound } from "../util/upper-bound.ts";
import { keyBelow, type ReplicaObject } from "./catalog.ts";
import type { ObjectFacts } from "./facts.ts";
import type { Replica } from "./replica.ts";
import {
  indexesAtTimes,
  newestPath,
  oldestPath,
  type RestorePoint,
  readStamps,
  restorePointOf,
} from "./restore-points.ts";

/** What one line says of a replica. */
export interface ReplicaSummary {
  readonly newest: RestorePoint | null;
  readonly oldest: RestorePoint | null;
  /** Full backups and change-sets by name: copies at further destinations are not counted again. */
  readonly fullBackupCount: number;
  readonly changeSetCount: number;
  /** Of all objects at all destinations. */
  readonly storedBytes: number;
}

/** A full backup and the restore points for which it is the newest that can be used. */
export interface FullBackupSummary {
  readonly index: number;
  readonly copies: readonly ReplicaObject[];
  /** The stamp of its state; null when no copy can be read. */
  readonly stampMs: number | null;
  readonly sizePages: number | null;
  readonly pageSizeBytes: number | null;
  readonly points: { readonly oldest: RestorePoint; readonly newest: RestorePoint; readonly count: number } | null;
}

/** Restore points of one age. */
export interface AgeSummary {
  /** Younger than this; null: all that are older than the ages before. */
  readonly youngerThanMs: number | null;
  readonly count: number;
  readonly oldest: RestorePoint;
  readonly newest: RestorePoint;
}

/** All copies of one object. */
export interface ObjectSummary {
  /** Below the database's folder. */
  readonly name: string;
  readonly copies: readonly ReplicaObject[];
  /** null when no copy can be read. */
  readonly facts: ObjectFacts | null;
}

/** Costs a few reads, however many objects there are. */
export async function summarize(replica: Replica): Promise<ReplicaSummary> {
  const { fulls, levels, changeSets } = replica.catalog;
  const newest = await newestPath(replica, "ends");
  const oldest = await oldestPath(replica, "ends");
  return {
    newest: newest === null ? null : await restorePointOf(replica, newest.index),
    oldest: oldest === null ? null : await restorePointOf(replica, oldest.index),
    fullBackupCount: countNames(fulls),
    changeSetCount: levels.reduce((sum, level) => sum + countNames(level), 0),
    storedBytes: [fulls, changeSets].flat().reduce((sum, object) => sum + object.sizeBytes, 0),
  };
}

/** Every full backup, ascending. Reads each of them, and the objects at the ends of their ranges. */
export async function summarizeFullBackups(replica: Replica): Promise<readonly FullBackupSummary[]> {
  await replica.trailers.load(replica.catalog.fulls);
  const groups = [...Map.groupBy(replica.catalog.fulls, (object) => object.first).values()];
  const points = replica.graph.restorePoints;
  const ranges: (readonly number[])[] = [];
  // A full backup serves the points from where it is settled to where the next one is.
  let end = points.length;
  for (const copies of groups.toReversed()) {
    const facts = factsOfAny(replica, copies);
    const start = facts === null ? end : Math.min(end, upperBound(points, facts.settled - 1));
    ranges.unshift(points.slice(start, end));
    end = start;
  }
  await readEnds(replica, ranges);
  const summaries: FullBackupSummary[] = [];
  for (const [i, copies] of groups.entries()) {
    const facts = factsOfAny(replica, copies);
    summaries.push({
      index: copies[0]?.first ?? 0,
      copies,
      stampMs: facts?.lastCommitMs ?? null,
      sizePages: facts?.sizePages ?? null,
      pageSizeBytes: facts?.pageSizeBytes ?? null,
      points: await summarizeRange(replica, ranges[i] ?? []),
    });
  }
  return summaries;
}

/**
 * How densely the restore points lie by age, youngest first: those younger than each of `agesMs` (ascending), and all older ones.
 * Ages without any are left out. Costs a few reads for each age.
 */
export async function summarizeAges(
  replica: Replica,
  agesMs: readonly number[],
  nowMs: number,
): Promise<readonly AgeSummary[]> {
  const before = await indexesAtTimes(
    replica,
    agesMs.map((ageMs) => nowMs - ageMs),
  );
  const points = replica.graph.restorePoints;
  const ranges: (readonly number[])[] = [];
  let end = points.length;
  for (const index of [...before, null]) {
    const start = Math.min(end, index === null ? 0 : upperBound(points, index));
    ranges.push(points.slice(start, end));
    end = start;
  }
  await readEnds(replica, ranges);
  const ages: AgeSummary[] = [];
  for (const [i, youngerThanMs] of [...agesMs, null].entries()) {
    const range = await summarizeRange(replica, ranges[i] ?? []);
    if (range !== null) ages.push({ youngerThanMs, ...range });
  }
  return ages;
}

/** Reads all objects, which makes everything that is asked afterwards exact. */
export async function readAllObjects(replica: Replica): Promise<void> {
  const { fulls, changeSets } = replica.catalog;
  await replica.trailers.load([...fulls, ...changeSets]);
}

const COLLECT_EVERY_OBJECTS = 5_000;

/** Every object with what is known of it. Full backups first, then by level and index. One at a time: there may be 100,000. */
export function* summarizeObjects(replica: Replica): Generator<ObjectSummary> {
  const { fulls, levels } = replica.catalog;
  let given = 0;
  for (const objects of [fulls, ...levels])
    for (let start = 0; start < objects.length; ) {
      const object = objects[start];
      if (object === undefined) return;
      // Copies at several destinations are neighbours.
      let end = start + 1;
      while (isCopyOf(objects[end], object)) end++;
      const copies = objects.slice(start, end);
      yield { name: keyBelow(object), copies, facts: factsOfAny(replica, copies) };
      start = end;
      // What is made of each to show it is text, and the collector by itself lets that pile up.
      if (++given % COLLECT_EVERY_OBJECTS === 0) Bun.gc(true);
    }
}

function isCopyOf(a: ReplicaObject | undefined, b: ReplicaObject): boolean {
  return a !== undefined && a.first === b.first && a.last === b.last && a.seal === b.seal;
}

/** The stamps at the ends of ascending ranges, all at once: whatever is read by itself makes the graph anew. */
async function readEnds(replica: Replica, ranges: readonly (readonly number[])[]): Promise<void> {
  await readStamps(
    replica,
    ranges.flatMap((range) => range.slice(0, 1).concat(range.slice(-1))),
  );
}

async function summarizeRange(replica: Replica, points: readonly number[]): Promise<FullBackupSummary["points"]> {
  const [first, last] = [points[0], points.at(-1)];
  if (first === undefined || last === undefined) return null;
  const oldest = await restorePointOf(replica, first);
  const newest = await restorePointOf(replica, last);
  // What could not be read is no restore point; it has made way for its neighbours when this is asked again.
  if (oldest === null) return summarizeRange(replica, points.slice(1));
  if (newest === null) return summarizeRange(replica, points.slice(0, -1));
  return { oldest, newest, count: points.length };
}

function factsOfAny(replica: Replica, copies: readonly ReplicaObject[]): ObjectFacts | null {
  for (const object of copies) {
    const known = replica.trailers.knowledge(object);
    if (typeof known === "object") return known;
  }
  return null;
}

/** Of objects of one level, ascending: names that differ in more than the seal. */
function countNames(objects: readonly ReplicaObject[]): number {
  let count = 0;
  let before: ReplicaObject | null = null;
  for (const object of objects) {
    if (before === null || before.first !== object.first || before.last !== object.last) count++;
    before = object;
  }
  return count;
}
