import { describe, expect, test } from "bun:test";
import { FOOTER_BYTES, parseFooter } from "../../src/format/chunk.ts";
import { bytesSource } from "../../src/storage/backend.ts";
import { BakeliteError } from "../../src/util/errors.ts";
import { testKey } from "./builder.ts";
import { MemoryBackend } from "./memory-backend.ts";
import { expectWhole, findingsOf, repair, restorableAt, storeScene, troublesOf, writesOf } from "./repair-scene.ts";

const digits = (index: number) => String(index).padStart(16, "0");
const changeSet = (first: number, last = first, { level = 0, seal = "p" } = {}) =>
  `app/L${level}/${digits(first)}-${digits(last)}.${seal}`;
const full = (index: number, seal = "p") => `app/full/${digits(index)}.${seal}`;

async function scene(count = 2, seal: ReturnType<typeof testKey> | null = null) {
  const backends = Array.from({ length: count }, (_, i) => new MemoryBackend(`memory${i + 1}`));
  const builder = await storeScene(backends, { seal });
  const [first, second] = backends;
  if (first === undefined || second === undefined) throw new Error("two destinations");
  return { backends, builder, first, second, original: new Map(first.objects) };
}

/** Byte for byte. */
function expectSame(backend: MemoryBackend, original: ReadonlyMap<string, Uint8Array>): void {
  expect([...backend.objects.keys()].sort()).toEqual([...original.keys()].sort());
  for (const [key, bytes] of original)
    expect([key, Buffer.compare(backend.objects.get(key) ?? new Uint8Array(0), bytes)]).toEqual([key, 0]);
}

/** Refuses puts whose key `refuses` accepts. */
class StubbornBackend extends MemoryBackend {
  refuses: (key: string) => boolean = () => false;
  override async put(...args: Parameters<MemoryBackend["put"]>): Promise<"stored" | "exists"> {
    if (this.refuses(args[0]))
      throw new BakeliteError("storage-denied", "the destination refuses: Object Lock", { subject: args[0] });
    return await super.put(...args);
  }
}

test("sound destinations are left as they are, and nothing is written", async () => {
  const { backends, original } = await scene();
  const report = await repair(backends);
  expect([report.healed, report.troubles]).toEqual([[], []]);
  expect(report.destinations.map(({ state }) => state)).toEqual(["healthy", "healthy"]);
  // Each object, and CURRENT and the manifest, at both.
  expect(report.objectsChecked).toBe(2 * original.size);
  for (const backend of backends) expectSame(backend, original);
});

describe.each([
  ["plaintext", null],
  ["sealed", testKey(3)],
] as const)("%s: any object", (_, seal) => {
  const damages: Readonly<Record<string, (backend: MemoryBackend, key: string, bytes: Uint8Array) => void>> = {
    "with a flipped bit": (backend, key, bytes) => backend.flip(key, Math.floor(bytes.length / 2)),
    "with a flipped bit in its header": (backend, key) => backend.flip(key, 30),
    "with a flipped bit in its footer": (backend, key, bytes) => backend.flip(key, bytes.length - 3),
    "cut short": (backend, key, bytes) => void backend.objects.set(key, bytes.slice(0, bytes.length - 10)),
    "made longer": (backend, key, bytes) => void backend.objects.set(key, Buffer.concat([bytes, bytes])),
    emptied: (backend, key) => void backend.objects.set(key, new Uint8Array(0)),
    "that is another one": (backend, key) =>
      void backend.objects.set(
        key,
        [...backend.objects].find(([other]) => other !== key && other.includes("/L0/"))?.[1] ?? new Uint8Array(1),
      ),
  };

  test.each(Object.keys(damages))("%s is written over, byte for byte", async (name) => {
    const { backends, builder, first, second, original } = await scene(2, seal);
    for (const backend of [first, second])
      for (const [key, bytes] of original) {
        damages[name]?.(backend, key, bytes);
        const report = await repair(backends, { key: seal });
        expect([key, troublesOf(report)]).toEqual([key, []]);
        expect(writesOf(report)).toEqual([`replace ${backend.location} ${key}`]);
        expectSame(backend, original);
      }
    await expectWhole(builder, backends, seal);
  });

  test("that is gone is added, but for the manifest, which is a cache", async () => {
    const { backends, first, original } = await scene(2, seal);
    for (const key of original.keys()) {
      first.objects.delete(key);
      const report = await repair(backends, { key: seal });
      expect([key, troublesOf(report)]).toEqual([key, []]);
      expect(writesOf(report)).toEqual(key.endsWith("/manifest") ? [] : [`add memory1 ${key}`]);
      first.objects.set(key, original.get(key) ?? new Uint8Array(0));
    }
  });
});

test("a wiped destination is filled, and restores every state by itself", async () => {
  const { backends, builder, second, original } = await scene();
  second.objects.clear();
  const report = await repair(backends);
  expect(troublesOf(report)).toEqual([]);
  const withoutManifest = new Map([...original].filter(([key]) => !key.endsWith("/manifest")));
  expectSame(second, withoutManifest);
  await expectWhole(builder, backends);
  expect((await repair(backends)).healed).toEqual([]);
});

test("destinations that are damaged in different places heal one another", async () => {
  const { backends, builder, original } = await scene(3);
  const keys = [...original.keys()].filter((key) => !key.endsWith("/manifest"));
  for (const [i, key] of keys.entries()) {
    backends[i % 3]?.flip(key, 40);
    backends[(i + 1) % 3]?.objects.delete(key);
  }
  expect(troublesOf(await repair(backends))).toEqual([]);
  for (const backend of backends) expectSame(backend, original);
  await expectWhole(builder, backends);
});

test("a dry run says the same and writes nothing", async () => {
  const { backends, first, second } = await scene();
  first.flip(changeSet(7), 100);
  second.objects.delete(full(5));
  const before = backends.map(({ objects }) => new Map(objects));
  const preview = await repair(backends, { dryRun: true });
  expect(writesOf(preview)).toEqual([`add memory2 ${full(5)}`, `replace memory1 ${changeSet(7)}`]);
  for (const [i, backend] of backends.entries()) expectSame(backend, before[i] ?? new Map());
  expect(writesOf(await repair(backends))).toEqual(writesOf(preview));
});

test("an object that is damaged everywhere is named with what it costs, and the rest is healed", async () => {
  const { backends, builder, first, second } = await scene();
  first.flip(changeSet(7), 100);
  second.objects.set(changeSet(7), new Uint8Array(5));
  first.flip(changeSet(3), 100);
  second.flip(changeSet(3), 100);
  second.flip(changeSet(12), 100);
  const report = await repair(backends);
  expect(writesOf(report)).toEqual([`replace memory2 ${changeSet(12)}`]);
  expect(troublesOf(report)).toEqual([
    `lost memory1 ${changeSet(3)}`,
    `lost memory1 ${changeSet(7)}`,
    `lost memory2 ${changeSet(3)}`,
    `lost memory2 ${changeSet(7)}`,
  ]);
  // States 7 and 8: full backup 9 stands for what follows. State 3: the merged change-set leads on to 4.
  const costs = new Map(report.troubles.map(({ key, cost }) => [key, cost]));
  expect(costs.get(changeSet(7))).toEqual({ count: 2, oldest: 7, newest: 8 });
  expect(costs.get(changeSet(3))).toEqual({ count: 1, oldest: 3, newest: 3 });
  expect(report.destinations.map(({ state }) => state)).toEqual(["degraded", "degraded"]);
  for (const backend of backends)
    expect(await restorableAt(builder, [backend])).toEqual([1, 2, 4, 5, 6, 9, 10, 11, 12]);
});

test("two sound copies of one state that are encoded differently are left alone", async () => {
  const first = new MemoryBackend("memory1");
  const second = new MemoryBackend("memory2");
  const builder = await storeScene([first]);
  await storeScene([second], { compression: "none" });
  const before = [new Map(first.objects), new Map(second.objects)] as const;
  expect(
    Buffer.compare(before[0].get(full(5)) ?? new Uint8Array(), before[1].get(full(5)) ?? new Uint8Array()),
  ).not.toBe(0);
  const report = await repair([first, second]);
  expect([report.healed, report.troubles]).toEqual([[], []]);
  expectSame(first, before[0]);
  expectSame(second, before[1]);
  second.flip(full(5), 200);
  expect(writesOf(await repair([first, second]))).toEqual([`replace memory2 ${full(5)}`]);
  await expectWhole(builder, [first, second]);
});

test("a put that arrived late, when its daemon had been begun anew, is no trouble, and is not copied", async () => {
  const [first, second] = [new MemoryBackend("memory1"), new MemoryBackend("memory2")];
  const builder = await storeScene([first, second]);
  await builder.storeFork({ kind: "change-set", level: 0, first: 13, last: 14, seal: "p" });
  const aside = new MemoryBackend("late");
  await (await storeScene([aside])).storeFork({ kind: "change-set", level: 0, first: 13, last: 13, seal: "p" });
  second.objects.set(changeSet(13), aside.objects.get(changeSet(13)) ?? new Uint8Array(0));
  const report = await repair([first, second]);
  expect([report.healed, report.troubles]).toEqual([[], []]);
});

describe("a fork", () => {
  const name = { kind: "change-set", level: 0, first: 12, last: 12, seal: "p" } as const;

  async function forked() {
    const { backends, builder, first, second } = await scene();
    const aside = new MemoryBackend("aside");
    const other = await storeScene([aside]);
    await other.storeFork(name);
    second.objects.set(changeSet(12), aside.objects.get(changeSet(12)) ?? new Uint8Array(0));
    // What says at which end of the fork we are.
    await builder.storeCurrent(9);
    return { backends, builder, first, second };
  }

  test("is reported and never written over", async () => {
    const { backends, first, second } = await forked();
    const before = [new Map(first.objects), new Map(second.objects)] as const;
    const report = await repair(backends);
    expect(report.healed).toEqual([]);
    expect(troublesOf(report)).toEqual([`fork memory2 ${changeSet(12)}`]);
    expectSame(first, before[0]);
    expectSame(second, before[1]);
  });

  test("that is damaged as well is not written over, as long as its end says what it was", async () => {
    const { backends, second } = await forked();
    const bytes = second.objects.get(changeSet(12)) ?? new Uint8Array(0);
    second.flip(changeSet(12), parseFooter(bytes.slice(-FOOTER_BYTES), bytes.length, "fork").headerBytes + 50);
    const before = new Map(second.objects);
    const report = await repair(backends);
    expect(report.healed).toEqual([]);
    expect(troublesOf(report)).toEqual([`fork memory2 ${changeSet(12)}`]);
    expectSame(second, before);
  });

  test("does not keep what came before it from being healed", async () => {
    const { backends, second } = await forked();
    second.flip(changeSet(8), 100);
    second.objects.delete(changeSet(7));
    const report = await repair(backends);
    expect(writesOf(report)).toEqual([`add memory2 ${changeSet(7)}`, `replace memory2 ${changeSet(8)}`]);
    expect(troublesOf(report)).toEqual([`fork memory2 ${changeSet(12)}`]);
  });
});

describe("a destination", () => {
  test("that refuses to have objects written over is degraded, and the rest goes on", async () => {
    const { builder, first, original } = await scene();
    const stubborn = new StubbornBackend("worm");
    for (const [key, bytes] of original) stubborn.objects.set(key, bytes);
    stubborn.refuses = (key) => stubborn.objects.has(key);
    stubborn.flip(changeSet(6), 100);
    stubborn.objects.delete(changeSet(7));
    first.flip(changeSet(8), 100);
    const report = await repair([first, stubborn]);
    expect(writesOf(report)).toEqual([`add worm ${changeSet(7)}`, `replace memory1 ${changeSet(8)}`]);
    expect(troublesOf(report)).toEqual([`not-replaced worm ${changeSet(6)}`]);
    expect(report.destinations).toEqual([
      { location: "memory1", state: "healthy" },
      { location: "worm", state: "degraded" },
    ]);
    await expectWhole(builder, [first]);
  });

  test("that takes nothing is not asked a hundred times", async () => {
    const { first } = await scene();
    const stubborn = new StubbornBackend("worm");
    let asked = 0;
    stubborn.refuses = () => ++asked > 0;
    const report = await repair([first, stubborn]);
    expect(report.troubles.every(({ kind }) => kind === "not-added")).toBe(true);
    expect(report.troubles.length).toBeGreaterThan(12);
    expect(asked).toBeLessThan(2 * 10);
  });

  test.each(["at once", "while it is read"])(
    "that is down %s is named, and the others heal one another",
    async (when) => {
      const { backends, builder, first, second } = await scene(3);
      const down = () => {
        throw new BakeliteError("storage-unreachable", "no answer", { subject: "memory1" });
      };
      if (when === "at once") first.onList = down;
      first.onGet = down;
      second.flip(changeSet(6), 100);
      backends[2]?.objects.delete(changeSet(9));
      const report = await repair(backends);
      expect(writesOf(report)).toEqual([`add memory3 ${changeSet(9)}`, `replace memory2 ${changeSet(6)}`]);
      expect(troublesOf(report)).toEqual(["unreachable memory1 null"]);
      expect(report.destinations.map(({ state }) => state)).toEqual(["unreachable", "healthy", "healthy"]);
      await expectWhole(builder, backends.slice(1));
    },
  );

  test("that does not keep what it is given is found out", async () => {
    const { first, original } = await scene();
    const liar = new (class extends MemoryBackend {
      override async put(key: string, ...rest: [Parameters<MemoryBackend["put"]>[1], ...never[]]) {
        const outcome = await super.put(key, ...rest);
        this.flip(key, 50);
        return outcome;
      }
    })("liar");
    for (const [key, bytes] of original) liar.objects.set(key, bytes);
    liar.flip(changeSet(6), 100);
    liar.objects.delete(full(9));
    const report = await repair([first, liar]);
    expect(report.healed).toEqual([]);
    expect(troublesOf(report)).toEqual([`not-added liar ${full(9)}`, `not-replaced liar ${changeSet(6)}`]);
  });

  test("that goes on listing what it has deleted gets it back", async () => {
    const { backends, builder, first } = await scene();
    const bytes = first.objects.get(changeSet(6)) ?? new Uint8Array(0);
    first.objects.delete(changeSet(6));
    const list = first.list.bind(first);
    first.list = async function* (prefix) {
      yield* list(prefix);
      if (!first.objects.has(changeSet(6))) yield { key: changeSet(6), sizeBytes: bytes.length, modifiedMs: 0 };
    };
    expect(writesOf(await repair(backends))).toEqual([`add memory1 ${changeSet(6)}`]);
    await expectWhole(builder, backends);
  });
});

describe("while it runs", () => {
  test("an object that is damaged on one reading only is left alone", async () => {
    const { backends, first, original } = await scene();
    let isFirst = true;
    const get = first.get.bind(first);
    first.get = async (key, options) => {
      if (key !== changeSet(6) || !isFirst) return await get(key, options);
      isFirst = false;
      return (async function* () {
        yield new Uint8Array(original.get(key)?.length ?? 0);
      })();
    };
    const report = await repair(backends);
    expect([report.healed, report.troubles]).toEqual([[], []]);
    expectSame(first, original);
  });

  test("a source that rots after it was checked is not copied, and another one is", async () => {
    const { backends, builder, first, second, original } = await scene(3);
    first.flip(changeSet(6), 100);
    let reads = 0;
    second.onGet = (key) => {
      if (key === changeSet(6) && ++reads === 2) second.flip(key, 100);
    };
    const report = await repair(backends);
    expect(troublesOf(report)).toEqual([]);
    expect(writesOf(report)).toEqual([`replace memory1 ${changeSet(6)}`, `replace memory2 ${changeSet(6)}`]);
    for (const backend of backends) expectSame(backend, original);
    await expectWhole(builder, backends);
  });

  test("what another one deletes or stores meanwhile is no error", async () => {
    const { backends, builder, first, second } = await scene();
    first.objects.delete(changeSet(6));
    first.objects.delete(changeSet(7));
    let isOver = false;
    second.onGet = async (key) => {
      if (key !== changeSet(7) || isOver) return;
      isOver = true;
      // The daemon fills one gap itself, and ships on.
      await first.put(changeSet(6), bytesSource(second.objects.get(changeSet(6)) ?? new Uint8Array(0)));
      builder.passTime(1000);
      builder.commitRandom(3);
      await builder.storeChangeSet(13);
    };
    const report = await repair(backends);
    expect(troublesOf(report)).toEqual([]);
    expect(writesOf(report)).toEqual([`add memory1 ${changeSet(7)}`]);
    second.onGet = () => {};
    await expectWhole(builder, backends);
  });

  test("interrupted, it leaves whole objects only, and the next run finishes", async () => {
    const { backends, builder, second, original } = await scene();
    second.objects.clear();
    const stop = new AbortController();
    const put = second.put.bind(second);
    let puts = 0;
    second.put = async (...args) => {
      if (++puts === 5) stop.abort(new BakeliteError("interrupted", "stopped by SIGINT"));
      return await put(...args);
    };
    await expect(repair(backends, { signal: stop.signal })).rejects.toMatchObject({ code: "interrupted" });
    expect(second.objects.size).toBeGreaterThan(0);
    expect(second.objects.size).toBeLessThan(original.size - 1);
    for (const [key, bytes] of second.objects)
      expect(Buffer.compare(bytes, original.get(key) ?? new Uint8Array())).toBe(0);
    expect(troublesOf(await repair(backends))).toEqual([]);
    await expectWhole(builder, backends);
  });
});

describe("keys", () => {
  const key = testKey(3);

  test("without the key, what is damaged is told by its SHA-256, and nothing is written", async () => {
    const { backends, first } = await scene(2, key);
    const name = changeSet(6, 6, { seal: key.fingerprint });
    first.flip(name, 200);
    const before = backends.map(({ objects }) => new Map(objects));
    for (const wrong of [null, testKey(4)]) {
      const report = await repair(backends, { key: wrong });
      expect(report.healed).toEqual([]);
      expect(new Set(report.troubles.map(({ kind }) => kind))).toEqual(new Set(["sealed"]));
      const damaged = report.troubles.filter(({ message }) => message.includes("does not match"));
      expect(damaged.map((trouble) => `${trouble.destination} ${trouble.key}`)).toEqual([`memory1 ${name}`]);
      for (const [i, backend] of backends.entries()) expectSame(backend, before[i] ?? new Map());
    }
  });

  test("plaintext is not carried to another destination once a key is configured", async () => {
    const { backends, second } = await scene();
    second.objects.clear();
    const report = await repair(backends, { key, acceptPlaintext: true });
    expect(second.objects.size).toBe(0);
    expect(new Set(report.troubles.map(({ kind }) => kind))).toEqual(new Set(["plaintext"]));
  });
});

describe("CURRENT", () => {
  test("that points at an older backup is replaced by the newer one, when that is no longer on its way", async () => {
    const { backends, builder, first, second } = await scene();
    const newer = first.objects.get("app/CURRENT") ?? new Uint8Array(0);
    await builder.storeCurrent(5);
    first.objects.set("app/CURRENT", newer);
    expect((await repair(backends, { nowMs: Date.UTC(2026, 0, 1, 0, 11, 30) })).healed).toEqual([]);
    expect(writesOf(await repair(backends))).toEqual(["replace memory2 app/CURRENT"]);
    expect(Buffer.compare(second.objects.get("app/CURRENT") ?? new Uint8Array(), newer)).toBe(0);
    expect(await findingsOf([second])).toEqual([]);
  });

  test("that is damaged everywhere is reported", async () => {
    const { backends } = await scene();
    for (const backend of backends) backend.flip("app/CURRENT", 20);
    const report = await repair(backends);
    expect(report.healed).toEqual([]);
    expect(troublesOf(report)).toEqual(["lost memory1 app/CURRENT", "lost memory2 app/CURRENT"]);
  });
});
