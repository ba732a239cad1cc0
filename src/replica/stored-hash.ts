import { FOOTER_BYTES, FOOTER_HASHED_BYTES } from "../format/chunk.ts";

/**
 * Takes an object's bytes in order, and tells whether they match the SHA-256 in the footer with which they end
 * (docs/storage-format.md section 3.3). It needs no key, and keeps nothing but the last 72 bytes.
 */
export class StoredHash {
  readonly #hash = new Bun.CryptoHasher("sha256");
  #tail: Uint8Array = new Uint8Array(0);

  add(piece: Uint8Array): void {
    const held = piece.length >= FOOTER_BYTES ? piece : Buffer.concat([this.#tail, piece]);
    if (held === piece) this.#hash.update(this.#tail);
    const end = Math.max(0, held.length - FOOTER_BYTES);
    this.#hash.update(held.subarray(0, end));
    // A copy: the piece belongs to the reader, who may use its memory again.
    this.#tail = held.slice(end);
  }

  /** The SHA-256 in 64 hex digits if the bytes match it, else null. To be called once, after the last byte. */
  finish(): string | null {
    if (this.#tail.length < FOOTER_BYTES) return null;
    const actual = this.#hash.update(this.#tail.subarray(0, FOOTER_HASHED_BYTES)).digest("hex");
    const stated = Buffer.from(this.#tail.subarray(FOOTER_HASHED_BYTES, FOOTER_HASHED_BYTES + 32)).toString("hex");
    return actual === stated ? actual : null;
  }
}
