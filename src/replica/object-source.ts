import type { RangeSource } from "../format/decode.ts";
import type { Backend } from "../storage/backend.ts";
import { backendRangeSource } from "../storage/range-source.ts";
import { BakeliteError } from "../util/errors.ts";

/**
 * Ranged reads of one stored object. Bytes that were fetched ahead are served from memory; a window stays until it is
 * released, so whoever fetches ahead bounds the memory. Throws what `backendRangeSource` throws.
 */
export class ObjectSource implements RangeSource {
  readonly sizeBytes: number;
  readonly #stored: RangeSource;
  #windows: Window[] = [];
  readonly #onFetched: (bytes: number) => void;
  #gone = false;

  /** `onFetched` hears of the bytes that come from the destination. */
  constructor(
    backend: Backend,
    object: { readonly key: string; readonly sizeBytes: number },
    signal: AbortSignal | undefined,
    onFetched: (bytes: number) => void = () => {},
  ) {
    this.#onFetched = onFetched;
    this.sizeBytes = object.sizeBytes;
    this.#stored = backendRangeSource(backend, object.key, object.sizeBytes, signal === undefined ? {} : { signal });
  }

  /** The destination has said that there is no such object. */
  get gone(): boolean {
    return this.#gone;
  }

  async read(start: number, end: number): Promise<Uint8Array> {
    for (const window of this.#windows)
      if (window.start <= start && end <= window.start + window.bytes.length)
        return window.bytes.subarray(start - window.start, end - window.start);
    return this.#fetch(start, end);
  }

  /** Fetches the half-open range in one request and keeps it. */
  async fetchAhead(start: number, end: number): Promise<void> {
    const bytes = await this.#fetch(start, end);
    // Not in one expression: the list may be another one after the await.
    this.#windows.push({ start, bytes });
  }

  /** Keeps `bytes` as those that stand at `start`. */
  keep(start: number, bytes: Uint8Array): void {
    this.#windows.push({ start, bytes });
  }

  /** The whole object if one window holds it, else null. */
  get whole(): Uint8Array | null {
    return this.#windows.find((window) => window.start === 0 && window.bytes.length === this.sizeBytes)?.bytes ?? null;
  }

  /** Forgets the windows that lie within the half-open range. */
  release(start: number, end: number): void {
    this.#windows = this.#windows.filter((window) => window.start < start || window.start + window.bytes.length > end);
  }

  async #fetch(start: number, end: number): Promise<Uint8Array> {
    try {
      const bytes = await this.#stored.read(start, end);
      this.#onFetched(bytes.length);
      return bytes;
    } catch (error) {
      this.#gone ||= error instanceof BakeliteError && error.code === "replica-missing";
      throw error;
    }
  }
}

interface Window {
  readonly start: number;
  readonly bytes: Uint8Array;
}
