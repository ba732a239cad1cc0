import type { ObjectHeader } from "../format/header.ts";
import { type ObjectName, objectKey } from "../format/names.ts";
import type { Replica } from "../replica/replica.ts";
import type { WalFollower } from "../sqlite/follow.ts";
import type { LedgerFile } from "../state/ledger-file.ts";
import type { Clock } from "../util/clock.ts";
import { BakeliteError } from "../util/errors.ts";
import type { Logger } from "../util/logger.ts";
import { Wakeup } from "../util/wakeup.ts";
import { type ChangeSet, encodeChangeSet, ORDINARY_SET_BYTES } from "./change-set.ts";
import { isDestinationFailure } from "./destination-failure.ts";
import { anotherWriter, type Destinations } from "./destinations.ts";
import type { EncodedObject, StoredBytes } from "./encoded-object.ts";
import { encodingBudget, encodingBytes } from "./encoding-budget.ts";
import { applyPageLists, commitLedger } from "./ledger.ts";
import type { LocalState } from "./local-state.ts";
import type { PendingSet, TakenSet } from "./pending.ts";
import type { StoredState } from "./stored-state.ts";
import { stampState } from "./time-epochs.ts";

export interface ShipperInputs {
  readonly database: string;
  readonly follower: WalFollower;
  readonly pending: PendingSet;
  readonly destinations: Destinations;
  readonly local: LocalState;
  readonly clock: Clock;
  readonly log: Logger;
  readonly settings: { readonly debounceMs: number; readonly maxBatchDelayMs: number };
  readonly encoding: { readonly sealKey: Uint8Array | null; readonly compressionLevel: number };
  readonly nextCapture: () => Promise<void>;
  readonly onStored: () => void;
  readonly newHeader: (kind: "change-set" | "full", first: number, from: StoredState) => ObjectHeader;
  /** The replica as it is now, for reading back what was too large to remember. */
  readonly openReplica: (signal: AbortSignal) => Promise<Replica>;
}

/** An object that is not stored and accounted for yet; a put that failed is tried again with the same bytes. */
interface Kept {
  readonly changeSet: ChangeSet;
  readonly taken: TakenSet;
  /** The destinations have it; what follows a put is still to be done. */
  isPut: boolean;
}

const LEDGER_COMMIT_MS = 5000;
const CURSOR_WRITE_MS = 1000;
const CONFIRMED_PUTS = 2;

/** Turns the pending set into change-sets, one after the other, and knows the newest stored state. */
export class Shipper {
  readonly #inputs: ShipperInputs;
  readonly #wakeup = new Wakeup();
  #stored: StoredState;
  #ledger: LedgerFile | null;
  /** Indexes up to this one are taken, be it by objects off our lineage. */
  #highestIndex: number;
  #inFlight: { readonly taken: TakenSet; readonly index: number } | null = null;
  #kept: Kept | null = null;
  /** A full backup waits for this index. */
  #awaitedIndex = 0;
  #waiting: { readonly index: number; readonly resolve: () => void }[] = [];
  #firstPut = true;
  /** The first puts of this attachment; null once enough of them were found to be ours. */
  #unconfirmed: readonly StoredBytes[] | null = [];
  readonly #between: (() => Promise<void>)[] = [];
  #ledgerCommittedMs: number;
  #cursorWrittenMs: number;
  #ledgerIndex: number;
  #lastCaptureMs = 0;
  #firstPendingMs: number | null = null;
  #flushing = false;
  /** When everything captured was last stored, Unix milliseconds; null before. */
  lastSyncedMs: number | null = null;
  changeSets = 0;
  bytesShipped = 0;

  constructor(inputs: ShipperInputs, start: { stored: StoredState; ledger: LedgerFile | null; highestIndex: number }) {
    this.#inputs = inputs;
    this.#stored = start.stored;
    this.#ledger = start.ledger;
    this.#highestIndex = start.highestIndex;
    this.#ledgerIndex = start.stored.index;
    this.#ledgerCommittedMs = inputs.clock.monotonicMs();
    this.#cursorWrittenMs = inputs.clock.monotonicMs();
  }

  get stored(): StoredState {
    return this.#stored;
  }

  get ledger(): LedgerFile | null {
    return this.#ledger;
  }

  /** When the oldest commit that is not stored yet was captured, Unix milliseconds; null when everything is stored. */
  get oldestUnstoredMs(): number | null {
    return this.#inFlight?.taken.firstCommitMs ?? this.#inputs.pending.firstCommitMs;
  }

  /** Captured commits that no destination has confirmed. */
  get unstoredCommits(): number {
    return this.#inputs.pending.commits + (this.#inFlight?.taken.commits ?? 0);
  }

  /** The newest state that is stored or on its way to be. */
  get newestIndex(): number {
    return Math.max(this.#stored.index, this.#inFlight?.index ?? 0);
  }

  /** Indexes up to this one are taken, be it by objects that cannot be seen from here. */
  stepOver(index: number): void {
    this.#highestIndex = Math.max(this.#highestIndex, index);
  }

  /** Everything captured is stored, and nothing waits to be settled. */
  get isIdle(): boolean {
    return this.#inFlight === null && !this.#hasWork();
  }

  /** A page that is going to be in an object that is not stored yet. */
  isUnstored(pageNumber: number): boolean {
    return this.#inputs.pending.has(pageNumber) || (this.#inFlight?.taken.pages.has(pageNumber) ?? false);
  }

  /** As `PendingSet.startForcing`, for a large set that is being resolved slice by slice. */
  forceInFlight(): void {
    this.#inFlight?.taken.forced.addAll(this.#inFlight.taken.pages);
  }

  /** The index of the change-set that carries everything captured until now: the newest stored one if that is all. */
  indexCarryingAll(): number {
    if (this.#hasPending()) return (this.#inFlight?.index ?? this.#nextRange().last - 1) + 1;
    return this.#inFlight?.index ?? this.#stored.index;
  }

  /** Resolves when state `index` is stored, which is made so even if nothing changes any more. */
  async untilStored(index: number, signal: AbortSignal): Promise<void> {
    if (this.#stored.index >= index) return;
    this.#awaitedIndex = Math.max(this.#awaitedIndex, index);
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const stop = () => reject(signal.reason);
    signal.addEventListener("abort", stop, { once: true });
    this.#waiting.push({ index, resolve });
    this.#wakeup.wake();
    await promise.finally(() => signal.removeEventListener("abort", stop));
  }

  /** Capture found `commits` new ones. */
  captured(commits: number): void {
    const nowMs = this.#inputs.clock.monotonicMs();
    if (commits > 0) {
      this.#lastCaptureMs = nowMs;
      this.#firstPendingMs ??= nowMs;
    }
    if (this.#hasWork()) this.#wakeup.wake();
  }

  /** Ship without waiting for more: the daemon stops. */
  flush(): void {
    this.#flushing = true;
    this.#wakeup.wake();
  }

  /**
   * Runs `task` between two change-sets, so that `stored` stands still meanwhile. Rejects when aborted before it began, for
   * then nobody may be shipping any more.
   */
  async between<T>(task: () => Promise<T>, signal: AbortSignal): Promise<T> {
    signal.throwIfAborted();
    const { promise, resolve, reject } = Promise.withResolvers<T>();
    const begin = () => task().then(resolve, reject);
    const leave = () => {
      const place = this.#between.indexOf(begin);
      if (place < 0) return;
      this.#between.splice(place, 1);
      reject(signal.reason);
    };
    signal.addEventListener("abort", leave, { once: true });
    this.#between.push(begin);
    this.#wakeup.wake();
    return await promise.finally(() => signal.removeEventListener("abort", leave));
  }

  /** The ledger of a chain's first full backup takes effect; entries and digest describe `stored`. */
  useLedger(ledger: LedgerFile, digest: string): void {
    this.#ledger = ledger;
    this.#stored = { ...this.#stored, digest };
    this.#ledgerIndex = this.#stored.index;
  }

  /**
   * Ships one change-set if one is due, or waits until one is; a put that failed is tried again with the same bytes. Throws
   * what the destinations throw, with nothing lost.
   */
  async step(signal: AbortSignal): Promise<void> {
    // Given back on every way out: a put that is tried again later counts no more, or an outage would stop others.
    using encoding = new DisposableStack();
    if (this.#kept === null) {
      const between = this.#between.shift();
      if (between !== undefined) return await between();
      const waitMs = this.#waitMs();
      if (waitMs > 0) {
        await this.#wakeup.wait(Math.min(waitMs, this.#localWriteMs()), signal);
        await this.writeLocalState(false);
        return;
      }
      const setBytes = this.#inputs.pending.pageCount * this.#inputs.follower.pageSizeBytes;
      encoding.use(await encodingBudget.take(encodingBytes(setBytes, ORDINARY_SET_BYTES), signal));
      this.#kept = await this.#encode(signal);
      if (this.#kept === null) return;
    }
    await this.#store(this.#kept, signal);
    // A destination that is slower than the commits leaves no pause for this.
    await this.writeLocalState(false);
  }

  /** Writes the cursor and the ledger's slot if they are behind and `always`, or it is time. */
  async writeLocalState(always: boolean): Promise<void> {
    const { clock, local } = this.#inputs;
    const nowMs = clock.monotonicMs();
    if (local.isDirty && (always || nowMs - this.#cursorWrittenMs >= CURSOR_WRITE_MS)) {
      this.#cursorWrittenMs = nowMs;
      await local.write();
    }
    if (
      this.#ledger !== null &&
      this.#ledgerIsBehind() &&
      (always || nowMs - this.#ledgerCommittedMs >= LEDGER_COMMIT_MS)
    ) {
      this.#ledgerCommittedMs = nowMs;
      const state = this.#stored;
      await commitLedger(this.#ledger, state);
      this.#ledgerIndex = state.index;
    }
  }

  #ledgerIsBehind(): boolean {
    return this.#ledger !== null && this.#ledgerIndex !== this.#stored.index && this.#inFlight === null;
  }

  /** When local state wants to be written next; an idle database wakes nobody. */
  #localWriteMs(): number {
    if (this.#inputs.local.isDirty) return CURSOR_WRITE_MS;
    return this.#ledgerIsBehind() ? LEDGER_COMMIT_MS : Number.POSITIVE_INFINITY;
  }

  async #encode(signal: AbortSignal): Promise<Kept | null> {
    const { follower, pending, local, clock, nextCapture, newHeader, encoding } = this.#inputs;
    const index = this.#nextRange();
    const from = this.#stored;
    const header = newHeader("change-set", index.first, from);
    await local.attempt({ index: index.last, run: header.run, nonceSeed: header.nonceSeed });
    while (!follower.canResolve) await nextCapture();
    signal.throwIfAborted();
    // From here to the first await inside encodeChangeSet is one turn: set, position and images belong together.
    const taken = pending.take(follower.sizePages);
    const captures = pending.captures;
    this.#inFlight = { taken, index: index.last };
    this.#firstPendingMs = null;
    const changeSet = await encodeChangeSet({
      taken,
      from,
      ledger: this.#ledger,
      index,
      stamped: stampState(from, index.last, taken.lastCommitMs ?? clock.nowMs()),
      position: follower.position,
      header,
      encoding,
      follower,
      nextCapture,
      capturedSince: () => pending.captures !== captures,
    });
    if (!changeSet.isEmpty || this.#isAwaited(index.last)) return { changeSet, taken, isPut: false };
    // Nothing is different from the stored state: only the position moves on.
    this.#setStored({ ...from, position: changeSet.state().position });
    this.#inFlight = null;
    return null;
  }

  async #store(kept: Kept, signal: AbortSignal): Promise<void> {
    const { destinations, log } = this.#inputs;
    const { changeSet, taken } = kept;
    try {
      if (!kept.isPut && (await destinations.store(changeSet.object, signal)) === "lost") return this.#giveUp(kept);
      kept.isPut = true;
    } catch (error) {
      const mayBeStored = isDestinationFailure(error) || signal.aborted;
      const isSent = mayBeStored && changeSet.object.footerSha256() !== null;
      if (!changeSet.object.source.replayable && !isSent) this.#giveBack(taken);
      throw error;
    }
    const state = changeSet.state();
    if (this.#firstPut) await this.#refuseOtherSeals(changeSet.object.name, signal);
    await this.#confirmFirstPuts(changeSet.object, signal);
    await this.#updateLedger(changeSet, signal);
    this.#kept = null;
    this.#inFlight = null;
    this.stepOver(state.index);
    this.changeSets++;
    this.bytesShipped += changeSet.object.sizeBytes();
    this.#setStored(state);
    log.debug("stored a change-set", {
      index: state.index,
      pages: taken.pages.size,
      commits: taken.commits,
      sizeBytes: changeSet.object.sizeBytes(),
      settled: state.settled,
    });
  }

  /** Those that answer do not have it. One that does not answer may, so its index is not used again where there are several. */
  #giveUp({ taken }: Kept): void {
    const { destinations } = this.#inputs;
    if (destinations.all.length > 1) this.stepOver(this.newestIndex);
    this.#giveBack(taken);
  }

  /** A stream cannot be sent again: its pages are resolved anew, and with them what was captured meanwhile. */
  #giveBack(taken: TakenSet): void {
    this.#inputs.pending.giveBack(taken);
    this.#kept = null;
    this.#inFlight = null;
  }

  #setStored(state: StoredState): void {
    this.#stored = state;
    this.#inputs.local.stored(state);
    if (this.#inFlight === null && !this.#hasPending()) this.lastSyncedMs = this.#inputs.clock.nowMs();
    const [ready, waiting] = [
      this.#waiting.filter((w) => w.index <= state.index),
      this.#waiting.filter((w) => w.index > state.index),
    ];
    this.#waiting = waiting;
    for (const { resolve } of ready) resolve();
    this.#inputs.onStored();
  }

  async #updateLedger(changeSet: ChangeSet, signal: AbortSignal): Promise<void> {
    const ledger = this.#ledger;
    if (ledger === null) return;
    const state = changeSet.state();
    if (changeSet.entries !== null) ledger.write(changeSet.entries.pageNumbers, changeSet.entries.hashes);
    else {
      const replica = await this.#inputs.openReplica(signal);
      const { name } = changeSet.object;
      const object = replica.catalog.changeSets.find(
        (o) => name.kind === "change-set" && o.first === name.first && o.last === name.last,
      );
      const opened = object === undefined ? null : await replica.trailers.open(object);
      if (opened === null) {
        throw new BakeliteError("replica-corrupt", "an object that was just stored cannot be read back", {
          subject: objectKey(this.#inputs.database, name),
          hint: "check the destination; the daemon will attach anew and compare",
        });
      }
      await applyPageLists(ledger, opened);
    }
    if (state.sizePages < this.#stored.sizePages) ledger.truncate(state.sizePages);
  }

  /** After the first put: somebody who writes the same index under another seal is not kept out by names. */
  async #refuseOtherSeals(stored: ObjectName, signal: AbortSignal): Promise<void> {
    const { database, destinations } = this.#inputs;
    const key = objectKey(database, stored);
    const sameStates = key.slice(0, -stored.seal.length);
    await destinations.ask(signal, async (backend, life) => {
      for await (const found of backend.list(sameStates, { signal: life }))
        if (found.key !== key) throw anotherWriter(`${backend.location}/${found.key}`);
      return null;
    });
    this.#firstPut = false;
  }

  /**
   * Two writers that begin at the same moment both find the name free where a destination cannot refuse it in one step. One
   * that stores over the other's object is seen by the other after its own put, or else after its next one.
   */
  async #confirmFirstPuts({ name, footerSha256 }: EncodedObject, signal: AbortSignal): Promise<void> {
    const sha256 = footerSha256();
    if (this.#unconfirmed === null || sha256 === null) return;
    const puts = [...this.#unconfirmed, { name, footerSha256: sha256 }];
    for (const put of puts) await this.#inputs.destinations.confirm(put, signal);
    this.#unconfirmed = puts.length < CONFIRMED_PUTS ? puts : null;
  }

  #nextRange(): { first: number; last: number } {
    return { first: this.#stored.index + 1, last: Math.max(this.#stored.index, this.#highestIndex) + 1 };
  }

  #isAwaited(index: number): boolean {
    return this.#awaitedIndex >= index || this.#stored.settled > this.#stored.index;
  }

  #hasPending(): boolean {
    const { pending, follower } = this.#inputs;
    return (
      pending.pageCount > 0 ||
      pending.commits > 0 ||
      (this.#inFlight === null && follower.sizePages !== this.#stored.sizePages)
    );
  }

  #hasWork(): boolean {
    return this.#kept !== null || this.#hasPending() || this.#isAwaited(this.#stored.index + 1);
  }

  /** Milliseconds until a change-set is due; 0 when one is. */
  #waitMs(): number {
    if (!this.#hasWork()) return Number.POSITIVE_INFINITY;
    if (this.#flushing || this.#isAwaited(this.#stored.index + 1) || this.#firstPendingMs === null) return 0;
    const { clock, settings } = this.#inputs;
    const dueMs = Math.min(this.#lastCaptureMs + settings.debounceMs, this.#firstPendingMs + settings.maxBatchDelayMs);
    return Math.max(0, dueMs - clock.monotonicMs());
  }
}
