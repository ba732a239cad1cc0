import { orAborted } from "../../src/storage/abort.ts";
import type {
  Backend,
  BackendCapabilities,
  ByteSource,
  ByteStream,
  CallOptions,
  GetOptions,
  ListOptions,
  PutOptions,
  StoredObject,
} from "../../src/storage/backend.ts";
import { BakeliteError } from "../../src/util/errors.ts";
import { withDeadline } from "../support/eventually.ts";

/**
 * Where a put stops: before anything happened; with a first part of its body read (256 KiB or so, and what the encoder reads
 * ahead); when the whole body was read and nothing is stored; or when the object is stored and nobody was told.
 */
export type StopAt = "before" | "midway" | "read" | "stored";

/** A destination that does not answer for once. */
export function unreachable(): BakeliteError {
  return new BakeliteError("storage-unreachable", "no answer, says the test");
}

/** One put that waits until the test lets it go on. */
export class Gate {
  readonly #reached = Promise.withResolvers<string>();
  readonly #passed = Promise.withResolvers<void>();
  readonly at: StopAt;
  readonly matches: (key: string) => boolean;
  isUsed = false;

  constructor(at: StopAt, matches: (key: string) => boolean) {
    this.at = at;
    this.matches = matches;
    this.#passed.promise.catch(() => {});
  }

  /** Resolves with the key when a put has come to this gate. */
  async reached(explain: () => string = () => ""): Promise<string> {
    return await withDeadline(this.#reached.promise, { what: `a put to stop at the gate "${this.at}"`, explain });
  }

  open(): void {
    this.#passed.resolve();
  }

  /** The put fails with this; at "stored" its answer is lost. */
  fail(error: Error): void {
    this.#passed.reject(error);
  }

  async wait(key: string, signal: AbortSignal | undefined): Promise<void> {
    this.#reached.resolve(key);
    await orAborted(this.#passed.promise, signal);
  }
}

/** A destination whose puts can be stopped at a chosen point, around another one. Remembers what was stored in which order. */
export class GatedBackend implements Backend {
  readonly inner: Backend;
  /** Keys in the order in which their puts were done, also those that replaced an object. */
  readonly stored: string[] = [];
  /** How often a listing was asked for. */
  listCount = 0;
  readonly #gates: Gate[] = [];

  constructor(inner: Backend) {
    this.inner = inner;
  }

  get location(): string {
    return this.inner.location;
  }

  get capabilities(): BackendCapabilities {
    return this.inner.capabilities;
  }

  /** The next put of a key that matches stops; others after it do not. */
  gate(at: StopAt, pattern: RegExp): Gate {
    const gate = new Gate(at, (key) => pattern.test(key));
    this.#gates.push(gate);
    return gate;
  }

  async put(key: string, body: ByteSource, options: PutOptions = {}): Promise<"stored" | "exists"> {
    const gate = this.#gates.find((candidate) => !candidate.isUsed && candidate.matches(key));
    if (gate !== undefined) gate.isUsed = true;
    const { signal } = options;
    if (gate?.at === "before") await gate.wait(key, signal);
    const outcome = await this.inner.put(key, this.#watched(body, gate, key, signal), options);
    if (outcome === "stored") this.stored.push(key);
    if (gate?.at === "stored") await gate.wait(key, signal);
    return outcome;
  }

  async get(key: string, options?: GetOptions): Promise<ByteStream | null> {
    return await this.inner.get(key, options);
  }

  async stat(key: string, options?: CallOptions): Promise<StoredObject | null> {
    return await this.inner.stat(key, options);
  }

  list(prefix: string, options?: ListOptions): AsyncIterable<StoredObject> {
    this.listCount++;
    return this.inner.list(prefix, options);
  }

  async delete(keys: readonly string[], options?: CallOptions): Promise<void> {
    await this.inner.delete(keys, options);
  }

  #watched(body: ByteSource, gate: Gate | undefined, key: string, signal: AbortSignal | undefined): ByteSource {
    if (gate === undefined) return body;
    return {
      ...body,
      async *open() {
        let readBytes = 0;
        let hasStopped = false;
        for await (const piece of body.open()) {
          readBytes += piece.byteLength;
          yield piece;
          // The header alone is less; behind the first pages the encoder is at work on those that come next.
          if (gate.at !== "midway" || hasStopped || readBytes < MIDWAY_BYTES) continue;
          hasStopped = true;
          await gate.wait(key, signal);
        }
        if (gate.at === "read") await gate.wait(key, signal);
      },
    };
  }
}

const MIDWAY_BYTES = 64 * 1024;
