import { Database } from "bun:sqlite";

/**
 * Writes a lot quickly, in a process of its own: `bun bulk-writer.ts '{"path":…,"transactions":…,"bytes":…,"bytesPerSecond":…}'`.
 * Each transaction inserts about `bytes` of half random, half repeated content. Paced to `bytesPerSecond`, 0 is no limit.
 */
interface Spec {
  readonly path: string;
  readonly transactions: number;
  readonly bytes: number;
  readonly bytesPerSecond: number;
}

const ROW_BYTES = 16_000;
const spec = JSON.parse(process.argv[2] ?? "{}") as Spec;
using db = new Database(spec.path, { create: true, strict: true });
db.run("PRAGMA busy_timeout=60000");
db.run("PRAGMA journal_mode=WAL");
db.run("PRAGMA synchronous=NORMAL");
db.run("CREATE TABLE IF NOT EXISTS bulk(id INTEGER PRIMARY KEY, content BLOB NOT NULL)");
const insert = db.prepare("INSERT INTO bulk(content) VALUES (?)");
const random = crypto.getRandomValues(new Uint8Array(65_536));
const row = new Uint8Array(ROW_BYTES);
const startMs = performance.now();
for (let i = 0; i < spec.transactions; i++) {
  db.run("BEGIN IMMEDIATE");
  for (let written = 0, n = 0; written < spec.bytes; written += ROW_BYTES, n++) {
    row.set(random.subarray((n * 797) % (65_536 - ROW_BYTES / 2)).subarray(0, ROW_BYTES / 2));
    new DataView(row.buffer).setFloat64(0, i * 1e6 + n);
    insert.run(row);
  }
  db.run("COMMIT");
  if (spec.bytesPerSecond === 0) continue;
  const dueMs = ((i + 1) * spec.bytes * 1000) / spec.bytesPerSecond;
  Bun.sleepSync(Math.max(0, dueMs - (performance.now() - startMs)));
}
