import { expect } from "bun:test";
import { MemoryBackend } from "../../../src/storage/memory.ts";
import { FaultyBackend } from "../../faults/faulty-backend.ts";
import { eventually } from "../../support/eventually.ts";
import type { Random } from "../../support/random.ts";
import { shortWaits } from "../../support/short-waits.ts";
import { GatedBackend } from "../gated-backend.ts";
import { Replication } from "../replication.ts";

const MAX_GRADED = 25;

/**
 * Everything at once: a hostile writer and an ordinary one, a faulty destination, full backups all the time, and `rounds` daemons one
 * after the other. Throws unless every restore point is sound and no full backup was taken that nobody asked for.
 */
export async function storm(random: Random, rounds: number): Promise<void> {
  using _waits = shortWaits();
  const memory = new MemoryBackend();
  const backend = new FaultyBackend(memory, {
    seed: random.integer(1, 1e9),
    slowMs: 30,
    rates: {
      put: { refuse: 0.03, "lose-answer": 0.03, cut: 0.03, slow: 0.3 },
      get: { refuse: 0.02, cut: 0.02, slow: 0.1 },
      list: { refuse: 0.02 },
    },
  });
  await using r = await Replication.begin({
    backend,
    idle: true,
    settings: { maxWalSizeBytes: 256 * 1024, maxSegmentsPerSnapshot: 5, debounceMs: 2, maxBatchDelayMs: 20 },
  });
  const common = { rate: 100, startPaused: false, targetBytes: 1024 * 1024 };
  await r.startWriter({ ...common, mode: "hostile", seed: random.integer(1, 1e9), walAutocheckpoint: 5 });
  await r.startWriter({ ...common, mode: "normal", seed: random.integer(1, 1e9) });
  const [hostile, normal] = r.writers;
  for (let round = 0; round < rounds; round++) {
    const daemon = await r.startDaemon();
    const goal = r.commits + random.integer(20, 150);
    await eventually(() => r.commits >= goal, {
      what: "commits",
      deadlineMs: 30_000,
      explain: () => daemon.log.text.slice(-3000),
    });
    if (random.chance(0.3)) {
      backend.isOffline = true;
      const next = goal + random.integer(10, 60);
      await eventually(() => r.commits >= next, { what: "commits", deadlineMs: 30_000 });
      backend.isOffline = false;
    }
    if (round === rounds - 1) {
      await hostile?.pause();
      await normal?.pause();
    }
    await daemon.synced(60_000);
    await daemon.stop();
    const reasons = Object.keys(daemon.replicator.totals.fullBackupsByReason);
    expect(reasons.filter((reason) => reason !== "first backup" && reason !== "change-set count")).toEqual([]);
    expect(daemon.log.find(/not what was stored|replication is interrupted/).map(({ fields }) => fields)).toEqual([]);
  }
  r.backend = new GatedBackend(memory);
  await r.assertLatestIsLive();
  const points = await r.restorePoints();
  const graded = points.length <= MAX_GRADED ? points : Array.from({ length: MAX_GRADED }, () => random.pick(points));
  for (const index of graded) {
    const { bytes, plan } = await r.restore({ kind: "index", index });
    await r.grade(bytes, { storedFloorN: 0, targetMs: plan.stampMs });
  }
}
