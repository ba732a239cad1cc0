import type { ByteSource, GetOptions, PutOptions, StoredObject } from "../../src/storage/backend.ts";
import { BakeliteError } from "../../src/util/errors.ts";
import { MemoryBackend } from "./memory-backend.ts";

/** Thrown in place of a call: the process is killed there. */
export class Killed extends Error {}

/** A destination in memory with a clock of its own, at which a process may be killed before any of its calls. */
export class ClockedBackend extends MemoryBackend {
  /** What its clock shows, Unix milliseconds. */
  nowMs: () => number;
  /** So many calls are answered before one throws; Infinity: all. */
  callsLeft = Number.POSITIVE_INFINITY;
  /** Says that it has deleted, and has not. */
  liesAboutDeleting = false;
  /** Refuses to delete. */
  deniesDeleting = false;
  listCount = 0;
  /** Called before each call, with what is called. */
  onCall: (call: "put" | "get" | "stat" | "list" | "delete") => void | Promise<void> = () => {};
  readonly deleted: string[] = [];
  readonly #modified = new Map<string, number>();

  constructor(nowMs: () => number, location = "clocked") {
    super(location);
    this.nowMs = nowMs;
  }

  override async put(key: string, body: ByteSource, options: PutOptions = {}): Promise<"stored" | "exists"> {
    await this.#begin("put");
    const answer = await super.put(key, body, options);
    if (answer === "stored") this.#modified.set(key, this.nowMs());
    return answer;
  }

  override async get(key: string, options: GetOptions = {}): Promise<AsyncIterable<Uint8Array> | null> {
    await this.#begin("get");
    return await super.get(key, options);
  }

  override async stat(key: string): Promise<StoredObject | null> {
    await this.#begin("stat");
    const stored = await super.stat(key);
    return stored === null ? null : { ...stored, modifiedMs: this.#modified.get(key) ?? 0 };
  }

  override async *list(prefix: string): AsyncGenerator<StoredObject> {
    await this.#begin("list");
    this.listCount++;
    for await (const stored of super.list(prefix)) yield { ...stored, modifiedMs: this.#modified.get(stored.key) ?? 0 };
  }

  override async delete(keys: readonly string[]): Promise<void> {
    await this.#begin("delete");
    if (this.deniesDeleting)
      throw new BakeliteError("storage-denied", "the destination does not allow to delete", { subject: this.location });
    if (this.liesAboutDeleting) return;
    // One by one, so that being killed within a call leaves a part of it done.
    for (const key of keys) {
      if (this.callsLeft-- <= 0) throw new Killed();
      await super.delete([key]);
      this.deleted.push(key);
    }
  }

  async #begin(call: "put" | "get" | "stat" | "list" | "delete"): Promise<void> {
    if (this.callsLeft-- <= 0) throw new Killed();
    await this.onCall(call);
  }
}
