import { rm } from "node:fs/promises";
import { join } from "node:path";
import { emptyKeyRing, keyRing, type SealKey } from "../../src/format/envelope.ts";
import { PLAINTEXT_SEAL } from "../../src/format/names.ts";
import { planRestore, type RestoreTarget } from "../../src/replica/plan.ts";
import { Replica } from "../../src/replica/replica.ts";
import { restoreDatabase } from "../../src/replica/restore.ts";
import type { Backend } from "../../src/storage/backend.ts";
import { BakeliteError } from "../../src/util/errors.ts";
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
  /** What the writers reported until now. */
  readonly acks: () => readonly Ack[];
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
  readonly #known: Graded[] = [];
  #count = 0;

  constructor(options: RestorerOptions) {
    this.#options = options;
  }

  get graded(): readonly Graded[] {
    return this.#known;
  }

  /**
   * Restores and grades; null when nothing is restorable yet, which only counts until something was. Several may run at
   * the same time. What is wrong is thrown, and the file left for whoever looks into it.
   */
  async restore(target: RestoreTarget, options: RestoreOptions = {}): Promise<Graded | null> {
    const { databasePath, acks } = this.#options;
    this.#count++;
    const path = join(this.#options.folder, `restored-${this.#count}.db`);
    const [askedMs, startedMs] = [Date.now(), performance.now()];
    const replica = await this.open();
    const plan = await planOrNull(replica, target);
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
      if (result.plan !== plan) throw new Error("something had to be walked around, though no object was ever damaged");
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

  async open(backend: Backend = this.#options.openReplica()): Promise<Replica> {
    const { database, sealKey } = this.#options;
    return await Replica.open({
      database,
      backends: [backend],
      keys: sealKey === null ? emptyKeyRing : keyRing([sealKey]),
      seal: sealKey?.fingerprint ?? PLAINTEXT_SEAL,
      acceptPlaintext: sealKey === null,
    });
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

async function planOrNull(replica: Replica, target: RestoreTarget) {
  try {
    return await planRestore(replica, target);
  } catch (error) {
    // Not even a full backup, or one that settles later: the beginning.
    if (error instanceof BakeliteError && (error.code === "replica-missing" || error.code === "replica-corrupt")) {
      if (replica.graph.restorePoints.length === 0 && replica.trailers.problems.length === 0) return null;
    }
    throw error;
  }
}
