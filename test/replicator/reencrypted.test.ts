import { expect, test } from "bun:test";
import { testKey } from "../replica/builder.ts";
import { optionsFor, reencrypt } from "../replica/reencrypt-scene.ts";
import { type Daemon, QUICK, Replication } from "./replication.ts";
import { type Step, startTrapped } from "./trapped.ts";

/** What a daemon remembers of the replica stays true when that is rewritten under another key. */

const begun = (daemon: Daemon) => daemon.log.find(/full backup begins/).map(({ fields }) => fields["reason"]);

const steps: readonly Step[] = [
  "after the attempt",
  "after the put of a change-set",
  "after the ledger entries",
  "before the cursor",
];

for (const step of steps) {
  test(`a daemon killed ${step} finds what it had stored under another key as its own, and goes on from the WAL`, async () => {
    await using r = await Replication.begin({ inDirectory: true });
    await r.makeRows(40);
    await (await r.startSynced()).stop();
    await using victim = startTrapped({
      databasePath: r.databasePath,
      backendPath: r.backend.location,
      settings: QUICK,
      traps: [{ step, nth: 1, action: "kill" }],
    });
    await r.writer.resume();
    await victim.killed();
    await r.writer.pause();
    const key = testKey(1);
    const report = await reencrypt(optionsFor([r.backend], { from: null, to: key }));
    expect(report.problems.listed).toEqual([]);
    await r.writer.burst(3);
    const daemon = await r.startSynced({ key });
    expect(daemon.log.find(/interrupted|does not remember|compared/)).toEqual([]);
    expect(daemon.log.find(/continuity is proven/)).toHaveLength(1);
    expect(begun(daemon)).toEqual([]);
    expect(await r.fulls({ key })).toHaveLength(1);
    await r.assertLatestIsLive({ key });
  });
}

test("a database that lost its local state after a reencrypt goes on without a full backup", async () => {
  await using r = await Replication.begin();
  await r.makeRows(20);
  const daemon = await r.startSynced({ key: testKey(1) });
  await r.writer.burst(3);
  await daemon.synced();
  await daemon.stop();
  await reencrypt(optionsFor([r.backend], { from: testKey(1), to: testKey(2) }));
  await r.shell('rm "$1" "$2"', r.paths.cursor, r.paths.pages);
  await r.writer.burst(3);
  const next = await r.startSynced({ key: testKey(2) });
  expect(begun(next)).toEqual([]);
  await r.assertLatestIsLive({ key: testKey(2) });
});
