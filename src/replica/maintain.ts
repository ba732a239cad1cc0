import { type DestinationNews, loadKeys, openDestination } from "../config/assemble.ts";
import type { BackendConfig, DatabaseConfig } from "../config/types.ts";
import { PLAINTEXT_SEAL, parseMarkName, parseName } from "../format/names.ts";
import { readVerifyMarker, type VerifyRun } from "../state/verify-marker.ts";
import type { Backend } from "../storage/backend.ts";
import { buildInfo } from "../util/build-info.ts";
import { delay } from "../util/delay.ts";
import { BakeliteError, describeError } from "../util/errors.ts";
import { formatTimestamp } from "../util/timestamps.ts";
import { markedIndexes } from "./catalog.ts";
import { type CompactReport, compactReplica, type Merged } from "./compact.ts";
import { openConfiguredReplica } from "./configured.ts";
import { type PruneReport, pruneReplica } from "./prune.ts";
import { Replica } from "./replica.ts";
import { type RestorePoint, restorePointOf } from "./restore-points.ts";
import type { Expiry } from "./retention-plan.ts";
import type { RetentionPolicy } from "./retention-policy.ts";
import { findStatePaths, markerPath } from "./verify-local.ts";

export interface MaintainOptions {
  readonly dryRun: boolean;
  readonly nowMs: number;
  readonly signal?: AbortSignal | undefined;
  readonly news?: DestinationNews | undefined;
}

export interface CompactDatabaseOptions extends MaintainOptions {
  /** n0 of full backups that a daemon takes or has just taken: asked for once everything was listed. */
  readonly findCuts: () => readonly number[] | Promise<readonly number[]>;
  readonly onMerged?: (merged: Merged) => void;
  readonly onProgress?: (bytes: number) => void;
}

export interface DatabaseCompacted extends CompactReport {
  /** Change-sets that cannot be read at all: nothing is merged across them. */
  readonly unreadable: readonly { readonly location: string; readonly error: BakeliteError }[];
}

/** Merges change-sets at the lock-step destinations of a configured database, as its policy says. Throws what `compactReplica` throws. */
export async function compactDatabase(
  database: DatabaseConfig,
  options: CompactDatabaseOptions,
): Promise<DatabaseCompacted> {
  if (database.compactionLevelsMs.length === 0) return { merged: [], failures: [], unreadable: [] };
  const { sealKey } = await loadKeys(database.encryption);
  const lockStep = database.backends.filter((backend) => !backend.async);
  const replica = await openConfiguredReplica(
    { ...database, backends: lockStep },
    {
      signal: options.signal,
      news: options.news,
    },
  );
  const report = await compactReplica(replica, {
    levelWindowsMs: database.compactionLevelsMs,
    keepRecent: database.compactionKeepRecent,
    cuts: new Set([...markedIndexes(replica.catalog), ...(await options.findCuts())]),
    sealKey,
    compression: database.compression,
    compressionLevel: database.compressionLevel,
    writer: `bakelite/${buildInfo.version}`,
    randomHex,
    ...options,
  });
  const unreadable = replica.trailers.problems
    .filter(({ kind }) => kind !== "missing")
    .map(({ object, error }) => ({ location: replica.describe(object), error }));
  return { ...report, unreadable };
}

export interface PruneDatabaseOptions extends MaintainOptions {
  /** Delete what was merged only, and no history. */
  readonly mergedOnly: boolean;
  /** As `PruneOptions.readBack`, for each destination by its location; kept by whoever calls again. */
  readonly readBack: Map<string, Set<string>>;
  /** `$BAKELITE_STATE_DIR`. */
  readonly stateDirectory: string | undefined;
  /** Why the caller wants nothing deleted now; null or not given: no reason. */
  readonly frozen?: string | null;
  /** Locations that are left alone. */
  readonly leftAlone?: ReadonlySet<string>;
  /** Only lock-step destinations, or only mirrors; not given: both. */
  readonly only?: "lock-step" | "mirrors" | undefined;
  /** Parts of the policy that only a test changes. */
  readonly policy?: Partial<RetentionPolicy>;
  readonly onDeleted?: (location: string, expired: readonly Expiry[]) => void;
}

/** What one destination of `pruneDatabase` came to. */
export type DestinationPruned = { readonly location: string } & (
  | { readonly report: PruneReport; readonly error: null }
  | { readonly report: null; readonly error: BakeliteError }
);

/**
 * Deletes at each destination of a configured database, mirrors included, what its policy gives up. A destination that fails has an
 * error, and the others are done. Rejects when interrupted, and when the key cannot be read.
 */
export async function pruneDatabase(
  database: DatabaseConfig,
  options: PruneDatabaseOptions,
): Promise<readonly DestinationPruned[]> {
  const open = await destinationOpener(database, options.signal);
  const verified = await whyFrozen(database, options.stateDirectory);
  const marks = await findMarks(database, options.signal, options.only === "lock-step");
  const pruned: DestinationPruned[] = [];
  for (const config of database.backends) {
    const backend = openDestination(config, options.news);
    const { location } = backend;
    if (options.leftAlone?.has(location) === true) continue;
    if (options.only !== undefined && config.async !== (options.only === "mirrors")) continue;
    // Marks are set at lock-step destinations, and come to a mirror later than what they keep.
    const unlistedMarks = config.async ? marks.unknown : null;
    try {
      const replica = await open(backend);
      const report = await pruneReplica(replica, {
        policy: { ...(options.mergedOnly ? mergedOnly(database) : policyOf(database)), ...options.policy },
        marks: marks.indexes,
        frozen: options.frozen ?? unlistedMarks ?? verified.frozen,
        damaged: (options.frozen ?? unlistedMarks) === null ? verified.damagedAt(location) : undefined,
        nowMs: options.nowMs,
        dryRun: options.dryRun,
        // A disk does not look at what lies on it; where reading is paid for, the service does.
        readsFullBackup: config.type === "file" || config.type === "sftp",
        readBack: readBackAt(location, options),
        signal: options.signal,
        onDeleted: (expired) => options.onDeleted?.(location, expired),
      });
      pruned.push({ location, report, error: null });
    } catch (error) {
      pruned.push({ location, report: null, error: failureOfDestination(error) });
    }
  }
  return pruned;
}

/** What the next prune would do at one destination. */
export type PrunePreview = DestinationPruned & {
  /** The oldest restore point that would stay; null when there is none or it is not known. */
  readonly oldestKept: RestorePoint | null;
};

/** As `pruneDatabase` with `dryRun`, and what would then be the oldest restore point. */
export async function previewPrune(
  database: DatabaseConfig,
  options: Pick<PruneDatabaseOptions, "nowMs" | "signal" | "stateDirectory">,
): Promise<readonly PrunePreview[]> {
  const previews: PrunePreview[] = [];
  const open = await destinationOpener(database, options.signal);
  const pruned = await pruneDatabase(database, { ...options, dryRun: true, mergedOnly: false, readBack: new Map() });
  const backends = new Map(
    database.backends.map((config) => openDestination(config)).map((one) => [one.location, one]),
  );
  for (const one of pruned) {
    const backend = backends.get(one.location);
    const floor = one.report?.plan.floor ?? null;
    const oldestKept =
      backend === undefined || floor === null ? null : await restorePointOf(await open(backend), floor);
    previews.push({ ...one, oldestKept });
  }
  return previews;
}

/** What the configuration of a database says of deleting. */
export function policyOf(database: DatabaseConfig): RetentionPolicy {
  const { retentionMs, maxBackups, maxTotalSizeBytes } = database;
  return { ...mergedOnly(database), retentionMs, maxBackups, maxTotalSizeBytes };
}

/** As `policyOf`, without giving up any history. */
function mergedOnly({
  compactionKeepMs: mergedKeepMs,
  compactionKeepRecent: keepRecent,
}: DatabaseConfig): RetentionPolicy {
  return { mergedKeepMs, keepRecent, retentionMs: 0, maxBackups: 0, maxTotalSizeBytes: 0 };
}

function readBackAt(location: string, { readBack }: PruneDatabaseOptions): Set<string> {
  const known = readBack.get(location) ?? new Set<string>();
  readBack.set(location, known);
  return known;
}

/** Opens what one destination holds, and nothing else. */
async function destinationOpener(
  { name, encryption }: DatabaseConfig,
  signal: AbortSignal | undefined,
): Promise<(backend: Backend) => Promise<Replica>> {
  const { sealKey, ring, acceptPlaintext } = await loadKeys(encryption);
  const seal = sealKey?.fingerprint ?? PLAINTEXT_SEAL;
  return (backend) => Replica.open({ database: name, backends: [backend], keys: ring, seal, acceptPlaintext, signal });
}

/**
 * The states that are marked at any destination: one that has not got the mark yet, as a mirror, keeps them too. A
 * destination that does not answer is not pruned either, so what it would say is not missed.
 */
async function findMarks(
  { name, backends }: DatabaseConfig,
  signal: AbortSignal | undefined,
  isBackground: boolean,
): Promise<KnownMarks> {
  const nowhere = { indexes: [], unknown: null };
  const found = await Promise.all(
    backends.map((backend) => {
      const marks = marksAt(name, backend, signal);
      // A mirror that hangs is not waited for on account of marks, which lie elsewhere too.
      return isBackground && backend.async
        ? Promise.race([marks, delay(MIRROR_PATIENCE_MS).then(() => nowhere)])
        : marks;
    }),
  );
  return {
    indexes: [...new Set(found.flatMap(({ indexes }) => indexes))].sort((a, b) => a - b),
    unknown: found.find(({ unknown }) => unknown !== null)?.unknown ?? null,
  };
}

interface KnownMarks {
  readonly indexes: readonly number[];
  /** Why there may be more at a lock-step destination; null: there are none. */
  readonly unknown: string | null;
}

const MIRROR_PATIENCE_MS = 10_000;

async function marksAt(name: string, config: BackendConfig, signal: AbortSignal | undefined): Promise<KnownMarks> {
  const indexes: number[] = [];
  const backend = openDestination(config);
  try {
    const call = signal === undefined ? {} : { signal };
    for await (const { key } of backend.list(`${name}/keep/`, call)) {
      const mark = parseMarkName(key.slice(name.length + 1));
      if (mark !== null) indexes.push(mark.index);
    }
  } catch (error) {
    const reason = describeError(failureOfDestination(error));
    const unknown = config.async ? null : `the marks at ${backend.location} cannot be listed: ${reason}`;
    return { indexes, unknown };
  }
  return { indexes, unknown: null };
}

/** What the last verify has against deleting. */
interface Verified {
  readonly frozen: string | null;
  /** As `RetentionInputs.damaged`, for the destination at `location`. */
  readonly damagedAt: (location: string) => ReadonlySet<string> | undefined;
}

/** After a verify that found problems nothing is deleted until one is clean: what looks superfluous may be all there is. */
async function whyFrozen({ name, path }: DatabaseConfig, stateDirectory: string | undefined): Promise<Verified> {
  const marker = markerPath(await findStatePaths(path, name), name, stateDirectory);
  const read = marker === null ? null : await readVerifyMarker(marker);
  const nothing = { frozen: null, damagedAt: () => undefined };
  if (read === null || read.outcome === "missing") return nothing;
  if (read.outcome === "corrupt") {
    const frozen = `what the last verify found cannot be read (${marker}: ${read.reason}); run \`bakelite verify\``;
    return { ...nothing, frozen };
  }
  const { last_run: run } = read.value;
  if (run.outcome === "clean") return nothing;
  const at = formatTimestamp(Date.parse(run.finished_at));
  const frozen = `the last verify (${at}) found problems; run \`bakelite verify\` again once they are mended`;
  return { frozen, damagedAt: (location) => damagedObjects(name, location, run) };
}

/** The keys of the damaged objects there, if those are all that verify found anywhere; else undefined. */
function damagedObjects(name: string, location: string, run: VerifyRun): ReadonlySet<string> | undefined {
  const prefix = `${name}/`;
  const keys = run.problems.flatMap(({ kind, destination, key }) => {
    const isObject = kind === "corrupt" && destination === location && key?.startsWith(prefix) === true;
    const below = isObject ? key.slice(prefix.length) : null;
    return below === null || parseName(below) === null ? [] : [below];
  });
  return keys.length === run.problem_count ? new Set(keys) : undefined;
}

/** `error` when it concerns one destination; throws it when it ends all the work. */
function failureOfDestination(error: unknown): BakeliteError {
  if (!(error instanceof BakeliteError) || error.code === "interrupted" || error.code === "internal") throw error;
  return error;
}

function randomHex(bytes: number): string {
  return Buffer.from(crypto.getRandomValues(new Uint8Array(bytes))).toString("hex");
}
