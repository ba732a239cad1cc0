import { encodeObject, type PageBatch, type TrailerFields } from "../format/encode.ts";
import type { ObjectHeader } from "../format/header.ts";
import { LineageHasher } from "../format/lineage.ts";
import { type ObjectName, PLAINTEXT_SEAL } from "../format/names.ts";
import { PAGE_HASH_BYTES } from "../format/pages.ts";
import type { WalFollower } from "../sqlite/follow.ts";
import type { WalPosition } from "../sqlite/wal.ts";
import type { LedgerFile } from "../state/ledger-file.ts";
import { DigestFollower } from "./digest.ts";
import { type EncodedObject, keepEncoded, streamEncoded } from "./encoded-object.ts";
import { readPages } from "./page-batch.ts";
import type { TakenSet } from "./pending.ts";
import type { StoredState } from "./stored-state.ts";
import type { Stamped } from "./time-epochs.ts";

/** A set up to this many bytes of pages is resolved in one synchronous block, so that its object is one committed state. */
export const ORDINARY_SET_BYTES = 16 * 1024 * 1024;
const SLICE_BYTES = 1024 * 1024;

export interface ChangeSetInputs {
  readonly taken: TakenSet;
  /** The state before, and the ledger that describes it; null while the chain's first full backup runs. */
  readonly from: StoredState;
  readonly ledger: LedgerFile | null;
  readonly index: { readonly first: number; readonly last: number };
  readonly stamped: Stamped;
  /** Where the WAL was read to when the set was taken. */
  readonly position: WalPosition | null;
  readonly header: ObjectHeader;
  readonly encoding: { readonly sealKey: Uint8Array | null; readonly compressionLevel: number };
  readonly follower: WalFollower;
  /** Resolves after the next capture; throws when the attachment ends. */
  readonly nextCapture: () => Promise<void>;
  /** Something was captured since the set was taken. */
  readonly capturedSince: () => boolean;
}

export interface ChangeSet {
  readonly object: EncodedObject;
  /** A small set whose every page turned out to be as the ledger says, and the size as before. */
  readonly isEmpty: boolean;
  /** The state that the object leads to; known once its source was read to the end. */
  state(): StoredState;
  /** Of a small set: what the ledger gets. Null for a large one: it is read back from the stored object. */
  readonly entries: { readonly pageNumbers: Uint32Array; readonly hashes: Uint8Array } | null;
}

/**
 * Encodes the set taken just now as the change-set `index.first`-`index.last`. Called in the same turn of the event loop in which
 * the set was taken: a small set is resolved before the first await, at the position of that moment. A large one is
 * *fuzzy*: it is resolved slice by slice, each at the position of its own moment, and what is captured meanwhile settles it.
 */
export async function encodeChangeSet(inputs: ChangeSetInputs): Promise<ChangeSet> {
  const { taken, follower } = inputs;
  const builder = new ChangeSetBuilder(inputs);
  if (taken.pages.size * follower.pageSizeBytes > ORDINARY_SET_BYTES) return builder.streamed();
  return await builder.kept(builder.resolve(Uint32Array.from(taken.pages)));
}

class ChangeSetBuilder {
  readonly #inputs: ChangeSetInputs;
  readonly #name: ObjectName;
  #lineage: LineageHasher;
  #digest: DigestFollower | null;
  #state: StoredState | null = null;

  constructor(inputs: ChangeSetInputs) {
    const { from, ledger, header, index } = inputs;
    this.#inputs = inputs;
    const seal = header.keyFingerprint ?? PLAINTEXT_SEAL;
    this.#name = { kind: "change-set", level: 0, first: index.first, last: index.last, seal };
    this.#lineage = new LineageHasher(Buffer.from(from.lineage, "hex"), index.last);
    this.#digest =
      ledger !== null && from.digest !== null ? new DigestFollower(ledger, { ...from, digest: from.digest }) : null;
  }

  /** The images of `pages` now, without those that the ledger proves unchanged. */
  resolve(pages: Uint32Array): PageBatch {
    return this.#dropUnchanged(readPages(this.#inputs.follower, pages));
  }

  async kept(batch: PageBatch): Promise<ChangeSet> {
    const { taken, from } = this.#inputs;
    const isEmpty = batch.pageNumbers.length === 0 && taken.sizePages === from.sizePages;
    const pieces = encodeObject(this.#encodeOptions(), [batch], () => this.#trailer(this.#inputs.index.last));
    const object = await keepEncoded(this.#name, pieces);
    const entries = { pageNumbers: batch.pageNumbers, hashes: batch.hashes };
    return { object, isEmpty, entries, state: () => this.#finished() };
  }

  streamed(): ChangeSet {
    const pieces = () =>
      encodeObject(this.#encodeOptions(), this.#slices(), () => this.#trailer(this.#settledAfterStream()));
    return { object: streamEncoded(this.#name, pieces), isEmpty: false, entries: null, state: () => this.#finished() };
  }

  async *#slices(): AsyncGenerator<PageBatch> {
    const { taken, follower, nextCapture } = this.#inputs;
    for (const slice of taken.pages.slices(Math.max(1, Math.floor(SLICE_BYTES / follower.pageSizeBytes)))) {
      while (!follower.canResolve) await nextCapture();
      const batch = this.resolve(slice);
      if (batch.pageNumbers.length > 0) yield batch;
    }
  }

  /** Nothing captured since the set was taken: even a set read slice by slice is the state of that moment. */
  #settledAfterStream(): number {
    const { last } = this.#inputs.index;
    return this.#inputs.capturedSince() ? last + 1 : last;
  }

  #dropUnchanged(batch: PageBatch): PageBatch {
    const { ledger, from, taken } = this.#inputs;
    const old = ledger?.read(batch.pageNumbers) ?? null;
    const kept =
      old === null
        ? batch
        : keepWhere(batch, this.#inputs.follower.pageSizeBytes, (i, page) => {
            return page > from.sizePages || taken.forced.has(page) || !sameHash(batch.hashes, old, i);
          });
    this.#lineage.add(kept.pageNumbers, kept.hashes);
    if (this.#digest !== null && ledger !== null) {
      const replaced = kept === batch && old !== null ? old : ledger.read(kept.pageNumbers);
      this.#digest.replace(kept.pageNumbers, replaced, kept.hashes);
    }
    return kept;
  }

  #trailer(settled: number): TrailerFields {
    const { taken, from, index, stamped, position } = this.#inputs;
    const { sizePages } = taken;
    const result = Buffer.from(this.#lineage.finish(sizePages)).toString("hex");
    const digest = this.#digest?.finish(sizePages, from.pageSizeBytes) ?? null;
    const { stampMs, epochs } = stamped;
    this.#state = {
      chain: from.chain,
      index: index.last,
      lineage: result,
      pageSizeBytes: from.pageSizeBytes,
      sizePages,
      digest,
      settled,
      stampMs,
      epochs,
      position,
    };
    return {
      last: index.last,
      settled,
      sizePages,
      parent: from.lineage,
      result,
      digest,
      firstCommitMs: Math.min(taken.firstCommitMs ?? stampMs, stampMs),
      lastCommitMs: stampMs,
      commits: taken.commits,
      epochs,
      wal: position,
      reason: taken.compared ? "comparison" : "wal",
    };
  }

  #finished(): StoredState {
    if (this.#state === null) throw new Error("the change-set was not encoded to its end");
    return this.#state;
  }

  #encodeOptions() {
    return { header: this.#inputs.header, ...this.#inputs.encoding };
  }
}

function sameHash(a: Uint8Array, b: Uint8Array, i: number): boolean {
  for (let k = i * PAGE_HASH_BYTES; k < (i + 1) * PAGE_HASH_BYTES; k++) if (a[k] !== b[k]) return false;
  return true;
}

/** The part of the batch for which `keep` holds; the batch itself when that is all of it. */
function keepWhere(batch: PageBatch, pageSizeBytes: number, keep: (i: number, page: number) => boolean): PageBatch {
  const positions: number[] = [];
  for (let i = 0; i < batch.pageNumbers.length; i++) if (keep(i, batch.pageNumbers[i] ?? 0)) positions.push(i);
  if (positions.length === batch.pageNumbers.length) return batch;
  const images = new Uint8Array(positions.length * pageSizeBytes);
  const hashes = new Uint8Array(positions.length * PAGE_HASH_BYTES);
  for (const [to, from] of positions.entries()) {
    images.set(batch.images.subarray(from * pageSizeBytes, (from + 1) * pageSizeBytes), to * pageSizeBytes);
    hashes.set(batch.hashes.subarray(from * PAGE_HASH_BYTES, (from + 1) * PAGE_HASH_BYTES), to * PAGE_HASH_BYTES);
  }
  return { pageNumbers: Uint32Array.from(positions, (i) => batch.pageNumbers[i] ?? 0), images, hashes };
}
