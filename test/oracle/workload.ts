import type { Random } from "../support/random.ts";
import type { Ack, WriterMode, WriterSpec } from "./protocol.ts";
import type { OracleStore } from "./store.ts";

type Shape =
  | "tiny" // one row
  | "small" // a few rows
  | "batch" // some hundred rows
  | "savepoint" // part of the work is rolled back to a savepoint, mostly after dirty pages went to the WAL
  | "rollback" // all of it is rolled back, mostly after dirty pages went to the WAL; not a commit
  | "big" // more than a thousand pages
  | "shrink" // most rows deleted
  | "table" // a table is created, filled or dropped
  | "index"; // an index is created or dropped

type Weights = Readonly<Partial<Record<Shape, number>>>;

const WEIGHTS: Readonly<Record<Exclude<WriterMode, "reader">, Weights>> = {
  normal: { tiny: 30, small: 50, batch: 3, savepoint: 6, rollback: 4, table: 4, index: 2, shrink: 0.2 },
  exclusive: { tiny: 30, small: 50, batch: 3, savepoint: 6, rollback: 4, table: 4, index: 2, shrink: 0.2 },
  hostile: { tiny: 30, small: 30, batch: 4, savepoint: 12, rollback: 10, table: 5, index: 3, big: 0.7, shrink: 1 },
  "flat-out": { tiny: 1 },
};

const FLAT_OUT_ROWS_BYTES = 100_000;
const BIG_TRANSACTION_PAGES = 1100;
const BIG_TRANSACTION_MAX_BYTES = 16 * 1024 * 1024;

/** Chooses and carries out one transaction after another. */
export class Workload {
  readonly #store: OracleStore;
  readonly #random: Random;
  readonly #spec: WriterSpec;
  readonly #weights: readonly (readonly [Shape, number])[];
  rollbackCount = 0;

  constructor(store: OracleStore, random: Random) {
    this.#store = store;
    this.#random = random;
    this.#spec = store.spec;
    const { mode } = store.spec;
    this.#weights = mode === "reader" ? [] : (Object.entries(WEIGHTS[mode]) as [Shape, number][]);
  }

  /** One commit; null when the transaction chosen was one that is rolled back. */
  async step(): Promise<Ack | null> {
    const shape = this.#chooseShape();
    if (shape === "rollback") {
      this.rollbackCount += 1;
      await this.#store.rollBack(() => this.#changeRows(this.#random.chance(0.7) ? this.#spillRows() : 3, "any"));
      return null;
    }
    return await this.#store.commit(() => this.#perform(shape));
  }

  #perform(shape: Exclude<Shape, "rollback">): void {
    const random = this.#random;
    switch (shape) {
      case "tiny":
        return this.#changeRows(1, this.#spec.mode === "flat-out" ? "tiny" : "any");
      case "small":
        return this.#changeRows(random.integer(1, 6), "any");
      case "batch":
        return this.#changeRows(random.integer(50, 300), "tiny");
      case "savepoint":
        return this.#useSavepoints();
      case "big":
        return this.#growBy(Math.min(BIG_TRANSACTION_PAGES * this.#spec.pageSizeBytes, BIG_TRANSACTION_MAX_BYTES));
      case "shrink":
        return this.#store.deleteMany(random.pick([0.5, 0.9, 1]));
      case "table":
        return this.#changeTables();
      case "index":
        return this.#changeIndexes();
    }
  }

  /** Inserts, updates and deletes; the balance keeps this writer's content near its target. */
  #changeRows(count: number, size: "tiny" | "any"): void {
    const random = this.#random;
    const target = this.#spec.mode === "flat-out" ? FLAT_OUT_ROWS_BYTES : this.#spec.targetBytes;
    for (let i = 0; i < count; i++) {
      const bytes = size === "tiny" ? random.integer(10, 100) : this.#rowSize();
      const crowded = this.#store.contentBytes > target;
      const choice = random.next();
      if (choice < 0.45) {
        if (!this.#store.updateItem(bytes)) this.#store.insertItem(bytes);
      } else if (choice < (crowded ? 0.55 : 0.85)) this.#store.insertItem(bytes);
      else if (!this.#store.deleteItem()) this.#store.insertItem(bytes);
    }
  }

  #useSavepoints(): void {
    const random = this.#random;
    this.#changeRows(random.integer(1, 3), "any");
    for (let i = random.integer(1, 3); i > 0; i--) {
      const outcome = random.chance(0.7) ? "roll back" : "keep";
      this.#store.savepoint(outcome, () => {
        this.#changeRows(outcome === "roll back" && random.chance(0.7) ? this.#spillRows() : 3, "any");
        if (random.chance(0.3)) this.#store.savepoint("roll back", () => this.#changeRows(this.#spillRows(), "any"));
      });
      this.#changeRows(random.integer(0, 3), "any");
    }
  }

  /** So many changed rows dirty more pages than the cache holds, and the overflow goes into the WAL uncommitted. */
  #spillRows(): number {
    return Math.min(this.#spec.cacheSizePages * 2, 200);
  }

  #growBy(bytes: number): void {
    const rowBytes = Math.max(20_000, this.#spec.pageSizeBytes * 2);
    for (let grown = 0; grown < bytes; grown += rowBytes) this.#store.insertItem(rowBytes);
  }

  #changeTables(): void {
    const random = this.#random;
    const tables = this.#store.extraTables;
    const choice = random.next();
    if (tables.length === 0 || (choice < 0.3 && tables.length < 4)) {
      const table = this.#store.createTable();
      for (let i = random.integer(0, 20); i > 0; i--) this.#store.insertExtra(table, this.#rowSize());
    } else if (choice < 0.55) this.#store.dropTable(random.pick(tables));
    else for (let i = random.integer(1, 10); i > 0; i--) this.#store.insertExtra(random.pick(tables), this.#rowSize());
  }

  #changeIndexes(): void {
    const indexes = this.#store.extraIndexes;
    if (indexes.length === 0 || (indexes.length < 3 && this.#random.chance(0.5))) this.#store.createIndex();
    else this.#store.dropIndex(this.#random.pick(indexes));
  }

  /** Mostly small; one in ten needs overflow pages, one in a hundred many of them. */
  #rowSize(): number {
    const random = this.#random;
    const choice = random.next();
    if (choice < 0.6) return random.integer(10, 200);
    if (choice < 0.9) return random.integer(200, 2000);
    if (choice < 0.99) return random.integer(2000, 20_000);
    return random.integer(20_000, 100_000);
  }

  #chooseShape(): Shape {
    const total = this.#weights.reduce((sum, [, weight]) => sum + weight, 0);
    let left = this.#random.next() * total;
    for (const [shape, weight] of this.#weights) {
      left -= weight;
      if (left < 0) return shape;
    }
    return "tiny";
  }
}
