import type { ListenAddress } from "../util/listen-address.ts";
import type { LogLevel } from "../util/logger.ts";

/**
 * bakelite.toml, checked, with every default applied. Deeply frozen plain data: it may be posted to a worker. Some
 * fields of the backends are secrets (`…Key`, `…Token`, `password`, `keyPassphrase`); never log a BackendConfig.
 */
export interface Config {
  /** Absolute path of the file, for messages and for reading it again. */
  readonly sourcePath: string;
  readonly daemon: DaemonConfig;
  /** In the order of the file; at least one. */
  readonly databases: readonly DatabaseConfig[];
}

export interface DaemonConfig {
  /** undefined: no metrics server. */
  readonly metricsAddress: ListenAddress | undefined;
  readonly maxConcurrentSnapshots: number;
  /** The name of the only database to back up; undefined: all. */
  readonly db: string | undefined;
  readonly logLevel: LogLevel;
  readonly logFormat: "text" | "json";
  /** Called while every database is well; a secret. undefined: none. */
  readonly heartbeatUrl: string | undefined;
  readonly heartbeatIntervalMs: number;
}

/** What `[defaults]` sets for every database and a `[[database]]` may set for itself. */
export interface DatabaseSettings {
  readonly debounceMs: number;
  readonly maxBatchDelayMs: number;
  readonly safetyPollMs: number;
  /** How long to retry a busy database, without blocking, before the state becomes `backing off`. */
  readonly busyTimeoutMs: number;
  readonly maxWalSizeBytes: number;
  readonly manifestFlushMs: number;
  /** 0: no full backup because of time alone. */
  readonly snapshotIntervalMs: number;
  /** 0: keep all. */
  readonly retentionMs: number;
  /** The window of each level from level 1, ascending; empty: no compaction. */
  readonly compactionLevelsMs: readonly number[];
  readonly compactionKeepRecent: number;
  /** How long the inputs of each level stay; as many as there are levels. */
  readonly compactionKeepMs: readonly number[];
  /** 0: no full backup because of a count of change-sets. */
  readonly maxSegmentsPerSnapshot: number;
  /** 0: no cap. */
  readonly maxTotalSizeBytes: number;
  /** 0: no cap. */
  readonly maxBackups: number;
  /** 0: no sweep. */
  readonly multipartSweepIntervalMs: number;
  readonly multipartMinAgeMs: number;
  readonly mirrorIntervalMs: number;
  readonly compression: "zstd" | "none";
  readonly compressionLevel: number;
  readonly validateOnRestore: boolean;
  readonly onIncompleteDestination: "backfill" | "refuse" | "warn";
  /** The daemon may put the database into WAL mode. */
  readonly convertToWal: boolean;
}

export interface DatabaseConfig extends DatabaseSettings {
  /** `[A-Za-z0-9_-][A-Za-z0-9._-]*`, at most 128 characters, unique; part of every object's key. */
  readonly name: string;
  /** Absolute; links are not resolved here. */
  readonly path: string;
  readonly encryption: EncryptionConfig;
  /** At least one, of which at least one is not `async`. No two are the same destination. */
  readonly backends: readonly BackendConfig[];
}

export type EncryptionConfig =
  | { readonly mode: "none" }
  | {
      readonly mode: "key-file";
      readonly keyFile: string;
      /** Objects without a seal are read too, while a replica is being re-encrypted. */
      readonly acceptPlaintext: boolean;
    };

/** What every backend accepts. */
export interface CommonBackendConfig {
  /** A background mirror instead of a lock-step destination. */
  readonly async: boolean;
  /** A request that makes no progress for this long has failed. */
  readonly timeoutMs: number;
  /** How often a failed request is tried again; 0: never. */
  readonly retries: number;
  /** 0: no limit. */
  readonly uploadBytesPerSecond: number;
  /** 0: no limit. */
  readonly downloadBytesPerSecond: number;
}

export interface FileBackendConfig extends CommonBackendConfig {
  readonly type: "file";
  /** An absolute directory. */
  readonly path: string;
}

export interface S3BackendConfig extends CommonBackendConfig {
  readonly type: "s3";
  readonly bucket: string;
  /** Without slashes at its ends; "" for none. */
  readonly prefix: string;
  /** undefined: from the AWS environment or profile. */
  readonly region: string | undefined;
  /** An http or https URL without a trailing slash; undefined: AWS. */
  readonly endpoint: string | undefined;
  /** The bucket stands in the path instead of the host name; the default with an `endpoint`. */
  readonly pathStyle: boolean;
  /** For full backups and high compaction levels; undefined: the bucket's default. */
  readonly storageClass: string | undefined;
  readonly changeSetStorageClass: string | undefined;
  /** Explicit keys win over everything else; undefined: the usual order of AWS. */
  readonly credentials: S3Credentials | undefined;
  readonly credentialsFile: string | undefined;
  readonly profile: string | undefined;
  readonly sse: "AES256" | "aws:kms" | undefined;
  readonly sseKmsKeyId: string | undefined;
  readonly partSizeBytes: number;
  readonly concurrency: number;
  readonly caFile: string | undefined;
}

export interface S3Credentials {
  readonly accessKeyId: string;
  readonly secretAccessKey: string;
  readonly sessionToken: string | undefined;
}

export interface SftpBackendConfig extends CommonBackendConfig {
  readonly type: "sftp";
  readonly host: string;
  readonly port: number;
  readonly user: string;
  /** The directory on the server; relative paths start at the user's home. */
  readonly path: string;
  readonly authentication: SftpAuthentication;
  /** undefined: the usual files of OpenSSH. */
  readonly knownHosts: string | undefined;
}

export type SftpAuthentication =
  | {
      readonly method: "key-file";
      readonly keyFile: string;
      /** At most one of the two, where the key is locked. */
      readonly keyPassphrase: string | undefined;
      readonly keyPassphraseFile: string | undefined;
    }
  | { readonly method: "password"; readonly password: string }
  | { readonly method: "password-file"; readonly passwordFile: string }
  /** The ssh-agent that `SSH_AUTH_SOCK` names. */
  | { readonly method: "agent" };

export interface GcsBackendConfig extends CommonBackendConfig {
  readonly type: "gcs";
  readonly bucket: string;
  /** Without slashes at its ends; "" for none. */
  readonly prefix: string;
  /** undefined: Application Default Credentials. */
  readonly serviceAccountFile: string | undefined;
  /** For full backups and high compaction levels; undefined: the bucket's default. */
  readonly storageClass: string | undefined;
  readonly changeSetStorageClass: string | undefined;
  /** Another server that speaks the same API; undefined: Google. */
  readonly endpoint: string | undefined;
  readonly caFile: string | undefined;
}

export interface AzureBackendConfig extends CommonBackendConfig {
  readonly type: "azure";
  readonly account: string;
  readonly container: string;
  /** Without slashes at its ends; "" for none. */
  readonly prefix: string;
  readonly authentication: AzureAuthentication;
  /** The access tier of full backups and high compaction levels; undefined: the account's default. */
  readonly storageClass: "Hot" | "Cool" | "Cold" | undefined;
  readonly changeSetStorageClass: "Hot" | "Cool" | "Cold" | undefined;
  /** The blob service's URL, for other clouds; undefined: `https://<account>.blob.core.windows.net`. */
  readonly endpoint: string | undefined;
  readonly caFile: string | undefined;
}

export type AzureAuthentication =
  | { readonly method: "account-key"; readonly accountKey: string }
  | { readonly method: "account-key-file"; readonly accountKeyFile: string }
  | { readonly method: "sas"; readonly sasToken: string }
  | { readonly method: "sas-file"; readonly sasTokenFile: string }
  /** `AZURE_STORAGE_CONNECTION_STRING`, `AZURE_STORAGE_KEY`, `AZURE_STORAGE_SAS_TOKEN`, else an identity. */
  | { readonly method: "environment"; readonly managedIdentityClientId: string | undefined };

export type BackendConfig =
  | FileBackendConfig
  | S3BackendConfig
  | SftpBackendConfig
  | GcsBackendConfig
  | AzureBackendConfig;
