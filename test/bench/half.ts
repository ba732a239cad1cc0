/** `bun half.ts <database>`: an application that rewrites half of the rows, and so of the pages, in one transaction. */
import { Database } from "bun:sqlite";

const [path = ""] = process.argv.slice(2);
using db = new Database(path, { readwrite: true, create: false });
db.run("PRAGMA busy_timeout=10000");
db.run("PRAGMA synchronous=OFF");
db.run("UPDATE content SET body = upper(body) WHERE id <= (SELECT max(id) FROM content) / 2");
