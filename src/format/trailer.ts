import { z } from "zod";
import { assert } from "../util/errors.ts";
import { damaged } from "./damage.ts";
import type { ObjectHeader } from "./header.ts";
import { assertShape, checkShape, count, encodeJson, hex, parseJson, u32 } from "./json.ts";
import { lockPageNumber } from "./pages.ts";

/** A run of states whose stamps do not fall (docs/storage-format.md section 9). */
export interface TimeEpoch {
  readonly number: number;
  readonly firstIndex: number;
  readonly firstStampMs: number;
}

/** Where in the WAL a state ends; informative. */
export interface WalEnd {
  readonly salt: readonly [number, number];
  readonly frame: number;
  readonly checksum: readonly [number, number];
}

/** One index chunk, as the trailer describes it. */
export interface IndexChunkRef {
  /** Where its stored bytes begin in the object. */
  readonly offset: number;
  readonly storedBytes: number;
  readonly firstPage: number;
  readonly lastPage: number;
  readonly pageCount: number;
  /** SHA-256 of its stored bytes, cut to 16 bytes, as 32 hex digits. */
  readonly checksum: string;
}

/** All that depends on an object's content (docs/storage-format.md section 3.2, trailer chunk). Times are Unix milliseconds. */
export interface StateTrailer {
  /** Change-set: its last index; full: n0. */
  readonly last: number;
  /** The first index from which the object's pages of other states no longer matter; never below `last` (section 8). */
  readonly settled: number;
  readonly sizePages: number;
  /** Pages in the object. */
  readonly pageCount: number;
  /** Lineage of the state before `first`, 64 hex digits; null in a full backup only. */
  readonly parent: string | null;
  /** Lineage of state `last`, 64 hex digits. */
  readonly result: string;
  /** State digest of state `last`, 32 hex digits; null where the writer did not know it. */
  readonly digest: string | null;
  readonly firstCommitMs: number;
  /** The stamp of state `last`. */
  readonly lastCommitMs: number;
  /** Transactions seen; 0 where a comparison of the whole file found the pages. */
  readonly commits: number;
  /** The newest 64 time epochs, ascending. */
  readonly epochs: readonly TimeEpoch[];
  readonly wal: WalEnd | null;
  /** Why a full backup was taken, or where a change-set's pages came from; informative. */
  readonly reason: string;
  readonly indexChunks: readonly IndexChunkRef[];
}

export const MAX_EPOCHS = 64;

const u32Pair = z.tuple([u32, u32]);

const trailerShape = z.object({
  last: count.min(1),
  settled: count.min(1),
  size_pages: u32,
  page_count: u32,
  parent: hex(64).nullable(),
  result: hex(64),
  digest: hex(32).nullable(),
  first_commit_ms: count,
  last_commit_ms: count,
  commits: count,
  epochs: z.array(z.tuple([count, count, count])).max(MAX_EPOCHS),
  wal: z.object({ salt: u32Pair, frame: count, checksum: u32Pair }).nullable(),
  reason: z.string(),
  index_chunks: z.array(z.tuple([count, u32, u32, u32, u32, hex(32)])),
});

type TrailerFields = z.output<typeof trailerShape>;

/** The fields of a trailer as a cache repeats them: any may be absent, and `index_chunks` is not among them. */
export const partialTrailerShape = trailerShape.omit({ index_chunks: true }).partial();

/**
 * A trailer as JSON, UTF-8. Throws `internal` when it is not one that `parseTrailer` would accept with this header. That
 * offsets and lengths of index chunks fit the object is left to the caller.
 */
export function encodeTrailer(trailer: StateTrailer, header: ObjectHeader): Uint8Array {
  const fields = { ...trailerFields(trailer), index_chunks: trailer.indexChunks.map(fromIndexChunkRef) };
  assertShape(trailerShape, fields, "trailer");
  const problem = findContradiction(trailer, header);
  assert(problem === null, `the trailer to encode is consistent (${problem})`);
  return encodeJson(fields);
}

/**
 * Reads a trailer's JSON. Throws `replica-corrupt` when it is malformed, contradicts itself or contradicts `header`, so
 * that what returns can be relied upon: page ranges ascend and lie within the size, counts add up, a full backup is
 * complete. Offsets and lengths of index chunks are numbers only; the reader compares them with the object.
 * `subject` is the object's key. docs/storage-format.md section 3.2.
 */
export function parseTrailer(bytes: Uint8Array, header: ObjectHeader, subject: string): StateTrailer {
  const place = { what: "trailer", subject };
  const fields = checkShape(trailerShape, parseJson(bytes, place), place);
  const trailer: StateTrailer = {
    last: fields.last,
    settled: fields.settled,
    sizePages: fields.size_pages,
    pageCount: fields.page_count,
    parent: fields.parent,
    result: fields.result,
    digest: fields.digest,
    firstCommitMs: fields.first_commit_ms,
    lastCommitMs: fields.last_commit_ms,
    commits: fields.commits,
    epochs: fields.epochs.map(toTimeEpoch),
    wal: fields.wal,
    reason: fields.reason,
    indexChunks: fields.index_chunks.map(toIndexChunkRef),
  };
  const problem = findContradiction(trailer, header);
  if (problem !== null) throw damaged(subject, `the trailer is wrong: ${problem}`);
  return trailer;
}

/** A trailer's fields under their stored names, but for `index_chunks`: also what a manifest's entry holds. */
export function trailerFields(trailer: Omit<StateTrailer, "indexChunks">): Omit<TrailerFields, "index_chunks"> {
  return {
    last: trailer.last,
    settled: trailer.settled,
    size_pages: trailer.sizePages,
    page_count: trailer.pageCount,
    parent: trailer.parent,
    result: trailer.result,
    digest: trailer.digest,
    first_commit_ms: trailer.firstCommitMs,
    last_commit_ms: trailer.lastCommitMs,
    commits: trailer.commits,
    epochs: trailer.epochs.map((epoch) => [epoch.number, epoch.firstIndex, epoch.firstStampMs]),
    wal:
      trailer.wal === null
        ? null
        : { salt: [...trailer.wal.salt], frame: trailer.wal.frame, checksum: [...trailer.wal.checksum] },
    reason: trailer.reason,
  };
}

export function toTimeEpoch([number, firstIndex, firstStampMs]: readonly [number, number, number]): TimeEpoch {
  return { number, firstIndex, firstStampMs };
}

/** How many pages a database of this size has, less the lock page. */
function storablePages(sizePages: number, pageSizeBytes: number): number {
  return sizePages >= lockPageNumber(pageSizeBytes) ? sizePages - 1 : sizePages;
}

function findContradiction(trailer: StateTrailer, header: ObjectHeader): string | null {
  if (header.kind === "full") {
    if (trailer.last !== header.first) return "a full backup's last index is not its first";
    if (trailer.parent !== null) return "a full backup has a parent";
    if (trailer.digest !== null && trailer.settled !== trailer.last)
      return "a full backup has a digest and settles later";
    if (trailer.pageCount !== storablePages(trailer.sizePages, header.pageSizeBytes))
      return "a full backup lacks pages";
  } else {
    if (trailer.last < header.first) return "the last index is below the first";
    if (trailer.parent === null) return "a change-set has no parent";
  }
  if (trailer.settled < trailer.last) return "settled is below the last index";
  return findEpochContradiction(trailer.epochs) ?? findPageContradiction(trailer);
}

function findEpochContradiction(epochs: readonly TimeEpoch[]): string | null {
  let newest: TimeEpoch | null = null;
  for (const epoch of epochs) {
    if (newest !== null && (epoch.number <= newest.number || epoch.firstIndex <= newest.firstIndex))
      return "time epochs do not ascend";
    newest = epoch;
  }
  return null;
}

function findPageContradiction(trailer: StateTrailer): string | null {
  let pageCount = 0;
  let newestPage = 0;
  for (const ref of trailer.indexChunks) {
    if (ref.firstPage <= newestPage || ref.lastPage < ref.firstPage) return "the index chunks' pages do not ascend";
    if (ref.pageCount < 1 || ref.pageCount > ref.lastPage - ref.firstPage + 1)
      return "an index chunk has an impossible number of pages";
    pageCount += ref.pageCount;
    newestPage = ref.lastPage;
  }
  if (newestPage > trailer.sizePages) return "a page lies above the size";
  return pageCount === trailer.pageCount ? null : "the index chunks' pages do not add up";
}

function fromIndexChunkRef(ref: IndexChunkRef): [number, number, number, number, number, string] {
  return [ref.offset, ref.storedBytes, ref.firstPage, ref.lastPage, ref.pageCount, ref.checksum];
}

function toIndexChunkRef(fields: readonly [number, number, number, number, number, string]): IndexChunkRef {
  const [offset, storedBytes, firstPage, lastPage, pageCount, checksum] = fields;
  return { offset, storedBytes, firstPage, lastPage, pageCount, checksum };
}
