import { footerSha256 } from "../format/decode.ts";
import { encodeDocument } from "../format/encode.ts";
import type { ObjectHeader } from "../format/header.ts";
import { currentKey, objectKey } from "../format/names.ts";
import { copyObject } from "../replica/fill-copy.ts";
import type { RetentionPolicy } from "../replica/retention-policy.ts";
import { type Backend, type ByteSource, bytesSource } from "../storage/backend.ts";
import { type Clock, systemClock } from "../util/clock.ts";
import { BakeliteError, describeError } from "../util/errors.ts";
import { type Logger, silentLogger } from "../util/logger.ts";
import { isMemberFailure } from "./destination-failure.ts";
import { type EncodedObject, FOOTER_BYTES, type StoredBytes } from "./encoded-object.ts";
import { FanOut } from "./fan-out.ts";
import { type Destination, Member } from "./member.ts";
import { type Round, Rounds } from "./rounds.ts";

/** What becomes of a destination that lacks what another one has: `on_incomplete_destination` in the config. */
export type OnIncomplete = "backfill" | "refuse" | "warn";

/** How long what is waited for. Only tests have other times than these. */
export interface DestinationTimes {
  /** Once one destination has a change-set, the others are waited for so long. */
  readonly patienceMs: number;
  /** The same of a full backup, which delays no change-set. */
  readonly fullPatienceMs: number;
  /** A destination that has not answered a listing by then is left aside. */
  readonly answerMs: number;
  /** After so long without any other destination, one that answers goes on alone. */
  readonly aloneMs: number;
  /** How often a destination is asked whether it still has the newest full backup. */
  readonly checkMs: number;
  /** The upper bound of the first wait before a destination that failed is tried again. */
  readonly retryBaseMs: number;
}

const TIMES: DestinationTimes = {
  patienceMs: 5000,
  fullPatienceMs: 60_000,
  answerMs: 30_000,
  aloneMs: 30_000,
  checkMs: 15 * 60_000,
  retryBaseMs: 1000,
};

/** What mirrors hold, which the replicator does not see. */
export interface TakenAtMirrors {
  /** The highest index that any object at those that answer has; 0: none. */
  readonly highestIndex: number;
  /** Locations of those that do not answer. */
  readonly silent: readonly string[];
}

export interface DestinationsOptions {
  readonly onIncomplete?: OnIncomplete;
  /** Asks the mirrors, for some seconds at most; not given: there are none. Rejects only when interrupted. */
  readonly takenAtMirrors?: (signal: AbortSignal) => Promise<TakenAtMirrors>;
  /** What need not be copied to a destination that is filled; not given: everything is. */
  readonly policy?: RetentionPolicy;
  /** The highest level of compaction; 0 without compaction. */
  readonly highestLevel?: number;
  readonly times?: Partial<DestinationTimes>;
  readonly clock?: Clock;
  readonly log?: Logger;
}

const KEEP_ALL: RetentionPolicy = {
  mergedKeepMs: [],
  keepRecent: 0,
  retentionMs: 0,
  maxBackups: 0,
  maxTotalSizeBytes: 0,
};

/**
 * Stores objects at the lock-step destinations of one database. An object is stored once a destination that holds the whole
 * way to the newest state has it. One that fails, or is much slower than the others, is left out until it was filled from
 * them, so that it holds nobody up (docs/several-destinations.md). With a single destination, and under `refuse`, nothing is
 * stored before all have it, and a failure is the caller's to try again.
 */
export class Destinations {
  readonly onIncomplete: OnIncomplete;
  readonly times: DestinationTimes;
  readonly policy: RetentionPolicy;
  readonly highestLevel: number;
  readonly takenAtMirrors: (signal: AbortSignal) => Promise<TakenAtMirrors>;
  readonly #database: string;
  readonly #members: readonly Member[];
  readonly #clock: Clock;
  readonly #log: Logger;
  /** Where it was told already that `CURRENT` may not be overwritten. */
  readonly #staleCurrents = new Set<string>();
  #onChange: () => void = () => {};
  /** The newest state that is stored or on its way. */
  #position: () => number = () => 0;
  readonly #rounds: Rounds;

  constructor(database: string, all: readonly Destination[], options: DestinationsOptions = {}) {
    const { onIncomplete = "backfill", times = {}, clock = systemClock, log = silentLogger } = options;
    this.#database = database;
    this.onIncomplete = onIncomplete;
    this.policy = options.policy ?? KEEP_ALL;
    this.highestLevel = options.highestLevel ?? 0;
    this.takenAtMirrors = options.takenAtMirrors ?? (async () => ({ highestIndex: 0, silent: [] }));
    this.times = { ...TIMES, ...times };
    this.#clock = clock;
    this.#log = log;
    const changed = () => this.#changed();
    this.#members = all.map((destination) => new Member(destination, () => clock.nowMs(), changed));
    this.#rounds = new Rounds({
      all: this.#members,
      isStrict: this.isStrict,
      isFilled: onIncomplete !== "warn",
      clock,
    });
    if (all.length === 0) throw new BakeliteError("internal", "a database has at least one destination");
  }

  get all(): readonly Member[] {
    return this.#members;
  }

  get backends(): readonly Backend[] {
    return this.#members.map(({ backend }) => backend);
  }

  /** Nothing is stored before every destination has it. */
  get isStrict(): boolean {
    return this.#members.length === 1 || this.onIncomplete === "refuse";
  }

  /** Those from which all that is stored can be read. */
  get readable(): readonly Backend[] {
    const whole = this.#members.filter(({ standing }) => standing === "whole");
    const some = whole.length > 0 ? whole : this.#members.filter(({ standing }) => standing !== "out");
    return (some.length > 0 ? some : this.#members).map(({ backend }) => backend);
  }

  /** A new attachment begins. `position`: the newest state that is stored or on its way; `onChange`: a destination's standing is another. */
  follow(position: () => number, onChange: () => void): void {
    this.#position = position;
    this.#onChange = onChange;
  }

  /** Ends all puts that nobody waits for, and resolves when they have ended: nothing is written any more. */
  async settle(): Promise<void> {
    await this.#rounds.settle();
  }

  /**
   * Puts the object under its name, which nobody may have taken. A streamed body is encoded once, and given to all destinations
   * piece by piece. Throws `replica-foreign` when another writer has that name with other bytes.
   *
   * After a failure call it again with the same object, unless that is a stream that was not sent to its end
   * (`footerSha256` is null). One that was may be stored although the answer was lost, so then the destinations are asked.
   * "lost": those that answer do not have it, and the object must be encoded anew.
   */
  async store(object: EncodedObject, signal: AbortSignal): Promise<"stored" | "lost"> {
    const { name } = object;
    const key = objectKey(this.#database, name);
    const isFull = name.kind === "full";
    const takers = this.#takers();
    // With every change-set after it, a full backup restores the newest state; without them it is of no use there.
    const members =
      name.kind === "full" && !this.isStrict ? takers.filter((member) => hasAllAfter(member, name.index)) : takers;
    if (members.length === 0) throw noTaker("none has got every change-set since this full backup began");
    const done = (member: Member) => {
      if (name.kind === "change-set") member.stored(name);
      else if (name.kind === "full" && member.standing === "joining" && hasAllAfter(member, name.index))
        this.becameWhole(member);
    };
    const round: Round = {
      signal,
      isRepeatable: object.source.replayable,
      isPut: true,
      patienceMs: isFull ? this.times.fullPatienceMs : this.times.patienceMs,
      leaveOut: (member, error) => (isFull ? this.#lacksFull(member, error) : this.leaveOut(member, error)),
    };
    if (object.source.replayable)
      await this.#rounds.each(members, round, async (member, life) => {
        await this.#put(member.backend, key, object.source, object, life);
        done(member);
      });
    else if (object.footerSha256() === null) await this.#stream(members, round, { key, object, done });
    else if ((await this.#ask(members, round, { key, object, done })) === "lost") return "lost";
    // One that has joined since it began gets a copy.
    if (isFull && !this.isStrict)
      for (const other of this.#members) if (!members.includes(other)) other.setHistory(false);
    return "stored";
  }

  /** What a destination that gets new objects says, the first that is not null; each is asked, one that fails is left out. */
  async ask<T>(
    signal: AbortSignal,
    question: (backend: Backend, signal: AbortSignal) => Promise<T | null>,
  ): Promise<T | null> {
    let answer: T | null = null;
    await this.#rounds.each(this.#takers(), this.#usual(signal), async ({ backend }, life) => {
      const found = await question(backend, life);
      answer ??= found;
    });
    return answer;
  }

  /**
   * Where a destination cannot refuse a taken name in one step (it looks and then stores), another writer may have stored
   * over our object, or we over theirs: throws `replica-foreign` unless these very bytes are there. Costs nothing elsewhere.
   */
  async confirm({ name, footerSha256: ours }: StoredBytes, signal: AbortSignal): Promise<void> {
    const key = objectKey(this.#database, name);
    await this.ask(signal, async (backend, life) => {
      if (backend.capabilities.putIfAbsent) return null;
      const theirs = await storedFooterSha256(backend, key, life);
      if (!sameBytes(ours, theirs)) throw anotherWriter(`${backend.location}/${key}`);
      return null;
    });
  }

  /** Rewrites `CURRENT` everywhere. */
  async storeCurrent(
    header: ObjectHeader,
    sealing: { readonly sealKey: Uint8Array | null; readonly compressionLevel: number },
    fields: Record<string, unknown>,
    signal: AbortSignal,
  ): Promise<void> {
    const bytes = await encodeDocument({ header, ...sealing }, fields);
    await this.#rounds.each(this.#takers(), { ...this.#usual(signal), isPut: true }, async ({ backend }, life) => {
      try {
        await backend.put(currentKey(this.#database), bytesSource(bytes), { signal: life });
      } catch (error) {
        // It is a shortcut. Where nothing may be overwritten it stays as it is, and everything else goes on.
        if (!(error instanceof BakeliteError && error.code === "storage-denied")) throw error;
        this.#noteStaleCurrent(backend.location, error);
      }
    });
  }

  #noteStaleCurrent(destination: string, error: BakeliteError): void {
    const level = this.#staleCurrents.has(destination) ? "debug" : "warn";
    this.#staleCurrents.add(destination);
    this.#log[level](
      "CURRENT may not be overwritten here: restores still find the newest state, and verify says that it points elsewhere",
      { destination, error: describeError(error) },
    );
  }

  /** It gets nothing from now on, until it joins again. */
  leaveOut(member: Member, error: unknown): void {
    if (this.isStrict) return;
    const fields = {
      destination: member.backend.location,
      error: describeError(error),
      hint: error instanceof BakeliteError ? error.hint : undefined,
    };
    // One that comes and goes is told of once for each reason.
    const isNews = member.standing === "whole" || member.health.lastError?.message !== fields.error;
    if (member.standing !== "out")
      this.#log[isNews ? "warn" : "debug"]("a destination is incomplete: shipping goes on without it", fields);
    member.fallOut(error);
    this.#changed();
  }

  /** It holds all that leads to the newest state. */
  becameWhole(member: Member): void {
    member.setWhole();
    this.#changed();
  }

  #changed(): void {
    this.#rounds.wake();
    this.#onChange();
  }

  #usual(signal: AbortSignal): Round {
    const { patienceMs } = this.times;
    return {
      signal,
      patienceMs,
      isRepeatable: true,
      isPut: false,
      leaveOut: (member, error) => this.leaveOut(member, error),
    };
  }

  /** Those that get new objects. Throws when there are none. */
  #takers(): readonly Member[] {
    this.#rounds.throwFatal();
    const takers = this.isStrict ? this.#members : this.#members.filter(({ standing }) => standing !== "out");
    if (takers.length > 0) return takers;
    const reason = this.#members
      .map(({ health }) => health.lastError?.message)
      .find((message) => message !== undefined);
    throw noTaker(reason ?? "none has answered yet");
  }

  async #stream(
    members: readonly Member[],
    round: Round,
    {
      key,
      object,
      done,
    }: { readonly key: string; readonly object: EncodedObject; readonly done: (member: Member) => void },
  ): Promise<void> {
    const isFull = object.name.kind === "full";
    const [only] = members;
    if (members.length === 1 && only !== undefined)
      return await this.#rounds.each(members, round, async (_, life) => {
        await this.#put(only.backend, key, object.source, object, life);
        done(only);
      });
    const fanOut = new FanOut(object.source, members.length, {
      totalPatienceMs: isFull ? Number.POSITIVE_INFINITY : this.times.patienceMs,
      stallMs: this.isStrict ? Number.POSITIVE_INFINITY : round.patienceMs,
      clock: this.#clock,
    });
    try {
      await this.#rounds.each(members, round, async (member, life) => {
        const position = members.indexOf(member);
        try {
          await this.#put(member.backend, key, fanOut.reader(position), object, life);
          done(member);
        } finally {
          fanOut.leave(position);
        }
      });
    } catch (error) {
      throw fanOut.failure === null ? error : fanOut.failure.error;
    }
  }

  /** Which of them have an object that was sent to its end, though nobody heard that it arrived. */
  async #ask(
    members: readonly Member[],
    round: Round,
    {
      key,
      object,
      done,
    }: { readonly key: string; readonly object: EncodedObject; readonly done: (member: Member) => void },
  ): Promise<"stored" | "lost"> {
    if (this.isStrict && members.length > 1) return await this.#askAll(members, { key, object, signal: round.signal });
    let lackingCount = 0;
    try {
      await this.#rounds.each(members, round, async (member, life) => {
        if (await holds(member.backend, key, object, life)) return done(member);
        // One that has joined since was never sent it.
        if (this.#rounds.counts(member)) lackingCount++;
        throw new BakeliteError("replica-missing", "an object that was sent there did not arrive", {
          subject: `${member.backend.location}/${key}`,
          hint: "nothing: it is sent again",
        });
      });
      return "stored";
    } catch (error) {
      if (round.signal.aborted || !isMemberFailure(error) || lackingCount === 0) throw error;
      return "lost";
    }
  }

  /** As `#ask`, where all must have it: those that lack it get a copy of what arrived elsewhere. */
  async #askAll(
    members: readonly Member[],
    { key, object, signal }: { readonly key: string; readonly object: EncodedObject; readonly signal: AbortSignal },
  ): Promise<"stored" | "lost"> {
    const holders: Member[] = [];
    for (const member of members) if (await holds(member.backend, key, object, signal)) holders.push(member);
    if (holders.length === 0) return "lost";
    const sources = holders.map(({ backend }) => backend);
    const longLived = object.name.kind === "full";
    for (const { backend } of members.filter((member) => !holders.includes(member))) {
      const outcome = await copyObject({ key, sources, target: backend, longLived, signal });
      if (outcome.kind === "conflict" || outcome.kind === "unusable") throw outcome.error;
      if (outcome.kind === "gone") return "lost";
    }
    return "stored";
  }

  /** It gets its change-sets all the same, and the full backup from a sibling. */
  #lacksFull(member: Member, error: unknown): void {
    this.#log.warn("a destination did not take the full backup: it gets a copy later", {
      destination: member.backend.location,
      error: describeError(error),
      hint: error instanceof BakeliteError ? error.hint : undefined,
    });
    member.setHistory(false);
    if (member.standing !== "out") member.join(this.#position());
    member.health.failed(error);
  }

  async #put(
    backend: Backend,
    key: string,
    source: ByteSource,
    object: EncodedObject,
    signal: AbortSignal,
  ): Promise<void> {
    const longLived = object.name.kind === "full";
    const outcome = await backend.put(key, source, { ifAbsent: true, longLived, signal });
    if (outcome === "stored") return;
    // The name is taken: by our own first try, whose answer was lost, or by somebody else.
    if (!(await holds(backend, key, object, signal))) throw anotherWriter(`${backend.location}/${key}`);
  }
}

/** Whether it has got every change-set after state `index`. */
function hasAllAfter({ standing, joinedAt }: Member, index: number): boolean {
  return standing === "whole" || (standing === "joining" && joinedAt <= index);
}

function noTaker(reason: string): BakeliteError {
  return new BakeliteError("storage-unreachable", `no destination takes anything: ${reason}`, {
    hint: "check the destinations; shipping goes on with the first one that answers",
  });
}

export function anotherWriter(subject: string): BakeliteError {
  return new BakeliteError("replica-foreign", "another bakelite writes to this replica", {
    subject,
    hint: "stop the other daemon, or give this database another name; `bakelite daemon --take-over` goes on from what it stored",
  });
}

/** Whether the very bytes of `object` are stored there. */
async function holds(backend: Backend, key: string, object: EncodedObject, signal: AbortSignal): Promise<boolean> {
  return sameBytes(object.footerSha256(), await storedFooterSha256(backend, key, signal));
}

function sameBytes(ours: Uint8Array | null, theirs: Uint8Array | null): boolean {
  return ours !== null && theirs !== null && Buffer.compare(ours, theirs) === 0;
}

/** The footer's SHA-256 of a stored object, or null when it is gone or too short to have one. */
async function storedFooterSha256(backend: Backend, key: string, signal: AbortSignal): Promise<Uint8Array | null> {
  const stream = await backend.get(key, { range: { start: -FOOTER_BYTES }, signal });
  if (stream === null) return null;
  const tail = Buffer.concat(await Array.fromAsync(stream));
  return tail.byteLength === FOOTER_BYTES ? footerSha256(tail, key) : null;
}
