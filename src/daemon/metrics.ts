import type { MirrorEntry } from "../state/mirror-status.ts";
import type { BuildInfo } from "../util/build-info.ts";
import type { DaemonView, DatabaseView } from "./http-view.ts";
import { type ProcessFigures, processFamilies } from "./metrics-process.ts";
import type { Family, Labels, Sample } from "./metrics-text.ts";

export interface Program {
  readonly build: BuildInfo;
  readonly storageFormat: number;
  readonly process: ProcessFigures;
}

/** Every series of one scrape, as docs/monitoring.md describes them. Pure; reads no file, whatever the number of databases. */
export function metricFamilies(view: DaemonView, program: Program): readonly Family[] {
  return [
    buildFamily(program),
    daemonStartFamily(view),
    ...SERIES.map(({ name, type, help, samples }) => ({
      name,
      type,
      help,
      samples: view.databases.flatMap((database) => samples(database, view.nowMs)),
    })),
    ...processFamilies(program.process),
  ];
}

/** One name, and its samples for one database: none where the value is not known, or there is nothing to tell. */
interface Series extends Omit<Family, "samples"> {
  samples(database: DatabaseView, nowMs: number): readonly Sample[];
}

const SERIES: readonly Series[] = [
  gauge("bakelite_up", "1 while the database is actively replicated, 0 otherwise.", ({ troubles }) =>
    troubles.length === 0 ? 1 : 0,
  ),
  gauge(
    "bakelite_replica_lag_seconds",
    "Seconds that the replica is behind the live database, 0 when caught up.",
    // Before the first sync nobody knows what the replica lacks; and without a WAL nothing is followed.
    ({ status: { wal, last_synced_at, lag_seconds } }) =>
      wal === null || last_synced_at === null ? null : lag_seconds,
  ),
  gauge(
    "bakelite_last_synced_seconds",
    "Seconds since the replica was last known to be caught up.",
    ({ status }, nowMs) => secondsSince(status.last_synced_at, nowMs),
  ),
  gauge(
    "bakelite_backing_off_seconds",
    "Seconds that the database has been stuck in an unhealthy retry streak; absent while healthy.",
    ({ status, lockedOutMs }, nowMs) => {
      const streak = secondsSince(status.unhealthy?.since ?? null, nowMs);
      const lockedOut = lockedOutMs === null ? null : lockedOutMs / 1000;
      return streak === null ? lockedOut : Math.max(streak, lockedOut ?? 0);
    },
  ),
  gauge(
    "bakelite_change_sets",
    "Change-sets since the newest full backup, which a restore to the latest state reads.",
    ({ status: { index, full_backup } }) =>
      index === null || full_backup === null ? null : Math.max(0, index - full_backup.index),
  ),
  counter(
    "bakelite_bytes_shipped_total",
    "Bytes shipped to the backend in this run of the daemon.",
    ({ status }) => status.bytes_shipped,
  ),
  gauge("bakelite_last_verified_seconds", "Seconds since the replica was last verified clean.", ({ verify }, nowMs) =>
    verify.outcome === "read" ? secondsSince(verify.value.last_clean?.finished_at ?? null, nowMs) : null,
  ),
  gauge("bakelite_verify_ok", "1 if the most recent verify run was clean, 0 if it found problems.", ({ verify }) =>
    verify.outcome === "read" ? Number(verify.value.last_run.outcome === "clean") : null,
  ),
  gauge(
    "bakelite_last_full_backup_seconds",
    "Seconds since the newest full backup was begun or, with nothing to store, proven to be up to date.",
    ({ status }, nowMs) => secondsSince(status.full_backup?.at ?? null, nowMs),
  ),
  labelled(
    "bakelite_full_backups_total",
    "counter",
    "Full backups begun in this run of the daemon, by reason.",
    (view) =>
      Object.entries(view.status.full_backups_by_reason).map(([reason, value]) => ({ labels: { reason }, value })),
  ),
  gauge(
    "bakelite_longest_write_lock_seconds",
    "Longest time in this run of the daemon that bakelite held the database's write lock.",
    ({ status }) => status.longest_write_lock_ms / 1000,
  ),
  gauge("bakelite_wal_bytes", "Size of the -wal file on disk.", ({ status }) => status.wal?.size_bytes ?? null),
  gauge(
    "bakelite_wal_held_by_others_seconds",
    "Seconds that a reader of another process has kept the WAL from being restarted; absent while none does.",
    ({ status }, nowMs) => secondsSince(status.wal?.held_by?.since ?? null, nowMs),
  ),
  labelled(
    "bakelite_destination_errors_total",
    "counter",
    "Calls to a destination that failed in this run of the daemon, after all retries.",
    ({ failures }) => [...failures].map(([destination, value]) => ({ labels: { destination }, value })),
  ),
  labelled(
    "bakelite_destination_incomplete",
    "gauge",
    "1 for a lock-step destination that lacks what another one has, 0 for one that does not.",
    ({ status }) =>
      status.destinations
        .filter((each) => !each.async)
        .map(({ location, state }) => ({ labels: { destination: location }, value: Number(state === "incomplete") })),
  ),
  labelled(
    "bakelite_destination_behind_objects",
    "gauge",
    "Objects that are still to be copied to an incomplete lock-step destination; absent while that is not known.",
    ({ status }) =>
      status.destinations.flatMap(({ async, location, behind_objects: value }) =>
        async || value === null ? [] : [{ labels: { destination: location }, value }],
      ),
  ),
  mirrors(
    "bakelite_mirror_behind_objects",
    "Objects that a background mirror still lacks.",
    ({ behind_objects }) => behind_objects,
  ),
  mirrors(
    "bakelite_mirror_behind_bytes",
    "Bytes that a background mirror still lacks.",
    ({ behind_bytes }) => behind_bytes,
  ),
  mirrors(
    "bakelite_mirror_last_reconciled_seconds",
    "Seconds since a background mirror was last compared with its source, whatever was found.",
    ({ last_reconciled_at }, nowMs) => secondsSince(last_reconciled_at, nowMs),
  ),
  mirrors(
    "bakelite_mirror_last_in_sync_seconds",
    "Seconds since a background mirror was last found to lack nothing.",
    ({ last_in_sync_at }, nowMs) => secondsSince(last_in_sync_at, nowMs),
  ),
  mirrors(
    "bakelite_mirror_backing_off_seconds",
    "Seconds that a background mirror has kept failing; absent while it does not.",
    ({ state, state_since }, nowMs) => (state === "backing off" ? secondsSince(state_since, nowMs) : null),
  ),
  labelled(
    "bakelite_limit_unmet",
    "gauge",
    "1 for a limit that cannot be met without deleting what must stay; absent while it is met.",
    ({ status }) => status.limits_unmet.map(({ destination, limit }) => ({ labels: { destination, limit }, value: 1 })),
  ),
];

function buildFamily({ build, storageFormat }: Program): Family {
  const labels = {
    version: build.version,
    commit: build.commit ?? "",
    target: build.targetTriple,
    storage_format: String(storageFormat),
  };
  return { name: "bakelite_build_info", type: "gauge", help: "What runs; always 1.", samples: [{ labels, value: 1 }] };
}

function daemonStartFamily({ startedMs }: DaemonView): Family {
  return {
    name: "bakelite_daemon_start_time_seconds",
    type: "gauge",
    help: "When the daemon started, in seconds since 1970.",
    samples: [{ labels: {}, value: startedMs / 1000 }],
  };
}

type Measure = (database: DatabaseView, nowMs: number) => number | null;

function gauge(name: string, help: string, measure: Measure): Series {
  return single(name, "gauge", help, measure);
}

function counter(name: string, help: string, measure: Measure): Series {
  return single(name, "counter", help, measure);
}

function single(name: string, type: Family["type"], help: string, measure: Measure): Series {
  return {
    name,
    type,
    help,
    samples(database, nowMs) {
      const value = measure(database, nowMs);
      return value === null ? [] : [{ labels: { database: database.status.database }, value }];
    },
  };
}

/** With labels of its own after `database`. */
function labelled(
  name: string,
  type: Family["type"],
  help: string,
  samplesOf: (database: DatabaseView, nowMs: number) => readonly { readonly labels: Labels; readonly value: number }[],
): Series {
  return {
    name,
    type,
    help,
    samples: (database, nowMs) =>
      samplesOf(database, nowMs).map(({ labels, value }) => ({
        labels: { database: database.status.database, ...labels },
        value,
      })),
  };
}

/** Of each background mirror, as far as it is known. */
function mirrors(name: string, help: string, measure: (mirror: MirrorEntry, nowMs: number) => number | null): Series {
  return labelled(name, "gauge", help, (view, nowMs) =>
    view.mirrors.flatMap((mirror) => {
      const value = measure(mirror, nowMs);
      return value === null ? [] : [{ labels: { destination: mirror.location }, value }];
    }),
  );
}

/** Not below 0, should a clock have been set back. */
function secondsSince(time: string | null, nowMs: number): number | null {
  return time === null ? null : Math.max(0, (nowMs - Date.parse(time)) / 1000);
}
