import { checkPageHashes } from "../format/decode.ts";
import type { DataChunkRef, IndexChunk } from "../format/index-chunk.ts";
import { PAGE_HASH_BYTES } from "../format/pages.ts";
import { BakeliteError } from "../util/errors.ts";
import { mapAhead } from "./ahead.ts";
import type { ReplicaObject } from "./catalog.ts";
import { PageTally } from "./page-tally.ts";
import { assertReadable, planForIndex, type RestorePlan } from "./plan.ts";
import type { Replica } from "./replica.ts";
import type { OpenedObject } from "./trailers.ts";

/** Where the pages of a state go. */
export interface PageSink {
  /** Takes images of consecutive pages from `firstPage` on; each page comes once. May hold the writer back, and keep the bytes. */
  write(firstPage: number, images: Uint8Array): Promise<void>;
}

export interface LayProgress {
  readonly pagesDone: number;
  readonly pagesTotal: number;
  readonly fetchedBytes: number;
}

export interface LaidState {
  /** The plan that was carried out last: another than the one given where something had to be walked around. */
  readonly plan: RestorePlan;
  /** The state digest, from the hashes of the pages that were laid down. */
  readonly digest: string;
  readonly fetchedBytes: number;
}

export interface LayOptions {
  readonly sink: PageSink;
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: (progress: LayProgress) => void;
}

/** Bytes of stored groups that are fetched ahead or being decoded. */
const FETCH_AHEAD_BYTES = 32 * 1024 * 1024;
/** Objects up to this size are fetched whole, with one request. */
const WHOLE_OBJECT_BYTES = 1024 * 1024;
/** What objects opened ahead may hold. */
const OPEN_AHEAD_BYTES = 16 * 1024 * 1024;
/** At the least, an opened object counts for this much, so that no more than 64 are opened ahead. */
const OPEN_OBJECT_BYTES = 256 * 1024;
/** Of a group of which less than this part is wanted, single data chunks are fetched. */
const WHOLE_GROUP_SHARE = 0.5;
/** Wanted chunks that are no further apart than this are fetched with one request, of at most MAX_RANGE_BYTES. */
const MAX_GAP_BYTES = 256 * 1024;
const MAX_RANGE_BYTES = 8 * 1024 * 1024;
/** The collector sees small objects and not the megabytes behind them: without a hint they pile up to several times what is in use. */
const COLLECT_EVERY_BYTES = 32 * 1024 * 1024;
/** How often objects that turn out to be damaged or gone are walked around before the restore gives up. */
const MAX_PLANS = 100;

/** Objects of the planned state were deleted since it was planned, and no others lead there. */
export class StateDeleted extends BakeliteError {}

/**
 * Hands every page of the planned state to `sink`, each once and in no particular order, and checks each image against its
 * page hash and all of them against the digest that was recorded. Newest objects first, so that nothing is fetched that a newer
 * object overwrites; memory is bounded whatever the size. An object that is damaged or gone on the way is walked around:
 * what was laid down so far is of the same state and stays. Throws `replica-corrupt` when there is no other way: as `StateDeleted` if there was one.
 */
export async function layPages(replica: Replica, plan: RestorePlan, options: LayOptions): Promise<LaidState> {
  const work = new Laying(replica, plan, options);
  let current = plan;
  for (let attempt = 1; ; attempt++) {
    const failure = await work.follow(current);
    if (failure === null) return work.finish(current);
    if (attempt === MAX_PLANS) throw failure.error;
    if (failure.gone) await replica.refresh();
    current = await replan(replica, current, failure);
  }
}

/**
 * Another way to the same state. `failure` is why there must be one, and becomes the cause of what is thrown when there is none; where
 * a reencrypt has taken everything to another seal meanwhile, `key-wrong` is thrown, which names it.
 */
async function replan(replica: Replica, failed: RestorePlan, { error: cause, gone }: Failure): Promise<RestorePlan> {
  const plan = await planForIndex(replica, failed.index);
  if (plan !== null && plan.lineage === failed.lineage) return plan;
  if (gone) assertReadable(replica, "restore");
  if (gone)
    throw new StateDeleted(
      "replica-corrupt",
      `cannot restore state ${failed.index}: an object that it needs was deleted meanwhile, and nothing that is left leads there`,
      {
        ...(cause.subject === undefined ? {} : { subject: cause.subject }),
        hint: "restore another --timestamp: `bakelite list` shows what the policy keeps, and `bakelite keep` makes it keep a moment",
        cause,
      },
    );
  throw new BakeliteError(
    "replica-corrupt",
    `cannot restore state ${failed.index}: an object that it needs is damaged or missing`,
    {
      ...(cause.subject === undefined ? {} : { subject: cause.subject }),
      hint: "restore an earlier --timestamp; `bakelite verify` shows what is damaged, `bakelite repair` heals from another destination",
      cause,
    },
  );
}

/** An object that the plan counted on cannot be used as it was planned. */
interface Failure {
  readonly error: BakeliteError;
  /** It is no longer there: others may have taken its place. */
  readonly gone: boolean;
}

/** One index chunk of an object and the data chunks before it, with as much of them in memory as is wanted. */
interface Group {
  readonly opened: OpenedObject;
  readonly number: number;
  /** No page above this is taken: some newer state on the way is that small. */
  readonly limitPages: number;
  /** Half-open, in the object. */
  readonly start: number;
  readonly end: number;
  /** Where it has been read already. */
  readonly index?: IndexChunk;
}

/** Carries a Failure out of the loops that fetch and decode; what else is thrown there is nobody's object's fault. */
class ObjectFailure extends Error {
  readonly failure: Failure;

  constructor(failure: Failure) {
    super(failure.error.message);
    this.failure = failure;
  }
}

class Laying {
  readonly #replica: Replica;
  readonly #options: LayOptions;
  readonly #pageSizeBytes: number;
  readonly #tally: PageTally;
  readonly #fetchedBefore: number;
  #uncollectedBytes = 0;

  constructor(replica: Replica, plan: RestorePlan, options: LayOptions) {
    this.#replica = replica;
    this.#options = options;
    this.#fetchedBefore = replica.trailers.fetchedBytes;
    this.#pageSizeBytes = plan.pageSizeBytes;
    this.#tally = new PageTally(plan.sizePages, plan.pageSizeBytes);
  }

  /** Lays down what is lacking along the plan's path. Says what failed, if an object did; the replica knows of it. */
  async follow(plan: RestorePlan): Promise<Failure | null> {
    const objects = [...plan.changeSets.toReversed(), plan.full];
    try {
      const groups = mapAhead(this.#wantedGroups(plan, objects), (group) => this.#fetch(group), {
        budget: FETCH_AHEAD_BYTES,
        weight: (group) => (group.opened.source.whole === null ? group.end - group.start : 0),
      });
      for await (const group of groups) {
        await this.#layGroup(group);
        this.#options.signal?.throwIfAborted();
      }
      return null;
    } catch (error) {
      if (error instanceof ObjectFailure) return error.failure;
      throw error;
    }
  }

  finish(plan: RestorePlan): LaidState {
    const { digest } = this.#tally;
    const lacking = this.#tally.firstLacking();
    if (lacking !== null)
      throw this.#damaged(plan, `page ${lacking} of ${plan.sizePages} is in none of the objects that lead there`);
    if (plan.digest !== null && plan.digest !== digest)
      throw this.#damaged(plan, `its pages have digest ${digest}, and ${plan.digest} was recorded`);
    return { plan, digest, fetchedBytes: this.#fetchedBytes };
  }

  get #fetchedBytes(): number {
    return this.#replica.trailers.fetchedBytes - this.#fetchedBefore;
  }

  #damaged(plan: RestorePlan, problem: string): BakeliteError {
    return new BakeliteError("replica-corrupt", `cannot restore state ${plan.index}: ${problem}`, {
      subject: this.#replica.describe(plan.changeSets.at(-1) ?? plan.full),
      hint: "restore an earlier --timestamp, and report this: the objects are sound but do not make up the state that was recorded",
    });
  }

  /** The groups that may hold a page that is lacking, newest object first. Objects are opened a few ahead. */
  async *#wantedGroups(plan: RestorePlan, objects: readonly ReplicaObject[]): AsyncGenerator<Group> {
    let limitPages = plan.sizePages;
    let newer: OpenedObject | null = null;
    const opening = mapAhead(objects, (object) => this.#open(object), {
      budget: OPEN_AHEAD_BYTES,
      weight: (object) => Math.max(OPEN_OBJECT_BYTES, object.sizeBytes <= WHOLE_OBJECT_BYTES ? object.sizeBytes : 0),
    });
    for await (const opened of opening) {
      const { trailer } = opened.reader;
      if (!plan.proven) this.#assertLeadsTo(opened, newer, plan);
      newer = opened;
      limitPages = Math.min(limitPages, trailer.sizePages);
      let start = 0;
      for (const [number, ref] of trailer.indexChunks.entries()) {
        const end = ref.offset + ref.storedBytes;
        if (this.#tally.lackingWithin(ref.firstPage, Math.min(ref.lastPage, limitPages)) > 0)
          yield { opened, number, limitPages, start, end };
        start = end;
      }
      if (this.#tally.isComplete) return;
    }
  }

  async #open(object: ReplicaObject): Promise<OpenedObject> {
    const { trailers } = this.#replica;
    const planned = trailers.knowledge(object);
    const opened = await trailers.open(object, WHOLE_OBJECT_BYTES);
    // A manifest may have told something else than the object itself does.
    if (opened !== null && (planned === "unknown" || trailers.knowledge(object) === planned)) return opened;
    const subject = this.#replica.describe(object);
    const changed = new BakeliteError("replica-corrupt", "stored object is not what the manifest says", { subject });
    throw new ObjectFailure(trailers.failureOf(object) ?? { error: changed, gone: false });
  }

  /**
   * The proof of a plan that was made by names: from the newest object on, each must lead to the state from which the one after it
   * leads away. Where all pages are laid the rest need not be proven, for they are what the state consists of.
   */
  #assertLeadsTo({ object, reader }: OpenedObject, newer: OpenedObject | null, plan: RestorePlan): void {
    const { header, trailer } = reader;
    const isLink =
      newer === null
        ? trailer.result === plan.lineage
        : trailer.result === newer.reader.trailer.parent && header.chain === newer.reader.header.chain;
    if (isLink && trailer.settled <= plan.index) return;
    const subject = this.#replica.describe(object);
    const why = isLink ? "stored object holds later changes too" : "stored object does not lead to the state after it";
    throw new ObjectFailure({ error: new BakeliteError("replica-corrupt", why, { subject }), gone: false });
  }

  /** Brings what is wanted of a group into memory. */
  async #fetch(group: Group): Promise<Group> {
    const { opened, number, start, end, limitPages } = group;
    const { source, reader } = opened;
    if (source.whole !== null) return group;
    const ref = reader.trailer.indexChunks[number];
    if (ref === undefined) return group;
    return this.#blaming(opened, async () => {
      const lacking = this.#tally.lackingWithin(ref.firstPage, Math.min(ref.lastPage, limitPages));
      if (lacking >= ref.pageCount * WHOLE_GROUP_SHARE) {
        await source.fetchAhead(start, end);
        return group;
      }
      const index = await reader.indexChunk(number);
      const wanted = index.dataChunks.filter((chunk) => this.#wantedPages(index, chunk, limitPages));
      await Promise.all(coalesce(wanted).map((range) => source.fetchAhead(range.start, range.end)));
      return { ...group, index };
    });
  }

  async #layGroup(group: Group): Promise<void> {
    const { opened, number, start, end, limitPages } = group;
    const index = group.index ?? (await this.#blaming(opened, () => opened.reader.indexChunk(number)));
    for (const chunk of index.dataChunks) {
      if (!this.#wantedPages(index, chunk, limitPages)) continue;
      const images = await this.#blaming(opened, () => this.#readChecked(opened, index, chunk));
      await this.#layChunk(index, chunk, images, limitPages);
    }
    if (opened.source.whole === null) opened.source.release(start, end);
    this.#uncollectedBytes += index.pageNumbers.length * this.#pageSizeBytes;
    if (this.#uncollectedBytes >= COLLECT_EVERY_BYTES) {
      Bun.gc(true);
      this.#uncollectedBytes = 0;
    }
    const { count, expectedCount } = this.#tally;
    this.#options.onProgress?.({
      pagesDone: count,
      pagesTotal: expectedCount,
      fetchedBytes: this.#fetchedBytes,
    });
  }

  /** Whether the chunk has a page that is lacking. */
  #wantedPages(index: IndexChunk, chunk: DataChunkRef, limitPages: number): boolean {
    for (let entry = chunk.firstEntry; entry < chunk.firstEntry + chunk.pageCount; entry++)
      if (this.#isWanted(index.pageNumbers[entry], limitPages)) return true;
    return false;
  }

  #isWanted(pageNumber: number | undefined, limitPages: number): pageNumber is number {
    return pageNumber !== undefined && pageNumber <= limitPages && this.#tally.lacks(pageNumber);
  }

  async #readChecked(opened: OpenedObject, index: IndexChunk, chunk: DataChunkRef): Promise<Uint8Array> {
    const images = await opened.reader.dataChunk(chunk);
    const end = chunk.firstEntry + chunk.pageCount;
    const pageNumbers = index.pageNumbers.subarray(chunk.firstEntry, end);
    const hashes = index.hashes.subarray(chunk.firstEntry * PAGE_HASH_BYTES, end * PAGE_HASH_BYTES);
    const mismatch = checkPageHashes(pageNumbers, images, hashes, this.#pageSizeBytes);
    if (mismatch < 0) return images;
    throw new BakeliteError(
      "replica-corrupt",
      `stored object is damaged: page ${pageNumbers[mismatch]} does not match its hash`,
      {
        subject: this.#replica.describe(opened.object),
      },
    );
  }

  /** Takes the chunk's wanted pages, and hands on each run of neighbours as one. */
  async #layChunk(index: IndexChunk, chunk: DataChunkRef, images: Uint8Array, limitPages: number): Promise<void> {
    const pageNumberAt = (i: number) => (i < chunk.pageCount ? index.pageNumbers[chunk.firstEntry + i] : undefined);
    for (let i = 0; i < chunk.pageCount; ) {
      const firstPage = pageNumberAt(i);
      if (!this.#isWanted(firstPage, limitPages)) {
        i++;
        continue;
      }
      const runStart = i;
      for (
        let page: number | undefined = firstPage;
        page === firstPage + (i - runStart) && this.#isWanted(page, limitPages);
        page = pageNumberAt(i)
      ) {
        this.#tally.take(page, index.hashes, (chunk.firstEntry + i) * PAGE_HASH_BYTES);
        i++;
      }
      await this.#options.sink.write(
        firstPage,
        images.subarray(runStart * this.#pageSizeBytes, i * this.#pageSizeBytes),
      );
    }
  }

  /** `work`, whose failure is the object's: the replica is told, and the state is reached on another way. */
  async #blaming<T>(opened: OpenedObject, work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (error) {
      const { gone } = opened.source;
      // Throws what is not the object's fault, and what only a bug in bakelite can be.
      this.#replica.trailers.setUnusable(opened.object, error, gone);
      throw new ObjectFailure({ error: error as BakeliteError, gone });
    }
  }
}

/** Ranges of the object that hold all of `chunks` (ascending), neighbours joined. */
function coalesce(chunks: readonly DataChunkRef[]): readonly { readonly start: number; readonly end: number }[] {
  const ranges: { start: number; end: number }[] = [];
  for (const { offset, storedBytes } of chunks) {
    const last = ranges.at(-1);
    const end = offset + storedBytes;
    if (last !== undefined && offset - last.end <= MAX_GAP_BYTES && end - last.start <= MAX_RANGE_BYTES) last.end = end;
    else ranges.push({ start: offset, end });
  }
  return ranges;
}
