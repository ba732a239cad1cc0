import { stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { resolve } from "node:path";
import type { DatabaseConfig } from "../../config/types.ts";
import type { RestorePoint } from "../../replica/restore-points.ts";
import { type VerifyProgress, verifyDatabase } from "../../replica/verify.ts";
import { findStatePaths, markedPoint, markerPath, writeMarker } from "../../replica/verify-local.ts";
import type { DeepCheck, Finding, VerifyReport } from "../../replica/verify-report.ts";
import { MAX_MARKED_PROBLEMS, type VerifyMode, type VerifyRun } from "../../state/verify-marker.ts";
import { formatByteSize } from "../../util/byte-sizes.ts";
import { BakeliteError, describeError } from "../../util/errors.ts";
import { printable } from "../../util/printable.ts";
import { createProgress, type Progress } from "../../util/progress.ts";
import { displayWidth } from "../../util/table.ts";
import { formatTimestamp, formatTimestampAndAgo } from "../../util/timestamps.ts";
import type { Command, CommandContext } from "../command.ts";

export const command: Command = {
  readsObjects: true,
  usage: "[--db <name>] [--deep [--temp-dir <path>]] [--json]",
  description: [
    "Reads every stored object, checks each byte of it, and walks from the full backups forward: what is corrupt, missing, reordered, sealed with another key or written by somebody else is told, and up to where a restore is still possible. With --deep every full backup is restored with the change-sets that follow it to a temporary file, and SQLite checks that.",
    "Never touches the live database, and is safe while the daemon is running. The outcome is left beside the daemon's state files, where `bakelite status` finds it. Exit code 1 means that something is wrong.",
  ],
  options: [
    { name: "deep", description: "Restore each full backup to a temporary file too, and run PRAGMA integrity_check" },
    {
      name: "temp-dir",
      value: "path",
      description: "With --deep: where the temporary file goes, which is as large as the database; else $TMPDIR",
    },
  ],
  examples: [
    { comment: "Every database", command: "bakelite verify" },
    { comment: "The full drill for one of them", command: "bakelite verify --db app --deep" },
    { comment: "For a script", command: "bakelite verify --json" },
  ],
  async run(context) {
    const mode: VerifyMode = context.options.has("deep") ? "deep" : "shallow";
    const temporaryDirectory = await chooseTemporaryDirectory(context, mode);
    const databases = context.selectDatabases(await context.loadConfig());
    const nameWidth = Math.max(...databases.map(({ name }) => name.length));
    const runs: Run[] = [];
    // One after the other: each reads with all the parallelism there is, and memory stays that of one.
    for (const database of databases) {
      context.signal.throwIfAborted();
      const run = await verifyOne(context, database, mode, temporaryDirectory);
      runs.push(run);
      if (!context.flags.json) writeText(context, run, nameWidth);
    }
    if (context.flags.json) writeDocument(context, mode, runs);
    return runs.some(({ report }) => report.problems.count > 0) ? 1 : 0;
  },
};

/** What one database's verify came to. */
interface Run {
  readonly report: VerifyReport;
  readonly startedMs: number;
  readonly finishedMs: number;
  readonly durationMs: number;
  /** null: nowhere. */
  readonly marker: string | null;
}

async function chooseTemporaryDirectory({ options, env }: CommandContext, mode: VerifyMode): Promise<string> {
  const given = options.text("temp-dir");
  if (given !== undefined && mode !== "deep")
    throw new BakeliteError("usage", "`--temp-dir` is of use with --deep only", {
      hint: "add --deep, or leave it out",
    });
  const path = resolve(given ?? (env["TMPDIR"] || tmpdir()));
  if (mode !== "deep") return path;
  const isDirectory = await stat(path).then(
    (info) => info.isDirectory(),
    () => false,
  );
  if (isDirectory) return path;
  throw new BakeliteError("usage", "the directory for temporary files does not exist", {
    subject: path,
    hint: "name another one with --temp-dir",
  });
}

async function verifyOne(
  context: CommandContext,
  database: DatabaseConfig,
  mode: VerifyMode,
  temporaryDirectory: string,
): Promise<Run> {
  const { clock, signal, logger } = context;
  const startedMs = clock.nowMs();
  const startedMonotonicMs = clock.monotonicMs();
  logger.debug("verifying", { database: database.name, mode });
  using progress = new TerminalProgress(context, database.name);
  const report = await verifyDatabase(database, {
    mode,
    temporaryDirectory,
    nowMs: () => clock.nowMs(),
    signal,
    progress,
  });
  // What was stopped half-way has proven nothing: it must not leave a marker.
  signal.throwIfAborted();
  const finishedMs = clock.nowMs();
  const durationMs = Math.round(clock.monotonicMs() - startedMonotonicMs);
  const marker = await leaveMarker(context, database, markedRun(report, startedMs, finishedMs));
  return { report, startedMs, finishedMs, durationMs, marker };
}

/** One line on the terminal for whatever is going on. */
class TerminalProgress implements VerifyProgress, Disposable {
  readonly #context: CommandContext;
  readonly #database: string;
  #line: Progress | null = null;

  constructor(context: CommandContext, database: string) {
    this.#context = context;
    this.#database = database;
  }

  begin(what: string, totalBytes: number): void {
    this.#line?.[Symbol.dispose]();
    const { stderr: output, clock } = this.#context;
    this.#line = createProgress({ label: `${this.#database}: ${what}`, totalBytes, output, clock });
  }

  add(bytes: number): void {
    this.#line?.add(bytes);
  }

  wait(what: string): void {
    const { stderr } = this.#context;
    if (stderr.isTerminal) stderr.write(`\r\u001b[2K${printable(`${this.#database}: ${what}`)}`);
  }

  [Symbol.dispose](): void {
    this.#line?.[Symbol.dispose]();
  }
}

/** Writes the marker; where that fails, or there is no place for it, a note says so and the result of the check stands. */
async function leaveMarker(context: CommandContext, database: DatabaseConfig, run: VerifyRun): Promise<string | null> {
  const { env, stderr } = context;
  const note = (text: string) => stderr.write(`note: ${printable(`${database.name}: ${text}`)}\n`);
  try {
    const paths = await findStatePaths(database.path, database.name);
    const path = markerPath(paths, database.name, env["BAKELITE_STATE_DIR"]);
    if (path === null) {
      note(
        "no marker was left for `bakelite status`: there is no .bakelite/ beside the database, and BAKELITE_STATE_DIR is not set",
      );
      return null;
    }
    await writeMarker(path, database.name, run);
    return path;
  } catch (error) {
    if (!(error instanceof BakeliteError) || error.code === "internal") throw error;
    note(`no marker was left for \`bakelite status\`: ${describeError(error)}`);
    return null;
  }
}

function markedRun(report: VerifyReport, startedMs: number, finishedMs: number): VerifyRun {
  return {
    started_at: formatTimestamp(startedMs),
    finished_at: formatTimestamp(finishedMs),
    mode: report.mode,
    outcome: outcomeOf(report),
    problem_count: report.problems.count,
    problems: report.problems.listed
      .slice(0, MAX_MARKED_PROBLEMS)
      .map(({ destination, key, kind, message }) => ({ destination, key, kind, message })),
    warning_count: report.warnings.count,
    objects_checked: report.objectsChecked,
    bytes_read: report.bytesRead,
    newest_restore_point: markedPoint(report.restorability.newest),
  };
}

function outcomeOf({ problems }: VerifyReport): "clean" | "problems" {
  return problems.count === 0 ? "clean" : "problems";
}

/** With --verbose all that were kept are shown; else of each kind so many. */
const SHOWN_OF_EACH_KIND = 10;

function writeText({ stdout, clock, flags }: CommandContext, { report }: Run, nameWidth: number): void {
  const { problems, warnings, restorability } = report;
  const nowMs = clock.nowMs();
  const isClean = problems.count === 0;
  const facts = [
    ...(isClean ? [] : [plural(problems.count, "problem")]),
    ...(warnings.count === 0 ? [] : [plural(warnings.count, "warning")]),
    `${plural(report.objectsChecked, "object")}, ${formatByteSize(report.bytesRead)} read`,
    ...(report.deep === null ? [] : [describeDeep(report.deep)]),
    restorability.newest === null
      ? "nothing can be restored"
      : `restorable up to ${formatTimestampAndAgo(restorability.newest.stampMs, nowMs)}`,
  ];
  const lines = [`${report.database.padEnd(nameWidth)}  ${isClean ? "clean   " : "PROBLEMS"}  ${facts.join("; ")}`];
  const limit = flags.verbose ? Number.POSITIVE_INFINITY : SHOWN_OF_EACH_KIND;
  lines.push(...findingLines("", problems.listed, problems.count, limit));
  lines.push(...findingLines("warning: ", warnings.listed, warnings.count, limit));
  if (!isClean) lines.push(...restoreLines(report, nowMs));
  stdout.write(`${lines.map((line) => printable(line)).join("\n")}\n`);
}

function describeDeep(deep: readonly DeepCheck[]): string {
  const sound = deep.filter(({ integrity }) => integrity === "sound").length;
  return sound === deep.length
    ? `${plural(sound, "full backup")} restored and checked`
    : `${sound} of ${plural(deep.length, "full backup")} restored and sound`;
}

function findingLines(lead: string, findings: readonly Finding[], count: number, limit: number): readonly string[] {
  const byKind = Map.groupBy(findings, ({ kind }) => kind);
  const width = Math.max(0, ...[...byKind.keys()].map((kind) => displayWidth(lead + kind)));
  const lines: string[] = [];
  for (const [kind, alike] of byKind) {
    for (const { destination, key, message, nextStep } of alike.slice(0, limit)) {
      lines.push(`  ${(lead + kind).padEnd(width)}  ${[destination, key].filter(Boolean).join("/")}: ${message}`);
      lines.push(`  ${" ".repeat(width)}  next: ${nextStep}`);
    }
    if (alike.length > limit) lines.push(`  ${" ".repeat(width)}  and ${alike.length - limit} more: see --json`);
  }
  if (count > findings.length) lines.push(`  and ${count - findings.length} more, which were counted only`);
  return lines;
}

function restoreLines({ restorability, failure }: VerifyReport, nowMs: number): readonly string[] {
  if (failure !== null) return ["  restore: not possible as long as the replica cannot be read"];
  const { newest, oldest, pointCount, destinations } = restorability;
  if (newest === null) return ["  restore: not possible from any destination"];
  const lines = [
    `  restore: still possible up to ${showPoint(newest, nowMs)}; ${plural(pointCount, "restore point")}${oldest === null ? "" : ` from ${formatTimestamp(oldest.stampMs)} on`}`,
  ];
  if (destinations.length > 1)
    for (const { location, newest: point } of destinations)
      lines.push(`    from ${location}: ${point === null ? "not by itself" : `up to ${showPoint(point, nowMs)}`}`);
  return lines;
}

function showPoint({ index, stampMs }: RestorePoint, nowMs: number): string {
  return `${formatTimestampAndAgo(stampMs, nowMs)}, state ${index}`;
}

function writeDocument({ stdout }: CommandContext, mode: VerifyMode, runs: readonly Run[]): void {
  const document = {
    mode,
    outcome: runs.some(({ report }) => report.problems.count > 0) ? "problems" : "clean",
    databases: runs.map(databaseDocument),
  };
  stdout.write(`${JSON.stringify(document, null, 2)}\n`);
}

function databaseDocument({ report, startedMs, finishedMs, durationMs, marker }: Run): Record<string, unknown> {
  const { restorability, failure, deep } = report;
  return {
    name: report.database,
    outcome: outcomeOf(report),
    started_at: formatTimestamp(startedMs),
    finished_at: formatTimestamp(finishedMs),
    duration_ms: durationMs,
    error: failure === null ? null : { code: failure.code, message: describeError(failure) },
    full_backups: report.fullBackupCount,
    change_sets: report.changeSetCount,
    objects_checked: report.objectsChecked,
    bytes_read: report.bytesRead,
    problem_count: report.problems.count,
    problems: report.problems.listed.map(findingDocument),
    warning_count: report.warnings.count,
    warnings: report.warnings.listed.map(findingDocument),
    restore: {
      possible: restorability.newest !== null,
      newest_restore_point: pointDocument(restorability.newest),
      oldest_restore_point: pointDocument(restorability.oldest),
      restore_points: restorability.pointCount,
      destinations: restorability.destinations.map(({ location, newest }) => ({
        destination: location,
        possible: newest !== null,
        newest_restore_point: pointDocument(newest),
      })),
    },
    deep: deep === null ? null : deep.map(deepDocument),
    marker,
  };
}

function findingDocument({ destination, key, kind, message, nextStep }: Finding): Record<string, unknown> {
  return { kind, destination, key, message, next_step: nextStep };
}

function deepDocument(check: DeepCheck): Record<string, unknown> {
  return {
    destination: check.destination,
    key: check.key,
    full_backup: check.fullBackup,
    change_sets: check.changeSetCount,
    restore_point: pointDocument(check.point),
    size_bytes: check.sizeBytes,
    digest_compared: check.digestCompared,
    integrity: check.integrity,
  };
}

function pointDocument(point: RestorePoint | null): Record<string, unknown> | null {
  return point === null ? null : { index: point.index, time: formatTimestamp(point.stampMs) };
}

function plural(count: number, noun: string): string {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}
