import { readDocument } from "../format/decode.ts";
import type { KeyRing } from "../format/envelope.ts";
import { currentKey, formatName, manifestKey } from "../format/names.ts";
import type { Backend, StoredObject } from "../storage/backend.ts";
import { assert, BakeliteError, describeError } from "../util/errors.ts";
import { inTurns } from "../util/turns.ts";
import { type Catalog, CatalogBuilder, isEmpty, MAX_ANOMALIES, nameOf, type ReplicaObject } from "./catalog.ts";
import { type CurrentHint, parseCurrent, parseManifest } from "./documents.ts";
import { LineageGraph, type StatePath } from "./paths.ts";
import { TrailerCache } from "./trailers.ts";

export interface ReplicaOptions {
  readonly database: string;
  /** In the order of preference. At least one. */
  readonly backends: readonly Backend[];
  readonly keys: KeyRing;
  /** The seal that objects should have: `p`, or the fingerprint of the configured key. */
  readonly seal: string;
  /** Objects without a seal are read although there are keys. */
  readonly acceptPlaintext: boolean;
  readonly signal?: AbortSignal | undefined;
  /** Objects that are read at the same time; 48 by default. */
  readonly concurrency?: number;
  /** With the depth `affordable`, paths with more objects than this of which nothing is known are not read whole; 2,000 by default. */
  readonly maxProofReads?: number;
}

/**
 * How much of a path is read before it is believed: all of it; its ends only, which is enough to show; or all of it unless that is
 * very much, which is enough for whoever reads all of it afterwards.
 */
export type Depth = "whole" | "ends" | "affordable";

/** A larger manifest costs more than the reads that it saves. */
const MAX_MANIFEST_BYTES = 4 * 1024 * 1024;

/**
 * Everything stored for one database, at one or several destinations: the listing, and what has been read of the objects
 * so far. Several destinations are seen as one: each copy of an object is a way of its own, and lineage decides what
 * fits together. Never writes, and never touches the database itself.
 */
export class Replica {
  readonly options: ReplicaOptions;
  #catalog: Catalog;
  #trailers: TrailerCache;
  #current: CurrentHint | null = null;
  #warnings: string[] = [];
  #graph: { readonly version: number; readonly graph: LineageGraph } | null = null;
  #relistCount = 0;

  private constructor(options: ReplicaOptions) {
    this.options = options;
    this.#catalog = new CatalogBuilder(options.database).build();
    this.#trailers = new TrailerCache(options);
  }

  /** Lists every destination. Those that fail are left aside as long as one answers; the last one's failure rejects. */
  static async open(options: ReplicaOptions): Promise<Replica> {
    const replica = new Replica(options);
    await replica.refresh();
    return replica;
  }

  get database(): string {
    return this.options.database;
  }

  get catalog(): Catalog {
    return this.#catalog;
  }

  get trailers(): TrailerCache {
    return this.#trailers;
  }

  /** What the newest readable `CURRENT` says, or null. */
  get current(): CurrentHint | null {
    return this.#current;
  }

  /** Sentences for a person about what could not be looked at. */
  get warnings(): readonly string[] {
    return this.#warnings;
  }

  /** The graph of states as known at this moment. Anything that is read may change it; ask anew rather than keep it. */
  get graph(): LineageGraph {
    const { version } = this.#trailers;
    if (this.#graph?.version !== version) {
      this.#graph = null;
      this.#collect();
      const graph = new LineageGraph(this.#catalog, (object) => this.#trailers.knowledge(object), {
        seal: this.options.seal,
        current: this.#current,
      });
      this.#graph = { version, graph };
    }
    return this.#graph.graph;
  }

  /**
   * Nothing is stored, nor was anything as far as one can see, and every destination has said so. Throws the failure of
   * a destination that could not say it.
   */
  isMissing(): boolean {
    const { current, manifest } = this.#catalog;
    if (!isEmpty(this.#catalog) || [...current, ...manifest].some((stored) => stored !== null)) return false;
    for (const error of this.#trailers.failedDestinations.values()) throw error;
    return true;
  }

  /** Where an object's copy lies, for messages: `s3://backups/app/full/0000000000000001.p`. */
  describe(object: ReplicaObject): string {
    return `${this.locationOf(object.destination)}/${this.database}/${formatName(nameOf(object))}`;
  }

  locationOf(destination: number): string {
    return this.options.backends[destination]?.location ?? "";
  }

  /** Lists anew, keeping what is known of the objects that are still there. */
  async refresh(): Promise<void> {
    const { backends, signal } = this.options;
    const builder = new CatalogBuilder(this.database, backends.length);
    const trailers = new TrailerCache(this.options);
    this.#warnings = [];
    await Promise.all(
      backends.map(async (backend, destination) => {
        try {
          for await (const stored of backend.list(`${this.database}/`, signal === undefined ? {} : { signal }))
            builder.add(destination, stored);
        } catch (error) {
          if (!(error instanceof BakeliteError) || error.code === "interrupted") throw error;
          builder.drop(destination);
          trailers.setDestinationFailed(destination, error);
          this.#warnings.push(`${backend.location} is left aside: ${describeError(error)}`);
        }
      }),
    );
    const catalog = await inTurns(builder.building());
    const older = new Map<string, ReplicaObject>();
    for (const object of [...this.#catalog.fulls, ...this.#catalog.changeSets])
      if (this.#trailers.knowledge(object) !== "unknown") older.set(identityOf(object), object);
    this.#catalog = catalog;
    // The first listing has nothing to inherit, and 100,000 names to compare it with.
    const heirs = older.size === 0 ? [] : this.#allObjects();
    trailers.inherit(this.#trailers, heirs, (object) => older.get(identityOf(object)));
    this.#trailers = trailers;
    this.#graph = null;
    this.#warnOfForeignNames();
    await this.#readDocuments();
  }

  /**
   * The path to the index that `pick` chooses, once enough of it has been read: all of it (`whole`), or its full backup and
   * newest change-sets (`ends`, where an object that settles late would be found: it is a large one and rare). What is read
   * may rule a path out, so this picks again until nothing new is needed; each round reads an object that no round before
   * it has read. Where an object has gone since it was listed, compacted away perhaps, this lists anew. null when `pick`
   * finds nothing.
   */
  async settle(
    pick: (graph: LineageGraph) => number | null | Promise<number | null>,
    depth: Depth,
  ): Promise<StatePath | null> {
    await this.#readWide();
    for (;;) {
      const { version } = this.#trailers;
      const index = await pick(this.graph);
      this.#trailers.throwWithoutDestination();
      if (await this.#listAgainIfOutdated()) continue;
      if (index === null) return null;
      const path = this.graph.pathTo(index);
      if (path === null) {
        assert(this.#trailers.version !== version, "only what was read meanwhile takes a restore point away");
        continue;
      }
      const unknown = this.#unknownOf(path, depth);
      if (unknown.length === 0) return path;
      await this.#trailers.load(unknown);
    }
  }

  /** Whether everything is known that may speak against the path. */
  isProven(path: StatePath): boolean {
    return this.#unknownOf(path, "whole").length === 0;
  }

  /**
   * An ordinary change-set of several states takes those between from whoever else claims them, unless it is itself of another
   * history, and no path that is read would tell. There are next to none: a writer makes one when it cannot see what is stored.
   */
  async #readWide(): Promise<void> {
    const wide = this.#catalog.levels[0]?.filter((object) => object.first < object.last) ?? [];
    await this.#trailers.load(wide.slice(-MAX_WIDE_READS));
  }

  async #listAgainIfOutdated(): Promise<boolean> {
    const isOutdated = this.#trailers.problems.some(({ kind }) => kind === "missing");
    if (!isOutdated || this.#relistCount === MAX_RELISTS) return false;
    this.#relistCount++;
    await this.refresh();
    return true;
  }

  #warnOfForeignNames(): void {
    const [first, ...others] = this.#catalog.anomalies.filter(({ kind }) => kind === "foreign-name");
    if (first === undefined) return;
    const more =
      others.length === 0
        ? ""
        : ` and others (${others.length}${others.length + 1 === MAX_ANOMALIES ? " or more" : ""})`;
    this.#warnings.push(
      `ignoring ${this.locationOf(first.destination)}/${first.key}${more}: not a name that bakelite gives`,
    );
  }

  /** Lists and graphs of many objects leave much behind at once, which the collector by itself lets pile up to several times that. */
  #collect(): void {
    if (this.#catalog.changeSets.length >= MANY_OBJECTS) Bun.gc(true);
  }

  *#allObjects(): Generator<ReplicaObject> {
    yield* this.#catalog.fulls;
    yield* this.#catalog.changeSets;
  }

  #unknownOf(path: StatePath, depth: Depth): readonly ReplicaObject[] {
    const isUnknown = (object: ReplicaObject) => this.#trailers.knowledge(object) === "unknown";
    const ends = [path.full, ...path.changeSets.slice(-ENDS)];
    if (depth === "ends") return ends.filter(isUnknown);
    const all = [path.full, ...path.changeSets];
    const isTooMuch =
      depth === "affordable" && all.filter(isUnknown).length > (this.options.maxProofReads ?? MAX_PROOF_READS);
    const objects = isTooMuch ? ends : all;
    // Whatever else ends where the path does may be of another lineage, and the other one may be ours.
    const rivals = this.graph.stampSources(path.index);
    // An object under another seal that claims the same states may be of another lineage, and so may be all after it.
    const twins = objects.flatMap((object) => this.#catalog.twins.get(object) ?? []);
    const { contested } = this.graph;
    const followers =
      contested.size === 0 ? [] : this.#catalog.changeSets.filter((object) => contested.has(object.first - 1));
    return [...new Set([...objects, ...rivals, ...twins, ...followers])].filter(isUnknown);
  }

  /** `CURRENT` and the manifests, as far as they can be read. Both are hints: whatever is wrong with them is a warning. */
  async #readDocuments(): Promise<void> {
    this.#current = null;
    for (const [destination, stored] of this.#catalog.current.entries()) {
      const fields = stored === null ? null : await this.#readFields(destination, stored, "current");
      if (stored === null || fields === null) continue;
      const hint = this.#hint(stored.key, () => parseCurrent(fields, stored.key));
      if (hint !== null && hint.writtenMs > (this.#current?.writtenMs ?? -1)) this.#current = hint;
    }
    for (const [destination, stored] of this.#catalog.manifest.entries()) {
      if (stored === null || stored.sizeBytes > MAX_MANIFEST_BYTES) continue;
      const fields = await this.#readFields(destination, stored, "manifest");
      if (fields !== null) this.#hint(stored.key, () => this.#learnManifest(destination, fields, stored.key));
    }
  }

  #learnManifest(destination: number, fields: Record<string, unknown>, key: string): void {
    const objects = new Map<string, ReplicaObject>();
    for (const object of this.#allObjects())
      if (object.destination === destination) objects.set(formatName(nameOf(object)), object);
    for (const entry of parseManifest(fields, key)) {
      const object = objects.get(entry.name);
      const plausible =
        object !== undefined && object.sizeBytes === entry.sizeBytes && entry.facts.settled >= object.last;
      if (plausible) this.#trailers.learn(object, entry.facts);
    }
  }

  async #readFields(
    destination: number,
    stored: StoredObject,
    kind: "current" | "manifest",
  ): Promise<Record<string, unknown> | null> {
    const { backends, keys, acceptPlaintext, signal } = this.options;
    const backend = backends[destination];
    if (backend === undefined) return null;
    const key = kind === "current" ? currentKey(this.database) : manifestKey(this.database);
    try {
      // Not by the size that was listed: both are replaced while we look.
      const stream = await backend.get(key, signal === undefined ? {} : { signal });
      if (stream === null) return null;
      const bytes = Buffer.concat(await Array.fromAsync(stream));
      const subject = `${backend.location}/${key}`;
      return readDocument(bytes, { name: { kind }, database: this.database, subject, keys, acceptPlaintext }).fields;
    } catch (error) {
      if (!(error instanceof BakeliteError) || error.code === "interrupted" || error.code === "internal") throw error;
      this.#warnings.push(`${stored.key} is left aside: ${describeError(error)}`);
      return null;
    }
  }

  #hint<T>(key: string, read: () => T): T | null {
    try {
      return read();
    } catch (error) {
      if (!(error instanceof BakeliteError) || error.code !== "replica-corrupt") throw error;
      this.#warnings.push(`${key} is left aside: ${describeError(error)}`);
      return null;
    }
  }
}

const MANY_OBJECTS = 20_000;

/** A destination that goes on listing what it does not have is taken at its word after so many listings. */
const MAX_RELISTS = 5;

/** Reading so many takes a fraction of a second from a disk, and a few from a bucket. */
const MAX_PROOF_READS = 2_000;

/** More than these were not made by a writer of ours. */
const MAX_WIDE_READS = 100;

/** How many of a path's newest change-sets are read to show where it ends. */
const ENDS = 8;

function identityOf(object: ReplicaObject): string {
  return `${object.destination} ${formatName(nameOf(object))} ${object.sizeBytes}`;
}
