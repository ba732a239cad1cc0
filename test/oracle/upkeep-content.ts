import { Database } from "bun:sqlite";

export const SLOTS = 32;

/** What row `i` holds: some hundred bytes, none like another. */
export function rowText(i: number): string {
  return `${i};`.repeat(20 + ((i * 7919) % 300));
}

/** The number of commits that the database holds. Throws unless it holds all of what they wrote and nothing else. */
export function countCommits(path: string): number {
  using db = new Database(path, { readonly: true, strict: true });
  const rows = db.query<{ i: number; x: string }, []>("SELECT i, x FROM row ORDER BY i").all();
  for (const [at, { i, x }] of rows.entries())
    if (i !== at + 1 || x !== rowText(i)) throw new Error(`row ${at + 1} is not what was written`);
  const slots = db.query<{ k: number; i: number; x: string }, []>("SELECT k, i, x FROM slot ORDER BY k").all();
  if (slots.length !== Math.min(SLOTS, rows.length)) throw new Error(`there are ${slots.length} slots`);
  for (const { k, i, x } of slots) {
    const newest = rows.length - ((((rows.length - k) % SLOTS) + SLOTS) % SLOTS);
    if (i !== newest || x !== rowText(i)) throw new Error(`slot ${k} holds commit ${i} instead of ${newest}`);
  }
  return rows.length;
}
