import { z } from "zod";
import { assert, BakeliteError } from "../util/errors.ts";
import { damaged } from "./damage.ts";
import { assertShape, checkShape, count, encodeJson, hex, parseJson } from "./json.ts";
import { HIGHEST_LEVEL, isDatabaseName } from "./names.ts";

export const STORAGE_FORMAT_VERSION = 1;

export type ObjectKind = "full" | "change-set" | "current" | "manifest" | "mark";

/** What is known when an object's first byte is written (docs/storage-format.md section 3.1). Text fields named there as hex are lower-case hex. */
export interface ObjectHeader {
  /** Program and version, for people: `bakelite 0.1.0`. */
  readonly writer: string;
  readonly kind: ObjectKind;
  readonly database: string;
  /** 0 to 9 in a change-set, 0 in all other kinds. */
  readonly level: number;
  /** Change-set: its first index; full: n0; mark: its index; current and manifest: the newest index when it was written. */
  readonly first: number;
  /** 32 hex digits. */
  readonly chain: string;
  /** A power of two from 512 to 65,536. */
  readonly pageSizeBytes: number;
  /** What the writer was told; each chunk says for itself what was done. */
  readonly compression: "zstd" | "none";
  readonly cipher: "none" | "xchacha20-poly1305";
  /** 8 hex digits when sealed, else null. */
  readonly keyFingerprint: string | null;
  /** 48 hex digits, new for every encoding. Two encodings under one key and seed would give their content away. */
  readonly nonceSeed: string;
  /** `nonceSeed` of the object's first encoding, where this one was made from a stored one; else not given. */
  readonly originSeed?: string | undefined;
  /** 32 hex digits. */
  readonly session: string;
  /** 32 hex digits. */
  readonly run: string;
}

const MAGIC = new TextEncoder().encode("bakelite");
const MAX_JSON_BYTES = 65_536;

/** Magic and length: what stands before the header's JSON. */
export const HEADER_PREFIX_BYTES = 12;

/** No header is longer, magic and length included. */
export const MAX_HEADER_BYTES = HEADER_PREFIX_BYTES + MAX_JSON_BYTES;

const formatShape = z.object({ format: count });

const headerShape = z
  .object({
    writer: z.string(),
    kind: z.enum(["full", "change-set", "current", "manifest", "mark"]),
    database: z.string().refine(isDatabaseName, "expected a database name"),
    level: z.int().min(0).max(HIGHEST_LEVEL),
    first: count,
    chain: hex(32),
    page_size: z.int().refine(isPageSize, "expected a power of two from 512 to 65536"),
    compression: z.enum(["zstd", "none"]),
    cipher: z.enum(["none", "xchacha20-poly1305"]),
    key_fingerprint: hex(8).nullable(),
    nonce_seed: hex(48),
    origin_seed: hex(48).optional(),
    session: hex(32),
    run: hex(32),
  })
  .refine(
    (header) => (header.cipher === "none") === (header.key_fingerprint === null),
    "cipher and key_fingerprint disagree",
  )
  .refine((header) => header.kind === "change-set" || header.level === 0, "only a change-set has a level")
  .refine(
    (header) => header.kind === "current" || header.kind === "manifest" || header.first >= 1,
    "indexes count from 1",
  );

/** Whether objects of this kind hold a trailer only: `CURRENT`, `manifest` and marks. */
export function isDocument(kind: ObjectKind): boolean {
  return kind === "current" || kind === "manifest" || kind === "mark";
}

/** The whole header: magic, u32 length of the JSON, JSON. Throws `internal` when a field is not what section 3.1 allows. */
export function encodeHeader(header: ObjectHeader): Uint8Array {
  const fields = {
    format: STORAGE_FORMAT_VERSION,
    writer: header.writer,
    kind: header.kind,
    database: header.database,
    level: header.level,
    first: header.first,
    chain: header.chain,
    page_size: header.pageSizeBytes,
    compression: header.compression,
    cipher: header.cipher,
    key_fingerprint: header.keyFingerprint,
    nonce_seed: header.nonceSeed,
    ...(header.originSeed === undefined ? {} : { origin_seed: header.originSeed }),
    session: header.session,
    run: header.run,
  };
  assertShape(headerShape, fields, "header");
  const json = encodeJson(fields);
  assert(json.length <= MAX_JSON_BYTES, "a header's JSON has at most 65,536 bytes");
  const bytes = new Uint8Array(HEADER_PREFIX_BYTES + json.length);
  bytes.set(MAGIC);
  new DataView(bytes.buffer).setUint32(MAGIC.length, json.length);
  bytes.set(json, HEADER_PREFIX_BYTES);
  return bytes;
}

/**
 * Reads the header at the start of `bytes`, which may go on behind it; `headerBytes` is its whole length. Throws
 * `replica-corrupt` when it is not one or is cut short, `replica-foreign` when its format is not ours. `subject` is the
 * object's key, for messages. docs/storage-format.md section 3.1.
 */
export function parseHeader(
  bytes: Uint8Array,
  subject = "header",
): { readonly header: ObjectHeader; readonly headerBytes: number } {
  if (bytes.length < HEADER_PREFIX_BYTES) throw damaged(subject, "the header is cut short");
  if (MAGIC.some((byte, i) => bytes[i] !== byte)) throw damaged(subject, "it does not begin as a bakelite object does");
  const jsonBytes = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength).getUint32(MAGIC.length);
  if (jsonBytes > MAX_JSON_BYTES) throw damaged(subject, `the header claims ${jsonBytes} bytes`);
  const headerBytes = HEADER_PREFIX_BYTES + jsonBytes;
  if (bytes.length < headerBytes) throw damaged(subject, "the header is cut short");

  const place = { what: "header", subject };
  const json = parseJson(bytes.subarray(HEADER_PREFIX_BYTES, headerBytes), place);
  // Before all other fields: those of another format may be other ones.
  const { format } = checkShape(formatShape, json, place);
  if (format !== STORAGE_FORMAT_VERSION) {
    const message = `stored object has format ${format}; this bakelite reads format ${STORAGE_FORMAT_VERSION}`;
    throw new BakeliteError("replica-foreign", message, { subject, hint: `upgrade bakelite to read format ${format}` });
  }
  const fields = checkShape(headerShape, json, place);
  const header: ObjectHeader = {
    writer: fields.writer,
    kind: fields.kind,
    database: fields.database,
    level: fields.level,
    first: fields.first,
    chain: fields.chain,
    pageSizeBytes: fields.page_size,
    compression: fields.compression,
    cipher: fields.cipher,
    keyFingerprint: fields.key_fingerprint,
    nonceSeed: fields.nonce_seed,
    ...(fields.origin_seed === undefined ? {} : { originSeed: fields.origin_seed }),
    session: fields.session,
    run: fields.run,
  };
  return { header, headerBytes };
}

function isPageSize(bytes: number): boolean {
  return bytes >= 512 && bytes <= 65_536 && (bytes & (bytes - 1)) === 0;
}
