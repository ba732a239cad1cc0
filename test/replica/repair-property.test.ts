import { expect, test } from "bun:test";
import { fc } from "../support/properties.ts";
import { testKey } from "./builder.ts";
import { MemoryBackend } from "./memory-backend.ts";
import { repair, restorableAt, storeScene, troublesOf } from "./repair-scene.ts";

const PROPERTY_TIMEOUT_MS = 60_000;

const damage = fc.record({
  destination: fc.nat(2),
  object: fc.nat(),
  what: fc.constantFrom("flip", "flip", "cut", "empty", "remove", "remove", "swap"),
  place: fc.nat(),
});
type Damage = typeof damage extends fc.Arbitrary<infer T> ? T : never;

function strike(backend: MemoryBackend, { object, what, place }: Damage): void {
  const keys = [...backend.objects.keys()].sort();
  const key = keys[object % keys.length];
  const other = keys[place % keys.length];
  const bytes = backend.objects.get(key ?? "");
  if (key === undefined || other === undefined || bytes === undefined) return;
  switch (what) {
    case "flip":
      if (bytes.length > 0) backend.flip(key, place % bytes.length, place % 8);
      return;
    case "cut":
      backend.objects.set(key, bytes.slice(0, place % (bytes.length + 1)));
      return;
    case "empty":
      backend.objects.set(key, new Uint8Array(0));
      return;
    case "remove":
      backend.objects.delete(key);
      return;
    case "swap":
      backend.objects.set(key, backend.objects.get(other) ?? bytes);
      backend.objects.set(other, bytes);
      return;
  }
}

test.each([
  ["plaintext", null],
  ["sealed", testKey(5)],
] as const)(
  "%s: whatever is damaged, each destination restores what sound copies anywhere lead to, and a second run changes nothing",
  async (_, seal) => {
    const pristine = new MemoryBackend("pristine");
    const builder = await storeScene([pristine], { seal });
    const original = pristine.objects;
    await fc.assert(
      fc.asyncProperty(
        fc.integer({ min: 2, max: 3 }),
        fc.array(damage, { maxLength: 24 }),
        fc.option(fc.nat(2), { freq: 4 }),
        async (count, damages, wiped) => {
          const backends = Array.from({ length: count }, (__, i) => new MemoryBackend(`memory${i}`));
          for (const backend of backends) for (const [key, bytes] of original) backend.objects.set(key, bytes);
          for (const one of damages) strike(backends[one.destination % count] ?? pristine, one);
          if (wiped !== null) backends[wiped % count]?.objects.clear();
          const before = backends.map(({ objects }) => new Map(objects));

          // By the bytes that were written, not by what repair takes for sound.
          const union = new MemoryBackend("union");
          for (const [key, bytes] of original)
            if (before.some((objects) => isSame(objects.get(key), bytes))) union.objects.set(key, bytes);
          const restorable = await restorableAt(builder, [union], seal);

          const report = await repair(backends, { key: seal });
          for (const { kind } of report.troubles) expect(kind).toBe("lost");
          for (const [i, backend] of backends.entries()) {
            for (const [key, bytes] of backend.objects)
              expect([key, isSame(bytes, original.get(key)) || isSame(bytes, before[i]?.get(key))]).toEqual([
                key,
                true,
              ]);
            for (const [key, bytes] of before[i] ?? [])
              if (isSame(bytes, original.get(key))) expect(isSame(backend.objects.get(key), bytes)).toBe(true);
            expect(await restorableAt(builder, [backend], seal)).toEqual(expect.arrayContaining([...restorable]));
          }
          const after = backends.map(({ objects }) => new Map(objects));
          const again = await repair(backends, { key: seal });
          expect([again.healed, troublesOf(again)]).toEqual([[], troublesOf(report)]);
          for (const [i, backend] of backends.entries()) expect(backend.objects).toEqual(after[i] ?? new Map());
        },
      ),
      { numRuns: 40 },
    );
  },
  PROPERTY_TIMEOUT_MS,
);

function isSame(a: Uint8Array | undefined, b: Uint8Array | undefined): boolean {
  return a !== undefined && b !== undefined && Buffer.compare(a, b) === 0;
}
