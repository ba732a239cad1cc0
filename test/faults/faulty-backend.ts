import { untilAborted } from "../../src/storage/abort.ts";
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
import { type Random, seededRandom } from "../support/random.ts";

export type Verb = "put" | "get" | "stat" | "list" | "delete";

/**
 * What goes wrong with one call:
 * - `refuse`: `storage-unreachable` before anything happened
 * - `lose-answer`: it happens, then `storage-unreachable`; for get and list as `cut`
 * - `cut`: `storage-unreachable` midway: a put leaves nothing, a stream or listing breaks after a part of it
 * - `full`: `storage-full` after part of a put's body was read; for other verbs as `refuse`, with that code
 * - `deny`: `storage-denied` before anything happened
 * - `slow`: a pause before it, and before each piece of a stream
 * - `hang`: nothing more until the signal is aborted, for ever without one
 * - `flip`: one bit of what a get gives is another; for other verbs nothing
 * - `miss`: get and stat say null, list leaves one object out; for put and delete nothing
 */
export type Fault = "refuse" | "lose-answer" | "cut" | "full" | "deny" | "slow" | "hang" | "flip" | "miss";

export interface FaultOptions {
  readonly seed: number;
  /** The probability of each fault for each call of a verb; all others pass. Their sum is at most 1. */
  readonly rates?: Partial<Record<Verb, Partial<Record<Fault, number>>>>;
  readonly slowMs?: number;
}

/** One call that went wrong (or was counted), in the order in which they began. */
export interface FaultyCall {
  readonly verb: Verb;
  readonly key: string;
  readonly fault: Fault | "offline" | null;
}

interface Script {
  readonly verb: Verb;
  readonly fault: Fault;
  readonly matches: (key: string) => boolean;
  left: number;
}

/**
 * A destination with faults, around a real one. What happens to the nth call of a verb on a key depends on the seed alone,
 * however calls interleave. Scripted faults (`failNext`) come before drawn ones, the offline switch before both.
 */
export class FaultyBackend implements Backend {
  /** Every call fails with `storage-unreachable`, and so does every stream and listing under way. */
  isOffline = false;
  readonly calls: FaultyCall[] = [];
  readonly #inner: Backend;
  readonly #options: FaultOptions;
  readonly #scripts: Script[] = [];
  readonly #callCounts = new Map<string, number>();
  readonly #missing = new Set<string>();
  readonly #flipped = new Map<string, number>();

  constructor(inner: Backend, options: FaultOptions) {
    this.#inner = inner;
    this.#options = options;
  }

  get location(): string {
    return this.#inner.location;
  }

  get capabilities(): BackendCapabilities {
    return this.#inner.capabilities;
  }

  /** The next `times` calls of `verb` on a key that `matches` meet this fault. */
  failNext(verb: Verb, fault: Fault, options: { times?: number; matches?: (key: string) => boolean } = {}): void {
    this.#scripts.push({ verb, fault, left: options.times ?? 1, matches: options.matches ?? (() => true) });
  }

  /** From now on the object is not there, for every verb but put. `restore` undoes it. */
  lose(key: string): void {
    this.#missing.add(key);
  }

  /** From now on bit `bit` (0 to 7) of the byte at `offset` reads wrong. `restore` undoes it. */
  damage(key: string, offset: number, bit = 0): void {
    this.#flipped.set(key, offset * 8 + bit);
  }

  restore(key: string): void {
    this.#missing.delete(key);
    this.#flipped.delete(key);
  }

  async put(key: string, body: ByteSource, options: PutOptions = {}): Promise<"stored" | "exists"> {
    const { fault, random } = await this.#begin("put", key, options);
    if (fault === "cut" || fault === "full") {
      const limit = random.integer(0, Math.max(1, (body.sizeBytes ?? 65_536) - 1));
      return await this.#inner.put(
        key,
        failingAfter(body, limit, () => this.#error(fault, "put", key)),
        options,
      );
    }
    const outcome = await this.#inner.put(key, this.#guarded(body, key), options);
    this.#missing.delete(key);
    this.#flipped.delete(key);
    if (fault === "lose-answer") throw this.#error(fault, "put", key);
    return outcome;
  }

  async get(key: string, options: GetOptions = {}): Promise<ByteStream | null> {
    const { fault, random } = await this.#begin("get", key, options);
    if (fault === "miss" || this.#missing.has(key)) return null;
    const stream = await this.#inner.get(key, options);
    if (stream === null) return null;
    return untilAborted(
      this.#spoilt(key, stream, { fault, random, start: await this.#startOf(key, options) }),
      options.signal,
    );
  }

  async stat(key: string, options: CallOptions = {}): Promise<StoredObject | null> {
    const { fault } = await this.#begin("stat", key, options);
    if (fault === "miss" || this.#missing.has(key)) return null;
    const object = await this.#inner.stat(key, options);
    if (fault === "lose-answer" || fault === "cut") throw this.#error(fault, "stat", key);
    return object;
  }

  async *list(prefix: string, options: ListOptions = {}): AsyncGenerator<StoredObject, void> {
    const { fault, random } = await this.#begin("list", prefix, options);
    const cutAfter = fault === "cut" || fault === "lose-answer" ? random.integer(0, 20) : Number.POSITIVE_INFINITY;
    const missAt = fault === "miss" ? random.integer(0, 5) : -1;
    let position = 0;
    for await (const object of this.#inner.list(prefix, options)) {
      if (this.isOffline) throw this.#error("refuse", "list", prefix);
      if (position >= cutAfter) throw this.#error("cut", "list", prefix);
      if (position++ !== missAt && !this.#missing.has(object.key)) yield object;
    }
    if (cutAfter !== Number.POSITIVE_INFINITY) throw this.#error("cut", "list", prefix);
  }

  async delete(keys: readonly string[], options: CallOptions = {}): Promise<void> {
    const { fault, random } = await this.#begin("delete", keys[0] ?? "", options);
    const reached = fault === "cut" ? keys.slice(0, random.integer(0, keys.length)) : keys;
    await this.#inner.delete(reached, options);
    if (fault === "lose-answer" || fault === "cut") throw this.#error(fault, "delete", keys[0] ?? "");
  }

  /** Draws and records the fault, and does what comes before the call. */
  async #begin(verb: Verb, key: string, { signal }: CallOptions): Promise<{ fault: Fault | null; random: Random }> {
    const name = `${verb} ${key}`;
    const callNumber = (this.#callCounts.get(name) ?? 0) + 1;
    this.#callCounts.set(name, callNumber);
    const random = seededRandom(this.#options.seed).fork(`${name} ${callNumber}`);
    const fault = this.#scripted(verb, key) ?? this.#drawn(verb, random);
    this.calls.push({ verb, key, fault: this.isOffline ? "offline" : fault });
    if (this.isOffline) throw this.#error("refuse", verb, key);
    if (fault === "refuse" || fault === "deny" || (fault === "full" && verb !== "put"))
      throw this.#error(fault, verb, key);
    if (fault === "slow") await pause(this.#options.slowMs ?? 20, signal);
    if (fault === "hang") await pause(Number.POSITIVE_INFINITY, signal);
    return { fault, random };
  }

  #scripted(verb: Verb, key: string): Fault | null {
    const script = this.#scripts.find(
      (candidate) => candidate.verb === verb && candidate.left > 0 && candidate.matches(key),
    );
    if (script === undefined) return null;
    script.left--;
    return script.fault;
  }

  #drawn(verb: Verb, random: Random): Fault | null {
    let point = random.next();
    for (const [fault, rate] of Object.entries(this.#options.rates?.[verb] ?? {})) {
      // The keys of `rates` are faults by its type; Object.entries forgets that.
      if (point < rate) return fault as Fault;
      point -= rate;
    }
    return null;
  }

  async *#spoilt(
    key: string,
    stream: ByteStream,
    { fault, random, start }: { fault: Fault | null; random: Random; start: number },
  ): AsyncGenerator<Uint8Array, void> {
    let pieceLimit = fault === "cut" || fault === "lose-answer" ? random.integer(0, 3) : Number.POSITIVE_INFINITY;
    const drawnBit = random.integer(0, 0xffff);
    let offset = start;
    for await (const piece of stream) {
      if (this.isOffline) throw this.#error("refuse", "get", key);
      if (pieceLimit-- <= 0) {
        const half = piece.subarray(0, piece.byteLength >>> 1);
        if (half.byteLength > 0) yield half;
        throw this.#error("cut", "get", key);
      }
      if (fault === "slow") await pause(this.#options.slowMs ?? 20, undefined);
      const bit = this.#flipped.get(key);
      if (bit !== undefined) flipBit(piece, bit - offset * 8);
      else if (fault === "flip" && offset === start) flipBit(piece, drawnBit % (piece.byteLength * 8));
      offset += piece.byteLength;
      yield piece;
    }
    if (pieceLimit !== Number.POSITIVE_INFINITY) throw this.#error("cut", "get", key);
  }

  /** Where a ranged stream begins, which a damaged byte at a known offset needs. */
  async #startOf(key: string, { range }: GetOptions): Promise<number> {
    const start = range?.start ?? 0;
    if (start >= 0) return start;
    return Math.max(0, ((await this.#inner.stat(key))?.sizeBytes ?? 0) + start);
  }

  /** A body that breaks when the destination goes offline while it is read. */
  #guarded(body: ByteSource, key: string): ByteSource {
    const check = () => {
      if (this.isOffline) throw this.#error("refuse", "put", key);
    };
    return {
      ...body,
      async *open() {
        for await (const piece of body.open()) {
          check();
          yield piece;
        }
        check();
      },
    };
  }

  #error(fault: Fault, verb: Verb, key: string): BakeliteError {
    const code = fault === "full" ? "storage-full" : fault === "deny" ? "storage-denied" : "storage-unreachable";
    return new BakeliteError(code, `injected fault: ${fault} on ${verb}`, { subject: `${this.location}/${key}` });
  }
}

function failingAfter(body: ByteSource, limitBytes: number, error: () => BakeliteError): ByteSource {
  return {
    sizeBytes: undefined,
    replayable: body.replayable,
    async *open() {
      let passedBytes = 0;
      for await (const piece of body.open()) {
        const rest = limitBytes - passedBytes;
        if (piece.byteLength >= rest) {
          if (rest > 0) yield piece.subarray(0, rest);
          throw error();
        }
        passedBytes += piece.byteLength;
        yield piece;
      }
      throw error();
    },
  };
}

function flipBit(piece: Uint8Array, bit: number): void {
  const at = Math.floor(bit / 8);
  const old = piece[at];
  if (old !== undefined) piece[at] = old ^ (1 << (bit & 7));
}

async function pause(ms: number, signal: AbortSignal | undefined): Promise<void> {
  const silence = async function* (): AsyncGenerator<never, void> {
    await (ms === Number.POSITIVE_INFINITY ? new Promise(() => {}) : Bun.sleep(ms));
  };
  for await (const _nothing of untilAborted(silence(), signal)) return;
}
