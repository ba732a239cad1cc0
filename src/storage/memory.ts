import { BakeliteError } from "../util/errors.ts";
import { throwIfAborted, untilAborted } from "./abort.ts";
import {
  type Backend,
  type BackendCapabilities,
  type ByteSource,
  type ByteStream,
  type CallOptions,
  type GetOptions,
  type ListOptions,
  type PutOptions,
  resolveRange,
  type StoredObject,
} from "./backend.ts";
import { assertKeyPrefix, assertObjectKey, compareKeys, sortKeys } from "./object-key.ts";

const PIECE_BYTES = 256 * 1024;

interface MemoryObject {
  readonly bytes: Uint8Array;
  readonly modifiedMs: number;
}

export interface MemoryBackendOptions {
  /** The destination's clock. */
  readonly nowMs?: () => number;
  readonly location?: string;
}

/** A destination that lasts as long as the process: for tests, and as the smallest complete example of a Backend. */
export class MemoryBackend implements Backend {
  readonly location: string;
  readonly capabilities: BackendCapabilities = { putIfAbsent: true };
  readonly #objects = new Map<string, MemoryObject>();
  readonly #nowMs: () => number;

  constructor(options: MemoryBackendOptions = {}) {
    this.location = options.location ?? "memory:";
    this.#nowMs = options.nowMs ?? Date.now;
  }

  async put(key: string, body: ByteSource, options: PutOptions = {}): Promise<"stored" | "exists"> {
    assertObjectKey(key);
    throwIfAborted(options.signal);
    const pieces: Uint8Array[] = [];
    for await (const piece of untilAborted(body.open(), options.signal)) pieces.push(piece.slice());
    const bytes = Buffer.concat(pieces);
    if (body.sizeBytes !== undefined && body.sizeBytes !== bytes.byteLength)
      throw new BakeliteError(
        "io",
        `cannot store the object: its source gave ${bytes.byteLength} bytes, not ${body.sizeBytes}`,
        {
          subject: `${this.location}/${key}`,
        },
      );
    throwIfAborted(options.signal);
    if (options.ifAbsent === true && this.#objects.has(key)) return "exists";
    this.#objects.set(key, { bytes, modifiedMs: this.#nowMs() });
    return "stored";
  }

  async get(key: string, options: GetOptions = {}): Promise<ByteStream | null> {
    assertObjectKey(key);
    throwIfAborted(options.signal);
    const object = this.#objects.get(key);
    if (object === undefined) return null;
    const { start, end } = resolveRange(options.range, object.bytes.byteLength);
    return piecesOf(object.bytes.subarray(start, end), options.signal);
  }

  async stat(key: string, options: CallOptions = {}): Promise<StoredObject | null> {
    assertObjectKey(key);
    throwIfAborted(options.signal);
    const object = this.#objects.get(key);
    return object === undefined ? null : describe(key, object);
  }

  async *list(prefix: string, options: ListOptions = {}): AsyncGenerator<StoredObject, void> {
    assertKeyPrefix(prefix);
    throwIfAborted(options.signal);
    const after = options.startAfter ?? "";
    const keys = [...this.#objects.keys()].filter((key) => key.startsWith(prefix) && compareKeys(key, after) > 0);
    for (const key of sortKeys(keys)) {
      throwIfAborted(options.signal);
      const object = this.#objects.get(key);
      if (object !== undefined) yield describe(key, object);
    }
  }

  async delete(keys: readonly string[], options: CallOptions = {}): Promise<void> {
    for (const key of keys) assertObjectKey(key);
    throwIfAborted(options.signal);
    for (const key of keys) this.#objects.delete(key);
  }
}

/** Copies, since what is yielded belongs to the reader. */
async function* piecesOf(bytes: Uint8Array, signal: AbortSignal | undefined): AsyncGenerator<Uint8Array, void> {
  for (let offset = 0; offset < bytes.byteLength; offset += PIECE_BYTES) {
    throwIfAborted(signal);
    yield Uint8Array.from(bytes.subarray(offset, offset + PIECE_BYTES));
  }
}

function describe(key: string, object: MemoryObject): StoredObject {
  return { key, sizeBytes: object.bytes.byteLength, modifiedMs: object.modifiedMs };
}
