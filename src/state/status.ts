import * as z from "zod";
import { count, failure, index, restorePoint, timestamp } from "./json-fields.ts";
import { type JsonFileResult, readJsonFile, writeJsonFile } from "./json-file.ts";
import { processIdentitySchema } from "./process-identity.ts";

const VERSION = 1;

/** What a daemon may say of one database. `not running` and `stale` are seen from outside: `observeState`. */
export const STATUS_STATES = [
  "live",
  "starting",
  "snapshotting",
  "waiting",
  "not wal",
  "backing off",
  "stopped",
] as const;
export type StatusState = (typeof STATUS_STATES)[number];
export type ObservedState = StatusState | "not running" | "stale";

/** A failure that lasts: since when, how many attempts in a row, and the newest reason. */
const unhealthy = z.object({ since: timestamp, attempts: count, last_error: failure });

/** One destination, lock-step or mirror, as the daemon last knew it. */
export const destinationStatusSchema = z.object({
  location: z.string(),
  type: z.string(),
  /** A background mirror; its detail is in `<name>.mirror.json`. */
  async: z.boolean(),
  state: z.enum(["in sync", "incomplete", "backing off"]),
  state_since: timestamp,
  /** Newest index stored there; null before the first. */
  index: index.nullable(),
  /** What is missing there of what other destinations have; null when not known. */
  behind_objects: count.nullable(),
  behind_bytes: count.nullable(),
  last_stored_at: timestamp.nullable(),
  unhealthy: unhealthy.nullable(),
  /** Kept after recovery. */
  last_error: failure.nullable(),
});
export type DestinationStatus = z.infer<typeof destinationStatusSchema>;

/** `.bakelite/<name>.status.json`. Every field is described in docs/state-files.md. */
export const statusSchema = z.object({
  version: z.literal(VERSION),
  /** The writer, `0.1.0`. */
  bakelite_version: z.string(),
  database: z.string(),
  path: z.string(),
  process: processIdentitySchema,
  /** 32 hex digits, drawn at each start of the daemon. */
  run: z.string(),
  started_at: timestamp,
  written_at: timestamp,
  publish_interval_ms: z.int().min(1),

  state: z.enum(STATUS_STATES),
  state_since: timestamp,
  /** One sentence for people; the fix for `not wal`, what was not shipped for `stopped`. */
  detail: z.string().nullable(),
  /** 0 to 1, of what `state` is doing. */
  progress: z.number().min(0).max(1).nullable(),
  unhealthy: unhealthy.nullable(),
  last_error: failure.nullable(),

  /** Newest stored index; null before the first. */
  index: index.nullable(),
  newest_restore_point: restorePoint.nullable(),
  last_commit_at: timestamp.nullable(),
  /** When everything committed was last known to be stored. */
  last_synced_at: timestamp.nullable(),
  /** When the oldest commit that is not stored yet was seen; null when there is none or that is unknown. */
  oldest_unstored_at: timestamp.nullable(),
  /** Its age at `written_at`: 0 when everything is stored, null when unknown. */
  lag_seconds: z.number().min(0).nullable(),
  /** Of this run. */
  change_sets: count,
  bytes_shipped: count,

  full_backup: z.object({ index, settled: index, at: timestamp }).nullable(),
  full_backup_in_progress: z
    .object({ index, reason: z.string(), since: timestamp, progress: z.number().min(0).max(1).nullable() })
    .nullable(),
  /** Of this run, by reason. */
  full_backups_by_reason: z.record(z.string(), count),

  wal: z
    .object({
      size_bytes: count,
      committed_frames: count,
      backfilled_frames: count,
      held_by: z.object({ pid: z.int(), since: timestamp }).nullable(),
    })
    .nullable(),
  /** Of this run: the longest time that we held the database's write lock. */
  longest_write_lock_ms: z.number().min(0),

  /** Limits that the newest pass of upkeep could not meet; a daemon that knows of none did not write the field. */
  limits_unmet: z
    .array(
      z.object({
        destination: z.string(),
        limit: z.enum(["max_backups", "max_total_size"]),
        /** Full backups or bytes. */
        allowed: count,
        remaining: count,
      }),
    )
    .default([]),

  destinations: z.array(destinationStatusSchema),
});
export type StatusFile = z.infer<typeof statusSchema>;

const format = { version: VERSION, what: "the status file", schema: statusSchema };

export async function readStatus(path: string): Promise<JsonFileResult<StatusFile>> {
  return await readJsonFile(path, format);
}

export async function writeStatus(path: string, status: StatusFile): Promise<void> {
  await writeJsonFile(path, status, format);
}

/**
 * What the state is for somebody who looks now. A clean `stopped` stays so. A daemon whose process is gone is `not running`;
 * one that has not written for three publishing intervals is `stale`. `isRunning` is `isProcessRunning`'s answer, where
 * null leaves it to the age.
 */
export function observeState(
  status: StatusFile,
  { nowMs, isRunning }: { readonly nowMs: number; readonly isRunning: boolean | null },
): ObservedState {
  if (status.state === "stopped") return "stopped";
  if (isRunning === false) return "not running";
  const ageMs = nowMs - Date.parse(status.written_at);
  return ageMs > 3 * status.publish_interval_ms ? "stale" : status.state;
}

/** The RPO for somebody who looks now, in seconds: it goes on growing after the daemon wrote. null when unknown. */
export function observeLagSeconds(status: StatusFile, nowMs: number): number | null {
  if (status.oldest_unstored_at === null) return status.lag_seconds;
  return Math.max(0, (nowMs - Date.parse(status.oldest_unstored_at)) / 1000);
}
