import type { DatabaseConfig } from "../../config/types.ts";
import { refuseBesideReencrypt } from "../../replica/beside-reencrypt.ts";
import {
  type Healed,
  type RepairProgress,
  type RepairReport,
  type RepairTrouble,
  repairDatabase,
} from "../../replica/repair.ts";
import { formatByteSize } from "../../util/byte-sizes.ts";
import type { BakeliteError } from "../../util/errors.ts";
import { plural } from "../../util/plural.ts";
import { printable } from "../../util/printable.ts";
import { createProgress, type Progress } from "../../util/progress.ts";
import type { Command, CommandContext } from "../command.ts";
import { errorDocument, failureOfPart, writeFailedPart } from "../failed-part.ts";
import { noticesOf } from "../notices.ts";

export const command: Command = {
  readsObjects: true,
  usage: "[--db <name>] [--dry-run] [--json]",
  description: [
    "For a database with two or more destinations: reads every stored object at each of them, and writes a sound copy from another destination over any that is damaged, byte for byte. What a destination lacks is added where a restore point that the policy keeps needs it. Every copy is read whole before and after. Nothing is deleted, and with one destination nothing is done.",
    "Exits with 1 when something is damaged everywhere, when a destination does not take a copy or does not answer, and when there are objects of another history or under another key. Safe while the daemon is running, and to stop at any moment.",
  ],
  options: [{ name: "dry-run", description: "Only show what would be written" }],
  examples: [
    { comment: "Heal one database", command: "bakelite repair --db app" },
    { comment: "Look first", command: "bakelite repair --db app --dry-run" },
  ],
  async run(context) {
    const dryRun = context.options.has("dry-run");
    const databases = context.selectDatabases(await context.loadConfig());
    const outcomes: Outcome[] = [];
    // One after the other: each reads with all the parallelism there is, and memory stays that of one.
    for (const database of databases) {
      context.signal.throwIfAborted();
      const outcome = await repairOne(context, database, dryRun);
      outcomes.push(outcome);
      if (!context.flags.json) writeText(context, outcome, dryRun);
    }
    if (context.flags.json) writeJson(context, outcomes, dryRun);
    return outcomes.some(({ report, error }) => error !== null || (report?.troubles.length ?? 0) > 0) ? 1 : 0;
  },
};

interface Outcome {
  readonly database: string;
  readonly report: RepairReport | null;
  /** Why there is no report. */
  readonly error: BakeliteError | null;
}

async function repairOne(context: CommandContext, database: DatabaseConfig, dryRun: boolean): Promise<Outcome> {
  const { clock, signal } = context;
  using progress = new TerminalProgress(context, database.name);
  try {
    if (!dryRun) await refuseBesideReencrypt(database);
    const report = await repairDatabase(database, {
      dryRun,
      nowMs: clock.nowMs(),
      signal,
      progress,
      news: noticesOf(database.name, context.stderr),
    });
    signal.throwIfAborted();
    return { database: database.name, report, error: null };
  } catch (error) {
    return { database: database.name, report: null, error: failureOfPart(error) };
  }
}

/** One line on the terminal for whatever is going on. */
class TerminalProgress implements RepairProgress, Disposable {
  readonly #context: CommandContext;
  readonly #database: string;
  #line: Progress | null = null;

  constructor(context: CommandContext, database: string) {
    this.#context = context;
    this.#database = database;
  }

  begin(what: string, totalBytes: number): void {
    this[Symbol.dispose]();
    const { stderr: output, clock } = this.#context;
    this.#line = createProgress({ label: `${this.#database}: ${what}`, totalBytes, output, clock });
  }

  add(bytes: number): void {
    this.#line?.add(bytes);
  }

  [Symbol.dispose](): void {
    this.#line?.[Symbol.dispose]();
    this.#line = null;
  }
}

/** More of a kind at one destination are counted only, unless `--verbose`. */
const SHOWN = 20;

function writeText(context: CommandContext, { database, report, error }: Outcome, dryRun: boolean): void {
  const { stdout, stderr, flags } = context;
  if (error !== null) writeFailedPart(stderr, database, error);
  if (report === null) return;
  if (report.singleDestination) {
    stdout.write(`${database}: nothing to repair from: it has a single destination\n`);
    return;
  }
  stdout.write(`${printable(`${database}: ${summary(report, dryRun)}`)}\n`);
  const shown = flags.verbose ? Number.POSITIVE_INFINITY : SHOWN;
  const lines = report.healed.map((healed) => `  ${describeHealed(healed, dryRun)}`);
  for (const line of lines.slice(0, shown)) stdout.write(`${printable(line)}\n`);
  if (lines.length > shown) stdout.write(`  … and ${lines.length - shown} more (--verbose shows them)\n`);
  for (const { location, state } of report.destinations)
    if (state !== "healthy") stdout.write(`${printable(`  ${state} destination: ${location}`)}\n`);
  for (const [kind, troubles] of Map.groupBy(report.troubles, ({ kind, destination }) => `${kind} ${destination}`)) {
    for (const trouble of troubles.slice(0, shown)) writeTrouble(context, trouble);
    if (troubles.length > shown)
      stderr.write(
        `${printable(`${database}: … and ${troubles.length - shown} more: ${kind} (--verbose shows them)`)}\n`,
      );
  }
}

function summary({ healed, troubles, objectsChecked, destinations }: RepairReport, dryRun: boolean): string {
  const replaced = healed.filter(({ action }) => action === "replace").length;
  const added = healed.length - replaced;
  const bytes = healed.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
  const checked = `${plural(objectsChecked, "object")} checked at ${plural(destinations.length, "destination")}`;
  if (healed.length === 0) return troubles.length === 0 ? `${checked}, all sound` : `${checked}, nothing was written`;
  const what = [
    ...(replaced > 0 ? [`${replaced} damaged ${dryRun ? "would be " : ""}replaced`] : []),
    ...(added > 0 ? [`${added} missing ${dryRun ? "would be " : ""}added`] : []),
  ];
  return `${checked}, ${what.join(", ")} (${formatByteSize(bytes)})`;
}

function describeHealed({ action, destination, source, key, damage }: Healed, dryRun: boolean): string {
  const done = action === "replace" ? "replaced" : "added";
  const why = damage === null ? "" : ` (${damage})`;
  return `${dryRun ? "would be " : ""}${done}: ${destination}/${key} from ${source}${why}`;
}

function writeTrouble({ stderr }: CommandContext, { destination, key, message, nextStep }: RepairTrouble): void {
  stderr.write(`${printable(`${destination}${key === null ? "" : `/${key}`}: ${message}`)}\n`);
  stderr.write(`  hint: ${printable(nextStep)}\n`);
}

function writeJson({ stdout }: CommandContext, outcomes: readonly Outcome[], dryRun: boolean): void {
  const document = {
    dry_run: dryRun,
    databases: outcomes.map(({ database, report, error }) => ({
      name: database,
      error: errorDocument(error),
      single_destination: report?.singleDestination ?? false,
      destinations: (report?.destinations ?? []).map(({ location, state }) => ({ destination: location, state })),
      objects_checked: report?.objectsChecked ?? 0,
      bytes_read: report?.bytesRead ?? 0,
      healed: (report?.healed ?? []).map(({ action, destination, source, key, sizeBytes, damage }) => ({
        action,
        destination,
        source,
        key,
        stored_bytes: sizeBytes,
        damage,
      })),
      problems: (report?.troubles ?? []).map(({ kind, destination, key, message, nextStep, cost }) => ({
        kind,
        destination,
        key,
        message,
        next_step: nextStep,
        lost_restore_points: cost === null ? null : cost.count,
        oldest_lost_index: cost === null || cost.count === 0 ? null : cost.oldest,
        newest_lost_index: cost === null || cost.count === 0 ? null : cost.newest,
      })),
    })),
  };
  stdout.write(`${JSON.stringify(document, null, 2)}\n`);
}
