import { expect, test } from "bun:test";
import { copyFile } from "node:fs/promises";
import { bytesSource } from "../../src/storage/backend.ts";
import { MemoryBackend } from "../../src/storage/memory.ts";
import { testKey } from "../replica/builder.ts";
import { CHANGE_SET, type Daemon, FULL, Replication } from "./replication.ts";
import { LARGE_ROWS } from "./scenarios/large-sets.ts";

/** Several writers at one replica, and keys. */

const begun = (daemon: Daemon) => daemon.log.find(/full backup begins/).map(({ fields }) => fields["reason"]);

async function refusal(daemon: Daemon): Promise<{ readonly error: string; readonly hint: string }> {
  const line = await daemon.until("the refusal", () => daemon.log.find(/interrupted/, "error")[0]);
  return { error: String(line.fields["error"]), hint: String(line.fields["hint"]) };
}

test("a daemon whose replica was taken over by another one stops with an error that names the object", async () => {
  await using r = await Replication.begin();
  await r.makeRows(10);
  const first = await r.startSynced();
  // The same database on another machine, with a copy of the state but for the session.
  await using other = await Replication.begin({ idle: true });
  await first.stop();
  await copyFile(await r.copyDatabase("copy.db"), other.databasePath);
  const again = await r.startSynced();
  await other.startWriter({ id: 9 });
  await other.writer.burst(1);
  const taker = await other.startDaemon({ backend: r.backend, takeOver: true });
  await taker.synced();
  await r.writer.burst(1);
  const { error } = await refusal(again);
  expect(error).toMatch(/another bakelite writes to this replica .*\/app\/L0\//);
  await again.stop();
  await other.writer.burst(2);
  await taker.synced();
  other.backend = r.backend;
  await other.assertLatestIsLive();
});

test("a sealed replica is written and restored with its key, across restarts and lost local files", async () => {
  const key = testKey(1);
  await using r = await Replication.begin();
  await r.makeRows(30);
  const daemon = await r.startSynced({ key });
  await r.writer.burst(5);
  await daemon.synced();
  expect((await r.keys()).filter((name) => name.endsWith(".p"))).toEqual([]);
  await r.assertLatestIsLive({ key });
  await expect(r.restore()).rejects.toMatchObject({ code: "key-wrong" });
  await daemon.stop();
  await r.shell('rm "$1" "$2"', r.paths.cursor, r.paths.pages);
  await r.writer.burst(5);
  const next = await r.startSynced({ key });
  expect(begun(next)).toEqual([]);
  await r.assertLatestIsLive({ key });
});

test("a large sealed set and a sealed full backup after it are restored with the key", async () => {
  const key = testKey(2);
  await using r = await Replication.begin();
  await r.makeRows(LARGE_ROWS);
  const daemon = await r.startSynced({ key });
  await r.setAllRows("1");
  await daemon.synced();
  await r.writer.burst(1);
  await daemon.synced();
  await daemon.passDay(r.clock);
  await daemon.until("the second full backup", () => daemon.log.find(/full backup stored/).length === 2);
  await daemon.synced();
  await r.assertLatestIsLive({ key });
});

test("a daemon without a key refuses a sealed replica and stores nothing", async () => {
  await using r = await Replication.begin();
  await r.makeRows(10);
  await (await r.startSynced({ key: testKey(1) })).stop();
  const keys = await r.keys();
  await r.writer.burst(3);
  const daemon = await r.startDaemon();
  const { error, hint } = await refusal(daemon);
  expect(error).toMatch(/encrypted and no key is configured/);
  expect(hint).toMatch(/key_file/);
  expect(await daemon.stop()).toMatchObject({ detail: expect.stringContaining("encrypted and no key is configured") });
  expect(await r.keys()).toEqual(keys);
});

test("a daemon with another key than the replica's stores what its own key restores", async () => {
  await using r = await Replication.begin();
  await r.makeRows(10);
  await (await r.startSynced({ key: testKey(1) })).stop();
  await r.writer.burst(3);
  const daemon = await r.startSynced({ key: testKey(2) });
  expect(begun(daemon)).toEqual(["encryption changed"]);
  await r.assertLatestIsLive({ key: testKey(2) });
});

for (const acceptPlaintext of [false, true]) {
  test(`switching encryption on makes a sealed full backup, which alone restores what follows (accept_plaintext = ${acceptPlaintext})`, async () => {
    await using r = await Replication.begin();
    await r.makeRows(10);
    const plain = await r.startSynced();
    await r.writer.burst(3);
    await plain.synced();
    await plain.stop();
    const key = testKey(3);
    const daemon = await r.startSynced({ key, acceptPlaintext });
    await r.writer.burst(3);
    await daemon.synced();
    expect((await r.keys()).filter((name) => FULL.test(name))).toHaveLength(2);
    expect(begun(daemon)).toEqual(["encryption changed"]);
    expect(daemon.log.find(/./, "warn")).toEqual([]);
    await r.assertLatestIsLive({ key });
    await daemon.stop();
    expect(begun(await r.startSynced({ key, acceptPlaintext }))).toEqual([]);
  });
}

test("a full backup under a new key never has the index of one under another seal", async () => {
  await using r = await Replication.begin();
  await r.makeRows(10);
  await (await r.startSynced()).stop();
  const daemon = await r.startSynced({ key: testKey(3) });
  await daemon.until("the full backup", () => daemon.log.find(/full backup stored/).length === 1);
  const fulls = (await r.keys()).filter((name) => FULL.test(name)).map((name) => name.split(/[/.]/)[2]);
  expect(new Set(fulls).size).toBe(2);
  await r.assertLatestIsLive({ key: testKey(3) });
});

/** A destination whose put looks whether a name is taken and stores after that. */
class UnfencedBackend extends MemoryBackend {
  override readonly capabilities = { putIfAbsent: false };
}

for (const [what, putNumber] of [
  ["its first put", 1],
  ["the put before this one", 2],
] as const) {
  test(`where a put cannot refuse a taken name, a daemon sees that another one has stored over ${what}`, async () => {
    await using other = await Replication.begin();
    await other.makeRows(10);
    const stranger = await other.startSynced();
    await other.writer.burst(1);
    await stranger.synced();
    const [theirs = ""] = (await other.keys()).filter((name) => CHANGE_SET.test(name));
    const theirBytes = await other.backend.get(theirs);

    await using r = await Replication.begin({ backend: new UnfencedBackend() });
    await r.makeRows(10);
    const daemon = await r.startSynced();
    for (let i = 1; i < putNumber; i++) {
      await r.writer.burst(1);
      await daemon.synced();
    }
    const answer = r.backend.gate("stored", CHANGE_SET);
    await r.writer.burst(1);
    await answer.reached();
    await r.backend.inner.put(theirs, bytesSource(Buffer.concat(await Array.fromAsync(theirBytes ?? []))));
    answer.open();
    expect((await refusal(daemon)).error).toContain(`another bakelite writes to this replica (memory:/${theirs})`);
  });
}

test("where a put cannot refuse a taken name, a daemon that is alone goes on", async () => {
  await using r = await Replication.begin({ backend: new UnfencedBackend() });
  await r.makeRows(10);
  const daemon = await r.startSynced();
  for (let i = 0; i < 4; i++) {
    await r.writer.burst(1);
    await daemon.synced();
  }
  await r.assertLatestIsLive();
});

for (const otherCommits of [1, 9]) {
  test(`a daemon that knows another replica, of ${otherCommits + 1} states, is refused by this one of 4`, async () => {
    await using living = await Replication.begin();
    await living.makeRows(10);
    const first = await living.startSynced();
    for (let i = 0; i < 3; i++) {
      await living.writer.burst(1);
      await first.synced();
    }
    await using other = await Replication.begin();
    await other.makeRows(20);
    const own = await other.startSynced();
    for (let i = 0; i < otherCommits; i++) {
      await other.writer.burst(1);
      await own.synced();
    }
    await own.stop();
    const keys = await living.keys();
    const second = await other.startDaemon({ backend: living.backend });
    expect((await refusal(second)).error).toMatch(/another bakelite writes to this replica/);
    await second.stop();
    expect(await living.keys()).toEqual(keys);
    await living.writer.burst(1);
    await first.synced();
    await living.assertSound();
  });
}
