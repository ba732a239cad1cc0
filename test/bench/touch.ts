/** `bun touch.ts <database>…`: an application that commits one row to each. */
import { Database } from "bun:sqlite";

for (const path of process.argv.slice(2)) {
  using db = new Database(path, { readwrite: true, create: false });
  db.run("PRAGMA busy_timeout=10000");
  db.run("UPDATE content SET title = 'touched' WHERE id = 1");
}
