import { keyBelow } from "../replica/catalog.ts";
import type { DestinationPruned } from "../replica/maintain.ts";
import type { Expiry, UnmetLimit } from "../replica/retention-plan.ts";
import { formatByteSize } from "../util/byte-sizes.ts";
import { plural } from "../util/plural.ts";
import { printable } from "../util/printable.ts";
import type { CommandContext } from "./command.ts";
import { errorDocument, writeFailedPart } from "./failed-part.ts";

/** What was deleted at one destination, or with `dryRun` would be: a line, with --verbose one for each object, and what stands in the way. */
export function writePruned(
  { stdout, stderr, flags }: CommandContext,
  database: string,
  { location, report, error }: DestinationPruned,
  dryRun: boolean,
): void {
  const place = printable(`${database} at ${location}`);
  if (report === null) return writeFailedPart(stderr, place, error);
  const { plan, deleted, unsound, denied } = report;
  if (deleted.length === 0) stdout.write(`${place}: nothing to delete\n`);
  else stdout.write(`${place}: ${describeExpired(deleted)} ${dryRun ? "would be deleted" : "deleted"}\n`);
  if (flags.verbose)
    for (const { object, reason } of deleted)
      stdout.write(`  ${keyBelow(object)}: ${reason}, ${formatByteSize(object.sizeBytes)}\n`);
  if (plan.refused !== null) stderr.write(`${place}: nothing is deleted: ${printable(plan.refused)}\n`);
  for (const limit of plan.unmet) stderr.write(`${place}: ${describeUnmet(limit)}\n`);
  for (const { object, error: failure } of unsound)
    writeFailedPart(stderr, `${place}: what would rest on ${keyBelow(object)} stays`, failure);
  if (denied !== null) writeFailedPart(stderr, place, denied);
}

/** `12 merged change-sets of 1.20 MiB, 1 full backup and 300 change-sets of 80.0 MiB by retention`. */
export function describeExpired(expired: readonly Expiry[]): string {
  const byReason = Map.groupBy(expired, ({ reason }) => reason);
  return [...byReason]
    .map(([reason, alike]) => {
      const bytes = formatByteSize(alike.reduce((sum, { object }) => sum + object.sizeBytes, 0));
      const fulls = alike.filter(({ object }) => object.kind === "full").length;
      const changeSets = alike.length - fulls;
      if (reason === "merged") return `${plural(changeSets, "merged change-set")} of ${bytes}`;
      const parts = [
        ...(fulls > 0 ? [plural(fulls, "full backup")] : []),
        ...(changeSets > 0 ? [plural(changeSets, "change-set")] : []),
      ];
      return `${parts.join(" and ")} of ${bytes} by ${reason}`;
    })
    .join(", ");
}

export function describeUnmet({ limit, allowed, remaining }: UnmetLimit): string {
  const show = (value: number) => (limit === "max_total_size" ? formatByteSize(value) : plural(value, "full backup"));
  return `\`${limit}\` (${show(allowed)}) cannot be met: ${show(remaining)} must stay for \`retention\`, for marks, or as the newest backup`;
}

/** Whether something that should be deleted was not. A limit that cannot be met is none of that. */
export function wasHindered({ report }: DestinationPruned): boolean {
  return report === null || report.plan.refused !== null || report.denied !== null || report.unsound.length > 0;
}

export function expiryDocument({ location, report, error }: DestinationPruned): Record<string, unknown> {
  if (report === null) return { destination: location, error: errorDocument(error) };
  const { plan, deleted, unsound, denied } = report;
  return {
    destination: location,
    error: null,
    deleted: deleted.map(({ object, reason }) => ({
      name: keyBelow(object),
      reason,
      stored_bytes: object.sizeBytes,
    })),
    oldest_kept_index: plan.floor,
    refused: plan.refused,
    unmet_limits: plan.unmet.map(({ limit, allowed, remaining }) => ({ limit, allowed, remaining })),
    unsound: unsound.map(({ object, error: failure }) => ({ name: keyBelow(object), error: errorDocument(failure) })),
    denied: errorDocument(denied),
  };
}
