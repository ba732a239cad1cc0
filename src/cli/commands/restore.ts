import { stat } from "node:fs/promises";
import { resolve } from "node:path";
import type { DatabaseConfig } from "../../config/types.ts";
import { openConfiguredReplica } from "../../replica/configured.ts";
import { type ExplainedPlan, planRestore, type RestoreTarget } from "../../replica/plan.ts";
import type { Replica } from "../../replica/replica.ts";
import { type RestoreOptions, type RestoreResult, restoreDatabase } from "../../replica/restore.ts";
import { formatByteSize } from "../../util/byte-sizes.ts";
import { formatDuration } from "../../util/durations.ts";
import { BakeliteError, systemErrorCode } from "../../util/errors.ts";
import { plural } from "../../util/plural.ts";
import { printable } from "../../util/printable.ts";
import { createProgress } from "../../util/progress.ts";
import { systemError } from "../../util/system-error.ts";
import { formatAgo, formatTimestamp, parseTargetTime } from "../../util/timestamps.ts";
import type { Command, CommandContext } from "../command.ts";

export const command: Command = {
  readsObjects: true,
  usage:
    "--db <name> (--output <path> | --if-db-not-exists) [--timestamp <time>] [--force] [--if-replica-exists] [--integrity quick|full|none]",
  description: [
    "Puts a database file together from its backups: the latest restore point, or the newest one at or before --timestamp. The file is written beside its target, checked, and renamed when it is complete.",
    'Times are RFC 3339 with any offset, a date (midnight UTC), `now`, or an age such as "1 hour ago".',
  ],
  options: [
    {
      name: "output",
      value: "path",
      description: "Where to restore to; required unless restoring in place with --if-db-not-exists",
    },
    {
      name: "timestamp",
      value: "time",
      description: "Restore the newest restore point at or before this moment; else the latest",
    },
    { name: "force", description: "Replace an existing file, unless somebody has it open" },
    {
      name: "if-db-not-exists",
      description: "Restore to the configured path (or --output), and do nothing when a file is there already",
    },
    { name: "if-replica-exists", description: "Do nothing when nothing has been backed up yet" },
    {
      name: "integrity",
      value: "mode",
      description: "SQLite's check of the result: full (the default), quick or none",
    },
  ],
  examples: [
    { comment: "Latest state, to a scratch path", command: "bakelite restore --db app --output /tmp/restored.db" },
    {
      comment: "Point in time",
      command: "bakelite restore --db app --output /tmp/at.db --timestamp 2026-05-25T12:00:00Z",
    },
    {
      comment: "An hour ago",
      command: 'bakelite restore --db app --output /tmp/an-hour-ago.db --timestamp "1 hour ago"',
    },
    {
      comment: "Before the application starts: seed an empty volume, else do nothing",
      command: "bakelite restore --db app --if-db-not-exists --if-replica-exists",
    },
  ],
  async run(context) {
    const request = readRequest(context);
    const database = await onlyDatabase(context);
    const outputPath = request.output === undefined ? database.path : resolve(request.output);
    if (request.ifDbNotExists && (await exists(outputPath)))
      return nothingToDo(context, database, "database-exists", `${outputPath} exists`);

    const replica = await openConfiguredReplica(database, {
      signal: context.signal,
      firstOnly: !database.validateOnRestore,
    });
    if (request.ifReplicaExists && replica.isMissing())
      return nothingToDo(context, database, "replica-missing", "nothing has been backed up yet");
    const work = new Restore(context, database, replica);
    await work.run(request, outputPath);
    return 0;
  },
};

interface Request {
  readonly output: string | undefined;
  readonly target: RestoreTarget;
  readonly force: boolean;
  readonly ifDbNotExists: boolean;
  readonly ifReplicaExists: boolean;
  readonly integrity: RestoreOptions["integrity"];
}

/** Before anything is read: whatever is wrong with the command line is said at once. */
function readRequest({ options, clock }: CommandContext): Request {
  const output = options.text("output");
  const ifDbNotExists = options.has("if-db-not-exists");
  if (output === undefined && !ifDbNotExists)
    throw new BakeliteError("usage", "`--output` is required", {
      hint: "to restore to the configured path, add --if-db-not-exists",
    });
  const timestamp = options.text("timestamp");
  return {
    output,
    target:
      timestamp === undefined
        ? { kind: "latest" }
        : { kind: "time", timeMs: parseTargetTime(timestamp, clock.nowMs()) },
    force: options.has("force"),
    ifDbNotExists,
    ifReplicaExists: options.has("if-replica-exists"),
    integrity: options.oneOf("integrity", ["quick", "full", "none"]) ?? "full",
  };
}

async function onlyDatabase(context: CommandContext): Promise<DatabaseConfig> {
  const config = await context.loadConfig();
  const [database, ...others] = context.selectDatabases(config);
  if (database !== undefined && others.length === 0) return database;
  throw new BakeliteError("usage", "`--db` is required: the configuration has more than one database", {
    subject: config.sourcePath,
    hint: `one of ${config.databases
      .slice(0, 20)
      .map(({ name }) => name)
      .join(", ")}`,
  });
}

async function exists(path: string): Promise<boolean> {
  try {
    await stat(path);
    return true;
  } catch (error) {
    // A link that points to nothing is no database; whatever else keeps us from looking must not count as "not there".
    if (systemErrorCode(error) === "ENOENT") return false;
    throw systemError("cannot look for the database", path, error);
  }
}

function nothingToDo(
  { flags, stdout }: CommandContext,
  database: DatabaseConfig,
  reason: string,
  sentence: string,
): number {
  if (flags.json) writeJson(stdout, { database: database.name, restored: false, reason });
  else stdout.write(`nothing to restore for ${database.name}: ${printable(sentence)}\n`);
  return 0;
}

/** One restore, from planning to telling what was done. */
class Restore {
  readonly #context: CommandContext;
  readonly #database: DatabaseConfig;
  readonly #replica: Replica;

  constructor(context: CommandContext, database: DatabaseConfig, replica: Replica) {
    this.#context = context;
    this.#database = database;
    this.#replica = replica;
  }

  async run(request: Request, outputPath: string): Promise<void> {
    const { clock } = this.#context;
    const nowMs = clock.nowMs();
    // No commit is from the future, but a clock may have been: with a target there, the latest state is meant.
    const isFuture = request.target.kind === "time" && request.target.timeMs > nowMs;
    const startMs = clock.monotonicMs();
    const plan = await planRestore(this.#replica, isFuture ? { kind: "latest" } : request.target);
    const result = await this.#restore(plan, request, outputPath);
    const told: Told = {
      plan,
      result,
      request,
      notes: [
        ...(isFuture ? ["the target lies in the future: this is the latest restore point"] : []),
        ...plan.notes,
        ...notesOn(plan, result),
      ],
      targetMs: request.target.kind === "time" && !isFuture ? request.target.timeMs : nowMs,
      durationMs: clock.monotonicMs() - startMs,
    };
    if (this.#context.flags.json) this.#writeDocument(told);
    else this.#writeText(told);
  }

  async #restore(plan: ExplainedPlan, { force, integrity }: Request, outputPath: string): Promise<RestoreResult> {
    const { stderr, clock, signal, logger } = this.#context;
    logger.debug("restoring", {
      database: this.#database.name,
      index: plan.index,
      full: plan.full.first,
      changeSets: plan.changeSets.length,
      bytesToFetch: plan.bytesToFetch,
    });
    using progress = createProgress({
      label: `restoring ${this.#database.name}`,
      totalBytes: plan.sizePages * plan.pageSizeBytes,
      output: stderr,
      clock,
    });
    let pagesDone = 0;
    return await restoreDatabase(this.#replica, plan, {
      outputPath,
      configuredPath: this.#database.path,
      overwrite: force,
      integrity,
      signal,
      onProgress: (done) => {
        progress.add((done.pagesDone - pagesDone) * plan.pageSizeBytes);
        ({ pagesDone } = done);
      },
      onLaid: () => {
        if (stderr.isTerminal && integrity !== "none") stderr.write("\r\u001b[2Kchecking the restored database");
      },
    });
  }

  #writeText({ plan, result, request, notes, targetMs, durationMs }: Told): void {
    const { stdout, stderr, clock } = this.#context;
    for (const note of notes) stderr.write(`note: ${printable(note)}\n`);
    const before = formatDuration(Math.max(0, targetMs - plan.stampMs));
    const point = `${formatTimestamp(plan.stampMs)} (state ${plan.index}), ${request.target.kind === "time" ? `${before} before ${formatTimestamp(targetMs)}` : formatAgo(plan.stampMs, clock.nowMs())}`;
    const lines = [
      `restored ${this.#database.name} to ${printable(result.path)}`,
      `  restore point  ${point}`,
      `  next one       ${plan.next === null ? "none" : `${formatTimestamp(plan.next.stampMs)} (state ${plan.next.index})`}`,
      `  made of        full backup ${result.plan.full.first} and ${plural(result.plan.changeSets.length, "change-set")}`,
      `  size           ${formatByteSize(result.sizeBytes)}, ${formatByteSize(result.fetchedBytes)} fetched in ${formatDuration(durationMs)}`,
      `  checked        ${checks(result, request)}`,
    ];
    stdout.write(`${lines.join("\n")}\n`);
  }

  #writeDocument({ plan, result, request, notes, targetMs, durationMs }: Told): void {
    writeJson(this.#context.stdout, {
      database: this.#database.name,
      restored: true,
      output: result.path,
      target_time: request.target.kind === "time" ? formatTimestamp(request.target.timeMs) : null,
      restore_point: {
        index: plan.index,
        time: formatTimestamp(plan.stampMs),
        before_target_ms: Math.max(0, targetMs - plan.stampMs),
      },
      next_restore_point:
        plan.next === null ? null : { index: plan.next.index, time: formatTimestamp(plan.next.stampMs) },
      full_backup: result.plan.full.first,
      change_sets: result.plan.changeSets.length,
      size_bytes: result.sizeBytes,
      fetched_bytes: result.fetchedBytes,
      duration_ms: Math.round(durationMs),
      digest: result.digest,
      digest_compared: result.digestCompared,
      integrity: request.integrity,
      notes,
    });
  }
}

interface Told {
  readonly plan: ExplainedPlan;
  readonly result: RestoreResult;
  readonly request: Request;
  readonly notes: readonly string[];
  /** The moment that was asked for: with no target, now. */
  readonly targetMs: number;
  readonly durationMs: number;
}

function notesOn(plan: ExplainedPlan, result: RestoreResult): readonly string[] {
  const notes = result.removedLeftovers.map((path) => `removed ${path}, left over from a restore that was killed`);
  if (result.plan.full !== plan.full || result.plan.changeSets.length !== plan.changeSets.length)
    notes.push(
      `objects of the first plan could not be read: made of full backup ${result.plan.full.first} and ${plural(result.plan.changeSets.length, "change-set")} instead`,
    );
  return notes;
}

function checks({ digestCompared }: RestoreResult, { integrity }: Request): string {
  const digest = digestCompared ? "equal to what the daemon saw (digest)" : "every page against its hash";
  switch (integrity) {
    case "full":
      return `${digest}; integrity_check ok`;
    case "quick":
      return `${digest}; quick_check ok`;
    case "none":
      return `${digest}; not by SQLite (--integrity none)`;
  }
}

function writeJson(stdout: CommandContext["stdout"], document: unknown): void {
  stdout.write(`${JSON.stringify(document, null, 2)}\n`);
}
