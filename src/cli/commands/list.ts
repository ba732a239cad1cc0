import type { DatabaseConfig } from "../../config/types.ts";
import { PLAINTEXT_SEAL } from "../../format/names.ts";
import { isEmpty } from "../../replica/catalog.ts";
import { openConfiguredReplica } from "../../replica/configured.ts";
import type { ObjectFacts } from "../../replica/facts.ts";
import { type PrunePreview, previewPrune } from "../../replica/maintain.ts";
import { type MarkedState, readMarks } from "../../replica/marks.ts";
import { assertReadable } from "../../replica/plan.ts";
import type { Replica } from "../../replica/replica.ts";
import type { RestorePoint } from "../../replica/restore-points.ts";
import {
  type AgeSummary,
  type FullBackupSummary,
  type ObjectSummary,
  type ReplicaSummary,
  readAllObjects,
  summarize,
  summarizeAges,
  summarizeFullBackups,
  summarizeObjects,
} from "../../replica/summary.ts";
import { formatByteSize } from "../../util/byte-sizes.ts";
import { formatDuration } from "../../util/durations.ts";
import { BakeliteError, describeError } from "../../util/errors.ts";
import { printable } from "../../util/printable.ts";
import { Semaphore } from "../../util/semaphore.ts";
import { formatTable, formatTableLines, type TableColumn } from "../../util/table.ts";
import { formatTimestamp, formatTimestampAndAgo } from "../../util/timestamps.ts";
import type { Command, CommandContext } from "../command.ts";
import { errorDocument, failureOfPart } from "../failed-part.ts";
import { describeExpired, describeUnmet } from "../pruned.ts";

export const command: Command = {
  readsObjects: true,
  usage: "[--db <name>] [--verbose] [--json]",
  description: [
    "Shows what can be restored: one line for each database; with --db each full backup with its restore points, how densely they lie by age, what is marked, and what the next prune deletes; with --verbose every stored object besides.",
    "Reads the destinations only, so it is safe while the daemon is running, and works on another host.",
  ],
  options: [],
  examples: [
    { comment: "One line for each database", command: "bakelite list" },
    { comment: "The restore points of one database", command: "bakelite list --db app" },
    { comment: "And the structure of its backups", command: "bakelite list --db app --verbose" },
  ],
  async run(context) {
    const databases = context.selectDatabases(await context.loadConfig());
    const [database] = databases;
    if (context.flags.db !== undefined && database !== undefined) await listDatabase(context, database);
    else return await listFleet(context, databases);
    return 0;
  },
};

const FLEET_CONCURRENCY = 4;
const HOUR_MS = 3_600_000;
const AGES_MS = [HOUR_MS, 24 * HOUR_MS, 7 * 24 * HOUR_MS] as const;

interface FleetRow {
  readonly database: DatabaseConfig;
  readonly outcome:
    | { readonly summary: ReplicaSummary; readonly warnings: readonly string[] }
    | { readonly error: BakeliteError };
}

/** A database whose replica cannot be read has a row of its own, and makes the command fail. */
async function listFleet(context: CommandContext, databases: readonly DatabaseConfig[]): Promise<number> {
  const slots = new Semaphore(FLEET_CONCURRENCY);
  const rows = await Promise.all(
    databases.map(async (database): Promise<FleetRow> => {
      using _slot = await slots.acquire({ signal: context.signal });
      try {
        const replica = await openConfiguredReplica(database, { signal: context.signal });
        assertReadable(replica, "list");
        return { database, outcome: { summary: await summarize(replica), warnings: replica.warnings } };
      } catch (error) {
        if (!(error instanceof BakeliteError) || error.code === "interrupted" || error.code === "internal") throw error;
        return { database, outcome: { error } };
      }
    }),
  );
  if (context.flags.json) writeJson(context, { databases: rows.map(fleetDocument) });
  else writeFleet(context, rows);
  return rows.some(({ outcome }) => "error" in outcome) ? 1 : 0;
}

function writeFleet({ stdout, stderr, clock }: CommandContext, rows: readonly FleetRow[]): void {
  const columns: readonly TableColumn[] = [
    { title: "DATABASE" },
    { title: "NEWEST RESTORE POINT" },
    { title: "OLDEST RESTORE POINT" },
    { title: "FULL", align: "right" },
    { title: "CHANGE-SETS", align: "right" },
    { title: "STORED", align: "right" },
  ];
  const nowMs = clock.nowMs();
  const cells = rows.map(({ database: { name }, outcome }) => {
    if ("error" in outcome) return [name, "cannot be read (see below)"];
    const { newest, oldest, fullBackupCount, changeSetCount, storedBytes } = outcome.summary;
    return [
      name,
      showPoint(newest, nowMs),
      showPoint(oldest, nowMs),
      `${fullBackupCount}`,
      `${changeSetCount}`,
      formatByteSize(storedBytes),
    ];
  });
  stdout.write(formatTable(columns, cells));
  for (const { database, outcome } of rows) {
    if ("error" in outcome) {
      stderr.write(`${database.name}: ${printable(describeError(outcome.error))}\n`);
      if (outcome.error.hint !== undefined) stderr.write(`  hint: ${printable(outcome.error.hint)}\n`);
    } else for (const warning of outcome.warnings) stderr.write(`${database.name}: ${printable(warning)}\n`);
  }
}

function fleetDocument({ database, outcome }: FleetRow): Record<string, unknown> {
  if ("error" in outcome)
    return { name: database.name, error: { code: outcome.error.code, message: describeError(outcome.error) } };
  return { name: database.name, ...summaryDocument(outcome.summary), warnings: outcome.warnings };
}

interface Details {
  readonly replica: Replica;
  readonly summary: ReplicaSummary;
  readonly fullBackups: readonly FullBackupSummary[];
  readonly ages: readonly AgeSummary[];
  readonly marks: readonly MarkedState[];
  /** null: too much would have to be read to tell. */
  readonly nextPrune: readonly PrunePreview[] | null;
}

async function listDatabase(context: CommandContext, database: DatabaseConfig): Promise<void> {
  const replica = await openConfiguredReplica(database, { signal: context.signal });
  // The names of what is stored can be told without its key.
  if (!context.flags.verbose) assertReadable(replica, "list");
  // All objects first, where they are shown: what is then known makes the rest exact.
  if (context.flags.verbose) await readAllObjects(replica);
  const details: Details = {
    replica,
    summary: await summarize(replica),
    fullBackups: await summarizeFullBackups(replica),
    ages: await summarizeAges(replica, AGES_MS, context.clock.nowMs()),
    marks: await readMarks(replica),
    nextPrune: await previewUnlessLarge(context, database, replica),
  };
  if (context.flags.json) await writeDocument(context, details);
  else await writeDatabase(context, details);
  assertReadable(replica, "list");
}

/** More change-sets than these: their trailers, which tell what merged ones stand for, take long to read. */
const MAX_PREVIEWED = 5_000;

async function previewUnlessLarge(
  { clock, signal, env }: CommandContext,
  database: DatabaseConfig,
  { catalog }: Replica,
): Promise<readonly PrunePreview[] | null> {
  if (catalog.changeSets.length > MAX_PREVIEWED) return null;
  try {
    return await previewPrune(database, { nowMs: clock.nowMs(), signal, stateDirectory: env["BAKELITE_STATE_DIR"] });
  } catch (error) {
    // Whoever may not look beside the database may still see what is stored.
    failureOfPart(error);
    return null;
  }
}

async function writeDatabase({ stdout, stderr, clock, flags }: CommandContext, details: Details): Promise<void> {
  const { replica, summary } = details;
  const nowMs = clock.nowMs();
  const places = replica.options.backends.map((backend) => backend.location).join(", ");
  stdout.write(
    [
      `${replica.database} at ${printable(places)}`,
      `  newest restore point  ${showPoint(summary.newest, nowMs)}`,
      `  oldest restore point  ${showPoint(summary.oldest, nowMs)}`,
      `  stored                ${plural(summary.fullBackupCount, "full backup")} and ${plural(summary.changeSetCount, "change-set")}, ${formatByteSize(summary.storedBytes)}`,
      "",
    ].join("\n"),
  );
  if (details.fullBackups.length > 0) stdout.write(`\n${fullBackupTable(details.fullBackups, nowMs)}`);
  if (details.ages.length > 0) stdout.write(`\n${ageTable(details.ages)}`);
  if (details.marks.length > 0) stdout.write(`\n${markTable(details.marks, nowMs)}`);
  if (flags.verbose && !isEmpty(replica.catalog)) {
    stdout.write("\n");
    await writePieces(stdout, objectTable(replica));
  }
  stdout.write(`\n${nextPruneLines(details, nowMs).join("\n")}\n`);
  for (const warning of replica.warnings) stderr.write(`note: ${printable(warning)}\n`);
}

function fullBackupTable(fullBackups: readonly FullBackupSummary[], nowMs: number): string {
  const columns: readonly TableColumn[] = [
    { title: "FULL BACKUP" },
    { title: "SIZE", align: "right" },
    { title: "STORED", align: "right" },
    { title: "RESTORE POINTS", align: "right" },
    { title: "FROM" },
    { title: "TO" },
  ];
  const rows = fullBackups.map(({ index, copies, stampMs, sizePages, pageSizeBytes, points }) => [
    `state ${index}${stampMs === null ? "" : `, ${formatTimestamp(stampMs)}`}`,
    sizePages === null || pageSizeBytes === null ? "" : formatByteSize(sizePages * pageSizeBytes),
    formatByteSize(copies[0]?.sizeBytes ?? 0),
    stampMs === null ? "damaged" : `${points?.count ?? 0}`,
    points === null ? "" : showPoint(points.oldest, nowMs),
    points === null ? "" : showPoint(points.newest, nowMs),
  ]);
  return formatTable(columns, rows);
}

function ageTable(ages: readonly AgeSummary[]): string {
  const columns: readonly TableColumn[] = [
    { title: "AGE" },
    { title: "RESTORE POINTS", align: "right" },
    { title: "ONE ABOUT EVERY", align: "right" },
  ];
  const rows = ages.map((age) => {
    const spacingMs = spacingOf(age);
    const label = age.youngerThanMs === null ? "older" : `up to ${formatDuration(age.youngerThanMs)}`;
    return [label, `${age.count}`, spacingMs === null ? "" : formatDuration(spacingMs)];
  });
  return formatTable(columns, rows);
}

function markTable(marks: readonly MarkedState[], nowMs: number): string {
  const columns: readonly TableColumn[] = [{ title: "MARK" }, { title: "RESTORE POINT" }];
  const rows = marks.map(({ index, mark }) => [
    mark?.label ?? "cannot be read: see `bakelite keep`",
    mark === null ? `state ${index}` : `state ${index}, ${formatTimestampAndAgo(mark.stampMs, nowMs)}`,
  ]);
  return formatTable(columns, rows);
}

/** What is about to go. By the newest stored object's time: with nothing new, nothing gets older. */
function nextPruneLines({ nextPrune }: Details, nowMs: number): readonly string[] {
  if (nextPrune === null) return ["next prune: see `bakelite prune --dry-run`"];
  return nextPrune.flatMap((one) => {
    const place = nextPrune.length === 1 ? "next prune" : `next prune at ${printable(one.location)}`;
    if (one.report === null) return [`${place}: ${printable(describeError(one.error))}`];
    const { plan, deleted } = one.report;
    const oldest =
      one.oldestKept === null ? "" : `; oldest restore point after it: ${showPoint(one.oldestKept, nowMs)}`;
    return [
      plan.refused !== null
        ? `${place}: deletes nothing: ${printable(plan.refused)}`
        : deleted.length === 0
          ? `${place}: deletes nothing`
          : `${place}: deletes ${describeExpired(deleted)}${oldest}`,
      ...plan.unmet.map((limit) => `${place}: ${describeUnmet(limit)}`),
    ];
  });
}

/** The mean distance between neighbours; null for a single restore point, or where the clock stepped back. */
function spacingOf({ count, oldest, newest }: AgeSummary): number | null {
  return count < 2 || newest.stampMs < oldest.stampMs
    ? null
    : Math.round((newest.stampMs - oldest.stampMs) / (count - 1));
}

function objectTable(replica: Replica): Generator<string> {
  const columns: readonly TableColumn[] = [
    { title: "OBJECT" },
    { title: "LEVEL", align: "right" },
    { title: "STATES" },
    { title: "FIRST COMMIT" },
    { title: "LAST COMMIT" },
    { title: "PAGES", align: "right" },
    { title: "RAW", align: "right" },
    { title: "STORED", align: "right" },
    { title: "ENCRYPTED" },
    { title: "NOTE" },
  ];
  return formatTableLines(columns, () => objectRows(replica));
}

function* objectRows(replica: Replica): Generator<readonly string[]> {
  for (const object of summarizeObjects(replica)) {
    const { name, copies, facts } = object;
    const [copy] = copies;
    if (copy === undefined) continue;
    yield [
      name,
      copy.kind === "full" ? "" : `${copy.level}`,
      copy.first === copy.last ? `${copy.first}` : `${copy.first}-${copy.last}`,
      facts === null ? "" : formatTimestamp(facts.firstCommitMs),
      facts === null ? "" : formatTimestamp(facts.lastCommitMs),
      facts === null ? "" : `${facts.pageCount}`,
      rawSize(facts),
      formatByteSize(copy.sizeBytes),
      copy.seal === PLAINTEXT_SEAL ? "no" : `key ${copy.seal}`,
      objectNotes(replica, object).join("; "),
    ];
  }
}

function rawSize(facts: ObjectFacts | null): string {
  return facts === null || facts.pageSizeBytes === null ? "" : formatByteSize(facts.pageCount * facts.pageSizeBytes);
}

/** What tells an object's copies from each other, and what is wrong with them. */
function objectNotes(replica: Replica, { copies }: ObjectSummary): readonly string[] {
  const notes: string[] = [];
  for (const [destination, backend] of replica.options.backends.entries()) {
    if (replica.trailers.failedDestinations.has(destination)) continue;
    const copy = copies.find((object) => object.destination === destination);
    if (copy === undefined) notes.push(`not at ${backend.location}`);
    else if (copy.sizeBytes !== copies[0]?.sizeBytes)
      notes.push(`${formatByteSize(copy.sizeBytes)} at ${backend.location}`);
  }
  for (const copy of copies) {
    const failure = replica.trailers.failureOf(copy);
    if (failure !== undefined)
      notes.push(
        copies.length === 1
          ? failure.error.message
          : `at ${replica.locationOf(copy.destination)}: ${failure.error.message}`,
      );
    else if (!replica.trailers.canUnseal(copy)) notes.push("cannot be read with the configured key");
  }
  return notes;
}

function databaseDocument({ replica, summary, fullBackups, ages, marks, nextPrune }: Details): Record<string, unknown> {
  return {
    name: replica.database,
    destinations: replica.options.backends.map((backend) => backend.location),
    ...summaryDocument(summary),
    full_backup_list: fullBackups.map(({ index, copies, stampMs, sizePages, pageSizeBytes, points }) => ({
      index,
      time: stampMs === null ? null : formatTimestamp(stampMs),
      size_bytes: sizePages === null || pageSizeBytes === null ? null : sizePages * pageSizeBytes,
      stored_bytes: copies[0]?.sizeBytes ?? 0,
      seal: copies[0]?.seal ?? PLAINTEXT_SEAL,
      destinations: copies.map((copy) => replica.locationOf(copy.destination)),
      restore_points: points === null ? 0 : points.count,
      oldest_restore_point: points === null ? null : pointDocument(points.oldest),
      newest_restore_point: points === null ? null : pointDocument(points.newest),
    })),
    restore_points_by_age: ages.map((age) => ({
      younger_than_ms: age.youngerThanMs,
      restore_points: age.count,
      mean_spacing_ms: spacingOf(age),
      oldest: pointDocument(age.oldest),
      newest: pointDocument(age.newest),
    })),
    marks: marks.map(({ index, mark }) => ({
      label: mark?.label ?? null,
      index,
      time: mark === null ? null : formatTimestamp(mark.stampMs),
    })),
    next_prune: nextPrune === null ? null : nextPrune.map(nextPruneDocument),
    warnings: replica.warnings,
  };
}

function nextPruneDocument({ location, report, error, oldestKept }: PrunePreview): Record<string, unknown> {
  const deleted = report?.deleted ?? [];
  return {
    destination: location,
    error: errorDocument(error),
    objects: deleted.length,
    stored_bytes: deleted.reduce((sum, { object }) => sum + object.sizeBytes, 0),
    oldest_kept: oldestKept === null ? null : pointDocument(oldestKept),
    refused: report?.plan.refused ?? null,
    unmet_limits: (report?.plan.unmet ?? []).map(({ limit, allowed, remaining }) => ({ limit, allowed, remaining })),
  };
}

function objectDocument(replica: Replica, object: ObjectSummary): Record<string, unknown> {
  const { name, copies, facts } = object;
  const [copy] = copies;
  return {
    name,
    kind: copy?.kind,
    level: copy?.level,
    first: copy?.first,
    last: copy?.last,
    first_commit: facts === null ? null : formatTimestamp(facts.firstCommitMs),
    last_commit: facts === null ? null : formatTimestamp(facts.lastCommitMs),
    pages: facts?.pageCount ?? null,
    raw_bytes: facts === null || facts.pageSizeBytes === null ? null : facts.pageCount * facts.pageSizeBytes,
    settled: facts?.settled ?? null,
    encrypted: copy?.seal !== PLAINTEXT_SEAL,
    seal: copy?.seal,
    copies: copies.map((each) => ({
      destination: replica.locationOf(each.destination),
      stored_bytes: each.sizeBytes,
      modified: formatTimestamp(each.modifiedMs),
    })),
    notes: objectNotes(replica, object),
  };
}

function summaryDocument({
  newest,
  oldest,
  fullBackupCount,
  changeSetCount,
  storedBytes,
}: ReplicaSummary): Record<string, unknown> {
  return {
    newest_restore_point: newest === null ? null : pointDocument(newest),
    oldest_restore_point: oldest === null ? null : pointDocument(oldest),
    full_backups: fullBackupCount,
    change_sets: changeSetCount,
    stored_bytes: storedBytes,
  };
}

function pointDocument({ index, stampMs }: RestorePoint): Record<string, unknown> {
  return { index, time: formatTimestamp(stampMs) };
}

function showPoint(point: RestorePoint | null, nowMs: number): string {
  return point === null ? "none" : formatTimestampAndAgo(point.stampMs, nowMs);
}

function plural(count: number, noun: string): string {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

function writeJson({ stdout }: CommandContext, document: unknown): void {
  stdout.write(`${JSON.stringify(document, null, 2)}\n`);
}

/** With `--verbose` object by object: the text of 100,000 is larger than all else that this command needs. */
async function writeDocument(context: CommandContext, details: Details): Promise<void> {
  const document = databaseDocument(details);
  if (context.flags.verbose) await writePieces(context.stdout, withObjects(document, details.replica));
  else writeJson(context, document);
}

/** What `JSON.stringify` would write of the document with its `objects`. */
function* withObjects(document: Record<string, unknown>, replica: Replica): Generator<string> {
  yield JSON.stringify(document, null, 2).replace(/\n\}$/, ',\n  "objects": [');
  let separator = "\n";
  for (const object of summarizeObjects(replica)) {
    yield separator + JSON.stringify(objectDocument(replica, object), null, 2).replaceAll(/^/gm, "    ");
    separator = ",\n";
  }
  yield separator === "\n" ? "]\n}\n" : "\n  ]\n}\n";
}

const PIECE_CHARACTERS = 1_000_000;

/** Writes many short texts as few long ones, each when the one before it is out of memory. */
async function writePieces(stdout: CommandContext["stdout"], texts: Iterable<string>): Promise<void> {
  let piece: string[] = [];
  let characters = 0;
  for (const text of texts) {
    piece.push(text);
    characters += text.length;
    if (characters < PIECE_CHARACTERS) continue;
    stdout.write(piece.join(""));
    await stdout.drained?.();
    piece = [];
    characters = 0;
  }
  stdout.write(piece.join(""));
}
