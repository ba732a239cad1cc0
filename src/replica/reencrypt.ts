import { type KeyRing, keyRing, type SealKey } from "../format/envelope.ts";
import { formatName, PLAINTEXT_SEAL } from "../format/names.ts";
import { type Backend, type ByteSource, bytesSource, type CallOptions } from "../storage/backend.ts";
import { backoffDelayMs } from "../util/backoff.ts";
import { delay } from "../util/delay.ts";
import { assert, BakeliteError } from "../util/errors.ts";
import {
  type Catalog,
  CatalogBuilder,
  keyOf,
  keyOfMark,
  nameOf,
  type ReplicaObject,
  type StoredMark,
} from "./catalog.ts";
import {
  DOCUMENT_KINDS,
  type DocumentKind,
  documentKey,
  documentSeal,
  resealDocument,
  resealMark,
} from "./reencrypt-documents.ts";
import {
  type ObjectPlace,
  type ReadContent,
  type ReadOptions,
  type Resealing,
  readContent,
  readFooterSha256,
  reencode,
  SMALL_OBJECT_BYTES,
} from "./reencrypt-object.ts";
import {
  describeSeal,
  joinPlans,
  newcomers,
  placeOf,
  planReencrypt,
  type ReencryptItem,
  type ReencryptPlan,
} from "./reencrypt-plan.ts";
import { sentenceOf } from "./verify-objects.ts";
import { type Finding, FindingList } from "./verify-report.ts";

export type ReencryptProblemKind =
  | "corrupt" // damaged, or not what its name says
  | "unreadable-key" // sealed with a key that was not given
  | "missing" // it was deleted while we worked; or nothing is stored where something must be
  | "unreadable" // the destination does not give it
  | "foreign" // of another database or a newer format
  | "fork" // another object has the name that this one would get
  | "another-writer" // stored by somebody else while we worked
  | "not-deleted" // rewritten, and the old one cannot be deleted
  | "unreachable"; // the destination does not answer, or refuses us

export type ReencryptProblem = Finding<ReencryptProblemKind>;

export interface ReencryptOptions {
  readonly database: string;
  /** All destinations, mirrors included. */
  readonly backends: readonly Backend[];
  /** What everything is to be sealed with; null: nothing. */
  readonly sealKey: SealKey | null;
  /** What stored objects may be sealed with besides. */
  readonly oldKeys: readonly SealKey[];
  readonly compressionLevel: number;
  /** Locations where something must be stored, as far as is known: a disk that is not mounted must not look done. */
  readonly knownLocations?: readonly string[];
  /** Program and version. */
  readonly writer: string;
  /** So many random bytes as hex digits. */
  readonly randomHex: (bytes: number) => string;
  readonly signal?: AbortSignal | undefined;
  readonly progress?: ReencryptProgress | undefined;
}

export interface ReencryptProgress {
  /** So many bytes are to be read: the old objects, and the new ones again. */
  begin(totalBytes: number): void;
  add(bytes: number): void;
}

export interface ReencryptReport {
  readonly database: string;
  readonly plan: ReencryptPlan;
  /** CURRENT, manifests and marks that are to be rewritten. */
  readonly documentCount: number;
  /** Copies that now stand under the wanted seal and were read back. */
  readonly rewrittenCount: number;
  readonly rewrittenBytes: number;
  readonly deletedCount: number;
  readonly problems: FindingList<ReencryptProblem>;
}

const SMALL_AT_ONCE = 16;
const LARGE_AT_ONCE = 1;
const PUT_ATTEMPTS = 5;
const PUT_RETRY_BASE_MS = 500;
const DELETE_AT_ONCE = 100;
/** How often what came meanwhile is rewritten as well; what stores more than that does not end by itself. */
const MAX_ROUNDS = 5;
/** The collector sees small objects and not the megabytes behind them: without a hint they pile up. */
const COLLECT_EVERY_BYTES = 16 * 1024 * 1024;

/** What is stored now, and what is to be done to have it all under the wanted seal. Writes nothing. */
export interface Reencryption {
  readonly plan: ReencryptPlan;
  readonly documentCount: number;
  /** What keeps the plan from being carried out wholly, as far as names tell. */
  readonly problems: FindingList<ReencryptProblem>;
  /** Carries it out. */
  apply(): Promise<ReencryptReport>;
}

/**
 * Lists every destination and plans the work. Throws `key-wrong` when not one of the objects to rewrite can be read with the
 * keys at hand. A destination that does not answer is a problem in the report, and the others are done.
 */
export async function planReencryption(options: ReencryptOptions): Promise<Reencryption> {
  const work = new Work(options);
  await work.plan();
  return {
    plan: work.currentPlan,
    documentCount: work.documentCount,
    problems: work.problems,
    apply: () => work.apply(),
  };
}

/** A copy under the wanted seal that was read back whole. */
interface Made extends ReadContent {
  readonly destination: number;
  readonly sizeBytes: number;
  /** Of the old copy that it was made of, or found equal to; null where there is only one. */
  readonly oldFooterSha256: Uint8Array | null;
}

/** What stands under the new name at one destination. */
type Present = "absent" | "damaged" | (ReadContent & { readonly sizeBytes: number });

/** What one round rewrites. */
interface LateWork {
  readonly plan: ReencryptPlan;
  readonly documents: readonly OldDocument[];
  readonly marks: readonly StoredMark[];
}

interface OldDocument {
  readonly destination: number;
  readonly kind: DocumentKind;
}

/** What was done at one destination. */
interface Done {
  /** Old objects whose content stands under the new name, read back. */
  readonly replaced: ReplicaObject[];
  /** By old name: what it is called now. */
  readonly renamed: Map<string, { readonly name: string; readonly sizeBytes: number }>;
  /** Keys of old marks that stand under the new name. */
  readonly oldMarks: string[];
  /** Another writer is at work here, so nothing is deleted. */
  isHeld: boolean;
}

/**
 * Rewrites a replica under another seal. At each destination all new objects are stored and read back before the first old
 * one is deleted, so that at any moment the old keys or the new one restore everything; what was done already is not done
 * again, so a run that was cut short is finished by the next. Nothing that could not be read is deleted.
 */
class Work {
  readonly problems = new FindingList<ReencryptProblem>();
  readonly #options: ReencryptOptions;
  readonly #call: CallOptions;
  readonly #reading: ReadOptions;
  readonly #seal: string;
  readonly #ring: KeyRing;
  readonly #newRing: KeyRing;
  /** Destinations that do not answer, or refuse us: left as they are. */
  readonly #failed = new Set<number>();
  readonly #done: readonly Done[];
  #plan: ReencryptPlan | null = null;
  #documents: readonly OldDocument[] = [];
  #marks: readonly StoredMark[] = [];
  /** Places of old objects and marks that were deleted. */
  readonly #deleted = new Set<string>();
  readonly #encodedMarks = new Map<string, Uint8Array>();
  #rewrittenCount = 0;
  #rewrittenBytes = 0;
  #deletedCount = 0;
  #uncollectedBytes = 0;

  constructor(options: ReencryptOptions) {
    const { sealKey, oldKeys, signal } = options;
    this.#options = options;
    this.#call = signal === undefined ? {} : { signal };
    this.#reading = {
      signal,
      onBytes: (bytes) => {
        options.progress?.add(bytes);
        this.#collect(bytes);
      },
    };
    this.#seal = sealKey?.fingerprint ?? PLAINTEXT_SEAL;
    this.#newRing = keyRing(sealKey === null ? [] : [sealKey]);
    this.#ring = keyRing([...(sealKey === null ? [] : [sealKey]), ...oldKeys]);
    this.#done = options.backends.map(() => ({ replaced: [], renamed: new Map(), oldMarks: [], isHeld: false }));
  }

  get currentPlan(): ReencryptPlan {
    assert(this.#plan !== null, "the work was planned");
    return this.#plan;
  }

  get documentCount(): number {
    return this.#documents.length + this.#marks.length;
  }

  async plan(): Promise<void> {
    const { database, backends } = this.#options;
    const builder = new CatalogBuilder(database, backends.length);
    await Promise.all([...backends.keys()].map((destination) => this.#list(destination, builder)));
    const catalog = builder.build();
    this.#plan = planReencrypt(catalog, this.#seal);
    this.#marks = catalog.marks.filter(({ seal }) => seal !== this.#seal);
    this.#missEmptyDestinations(catalog);
    this.#refuseWithoutKeys(this.#plan);
    this.#documents = await this.#findDocuments();
  }

  async apply(): Promise<ReencryptReport> {
    this.#options.progress?.begin(2 * this.currentPlan.sizeBytes);
    let work: LateWork = { plan: this.currentPlan, documents: this.#documents, marks: this.#marks };
    for (let round = 1; ; round++) {
      const came = await this.#rewrite(work);
      if (came === null) break;
      if (round === MAX_ROUNDS) {
        this.#nameLate(came);
        break;
      }
      work = came;
      this.#plan = joinPlans(this.currentPlan, came.plan);
      this.#marks = [...this.#marks, ...came.marks];
    }
    return {
      database: this.#options.database,
      plan: this.currentPlan,
      documentCount: this.documentCount,
      rewrittenCount: this.#rewrittenCount,
      rewrittenBytes: this.#rewrittenBytes,
      deletedCount: this.#deletedCount,
      problems: this.problems,
    };
  }

  async #list(destination: number, builder: CatalogBuilder): Promise<void> {
    const folder = `${this.#options.database}/`;
    await this.#noting({ destination, key: null }, async () => {
      try {
        for await (const stored of this.#backend(destination).list(folder, this.#call))
          builder.add(destination, stored);
      } catch (error) {
        builder.drop(destination);
        throw error;
      }
    });
  }

  #missEmptyDestinations({ fulls, changeSets }: Catalog): void {
    const { backends, knownLocations = [], database } = this.#options;
    const filled = new Set([...fulls, ...changeSets].map((object) => object.destination));
    for (const [destination, { location }] of backends.entries()) {
      if (filled.has(destination) || this.#failed.has(destination) || !knownLocations.includes(location)) continue;
      this.#add("missing", destination, {
        key: `${database}/`,
        message: "nothing is stored here, although this host remembers storing it",
        nextStep: "mount its disk or put the destination right, and run it again",
      });
    }
  }

  #refuseWithoutKeys({ items, oldSeals }: ReencryptPlan): void {
    const absent = [...oldSeals.keys()].filter((seal) => seal !== PLAINTEXT_SEAL && this.#ring.find(seal) === null);
    if (items.length === 0 || absent.length < oldSeals.size) return;
    const names = absent.join(", ");
    const { fingerprints } = this.#ring;
    const given = fingerprints.length === 0 ? "and no key was given" : `this is ${fingerprints.join(", ")}`;
    throw new BakeliteError("key-wrong", `the replica was written with key ${names}, ${given}`, {
      subject: `${this.#backend(0).location}/${this.#options.database}`,
      hint: `name the file with key ${names} with --old-key-file`,
    });
  }

  async #findDocuments(): Promise<readonly OldDocument[]> {
    const found: OldDocument[] = [];
    for (const [destination, backend] of this.#options.backends.entries()) {
      for (const kind of DOCUMENT_KINDS) {
        const key = documentKey(this.#options.database, kind);
        await this.#noting({ destination, key }, async () => {
          const seal = await documentSeal(backend, key, this.#call);
          if (seal !== null && seal !== this.#seal) found.push({ destination, kind });
        });
      }
    }
    return found;
  }

  /** Small objects are not kept waiting by large ones, of which one is in memory at a time. */
  async #convertAll(items: readonly ReencryptItem[]): Promise<void> {
    const isSmall = ({ sizeBytes }: ReencryptItem) => sizeBytes <= SMALL_OBJECT_BYTES;
    const small = items.filter(isSmall).values();
    const large = items.filter((item) => !isSmall(item)).values();
    let stopped = false;
    const work = async (some: Iterable<ReencryptItem>) => {
      try {
        for (const item of some) {
          if (stopped) return;
          await this.#convert(item);
        }
      } catch (error) {
        stopped = true;
        throw error;
      }
    };
    const outcomes = await Promise.allSettled([
      ...Array.from({ length: SMALL_AT_ONCE }, () => work(small)),
      ...Array.from({ length: LARGE_AT_ONCE }, () => work(large)),
    ]);
    for (const outcome of outcomes) if (outcome.status === "rejected") throw outcome.reason;
  }

  /**
   * One state change, at every destination that has it under another seal. A damaged copy has its turn last: the same encoding
   * may have been rewritten elsewhere by then.
   */
  async #convert(item: ReencryptItem): Promise<void> {
    const { signal } = this.#options;
    const damaged: ReplicaObject[] = [];
    let made: Made | null = null;
    const convert = async (old: ReplicaObject, isLast: boolean) => {
      signal?.throwIfAborted();
      const { destination } = old;
      await this.#noting({ destination, key: keyOf(this.#options.database, old) }, async () => {
        try {
          const here = await this.#convertCopy(item, old, made);
          made ??= here;
          this.#count(item, old, here);
        } catch (error) {
          if (isLast || !isDamage(error)) throw error;
          damaged.push(old);
        }
      });
    };
    for (const old of item.old) await convert(old, false);
    for (const old of damaged) await convert(old, true);
  }

  #count(item: ReencryptItem, old: ReplicaObject, { sizeBytes }: Made): void {
    const { replaced, renamed } = this.#doneAt(old.destination);
    replaced.push(old);
    renamed.set(formatName(nameOf(old)), { name: formatName(item.name), sizeBytes });
    this.#rewrittenCount++;
    this.#rewrittenBytes += old.sizeBytes;
  }

  /** Sees to it that the content of `old` stands at its destination under the new name; `made` is another copy of that. */
  async #convertCopy(item: ReencryptItem, old: ReplicaObject, made: Made | null): Promise<Made> {
    const { destination } = old;
    const oldPlace = this.#placeOf(old);
    const oldFooterSha256 = item.old.length === 1 ? null : await readFooterSha256(oldPlace, this.#reading);
    // The same encoding as one that was rewritten already: so is what it holds, whatever has become of its other bytes.
    const twin = made !== null && isSame(made.oldFooterSha256, oldFooterSha256) ? made : null;
    const present = await this.#readNew(item, destination);
    if (typeof present === "object") {
      const content = twin?.content ?? (await readContent(oldPlace, this.#reading)).content;
      if (content !== present.content) throw fork(oldPlace, item);
      return { ...present, destination, oldFooterSha256 };
    }
    const expected =
      twin === null
        ? await this.#encode(item, oldPlace, destination, present)
        : await this.#copy(item, twin, destination, present);
    const stored = await this.#readNew(item, destination);
    if (typeof stored === "object" && stored.content === expected) return { ...stored, destination, oldFooterSha256 };
    throw new BakeliteError("replica-corrupt", "what was just stored is not what can be read back", {
      subject: `${this.#backend(destination).location}/${item.key}`,
      hint: "check the destination, and that nothing else writes there; then run it again",
    });
  }

  async #readNew(item: ReencryptItem, destination: number): Promise<Present> {
    const { database } = this.#options;
    const backend = this.#backend(destination);
    const stored = await backend.stat(item.key, this.#call);
    if (stored === null) return "absent";
    const { sizeBytes } = stored;
    const place = { backend, database, name: item.name, sizeBytes, keys: this.#newRing };
    try {
      return { ...(await readContent(place, this.#reading)), sizeBytes };
    } catch (error) {
      if (isDamage(error)) return "damaged";
      throw error;
    }
  }

  /** Encodes the old object under the new seal and stores it; returns what it holds. */
  async #encode(
    item: ReencryptItem,
    from: ObjectPlace,
    destination: number,
    present: "absent" | "damaged",
  ): Promise<string> {
    for (let attempt = 1; ; attempt++) {
      const { pieces, content } = await reencode(from, this.#resealing(), this.#reading);
      const body = from.sizeBytes <= SMALL_OBJECT_BYTES ? await keptSource(pieces) : streamSource(pieces);
      try {
        await this.#put(item, destination, present, body);
        return content();
      } catch (error) {
        // A body that cannot be sent again is encoded anew, which takes a new nonce seed.
        const isWorthIt = !body.replayable && isUnreachable(error) && attempt < PUT_ATTEMPTS;
        if (!isWorthIt) throw error;
        await delay(backoffDelayMs(attempt, { baseMs: PUT_RETRY_BASE_MS }), this.#options.signal);
      }
    }
  }

  /** Copies what stands at another destination, so that one object is the same bytes everywhere; returns what they hold. */
  async #copy(item: ReencryptItem, made: Made, destination: number, present: "absent" | "damaged"): Promise<string> {
    const [from, call] = [this.#backend(made.destination), this.#call];
    await this.#put(item, destination, present, {
      sizeBytes: made.sizeBytes,
      replayable: true,
      async *open() {
        const stream = await from.get(item.key, call);
        if (stream !== null) yield* stream;
      },
    });
    return made.content;
  }

  async #put(item: ReencryptItem, destination: number, present: "absent" | "damaged", body: ByteSource): Promise<void> {
    const longLived = item.name.kind === "full";
    // "exists" is our own first try whose answer was lost, or it is not: reading it back tells.
    await this.#backend(destination).put(item.key, body, { ...this.#call, ifAbsent: present === "absent", longLived });
  }

  /**
   * Stores what is new, objects before hints and caches; looks for what came meanwhile; and when that is nothing deletes what is old and
   * looks once more, since a compaction or a repair that had begun before may still have stored something. Returns that, or null.
   */
  async #rewrite({ plan, documents, marks }: LateWork): Promise<LateWork | null> {
    await this.#convertAll(plan.items.filter(({ name }) => name.kind === "change-set"));
    await this.#convertAll(plan.items.filter(({ name }) => name.kind === "full"));
    for (const { destination, kind } of documents) await this.#resealDocument(destination, kind);
    for (const mark of marks) await this.#resealMark(mark.destination, mark);
    const isAnythingOld = () =>
      this.#done.some(({ replaced, oldMarks, isHeld }) => !isHeld && replaced.length + oldMarks.length > 0);
    if (!isAnythingOld()) return null;
    const came = await this.#lookAgain();
    if (came !== null || !isAnythingOld()) return came;
    for (const destination of this.#options.backends.keys()) await this.#deleteOld(destination);
    return await this.#lookAgain();
  }

  /** What has been stored under other seals since the last listing and is to be rewritten as well; null: nothing. */
  async #lookAgain(): Promise<LateWork | null> {
    const { database, backends } = this.#options;
    const builder = new CatalogBuilder(database, backends.length);
    await Promise.all([...backends.keys()].map((destination) => this.#list(destination, builder)));
    const catalog = builder.build();
    const { late, strangers } = newcomers(this.currentPlan, catalog, this.#deleted);
    for (const stranger of strangers) this.#hold(stranger);
    const isOpen = ({ destination }: { readonly destination: number }) => !this.#doneAt(destination).isHeld;
    const wanted = new Set(late.filter(isOpen));
    const of = <T extends ReplicaObject>(objects: readonly T[]) => objects.filter((object) => wanted.has(object));
    const knownMarks = new Set(this.#marks.map((mark) => this.#placeOfMark(mark)));
    const marks = catalog.marks.filter((mark) => {
      const place = this.#placeOfMark(mark);
      return isOpen(mark) && mark.seal !== this.#seal && (!knownMarks.has(place) || this.#deleted.has(place));
    });
    if (wanted.size + marks.length === 0) return null;
    for (const object of wanted) this.#deleted.delete(placeOf(database, object));
    for (const mark of marks) this.#deleted.delete(this.#placeOfMark(mark));
    const plan = planReencrypt(
      { ...catalog, fulls: of(catalog.fulls), changeSets: of(catalog.changeSets) },
      this.#seal,
    );
    return { plan, documents: [], marks };
  }

  /** New states under an old seal: only a daemon stores them, and it would go on. Nothing is deleted there. */
  #hold(stranger: ReplicaObject): void {
    const done = this.#doneAt(stranger.destination);
    if (done.isHeld) return;
    done.isHeld = true;
    const rest = this.#deletedCount === 0 ? "so nothing was deleted" : "so nothing more was deleted";
    this.#add("another-writer", stranger.destination, {
      key: keyOf(this.#options.database, stranger),
      message: `this object was stored while the replica was rewritten, ${rest}`,
      nextStep: "stop the daemon that writes it, wherever it runs, and run it again",
    });
  }

  #nameLate({ plan, marks }: LateWork): void {
    const { database } = this.#options;
    const [object] = plan.items.flatMap(({ old }) => old);
    const [mark] = marks;
    const first = object ?? mark;
    if (first === undefined) return;
    this.#add("another-writer", first.destination, {
      key: object !== undefined ? keyOf(database, object) : mark === undefined ? null : keyOfMark(database, mark),
      message:
        "this was stored while the replica was rewritten, and so was more, again and again; it was left as it is",
      nextStep: "stop the compact, repair or keep that writes it, wherever it runs, and run it again",
    });
  }

  /** Full backups first, as they came last. */
  async #deleteOld(destination: number): Promise<void> {
    const { database } = this.#options;
    const { replaced, oldMarks, isHeld } = this.#doneAt(destination);
    if (replaced.length + oldMarks.length === 0 || isHeld || this.#failed.has(destination)) return;
    const keysOf = (kind: ReplicaObject["kind"]) =>
      replaced.filter((object) => object.kind === kind).map((object) => keyOf(database, object));
    await this.#delete(destination, [
      ...batchesOf(keysOf("full")),
      ...batchesOf([...keysOf("change-set"), ...oldMarks]),
    ]);
    // What could not be deleted was told, and is not tried again in this run.
    replaced.length = 0;
    oldMarks.length = 0;
  }

  #placeOfMark(mark: StoredMark): string {
    return `${mark.destination} ${keyOfMark(this.#options.database, mark)}`;
  }

  /** As with everything else, the old one goes when all that is new is stored. */
  async #resealMark(destination: number, mark: StoredMark): Promise<void> {
    const { database } = this.#options;
    const key = keyOfMark(database, mark);
    await this.#noting({ destination, key }, async () => {
      const encoded = this.#encodedMarks;
      const place = { backend: this.#backend(destination), database, mark, keys: this.#ring, encoded };
      await resealMark(place, this.#resealing(), this.#call);
      this.#doneAt(destination).oldMarks.push(key);
    });
  }

  async #resealDocument(destination: number, kind: DocumentKind): Promise<void> {
    const { database } = this.#options;
    const backend = this.#backend(destination);
    const { renamed } = this.#doneAt(destination);
    await this.#noting({ destination, key: documentKey(database, kind) }, async () => {
      const place = { backend, database, kind, keys: this.#ring, renamed };
      await resealDocument(place, this.#resealing(), this.#call);
    });
  }

  /** A batch begins when all of the one before is gone: within one, a destination deletes in any order, and may keep any. */
  async #delete(destination: number, batches: readonly (readonly string[])[]): Promise<void> {
    const { signal } = this.#options;
    const backend = this.#backend(destination);
    const keyCount = batches.reduce((sum, batch) => sum + batch.length, 0);
    let deletedCount = 0;
    try {
      const versionsBefore = await this.#countVersions(destination);
      for (const batch of batches) {
        signal?.throwIfAborted();
        await backend.delete(batch, this.#call);
        deletedCount += batch.length;
        for (const key of batch) this.#deleted.add(`${destination} ${key}`);
      }
      this.#noteVersions(destination, versionsBefore, await this.#countVersions(destination));
    } catch (error) {
      if (!isReportable(error, signal)) throw error;
      this.#add("not-deleted", destination, {
        key: null,
        message: `up to ${keyCount - deletedCount} old objects (${this.#describeOldSeals()}) could not be deleted and can still be read: ${sentenceOf(error)}`,
        nextStep:
          "run it again once the destination lets go of them; where an object lock or a retention policy holds them, that is when it ends",
      });
    }
    this.#deletedCount += deletedCount;
  }

  /** Versions of replaced and deleted objects that the destination keeps; null where it keeps none, or cannot tell. */
  async #countVersions(destination: number): Promise<number | null> {
    const { database } = this.#options;
    const versions = await this.#backend(destination).unlisted?.noncurrentVersions(`${database}/`, this.#call);
    return versions?.count ?? null;
  }

  /** A bucket with versioning keeps what is deleted, and nothing of ours ever deletes a version. */
  #noteVersions(destination: number, before: number | null, after: number | null): void {
    const kept = (after ?? 0) - (before ?? 0);
    if (kept <= 0) return;
    this.#add("not-deleted", destination, {
      key: null,
      message: `the destination keeps versions of what is deleted, so ${kept} old objects (${this.#describeOldSeals()}) are no longer listed and can still be read`,
      nextStep:
        "let a lifecycle rule of the bucket expire noncurrent versions; where an object lock holds them, they go when its retention ends",
    });
  }

  #describeOldSeals(): string {
    return [...this.currentPlan.oldSeals.keys()].map((seal) => describeSeal(seal)).join(", ");
  }

  /** Runs `work`; what fails there for reasons of the replica is noted as a problem. Does nothing at a destination that failed. */
  async #noting(
    at: { readonly destination: number; readonly key: string | null },
    work: () => Promise<void>,
  ): Promise<void> {
    if (this.#failed.has(at.destination)) return;
    try {
      await work();
    } catch (error) {
      if (!isReportable(error, this.#options.signal)) throw error;
      const kind = kindOf(error);
      if (kind === "unreachable") {
        // Several objects may be under way there: it is said once.
        if (this.#failed.has(at.destination)) return;
        this.#failed.add(at.destination);
      }
      const nextStep =
        kind === "unreachable" ? "nothing was deleted there; put it right and run it again" : nextStepFor(error);
      this.#add(kind, at.destination, { key: at.key, message: sentenceOf(error), nextStep });
    }
  }

  #collect(bytes: number): void {
    this.#uncollectedBytes += bytes;
    if (this.#uncollectedBytes < COLLECT_EVERY_BYTES) return;
    this.#uncollectedBytes = 0;
    Bun.gc(true);
  }

  #add(kind: ReencryptProblemKind, destination: number, finding: Omit<ReencryptProblem, "kind" | "destination">): void {
    this.problems.add({ kind, destination: this.#backend(destination).location, ...finding });
  }

  #resealing(): Resealing {
    const { sealKey, compressionLevel, writer, randomHex } = this.#options;
    return { sealKey, compressionLevel, writer, nonceSeed: randomHex(24) };
  }

  #placeOf(object: ReplicaObject): ObjectPlace {
    const { database } = this.#options;
    const backend = this.#backend(object.destination);
    return { backend, database, name: nameOf(object), sizeBytes: object.sizeBytes, keys: this.#ring };
  }

  #backend(destination: number): Backend {
    const backend = this.#options.backends[destination];
    assert(backend !== undefined, "a listed object has a destination");
    return backend;
  }

  #doneAt(destination: number): Done {
    const done = this.#done[destination];
    assert(done !== undefined, "a listed object has a destination");
    return done;
  }
}

function batchesOf(keys: readonly string[]): readonly (readonly string[])[] {
  const count = Math.ceil(keys.length / DELETE_AT_ONCE);
  return Array.from({ length: count }, (_, i) => keys.slice(i * DELETE_AT_ONCE, (i + 1) * DELETE_AT_ONCE));
}

async function keptSource(pieces: AsyncIterable<Uint8Array>): Promise<ByteSource> {
  return bytesSource(Buffer.concat(await Array.fromAsync(pieces)));
}

function streamSource(pieces: AsyncIterable<Uint8Array>): ByteSource {
  return { sizeBytes: undefined, replayable: false, open: () => pieces };
}

function fork({ backend, database, name }: ObjectPlace, item: ReencryptItem): BakeliteError {
  return new BakeliteError("output-exists", `${item.key} is there already and holds something else`, {
    subject: `${backend.location}/${database}/${formatName(name)}`,
    hint: "run `bakelite verify` to see which of the two belongs to the replica; neither was touched",
  });
}

function isSame(a: Uint8Array | null, b: Uint8Array | null): boolean {
  return a !== null && b !== null && Buffer.compare(a, b) === 0;
}

function isDamage(error: unknown): boolean {
  return error instanceof BakeliteError && error.code === "replica-corrupt";
}

function isUnreachable(error: unknown): boolean {
  return error instanceof BakeliteError && error.code === "storage-unreachable";
}

function isReportable(error: unknown, signal: AbortSignal | undefined): error is BakeliteError {
  if (!(error instanceof BakeliteError) || signal?.aborted === true) return false;
  return error.code !== "interrupted" && error.code !== "internal";
}

function kindOf({ code }: BakeliteError): ReencryptProblemKind {
  switch (code) {
    case "replica-corrupt":
      return "corrupt";
    case "replica-foreign":
      return "foreign";
    case "replica-missing":
      return "missing";
    case "key-wrong":
      return "unreadable-key";
    case "output-exists":
      return "fork";
    case "io":
      return "unreadable";
    default:
      return "unreachable";
  }
}

function nextStepFor({ code, hint }: BakeliteError): string {
  if (code === "key-wrong")
    return "name the file with its key with --old-key-file and run it again; it was left as it is";
  if (code === "replica-corrupt")
    return "it was left as it is; let `bakelite repair` heal it from another destination before, or delete it by hand if it is of no use";
  return hint ?? "it was left as it is; run it again";
}
