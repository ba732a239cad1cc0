import { isDeepStrictEqual } from "node:util";
import { applyRateLimits, type Keys, loadKeys, openDestination } from "../config/assemble.ts";
import { describeExposure, keyFileExposure } from "../config/key-file.ts";
import type { Config, DatabaseConfig } from "../config/types.ts";
import { policyOf } from "../replica/maintain.ts";
import { Destinations } from "../replicator/destinations.ts";
import { DirectoryWatch } from "../replicator/directory-watch.ts";
import { Replicator } from "../replicator/replicator.ts";
import { statePaths } from "../state/layout.ts";
import { type ProcessIdentity, readOwnIdentity } from "../state/process-identity.ts";
import { type StatusFile, writeStatus } from "../state/status.ts";
import { sweepTemporaryFiles } from "../storage/file.ts";
import { buildInfo } from "../util/build-info.ts";
import type { Clock } from "../util/clock.ts";
import { delay } from "../util/delay.ts";
import { BakeliteError, describeError } from "../util/errors.ts";
import type { Logger } from "../util/logger.ts";
import { Semaphore } from "../util/semaphore.ts";
import type { DatabaseReport } from "./http-view.ts";
import { DestinationFailures } from "./metrics-backend.ts";
import { DatabaseMirrors } from "./mirrors.ts";
import { sweepUploads } from "./multipart-sweep.ts";
import { reportStatus } from "./status-report.ts";
import { UPKEEP_TIMES, Upkeep, type UpkeepTimes, upkeepTarget } from "./upkeep.ts";

export interface SupervisorInputs {
  readonly clock: Clock;
  readonly log: Logger;
  readonly takeOver: boolean;
  readonly maxConcurrentSnapshots: number;
  /** `$BAKELITE_STATE_DIR`. */
  readonly stateDirectory?: string | undefined;
  /** Not given: the usual ones. */
  readonly upkeepTimes?: UpkeepTimes;
}

const LEFTOVER_AGE_MS = 24 * 60 * 60 * 1000;

interface Prepared {
  readonly config: DatabaseConfig;
  readonly replicator: Replicator;
}

interface Running extends Prepared {
  readonly stop: AbortController;
  readonly ended: Promise<void>;
  /** The last publishing of its status; the next one waits for it. */
  published: Promise<void>;
  /** Its stop, which a reload and the signal to end may both ask for. */
  stopped: Promise<void> | null;
}

/** What a mirror that hangs may keep a stop waiting. */
const MIRROR_PATIENCE_MS = 2_000;

/** Each status is a file that is written and synced: a fleet publishes less often, so that an idle one stays idle. */
const PUBLISH_INTERVAL_MS = { min: 5000, perDatabase: 60 } as const;

/** Runs a replicator for each configured database, and publishes what each is doing. */
export class Supervisor {
  readonly #inputs: SupervisorInputs;
  readonly #run = randomHex(16);
  readonly #watch: DirectoryWatch;
  readonly #slots: Semaphore;
  readonly #upkeep: Upkeep;
  /** Apart, so that a mirror that hangs keeps no other destination waiting. */
  readonly #mirrorUpkeep: Upkeep;
  readonly #mirrors = new WeakMap<Replicator, DatabaseMirrors>();
  readonly #mirrorSlots = new Map<string, Semaphore>();
  readonly #failures = new DestinationFailures();
  readonly #running = new Map<string, Running>();
  readonly #knownKeyFiles = new Set<string>();
  readonly #startedMs: number;
  #isStopping = false;
  /** The end of the last reload, however it ended. */
  #reloading: Promise<void> = Promise.resolve();
  #identity: ProcessIdentity | null = null;

  constructor(inputs: SupervisorInputs) {
    this.#inputs = inputs;
    this.#watch = new DirectoryWatch(inputs.log);
    this.#slots = new Semaphore(inputs.maxConcurrentSnapshots);
    this.#startedMs = inputs.clock.nowMs();
    const upkeepInputs = {
      targets: () =>
        [...this.#running.values()].map(({ config, replicator, stop }) =>
          upkeepTarget(config, replicator, stop.signal, (key, sizeBytes) =>
            this.#mirrors.get(replicator)?.note(key, sizeBytes),
          ),
        ),
      times: inputs.upkeepTimes ?? UPKEEP_TIMES,
      stateDirectory: inputs.stateDirectory,
      clock: inputs.clock,
      log: inputs.log,
    };
    this.#upkeep = new Upkeep({ ...upkeepInputs, only: "lock-step" });
    this.#mirrorUpkeep = new Upkeep({ ...upkeepInputs, only: "mirrors" });
  }

  get replicators(): readonly Replicator[] {
    return [...this.#running.values()].map(({ replicator }) => replicator);
  }

  get startedMs(): number {
    return this.#startedMs;
  }

  /** What every database would report at this moment; empty until they are started. Touches no file but by `fstat`. */
  get reports(): readonly DatabaseReport[] {
    const identity = this.#identity;
    if (identity === null) return [];
    return [...this.#running.values()].map(({ replicator }) => ({
      status: this.#report(replicator, identity),
      lockedOutMs: this.#lockedOutMs(replicator),
      failures: this.#failures.of(replicator.inputs.database, [
        ...replicator.inputs.destinations.backends,
        ...(this.#mirrors.get(replicator)?.backends ?? []),
      ]),
      mirrors: this.#mirrors.get(replicator)?.entries ?? [],
    }));
  }

  get #publishIntervalMs(): number {
    return Math.max(PUBLISH_INTERVAL_MS.min, this.#running.size * PUBLISH_INTERVAL_MS.perDatabase);
  }

  /**
   * Takes every lock, then starts. Throws, with nothing started, when another daemon holds a database (`locked`), or a
   * destination or key is unusable. So it does when `whenLocked` throws, which is called in between.
   */
  async start(databases: readonly DatabaseConfig[], whenLocked: () => void = () => {}): Promise<void> {
    this.#identity = await readOwnIdentity();
    applyRateLimits(databases);
    const prepared: Prepared[] = [];
    try {
      for (const config of databases) {
        const replicator = await this.#build(config);
        prepared.push({ config, replicator });
        await replicator.prepare();
      }
      whenLocked();
    } catch (error) {
      for (const { replicator } of prepared) await replicator.close();
      throw error;
    }
    for (const { config, replicator } of prepared) this.#launch(config, replicator);
    void this.#sweepDestinations(databases);
  }

  /** What crashed puts left at directories, once at start: a younger one may belong to somebody who is still writing. */
  async #sweepDestinations(databases: readonly DatabaseConfig[]): Promise<void> {
    const { clock, log } = this.#inputs;
    const paths = databases.flatMap(({ backends }) => backends.flatMap((b) => (b.type === "file" ? [b.path] : [])));
    for (const path of new Set(paths)) {
      try {
        const { removedCount, removedBytes } = await sweepTemporaryFiles({
          path,
          olderThanMs: LEFTOVER_AGE_MS,
          nowMs: clock.nowMs(),
        });
        if (removedCount > 0)
          log.info("removed what interrupted uploads left behind", {
            path,
            files: removedCount,
            sizeBytes: removedBytes,
          });
      } catch (error) {
        log.debug("cannot look for what interrupted uploads left behind", { path, error: describeError(error) });
      }
    }
  }

  /** Every database is followed, or waited for, or has failed with a reason in the log: nobody is still to be begun. */
  get isReady(): boolean {
    return this.replicators.every(({ phase }) => phase.kind !== "starting");
  }

  /** Publishes until `stop` is aborted, then stops every replicator; resolves when all have ended. */
  async run(stop: AbortSignal): Promise<void> {
    const upkeep = this.#upkeep.run(stop);
    const mirrorUpkeep = this.#mirrorUpkeep.run(stop);
    while (!stop.aborted) {
      await this.#publishAll();
      await delay(this.#publishIntervalMs, stop).catch(() => {});
    }
    this.#isStopping = true;
    await Promise.all([...this.#running.keys()].map((name) => this.#stop(name)));
    await this.#reloading;
    await upkeep;
    await Promise.race([mirrorUpkeep, delay(MIRROR_PATIENCE_MS)]);
    this.#watch[Symbol.dispose]();
  }

  /**
   * Starts what is new, stops what is gone, restarts what changed; the others go on undisturbed. A database whose new
   * settings cannot be used, as when its key cannot be read, goes on with its old ones.
   */
  async reload(config: Config, databases: readonly DatabaseConfig[], maxConcurrentSnapshots: number): Promise<void> {
    this.#slots.resize(maxConcurrentSnapshots);
    const reloading = this.#restartChanged(config, databases);
    this.#reloading = reloading.catch(() => {});
    await reloading;
  }

  async #restartChanged(config: Config, databases: readonly DatabaseConfig[]): Promise<void> {
    const { log } = this.#inputs;
    // They count at once and restart nothing, so `#buildChanged` leaves them out.
    applyRateLimits(databases);
    const fresh = await this.#buildChanged(databases);
    const wanted = new Set(databases.map(({ name }) => name));
    // All of them, before any is started: two may have changed places.
    const stoppedBefore: string[] = [];
    for (const name of [...this.#running.keys()]) {
      if (wanted.has(name) && !fresh.has(name)) continue;
      if (!this.#isStopping) stoppedBefore.push(name);
      await this.#stop(name);
    }
    // The signal to end may have come meanwhile: what was committed since the old one was stopped is for the new one to ship.
    if (this.#isStopping) return await this.#launchToStop(stoppedBefore.flatMap((name) => fresh.get(name) ?? []));
    for (const { config: own, replicator } of fresh.values()) this.#launch(own, replicator);
    log.info("configuration reloaded", { path: config.sourcePath, databases: this.#running.size });
  }

  async #launchToStop(prepared: readonly Prepared[]): Promise<void> {
    for (const { config, replicator } of prepared) this.#launch(config, replicator);
    await Promise.all(prepared.map(({ config }) => this.#stop(config.name)));
  }

  /** By name, a replicator for each database that is new or has other settings than the running one. */
  async #buildChanged(databases: readonly DatabaseConfig[]) {
    const fresh = new Map<string, Prepared>();
    for (const config of databases) {
      const running = this.#running.get(config.name);
      if (running !== undefined && isDeepStrictEqual(withoutRates(running.config), withoutRates(config))) continue;
      try {
        fresh.set(config.name, { config, replicator: await this.#build(config) });
      } catch (error) {
        const what =
          running === undefined
            ? "cannot start replicating"
            : "cannot use the new settings; the old ones stay in force";
        this.#inputs.log.error(what, {
          db: config.name,
          error: describeError(error),
          hint: error instanceof BakeliteError ? error.hint : undefined,
        });
      }
    }
    return fresh;
  }

  #launch(config: DatabaseConfig, replicator: Replicator): void {
    const stop = new AbortController();
    const running: Running = {
      config,
      replicator,
      stop,
      ended: Promise.all([
        replicator.run(stop.signal),
        this.#sweepUploads(config, replicator, stop.signal),
        // Without the lock another command may be rewriting what is stored.
        this.#mirrors.get(replicator)?.run(stop.signal, () => replicator.isLocked),
      ]).then(() => {}),
      published: Promise.resolve(),
      stopped: null,
    };
    replicator.onChange(() => void this.#publish(running));
    this.#mirrors.get(replicator)?.onChange(() => void this.#publish(running));
    this.#running.set(config.name, running);
  }

  async #sweepUploads(config: DatabaseConfig, replicator: Replicator, stop: AbortSignal): Promise<void> {
    const { inputs } = replicator;
    await sweepUploads(
      {
        database: config.name,
        backends: [...inputs.destinations.backends, ...(this.#mirrors.get(replicator)?.backends ?? [])],
        intervalMs: config.multipartSweepIntervalMs,
        minAgeMs: config.multipartMinAgeMs,
        log: inputs.log,
      },
      stop,
    );
  }

  async #stop(name: string): Promise<void> {
    const running = this.#running.get(name);
    if (running === undefined) return;
    running.stopped ??= this.#end(running);
    await running.stopped;
  }

  async #end(running: Running): Promise<void> {
    running.stop.abort();
    await running.ended;
    // The lock is released below: nothing of ours may write any more, for a `reencrypt` may begin.
    await this.#upkeep.left(running.replicator);
    await Promise.race([this.#mirrorUpkeep.left(running.replicator), delay(MIRROR_PATIENCE_MS)]);
    await this.#publish(running);
    await running.replicator.close();
    this.#running.delete(running.config.name);
  }

  async #build(config: DatabaseConfig): Promise<Replicator> {
    const { clock, log, takeOver } = this.#inputs;
    const keys = await loadKeys(config.encryption);
    if (config.encryption.mode === "key-file") await this.#warnOfExposedKey(config.encryption.keyFile);
    const lockStep = config.backends.filter((backend) => !backend.async);
    const mirrors = this.#openMirrors(config, keys);
    const replicator = new Replicator({
      database: config.name,
      path: config.path,
      destinations: new Destinations(
        config.name,
        lockStep.map((backend) => ({
          backend: this.#failures.watch(
            config.name,
            openDestination(backend, {
              onNotice: ({ message, hint }) => log.warn(message, { db: config.name, hint }),
            }),
            (key, sizeBytes) => mirrors?.note(key, sizeBytes),
          ),
          type: backend.type,
        })),
        {
          onIncomplete: config.onIncompleteDestination,
          ...(mirrors !== null && { takenAtMirrors: (signal: AbortSignal) => mirrors.taken(signal) }),
          policy: policyOf(config),
          highestLevel: config.compactionLevelsMs.length,
          clock,
          log: log.child({ db: config.name }),
        },
      ),
      settings: config,
      convertToWal: config.convertToWal,
      keys: keys.ring,
      sealKey: keys.sealKey,
      acceptPlaintext: keys.acceptPlaintext,
      takeOver,
      writer: `bakelite/${buildInfo.version}`,
      run: this.#run,
      randomHex,
      slots: this.#slots,
      watch: this.#watch,
      clock,
      log: log.child({ db: config.name }),
    });
    if (mirrors !== null) this.#mirrors.set(replicator, mirrors);
    return replicator;
  }

  #openMirrors(config: DatabaseConfig, keys: Keys): DatabaseMirrors | null {
    const { clock, log } = this.#inputs;
    if (!config.backends.some((backend) => backend.async)) return null;
    return new DatabaseMirrors(config, keys, {
      clock,
      log,
      slots: this.#mirrorSlots,
      news: { onNotice: ({ message, hint }) => log.warn(message, { db: config.name, hint }) },
      watch: (backend) => this.#failures.watch(config.name, backend),
    });
  }

  /** Once for each key file in this process's life. */
  async #warnOfExposedKey(path: string): Promise<void> {
    const exposure = this.#knownKeyFiles.has(path) ? null : await keyFileExposure(path);
    this.#knownKeyFiles.add(path);
    if (exposure !== null) this.#inputs.log.warn(describeExposure(exposure), { keyFile: path });
  }

  async #publishAll(): Promise<void> {
    await Promise.all([...this.#running.values()].map((running) => this.#publish(running)));
  }

  #publish(running: Running): Promise<void> {
    running.published = running.published.then(() => this.#publishOne(running.replicator));
    return running.published;
  }

  /** A status that cannot be written must not stop the backup; status readers will call it stale. */
  async #publishOne(replicator: Replicator): Promise<void> {
    const { log } = this.#inputs;
    const identity = this.#identity;
    if (identity === null || !replicator.isLocked) return;
    try {
      await replicator.attachment?.lookForHolders();
      const status = this.#report(replicator, identity);
      await writeStatus(statePaths(replicator.path, replicator.inputs.database).status, status);
      await this.#mirrors.get(replicator)?.publish(replicator.path, identity);
    } catch (error) {
      log.warn("cannot write the status file", { db: replicator.inputs.database, error: describeError(error) });
    }
  }

  #lockedOutMs({ attachment }: Replicator): number | null {
    const sinceMs = attachment?.capture.lockedOutSinceMs ?? null;
    return sinceMs === null ? null : this.#inputs.clock.monotonicMs() - sinceMs;
  }

  #report(replicator: Replicator, identity: ProcessIdentity): StatusFile {
    const { clock } = this.#inputs;
    const status = reportStatus(replicator, {
      bakeliteVersion: buildInfo.version,
      process: identity,
      startedMs: this.#startedMs,
      nowMs: clock.nowMs(),
      monotonicMs: clock.monotonicMs(),
      publishIntervalMs: this.#publishIntervalMs,
      limitsUnmet: [...this.#upkeep.unmetLimits(replicator), ...this.#mirrorUpkeep.unmetLimits(replicator)],
    });
    const mirrors = this.#mirrors.get(replicator)?.destinations ?? [];
    return { ...status, destinations: [...status.destinations, ...mirrors] };
  }
}

/** What a reload changes without a restart is left out. */
function withoutRates(config: DatabaseConfig): DatabaseConfig {
  const unlimited = { uploadBytesPerSecond: 0, downloadBytesPerSecond: 0 };
  return { ...config, backends: config.backends.map((backend) => ({ ...backend, ...unlimited })) };
}

function randomHex(bytes: number): string {
  return Buffer.from(crypto.getRandomValues(new Uint8Array(bytes))).toString("hex");
}
