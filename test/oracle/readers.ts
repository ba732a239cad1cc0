import type { Random } from "../support/random.ts";
import type { Channel } from "./channel.ts";
import type { WriterSpec } from "./protocol.ts";
import { Connection, isBusy, numberOf } from "./store.ts";

interface OpenRead {
  readonly connection: Connection;
  readonly endMs: number;
  readonly seen: string;
}

/**
 * Read transactions of random length that overlap one another, each on a connection of its own. A snapshot must be
 * whole (the log has no gap and every writer's rows are as many as its last log row says) and stay the same to its end.
 */
export class Readers {
  readonly #spec: WriterSpec;
  readonly #random: Random;
  readonly #channel: Channel;
  readonly #slots: (OpenRead | null)[];
  snapshotCount = 0;

  constructor(spec: WriterSpec, random: Random, channel: Channel) {
    this.#spec = spec;
    this.#random = random;
    this.#channel = channel;
    this.#slots = Array.from({ length: spec.readers }, () => null);
  }

  /** Ends the reads whose time has come, one after the other, and begins a new one for each. */
  step(): void {
    for (let i = 0; i < this.#slots.length; i++) {
      const read = this.#slots[i] ?? null;
      if (read !== null && performance.now() < read.endMs) continue;
      if (read !== null) this.#end(read);
      this.#slots[i] = null;
      this.#slots[i] = this.#begin();
    }
  }

  rest(): void {
    for (const [i, read] of this.#slots.entries()) {
      if (read !== null) this.#end(read);
      this.#slots[i] = null;
    }
  }

  #begin(): OpenRead | null {
    const connection = new Connection(this.#spec.database);
    try {
      connection.run("BEGIN");
      const seen = snapshotSummary(connection);
      this.snapshotCount += 1;
      return { connection, seen, endMs: performance.now() + this.#random.integer(50, this.#spec.maxHoldMs) };
    } catch (error) {
      connection.close();
      if (!isBusy(error)) this.#channel.complain(`reader: ${error instanceof Error ? error.message : String(error)}`);
      return null;
    }
  }

  #end(read: OpenRead): void {
    try {
      const now = snapshotSummary(read.connection);
      if (now !== read.seen) this.#channel.complain(`reader: a snapshot changed from ${read.seen} to ${now}`);
      read.connection.run("COMMIT");
    } catch (error) {
      this.#channel.complain(`reader: ${error instanceof Error ? error.message : String(error)}`);
    }
    read.connection.close();
  }
}

function snapshotSummary(connection: Connection): string {
  const global = numberOf(connection.get("SELECT n FROM oracle_global WHERE id = 1"), "n");
  const log = connection.get("SELECT count(*) AS count, coalesce(max(n), 0) AS last FROM oracle_log");
  const [count, last] = [numberOf(log, "count"), numberOf(log, "last")];
  if (global !== last || count !== last)
    throw new Error(`a snapshot is not whole: ${count} log rows, the last is ${last}, the counter says ${global}`);
  const items = numberOf(connection.get("SELECT count(*) AS count FROM oracle_item"), "count");
  const hashes = connection.get("SELECT total(hash) AS sum FROM oracle_item");
  return `n=${last} items=${items} hashes=${String(hashes?.["sum"])}`;
}
