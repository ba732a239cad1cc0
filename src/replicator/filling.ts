import { markKey, objectKey } from "../format/names.ts";
import { keyOf, markedIndexes, nameOf, type ReplicaObject } from "../replica/catalog.ts";
import { type FillPlan, type Missing, planningFill } from "../replica/fill.ts";
import { copyObject } from "../replica/fill-copy.ts";
import { healObject } from "../replica/repair-copy.ts";
import { eachOf, RepairScan, WHOLE_OBJECT_BYTES } from "../replica/repair-scan.ts";
import type { Replica } from "../replica/replica.ts";
import { orAborted } from "../storage/abort.ts";
import type { Backend } from "../storage/backend.ts";
import { backoffDelayMs } from "../util/backoff.ts";
import type { Clock } from "../util/clock.ts";
import { delay } from "../util/delay.ts";
import { BakeliteError, describeError } from "../util/errors.ts";
import type { Logger } from "../util/logger.ts";
import { Semaphore } from "../util/semaphore.ts";
import { inTurns } from "../util/turns.ts";
import { leadsTo } from "./adopt.ts";
import { FollowingEnded } from "./capture-loop.ts";
import { anotherWriter, type Destinations } from "./destinations.ts";
import type { FullBackups } from "./full-backups.ts";
import type { LocalState } from "./local-state.ts";
import type { Member } from "./member.ts";
import { answer } from "./muster.ts";
import type { Shipper } from "./shipper.ts";

export interface FillingInputs {
  readonly database: string;
  readonly destinations: Destinations;
  readonly shipper: Shipper;
  readonly fullBackups: FullBackups;
  readonly local: LocalState;
  readonly clock: Clock;
  readonly log: Logger;
  readonly openReplica: (signal: AbortSignal, backends: readonly Backend[]) => Promise<Replica>;
}

const SMALL_AT_ONCE = 4;
const LARGE_AT_ONCE = 1;
/** What is stored goes on changing: so often a destination is looked at anew before others get their turn. */
const MAX_ROUNDS = 5;
/** How often it is looked whether a full backup that is awaited has come. */
const AWAIT_MS = 500;
/** Without filling, a destination can only become whole with the next full backup. */
const WARN_LOOK_MS = 60_000;

/** A destination that comes back may be one of hundreds of databases: so many of them are filled at the same time in this process. */
const fillSlots = new Semaphore(4);

/**
 * Brings destinations back that were left out, each in a loop of its own beside shipping: first the destination gets every new object
 * again, then what came before is copied to it from the others, what restores the newest state first. Whatever fails stays
 * with that destination. Everything that is decided here is found out anew from listings, so a restart goes on where it was.
 */
export class Filling {
  readonly #inputs: FillingInputs;
  /** By destination: since when no other one has answered, Unix milliseconds. */
  readonly #aloneSinceMs = new Map<Member, number>();
  readonly #checkedMs = new Map<Member, number>();

  constructor(inputs: FillingInputs) {
    this.#inputs = inputs;
  }

  /** Runs until `signal` is aborted. Rejects for nothing that a destination does. */
  async run(signal: AbortSignal): Promise<void> {
    const { destinations } = this.#inputs;
    const [first, ...others] = destinations.all;
    if (first !== undefined && others.length === 0) return await this.#watch(first, signal);
    const attend = destinations.isStrict ? this.#guard : this.#tend;
    await Promise.all(destinations.all.map((member) => attend.call(this, member, signal)));
  }

  /** The only one: where it was emptied, nothing else has what it lacks but the database itself. */
  async #watch(member: Member, signal: AbortSignal): Promise<void> {
    const { fullBackups, local, log } = this.#inputs;
    while (!signal.aborted) {
      // That it does not answer, shipping notices.
      const waitMs = await this.#check(member, signal).catch(() => this.#times.checkMs);
      if (waitMs === "emptied") {
        const { message, hint } = emptied(member);
        log.warn(message, { destination: member.backend.location, hint });
        local.tookFullBackup(null);
        fullBackups.want("destination gap");
      }
      await delay(waitMs === "emptied" ? this.#times.checkMs : waitMs, signal).catch(() => {});
    }
  }

  /** Where nothing is filled. Throws when a destination was emptied: it is for the next attach to say what is missing. */
  async #guard(member: Member, signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      // That it does not answer, shipping notices.
      const waitMs = await this.#check(member, signal).catch(() => this.#times.checkMs);
      if (waitMs === "emptied") throw emptied(member);
      await delay(waitMs, signal).catch(() => {});
    }
  }

  async #tend(member: Member, signal: AbortSignal): Promise<void> {
    for (let failures = 0; !signal.aborted; ) {
      try {
        const waitMs = await this.#look(member, signal);
        failures = 0;
        await member.disturbed.wait(waitMs, signal);
      } catch (error) {
        if (signal.aborted || error instanceof FollowingEnded) return await untilAborted(signal);
        failures++;
        this.#failed(member, error);
        await delay(backoffDelayMs(failures, { baseMs: this.#times.retryBaseMs }), signal).catch(() => {});
      }
    }
  }

  get #times() {
    return this.#inputs.destinations.times;
  }

  /** A bug in here too must not end a backup that goes well elsewhere. */
  #failed(member: Member, error: unknown): void {
    const { destinations, log } = this.#inputs;
    if (member.standing === "whole") member.health.failed(error);
    else if (error instanceof SiblingFailure) member.health.failed(error.failure);
    else destinations.leaveOut(member, error);
    log.debug("cannot fill a destination; trying again", {
      destination: member.backend.location,
      error: describeError(error instanceof SiblingFailure ? error.failure : error),
    });
  }

  /** Does what there is to do for this destination, and gives after how many milliseconds to look again. */
  async #look(member: Member, signal: AbortSignal): Promise<number> {
    const { destinations, database, local } = this.#inputs;
    if (member.isComplete && !member.isSuspect) {
      const waitMs = await this.#check(member, signal);
      if (waitMs !== "emptied") return waitMs;
      destinations.leaveOut(member, emptied(member));
      return 0;
    }
    await orAborted(member.late, signal);
    await answer(member.backend, database, this.#times.answerMs, signal);
    await this.#join(member, signal);
    if (destinations.onIncomplete === "warn") return await this.#lookOnly(member, signal);
    // Before the first full backup of a chain there is nothing to copy.
    if (local.fullBackup === null) await this.#untilFullBackup(signal);
    const siblings = await this.#findSiblings(member, signal);
    using slot = await fillSlots.acquire({ signal });
    if (member.standing === "whole" || (await this.#fillNewest(member, siblings, signal)))
      return await this.#fillHistory(member, siblings, signal);
    // Others get the slot meanwhile.
    slot[Symbol.dispose]();
    await this.#untilFullBackup(signal);
    return AWAIT_MS;
  }

  /** Waits for the one that is under way or due, without a call to any destination. */
  async #untilFullBackup(signal: AbortSignal): Promise<void> {
    const { fullBackups } = this.#inputs;
    while (fullBackups.underWay !== null || fullBackups.due() !== null) await delay(AWAIT_MS, signal);
  }

  /** It gets every object from now on. What it has beyond that is our own of an earlier time, or another writer's. */
  async #join(member: Member, signal: AbortSignal): Promise<void> {
    if (member.standing !== "out") return;
    const { shipper, openReplica, local } = this.#inputs;
    const replica = await openReplica(signal, [member.backend]);
    const newest = replica.catalog.changeSets.reduce<ReplicaObject | null>(
      (found, object) => (found === null || object.last > found.last ? object : found),
      null,
    );
    if (newest !== null && newest.last > shipper.newestIndex) {
      const opened = await replica.trailers.open(newest);
      if (opened !== null && opened.reader.header.session !== local.session)
        throw anotherWriter(replica.describe(newest));
      shipper.stepOver(newest.last);
    }
    member.join(shipper.newestIndex);
  }

  /** Under `warn`: nothing is copied, and whether it is whole again is seen from what is there. */
  async #lookOnly(member: Member, signal: AbortSignal): Promise<number> {
    const { destinations, fullBackups } = this.#inputs;
    if (member.standing === "whole" || (await this.#isWholeAlone(member, signal))) {
      if (member.standing !== "whole") destinations.becameWhole(member);
      member.health.recovered();
      member.setHistory(true);
      return 0;
    }
    const hasWhole = destinations.all.some(({ standing }) => standing === "whole");
    if (!hasWhole) fullBackups.want("destination gap");
    else if ((await this.#findSiblings(member, signal)).length === 0) this.#goOnAlone(member);
    else this.#aloneSinceMs.delete(member);
    return Math.max(AWAIT_MS, Math.min(WARN_LOOK_MS, this.#times.aloneMs));
  }

  /** Those that answer, of the others that get new objects, or of all others. */
  async #findSiblings(member: Member, signal: AbortSignal, isOfAll = false): Promise<readonly Member[]> {
    const { destinations, database } = this.#inputs;
    const others = destinations.all.filter((other) => other !== member);
    const near = others.filter(({ standing }) => standing !== "out");
    const asked = near.length > 0 && !isOfAll ? near : others;
    const answers = await Promise.all(
      asked.map(async ({ backend }) => {
        try {
          await answer(backend, database, this.#times.answerMs, signal);
          return true;
        } catch (error) {
          signal.throwIfAborted();
          if (!(error instanceof BakeliteError)) throw error;
          return false;
        }
      }),
    );
    const answering = asked.filter((_, i) => answers[i]);
    const isLastWord = answering.length > 0 || asked.length === others.length;
    return isLastWord ? answering : await this.#findSiblings(member, signal, true);
  }

  /** Copies what leads to the newest state. False: that is to come with a full backup. */
  async #fillNewest(member: Member, siblings: readonly Member[], signal: AbortSignal): Promise<boolean> {
    const { destinations, log } = this.#inputs;
    for (let round = 1; round <= MAX_ROUNDS; round++) {
      if (await this.#isWholeAlone(member, signal)) {
        this.#aloneSinceMs.delete(member);
        member.health.recovered();
        destinations.becameWhole(member);
        log.info("a destination restores the newest state by itself again", { destination: member.backend.location });
        return true;
      }
      if (siblings.length === 0) return this.#goOnAlone(member);
      const replica = await this.#openBeside(member, siblings, signal);
      const plan = await this.#plan(replica, signal);
      this.#tellBehind(member, plan);
      await this.#healBlocked(replica, plan, signal);
      const stuck = await this.#copy(member, siblings, { replica, missing: plan.missing, isNewestOnly: true }, signal);
      if (stuck !== null) throw new SiblingFailure(stuck);
      if (plan.missing.length > 0 || plan.blocked.length > 0) continue;
      break;
    }
    this.#aloneSinceMs.delete(member);
    const { fullBackups, shipper } = this.#inputs;
    if (fullBackups.underWay !== null || fullBackups.due() !== null) return false;
    // What the others lack may be at one that is out itself.
    const all = await this.#findSiblings(member, signal, true);
    if (all.length > siblings.length) return await this.#fillNewest(member, all, signal);
    // One that begins before what this destination has got is of no use to it.
    if (member.joinedAt <= shipper.stored.index && !(await this.#isWholeAlone(member, signal)))
      fullBackups.want("destination gap");
    return false;
  }

  /** Whether what is stored there restores the newest state, with all that it gets since it joined. */
  async #isWholeAlone(member: Member, signal: AbortSignal): Promise<boolean> {
    const { shipper, openReplica } = this.#inputs;
    const { index, chain } = shipper.stored;
    if (member.standing !== "joining" || member.joinedAt > index) return false;
    const replica = await openReplica(signal, [member.backend]);
    const isThere = (await leadsTo(replica, { index, chain }, 0)) !== null;
    // It may have been left out meanwhile.
    return isThere && member.standing === "joining";
  }

  /** Nobody else answers: after a while what is out of sight counts as lost, and this one gets all that the database holds. */
  #goOnAlone(member: Member): false {
    const { clock, destinations, fullBackups, local, log } = this.#inputs;
    const nowMs = clock.nowMs();
    const sinceMs = this.#aloneSinceMs.get(member) ?? nowMs;
    // One that takes puts is there, though it lists nothing just now.
    const isHeardOf = destinations.all.some(
      (other) => other !== member && other.standing === "whole" && (other.storedMs ?? 0) > sinceMs,
    );
    this.#aloneSinceMs.set(member, isHeardOf ? nowMs : Math.min(sinceMs, nowMs));
    if (isHeardOf || nowMs - sinceMs < this.#times.aloneMs) return false;
    if (fullBackups.underWay !== null || fullBackups.due() !== null) return false;
    log.warn("no other destination answers: going on with the one that does", { destination: member.backend.location });
    for (const other of destinations.all)
      if (other !== member && other.standing === "whole")
        destinations.leaveOut(
          other,
          other.health.lastError === null
            ? silent()
            : new BakeliteError("storage-unreachable", other.health.lastError.message),
        );
    // The newest one is out of sight.
    local.tookFullBackup(null);
    fullBackups.want("destination gap");
    return false;
  }

  async #fillHistory(member: Member, siblings: readonly Member[], signal: AbortSignal): Promise<number> {
    const { destinations, fullBackups, log } = this.#inputs;
    if (!member.lacksHistory && !member.isSuspect) return 0;
    if (siblings.length === 0) return this.#times.answerMs;
    for (let round = 1; round <= MAX_ROUNDS; round++) {
      const replica = await this.#openBeside(member, siblings, signal);
      const plan = await this.#plan(replica, signal);
      if (plan.missing.length === 0) {
        await this.#copyMarks(member, siblings, replica, signal);
        if (member.lacksHistory) {
          fullBackups.noteFilled();
          // While it was away they may have been taken for complete without what only this one has.
          for (const other of destinations.all) if (other !== member && other.standing === "whole") other.suspect();
          log.info("a destination is complete again", { destination: member.backend.location });
        }
        member.health.recovered();
        member.setHistory(true);
        return 0;
      }
      member.setHistory(false);
      this.#tellBehind(member, plan);
      const stuck = await this.#copy(member, siblings, { replica, missing: plan.missing, isNewestOnly: false }, signal);
      if (stuck === null) continue;
      member.health.failed(stuck);
      return this.#times.checkMs;
    }
    return AWAIT_MS;
  }

  /** Open on the destination, which has position 0, and its siblings. */
  async #openBeside(member: Member, siblings: readonly Member[], signal: AbortSignal): Promise<Replica> {
    const { openReplica } = this.#inputs;
    const replica = await openReplica(
      signal,
      [member, ...siblings].map(({ backend }) => backend),
    );
    throwFailed(replica, siblings.length);
    return replica;
  }

  async #plan(replica: Replica, signal: AbortSignal): Promise<FillPlan> {
    const { destinations, clock } = this.#inputs;
    const { catalog, trailers, current, options } = replica;
    for (;;) {
      signal.throwIfAborted();
      const sources = [...options.backends.keys()].slice(1);
      throwFailed(replica, sources.length);
      const planning = planningFill({
        catalog,
        target: 0,
        sources: sources.filter((position) => !trailers.failedDestinations.has(position)),
        knowledge: (object) => trailers.knowledge(object),
        preferences: { seal: options.seal, current },
        policy: destinations.policy,
        marks: markedIndexes(catalog),
        nowMs: clock.nowMs(),
      });
      const plan = await inTurns(planning);
      if (plan.unknown.length === 0) return plan;
      await trailers.load(plan.unknown);
    }
  }

  /** Copies in the order of the plan; gives what some object cannot be copied for, or null. */
  async #copy(
    member: Member,
    siblings: readonly Member[],
    {
      replica,
      missing,
      isNewestOnly,
    }: { readonly replica: Replica; readonly missing: readonly Missing[]; readonly isNewestOnly: boolean },
    signal: AbortSignal,
  ): Promise<BakeliteError | null> {
    const { destinations, log } = this.#inputs;
    const newestFull = isNewestOnly ? newestFullOf(replica) : 0;
    const wanted = missing.flatMap(({ sources }) => sources.slice(0, 1)).filter(({ last }) => last >= newestFull);
    const total = wanted.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
    if (wanted.length > 0)
      log.info("filling a destination from the others", {
        destination: member.backend.location,
        objects: wanted.length,
        sizeBytes: total,
      });
    let stuck: BakeliteError | null = null;
    const copyOne = async (object: ReplicaObject) => {
      const outcome = await copyObject({
        key: keyOf(replica.database, object),
        sources: siblings.map(({ backend }) => backend),
        target: member.backend,
        longLived: object.kind === "full" || (object.level > 0 && object.level >= destinations.highestLevel),
        signal,
      });
      if (outcome.kind === "conflict" || outcome.kind === "unusable") stuck ??= outcome.error;
      else this.#copied(member, object);
      if (outcome.kind === "copied") member.health.recovered();
    };
    const isSmall = ({ sizeBytes }: ReplicaObject) => sizeBytes <= WHOLE_OBJECT_BYTES;
    await Promise.all([
      eachOf(wanted.filter(isSmall), SMALL_AT_ONCE, copyOne),
      eachOf(
        wanted.filter((object) => !isSmall(object)),
        LARGE_AT_ONCE,
        copyOne,
      ),
    ]);
    return stuck;
  }

  /** What is damaged there on the way to the newest state is written anew. */
  async #healBlocked(replica: Replica, { blocked }: FillPlan, signal: AbortSignal): Promise<void> {
    const { destinations } = this.#inputs;
    const scan = new RepairScan(replica);
    for (const damaged of blocked) {
      const key = objectKey(replica.database, nameOf(damaged));
      const sources = [...replica.catalog.fulls, ...replica.catalog.changeSets].filter(
        (object) => object.destination !== 0 && keyOf(replica.database, object) === key,
      );
      for (const object of [damaged, ...sources]) {
        const verdict = await scan.check(object, { signal });
        if (verdict !== null) scan.remember(object, verdict);
      }
      const healing = { action: "replace" as const, destination: 0, damaged, sources };
      const outcome = await healObject(replica, scan, healing, { signal, highestLevel: destinations.highestLevel });
      if (outcome.kind === "refused") throw outcome.error;
    }
  }

  async #copyMarks(
    member: Member,
    siblings: readonly Member[],
    { catalog, database }: Replica,
    signal: AbortSignal,
  ): Promise<void> {
    const keysAt = (isThere: boolean) =>
      new Set(
        catalog.marks
          .filter(({ destination }) => (destination === 0) === isThere)
          .map((mark) => markKey(database, mark)),
      );
    const there = keysAt(true);
    const sources = siblings.map(({ backend }) => backend);
    for (const key of keysAt(false))
      if (!there.has(key)) await copyObject({ key, sources, target: member.backend, longLived: false, signal });
  }

  #tellBehind(member: Member, { missing }: FillPlan): void {
    const bytes = missing.reduce((sum, { sources }) => sum + (sources[0]?.sizeBytes ?? 0), 0);
    member.behind = { objects: missing.length, bytes };
  }

  #copied(member: Member, { sizeBytes }: ReplicaObject): void {
    const { behind } = member;
    if (behind === null) return;
    member.behind = { objects: Math.max(0, behind.objects - 1), bytes: Math.max(0, behind.bytes - sizeBytes) };
  }

  /** One request now and then shows that a destination was emptied behind our back; a listing would cost more. */
  async #check(member: Member, signal: AbortSignal): Promise<number | "emptied"> {
    const { clock, local, database } = this.#inputs;
    const nowMs = clock.monotonicMs();
    const checkedMs = this.#checkedMs.get(member) ?? nowMs;
    this.#checkedMs.set(member, checkedMs);
    const dueInMs = checkedMs + this.#times.checkMs - nowMs;
    if (dueInMs > 0) return dueInMs;
    const newest = local.fullBackup;
    if (newest === null) return this.#times.checkMs;
    const key = objectKey(database, { kind: "full", index: newest.index, seal: newest.seal });
    const found = await member.backend.stat(key, { signal });
    // One that did not answer is asked again until it does.
    this.#checkedMs.set(member, nowMs);
    // Of the only one, shipping says how it is.
    if (this.#inputs.destinations.all.length > 1) member.health.recovered();
    return found !== null || local.fullBackup !== newest ? this.#times.checkMs : "emptied";
  }
}

function emptied({ backend }: Member): BakeliteError {
  return new BakeliteError("replica-missing", "the newest full backup is no longer there", {
    subject: backend.location,
    hint: "find out who deleted it; the daemon copies it from another destination, unless it is told to refuse, and takes a new one where there is no other",
  });
}

/** What another destination failed with while this one was filled from it. */
class SiblingFailure extends Error {
  readonly failure: BakeliteError;

  constructor(failure: BakeliteError) {
    super(failure.message);
    this.failure = failure;
  }
}

/** Throws what the destination at position 0 failed with, or the last one that it could be filled from. */
function throwFailed({ trailers }: Replica, siblingCount: number): void {
  const failed = trailers.failedDestinations;
  const own = failed.get(0);
  if (own !== undefined) throw own;
  if (failed.size < siblingCount) return;
  for (const error of failed.values()) throw new SiblingFailure(error);
}

/** n0 of the full backup from which the newest restore point is reached; 0 when there is none. */
function newestFullOf({ graph }: Replica): number {
  const newest = graph.restorePoints.at(-1);
  return newest === undefined ? 0 : (graph.pathTo(newest)?.full.first ?? 0);
}

function silent(): BakeliteError {
  return new BakeliteError("storage-unreachable", "it does not answer");
}

async function untilAborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return;
  await new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
}
