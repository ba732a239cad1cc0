/**
 * An application that changes pages and soon changes them back to the very bytes that they had, which the oracle's own
 * writers hardly ever do: `bun torture-flipper.ts <database> <bytes>`. It keeps about so many bytes of rows that do not
 * compress, prints `ready` when they are there, and ends when its standard input does.
 */
import { BUSY_SLICE_MS, Connection, isBusy } from "./store.ts";

const MIN_ROWS = 40;
const ROWS_PER_COMMIT = 500;
/** Most commits come in pairs, and this is how much time lies between the two at most. */
const MAX_PAUSE_MS = 60;

const connection = new Connection(process.argv[2] ?? "");
let ended = false;
process.stdin.on("end", () => {
  ended = true;
});
process.stdin.resume();

const rowCount = await fill(Number(process.argv[3] ?? 0));
console.log("ready");
while (!ended) {
  const ids = Array.from({ length: 1 + Math.floor(Math.random() * 5) }, () => 1 + Math.floor(Math.random() * rowCount));
  await flip(ids, 0xff);
  await Bun.sleep(Math.random() * MAX_PAUSE_MS);
  await flip(ids, 0x00);
  if (Math.random() < 0.3) await Bun.sleep(Math.random() * MAX_PAUSE_MS);
}
connection.close();

/** About a page for each row, so that a flipped row is one page or two that nobody else writes to. */
async function fill(bytes: number): Promise<number> {
  const sql = "CREATE TABLE IF NOT EXISTS flipped (id INTEGER PRIMARY KEY, body BLOB NOT NULL)";
  await commit(() => connection.run(sql));
  const pageSizeBytes = Number(connection.get("PRAGMA page_size")?.["page_size"]);
  const count = Math.max(MIN_ROWS, Math.floor(bytes / pageSizeBytes));
  for (let id = 1; id <= count; id += ROWS_PER_COMMIT)
    await commit(() => {
      for (let i = id; i < Math.min(id + ROWS_PER_COMMIT, count + 1); i++)
        connection.run(
          "INSERT OR IGNORE INTO flipped (id, body) VALUES (?, randomblob(?))",
          i,
          Math.floor(pageSizeBytes * 0.8),
        );
    });
  return count;
}

/** Writes the first and last bytes of the rows, in place. */
async function flip(ids: readonly number[], byte: number): Promise<void> {
  await commit(() => {
    for (const id of ids) {
      const body = connection.get("SELECT body FROM flipped WHERE id = ?", id)?.["body"] as Uint8Array;
      body.fill(byte, 0, 16);
      body.fill(byte, body.length - 16);
      connection.run("UPDATE flipped SET body = ? WHERE id = ?", body, id);
    }
  });
}

async function commit(work: () => void): Promise<void> {
  for (;;) {
    try {
      connection.run("BEGIN IMMEDIATE");
      work();
      connection.run("COMMIT");
      return;
    } catch (error) {
      if (connection.inTransaction) connection.run("ROLLBACK");
      if (!isBusy(error)) throw error;
      await Bun.sleep(Math.random() * BUSY_SLICE_MS);
    }
  }
}
