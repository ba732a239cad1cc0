import { BakeliteError } from "../../util/errors.ts";
import { orAborted, throwIfAborted, untilAborted } from "../abort.ts";
import type { ByteSource } from "../backend.ts";
import type { SftpHandle, SftpSession } from "./session.ts";

/** What every server takes in one request, and every other client uses. */
const PIECE_BYTES = 32 * 1024;
/** So much of one body is on its way at a time: 1 MiB. */
const WRITES_AHEAD = 32;
/** So much of one stream is asked for before it is read: 1 MiB. */
const READS_AHEAD = 32;

/** Writes the whole body, several pieces on their way at a time, and gives its size. Rejects when it is not what it said. */
export async function writeBody(
  session: SftpSession,
  handle: SftpHandle,
  body: ByteSource,
  { subject, signal }: { readonly subject: string; readonly signal: AbortSignal | undefined },
): Promise<number> {
  const underWay = new Set<Promise<void>>();
  let failure: { readonly error: unknown } | null = null;
  let sizeBytes = 0;
  const send = async (piece: Uint8Array) => {
    // A copy when it is sent, so that a source may use its memory again.
    const writing = session.write(handle, sizeBytes, piece);
    sizeBytes += piece.byteLength;
    const settled: Promise<void> = writing
      .catch((error: unknown) => {
        failure ??= { error };
      })
      .then(() => void underWay.delete(settled));
    underWay.add(settled);
    while (underWay.size >= WRITES_AHEAD) await orAborted(Promise.race(underWay), signal);
    if (failure !== null) throw failure.error;
  };
  const joined = new Uint8Array(PIECE_BYTES);
  let joinedBytes = 0;
  try {
    for await (const piece of untilAborted(body.open(), signal)) {
      for (let offset = 0; offset < piece.byteLength; ) {
        const taken = Math.min(PIECE_BYTES - joinedBytes, piece.byteLength - offset);
        joined.set(piece.subarray(offset, offset + taken), joinedBytes);
        joinedBytes += taken;
        offset += taken;
        if (joinedBytes < PIECE_BYTES) continue;
        await send(joined.slice());
        joinedBytes = 0;
      }
      if (body.sizeBytes !== undefined && sizeBytes + joinedBytes > body.sizeBytes)
        throw wrongBodySize(body.sizeBytes, sizeBytes + joinedBytes, subject);
    }
    if (joinedBytes > 0) await send(joined.slice(0, joinedBytes));
    await orAborted(Promise.all(underWay), signal);
    if (failure !== null) throw (failure as { readonly error: unknown }).error;
  } finally {
    // Nothing of it may still be written when the file is removed, unless the reason is that nobody answers.
    if (!signal?.aborted) await Promise.all(underWay);
  }
  if (body.sizeBytes !== undefined && body.sizeBytes !== sizeBytes)
    throw wrongBodySize(body.sizeBytes, sizeBytes, subject);
  return sizeBytes;
}

function wrongBodySize(expectedBytes: number, actualBytes: number, subject: string): BakeliteError {
  return new BakeliteError(
    "io",
    `cannot store the object: its source gave ${actualBytes} bytes, not ${expectedBytes}`,
    {
      subject,
      hint: "try again; if it comes back, check where the bytes are copied from with `bakelite verify`",
    },
  );
}

/** The bytes from `start` to `end` of an open file. Throws `io` when the file ends before. */
export async function* readPieces(
  session: SftpSession,
  handle: SftpHandle,
  {
    start,
    end,
    subject,
    signal,
  }: {
    readonly start: number;
    readonly end: number;
    readonly subject: string;
    readonly signal: AbortSignal | undefined;
  },
): AsyncGenerator<Uint8Array, void> {
  const ahead: Promise<readonly Uint8Array[]>[] = [];
  let asked = start;
  try {
    for (let offset = start; offset < end; ) {
      throwIfAborted(signal);
      while (asked < end && ahead.length < READS_AHEAD) {
        const lengthBytes = Math.min(PIECE_BYTES, end - asked);
        const reading = readFully(session, handle, { offset: asked, lengthBytes, subject });
        // Whoever stops before has no use for the rest, nor for its failure.
        reading.catch(() => {});
        ahead.push(reading);
        asked += lengthBytes;
      }
      const next = ahead.shift();
      if (next === undefined) return;
      for (const piece of await orAborted(next, signal)) {
        offset += piece.byteLength;
        yield piece;
      }
    }
  } finally {
    ahead.length = 0;
  }
}

/** A server may give less than it was asked for, and then it is asked for the rest. */
async function readFully(
  session: SftpSession,
  handle: SftpHandle,
  { offset, lengthBytes, subject }: { readonly offset: number; readonly lengthBytes: number; readonly subject: string },
): Promise<readonly Uint8Array[]> {
  const pieces: Uint8Array[] = [];
  for (let got = 0; got < lengthBytes; ) {
    const piece = await session.read(handle, offset + got, lengthBytes - got);
    if (piece === null)
      throw new BakeliteError("io", "cannot read the object: the file became shorter while it was read", {
        subject,
        hint: "let nothing but bakelite write to the backup directory, and run `bakelite verify`",
      });
    got += piece.byteLength;
    pieces.push(piece);
  }
  return pieces;
}
