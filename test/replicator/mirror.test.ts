import { afterEach, describe, expect, test } from "bun:test";
import { emptyKeyRing } from "../../src/format/envelope.ts";
import { PLAINTEXT_SEAL } from "../../src/format/names.ts";
import type { RetentionPolicy } from "../../src/replica/retention-policy.ts";
import { Mirror } from "../../src/replicator/mirror.ts";
import type { MirrorEntry } from "../../src/state/mirror-status.ts";
import type { Backend } from "../../src/storage/backend.ts";
import { withRetry } from "../../src/storage/retry.ts";
import { systemClock } from "../../src/util/clock.ts";
import { type Logger, silentLogger } from "../../src/util/logger.ts";
import { Semaphore } from "../../src/util/semaphore.ts";
import { FaultyBackend } from "../faults/faulty-backend.ts";
import { ReplicaBuilder } from "../replica/builder.ts";
import { MemoryBackend } from "../replica/memory-backend.ts";
import { expectWhole, findingsOf, KEEP_ALL, repair, restorableAt, storeScene } from "../replica/repair-scene.ts";
import { eventually, withDeadline } from "../support/eventually.ts";
import { seededRandom } from "../support/random.ts";

const running: Running[] = [];

afterEach(async () => {
  for (const one of running.splice(0)) await one.stop();
});

interface Options {
  readonly policy?: RetentionPolicy;
  readonly intervalMs?: number;
  /** Added to the monotonic clock. */
  readonly aheadMs?: () => number;
  readonly log?: Logger;
}

class Running {
  readonly mirror: Mirror;
  readonly #stop = new AbortController();
  readonly #ended: Promise<void>;

  constructor(
    sources: readonly Backend[],
    target: Backend,
    { policy = KEEP_ALL, intervalMs = 5, aheadMs, log = silentLogger }: Options,
  ) {
    this.mirror = new Mirror({
      database: "app",
      mirror: target,
      type: "memory",
      sources,
      keys: emptyKeyRing,
      seal: PLAINTEXT_SEAL,
      acceptPlaintext: true,
      policy,
      highestLevel: 1,
      intervalMs,
      retryBaseMs: 1,
      slots: new Semaphore(6),
      clock: { nowMs: () => Date.now(), monotonicMs: () => systemClock.monotonicMs() + (aheadMs?.() ?? 0) },
      log,
    });
    this.#ended = this.mirror.run(this.#stop.signal);
  }

  async until(what: string, condition: (entry: MirrorEntry) => boolean): Promise<MirrorEntry> {
    return await eventually(() => (condition(this.mirror.entry) ? this.mirror.entry : null), {
      what,
      explain: () => JSON.stringify(this.mirror.entry),
    });
  }

  /** Another pass has ended with nothing lacking. */
  async untilInSync(): Promise<MirrorEntry> {
    const before = Date.now();
    return await this.until(
      "the mirror to be in sync",
      ({ state, last_in_sync_at }) => state === "in sync" && Date.parse(last_in_sync_at ?? "") > before,
    );
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    await withDeadline(this.#ended, { what: "the mirror to stop" });
  }
}

function mirror(sources: readonly Backend[], target: Backend, options: Options = {}): Running {
  const one = new Running(sources, target, options);
  running.push(one);
  return one;
}

function bytesOf({ objects }: MemoryBackend): Record<string, string> {
  return Object.fromEntries(
    [...objects]
      .filter(([key]) => key !== "app/manifest")
      .map(([key, bytes]) => [key, Buffer.from(bytes).toString("hex")]),
  );
}

const faulty = (inner: Backend) => new FaultyBackend(inner, { seed: 1 });
const putsOf = ({ calls }: FaultyBackend) => calls.filter(({ verb }) => verb === "put").map(({ key }) => key);

describe("filling", () => {
  test("copies every object byte for byte, what restores the newest state first, CURRENT after it, then history backwards", async () => {
    const [source, place] = [new MemoryBackend("source"), new MemoryBackend("mirror")];
    const builder = await storeScene([source]);
    const target = faulty(place);
    const entry = await mirror([source], target).untilInSync();

    expect(bytesOf(place)).toEqual(bytesOf(source));
    expect(entry).toMatchObject({ state: "in sync", index: 12, behind_objects: 0, behind_bytes: 0, attempts: 0 });
    const states = putsOf(target).flatMap((key) => /(full|L\d)\/0*(\d+)/.exec(key)?.slice(1, 3).join(" ") ?? []);
    const newest = states.slice(0, 5).toSorted();
    expect(newest).toEqual(["L0 10", "L0 11", "L0 12", "L1 10", "full 9"]);
    expect(states.at(-1)).toBe("full 1");
    await expectWhole(builder, [place]);
  });

  test("what is stored later is copied without another listing", async () => {
    const [source, place] = [new MemoryBackend("source"), new MemoryBackend("mirror")];
    let listings = 0;
    source.onList = () => listings++;
    const builder = await storeScene([source]);
    const one = mirror([source], place);
    await one.untilInSync();

    builder.commitRandom(3);
    const { key } = await builder.storeChangeSet(13);
    one.mirror.note(key, null);
    expect(one.mirror.entry).toMatchObject({ state: "behind", behind_objects: 1 });
    expect(await one.untilInSync()).toMatchObject({ index: 13 });
    expect(place.objects.has(key)).toBe(true);
    expect(listings).toBe(1);
  });

  test("listings are compared again each day", async () => {
    const [source, place] = [new MemoryBackend("source"), new MemoryBackend("mirror")];
    const builder = await storeScene([source]);
    let aheadMs = 0;
    const one = mirror([source], place, { aheadMs: () => aheadMs });
    await one.untilInSync();
    builder.commitRandom(3);
    const { key } = await builder.storeChangeSet(13);
    aheadMs = 25 * 3_600_000;
    await eventually(() => place.objects.has(key), { what: "an object that nobody told of" });
  });

  test("an object that was merged before its turn came makes it look what took its place", async () => {
    const [source, place] = [new MemoryBackend("source"), new MemoryBackend("mirror")];
    const builder = await storeScene([source]);
    const one = mirror([source], place);
    await one.untilInSync();
    builder.commitRandom(3);
    await builder.storeChangeSet(13);
    builder.commitRandom(3);
    await builder.storeChangeSet(14);
    await builder.compact(1, 13, 14);
    for (const index of [13, 14]) {
      const key = `app/L0/${`${index}`.padStart(16, "0")}-${`${index}`.padStart(16, "0")}.p`;
      source.objects.delete(key);
      one.mirror.note(key, 100);
    }
    await one.untilInSync();
    expect(await restorableAt(builder, [place])).toContain(14);
  });

  test("whatever breaks in between, it goes on where it stopped, and nothing but sound bytes ever stands there", async () => {
    const [source, place] = [new MemoryBackend("source"), new MemoryBackend("mirror")];
    await storeScene([source]);
    const rates = { refuse: 0.1, "lose-answer": 0.1, cut: 0.1 };
    const retried = (backend: Backend) => withRetry(backend, { retries: 2, baseMs: 1, capMs: 2, maxElapsedMs: 1000 });
    const target = retried(
      new FaultyBackend(place, { seed: 5, rates: { put: rates, get: rates, stat: { refuse: 0.1 } } }),
    );
    let aheadMs = 0;
    const from = retried(new FaultyBackend(source, { seed: 6, rates: { get: { ...rates, flip: 0.1 } } }));
    const one = mirror([from], target, { aheadMs: () => aheadMs });
    // What read wrong is looked at again after an hour.
    await eventually(
      () => {
        aheadMs += 2 * 3_600_000;
        const whole = bytesOf(source);
        for (const [key, bytes] of Object.entries(bytesOf(place))) expect(bytes).toBe(whole[key] ?? "");
        return Object.keys(bytesOf(place)).length === Object.keys(whole).length;
      },
      { what: "a full mirror", deadlineMs: 20_000, pollMs: 50, explain: () => JSON.stringify(one.mirror.entry) },
    );
  });

  test("a damaged object is taken from another lock-step destination; damaged everywhere, it is told and not copied", async () => {
    const [first, second, place] = [
      new MemoryBackend("first"),
      new MemoryBackend("second"),
      new MemoryBackend("mirror"),
    ];
    await storeScene([first, second]);
    const whole = bytesOf(second);
    const [here, everywhere] = [
      "app/L0/0000000000000012-0000000000000012.p",
      "app/L0/0000000000000002-0000000000000002.p",
    ];
    first.flip(here, 300);
    for (const backend of [first, second]) backend.flip(everywhere, 300);
    const one = mirror([first, second], place);
    const entry = await one.until("an object that cannot be mirrored", ({ behind_objects }) => behind_objects === 1);
    expect(entry.state).toBe("behind");
    expect(entry.last_error?.message).toMatch(/does not match its SHA-256 \(.*0000000000000002/);
    expect(bytesOf(place)[here]).toBe(whole[here] ?? "");
    expect(place.objects.has(everywhere)).toBe(false);
  });
});

test("while one of two sources is down, it is filled from the other one, and lacks nothing", async () => {
  const [first, second, place] = [new MemoryBackend("first"), new MemoryBackend("second"), new MemoryBackend("mirror")];
  const builder = await storeScene([first, second]);
  const down = faulty(first);
  down.isOffline = true;
  const one = mirror([down, second], place);
  await one.until("everything to be copied", ({ behind_objects, index }) => behind_objects === 0 && index === 12);
  expect(one.mirror.entry).toMatchObject({ attempts: 0, last_error: null });
  down.isOffline = false;
  await one.untilInSync();
  await expectWhole(builder, [place]);
});

describe("a mirror that fails", () => {
  test("is down for a while: it says so, and is in sync again once it is back", async () => {
    const [source, place] = [new MemoryBackend("source"), new MemoryBackend("mirror")];
    const builder = await storeScene([source]);
    const target = faulty(place);
    target.isOffline = true;
    const one = mirror([source], target);
    const down = await one.until("failed attempts", ({ state }) => state === "backing off");
    expect(down).toMatchObject({ state: "backing off", behind_objects: null, last_reconciled_at: null });
    target.isOffline = false;
    await one.untilInSync();
    await expectWhole(builder, [place]);
  });

  test("is full: it keeps what it has, and goes on when there is room", async () => {
    const [source, place] = [new MemoryBackend("source"), new MemoryBackend("mirror")];
    const builder = await storeScene([source]);
    const target = faulty(place);
    target.failNext("put", "full", { times: 3, matches: (key) => key.includes("/full/") });
    const one = mirror([source], target);
    const full = await one.until("a full mirror", ({ last_error }) => last_error !== null);
    expect(full.last_error?.code).toBe("storage-full");
    await one.untilInSync();
    await expectWhole(builder, [place]);
  });

  test("hangs: it is told after five minutes, and stopping does not wait for it", async () => {
    const [source, place] = [new MemoryBackend("source"), new MemoryBackend("mirror")];
    await storeScene([source]);
    const target = faulty(place);
    target.failNext("put", "hang", { matches: (key) => key.includes("/L0/") });
    let aheadMs = 0;
    const one = mirror([source], target, { aheadMs: () => aheadMs });
    await eventually(() => target.calls.some(({ fault }) => fault === "hang"), { what: "a put that hangs" });
    aheadMs = 6 * 60_000;
    const entry = await one.until("that it hangs", ({ state }) => state === "backing off");
    expect(entry.last_error?.message).toMatch(/^it has not answered for 6m/);
    await one.stop();
  });
});

describe("nothing is deleted or written over", () => {
  test("a wiped primary never empties its mirror", async () => {
    const [source, place] = [new MemoryBackend("source"), new MemoryBackend("mirror")];
    const builder = await storeScene([source]);
    const first = mirror([source], place);
    await first.untilInSync();
    const before = bytesOf(place);
    source.objects.clear();
    const target = faulty(place);
    await mirror([source], target).untilInSync();
    expect(bytesOf(place)).toEqual(before);
    expect(target.calls.filter(({ verb }) => verb === "delete")).toEqual([]);
    await expectWhole(builder, [place]);
  });

  test("a new history in the primary's place is told of, and does not mix with what the mirror holds", async () => {
    const [source, place] = [new MemoryBackend("source"), new MemoryBackend("mirror")];
    const builder = await storeScene([source]);
    const first = mirror([source], place);
    await first.untilInSync();
    await first.stop();
    const before = bytesOf(place);
    source.objects.clear();
    const other = new ReplicaBuilder({ backends: [source], random: seededRandom(99) });
    other.beginChain(Array.from({ length: 5 }, () => other.randomImage()));
    await other.storeFull(1);
    other.commitRandom(2);
    await other.storeChangeSet(2);
    await other.storeCurrent(1);
    const one = mirror([source], place);
    const entry = await one.until("a fork that is told of", ({ last_error }) => last_error !== null);
    expect(entry.state).toBe("behind");
    expect(entry.last_error?.message).toMatch(/of another history/);
    expect(bytesOf(place)).toEqual(before);
    await expectWhole(builder, [place]);
  });

  test("a put that arrived late, when its daemon had been begun anew, is not copied, and nothing to tell of", async () => {
    const [source, place] = [new MemoryBackend("source"), new MemoryBackend("mirror")];
    const builder = await storeScene([source]);
    const late = await builder.storeFork({ kind: "change-set", level: 0, first: 13, last: 13, seal: "p" });
    await builder.storeFork({ kind: "change-set", level: 0, first: 13, last: 14, seal: "p" });
    const entry = await mirror([source], place).untilInSync();
    expect(entry).toMatchObject({ index: 14, last_error: null });
    expect(place.objects.has(late.key)).toBe(false);
  });

  test("a name that other bytes have taken stays as it is", async () => {
    const [source, place] = [new MemoryBackend("source"), new MemoryBackend("mirror")];
    const builder = await storeScene([source]);
    const one = mirror([source], place);
    await one.untilInSync();
    builder.commitRandom(3);
    const { key } = await builder.storeChangeSet(13);
    const stranger = new Uint8Array(place.objects.get("app/L0/0000000000000012-0000000000000012.p") ?? []);
    place.objects.set(key, stranger);
    one.mirror.note(key, null);
    const entry = await one.until("a conflict", ({ last_error }) => last_error !== null);
    expect(entry.last_error?.message).toMatch(/another object has the name/);
    expect(place.objects.get(key)).toEqual(stranger);
  });

  test("names that are taken are told of once, with what to do, however many they are", async () => {
    const [source, place] = [new MemoryBackend("source"), new MemoryBackend("mirror")];
    const builder = await storeScene([source]);
    const told: string[] = [];
    const hear = (level: string) => (message: string) => {
      if (message === "an object cannot be mirrored") told.push(level);
    };
    const one = mirror([source], place, { log: { ...silentLogger, warn: hear("warn"), debug: hear("debug") } });
    await one.untilInSync();
    const stranger = new Uint8Array(place.objects.get("app/L0/0000000000000012-0000000000000012.p") ?? []);
    for (let index = 13; index <= 16; index++) {
      builder.commitRandom(3);
      const { key } = await builder.storeChangeSet(index);
      place.objects.set(key, stranger);
      one.mirror.note(key, null);
    }
    await eventually(() => told.length === 4, { what: "four conflicts", explain: () => JSON.stringify(told) });
    expect(told).toEqual(["warn", "debug", "debug", "debug"]);
    expect(one.mirror.entry).toMatchObject({ state: "behind", behind_objects: 4 });
    expect(one.mirror.entry.last_error?.message).toMatch(/another object has the name .*\.p\): run `bakelite verify`/);
  });

  test("bits that flip at the mirror are mended by repair", async () => {
    const [source, place] = [new MemoryBackend("source"), new MemoryBackend("mirror")];
    const builder = await storeScene([source]);
    await mirror([source], place).untilInSync();
    for (const key of [...place.objects.keys()].filter((name) => name.includes("/L0/"))) place.flip(key, 250);
    expect(await findingsOf([place])).not.toEqual([]);
    await repair([source, place]);
    await expectWhole(builder, [place]);
  });
});

describe("what is being given up", () => {
  const numbers = (place: MemoryBackend) =>
    [...place.objects.keys()].flatMap((key) => /(full|L\d)\/0*(\d+)/.exec(key)?.slice(1, 3).join(" ") ?? []).sort();

  test("history whose deletion was cut short at the source is not copied", async () => {
    const [source, place] = [new MemoryBackend("source"), new MemoryBackend("mirror")];
    const builder = await storeScene([source]);
    // Deleting begins with change-sets, the newest first, and was stopped after two of them.
    for (const index of [9, 8]) source.objects.delete(`app/L0/${numbered(index)}-${numbered(index)}.p`);
    await mirror([source], place, { policy: { ...KEEP_ALL, maxBackups: 1 } }).untilInSync();
    expect(numbers(place)).toEqual(["L0 10", "L0 11", "L0 12", "L1 10", "full 9"]);
    expect(await restorableAt(builder, [place])).toEqual([9, 10, 11, 12]);
  });

  test("nor are change-sets that were merged and are only kept until they are old enough to go", async () => {
    const [source, place] = [new MemoryBackend("source"), new MemoryBackend("mirror")];
    const builder = await storeScene([source]);
    const one = mirror([source], place, { policy: { ...KEEP_ALL, mergedKeepMs: [0], keepRecent: 0 } });
    await one.untilInSync();
    expect(numbers(place)).not.toContain("L0 10");
    expect(numbers(place)).toContain("L1 10");
    expect(await restorableAt(builder, [place])).toEqual(expect.arrayContaining([1, 4, 5, 9, 11, 12]));
  });

  test("a marked state is copied whole, with its mark", async () => {
    const [source, place] = [new MemoryBackend("source"), new MemoryBackend("mirror")];
    const builder = await storeScene([source]);
    // Only its name counts for a mark, and only its bytes are copied: any sealed document will do.
    const current = source.objects.get("app/CURRENT");
    source.objects.set(`app/keep/${numbered(3)}.p`, new Uint8Array(current ?? []));
    await mirror([source], place, { policy: { ...KEEP_ALL, maxBackups: 1 } }).untilInSync();
    expect(place.objects.has(`app/keep/${numbered(3)}.p`)).toBe(true);
    expect(await restorableAt(builder, [place])).toEqual(expect.arrayContaining([3, 9, 12]));
  });
});

function numbered(index: number): string {
  return `${index}`.padStart(16, "0");
}
