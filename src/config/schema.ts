import { z } from "zod";
import { backendSchema, backendTables } from "./backends.ts";
import { isTable, type KeyPath, valueAt } from "./problems.ts";
import {
  absolutePath,
  boolean,
  byteSize,
  databaseName,
  duration,
  heartbeatUrl,
  integer,
  listenAddress,
  oneOf,
  positiveDuration,
} from "./values.ts";

const MAX_COUNT = 1_000_000_000;

const table = { error: "must be a table" };

export const daemonSchema = z.strictObject(
  {
    metrics_addr: listenAddress.optional(),
    max_concurrent_snapshots: integer(1, 1_000).optional(),
    db: databaseName.optional(),
    log_level: oneOf(["error", "warn", "info", "debug"]).optional(),
    log_format: oneOf(["text", "json"]).optional(),
    heartbeat_url: heartbeatUrl.optional(),
    heartbeat_interval: positiveDuration.optional(),
  },
  table,
);

const encryptionSchema = z
  .strictObject(
    {
      mode: z.literal("none", { error: 'must be "none"; to encrypt, give `key_file` instead' }).optional(),
      key_file: absolutePath.optional(),
      accept_plaintext: boolean.optional(),
    },
    table,
  )
  .refine((keys) => keys.mode === undefined || (keys.key_file ?? keys.accept_plaintext) === undefined, {
    error: 'must have nothing beside `mode = "none"`',
  });

const settings = {
  debounce: duration.optional(),
  max_batch_delay: positiveDuration.optional(),
  safety_poll: positiveDuration.optional(),
  busy_timeout: duration.optional(),
  max_wal_size: byteSize(', at least "4KiB"', 4096).optional(),
  manifest_flush: positiveDuration.optional(),
  snapshot_interval: duration.optional(),
  retention: duration.optional(),
  compaction_levels: arrayOf(positiveDuration, "durations").optional(),
  compaction_keep_recent: integer(0, MAX_COUNT).optional(),
  compaction_keep: arrayOf(duration, "durations").optional(),
  max_segments_per_snapshot: integer(0, MAX_COUNT).optional(),
  max_total_size: byteSize(", or 0").optional(),
  max_backups: integer(0, MAX_COUNT).optional(),
  multipart_sweep_interval: duration.optional(),
  multipart_min_age: duration.optional(),
  mirror_interval: positiveDuration.optional(),
  compression: oneOf(["zstd", "none"]).optional(),
  compression_level: integer(1, 22).optional(),
  validate_on_restore: boolean.optional(),
  on_incomplete_destination: oneOf(["backfill", "refuse", "warn"]).optional(),
  convert_to_wal: boolean.optional(),
  encryption: encryptionSchema.optional(),
};

export const defaultsSchema = z.strictObject(
  {
    ...settings,
    // A heading whose key_file was left out must not pass for "encrypted".
    encryption: encryptionSchema
      .refine((keys) => (keys.mode ?? keys.key_file) !== undefined, { error: 'needs `key_file`, or `mode = "none"`' })
      .optional(),
  },
  table,
);

export const databaseSchema = z.strictObject(
  {
    name: databaseName,
    path: absolutePath,
    ...settings,
    backends: z
      .array(backendSchema, { error: "must be given as [[database.backends]]" })
      .min(1, { error: "must have at least one entry" }),
  },
  table,
);

export const documentSchema = z.strictObject({
  daemon: z.unknown().optional(),
  defaults: z.unknown().optional(),
  database: z
    .array(z.unknown(), { error: "must be given as [[database]]" })
    .min(1, { error: "must have at least one entry" }),
});

export type DaemonTable = z.output<typeof daemonSchema>;
export type DefaultsTable = z.output<typeof defaultsSchema>;
export type DatabaseTable = z.output<typeof databaseSchema>;
export type EncryptionTable = z.output<typeof encryptionSchema>;

/** The keys that the table at `path` may have; a backend's depend on its type in `document`. Empty when unknown. */
export function validKeys(document: unknown, path: KeyPath): readonly string[] {
  switch (path.findLast((part) => typeof part === "string")) {
    case undefined:
      return Object.keys(documentSchema.shape);
    case "daemon":
      return Object.keys(daemonSchema.shape);
    case "defaults":
      return Object.keys(defaultsSchema.shape);
    case "database":
      return Object.keys(databaseSchema.shape);
    case "encryption":
      return Object.keys(encryptionSchema.shape);
    default:
      return backendKeys(valueAt(document, path));
  }
}

function backendKeys(backend: unknown): readonly string[] {
  const type = isTable(backend) ? backend["type"] : undefined;
  for (const [name, schema] of Object.entries(backendTables)) if (name === type) return Object.keys(schema.shape);
  return [];
}

function arrayOf<T extends z.ZodType>(element: T, plural: string) {
  return z
    .array(element, { error: `must be an array of ${plural}` })
    .max(16, { error: "must have at most 16 entries" });
}
