import type { Clock } from "../util/clock.ts";
import { delay } from "../util/delay.ts";
import { BakeliteError } from "../util/errors.ts";
import { linkSignals } from "../util/linked-signal.ts";
import { Wakeup } from "../util/wakeup.ts";
import { isMemberFailure } from "./destination-failure.ts";
import type { Member } from "./member.ts";

/** How one round of calls to the destinations is judged. */
export interface Round {
  readonly patienceMs: number;
  readonly signal: AbortSignal;
  /** The caller can have it done again from the start, by others. */
  readonly isRepeatable: boolean;
  /** It shows that the destination takes what it is given. */
  readonly isPut: boolean;
  /** Called for each destination that failed, or that is not waited for any longer, when another one did not. */
  readonly leaveOut: (member: Member, error: unknown) => void;
}

export interface RoundsInputs {
  /** Every lock-step destination of the database. */
  readonly all: readonly Member[];
  /** As `Destinations.isStrict`. */
  readonly isStrict: boolean;
  /** One that was left out is filled from the others. */
  readonly isFilled: boolean;
  readonly clock: Clock;
}

/** What a call that cannot be ended may keep a stop waiting. */
const SETTLE_MS = 5000;

/**
 * Calls to several destinations of one database at the same moment, of which none holds up another: how long who is waited for, which
 * failure is whose, and what becomes of the calls that nobody waits for any longer.
 */
export class Rounds {
  readonly #inputs: RoundsInputs;
  /** Ends what is under way and not waited for. */
  #life = new AbortController();
  /** Of the rounds that are under way: woken when a destination's standing is another. */
  readonly #underWay = new Set<Wakeup>();
  #fatal: { readonly error: unknown } | null = null;

  constructor(inputs: RoundsInputs) {
    this.#inputs = inputs;
  }

  /** A destination's standing is another. */
  wake(): void {
    for (const round of this.#underWay) round.wake();
  }

  /** Ends all calls that nobody waits for, and resolves when they have ended: nothing is written any more. */
  async settle(): Promise<void> {
    this.#life.abort();
    this.#life = new AbortController();
    // A file system that hangs cannot be told to stop.
    await within(SETTLE_MS, Promise.all(this.#inputs.all.map(({ late }) => late)));
    this.#fatal = null;
  }

  /** Throws what showed at a call that nobody waited for, and concerns the database. */
  throwFatal(): void {
    if (this.#fatal !== null) throw this.#fatal.error;
  }

  /** One that is still being filled counts only where there is no better one, or where nothing is ever filled. */
  counts(member: Member): boolean {
    const { all, isStrict, isFilled } = this.#inputs;
    if (isStrict || !isFilled || member.standing === "whole") return true;
    return !all.some(({ standing }) => standing === "whole");
  }

  /**
   * Calls `work` for each at once. Resolves when all are done, or one that counts is and the others have had their time: those
   * are left out, and so is whoever failed. Throws the first failure when none that counts is done.
   */
  async each(
    members: readonly Member[],
    round: Round,
    work: (member: Member, signal: AbortSignal) => Promise<void>,
  ): Promise<void> {
    const linked = linkSignals(round.signal, this.#life.signal);
    const life = linked.signal;
    const failures = new Map<Member, unknown>();
    const waiting = new Map<Member, Promise<void>>();
    const moved = new Wakeup();
    let isOver = false;
    let hasSucceeded = false;
    for (const member of members) {
      const attempt = work(member, life).then(
        () => {
          if (round.isPut) member.health.recovered();
          hasSucceeded ||= this.counts(member);
        },
        (error: unknown) => {
          failures.set(member, error);
          if (isOver) this.#failedLate(member, error, life);
        },
      );
      waiting.set(
        member,
        attempt.finally(() => {
          waiting.delete(member);
          moved.wake();
        }),
      );
    }
    void Promise.all(waiting.values()).then(() => linked.unlink());
    this.#underWay.add(moved);
    await this.#untilEnough(members, round, { waiting, moved, hasSucceeded: () => hasSucceeded });
    this.#underWay.delete(moved);
    isOver = true;
    for (const [member, put] of waiting) {
      member.leaveBehind(put);
      failures.set(member, tooSlow(round.patienceMs));
    }
    for (const [member, error] of failures) if (!this.#isOfMember(error)) throw this.#noted(member, error);
    if (!hasSucceeded || (this.#inputs.isStrict && failures.size > 0)) this.#throwFirst(members, failures);
    for (const [member, error] of failures) round.leaveOut(member, error);
  }

  /**
   * Until all are done, or the time is over that the others have once one is. Nobody is waited for in vain either who was left out
   * meanwhile, or whose work another destination may do that has come back meanwhile.
   */
  async #untilEnough(
    members: readonly Member[],
    { patienceMs, isRepeatable }: Round,
    calls: {
      readonly waiting: ReadonlyMap<Member, unknown>;
      readonly moved: Wakeup;
      readonly hasSucceeded: () => boolean;
    },
  ): Promise<void> {
    const { waiting, moved, hasSucceeded } = calls;
    let endMs = Number.POSITIVE_INFINITY;
    while (waiting.size > 0) {
      const nowMs = this.#inputs.clock.monotonicMs();
      if (!this.#inputs.isStrict) {
        const isHopeless = [...waiting.keys()].every(({ standing }) => standing === "out");
        if (isHopeless && !hasSucceeded()) return;
        const others = this.#inputs.all.filter((member) => member.standing === "whole" && !members.includes(member));
        if (hasSucceeded() || (isRepeatable && others.length > 0)) endMs = Math.min(endMs, nowMs + patienceMs);
      }
      if (nowMs >= endMs) return;
      await moved.wait(endMs - nowMs);
    }
  }

  /** With a single destination every failure is the caller's. */
  #isOfMember(error: unknown): boolean {
    return this.#inputs.all.length === 1 || isMemberFailure(error);
  }

  #noted(member: Member, error: unknown): unknown {
    if (error instanceof BakeliteError && error.code !== "interrupted") member.health.failed(error);
    return error;
  }

  #throwFirst(members: readonly Member[], failures: ReadonlyMap<Member, unknown>): never {
    for (const [member, error] of failures) member.health.failed(error);
    for (const member of members) if (failures.has(member) && this.counts(member)) throw failures.get(member);
    for (const error of failures.values()) throw error;
    throw new BakeliteError("internal", "invariant broken: what did not succeed has failed");
  }

  /** A stranger that shows at a put which nobody waits for ends the next one. */
  #failedLate(member: Member, error: unknown, signal: AbortSignal): void {
    if (signal.aborted) return;
    member.health.failed(error);
    if (!isMemberFailure(error)) this.#fatal = { error };
  }
}

async function within(ms: number, work: Promise<unknown>): Promise<void> {
  const ended = new AbortController();
  await Promise.race([work.finally(() => ended.abort()), delay(ms, ended.signal)]).catch(() => {});
}

function tooSlow(patienceMs: number): BakeliteError {
  return new BakeliteError("storage-unreachable", `it took ${patienceMs / 1000} s longer than another destination`, {
    hint: "nothing: it is filled from the others; make it faster, or a mirror (`async = true`), if this comes back",
  });
}
