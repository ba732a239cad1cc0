import type { ReplicaObject } from "./catalog.ts";
import type { Knowledge, ObjectFacts } from "./facts.ts";

/**
 * Which of `forks`, of objects off the replica's history, come of nobody else: a daemon that is killed may leave a put on its way, which
 * arrives when the next one no longer looks for it. That one has stepped over it from the same state, as only those do that know of it; and
 * nothing goes on from it, as another writer would.
 */
export function latePuts(
  forks: ReadonlySet<ReplicaObject>,
  changeSets: readonly ReplicaObject[],
  knowledge: (object: ReplicaObject) => Knowledge | null,
): ReadonlySet<ReplicaObject> {
  const late = new Set<ReplicaObject>();
  if (forks.size === 0) return late;
  const factsOf = (object: ReplicaObject): ObjectFacts | null => {
    const known = knowledge(object);
    return typeof known === "object" ? known : null;
  };
  const wide = Map.groupBy(
    changeSets.filter((object) => object.first < object.last && !forks.has(object)),
    ({ first }) => first,
  );
  const parents = new Set([...forks].map((fork) => factsOf(fork)?.parent ?? null));
  for (const object of forks) {
    const facts = factsOf(object);
    if (facts === null || object.kind !== "change-set" || facts.compacted || parents.has(facts.result)) continue;
    const isSteppedOver = (wide.get(object.first) ?? []).some((other) => {
      const theirs = factsOf(other);
      return (
        other.last > object.last &&
        theirs !== null &&
        !theirs.compacted &&
        theirs.parent === facts.parent &&
        theirs.chain === facts.chain
      );
    });
    if (isSteppedOver) late.add(object);
  }
  return late;
}
