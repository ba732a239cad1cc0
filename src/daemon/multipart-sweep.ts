import { reclaimUploads } from "../replica/reclaim.ts";
import type { Backend } from "../storage/backend.ts";
import { delay } from "../util/delay.ts";
import { BakeliteError, describeError } from "../util/errors.ts";
import type { Logger } from "../util/logger.ts";

export interface MultipartSweepOptions {
  readonly database: string;
  readonly backends: readonly Backend[];
  /** 0: never. */
  readonly intervalMs: number;
  readonly minAgeMs: number;
  readonly log: Logger;
}

/** Soon after the start, since what there is to find was left by a crash; but not in the way of attaching. */
const FIRST_SWEEP_MS = 30_000;

/**
 * Aborts, every so often until `stop` is aborted, the multipart uploads that nobody finished at the destinations of one database.
 * A destination that cannot be asked, or refuses, is asked again the next time: this never stops a backup, and the same
 * failure is told once.
 */
export async function sweepUploads(options: MultipartSweepOptions, stop: AbortSignal): Promise<void> {
  const { intervalMs } = options;
  const backends = options.backends.filter(({ unlisted }) => unlisted !== undefined);
  if (intervalMs === 0 || backends.length === 0) return;
  const told = new Map<Backend, string>();
  let waitMs = Math.min(FIRST_SWEEP_MS, intervalMs);
  while (await slept(waitMs, stop)) {
    for (const backend of backends) await sweepOne(backend, options, told, stop);
    waitMs = intervalMs;
  }
}

async function sweepOne(
  backend: Backend,
  { database, minAgeMs, log }: MultipartSweepOptions,
  told: Map<Backend, string>,
  stop: AbortSignal,
): Promise<void> {
  try {
    const { uploads } = await reclaimUploads(backend, {
      database,
      minAgeMs,
      // This process is the daemon: what it makes itself, the backend knows.
      daemonRunningForMs: null,
      dryRun: false,
      signal: stop,
    });
    const aborted = (uploads ?? []).filter(({ outcome }) => outcome === "aborted");
    const failed = (uploads ?? []).find(({ outcome }) => outcome === "failed");
    if (aborted.length > 0)
      log.info("aborted uploads that were never finished", {
        destination: backend.location,
        uploads: aborted.length,
        sizeBytes: aborted.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0),
      });
    if (failed?.error != null) throw failed.error;
    told.delete(backend);
  } catch (error) {
    if (error instanceof BakeliteError && error.code === "interrupted") return;
    const reason = describeError(error);
    const fields = { destination: backend.location, error: reason };
    if (told.get(backend) === reason) log.debug("cannot abort unfinished uploads, still", fields);
    else
      log.warn(
        "cannot abort unfinished uploads; they are paid for until a lifecycle rule or `bakelite reclaim` does",
        fields,
      );
    told.set(backend, reason);
  }
}

/** True after the wait, false when `stop` ended it. */
async function slept(ms: number, stop: AbortSignal): Promise<boolean> {
  return await delay(ms, stop).then(
    () => true,
    () => false,
  );
}
