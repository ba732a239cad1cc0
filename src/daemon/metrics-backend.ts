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

/** How many calls to destinations failed in this run of the daemon, by database and location. */
export class DestinationFailures {
  readonly #counts = new Map<string, Map<string, number>>();

  /** The counts of the destinations that a database has now, by location, 0 included. */
  of(database: string, backends: readonly Backend[]): ReadonlyMap<string, number> {
    const counts = this.#counts.get(database);
    return new Map(backends.map(({ location }) => [location, counts?.get(location) ?? 0]));
  }

  /** The backend, each of whose failed calls is counted from now on. Counting goes on where an earlier one of it stopped. */
  watch(database: string, backend: Backend): Backend {
    const counts = this.#counts.get(database) ?? new Map<string, number>();
    this.#counts.set(database, counts);
    const { location } = backend;
    counts.set(location, counts.get(location) ?? 0);
    return withFailureCount(backend, () => counts.set(location, (counts.get(location) ?? 0) + 1));
  }
}

/**
 * Calls `onFailure` for each call that fails, once all tries that the backend makes itself are over. What was aborted by
 * its caller is none, and neither is a body that its own maker broke off.
 */
export function withFailureCount(backend: Backend, onFailure: () => void): Backend {
  return new CountingBackend(backend, onFailure);
}

class CountingBackend implements Backend {
  readonly #inner: Backend;
  readonly #onFailure: () => void;

  constructor(inner: Backend, onFailure: () => void) {
    this.#inner = inner;
    this.#onFailure = onFailure;
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
    return await this.#counting(options, () => this.#inner.put(key, watched.source, options), watched.hasBroken);
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

function watchSource(body: ByteSource): { readonly source: ByteSource; readonly hasBroken: () => boolean } {
  let broken = false;
  const source: ByteSource = {
    get sizeBytes() {
      return body.sizeBytes;
    },
    replayable: body.replayable,
    async *open() {
      try {
        yield* body.open();
      } catch (error) {
        broken = true;
        throw error;
      }
    },
  };
  return { source, hasBroken: () => broken };
}
