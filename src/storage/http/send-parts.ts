import { BakeliteError } from "../../util/errors.ts";
import { abortError, orAborted, throwIfAborted, untilAborted } from "../abort.ts";
import type { ByteSource } from "../backend.ts";
import { longLivedPartBudget, type Part, PartReader, partBudget } from "./part-buffer.ts";

export interface PutBodyOptions {
  readonly longLived: boolean;
  readonly signal: AbortSignal | undefined;
  /** For messages: the object. */
  readonly subject: string;
  /** Of a part, by its number from 1. A body of up to the first is sent as a whole. */
  readonly partSizeBytes: (number: number) => number;
}

/** How one service stores a body: all of it in one request, or in parts. */
export interface BodySink<T> {
  /** The bytes may be overwritten once this settles. */
  whole(bytes: Uint8Array): Promise<T>;
  /** Owns `first`, whatever becomes of it. Before it makes the object it calls `check`, which throws when bytes are missing. */
  parts(first: Part, reader: PartReader, check: () => void): Promise<T>;
}

/**
 * Reads a body with bounded memory and hands it to `sink`: one that fits into a part as a whole, any other part by part. Throws
 * `io` when the source gives more or fewer bytes than it said.
 */
export async function putBody<T>(body: ByteSource, options: PutBodyOptions, sink: BodySink<T>): Promise<T> {
  const { signal } = options;
  const { sizeBytes: bodyBytes } = body;
  const budget = options.longLived ? longLivedPartBudget : partBudget;
  const reader = new PartReader(untilAborted(body.open(), signal), { bodyBytes, signal, budget });
  const check = () => checkSize(bodyBytes, reader.readBytes, options.subject);
  try {
    const first = await orAborted(reader.next(options.partSizeBytes(1)), signal);
    if (first === null) {
      check();
      return await sink.whole(new Uint8Array(0));
    }
    let hasMore: boolean;
    try {
      hasMore = await reader.hasMore();
      if (!hasMore) check();
    } catch (error) {
      first[Symbol.dispose]();
      throw error;
    }
    if (hasMore) return await sink.parts(first, reader, check);
    using only = first;
    return await sink.whole(only.bytes);
  } catch (error) {
    throwIfAborted(signal);
    throw error;
  } finally {
    // Not awaited: a source that hangs answers only after what it hangs in.
    reader.close().catch(() => {});
  }
}

function checkSize(saidBytes: number | undefined, readBytes: number, subject: string): void {
  if (saidBytes === undefined || saidBytes === readBytes) return;
  throw new BakeliteError("io", `cannot store the object: its source gave ${readBytes} bytes, not ${saidBytes}`, {
    subject,
  });
}

export interface SendPartsOptions<T> {
  readonly concurrency: number;
  readonly signal: AbortSignal | undefined;
  readonly partSizeBytes: (number: number) => number;
  /** Sends one part and disposes of it, whatever becomes of it. Called in the order of the numbers, from 1. */
  readonly send: (part: Part, number: number, signal: AbortSignal) => Promise<T>;
}

/** Reads parts and sends up to `concurrency` of them at a time. Gives what `send` gave, in the order of the parts. */
export async function sendParts<T>(
  first: Part,
  reader: PartReader,
  options: SendPartsOptions<T>,
): Promise<readonly T[]> {
  const stop = new AbortController();
  const signal = options.signal === undefined ? stop.signal : AbortSignal.any([options.signal, stop.signal]);
  const sent: { readonly number: number; readonly given: T }[] = [];
  const running = new Set<Promise<void>>();
  const failed = Promise.withResolvers<never>();
  failed.promise.catch(() => {});
  const send = (part: Part, number: number): void => {
    const sending = options
      .send(part, number, signal)
      .then((given) => {
        sent.push({ number, given });
      })
      .catch(failed.reject)
      .finally(() => running.delete(sending));
    running.add(sending);
  };
  try {
    let part: Part | null = first;
    let partCount = 0;
    for (let number = 1; part !== null; number++) {
      send(part, number);
      partCount = number;
      if (running.size >= options.concurrency) await Promise.race([...running, failed.promise]);
      const reading = reader.next(options.partSizeBytes(number + 1));
      // A part that fails must not wait for a source that gives nothing.
      part = await Promise.race([reading, failed.promise]).catch((error: unknown) => {
        reading.then((late) => late?.[Symbol.dispose]()).catch(() => {});
        throw error;
      });
    }
    await Promise.all(running);
    // Where one failed there are fewer, and `failed` is settled.
    if (sent.length < partCount) await failed.promise;
  } catch (error) {
    stop.abort();
    await Promise.allSettled(running);
    throw options.signal?.aborted ? abortError(options.signal) : error;
  }
  return sent.sort((a, b) => a.number - b.number).map(({ given }) => given);
}
