import type { Random } from "../support/random.ts";
import type { CheckpointMode, WriterSpec } from "./protocol.ts";
import { BUSY_SLICE_MS, Connection, isBusy, numberOf, type OracleStore } from "./store.ts";

const MAX_HOLDS = 2;
const VACUUM_PATIENCE_MS = 500;

/** What a hostile application does between its commits. Nothing here changes what the database means. */
export class Hostility {
  readonly #store: OracleStore;
  readonly #random: Random;
  readonly #spec: WriterSpec;
  readonly #holds: { readonly connection: Connection; readonly endMs: number }[] = [];
  readonly counts: Record<string, number> = {};

  constructor(store: OracleStore, random: Random) {
    this.#store = store;
    this.#random = random;
    this.#spec = store.spec;
  }

  /** Perhaps one hostile act. Whatever meets a lock gives up: the next act comes soon. */
  async act(): Promise<void> {
    this.#endHolds(performance.now());
    const choice = this.#random.next();
    if (choice < 0.16) this.#checkpoint();
    else if (choice < 0.2) this.#once("autocheckpoint", `PRAGMA wal_autocheckpoint=${this.#random.integer(1, 10)}`);
    else if (choice < 0.24)
      this.#once("incremental vacuum", `PRAGMA incremental_vacuum(${this.#random.integer(1, 200)})`);
    else if (choice < 0.25) await this.#vacuum();
    else if (choice < 0.28) await this.#reconnect();
    else if (choice < 0.32) this.#hold();
    else if (choice < 0.34) this.#once("cache size", `PRAGMA cache_size=${this.#random.integer(3, 40)}`);
  }

  /** Ends every read transaction that is held open. */
  rest(): void {
    this.#endHolds(Number.POSITIVE_INFINITY);
  }

  #checkpoint(): void {
    const mode = this.#random.pick<CheckpointMode>(["PASSIVE", "FULL", "RESTART", "TRUNCATE"]);
    this.#once("busy timeout", `PRAGMA busy_timeout=${this.#random.pick([0, 5, 100])}`);
    this.#once(`checkpoint ${mode}`, `PRAGMA wal_checkpoint(${mode})`);
    this.#once("busy timeout", `PRAGMA busy_timeout=${BUSY_SLICE_MS}`);
  }

  async #vacuum(): Promise<void> {
    this.#count("vacuum");
    try {
      await this.#store.retryBusy(() => this.#store.connection.once("VACUUM"), VACUUM_PATIENCE_MS);
    } catch (error) {
      if (!isBusy(error)) throw error;
    }
  }

  async #reconnect(): Promise<void> {
    this.#count("reconnect");
    this.rest();
    this.#store.disconnect();
    await this.#store.connect();
    this.#once("autocheckpoint", `PRAGMA wal_autocheckpoint=${this.#random.integer(1, 10)}`);
  }

  /** A read transaction on a connection of its own, kept while this writer and others go on. */
  #hold(): void {
    if (this.#holds.length >= MAX_HOLDS) return;
    this.#count("hold");
    const connection = new Connection(this.#spec.database);
    try {
      connection.run("BEGIN");
      numberOf(connection.get("SELECT count(*) AS count FROM oracle_item"), "count");
    } catch (error) {
      connection.close();
      if (!isBusy(error)) throw error;
      return;
    }
    this.#holds.push({ connection, endMs: performance.now() + this.#random.integer(5, this.#spec.maxHoldMs) });
  }

  #endHolds(nowMs: number): void {
    for (let i = this.#holds.length - 1; i >= 0; i--) {
      const hold = this.#holds[i];
      if (hold === undefined || hold.endMs > nowMs) continue;
      this.#holds.splice(i, 1);
      hold.connection.run("COMMIT");
      hold.connection.close();
    }
  }

  #once(what: string, sql: string): void {
    this.#count(what);
    try {
      this.#store.connection.once(sql);
    } catch (error) {
      if (!isBusy(error)) throw error;
    }
  }

  #count(what: string): void {
    this.counts[what] = (this.counts[what] ?? 0) + 1;
  }
}
