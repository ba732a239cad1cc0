import type { Backend, CallOptions, UnfinishedUpload } from "../storage/backend.ts";
import { BakeliteError } from "../util/errors.ts";

export interface ReclaimOptions extends CallOptions {
  readonly database: string;
  /** Uploads whose newest part is younger than this are left alone. */
  readonly minAgeMs: number;
  /**
   * How long the daemon of this database has been running in another process of this host; null when none is. What was begun
   * since may be its work, which can stand still for hours while a destination is away: it is left to that daemon.
   */
  readonly daemonRunningForMs: number | null;
  /** Decide only. */
  readonly dryRun: boolean;
}

/** Destinations tell the begin of an upload to the second, and clocks do not run evenly. */
const START_SLACK_MS = 60_000;

/** What was done, or with `dryRun` would be done, about one unfinished upload. */
export interface ReclaimedUpload extends UnfinishedUpload {
  readonly outcome: "aborted" | "would be aborted" | "too young" | "live" | "failed";
  /** Why it `failed`. */
  readonly error: BakeliteError | null;
}

export interface ReclaimReport {
  readonly location: string;
  /** null: nothing can be left unfinished there, or the destination cannot tell: `inspected` says which. */
  readonly uploads: readonly ReclaimedUpload[] | null;
  readonly inspected: "nothing to inspect" | "not inspected" | "inspected";
}

/**
 * Aborts the multipart uploads that nobody finished below one database's prefix: a crash of the daemon leaves them, they are paid
 * for, and no listing of objects shows them. An upload is as old as its newest part, so one that still receives parts is
 * left alone whoever makes it, and one that this process makes is left alone at any age. No version of an object is ever
 * deleted.
 *
 * Rejects when the destination cannot be asked. An upload that cannot be aborted is told, and the others go on.
 */
export async function reclaimUploads(backend: Backend, options: ReclaimOptions): Promise<ReclaimReport> {
  const { unlisted, location } = backend;
  if (unlisted === undefined) return { location, uploads: null, inspected: "nothing to inspect" };
  const prefix = `${options.database}/`;
  const call: CallOptions = options.signal === undefined ? {} : { signal: options.signal };
  const found = await unlisted.uploads(prefix, call);
  if (found === null) return { location, uploads: null, inspected: "not inspected" };
  const uploads: ReclaimedUpload[] = [];
  for await (const upload of found) {
    // Some servers list every upload of the bucket, whatever prefix they were asked for.
    if (!upload.key.startsWith(prefix)) continue;
    uploads.push({ ...upload, error: null, ...(await reclaimOne(upload)) });
  }
  return { location, uploads, inspected: "inspected" };

  async function reclaimOne(
    upload: UnfinishedUpload,
  ): Promise<Pick<ReclaimedUpload, "outcome"> & { error?: BakeliteError }> {
    if (upload.ageMs < options.minAgeMs) return { outcome: "too young" };
    const begunAgoMs = upload.ageMs + (upload.newestPartMs - upload.startedMs);
    if (options.daemonRunningForMs !== null && begunAgoMs < options.daemonRunningForMs + START_SLACK_MS)
      return { outcome: "live" };
    if (options.dryRun) return { outcome: "would be aborted" };
    try {
      return { outcome: (await unlisted?.abortUpload(upload, call)) ?? "live" };
    } catch (error) {
      if (!(error instanceof BakeliteError) || error.code === "interrupted" || error.code === "internal") throw error;
      return { outcome: "failed", error };
    }
  }
}
