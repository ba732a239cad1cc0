import { formatDuration } from "../util/durations.ts";
import { BakeliteError } from "../util/errors.ts";
import { abortError, orAborted, throwIfAborted } from "./abort.ts";
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

const DELETED_AT_ONCE = 100;
/** A daemon that is asked to stop has 10 s for everything. */
const TIDY_UP_MS = 2000;

/** Calls by location that were given up and that the system has not answered yet. */
const stuckCalls = new Map<string, number>();

/**
 * Gives up a call that makes no progress for `timeoutMs`: `storage-unreachable`. Only time that the backend takes counts, not what the
 * source of a body or the reader of a stream takes.
 *
 * It is for directories: a network mount whose server is gone holds a file call beyond any signal, until the server is back or
 * the mount is forced off. Such a call keeps one thread of the process. So while one hangs at a location, further calls
 * there fail at once, for all who use it, rather than take one thread after the other.
 */
export function withTimeout(backend: Backend, timeoutMs: number): Backend {
  return new TimedBackend(backend, timeoutMs);
}

class TimedBackend implements Backend {
  readonly #inner: Backend;
  readonly #timeoutMs: number;

  constructor(inner: Backend, timeoutMs: number) {
    this.#inner = inner;
    this.#timeoutMs = timeoutMs;
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
    const { diagnose } = this.#inner;
    if (diagnose === undefined) return [];
    return await this.#inTime("look at the destination", options, ({ signal }) =>
      diagnose.call(this.#inner, { signal }),
    );
  }

  async put(key: string, body: ByteSource, options: PutOptions = {}): Promise<"stored" | "exists"> {
    return await this.#inTime("store the object", options, ({ signal, watch }) => {
      const { sizeBytes, replayable } = body;
      const open = () => outsideTime(body.open(), watch);
      return this.#inner.put(key, { sizeBytes, replayable, open }, { ...options, signal });
    });
  }

  async get(key: string, options: GetOptions = {}): Promise<ByteStream | null> {
    const stream = await this.#inTime("read the object", options, ({ signal }) =>
      this.#inner.get(key, { ...options, signal }),
    );
    return stream === null ? null : this.#eachInTime("read the object", stream, options);
  }

  async stat(key: string, options: CallOptions = {}): Promise<StoredObject | null> {
    return await this.#inTime("look for the object", options, ({ signal }) => this.#inner.stat(key, { signal }));
  }

  list(prefix: string, options: ListOptions = {}): AsyncIterable<StoredObject> {
    return this.#eachInTime("list the objects", this.#inner.list(prefix, options), options);
  }

  async delete(keys: readonly string[], options: CallOptions = {}): Promise<void> {
    // Some at a time, so that thousands show progress.
    for (let offset = 0; offset < keys.length; offset += DELETED_AT_ONCE) {
      const some = keys.slice(offset, offset + DELETED_AT_ONCE);
      await this.#inTime("delete objects", options, ({ signal }) => this.#inner.delete(some, { signal }));
    }
  }

  /** With one watch for all items: a listing may have a hundred thousand. */
  async *#eachInTime<T>(
    doing: string,
    items: AsyncIterable<T>,
    { signal: caller }: CallOptions,
  ): AsyncGenerator<T, void> {
    throwIfAborted(caller);
    this.#assertNoneStuck(doing);
    using watch = this.#watch(doing);
    const signal = caller === undefined ? watch.signal : AbortSignal.any([caller, watch.signal]);
    let giveUp: (error: unknown) => void = () => {};
    const onAbort = () => giveUp(abortError(signal));
    signal.addEventListener("abort", onAbort, { once: true });
    const iterator = items[Symbol.asyncIterator]();
    let isOpen = true;
    try {
      for (;;) {
        throwIfAborted(signal);
        watch.resume();
        const taking = iterator.next();
        const next = await new Promise<IteratorResult<T>>((resolve, reject) => {
          giveUp = (error) => {
            if (watch.signal.aborted) countUntilSettled(this.location, taking);
            reject(error);
          };
          taking.then(resolve, reject);
        });
        watch.pause();
        if (next.done === true) {
          isOpen = false;
          return;
        }
        yield next.value;
      }
    } finally {
      signal.removeEventListener("abort", onAbort);
      // Not awaited: one that is stuck answers only after what it is stuck in.
      if (isOpen) iterator.return?.()?.catch(() => {});
    }
  }

  async #inTime<T>(
    doing: string,
    { signal: caller }: CallOptions,
    call: (how: { readonly signal: AbortSignal; readonly watch: Watch }) => Promise<T>,
  ): Promise<T> {
    throwIfAborted(caller);
    this.#assertNoneStuck(doing);
    using watch = this.#watch(doing);
    const signal = caller === undefined ? watch.signal : AbortSignal.any([caller, watch.signal]);
    const calling = call({ signal, watch });
    try {
      return await orAborted(calling, signal);
    } catch (error) {
      if (watch.signal.aborted) countUntilSettled(this.location, calling);
      // What was aborted takes away its temporary file, and the process may end right after this.
      else await settledWithin(calling, TIDY_UP_MS);
      throw error;
    }
  }

  #assertNoneStuck(doing: string): void {
    if ((stuckCalls.get(this.location) ?? 0) > 0) throw this.#timedOut(doing, "an earlier call there is still stuck");
  }

  #watch(doing: string): Watch {
    const why = `the file system did not answer for ${formatDuration(this.#timeoutMs)}`;
    return new Watch(this.#timeoutMs, () => this.#timedOut(doing, why));
  }

  #timedOut(doing: string, why: string): BakeliteError {
    return new BakeliteError("storage-unreachable", `cannot ${doing}: ${why}`, {
      subject: this.location,
      hint: "check the disk or the network mount below it (`df` hangs on a dead one); a slow one may need a longer `timeout`",
    });
  }
}

async function settledWithin(call: Promise<unknown>, ms: number): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  const timer = setTimeout(resolve, ms);
  call.then(
    () => resolve(),
    () => resolve(),
  );
  await promise;
  clearTimeout(timer);
}

function countUntilSettled(location: string, call: Promise<unknown>): void {
  stuckCalls.set(location, (stuckCalls.get(location) ?? 0) + 1);
  const over = () => {
    const left = (stuckCalls.get(location) ?? 1) - 1;
    if (left === 0) stuckCalls.delete(location);
    else stuckCalls.set(location, left);
  };
  call.then(over, over);
}

/** The pieces of a source, while whose making the watch stands still; each piece is a progress. */
async function* outsideTime(pieces: AsyncIterable<Uint8Array>, watch: Watch): AsyncGenerator<Uint8Array, void> {
  const iterator = pieces[Symbol.asyncIterator]();
  let isOpen = true;
  try {
    for (;;) {
      const next = await whilePaused(watch, () => iterator.next());
      if (next.done === true) {
        isOpen = false;
        return;
      }
      // After it was given up, a call that comes back to life must not go on with a body that is somebody else's by now.
      if (watch.signal.aborted) throw abortError(watch.signal);
      yield next.value;
    }
  } finally {
    if (isOpen) await iterator.return?.();
  }
}

async function whilePaused<T>(watch: Watch, call: () => Promise<T>): Promise<T> {
  watch.pause();
  try {
    return await call();
  } finally {
    watch.resume();
  }
}

/** Aborts its signal with `reason()` when it has run for `timeoutMs` since it was last resumed. Pausing and resuming cost next to nothing. */
class Watch implements Disposable {
  readonly #controller = new AbortController();
  readonly #timeoutMs: number;
  readonly #reason: () => BakeliteError;
  /** By `performance.now()`; null: paused. */
  #sinceMs: number | null = null;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #isOver = false;

  constructor(timeoutMs: number, reason: () => BakeliteError) {
    this.#timeoutMs = Math.min(timeoutMs, 2 ** 31 - 1);
    this.#reason = reason;
    this.resume();
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  pause(): void {
    this.#sinceMs = null;
  }

  resume(): void {
    if (this.#isOver) return;
    this.#sinceMs = performance.now();
    this.#timer ??= setTimeout(this.#look, this.#timeoutMs);
  }

  [Symbol.dispose](): void {
    this.#isOver = true;
    clearTimeout(this.#timer);
  }

  /** The timer of an earlier start: what has been resumed since is waited for, what is paused needs none. */
  readonly #look = (): void => {
    this.#timer = undefined;
    if (this.#isOver || this.#sinceMs === null) return;
    const leftMs = this.#sinceMs + this.#timeoutMs - performance.now();
    if (leftMs <= 0) this.#controller.abort(this.#reason());
    else this.#timer = setTimeout(this.#look, Math.ceil(leftMs));
  };
}
