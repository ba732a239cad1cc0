/**
 * The daemon of `upkeep.test.ts`: `bun upkeep-daemon.ts <config>`. It is what `bakelite daemon` runs, with upkeep every
 * second and a grace of one second. Its log goes to standard output, a JSON document for each line.
 */
import { loadConfig } from "../../src/config/load.ts";
import { Supervisor } from "../../src/daemon/supervisor.ts";
import { systemClock } from "../../src/util/clock.ts";
import type { LogFields, Logger } from "../../src/util/logger.ts";

const STALL_LOOK_MS = 5;

const config = await loadConfig(process.argv[2], {});
const stop = new AbortController();
const log = logger({});
process.on("SIGTERM", () => {
  log.info("stopping");
  stop.abort();
});
const supervisor = new Supervisor({
  clock: systemClock,
  log,
  takeOver: false,
  maxConcurrentSnapshots: 2,
  upkeepTimes: { minIntervalMs: 1_000, maxIntervalMs: 2_000, changeSetCount: 16, lookMs: 50, graceMs: 1_000 },
});
await supervisor.start(config.databases);
let longestStallMs = 0;
let looked = { atMs: performance.now(), worked: process.cpuUsage() };
const look = setInterval(() => {
  const nowMs = performance.now();
  const { user, system } = process.cpuUsage(looked.worked);
  // A process that gets no processor does not stall: it is stalled.
  const stallMs = Math.min(nowMs - looked.atMs - STALL_LOOK_MS, (user + system) / 1000);
  longestStallMs = Math.max(longestStallMs, stallMs);
  looked = { atMs: nowMs, worked: process.cpuUsage() };
}, STALL_LOOK_MS);
await supervisor.run(stop.signal);
clearInterval(look);
log.info("ended", { longestStallMs });
// As `main.ts` does, once all was said.
process.stdout.write("", () => process.exit(0));

function logger(given: LogFields): Logger {
  const write = (level: string) => (message: string, fields?: LogFields) => {
    process.stdout.write(`${JSON.stringify({ time: Date.now(), level, message, ...given, ...fields })}\n`);
  };
  return {
    error: write("error"),
    warn: write("warn"),
    info: write("info"),
    debug: write("debug"),
    child: (fields) => logger({ ...given, ...fields }),
  };
}
