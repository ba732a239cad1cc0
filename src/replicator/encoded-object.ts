import { footerSha256 } from "../format/decode.ts";
import type { ObjectName } from "../format/names.ts";
import { type ByteSource, bytesSource } from "../storage/backend.ts";

/** An encoded object that can be stored again and again, because its bytes are kept, or that is read once for all destinations. */
export interface EncodedObject {
  readonly name: ObjectName;
  readonly source: ByteSource;
  /** SHA-256 in the footer; known once the source was read to its end. */
  footerSha256(): Uint8Array | null;
  /** Bytes that the source gave, once read to its end. */
  sizeBytes(): number;
}

/** What tells an object that was stored from every other one of its name. */
export interface StoredBytes {
  readonly name: ObjectName;
  readonly footerSha256: Uint8Array;
}

export const FOOTER_BYTES = 72;

/** Keeps the bytes of a small object. */
export async function keepEncoded(name: ObjectName, pieces: AsyncIterable<Uint8Array>): Promise<EncodedObject> {
  const bytes = Buffer.concat(await Array.fromAsync(pieces));
  // A copy: whoever remembers what was stored would keep all of the object with a view.
  const sha256 = new Uint8Array(footerSha256(bytes, "object"));
  return { name, source: bytesSource(bytes), footerSha256: () => sha256, sizeBytes: () => bytes.byteLength };
}

/** Streams a large object; only its last bytes are remembered. */
export function streamEncoded(name: ObjectName, pieces: () => AsyncIterable<Uint8Array>): EncodedObject {
  let sizeBytes = 0;
  let tail = Buffer.alloc(0);
  let ended = false;
  return {
    name,
    source: {
      sizeBytes: undefined,
      replayable: false,
      async *open() {
        for await (const piece of pieces()) {
          sizeBytes += piece.byteLength;
          tail = Buffer.concat([tail, piece.subarray(-FOOTER_BYTES)]).subarray(-FOOTER_BYTES);
          yield piece;
        }
        ended = true;
      },
    },
    footerSha256: () => (ended ? footerSha256(tail, "object") : null),
    sizeBytes: () => sizeBytes,
  };
}
