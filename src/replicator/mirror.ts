import { readDocument } from "../format/decode.ts";
import type { KeyRing } from "../format/envelope.ts";
import { currentKey, markKey, type ObjectName, objectKey, parseName } from "../format/names.ts";
import { copiesIn, markedIndexes, type ReplicaObject } from "../replica/catalog.ts";
import { type CurrentHint, parseCurrent } from "../replica/documents.ts";
import { type FillPlan, planningFill } from "../replica/fill.ts";
import { type CopyOutcome, copyObject } from "../replica/fill-copy.ts";
import { isNewer } from "../replica/repair-documents.ts";
import { Replica } from "../replica/replica.ts";
import type { RetentionPolicy } from "../replica/retention-policy.ts";
import type { MirrorEntry } from "../state/mirror-status.ts";
import { type Backend, bytesSource } from "../storage/backend.ts";
import { backoffDelayMs } from "../util/backoff.ts";
import type { Clock } from "../util/clock.ts";
import { delay } from "../util/delay.ts";
import { formatDuration } from "../util/durations.ts";
import { BakeliteError, describeError } from "../util/errors.ts";
import type { Logger } from "../util/logger.ts";
import type { Semaphore } from "../util/semaphore.ts";
import { formatTimestamp } from "../util/timestamps.ts";
import { inTurns, STEP_LOOKS } from "../util/turns.ts";
import { Backlog, type Wanted } from "./backlog.ts";

export interface MirrorInputs {
  readonly database: string;
  readonly mirror: Backend;
  /** `file`, `s3` …, for people. */
  readonly type: string;
  /** The lock-step destinations, in the order of preference. */
  readonly sources: readonly Backend[];
  readonly keys: KeyRing;
  /** The seal that objects should have: `p`, or the fingerprint of the configured key. */
  readonly seal: string;
  readonly acceptPlaintext: boolean;
  readonly policy: RetentionPolicy;
  /** The highest level of compaction; 0 without compaction. */
  readonly highestLevel: number;
  readonly intervalMs: number;
  /** The upper bound of the first wait after a failure; not given: the usual one. */
  readonly retryBaseMs?: number;
  /** Called when it has come to be in sync, or begins or ends to fail. */
  readonly onChange?: () => void;
  /** Shared by all databases that are mirrored to the same place. */
  readonly slots: Semaphore;
  readonly clock: Clock;
  readonly log: Logger;
}

/** `CURRENT` as it is stored at one destination. */
interface Current {
  readonly bytes: Uint8Array;
  readonly hint: CurrentHint;
}

const DAY_MS = 24 * 60 * 60_000;
/** What could not be copied for its own fault is looked at again this often. */
const STUCK_MS = 60 * 60_000;
/** Besides one large object at a time. */
const SMALL_AT_ONCE = 4;
/** A source that did not answer is asked after the others for so long. */
const SOURCE_REST_MS = 60_000;
/** Trailers, where they must be looked at. */
const READ_AT_ONCE = 12;
/** What goes on being wanted after this long is for the next pass. */
const PASS_MS = 10 * 60_000;
/** How often something small is looked for while a large object is copied. */
const LOOK_MS = 1_000;
const RETRY_BASE_MS = 2_000;
/** A call that gives no sign of life for so long is told of; nothing but its destination can end it. */
const SILENT_MS = 5 * 60_000;
const MAX_DOCUMENT_BYTES = 4 * 1024 * 1024;

/**
 * Keeps one background mirror of one database filled from its lock-step destinations, byte for byte, wholly apart from shipping. It hears of
 * what is stored, copies that at each interval, and compares listings at its start and daily. It deletes nothing: what the policy
 * gives up at a mirror is told by the mirror's own catalog, and goes as at any destination.
 */
export class Mirror {
  readonly #inputs: MirrorInputs;
  readonly #backlog = new Backlog();
  /** How often `CURRENT` may have changed, and as of which of these it was dealt with. */
  #currentChanges = 1;
  #currentSettled = 0;
  /** By the monotonic clock. */
  readonly #sourceFailedMs = new Map<Backend, number>();
  /** How often something made a listing necessary, and as of which of these it was made. */
  #listingReasons = 1;
  #listingSettled = 0;
  /** When the last one began, by the monotonic clock. */
  #listedMs = 0;
  #newestIndex: number | null = null;
  #attempts = 0;
  #lastError: MirrorEntry["last_error"] = null;
  #toldError: string | null = null;
  #lastReconciledMs: number | null = null;
  #lastInSyncMs: number | null = null;
  #state: MirrorEntry["state"] = "behind";
  #stateSinceMs: number;
  /** When anything last moved in the pass that is under way, by the monotonic clock; null between passes and while it waits its turn. */
  #movedMs: number | null = null;

  constructor(inputs: MirrorInputs) {
    this.#inputs = inputs;
    this.#stateSinceMs = inputs.clock.nowMs();
  }

  get backend(): Backend {
    return this.#inputs.mirror;
  }

  /** Something was stored at a lock-step destination. Costs nothing. */
  note(key: string, sizeBytes: number | null): void {
    const { database } = this.#inputs;
    if (key === currentKey(database)) this.#currentChanges++;
    const name = key.startsWith(`${database}/`) ? parseName(key.slice(database.length + 1)) : null;
    if (name === null) return;
    if (!this.#backlog.note(key, { name, sizeBytes })) this.#listingReasons++;
    this.#tellState();
  }

  /** Copies until `stop` is aborted, whenever `mayWrite`. Never rejects; whatever fails stays with this mirror. */
  async run(stop: AbortSignal, mayWrite: () => boolean = () => true): Promise<void> {
    const { clock, intervalMs } = this.#inputs;
    while (!stop.aborted) {
      const beganMs = clock.monotonicMs();
      const isDone = !mayWrite() || (await this.#pass(stop));
      const waitMs = isDone ? intervalMs - (clock.monotonicMs() - beganMs) : this.#backoffMs();
      await delay(Math.max(1, waitMs), stop).catch(() => {});
    }
  }

  /** The highest index that any object there has, by a listing of its own; 0 where there is none. */
  async highestIndex(signal: AbortSignal): Promise<number> {
    const { database, mirror } = this.#inputs;
    let highest = 0;
    for await (const { key } of mirror.list(`${database}/`, { signal })) {
      const name = parseName(key.slice(database.length + 1));
      if (name !== null) highest = Math.max(highest, lastOf(name));
    }
    return highest;
  }

  /** What is known of it at this moment, see docs/state-files.md. */
  get entry(): MirrorEntry {
    const { mirror, type, clock } = this.#inputs;
    const silentMs = this.#movedMs === null ? 0 : clock.monotonicMs() - this.#movedMs;
    const isSilent = silentMs >= SILENT_MS;
    const { lacking } = this.#backlog;
    return {
      location: mirror.location,
      type,
      state: isSilent ? "backing off" : this.#state,
      state_since: formatTimestamp(isSilent ? clock.nowMs() - silentMs : this.#stateSinceMs),
      index: this.#newestIndex,
      behind_objects: this.#listingSettled > 0 ? lacking.length : null,
      behind_bytes: this.#listingSettled > 0 ? lacking.reduce((sum, { sizeBytes }) => sum + (sizeBytes ?? 0), 0) : null,
      last_reconciled_at: timeOrNull(this.#lastReconciledMs),
      last_in_sync_at: timeOrNull(this.#lastInSyncMs),
      attempts: isSilent ? Math.max(1, this.#attempts) : this.#attempts,
      last_error: isSilent
        ? {
            at: formatTimestamp(clock.nowMs()),
            message: `it has not answered for ${formatDuration(silentMs)}`,
            code: "storage-unreachable",
          }
        : this.#lastError,
    };
  }

  /** False when it failed, which is then known. */
  async #pass(stop: AbortSignal): Promise<boolean> {
    const { clock, log, mirror } = this.#inputs;
    try {
      this.#moved();
      await this.#reconcile(stop);
      const nowMs = clock.nowMs();
      this.#lastReconciledMs = nowMs;
      this.#attempts = 0;
      if (this.#toldError !== null && !this.#backlog.isStuck) {
        log.info("the mirror is being filled again", { destination: mirror.location });
        this.#toldError = null;
      }
      if (!this.#isBehind()) this.#lastInSyncMs = nowMs;
      return true;
    } catch (error) {
      if (!stop.aborted) this.#failed(error);
      return stop.aborted;
    } finally {
      this.#movedMs = null;
      this.#tellState();
    }
  }

  async #reconcile(stop: AbortSignal): Promise<void> {
    if (this.#isListingDue()) {
      // What makes another one necessary may come meanwhile.
      const reasons = this.#listingReasons;
      const beganMs = this.#inputs.clock.monotonicMs();
      await this.#list(stop);
      this.#listingSettled = reasons;
      this.#listedMs = beganMs;
      this.#tellState();
    }
    await this.#copyWanted(stop);
    // Last, for it names what was copied.
    if (this.#currentSettled < this.#currentChanges) await this.#copyCurrent(stop);
  }

  #isListingDue(): boolean {
    if (this.#listingSettled < this.#listingReasons) return true;
    const ageMs = this.#inputs.clock.monotonicMs() - this.#listedMs;
    return ageMs >= (this.#backlog.isStuck ? STUCK_MS : DAY_MS);
  }

  /** Compares what is stored here and there, and replaces what is wanted by what is found to be missing. */
  async #list(stop: AbortSignal): Promise<void> {
    using _slot = await this.#takeSlot(stop);
    // A file system that hangs shows here; what follows takes its time with many objects.
    await this.#inputs.mirror.stat(currentKey(this.#inputs.database), { signal: stop });
    this.#movedMs = null;
    // What is stored from now on may not be in the listings.
    const { noted } = this.#backlog;
    const replica = await this.#openReplica(stop);
    const plan = await this.#plan(replica, stop);
    const planned = await inTurns(wantedIn(replica, plan));
    const { stuck, error } = await inTurns(this.#findStuck(replica, plan));
    this.#backlog.replace(planned, stuck, noted);
    this.#newestIndex = newestAt(replica, this.#inputs.sources.length);
    this.#currentChanges++;
    await this.#copyMarks(replica, stop);
    this.#tellState();
    if (error !== null) this.#tellStuck(error);
  }

  async #openReplica(stop: AbortSignal): Promise<Replica> {
    const { database, mirror, sources, keys, seal, acceptPlaintext } = this.#inputs;
    const backends = [...sources, mirror];
    const replica = await Replica.open({
      database,
      backends,
      keys,
      seal,
      acceptPlaintext,
      signal: stop,
      concurrency: READ_AT_ONCE,
    });
    this.#throwFailed(replica);
    return replica;
  }

  /** The mirror's own failure, or that of the last source: nothing can be compared. */
  #throwFailed({ trailers }: Replica): void {
    const failed = trailers.failedDestinations;
    const target = this.#inputs.sources.length;
    const own = failed.get(target);
    if (own !== undefined) throw own;
    for (const error of failed.values()) if (failed.size === target) throw error;
  }

  async #plan(replica: Replica, stop: AbortSignal): Promise<FillPlan> {
    const { policy, clock } = this.#inputs;
    const target = this.#inputs.sources.length;
    const { catalog, trailers, current, options } = replica;
    const siblings = await inTurns(siblingsIn(replica, target));
    /** What is read of an object's copies: one at a source as long as that is of use. */
    const standFor = (object: ReplicaObject) => {
      const sibling = siblings.get(object) ?? object;
      return trailers.knowledge(sibling) === "unusable" ? object : sibling;
    };
    for (;;) {
      stop.throwIfAborted();
      this.#throwFailed(replica);
      const planning = planningFill({
        catalog,
        target,
        sources: [...this.#inputs.sources.keys()].filter((position) => !trailers.failedDestinations.has(position)),
        knowledge: (object) => trailers.knowledge(standFor(object)),
        preferences: { seal: options.seal, current },
        policy,
        marks: markedIndexes(catalog),
        nowMs: clock.nowMs(),
      });
      const plan = await inTurns(planning);
      if (plan.unknown.length === 0) return plan;
      await trailers.load(new Set(plan.unknown.map(standFor)));
    }
  }

  /** What the plan leaves out, and why the first of it; in steps. */
  *#findStuck(
    replica: Replica,
    { forks, bare, blocked }: FillPlan,
  ): Generator<void, { readonly stuck: Map<string, Wanted>; readonly error: BakeliteError | null }> {
    const { database } = this.#inputs;
    const stuck = new Map<string, Wanted>();
    let error: BakeliteError | null = null;
    const add = function* (objects: readonly ReplicaObject[], message: string, hint: string): Generator<void, void> {
      for (const object of objects) {
        error ??= new BakeliteError("replica-foreign", message, { subject: replica.describe(object), hint });
        stuck.set(...wantedOf(replica, [object]));
        if (stuck.size % STEP_LOOKS === 0) yield;
      }
    };
    yield* add(
      forks,
      "it is of another history than the one that goes on furthest, so it is not copied",
      `find out with \`bakelite verify --db ${database}\` which history is yours; give the mirror an empty place if it holds one that is not needed`,
    );
    yield* add(
      bare,
      "it is not encrypted although a key is configured, and is not copied",
      `run \`bakelite reencrypt --db ${database}\` with the daemon stopped`,
    );
    yield* add(
      blocked,
      "the mirror has something under its name that cannot be used",
      `run \`bakelite repair --db ${database}\``,
    );
    return { stuck, error };
  }

  /**
   * Copies what is wanted, also what comes to be wanted meanwhile: small objects at once, while a large one may take hours. After a while,
   * under a load that never pauses, it leaves the rest to the next pass.
   */
  async #copyWanted(stop: AbortSignal): Promise<void> {
    const { clock } = this.#inputs;
    const endMs = clock.monotonicMs() + PASS_MS;
    const failed = new AbortController();
    const signal = AbortSignal.any([stop, failed.signal]);
    let largeCount = 0;
    const work = async (isLarge: boolean) => {
      for (;;) {
        signal.throwIfAborted();
        const next = clock.monotonicMs() < endMs || largeCount > 0 ? this.#backlog.take(isLarge) : null;
        if (next !== null) {
          if (isLarge) largeCount++;
          await this.#copy(next, signal).finally(() => {
            if (isLarge) largeCount--;
          });
        } else if (largeCount > 0) await delay(LOOK_MS, signal);
        else return;
      }
    };
    const workers = [work(true), ...Array.from({ length: SMALL_AT_ONCE }, () => work(false))];
    // A failure of the mirror must end them all, not leave some running into the next pass.
    await Promise.allSettled(workers.map((worker) => worker.catch((error: unknown) => failed.abort(error))));
    signal.throwIfAborted();
  }

  async #copy([key, wanted]: readonly [string, Wanted], signal: AbortSignal): Promise<void> {
    const { mirror, highestLevel, log } = this.#inputs;
    const { name } = wanted;
    try {
      using _slot = await this.#takeSlot(signal);
      const longLived = name.kind === "full" || (name.level > 0 && name.level >= highestLevel);
      let outcome = await this.#copyOnce(key, longLived, signal);
      // Only damage that shows twice is damage: a cable may have been bad.
      if (outcome.kind === "unusable" && outcome.error.code === "replica-corrupt")
        outcome = await this.#copyOnce(key, longLived, signal);
      this.#moved();
      this.#settle(key, wanted, outcome);
      log.debug("mirrored an object", { destination: mirror.location, key, outcome: outcome.kind });
    } catch (error) {
      this.#backlog.putBack(key, wanted);
      throw error;
    } finally {
      this.#backlog.settled(key);
      this.#tellState();
    }
  }

  async #copyOnce(key: string, longLived: boolean, signal: AbortSignal): Promise<CopyOutcome> {
    const { mirror: target, sources, clock } = this.#inputs;
    const isFailing = (source: Backend) =>
      clock.monotonicMs() - (this.#sourceFailedMs.get(source) ?? Number.NEGATIVE_INFINITY) < SOURCE_REST_MS;
    return await copyObject({
      key,
      // Each try at one that is down takes half a minute.
      sources: sources.toSorted((a, b) => Number(isFailing(a)) - Number(isFailing(b))),
      target,
      longLived,
      signal,
      onBytes: () => this.#moved(),
      onSourceFailed: (source, { code }) => {
        if (code === "storage-unreachable") this.#sourceFailedMs.set(source, clock.monotonicMs());
      },
    });
  }

  /** Throws where the source's failure passes for all of it. */
  #settle(key: string, wanted: Wanted, outcome: CopyOutcome): void {
    switch (outcome.kind) {
      case "copied":
        // A mirror that takes something is not to be waited for longer each time.
        this.#attempts = 0;
        this.#newestIndex = Math.max(this.#newestIndex ?? 0, lastOf(wanted.name));
        return;
      case "present":
        this.#newestIndex = Math.max(this.#newestIndex ?? 0, lastOf(wanted.name));
        return;
      case "gone":
        // Merged or given up meanwhile, perhaps by a command that told us nothing: what took its place shows in a listing.
        this.#listingReasons++;
        return;
      case "unusable":
        if (outcome.error.code === "storage-unreachable") throw outcome.error;
        break;
      case "conflict":
        break;
    }
    this.#backlog.stick(key, wanted);
    this.#tellStuck(outcome.error);
  }

  /** A mark counts by its name, so one that lacks here would let its state go with the next prune. */
  async #copyMarks({ catalog }: Replica, stop: AbortSignal): Promise<void> {
    const { database, mirror, sources } = this.#inputs;
    const target = sources.length;
    const keysAt = (isTarget: boolean) =>
      new Set(
        catalog.marks
          .filter((mark) => (mark.destination === target) === isTarget)
          .map((mark) => markKey(database, mark)),
      );
    const there = keysAt(true);
    for (const key of keysAt(false)) {
      if (there.has(key)) continue;
      await copyObject({ key, sources, target: mirror, longLived: false, signal: stop });
      this.#moved();
    }
  }

  /** As soon as what it names has arrived: until then it would tell of backups that are not there. */
  async #copyCurrent(stop: AbortSignal): Promise<void> {
    const { database, mirror, sources } = this.#inputs;
    const change = this.#currentChanges;
    let newest: Current | null = null;
    let failure: BakeliteError | null = null;
    for (const source of sources) {
      try {
        const found = await this.#readCurrent(source, stop);
        if (found !== null && (newest === null || isNewer(found.hint, newest.hint))) newest = found;
      } catch (error) {
        // One source that fails is no reason not to ask the others.
        if (!(error instanceof BakeliteError) || error.code === "interrupted" || error.code === "internal") throw error;
        failure ??= error;
      }
    }
    const own = newest === null ? null : await this.#readCurrent(mirror, stop);
    if (newest !== null && (own === null || isNewer(newest.hint, own.hint))) {
      if (!this.#backlog.hasAllOf(newest.hint) || newest.hint.index > (this.#newestIndex ?? 0)) return;
      await mirror.put(currentKey(database), bytesSource(newest.bytes), { signal: stop });
      this.#moved();
    }
    if (failure === null) this.#currentSettled = change;
  }

  /** null where there is none that can be used. */
  async #readCurrent(backend: Backend, stop: AbortSignal): Promise<Current | null> {
    const { database, keys, acceptPlaintext } = this.#inputs;
    const key = currentKey(database);
    const stream = await backend.get(key, { signal: stop });
    const bytes = stream === null ? null : await readBounded(stream);
    this.#moved();
    if (bytes === null) return null;
    try {
      const name = { kind: "current" } as const;
      const { fields } = readDocument(bytes, { name, database, subject: key, keys, acceptPlaintext });
      return { bytes, hint: parseCurrent(fields, key) };
    } catch (error) {
      if (!(error instanceof BakeliteError) || error.code === "internal") throw error;
      return null;
    }
  }

  async #takeSlot(signal: AbortSignal): Promise<Disposable> {
    this.#movedMs = null;
    const slot = await this.#inputs.slots.acquire({ signal });
    this.#moved();
    return slot;
  }

  #moved(): void {
    this.#movedMs = this.#inputs.clock.monotonicMs();
  }

  #failed(error: unknown): void {
    const { log, mirror } = this.#inputs;
    this.#attempts++;
    this.#remember(error);
    const reason = describeError(error);
    const fields = {
      destination: mirror.location,
      error: reason,
      hint: error instanceof BakeliteError ? error.hint : undefined,
    };
    if (this.#toldError === reason) log.debug("cannot fill the mirror, still", fields);
    else log.warn("cannot fill the mirror; trying again", fields);
    this.#toldError = reason;
  }

  /** Once for each reason, of which there may be as many objects as there are. */
  #tellStuck(error: BakeliteError): void {
    const { log, mirror } = this.#inputs;
    const reason = describeError(error);
    this.#remember(error, error.hint === undefined ? reason : `${reason}: ${error.hint}`);
    const level = this.#toldError === error.message ? "debug" : "warn";
    this.#toldError = error.message;
    log[level]("an object cannot be mirrored", { destination: mirror.location, error: reason, hint: error.hint });
  }

  #remember(error: unknown, message = describeError(error)): void {
    const at = formatTimestamp(this.#inputs.clock.nowMs());
    const code = error instanceof BakeliteError ? error.code : "internal";
    this.#lastError = { at, message, code };
  }

  #backoffMs(): number {
    return backoffDelayMs(this.#attempts, { baseMs: this.#inputs.retryBaseMs ?? RETRY_BASE_MS });
  }

  #isBehind(): boolean {
    const isUnsettled =
      this.#listingSettled < this.#listingReasons ||
      this.#currentSettled < this.#currentChanges ||
      this.#backlog.isStuck;
    return isUnsettled || this.#backlog.count > 0;
  }

  #tellState(): void {
    const state = this.#attempts > 0 ? "backing off" : this.#isBehind() ? "behind" : "in sync";
    if (state === this.#state) return;
    const isNews = state !== "behind" || this.#state === "backing off";
    this.#stateSinceMs = this.#inputs.clock.nowMs();
    this.#state = state;
    if (isNews) this.#inputs.onChange?.();
  }
}

/** What the plan wants, by key, in its order; in steps. */
function* wantedIn(replica: Replica, { missing }: FillPlan): Generator<void, Map<string, Wanted>> {
  const planned = new Map<string, Wanted>();
  for (const { sources } of missing) {
    planned.set(...wantedOf(replica, sources));
    if (planned.size % STEP_LOOKS === 0) yield;
  }
  return planned;
}

function wantedOf(replica: Replica, [object]: readonly ReplicaObject[]): readonly [string, Wanted] {
  if (object === undefined) throw new BakeliteError("internal", "invariant broken: what is missing is somewhere else");
  const { kind, level, first, last, seal, sizeBytes } = object;
  const name: ObjectName = kind === "full" ? { kind, index: first, seal } : { kind, level, first, last, seal };
  return [objectKey(replica.database, name), { name, sizeBytes }];
}

function lastOf(name: ObjectName): number {
  return name.kind === "full" ? name.index : name.last;
}

function newestAt({ catalog }: Replica, target: number): number | null {
  let newest: number | null = null;
  for (const { destination, last } of [...catalog.fulls, ...catalog.changeSets])
    if (destination === target) newest = Math.max(newest ?? 0, last);
  return newest;
}

/**
 * For each change-set of the mirror the one of the same name and size at a source, if there is one, which is read instead: what is
 * decided here is only what to copy, and a mirror may be far away. Full backups tell histories apart, so each speaks for itself. In steps.
 */
function* siblingsIn({ catalog }: Replica, target: number): Generator<void, Map<ReplicaObject, ReplicaObject>> {
  const siblings = new Map<ReplicaObject, ReplicaObject>();
  let count = 0;
  for (const copies of copiesIn(catalog.changeSets)) {
    if (++count % STEP_LOOKS === 0) yield;
    for (const own of copies) {
      const isAlike = ({ destination, seal, sizeBytes }: ReplicaObject) =>
        destination !== target && seal === own.seal && sizeBytes === own.sizeBytes;
      const sibling = own.destination === target ? copies.find(isAlike) : undefined;
      if (sibling !== undefined) siblings.set(own, sibling);
    }
  }
  return siblings;
}

/** null for more than a document can have. */
async function readBounded(stream: AsyncIterable<Uint8Array>): Promise<Uint8Array | null> {
  const pieces: Uint8Array[] = [];
  let sizeBytes = 0;
  for await (const piece of stream) {
    sizeBytes += piece.length;
    if (sizeBytes > MAX_DOCUMENT_BYTES) return null;
    pieces.push(piece);
  }
  return Buffer.concat(pieces, sizeBytes);
}

function timeOrNull(timeMs: number | null): string | null {
  return timeMs === null ? null : formatTimestamp(timeMs);
}
