import { formatDuration } from "../util/durations.ts";
import { formatAgo } from "../util/timestamps.ts";
import { type ObservedState, observeLagSeconds, observeState, type StatusFile } from "./status.ts";
import type { VerifyMarker } from "./verify-marker.ts";

/** What looking for a file found. `reason` is a clause: "permission denied". */
export type Found<T> =
  | { readonly outcome: "read"; readonly value: T }
  | { readonly outcome: "missing"; readonly reason: string }
  | { readonly outcome: "unreadable"; readonly reason: string };

/** Everything that is known from outside about one database. */
export interface Seen {
  readonly nowMs: number;
  readonly status: Found<StatusFile>;
  /** Whether the process that wrote the status lives, see `isProcessRunning`; null when that cannot be told. */
  readonly isRunning: boolean | null;
  readonly verify: Found<VerifyMarker>;
}

/** `no status`: there is no status file; `unreadable`: there is one, of which nothing can be made. */
export type ShownState = ObservedState | "no status" | "unreadable";

export interface Observed {
  readonly state: ShownState;
  /** Seconds behind the live database: less than 1 is caught up. null when nobody knows. */
  readonly lagSeconds: number | null;
}

/** What a check demands beyond "it is being replicated"; undefined: nothing. */
export interface Limits {
  readonly maxLagMs?: number | undefined;
  readonly maxVerifyAgeMs?: number | undefined;
}

/** Why a database is not well. Documented in docs/json.md. */
export type TroubleKind =
  | Exclude<ShownState, "live" | "snapshotting">
  | "no full backup"
  | "incomplete destination"
  | "failing destination"
  | "lag"
  | "verify";

export interface Trouble {
  readonly kind: TroubleKind;
  /** A clause for the line of a database: "stale: nothing was reported for 3m12s". */
  readonly message: string;
}

/** A start takes seconds, unless the whole file has to be compared. */
const STARTING_PATIENCE_MS = 60_000;

/** What the clocks of two looks may differ in. */
const CLOCK_TOLERANCE_MS = 60_000;

/**
 * The state and the lag for somebody who looks now (pure). As `observeState`, and a status from the future (beyond three
 * publishing intervals: a clock was set back, or the file came from elsewhere) is `stale` too: its age proves nothing.
 *
 * While a daemon reports, the lag is what it measured. Once nobody reports, what was unstored grows older by the clock,
 * and of a database that was caught up nobody knows.
 */
export function observe({ nowMs, status, isRunning }: Seen): Observed {
  if (status.outcome === "missing") return { state: "no status", lagSeconds: null };
  if (status.outcome === "unreadable") return { state: "unreadable", lagSeconds: null };
  const { value } = status;
  const seen = observeState(value, { nowMs, isRunning });
  const state = isReporting(seen) && isFromTheFuture(value, nowMs) ? "stale" : seen;
  if (isReporting(state)) return { state, lagSeconds: value.lag_seconds };
  return { state, lagSeconds: value.oldest_unstored_at === null ? null : observeLagSeconds(value, nowMs) };
}

/** A daemon is there and says how it fares. */
export function isReporting(state: ShownState): boolean {
  return !["stopped", "not running", "stale", "no status", "unreadable"].includes(state);
}

/** True for a status that the running daemon cannot have written just now. */
export function isFromTheFuture(status: StatusFile, nowMs: number): boolean {
  return Date.parse(status.written_at) - nowMs > 3 * status.publish_interval_ms;
}

/**
 * Everything for which `status --check` fails and `bakelite_up` is 0; empty when the database is well. Pure. Background
 * mirrors are behind by design, and none of this.
 */
export function findTroubles(seen: Seen, limits: Limits = {}): readonly Trouble[] {
  const observed = observe(seen);
  return [
    ...stateTrouble(observed.state, seen),
    ...fullBackupTrouble(observed.state, seen),
    ...destinationTroubles(observed.state, seen),
    ...lagTrouble(observed, limits.maxLagMs),
    ...(limits.maxVerifyAgeMs === undefined ? [] : verifyTrouble(seen, limits.maxVerifyAgeMs)),
  ];
}

function stateTrouble(state: ShownState, { nowMs, status, isRunning }: Seen): readonly Trouble[] {
  if (status.outcome !== "read")
    return state === "no status" || state === "unreadable"
      ? [{ kind: state, message: `${state}: ${status.reason}` }]
      : [];
  const { value } = status;
  const sinceMs = nowMs - Date.parse(value.state_since);
  switch (state) {
    case "live":
    case "snapshotting":
    case "no status":
    case "unreadable":
      return [];
    case "starting":
      if (sinceMs < -CLOCK_TOLERANCE_MS)
        return [
          { kind: state, message: `starting since ${value.state_since}, in the future: was the clock set back?` },
        ];
      return sinceMs > STARTING_PATIENCE_MS
        ? [{ kind: state, message: `starting for ${formatDuration(sinceMs)}` }]
        : [];
    case "stopped": {
      const detail = value.detail === null ? "" : `: ${value.detail}`;
      return [{ kind: state, message: `stopped ${formatAgo(Date.parse(value.written_at), nowMs)}${detail}` }];
    }
    case "not running":
    case "stale":
      return [{ kind: state, message: `${state}: ${describeSilence(state, value, { nowMs, isRunning })}` }];
    case "backing off":
      return [{ kind: state, message: backingOff(value, nowMs) }];
    case "waiting":
    case "not wal":
      return [{ kind: state, message: value.detail === null ? state : `${state}: ${value.detail}` }];
  }
}

/** Why nobody reports although nobody stopped the daemon. */
export function describeSilence(
  state: "not running" | "stale",
  status: StatusFile,
  { nowMs, isRunning }: Pick<Seen, "nowMs" | "isRunning">,
): string {
  const { pid } = status.process;
  const writtenMs = Date.parse(status.written_at);
  if (state === "not running")
    return `the daemon (PID ${pid}) is gone and last reported ${formatAgo(writtenMs, nowMs)}`;
  if (isFromTheFuture(status, nowMs))
    return `its status is dated ${status.written_at}, in the future: was the clock set back?`;
  const who = isRunning === true ? `, though PID ${pid} exists` : "";
  return `the daemon has not reported for ${formatDuration(nowMs - writtenMs)}${who}`;
}

function backingOff({ unhealthy, detail }: StatusFile, nowMs: number): string {
  if (unhealthy === null) return detail === null ? "backing off" : `backing off: ${detail}`;
  return `backing off: ${stuckFor(unhealthy, nowMs)}: ${unhealthy.last_error.message}`;
}

/** `stuck for 3m12s (14 failed attempts)`. */
export function stuckFor({ since, attempts }: NonNullable<StatusFile["unhealthy"]>, nowMs: number): string {
  const failed = `${attempts} failed attempt${attempts === 1 ? "" : "s"}`;
  return `stuck for ${formatDuration(nowMs - Date.parse(since))} (${failed})`;
}

/** Without a full backup nothing can be restored. Only a database that is being replicated knows whether there is one. */
function fullBackupTrouble(state: ShownState, { status }: Seen): readonly Trouble[] {
  if (status.outcome !== "read" || status.value.full_backup !== null) return [];
  if (state !== "live" && state !== "snapshotting") return [];
  const done = status.value.full_backup_in_progress?.progress ?? null;
  const percent = done === null ? "" : ` (${formatPercent(done)})`;
  return [{ kind: "no full backup", message: `the first full backup is not finished${percent}` }];
}

/** `43%`; 100% only of what is done. */
export function formatPercent(fraction: number): string {
  return `${Math.floor(fraction * 100)}%`;
}

function destinationTroubles(state: ShownState, { nowMs, status }: Seen): readonly Trouble[] {
  if (status.outcome !== "read" || !isReporting(state)) return [];
  return status.value.destinations.flatMap((destination): Trouble[] => {
    const { location, unhealthy } = destination;
    if (destination.async) return [];
    if (destination.state === "incomplete") {
      const reason = unhealthy === null ? "" : `: ${stuckFor(unhealthy, nowMs)}: ${unhealthy.last_error.message}`;
      return [{ kind: "incomplete destination", message: `destination ${location} is incomplete${reason}` }];
    }
    // Where the whole database backs off its own line says so already.
    if (destination.state !== "backing off" || state === "backing off") return [];
    const why = unhealthy === null ? "" : `: ${stuckFor(unhealthy, nowMs)}: ${unhealthy.last_error.message}`;
    return [{ kind: "failing destination", message: `destination ${location} is backing off${why}` }];
  });
}

function lagTrouble({ state, lagSeconds }: Observed, maxLagMs: number | undefined): readonly Trouble[] {
  if (maxLagMs === undefined) return [];
  if (lagSeconds === null)
    return state === "live" || state === "snapshotting"
      ? [{ kind: "lag", message: "it is not known how far behind it is" }]
      : [];
  const lagMs = lagSeconds * 1000;
  return lagMs > maxLagMs
    ? [{ kind: "lag", message: `${formatDuration(lagMs)} behind, more than ${formatDuration(maxLagMs)}` }]
    : [];
}

function verifyTrouble({ nowMs, verify }: Seen, maxAgeMs: number): readonly Trouble[] {
  const trouble = (message: string): readonly Trouble[] => [{ kind: "verify", message }];
  if (verify.outcome === "missing") return trouble("never verified");
  if (verify.outcome === "unreadable") return trouble(`the result of verify cannot be read: ${verify.reason}`);
  const { last_run: run, last_clean: clean } = verify.value;
  if (run.outcome === "problems") {
    const count = `${run.problem_count} problem${run.problem_count === 1 ? "" : "s"}`;
    return trouble(`verify found ${count} ${formatAgo(Date.parse(run.finished_at), nowMs)}`);
  }
  if (clean === null) return trouble("never verified clean");
  const ageMs = nowMs - Date.parse(clean.finished_at);
  if (ageMs < -CLOCK_TOLERANCE_MS)
    return trouble(`the last verify is dated ${clean.finished_at}, in the future: was the clock set back?`);
  return ageMs > maxAgeMs
    ? trouble(`last verified clean ${formatDuration(ageMs)} ago, more than ${formatDuration(maxAgeMs)}`)
    : [];
}
