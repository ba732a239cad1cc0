import { expect } from "bun:test";
import { type Daemon, Replication } from "../replication.ts";

/** Stamps and epochs when the writer's clock does not run as clocks should. */

export async function clockStepsBack(): Promise<void> {
  await using r = await Replication.begin();
  const daemon = await r.startSynced();
  const early = await commitAndStore(r, daemon);
  r.clock.step(-3_600_000);
  const late = await commitAndStore(r, daemon);
  expect(late.stampMs).toBeLessThan(early.stampMs - 3_500_000);
  expect(await indexAt(r, late.stampMs)).toBe(late.index);
  expect(await indexAt(r, late.stampMs + 60_000)).toBe(late.index);
  // By the clock of the newest epoch that moment came after its commit.
  expect(await indexAt(r, early.stampMs)).toBe(late.index);
  expect(await indexAt(r, late.stampMs - 60_000)).toBeNull();
  const [, second] = (await r.changeSets()).map(({ reader }) => reader.trailer);
  expect(second?.epochs.map(({ number, firstIndex }) => [number, firstIndex])).toEqual([
    [1, 1],
    [2, late.index],
  ]);
  await r.assertSound();
}

export async function clockStepsOn(): Promise<void> {
  await using r = await Replication.begin({ settings: { snapshotIntervalMs: 0 } });
  const daemon = await r.startSynced();
  const early = await commitAndStore(r, daemon);
  r.clock.step(24 * 3_600_000);
  const late = await commitAndStore(r, daemon);
  r.clock.step(-24 * 3_600_000);
  const back = await commitAndStore(r, daemon);
  expect(await indexAt(r, late.stampMs - 3_600_000)).toBe(back.index);
  expect(await indexAt(r, back.stampMs - 1)).toBe(early.index);
  expect((await r.changeSets()).map(({ reader }) => reader.trailer.epochs.length)).toEqual([1, 1, 2]);
  await r.assertSound();
}

export async function clockIsSlewed(): Promise<void> {
  await using r = await Replication.begin();
  const daemon = await r.startSynced();
  const first = await commitAndStore(r, daemon);
  r.clock.step(-900);
  const second = await commitAndStore(r, daemon);
  expect(second.stampMs).toBe(first.stampMs);
  expect(await indexAt(r, first.stampMs)).toBe(second.index);
  r.clock.step(-900);
  const third = await commitAndStore(r, daemon);
  expect(third.stampMs).toBeLessThan(first.stampMs);
  expect((await r.changeSets()).map(({ reader }) => reader.trailer.epochs.length)).toEqual([1, 1, 2]);
  await r.assertSound();
}

async function commitAndStore(
  r: Replication,
  daemon: Daemon,
): Promise<{ readonly index: number; readonly stampMs: number }> {
  await r.writer.burst(1);
  await daemon.synced();
  const { stored } = await daemon.shipper();
  return { index: stored.index, stampMs: stored.stampMs };
}

async function indexAt(r: Replication, timeMs: number): Promise<number | null> {
  return await r.restore({ kind: "time", timeMs }).then(
    ({ plan }) => plan.index,
    () => null,
  );
}
