import type { ObjectHeader } from "../format/header.ts";
import type { StateTrailer } from "../format/trailer.ts";

/** What planning needs to know of a stored object beyond its name. Some 300 bytes, so that 100,000 of them fit. */
export interface ObjectFacts {
  /** null where a manifest told the rest and not this one. */
  readonly chain: string | null;
  readonly pageSizeBytes: number | null;
  /** Lineage before the object's first state; null in a full backup. */
  readonly parent: string | null;
  /** Lineage of its last state. */
  readonly result: string;
  /** First state from which the object no longer holds anything too new (docs/storage-format.md section 8). */
  readonly settled: number;
  readonly sizePages: number;
  readonly pageCount: number;
  readonly commits: number;
  readonly firstCommitMs: number;
  /** The stamp of its last state. */
  readonly lastCommitMs: number;
  /** Made of other change-sets. False: an original, besides which no other can lead away from the state before it. */
  readonly compacted: boolean;
}

/** Facts, or why there are none: not looked for yet, or looked for and of no use (damaged, gone, sealed with a foreign key). */
export type Knowledge = ObjectFacts | "unknown" | "unusable";

export const COMPACTION_REASON = "compaction";

export function factsOf(header: ObjectHeader, trailer: StateTrailer): ObjectFacts {
  return {
    chain: header.chain,
    pageSizeBytes: header.pageSizeBytes,
    parent: trailer.parent,
    result: trailer.result,
    settled: trailer.settled,
    sizePages: trailer.sizePages,
    pageCount: trailer.pageCount,
    commits: trailer.commits,
    firstCommitMs: trailer.firstCommitMs,
    lastCommitMs: trailer.lastCommitMs,
    compacted: trailer.reason === COMPACTION_REASON,
  };
}
