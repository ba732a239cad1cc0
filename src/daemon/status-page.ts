import { createHash } from "node:crypto";
import type { MirrorEntry } from "../state/mirror-status.ts";
import { formatPercent, stuckFor } from "../state/observe.ts";
import type { DestinationStatus, StatusFile } from "../state/status.ts";
import type { BuildInfo } from "../util/build-info.ts";
import { formatByteSize } from "../util/byte-sizes.ts";
import { formatDuration } from "../util/durations.ts";
import { plural } from "../util/plural.ts";
import { formatAgo, formatTimestamp } from "../util/timestamps.ts";
import type { DaemonView, DatabaseView } from "./http-view.ts";
import { type Content, type Html, html, trusted } from "./status-page-html.ts";
import { STATUS_PAGE_STYLE } from "./status-page-style.ts";

/** Nothing is loaded, run, sent or framed; the one style is named by its hash. Source: https://www.w3.org/TR/CSP3/ */
export const STATUS_PAGE_POLICY = [
  "default-src 'none'",
  `style-src 'sha256-${createHash("sha256").update(STATUS_PAGE_STYLE).digest("base64")}'`,
  "img-src data:",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
].join("; ");

/** So few are shown with all that there is to say. */
const FEW_DATABASES = 3;
/** A page that was left open must not go on saying that all is well; it closes what was opened, so not too often. */
const REFRESH_SECONDS = 60;

/**
 * The page for a person: one HTML document that needs nothing else, no script either. Every name, path and error in it is
 * somebody else's text, and is escaped. Databases that are not well come first. Pure.
 */
export function statusPage(view: DaemonView, build: BuildInfo): string {
  const { databases, nowMs } = view;
  const bad = databases.filter((database) => worries(database, nowMs).length > 0);
  const good = databases.filter((database) => worries(database, nowMs).length === 0);
  const isWell = databases.length > 0 && bad.length === 0;
  const isOpen = databases.length <= FEW_DATABASES;
  return `${html`<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="${REFRESH_SECONDS}">
<title>${title(databases.length, bad.length)}</title>
<link rel="icon" href="${icon(isWell)}">
<style>${trusted(STATUS_PAGE_STYLE)}</style>
</head>
<body>
<header>
<h1>bakelite ${build.version}</h1>
<p class="verdict ${isWell ? "good" : "bad"}">${verdict(databases.length, bad.length)}</p>
<p class="facts">As of ${formatTimestamp(nowMs).replace(/\.\d+/, "")}. The daemon has run for ${formatDuration(nowMs - view.startedMs)}.</p>
</header>
<main>
<div class="row titles" aria-hidden="true"><span>database</span><span>state</span><span>behind</span><span>full backup</span><span>verified</span></div>
<ul>${[...bad, ...good].map((database) => databaseItem(database, nowMs, isOpen))}</ul>
</main>
<footer>Numbers are of this run of the daemon. This page renews itself every ${REFRESH_SECONDS} seconds. For programs: <a href="/metrics">/metrics</a>, <a href="/healthz">/healthz</a>.</footer>
</body>
</html>
`}`;
}

/** Why a database is shown as one that needs a person: as `status --check` says, and a replica that failed its last verify. */
function worries({ troubles, verify }: DatabaseView, nowMs: number): readonly string[] {
  const messages = troubles.map(({ message }) => message);
  if (verify.outcome !== "read" || verify.value.last_run.outcome === "clean") return messages;
  const { mode, problem_count, finished_at } = verify.value.last_run;
  const found = `a ${mode} verify found ${plural(problem_count, "problem")} ${formatAgo(Date.parse(finished_at), nowMs)}`;
  return [...messages, `${found}; \`bakelite verify\` tells which`];
}

function title(count: number, badCount: number): string {
  if (count === 0) return "starting - bakelite";
  return badCount === 0 ? `${count} ok - bakelite` : `${badCount} of ${count} need attention - bakelite`;
}

/** A daemon that follows nothing keeps nothing safe. */
function verdict(count: number, badCount: number): string {
  if (count === 0) return "No database is followed yet";
  if (badCount > 0) return `${badCount} of ${plural(count, "database")} ${badCount === 1 ? "needs" : "need"} attention`;
  return count === 1 ? "The database is being backed up" : `All ${count} databases are being backed up`;
}

/** A green disc or a red square, so that a row of browser tabs tells which one to look at. */
function icon(isGood: boolean): string {
  const shape = isGood
    ? '<circle cx="8" cy="8" r="7" fill="#1f9d4d"/>'
    : '<rect x="1" y="1" width="14" height="14" rx="2" fill="#d3222f"/>';
  const svg = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">${shape}</svg>`;
  return `data:image/svg+xml,${encodeURIComponent(svg)}`;
}

function databaseItem(database: DatabaseView, nowMs: number, isOpen: boolean): Html {
  const { status } = database;
  const messages = worries(database, nowMs);
  const isBad = messages.length > 0;
  const kind = isBad ? "bad" : status.state === "live" ? "good" : "busy";
  return html`
<li class="database ${isBad ? "bad" : ""}"><details${isOpen ? " open" : ""}>
<summary><span class="row"><span class="name">${status.database}</span>
<span class="state ${kind}">${status.state}</span>
<span><span class="label">behind</span>${formatBehind(status)}</span>
<span><span class="label">full backup</span>${fullBackupCell(status, nowMs)}</span>
<span><span class="label">verified</span>${verifiedCell(database, nowMs)}</span></span>${messages.map((message) => html`<span class="trouble">${message}</span>`)}</summary>
<div class="more"><dl>${facts(database, nowMs).map(([name, value]) => html`<dt>${name}</dt><dd>${value}</dd>`)}</dl></div>
</details></li>`;
}

function formatBehind({ lag_seconds }: StatusFile): string {
  if (lag_seconds === null) return "unknown";
  return lag_seconds < 1 ? "nothing" : formatDuration(lag_seconds * 1000);
}

function fullBackupCell({ full_backup, full_backup_in_progress }: StatusFile, nowMs: number): string {
  const progress = full_backup_in_progress?.progress;
  if (full_backup === null) return progress === undefined || progress === null ? "none yet" : formatPercent(progress);
  return formatAgo(Date.parse(full_backup.at), nowMs);
}

function verifiedCell({ verify }: DatabaseView, nowMs: number): Content {
  if (verify.outcome === "missing") return "never";
  if (verify.outcome === "unreadable") return "unknown";
  const { last_run, last_clean } = verify.value;
  if (last_run.outcome === "problems") return html`<strong class="bad-text">failed</strong>`;
  return last_clean === null ? "never" : formatAgo(Date.parse(last_clean.finished_at), nowMs);
}

/** What is said when the row is opened; what there is nothing to say of is left out. */
function facts(database: DatabaseView, nowMs: number): readonly (readonly [string, Content])[] {
  const { status } = database;
  const all: readonly (readonly [string, Content | null])[] = [
    ["file", html`<code>${status.path}</code>`],
    ["state", html`${describeState(status)}, since ${formatTime(status.state_since, nowMs)}`],
    ["caught up", status.last_synced_at === null ? "not yet" : formatTime(status.last_synced_at, nowMs)],
    ["newest restore point", restorePoint(status, nowMs)],
    ["full backup", fullBackupFact(status, nowMs)],
    ["shipped", `${plural(status.change_sets, "change-set")}, ${formatByteSize(status.bytes_shipped)}`],
    ["write-ahead log", walFact(status, nowMs)],
    ["longest write lock", `${Math.ceil(status.longest_write_lock_ms)} ms`],
    ["verify", verifyFact(database, nowMs)],
    ["last error", lastError(status, nowMs)],
    ["limits", limitsFact(status)],
    ["destinations", destinationsFact(database, nowMs)],
  ];
  return all.flatMap(([name, value]) => (value === null ? [] : [[name, value] as const]));
}

function describeState({ state, detail, progress }: StatusFile): string {
  const what = detail === null ? state : `${state}: ${detail}`;
  return progress === null ? what : `${what} (${formatPercent(progress)})`;
}

function restorePoint({ newest_restore_point: point }: StatusFile, nowMs: number): Content {
  return point === null ? "none yet" : html`${formatTime(point.at, nowMs)}, number ${point.index}`;
}

function fullBackupFact(status: StatusFile, nowMs: number): Content {
  const { full_backup: newest, full_backup_in_progress: underWay, index } = status;
  const parts = [
    newest === null ? "none finished yet" : formatTime(newest.at, nowMs),
    newest === null || index === null ? "" : `, ${plural(Math.max(0, index - newest.index), "change-set")} since`,
    underWay === null ? "" : `, ${describeUnderWay(underWay, nowMs)}`,
  ];
  return parts;
}

function describeUnderWay(
  { reason, since, progress }: NonNullable<StatusFile["full_backup_in_progress"]>,
  nowMs: number,
): string {
  const done = progress === null ? "" : ` ${formatPercent(progress)}`;
  return `one in progress:${done} after ${formatDuration(nowMs - Date.parse(since))} (${reason})`;
}

function walFact({ wal }: StatusFile, nowMs: number): string | null {
  if (wal === null) return null;
  const size = formatByteSize(wal.size_bytes);
  if (wal.held_by === null) return size;
  const heldMs = nowMs - Date.parse(wal.held_by.since);
  return `${size}, held by PID ${wal.held_by.pid} for ${formatDuration(heldMs)}`;
}

function verifyFact({ verify }: DatabaseView, nowMs: number): Content {
  if (verify.outcome === "missing") return "never run";
  if (verify.outcome === "unreadable") return verify.reason;
  const { last_run: run, last_clean: clean } = verify.value;
  if (run.outcome === "clean") return html`clean (${run.mode}), ${formatTime(run.finished_at, nowMs)}`;
  const before = clean === null ? "never clean before" : html`last clean ${formatTime(clean.finished_at, nowMs)}`;
  return html`<span class="bad-text">${plural(run.problem_count, "problem")}</span> found by a ${run.mode} run, ${formatTime(run.finished_at, nowMs)}; ${before}`;
}

function lastError({ last_error: error, unhealthy }: StatusFile, nowMs: number): Html | null {
  if (error === null) return null;
  const over = unhealthy === null ? ", and over" : "";
  return html`${error.message} <span class="quiet">(${formatTime(error.at, nowMs)}${over})</span>`;
}

function limitsFact({ limits_unmet }: StatusFile): Html | null {
  if (limits_unmet.length === 0) return null;
  return list(
    limits_unmet.map(({ destination, limit, allowed, remaining }) => {
      const [is, may] =
        limit === "max_total_size"
          ? [formatByteSize(remaining), formatByteSize(allowed)]
          : [plural(remaining, "full backup"), `${allowed}`];
      return html`${limit} cannot be met at <code>${destination}</code>: ${is} must stay, allowed are ${may}`;
    }),
  );
}

function destinationsFact({ status, failures, mirrors }: DatabaseView, nowMs: number): Html {
  return list(
    status.destinations.map((destination) => {
      const failed = failures.get(destination.location) ?? 0;
      const failedText = failed === 0 ? "" : `, ${plural(failed, "failed call")}`;
      const mirror = destination.async ? ", background mirror" : "";
      const entry = mirrors.find(({ location }) => destination.async && location === destination.location);
      return html`<code>${destination.location}</code> <span class="quiet">(${destination.type}${mirror})</span>: ${describeDestination(destination, nowMs)}${reconciled(entry, nowMs)}${failedText}`;
    }),
  );
}

function reconciled(mirror: MirrorEntry | undefined, nowMs: number): Content {
  if (mirror === undefined) return "";
  if (mirror.last_reconciled_at === null) return ", not reconciled yet";
  return html`, last reconciled ${formatTime(mirror.last_reconciled_at, nowMs)}`;
}

function describeDestination(destination: DestinationStatus, nowMs: number): string {
  const { state, unhealthy, behind_objects, behind_bytes, index } = destination;
  const behind =
    behind_objects === null || behind_objects === 0
      ? ""
      : `, ${plural(behind_objects, "object")}${behind_bytes === null ? "" : ` (${formatByteSize(behind_bytes)})`} behind`;
  const stuck = unhealthy === null ? "" : `, ${stuckFor(unhealthy, nowMs)}`;
  const newest = index === null ? ", nothing stored yet" : "";
  // A mirror that lacks something is on its way, and not incomplete.
  const word = destination.async && state === "incomplete" ? "being filled" : state;
  return `${word}${stuck}${behind}${newest}`;
}

/** `3m12s ago`, with the moment itself for whoever points at it. */
function formatTime(time: string, nowMs: number): Html {
  return html`<time datetime="${time}" title="${time}">${formatAgo(Date.parse(time), nowMs)}</time>`;
}

function list(items: readonly Html[]): Html {
  return html`<ul>${items.map((item) => html`<li>${item}</li>`)}</ul>`;
}
