import { openDestination } from "../../config/assemble.ts";
import type { DatabaseConfig } from "../../config/types.ts";
import { type ReclaimedUpload, type ReclaimReport, reclaimUploads } from "../../replica/reclaim.ts";
import { findLockHolder } from "../../state/instance-lock.ts";
import { lookAtFiles } from "../../state/observe-files.ts";
import { formatByteSize } from "../../util/byte-sizes.ts";
import { formatDuration } from "../../util/durations.ts";
import { type BakeliteError, describeError } from "../../util/errors.ts";
import { plural } from "../../util/plural.ts";
import { printable } from "../../util/printable.ts";
import { formatTimestamp } from "../../util/timestamps.ts";
import type { Command, CommandContext } from "../command.ts";
import { errorDocument, failureOfPart, writeFailedPart } from "../failed-part.ts";
import { noticesOf } from "../notices.ts";

export const command: Command = {
  usage: "[--db <name>] [--min-age <duration>] [--dry-run] [--json]",
  description: [
    "Aborts the multipart uploads to S3 that nobody finished: a crash during a full backup leaves one, which is paid for and shown by no listing of objects. The daemon does this by itself (`multipart_sweep_interval`); this does it now.",
    "An upload is as old as its newest part, so one that is still going on is left alone, whoever makes it. What a running daemon of this host has begun is left to it at any age. Old versions of objects are never deleted; a lifecycle rule of the bucket expires them. Destinations other than S3 leave nothing behind.",
  ],
  options: [
    {
      name: "min-age",
      value: "duration",
      description:
        "Leave alone what had its newest part less than this ago; else `multipart_min_age` of the configuration",
    },
    { name: "dry-run", description: "Only show what would be aborted" },
  ],
  examples: [
    { comment: "Every database", command: "bakelite reclaim" },
    { comment: "Look first", command: "bakelite reclaim --db app --dry-run" },
    { comment: "Everything that is unfinished, whatever its age", command: "bakelite reclaim --db app --min-age 0s" },
  ],
  async run(context) {
    const minAgeMs = context.options.durationMs("min-age");
    const dryRun = context.options.has("dry-run");
    const databases = context.selectDatabases(await context.loadConfig());
    const outcomes: Outcome[] = [];
    for (const database of databases) {
      const daemonRunningForMs = await daemonAge(database, context.clock.nowMs());
      const news = noticesOf(database.name, context.stderr);
      for (const backend of database.backends) {
        context.signal.throwIfAborted();
        outcomes.push(await reclaimAt(database, openDestination(backend, news), daemonRunningForMs));
      }
    }
    if (context.flags.json) writeJson(context, outcomes, dryRun);
    else writeText(context, outcomes, dryRun);
    return outcomes.some(hasFailed) ? 1 : 0;

    async function reclaimAt(
      database: DatabaseConfig,
      backend: ReturnType<typeof openDestination>,
      daemonRunningForMs: number | null,
    ): Promise<Outcome> {
      const place = { database: database.name, destination: backend.location };
      try {
        const report = await reclaimUploads(backend, {
          database: database.name,
          minAgeMs: minAgeMs ?? database.multipartMinAgeMs,
          daemonRunningForMs,
          dryRun,
          signal: context.signal,
        });
        return { ...place, report, error: null };
      } catch (error) {
        return { ...place, report: null, error: failureOfPart(error) };
      }
    }
  },
};

/** How long a daemon of this host has been following the database; null when none is, and for ever when that is not known. */
async function daemonAge({ name, path }: DatabaseConfig, nowMs: number): Promise<number | null> {
  if ((await findLockHolder(path)) === null) return null;
  const { status, isRunning } = await lookAtFiles({ name, path, fallbackDirectory: undefined, nowMs });
  const isOfHolder = status.outcome === "read" && isRunning === true;
  return isOfHolder ? nowMs - Date.parse(status.value.started_at) : Number.POSITIVE_INFINITY;
}

interface Outcome {
  readonly database: string;
  readonly destination: string;
  readonly report: ReclaimReport | null;
  /** Why there is no report. */
  readonly error: BakeliteError | null;
}

function hasFailed({ report, error }: Outcome): boolean {
  return error !== null || (report?.uploads ?? []).some(({ outcome }) => outcome === "failed");
}

function writeText({ stdout, stderr }: CommandContext, outcomes: readonly Outcome[], dryRun: boolean): void {
  for (const { database, destination, report, error } of outcomes) {
    const place = `${database} at ${destination}`;
    if (error !== null) writeFailedPart(stderr, place, error);
    else if (report !== null) {
      stdout.write(`${printable(`${place}: ${summary(report, dryRun)}`)}\n`);
      for (const upload of report.uploads ?? []) stdout.write(`  ${printable(describeUpload(upload))}\n`);
    }
  }
}

function summary({ inspected, uploads }: ReclaimReport, dryRun: boolean): string {
  if (inspected === "nothing to inspect") return "this kind of destination leaves nothing unfinished";
  if (uploads === null) return "not inspected, since this provider cannot list unfinished uploads";
  if (uploads.length === 0) return "nothing is unfinished";
  const reclaimed = uploads.filter(({ outcome }) => outcome === "aborted" || outcome === "would be aborted");
  const bytes = reclaimed.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
  const left = uploads.length - reclaimed.length;
  return `${plural(reclaimed.length, "upload")} of ${formatByteSize(bytes)} ${dryRun ? "would be aborted" : "aborted"}${left === 0 ? "" : `, ${left} left alone`}`;
}

function describeUpload({ key, sizeBytes, ageMs, outcome, error }: ReclaimedUpload): string {
  const why =
    outcome === "failed" && error !== null
      ? `cannot be aborted: ${describeError(error)}`
      : outcome === "live"
        ? "left alone: the running daemon may be making it"
        : outcome === "too young"
          ? "left alone: younger than the minimum age"
          : outcome;
  return `${key}: ${formatByteSize(sizeBytes)}, untouched for ${formatDuration(ageMs)}: ${why}`;
}

function writeJson({ stdout }: CommandContext, outcomes: readonly Outcome[], dryRun: boolean): void {
  const document = {
    dry_run: dryRun,
    destinations: outcomes.map(({ database, destination, report, error }) => ({
      database,
      destination,
      error: errorDocument(error),
      inspected: report === null ? false : report.inspected === "inspected",
      can_leave_uploads: report === null ? null : report.inspected !== "nothing to inspect",
      uploads: (report?.uploads ?? []).map((upload) => ({
        key: upload.key,
        upload_id: upload.uploadId,
        started: formatTimestamp(upload.startedMs),
        newest_part: formatTimestamp(upload.newestPartMs),
        age_seconds: Math.round(upload.ageMs / 1000),
        stored_bytes: upload.sizeBytes,
        outcome: upload.outcome.replaceAll(" ", "_"),
        error: errorDocument(upload.error),
      })),
    })),
  };
  stdout.write(`${JSON.stringify(document, null, 2)}\n`);
}
