import {
  currentKey,
  formatName,
  HIGHEST_LEVEL,
  type MarkName,
  manifestKey,
  markKey,
  type ObjectName,
  objectKey,
  parseMarkName,
  parseName,
} from "../format/names.ts";
import type { StoredObject } from "../storage/backend.ts";
import { assert } from "../util/errors.ts";
import { atOnce, STEP_LOOKS } from "../util/turns.ts";

/** One stored copy of a full backup or change-set, as a listing shows it. */
export interface ReplicaObject {
  readonly kind: "full" | "change-set";
  /** 0 for a full backup. */
  readonly level: number;
  /** A full backup's `first` and `last` are both its n0. */
  readonly first: number;
  readonly last: number;
  readonly seal: string;
  /** Position of the destination in the list that was given, from 0. */
  readonly destination: number;
  readonly sizeBytes: number;
  /** By the destination's clock. */
  readonly modifiedMs: number;
}

/** One stored copy of a mark (docs/storage-format.md section 7): state `index` is to stay restorable. */
export interface StoredMark {
  readonly index: number;
  readonly seal: string;
  readonly destination: number;
  readonly sizeBytes: number;
  /** By the destination's clock. */
  readonly modifiedMs: number;
}

export type AnomalyKind =
  | "foreign-name" // not a name that bakelite gives
  | "two-seals" // the same state change under two seals, as a reencrypt that was cut short leaves it
  | "sizes-differ"; // two destinations hold objects of one name and different sizes

/** Something odd that names and sizes alone show. `key` is below the destination's prefix. */
export interface Anomaly {
  readonly kind: AnomalyKind;
  readonly key: string;
  readonly destination: number;
}

/** Everything stored for one database at one or more destinations, by name only: no object was read. */
export interface Catalog {
  readonly database: string;
  /** Ascending by index, then destination. */
  readonly fulls: readonly ReplicaObject[];
  /** By level, from 0 to 9; in a level ascending by first, last, then destination. */
  readonly levels: readonly (readonly ReplicaObject[])[];
  /** Those of all levels, ascending by first, then level, last, seal and destination. */
  readonly changeSets: readonly ReplicaObject[];
  /** Of each object that has some: the objects at the same destination that differ from it in the seal only. */
  readonly twins: ReadonlyMap<ReplicaObject, readonly ReplicaObject[]>;
  /** By destination. */
  readonly current: readonly (StoredObject | null)[];
  readonly manifest: readonly (StoredObject | null)[];
  /** Ascending by index, then destination, then seal. */
  readonly marks: readonly StoredMark[];
  /** The first of them, at most 100; `anomalyCount` says how many there were. */
  readonly anomalies: readonly Anomaly[];
  readonly anomalyCount: number;
}

/** More of them are counted only. */
export const MAX_ANOMALIES = 100;

/** The object's name, from which `objectKey` makes its key. */
export function nameOf(object: ReplicaObject): ObjectName {
  if (object.kind === "full") return { kind: "full", index: object.first, seal: object.seal };
  return { kind: "change-set", level: object.level, first: object.first, last: object.last, seal: object.seal };
}

/** The object's key below its database's folder, for messages. */
export function keyBelow(object: ReplicaObject): string {
  return formatName(nameOf(object));
}

/** The object's key below its destination's prefix. */
export function keyOf(database: string, object: ReplicaObject): string {
  return objectKey(database, nameOf(object));
}

/** A mark's key below its destination's prefix. */
export function keyOfMark(database: string, mark: StoredMark): string {
  return markKey(database, mark);
}

/** The marked states, ascending. A mark counts by its name alone: one that cannot be read keeps its state too. */
export function markedIndexes(catalog: Catalog): readonly number[] {
  return [...new Set(catalog.marks.map(({ index }) => index))];
}

/** Whether a change-set steps over state `index`: it was merged with what followed it. */
export function isMergedOver({ changeSets }: Catalog, index: number): boolean {
  return changeSets.some(({ level, first, last }) => level > 0 && first <= index && index < last);
}

/** Those that lead between the same states, whatever their seal and destination, together. `objects`: in a catalog's order. */
export function* copiesIn(objects: Iterable<ReplicaObject>): Generator<readonly ReplicaObject[]> {
  let copies: ReplicaObject[] = [];
  for (const object of objects) {
    if (copies[0] !== undefined && !sameStates(copies[0], object)) {
      yield copies;
      copies = [];
    }
    copies.push(object);
  }
  if (copies.length > 0) yield copies;
}

/** Whether nothing with a name of ours is stored, `CURRENT` and `manifest` aside. */
export function isEmpty(catalog: Catalog): boolean {
  return catalog.fulls.length === 0 && catalog.changeSets.length === 0;
}

/** Objects of one destination and kind, and one level, as they were added. */
interface Run {
  readonly objects: ReplicaObject[];
  isAscending: boolean;
}

/** Full backups, and the levels. */
const RUN_COUNT = 1 + HIGHEST_LEVEL + 1;

function newRuns(): Run[] {
  return Array.from({ length: RUN_COUNT }, () => ({ objects: [], isAscending: true }));
}

/** The items of ascending lists as one ascending list, what is equal in the order of the lists. Not for very many lists. */
function* merge<T>(lists: readonly T[][], compare: (a: T, b: T) => number): Generator<void, T[]> {
  const left = lists.filter((list) => list.length > 0).map((list) => ({ list, next: 0 }));
  if (left.length <= 1) return left[0]?.list ?? [];
  const merged: T[] = [];
  for (;;) {
    let least: { readonly from: { readonly list: T[]; next: number }; readonly item: T } | null = null;
    for (const from of left) {
      const item = from.list[from.next];
      if (item !== undefined && (least === null || compare(item, least.item) < 0)) least = { from, item };
    }
    if (least === null) return merged;
    merged.push(least.item);
    least.from.next++;
    if (merged.length % STEP_LOOKS === 0) yield;
  }
}

/** Takes listings object by object, in any order, so that no list of all keys stands in memory besides the catalog. */
export class CatalogBuilder {
  readonly #database: string;
  readonly #folder: string;
  readonly #currentKey: string;
  readonly #manifestKey: string;
  /** By destination, then full backups and each level. A listing is in the order of the keys, and so mostly is each of these. */
  readonly #runs: Run[][];
  readonly #current: (StoredObject | null)[];
  readonly #manifest: (StoredObject | null)[];
  #marks: StoredMark[] = [];
  readonly #twins = new Map<ReplicaObject, ReplicaObject[]>();
  readonly #anomalies: Anomaly[] = [];
  /** One string for each seal rather than one for each object. */
  readonly #seals = new Map<string, string>();
  #anomalyCount = 0;

  constructor(database: string, destinationCount = 1) {
    this.#database = database;
    this.#folder = `${database}/`;
    this.#currentKey = currentKey(database);
    this.#manifestKey = manifestKey(database);
    this.#runs = Array.from({ length: destinationCount }, newRuns);
    this.#current = Array.from({ length: destinationCount }, () => null);
    this.#manifest = Array.from({ length: destinationCount }, () => null);
  }

  add(destination: number, stored: StoredObject): void {
    const { key } = stored;
    if (key === this.#currentKey) this.#current[destination] = stored;
    else if (key === this.#manifestKey) this.#manifest[destination] = stored;
    else {
      const start = this.#folder.length;
      const name = key.startsWith(this.#folder) ? (parseName(key, start) ?? parseMarkName(key, start)) : null;
      if (name === null) this.#addAnomaly({ kind: "foreign-name", key, destination });
      else if (name.kind === "mark") this.#marks.push(markOf(name, destination, stored));
      else this.#addObject(this.#objectOf(name, destination, stored));
    }
  }

  /** Forgets what was added of a destination whose listing failed half-way. */
  drop(destination: number): void {
    this.#runs[destination] = newRuns();
    this.#marks = this.#marks.filter((mark) => mark.destination !== destination);
    this.#current[destination] = null;
    this.#manifest[destination] = null;
  }

  build(): Catalog {
    return atOnce(this.building());
  }

  /** As `build`, in steps of a few milliseconds for 100,000 objects that were listed in the order of their keys. */
  *building(): Generator<void, Catalog> {
    const [fulls = [], ...levels] = yield* this.#mergeRuns();
    return {
      database: this.#database,
      fulls,
      levels,
      changeSets: yield* merge(levels, (a, b) => a.first - b.first),
      twins: this.#twins,
      current: this.#current,
      manifest: this.#manifest,
      marks: this.#marks.sort(compareMarks),
      anomalies: this.#anomalies,
      anomalyCount: this.#anomalyCount,
    };
  }

  /** Of all destinations together: the full backups, and each level. Names that differ in the seal or the destination only are compared. */
  *#mergeRuns(): Generator<void, ReplicaObject[][]> {
    const merged: ReplicaObject[][] = [];
    for (let place = 0; place < RUN_COUNT; place++) {
      const runs = this.#runs.flatMap((ofDestination) => ofDestination[place] ?? []);
      for (const run of runs) if (!run.isAscending) run.objects.sort(compareObjects);
      const objects = yield* merge(
        runs.map((run) => run.objects),
        compareObjects,
      );
      yield* this.#compareAlike(objects);
      merged.push(objects);
    }
    return merged;
  }

  *#compareAlike(objects: readonly ReplicaObject[]): Generator<void, void> {
    let alike: ReplicaObject[] = [];
    for (const [i, object] of objects.entries()) {
      if (i % STEP_LOOKS === STEP_LOOKS - 1) yield;
      if (alike[0] !== undefined && !sameStates(alike[0], object)) alike = [];
      for (const other of alike) this.#compare(other, object);
      alike.push(object);
    }
  }

  #addObject(object: ReplicaObject): void {
    const run = this.#runs[object.destination]?.[object.kind === "full" ? 0 : object.level + 1];
    assert(run !== undefined, "an object is of a destination that was named, and of a level that there is");
    const last = run.objects.at(-1);
    run.isAscending &&= last === undefined || compareObjects(last, object) <= 0;
    run.objects.push(object);
  }

  #objectOf(name: ObjectName, destination: number, stored: StoredObject): ReplicaObject {
    let seal = this.#seals.get(name.seal);
    if (seal === undefined) {
      seal = name.seal;
      this.#seals.set(seal, seal);
    }
    const full = name.kind === "full";
    return {
      kind: name.kind,
      level: full ? 0 : name.level,
      first: full ? name.index : name.first,
      last: full ? name.index : name.last,
      seal,
      destination,
      sizeBytes: stored.sizeBytes,
      modifiedMs: stored.modifiedMs,
    };
  }

  #compare(a: ReplicaObject, b: ReplicaObject): void {
    if (a.destination === b.destination) {
      this.#addAnomaly({ kind: "two-seals", ...this.#placeOf(b) });
      this.#twins.set(a, [...(this.#twins.get(a) ?? []), b]);
      this.#twins.set(b, [...(this.#twins.get(b) ?? []), a]);
    } else if (a.seal === b.seal && a.sizeBytes !== b.sizeBytes) {
      this.#addAnomaly({ kind: "sizes-differ", ...this.#placeOf(b) });
    }
  }

  #placeOf(object: ReplicaObject): Pick<Anomaly, "key" | "destination"> {
    return { key: keyOf(this.#database, object), destination: object.destination };
  }

  #addAnomaly(anomaly: Anomaly): void {
    this.#anomalyCount++;
    if (this.#anomalies.length < MAX_ANOMALIES) this.#anomalies.push(anomaly);
  }
}

function markOf({ index, seal }: MarkName, destination: number, { sizeBytes, modifiedMs }: StoredObject): StoredMark {
  return { index, seal, destination, sizeBytes, modifiedMs };
}

function compareMarks(a: StoredMark, b: StoredMark): number {
  if (a.index !== b.index) return a.index - b.index;
  if (a.destination !== b.destination) return a.destination - b.destination;
  return a.seal < b.seal ? -1 : 1;
}

/** Whether the two names differ in nothing but the seal. */
function sameStates(a: ReplicaObject, b: ReplicaObject): boolean {
  return a.kind === b.kind && a.level === b.level && a.first === b.first && a.last === b.last;
}

function compareObjects(a: ReplicaObject, b: ReplicaObject): number {
  if (a.kind !== b.kind) return a.kind === "full" ? -1 : 1;
  if (a.level !== b.level) return a.level - b.level;
  if (a.first !== b.first) return a.first - b.first;
  if (a.last !== b.last) return a.last - b.last;
  if (a.seal !== b.seal) return a.seal < b.seal ? -1 : 1;
  return a.destination - b.destination;
}
