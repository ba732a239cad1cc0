import type { Health } from "../replicator/health.ts";
import type { Member } from "../replicator/member.ts";
import type { Replicator } from "../replicator/replicator.ts";
import type { ProcessIdentity } from "../state/process-identity.ts";
import type { DestinationStatus, StatusFile, StatusState } from "../state/status.ts";
import { formatTimestamp } from "../util/timestamps.ts";
import type { UnmetLimitAt } from "./upkeep.ts";

export interface ReportContext {
  readonly bakeliteVersion: string;
  readonly process: ProcessIdentity;
  readonly startedMs: number;
  readonly nowMs: number;
  readonly monotonicMs: number;
  readonly publishIntervalMs: number;
  readonly limitsUnmet: readonly UnmetLimitAt[];
}

/** What `.bakelite/<name>.status.json` says of one replicator at this moment (docs/state-files.md). */
export function reportStatus(replicator: Replicator, context: ReportContext): StatusFile {
  const { inputs, attachment, health } = replicator;
  const { nowMs } = context;
  const shipper = attachment?.shipper ?? null;
  const fullBackups = attachment?.fullBackups ?? null;
  const { state, detail, progress } = describeState(replicator, context.monotonicMs);
  const { lastError, unhealthy } = describeHealth(health);
  const oldestMs = attachment?.oldestUnstoredMs ?? null;
  const shipping = shipper !== null && attachment?.starting === null;
  const { stored, fullBackup: newestFull, lastSyncedMs } = replicator.known;
  const holder = attachment?.holders.longest ?? null;
  const underWay = fullBackups?.underWay ?? null;
  return {
    version: 1,
    bakelite_version: context.bakeliteVersion,
    database: inputs.database,
    path: replicator.path,
    process: context.process,
    run: inputs.run,
    started_at: formatTimestamp(context.startedMs),
    written_at: formatTimestamp(nowMs),
    publish_interval_ms: context.publishIntervalMs,
    state,
    state_since: formatTimestamp(replicator.phaseSinceMs),
    detail,
    progress,
    unhealthy,
    last_error: lastError,
    index: stored?.index ?? null,
    newest_restore_point:
      newestFull !== null && stored !== null && stored.settled <= stored.index
        ? { index: stored.index, at: formatTimestamp(stored.stampMs) }
        : null,
    last_commit_at: stored === null ? null : formatTimestamp(stored.stampMs),
    last_synced_at: timeOrNull(lastSyncedMs),
    oldest_unstored_at: timeOrNull(oldestMs),
    lag_seconds: oldestMs === null ? (shipping ? 0 : null) : Math.max(0, (nowMs - oldestMs) / 1000),
    change_sets: replicator.totals.changeSets,
    bytes_shipped: replicator.totals.bytesShipped,
    full_backup:
      newestFull === null
        ? null
        : { index: newestFull.index, settled: newestFull.settled, at: formatTimestamp(newestFull.atMs) },
    full_backup_in_progress:
      underWay === null
        ? null
        : {
            index: underWay.index,
            reason: underWay.reason,
            since: formatTimestamp(underWay.sinceMs),
            progress: underWay.progress,
          },
    full_backups_by_reason: replicator.totals.fullBackupsByReason,
    wal:
      attachment === null
        ? null
        : {
            size_bytes: attachment.walFileBytes,
            committed_frames: attachment.follower.counts.committedFrames,
            backfilled_frames: attachment.follower.counts.backfilledFrames,
            held_by: holder === null ? null : { pid: holder.pid, since: formatTimestamp(holder.sinceMs) },
          },
    longest_write_lock_ms: replicator.totals.longestLockMs,
    limits_unmet: context.limitsUnmet.map(({ location, limit, allowed, remaining }) => ({
      destination: location,
      limit,
      allowed,
      remaining,
    })),
    destinations: inputs.destinations.all.map((member) => destinationStatus(member, replicator)),
  };
}

function destinationStatus(member: Member, replicator: Replicator): DestinationStatus {
  const { inputs, phase, known } = replicator;
  const isOnly = inputs.destinations.all.length === 1;
  // What a single destination does, and what the database does, is the same: attaching and reading back included.
  const health = isOnly ? replicator.health : member.health;
  const { lastError, unhealthy } = describeHealth(health);
  const isBackingOff = phase.kind !== "stopped" && unhealthy !== null;
  const isComplete = isOnly || member.isComplete;
  const state = !isComplete ? "incomplete" : isBackingOff ? "backing off" : "in sync";
  const sinceMs = isOnly ? replicator.phaseSinceMs : member.standingSinceMs;
  const stored = known.stored;
  return {
    location: member.backend.location,
    type: member.type,
    async: false,
    state,
    state_since: formatTimestamp(state === "backing off" ? (health.streak?.sinceMs ?? sinceMs) : sinceMs),
    index: isOnly || member.standing === "whole" ? (stored?.index ?? null) : member.index,
    behind_objects: member.behind?.objects ?? null,
    behind_bytes: member.behind?.bytes ?? null,
    last_stored_at: isOnly ? timeOrNull(stored?.stampMs ?? null) : timeOrNull(member.storedMs),
    unhealthy,
    last_error: lastError,
  };
}

function describeHealth({ lastError: newest, streak }: Health): Pick<DestinationStatus, "unhealthy"> & {
  readonly lastError: DestinationStatus["last_error"];
} {
  const lastError = newest === null ? null : { ...newest, at: formatTimestamp(newest.atMs) };
  if (streak === null || lastError === null) return { lastError, unhealthy: null };
  const { sinceMs, attempts } = streak;
  return { lastError, unhealthy: { since: formatTimestamp(sinceMs), attempts, last_error: lastError } };
}

function describeState(
  replicator: Replicator,
  monotonicMs: number,
): { state: StatusState; detail: string | null; progress: number | null } {
  const { phase, attachment, health } = replicator;
  switch (phase.kind) {
    case "waiting":
    case "not wal":
    case "stopped":
      return { state: phase.kind, detail: phase.detail, progress: null };
    case "starting":
      return { state: "starting", detail: null, progress: null };
    case "failed":
      return { state: "backing off", detail: health.lastError?.message ?? null, progress: null };
    case "attached":
      break;
  }
  const lockedOutMs = attachment?.capture.lockedOutSinceMs ?? null;
  if (lockedOutMs !== null) {
    const seconds = Math.round((monotonicMs - lockedOutMs) / 1000);
    return {
      state: "backing off",
      detail: `another process has kept the database locked for ${seconds} s`,
      progress: null,
    };
  }
  if (health.streak !== null)
    return { state: "backing off", detail: health.lastError?.message ?? null, progress: null };
  const starting = attachment?.starting ?? null;
  if (starting !== null) return { state: "starting", ...starting };
  const underWay = attachment?.fullBackups?.underWay ?? null;
  if (underWay !== null)
    return { state: "snapshotting", detail: `full backup (${underWay.reason})`, progress: underWay.progress };
  return { state: "live", detail: null, progress: null };
}

function timeOrNull(timeMs: number | null): string | null {
  return timeMs === null ? null : formatTimestamp(timeMs);
}
