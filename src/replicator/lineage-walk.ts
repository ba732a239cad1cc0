import type { ReplicaObject } from "../replica/catalog.ts";
import type { Replica } from "../replica/replica.ts";
import type { OpenedObject } from "../replica/trailers.ts";
import type { StoredState } from "./stored-state.ts";

export interface WalkStart {
  readonly index: number;
  readonly lineage: string;
  readonly chain: string;
}

/**
 * The change-sets that lead on from `start`, each beginning where the one before ends and carrying its lineage, as far as
 * they go; of several that fit, the one that reaches farthest. Objects that cannot be read end the walk.
 */
export async function* walkLineage(replica: Replica, start: WalkStart): AsyncGenerator<OpenedObject> {
  const byFirst = Map.groupBy(
    replica.catalog.changeSets.filter((object) => object.first > start.index),
    (object) => object.first,
  );
  let at = start;
  for (;;) {
    const next = await fittingObject(replica, at, byFirst.get(at.index + 1) ?? []);
    if (next === null) return;
    yield next;
    at = stateAfter(next);
  }
}

/** The state that a stored change-set, or a full backup whose `settled` is its own index, leads to. */
export function stateAfter({ reader }: OpenedObject): StoredState {
  const { header, trailer } = reader;
  return {
    chain: header.chain,
    index: trailer.last,
    lineage: trailer.result,
    pageSizeBytes: header.pageSizeBytes,
    sizePages: trailer.sizePages,
    digest: trailer.digest,
    settled: trailer.settled,
    stampMs: trailer.lastCommitMs,
    epochs: trailer.epochs,
    position: trailer.wal,
  };
}

async function fittingObject(
  replica: Replica,
  at: WalkStart,
  candidates: readonly ReplicaObject[],
): Promise<OpenedObject | null> {
  for (const object of candidates.toSorted((a, b) => b.last - a.last)) {
    const opened = await replica.trailers.open(object);
    if (opened === null) continue;
    const { header, trailer } = opened.reader;
    if (header.chain === at.chain && trailer.parent === at.lineage) return opened;
  }
  return null;
}
