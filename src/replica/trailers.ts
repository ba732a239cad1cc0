import { type ObjectReader, openObject } from "../format/decode.ts";
import type { KeyRing } from "../format/envelope.ts";
import { PLAINTEXT_SEAL } from "../format/names.ts";
import type { Backend } from "../storage/backend.ts";
import { BakeliteError, type ErrorCode, unreachable } from "../util/errors.ts";
import { keyOf, nameOf, type ReplicaObject } from "./catalog.ts";
import { factsOf, type Knowledge, type ObjectFacts } from "./facts.ts";
import { ObjectSource } from "./object-source.ts";

export type ProblemKind =
  | "corrupt" // damaged, or not what its name says
  | "missing" // listed, and gone when it was read
  | "unreadable-key" // sealed with a key that is not configured, or not sealed although a key is
  | "foreign"; // of a newer format or another database

/** Why an object cannot be used. */
export interface ObjectProblem {
  readonly object: ReplicaObject;
  readonly kind: ProblemKind;
  readonly error: BakeliteError;
}

export interface TrailerOptions {
  readonly database: string;
  readonly backends: readonly Backend[];
  readonly keys: KeyRing;
  /** Objects without a seal are read although there are keys. */
  readonly acceptPlaintext: boolean;
  readonly signal?: AbortSignal | undefined;
  /** Objects that are read at the same time. */
  readonly concurrency?: number;
}

export interface OpenedObject {
  readonly object: ReplicaObject;
  readonly reader: ObjectReader;
  readonly source: ObjectSource;
}

const DEFAULT_CONCURRENCY = 48;
/** Objects up to this size are fetched whole when their trailer is wanted: one request, and it would cover most of them anyway. */
const SMALL_OBJECT_BYTES = 64 * 1024;
/** What reading an object leaves behind is many times what is remembered of it, and the collector by itself lets it pile up. */
const COLLECT_EVERY_OBJECTS = 2_000;
const RECENT_LINEAGES = 1_000;
/** Small objects that were read for planning are kept for the restore that may follow, up to this much. */
const KEPT_BYTES = 8 * 1024 * 1024;

/**
 * What is known of the stored objects' headers and trailers. Reads an object only when asked to, a bounded number at a time,
 * and remembers facts rather than trailers. An object that cannot be used is remembered with its problem; a destination
 * that fails is left aside with all its objects as long as another one is left.
 */
export class TrailerCache {
  readonly #options: TrailerOptions;
  readonly #facts = new Map<ReplicaObject, ObjectFacts>();
  readonly #problems = new Map<ReplicaObject, ObjectProblem>();
  readonly #failedDestinations = new Map<number, BakeliteError>();
  readonly #smallObjects = new Map<ReplicaObject, Uint8Array>();
  #newestChain: string | null = null;
  readonly #recentLineages = new Map<string, string>();
  #smallObjectBytes = 0;
  #fetchedBytes = 0;
  #version = 0;

  constructor(options: TrailerOptions) {
    this.#options = options;
  }

  /** Grows whenever anything was learnt. */
  get version(): number {
    return this.#version;
  }

  /** Bytes of objects that came from the destinations. */
  get fetchedBytes(): number {
    return this.#fetchedBytes;
  }

  /** Objects that were read and cannot be used. */
  get problems(): readonly ObjectProblem[] {
    return [...this.#problems.values()];
  }

  /** Why an object is unusable that was read, or whose destination was asked; undefined where nothing is wrong with it. */
  failureOf(object: ReplicaObject): { readonly error: BakeliteError; readonly gone: boolean } | undefined {
    const problem = this.#problems.get(object);
    if (problem !== undefined) return { error: problem.error, gone: problem.kind === "missing" };
    const error = this.#failedDestinations.get(object.destination);
    return error === undefined ? undefined : { error, gone: false };
  }

  /** Destinations that failed, by position, with what they failed with. */
  get failedDestinations(): ReadonlyMap<number, BakeliteError> {
    return this.#failedDestinations;
  }

  knowledge(object: ReplicaObject): Knowledge {
    if (this.#failedDestinations.has(object.destination) || this.#problems.has(object) || !this.canUnseal(object))
      return "unusable";
    return this.#facts.get(object) ?? "unknown";
  }

  /** Whether the keys at hand, and the rule about plaintext, allow to read an object with this seal. */
  canUnseal({ seal }: Pick<ReplicaObject, "seal">): boolean {
    const { keys, acceptPlaintext } = this.#options;
    return seal === PLAINTEXT_SEAL ? keys.size === 0 || acceptPlaintext : keys.find(seal) !== null;
  }

  /** Takes facts from somewhere else, such as a manifest, for an object of which nothing is known. */
  learn(object: ReplicaObject, facts: ObjectFacts): void {
    if (this.knowledge(object) !== "unknown") return;
    this.#facts.set(object, facts);
    this.#version++;
  }

  /** Reads those of `objects` of which nothing is known. Rejects only when interrupted or when no destination answers. */
  async load(objects: Iterable<ReplicaObject>, onLoaded: (object: ReplicaObject) => void = () => {}): Promise<void> {
    const waiting = [...objects].filter((object) => this.knowledge(object) === "unknown").values();
    let loadedCount = 0;
    const work = async () => {
      for (const object of waiting) {
        if (this.knowledge(object) !== "unknown") continue;
        await this.open(object);
        onLoaded(object);
        if (++loadedCount % COLLECT_EVERY_OBJECTS === 0) Bun.gc(true);
      }
    };
    await Promise.all(Array.from({ length: this.#options.concurrency ?? DEFAULT_CONCURRENCY }, work));
  }

  /**
   * Reads an object's header and trailer and remembers their facts. null when the object is of no use, which is then known.
   * `wholeUpToBytes`: an object up to this size is fetched with one request, and the source keeps it.
   */
  async open(object: ReplicaObject, wholeUpToBytes = SMALL_OBJECT_BYTES): Promise<OpenedObject | null> {
    const { database, backends, keys, acceptPlaintext, signal } = this.#options;
    this.throwWithoutDestination();
    if (this.knowledge(object) === "unusable") return null;
    const backend = backends[object.destination];
    if (backend === undefined)
      throw new BakeliteError("internal", "invariant broken: a listed object has a destination");
    const { sizeBytes } = object;
    const source = new ObjectSource(backend, { key: keyOf(database, object), sizeBytes }, signal, (bytes) => {
      this.#fetchedBytes += bytes;
    });
    try {
      await this.#fetchSmall(object, source, wholeUpToBytes);
      const subject = `${backend.location}/${keyOf(database, object)}`;
      const reader = await openObject(source, { name: nameOf(object), database, subject, keys, acceptPlaintext });
      this.#remember(object, factsOf(reader.header, reader.trailer));
      return { object, reader, source };
    } catch (error) {
      this.setUnusable(object, error, source.gone);
      return null;
    }
  }

  /**
   * Remembers that an object, or its whole destination, failed with `error`. Rethrows what is neither: an interruption,
   * a bug, and the failure of the last destination.
   */
  setUnusable(object: ReplicaObject, error: unknown, gone = false): void {
    if (!(error instanceof BakeliteError)) throw error;
    switch (blame(error.code)) {
      case "object":
        this.#problems.set(object, { object, kind: gone ? "missing" : problemKind(error.code), error });
        break;
      case "destination":
        this.setDestinationFailed(object.destination, error);
        break;
      case "neither":
        throw error;
    }
    this.#facts.delete(object);
    this.#version++;
  }

  setDestinationFailed(destination: number, error: BakeliteError): void {
    this.#failedDestinations.set(destination, error);
    this.#version++;
    this.throwWithoutDestination();
  }

  /** Throws what a destination failed with when none is left. */
  throwWithoutDestination(): void {
    const { size } = this.#failedDestinations;
    for (const error of this.#failedDestinations.values()) if (size === this.#options.backends.length) throw error;
  }

  /** Takes over what `older` knows of objects that a new listing shows again; `find` gives the older one. */
  inherit(
    older: TrailerCache,
    objects: Iterable<ReplicaObject>,
    find: (object: ReplicaObject) => ReplicaObject | undefined,
  ): void {
    this.#fetchedBytes += older.#fetchedBytes;
    for (const [destination, error] of older.#failedDestinations) this.#failedDestinations.set(destination, error);
    for (const object of objects) {
      const known = find(object);
      if (known === undefined) continue;
      const facts = older.#facts.get(known);
      const problem = older.#problems.get(known);
      if (facts !== undefined) this.#facts.set(object, facts);
      if (problem !== undefined && problem.kind !== "missing") this.#problems.set(object, { ...problem, object });
    }
  }

  #remember(object: ReplicaObject, facts: ObjectFacts): void {
    const known = this.#facts.get(object);
    if (known !== undefined && sameFacts(known, facts)) return;
    this.#facts.set(object, this.#shareTexts(facts));
    this.#version++;
  }

  /**
   * The same facts, with one string for all objects of a chain, and one for a lineage where an object ends and the next one begins,
   * if the two are read one soon after the other.
   */
  #shareTexts(facts: ObjectFacts): ObjectFacts {
    if (facts.chain !== this.#newestChain) this.#newestChain = facts.chain;
    const { parent, result } = facts;
    const known = parent === null ? undefined : this.#recentLineages.get(parent);
    if (this.#recentLineages.size >= RECENT_LINEAGES) this.#recentLineages.clear();
    this.#recentLineages.set(result, result);
    return { ...facts, chain: this.#newestChain, parent: known ?? parent };
  }

  async #fetchSmall(object: ReplicaObject, source: ObjectSource, wholeUpToBytes: number): Promise<void> {
    if (object.sizeBytes > wholeUpToBytes) return;
    const kept = this.#smallObjects.get(object);
    if (kept !== undefined) {
      source.keep(0, kept);
      return;
    }
    await source.fetchAhead(0, object.sizeBytes);
    const { whole } = source;
    if (
      whole === null ||
      object.sizeBytes > SMALL_OBJECT_BYTES ||
      this.#smallObjectBytes + object.sizeBytes > KEPT_BYTES
    )
      return;
    this.#smallObjects.set(object, whole);
    this.#smallObjectBytes += whole.length;
  }
}

function sameFacts(a: ObjectFacts, b: ObjectFacts): boolean {
  return (
    a.chain === b.chain &&
    a.parent === b.parent &&
    a.result === b.result &&
    a.settled === b.settled &&
    a.compacted === b.compacted
  );
}

/** Whose fault an error of this code is when it comes out of reading one object. */
function blame(code: ErrorCode): "object" | "destination" | "neither" {
  switch (code) {
    case "replica-corrupt":
    case "replica-foreign":
    case "replica-missing":
    case "key-wrong":
    case "io": // one file of a disk with a bad sector
      return "object";
    case "storage-unreachable":
    case "storage-denied":
      return "destination";
    case "usage":
    case "config-invalid":
    case "storage-full":
    case "database-unfit":
    case "database-busy":
    case "locked":
    case "output-exists":
    case "not-found":
    case "interrupted":
    case "internal":
      return "neither";
    default:
      return unreachable(code);
  }
}

function problemKind(code: ErrorCode): ProblemKind {
  if (code === "key-wrong") return "unreadable-key";
  return code === "replica-foreign" ? "foreign" : "corrupt";
}
