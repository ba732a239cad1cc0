/**
 * The application of `npm run demo`: a shop that takes orders, in a process of its own: `bun demo-shop.ts <database>`. It
 * knows nothing of backups. After each commit it prints one line, so that the demo can tell later what the shop had at any
 * moment: `{"commit":n,"atMs":…,"orders":n,"digest":"…"}`. Lines on its standard input: `accident`, `close`.
 */
import { Database } from "bun:sqlite";
import { type Content, contentDigest, type Row, rowHash, xorInto } from "./demo-content.ts";

const CUSTOMERS = 2000;
const TOWNS = ["Oslo", "Turin", "Kraków", "Aarhus", "Malmö", "Nantes", "Split", "Tartu"];
const GOODS = ["teapot", "bicycle bell", "atlas", "harmonica", "lantern", "chess set", "kite", "barometer"];
const ORDERS_PER_SECOND = 60;

class Shop {
  readonly #db: Database;
  readonly #digest: Uint8Array;
  #commits = 0;
  #orders = 0;

  constructor(path: string) {
    this.#db = new Database(path, { create: true });
    this.#db.run("PRAGMA journal_mode=WAL");
    this.#db.run("PRAGMA synchronous=NORMAL");
    this.#db.run("PRAGMA busy_timeout=5000");
    this.#db.run(
      "CREATE TABLE customer (id INTEGER PRIMARY KEY, name TEXT, town TEXT, letter TEXT, spent_cents INTEGER)",
    );
    this.#db.run(
      "CREATE TABLE purchase (id INTEGER PRIMARY KEY, customer INTEGER, goods TEXT, cents INTEGER, state TEXT)",
    );
    this.#db.run("CREATE INDEX purchase_by_customer ON purchase (customer)");
    this.#db.run("CREATE TABLE book (id INTEGER PRIMARY KEY CHECK (id = 1), commits INTEGER)");
    this.#db.run("INSERT INTO book VALUES (1, 0)");
    this.#digest = contentDigest(this.#db).digest;
  }

  open(): void {
    this.#commit(() => {
      for (let id = 1; id <= CUSTOMERS; id++) {
        const letter = `Dear shop, ${"please send me your catalogue. ".repeat(30 + (id % 50))}`;
        this.#insert("customer", [id, `Customer ${id}`, pick(TOWNS), letter, 0]);
      }
    });
  }

  /** One order: a new row, the customer's sum, and an older order is sent or cancelled. */
  takeOrder(): void {
    this.#commit(() => {
      const [customer, cents] = [1 + below(CUSTOMERS), 100 + below(10_000)];
      this.#orders++;
      this.#insert("purchase", [this.#orders, customer, pick(GOODS), cents, "new"]);
      this.#change("customer", customer, (row) => row.with(4, Number(row[4]) + cents));
      const older = 1 + below(this.#orders);
      if (below(20) === 0) this.#delete("purchase", older);
      else this.#change("purchase", older, (row) => row.with(4, "sent"));
    });
  }

  /** What nobody wants to happen: a statement without its WHERE. */
  loseOrders(): void {
    this.#commit(() => {
      for (const row of this.#db.query<{ id: number }, []>("SELECT id FROM purchase").all())
        this.#delete("purchase", row.id);
    });
  }

  close(): void {
    this.#db.close(true);
  }

  #commit(work: () => void): void {
    this.#db.run("BEGIN IMMEDIATE");
    work();
    this.#commits++;
    this.#change("book", 1, () => [1, this.#commits]);
    this.#db.run("COMMIT");
    const digest = Buffer.from(this.#digest).toString("hex");
    const content: Content = { commit: this.#commits, atMs: Date.now(), orders: this.#orders, digest };
    process.stdout.write(`${JSON.stringify(content)}\n`);
  }

  #insert(table: string, row: Row): void {
    this.#db.query(`INSERT INTO ${table} VALUES (${row.map(() => "?").join(", ")})`).run(...row);
    xorInto(this.#digest, rowHash(table, row));
  }

  #delete(table: string, id: number): void {
    const row = this.#find(table, id);
    if (row === null) return;
    this.#db.query(`DELETE FROM ${table} WHERE id = ?`).run(id);
    xorInto(this.#digest, rowHash(table, row));
  }

  #change(table: string, id: number, how: (row: Row) => Row): void {
    const row = this.#find(table, id);
    if (row === null) return;
    this.#delete(table, id);
    this.#insert(table, how(row));
  }

  #find(table: string, id: number): Row | null {
    const [row] = this.#db
      .query<Record<string, Row[number]>, [number]>(`SELECT * FROM ${table} WHERE id = ?`)
      .values(id);
    return (row as Row[number][] | undefined) ?? null;
  }
}

function below(limit: number): number {
  return Math.floor(Math.random() * limit);
}

function pick(words: readonly string[]): string {
  return words[below(words.length)] ?? "";
}

const shop = new Shop(process.argv[2] ?? "");
shop.open();
let isOpen = true;
void readCommands();
const openedMs = performance.now();
for (let taken = 0; isOpen; ) {
  const due = ((performance.now() - openedMs) / 1000) * ORDERS_PER_SECOND;
  for (; taken < due && isOpen; taken++) shop.takeOrder();
  await Bun.sleep(5 + below(30));
}
shop.close();

/** The end of standard input is the end of the demo, however that came. */
async function readCommands(): Promise<void> {
  for await (const line of console) {
    if (line === "accident") shop.loseOrders();
    if (line === "close") break;
  }
  isOpen = false;
}
