import type { Database } from "bun:sqlite";

/** A row's values in the order of its columns. */
export type Row = readonly (string | number | null)[];

/** What the shop of `npm run demo` had after one of its commits. */
export interface Content {
  readonly commit: number;
  readonly atMs: number;
  /** Taken until then. */
  readonly orders: number;
  /** Over all rows of all tables, in any order: the XOR of their hashes, 64 hex digits. */
  readonly digest: string;
}

export function rowHash(table: string, row: Row): Uint8Array {
  return new Bun.CryptoHasher("sha256").update(JSON.stringify([table, ...row])).digest();
}

/** Adding a row and taking it away are the same. */
export function xorInto(digest: Uint8Array, hash: Uint8Array): void {
  for (let i = 0; i < digest.length; i++) digest[i] = (digest[i] ?? 0) ^ (hash[i] ?? 0);
}

/** The digest of everything in the database, read row by row, and how many rows that are. */
export function contentDigest(db: Database): { readonly digest: Uint8Array; readonly rows: number } {
  const digest = new Uint8Array(32);
  let rows = 0;
  const tables = db.query<{ name: string }, []>("SELECT name FROM sqlite_schema WHERE type = 'table'").all();
  for (const { name } of tables) {
    for (const row of db.query(`SELECT * FROM ${name}`).values() as Row[]) {
      xorInto(digest, rowHash(name, row));
      rows++;
    }
  }
  return { digest, rows };
}
