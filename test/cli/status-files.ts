import { mkdirSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { statePaths } from "../../src/state/layout.ts";
import type { MirrorStatus } from "../../src/state/mirror-status.ts";
import { type ProcessIdentity, readOwnIdentity } from "../../src/state/process-identity.ts";
import type { DestinationStatus, StatusFile } from "../../src/state/status.ts";
import { nextVerifyMarker, type VerifyMarker, type VerifyRun } from "../../src/state/verify-marker.ts";

const HEALTHY_FOR_SECONDS = 3600;

/** The files of one database as a daemon would publish them, seen from `nowMs`. The writer is this very process. */
export class StatusFiles {
  readonly #nowMs: number;
  readonly #process: ProcessIdentity;

  constructor(nowMs: number, process: ProcessIdentity) {
    this.#nowMs = nowMs;
    this.#process = process;
  }

  static async at(nowMs: number): Promise<StatusFiles> {
    return new StatusFiles(nowMs, await readOwnIdentity());
  }

  ago(seconds: number): string {
    return new Date(this.#nowMs - seconds * 1000).toISOString();
  }

  /** Live, caught up and with a full backup. */
  status(changes: Partial<StatusFile> = {}): StatusFile {
    return {
      version: 1,
      bakelite_version: "0.1.0",
      database: "app",
      path: "/srv/app.db",
      process: this.#process,
      run: "a".repeat(32),
      started_at: this.ago(HEALTHY_FOR_SECONDS),
      written_at: this.ago(1),
      publish_interval_ms: 5_000,
      state: "live",
      state_since: this.ago(HEALTHY_FOR_SECONDS),
      detail: null,
      progress: null,
      unhealthy: null,
      last_error: null,
      index: 42,
      newest_restore_point: { index: 42, at: this.ago(3) },
      last_commit_at: this.ago(3),
      last_synced_at: this.ago(3),
      oldest_unstored_at: null,
      lag_seconds: 0,
      change_sets: 41,
      bytes_shipped: 1_572_864,
      full_backup: { index: 1, settled: 2, at: this.ago(HEALTHY_FOR_SECONDS) },
      full_backup_in_progress: null,
      full_backups_by_reason: { "first backup": 1 },
      wal: { size_bytes: 4_120_032, committed_frames: 1000, backfilled_frames: 10, held_by: null },
      longest_write_lock_ms: 3.25,
      limits_unmet: [],
      destinations: [this.destination()],
      ...changes,
    };
  }

  destination(changes: Partial<DestinationStatus> = {}): DestinationStatus {
    return {
      location: "/var/backups/app",
      type: "file",
      async: false,
      state: "in sync",
      state_since: this.ago(HEALTHY_FOR_SECONDS),
      index: 42,
      behind_objects: 0,
      behind_bytes: 0,
      last_stored_at: this.ago(3),
      unhealthy: null,
      last_error: null,
      ...changes,
    };
  }

  failure(secondsAgo: number, message = "cannot store the object: no space left") {
    return { at: this.ago(secondsAgo), message, code: "storage-full" };
  }

  unhealthy(secondsAgo: number, attempts: number) {
    return { since: this.ago(secondsAgo), attempts, last_error: this.failure(2) };
  }

  verifyRun(secondsAgo: number, changes: Partial<VerifyRun> = {}): VerifyRun {
    return {
      started_at: this.ago(secondsAgo + 10),
      finished_at: this.ago(secondsAgo),
      mode: "deep",
      outcome: "clean",
      problem_count: 0,
      problems: [],
      warning_count: 0,
      objects_checked: 10,
      bytes_read: 1000,
      newest_restore_point: null,
      ...changes,
    };
  }

  /** After a clean run `secondsAgo`. */
  verify(secondsAgo: number): VerifyMarker {
    return nextVerifyMarker(null, "app", this.verifyRun(secondsAgo));
  }

  /** After a run that found problems, an hour after a clean one. */
  verifyProblems(secondsAgo: number): VerifyMarker {
    const run = this.verifyRun(secondsAgo, { mode: "shallow", outcome: "problems", problem_count: 2 });
    return nextVerifyMarker(this.verify(secondsAgo + 3600), "app", run);
  }

  mirrors(mirrors: readonly Partial<MirrorStatus["mirrors"][number]>[]): MirrorStatus {
    return {
      version: 1,
      database: "app",
      process: this.#process,
      written_at: this.ago(20),
      reconcile_interval_ms: 60_000,
      mirrors: mirrors.map((changes) => ({
        location: "s3://elsewhere/app",
        type: "s3",
        state: "in sync",
        state_since: this.ago(20),
        index: 42,
        behind_objects: 0,
        behind_bytes: 0,
        last_reconciled_at: this.ago(20),
        last_in_sync_at: this.ago(20),
        attempts: 0,
        last_error: null,
        ...changes,
      })),
    };
  }
}

export interface Published {
  /** A text is written as it is. */
  readonly status?: StatusFile | string;
  readonly verify?: VerifyMarker | string;
  readonly mirror?: MirrorStatus | string;
}

/** Writes the files beside a database, which need not exist. */
export function publish(databasePath: string, name: string, files: Published): void {
  const paths = statePaths(databasePath, name);
  mkdirSync(dirname(paths.status), { recursive: true });
  for (const kind of ["status", "verify", "mirror"] as const) {
    const content = files[kind];
    if (content !== undefined)
      writeFileSync(
        paths[kind],
        typeof content === "string" ? content : JSON.stringify({ ...content, database: name }),
      );
  }
}
