/**
 * An application to measure: `bun application.ts '<ApplicationSpec as JSON>'`. It says `ready`, waits for a line on its
 * standard input, commits for as long as it was told, says what it saw as one line of JSON, and waits for another line
 * before it closes the database. The input's end stands for any line.
 */
import { Database } from "bun:sqlite";
import { seededRandom } from "../support/random.ts";
import { type ApplicationResult, type ApplicationSpec, encodeMark } from "./application-protocol.ts";

/** SQLite's own default; an application that waits for locks at all waits longer than any checkpoint of ours. */
const BUSY_TIMEOUT_MS = 5000;
/** Sleeping is only this exact, and spinning for the rest would take a core from whoever else runs. */
const SLEEP_SLACK_MS = 0.1;

const spec = JSON.parse(process.argv[2] ?? "{}") as ApplicationSpec;
const random = seededRandom(spec.seed);
using db = new Database(spec.path, { create: true, strict: true });
db.run(`PRAGMA busy_timeout=${BUSY_TIMEOUT_MS}`);
db.run("PRAGMA journal_mode=WAL");
db.run("PRAGMA synchronous=NORMAL");
if (spec.walAutocheckpoint !== undefined) db.run(`PRAGMA wal_autocheckpoint=${spec.walAutocheckpoint}`);
db.run("CREATE TABLE IF NOT EXISTS entry(id INTEGER PRIMARY KEY, body BLOB NOT NULL)");
db.run("CREATE TABLE IF NOT EXISTS mark(id INTEGER PRIMARY KEY, content BLOB NOT NULL)");
const begin = db.prepare("BEGIN IMMEDIATE");
const insert = db.prepare("INSERT INTO entry(body) VALUES (?)");
const mark = db.prepare("INSERT OR REPLACE INTO mark(id, content) VALUES (1, ?)");
const commit = db.prepare("COMMIT");

const input = console[Symbol.asyncIterator]();
console.log("ready");
await input.next();
console.log(JSON.stringify(work()));
await input.next();
process.exit(0);

function work(): ApplicationResult {
  const latenciesUs: number[] = [];
  const committedMs: number[] = [];
  const body = random.bytes(spec.rowBytes);
  const startMs = performance.now() + spec.warmUpSeconds * 1000;
  const endMs = startMs + spec.seconds * 1000;
  let sequence = 0;
  let count = 0;
  for (let dueMs = performance.now(); ; dueMs += spec.rate === 0 ? 0 : 1000 / spec.rate) {
    if (spec.rate > 0) waitUntil(dueMs);
    const beforeMs = performance.now();
    if (beforeMs >= endMs) break;
    sequence += 1;
    // Different each time, and cheap: the time that is measured is SQLite's.
    new DataView(body.buffer).setFloat64(0, sequence);
    begin.run();
    insert.run(body);
    if (spec.marks) mark.run(encodeMark(sequence));
    commit.run();
    const afterMs = performance.now();
    if (beforeMs < startMs) continue;
    // What the warm-up has fallen behind is not caught up with afterwards.
    if (count === 0) dueMs = beforeMs;
    count += 1;
    latenciesUs.push(Math.round((afterMs - beforeMs) * 1000));
    if (spec.marks) committedMs.push(performance.timeOrigin + afterMs);
  }
  const seconds = (performance.now() - startMs) / 1000;
  return { count, seconds, latenciesUs, committedMs, firstSequence: sequence - count + 1 };
}

function waitUntil(dueMs: number): void {
  const waitMs = dueMs - performance.now();
  if (waitMs > SLEEP_SLACK_MS) Bun.sleepSync(waitMs - SLEEP_SLACK_MS);
  while (performance.now() < dueMs);
}
