import { formatName } from "../format/names.ts";
import { nameOf, type ReplicaObject } from "./catalog.ts";
import type { ObjectFacts } from "./facts.ts";
import type { Replica } from "./replica.ts";
import { newestPath, oldestPath, pathAtTime, type RestorePoint, restorePointOf, upperBound } from "./restore-points.ts";

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
  const { fulls, changeSets } = replica.catalog;
  const newest = await newestPath(replica, "ends");
  const oldest = await oldestPath(replica, "ends");
  return {
    newest: newest === null ? null : await restorePointOf(replica, newest.index),
    oldest: oldest === null ? null : await restorePointOf(replica, oldest.index),
    fullBackupCount: countNames(fulls),
    changeSetCount: countNames(changeSets),
    storedBytes: [...fulls, ...changeSets].reduce((sum, object) => sum + object.sizeBytes, 0),
  };
}

/** Every full backup, ascending. Reads each of them, and the objects at the ends of their ranges. */
export async function summarizeFullBackups(replica: Replica): Promise<readonly FullBackupSummary[]> {
  await replica.trailers.load(replica.catalog.fulls);
  const groups = [...Map.groupBy(replica.catalog.fulls, (object) => object.first).values()];
  const usable = groups.map((copies) => factsOfAny(replica, copies));
  const points = replica.graph.restorePoints;
  // A full backup serves the points from where it is settled to where the next one is.
  const starts = usable.map((facts) => (facts === null ? null : upperBound(points, facts.settled - 1)));
  const summaries: FullBackupSummary[] = [];
  for (const [i, copies] of groups.entries()) {
    const facts = usable[i] ?? null;
    const start = starts[i] ?? null;
    const end = starts.slice(i + 1).find((next) => next !== null) ?? points.length;
    summaries.push({
      index: copies[0]?.first ?? 0,
      copies,
      stampMs: facts?.lastCommitMs ?? null,
      sizePages: facts?.sizePages ?? null,
      pageSizeBytes: facts?.pageSizeBytes ?? null,
      points: start === null ? null : await summarizeRange(replica, points.slice(start, end)),
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
  const ages: AgeSummary[] = [];
  let end = replica.graph.restorePoints.length;
  for (const youngerThanMs of [...agesMs, null]) {
    const points = replica.graph.restorePoints;
    const before = youngerThanMs === null ? null : await pathAtTime(replica, nowMs - youngerThanMs, "ends");
    const start = Math.min(end, before === null ? 0 : upperBound(points, before.index));
    const range = await summarizeRange(replica, points.slice(start, end));
    if (range !== null) ages.push({ youngerThanMs, ...range });
    end = start;
  }
  return ages;
}

/** Every object with what its trailer says: reads all of them. Full backups first, then by level and index. */
export async function summarizeObjects(
  replica: Replica,
  onRead?: (object: ReplicaObject) => void,
): Promise<readonly ObjectSummary[]> {
  const { fulls, levels } = replica.catalog;
  const objects = [...fulls, ...levels.flat()];
  await replica.trailers.load(objects, onRead);
  const byName = Map.groupBy(objects, (object) => formatName(nameOf(object)));
  return [...byName].map(([name, copies]) => ({ name, copies, facts: factsOfAny(replica, copies) }));
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

function countNames(objects: readonly ReplicaObject[]): number {
  return new Set(objects.map((object) => `${object.level} ${object.first} ${object.last}`)).size;
}
