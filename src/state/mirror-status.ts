import * as z from "zod";
import { count, failure, index, timestamp } from "./json-fields.ts";
import { type JsonFileResult, readJsonFile, writeJsonFile } from "./json-file.ts";
import { processIdentitySchema } from "./process-identity.ts";

const VERSION = 1;

const mirror = z.object({
  location: z.string(),
  type: z.string(),
  state: z.enum(["in sync", "behind", "backing off"]),
  state_since: timestamp,
  /** Newest index stored there; null before the first. */
  index: index.nullable(),
  behind_objects: count.nullable(),
  behind_bytes: count.nullable(),
  /** When it was last compared with the source, whatever the result. */
  last_reconciled_at: timestamp.nullable(),
  last_in_sync_at: timestamp.nullable(),
  /** Failures in a row. */
  attempts: count,
  /** Kept after recovery. */
  last_error: failure.nullable(),
});

/** `.bakelite/<name>.mirror.json`, of the mirror loop. Every field is described in docs/state-files.md. */
export const mirrorStatusSchema = z.object({
  version: z.literal(VERSION),
  database: z.string(),
  process: processIdentitySchema,
  written_at: timestamp,
  reconcile_interval_ms: z.int().min(1),
  mirrors: z.array(mirror),
});

export type MirrorEntry = z.infer<typeof mirror>;
export type MirrorStatus = z.infer<typeof mirrorStatusSchema>;

const format = { version: VERSION, what: "the mirror status file", schema: mirrorStatusSchema };

export async function readMirrorStatus(path: string): Promise<JsonFileResult<MirrorStatus>> {
  return await readJsonFile(path, format);
}

export async function writeMirrorStatus(path: string, status: MirrorStatus): Promise<void> {
  await writeJsonFile(path, status, format);
}
