import { readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { eventually } from "../support/eventually.ts";
import { count, mebibytes, seconds } from "./figures.ts";
import { processFigures } from "./proc.ts";
import type { BenchReport } from "./report.ts";
import { ApplicationProcess, type BenchContext, startBakelite, untilFullBackup } from "./scene.ts";

/** What an hour costs in which the application is connected and commits nothing. */

const SETTLE_DEADLINE_MS = 60_000;
const HOUR_SECONDS = 3600;

export async function benchIdle({ directory, quick, seed, say }: BenchContext): Promise<BenchReport> {
  const windowSeconds = quick ? 10 : 120;
  const path = join(directory, "app.db");
  const replica = join(directory, "replica");
  const spec = { path, seed, rate: 100, rowBytes: 100, warmUpSeconds: 0, seconds: 2, marks: false };
  await using application = await ApplicationProcess.start(spec);
  await using daemon = await startBakelite(directory, { path, replica });
  await untilFullBackup(daemon);
  await application.run();
  // What was committed last is shipped, and what follows it (cursor, ledger) is written.
  await untilStill(directory);
  say(`idle for ${windowSeconds} s`);
  const before = { figures: processFigures(daemon.pid), replica: listing(replica), state: listing(stateOf(directory)) };
  await Bun.sleep(windowSeconds * 1000);
  const after = { figures: processFigures(daemon.pid), replica: listing(replica), state: listing(stateOf(directory)) };
  daemon.checkRunning();

  const hours = windowSeconds / HOUR_SECONDS;
  const inAnHour = (amount: number) => amount / hours;
  const written = after.figures.writtenBytes - before.figures.writtenBytes;
  const changed = [...changes(before.state, after.state)];
  return {
    name: "idle",
    tables: [
      {
        title: `One database, an idle hour (extrapolated from ${windowSeconds} s)`,
        columns: ["", "an hour"],
        rows: [
          ["CPU time", seconds(inAnHour(after.figures.cpuSeconds - before.figures.cpuSeconds))],
          ["written to the local disk", mebibytes(inAnHour(written))],
          ["calls of write and its kin", count(inAnHour(after.figures.writeCalls - before.figures.writeCalls))],
          [
            "objects made, replaced or removed at the destination",
            count(inAnHour(changes(before.replica, after.replica).size)),
          ],
        ],
      },
    ],
    budgets: [],
    notes: [
      `Files in \`.bakelite/\` that changed meanwhile: ${changed.length === 0 ? "none" : changed.sort().join(", ")}.`,
      "Reads of the destination leave no trace in a directory and are not counted; the daemon lists a destination when it attaches, not while it is idle.",
    ],
  };
}

function stateOf(directory: string): string {
  return join(directory, ".bakelite");
}

/** Nothing but the status, which is published all the time, changes any more for longer than the ledger takes to be written. */
async function untilStill(directory: string): Promise<void> {
  const STILL_MS = 7000;
  let last = fingerprint(directory);
  let sinceMs = performance.now();
  await eventually(
    () => {
      const now = fingerprint(directory);
      if (now !== last) sinceMs = performance.now();
      last = now;
      return performance.now() - sinceMs >= STILL_MS;
    },
    { what: "the daemon to come to rest", deadlineMs: SETTLE_DEADLINE_MS, pollMs: 100 },
  );
}

function fingerprint(directory: string): string {
  const files = [...listing(directory)].filter(([name]) => !name.includes("status.json"));
  return JSON.stringify(files);
}

/** Name of every file below, and what changes when it is written or replaced. */
function listing(directory: string): ReadonlyMap<string, string> {
  const files = new Map<string, string>();
  for (const entry of readdirSync(directory, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile()) continue;
    const path = join(entry.parentPath, entry.name);
    const stat = statSync(path, { bigint: true, throwIfNoEntry: false });
    if (stat !== undefined) files.set(path.slice(directory.length + 1), `${stat.ino} ${stat.ctimeNs} ${stat.size}`);
  }
  return files;
}

function changes(before: ReadonlyMap<string, string>, after: ReadonlyMap<string, string>): ReadonlySet<string> {
  return new Set([...before.keys(), ...after.keys()].filter((name) => before.get(name) !== after.get(name)));
}
