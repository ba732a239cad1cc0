import * as z from "zod";
import { canonicalChecksum } from "./canonical-json.ts";
import { assertShape, describeIssue, readJsonFile, writeJsonFile } from "./json-file.ts";

const VERSION = 1;

const u32 = z.int().min(0).max(0xffff_ffff);
const count = z.int().min(0);
const timeMs = z.int().min(0);
const hex = (digits: number) =>
  z.string().regex(new RegExp(`^[0-9a-f]{${digits}}$`), `not ${digits} hexadecimal digits`);
const decimal = z.string().regex(/^\d{1,20}$/, "not a whole number");

/** Where a WAL was read to: its salts, the last commit frame taken, and the running checksum stored in that frame. */
const walPosition = z.object({
  salt: z.tuple([u32, u32]).readonly(),
  frame: u32,
  checksum: z.tuple([u32, u32]).readonly(),
});

const content = z.object({
  session: hex(32),
  pastSessions: z.array(hex(32)).readonly(),
  machineId: z.string().nullable(),
  bootId: z.string().nullable(),
  device: decimal,
  inode: decimal,
  chain: hex(32),
  index: count,
  lineage: hex(64),
  sizePages: u32,
  pageSizeBytes: z.int().min(512).max(65_536),
  position: walPosition.readonly().nullable(),
  settled: count,
  stampMs: timeMs,
  epochs: z.array(z.object({ number: count, firstIndex: count, firstStampMs: timeMs }).readonly()).readonly(),
  attempted: z
    .object({ index: count, run: hex(32), nonceSeed: hex(48) })
    .readonly()
    .nullable(),
  destinations: z
    .record(z.string(), z.object({ index: count, incomplete: z.boolean().optional() }).readonly())
    .readonly(),
  fullBackup: z
    .object({ index: count, settled: count, atMs: timeMs, seal: z.string().regex(/^(?:p|[0-9a-f]{8})$/) })
    .readonly()
    .nullable(),
  keyFingerprint: hex(8).nullable(),
});

/** Salts, frame number and running checksum after the last commit frame taken. */
export type WalPosition = Readonly<z.infer<typeof walPosition>>;

/**
 * How far shipping got, and who shipped (docs/state-files.md). `session` is kept over restarts; `device` and `inode` are those
 * of the database file, as decimal text; `index`, `lineage`, `sizePages`, `position`, `settled` and `stampMs` are those of
 * the newest stored state; `attempted` names the object of the put that may be under way; `destinations` is keyed by
 * location, and `incomplete` where that one lacked something that another one had; `fullBackup` is the newest sound one. It may lag behind the replica, never lead.
 */
export type Cursor = Readonly<z.infer<typeof content>>;

const file = {
  version: VERSION,
  what: "the cursor",
  schema: z.object({ version: z.literal(VERSION), checksum: hex(64), cursor: z.record(z.string(), z.unknown()) }),
};

export type CursorResult =
  | { readonly cursor: Cursor }
  | { readonly missing: true }
  /** Why, as the end of a sentence. */
  | { readonly corrupt: string };

/** Throws only when the file cannot be read at all (permissions, disk). */
export async function readCursor(path: string): Promise<CursorResult> {
  const result = await readJsonFile(path, file);
  switch (result.outcome) {
    case "missing":
      return { missing: true };
    case "corrupt":
      return { corrupt: result.reason };
    case "read":
      return parseCursor(result.value);
  }
}

/** Durable once this resolves. */
export async function writeCursor(path: string, cursor: Cursor): Promise<void> {
  const checked = assertShape(content, cursor, file.what);
  await writeJsonFile(path, { version: VERSION, checksum: canonicalChecksum(checked), cursor: { ...checked } }, file);
}

/** The checksum covers the members as they stand in the file, also those that only a newer bakelite knows. */
function parseCursor(found: z.infer<typeof file.schema>): CursorResult {
  if (canonicalChecksum(found.cursor) !== found.checksum) return { corrupt: "its checksum does not match its content" };
  const parsed = content.safeParse(found.cursor);
  if (parsed.success) return { cursor: parsed.data };
  return { corrupt: `cursor: ${describeIssue(parsed.error)}` };
}
