import type { KeyRing, SealKey } from "../format/envelope.ts";
import type { ObjectHeader, ObjectKind } from "../format/header.ts";
import { PLAINTEXT_SEAL } from "../format/names.ts";
import { lockPageNumber } from "../format/pages.ts";
import { Replica } from "../replica/replica.ts";
import { WalFollower } from "../sqlite/follow.ts";
import { type Cursor, readCursor } from "../state/cursor.ts";
import type { statePaths } from "../state/layout.ts";
import type { LedgerFile } from "../state/ledger-file.ts";
import { type MachineIdentity, readMachineIdentity } from "../state/machine.ts";
import type { Backend } from "../storage/backend.ts";
import { backoffDelayMs } from "../util/backoff.ts";
import type { Clock } from "../util/clock.ts";
import { delay } from "../util/delay.ts";
import { BakeliteError, describeError } from "../util/errors.ts";
import type { Logger } from "../util/logger.ts";
import type { Semaphore } from "../util/semaphore.ts";
import type { Wakeup } from "../util/wakeup.ts";
import { type Adoption, adopt, OUT_OF_SIGHT } from "./adopt.ts";
import { CaptureLoop, type EndOfFollowing, FollowingEnded } from "./capture-loop.ts";
import { compareWithLedger } from "./compare.ts";
import { isDestinationFailure } from "./destination-failure.ts";
import type { Destinations } from "./destinations.ts";
import { Filling } from "./filling.ts";
import type { FullBackupReason } from "./full-backup.ts";
import { FullBackups } from "./full-backups.ts";
import type { Health } from "./health.ts";
import { openLedgerAt } from "./ledger.ts";
import { LocalState } from "./local-state.ts";
import { findAnswering, muster } from "./muster.ts";
import { PendingSet } from "./pending.ts";
import { Shipper } from "./shipper.ts";
import type { StoredState } from "./stored-state.ts";
import { stampState } from "./time-epochs.ts";
import { WalHolders } from "./wal-holders.ts";

export interface ReplicationSettings {
  readonly debounceMs: number;
  readonly maxBatchDelayMs: number;
  readonly safetyPollMs: number;
  readonly busyTimeoutMs: number;
  readonly maxWalSizeBytes: number;
  readonly snapshotIntervalMs: number;
  readonly maxSegmentsPerSnapshot: number;
  readonly compression: "zstd" | "none";
  readonly compressionLevel: number;
}

export interface AttachmentInputs {
  readonly database: string;
  /** Real path of the database file. */
  readonly path: string;
  readonly paths: ReturnType<typeof statePaths>;
  readonly destinations: Destinations;
  readonly settings: ReplicationSettings;
  readonly keys: KeyRing;
  /** What new objects are sealed with; null: nothing. */
  readonly sealKey: SealKey | null;
  readonly acceptPlaintext: boolean;
  readonly takeOver: boolean;
  readonly writer: string;
  /** 32 hex digits: this process. */
  readonly run: string;
  /** So many random bytes as hex digits. */
  readonly randomHex: (bytes: number) => string;
  readonly slots: Semaphore;
  readonly changed: Wakeup;
  readonly health: Health;
  /** What a status would say has changed in kind. */
  readonly onChange: () => void;
  readonly clock: Clock;
  readonly log: Logger;
}

/** `left`: a sentence about what is committed and may not be stored, or null. */
export type AttachmentEnd =
  | { readonly kind: "stopped"; readonly left: string | null }
  | ({ readonly kind: "fault" } & EndOfFollowing);

/** What an attachment is doing before it ships. */
export interface Starting {
  readonly detail: string;
  /** 0 to 1, or null. */
  readonly progress: number | null;
}

/** What a stop leaves to the next start when it came before it was known what is stored. */
export const NOT_COMPARED = "stopped before the database was compared with what is stored: the next start does that";

const RETRY_BASE_MS = 500;

/**
 * One life of following one database, from opening it to closing it: capture begins at once and never stops, and as soon as
 * the destinations answer, the newest stored state is adopted, the ledger is brought there, and what differs is shipped.
 */
export class Attachment {
  readonly #inputs: AttachmentInputs;
  readonly #follower: WalFollower;
  readonly #pending: PendingSet;
  readonly #capture: CaptureLoop;
  readonly #cursor: Cursor | null;
  readonly #machine: MachineIdentity;
  readonly #proven: boolean;
  readonly #local: LocalState;
  readonly holders: WalHolders;
  readonly #beganMs: number;
  #closed = false;
  /** From here on nothing is begun that must wait for others. */
  #stop: AbortSignal = new AbortController().signal;
  #isCurrentStale = false;
  #shipper: Shipper | null = null;
  #fullBackups: FullBackups | null = null;
  #starting: Starting | null = { detail: "attaching", progress: null };
  /** Finds out where the destinations stand, once it is known what is gone on from. */
  #muster: (state: StoredState | null, index: number) => Promise<void> = async () => {};

  private constructor(
    inputs: AttachmentInputs,
    parts: { follower: WalFollower; pending: PendingSet; cursor: Cursor | null; machine: MachineIdentity },
  ) {
    const { follower, pending, cursor, machine } = parts;
    this.#inputs = inputs;
    this.#follower = follower;
    this.#pending = pending;
    this.#cursor = cursor;
    this.#machine = machine;
    this.#beganMs = inputs.clock.monotonicMs();
    const sameFile = cursor?.device === String(follower.device) && cursor.inode === String(follower.inode);
    const samePages = cursor?.pageSizeBytes === follower.pageSizeBytes;
    const continuity = follower.attach(sameFile && samePages ? cursor : null);
    this.#proven = continuity.kind === "proven";
    const reason =
      sameFile || cursor === null
        ? continuity.kind === "unproven"
          ? continuity.reason
          : null
        : "it is another file than before";
    inputs.log.debug("attached", { continuity: continuity.kind, reason, pageSizeBytes: follower.pageSizeBytes });
    this.holders = new WalHolders(inputs.path);
    this.#local = new LocalState({
      path: inputs.paths.cursor,
      found: cursor,
      newSession: inputs.randomHex(16),
      machine,
      file: { device: follower.device, inode: follower.inode },
      positions: () => positionsOf(inputs.destinations, this.#shipper?.stored.index ?? 0),
      keyFingerprint: inputs.sealKey?.fingerprint ?? null,
    });
    inputs.destinations.follow(() => this.#shipper?.newestIndex ?? 0, inputs.onChange);
    this.#capture = new CaptureLoop({
      follower,
      clock: inputs.clock,
      log: inputs.log,
      settings: inputs.settings,
      changed: inputs.changed,
      onCaptured: (commits) => this.#shipper?.captured(commits),
    });
  }

  /** Opens the database and begins to follow it. Throws as `WalFollower.open` does. */
  static async begin(inputs: AttachmentInputs): Promise<Attachment> {
    const { paths, log, clock, path } = inputs;
    const machine = await readMachineIdentity();
    const found = await readCursor(paths.cursor);
    if ("corrupt" in found)
      log.warn("the cursor is damaged and is rebuilt from the replica", { path: paths.cursor, reason: found.corrupt });
    const cursor = "cursor" in found ? found.cursor : null;
    let pending: PendingSet | null = null;
    const follower = WalFollower.open({
      databasePath: path,
      sink: {
        resized: (before, after) => pending?.resized(before, after),
        page: (page) => pending?.page(page),
        committed: () => pending?.committed(),
      },
    });
    try {
      pending = new PendingSet(() => clock.nowMs(), lockPageNumber(follower.pageSizeBytes));
      return new Attachment(inputs, { follower, pending, cursor, machine });
    } catch (error) {
      follower.close();
      throw error;
    }
  }

  get follower(): WalFollower {
    return this.#follower;
  }

  /** Size of the `-wal` file on disk; 0 once the attachment has ended. */
  get walFileBytes(): number {
    return this.#closed ? 0 : this.#follower.walFileBytes;
  }

  /** Finds out who keeps the WAL from being restarted, if anybody does. */
  async lookForHolders(): Promise<void> {
    await this.holders.look(!this.#closed && this.#capture.isHeldBack, this.#inputs.clock.nowMs());
  }

  get capture(): CaptureLoop {
    return this.#capture;
  }

  get shipper(): Shipper | null {
    return this.#shipper;
  }

  get fullBackups(): FullBackups | null {
    return this.#fullBackups;
  }

  get local(): LocalState {
    return this.#local;
  }

  /** Null once change-sets are shipped. */
  get starting(): Starting | null {
    return this.#starting;
  }

  /** When the oldest commit that is not stored yet was captured, Unix milliseconds; null when everything is stored. */
  get oldestUnstoredMs(): number | null {
    return this.#shipper?.oldestUnstoredMs ?? this.#pending.firstCommitMs;
  }

  /**
   * Runs until `stop` is aborted or following ends. At a stop it finds out what is stored, unless that is known or a destination fails,
   * ships what is committed, as far as it gets before `deadline` is aborted, and closes the database. Throws what neither a destination
   * nor a lock explains.
   */
  async run(stop: AbortSignal, deadline: AbortSignal): Promise<AttachmentEnd> {
    this.#stop = stop;
    const ended = new AbortController();
    const inTime = AbortSignal.any([deadline, ended.signal]);
    const adopting = this.#retrying(inTime, () => this.#adopt(inTime), stop);
    using stopped = afterBoth(stop, adopting);
    const everything = AbortSignal.any([stopped.signal, deadline, ended.signal]);
    let end: AttachmentEnd = { kind: "stopped", left: NOT_COMPARED };
    try {
      const capturing = this.#capture.run(everything).then((fault) => {
        if (fault !== null) end = { kind: "fault", ...fault };
      });
      const shipping = this.#replicate(adopting, everything, stop);
      await untilOneEnds([capturing, shipping], () => ended.abort());
    } finally {
      if (stop.aborted && end.kind === "stopped") end = await this.#shipTheRest(deadline);
      await this.#close();
    }
    return end;
  }

  async #replicate(
    adopting: Promise<FullBackupReason | null | "stopped">,
    signal: AbortSignal,
    stop: AbortSignal,
  ): Promise<void> {
    const reason = await adopting;
    const shipper = this.#shipper;
    if (shipper === null || reason === "stopped") return;
    const fullBackups = this.#makeFullBackups(shipper, reason);
    this.#fullBackups = fullBackups;
    this.#starting = null;
    this.#inputs.health.recovered();
    this.#inputs.onChange();
    if (stop.aborted) return;
    const inner = new AbortController();
    const both = AbortSignal.any([signal, inner.signal]);
    const ship = async () => {
      while ((await this.#retrying(both, () => shipper.step(both))) !== "stopped");
    };
    const backUp = async () => {
      while ((await this.#retrying(both, () => fullBackups.takeIfDue(both))) !== "stopped")
        await fullBackups.wait(both);
    };
    const filling = new Filling({
      database: this.#inputs.database,
      destinations: this.#inputs.destinations,
      shipper,
      fullBackups,
      local: this.#local,
      clock: this.#inputs.clock,
      log: this.#inputs.log,
      openReplica: (inFilling, backends) => this.#openReplica(inFilling, backends),
    });
    await untilOneEnds([ship(), backUp(), filling.run(both)], () => inner.abort());
  }

  /** Calls `work` again, after a while, as long as a destination is what fails and `again` is not aborted. */
  async #retrying<T>(signal: AbortSignal, work: () => Promise<T>, again = signal): Promise<T | "stopped"> {
    const { health, log } = this.#inputs;
    for (let attempts = 1; ; attempts++) {
      if (signal.aborted) return "stopped";
      try {
        const result = await work();
        if (attempts > 1) health.recovered();
        return result;
      } catch (error) {
        if (signal.aborted || error instanceof FollowingEnded) return "stopped";
        if (again.aborted && error === again.reason) return "stopped";
        if (!isDestinationFailure(error)) throw error;
        health.failed(error);
        const waitMs = backoffDelayMs(attempts, { baseMs: RETRY_BASE_MS });
        log.warn("a destination fails; trying again", {
          error: describeError(error),
          attempts,
          waitMs: Math.round(waitMs),
        });
        await delay(waitMs, again).catch(() => {});
        if (again.aborted) return "stopped";
      }
    }
  }

  /** Finds the state to go on from and makes the shipper; returns why a full backup must be taken, if one must. */
  async #adopt(signal: AbortSignal): Promise<FullBackupReason | null> {
    const { takeOver, clock, log, paths } = this.#inputs;
    this.#starting = { detail: "reading the replica", progress: null };
    const { database, destinations } = this.#inputs;
    const answering = await findAnswering(destinations, database, signal);
    const replica = await this.#openReplica(
      signal,
      answering.map(({ backend }) => backend),
    );
    const isBlind = answering.length - replica.trailers.failedDestinations.size < destinations.all.length;
    if (isBlind && destinations.isStrict) for (const error of replica.trailers.failedDestinations.values()) throw error;
    await this.#refuseToGoOnInPlaintext(replica);
    const adopted = await adopt({
      replica,
      cursor: this.#cursor,
      machine: this.#machine,
      takeOver,
      isBlind,
      nowMs: clock.nowMs(),
      log,
    });
    const adoption = await this.#clearOfMirrors(adopted, signal);
    this.#muster = async (state, index) => {
      await muster(destinations, { replica, answering, state, index, cursor: this.#cursor, signal });
      for (const [position, error] of replica.trailers.failedDestinations) {
        const member = answering[position];
        if (member !== undefined) destinations.leaveOut(member, error);
      }
    };
    const { newest } = adoption;
    if (isBlind && adoption.fullBackup === null) this.#waitForUnseen();
    const hasOtherSeals = this.#hasOtherSealsOnly(replica);
    const unreadable = hasOtherSeals ? "encryption changed" : "replica unreadable";
    if (newest === null)
      return this.#startChain(adoption, replica.catalog.fulls.length === 0 ? "first backup" : unreadable);
    if (newest.pageSizeBytes !== this.#follower.pageSizeBytes) return this.#startChain(adoption, "page size changed");
    const at = await openLedgerAt(paths.pages, replica, newest, log);
    if (at === null) {
      if (isBlind) this.#waitForUnseen();
      // A chain whose first full backup was never finished leaves nothing behind that could be read.
      const unfinished = replica.catalog.fulls.every((full) => {
        const known = replica.trailers.knowledge(full);
        return known === "unknown" || (known !== "unusable" && known.chain !== newest.chain);
      });
      return this.#startChain(adoption, unfinished ? "first backup" : unreadable);
    }
    await this.#goOn(adoption, at.state, at.ledger, signal);
    // A crash between the two puts leaves a full backup that `CURRENT` does not name.
    this.#isCurrentStale = adoption.fullBackup !== null && replica.current?.full !== adoption.fullBackup.index;
    // Whoever encrypts from now on gets at once what the new key alone restores.
    if (hasOtherSeals) return "encryption changed";
    if (adoption.fullBackup !== null) return null;
    const isDamaged = replica.catalog.fulls.some((full) => replica.trailers.knowledge(full) === "unusable");
    return isDamaged ? "replica unreadable" : "destination gap";
  }

  /**
   * Where neither this host nor a lock-step destination knows of anything, as when both were lost, a mirror may hold what was. The new chain
   * begins above that: under names that are taken there it could not be mirrored, and nobody could tell which is the newer one.
   */
  async #clearOfMirrors(adoption: Adoption, signal: AbortSignal): Promise<Adoption> {
    const { destinations, log } = this.#inputs;
    if (adoption.newest !== null || this.#cursor !== null) return adoption;
    const { highestIndex: atMirrors, silent } = await destinations.takenAtMirrors(signal);
    if (atMirrors > adoption.highestIndex)
      log.warn("a mirror holds an earlier history, and nothing else does: a new one begins above it", {
        index: atMirrors,
        hint: "nothing: both stay restorable; `bakelite repair` copies the earlier one to the other destinations",
      });
    for (const location of silent)
      log.warn("a mirror does not answer: the new history begins far above what it may hold", {
        destination: location,
      });
    const outOfSight = silent.length > 0 ? OUT_OF_SIGHT : 0;
    return { ...adoption, highestIndex: Math.max(adoption.highestIndex, atMirrors) + outOfSight };
  }

  /**
   * What leads on may be where nobody answers just now, as when the network is not up yet. Throws that destination's failure, to
   * try again, for a while: to go on without it takes a full backup.
   */
  #waitForUnseen(): void {
    const { destinations, clock } = this.#inputs;
    if (clock.monotonicMs() - this.#beganMs >= destinations.times.aloneMs) return;
    const error = destinations.all.find(({ standing }) => standing === "out")?.health.lastError;
    throw new BakeliteError("storage-unreachable", error?.message ?? "a destination does not answer", {
      hint: "check the destinations; without this one a full backup is taken",
    });
  }

  /** Goes on in the chain of `stored`, after a comparison if nothing proves that every change since was seen. */
  async #goOn(adoption: Adoption, stored: StoredState, ledger: LedgerFile, signal: AbortSignal): Promise<void> {
    const { log } = this.#inputs;
    try {
      // What was captured since the cursor's position includes all that was since an attempted put's, unless the machine
      // has booted: then the WAL may have lost frames that the put holds.
      const bootedSince = this.#cursor?.bootId !== this.#machine.bootId;
      // The same goes for a large set, which may hold images of commits after its position.
      const isSettled = stored.settled <= stored.index;
      const provenBeyond =
        (adoption.beyondCursor === "nothing" && (isSettled || !bootedSince)) ||
        (adoption.beyondCursor === "attempted put" && !bootedSince);
      let position = stored.position;
      if (this.#proven && provenBeyond)
        log.debug("continuity is proven: going on from the WAL", { index: stored.index });
      else {
        await this.#compare(stored, ledger, signal);
        // Only a state that is wholly stored has a place in this WAL; else the next change-set gives one.
        position = this.#isStored(stored) ? this.#follower.position : null;
      }
      const state = { ...stored, position };
      await this.#muster(state, state.index);
      this.#local.stored(state);
      this.#local.tookFullBackup(adoption.fullBackup);
      this.#shipper = this.#makeShipper(state, ledger, adoption.highestIndex);
    } catch (error) {
      await ledger.close();
      throw error;
    }
  }

  #isStored(stored: StoredState): boolean {
    return (
      this.#pending.pageCount === 0 && this.#pending.commits === 0 && this.#follower.sizePages === stored.sizePages
    );
  }

  async #compare(stored: StoredState, ledger: LedgerFile, signal: AbortSignal): Promise<void> {
    const { slots, log, clock } = this.#inputs;
    const waiting = AbortSignal.any([signal, this.#stop]);
    const priority = this.#follower.sizePages * this.#follower.pageSizeBytes;
    using _slot = slots.tryAcquire() ?? (await slots.acquire({ priority, signal: waiting }));
    const startedMs = clock.monotonicMs();
    const found = await compareWithLedger({
      follower: this.#follower,
      ledger,
      state: stored,
      skip: (page) => this.#pending.has(page),
      differs: (page) => this.#pending.differs(page),
      nextCapture: () => this.#capture.nextCapture(),
      signal,
      progress: (done, total) => {
        this.#starting = {
          detail: "comparing the database with what is stored",
          progress: total === 0 ? 1 : done / total,
        };
      },
    });
    log.info("compared the database with the page ledger, because nothing proves that every change was seen", {
      index: stored.index,
      pages: this.#follower.sizePages,
      differing: found,
      tookMs: Math.round(clock.monotonicMs() - startedMs),
    });
  }

  /** A new chain: its first state is the database of this moment, which the full backup that begins at once will hold. */
  async #startChain(adoption: Adoption, reason: FullBackupReason): Promise<FullBackupReason> {
    const { randomHex, clock } = this.#inputs;
    while (!this.#follower.canResolve) await this.#capture.nextCapture();
    this.#pending.take(this.#follower.sizePages);
    const index = adoption.highestIndex + 1;
    const stored: StoredState = {
      chain: randomHex(16),
      index,
      lineage: randomHex(32),
      pageSizeBytes: this.#follower.pageSizeBytes,
      sizePages: this.#follower.sizePages,
      digest: null,
      settled: index,
      position: this.#follower.position,
      ...stampState(adoption.newest ?? this.#cursor, index, clock.nowMs()),
    };
    await this.#muster(null, index);
    this.#local.stored(stored);
    this.#local.tookFullBackup(null);
    this.#shipper = this.#makeShipper(stored, null, index);
    return reason;
  }

  #makeShipper(stored: StoredState, ledger: LedgerFile | null, highestIndex: number): Shipper {
    const { database, destinations, clock, log, settings } = this.#inputs;
    return new Shipper(
      {
        database,
        follower: this.#follower,
        pending: this.#pending,
        destinations,
        local: this.#local,
        clock,
        log,
        settings,
        encoding: this.#encoding(),
        nextCapture: () => this.#capture.nextCapture(),
        onStored: () => this.#fullBackups?.noteStored(),
        newHeader: (kind, first, from) => this.#newHeader(kind, first, from),
        openReplica: (signal) => this.#openReplica(signal),
      },
      { stored, ledger, highestIndex },
    );
  }

  #makeFullBackups(shipper: Shipper, reason: FullBackupReason | null): FullBackups {
    const { database, destinations, slots, paths, clock, log, settings } = this.#inputs;
    return new FullBackups(
      {
        database,
        follower: this.#follower,
        pending: this.#pending,
        shipper,
        destinations,
        local: this.#local,
        slots,
        onChange: this.#inputs.onChange,
        ledgerPath: paths.pages,
        clock,
        log,
        settings,
        encoding: this.#encoding(),
        nextCapture: () => this.#capture.nextCapture(),
        newHeader: (kind, first, from) => this.#newHeader(kind, first, from),
        openReplica: (signal) => this.#openReplica(signal),
        retrying: (signal, work, again) => this.#retrying(signal, work, again),
      },
      reason,
      this.#isCurrentStale,
    );
  }

  #encoding() {
    const { sealKey, settings } = this.#inputs;
    return { sealKey: sealKey?.key ?? null, compressionLevel: settings.compressionLevel };
  }

  #newHeader(kind: ObjectKind, first: number, from: StoredState): ObjectHeader {
    const { writer, database, settings, sealKey, run, randomHex } = this.#inputs;
    return {
      writer,
      kind,
      database,
      level: 0,
      first,
      chain: from.chain,
      pageSizeBytes: from.pageSizeBytes,
      compression: settings.compression,
      cipher: sealKey === null ? "none" : "xchacha20-poly1305",
      keyFingerprint: sealKey?.fingerprint ?? null,
      nonceSeed: randomHex(24),
      session: this.#local.session,
      run,
    };
  }

  async #openReplica(signal: AbortSignal, backends: readonly Backend[] = []): Promise<Replica> {
    const { database, destinations, keys, sealKey, acceptPlaintext } = this.#inputs;
    return await Replica.open({
      database,
      backends: backends.length > 0 ? backends : destinations.readable,
      keys,
      seal: sealKey?.fingerprint ?? PLAINTEXT_SEAL,
      acceptPlaintext,
      signal,
    });
  }

  #hasOtherSealsOnly({ catalog: { fulls } }: Replica): boolean {
    const seal = this.#inputs.sealKey?.fingerprint ?? PLAINTEXT_SEAL;
    return fulls.length > 0 && fulls.every((full) => full.seal !== seal);
  }

  /** Somebody who encrypts does not want to find out later that a lost setting had switched it off. */
  async #refuseToGoOnInPlaintext(replica: Replica): Promise<void> {
    const newest = replica.catalog.changeSets.at(-1) ?? replica.catalog.fulls.at(-1);
    if (this.#inputs.sealKey !== null || newest === undefined || newest.seal === PLAINTEXT_SEAL) return;
    throw new BakeliteError("key-wrong", "the replica is encrypted and no key is configured", {
      subject: replica.describe(newest),
      hint: "set [defaults.encryption] key_file; to decrypt the replica, see `bakelite reencrypt --help`",
    });
  }

  /** At a clean stop. A fault shows that something was committed that nobody has seen yet. */
  async #shipTheRest(deadline: AbortSignal): Promise<AttachmentEnd> {
    const [shipper, { log }] = [this.#shipper, this.#inputs];
    if (shipper === null) return { kind: "stopped", left: NOT_COMPARED };
    try {
      const result = await this.#capture.captureAll();
      if (result.kind === "fault") return { kind: "fault", fault: result.fault, detail: result.detail };
      shipper.captured(result.kind === "captured" ? result.commits : 0);
      shipper.flush();
      await this.#flush(shipper, deadline);
      await shipper.writeLocalState(true);
      if (result.kind === "captured") return { kind: "stopped", left: this.#lackingFullBackup };
      log.warn("what was committed last could not be captured before the stop", { reason: "the database is locked" });
      return { kind: "stopped", left: commitsLeft(1) };
    } catch (error) {
      log.warn("not everything that is committed could be stored before the stop", {
        commits: shipper.unstoredCommits,
        error: describeError(error),
      });
      return { kind: "stopped", left: commitsLeft(Math.max(1, shipper.unstoredCommits)) };
    }
  }

  /** A destination that has been failing is not waited for; one that fails only now may be there again in a moment. */
  async #flush(shipper: Shipper, deadline: AbortSignal): Promise<void> {
    const isAway = this.#inputs.health.streak !== null;
    for (let attempts = 1; !shipper.isIdle; ) {
      deadline.throwIfAborted();
      try {
        await shipper.step(deadline);
      } catch (error) {
        if (isAway || deadline.aborted || !isDestinationFailure(error)) throw error;
        const waitMs = backoffDelayMs(attempts++, { baseMs: RETRY_BASE_MS });
        await delay(waitMs, deadline).catch(() => {
          throw error;
        });
      }
    }
  }

  /** All change-sets of a chain restore nothing before its first full backup is stored. */
  get #lackingFullBackup(): string | null {
    return this.#local.fullBackup === null
      ? "stopped before the full backup was stored: the next start takes it"
      : null;
  }

  async #close(): Promise<void> {
    this.#closed = true;
    await this.#inputs.destinations.settle();
    await this.#capture.settled();
    try {
      await this.#shipper?.ledger?.close();
    } finally {
      this.#follower.close();
    }
  }
}

/** What the cursor says of each destination. */
function positionsOf({ all }: Destinations, index: number): Cursor["destinations"] {
  return Object.fromEntries(
    all.map((member) => {
      const reached = member.standing === "whole" ? index : Math.min(index, member.index ?? 0);
      return [member.backend.location, { index: reached, ...(member.isComplete ? {} : { incomplete: true }) }];
    }),
  );
}

function commitsLeft(count: number): string {
  return `${count} committed transaction(s) could not be shipped before the stop`;
}

/** Aborted once `signal` is and `work` has ended, in whatever way; until it is disposed of. */
function afterBoth(signal: AbortSignal, work: Promise<unknown>): Disposable & { readonly signal: AbortSignal } {
  const both = new AbortController();
  const ended = work.then(
    () => {},
    () => {},
  );
  const onAbort = () => void ended.then(() => both.abort(signal.reason));
  if (signal.aborted) onAbort();
  else signal.addEventListener("abort", onAbort, { once: true });
  return {
    signal: both.signal,
    [Symbol.dispose]: () => signal.removeEventListener("abort", onAbort),
  };
}

/** Waits for all; when the first of them ends, in whatever way, tells the others to. Throws the first failure. */
async function untilOneEnds(tasks: readonly Promise<unknown>[], endOthers: () => void): Promise<void> {
  const outcomes = await Promise.allSettled(tasks.map((task) => task.finally(endOthers)));
  for (const outcome of outcomes) if (outcome.status === "rejected") throw outcome.reason;
}
