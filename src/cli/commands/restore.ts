import { stat } from "node:fs/promises";
import { resolve } from "node:path";
import type { DatabaseConfig } from "../../config/types.ts";
import { carryOut } from "../../replica/carry-out.ts";
import { chooseDestination, openConfiguredReplica } from "../../replica/configured.ts";
import type { ExplainedPlan, RestoreTarget } from "../../replica/plan.ts";
import { describeRememberedLoss, findRememberedLoss, type RememberedLoss } from "../../replica/remembered-loss.ts";
import type { Replica } from "../../replica/replica.ts";
import { type RestoreOptions, type RestoreResult, restoreDatabase } from "../../replica/restore.ts";
import { type ReadFrom, readFrom } from "../../replica/restore-sources.ts";
import { findLocalState, type LocalState } from "../../replica/verify-local.ts";
import { formatByteSize } from "../../util/byte-sizes.ts";
import { formatDuration } from "../../util/durations.ts";
import { BakeliteError, systemErrorCode } from "../../util/errors.ts";
import { plural } from "../../util/plural.ts";
import { printable } from "../../util/printable.ts";
import { createProgress } from "../../util/progress.ts";
import { systemError } from "../../util/system-error.ts";
import type { TextOutput } from "../../util/text-output.ts";
import { formatAgo, formatTimestamp, parseTargetTime } from "../../util/timestamps.ts";
import type { Command, CommandContext } from "../command.ts";

export const command: Command = {
  readsObjects: true,
  usage:
    "--db <name> (--output <path> | --if-db-not-exists) [--timestamp <time>] [--destination <which>] [--force] [--if-replica-exists] [--integrity quick|full|none]",
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
    {
      name: "destination",
      value: "which",
      description:
        "Read from this one only: its number in the configuration, from 1, or its location; else from all that answer",
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
      comment: "From the second destination alone, to see that it can stand in for the others",
      command: "bakelite restore --db app --output /tmp/second.db --destination 2",
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
    const only = request.destination === undefined ? undefined : chooseDestination(database, request.destination);
    if (request.ifDbNotExists && (await exists(outputPath)))
      return nothingToDo(context, database, "database-exists", `${outputPath} exists`);

    const local = await findLocalState(database);
    const replica = await openConfiguredReplica(database, {
      signal: context.signal,
      firstOnly: !database.validateOnRestore,
      nearestFirst: database.validateOnRestore,
      only,
    });
    if (request.ifReplicaExists && replica.isMissing()) {
      const loss = await findRememberedLoss(replica, local, null);
      writeLoss(context.stderr, database.name, loss);
      const sentence = loss === null ? "nothing has been backed up yet" : "nothing is stored any more";
      return nothingToDo(context, database, "replica-missing", sentence, loss);
    }
    const work = new Restore(context, database, replica, local);
    await work.run(request, outputPath);
    return 0;
  },
};

interface Request {
  readonly output: string | undefined;
  readonly destination: string | undefined;
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
    destination: options.text("destination"),
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
  loss: RememberedLoss | null = null,
): number {
  const missing = loss === null ? {} : { missing: lossDocument(loss) };
  if (flags.json) writeJson(stdout, { database: database.name, restored: false, reason, ...missing });
  else stdout.write(`nothing to restore for ${database.name}: ${printable(sentence)}\n`);
  return 0;
}

/** One restore, from planning to telling what was done. */
class Restore {
  readonly #context: CommandContext;
  readonly #database: DatabaseConfig;
  readonly #replica: Replica;
  readonly #local: LocalState | null;

  constructor(context: CommandContext, database: DatabaseConfig, replica: Replica, local: LocalState | null) {
    this.#context = context;
    this.#database = database;
    this.#replica = replica;
    this.#local = local;
  }

  async run(request: Request, outputPath: string): Promise<void> {
    const { clock } = this.#context;
    const nowMs = clock.nowMs();
    // No commit is from the future, but a clock may have been: with a target there, the latest state is meant.
    const isFuture = request.target.kind === "time" && request.target.timeMs > nowMs;
    const startMs = clock.monotonicMs();
    const target: RestoreTarget = isFuture ? { kind: "latest" } : request.target;
    const { plan, result } = await carryOut(this.#replica, target, (planned) =>
      this.#restore(planned, request, outputPath),
    );
    const sources = readFrom(this.#replica, result.plan);
    const told: Told = {
      plan,
      result,
      request,
      sources,
      loss: await findRememberedLoss(this.#replica, this.#local, result.plan),
      notes: [
        ...(isFuture ? ["the target lies in the future: this is the latest restore point"] : []),
        ...plan.notes,
        ...notesOn(plan, result),
        ...notesOnSources(sources, plan),
        ...notesOnCursor(this.#local),
      ],
      targetMs: request.target.kind === "time" && !isFuture ? request.target.timeMs : nowMs,
      durationMs: clock.monotonicMs() - startMs,
    };
    if (this.#context.flags.json) this.#writeDocument(told);
    else this.#writeText(told);
    writeLoss(this.#context.stderr, this.#database.name, told.loss);
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

  #writeText({ plan, result, request, sources, notes, targetMs, durationMs }: Told): void {
    const { stdout, stderr, clock } = this.#context;
    for (const note of notes) stderr.write(`note: ${printable(note)}\n`);
    const before = formatDuration(Math.max(0, targetMs - plan.stampMs));
    const point = `${formatTimestamp(plan.stampMs)} (state ${plan.index}), ${request.target.kind === "time" ? `${before} before ${formatTimestamp(targetMs)}` : formatAgo(plan.stampMs, clock.nowMs())}`;
    const lines = [
      `restored ${this.#database.name} to ${printable(result.path)}`,
      `  restore point  ${point}`,
      `  next one       ${plan.next === null ? "none" : `${formatTimestamp(plan.next.stampMs)} (state ${plan.next.index})`}`,
      `  made of        full backup ${result.plan.full.first} and ${plural(result.plan.changeSets.length, "change-set")}`,
      ...readFromLines(sources),
      `  size           ${formatByteSize(result.sizeBytes)}, ${formatByteSize(result.fetchedBytes)} fetched in ${formatDuration(durationMs)}`,
      `  checked        ${checks(result, request)}`,
    ];
    stdout.write(`${lines.join("\n")}\n`);
  }

  #writeDocument({ plan, result, request, sources, loss, notes, targetMs, durationMs }: Told): void {
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
      destinations: sources.destinations.map(({ location, state, objects }) => ({ location, state, objects })),
      broken: sources.broken.map(({ location, key, kind, message }) => ({ destination: location, key, kind, message })),
      missing: loss === null ? null : lossDocument(loss),
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
  readonly sources: ReadFrom;
  readonly loss: RememberedLoss | null;
  readonly result: RestoreResult;
  readonly request: Request;
  readonly notes: readonly string[];
  /** The moment that was asked for: with no target, now. */
  readonly targetMs: number;
  readonly durationMs: number;
}

/** Last, where it is seen: whoever restores must not take what is left for all there was. */
function writeLoss(stderr: TextOutput, database: string, loss: RememberedLoss | null): void {
  if (loss === null) return;
  const { message, hint } = describeRememberedLoss(loss);
  stderr.write(`WARNING: ${printable(`${database}: ${message}`)}\n  hint: ${printable(hint)}\n`);
}

function lossDocument(loss: RememberedLoss): Record<string, unknown> {
  const { firstIndex, lastIndex, lastStampMs, newest } = loss;
  return {
    first: firstIndex,
    last: lastIndex,
    last_time: formatTimestamp(lastStampMs),
    restorable_until: newest === null ? null : formatTimestamp(newest.stampMs),
    message: describeRememberedLoss(loss).message,
  };
}

function notesOn(plan: ExplainedPlan, result: RestoreResult): readonly string[] {
  const notes = result.removedLeftovers.map((path) => `removed ${path}, left over from a restore that was killed`);
  if (result.plan.full !== plan.full || result.plan.changeSets.length !== plan.changeSets.length)
    notes.push(
      `objects of the first plan could not be read: made of full backup ${result.plan.full.first} and ${plural(result.plan.changeSets.length, "change-set")} instead`,
    );
  return notes;
}

/** A cursor that cannot be read says nothing of what may be missing. */
function notesOnCursor(local: LocalState | null): readonly string[] {
  if (local === null) return [];
  const warnings = local.warnings.filter(({ destination }) => destination === local.cursorPath);
  return warnings.map(({ destination, message }) => `${destination}: ${message}`);
}

/** Nothing where there is one destination only. */
function readFromLines({ destinations }: ReadFrom): readonly string[] {
  const used = destinations.filter(({ state }) => state === "used");
  if (destinations.length === 1) return [];
  return used.map(
    ({ location, objects }, i) =>
      `  ${i === 0 ? "read from" : "         "}      ${printable(location)}${used.length === 1 ? "" : ` (${plural(objects, "object")})`}`,
  );
}

/** More damaged objects are counted only. */
const MAX_TOLD = 10;

function notesOnSources({ destinations, broken }: ReadFrom, plan: ExplainedPlan): readonly string[] {
  const notes: string[] = [];
  // An older target is what was asked for, whatever else there may be.
  if (plan.next === null)
    for (const { location, state } of destinations)
      if (state === "unreachable")
        notes.push(`${location} does not answer, and may hold a more recent state than this`);
  const forks = Map.groupBy(
    broken.filter(({ kind }) => kind === "fork"),
    ({ location }) => location,
  );
  for (const [location, { length }] of forks)
    notes.push(
      `${plural(length, "object")} of another history at ${location} ${length === 1 ? "was" : "were"} not used: \`bakelite verify\` tells more`,
    );
  const untold = broken.filter(
    ({ location, key, kind }) => kind !== "fork" && !plan.notes.some((note) => note.includes(`${location}/${key}`)),
  );
  for (const { location, key, message } of untold.slice(0, MAX_TOLD))
    notes.push(`${location}/${key} was not used: ${message}`);
  if (untold.length > MAX_TOLD) notes.push(`and ${untold.length - MAX_TOLD} more objects were not used: see --json`);
  if (broken.some(({ kind }) => kind !== "fork") && destinations.length > 1)
    notes.push("run `bakelite repair` to heal what was found broken");
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
