import type { DaemonTable, DatabaseTable, DefaultsTable, EncryptionTable } from "./schema.ts";
import type { DaemonConfig, DatabaseConfig, EncryptionConfig } from "./types.ts";

const SECOND_MS = 1_000;
const MINUTE_MS = 60 * SECOND_MS;
const HOUR_MS = 60 * MINUTE_MS;
const DAY_MS = 24 * HOUR_MS;

const COMPACTION_KEEP_MS = [HOUR_MS, DAY_MS, 7 * DAY_MS];

export function resolveDaemon(table: DaemonTable): DaemonConfig {
  return {
    metricsAddress: table.metrics_addr,
    maxConcurrentSnapshots: table.max_concurrent_snapshots ?? 2,
    db: table.db,
    logLevel: table.log_level ?? "info",
    logFormat: table.log_format ?? "text",
    heartbeatUrl: table.heartbeat_url,
    heartbeatIntervalMs: table.heartbeat_interval ?? MINUTE_MS,
  };
}

/** The database's own keys, else those of `[defaults]`, else ours. What does not go together is left to `checkDatabase`. */
export function resolveDatabase(defaults: DefaultsTable, database: DatabaseTable): DatabaseConfig {
  // Absent keys are absent properties, so a spread takes only what was written.
  const table = { ...defaults, ...database };
  const compactionLevelsMs = table.compaction_levels ?? [30 * SECOND_MS, 5 * MINUTE_MS, HOUR_MS];
  return {
    name: table.name,
    path: table.path,
    debounceMs: table.debounce ?? 250,
    maxBatchDelayMs: table.max_batch_delay ?? SECOND_MS,
    safetyPollMs: table.safety_poll ?? 30 * SECOND_MS,
    busyTimeoutMs: table.busy_timeout ?? 5 * SECOND_MS,
    maxWalSizeBytes: table.max_wal_size ?? 16 * 2 ** 20,
    manifestFlushMs: table.manifest_flush ?? 10 * SECOND_MS,
    snapshotIntervalMs: table.snapshot_interval ?? DAY_MS,
    retentionMs: table.retention ?? 0,
    compactionLevelsMs,
    compactionKeepRecent: table.compaction_keep_recent ?? 16,
    compactionKeepMs: table.compaction_keep ?? COMPACTION_KEEP_MS.slice(0, compactionLevelsMs.length),
    maxSegmentsPerSnapshot: table.max_segments_per_snapshot ?? 0,
    maxTotalSizeBytes: table.max_total_size ?? 0,
    maxBackups: table.max_backups ?? 0,
    multipartSweepIntervalMs: table.multipart_sweep_interval ?? HOUR_MS,
    multipartMinAgeMs: table.multipart_min_age ?? HOUR_MS,
    mirrorIntervalMs: table.mirror_interval ?? MINUTE_MS,
    compression: table.compression ?? "zstd",
    compressionLevel: table.compression_level ?? 3,
    validateOnRestore: table.validate_on_restore ?? true,
    onIncompleteDestination: table.on_incomplete_destination ?? "backfill",
    convertToWal: table.convert_to_wal ?? false,
    encryption: resolveEncryption(defaults.encryption ?? {}, database.encryption ?? {}),
    backends: table.backends,
  };
}

/** Key by key like the other settings; `mode = "none"` undoes what `[defaults]` says, and a key of its own undoes that. */
function resolveEncryption(defaults: EncryptionTable, own: EncryptionTable): EncryptionConfig {
  const keyFile = own.mode === "none" ? undefined : (own.key_file ?? defaults.key_file);
  if (keyFile === undefined) return { mode: "none" };
  const acceptPlaintext = own.accept_plaintext ?? defaults.accept_plaintext ?? false;
  return { mode: "key-file", keyFile, acceptPlaintext };
}
