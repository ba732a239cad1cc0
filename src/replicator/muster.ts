import { keyBelow, keyOf } from "../replica/catalog.ts";
import { copyObject } from "../replica/fill-copy.ts";
import type { Replica } from "../replica/replica.ts";
import type { Cursor } from "../state/cursor.ts";
import type { Backend } from "../storage/backend.ts";
import { BakeliteError } from "../util/errors.ts";
import { linkSignals } from "../util/linked-signal.ts";
import { leadsTo } from "./adopt.ts";
import type { Destinations } from "./destinations.ts";
import type { Member } from "./member.ts";
import type { StoredState } from "./stored-state.ts";

/**
 * The destinations that answer a listing now; the others are left out. With a single one nothing is asked, for what follows shows it.
 * Throws the first failure when none answers, and under `refuse` when one does not.
 */
export async function findAnswering(
  destinations: Destinations,
  database: string,
  signal: AbortSignal,
): Promise<readonly Member[]> {
  const { all, times, isStrict } = destinations;
  if (all.length === 1) return all;
  const outcomes = await Promise.all(all.map((member) => tryAnswer(member, database, times.answerMs, signal)));
  const answering = all.filter((_, i) => outcomes[i] === null);
  const failure = outcomes.find((error) => error !== null);
  if (failure !== undefined && (isStrict || answering.length === 0)) throw failure;
  for (const [i, member] of all.entries()) if (outcomes[i] !== null) destinations.leaveOut(member, outcomes[i]);
  return answering;
}

/** Resolves when the destination has answered the beginning of a listing; rejects after `answerMs` without an answer. */
export async function answer(backend: Backend, database: string, answerMs: number, signal: AbortSignal): Promise<void> {
  const late = new AbortController();
  const timer = setTimeout(
    () =>
      late.abort(
        new BakeliteError("storage-unreachable", `it has not answered for ${answerMs / 1000} s`, {
          subject: backend.location,
          hint: "check that it can be reached; it is tried again",
        }),
      ),
    answerMs,
  );
  const linked = linkSignals(signal, late.signal);
  try {
    for await (const _ of backend.list(`${database}/`, { signal: linked.signal })) break;
  } finally {
    clearTimeout(timer);
    linked.unlink();
  }
}

/** What it failed with, or null. */
async function tryAnswer(
  { backend, health }: Member,
  database: string,
  answerMs: number,
  signal: AbortSignal,
): Promise<BakeliteError | null> {
  try {
    await answer(backend, database, answerMs, signal);
    health.recovered();
    return null;
  } catch (error) {
    if (!(error instanceof BakeliteError) || signal.aborted) throw error;
    health.failed(error);
    return error;
  }
}

export interface Mustered {
  /** Open on `answering`, in this order. */
  readonly replica: Replica;
  readonly answering: readonly Member[];
  /** What is gone on from; null: nothing that is stored leads on, so a new chain begins. */
  readonly state: StoredState | null;
  /** Index of the first state of a new chain, or of `state`. */
  readonly index: number;
  readonly cursor: Cursor | null;
  readonly signal: AbortSignal;
}

/** Change-sets that are put at the same moment: one, and some more where a destination was let go for a while before. */
const MAX_INTERRUPTED = 8;

/** Finds out from one listing where each destination that answers stands. Throws under `refuse` when one lacks what another has. */
export async function muster(destinations: Destinations, found: Mustered): Promise<void> {
  const { replica, answering, state, index, cursor } = found;
  const { all, isStrict } = destinations;
  for (const member of all) if (!answering.includes(member)) restore(member, cursor);
  const newest =
    state === null ? null : await Promise.all(answering.map((_, position) => leadsTo(replica, state, position)));
  const isUniform = haveTheSameNames(replica, answering.length);
  const lacking = newest === null ? [] : answering.filter((_, position) => newest[position] === null);
  if (state !== null && isStrict && lacking.length > 0 && lacking.length < all.length)
    for (const member of [...lacking]) {
      if (!(await finishInterrupted(found, answering.indexOf(member), state))) throw refusal(lacking);
      lacking.splice(lacking.indexOf(member), 1);
    }
  for (const [position, member] of answering.entries()) {
    const isWhole = !lacking.includes(member) || all.length === 1;
    member.begin(isWhole ? "whole" : "joining", { index: newestAt(replica, position), joinedAt: index });
    if (all.length === 1) continue;
    const wasIncomplete = cursor?.destinations[member.backend.location]?.incomplete === true;
    member.setHistory(isWhole && (isUniform || !wasIncomplete));
    if (!isUniform) member.suspect();
  }
}

/** What a crash in the middle of a put left undone is made up for; false when more than that is missing. */
async function finishInterrupted(
  { replica, signal }: Mustered,
  position: number,
  state: StoredState,
): Promise<boolean> {
  const { catalog, database, options } = replica;
  const reached = newestAt(replica, position) ?? 0;
  const target = options.backends[position];
  if (target === undefined || (await leadsTo(replica, { chain: state.chain, index: reached }, position)) === null)
    return false;
  const missing = catalog.changeSets.filter(({ first, last }) => first > reached && last <= state.index);
  const keys = new Set(missing.map((object) => keyOf(database, object)));
  if (keys.size > MAX_INTERRUPTED) return false;
  const sources = options.backends.filter((backend) => backend !== target);
  for (const key of keys) {
    const { kind } = await copyObject({ key, sources, target, longLived: false, signal });
    if (kind !== "copied" && kind !== "present") return false;
  }
  return true;
}

/** What the cursor remembers of a destination that cannot be seen. */
function restore(member: Member, cursor: Cursor | null): void {
  const known = cursor?.destinations[member.backend.location];
  member.begin("out", { index: known?.index ?? null, joinedAt: 0 });
  member.setHistory(false);
}

function haveTheSameNames({ catalog }: Replica, destinationCount: number): boolean {
  const copyCounts = new Map<string, number>();
  for (const object of [...catalog.fulls, ...catalog.changeSets]) {
    const key = keyBelow(object);
    copyCounts.set(key, (copyCounts.get(key) ?? 0) + 1);
  }
  return [...copyCounts.values()].every((count) => count === destinationCount);
}

function newestAt({ catalog }: Replica, position: number): number | null {
  let newest: number | null = null;
  for (const { destination, last } of [...catalog.fulls, ...catalog.changeSets])
    if (destination === position) newest = Math.max(newest ?? 0, last);
  return newest;
}

function refusal(lacking: readonly Member[]): BakeliteError {
  const locations = lacking.map(({ backend }) => backend.location).join(", ");
  return new BakeliteError(
    "replica-missing",
    "a destination lacks what the others have, and nothing is shipped before it is there",
    {
      subject: locations,
      hint: 'run `bakelite repair`, or set on_incomplete_destination = "backfill" to have it filled while shipping goes on',
    },
  );
}
