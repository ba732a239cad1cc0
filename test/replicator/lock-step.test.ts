import { expect, test } from "bun:test";
import { reportStatus } from "../../src/daemon/status-report.ts";
import { deriveSealKey, type SealKey } from "../../src/format/envelope.ts";
import type { DestinationTimes, OnIncomplete } from "../../src/replicator/destinations.ts";
import type { Member } from "../../src/replicator/member.ts";
import { readOwnIdentity } from "../../src/state/process-identity.ts";
import type { StatusFile } from "../../src/state/status.ts";
import type { Backend } from "../../src/storage/backend.ts";
import { MemoryBackend } from "../../src/storage/memory.ts";
import { FaultyBackend } from "../faults/faulty-backend.ts";
import { withSeed } from "../support/random.ts";
import { shortWaits } from "../support/short-waits.ts";
import { GatedBackend, unreachable } from "./gated-backend.ts";
import { CHANGE_SET, type Daemon, type DaemonOptions, FULL, Replication } from "./replication.ts";
import { LARGE_ROWS } from "./scenarios/large-sets.ts";

/** Several destinations in lock-step, of which one or the other does not do what it should. */

/** Nothing here takes long, and nobody is to wait for what never comes. */
const QUICK_TIMES: Partial<DestinationTimes> = {
  patienceMs: 300,
  fullPatienceMs: 300,
  answerMs: 300,
  aloneMs: 200,
  checkMs: 100,
  retryBaseMs: 50,
};

interface Place {
  readonly memory: MemoryBackend;
  readonly faulty: FaultyBackend;
  readonly gated: GatedBackend;
}

class LockStep implements AsyncDisposable {
  readonly r: Replication;
  readonly places: readonly Place[];

  private constructor(r: Replication, places: readonly Place[]) {
    this.r = r;
    this.places = places;
  }

  static async begin(count: number): Promise<LockStep> {
    const r = await Replication.begin();
    return new LockStep(
      r,
      Array.from({ length: count }, (_, i) => newPlace(`memory:${"abc"[i]}`)),
    );
  }

  get a(): Place {
    return this.#place(0);
  }

  get b(): Place {
    return this.#place(1);
  }

  #place(position: number): Place {
    const place = this.places[position];
    if (place === undefined) throw new Error(`there is no place ${position}`);
    return place;
  }

  async start(
    options: {
      readonly onIncomplete?: OnIncomplete;
      readonly times?: Partial<DestinationTimes>;
      readonly backends?: readonly Backend[];
      readonly settings?: DaemonOptions["settings"];
      readonly key?: SealKey;
    } = {},
  ): Promise<Daemon> {
    const { onIncomplete, times, backends, settings, key } = options;
    return await this.r.startDaemon({
      backends: backends ?? this.places.map(({ gated }) => gated),
      lockStep: { times: { ...QUICK_TIMES, ...times }, ...(onIncomplete === undefined ? {} : { onIncomplete }) },
      ...(settings === undefined ? {} : { settings }),
      ...(key === undefined ? {} : { key }),
    });
  }

  async startSynced(options: Parameters<LockStep["start"]>[0] = {}): Promise<Daemon> {
    const daemon = await this.start(options);
    await daemon.synced();
    return daemon;
  }

  /** Each by itself restores the database as it is. */
  async assertEachRestoresLatest(places: readonly Place[] = this.places, key: SealKey | null = null): Promise<void> {
    for (const { memory } of places) {
      this.r.backend = new GatedBackend(memory);
      await this.r.assertLatestIsLive({ key });
    }
  }

  async keysAt({ memory }: Place): Promise<readonly string[]> {
    const keys: string[] = [];
    for await (const { key } of memory.list("app/")) if (!key.endsWith("CURRENT")) keys.push(key);
    return keys;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.r[Symbol.asyncDispose]();
  }
}

function newPlace(location: string): Place {
  const memory = new MemoryBackend({ location });
  const faulty = new FaultyBackend(memory, { seed: 1 });
  return { memory, faulty, gated: new GatedBackend(faulty) };
}

function memberAt(daemon: Daemon, { memory }: Place): Member {
  const member = daemon.replicator.inputs.destinations.all.find(({ backend }) => backend.location === memory.location);
  if (member === undefined) throw new Error(`no destination is ${memory.location}`);
  return member;
}

async function complete(daemon: Daemon, place: Place): Promise<void> {
  await daemon.until(`${place.memory.location} to be complete`, () => memberAt(daemon, place).isComplete);
}

async function statusOf(daemon: Daemon): Promise<StatusFile["destinations"]> {
  const status = reportStatus(daemon.replicator, {
    bakeliteVersion: "0.0.0",
    process: await readOwnIdentity(),
    startedMs: 0,
    nowMs: Date.now(),
    monotonicMs: performance.now(),
    publishIntervalMs: 1000,
    limitsUnmet: [],
  });
  return status.destinations;
}

const begun = (daemon: Daemon) => daemon.log.find(/full backup begins/).map(({ fields }) => fields["reason"]);

test("a destination that is away holds nobody up, is said to be incomplete, and is filled when it is back", async () => {
  await using scene = await LockStep.begin(3);
  const { r, a, b } = scene;
  await r.makeRows(20);
  const daemon = await scene.startSynced();
  b.faulty.isOffline = true;
  for (let i = 0; i < 5; i++) {
    await r.writer.burst(3);
    await daemon.synced();
  }
  const away = memberAt(daemon, b);
  expect(away.standing).toBe("out");
  expect(away.health.streak).not.toBeNull();
  expect(memberAt(daemon, a)).toMatchObject({ standing: "whole", isComplete: true });
  expect(daemon.replicator.health.streak).toBeNull();
  expect(daemon.log.find(/a destination is incomplete/, "warn")).toHaveLength(1);
  const [first, second] = await statusOf(daemon);
  expect(first).toMatchObject({ state: "in sync", unhealthy: null, last_error: null });
  expect(second).toMatchObject({ state: "incomplete", unhealthy: { last_error: { code: "storage-unreachable" } } });
  expect(first?.index ?? 0).toBeGreaterThan(second?.index ?? 0);
  await scene.assertEachRestoresLatest([a]);

  b.faulty.isOffline = false;
  await complete(daemon, b);
  await r.writer.burst(3);
  await daemon.synced();
  expect(begun(daemon)).toEqual(["first backup"]);
  expect(daemon.log.find(/interrupted/)).toEqual([]);
  expect(await scene.keysAt(b)).toEqual(await scene.keysAt(a));
  await scene.assertEachRestoresLatest();
});

test("a destination that hangs is waited for once, for as long as patience lasts", async () => {
  await using scene = await LockStep.begin(2);
  const { r, a, b } = scene;
  await r.makeRows(20);
  const daemon = await scene.startSynced();
  b.faulty.failNext("put", "hang", { times: 1 });
  b.faulty.failNext("list", "hang", { times: 1_000_000 });
  for (let i = 0; i < 3; i++) {
    await r.writer.burst(1);
    await daemon.synced();
  }
  expect(memberAt(daemon, b).standing).toBe("out");
  expect(b.faulty.calls.filter(({ verb, fault }) => verb === "put" && fault === "hang")).toHaveLength(1);
  await scene.assertEachRestoresLatest([a]);
  await daemon.stop();
  b.faulty.failNext("list", "slow");
  const healed = newFaults(scene, b);
  const next = await scene.startSynced({ backends: [a.gated, healed.gated] });
  await complete(next, healed);
  await scene.assertEachRestoresLatest();
});

function newFaults(_scene: LockStep, { memory }: Place): Place {
  const faulty = new FaultyBackend(memory, { seed: 2 });
  return { memory, faulty, gated: new GatedBackend(faulty) };
}

test("a large change-set goes on to one destination when the other breaks off in the middle of it", async () => {
  await using scene = await LockStep.begin(2);
  const { r, b } = scene;
  await r.makeRows(LARGE_ROWS);
  const daemon = await scene.startSynced();
  const put = b.gated.gate("midway", CHANGE_SET);
  await r.setAllRows("1");
  await put.reached();
  put.fail(unreachable());
  await daemon.synced();
  await complete(daemon, b);
  expect(daemon.log.find(/trying again/, "warn")).toEqual([]);
  expect(begun(daemon)).toEqual(["first backup"]);
  await scene.assertEachRestoresLatest();
});

test("a first full backup that one destination does not take is copied there", async () => {
  await using scene = await LockStep.begin(2);
  const { r, a, b } = scene;
  await r.makeRows(800);
  const put = b.gated.gate("midway", FULL);
  const daemon = await scene.start();
  await put.reached();
  await r.writer.burst(3);
  put.fail(unreachable());
  await daemon.synced();
  await complete(daemon, b);
  expect(begun(daemon)).toEqual(["first backup"]);
  expect(await scene.keysAt(b)).toEqual(await scene.keysAt(a));
  await scene.assertEachRestoresLatest();
});

test("a destination that is new in the config is filled without a full backup", async () => {
  await using scene = await LockStep.begin(2);
  const { r, a, b } = scene;
  await r.makeRows(20);
  const before = await scene.startSynced({ backends: [a.gated] });
  await r.writer.burst(3);
  await before.synced();
  await before.stop();
  const daemon = await scene.startSynced();
  await complete(daemon, b);
  expect(begun(daemon)).toEqual([]);
  expect(await scene.keysAt(b)).toEqual(await scene.keysAt(a));
  await scene.assertEachRestoresLatest();
});

test("a sealed replica is filled as it is, byte for byte", async () => {
  await using scene = await LockStep.begin(2);
  const { r, a, b } = scene;
  const key = deriveSealKey(new Uint8Array(32).fill(7));
  await r.makeRows(20);
  const daemon = await scene.startSynced({ key });
  b.faulty.isOffline = true;
  await r.writer.burst(3);
  await daemon.synced();
  b.faulty.isOffline = false;
  await complete(daemon, b);
  expect(await scene.keysAt(b)).toEqual(await scene.keysAt(a));
  await scene.assertEachRestoresLatest(scene.places, key);
});

test("a destination that is emptied behind our back is noticed and filled", async () => {
  await using scene = await LockStep.begin(2);
  const { r, a, b } = scene;
  await r.makeRows(20);
  const daemon = await scene.startSynced();
  await r.writer.burst(3);
  await daemon.synced();
  await b.memory.delete([...(await scene.keysAt(b)), "app/CURRENT"]);
  await daemon.until("it to be noticed", () => daemon.log.find(/a destination is incomplete/).length > 0);
  await complete(daemon, b);
  await daemon.until("CURRENT", async () => (await b.memory.stat("app/CURRENT")) !== null);
  expect(begun(daemon)).toEqual(["first backup"]);
  expect(await scene.keysAt(b)).toEqual(await scene.keysAt(a));
  await scene.assertEachRestoresLatest();
});

test("the only destination, when it is emptied behind our back, gets a full backup of what the database holds", async () => {
  await using scene = await LockStep.begin(1);
  const { r, a } = scene;
  await r.makeRows(20);
  const daemon = await scene.startSynced();
  await r.writer.burst(2);
  await daemon.synced();
  await a.memory.delete([...(await scene.keysAt(a)), "app/CURRENT"]);
  await daemon.until("another full backup", () => begun(daemon).length === 2);
  await daemon.until("CURRENT", async () => (await a.memory.stat("app/CURRENT")) !== null);
  await r.writer.burst(2);
  await daemon.synced();
  expect(begun(daemon)).toEqual(["first backup", "destination gap"]);
  expect(daemon.log.find(/newest full backup is no longer there/)).toHaveLength(1);
  await scene.assertEachRestoresLatest();
});

test("a daemon that starts while one destination is away goes on with the other, and no index forks", async () => {
  await using scene = await LockStep.begin(2);
  const { r, a, b } = scene;
  await r.makeRows(20);
  const before = await scene.startSynced();
  await r.writer.burst(2);
  await before.synced();
  await before.stop();
  b.faulty.isOffline = true;
  await r.writer.burst(2);
  const daemon = await scene.startSynced();
  expect(memberAt(daemon, b).standing).toBe("out");
  expect(begun(daemon)).toEqual([]);
  await scene.assertEachRestoresLatest([a]);
  b.faulty.isOffline = false;
  await complete(daemon, b);
  await scene.assertEachRestoresLatest();
  const replica = await r.openReplica();
  expect(replica.graph.forks).toEqual([]);
});

test("what only the lost destination had is stored from the living database at once, and nothing forks when it is found again", async () => {
  await using scene = await LockStep.begin(2);
  const { r, a, b } = scene;
  await r.makeRows(20);
  const before = await scene.startSynced();
  b.faulty.isOffline = true;
  await r.writer.burst(5);
  await before.synced();
  await before.stop();
  a.faulty.isOffline = true;
  b.faulty.isOffline = false;
  const daemon = await scene.startSynced();
  expect(begun(daemon)).toEqual(["destination gap"]);
  await r.writer.burst(2);
  await daemon.synced();
  await scene.assertEachRestoresLatest([b]);

  a.faulty.isOffline = false;
  await complete(daemon, a);
  await complete(daemon, b);
  await r.writer.burst(2);
  await daemon.synced();
  await scene.assertEachRestoresLatest();
  await daemon.until("what only the lost one had to be at both", async () => {
    return String(await scene.keysAt(a)) === String(await scene.keysAt(b));
  });
  await daemon.stop();
  r.backend = new GatedBackend(a.memory);
  expect((await r.openReplica()).graph.forks).toEqual([]);
  const next = await scene.startSynced();
  expect(next.log.find(/warn/)).toEqual([]);
  expect(begun(next)).toEqual([]);
});

test("while the daemon runs, the one that has everything may be lost and the other goes on alone", async () => {
  await using scene = await LockStep.begin(2);
  const { r, a, b } = scene;
  await r.makeRows(20);
  const daemon = await scene.startSynced();
  b.faulty.isOffline = true;
  await r.writer.burst(5);
  await daemon.synced();
  a.faulty.isOffline = true;
  b.faulty.isOffline = false;
  await r.writer.burst(5);
  await daemon.captured();
  await daemon.until("the other to hold everything", () => memberAt(daemon, b).standing === "whole");
  await daemon.synced();
  expect(begun(daemon)).toEqual(["first backup", "destination gap"]);
  expect(daemon.log.find(/interrupted/)).toEqual([]);
  await scene.assertEachRestoresLatest([b]);
  a.faulty.isOffline = false;
  await complete(daemon, a);
  await scene.assertEachRestoresLatest();
});

test("when all are away nothing is stored, and all goes on where it was when they are back", async () => {
  await using scene = await LockStep.begin(2);
  const { r, a, b } = scene;
  await r.makeRows(20);
  const daemon = await scene.startSynced({ times: { aloneMs: 60_000 } });
  a.faulty.isOffline = true;
  b.faulty.isOffline = true;
  await r.writer.burst(5);
  await daemon.until("the failure", () => daemon.replicator.health.streak !== null);
  expect(daemon.attachment?.oldestUnstoredMs).not.toBeNull();
  a.faulty.isOffline = false;
  b.faulty.isOffline = false;
  await daemon.synced();
  await complete(daemon, a);
  await complete(daemon, b);
  expect(begun(daemon)).toEqual(["first backup"]);
  await scene.assertEachRestoresLatest();
});

test('under "refuse" nothing is stored before every destination has it', async () => {
  await using scene = await LockStep.begin(2);
  const { r, a, b } = scene;
  await r.makeRows(20);
  const daemon = await scene.startSynced({ onIncomplete: "refuse" });
  b.faulty.isOffline = true;
  await r.writer.burst(3);
  await daemon.until("the failure", () => daemon.replicator.health.streak !== null);
  expect(daemon.attachment?.oldestUnstoredMs).not.toBeNull();
  expect(memberAt(daemon, b).health.streak).not.toBeNull();
  b.faulty.isOffline = false;
  await daemon.synced();
  await scene.assertEachRestoresLatest();
  await daemon.stop();
  await b.memory.delete((await scene.keysAt(b)).filter((key) => FULL.test(key)));
  const next = await scene.start({ onIncomplete: "refuse" });
  await next.until("the refusal", () => next.replicator.health.lastError?.code === "replica-missing");
  expect(next.replicator.health.lastError?.message).toContain("lacks what the others have");
  await next.stop();
  const healed = await scene.startSynced();
  await complete(healed, b);
  expect(await scene.keysAt(b)).toEqual(await scene.keysAt(a));
});

test('under "refuse" a destination that is emptied while the daemon runs stops it', async () => {
  await using scene = await LockStep.begin(2);
  const { r, b } = scene;
  await r.makeRows(20);
  const daemon = await scene.startSynced({ onIncomplete: "refuse" });
  await b.memory.delete(await scene.keysAt(b));
  await daemon.until("the refusal", () => daemon.replicator.phase.kind === "failed");
  expect(daemon.replicator.health.lastError?.code).toBe("replica-missing");
});

test('under "refuse" a put that a crash cut short is made up for at the next start', async () => {
  await using scene = await LockStep.begin(2);
  const { r, a, b } = scene;
  await r.makeRows(20);
  const daemon = await scene.startSynced({ onIncomplete: "refuse" });
  const put = b.gated.gate("before", CHANGE_SET);
  await r.writer.burst(1);
  await put.reached();
  await daemon.until("the other to have it", async () => (await scene.keysAt(a)).some((key) => CHANGE_SET.test(key)));
  await daemon.stop();
  // As if the daemon had been killed in the middle: one has what the other one lacks.
  const [newest = ""] = (await scene.keysAt(b)).filter((key) => CHANGE_SET.test(key));
  if (newest !== "") await b.memory.delete([newest]);
  const next = await scene.startSynced({ onIncomplete: "refuse" });
  expect(next.log.find(/interrupted/)).toEqual([]);
  expect(await scene.keysAt(b)).toEqual(await scene.keysAt(a));
  await scene.assertEachRestoresLatest();
});

test('under "warn" nothing is copied, and the next full backup makes the destination whole', async () => {
  await using scene = await LockStep.begin(2);
  const { r, a, b } = scene;
  await r.makeRows(20);
  const daemon = await scene.startSynced({ onIncomplete: "warn" });
  b.faulty.isOffline = true;
  await r.writer.burst(3);
  await daemon.synced();
  b.faulty.isOffline = false;
  await daemon.until("it to join", () => memberAt(daemon, b).standing === "joining");
  await r.writer.burst(3);
  await daemon.synced();
  expect(memberAt(daemon, b).isComplete).toBe(false);
  expect((await scene.keysAt(b)).length).toBeLessThan((await scene.keysAt(a)).length);
  await daemon.passDay(r.clock);
  await daemon.until("the full backup", () => memberAt(daemon, b).standing === "whole");
  await daemon.synced();
  await scene.assertEachRestoresLatest();
});

test('under "warn" the one that lacks something goes on when the other is lost', async () => {
  await using scene = await LockStep.begin(2);
  const { r, a, b } = scene;
  await r.makeRows(20);
  const daemon = await scene.startSynced({ onIncomplete: "warn" });
  b.faulty.isOffline = true;
  await r.writer.burst(3);
  await daemon.synced();
  b.faulty.isOffline = false;
  await daemon.until("it to join", () => memberAt(daemon, b).standing === "joining");
  a.faulty.isOffline = true;
  await r.writer.burst(3);
  await daemon.captured();
  await daemon.until("it to hold everything", () => memberAt(daemon, b).standing === "whole");
  await daemon.synced();
  expect(begun(daemon)).toEqual(["first backup", "destination gap"]);
  await scene.assertEachRestoresLatest([b]);
});

test("a destination whose objects are lost at random is filled at the next start, the newest full backup first of all", async () => {
  await withSeed(async (random) => {
    await using scene = await LockStep.begin(2);
    const { r, a, b } = scene;
    await r.makeRows(50);
    const before = await scene.startSynced({ settings: { maxSegmentsPerSnapshot: 5 } });
    for (let i = 0; i < 12; i++) {
      await r.writer.burst(1);
      await before.synced();
    }
    await before.stop();
    const keys = await scene.keysAt(b);
    const newestFull = keys.filter((key) => FULL.test(key)).at(-1) ?? "";
    await b.memory.delete([...new Set([newestFull, random.pick(keys), random.pick(keys)])]);
    const daemon = await scene.startSynced();
    await complete(daemon, b);
    expect(begun(daemon)).toEqual([]);
    expect(await scene.keysAt(b)).toEqual(await scene.keysAt(a));
    await scene.assertEachRestoresLatest();
  });
});

test("among faults of every kind at two destinations each restores the latest state in the end", async () => {
  await withSeed(async (random) => {
    using _waits = shortWaits();
    await using scene = await LockStep.begin(2);
    const { r } = scene;
    await r.makeRows(100);
    const places = scene.places.map(({ memory }) => {
      const faulty = new FaultyBackend(memory, {
        seed: random.integer(1, 1e9),
        // Longer than patience lasts.
        slowMs: 400,
        rates: {
          put: { refuse: 0.1, "lose-answer": 0.1, cut: 0.1, full: 0.03, slow: 0.1 },
          get: { refuse: 0.05, cut: 0.05 },
          stat: { refuse: 0.05 },
          list: { refuse: 0.05, cut: 0.05 },
        },
      });
      return { memory, faulty, gated: new GatedBackend(faulty) };
    });
    for (let round = 0; round < 3; round++) {
      const daemon = await scene.start({
        backends: places.map(({ gated }) => gated),
        settings: { maxSegmentsPerSnapshot: 6 },
      });
      for (let i = 0; i < 10; i++) {
        await r.writer.burst(random.integer(1, 5));
        await daemon.captured();
      }
      await daemon.synced(30_000);
      if (round < 2) await daemon.stop();
    }
    await r.stopDaemons();
    const daemon = await scene.startSynced();
    for (const place of scene.places) await complete(daemon, place);
    await scene.assertEachRestoresLatest();
  });
}, 60_000);
