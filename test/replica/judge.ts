import type { StoredChange } from "./builder.ts";

/**
 * The restore points among `objects` by docs/storage-format.md section 8, found by trying every path: slow, and written
 * without a look at how src/replica/ does it. `objects` holds sound objects only.
 */
export function findRestorePoints(objects: readonly StoredChange[]): ReadonlySet<number> {
  const points = new Set<number>();
  for (const full of objects) {
    if (full.name.kind !== "full") continue;
    // Each way that leads on, as where it ends and the greatest `settled` on it.
    const ways = [{ index: full.name.index, lineage: full.result, chain: full.chain, settled: full.settled }];
    const seen = new Set<string>();
    for (const way of ways) {
      if (way.settled <= way.index) points.add(way.index);
      for (const next of objects) {
        if (
          next.name.kind !== "change-set" ||
          next.name.first !== way.index + 1 ||
          next.parent !== way.lineage ||
          next.chain !== way.chain
        )
          continue;
        const longer = {
          index: next.name.last,
          lineage: next.result,
          chain: way.chain,
          settled: Math.max(way.settled, next.settled),
        };
        const id = JSON.stringify(longer);
        if (!seen.has(id)) ways.push(longer);
        seen.add(id);
      }
    }
  }
  return points;
}
