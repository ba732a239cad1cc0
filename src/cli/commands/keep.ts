import { loadKeys } from "../../config/assemble.ts";
import type { DatabaseConfig } from "../../config/types.ts";
import { refuseBesideReencrypt } from "../../replica/beside-reencrypt.ts";
import { openConfiguredReplica } from "../../replica/configured.ts";
import { dropMark, isLabel, type MarkedState, type PlacedMark, placeMark, readMarks } from "../../replica/marks.ts";
import { assertReadable, planRestore, type RestoreTarget } from "../../replica/plan.ts";
import type { Replica } from "../../replica/replica.ts";
import { buildInfo } from "../../util/build-info.ts";
import { BakeliteError, describeError } from "../../util/errors.ts";
import { printable } from "../../util/printable.ts";
import { formatTable, type TableColumn } from "../../util/table.ts";
import { formatAgo, formatTimestamp, formatTimestampAndAgo, parseTargetTime } from "../../util/timestamps.ts";
import type { Command, CommandContext } from "../command.ts";
import { errorDocument, failureOfPart, writeFailedPart } from "../failed-part.ts";

export const command: Command = {
  readsObjects: true,
  usage: "[--db <name>] [--label <label> [--at <time>] | --drop <label>] [--json]",
  description: [
    "Marks a restore point, which then stays for ever: whatever `retention`, `max_backups`, `max_total_size` and compaction give up, it can be restored. With --label the newest restore point is marked, or the newest one at or before --at; with --drop the mark is taken away; with neither, the marks are listed.",
    "A mark is an object beside the backups, so it holds for every host. A marked restore point keeps its full backup and the change-sets in between: it takes room until it is dropped.",
  ],
  options: [
    { name: "label", value: "label", description: "What to call the mark: 1 to 64 characters, unique in the database" },
    {
      name: "at",
      value: "time",
      description: "Mark the newest restore point at or before this moment; else the newest of all",
    },
    { name: "drop", value: "label", description: "Take this mark away" },
  ],
  examples: [
    { comment: "Before something daring", command: "bakelite keep --db app --label before-upgrade" },
    {
      comment: "An earlier moment",
      command: 'bakelite keep --db app --label "end of May" --at 2026-05-31T23:59:59Z',
    },
    { comment: "What is marked", command: "bakelite keep --db app" },
    { comment: "No longer needed", command: "bakelite keep --db app --drop before-upgrade" },
  ],
  async run(context) {
    const request = readRequest(context);
    const config = await context.loadConfig();
    const databases = context.selectDatabases(config);
    if (request.kind === "list") return await listMarks(context, databases);
    const [database, ...others] = databases;
    if (database === undefined || others.length > 0)
      throw new BakeliteError("usage", "`--db` is required: the configuration has more than one database", {
        subject: config.sourcePath,
        hint: `one of ${config.databases
          .slice(0, 20)
          .map(({ name }) => name)
          .join(", ")}`,
      });
    await refuseBesideReencrypt(database);
    const replica = await openConfiguredReplica(database, { signal: context.signal });
    if (request.kind === "drop") return await drop(context, replica, request.label);
    return await mark(context, database, replica, request);
  },
};

interface MarkRequest {
  readonly kind: "mark";
  readonly label: string;
  readonly target: RestoreTarget;
}

type Request = MarkRequest | { readonly kind: "list" } | { readonly kind: "drop"; readonly label: string };

/** Before anything is read: whatever is wrong with the command line is said at once. */
function readRequest({ options, clock }: CommandContext): Request {
  const [label, at, dropped] = [options.text("label"), options.text("at"), options.text("drop")];
  if (dropped !== undefined) {
    if (label === undefined && at === undefined) return { kind: "drop", label: checkedLabel(dropped) };
    throw new BakeliteError("usage", "`--drop` goes with neither `--label` nor `--at`", {
      hint: "take the old mark away first, then set the new one",
    });
  }
  if (label === undefined) {
    if (at === undefined) return { kind: "list" };
    throw new BakeliteError("usage", "`--at` needs a `--label`: by it the mark is dropped again");
  }
  checkedLabel(label);
  if (at === undefined) return { kind: "mark", label, target: { kind: "latest" } };
  // No commit is from the future, but a clock may have been: with a target there, the latest state is meant, as in `restore`.
  const timeMs = parseTargetTime(at, clock.nowMs());
  return { kind: "mark", label, target: timeMs > clock.nowMs() ? { kind: "latest" } : { kind: "time", timeMs } };
}

function checkedLabel(text: string): string {
  if (isLabel(text)) return text;
  throw new BakeliteError("usage", `${JSON.stringify(text)} cannot be a label`, {
    hint: "a label has 1 to 64 printable characters and no space at its ends",
  });
}

async function mark(
  context: CommandContext,
  database: DatabaseConfig,
  replica: Replica,
  { label, target }: MarkRequest,
): Promise<number> {
  const { stdout, stderr, clock, flags } = context;
  assertReadable(replica, "mark a state");
  const plan = await planRestore(replica, target);
  const { sealKey } = await loadKeys(database.encryption);
  const lockStepCount = database.backends.filter((backend) => !backend.async).length;
  const placed = await placeMark(replica, plan, {
    label,
    destinations: replica.options.backends.keys().take(lockStepCount).toArray(),
    sealKey,
    compressionLevel: database.compressionLevel,
    writer: `bakelite/${buildInfo.version}`,
    randomHex: (bytes) => Buffer.from(crypto.getRandomValues(new Uint8Array(bytes))).toString("hex"),
    nowMs: clock.nowMs(),
  });
  if (flags.json) writeJson(context, placedDocument(database.name, placed));
  else {
    const { index, stampMs } = placed.mark;
    const done = placed.storedAt.length > 0 || placed.failures.length > 0 ? "marked" : "was marked already";
    const point = `state ${index} of ${formatTimestampAndAgo(stampMs, clock.nowMs())}`;
    stdout.write(printable(`${database.name}: ${done} as ${label}: ${point} stays restorable\n`, "\n"));
    for (const { location, error } of placed.failures)
      writeFailedPart(stderr, `${database.name}: the mark is not at ${location}`, error);
    if (placed.failures.length > 0)
      stderr.write(
        "run the same command again to complete it: without its mark, that destination may give the state up\n",
      );
  }
  return placed.failures.length > 0 ? 1 : 0;
}

function placedDocument(database: string, { mark: placed, storedAt, failures }: PlacedMark): Record<string, unknown> {
  return {
    database,
    action: "marked",
    label: placed.label,
    index: placed.index,
    time: formatTimestamp(placed.stampMs),
    created: formatTimestamp(placed.createdMs),
    stored_at: storedAt,
    failures: failures.map(({ location, error }) => ({ destination: location, error: errorDocument(error) })),
  };
}

async function drop(context: CommandContext, replica: Replica, label: string): Promise<number> {
  const { stdout, stderr, flags } = context;
  const { index, deletedAt, failures } = await dropMark(replica, label);
  if (flags.json)
    writeJson(context, {
      database: replica.database,
      action: "dropped",
      label,
      index,
      deleted_at: deletedAt,
      failures: failures.map(({ location, error }) => ({ destination: location, error: errorDocument(error) })),
    });
  else {
    if (deletedAt.length > 0)
      stdout.write(
        printable(`${replica.database}: dropped ${label}: state ${index} may go as the policy says\n`, "\n"),
      );
    for (const { location, error } of failures)
      writeFailedPart(stderr, `${replica.database}: the mark ${label} may still be at ${location}`, error);
  }
  return failures.length > 0 ? 1 : 0;
}

interface Listed {
  readonly database: string;
  readonly replica: Replica | null;
  readonly marks: readonly MarkedState[];
  readonly error: BakeliteError | null;
}

async function listMarks(context: CommandContext, databases: readonly DatabaseConfig[]): Promise<number> {
  const listed: Listed[] = [];
  for (const database of databases) {
    try {
      const replica = await openConfiguredReplica(database, { signal: context.signal });
      listed.push({ database: database.name, replica, marks: await readMarks(replica), error: null });
    } catch (error) {
      listed.push({ database: database.name, replica: null, marks: [], error: failureOfPart(error) });
    }
  }
  if (context.flags.json) writeJson(context, { databases: listed.map(listedDocument) });
  else writeListed(context, listed);
  return listed.some(({ error, marks }) => error !== null || marks.some(({ mark: read }) => read === null)) ? 1 : 0;
}

function writeListed({ stdout, stderr, clock }: CommandContext, listed: readonly Listed[]): void {
  const columns: readonly TableColumn[] = [
    { title: "DATABASE" },
    { title: "LABEL" },
    { title: "RESTORE POINT" },
    { title: "MARKED" },
    { title: "NOTE" },
  ];
  const nowMs = clock.nowMs();
  const rows = listed.flatMap(({ database, replica, marks }) =>
    marks.map((state) => [
      database,
      printable(state.mark?.label ?? "cannot be read"),
      state.mark === null
        ? `state ${state.index}`
        : `state ${state.index}, ${formatTimestampAndAgo(state.mark.stampMs, nowMs)}`,
      state.mark === null ? "" : formatAgo(state.mark.createdMs, nowMs),
      replica === null ? "" : printable(notesOn(replica, state).join("; ")),
    ]),
  );
  if (rows.length > 0) stdout.write(formatTable(columns, rows));
  else if (listed.every(({ error }) => error === null)) stdout.write("nothing is marked\n");
  for (const { database, replica, error } of listed) {
    if (error !== null) writeFailedPart(stderr, database, error);
    for (const warning of replica?.warnings ?? []) stderr.write(`${database}: ${printable(warning)}\n`);
  }
}

/** What is odd about a mark: no reason to fail but for one that cannot be read. */
function notesOn(replica: Replica, { index, copies, error }: MarkedState): readonly string[] {
  const notes: string[] = [];
  if (!replica.graph.isRestorePoint(index)) notes.push("not a restore point any longer: run `bakelite verify`");
  if (error !== null) notes.push(describeError(error));
  for (const [destination, backend] of replica.options.backends.entries())
    if (
      !replica.trailers.failedDestinations.has(destination) &&
      !copies.some((copy) => copy.destination === destination)
    )
      notes.push(`not at ${backend.location}`);
  return notes;
}

function listedDocument({ database, replica, marks, error }: Listed): Record<string, unknown> {
  return {
    name: database,
    error: errorDocument(error),
    marks: marks.map((state) => ({
      label: state.mark?.label ?? null,
      index: state.index,
      time: state.mark === null ? null : formatTimestamp(state.mark.stampMs),
      created: state.mark === null ? null : formatTimestamp(state.mark.createdMs),
      destinations: state.copies.map(({ destination }) => replica?.locationOf(destination)),
      error: errorDocument(state.mark === null ? state.error : null),
      notes: replica === null ? [] : notesOn(replica, state),
    })),
    warnings: replica?.warnings ?? [],
  };
}

function writeJson({ stdout }: CommandContext, document: unknown): void {
  stdout.write(`${JSON.stringify(document, null, 2)}\n`);
}
