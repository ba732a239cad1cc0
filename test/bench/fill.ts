/**
 * Makes a database of about a given size whose content compresses as an application's does, the same for the same seed:
 * `bun fill.ts '<FillSpec as JSON>'`. Words drawn from a vocabulary, and a fifth of each row random; one index.
 */
import { Database } from "bun:sqlite";
import { seededRandom } from "../support/random.ts";

export interface FillSpec {
  readonly path: string;
  readonly bytes: number;
  readonly seed: number;
}

const POOL_BYTES = 8 * 2 ** 20;
const ROW_TEXT_BYTES = 480;
const ROW_RANDOM_BYTES = 120;
const ROWS_PER_TRANSACTION = 2000;
const VOCABULARY = 4000;

if (import.meta.main) fill(JSON.parse(process.argv[2] ?? "{}") as FillSpec);

function fill({ path, bytes, seed }: FillSpec): void {
  const random = seededRandom(seed);
  const words = Array.from({ length: VOCABULARY }, () => word(random.bytes(random.integer(2, 9))));
  let text = "";
  // Some words are much more frequent than others, as in any language.
  while (text.length < POOL_BYTES) text += `${words[Math.floor(random.next() ** 3 * VOCABULARY)]} `;
  const noise = random.bytes(POOL_BYTES);
  using db = new Database(path, { create: true, strict: true });
  db.run("PRAGMA journal_mode=OFF");
  db.run("PRAGMA synchronous=OFF");
  db.run("CREATE TABLE content(id INTEGER PRIMARY KEY, title TEXT NOT NULL, body TEXT NOT NULL, token BLOB NOT NULL)");
  const insert = db.prepare("INSERT INTO content(title, body, token) VALUES (?, ?, ?)");
  const size = db.query<{ bytes: number }, []>(
    "SELECT page_count * page_size AS bytes FROM pragma_page_count, pragma_page_size",
  );
  while ((size.get()?.bytes ?? 0) < bytes) {
    db.run("BEGIN");
    for (let i = 0; i < ROWS_PER_TRANSACTION; i++) {
      const at = random.integer(0, POOL_BYTES - ROW_TEXT_BYTES);
      const noiseAt = random.integer(0, POOL_BYTES - ROW_RANDOM_BYTES);
      const body = text.slice(at, at + ROW_TEXT_BYTES);
      insert.run(body.slice(0, 24), body, noise.subarray(noiseAt, noiseAt + ROW_RANDOM_BYTES));
    }
    db.run("COMMIT");
  }
  // A check of the file has to compare it with its table, as in nearly every real database.
  db.run("CREATE INDEX content_by_title ON content(title)");
  db.run("PRAGMA journal_mode=WAL");
}

function word(bytes: Uint8Array): string {
  return [...bytes].map((byte) => String.fromCharCode(97 + (byte % 26))).join("");
}
