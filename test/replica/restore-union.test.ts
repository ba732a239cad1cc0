import { expect, test } from "bun:test";
import { planRestore } from "../../src/replica/plan.ts";
import { readFrom } from "../../src/replica/restore-sources.ts";
import { BakeliteError } from "../../src/util/errors.ts";
import { runSeed, seededRandom } from "../support/random.ts";
import { layInMemory } from "./lay.ts";
import { MemoryBackend } from "./memory-backend.ts";
import { openScene, restorableAt, storeScene } from "./repair-scene.ts";

const PLACES = ["first", "second", "mirror"] as const;

test("every state is restored as long as each object is sound somewhere, whatever is lost, damaged and cut short elsewhere", async () => {
  const random = seededRandom(runSeed()).fork("union");
  for (let round = 0; round < 4; round++) {
    const backends = PLACES.map((place) => new MemoryBackend(place));
    const builder = await storeScene(backends);
    const keys = [...(backends[0]?.objects.keys() ?? [])].filter((key) => /\/(?:full|L\d)\//.test(key));
    for (const key of keys) {
      const spared = random.integer(0, backends.length - 1);
      for (const [i, backend] of backends.entries()) {
        const bytes = backend.objects.get(key);
        if (i === spared || bytes === undefined) continue;
        const harm = random.pick(["none", "lost", "flipped", "cut"] as const);
        if (harm === "lost") backend.objects.delete(key);
        if (harm === "flipped") backend.flip(key, random.integer(0, bytes.length - 1), random.integer(0, 7));
        if (harm === "cut") backend.objects.set(key, bytes.slice(0, random.integer(0, bytes.length - 1)));
      }
    }
    expect(await restorableAt(builder, backends)).toEqual(Array.from({ length: 12 }, (_, i) => i + 1));
  }
});

test("it tells where it has read, what it found broken there, and who did not answer", async () => {
  const backends = PLACES.map((place) => new MemoryBackend(place));
  const builder = await storeScene(backends);
  const [first, second, mirror] = backends as [MemoryBackend, MemoryBackend, MemoryBackend];
  const damaged = "app/L0/0000000000000012-0000000000000012.p";
  first.flip(damaged, 400);
  first.objects.delete("app/full/0000000000000009.p");
  mirror.onList = () => {
    throw new BakeliteError("storage-unreachable", "no answer, says the test");
  };
  const replica = await openScene(backends);
  const { laid, file } = await layInMemory(replica, await planRestore(replica, { kind: "latest" }));
  expect(Buffer.compare(file, builder.fileOf(12))).toBe(0);
  const told = readFrom(replica, laid.plan);
  expect(told.destinations).toEqual([
    { location: "first", state: "used", objects: expect.any(Number) },
    { location: "second", state: "used", objects: 2 },
    { location: "mirror", state: "unreachable", objects: 0 },
  ]);
  expect(told.broken).toEqual([
    { location: "first", key: damaged, kind: "corrupt", message: expect.stringMatching(/damaged/) },
  ]);
  expect(second.objects.has(damaged)).toBe(true);
});
