import { assert } from "../util/errors.ts";

/** A page hash is SHA-256 cut to this many bytes; a state digest has as many. docs/storage-format.md sections 3.2 and 6. */
export const PAGE_HASH_BYTES = 16;

const LOCK_BYTE_OFFSET = 2 ** 30;

/** Page that SQLite never uses because its locks lie there. Source: https://sqlite.org/fileformat2.html section 1.3. */
export function lockPageNumber(pageSizeBytes: number): number {
  return LOCK_BYTE_OFFSET / pageSizeBytes + 1;
}

// One hasher and its buffers for the life of the process: to create them anew for each page takes as long as a small
// page's hash. `digest` resets the hasher, and insists on room for the longest hash there is.
const hasher = new Bun.CryptoHasher("sha256");
const digestBuffer = new Uint8Array(64);
const numberBuffer = new Uint8Array(4);
const numberView = new DataView(numberBuffer.buffer);

/**
 * The page hash: SHA-256(u32 page number ‖ image), cut to 16 bytes, written into `out` at `outOffset` (new memory by
 * default). Returns `out`. docs/storage-format.md section 3.2.
 */
export function hashPage(
  pageNumber: number,
  image: Uint8Array,
  out: Uint8Array = new Uint8Array(PAGE_HASH_BYTES),
  outOffset = 0,
): Uint8Array {
  assert(outOffset + PAGE_HASH_BYTES <= out.length, "a page hash has room where it is written");
  numberView.setUint32(0, pageNumber);
  hasher.update(numberBuffer);
  hasher.update(image);
  hasher.digest(digestBuffer);
  for (let i = 0; i < PAGE_HASH_BYTES; i++) out[outOffset + i] = digestBuffer[i] ?? 0;
  return out;
}

/**
 * Puts a page hash into a state digest, or takes it out again: XORs the 16 bytes of `hash` at `offset` into `into`.
 * docs/storage-format.md section 6.
 */
export function xorDigest(into: Uint8Array, hash: Uint8Array, offset = 0): void {
  for (let i = 0; i < PAGE_HASH_BYTES; i++) into[i] = (into[i] ?? 0) ^ (hash[offset + i] ?? 0);
}
