import { encodeDocument, encodeObject, type PageBatch } from "../../src/format/encode.ts";
import { deriveSealKey, type KeyRing, keyRing, type SealKey } from "../../src/format/envelope.ts";
import type { ObjectHeader } from "../../src/format/header.ts";
import { LineageHasher } from "../../src/format/lineage.ts";
import { currentKey, manifestKey, type ObjectName, objectKey, PLAINTEXT_SEAL } from "../../src/format/names.ts";
import { hashPage, lockPageNumber, PAGE_HASH_BYTES, xorDigest } from "../../src/format/pages.ts";
import { type StateTrailer, type TimeEpoch, trailerFields } from "../../src/format/trailer.ts";
import { type Backend, bytesSource } from "../../src/storage/backend.ts";
import type { Random } from "../support/random.ts";

/** The content of a database: for each page its image, at position page number - 1. */
export type Pages = readonly Uint8Array[];

/** One state of the modelled database, and what was said of it when it was stored. */
export interface ModelState {
  readonly index: number;
  readonly pages: Pages;
  readonly stampMs: number;
  readonly chain: string;
  readonly lineage: string;
  /** Touched since the state before: what its change-set holds, new pages included. */
  readonly touched: ReadonlySet<number>;
}

export interface StoredChange {
  readonly key: string;
  readonly name: ObjectName;
  readonly parent: string | null;
  readonly result: string;
  readonly settled: number;
  readonly chain: string;
  readonly pages: ReadonlyMap<number, Uint8Array>;
  readonly sizePages: number;
}

export interface BuilderOptions {
  readonly backends: readonly Backend[];
  readonly random: Random;
  readonly database?: string;
  readonly pageSizeBytes?: number;
  readonly seal?: SealKey | null;
  readonly startMs?: number;
  readonly compression?: "zstd" | "none";
}

/**
 * Writes the objects that a replicator would store for a database whose every state it keeps as a model. It follows
 * docs/storage-format.md by itself: nothing of src/replica/ is used.
 */
export class ReplicaBuilder {
  readonly database: string;
  readonly pageSizeBytes: number;
  readonly states = new Map<number, ModelState>();
  readonly stored = new Map<string, StoredChange>();
  seal: SealKey | null;
  readonly #options: BuilderOptions;
  readonly #random: Random;
  readonly #epochs: TimeEpoch[] = [];
  #newest: ModelState | null = null;
  #nowMs: number;

  constructor(options: BuilderOptions) {
    this.#options = options;
    this.#random = options.random;
    this.database = options.database ?? "app";
    this.pageSizeBytes = options.pageSizeBytes ?? 512;
    this.seal = options.seal ?? null;
    this.#nowMs = options.startMs ?? Date.UTC(2026, 0, 1);
  }

  get newest(): ModelState {
    if (this.#newest === null) throw new Error("no chain was begun");
    return this.#newest;
  }

  /** The keys for reading what was written. */
  get keys(): KeyRing {
    return keyRing(this.seal === null ? [] : [this.seal]);
  }

  get sealText(): string {
    return this.seal?.fingerprint ?? PLAINTEXT_SEAL;
  }

  passTime(ms: number): void {
    this.#nowMs += ms;
  }

  /** Begins a chain: a state with an index of its own, to which no change-set leads. Stores nothing. */
  beginChain(pages: Pages): ModelState {
    const index = (this.#newest?.index ?? 0) + 1;
    return this.#addState({ index, pages, touched: new Set(), lineage: this.#hex(64), chain: this.#hex(32) });
  }

  /** The next state, with the pages of `images` written and the given size; stores nothing. New pages that are not given are random. */
  commit(images: ReadonlyMap<number, Uint8Array>, sizePages: number = this.newest.pages.length): ModelState {
    const before = this.newest;
    const pages: Uint8Array[] = [];
    const touched = new Set<number>();
    for (let page = 1; page <= sizePages; page++) {
      const written = images.get(page) ?? (page > before.pages.length ? this.randomImage() : undefined);
      if (written !== undefined) touched.add(page);
      pages.push(written ?? before.pages[page - 1] ?? this.randomImage());
    }
    return this.#addState({ index: before.index + 1, pages, touched, lineage: "", chain: before.chain });
  }

  /** A commit of `count` random pages, growing or shrinking to `sizePages`. */
  commitRandom(count: number, sizePages: number = this.newest.pages.length): ModelState {
    const images = new Map<number, Uint8Array>();
    for (let i = 0; i < count && sizePages > 0; i++) images.set(this.#random.integer(1, sizePages), this.randomImage());
    return this.commit(images, sizePages);
  }

  randomImage(): Uint8Array {
    // Half random, half zeros, so that compression has something to do.
    const image = new Uint8Array(this.pageSizeBytes);
    image.set(this.#random.bytes(this.pageSizeBytes / 2));
    return image;
  }

  /**
   * Stores the ordinary change-set of state `index`. With `settled` above it, images are taken from states up to that one, as
   * when a large set is read while commits go on; those states must exist already.
   */
  async storeChangeSet(index: number, settled: number = index): Promise<StoredChange> {
    const state = this.#state(index);
    const pages = new Map<number, Uint8Array>();
    for (const page of [...state.touched].sort((a, b) => a - b))
      pages.set(page, this.#imageBetween(page, index, settled));
    const parent = this.#state(index - 1).lineage;
    const hasher = new LineageHasher(Buffer.from(parent, "hex"), index);
    for (const [page, image] of pages) hasher.add(Uint32Array.of(page), hashPage(page, image));
    const result = hasher.finish(state.pages.length).toHex();
    this.states.set(index, { ...state, lineage: result });
    if (this.newest.index === index) this.#newest = this.#state(index);
    const name: ObjectName = { kind: "change-set", level: 0, first: index, last: index, seal: this.sealText };
    return this.#store({
      name,
      chain: state.chain,
      parent,
      result,
      settled,
      pages,
      sizePages: state.pages.length,
      digest: settled === index ? digestOf(state.pages, this.pageSizeBytes) : null,
      stamps: [state.stampMs, state.stampMs],
      reason: "wal",
    });
  }

  /** Stores a full backup labelled `index`, with each image taken from some state from there to `settled`. */
  async storeFull(index: number, settled: number = index): Promise<StoredChange> {
    const state = this.#state(index);
    const size =
      settled === index ? state.pages.length : this.#state(this.#random.integer(index, settled)).pages.length;
    const pages = new Map<number, Uint8Array>();
    for (let page = 1; page <= size; page++)
      if (page !== lockPageNumber(this.pageSizeBytes)) pages.set(page, this.#imageBetween(page, index, settled));
    const name: ObjectName = { kind: "full", index, seal: this.sealText };
    return this.#store({
      name,
      chain: state.chain,
      parent: null,
      result: state.lineage,
      settled,
      pages,
      sizePages: size,
      digest: settled === index ? digestOf(state.pages, this.pageSizeBytes) : null,
      stamps: [state.stampMs, state.stampMs],
      reason: "interval",
    });
  }

  /** Stores one change-set made of the stored ones from `first` to `last`, which stay. */
  async compact(level: number, first: number, last: number): Promise<StoredChange> {
    const inputs: StoredChange[] = [];
    for (let index = first; index <= last; index++) {
      const input = this.stored.get(
        objectKey(this.database, { kind: "change-set", level: 0, first: index, last: index, seal: this.sealText }),
      );
      if (input === undefined) throw new Error(`state ${index} has no change-set to compact`);
      inputs.push(input);
    }
    const merged = new Map<number, Uint8Array>();
    for (const input of inputs) {
      for (const page of merged.keys()) if (page > input.sizePages) merged.delete(page);
      for (const [page, image] of input.pages) merged.set(page, image);
    }
    const state = this.#state(last);
    const settled = Math.max(...inputs.map((input) => input.settled));
    return this.#store({
      name: { kind: "change-set", level, first, last, seal: this.sealText },
      chain: state.chain,
      parent: inputs[0]?.parent ?? null,
      result: state.lineage,
      settled,
      pages: new Map([...merged].sort(([a], [b]) => a - b)),
      sizePages: state.pages.length,
      digest: settled === last ? digestOf(state.pages, this.pageSizeBytes) : null,
      stamps: [this.#state(first).stampMs, state.stampMs],
      reason: "compaction",
    });
  }

  /** Stores a change-set that leads away from state `first` - 1 to content that is none of ours. `reason` "wal": not compacted. */
  async storeFork(name: ObjectName & { kind: "change-set" }, reason = "wal"): Promise<StoredChange> {
    const parent = this.#state(name.first - 1);
    const image = this.randomImage();
    const hasher = new LineageHasher(Buffer.from(parent.lineage, "hex"), name.last);
    hasher.add(Uint32Array.of(1), hashPage(1, image));
    return this.#store({
      name,
      chain: parent.chain,
      parent: parent.lineage,
      result: hasher.finish(parent.pages.length).toHex(),
      settled: name.last,
      pages: new Map([[1, image]]),
      sizePages: parent.pages.length,
      digest: null,
      stamps: [parent.stampMs, parent.stampMs],
      reason,
    });
  }

  /** Stores `CURRENT` as after full backup `full`. */
  async storeCurrent(full: number, newest: ModelState = this.newest): Promise<void> {
    const header = this.#header({ kind: "current", level: 0, first: newest.index, chain: newest.chain });
    const fields = {
      chain: newest.chain,
      full,
      seal: this.sealText,
      index: newest.index,
      lineage: newest.lineage,
      written_ms: this.#nowMs,
    };
    await this.#put(currentKey(this.database), await encodeDocument(this.#encodeOptions(header), fields));
  }

  /** Stores a manifest of all that was stored so far. */
  async storeManifest(
    change: (entry: Record<string, unknown>) => Record<string, unknown> = (entry) => entry,
  ): Promise<void> {
    const header = this.#header({ kind: "manifest", level: 0, first: this.newest.index, chain: this.newest.chain });
    const objects = [...this.#trailers].map(([key, { sizeBytes, trailer }]) =>
      change({
        name: key.slice(this.database.length + 1),
        size: sizeBytes,
        ...trailerFields(trailer),
        chain: this.newest.chain,
      }),
    );
    await this.#put(manifestKey(this.database), await encodeDocument(this.#encodeOptions(header), { objects }));
  }

  /** The bytes of the file that state `index` is. */
  fileOf(index: number): Uint8Array {
    return fileOf(this.#state(index).pages, this.pageSizeBytes);
  }

  readonly #trailers = new Map<
    string,
    { readonly sizeBytes: number; readonly trailer: Omit<StateTrailer, "indexChunks"> }
  >();

  #state(index: number): ModelState {
    const state = this.states.get(index);
    if (state === undefined) throw new Error(`there is no state ${index}`);
    return state;
  }

  #addState(state: Omit<ModelState, "stampMs">): ModelState {
    const newestEpoch = this.#epochs.at(-1);
    const previousStampMs = this.#newest?.stampMs ?? 0;
    if (newestEpoch === undefined || this.#nowMs < previousStampMs)
      this.#epochs.push({ number: (newestEpoch?.number ?? 0) + 1, firstIndex: state.index, firstStampMs: this.#nowMs });
    const added = { ...state, stampMs: this.#nowMs };
    this.states.set(state.index, added);
    this.#newest = added;
    return added;
  }

  /** The page's image in some state from `from` to `to` that has the page; in state `from` if none has. */
  #imageBetween(page: number, from: number, to: number): Uint8Array {
    const candidates: Uint8Array[] = [];
    for (let index = from; index <= to; index++) {
      const image = this.#state(index).pages[page - 1];
      if (image !== undefined) candidates.push(image);
    }
    return this.#random.pick(candidates);
  }

  async #store(object: {
    readonly name: ObjectName;
    readonly chain: string;
    readonly parent: string | null;
    readonly result: string;
    readonly settled: number;
    readonly pages: ReadonlyMap<number, Uint8Array>;
    readonly sizePages: number;
    readonly digest: string | null;
    readonly stamps: readonly [number, number];
    readonly reason: string;
  }): Promise<StoredChange> {
    const { name, chain, parent, result, settled, pages, sizePages, digest, stamps, reason } = object;
    const isFull = name.kind === "full";
    const last = isFull ? name.index : name.last;
    const header = this.#header({
      kind: name.kind,
      level: isFull ? 0 : name.level,
      first: isFull ? name.index : name.first,
      chain,
    });
    const fields = {
      last,
      settled,
      sizePages,
      parent,
      result,
      digest,
      firstCommitMs: stamps[0],
      lastCommitMs: stamps[1],
      commits: 1,
      epochs: this.#epochs.filter((epoch) => epoch.firstIndex <= last).slice(-64),
      wal: null,
      reason,
    };
    const bytes = Buffer.concat(
      await Array.fromAsync(
        encodeObject(this.#encodeOptions(header), [batchOf(pages, this.pageSizeBytes)], () => fields),
      ),
    );
    const key = objectKey(this.database, name);
    await this.#put(key, bytes);
    const stored = { key, name, parent, result, settled, chain, pages, sizePages };
    this.stored.set(key, stored);
    this.#trailers.set(key, { sizeBytes: bytes.length, trailer: { ...fields, pageCount: pages.size } });
    return stored;
  }

  async #put(key: string, bytes: Uint8Array): Promise<void> {
    for (const backend of this.#options.backends) await backend.put(key, bytesSource(bytes));
  }

  #encodeOptions(header: ObjectHeader) {
    return { header, sealKey: this.seal?.key ?? null, compressionLevel: 3 };
  }

  #header(fields: Pick<ObjectHeader, "kind" | "level" | "first" | "chain">): ObjectHeader {
    return {
      ...fields,
      writer: "builder",
      database: this.database,
      pageSizeBytes: this.pageSizeBytes,
      compression: this.#options.compression ?? "zstd",
      cipher: this.seal === null ? "none" : "xchacha20-poly1305",
      keyFingerprint: this.seal?.fingerprint ?? null,
      nonceSeed: this.#hex(48),
      session: "a".repeat(32),
      run: "b".repeat(32),
    };
  }

  #hex(digits: number): string {
    return this.#random.bytes(digits / 2).toHex();
  }
}

/** The key that `seed` stands for. */
export function testKey(seed: number): SealKey {
  return deriveSealKey(new Uint8Array(32).fill(seed));
}

export function fileOf(pages: Pages, pageSizeBytes: number): Uint8Array {
  const file = new Uint8Array(pages.length * pageSizeBytes);
  for (const [i, image] of pages.entries())
    if (i + 1 !== lockPageNumber(pageSizeBytes)) file.set(image, i * pageSizeBytes);
  return file;
}

export function digestOf(pages: Pages, pageSizeBytes: number): string {
  const digest = new Uint8Array(PAGE_HASH_BYTES);
  for (const [i, image] of pages.entries())
    if (i + 1 !== lockPageNumber(pageSizeBytes)) xorDigest(digest, hashPage(i + 1, image));
  return digest.toHex();
}

function batchOf(pages: ReadonlyMap<number, Uint8Array>, pageSizeBytes: number): PageBatch {
  const batch = {
    pageNumbers: Uint32Array.from(pages.keys()),
    images: new Uint8Array(pages.size * pageSizeBytes),
    hashes: new Uint8Array(pages.size * PAGE_HASH_BYTES),
  };
  let i = 0;
  for (const [page, image] of pages) {
    batch.images.set(image, i * pageSizeBytes);
    hashPage(page, image, batch.hashes, i * PAGE_HASH_BYTES);
    i++;
  }
  return batch;
}
