import { rm } from "node:fs/promises";
import { join } from "node:path";
import { emptyKeyRing, keyRing, type SealKey } from "../../src/format/envelope.ts";
import { PLAINTEXT_SEAL } from "../../src/format/names.ts";
import { planRestore, type RestoreTarget } from "../../src/replica/plan.ts";
import { Replica } from "../../src/replica/replica.ts";
import { restoreDatabase } from "../../src/replica/restore.ts";
import type { Backend } from "../../src/storage/backend.ts";
import { BakeliteError, describeError } from "../../src/util/errors.ts";
import { gradeRestore } from "./grade.ts";
import type { Ack } from "./protocol.ts";

export interface RestorerOptions {
  /** A client of the destination, new for each restore as each command would have. */
  readonly openReplica: () => Backend;
  readonly database: string;
  readonly databasePath: string;
  /** Where files are restored to, and removed again once they are graded. */
  readonly folder: string;
  /** What everything is sealed with; null: nothing. */
  readonly sealKey: SealKey | null;
  /** Where that changes, how one restores at this moment; another object as soon as that is another way. */
  readonly readings?: () => Readings;
  /** What the writers reported until now. */
  readonly acks: () => readonly Ack[];
}

/** What the encryption that a config names comes to, for whoever reads. */
export interface Reading {
  readonly sealKey: SealKey | null;
  /** `p`, or the fingerprint of the key. */
  readonly seal: string;
  readonly acceptPlaintext: boolean;
}

export interface Readings {
  /** To be tried in this order: one that is refused for its key leads to the next. */
  readonly ways: readonly Reading[];
  /** Everything is being rewritten under another seal, so objects that were listed may be gone. */
  readonly isMoving: boolean;
}

export interface RestoreOptions {
  /** As `storedFloorN` of `gradeRestore`. */
  readonly floorN?: number;
  /** Leave the file where it is. */
  readonly keep?: boolean;
}

/** A restore that the oracle accepted. */
export interface Graded {
  readonly target: RestoreTarget;
  /** Where the file is, if it was kept. */
  readonly path: string;
  readonly index: number;
  readonly stampMs: number;
  /** The newest commit in it. */
  readonly lastN: number;
  /** When the replica was asked. */
  readonly askedMs: number;
  readonly tookMs: number;
}

/**
 * Restores through the read path that users have, and grades. What one restore held binds every later one: of the states
 * of one replica a later index never holds less, and the same index always the same.
 */
export class Restorer {
  readonly #options: RestorerOptions;
  readonly #readings: () => Readings;
  readonly #known: Graded[] = [];
  #count = 0;

  constructor(options: RestorerOptions) {
    const { sealKey } = options;
    const seal = sealKey?.fingerprint ?? PLAINTEXT_SEAL;
    const only: Readings = { ways: [{ sealKey, seal, acceptPlaintext: sealKey === null }], isMoving: false };
    this.#options = options;
    this.#readings = options.readings ?? (() => only);
  }

  get graded(): readonly Graded[] {
    return this.#known;
  }

  /**
   * Restores and grades; null when nothing is restorable yet, which only counts until something was. Several may run at
   * the same time. What is wrong is thrown, and the file left for whoever looks into it.
   */
  async restore(target: RestoreTarget, options: RestoreOptions = {}): Promise<Graded | null> {
    for (;;) {
      const readings = this.#readings();
      const refusals: string[] = [];
      for (const reading of readings.ways) {
        const outcome = await this.restoreAs(reading, target, options);
        if (!isRefusal(outcome)) return outcome;
        refusals.push(outcome.refusal);
      }
      // What refused has been overtaken by the next change of the encryption.
      if (this.#readings() === readings) throw new Error(`${describe(target)}: ${refusals.join("; ")}`);
    }
  }

  /** As `restore`, with this encryption configured; the refusal where it is the wrong one. */
  async restoreAs(
    reading: Reading,
    target: RestoreTarget,
    options: RestoreOptions = {},
  ): Promise<Graded | null | Refusal> {
    const before = this.#readings();
    try {
      return await this.#restoreAs(reading, target, options, () => before.isMoving || this.#readings() !== before);
    } catch (error) {
      const cause = error instanceof BakeliteError ? error : error instanceof Error ? error.cause : null;
      if (cause instanceof BakeliteError && cause.code === "key-wrong") return { refusal: describeError(cause) };
      throw error;
    }
  }

  async #restoreAs(
    reading: Reading,
    target: RestoreTarget,
    options: RestoreOptions,
    hasMoved: () => boolean,
  ): Promise<Graded | null> {
    const { databasePath, acks } = this.#options;
    this.#count++;
    const path = join(this.#options.folder, `restored-${this.#count}.db`);
    const [askedMs, startedMs] = [Date.now(), performance.now()];
    const replica = await this.open(undefined, reading);
    const plan = await planOrNull(replica, target, this.#known.length === 0);
    if (plan === null) {
      const before = this.#known.at(-1);
      if (before === undefined) return null;
      throw new Error(`${describe(target)}: nothing is restorable, but state ${before.index} was`);
    }
    const { index, stampMs } = plan;
    const what = `${describe(target)}, which is state ${index} (${new Date(stampMs).toISOString()})`;
    try {
      if (
        target.kind === "time" &&
        (stampMs > target.timeMs || (plan.next !== null && plan.next.stampMs <= target.timeMs))
      )
        throw new Error(
          `the plan names a state that is not the newest at or before the target; the next is ${JSON.stringify(plan.next)}`,
        );
      const result = await restoreDatabase(replica, plan, {
        outputPath: path,
        configuredPath: databasePath,
        overwrite: false,
        integrity: "full",
      });
      if (result.plan !== plan && !(hasMoved() && result.plan.index === index))
        throw new Error("something had to be walked around, though no object was ever damaged");
      const grade = gradeRestore({
        path,
        acks: acks(),
        targetMs: stampMs,
        storedFloorN: Math.max(options.floorN ?? 0, this.#floorOf(plan)),
      });
      const graded = {
        target,
        path,
        index,
        stampMs,
        lastN: grade.lastN,
        askedMs,
        tookMs: performance.now() - startedMs,
      };
      this.#compareWithOthers(graded);
      this.#known.push(graded);
      if (options.keep !== true) await rm(path);
      return graded;
    } catch (error) {
      throw new Error(`${what}: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
    }
  }

  async open(backend: Backend = this.#options.openReplica(), reading = this.#readings().ways[0]): Promise<Replica> {
    if (reading === undefined) throw new Error("there is no way to read the replica");
    const { sealKey, seal, acceptPlaintext } = reading;
    const keys = sealKey === null ? emptyKeyRing : keyRing([sealKey]);
    return await Replica.open({ database: this.#options.database, backends: [backend], keys, seal, acceptPlaintext });
  }

  /** Every restore point, as all trailers together tell it. */
  async restorePoints(backend?: Backend): Promise<readonly number[]> {
    const replica = await this.open(backend);
    await replica.trailers.load([...replica.catalog.fulls, ...replica.catalog.changeSets]);
    return replica.graph.restorePoints;
  }

  #floorOf({ index }: { readonly index: number }): number {
    return this.#known.reduce((floor, other) => (other.index <= index ? Math.max(floor, other.lastN) : floor), 0);
  }

  #compareWithOthers({ index, lastN }: Graded): void {
    for (const other of this.#known) {
      const contradicts = other.index === index ? other.lastN !== lastN : other.index > index && other.lastN < lastN;
      if (contradicts)
        throw new Error(`it holds commit ${lastN}, but state ${other.index} was restored with ${other.lastN}`);
    }
  }
}

/** The replica, or the state that was asked for, takes another key. */
export interface Refusal {
  readonly refusal: string;
}

export function isRefusal(outcome: Graded | null | Refusal): outcome is Refusal {
  return outcome !== null && "refusal" in outcome;
}

export function describe(target: RestoreTarget): string {
  switch (target.kind) {
    case "latest":
      return "restore of the latest state";
    case "index":
      return `restore of state ${target.index}`;
    case "time":
      return `restore of ${new Date(target.timeMs).toISOString()}`;
  }
}

/** `mayBeTooEarly`: nothing was restored yet, so what is restorable by now may have come after the target's moment. */
async function planOrNull(replica: Replica, target: RestoreTarget, mayBeTooEarly: boolean) {
  try {
    return await planRestore(replica, target);
  } catch (error) {
    // Not even a full backup, or one that settles later: the beginning.
    if (error instanceof BakeliteError && (error.code === "replica-missing" || error.code === "replica-corrupt")) {
      const isEmpty = replica.graph.restorePoints.length === 0;
      const isTooEarly = mayBeTooEarly && target.kind === "time" && error.code === "replica-missing";
      if ((isEmpty || isTooEarly) && replica.trailers.problems.length === 0) return null;
    }
    throw error;
  }
}
