import { TokenBucket } from "../util/token-bucket.ts";
import { orAborted } from "./abort.ts";
import type {
  Backend,
  BackendCapabilities,
  ByteSource,
  ByteStream,
  CallOptions,
  Diagnosis,
  GetOptions,
  ListOptions,
  PutOptions,
  StoredObject,
  UnlistedStorage,
} from "./backend.ts";

/** What passes to and from one place, for all who use it in this process. */
export interface RateLimits {
  readonly upload: TokenBucket;
  readonly download: TokenBucket;
}

export interface Rates {
  /** 0: no limit. */
  readonly uploadBytesPerSecond: number;
  /** 0: no limit. */
  readonly downloadBytesPerSecond: number;
}

const places = new Map<string, RateLimits>();

/** The limits of this process for `place`, which everybody who stores there shares; without limits until somebody sets some. */
export function rateLimitsOf(place: string): RateLimits {
  const known = places.get(place) ?? { upload: new TokenBucket(0), download: new TokenBucket(0) };
  places.set(place, known);
  return known;
}

/** Counts at once, also for what is under way. */
export function setRates(limits: RateLimits, rates: Rates): void {
  limits.upload.setRate(rates.uploadBytesPerSecond);
  limits.download.setRate(rates.downloadBytesPerSecond);
}

/**
 * Lets the bytes of bodies and of streams pass no faster than `limits` allow. Requests without a body, such as listings,
 * are not counted, nor is what a backend sends again by itself after a failure.
 */
export function withRateLimit(backend: Backend, limits: RateLimits): Backend {
  return new RateLimitedBackend(backend, limits);
}

class RateLimitedBackend implements Backend {
  readonly #inner: Backend;
  readonly #limits: RateLimits;

  constructor(inner: Backend, limits: RateLimits) {
    this.#inner = inner;
    this.#limits = limits;
  }

  get location(): string {
    return this.#inner.location;
  }

  get capabilities(): BackendCapabilities {
    return this.#inner.capabilities;
  }

  get unlisted(): UnlistedStorage | undefined {
    return this.#inner.unlisted;
  }

  async diagnose(options: CallOptions = {}): Promise<readonly Diagnosis[]> {
    return (await this.#inner.diagnose?.(options)) ?? [];
  }

  async put(key: string, body: ByteSource, options: PutOptions = {}): Promise<"stored" | "exists"> {
    const { sizeBytes, replayable } = body;
    const open = () => limited(body.open(), this.#limits.upload, options.signal);
    return await this.#inner.put(key, { sizeBytes, replayable, open }, options);
  }

  async get(key: string, options: GetOptions = {}): Promise<ByteStream | null> {
    const stream = await this.#inner.get(key, options);
    return stream === null ? null : limited(stream, this.#limits.download, options.signal);
  }

  stat(key: string, options?: CallOptions): Promise<StoredObject | null> {
    return this.#inner.stat(key, options);
  }

  list(prefix: string, options?: ListOptions): AsyncIterable<StoredObject> {
    return this.#inner.list(prefix, options);
  }

  delete(keys: readonly string[], options?: CallOptions): Promise<void> {
    return this.#inner.delete(keys, options);
  }
}

async function* limited(
  pieces: AsyncIterable<Uint8Array>,
  bucket: TokenBucket,
  signal: AbortSignal | undefined,
): AsyncGenerator<Uint8Array, void> {
  for await (const piece of pieces) {
    await orAborted(bucket.take(piece.byteLength, signal), signal);
    yield piece;
  }
}
