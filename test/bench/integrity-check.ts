/** `bun integrity-check.ts <database>`: what SQLite needs for its check of a whole file, in a process of its own. */
import { Database } from "bun:sqlite";

using db = new Database(process.argv[2], { readonly: true });
const row = db.query<{ integrity_check: string }, []>("PRAGMA integrity_check").get();
if (row?.integrity_check !== "ok") throw new Error(`integrity_check: ${row?.integrity_check}`);
