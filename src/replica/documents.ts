import { z } from "zod";
import { checkShape, count, hex, type JsonPlace } from "../format/json.ts";
import { partialTrailerShape } from "../format/trailer.ts";
import { COMPACTION_REASON, type ObjectFacts } from "./facts.ts";

/** What `CURRENT` says (docs/storage-format.md section 7). */
export interface CurrentHint {
  readonly chain: string;
  /** n0 of the newest full backup, and the seal in its name. */
  readonly full: number;
  readonly seal: string;
  /** The newest state when it was written. */
  readonly index: number;
  readonly lineage: string;
  readonly writtenMs: number;
}

/** One entry of a manifest that tells enough to plan with. */
export interface ManifestEntry {
  /** Below the database's folder. */
  readonly name: string;
  readonly sizeBytes: number;
  readonly facts: ObjectFacts;
}

const currentShape = z.object({
  chain: hex(32),
  full: count.min(1),
  seal: z.string(),
  index: count,
  lineage: hex(64),
  written_ms: count,
});

const manifestShape = z.object({ objects: z.array(z.unknown()) });

const manifestEntryShape = partialTrailerShape.extend({
  name: z.string(),
  size: count,
  chain: hex(32).optional(),
  page_size: count.optional(),
});

/** Reads the fields of `CURRENT`. Throws `replica-corrupt` when they are malformed. */
export function parseCurrent(fields: Record<string, unknown>, subject: string): CurrentHint {
  const { written_ms: writtenMs, ...rest } = checkShape(currentShape, fields, { what: "CURRENT", subject });
  return { ...rest, writtenMs };
}

/** The entries of a manifest that are well formed and complete; the others are left out, for it is a cache only. */
export function* parseManifest(fields: Record<string, unknown>, subject: string): Generator<ManifestEntry> {
  const place: JsonPlace = { what: "manifest", subject };
  for (const entry of checkShape(manifestShape, fields, place).objects) {
    const parsed = manifestEntryShape.safeParse(entry);
    if (!parsed.success) continue;
    const { name, size, ...told } = parsed.data;
    const facts = completeFacts(told);
    if (facts !== null) yield { name, sizeBytes: size, facts };
  }
}

function completeFacts(told: Omit<z.output<typeof manifestEntryShape>, "name" | "size">): ObjectFacts | null {
  const { parent, result, settled, size_pages, first_commit_ms, last_commit_ms, page_count } = told;
  if (parent === undefined || result === undefined || settled === undefined || size_pages === undefined) return null;
  if (
    first_commit_ms === undefined ||
    last_commit_ms === undefined ||
    page_count === undefined ||
    told.reason === undefined
  )
    return null;
  return {
    chain: told.chain ?? null,
    pageSizeBytes: told.page_size ?? null,
    parent,
    result,
    settled,
    sizePages: size_pages,
    pageCount: page_count,
    commits: told.commits ?? 0,
    firstCommitMs: first_commit_ms,
    lastCommitMs: last_commit_ms,
    compacted: told.reason === COMPACTION_REASON,
  };
}
