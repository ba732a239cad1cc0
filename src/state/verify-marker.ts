import * as z from "zod";
import { count, restorePoint, timestamp } from "./json-fields.ts";
import { type JsonFileResult, readJsonFile, writeJsonFile } from "./json-file.ts";

const VERSION = 1;
/** So that a replica in ruins does not make a large marker; `problem_count` tells how many there are. */
export const MAX_MARKED_PROBLEMS = 20;

const mode = z.enum(["shallow", "deep"]);

const verifyProblem = z.object({
  destination: z.string(),
  /** Object key; null for what concerns no single object. */
  key: z.string().nullable(),
  /** `corrupt`, `missing`, `reordered`, `unreadable-key`, `stale-current` … as `verify --json` names them. */
  kind: z.string(),
  message: z.string(),
});

const verifyRun = z.object({
  started_at: timestamp,
  finished_at: timestamp,
  mode,
  outcome: z.enum(["clean", "problems"]),
  problem_count: count,
  problems: z.array(verifyProblem).max(MAX_MARKED_PROBLEMS),
  warning_count: count,
  objects_checked: count,
  bytes_read: count,
  newest_restore_point: restorePoint.nullable(),
});

const cleanRun = z.object({ finished_at: timestamp, mode, newest_restore_point: restorePoint.nullable() });

/** `.bakelite/<name>.verify.json`. Every field is described in docs/state-files.md. */
export const verifyMarkerSchema = z.object({
  version: z.literal(VERSION),
  database: z.string(),
  last_run: verifyRun,
  /** The newest run without a problem, in either mode, and the newest such deep one. */
  last_clean: cleanRun.nullable(),
  last_clean_deep: cleanRun.nullable(),
});

export type VerifyMode = z.infer<typeof mode>;
export type VerifyRun = z.infer<typeof verifyRun>;
export type VerifyMarker = z.infer<typeof verifyMarkerSchema>;

const format = { version: VERSION, what: "the verify marker", schema: verifyMarkerSchema };

export async function readVerifyMarker(path: string): Promise<JsonFileResult<VerifyMarker>> {
  return await readJsonFile(path, format);
}

export async function writeVerifyMarker(path: string, marker: VerifyMarker): Promise<void> {
  await writeJsonFile(path, marker, format);
}

/** The marker after one more run. `previous` is null when there is none or it is damaged. Cuts the problems to the limit. */
export function nextVerifyMarker(previous: VerifyMarker | null, database: string, run: VerifyRun): VerifyMarker {
  const clean =
    run.outcome === "clean"
      ? { finished_at: run.finished_at, mode: run.mode, newest_restore_point: run.newest_restore_point }
      : null;
  return {
    version: VERSION,
    database,
    last_run: { ...run, problems: run.problems.slice(0, MAX_MARKED_PROBLEMS) },
    last_clean: clean ?? previous?.last_clean ?? null,
    last_clean_deep: (clean?.mode === "deep" ? clean : null) ?? previous?.last_clean_deep ?? null,
  };
}
