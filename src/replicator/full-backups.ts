import { rm } from "node:fs/promises";
import type { ObjectHeader } from "../format/header.ts";
import { objectKey, PLAINTEXT_SEAL } from "../format/names.ts";
import type { Replica } from "../replica/replica.ts";
import type { WalFollower } from "../sqlite/follow.ts";
import { LedgerFile, replaceLedger } from "../state/ledger-file.ts";
import type { Clock } from "../util/clock.ts";
import { BakeliteError } from "../util/errors.ts";
import type { Logger } from "../util/logger.ts";
import type { Semaphore } from "../util/semaphore.ts";
import { Wakeup } from "../util/wakeup.ts";
import { FollowingEnded } from "./capture-loop.ts";
import { compareWithLedger } from "./compare.ts";
import { isDestinationFailure } from "./destination-failure.ts";
import type { Destinations } from "./destinations.ts";
import { digestOfLedger } from "./digest.ts";
import { type FullBackup, type FullBackupReason, fullBackup } from "./full-backup.ts";
import { commitLedger, pagesThatDiffer, replay } from "./ledger.ts";
import type { LocalState } from "./local-state.ts";
import type { PendingSet } from "./pending.ts";
import type { Shipper } from "./shipper.ts";
import type { StoredState } from "./stored-state.ts";

export interface FullBackupsInputs {
  readonly database: string;
  readonly follower: WalFollower;
  readonly pending: PendingSet;
  readonly shipper: Shipper;
  readonly destinations: Destinations;
  readonly local: LocalState;
  readonly slots: Semaphore;
  readonly onChange: () => void;
  readonly ledgerPath: string;
  readonly clock: Clock;
  readonly log: Logger;
  readonly settings: { readonly snapshotIntervalMs: number; readonly maxSegmentsPerSnapshot: number };
  readonly encoding: { readonly sealKey: Uint8Array | null; readonly compressionLevel: number };
  readonly nextCapture: () => Promise<void>;
  readonly newHeader: (kind: "full" | "current", first: number, from: StoredState) => ObjectHeader;
  readonly openReplica: (signal: AbortSignal) => Promise<Replica>;
  /** Calls `work` again, after a while, as long as a destination is what fails and `again` is not aborted. */
  readonly retrying: <T>(signal: AbortSignal, work: () => Promise<T>, again?: AbortSignal) => Promise<T | "stopped">;
}

export interface FullBackupUnderWay {
  readonly index: number;
  readonly reason: FullBackupReason;
  readonly sinceMs: number;
  /** 0 to 1. */
  progress: number;
}

/** A healthy daemon is silent, so what the schedule asks for is not news; what nobody asked for is a warning. */
const LEVELS: Readonly<Record<FullBackupReason, "debug" | "info" | "warn">> = {
  "first backup": "info",
  interval: "debug",
  "change-set count": "debug",
  "page size changed": "warn",
  "encryption changed": "info",
  "destination gap": "warn",
  "replica unreadable": "warn",
};

const SHORTEST_LOOK_MS = 100;
const LONGEST_LOOK_MS = 60_000;

/** How many names in a row may be taken by what is no full backup. */
const MAX_TAKEN_NAMES = 16;
/** For so long destinations are asked whether they have one whose answer was lost; other databases may wait for their turn. */
const ASKING_MS = 30_000;

/** Decides when a full backup is due, and takes it. */
export class FullBackups {
  readonly #inputs: FullBackupsInputs;
  readonly #byReason = new Map<string, number>();
  #underWay: FullBackupUnderWay | null = null;
  #wanted: FullBackupReason | null;
  /** A full backup was stored that `CURRENT` does not name yet. */
  #isCurrentStale: boolean;
  /** With several destinations: the state of the full backup that was begun last, which one of them may have. */
  #uncertainIndex: number | null = null;
  readonly #wakeup = new Wakeup();
  bytesShipped = 0;

  constructor(inputs: FullBackupsInputs, wanted: FullBackupReason | null, isCurrentStale: boolean) {
    this.#inputs = inputs;
    this.#isCurrentStale = isCurrentStale;
    this.#wanted = wanted;
  }

  get underWay(): FullBackupUnderWay | null {
    return this.#underWay;
  }

  get byReason(): ReadonlyMap<string, number> {
    return this.#byReason;
  }

  /** Why one is due now, or null. */
  due(): FullBackupReason | "check" | null {
    if (this.#wanted !== null) return this.#wanted;
    const { local, shipper, settings, clock } = this.#inputs;
    const newest = local.fullBackup;
    if (newest === null) return null;
    const count = shipper.stored.index - newest.index;
    if (settings.maxSegmentsPerSnapshot > 0 && count >= settings.maxSegmentsPerSnapshot) return "change-set count";
    // One that was taken long after now has no known age: the clock was wrong then, or is now.
    const ageMs = Math.abs(clock.nowMs() - newest.atMs);
    if (settings.snapshotIntervalMs > 0 && ageMs >= settings.snapshotIntervalMs) {
      // Nothing changed since: the interval is met by proving that the file is still what is stored.
      return shipper.stored.index > newest.settled ? "interval" : "check";
    }
    return null;
  }

  /** One is to be taken as soon as may be, unless one is under way or due anyway. */
  want(reason: FullBackupReason): void {
    if (this.#underWay !== null || this.due() !== null) return;
    this.#wanted = reason;
    this.#wakeup.wake();
  }

  /** A destination was filled that may have no `CURRENT`, or an old one. */
  noteFilled(): void {
    this.#isCurrentStale = true;
    this.#wakeup.wake();
  }

  /** Something was stored, so one may be due by count. */
  noteStored(): void {
    if (this.#inputs.settings.maxSegmentsPerSnapshot > 0) this.#wakeup.wake();
  }

  /** Waits until one may be due. */
  async wait(signal: AbortSignal): Promise<void> {
    const { local, settings, clock } = this.#inputs;
    const newest = local.fullBackup;
    const untilIntervalMs =
      newest === null || settings.snapshotIntervalMs === 0
        ? Number.POSITIVE_INFINITY
        : newest.atMs + settings.snapshotIntervalMs - clock.nowMs();
    // The clock may step, so a long wait is looked at again now and then.
    await this.#wakeup.wait(Math.min(Math.max(untilIntervalMs, SHORTEST_LOOK_MS), LONGEST_LOOK_MS), signal);
  }

  /** Takes the one that is due, if any. Throws what the destinations throw. */
  async takeIfDue(signal: AbortSignal): Promise<void> {
    if (this.#isCurrentStale) await this.#writeCurrent(signal);
    const reason = this.due();
    if (reason === null) return;
    using _slot = await this.#inputs.slots.acquire({ signal });
    if (reason === "check") await this.#check(signal);
    else await this.#take(reason, signal);
  }

  async #take(reason: FullBackupReason, signal: AbortSignal): Promise<void> {
    const { shipper, pending, clock, log, local, ledgerPath, database } = this.#inputs;
    const from = await this.#stateWithFreeName(signal);
    const newLedger = shipper.ledger === null ? await openNewLedger(ledgerPath) : null;
    const startedMs = clock.nowMs();
    const startedMonotonicMs = clock.monotonicMs();
    this.#underWay = { index: from.index, reason, sinceMs: startedMs, progress: 0 };
    this.#byReason.set(reason, (this.#byReason.get(reason) ?? 0) + 1);
    log[LEVELS[reason]]("full backup begins", { reason, index: from.index });
    this.#inputs.onChange();
    let adopted = false;
    shipper.forceInFlight();
    pending.startForcing();
    try {
      const full = this.#start(from, reason, newLedger, signal);
      // Until all have answered: one that does not may have stored it, and a name stands for one object only.
      if (this.#inputs.destinations.all.length > 1) this.#uncertainIndex = from.index;
      await this.#store(full, signal);
      if (newLedger !== null) {
        // Not the whole of it again because the destination does not answer just now.
        const adopting = () => shipper.between(() => this.#adoptLedger(newLedger, from, signal), signal);
        if ((await this.#inputs.retrying(signal, adopting)) === "stopped") throw new FollowingEnded();
        adopted = true;
      }
      const seal = this.#inputs.newHeader("full", from.index, from).keyFingerprint ?? PLAINTEXT_SEAL;
      local.tookFullBackup({ index: from.index, settled: full.settled(), atMs: startedMs, seal });
      this.#wanted = null;
      this.#isCurrentStale = true;
      await local.write();
      this.bytesShipped += full.object.sizeBytes();
      log[LEVELS[reason]]("full backup stored", {
        reason,
        object: objectKey(database, full.object.name),
        settled: full.settled(),
        sizeBytes: full.object.sizeBytes(),
        tookMs: Math.round(clock.monotonicMs() - startedMonotonicMs),
      });
      await this.#writeCurrent(signal);
    } finally {
      pending.stopForcing();
      this.#underWay = null;
      this.#inputs.onChange();
      if (newLedger !== null && !adopted) await newLedger.close();
    }
  }

  /** A full backup whose last bytes were sent may be stored although the answer was lost: it is not made twice. */
  async #store({ object }: FullBackup, signal: AbortSignal): Promise<void> {
    const { destinations } = this.#inputs;
    try {
      await destinations.store(object, signal);
    } catch (error) {
      if (signal.aborted || !isDestinationFailure(error) || object.footerSha256() === null) throw error;
      // Not given up for one question without an answer: to find it stored later takes an attach.
      const again = AbortSignal.any([signal, AbortSignal.timeout(ASKING_MS)]);
      const asked = await this.#inputs.retrying(signal, () => destinations.store(object, signal), again);
      if (asked !== "stored") throw error;
    }
  }

  /**
   * The newest stored state, for which no full backup may be stored yet. An earlier put whose answer was lost may have
   * stored one: an attach adopts it. What else has its name is of no use and stays there, so the next state gets one.
   */
  async #stateWithFreeName(signal: AbortSignal): Promise<StoredState> {
    const { shipper, openReplica, log } = this.#inputs;
    for (let tries = 0; tries < MAX_TAKEN_NAMES; tries++) {
      const from = shipper.stored;
      if (from.index === this.#uncertainIndex) {
        await shipper.untilStored(from.index + 1, signal);
        continue;
      }
      if (await this.#hasOtherSeal(from, signal)) {
        // Two full backups whose names differ in the seal only would have to settle at the same state.
        await shipper.untilStored(from.index + 1, signal);
        continue;
      }
      const location = await this.#locationOfName(from, signal);
      if (location === null) return from;
      const replica = await openReplica(signal);
      for (const object of replica.catalog.fulls.filter((full) => full.first === from.index)) {
        const opened = await replica.trailers.open(object);
        if (opened?.reader.header.chain !== from.chain) continue;
        throw new BakeliteError("io", "a full backup of this state is stored already: attaching anew to adopt it", {
          subject: location,
        });
      }
      log.warn("something that is no full backup has the name of one; taking that of a later state", {
        object: location,
      });
      await shipper.untilStored(from.index + 1, signal);
    }
    throw new BakeliteError("replica-foreign", "the names of full backups are taken by what is none", {
      subject: `${this.#inputs.database}/full`,
      hint: "run `bakelite verify` to see what is in the replica's folder",
    });
  }

  /** Whether a full backup of this state is stored under another seal, as before encryption was switched on. */
  async #hasOtherSeal(from: StoredState, signal: AbortSignal): Promise<boolean> {
    const { destinations, newHeader, database } = this.#inputs;
    const seal = newHeader("full", from.index, from).keyFingerprint ?? PLAINTEXT_SEAL;
    const key = objectKey(database, { kind: "full", index: from.index, seal });
    const other = await destinations.ask(signal, async (backend, life) => {
      for await (const found of backend.list(key.slice(0, -seal.length), { signal: life }))
        if (found.key !== key) return found.key;
      return null;
    });
    return other !== null;
  }

  /** Where an object with the name of a full backup of this state is stored; null when nowhere. */
  async #locationOfName(from: StoredState, signal: AbortSignal): Promise<string | null> {
    const { destinations, newHeader, database } = this.#inputs;
    const seal = newHeader("full", from.index, from).keyFingerprint ?? PLAINTEXT_SEAL;
    const key = objectKey(database, { kind: "full", index: from.index, seal });
    return await destinations.ask(signal, async (backend, life) =>
      (await backend.stat(key, { signal: life })) === null ? null : `${backend.location}/${key}`,
    );
  }

  #start(from: StoredState, reason: FullBackupReason, newLedger: LedgerFile | null, signal: AbortSignal): FullBackup {
    const { follower, pending, shipper, clock, encoding, nextCapture, newHeader } = this.#inputs;
    return fullBackup({
      follower,
      from,
      reason,
      header: newHeader("full", from.index, from),
      encoding,
      startedMs: clock.nowMs(),
      newLedger,
      nextCapture,
      check: (batch) => this.#checkAgainstLedger(batch),
      lastPageRead: () => {
        pending.stopForcing();
        return shipper.indexCarryingAll();
      },
      stored: (index) => shipper.untilStored(index, signal),
      progress: (done, total) => {
        if (this.#underWay !== null) this.#underWay.progress = total === 0 ? 1 : done / total;
      },
    });
  }

  /** A page that nothing is known to have changed must be as the ledger says; if not, it is stored, and that is loud. */
  #checkAgainstLedger(batch: { readonly pageNumbers: Uint32Array; readonly hashes: Uint8Array }): void {
    const { shipper } = this.#inputs;
    if (shipper.ledger === null) return;
    for (const page of pagesThatDiffer(shipper.ledger, batch.pageNumbers, batch.hashes, shipper.stored)) {
      if (!shipper.isUnstored(page)) this.#storeAltered(page);
    }
  }

  #storeAltered(page: number): void {
    const { pending, log } = this.#inputs;
    pending.differs(page);
    log.error("a page of the database is not what was stored, and no change to it was seen; storing it now", {
      page,
      hint: "something wrote to the database file behind SQLite's back, or this is a bug in bakelite: please report it",
    });
  }

  /** The interval has passed and nothing was stored since the newest full backup: the file is proven instead. */
  async #check(signal: AbortSignal): Promise<void> {
    const { follower, shipper, local, clock, log, nextCapture } = this.#inputs;
    const { ledger, stored } = shipper;
    const newest = local.fullBackup;
    if (ledger === null || newest === null) return;
    const found = await compareWithLedger({
      follower,
      ledger,
      state: stored,
      skip: (page) => shipper.isUnstored(page),
      differs: (page) => {
        if (shipper.stored.index === stored.index && !shipper.isUnstored(page)) this.#storeAltered(page);
      },
      nextCapture,
      signal,
      progress: () => {},
    });
    log.info("nothing changed since the newest full backup: compared the file with the ledger instead", {
      differing: found,
    });
    local.tookFullBackup({ ...newest, atMs: clock.nowMs() });
  }

  /** Between two change-sets: the hashes that the full backup read, and what was stored since, become the ledger. */
  async #adoptLedger(ledger: LedgerFile, from: StoredState, signal: AbortSignal): Promise<void> {
    const { shipper, openReplica, ledgerPath, database } = this.#inputs;
    const { stored } = shipper;
    if ((await replay(ledger, await openReplica(signal), from, from.sizePages, stored)) === null) {
      throw new BakeliteError("replica-corrupt", "the change-sets since the full backup cannot be read back", {
        subject: `${database}, indexes ${from.index + 1} to ${stored.index}`,
        hint: "check the destination; the daemon takes another full backup",
      });
    }
    ledger.truncate(stored.sizePages);
    const digest = digestOfLedger(ledger, stored.sizePages, stored.pageSizeBytes);
    await commitLedger(ledger, { ...stored, digest });
    await replaceLedger(ledgerPath, `${ledgerPath}.new`);
    shipper.useLedger(ledger, digest);
  }

  /** `CURRENT` names the newest full backup from now on; a failed try is made up for before the next one is taken. */
  async #writeCurrent(signal: AbortSignal): Promise<void> {
    const { shipper, destinations, newHeader, encoding, clock, local } = this.#inputs;
    const { stored } = shipper;
    if (local.fullBackup === null) return;
    const { index: full, seal } = local.fullBackup;
    const header = newHeader("current", stored.index, stored);
    const { chain, index, lineage } = stored;
    await destinations.storeCurrent(
      header,
      encoding,
      { chain, full, seal, index, lineage, written_ms: clock.nowMs() },
      signal,
    );
    this.#isCurrentStale = false;
  }
}

async function openNewLedger(ledgerPath: string): Promise<LedgerFile> {
  const path = `${ledgerPath}.new`;
  await rm(path, { force: true });
  return await LedgerFile.open(path, { fresh: true });
}
