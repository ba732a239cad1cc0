import type { RangeSource } from "../format/decode.ts";
import { assert, BakeliteError } from "../util/errors.ts";
import type { Backend, CallOptions } from "./backend.ts";

/**
 * The object `key`, whose size the caller knows from a listing. `read` throws `replica-missing` when the object is gone and
 * `replica-corrupt` when it gives fewer or more bytes than the range holds, so when it is shorter than listed.
 */
export function backendRangeSource(
  backend: Backend,
  key: string,
  sizeBytes: number,
  options: CallOptions = {},
): RangeSource {
  const subject = `${backend.location}/${key}`;
  return {
    sizeBytes,
    async read(start, end) {
      assert(0 <= start && start <= end && end <= sizeBytes, `range ${start}-${end} lies inside ${subject}`);
      if (start === end) return new Uint8Array(0);
      const stream = await backend.get(key, { ...options, range: { start, end } });
      if (stream === null)
        throw new BakeliteError("replica-missing", "cannot read the object: it is no longer there", {
          subject,
          hint: "run the command again; if it comes back, run `bakelite verify` to see what is missing",
        });
      const bytes = await collect(stream, end - start);
      if (bytes.byteLength === end - start) return bytes;
      throw new BakeliteError("replica-corrupt", `cannot read the object: bytes ${start} to ${end} are not all there`, {
        subject,
        hint: "run `bakelite repair` if another destination is configured, else restore to an earlier --timestamp",
      });
    },
  };
}

/**
 * The stream's bytes in one array, which are more than `limitBytes` when it gives more; reads at most one piece further than that. One
 * piece is not copied, and several never stand in memory beside the array.
 */
async function collect(stream: AsyncIterable<Uint8Array>, limitBytes: number): Promise<Uint8Array> {
  let bytes: Uint8Array | null = null;
  let sizeBytes = 0;
  for await (const piece of stream) {
    const first = bytes === null && piece.byteLength >= limitBytes;
    if (first) bytes = piece;
    bytes ??= new Uint8Array(limitBytes);
    if (sizeBytes + piece.byteLength > limitBytes) return Buffer.concat([bytes.subarray(0, sizeBytes), piece]);
    if (!first) bytes.set(piece, sizeBytes);
    sizeBytes += piece.byteLength;
  }
  return bytes?.subarray(0, sizeBytes) ?? new Uint8Array(0);
}
