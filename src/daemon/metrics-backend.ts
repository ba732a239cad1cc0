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
} from "../storage/backend.ts";

/** An object was stored, or found to be there already; `sizeBytes` is null where that is not known. */
export type StoredNews = (key: string, sizeBytes: number | null) => void;

/** How many calls to destinations failed in this run of the daemon, by database and location. */
export class DestinationFailures {
  readonly #counts = new Map<string, Map<string, number>>();

  /** The counts of the destinations that a database has now, by location, 0 included. */
  of(database: string, backends: readonly Backend[]): ReadonlyMap<string, number> {
    const counts = this.#counts.get(database);
    return new Map(backends.map(({ location }) => [location, counts?.get(location) ?? 0]));
  }

  /**
   * The backend, each of whose failed calls is counted from now on. Counting goes on where an earlier one of it stopped. `onStored` hears of
   * each object that it took.
   */
  watch(database: string, backend: Backend, onStored?: StoredNews): Backend {
    const counts = this.#counts.get(database) ?? new Map<string, number>();
    this.#counts.set(database, counts);
    const { location } = backend;
    counts.set(location, counts.get(location) ?? 0);
    return withFailureCount(backend, () => counts.set(location, (counts.get(location) ?? 0) + 1), onStored);
  }
}

/**
 * Calls `onFailure` for each call that fails, once all tries that the backend makes itself are over. What was aborted by
 * its caller is none, and neither is a body that its own maker broke off.
 */
export function withFailureCount(backend: Backend, onFailure: () => void, onStored?: StoredNews): Backend {
  return new CountingBackend(backend, onFailure, onStored);
}

class CountingBackend implements Backend {
  readonly #inner: Backend;
  readonly #onFailure: () => void;
  readonly #onStored: StoredNews;

  constructor(inner: Backend, onFailure: () => void, onStored: StoredNews = () => {}) {
    this.#inner = inner;
    this.#onFailure = onFailure;
    this.#onStored = onStored;
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
    return (await this.#counting(options, async () => this.#inner.diagnose?.(options))) ?? [];
  }

  async put(key: string, body: ByteSource, options: PutOptions = {}): Promise<"stored" | "exists"> {
    const watched = watchSource(body);
    const outcome = await this.#counting(
      options,
      () => this.#inner.put(key, watched.source, options),
      watched.hasBroken,
    );
    // "exists" may be our own try before, whose answer was lost.
    this.#onStored(key, outcome === "stored" ? watched.sizeBytes() : null);
    return outcome;
  }

  async get(key: string, options: GetOptions = {}): Promise<ByteStream | null> {
    const stream = await this.#counting(options, () => this.#inner.get(key, options));
    return stream === null ? null : this.#iterating(options, stream);
  }

  async stat(key: string, options: CallOptions = {}): Promise<StoredObject | null> {
    return await this.#counting(options, () => this.#inner.stat(key, options));
  }

  list(prefix: string, options: ListOptions = {}): AsyncIterable<StoredObject> {
    return this.#iterating(options, this.#inner.list(prefix, options));
  }

  async delete(keys: readonly string[], options: CallOptions = {}): Promise<void> {
    await this.#counting(options, () => this.#inner.delete(keys, options));
  }

  async #counting<T>({ signal }: CallOptions, call: () => Promise<T>, isOwnFault = () => false): Promise<T> {
    try {
      return await call();
    } catch (error) {
      if (signal?.aborted !== true && !isOwnFault()) this.#onFailure();
      throw error;
    }
  }

  /** What a reader throws into the loop, or leaves unread, is no failure: a generator sees neither as one. */
  async *#iterating<T>({ signal }: CallOptions, items: AsyncIterable<T>): AsyncIterable<T> {
    try {
      yield* items;
    } catch (error) {
      if (signal?.aborted !== true) this.#onFailure();
      throw error;
    }
  }
}

interface WatchedSource {
  readonly source: ByteSource;
  readonly hasBroken: () => boolean;
  /** Of the bytes that were given when it was last opened. */
  readonly sizeBytes: () => number;
}

function watchSource(body: ByteSource): WatchedSource {
  let broken = false;
  let sizeBytes = 0;
  const source: ByteSource = {
    get sizeBytes() {
      return body.sizeBytes;
    },
    replayable: body.replayable,
    async *open() {
      sizeBytes = 0;
      try {
        for await (const piece of body.open()) {
          sizeBytes += piece.length;
          yield piece;
        }
      } catch (error) {
        broken = true;
        throw error;
      }
    },
  };
  return { source, hasBroken: () => broken, sizeBytes: () => sizeBytes };
}
