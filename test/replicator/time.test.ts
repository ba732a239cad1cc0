import { expect, test } from "bun:test";
import { Replication } from "./replication.ts";

/** Stamps and epochs when the writer's clock does not run as clocks should. */

const HOUR_MS = 3_600_000;

test("a clock that steps back while no daemon runs begins an epoch at the next change-set", async () => {
  await using r = await Replication.begin();
  const first = await r.startSynced();
  await r.writer.burst(1);
  await first.synced();
  await first.stop();
  r.clock.step(-HOUR_MS);
  const daemon = await r.startSynced();
  await r.writer.burst(1);
  await daemon.synced();
  const [before, after] = (await r.changeSets()).slice(-2).map(({ reader }) => reader.trailer);
  expect(after?.epochs.map(({ number }) => number)).toEqual([1, 2]);
  expect(after?.lastCommitMs).toBeLessThan(before?.lastCommitMs ?? 0);
  await r.assertSound();
});

test("epochs beyond the last 64 are left out of new objects and lose nothing", async () => {
  await using r = await Replication.begin();
  const daemon = await r.startSynced();
  const stamps: number[] = [];
  for (let i = 0; i < 70; i++) {
    r.clock.step(-60_000);
    await r.writer.burst(1);
    await daemon.synced();
    stamps.push((await daemon.shipper()).stored.stampMs);
  }
  const trailers = (await r.changeSets()).map(({ reader }) => reader.trailer);
  expect(trailers.at(-1)?.epochs).toHaveLength(64);
  expect(trailers.at(-1)?.epochs.at(-1)?.number).toBe(71);
  // Each moment belongs to one commit only, though they were made in the reverse of that order.
  for (const [i, stampMs] of stamps.entries()) {
    if (i % 10 !== 3) continue;
    const { plan } = await r.restore({ kind: "time", timeMs: stampMs });
    expect(plan.stampMs).toBeLessThanOrEqual(stampMs);
  }
  expect((await r.restore({ kind: "time", timeMs: stamps.at(-1) ?? 0 })).plan.stampMs).toBe(stamps.at(-1) ?? 0);
});

test("a full backup that a wrong clock dated into the future does not keep the next one from its interval", async () => {
  await using r = await Replication.begin();
  await r.makeRows(10);
  r.clock.step(400 * 24 * HOUR_MS);
  const daemon = await r.startSynced();
  r.clock.step(-400 * 24 * HOUR_MS);
  await r.writer.burst(1);
  const shipper = await daemon.shipper();
  await daemon.until("the commit to be stored", () => shipper.stored.index === 2);
  await daemon.lookAtSchedule();
  await daemon.until("another full backup", () => daemon.log.find(/full backup stored/).length === 2);
  await daemon.synced();
  await r.assertSound();
});
