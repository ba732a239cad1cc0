import { uptime } from "node:os";
import type { DatabaseConfig } from "../config/types.ts";
import { compactDatabase, type DestinationPruned, pruneDatabase } from "../replica/maintain.ts";
import type { PruneReport } from "../replica/prune.ts";
import type { Expiry, UnmetLimit } from "../replica/retention-plan.ts";
import type { Replicator } from "../replicator/replicator.ts";
import type { Clock } from "../util/clock.ts";
import { delay } from "../util/delay.ts";
import { formatDuration } from "../util/durations.ts";
import { type BakeliteError, describeError } from "../util/errors.ts";
import type { LogFields, Logger } from "../util/logger.ts";
import type { StoredNews } from "./metrics-backend.ts";

/** When passes are made. Only tests have other times than these. */
export interface UpkeepTimes {
  /** Between two passes of one database, and before its first one. */
  readonly minIntervalMs: number;
  /** After this long any change is enough. */
  readonly maxIntervalMs: number;
  /** After so many change-sets a pass need not wait that long. */
  readonly changeSetCount: number;
  /** How often the daemon looks whether a pass is due. */
  readonly lookMs: number;
  /** `RetentionPolicy.graceMs`; not given: the usual one. */
  readonly graceMs?: number | undefined;
}

export const UPKEEP_TIMES: UpkeepTimes = {
  minIntervalMs: 5 * 60_000,
  maxIntervalMs: 60 * 60_000,
  changeSetCount: 64,
  lookMs: 5_000,
};

/** A database that the daemon follows. */
export interface UpkeepTarget {
  /** What it is known by from one pass to the next: after a change of its settings it is another one. */
  readonly identity: object;
  readonly config: DatabaseConfig;
  readonly log: Logger;
  /** Aborted when the database is no longer to be followed. */
  readonly stop: AbortSignal;
  /** The daemon holds its lock, and what it ships arrives. */
  readonly isShipping: boolean;
  /** Objects that this run of the daemon has stored. */
  readonly storedCount: number;
  /** n0 of the full backup that is being taken and of the newest one. */
  readonly fullBackups: () => readonly number[];
  /** Hears of the change-sets that merging stored. */
  readonly onStored?: StoredNews | undefined;
}

/** What a replicator does, as far as it concerns upkeep. */
export function upkeepTarget(
  config: DatabaseConfig,
  replicator: Replicator,
  stop: AbortSignal,
  onStored?: StoredNews,
): UpkeepTarget {
  const { phase, attachment, health, totals, inputs } = replicator;
  const fullBackupCount = Object.values(totals.fullBackupsByReason).reduce((sum, count) => sum + count, 0);
  return {
    identity: replicator,
    config,
    log: inputs.log,
    stop,
    isShipping: phase.kind === "attached" && attachment?.starting === null && health.streak === null,
    storedCount: totals.changeSets + fullBackupCount,
    fullBackups: () =>
      [replicator.attachment?.fullBackups?.underWay?.index, replicator.known.fullBackup?.index].filter(
        (index) => index !== undefined,
      ),
    onStored,
  };
}

export interface UpkeepInputs {
  /** As they are at this moment. */
  readonly targets: () => readonly UpkeepTarget[];
  readonly times: UpkeepTimes;
  /**
   * Which destinations to see to: those that are shipped to, where change-sets are merged too, or the background mirrors, which only have
   * theirs deleted and may keep whoever waits for them waiting. Not given: all.
   */
  readonly only?: "lock-step" | "mirrors";
  /** `$BAKELITE_STATE_DIR`. */
  readonly stateDirectory: string | undefined;
  readonly clock: Clock;
  /** How long the machine has been up, sleep included; not given: asks the system. */
  readonly uptimeMs?: () => number;
  readonly log: Logger;
}

/** A limit that one destination cannot meet without deleting what must stay. */
export interface UnmetLimitAt extends UnmetLimit {
  readonly location: string;
}

/** A day too early may go what was merged; by how much a clock is set that only drifted, is far below. */
const CLOCK_JUMP_MS = 24 * 60 * 60_000;

/** What is remembered of one database between passes. */
interface Memory {
  /** By the monotonic clock; before the first pass when the database was first seen. */
  lastPassMs: number;
  hasPassed: boolean;
  /** Of this run of the daemon, when the last pass began. */
  storedCount: number;
  /** The last pass merged or deleted something, so another one may have more to do without any change. */
  hasWorked: boolean;
  /** By destination. */
  readonly unmet: Map<string, readonly UnmetLimit[]>;
  /** By what failed: the reason that was told last. */
  readonly told: Map<string, string>;
}

/**
 * Merges and deletes by the rules of docs/compaction-and-retention.md what the databases of a daemon have stored: one database
 * at a time, a pass when enough has come since its last one. Whatever fails is told once for each reason and tried again in
 * the next pass; it never stops a backup.
 */
export class Upkeep {
  readonly #inputs: UpkeepInputs;
  readonly #memories = new WeakMap<object, Memory>();
  /** Destinations that do not let us delete: not asked again in the life of this process. */
  readonly #denied = new Set<string>();
  #current: { readonly identity: object; readonly ended: Promise<void> } | null = null;

  /** When the machine was booted, by its clock at the start of the daemon. */
  readonly #bootedMs: number;

  constructor(inputs: UpkeepInputs) {
    this.#inputs = inputs;
    this.#bootedMs = this.#bootTime();
  }

  /** Limits that the newest pass could not meet. */
  unmetLimits(identity: object): readonly UnmetLimitAt[] {
    const unmet = [...(this.#memories.get(identity)?.unmet ?? [])];
    return unmet.flatMap(([location, limits]) => limits.map((limit) => ({ ...limit, location })));
  }

  /** Makes passes until `stop` is aborted; resolves when the last one has ended. Never rejects. */
  async run(stop: AbortSignal): Promise<void> {
    while (!stop.aborted) {
      const due = this.#nextDue();
      if (due === null) await delay(this.#inputs.times.lookMs, stop).catch(() => {});
      else await this.#passOf(due, stop);
    }
  }

  /** Resolves when no pass of this database is going on. Its `stop` must have been aborted, or this may take long. */
  async left(identity: object): Promise<void> {
    if (this.#current?.identity === identity) await this.#current.ended;
  }

  /** Of the databases that a pass is due for, the one that has waited longest; null when there is none. */
  #nextDue(): UpkeepTarget | null {
    const due = this.#inputs
      .targets()
      .filter((target) => this.#isDue(target))
      .sort((a, b) => this.#memoryOf(a).lastPassMs - this.#memoryOf(b).lastPassMs);
    return due[0] ?? null;
  }

  #isDue(target: UpkeepTarget): boolean {
    const { config, stop, isShipping, storedCount } = target;
    if (stop.aborted || !hasUpkeep(config) || !isShipping) return false;
    if (this.#inputs.only === "mirrors" && !config.backends.some((backend) => backend.async)) return false;
    const { minIntervalMs, maxIntervalMs, changeSetCount } = this.#inputs.times;
    const memory = this.#memoryOf(target);
    const ageMs = this.#inputs.clock.monotonicMs() - memory.lastPassMs;
    if (ageMs < minIntervalMs) return false;
    const newCount = storedCount - memory.storedCount;
    if (!memory.hasPassed || newCount >= changeSetCount) return true;
    return ageMs >= maxIntervalMs && (newCount > 0 || memory.hasWorked);
  }

  #memoryOf({ identity }: UpkeepTarget): Memory {
    const known = this.#memories.get(identity);
    if (known !== undefined) return known;
    const memory: Memory = {
      lastPassMs: this.#inputs.clock.monotonicMs(),
      hasPassed: false,
      storedCount: 0,
      hasWorked: false,
      unmet: new Map(),
      told: new Map(),
    };
    this.#memories.set(identity, memory);
    return memory;
  }

  async #passOf(target: UpkeepTarget, stop: AbortSignal): Promise<void> {
    const memory = this.#memoryOf(target);
    memory.storedCount = target.storedCount;
    memory.hasWorked = false;
    const ended = this.#makePass(target, memory, AbortSignal.any([stop, target.stop]));
    this.#current = { identity: target.identity, ended };
    await ended;
    this.#current = null;
    memory.hasPassed = true;
    // After it, so that a pass that takes long is not followed by another one at once.
    memory.lastPassMs = this.#inputs.clock.monotonicMs();
  }

  async #makePass(target: UpkeepTarget, memory: Memory, signal: AbortSignal): Promise<void> {
    const { log } = target;
    const startMs = this.#inputs.clock.monotonicMs();
    // What is merged comes to a mirror as everything does.
    if (this.#inputs.only !== "mirrors")
      await this.#attempt("merge change-sets", memory, log, signal, () => this.#compact(target, memory, signal));
    if (signal.aborted) return;
    await this.#attempt("delete what the policy gives up", memory, log, signal, () =>
      this.#prune(target, memory, signal),
    );
    log.debug("upkeep pass", { durationMs: Math.round(this.#inputs.clock.monotonicMs() - startMs) });
  }

  async #attempt(
    what: string,
    memory: Memory,
    log: Logger,
    signal: AbortSignal,
    work: () => Promise<void>,
  ): Promise<void> {
    try {
      await work();
      memory.told.delete(what);
    } catch (error) {
      // A bug in here too must not end a daemon whose backups are fine.
      if (!signal.aborted) tell(memory, log, what, `cannot ${what}`, error);
    }
  }

  async #compact(
    { config, log, fullBackups, onStored }: UpkeepTarget,
    memory: Memory,
    signal: AbortSignal,
  ): Promise<void> {
    const { failures } = await compactDatabase(config, {
      dryRun: false,
      nowMs: this.#inputs.clock.nowMs(),
      signal,
      findCuts: fullBackups,
      onMerged: ({ key, inputs, inputBytes, sizeBytes }) => {
        memory.hasWorked = true;
        onStored?.(key, sizeBytes);
        log.debug("merged change-sets", { key, changeSets: inputs.length, inputBytes, sizeBytes });
      },
    });
    const [first] = failures;
    if (first === undefined) memory.told.delete("merge");
    else
      tell(memory, log, "merge", "cannot merge some change-sets; they stay as they are", first.error, {
        first: first.merge.first,
        last: first.merge.last,
        runs: failures.length,
      });
  }

  async #prune({ config, log }: UpkeepTarget, memory: Memory, signal: AbortSignal): Promise<void> {
    const deleted = new Map<string, readonly Expiry[]>();
    const { graceMs } = this.#inputs.times;
    try {
      const pruned = await pruneDatabase(config, {
        dryRun: false,
        nowMs: this.#inputs.clock.nowMs(),
        signal,
        mergedOnly: false,
        readBack: new Map(),
        stateDirectory: this.#inputs.stateDirectory,
        frozen: this.#clockJump(),
        leftAlone: this.#denied,
        only: this.#inputs.only,
        ...(graceMs === undefined ? {} : { policy: { graceMs } }),
        onDeleted: (location, expired) => {
          memory.hasWorked = true;
          deleted.set(location, [...(deleted.get(location) ?? []), ...expired]);
        },
      });
      for (const one of pruned) this.#note(one, memory, log);
    } finally {
      // Also what a pass that was cut short had deleted: an operator must find every deletion in the log.
      for (const [destination, expired] of deleted) logDeleted(log, destination, expired);
    }
  }

  #bootTime(): number {
    const { clock, uptimeMs = () => uptime() * 1000 } = this.#inputs;
    return clock.nowMs() - uptimeMs();
  }

  /**
   * A directory on this machine dates objects by the same clock as ours: once that has jumped, both call everything old. null while
   * it has not.
   */
  #clockJump(): string | null {
    const jumpMs = this.#bootTime() - this.#bootedMs;
    if (Math.abs(jumpMs) < CLOCK_JUMP_MS) return null;
    const direction = jumpMs > 0 ? "ahead" : "back";
    return `the clock of this machine was set ${direction} by ${formatDuration(Math.abs(jumpMs))} since the daemon started; check it, and start the daemon again`;
  }

  #note({ location, report, error }: DestinationPruned, memory: Memory, log: Logger): void {
    const topic = `prune ${location}`;
    const fields = { destination: location };
    if (report === null) return tell(memory, log, topic, "cannot delete what the policy gives up", error, fields);
    if (report.denied !== null) this.#deny(location, report.denied, log);
    this.#noteLimits(location, report.plan.unmet, memory, log);
    const [unsound] = report.unsound;
    if (report.plan.refused !== null) tell(memory, log, topic, "nothing is deleted", report.plan.refused, fields);
    else if (unsound !== undefined)
      tell(memory, log, topic, "an object cannot be read back; what would rest on it stays", unsound.error, {
        ...fields,
        objects: report.unsound.length,
      });
    else memory.told.delete(topic);
  }

  #deny(location: string, error: BakeliteError, log: Logger): void {
    if (this.#denied.has(location)) return;
    this.#denied.add(location);
    log.warn("the destination does not let us delete: nothing is deleted there until the daemon is started again", {
      destination: location,
      error: describeError(error),
      hint: error.hint,
    });
  }

  #noteLimits(location: string, unmet: PruneReport["plan"]["unmet"], memory: Memory, log: Logger): void {
    memory.unmet.set(location, unmet);
    const topic = `limits ${location}`;
    if (unmet.length === 0) memory.told.delete(topic);
    // The sizes change all the time; which limits it is, hardly ever.
    const names = unmet.map(({ limit }) => limit).join(", ");
    if (unmet.length === 0 || memory.told.get(topic) === names) return;
    memory.told.set(topic, names);
    for (const { limit, allowed, remaining } of unmet)
      log.warn("a limit cannot be met: what is left must stay for `retention`, for marks or as the newest backup", {
        destination: location,
        limit,
        allowed,
        remaining,
      });
  }
}

/** Whether the policy of a database ever asks for a pass. */
function hasUpkeep({ compactionLevelsMs, retentionMs, maxBackups, maxTotalSizeBytes }: DatabaseConfig): boolean {
  return compactionLevelsMs.length > 0 || retentionMs > 0 || maxBackups > 0 || maxTotalSizeBytes > 0;
}

/** A warning, or when the same was told before, for debugging only. */
function tell(
  memory: Memory,
  log: Logger,
  topic: string,
  message: string,
  error: unknown,
  fields: LogFields = {},
): void {
  const reason = typeof error === "string" ? error : describeError(error);
  const hint = typeof error === "object" && error !== null && "hint" in error ? String(error.hint ?? "") : "";
  const all = { ...fields, error: reason, ...(hint === "" ? {} : { hint }) };
  if (memory.told.get(topic) === reason) log.debug(message, all);
  else log.warn(message, all);
  memory.told.set(topic, reason);
}

function logDeleted(log: Logger, destination: string, expired: readonly Expiry[]): void {
  for (const [reason, alike] of Map.groupBy(expired, (one) => one.reason))
    log.info("deleted what the policy gives up", {
      destination,
      reason,
      objects: alike.length,
      sizeBytes: alike.reduce((sum, { object }) => sum + object.sizeBytes, 0),
    });
}
