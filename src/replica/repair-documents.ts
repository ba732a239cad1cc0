import { readDocument } from "../format/decode.ts";
import { currentKey, type MarkName, manifestKey, markKey, PLAINTEXT_SEAL } from "../format/names.ts";
import { bytesSource, type CallOptions } from "../storage/backend.ts";
import { BakeliteError } from "../util/errors.ts";
import { keyBelow, type ReplicaObject } from "./catalog.ts";
import { type CurrentHint, parseCurrent, parseManifest } from "./documents.ts";
import { LineageGraph } from "./paths.ts";
import type { TroubleKind } from "./repair-plan.ts";
import { eachOf, type RepairScan } from "./repair-scan.ts";
import type { Replica } from "./replica.ts";
import { StoredHash } from "./stored-hash.ts";

export interface DocumentOptions {
  readonly nowMs: number;
  /** Plan only. */
  readonly dryRun: boolean;
  readonly signal?: AbortSignal | undefined;
}

/** A document that was written at one destination as it is at another one; with `dryRun`, that would be. */
export interface HealedDocument {
  readonly action: "replace" | "add";
  readonly destination: number;
  /** The destination that it was taken from. */
  readonly source: number;
  readonly key: string;
  readonly sizeBytes: number;
}

export interface DocumentTrouble {
  readonly kind: TroubleKind | "refused";
  readonly destination: number;
  readonly key: string;
  readonly error: BakeliteError | null;
}

export interface DocumentRepair {
  readonly healed: readonly HealedDocument[];
  readonly troubles: readonly DocumentTrouble[];
  readonly checkedCount: number;
}

type DocumentName = MarkName | { readonly kind: "current" } | { readonly kind: "manifest" };

/** One copy of a document, as it was read. */
type Copy = { readonly destination: number; readonly key: string } & (
  | { readonly kind: "missing" }
  | { readonly kind: "sound"; readonly bytes: Uint8Array; readonly fields: Record<string, unknown> }
  | { readonly kind: "damaged" | "sealed" | "foreign" | "denied"; readonly error: BakeliteError }
);
type SoundCopy = Extract<Copy, { readonly kind: "sound" }>;

/** Larger ones are no document that bakelite wrote. */
const MAX_DOCUMENT_BYTES = 64 * 1024 * 1024;
/** What was written less than this ago may just be on its way to the other destinations. */
const SETTLES_MS = 60 * 1000;
const AT_ONCE = 8;

/**
 * Mends the marks, `CURRENT` and the manifests. Marks are immutable, and are added where they are missing. `CURRENT` is replaced where
 * it is damaged, missing, or older than another one that fits what is stored there. A manifest is a cache: one that is
 * damaged is replaced, and one that is missing is left to the daemon. To be called when the objects have been repaired. Rejects when interrupted.
 */
export async function repairDocuments(
  replica: Replica,
  scan: RepairScan,
  options: DocumentOptions,
): Promise<DocumentRepair> {
  return await new DocumentRepairer(replica, scan, options).repair();
}

class DocumentRepairer {
  readonly #replica: Replica;
  readonly #scan: RepairScan;
  readonly #options: DocumentOptions;
  readonly #healed: HealedDocument[] = [];
  readonly #troubles: DocumentTrouble[] = [];
  #checkedCount = 0;

  constructor(replica: Replica, scan: RepairScan, options: DocumentOptions) {
    this.#replica = replica;
    this.#scan = scan;
    this.#options = options;
  }

  async repair(): Promise<DocumentRepair> {
    const { catalog } = this.#replica;
    const marked = [...Map.groupBy(catalog.marks, ({ index }) => index)];
    await eachOf(marked, AT_ONCE, async ([index, stored]) => {
      await this.#repairMark(index, [...new Set(stored.map(({ seal }) => seal))]);
    });
    await this.#repairCurrent();
    await this.#repairManifests();
    return { healed: this.#healed, troubles: this.#troubles, checkedCount: this.#checkedCount };
  }

  get #up(): readonly number[] {
    return [...this.#replica.options.backends.keys()].filter((destination) => !this.#scan.isDown(destination));
  }

  async #repairMark(index: number, seals: readonly string[]): Promise<void> {
    const copies: { readonly seal: string; readonly copy: Copy }[] = [];
    for (const seal of seals)
      for (const copy of await this.#readAll({ kind: "mark", index, seal })) copies.push({ seal, copy });
    const sound = copies.flatMap(({ seal, copy }) => (copy.kind === "sound" ? [{ seal, copy }] : []));
    sound.sort((a, b) => this.#rank(a.seal) - this.#rank(b.seal));
    const says = new Set(sound.map(({ copy: { fields } }) => `${fields["lineage"]} ${fields["label"]}`));
    for (const { seal, copy } of copies) {
      if (copy.kind === "sound" && says.size > 1) this.#trouble("fork", copy, null);
      if (copy.kind === "sealed" || copy.kind === "foreign" || copy.kind === "denied")
        this.#trouble(copy.kind, copy, copy.error);
      if (copy.kind !== "damaged") continue;
      const source = says.size > 1 ? undefined : sound.find((other) => other.seal === seal)?.copy;
      if (source === undefined) this.#trouble("lost", copy, copy.error);
      else await this.#write("replace", copy, source, { kind: "mark", index, seal });
    }
    const [best] = sound;
    if (best === undefined || says.size > 1) return;
    for (const destination of this.#up) {
      const here = copies.filter(({ copy }) => copy.destination === destination);
      const target = here.find(({ seal }) => seal === best.seal)?.copy;
      if (target === undefined || here.some(({ copy }) => copy.kind !== "missing")) continue;
      if (best.seal === PLAINTEXT_SEAL && this.#replica.options.seal !== PLAINTEXT_SEAL)
        this.#trouble("plaintext", best.copy, null);
      else await this.#write("add", target, best.copy, { kind: "mark", index, seal: best.seal });
    }
  }

  #rank(seal: string): number {
    return seal === this.#replica.options.seal ? 0 : 1;
  }

  async #repairCurrent(): Promise<void> {
    const name = { kind: "current" } as const;
    const copies = await this.#readAll(name);
    const hints = copies.flatMap((copy) =>
      copy.kind === "sound" ? [{ copy, hint: parseCurrent(copy.fields, copy.key) }] : [],
    );
    hints.sort((a, b) => (isNewer(a.hint, b.hint) ? -1 : 1));
    for (const copy of copies) {
      const own = hints.find((one) => one.copy === copy)?.hint;
      const fitting = hints.find(({ hint }) => this.#fits(copy.destination, hint));
      switch (copy.kind) {
        case "damaged":
          if (fitting === undefined) this.#trouble("lost", copy, copy.error);
          else await this.#write("replace", copy, fitting.copy, name);
          break;
        case "missing":
        case "sound": {
          const isOld = fitting !== undefined && (own === undefined || isOlderBackup(own, fitting.hint));
          // The daemon writes it everywhere right after a full backup: what is young is left to it.
          if (!isOld || this.#options.nowMs - fitting.hint.writtenMs < SETTLES_MS) break;
          await this.#write(copy.kind === "missing" ? "add" : "replace", copy, fitting.copy, name);
          break;
        }
        default:
          this.#trouble(copy.kind, copy, copy.error);
      }
    }
  }

  /** Whether what is stored at the destination by itself is what the hint says: its full backup, and of its history. */
  #fits(destination: number, hint: CurrentHint): boolean {
    const { catalog, options } = this.#replica;
    const factsOf = (object: ReplicaObject) =>
      object.destination === destination ? (this.#scan.soundOf(object)?.facts ?? null) : null;
    const preferences = { seal: options.seal, current: null };
    const graph = new LineageGraph(catalog, (object) => factsOf(object) ?? "unusable", preferences);
    const full = catalog.fulls.find(
      (object) => object.first === hint.full && object.seal === hint.seal && factsOf(object) !== null,
    );
    const newest = graph.restorePoints.at(-1) ?? 0;
    if (full === undefined || newest < (factsOf(full)?.settled ?? 0) || newest < hint.index) return false;
    const lineages = graph.stampSources(hint.index).map((object) => factsOf(object)?.result);
    return lineages.length === 0 || lineages.includes(hint.lineage);
  }

  async #repairManifests(): Promise<void> {
    const name = { kind: "manifest" } as const;
    const copies = await this.#readAll(name);
    for (const copy of copies) {
      if (copy.kind === "missing" || copy.kind === "sound") continue;
      if (copy.kind !== "damaged") {
        this.#trouble(copy.kind, copy, copy.error);
        continue;
      }
      const source = copies.find((other) => other.kind === "sound" && !this.#contradicts(copy.destination, other));
      if (source?.kind === "sound") await this.#write("replace", copy, source, name);
      else this.#trouble("lost", copy, copy.error);
    }
  }

  #contradicts(destination: number, { fields, key }: SoundCopy): boolean {
    const entries = new Map([...parseManifest(fields, key)].map((entry) => [entry.name, entry]));
    const { fulls, changeSets } = this.#replica.catalog;
    return [...fulls, ...changeSets].some((object) => {
      const facts = object.destination === destination ? this.#scan.soundOf(object)?.facts : undefined;
      const told = entries.get(keyBelow(object));
      if (facts === undefined || told === undefined || told.sizeBytes !== object.sizeBytes) return false;
      const { parent, result, settled, sizePages, lastCommitMs } = told.facts;
      return (
        parent !== facts.parent ||
        result !== facts.result ||
        settled !== facts.settled ||
        sizePages !== facts.sizePages ||
        lastCommitMs !== facts.lastCommitMs
      );
    });
  }

  async #readAll(name: DocumentName): Promise<readonly Copy[]> {
    const copies: Copy[] = [];
    for (const destination of this.#up) {
      const copy = await this.#read(destination, name);
      if (copy !== null) copies.push(copy);
    }
    return copies;
  }

  /** null: the destination does not answer any longer. */
  async #read(destination: number, name: DocumentName): Promise<Copy | null> {
    const { database, options } = this.#replica;
    const key = keyOfDocument(database, name);
    const place = { destination, key };
    const subject = `${this.#replica.locationOf(destination)}/${key}`;
    let bytes: Uint8Array | null = null;
    try {
      bytes = await this.#fetch(destination, key);
      if (bytes === null) return { ...place, kind: "missing" };
      this.#checkedCount++;
      const { keys, acceptPlaintext } = options;
      const { fields } = readDocument(bytes, { name, database, subject, keys, acceptPlaintext });
      checkFields(name, fields, subject);
      return { ...place, kind: "sound", bytes, fields };
    } catch (error) {
      if (!(error instanceof BakeliteError)) throw error;
      switch (error.code) {
        case "storage-unreachable":
          this.#scan.setFailed(destination, error);
          return null;
        case "replica-corrupt":
        case "io":
          return { ...place, kind: "damaged", error };
        case "replica-missing":
          return { ...place, kind: "missing" };
        case "key-wrong":
        case "replica-foreign":
          // A header that was damaged may say anything.
          if (bytes !== null && !matchesFooter(bytes)) return { ...place, kind: "damaged", error };
          return { ...place, kind: error.code === "key-wrong" ? "sealed" : "foreign", error };
        case "storage-denied":
          return { ...place, kind: "denied", error };
        default:
          throw error;
      }
    }
  }

  async #fetch(destination: number, key: string): Promise<Uint8Array | null> {
    const stream = await this.#replica.options.backends[destination]?.get(key, this.#call);
    if (stream == null) return null;
    const pieces: Uint8Array[] = [];
    let sizeBytes = 0;
    for await (const piece of stream) {
      pieces.push(piece);
      sizeBytes += piece.length;
      if (sizeBytes > MAX_DOCUMENT_BYTES)
        throw new BakeliteError("replica-corrupt", `it is too large, more than ${MAX_DOCUMENT_BYTES} bytes`, {
          subject: key,
        });
    }
    return Buffer.concat(pieces, sizeBytes);
  }

  /** Looks once more before it writes, and reads back what it wrote. What is no longer as it was is left as it is. */
  async #write(action: "replace" | "add", target: Copy, source: SoundCopy, name: DocumentName): Promise<void> {
    const { destination, key } = target;
    const healed: HealedDocument = {
      action,
      destination,
      source: source.destination,
      key,
      sizeBytes: source.bytes.length,
    };
    if (this.#options.dryRun) {
      this.#healed.push(healed);
      return;
    }
    const again = await this.#read(destination, name);
    if (again === null || again.kind !== target.kind || !isSame(again, target)) return;
    try {
      const backend = this.#replica.options.backends[destination];
      const body = bytesSource(source.bytes);
      const outcome = await backend?.put(key, body, { ifAbsent: action === "add", ...this.#call });
      const stored = await this.#fetch(destination, key);
      if (outcome === "exists" && stored !== null && Buffer.compare(stored, source.bytes) !== 0) return;
      if (stored === null || Buffer.compare(stored, source.bytes) !== 0)
        throw new BakeliteError("replica-corrupt", "what was written does not read back as it was written", {
          subject: `${this.#replica.locationOf(destination)}/${key}`,
          hint: "check the destination's disk or service, and run the command again",
        });
      this.#healed.push(healed);
    } catch (error) {
      if (!(error instanceof BakeliteError) || error.code === "interrupted" || error.code === "internal") throw error;
      if (error.code === "storage-unreachable") this.#scan.setFailed(destination, error);
      else this.#troubles.push({ kind: "refused", destination, key, error });
    }
  }

  #trouble(kind: TroubleKind, { destination, key }: Copy, error: BakeliteError | null): void {
    this.#troubles.push({ kind, destination, key, error });
  }

  get #call(): CallOptions {
    const { signal } = this.#options;
    return signal === undefined ? {} : { signal };
  }
}

function keyOfDocument(database: string, name: DocumentName): string {
  if (name.kind === "mark") return markKey(database, name);
  return name.kind === "current" ? currentKey(database) : manifestKey(database);
}

/** Throws `replica-corrupt` for fields that the document cannot have. */
function checkFields(name: DocumentName, fields: Record<string, unknown>, subject: string): void {
  if (name.kind === "current") parseCurrent(fields, subject);
  else if (name.kind === "manifest") for (const _ of parseManifest(fields, subject)) break;
  else if (fields["index"] !== name.index || typeof fields["lineage"] !== "string")
    throw new BakeliteError("replica-corrupt", `it is not the mark of state ${name.index}`, { subject });
}

function matchesFooter(bytes: Uint8Array): boolean {
  const hash = new StoredHash();
  hash.add(bytes);
  return hash.finish() !== null;
}

/** Which of two `CURRENT` was written later: by what they name, then by their time. */
export function isNewer(a: CurrentHint, b: CurrentHint): boolean {
  if (a.full !== b.full) return a.full > b.full;
  if (a.index !== b.index) return a.index > b.index;
  return a.writtenMs > b.writtenMs;
}

/** One that is behind within the same full backup is no rollback: destinations are written one after the other. */
function isOlderBackup(own: CurrentHint, other: CurrentHint): boolean {
  return own.full < other.full;
}

function isSame(a: Copy, b: Copy): boolean {
  return a.kind !== "sound" || b.kind !== "sound" || Buffer.compare(a.bytes, b.bytes) === 0;
}
