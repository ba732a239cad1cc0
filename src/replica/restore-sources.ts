import { keyOf, type ReplicaObject } from "./catalog.ts";
import type { RestorePlan } from "./plan.ts";
import type { Replica } from "./replica.ts";
import type { ProblemKind } from "./trailers.ts";

/** `used`: objects were read there that the restored state is made of. */
export type SourceState = "used" | "unused" | "unreachable";

/** An object that was to be used and was not. */
export interface BrokenObject {
  readonly location: string;
  /** Below the destination's prefix. */
  readonly key: string;
  /** `fork`: sound, and of another history than the one that was restored. */
  readonly kind: ProblemKind | "fork";
  /** A clause without a full stop. */
  readonly message: string;
}

/** Where a restore has read, and what it has found there. */
export interface ReadFrom {
  /** In the order of preference. */
  readonly destinations: readonly {
    readonly location: string;
    readonly state: SourceState;
    readonly objects: number;
  }[];
  /** As far as it was looked at: a restore reads no more than it needs. */
  readonly broken: readonly BrokenObject[];
}

/** What became of each destination in a restore that carried out `plan`. */
export function readFrom(replica: Replica, { full, changeSets }: RestorePlan): ReadFrom {
  const { trailers, options, graph } = replica;
  const destinations = options.backends.map(({ location }, position) => {
    const objects = [full, ...changeSets].filter(({ destination }) => destination === position).length;
    const state = objects > 0 ? "used" : trailers.failedDestinations.has(position) ? "unreachable" : "unused";
    return { location, state, objects } as const;
  });
  const broken = ({
    object,
    kind,
    message,
  }: {
    object: ReplicaObject;
    kind: BrokenObject["kind"];
    message: string;
  }) => ({
    location: replica.locationOf(object.destination),
    key: keyOf(replica.database, object),
    kind,
    message,
  });
  return {
    destinations,
    broken: [
      ...trailers.problems.map(({ object, kind, error }) => broken({ object, kind, message: error.message })),
      ...graph.forks.map((object) =>
        broken({ object, kind: "fork", message: "it is of another history than the one that was restored" }),
      ),
    ],
  };
}
