import type { ReplicaObject } from "../replica/catalog.ts";
import { TrailerCache } from "../replica/trailers.ts";
import type { Backend } from "../storage/backend.ts";
import { BakeliteError, describeError } from "../util/errors.ts";
import { withinDeadline } from "./doctor-deadline.ts";
import { newestOf } from "./doctor-destination.ts";
import type { KeyLook } from "./doctor-key.ts";
import { type Check, fail, pass, warn } from "./doctor-report.ts";
import type { Scene } from "./doctor-scene.ts";

/** A destination that was listed in full. */
export interface ListedDestination {
  readonly backend: Backend;
  readonly async: boolean;
  readonly objects: readonly ReplicaObject[];
}

export interface AgreementOptions {
  readonly database: string;
  readonly listed: readonly ListedDestination[];
  readonly key: KeyLook;
  readonly acceptPlaintext: boolean;
  readonly isFollowed: boolean;
}

/** Whether the destinations of a database hold the same history, and are equally far. Nothing for a single one. */
export async function judgeAgreement(options: AgreementOptions, scene: Scene): Promise<readonly Check[]> {
  const { listed, isFollowed } = options;
  if (listed.length < 2) return [];
  const [first, ...others] = listed.toSorted((a, b) => indexOf(b) - indexOf(a));
  if (first === undefined) return [];
  const checks: Check[] = [];
  for (const other of others) {
    const contradiction = await compareLineage(options, first, other, scene);
    if (contradiction !== null) checks.push(contradiction);
    else if (indexOf(other) < indexOf(first) && !other.async) checks.push(behind(first, other, isFollowed));
  }
  if (checks.length > 0) return checks;
  const index = indexOf(first);
  if (index === 0) return [pass("destinations agree", "nothing is stored at any of them")];
  return [pass("destinations agree", `one history, the newest state is ${index}`)];
}

/** 0 where nothing is stored. */
function indexOf({ objects }: ListedDestination): number {
  return newestOf(objects)?.last ?? 0;
}

function behind(first: ListedDestination, other: ListedDestination, isFollowed: boolean): Check {
  const has = indexOf(other) === 0 ? "holds nothing" : `is at state ${indexOf(other)}`;
  const message = `${other.backend.location} ${has}, ${first.backend.location} is at state ${indexOf(first)}`;
  return isFollowed
    ? warn(
        "destinations agree",
        message,
        "look again in a minute: the daemon may be storing it at this moment; else see `bakelite status`",
      )
    : warn("destinations agree", message, "start the daemon, which copies what is missing");
}

/**
 * Compares the lineage of the newest state that both hold an object for, which is the proof of all that came before it. null where nothing
 * contradicts, also where nothing can be compared.
 */
async function compareLineage(
  { database, key, acceptPlaintext }: AgreementOptions,
  first: ListedDestination,
  other: ListedDestination,
  { deadlineMs, signal }: Scene,
): Promise<Check | null> {
  const pair = commonState(first.objects, other.objects);
  if (pair === null || key.isLost) return null;
  const what = "the destinations were compared";
  const open = (backend: Backend, object: ReplicaObject, inTime: AbortSignal) =>
    new TrailerCache({ database, backends: [backend], keys: key.ring, acceptPlaintext, signal: inTime }).open(object);
  try {
    return await withinDeadline({ ms: deadlineMs, what, signal }, async (inTime) => {
      const [ours, theirs] = await Promise.all([
        open(first.backend, pair[0], inTime),
        open(other.backend, pair[1], inTime),
      ]);
      if (!ours || !theirs) return null;
      if (ours.reader.trailer.result === theirs.reader.trailer.result) return null;
      return fail(
        "destinations agree",
        `${first.backend.location} and ${other.backend.location} hold different histories: state ${pair[0].last} is not the same`,
        first.async || other.async
          ? "run `bakelite verify` to see what each restores, and give the mirror an empty place; keep the old one as long as its restore points are needed"
          : "find out whether two daemons write under this name; run `bakelite verify` to see which of the two is whole",
      );
    });
  } catch (error) {
    signal.throwIfAborted();
    if (!(error instanceof BakeliteError) || error.code === "internal") throw error;
    return warn(
      "destinations agree",
      `they could not be compared: ${describeError(error)}`,
      error.hint ?? "run doctor again",
    );
  }
}

/** An object of each that leads to the newest state of which both have one; null when there is none. */
function commonState(
  ours: readonly ReplicaObject[],
  theirs: readonly ReplicaObject[],
): readonly [ReplicaObject, ReplicaObject] | null {
  const byIndex = new Map(theirs.map((object) => [object.last, object]));
  let common: readonly [ReplicaObject, ReplicaObject] | null = null;
  for (const object of ours) {
    const other = byIndex.get(object.last);
    if (other !== undefined && object.last > (common?.[0].last ?? 0)) common = [object, other];
  }
  return common;
}
