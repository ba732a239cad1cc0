import {
  type Backend,
  type ByteSource,
  type GetOptions,
  type PutOptions,
  resolveRange,
  type StoredObject,
} from "../../src/storage/backend.ts";
import { compareKeys } from "../../src/storage/object-key.ts";

/** A destination in memory whose objects a test may damage, remove and count the reading of. */
export class MemoryBackend implements Backend {
  readonly location: string;
  readonly capabilities = { putIfAbsent: true };
  readonly objects = new Map<string, Uint8Array>();
  /** Called before an object is read; a throw is what the destination answers. */
  onGet: (key: string) => void | Promise<void> = () => {};
  onList: () => void = () => {};
  getCount = 0;

  constructor(location = "memory") {
    this.location = location;
  }

  async put(key: string, body: ByteSource, options: PutOptions = {}): Promise<"stored" | "exists"> {
    if (options.ifAbsent === true && this.objects.has(key)) return "exists";
    this.objects.set(key, new Uint8Array(Buffer.concat(await Array.fromAsync(body.open()))));
    return "stored";
  }

  async get(key: string, options: GetOptions = {}): Promise<AsyncIterable<Uint8Array> | null> {
    options.signal?.throwIfAborted();
    this.getCount++;
    await this.onGet(key);
    const bytes = this.objects.get(key);
    if (bytes === undefined) return null;
    const { start, end } = resolveRange(options.range, bytes.length);
    return (async function* () {
      yield bytes.slice(start, end);
    })();
  }

  async stat(key: string): Promise<StoredObject | null> {
    const bytes = this.objects.get(key);
    return bytes === undefined ? null : { key, sizeBytes: bytes.length, modifiedMs: 0 };
  }

  async *list(prefix: string): AsyncGenerator<StoredObject> {
    this.onList();
    for (const key of [...this.objects.keys()].sort(compareKeys)) {
      const bytes = this.objects.get(key);
      if (bytes !== undefined && key.startsWith(prefix)) yield { key, sizeBytes: bytes.length, modifiedMs: 0 };
    }
  }

  async delete(keys: readonly string[]): Promise<void> {
    for (const key of keys) this.objects.delete(key);
  }

  /** Inverts one bit. */
  flip(key: string, offset: number, bit = 0): void {
    const original = this.objects.get(key);
    if (original === undefined) throw new Error(`no object ${key}`);
    const bytes = new Uint8Array(original);
    bytes[offset] = (bytes[offset] ?? 0) ^ (1 << bit);
    this.objects.set(key, bytes);
  }
}
