import { isPageSize } from "./wal.ts";

export const DATABASE_HEADER_BYTES = 100;
/** SQLite's lock bytes start here; the page that contains them is never used (sqlite.org/fileformat2.html section 1.4). */
export const PENDING_BYTE = 0x40000000;

export interface DatabaseHeader {
  readonly pageSizeBytes: number;
  /** Both file format version numbers are 2. Source: sqlite.org/fileformat2.html section 1.3.3. */
  readonly isWal: boolean;
  /** The in-header database size, or null where it is not valid (section 1.3.7). */
  readonly sizePages: number | null;
}

export type DatabaseHeaderCheck =
  | { readonly kind: "sqlite"; readonly header: DatabaseHeader }
  | { readonly kind: "empty" }
  | { readonly kind: "not-sqlite" };

const MAGIC = new TextEncoder().encode("SQLite format 3\0");

/**
 * Decodes the first 100 bytes of a database file. `bytes` may be shorter: no bytes at all are an empty database that
 * no one has written to, anything else without the magic text is not a SQLite database.
 * Source: sqlite.org/fileformat2.html section 1.3.
 */
export function parseDatabaseHeader(bytes: Uint8Array): DatabaseHeaderCheck {
  if (bytes.byteLength === 0) return { kind: "empty" };
  if (bytes.byteLength < DATABASE_HEADER_BYTES || !MAGIC.every((byte, i) => bytes[i] === byte)) {
    return { kind: "not-sqlite" };
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset, DATABASE_HEADER_BYTES);
  const rawPageSize = view.getUint16(16);
  const pageSizeBytes = rawPageSize === 1 ? 65_536 : rawPageSize;
  if (!isPageSize(pageSizeBytes)) return { kind: "not-sqlite" };
  const sizePages = view.getUint32(28);
  const sizeIsValid = sizePages !== 0 && view.getUint32(24) === view.getUint32(92);
  return {
    kind: "sqlite",
    header: {
      pageSizeBytes,
      isWal: view.getUint8(18) === 2 && view.getUint8(19) === 2,
      sizePages: sizeIsValid ? sizePages : null,
    },
  };
}
