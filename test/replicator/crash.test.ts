import { expect, test } from "bun:test";
import { type Daemon, QUICK, Replication } from "./replication.ts";
import { LARGE_ROWS } from "./scenarios/large-sets.ts";
import { type Step, startTrapped, type Trap, type TrappedDaemon } from "./trapped.ts";

/** Every write that a daemon makes is one after which it may be killed. */

async function begin(): Promise<Replication> {
  const r = await Replication.begin({ inDirectory: true });
  await r.makeRows(40);
  return r;
}

function trapped(r: Replication, ...traps: readonly Trap[]): TrappedDaemon {
  return startTrapped({ databasePath: r.databasePath, backendPath: r.backend.location, settings: QUICK, traps });
}

const begun = (daemon: Daemon) => daemon.log.find(/full backup begins/).map(({ fields }) => fields["reason"]);

const stepsOfChangeSet: readonly (readonly [Step, nth: number])[] = [
  ["before the attempt", 1],
  ["after the attempt", 1],
  ["before the put of a change-set", 1],
  ["after the put of a change-set", 1],
  ["before the ledger entries", 1],
  ["after the ledger entries", 1],
  ["before the cursor", 1],
  ["after the cursor", 1],
  ["after the attempt", 2],
  ["after the put of a change-set", 2],
  ["after the ledger entries", 3],
];

for (const [step, nth] of stepsOfChangeSet) {
  test(`a daemon killed ${step} for the ${nth}. time loses nothing, and its successor goes on from the WAL`, async () => {
    await using r = await begin();
    await (await r.startSynced()).stop();
    await using victim = trapped(r, { step, nth, action: "kill" });
    await r.writer.resume();
    await victim.killed();
    await r.writer.pause();
    await r.writer.burst(3);
    const daemon = await r.startSynced();
    expect(daemon.log.find(/interrupted|does not remember/)).toEqual([]);
    expect(daemon.log.find(/continuity is proven/)).toHaveLength(1);
    expect(begun(daemon)).toEqual([]);
    expect(await r.fulls()).toHaveLength(1);
    await r.assertSound();
  });
}

for (const step of ["after the put of a change-set", "after the ledger entries"] as const) {
  test(`a daemon killed ${step}, and with it the WAL, costs one comparison`, async () => {
    await using r = await begin();
    await (await r.startSynced()).stop();
    await using victim = trapped(r, { step, nth: 1, action: "kill" });
    await r.writer.burst(5);
    await victim.killed();
    await r.writer.burst(5);
    await r.stopWriter();
    const daemon = await r.startSynced();
    expect(daemon.log.find(/compared the database/)).toHaveLength(1);
    expect(begun(daemon)).toEqual([]);
    await r.assertSound();
  });
}

const stepsOfFull: readonly (readonly [Step, isStored: boolean])[] = [
  ["midway in the put of a full", false],
  ["after the put of a full", true],
  ["before the ledger slot", true],
  ["after the ledger slot", true],
  ["after the ledger of a new chain is in place", true],
  ["before a full backup is noted", true],
  ["before the put of a CURRENT", true],
  ["after the put of a CURRENT", true],
  ["before the cursor", true],
];

for (const [step, isStored] of stepsOfFull) {
  test(`a daemon killed ${step} in its first full backup ${isStored ? "takes no second one" : "begins it again"}`, async () => {
    await using r = await begin();
    await using victim = trapped(r, { step, nth: 1, action: "kill" });
    await victim.killed();
    await r.writer.burst(5);
    const daemon = await r.startSynced();
    expect(begun(daemon)).toEqual(isStored ? [] : ["first backup"]);
    expect(await r.fulls()).toHaveLength(1);
    await r.writer.burst(5);
    await daemon.synced();
    await r.assertSound();
    await daemon.stop();
    const next = await r.startSynced();
    expect(begun(next)).toEqual([]);
    expect(next.log.find(/continuity is proven/)).toHaveLength(1);
  });
}

const stepsOfLargeSet: readonly Step[] = [
  "midway in the put of a change-set",
  "after the put of a change-set",
  "before the ledger entries",
  "after the ledger entries",
];

for (const step of stepsOfLargeSet) {
  test(`a daemon killed ${step} of a large set loses nothing`, async () => {
    await using r = await Replication.begin({ inDirectory: true });
    await r.makeRows(LARGE_ROWS);
    await (await r.startSynced()).stop();
    await using victim = trapped(
      r,
      {
        step: "midway in the put of a change-set",
        nth: 1,
        action: step === "midway in the put of a change-set" ? "kill" : "pause",
      },
      { step, nth: 1, action: "kill" },
    );
    await r.setAllRows("1");
    if (step !== "midway in the put of a change-set") {
      await victim.reached();
      await r.setRows("2", 1, LARGE_ROWS);
      await victim.release();
    }
    await victim.killed();
    await r.setRows("3", 2);
    const daemon = await r.startSynced();
    expect(daemon.log.find(/interrupted|does not remember/)).toEqual([]);
    expect(daemon.log.find(/continuity is proven/)).toHaveLength(1);
    expect(begun(daemon)).toEqual([]);
    await r.assertLatestIsLive();
    expect(daemon.log.find(/stored a change-set/).length).toBeGreaterThan(0);
  });
}
