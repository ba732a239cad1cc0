/** `bun burst.ts <bytes> <database>…`: an application that commits that many random bytes to each, in one transaction. */
import { Database } from "bun:sqlite";

const [bytes = "", ...paths] = process.argv.slice(2);
for (const path of paths) {
  using db = new Database(path, { readwrite: true, create: false });
  db.run("PRAGMA busy_timeout=10000");
  db.run("PRAGMA synchronous=OFF");
  db.run("INSERT INTO content(title, body, token) VALUES ('burst', '', randomblob(?))", [Number(bytes)]);
}
