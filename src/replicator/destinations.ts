import { footerSha256 } from "../format/decode.ts";
import { encodeDocument } from "../format/encode.ts";
import type { ObjectHeader } from "../format/header.ts";
import { currentKey, type ObjectName, objectKey } from "../format/names.ts";
import { type Backend, type ByteSource, bytesSource } from "../storage/backend.ts";
import { BakeliteError } from "../util/errors.ts";

/** One lock-step destination of a database. */
export interface Destination {
  readonly backend: Backend;
  /** `file`, `s3` …, for people. */
  readonly type: string;
}

/** An encoded object that can be stored again and again, because its bytes are kept or it is written to one place only. */
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

const FOOTER_BYTES = 72;

/**
 * Stores objects at every lock-step destination of one database. An object counts as stored when all have it, so each
 * destination alone holds a chain without gaps.
 */
export class Destinations {
  readonly #database: string;
  readonly #all: readonly Destination[];

  constructor(database: string, all: readonly Destination[]) {
    this.#database = database;
    this.#all = all;
  }

  get all(): readonly Destination[] {
    return this.#all;
  }

  get backends(): readonly Backend[] {
    return this.#all.map((destination) => destination.backend);
  }

  /**
   * Puts the object under its name, which nobody may have taken. A streamed body goes to the first destination and is copied
   * from there, since it is never encoded twice. Throws `replica-foreign` when another writer has that name with other bytes.
   *
   * After a failure call it again with the same object, unless that is a stream that was not sent to its end
   * (`footerSha256` is null). One that was may be stored although the answer was lost, so then the destination is asked.
   * "lost": it does not have it, and the object must be encoded anew.
   */
  async store(object: EncodedObject, signal: AbortSignal): Promise<"stored" | "lost"> {
    const key = objectKey(this.#database, object.name);
    const [first, ...others] = this.#all;
    if (first === undefined) throw new BakeliteError("internal", "a database has at least one destination");
    if (object.source.replayable) {
      await Promise.all(this.#all.map(({ backend }) => this.#put(backend, key, object.source, object, signal)));
      return "stored";
    }
    if (object.footerSha256() === null) await this.#put(first.backend, key, object.source, object, signal);
    else if (!(await holds(first.backend, key, object, signal))) return "lost";
    for (const { backend } of others) {
      await this.#put(backend, key, storedSource(first.backend, key, signal), object, signal);
    }
    return "stored";
  }

  /**
   * Where a destination cannot refuse a taken name in one step (it looks and then stores), another writer may have stored
   * over our object, or we over theirs: throws `replica-foreign` unless these very bytes are there. Costs nothing elsewhere.
   */
  async confirm({ name, footerSha256: ours }: StoredBytes, signal: AbortSignal): Promise<void> {
    const key = objectKey(this.#database, name);
    for (const { backend } of this.#all) {
      if (backend.capabilities.putIfAbsent) continue;
      if (!sameBytes(ours, await storedFooterSha256(backend, key, signal))) {
        throw anotherWriter(`${backend.location}/${key}`);
      }
    }
  }

  /** Rewrites `CURRENT` everywhere. */
  async storeCurrent(
    header: ObjectHeader,
    sealing: { readonly sealKey: Uint8Array | null; readonly compressionLevel: number },
    fields: Record<string, unknown>,
    signal: AbortSignal,
  ): Promise<void> {
    const bytes = await encodeDocument({ header, ...sealing }, fields);
    for (const { backend } of this.#all) await backend.put(currentKey(this.#database), bytesSource(bytes), { signal });
  }

  async #put(
    backend: Backend,
    key: string,
    source: ByteSource,
    object: EncodedObject,
    signal: AbortSignal,
  ): Promise<void> {
    const longLived = object.name.kind === "full";
    const outcome = await backend.put(key, source, { ifAbsent: true, longLived, signal });
    if (outcome === "stored") return;
    // The name is taken: by our own first try, whose answer was lost, or by somebody else.
    if (!(await holds(backend, key, object, signal))) throw anotherWriter(`${backend.location}/${key}`);
  }
}

/** A destination does not do what it should; the database is not at fault, and following it goes on. */
export function isDestinationFailure(error: unknown): boolean {
  if (!(error instanceof BakeliteError)) return false;
  return error.code === "storage-unreachable" || error.code === "storage-denied" || error.code === "storage-full";
}

export function anotherWriter(subject: string): BakeliteError {
  return new BakeliteError("replica-foreign", "another bakelite writes to this replica", {
    subject,
    hint: "stop the other daemon, or give this database another name; `bakelite daemon --take-over` goes on from what it stored",
  });
}

/** Whether the very bytes of `object` are stored there. */
async function holds(backend: Backend, key: string, object: EncodedObject, signal: AbortSignal): Promise<boolean> {
  return sameBytes(object.footerSha256(), await storedFooterSha256(backend, key, signal));
}

function sameBytes(ours: Uint8Array | null, theirs: Uint8Array | null): boolean {
  return ours !== null && theirs !== null && Buffer.compare(ours, theirs) === 0;
}

/** The footer's SHA-256 of a stored object, or null when it is gone or too short to have one. */
async function storedFooterSha256(backend: Backend, key: string, signal: AbortSignal): Promise<Uint8Array | null> {
  const stream = await backend.get(key, { range: { start: -FOOTER_BYTES }, signal });
  if (stream === null) return null;
  const tail = Buffer.concat(await Array.fromAsync(stream));
  return tail.byteLength === FOOTER_BYTES ? footerSha256(tail, key) : null;
}

function storedSource(backend: Backend, key: string, signal: AbortSignal): ByteSource {
  return {
    sizeBytes: undefined,
    replayable: true,
    async *open() {
      const stream = await backend.get(key, { signal });
      if (stream === null)
        throw new BakeliteError("replica-missing", "an object vanished while it was copied", { subject: key });
      yield* stream;
    },
  };
}

/** Keeps the bytes of a small object. */
export async function keepEncoded(name: ObjectName, pieces: AsyncIterable<Uint8Array>): Promise<EncodedObject> {
  const bytes = Buffer.concat(await Array.fromAsync(pieces));
  const sha256 = footerSha256(bytes, "object");
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
