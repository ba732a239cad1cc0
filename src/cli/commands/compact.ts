import type { DatabaseConfig } from "../../config/types.ts";
import { refuseBesideReencrypt } from "../../replica/beside-reencrypt.ts";
import { openConfiguredReplica } from "../../replica/configured.ts";
import {
  compactDatabase,
  type DatabaseCompacted,
  type DestinationPruned,
  pruneDatabase,
} from "../../replica/maintain.ts";
import { assertReadable } from "../../replica/plan.ts";
import { lookAtFiles } from "../../state/observe-files.ts";
import { formatByteSize } from "../../util/byte-sizes.ts";
import type { BakeliteError } from "../../util/errors.ts";
import { plural } from "../../util/plural.ts";
import { printable } from "../../util/printable.ts";
import { createProgress } from "../../util/progress.ts";
import type { Command, CommandContext } from "../command.ts";
import { errorDocument, failureOfPart, writeFailedPart } from "../failed-part.ts";
import { noticesOf } from "../notices.ts";
import { expiryDocument, writePruned } from "../pruned.ts";

export const command: Command = {
  readsObjects: true,
  usage: "[--db <name>] [--dry-run] [--json]",
  description: [
    "Merges older change-sets into fewer objects, window by window as `compaction_levels` says, and reads every result back. What was merged is deleted once the result is ten minutes old and `compaction_keep` no longer asks for it. The newest `compaction_keep_recent` change-sets stay as they are.",
    "The daemon does this by itself; this does it now. Safe while the daemon is running, and to stop at any moment.",
  ],
  options: [{ name: "dry-run", description: "Only show what would be merged and deleted" }],
  examples: [
    { comment: "Every database", command: "bakelite compact" },
    { comment: "Look first", command: "bakelite compact --db app --dry-run" },
  ],
  async run(context) {
    const dryRun = context.options.has("dry-run");
    const databases = context.selectDatabases(await context.loadConfig());
    const outcomes: Outcome[] = [];
    for (const database of databases) {
      context.signal.throwIfAborted();
      const outcome = await compactOne(context, database, dryRun);
      outcomes.push(outcome);
      if (!context.flags.json) writeText(context, outcome, dryRun);
    }
    if (context.flags.json) writeJson(context, outcomes, dryRun);
    return outcomes.some(hasFailed) ? 1 : 0;
  },
};

interface Outcome {
  readonly database: string;
  readonly compaction: DatabaseCompacted | null;
  readonly pruned: readonly DestinationPruned[];
  /** What ended it early. */
  readonly error: BakeliteError | null;
}

/** Deleting what was merged is the lesser part: where it is refused, as by Object Lock, that is told and no failure. */
function hasFailed({ compaction, pruned, error }: Outcome): boolean {
  if (error !== null || pruned.some(({ report }) => report === null)) return true;
  return compaction !== null && compaction.failures.length + compaction.unreadable.length > 0;
}

async function compactOne(context: CommandContext, database: DatabaseConfig, dryRun: boolean): Promise<Outcome> {
  const { clock, signal, stderr, env } = context;
  const nowMs = clock.nowMs();
  let pruned: readonly DestinationPruned[] = [];
  let compaction: DatabaseCompacted | null = null;
  const news = noticesOf(database.name, stderr);
  try {
    if (!dryRun) await refuseBesideReencrypt(database);
    assertReadable(await openConfiguredReplica(database, { signal }), "merge");
    using progress = createProgress({ label: `merging ${database.name}`, output: stderr, clock });
    compaction = await compactDatabase(database, {
      dryRun,
      nowMs,
      signal,
      news,
      findCuts: () => findFullBackups(database, nowMs),
      onProgress: (bytes) => progress.add(bytes),
    });
    pruned = await pruneDatabase(database, {
      dryRun,
      nowMs,
      signal,
      news,
      mergedOnly: true,
      readBack: new Map(),
      stateDirectory: env["BAKELITE_STATE_DIR"],
    });
    return { database: database.name, compaction, pruned, error: null };
  } catch (error) {
    return { database: database.name, compaction, pruned, error: failureOfPart(error) };
  }
}

/** What a daemon of this host is taking now or has just taken: no change-set may step over where it begins. */
async function findFullBackups({ name, path }: DatabaseConfig, nowMs: number): Promise<readonly number[]> {
  const { status } = await lookAtFiles({ name, path, fallbackDirectory: undefined, nowMs });
  if (status.outcome !== "read") return [];
  const { full_backup: newest, full_backup_in_progress: underWay } = status.value;
  return [newest?.index, underWay?.index].filter((index) => index !== undefined);
}

function writeText(context: CommandContext, { database, compaction, pruned, error }: Outcome, dryRun: boolean): void {
  const { stdout, stderr, flags } = context;
  if (compaction !== null) {
    const { merged, failures, unreadable } = compaction;
    const inputs = merged.reduce((sum, merge) => sum + merge.inputs.length, 0);
    const inputBytes = merged.reduce((sum, merge) => sum + merge.inputBytes, 0);
    const bytes = merged.reduce((sum, merge) => sum + (merge.sizeBytes ?? 0), 0);
    const result = dryRun ? "" : ` of ${formatByteSize(bytes)}`;
    stdout.write(
      merged.length === 0
        ? `${database}: nothing to merge\n`
        : `${database}: ${plural(inputs, "change-set")} of ${formatByteSize(inputBytes)} ${dryRun ? "would be merged" : "merged"} into ${merged.length}${result}\n`,
    );
    if (flags.verbose)
      for (const { key, inputs: objects } of merged)
        stdout.write(printable(`  ${key}: of ${plural(objects.length, "change-set")}\n`, "\n"));
    for (const { merge, error: failure } of failures)
      writeFailedPart(stderr, `${database}: change-sets ${merge.first} to ${merge.last} stay as they are`, failure);
    const [first] = unreadable;
    if (first !== undefined) {
      const others = unreadable.length === 1 ? "" : ` and ${plural(unreadable.length - 1, "more object")}`;
      stderr.write(
        `${printable(`${database}: nothing is merged across ${first.location}${others}, which cannot be read: ${first.error.message}`)}\n`,
      );
      stderr.write("  hint: run `bakelite verify` to see what is damaged\n");
    }
  }
  for (const one of pruned) writePruned(context, database, one, dryRun);
  if (error !== null) writeFailedPart(stderr, database, error);
}

/** A replica in ruins must not fill the screen. */
const MAX_LISTED = 100;

function writeJson({ stdout }: CommandContext, outcomes: readonly Outcome[], dryRun: boolean): void {
  const document = {
    dry_run: dryRun,
    databases: outcomes.map(({ database, compaction, pruned, error }) => ({
      name: database,
      error: errorDocument(error),
      merged: (compaction?.merged ?? []).map((merge) => ({
        key: merge.key,
        level: merge.level,
        first: merge.first,
        last: merge.last,
        inputs: merge.inputs.length,
        input_bytes: merge.inputBytes,
        stored_bytes: merge.sizeBytes,
      })),
      failures: (compaction?.failures ?? []).map(({ merge, error: failure }) => ({
        level: merge.level,
        first: merge.first,
        last: merge.last,
        error: errorDocument(failure),
      })),
      unreadable: (compaction?.unreadable ?? [])
        .slice(0, MAX_LISTED)
        .map(({ location, error: failure }) => ({ object: location, error: errorDocument(failure) })),
      destinations: pruned.map(expiryDocument),
    })),
  };
  stdout.write(`${JSON.stringify(document, null, 2)}\n`);
}
