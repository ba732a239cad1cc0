import { type DaemonView, type DatabaseReport, viewDaemon } from "../../src/daemon/http-view.ts";
import type { Found } from "../../src/state/observe.ts";
import type { StatusFile } from "../../src/state/status.ts";
import type { VerifyMarker } from "../../src/state/verify-marker.ts";
import { StatusFiles } from "../cli/status-files.ts";

export const NOW_MS = Date.parse("2026-05-25T12:00:00.000Z");

/** The files of `status` tests, with a writer that is the same in every run. */
export const files = new StatusFiles(NOW_MS, { pid: 4121, pid_start_ticks: "7", boot_id: null, pid_namespace: null });

export interface Scene extends Partial<Omit<DatabaseReport, "status">> {
  readonly status?: Partial<StatusFile>;
  readonly verify?: Found<VerifyMarker>;
}

/** A daemon that follows these databases, all of them well but for what the scenes say. */
export function daemonView(scenes: readonly Scene[]): DaemonView {
  const named = scenes.map((scene, i) => ({ ...scene, name: scene.status?.database ?? `app-${i + 1}` }));
  const reports = named.map(
    ({ name, status, lockedOutMs = null, failures = new Map(), mirrors = [] }): DatabaseReport => ({
      status: files.status({ database: name, ...status }),
      lockedOutMs,
      failures,
      mirrors,
    }),
  );
  const markers = new Map(named.map(({ name, verify }) => [name, verify]));
  return viewDaemon(reports, {
    nowMs: NOW_MS,
    startedMs: NOW_MS - 3_600_000,
    verifyOf: (name) => markers.get(name) ?? { outcome: "missing", reason: "verify has not run" },
  });
}

/** A marker as `verify` left it. */
export function verified(marker: VerifyMarker): Found<VerifyMarker> {
  return { outcome: "read", value: marker };
}

export const HOSTILE = `"><script>alert(1)</script><img src=x onerror=alert(1)>&'\\ \n\u202e\u0000\ud800`;

/** Every kind of row that the status page knows, long and hostile text included. */
export function variedScenes(): readonly Scene[] {
  const long = "a-database-whose-name-is-as-long-as-a-name-may-be-".padEnd(128, "x");
  return [
    { status: { database: "accounts" }, verify: verified(files.verify(7_200)) },
    {
      status: { database: "orders", state: "snapshotting", full_backup_in_progress: underWay(0.43) },
      verify: verified(files.verify(90_000)),
    },
    {
      status: {
        database: "new",
        full_backup: null,
        newest_restore_point: null,
        full_backup_in_progress: underWay(0.07),
      },
    },
    {
      status: {
        database: "shop",
        state: "backing off",
        unhealthy: files.unhealthy(11_520, 214),
        last_error: files.failure(2),
        lag_seconds: 11_519,
        oldest_unstored_at: files.ago(11_519),
        destinations: [
          files.destination({
            location: "s3://backups/shop",
            type: "s3",
            state: "backing off",
            unhealthy: files.unhealthy(11_520, 214),
          }),
        ],
      },
      failures: new Map([["s3://backups/shop", 214]]),
      verify: verified(files.verifyProblems(3_600)),
    },
    {
      status: {
        database: "later",
        state: "waiting",
        detail: "the database file does not exist yet",
        wal: null,
        index: null,
        full_backup: null,
        newest_restore_point: null,
        last_synced_at: null,
        lag_seconds: null,
      },
    },
    {
      status: {
        database: long,
        path: `/srv/${"very/deep/".repeat(30)}app.db`,
        last_error: { ...files.failure(40), message: HOSTILE },
      },
    },
    {
      status: {
        database: "held",
        wal: {
          size_bytes: 222_298_112,
          committed_frames: 50_000,
          backfilled_frames: 10,
          held_by: { pid: 4121, since: files.ago(2_280) },
        },
        limits_unmet: [
          {
            destination: "/var/backups/app",
            limit: "max_total_size",
            allowed: 5_368_709_120,
            remaining: 6_000_000_000,
          },
        ],
      },
    },
  ];
}

function underWay(progress: number) {
  return { index: 43, reason: "interval", since: files.ago(312), progress };
}
