/** An application for `upkeep.test.ts`: `bun upkeep-writer.ts <database>`. One line for each commit: number, before, after. */
import { Database } from "bun:sqlite";
import { rowText, SLOTS } from "./upkeep-content.ts";

const PAUSE_MS = 20;

using db = new Database(process.argv[2] ?? "", { create: true });
db.run("PRAGMA journal_mode = WAL");
db.run("PRAGMA busy_timeout = 5000");
db.run("CREATE TABLE IF NOT EXISTS row (i INTEGER PRIMARY KEY, x TEXT)");
db.run("CREATE TABLE IF NOT EXISTS slot (k INTEGER PRIMARY KEY, i INTEGER, x TEXT)");
process.on("SIGTERM", () => process.exit(0));
for (let i = 1; ; i++) {
  const beforeMs = Date.now();
  db.transaction(() => {
    db.run("INSERT INTO row VALUES (?, ?)", [i, rowText(i)]);
    db.run("INSERT OR REPLACE INTO slot VALUES (?, ?, ?)", [i % SLOTS, i, rowText(i)]);
  }).immediate();
  process.stdout.write(`${i} ${beforeMs} ${Date.now()}\n`);
  await Bun.sleep(PAUSE_MS);
}
