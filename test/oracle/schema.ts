/**
 * The tables that every oracle writer shares and the arithmetic that makes them prove themselves.
 *
 * A *part* is a row of a writer, an extra table or an extra index that it owns; each has a 48-bit hash of all it says.
 * The *digest* of a writer is the sum of its parts' hashes modulo 2^48, kept up incrementally and written into
 * `oracle_log` by each of its commits. The *link* of a commit is a hash over the link before it and everything that the
 * log says of this one, so the log is a chain: no commit can be missing, changed or in another place.
 */

const MODULUS = 2 ** 48;

export const SCHEMA: readonly string[] = [
  "CREATE TABLE IF NOT EXISTS oracle_global (id INTEGER PRIMARY KEY CHECK (id = 1), n INTEGER NOT NULL, link INTEGER NOT NULL)",
  "INSERT OR IGNORE INTO oracle_global (id, n, link) VALUES (1, 0, 0)",
  `CREATE TABLE IF NOT EXISTS oracle_log (
     n INTEGER PRIMARY KEY, writer INTEGER NOT NULL, seq INTEGER NOT NULL, at_ms INTEGER NOT NULL,
     parts INTEGER NOT NULL, digest INTEGER NOT NULL, next_id INTEGER NOT NULL, seed INTEGER NOT NULL,
     link INTEGER NOT NULL, UNIQUE (writer, seq))`,
  `CREATE TABLE IF NOT EXISTS oracle_item (
     key INTEGER PRIMARY KEY, seq INTEGER NOT NULL, tag TEXT NOT NULL, body, hash INTEGER NOT NULL)`,
  "CREATE INDEX IF NOT EXISTS oracle_item_tag ON oracle_item (tag)",
];

/** Rows of one writer have keys from `keyBase(writer)` up to, not including, `keyBase(writer + 1)`. */
export const KEYS_PER_WRITER = 2 ** 34;

export function keyBase(writer: number): number {
  return writer * KEYS_PER_WRITER;
}

/**
 * The key of the id-th row: even ids follow one another, odd ones are scattered over the upper half (multiplication by
 * an odd number is one-to-one modulo 2^32), so both appends and inserts all over the B-tree happen.
 */
export function itemKey(writer: number, id: number): number {
  return keyBase(writer) + (id % 2 === 0 ? id : 2 ** 33 + (Math.imul(id, 0x9e3779b1) >>> 0));
}

/** Every second extra table is WITHOUT ROWID. */
export function extraTableSql(writer: number, k: number): string {
  const suffix = k % 2 === 0 ? " WITHOUT ROWID" : "";
  return `CREATE TABLE ${extraTableName(writer, k)} (key INTEGER PRIMARY KEY, seq INTEGER NOT NULL, tag TEXT NOT NULL UNIQUE, body, hash INTEGER NOT NULL)${suffix}`;
}

export function extraTableName(writer: number, k: number): string {
  return `oracle_x_${writer}_${k}`;
}

export function extraIndexName(writer: number, k: number): string {
  return `oracle_ix_${writer}_${k}`;
}

export function extraIndexSql(writer: number, k: number): string {
  const [from, to] = [keyBase(writer), keyBase(writer + 1)];
  const columns = k % 2 === 0 ? "tag, seq" : "seq";
  return `CREATE INDEX ${extraIndexName(writer, k)} ON oracle_item (${columns}) WHERE key >= ${from} AND key < ${to}`;
}

/** `oracle_x_3_7` is extra table 7 of writer 3, `oracle_ix_3_7` an index; null for any other name. */
export function parseExtraName(
  name: string,
): { readonly kind: "table" | "index"; readonly writer: number; readonly k: number } | null {
  const [, kind, writer, k] = /^oracle_(x|ix)_(\d+)_(\d+)$/.exec(name) ?? [];
  if (k === undefined) return null;
  return { kind: kind === "x" ? "table" : "index", writer: Number(writer), k: Number(k) };
}

export type Body = string | Uint8Array | null;

export interface Row {
  readonly table: string;
  readonly key: number;
  readonly seq: number;
  readonly tag: string;
  readonly body: Body;
}

/** The first 48 bits of SHA-1 over `<table>|<key>|<seq>|<tag>|<t, b or n>|` and the body. */
export function rowHash(row: Row): number {
  const kind = row.body === null ? "n" : typeof row.body === "string" ? "t" : "b";
  const hasher = new Bun.CryptoHasher("sha1").update(`${row.table}|${row.key}|${row.seq}|${row.tag}|${kind}|`);
  if (row.body !== null) hasher.update(row.body);
  return first48Bits(hasher.digest());
}

/** The hash of an extra table or index as a part: that it exists. */
export function nameHash(name: string): number {
  return first48Bits(new Bun.CryptoHasher("sha1").update(`exists|${name}|`).digest());
}

export interface LogEntry {
  readonly n: number;
  readonly writer: number;
  readonly seq: number;
  readonly atMs: number;
  readonly parts: number;
  readonly digest: number;
}

export function linkHash(previousLink: number, entry: LogEntry): number {
  const { n, writer, seq, atMs, parts, digest } = entry;
  const text = `${previousLink}|${n}|${writer}|${seq}|${atMs}|${parts}|${digest}`;
  return first48Bits(new Bun.CryptoHasher("sha1").update(text).digest());
}

export function addToDigest(digest: number, hash: number): number {
  return (digest + hash) % MODULUS;
}

export function removeFromDigest(digest: number, hash: number): number {
  return (digest - hash + MODULUS) % MODULUS;
}

function first48Bits(bytes: Buffer): number {
  return bytes.readUIntBE(0, 6);
}
