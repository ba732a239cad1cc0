import type { Replica } from "../replica/replica.ts";
import type { OpenedObject } from "../replica/trailers.ts";
import type { Cursor } from "../state/cursor.ts";
import type { MachineIdentity } from "../state/machine.ts";
import { BakeliteError } from "../util/errors.ts";
import type { Logger } from "../util/logger.ts";
import { anotherWriter } from "./destinations.ts";
import { stateAfter, walkLineage } from "./lineage-walk.ts";
import type { StoredState } from "./stored-state.ts";

export interface AdoptInputs {
  readonly replica: Replica;
  /** Null when there is none, or none that can be read. */
  readonly cursor: Cursor | null;
  readonly machine: MachineIdentity;
  /** The operator said that this daemon is the only writer from now on. */
  readonly takeOver: boolean;
  /** A destination of this replica does not answer, so what it holds is out of sight. */
  readonly isBlind?: boolean;
  readonly nowMs: number;
  readonly log: Logger;
}

export type FullBackupRecord = NonNullable<Cursor["fullBackup"]>;

export interface Adoption {
  /** The newest stored state that we go on from; null when the replica holds none that can be reached. */
  readonly newest: StoredState | null;
  /** The newest full backup that leads to it, as far as names tell; null when another must be taken. */
  readonly fullBackup: FullBackupRecord | null;
  /** Objects beyond the cursor were adopted, and they are all the put that the cursor names as attempted. */
  readonly beyondCursor: "nothing" | "attempted put" | "other objects";
  /** Every index up to this one is taken, be it by objects off our lineage. */
  readonly highestIndex: number;
}

/** So many indexes may be taken by objects that are out of sight: the first change-set steps over them all. */
export const OUT_OF_SIGHT = 65_535;

/** A newest object younger than this, by the destination's clock, may have been written by a daemon that lives. */
const LIVING_WRITER_MS = 10 * 60 * 1000;

/**
 * Decides from which stored state to go on. What follows the cursor in the replica is ours if it is the put that the cursor
 * names as attempted, or if our session wrote it and the machine has booted since (a power cut may cost the cursor's last
 * write). Throws `replica-foreign` when somebody else seems to write there.
 */
export async function adopt(inputs: AdoptInputs): Promise<Adoption> {
  const { replica, cursor } = inputs;
  const { fulls, changeSets } = replica.catalog;
  let highestIndex = Math.max(cursor?.index ?? 0, cursor?.attempted?.index ?? 0);
  for (const { last } of [...fulls, ...changeSets]) highestIndex = Math.max(highestIndex, last);
  const adopted = cursor === null ? await adoptFromReplica(inputs) : await adoptFromCursor(inputs, cursor);
  // What the reachable destinations show of the cursor's state is all there is: it names the one put that may be elsewhere.
  const isProven = cursor !== null && adopted.fullBackup !== null && adopted.beyondCursor !== "other objects";
  if (inputs.isBlind === true && !isProven) highestIndex += OUT_OF_SIGHT;
  return { ...adopted, highestIndex };
}

/** Whether one destination by itself holds a full backup and, by their names, the change-sets from it to `state`. */
export async function leadsTo(
  replica: Replica,
  state: Pick<StoredState, "index" | "chain">,
  destination: number,
): Promise<FullBackupRecord | null> {
  const fullBackup = await newestFullBackup(replica, state, null, destination);
  return fullBackup !== null && coversByName(replica, fullBackup, state.index, destination) ? fullBackup : null;
}

async function adoptFromCursor(inputs: AdoptInputs, cursor: Cursor): Promise<Omit<Adoption, "highestIndex">> {
  const { replica } = inputs;
  let newest = stateOfCursor(cursor);
  let [attempted, others] = [0, 0];
  for await (const opened of walkLineage(replica, newest)) {
    if (isAttempted(cursor, opened)) attempted++;
    else {
      assertOurs(inputs, cursor, opened);
      others++;
    }
    newest = stateAfter(opened);
  }
  const beyondCursor = others > 0 ? "other objects" : attempted > 0 ? "attempted put" : "nothing";
  const fullBackup = await newestFullBackup(replica, newest, cursor.fullBackup);
  if (fullBackup !== null && coversByName(replica, fullBackup, newest.index)) {
    return { newest, fullBackup, beyondCursor };
  }
  await refuseStrangersReplica(inputs, cursor);
  // Under another key it may well be there.
  const isReadable = replica.catalog.fulls.every((full) => replica.trailers.canUnseal(full));
  if (cursor.fullBackup !== null && isReadable)
    inputs.log.warn("the destination no longer holds what leads to the newest stored state", { index: newest.index });
  return { newest, fullBackup: null, beyondCursor };
}

/** No cursor: the farthest state that a full backup leads to. */
async function adoptFromReplica({ replica, log }: AdoptInputs): Promise<Omit<Adoption, "highestIndex">> {
  let best: { newest: StoredState; full: OpenedObject; last: OpenedObject } | null = null;
  for (const object of replica.catalog.fulls.toReversed()) {
    if (best !== null && object.first < best.newest.index) break;
    const full = await replica.trailers.open(object);
    if (full === null) continue;
    let newest = stateAfter(full);
    let last = full;
    for await (const opened of walkLineage(replica, newest)) {
      newest = stateAfter(opened);
      last = opened;
    }
    if (newest.index >= full.reader.trailer.settled && (best === null || newest.index > best.newest.index)) {
      best = { newest, full, last };
    }
  }
  if (best === null) return { newest: null, fullBackup: null, beyondCursor: "other objects" };
  log.warn("there is no cursor: going on from the newest stored state", {
    index: best.newest.index,
    storedAt: new Date(best.newest.stampMs).toISOString(),
    session: best.last.reader.header.session,
  });
  // The state's place in a WAL means nothing without the cursor that ties it to a file.
  const fullBackup = recordOf(best.full);
  return { newest: { ...best.newest, position: null }, fullBackup, beyondCursor: "other objects" };
}

function isAttempted({ attempted }: Cursor, { reader: { header } }: OpenedObject): boolean {
  // Re-encryption gives it another seed and keeps this one.
  const seed = header.originSeed ?? header.nonceSeed;
  return attempted !== null && header.run === attempted.run && seed === attempted.nonceSeed;
}

function assertOurs(inputs: AdoptInputs, cursor: Cursor, opened: OpenedObject): void {
  const { machine, takeOver, nowMs, log, replica } = inputs;
  const { header, trailer } = opened.reader;
  const where = replica.describe(opened.object);
  if (takeOver) {
    log.warn("taking over a state that another writer stored", { object: where, session: header.session });
    return;
  }
  if (header.session !== cursor.session) throw anotherWriter(where);
  const booted = cursor.bootId !== null && machine.bootId !== null && cursor.bootId !== machine.bootId;
  const sameMachine = cursor.machineId === machine.machineId;
  if (sameMachine && booted) return;
  if (nowMs - opened.object.modifiedMs < LIVING_WRITER_MS) {
    throw new BakeliteError(
      "replica-foreign",
      "the replica moved on without this host: a clone of it may still be running",
      {
        subject: where,
        hint: "stop the other one; if there is none, run `bakelite daemon --take-over` once",
      },
    );
  }
  log.warn("adopting a state that this host does not remember storing", { index: trailer.last, object: where });
}

/**
 * What leads to our newest state is not there. Where something else is instead, the replica is not the one that the cursor
 * knows: a mistake in a config must not mix two databases under one name.
 */
async function refuseStrangersReplica({ replica, takeOver }: AdoptInputs, cursor: Cursor): Promise<void> {
  const { fulls, changeSets } = replica.catalog;
  const [newest] = [...fulls, ...changeSets].sort((a, b) => b.last - a.last);
  const opened = newest === undefined ? null : await replica.trailers.open(newest);
  if (takeOver || opened === null) return;
  const { chain, session } = opened.reader.header;
  if (chain !== cursor.chain && session !== cursor.session) throw anotherWriter(replica.describe(opened.object));
}

/** Whether names alone say that a path leads from the full backup to `index`; verify looks closer. */
function coversByName(replica: Replica, fullBackup: FullBackupRecord, index: number, at?: number): boolean {
  const { fulls, changeSets } = replica.catalog;
  if (!fulls.some((full) => full.first === fullBackup.index)) return false;
  let reached = fullBackup.index;
  for (const { first, last, destination } of changeSets) {
    if (at !== undefined && destination !== at) continue;
    if (first > reached + 1) break;
    reached = Math.max(reached, last);
  }
  return reached >= index;
}

/** As the replica has it, for one may be stored that the cursor does not know; what the cursor knows of it is kept. */
async function newestFullBackup(
  replica: Replica,
  newest: Pick<StoredState, "index" | "chain">,
  known: FullBackupRecord | null,
  at?: number,
): Promise<FullBackupRecord | null> {
  for (const object of replica.catalog.fulls.toReversed()) {
    if (at !== undefined && object.destination !== at) continue;
    const opened = await replica.trailers.open(object);
    if (opened === null || opened.reader.header.chain !== newest.chain) continue;
    if (opened.reader.trailer.settled > newest.index) continue;
    const found = recordOf(opened);
    return known?.index === found.index ? { ...found, atMs: Math.max(found.atMs, known.atMs) } : found;
  }
  return null;
}

function recordOf({ object, reader }: OpenedObject): FullBackupRecord {
  return { index: object.first, settled: reader.trailer.settled, atMs: object.modifiedMs, seal: object.seal };
}

function stateOfCursor(cursor: Cursor): StoredState {
  const { chain, index, lineage, pageSizeBytes, sizePages, settled, stampMs, epochs, position } = cursor;
  return { chain, index, lineage, pageSizeBytes, sizePages, digest: null, settled, stampMs, epochs, position };
}
