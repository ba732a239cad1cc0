import { openObject, verifyObject } from "../format/decode.ts";
import { describeOtherKey } from "../format/envelope.ts";
import { PLAINTEXT_SEAL } from "../format/names.ts";
import { BakeliteError, unreachable } from "../util/errors.ts";
import { type Catalog, keyOf, nameOf, type ReplicaObject } from "./catalog.ts";
import { factsOf, type ObjectFacts } from "./facts.ts";
import { ObjectSource } from "./object-source.ts";
import type { Replica } from "./replica.ts";
import { StoredHash } from "./stored-hash.ts";

/** What reading one stored object whole has shown. */
export type Verdict =
  | SoundVerdict
  /** Its bytes are not those that were stored. `facts`: what its header and trailer still say, where both are whole. */
  | { readonly kind: "damaged"; readonly error: BakeliteError; readonly facts: ObjectFacts | null }
  /** It was listed and is not there. */
  | { readonly kind: "gone" }
  /** The configured key does not open it; `matches`: whether its bytes match its SHA-256, which is all that can be checked. */
  | { readonly kind: "sealed"; readonly error: BakeliteError; readonly matches: boolean }
  /** Of another database or a newer format. */
  | { readonly kind: "foreign"; readonly error: BakeliteError }
  /** The destination does not give it. */
  | { readonly kind: "denied"; readonly error: BakeliteError };

export interface SoundVerdict {
  readonly kind: "sound";
  readonly facts: ObjectFacts;
  /** Of the footer, which its bytes match: 64 hex digits. Tells these bytes from every other encoding of the same states. */
  readonly sha256: string;
}

export interface ScanOptions {
  readonly signal?: AbortSignal | undefined;
  /** Hears of the bytes that come from the destinations. */
  readonly onBytes?: ((bytes: number) => void) | undefined;
}

/** Objects up to this size are fetched with one request and kept in memory meanwhile. */
export const WHOLE_OBJECT_BYTES = 1024 * 1024;
const SMALL_AT_ONCE = 12;
/** Each of these holds a group of up to 64 chunks, some 17 MiB. */
const LARGE_AT_ONCE = 1;
/** The collector sees small objects and not the megabytes behind them: without a hint they pile up to several times what is in use. */
const COLLECT_EVERY_BYTES = 8 * 1024 * 1024;

/**
 * The verdicts on all objects of a replica, each from its bytes alone: nothing that a manifest or another copy says is
 * believed. An object is remembered by its name, size and time, so that a new listing costs only the reading of what is new in it.
 */
export class RepairScan {
  readonly #replica: Replica;
  readonly #verdicts = new Map<string, Verdict>();
  readonly #failed = new Map<number, BakeliteError>();
  #bytesRead = 0;
  #uncollectedBytes = 0;

  constructor(replica: Replica) {
    this.#replica = replica;
  }

  get bytesRead(): number {
    return this.#bytesRead;
  }

  /** Destinations that do not answer, by position, with what they failed with. Nothing more is asked of them. */
  get failedDestinations(): ReadonlyMap<number, BakeliteError> {
    return this.#failed;
  }

  isDown(destination: number): boolean {
    return this.#failed.has(destination);
  }

  setFailed(destination: number, error: BakeliteError): void {
    if (!this.#failed.has(destination)) this.#failed.set(destination, error);
  }

  /** null: not read, because its destination failed. */
  verdictOf(object: ReplicaObject): Verdict | null {
    return this.#verdicts.get(identityOf(object)) ?? null;
  }

  soundOf(object: ReplicaObject): SoundVerdict | null {
    const verdict = this.#verdicts.get(identityOf(object));
    return verdict?.kind === "sound" ? verdict : null;
  }

  /** A verdict that came from elsewhere, such as from reading back what was just written. */
  remember(object: ReplicaObject, verdict: Verdict): void {
    this.#verdicts.set(identityOf(object), verdict);
  }

  /** It may hold other bytes under the same name, size and time. */
  forget(object: ReplicaObject): void {
    this.#verdicts.delete(identityOf(object));
  }

  /** The bytes that `read` still has to fetch. */
  unreadBytes(catalog: Catalog): number {
    return this.#unread(catalog).reduce((sum, object) => sum + object.sizeBytes, 0);
  }

  /**
   * Reads every object on which there is no verdict yet, each byte once, a bounded number at a time. Small objects are not kept
   * waiting by large ones. Rejects only when interrupted, and for a bug.
   */
  async read(options: ScanOptions): Promise<void> {
    for (const [destination, error] of this.#replica.trailers.failedDestinations) this.setFailed(destination, error);
    const unread = this.#unread(this.#replica.catalog);
    const small = unread.filter(({ sizeBytes }) => sizeBytes <= WHOLE_OBJECT_BYTES);
    const large = unread.filter(({ sizeBytes }) => sizeBytes > WHOLE_OBJECT_BYTES);
    const check = async (object: ReplicaObject) => {
      const verdict = this.isDown(object.destination) ? null : await this.check(object, options);
      if (verdict !== null) this.remember(object, verdict);
    };
    await Promise.all([eachOf(small, SMALL_AT_ONCE, check), eachOf(large, LARGE_AT_ONCE, check)]);
  }

  /** Reads one object now, whatever is known of it, and remembers nothing. null: its destination does not answer any longer. */
  async check(object: ReplicaObject, { signal, onBytes }: ScanOptions): Promise<Verdict | null> {
    const { database, backends, keys, acceptPlaintext } = this.#replica.options;
    signal?.throwIfAborted();
    const backend = backends[object.destination];
    if (backend === undefined) return null;
    if (!this.#replica.trailers.canUnseal(object)) return await this.#checkSealed(object, { signal, onBytes });
    const source = new ObjectSource(
      backend,
      { key: keyOf(database, object), sizeBytes: object.sizeBytes },
      signal,
      (n) => this.#count(n, onBytes),
    );
    const subject = this.#replica.describe(object);
    const decode = { name: nameOf(object), database, subject, keys, acceptPlaintext };
    try {
      if (object.sizeBytes <= WHOLE_OBJECT_BYTES) await source.fetchAhead(0, object.sizeBytes);
      const { header, trailer, footerSha256 } = await verifyObject(source, decode);
      return { kind: "sound", facts: factsOf(header, trailer), sha256: Buffer.from(footerSha256).toString("hex") };
    } catch (error) {
      if (!(error instanceof BakeliteError)) throw error;
      if (source.gone) return { kind: "gone" };
      const survivingFacts = async () => {
        const { header, trailer } = await openObject(source, decode);
        return factsOf(header, trailer);
      };
      return await this.#judge(object, error, { signal, onBytes }, survivingFacts);
    }
  }

  async #judge(
    object: ReplicaObject,
    error: BakeliteError,
    options: ScanOptions,
    survivingFacts: () => Promise<ObjectFacts>,
  ): Promise<Verdict | null> {
    const { code } = error;
    switch (code) {
      case "storage-unreachable":
        this.setFailed(object.destination, error);
        return null;
      case "replica-missing":
        return { kind: "gone" };
      case "replica-corrupt":
      case "io": // a file of a disk with a bad sector
        return { kind: "damaged", error, facts: await survivingFacts().catch(nullIfUnreadable) };
      case "replica-foreign":
      case "key-wrong": {
        // A header that was damaged may say anything.
        const matches = await this.#matchesFooter(object, options);
        if (matches === null) return null;
        if (!matches) return { kind: "damaged", error, facts: null };
        return code === "key-wrong" ? { kind: "sealed", error, matches } : { kind: "foreign", error };
      }
      case "storage-denied":
        return { kind: "denied", error };
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
        return unreachable(code);
    }
  }

  async #checkSealed(object: ReplicaObject, options: ScanOptions): Promise<Verdict | null> {
    const matches = await this.#matchesFooter(object, options);
    if (matches === null) return null;
    const isPlain = object.seal === PLAINTEXT_SEAL;
    const message = isPlain
      ? "it is not encrypted, but a key is configured"
      : describeOtherKey(object.seal, this.#replica.options.keys);
    const hint = isPlain
      ? `run \`bakelite reencrypt --db ${this.#replica.database}\`, or set accept_plaintext = true under [defaults.encryption] if that is right`
      : `set [defaults.encryption] key_file to the file with key ${object.seal}`;
    const error = new BakeliteError("key-wrong", message, { subject: this.#replica.describe(object), hint });
    return { kind: "sealed", error, matches };
  }

  /** What can be said of an object without its key; null when its destination failed meanwhile. */
  async #matchesFooter(object: ReplicaObject, { signal, onBytes }: ScanOptions): Promise<boolean | null> {
    const { database, backends } = this.#replica.options;
    const hash = new StoredHash();
    try {
      const call = signal === undefined ? {} : { signal };
      for await (const piece of (await backends[object.destination]?.get(keyOf(database, object), call)) ?? []) {
        this.#count(piece.length, onBytes);
        hash.add(piece);
      }
      return hash.finish() !== null;
    } catch (error) {
      if (!(error instanceof BakeliteError) || error.code === "interrupted" || error.code === "internal") throw error;
      if (error.code !== "storage-unreachable") return false;
      this.setFailed(object.destination, error);
      return null;
    }
  }

  #unread({ fulls, changeSets }: Catalog): readonly ReplicaObject[] {
    return [...fulls, ...changeSets].filter((object) => {
      const verdict = this.verdictOf(object);
      return (verdict === null && !this.isDown(object.destination)) || verdict?.kind === "gone";
    });
  }

  #count(bytes: number, onBytes: ((bytes: number) => void) | undefined): void {
    this.#bytesRead += bytes;
    onBytes?.(bytes);
    this.collect(bytes);
  }

  /** So many bytes more have passed through the memory. */
  collect(bytes: number): void {
    this.#uncollectedBytes += bytes;
    if (this.#uncollectedBytes < COLLECT_EVERY_BYTES) return;
    this.#uncollectedBytes = 0;
    Bun.gc(true);
  }
}

/** Runs `work` on each item, at most `atOnce` at a time, in order of their beginning; none begins after one has rejected. */
export async function eachOf<T>(items: readonly T[], atOnce: number, work: (item: T) => Promise<void>): Promise<void> {
  const waiting = items.values();
  let stopped = false;
  const worker = async () => {
    try {
      for (const item of waiting) {
        if (stopped) return;
        await work(item);
      }
    } catch (error) {
      stopped = true;
      throw error;
    }
  };
  await Promise.all(Array.from({ length: Math.min(atOnce, items.length) }, worker));
}

function nullIfUnreadable(error: unknown): null {
  if (!(error instanceof BakeliteError) || error.code === "interrupted" || error.code === "internal") throw error;
  return null;
}

function identityOf({ kind, level, first, last, seal, destination, sizeBytes, modifiedMs }: ReplicaObject): string {
  return `${destination} ${kind} ${level} ${first} ${last} ${seal} ${sizeBytes} ${modifiedMs}`;
}
