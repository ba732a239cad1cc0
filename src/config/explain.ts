import { parse } from "smol-toml";
import type * as z from "zod";
import { formatListenAddress } from "../util/listen-address.ts";
import type { backendTables } from "./backends.ts";
import { locateKeys, type TextPosition } from "./locate.ts";
import { type KeyPath, valueAt } from "./problems.ts";
import type { DaemonTable, DatabaseTable, EncryptionTable } from "./schema.ts";
import type {
  AzureBackendConfig,
  BackendConfig,
  CommonBackendConfig,
  Config,
  DaemonConfig,
  DatabaseConfig,
  EncryptionConfig,
  FileBackendConfig,
  GcsBackendConfig,
  S3BackendConfig,
  SftpBackendConfig,
} from "./types.ts";

/** As bakelite.toml would spell it: durations as `"1h30m"`, sizes as `"16MiB"`. null: not set, and there is no default. */
export type ConfigValue = string | number | boolean | readonly string[] | null;

/** Which table of the file says so, and where; or the default that is built in. */
export type Origin =
  | { readonly kind: "daemon" | "defaults" | "database"; readonly at: TextPosition }
  | { readonly kind: "built-in" };

export interface ExplainedKey {
  readonly key: string;
  /** null for a secret, which is never shown. */
  readonly value: ConfigValue;
  readonly isSecret: boolean;
  /** The environment variables that are part of it. */
  readonly variables: readonly string[];
  readonly origin: Origin;
}

export interface ExplainedDatabase {
  readonly name: string;
  /** `name`, `path`, the settings, and those of encryption as `encryption.key_file`. */
  readonly keys: readonly ExplainedKey[];
  /** Of each backend, in the order of the file. */
  readonly backends: readonly (readonly ExplainedKey[])[];
}

export interface ExplainedConfig {
  readonly daemon: readonly ExplainedKey[];
  readonly databases: readonly ExplainedDatabase[];
}

const SECRETS: ReadonlySet<string> = new Set([
  "secret_access_key",
  "session_token",
  "account_key",
  "sas_token",
  "password",
  "key_passphrase",
  "heartbeat_url",
]);

/** What is in force for each key and where it comes from. `toml` is the text that `config` was made of. Pure. */
export function explainConfig(toml: string, config: Config): ExplainedConfig {
  const document: unknown = parse(toml);
  const locate = locateKeys(toml);

  /** `homes` are the places that may say something about the key, the one that counts first. */
  const explain = (key: string, value: ConfigValue, homes: readonly Home[]): ExplainedKey => {
    const home = homes.find(({ path }) => valueAt(document, path) !== undefined);
    const isSecret = SECRETS.has(key);
    return {
      key,
      value: isSecret ? null : value,
      isSecret: isSecret && home !== undefined,
      variables: home === undefined ? [] : variablesIn(valueAt(document, home.path)),
      origin: home === undefined ? { kind: "built-in" } : { kind: home.kind, at: locate(home.path) },
    };
  };

  return {
    daemon: Object.entries(daemonValues(config.daemon)).map(([key, value]) =>
      explain(key, value, [{ kind: "daemon", path: ["daemon", key] }]),
    ),
    databases: config.databases.map((database, i) => {
      const own = (...path: KeyPath): Home => ({ kind: "database", path: ["database", i, ...path] });
      const shared = (...path: KeyPath): Home => ({ kind: "defaults", path: ["defaults", ...path] });
      return {
        name: database.name,
        keys: [
          ...Object.entries(databaseValues(database)).map(([key, value]) =>
            explain(key, value, [own(key), shared(key)]),
          ),
          ...Object.entries(encryptionValues(database.encryption)).map(([key, value]) => ({
            ...explain(key, value, [own("encryption", key), shared("encryption", key)]),
            key: `encryption.${key}`,
          })),
        ],
        backends: database.backends.map((backend, j) =>
          Object.entries(backendValues(backend)).map(([key, value]) => explain(key, value, [own("backends", j, key)])),
        ),
      };
    }),
  };
}

interface Home {
  readonly kind: "daemon" | "defaults" | "database";
  readonly path: KeyPath;
}

/** Names in `${NAME}`, as `interpolate` finds them. */
function variablesIn(value: unknown): readonly string[] {
  if (typeof value !== "string") return [];
  return [...value.matchAll(/\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)\}/g)].flatMap(([, name]) => name ?? []);
}

// The types of the records make the compiler name a key of the schema that was forgotten here.

type Values<Table> = { readonly [Key in keyof Table]-?: ConfigValue };
type BackendTable<Type extends keyof typeof backendTables> = z.output<(typeof backendTables)[Type]>;

function daemonValues(daemon: DaemonConfig): Values<DaemonTable> {
  return {
    metrics_addr: daemon.metricsAddress === undefined ? null : formatListenAddress(daemon.metricsAddress),
    max_concurrent_snapshots: daemon.maxConcurrentSnapshots,
    db: daemon.db ?? null,
    log_level: daemon.logLevel,
    log_format: daemon.logFormat,
    heartbeat_url: null,
    heartbeat_interval: duration(daemon.heartbeatIntervalMs),
  };
}

function databaseValues(database: DatabaseConfig): Values<Omit<DatabaseTable, "encryption" | "backends">> {
  return {
    name: database.name,
    path: database.path,
    debounce: duration(database.debounceMs),
    max_batch_delay: duration(database.maxBatchDelayMs),
    safety_poll: duration(database.safetyPollMs),
    busy_timeout: duration(database.busyTimeoutMs),
    max_wal_size: byteSize(database.maxWalSizeBytes),
    manifest_flush: duration(database.manifestFlushMs),
    snapshot_interval: duration(database.snapshotIntervalMs),
    retention: duration(database.retentionMs),
    compaction_levels: database.compactionLevelsMs.map(duration),
    compaction_keep_recent: database.compactionKeepRecent,
    compaction_keep: database.compactionKeepMs.map(duration),
    max_segments_per_snapshot: database.maxSegmentsPerSnapshot,
    max_total_size: byteSize(database.maxTotalSizeBytes),
    max_backups: database.maxBackups,
    multipart_sweep_interval: duration(database.multipartSweepIntervalMs),
    multipart_min_age: duration(database.multipartMinAgeMs),
    mirror_interval: duration(database.mirrorIntervalMs),
    compression: database.compression,
    compression_level: database.compressionLevel,
    validate_on_restore: database.validateOnRestore,
    on_incomplete_destination: database.onIncompleteDestination,
    convert_to_wal: database.convertToWal,
  };
}

/** Without encryption there is no key file; with it there is no mode. */
function encryptionValues(encryption: EncryptionConfig): Partial<Values<EncryptionTable>> {
  return encryption.mode === "none"
    ? { mode: "none" }
    : { key_file: encryption.keyFile, accept_plaintext: encryption.acceptPlaintext };
}

function backendValues(backend: BackendConfig) {
  switch (backend.type) {
    case "file":
      return fileValues(backend);
    case "s3":
      return s3Values(backend);
    case "gcs":
      return gcsValues(backend);
    case "azure":
      return azureValues(backend);
    case "sftp":
      return sftpValues(backend);
  }
}

function commonValues(backend: CommonBackendConfig) {
  return {
    async: backend.async,
    timeout: duration(backend.timeoutMs),
    retries: backend.retries,
    upload_rate_limit: byteSize(backend.uploadBytesPerSecond),
    download_rate_limit: byteSize(backend.downloadBytesPerSecond),
  };
}

function fileValues(backend: FileBackendConfig): Values<BackendTable<"file">> {
  return { type: backend.type, path: backend.path, ...commonValues(backend) };
}

function s3Values(backend: S3BackendConfig): Values<BackendTable<"s3">> {
  return {
    type: backend.type,
    bucket: backend.bucket,
    prefix: backend.prefix,
    region: backend.region ?? null,
    endpoint: backend.endpoint ?? null,
    path_style: backend.pathStyle,
    storage_class: backend.storageClass ?? null,
    change_set_storage_class: backend.changeSetStorageClass ?? null,
    access_key_id: backend.credentials?.accessKeyId ?? null,
    secret_access_key: null,
    session_token: null,
    credentials_file: backend.credentialsFile ?? null,
    profile: backend.profile ?? null,
    sse: backend.sse ?? null,
    sse_kms_key_id: backend.sseKmsKeyId ?? null,
    part_size: byteSize(backend.partSizeBytes),
    concurrency: backend.concurrency,
    ca_file: backend.caFile ?? null,
    ...commonValues(backend),
  };
}

function gcsValues(backend: GcsBackendConfig): Values<BackendTable<"gcs">> {
  return {
    type: backend.type,
    bucket: backend.bucket,
    prefix: backend.prefix,
    service_account_file: backend.serviceAccountFile ?? null,
    storage_class: backend.storageClass ?? null,
    change_set_storage_class: backend.changeSetStorageClass ?? null,
    endpoint: backend.endpoint ?? null,
    ca_file: backend.caFile ?? null,
    ...commonValues(backend),
  };
}

function azureValues(backend: AzureBackendConfig): Values<BackendTable<"azure">> {
  const { authentication } = backend;
  return {
    type: backend.type,
    account: backend.account,
    container: backend.container,
    prefix: backend.prefix,
    account_key: null,
    account_key_file: authentication.method === "account-key-file" ? authentication.accountKeyFile : null,
    sas_token: null,
    sas_token_file: authentication.method === "sas-file" ? authentication.sasTokenFile : null,
    managed_identity_client_id:
      authentication.method === "environment" ? (authentication.managedIdentityClientId ?? null) : null,
    storage_class: backend.storageClass ?? null,
    change_set_storage_class: backend.changeSetStorageClass ?? null,
    endpoint: backend.endpoint ?? null,
    ca_file: backend.caFile ?? null,
    ...commonValues(backend),
  };
}

function sftpValues(backend: SftpBackendConfig): Values<BackendTable<"sftp">> {
  const { authentication } = backend;
  return {
    type: backend.type,
    host: backend.host,
    port: backend.port,
    user: backend.user,
    path: backend.path,
    key_file: authentication.method === "key-file" ? authentication.keyFile : null,
    key_passphrase: null,
    key_passphrase_file: authentication.method === "key-file" ? (authentication.keyPassphraseFile ?? null) : null,
    password: null,
    password_file: authentication.method === "password-file" ? authentication.passwordFile : null,
    known_hosts: backend.knownHosts ?? null,
    ...commonValues(backend),
  };
}

const DURATION_UNITS = [
  ["d", 86_400_000],
  ["h", 3_600_000],
  ["m", 60_000],
  ["s", 1_000],
  ["ms", 1],
] as const;

/** Exact, unlike what is shown to people elsewhere: `parseDuration` reads back the same number. Weeks are shown as days. */
function duration(durationMs: number): string {
  let restMs = durationMs;
  let text = "";
  for (const [unit, unitMs] of DURATION_UNITS) {
    const count = Math.floor(restMs / unitMs);
    if (count > 0) text += `${count}${unit}`;
    restMs -= count * unitMs;
  }
  return text === "" ? "0s" : text;
}

/** Exact: the largest binary unit that divides it, else plain bytes. */
function byteSize(bytes: number): string | number {
  for (const [unit, unitBytes] of SIZE_UNITS)
    if (bytes > 0 && bytes % unitBytes === 0) return `${bytes / unitBytes}${unit}`;
  return bytes;
}

const SIZE_UNITS = [
  ["TiB", 2 ** 40],
  ["GiB", 2 ** 30],
  ["MiB", 2 ** 20],
  ["KiB", 2 ** 10],
] as const;

/** Whether a secret stands in the file itself: one that comes from the environment does not. */
export function holdsSecrets({ daemon, databases }: ExplainedConfig): boolean {
  const keys = [...daemon, ...databases.flatMap(({ backends }) => backends.flat())];
  return keys.some(({ isSecret, variables }) => isSecret && variables.length === 0);
}
