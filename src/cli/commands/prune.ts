import type { DatabaseConfig } from "../../config/types.ts";
import { refuseBesideReencrypt } from "../../replica/beside-reencrypt.ts";
import { openConfiguredReplica } from "../../replica/configured.ts";
import { type DestinationPruned, pruneDatabase } from "../../replica/maintain.ts";
import { assertReadable } from "../../replica/plan.ts";
import type { BakeliteError } from "../../util/errors.ts";
import type { Command, CommandContext } from "../command.ts";
import { errorDocument, failureOfPart, writeFailedPart } from "../failed-part.ts";
import { noticesOf } from "../notices.ts";
import { expiryDocument, wasHindered, writePruned } from "../pruned.ts";

export const command: Command = {
  readsObjects: true,
  usage: "[--db <name>] [--dry-run] [--json]",
  description: [
    "Deletes what the policy gives up: change-sets that were merged, and what `retention`, `max_backups` and `max_total_size` no longer keep. Never the newest restorable full backup and what follows it, nor anything that a restore point within `retention` needs; and nothing at all after a verify that found problems.",
    "The daemon does this by itself; this does it now. Safe while the daemon is running.",
  ],
  options: [{ name: "dry-run", description: "Only show what would be deleted" }],
  examples: [
    { comment: "Look first", command: "bakelite prune --dry-run" },
    { comment: "One database, object by object", command: "bakelite prune --db app --verbose" },
  ],
  async run(context) {
    const dryRun = context.options.has("dry-run");
    const databases = context.selectDatabases(await context.loadConfig());
    const outcomes: Outcome[] = [];
    for (const database of databases) {
      context.signal.throwIfAborted();
      const outcome = await pruneOne(context, database, dryRun);
      outcomes.push(outcome);
      if (context.flags.json) continue;
      for (const one of outcome.pruned) writePruned(context, database.name, one, dryRun);
      if (outcome.error !== null) writeFailedPart(context.stderr, database.name, outcome.error);
    }
    if (context.flags.json) writeJson(context, outcomes, dryRun);
    return outcomes.some(({ error, pruned }) => error !== null || pruned.some(wasHindered)) ? 1 : 0;
  },
};

interface Outcome {
  readonly database: string;
  readonly pruned: readonly DestinationPruned[];
  /** What kept it from looking at any destination. */
  readonly error: BakeliteError | null;
}

async function pruneOne(context: CommandContext, database: DatabaseConfig, dryRun: boolean): Promise<Outcome> {
  const { clock, signal, env } = context;
  try {
    if (!dryRun) await refuseBesideReencrypt(database);
    assertReadable(await openConfiguredReplica(database, { signal }), "prune");
    const pruned = await pruneDatabase(database, {
      dryRun,
      nowMs: clock.nowMs(),
      signal,
      news: noticesOf(database.name, context.stderr),
      mergedOnly: false,
      readBack: new Map(),
      stateDirectory: env["BAKELITE_STATE_DIR"],
    });
    return { database: database.name, pruned, error: null };
  } catch (error) {
    return { database: database.name, pruned: [], error: failureOfPart(error) };
  }
}

function writeJson({ stdout }: CommandContext, outcomes: readonly Outcome[], dryRun: boolean): void {
  const document = {
    dry_run: dryRun,
    databases: outcomes.map(({ database, pruned, error }) => ({
      name: database,
      error: errorDocument(error),
      destinations: pruned.map(expiryDocument),
    })),
  };
  stdout.write(`${JSON.stringify(document, null, 2)}\n`);
}
