import type { DatabaseConfig } from "../config/types.ts";
import type { MirrorEntry } from "../state/mirror-status.ts";
import {
  describeSilence,
  findTroubles,
  formatPercent,
  isReporting,
  type Observed,
  observe,
  stuckFor,
} from "../state/observe.ts";
import type { SeenFiles } from "../state/observe-files.ts";
import type { DestinationStatus, StatusFile } from "../state/status.ts";
import { formatByteSize } from "../util/byte-sizes.ts";
import { formatDuration } from "../util/durations.ts";
import { printable } from "../util/printable.ts";
import { formatTable, type TableColumn } from "../util/table.ts";
import { formatAgo } from "../util/timestamps.ts";
import { describeUnmet } from "./pruned.ts";

/** A configured database and what was seen of it. */
export interface Look {
  readonly database: DatabaseConfig;
  readonly seen: SeenFiles;
}

/** Beyond this many times `max_wal_size` a WAL is worth a line: something keeps it from being restarted. */
const LARGE_WAL_FACTOR = 4;

/** Readers come and go; one that stays this long is worth a line. */
const HELD_WORTH_TELLING_MS = 5_000;

const COLUMNS: readonly TableColumn[] = [
  { title: "DATABASE" },
  { title: "STATE" },
  { title: "FRESH" },
  { title: "SYNCED" },
  { title: "CHANGES", align: "right" },
  { title: "SHIPPED", align: "right" },
];

/** The table of `bakelite status`: a row for each database, each followed by what else there is to say, indented. */
export function statusText(looks: readonly Look[], { colour }: { readonly colour: boolean }): string {
  const observations = looks.map(({ seen }) => observe(seen));
  const [title = "", ...rows] = formatTable(
    COLUMNS,
    looks.map((look, i) => cells(look, observations[i] ?? observe(look.seen))),
  )
    .trimEnd()
    .split("\n");
  // The only column before STATE holds names, whose characters all take one place.
  const stateStart = Math.max("DATABASE".length, ...looks.map(({ database }) => database.name.length)) + 2;
  const lines = looks.flatMap((look, i) => {
    const row = rows[i] ?? "";
    return [colour ? colourState(row, stateStart, look, observations[i]) : row, ...notes(look)];
  });
  return `${[title, ...lines].join("\n")}\n`;
}

function cells({ database, seen }: Look, { state, lagSeconds }: Observed): readonly string[] {
  const { status, nowMs } = seen;
  if (status.outcome !== "read") return [database.name, state];
  const { last_synced_at, change_sets, bytes_shipped } = status.value;
  const notSynced = isReporting(state) ? "not yet" : "unknown";
  return [
    database.name,
    state,
    formatFresh(lagSeconds),
    last_synced_at === null ? notSynced : formatAgo(Date.parse(last_synced_at), nowMs),
    `${change_sets}`,
    formatByteSize(bytes_shipped),
  ];
}

/** `live` within a second of the live database, `-12s`, `-3m` or `-2h` behind it (rounded down), or `unknown`. */
export function formatFresh(lagSeconds: number | null): string {
  if (lagSeconds === null) return "unknown";
  if (lagSeconds < 1) return "live";
  return `-${/^\d+[a-z]+/.exec(formatDuration(lagSeconds * 1000))?.[0]}`;
}

const [GREEN, YELLOW, RED] = [32, 33, 31] as const;

function colourState(row: string, start: number, { seen }: Look, observed: Observed | undefined): string {
  if (observed === undefined) return row;
  const end = start + observed.state.length;
  const code = findTroubles(seen).length > 0 ? RED : observed.state === "live" ? GREEN : YELLOW;
  return `${row.slice(0, start)}\u001b[${code}m${row.slice(start, end)}\u001b[0m${row.slice(end)}`;
}

function notes(look: Look): readonly string[] {
  const { status } = look.seen;
  const lines = [
    ...(status.outcome === "read" ? statusNotes(look, status.value) : [status.reason]),
    ...mirrorNotes(look.seen),
    ...verifyNotes(look.seen),
  ];
  return lines.map((line) => `  ${printable(line)}`);
}

function statusNotes({ database, seen }: Look, status: StatusFile): readonly string[] {
  const { nowMs } = seen;
  const { state } = observe(seen);
  const isSilent = state === "not running" || state === "stale";
  // While somebody reports, a failure that is over is history; `--json` has it.
  const lastError = status.unhealthy?.last_error ?? (isSilent ? status.last_error : null);
  return [
    ...(isSilent ? [describeSilence(state, status, seen)] : []),
    ...(status.unhealthy === null ? [] : [stuckFor(status.unhealthy, nowMs)]),
    ...(lastError === null ? [] : [`last error: ${lastError.message} (${formatAgo(Date.parse(lastError.at), nowMs)})`]),
    ...detailNotes(status, lastError?.message),
    ...fullBackupNotes(status, nowMs, isReporting(state)),
    ...(isReporting(state) ? walNotes(database, status, nowMs) : []),
    ...status.destinations.flatMap((destination) => destinationNotes(destination, status, nowMs)),
    ...status.limits_unmet.map((limit) => `limit at ${limit.destination}: ${describeUnmet(limit)}`),
  ];
}

/** What the daemon says of its state, unless another line says it: the failure, or the full backup. */
function detailNotes({ state, detail, progress }: StatusFile, lastError: string | undefined): readonly string[] {
  if (detail === null || detail === lastError || state === "snapshotting") return [];
  return [progress === null ? detail : `${detail} (${formatPercent(progress)})`];
}

function fullBackupNotes(status: StatusFile, nowMs: number, reporting: boolean): readonly string[] {
  const { full_backup: newest, full_backup_in_progress: underWay } = status;
  if (!reporting) return [];
  if (underWay === null) return newest === null && status.state === "live" ? ["no full backup is finished yet"] : [];
  const percent = underWay.progress === null ? "" : ` ${formatPercent(underWay.progress)}`;
  const since = formatDuration(nowMs - Date.parse(underWay.since));
  return [`full backup in progress:${percent} after ${since} (${underWay.reason})`];
}

function walNotes({ maxWalSizeBytes }: DatabaseConfig, { wal }: StatusFile, nowMs: number): readonly string[] {
  if (wal === null) return [];
  const size = `WAL ${formatByteSize(wal.size_bytes)}`;
  // A file that was large once keeps its size; what counts is what is still to be copied.
  const uncopied = Math.max(0, wal.committed_frames - wal.backfilled_frames);
  const isLarge = wal.size_bytes > LARGE_WAL_FACTOR * maxWalSizeBytes && uncopied > 0;
  if (wal.held_by !== null) {
    const heldMs = nowMs - Date.parse(wal.held_by.since);
    if (isLarge || heldMs >= HELD_WORTH_TELLING_MS)
      return [`${size}, held by PID ${wal.held_by.pid} for ${formatDuration(heldMs)}`];
  }
  return isLarge ? [`${size}, of which ${uncopied} frames are not in the database file yet`] : [];
}

function destinationNotes(destination: DestinationStatus, status: StatusFile, nowMs: number): readonly string[] {
  const { location, state, unhealthy } = destination;
  // Mirrors have lines of their own, and of a single failing destination the lines above tell everything.
  if (destination.async || state === "in sync") return [];
  if (state === "backing off" && status.destinations.filter(({ async }) => !async).length === 1) return [];
  const behind = formatBehind(destination.behind_objects, destination.behind_bytes);
  const parts = [
    state,
    ...(behind === null ? [] : [behind]),
    ...(unhealthy === null ? [] : [stuckFor(unhealthy, nowMs), unhealthy.last_error.message]),
  ];
  return [`destination ${location}: ${parts.join(", ")}`];
}

function mirrorNotes(seen: SeenFiles): readonly string[] {
  const { mirrors, nowMs } = seen;
  if (mirrors.outcome === "missing") return [];
  if (mirrors.outcome === "unreadable") return [`mirrors: ${mirrors.reason}`];
  const stale = isMirrorStale(seen) ? " (stale)" : "";
  return mirrors.value.mirrors.map((mirror) => `mirror ${mirror.location}: ${describeMirror(mirror, nowMs)}${stale}`);
}

function describeMirror(mirror: MirrorEntry, nowMs: number): string {
  const { state, behind_objects, behind_bytes, last_reconciled_at, last_in_sync_at, attempts, last_error } = mirror;
  const behind = formatBehind(behind_objects, behind_bytes);
  const reconciled =
    last_reconciled_at === null
      ? "not reconciled yet"
      : `last reconciled ${formatAgo(Date.parse(last_reconciled_at), nowMs)}`;
  switch (state) {
    case "in sync":
      return `in sync, ${reconciled}`;
    case "behind": {
      // What cannot be copied stays so until somebody does something about it.
      const isStuck = last_error !== null && Date.parse(last_error.at) >= Date.parse(last_in_sync_at ?? last_error.at);
      return [behind ?? "behind", reconciled, ...(isStuck ? [`last error: ${last_error.message}`] : [])].join(", ");
    }
    case "backing off": {
      const tried = `backing off after ${attempts} failed attempt${attempts === 1 ? "" : "s"}`;
      const why = last_error === null ? reconciled : `last error: ${last_error.message}`;
      return [...(behind === null ? [] : [behind]), tried, why].join(", ");
    }
  }
}

/** The mirror loop's daemon is gone, or has gone quiet together with the rest of it. */
export function isMirrorStale(seen: SeenFiles): boolean {
  const { mirrors, isMirrorRunning, nowMs, status } = seen;
  if (mirrors.outcome !== "read") return false;
  if (isMirrorRunning === false) return true;
  const { process, written_at, reconcile_interval_ms } = mirrors.value;
  if (status.outcome === "read" && status.value.process.pid === process.pid) return !isReporting(observe(seen).state);
  return nowMs - Date.parse(written_at) > 3 * reconcile_interval_ms;
}

/** `12 obj / 3.00 MiB behind`; null when it is not known, or nothing. */
function formatBehind(objects: number | null, bytes: number | null): string | null {
  if (objects === null || objects === 0) return null;
  return `${objects} obj${bytes === null ? "" : ` / ${formatByteSize(bytes)}`} behind`;
}

function verifyNotes({ verify, nowMs }: SeenFiles): readonly string[] {
  if (verify.outcome === "missing") return [];
  if (verify.outcome === "unreadable") return [`verify: ${verify.reason}`];
  const { last_run: run, last_clean: clean } = verify.value;
  const ago = (time: string) => formatAgo(Date.parse(time), nowMs);
  if (run.outcome === "clean") return [`verified: clean (${run.mode}) ${ago(run.finished_at)}`];
  const lastClean = clean === null ? "never clean before" : `last clean (${clean.mode}) ${ago(clean.finished_at)}`;
  const count = `${run.problem_count} found by a ${run.mode} run ${ago(run.finished_at)}`;
  return [`verify: PROBLEMS (${count}; ${lastClean})`];
}
