import type { Backend, ByteSource } from "../storage/backend.ts";
import { BakeliteError } from "../util/errors.ts";
import { StoredHash } from "./stored-hash.ts";

export interface Original {
  readonly key: string;
  readonly sizeBytes: number;
  /** The footer's SHA-256 that its bytes must have, 64 hex digits; null: whichever its own footer says. */
  readonly sha256: string | null;
  /** Hears of the bytes that pass through the memory. */
  readonly onBytes?: (bytes: number) => void;
}

/**
 * The bytes of a stored object, which can be read again. The last piece is held back until all of them have matched the SHA-256:
 * a put of anything else ends in an error, and leaves nothing. Needs no key.
 */
export class GuardedCopy implements ByteSource {
  readonly sizeBytes: number;
  readonly replayable = true;
  /** What is wrong with the source, as against whoever takes its bytes; null: nothing. */
  failure: BakeliteError | null = null;
  /** The footer's SHA-256 of what was read last, 64 hex digits; null before it was read to its end. */
  sha256: string | null = null;
  readonly #origin: Backend;
  readonly #original: Original;
  readonly #signal: AbortSignal | undefined;

  constructor(origin: Backend, original: Original, signal: AbortSignal | undefined) {
    this.sizeBytes = original.sizeBytes;
    this.#origin = origin;
    this.#original = original;
    this.#signal = signal;
  }

  async readWhole(): Promise<Uint8Array> {
    return Buffer.concat(await Array.fromAsync(this.open()));
  }

  async *open(): AsyncGenerator<Uint8Array, void> {
    this.failure = null;
    const hash = new StoredHash();
    let held: Uint8Array | null = null;
    for await (const piece of this.#read()) {
      hash.add(piece);
      this.#original.onBytes?.(piece.length);
      if (held !== null) yield held;
      held = piece;
    }
    const found = hash.finish();
    if (found === null || (this.#original.sha256 ?? found) !== found) throw this.#fail(this.#mismatch(found));
    this.sha256 = found;
    if (held !== null) yield held;
  }

  async *#read(): AsyncGenerator<Uint8Array, void> {
    try {
      const call = this.#signal === undefined ? {} : { signal: this.#signal };
      const stream = await this.#origin.get(this.#original.key, call);
      if (stream === null)
        throw new BakeliteError("replica-missing", "the object that was to be copied is no longer there", {
          subject: this.#subject,
          hint: "run the command again",
        });
      yield* stream;
    } catch (error) {
      if (!(error instanceof BakeliteError) || error.code === "interrupted" || error.code === "internal") throw error;
      throw this.#fail(error);
    }
  }

  #mismatch(found: string | null): BakeliteError {
    const subject = this.#subject;
    if (this.#original.sha256 === null || found === null)
      return new BakeliteError("replica-corrupt", "the object that was to be copied does not match its SHA-256", {
        subject,
        hint: "run `bakelite repair`: another destination may have a sound copy",
      });
    return new BakeliteError("replica-corrupt", "the object that was to be copied has changed since it was read", {
      subject,
      hint: "run the command again; if it comes back, run `bakelite verify`",
    });
  }

  get #subject(): string {
    return `${this.#origin.location}/${this.#original.key}`;
  }

  #fail(error: BakeliteError): BakeliteError {
    this.failure = error;
    return error;
  }
}
