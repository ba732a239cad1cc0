import type { PaperPolicy, PaperReplica, PaperState } from "./paper-replica.ts";

/**
 * Which of the states in `restorable` the policy promises at this moment, in truth, whatever the clocks say. Written from the table
 * in docs/compaction-and-retention.md, without a look at how src/replica/ does it: a state that is the newest of its window at each
 * of the first k levels stays for `keep[k]`, and for ever when it is the newest of its window at all of them.
 * `ever` holds all states that were ever restorable.
 */
export function promised(
  replica: PaperReplica,
  { levelWindowsMs, retention }: PaperPolicy,
  { restorable, ever }: { readonly restorable: ReadonlySet<number>; readonly ever: ReadonlySet<number> },
): ReadonlySet<number> {
  const { nowMs } = replica;
  const states = [...ever].sort((a, b) => a - b).flatMap((index) => replica.states.get(index) ?? []);
  const required = new Set<number>();
  let left: readonly PaperState[] = states;
  for (let level = 0; level <= levelWindowsMs.length; level++) {
    const keepMs = retention.mergedKeepMs[level] ?? Number.POSITIVE_INFINITY;
    for (const { index, committedMs } of left) if (nowMs - committedMs < keepMs) required.add(index);
    const windowMs = levelWindowsMs[level];
    if (windowMs === undefined) break;
    // Windows that do not fit into those of the next level are merged across its borders: the page promises nothing exact.
    if (windowMs % (levelWindowsMs[level - 1] ?? windowMs) !== 0) break;
    left = newestOfWindows(left, windowMs);
  }
  const newest = Math.max(0, ...restorable);
  const start = historyStart(replica, retention, restorable);
  return new Set(
    [...restorable].filter(
      (index) => index === newest || replica.marks.includes(index) || (index >= start && required.has(index)),
    ),
  );
}

function newestOfWindows(states: readonly PaperState[], windowMs: number): readonly PaperState[] {
  const windowOf = ({ stampMs }: PaperState) => Math.floor(stampMs / windowMs);
  return states.filter((state, i) => {
    const next = states[i + 1];
    return next === undefined || windowOf(next) !== windowOf(state) || next.chain !== state.chain;
  });
}

/** The oldest state that retention, or failing that the newest full backup, promises. */
function historyStart(
  replica: PaperReplica,
  retention: PaperPolicy["retention"],
  restorable: ReadonlySet<number>,
): number {
  const points = [...restorable].sort((a, b) => a - b);
  if (retention.retentionMs > 0) {
    const isOld = (index: number) =>
      replica.nowMs - (replica.states.get(index)?.committedMs ?? 0) >= retention.retentionMs;
    return points.findLast(isOld) ?? 0;
  }
  if (retention.maxBackups === 0 && retention.maxTotalSizeBytes === 0) return 0;
  const newest = points.at(-1);
  const graph = replica.graph();
  const full = newest === undefined ? undefined : graph.pathTo(newest)?.full;
  // A second writer's lineage goes on further than ours, so that nobody can tell which of them is ours: only the newest counts.
  if (full === undefined) return newest ?? 0;
  const facts = [...replica.objects.values()].find(
    ({ key }) => key.startsWith("app/full/") && Number(key.slice(9, 25)) === full.first,
  )?.facts;
  return facts === undefined || facts === "unusable" ? 0 : facts.settled;
}
