import { type DestinationNews, type Keys, openDestination } from "../config/assemble.ts";
import type { BackendConfig, DatabaseConfig } from "../config/types.ts";
import { PLAINTEXT_SEAL } from "../format/names.ts";
import { policyOf } from "../replica/maintain.ts";
import type { TakenAtMirrors } from "../replicator/destinations.ts";
import { Mirror } from "../replicator/mirror.ts";
import { statePaths } from "../state/layout.ts";
import { type MirrorEntry, writeMirrorStatus } from "../state/mirror-status.ts";
import type { ProcessIdentity } from "../state/process-identity.ts";
import type { DestinationStatus } from "../state/status.ts";
import type { Backend } from "../storage/backend.ts";
import type { Clock } from "../util/clock.ts";
import { delay } from "../util/delay.ts";
import { BakeliteError } from "../util/errors.ts";
import { linkSignals } from "../util/linked-signal.ts";
import type { Logger } from "../util/logger.ts";
import { Semaphore } from "../util/semaphore.ts";
import { formatTimestamp } from "../util/timestamps.ts";

/** What all mirrors of a daemon share. */
export interface MirrorSurroundings {
  readonly clock: Clock;
  readonly log: Logger;
  /** By location. */
  readonly slots: Map<string, Semaphore>;
  readonly news: DestinationNews;
  /** Wraps each mirror's backend, as for counting its failures. */
  readonly watch: (backend: Backend) => Backend;
}

/** Of all databases that are mirrored to one place: one that hangs keeps only its own. */
const SLOTS_PER_LOCATION = 6;
/** What a mirror that hangs may keep a stop waiting. */
const STOP_PATIENCE_MS = 4_000;
/** How long the very first full backup of a database waits for what a mirror holds. */
const TAKEN_PATIENCE_MS = 10_000;

/** The background mirrors of one database, and the file that tells of them. */
export class DatabaseMirrors {
  readonly #config: DatabaseConfig;
  readonly #mirrors: readonly Mirror[];
  readonly #clock: Clock;
  #onChange: () => void = () => {};
  #written = "";

  constructor(config: DatabaseConfig, keys: Keys, surroundings: MirrorSurroundings) {
    this.#config = config;
    this.#clock = surroundings.clock;
    const { clock, log, slots, news, watch } = surroundings;
    // Connections of their own: reading for a mirror takes no turn from what is shipped.
    const open = (backend: BackendConfig) => openDestination(backend, news);
    const sources = config.backends.filter((backend) => !backend.async).map(open);
    this.#mirrors = config.backends
      .filter((backend) => backend.async)
      .map((backend) => {
        const mirror = watch(open(backend));
        const shared = slots.get(mirror.location) ?? new Semaphore(SLOTS_PER_LOCATION);
        slots.set(mirror.location, shared);
        return new Mirror({
          database: config.name,
          mirror,
          type: backend.type,
          sources,
          keys: keys.ring,
          seal: keys.sealKey?.fingerprint ?? PLAINTEXT_SEAL,
          acceptPlaintext: keys.acceptPlaintext,
          policy: policyOf(config),
          highestLevel: config.compactionLevelsMs.length,
          intervalMs: config.mirrorIntervalMs,
          slots: shared,
          onChange: () => this.#onChange(),
          clock,
          log: log.child({ db: config.name }),
        });
      });
  }

  get backends(): readonly Backend[] {
    return this.#mirrors.map(({ backend }) => backend);
  }

  get entries(): readonly MirrorEntry[] {
    return this.#mirrors.map(({ entry }) => entry);
  }

  /** As the status file tells of them, beside the lock-step destinations. */
  get destinations(): readonly DestinationStatus[] {
    return this.entries.map((entry) => ({
      location: entry.location,
      type: entry.type,
      async: true,
      state: entry.state === "behind" ? "incomplete" : entry.state,
      state_since: entry.state_since,
      index: entry.index,
      behind_objects: entry.behind_objects,
      behind_bytes: entry.behind_bytes,
      last_stored_at: null,
      unhealthy:
        entry.attempts === 0 || entry.last_error === null
          ? null
          : { since: entry.state_since, attempts: entry.attempts, last_error: entry.last_error },
      last_error: entry.last_error,
    }));
  }

  /** Calls `listener` when a mirror has come to be in sync, or begins or ends to fail. */
  onChange(listener: () => void): void {
    this.#onChange = listener;
  }

  /** Something was stored at a lock-step destination. */
  note(key: string, sizeBytes: number | null): void {
    for (const mirror of this.#mirrors) mirror.note(key, sizeBytes);
  }

  /** What is stored at the mirrors, for whoever is to begin a new history. Waits for ten seconds at most; rejects when interrupted. */
  async taken(signal: AbortSignal): Promise<TakenAtMirrors> {
    const answers = await Promise.all(this.#mirrors.map((mirror) => highestIndexIn(mirror, signal)));
    return {
      highestIndex: answers.reduce((highest: number, answer) => Math.max(highest, answer ?? 0), 0),
      silent: this.#mirrors.filter((_, i) => answers[i] === null).map(({ backend }) => backend.location),
    };
  }

  /**
   * Fills the mirrors until `stop` is aborted, whenever `mayWrite`, and is then not kept for long by one that hangs. Never rejects.
   */
  async run(stop: AbortSignal, mayWrite: () => boolean): Promise<void> {
    const { promise: stopped, resolve } = Promise.withResolvers<void>();
    if (stop.aborted) resolve();
    stop.addEventListener("abort", () => resolve(), { once: true });
    const ended = Promise.all(this.#mirrors.map((mirror) => mirror.run(stop, mayWrite)));
    await Promise.race([ended, stopped.then(() => delay(STOP_PATIENCE_MS))]);
  }

  /** Writes `<name>.mirror.json` if it would say something else than the last time. */
  async publish(databasePath: string, process: ProcessIdentity): Promise<void> {
    const { name, mirrorIntervalMs } = this.#config;
    const mirrors = [...this.entries];
    const told = JSON.stringify(mirrors);
    if (told === this.#written) return;
    await writeMirrorStatus(statePaths(databasePath, name).mirror, {
      version: 1,
      database: name,
      process,
      written_at: formatTimestamp(this.#clock.nowMs()),
      reconcile_interval_ms: mirrorIntervalMs,
      mirrors,
    });
    this.#written = told;
  }
}

/** null: it does not answer. A call that hangs is left alone. */
async function highestIndexIn(mirror: Mirror, signal: AbortSignal): Promise<number | null> {
  const late = new AbortController();
  const linked = linkSignals(signal, late.signal);
  const asked = mirror.highestIndex(linked.signal).catch((error: unknown) => {
    if (error instanceof BakeliteError && error.code !== "internal") return null;
    throw error;
  });
  const answer = await Promise.race([asked, delay(TAKEN_PATIENCE_MS, linked.signal).then(() => null)]);
  late.abort();
  linked.unlink();
  signal.throwIfAborted();
  return answer;
}
