import type { DatabaseConfig } from "../../config/types.ts";
import { openConfiguredReplica } from "../../replica/configured.ts";
import { type BackupUsage, type DestinationUsage, measureUsage, type UnlistedUsage } from "../../replica/usage.ts";
import { lookAtFiles } from "../../state/observe-files.ts";
import type { StatusFile } from "../../state/status.ts";
import { formatByteSize } from "../../util/byte-sizes.ts";
import { formatDuration } from "../../util/durations.ts";
import type { BakeliteError } from "../../util/errors.ts";
import { plural } from "../../util/plural.ts";
import { printable } from "../../util/printable.ts";
import { Semaphore } from "../../util/semaphore.ts";
import { formatTable, type TableColumn } from "../../util/table.ts";
import { formatTimestamp } from "../../util/timestamps.ts";
import type { Command, CommandContext } from "../command.ts";
import { errorDocument, failureOfPart, writeFailedPart } from "../failed-part.ts";
import { describeUnmet } from "../pruned.ts";

export const command: Command = {
  readsObjects: true,
  usage: "[--db <name>] [--json]",
  description: [
    "Shows how much is stored for each database, how much of its limits that is (`max_total_size`, `max_backups`), and what a destination keeps beyond the objects that it lists: versions that were replaced or deleted, and uploads that nobody finished. With --db, each full backup and the change-sets that follow it.",
    "Reads the destinations only, so it is safe while the daemon is running.",
  ],
  options: [],
  examples: [
    { comment: "One line for each database", command: "bakelite usage" },
    { comment: "One database, by full backup", command: "bakelite usage --db app" },
    { comment: "For a script", command: "bakelite usage --db app --json" },
  ],
  async run(context) {
    const databases = context.selectDatabases(await context.loadConfig());
    const slots = new Semaphore(FLEET_CONCURRENCY);
    const measured = await Promise.all(
      databases.map(async (database) => {
        using _slot = await slots.acquire({ signal: context.signal });
        return await measure(context, database);
      }),
    );
    if (context.flags.json) writeJson(context, measured);
    else writeText(context, measured);
    return measured.some(hasFailed) ? 1 : 0;
  },
};

const FLEET_CONCURRENCY = 4;

interface Measured {
  readonly database: DatabaseConfig;
  /** Empty when nothing could be opened: then `error` says why. */
  readonly destinations: readonly DestinationUsage[];
  readonly error: BakeliteError | null;
  /** What the daemon of this host could not meet when it last pruned. */
  readonly limitsUnmet: StatusFile["limits_unmet"];
}

async function measure(context: CommandContext, database: DatabaseConfig): Promise<Measured> {
  const { name, path } = database;
  const nowMs = context.clock.nowMs();
  const { status } = await lookAtFiles({ name, path, fallbackDirectory: undefined, nowMs });
  const limitsUnmet = status.outcome === "read" ? status.value.limits_unmet : [];
  try {
    const replica = await openConfiguredReplica(database, { signal: context.signal });
    return { database, destinations: await measureUsage(replica), error: null, limitsUnmet };
  } catch (error) {
    return { database, destinations: [], error: failureOfPart(error), limitsUnmet };
  }
}

function hasFailed({ destinations, error }: Measured): boolean {
  return error !== null || destinations.some((destination) => destination.error !== null);
}

/** A limit holds for each destination by itself, so what counts is the fullest one. */
function fullest({ destinations }: Measured): { readonly storedBytes: number; readonly fullBackupCount: number } {
  return {
    storedBytes: Math.max(0, ...destinations.map(({ storedBytes }) => storedBytes)),
    fullBackupCount: Math.max(0, ...destinations.map(({ fullBackupCount }) => fullBackupCount)),
  };
}

function writeText({ stdout, stderr, flags }: CommandContext, measured: readonly Measured[]): void {
  const columns: readonly TableColumn[] = [
    { title: "DATABASE" },
    { title: "STORED", align: "right" },
    { title: "OBJECTS", align: "right" },
    { title: "FULL", align: "right" },
    { title: "LIMIT" },
    { title: "USED", align: "right" },
    { title: "OLD VERSIONS", align: "right" },
    { title: "UNFINISHED UPLOADS", align: "right" },
  ];
  stdout.write(formatTable(columns, measured.map(fleetCells)));
  if (flags.db !== undefined) for (const one of measured) writeBackups(stdout, one);
  for (const { database, destinations, error, limitsUnmet } of measured) {
    for (const limit of limitsUnmet)
      stderr.write(`${printable(`${database.name} at ${limit.destination}`)}: ${describeUnmet(limit)}\n`);
    const failures = error === null ? destinations.map((destination) => destination.error) : [error];
    for (const failure of failures) if (failure !== null) writeFailedPart(stderr, database.name, failure);
  }
}

function fleetCells(measured: Measured): readonly string[] {
  const { database, destinations, error } = measured;
  if (error !== null) return [database.name, "cannot be read (see below)"];
  const limits = limitsOf(measured);
  const total = (count: (usage: DestinationUsage) => number) =>
    destinations.reduce((sum, usage) => sum + count(usage), 0);
  return [
    database.name,
    formatByteSize(total(({ storedBytes }) => storedBytes)),
    `${total(({ objectCount }) => objectCount)}`,
    `${fullest(measured).fullBackupCount}`,
    limits.map(({ text }) => text).join(", ") || "none",
    limits.map(({ used, limit }) => percent(used, limit)).join(", "),
    overhead(destinations, ({ noncurrent }) => noncurrent),
    overhead(destinations, ({ uploads }) => uploads),
  ];
}

interface Limit {
  readonly text: string;
  readonly used: number;
  readonly limit: number;
}

function limitsOf(measured: Measured): readonly Limit[] {
  const { maxTotalSizeBytes, maxBackups } = measured.database;
  const { storedBytes, fullBackupCount } = fullest(measured);
  const limits: Limit[] = [];
  if (maxTotalSizeBytes > 0)
    limits.push({ text: formatByteSize(maxTotalSizeBytes), used: storedBytes, limit: maxTotalSizeBytes });
  if (maxBackups > 0)
    limits.push({ text: plural(maxBackups, "full backup"), used: fullBackupCount, limit: maxBackups });
  return limits;
}

/** The sum over the destinations where something can be hidden; "" where nothing can. */
function overhead(
  destinations: readonly DestinationUsage[],
  part: (unlisted: UnlistedUsage) => { readonly sizeBytes: number } | null,
): string {
  const parts = destinations.flatMap(({ unlisted }) => (unlisted === null ? [] : [part(unlisted)]));
  if (parts.length === 0) return "";
  if (parts.includes(null)) return "not inspected";
  return formatByteSize(parts.reduce((sum, one) => sum + (one?.sizeBytes ?? 0), 0));
}

function writeBackups(stdout: CommandContext["stdout"], { database, destinations }: Measured): void {
  const columns: readonly TableColumn[] = [
    { title: "FULL BACKUP" },
    { title: "STORED", align: "right" },
    { title: "CHANGE-SETS", align: "right" },
    { title: "STORED", align: "right" },
    { title: "TOGETHER", align: "right" },
    { title: "SHARE", align: "right" },
  ];
  for (const usage of destinations) {
    stdout.write(`\n${database.name} at ${printable(usage.location)}\n`);
    if (usage.error !== null) {
      stdout.write("  cannot be read (see below)\n");
      continue;
    }
    const rows = usage.backups.map((backup) => {
      const together = backup.fullBackupBytes + backup.changeSetBytes;
      return [
        backupLabel(backup),
        formatByteSize(backup.fullBackupBytes),
        `${backup.changeSetCount}`,
        formatByteSize(backup.changeSetBytes),
        formatByteSize(together),
        percent(together, usage.storedBytes),
      ];
    });
    stdout.write(rows.length === 0 ? "  nothing is stored\n" : indent(formatTable(columns, rows)));
    for (const line of unlistedLines(usage.unlisted)) stdout.write(`  ${line}\n`);
  }
}

function backupLabel({ index, stampMs }: BackupUsage): string {
  if (index === null) return "before every full backup";
  return `state ${index}${stampMs === null ? "" : `, ${formatTimestamp(stampMs)}`}`;
}

function unlistedLines(unlisted: UnlistedUsage | null): readonly string[] {
  if (unlisted === null) return [];
  const { noncurrent, uploads } = unlisted;
  return [
    noncurrent === null
      ? "old versions: not inspected, since this provider cannot tell"
      : `old versions: ${noncurrent.count} of ${formatByteSize(noncurrent.sizeBytes)}, and ${plural(noncurrent.deleteMarkerCount, "delete marker")}${noncurrent.count > 0 ? "; a lifecycle rule of the bucket can expire them" : ""}`,
    uploads === null
      ? "unfinished uploads: not inspected, since this provider cannot tell"
      : `unfinished uploads: ${uploads.count} of ${formatByteSize(uploads.sizeBytes)}${uploads.greatestAgeMs === null ? "" : `, untouched for up to ${formatDuration(uploads.greatestAgeMs)}; \`bakelite reclaim\` aborts them`}`,
  ];
}

function writeJson({ stdout }: CommandContext, measured: readonly Measured[]): void {
  stdout.write(`${JSON.stringify({ databases: measured.map(databaseDocument) }, null, 2)}\n`);
}

function databaseDocument(measured: Measured): Record<string, unknown> {
  const { database, destinations, error, limitsUnmet } = measured;
  const { storedBytes, fullBackupCount } = fullest(measured);
  const { maxTotalSizeBytes, maxBackups } = database;
  return {
    name: database.name,
    error: errorDocument(error),
    stored_bytes: destinations.reduce((sum, usage) => sum + usage.storedBytes, 0),
    limits: {
      max_total_size_bytes: maxTotalSizeBytes > 0 ? maxTotalSizeBytes : null,
      total_size_used: maxTotalSizeBytes > 0 ? storedBytes / maxTotalSizeBytes : null,
      max_backups: maxBackups > 0 ? maxBackups : null,
      backups_used: maxBackups > 0 ? fullBackupCount / maxBackups : null,
      unmet: limitsUnmet,
    },
    destinations: destinations.map(destinationDocument),
  };
}

function destinationDocument(usage: DestinationUsage): Record<string, unknown> {
  const { unlisted } = usage;
  return {
    destination: usage.location,
    error: errorDocument(usage.error),
    stored_bytes: usage.storedBytes,
    objects: usage.objectCount,
    full_backups: usage.fullBackupCount,
    change_sets: usage.changeSetCount,
    backups: usage.backups.map((backup) => ({
      index: backup.index,
      time: backup.stampMs === null ? null : formatTimestamp(backup.stampMs),
      full_backup_bytes: backup.fullBackupBytes,
      change_sets: backup.changeSetCount,
      change_set_bytes: backup.changeSetBytes,
    })),
    noncurrent_versions:
      unlisted === null || unlisted.noncurrent === null
        ? null
        : {
            versions: unlisted.noncurrent.count,
            stored_bytes: unlisted.noncurrent.sizeBytes,
            delete_markers: unlisted.noncurrent.deleteMarkerCount,
          },
    unfinished_uploads:
      unlisted === null || unlisted.uploads === null
        ? null
        : {
            uploads: unlisted.uploads.count,
            stored_bytes: unlisted.uploads.sizeBytes,
            greatest_age_seconds:
              unlisted.uploads.greatestAgeMs === null ? null : Math.round(unlisted.uploads.greatestAgeMs / 1000),
          },
    inspected:
      unlisted === null
        ? null
        : { noncurrent_versions: unlisted.noncurrent !== null, uploads: unlisted.uploads !== null },
  };
}

function percent(part: number, whole: number): string {
  return whole === 0 ? "" : `${((part / whole) * 100).toFixed(part < whole / 10 ? 1 : 0)}%`;
}

function indent(text: string): string {
  return text.replaceAll(/^(?=.)/gm, "  ");
}
