import { z } from "zod";
import type {
  AzureAuthentication,
  AzureBackendConfig,
  CommonBackendConfig,
  FileBackendConfig,
  GcsBackendConfig,
  S3BackendConfig,
  S3Credentials,
  SftpAuthentication,
  SftpBackendConfig,
} from "./types.ts";
import {
  absolutePath,
  boolean,
  byteSize,
  httpUrl,
  integer,
  keyPrefix,
  oneOf,
  positiveDuration,
  text,
  word,
} from "./values.ts";

const MIB = 2 ** 20;

const common = {
  async: boolean.optional(),
  timeout: positiveDuration.optional(),
  retries: integer(0, 100).optional(),
  upload_rate_limit: byteSize(" per second").optional(),
  download_rate_limit: byteSize(" per second").optional(),
};

/** Of Azure. What lies in its archive takes hours to become readable, which no restore can wait for. */
const accessTier = z.enum(["Hot", "Cool", "Cold"], {
  error: ({ input }) =>
    typeof input === "string" && input.toLowerCase() === "archive"
      ? 'must be "Hot", "Cool" or "Cold": what is archived takes hours to become readable again, and no restore could use it'
      : 'must be "Hot", "Cool" or "Cold"',
});

/** The keys of each type of `[[database.backends]]`. */
export const backendTables = {
  file: z.strictObject({ type: z.literal("file"), path: absolutePath, ...common }),
  s3: z.strictObject({
    type: z.literal("s3"),
    bucket: word,
    prefix: keyPrefix.optional(),
    region: word.optional(),
    endpoint: httpUrl.optional(),
    path_style: boolean.optional(),
    storage_class: word.optional(),
    change_set_storage_class: word.optional(),
    access_key_id: text.optional(),
    secret_access_key: text.optional(),
    session_token: text.optional(),
    credentials_file: absolutePath.optional(),
    profile: text.optional(),
    sse: oneOf(["AES256", "aws:kms"]).optional(),
    sse_kms_key_id: text.optional(),
    // S3 refuses parts outside this range, other than the last.
    part_size: byteSize(', from "5MiB" to "5GiB"', 5 * MIB, 5120 * MIB).optional(),
    concurrency: integer(1, 64).optional(),
    ca_file: absolutePath.optional(),
    ...common,
  }),
  gcs: z.strictObject({
    type: z.literal("gcs"),
    bucket: word,
    prefix: keyPrefix.optional(),
    service_account_file: absolutePath.optional(),
    storage_class: word.optional(),
    change_set_storage_class: word.optional(),
    endpoint: httpUrl.optional(),
    ca_file: absolutePath.optional(),
    ...common,
  }),
  azure: z.strictObject({
    type: z.literal("azure"),
    account: word,
    container: word,
    prefix: keyPrefix.optional(),
    account_key: text.optional(),
    account_key_file: absolutePath.optional(),
    sas_token: text.optional(),
    sas_token_file: absolutePath.optional(),
    managed_identity_client_id: text.optional(),
    storage_class: accessTier.optional(),
    change_set_storage_class: accessTier.optional(),
    endpoint: httpUrl.optional(),
    ca_file: absolutePath.optional(),
    ...common,
  }),
  sftp: z.strictObject({
    type: z.literal("sftp"),
    host: word,
    port: integer(1, 65_535).optional(),
    user: word,
    path: text,
    key_file: absolutePath.optional(),
    key_passphrase: text.optional(),
    key_passphrase_file: absolutePath.optional(),
    password: text.optional(),
    password_file: absolutePath.optional(),
    known_hosts: absolutePath.optional(),
    ...common,
  }),
} as const;

const TYPES = Object.keys(backendTables).map((type) => JSON.stringify(type));

/** One `[[database.backends]]`, by its `type`, to a BackendConfig with defaults. */
export const backendSchema = z.discriminatedUnion(
  "type",
  [
    backendTables.file.transform(toFile),
    backendTables.s3.transform(toS3),
    backendTables.gcs.transform(toGcs),
    backendTables.azure.transform(toAzure),
    backendTables.sftp.transform(toSftp),
  ],
  {
    error: (issue) =>
      issue.code === "invalid_union"
        ? `must be ${TYPES.slice(0, -1).join(", ")} or ${TYPES.at(-1)}`
        : "must be a table with a `type`",
  },
);

type Table<T extends keyof typeof backendTables> = z.output<(typeof backendTables)[T]>;
/** Where a transform reports that keys do not go together. */
type Complain = (message: string, key?: string) => void;

function toFile(table: Table<"file">): FileBackendConfig {
  return { type: "file", path: table.path, ...toCommon(table) };
}

function toS3(table: Table<"s3">, context: z.RefinementCtx): S3BackendConfig {
  const complain = complainTo(context);
  if (table.sse_kms_key_id !== undefined && table.sse !== "aws:kms") {
    complain('only goes with sse = "aws:kms"', "sse_kms_key_id");
  }
  return {
    type: "s3",
    bucket: table.bucket,
    prefix: table.prefix ?? "",
    region: table.region,
    endpoint: table.endpoint,
    // Servers other than AWS rarely have a wildcard name and certificate for their buckets.
    pathStyle: table.path_style ?? table.endpoint !== undefined,
    storageClass: table.storage_class,
    changeSetStorageClass: table.change_set_storage_class,
    credentials: toS3Credentials(table, complain),
    credentialsFile: table.credentials_file,
    profile: table.profile,
    sse: table.sse,
    sseKmsKeyId: table.sse_kms_key_id,
    partSizeBytes: table.part_size ?? 8 * MIB,
    concurrency: table.concurrency ?? 4,
    caFile: table.ca_file,
    ...toCommon(table),
  };
}

function toS3Credentials(table: Table<"s3">, complain: Complain): S3Credentials | undefined {
  const { access_key_id, secret_access_key, session_token } = table;
  if (access_key_id !== undefined && secret_access_key !== undefined) {
    return { accessKeyId: access_key_id, secretAccessKey: secret_access_key, sessionToken: session_token };
  }
  if (access_key_id !== undefined) complain("needs `secret_access_key` beside it", "access_key_id");
  if (secret_access_key !== undefined) complain("needs `access_key_id` beside it", "secret_access_key");
  if (session_token !== undefined) complain("needs `access_key_id` and `secret_access_key` beside it", "session_token");
  return undefined;
}

function toGcs(table: Table<"gcs">): GcsBackendConfig {
  return {
    type: "gcs",
    bucket: table.bucket,
    prefix: table.prefix ?? "",
    serviceAccountFile: table.service_account_file,
    storageClass: table.storage_class,
    changeSetStorageClass: table.change_set_storage_class,
    endpoint: table.endpoint,
    caFile: table.ca_file,
    ...toCommon(table),
  };
}

function toAzure(table: Table<"azure">, context: z.RefinementCtx): AzureBackendConfig {
  return {
    type: "azure",
    account: table.account,
    container: table.container,
    prefix: table.prefix ?? "",
    authentication: toAzureAuthentication(table, complainTo(context)),
    storageClass: table.storage_class,
    changeSetStorageClass: table.change_set_storage_class,
    endpoint: table.endpoint,
    caFile: table.ca_file,
    ...toCommon(table),
  };
}

function toAzureAuthentication(table: Table<"azure">, complain: Complain): AzureAuthentication {
  refuseSecond(
    table,
    ["account_key", "account_key_file", "sas_token", "sas_token_file", "managed_identity_client_id"],
    complain,
  );
  if (table.account_key !== undefined) return { method: "account-key", accountKey: table.account_key };
  if (table.account_key_file !== undefined)
    return { method: "account-key-file", accountKeyFile: table.account_key_file };
  if (table.sas_token !== undefined) return { method: "sas", sasToken: table.sas_token };
  if (table.sas_token_file !== undefined) return { method: "sas-file", sasTokenFile: table.sas_token_file };
  return { method: "environment", managedIdentityClientId: table.managed_identity_client_id };
}

function toSftp(table: Table<"sftp">, context: z.RefinementCtx): SftpBackendConfig {
  return {
    type: "sftp",
    host: table.host,
    port: table.port ?? 22,
    user: table.user,
    path: table.path.replace(/(?<=.)\/+$/, ""),
    authentication: toSftpAuthentication(table, complainTo(context)),
    knownHosts: table.known_hosts,
    ...toCommon(table),
  };
}

function toSftpAuthentication(table: Table<"sftp">, complain: Complain): SftpAuthentication {
  refuseSecond(table, ["key_file", "password", "password_file"], complain);
  refuseSecond(table, ["key_passphrase", "key_passphrase_file"], complain);
  for (const key of ["key_passphrase", "key_passphrase_file"] as const)
    if (table[key] !== undefined && table.key_file === undefined) complain("only goes with `key_file`", key);
  if (table.password !== undefined) return { method: "password", password: table.password };
  if (table.password_file !== undefined) return { method: "password-file", passwordFile: table.password_file };
  if (table.key_file === undefined) return { method: "agent" };
  return {
    method: "key-file",
    keyFile: table.key_file,
    keyPassphrase: table.key_passphrase,
    keyPassphraseFile: table.key_passphrase_file,
  };
}

function toCommon(table: Pick<Table<"file">, keyof typeof common>): CommonBackendConfig {
  return {
    async: table.async ?? false,
    timeoutMs: table.timeout ?? 60_000,
    retries: table.retries ?? 5,
    uploadBytesPerSecond: table.upload_rate_limit ?? 0,
    downloadBytesPerSecond: table.download_rate_limit ?? 0,
  };
}

/** Complains about every key of `table` after the first of `keys`: they are different ways to the same thing. */
function refuseSecond<K extends string>(
  table: { readonly [key in K]?: unknown },
  keys: readonly K[],
  complain: Complain,
) {
  const [first, ...others] = keys.filter((key) => table[key] !== undefined);
  for (const other of others) complain(`cannot stand beside \`${first}\`; give one of them`, other);
}

/** Without a key the complaint is about the whole table. */
function complainTo(context: z.RefinementCtx): Complain {
  return (message, key) => {
    context.addIssue({ code: "custom", message, path: key === undefined ? [] : [key] });
  };
}
