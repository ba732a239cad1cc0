import { rm } from "node:fs/promises";
import { emptyKeyRing } from "../../src/format/envelope.ts";
import { PLAINTEXT_SEAL } from "../../src/format/names.ts";
import type { RetentionPolicy } from "../../src/replica/retention-policy.ts";
import { Mirror } from "../../src/replicator/mirror.ts";
import { FileBackend } from "../../src/storage/file.ts";
import { systemClock } from "../../src/util/clock.ts";
import { silentLogger } from "../../src/util/logger.ts";
import { Semaphore } from "../../src/util/semaphore.ts";
import { eventually } from "../support/eventually.ts";
import { waitedForProcessorMs } from "./proc.ts";
import { runToEnd } from "./scene.ts";

/** What it costs the other databases of a daemon that a mirror finds out what it lacks. */
export interface FillPlan {
  readonly what: string;
  /** From the start of the mirror until it knows what it lacks: two listings, some trailers and the plan. */
  readonly seconds: number;
  /** For which the event loop ran nothing else; not counted is what it waited for a processor, which is the machine's. */
  readonly longestStallSeconds: number;
  readonly lacking: number;
}

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
const PROBE_MS = 1;
const DEADLINE_MS = 300_000;
const KEEP_ALL: RetentionPolicy = {
  mergedKeepMs: [HOUR_MS, DAY_MS, 7 * DAY_MS],
  keepRecent: 16,
  retentionMs: 0,
  maxBackups: 0,
  maxTotalSizeBytes: 0,
};

/** `replica` is a directory with the objects of database `app`, of so many full backups; `place` is made and removed again. */
export async function measureFillPlans(
  replica: string,
  { place, fullBackups }: { readonly place: string; readonly fullBackups: number },
): Promise<readonly FillPlan[]> {
  const plans: FillPlan[] = [];
  for (const [policyName, policy] of [
    ["all of it is kept", KEEP_ALL],
    ["`max_backups` gives up half", { ...KEEP_ALL, maxBackups: Math.ceil(fullBackups / 2) }],
  ] as const) {
    plans.push(await measure(`first listing, ${policyName}`, { replica, place, policy }));
    await rm(place, { recursive: true, force: true });
    // With the same times, as a mirror has about the same.
    await runToEnd(["cp", "-al", replica, place]);
    plans.push(await measure(`daily listing, ${policyName}`, { replica, place, policy }));
    await rm(place, { recursive: true, force: true });
  }
  return plans;
}

async function measure(
  what: string,
  { replica, place, policy }: { readonly replica: string; readonly place: string; readonly policy: RetentionPolicy },
): Promise<FillPlan> {
  const stop = new AbortController();
  const mirror = new Mirror({
    database: "app",
    mirror: new FileBackend({ path: place }),
    type: "file",
    sources: [new FileBackend({ path: replica })],
    keys: emptyKeyRing,
    seal: PLAINTEXT_SEAL,
    acceptPlaintext: true,
    policy,
    highestLevel: 3,
    intervalMs: DAY_MS,
    slots: new Semaphore(1),
    clock: systemClock,
    log: silentLogger,
  });
  Bun.gc(true);
  using stalls = watchEventLoop();
  const startMs = performance.now();
  const running = mirror.run(stop.signal);
  const lacking = await eventually(() => mirror.entry.behind_objects, {
    what: "the mirror to know what it lacks",
    deadlineMs: DEADLINE_MS,
    explain: () => JSON.stringify(mirror.entry),
  });
  const seconds = (performance.now() - startMs) / 1000;
  const longestStallSeconds = stalls.longestMs() / 1000;
  stop.abort();
  await running;
  return { what, seconds, longestStallSeconds, lacking };
}

/** Looks each millisecond how long ago it looked the last time. */
function watchEventLoop(): Disposable & { longestMs(): number } {
  let [lastMs, lastWaitedMs, longestMs] = [performance.now(), waitedForProcessorMs(), 0];
  const probe = setInterval(() => {
    const [nowMs, waitedMs] = [performance.now(), waitedForProcessorMs()];
    longestMs = Math.max(longestMs, nowMs - lastMs - (waitedMs - lastWaitedMs));
    [lastMs, lastWaitedMs] = [nowMs, waitedMs];
  }, PROBE_MS);
  return {
    longestMs: () => longestMs,
    [Symbol.dispose]: () => clearInterval(probe),
  };
}
