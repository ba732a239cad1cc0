import { checksumOf, FOOTER_BYTES, parseFooter, sameBytes } from "../format/chunk.ts";
import { type RangeSource, verifyObject } from "../format/decode.ts";
import { type ObjectHeader, parseHeader } from "../format/header.ts";
import { formatName, PLAINTEXT_SEAL } from "../format/names.ts";
import { BakeliteError, unreachable } from "../util/errors.ts";
import { type Catalog, keyOf, nameOf, type ReplicaObject } from "./catalog.ts";
import { factsOf, type ObjectFacts } from "./facts.ts";
import { ObjectSource } from "./object-source.ts";
import type { Replica } from "./replica.ts";
import type { ProblemKind } from "./verify-report.ts";

/** Why one stored object cannot be used. */
export interface ObjectFault {
  readonly kind: ProblemKind;
  readonly error: BakeliteError;
  /** One sentence without a full stop, without the object's key. */
  readonly message: string;
  /** It was listed and is not there: deleted since, or never there. */
  readonly gone: boolean;
}

export interface CheckOptions {
  readonly signal?: AbortSignal | undefined;
  /** Hears of the bytes that come from the destinations. */
  readonly onBytes?: (bytes: number) => void;
}

/** Objects up to this size are fetched with one request. */
const WHOLE_OBJECT_BYTES = 1024 * 1024;
const SMALL_AT_ONCE = 12;
/** Each of these holds a group of up to 64 chunks, some 17 MiB. */
const LARGE_AT_ONCE = 2;
/** The collector sees small objects and not the megabytes behind them: without a hint they pile up to several times what is in use. */
const COLLECT_EVERY_BYTES = 32 * 1024 * 1024;

/**
 * What reading every stored object whole has shown: the facts of those that are sound, and what is wrong with the others.
 * Nothing that a manifest says is believed. Remembers an object by its name, size and time, so that a new listing costs only the
 * reading of what is new in it.
 */
export class ObjectChecks {
  readonly #facts = new Map<string, ObjectFacts>();
  readonly #withDigest = new Set<string>();
  readonly #faults = new Map<string, ObjectFault>();
  readonly #failedDestinations = new Map<number, BakeliteError>();
  #bytesRead = 0;
  #uncollectedBytes = 0;

  get bytesRead(): number {
    return this.#bytesRead;
  }

  /** Objects that were read whole or found faulty. */
  get checkedCount(): number {
    return this.#facts.size + this.#faults.size;
  }

  /** Destinations that stopped answering, by position. Nothing more is read from them. */
  get failedDestinations(): ReadonlyMap<number, BakeliteError> {
    return this.#failedDestinations;
  }

  /** The facts of an object that is sound; null for one that is not, or that was not read. */
  factsOf(object: ReplicaObject): ObjectFacts | null {
    return this.#facts.get(identityOf(object)) ?? null;
  }

  faultOf(object: ReplicaObject): ObjectFault | null {
    return this.#faults.get(identityOf(object)) ?? null;
  }

  /** Whether a sound object carries a state digest: then a full backup of its chain was complete when it was written. */
  hasDigest(object: ReplicaObject): boolean {
    return this.#withDigest.has(identityOf(object));
  }

  /** Some object was gone when its turn came, so that the listing is out of date. */
  hasGone(catalog: Catalog): boolean {
    return [...catalog.fulls, ...catalog.changeSets].some((object) => this.faultOf(object)?.gone === true);
  }

  addBytes(bytes: number): void {
    this.#bytesRead += bytes;
  }

  /** The bytes that `read` still has to fetch. */
  unreadBytes(catalog: Catalog): number {
    return this.#unread(catalog).reduce((sum, object) => sum + object.sizeBytes, 0);
  }

  /**
   * Reads every object that has not been read yet, each byte once, a bounded number at a time. Small objects are not kept
   * waiting by large ones. Rejects only when interrupted, and for a bug.
   */
  async read(replica: Replica, options: CheckOptions): Promise<void> {
    for (const [destination, error] of replica.trailers.failedDestinations)
      this.#failedDestinations.set(destination, error);
    const unread = this.#unread(replica.catalog);
    const small = unread.filter((object) => object.sizeBytes <= WHOLE_OBJECT_BYTES).values();
    const large = unread.filter((object) => object.sizeBytes > WHOLE_OBJECT_BYTES).values();
    let stopped = false;
    const work = async (objects: Iterable<ReplicaObject>) => {
      try {
        for (const object of objects) {
          if (stopped) return;
          if (!this.#failedDestinations.has(object.destination)) await this.#check(replica, object, options);
        }
      } catch (error) {
        stopped = true;
        throw error;
      }
    };
    await Promise.all([
      ...Array.from({ length: SMALL_AT_ONCE }, () => work(small)),
      ...Array.from({ length: LARGE_AT_ONCE }, () => work(large)),
    ]);
  }

  #unread(catalog: Catalog): readonly ReplicaObject[] {
    return [...catalog.fulls, ...catalog.changeSets].filter((object) => {
      const fault = this.faultOf(object);
      return this.factsOf(object) === null && (fault === null || fault.gone);
    });
  }

  async #check(replica: Replica, object: ReplicaObject, { signal, onBytes }: CheckOptions): Promise<void> {
    const { database, backends, keys, acceptPlaintext } = replica.options;
    signal?.throwIfAborted();
    const backend = backends[object.destination];
    if (backend === undefined)
      throw new BakeliteError("internal", "invariant broken: a listed object has a destination");
    const { sizeBytes } = object;
    const source = new ObjectSource(backend, { key: keyOf(database, object), sizeBytes }, signal, (bytes) => {
      this.addBytes(bytes);
      onBytes?.(bytes);
      this.#collect(bytes);
    });
    try {
      if (sizeBytes <= WHOLE_OBJECT_BYTES) await source.fetchAhead(0, sizeBytes);
      const name = nameOf(object);
      const subject = replica.describe(object);
      const { header, trailer } = await verifyObject(source, { name, database, subject, keys, acceptPlaintext });
      this.#facts.set(identityOf(object), factsOf(header, trailer));
      this.#faults.delete(identityOf(object));
      if (trailer.digest !== null) this.#withDigest.add(identityOf(object));
    } catch (error) {
      if (!(error instanceof BakeliteError)) throw error;
      await this.#note(object, error, source);
    }
  }

  async #note(object: ReplicaObject, error: BakeliteError, source: ObjectSource): Promise<void> {
    const { code } = error;
    switch (code) {
      case "storage-unreachable":
        this.#failedDestinations.set(object.destination, error);
        return;
      case "replica-missing":
        this.#setFault(object, error, "missing", source.gone);
        return;
      case "replica-corrupt": {
        const place = await otherPlace(source, object);
        const message = place === null ? undefined : `${place}: it was moved, renamed or put in another one's place`;
        this.#setFault(object, error, place === null ? "corrupt" : "reordered", false, message);
        return;
      }
      case "replica-foreign":
        this.#setFault(object, error, "foreign");
        return;
      case "key-wrong":
        this.#setFault(object, error, "unreadable-key");
        return;
      case "storage-denied":
      case "io":
        this.#setFault(object, error, "unreadable");
        return;
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
        throw error;
      default:
        unreachable(code);
    }
  }

  #setFault(
    object: ReplicaObject,
    error: BakeliteError,
    kind: ProblemKind,
    gone = false,
    message = sentenceOf(error),
  ): void {
    this.#faults.set(identityOf(object), { kind, error, message, gone });
  }

  #collect(bytes: number): void {
    this.#uncollectedBytes += bytes;
    if (this.#uncollectedBytes < COLLECT_EVERY_BYTES) return;
    this.#uncollectedBytes = 0;
    Bun.gc(true);
  }
}

/** The error's sentence and those of its causes, without what they are about. */
export function sentenceOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  return error.cause === undefined ? error.message : `${error.message}: ${sentenceOf(error.cause)}`;
}

/** What the header of a damaged object says that it is, if the header is whole and says something else than its name. */
async function otherPlace(source: RangeSource, object: ReplicaObject): Promise<string | null> {
  const header = await intactHeader(source);
  if (header === null) return null;
  const seal = header.keyFingerprint ?? PLAINTEXT_SEAL;
  const name = formatName(nameOf(object));
  if (header.kind === "current" || header.kind === "manifest") return `its header says that it is the ${header.kind}`;
  if (header.kind === "mark") return `its header says that it is the mark of state ${header.first}`;
  if (header.kind === "full")
    return object.kind === "full" && header.first === object.first && seal === object.seal
      ? null
      : `its header says that it is ${formatName({ kind: "full", index: header.first, seal })}, not ${name}`;
  const isHere =
    object.kind === "change-set" &&
    header.level === object.level &&
    header.first === object.first &&
    seal === object.seal;
  return isHere
    ? null
    : `its header says that it is the change-set of level ${header.level} from state ${header.first} on${seal === object.seal ? "" : ` under seal ${seal}`}, not ${name}`;
}

/** The header, if it and the trailer match the checksum in the footer; else null. */
async function intactHeader(source: RangeSource): Promise<ObjectHeader | null> {
  try {
    const { sizeBytes } = source;
    const tail = await source.read(Math.max(0, sizeBytes - FOOTER_BYTES), sizeBytes);
    const footer = parseFooter(tail, sizeBytes, "object");
    const headerBytes = await source.read(0, footer.headerBytes);
    const trailer = await source.read(footer.trailerOffset, footer.trailerOffset + footer.trailerStoredBytes);
    return sameBytes(checksumOf(headerBytes, trailer), footer.checksum) ? parseHeader(headerBytes).header : null;
  } catch (error) {
    if (error instanceof BakeliteError && error.code !== "interrupted" && error.code !== "internal") return null;
    throw error;
  }
}

function identityOf(object: ReplicaObject): string {
  return `${object.destination} ${formatName(nameOf(object))} ${object.sizeBytes} ${object.modifiedMs}`;
}
