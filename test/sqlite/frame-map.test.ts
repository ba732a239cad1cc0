import { expect, test } from "bun:test";
import { FrameMap, type FrameScan } from "../../src/sqlite/frame-map.ts";
import { fc } from "../support/properties.ts";

/** A block of 4,096 pages takes 16 KiB. */
const BLOCK_BYTES = 16 * 1024;

type Step =
  | { readonly do: "record"; readonly page: number }
  | { readonly do: "ask"; readonly page: number }
  | { readonly do: "ask all" }
  | { readonly do: "reset" };

const page = fc.oneof(
  fc.integer({ min: 1, max: 40_000 }),
  fc.constantFrom(4095, 4096, 4097, 8191, 8192, 0x7fff_ffff, 0x8000_0000, 0xffff_fffe),
);
const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 8, arbitrary: page.map((page) => ({ do: "record" as const, page })) },
  { weight: 4, arbitrary: page.map((page) => ({ do: "ask" as const, page })) },
  { weight: 1, arbitrary: fc.constant({ do: "ask all" as const }) },
  { weight: 1, arbitrary: fc.constant({ do: "reset" as const }) },
);

test("whatever its memory, a frame map knows the newest frame of each page, as a Map does", () => {
  fc.assert(
    fc.property(fc.array(step, { maxLength: 200 }), fc.constantFrom(1, 1, 2, 3, 1000), (steps, blocks) => {
      const map = new FrameMap(blocks * BLOCK_BYTES);
      const model = new Map<number, number>();
      // The frames of the present WAL, which the map may ask for again.
      let frames: number[] = [];
      const scan: FrameScan = (visit) => {
        for (const [i, page] of frames.entries()) visit(page, i + 1);
      };
      const check = (page: number) => expect(map.frameOf(page, scan)).toBe(model.get(page) ?? 0);
      for (const now of steps) {
        switch (now.do) {
          case "record":
            frames.push(now.page);
            model.set(now.page, frames.length);
            map.record(now.page, frames.length);
            break;
          case "ask":
            check(now.page);
            break;
          case "ask all":
            for (const page of [...model.keys()].sort((a, b) => a - b)) check(page);
            break;
          case "reset":
            map.reset();
            model.clear();
            frames = [];
            break;
        }
      }
      for (const page of [...model.keys(), 1, 99_999]) check(page);
    }),
    { numRuns: 300 },
  );
});

test("asked in ascending order, a map with room for two blocks scans once for each two blocks", () => {
  const map = new FrameMap(2 * BLOCK_BYTES);
  const frames = Array.from({ length: 40_960 }, (_, i) => 40_960 - i);
  for (const [i, page] of frames.entries()) map.record(page, i + 1);
  let scans = 0;
  const scan: FrameScan = (visit) => {
    scans++;
    for (const [i, page] of frames.entries()) visit(page, i + 1);
  };
  for (let page = 1; page <= 40_960; page++) expect(map.frameOf(page, scan)).toBe(40_961 - page);
  expect(scans).toBe(6);
});

test("a map with room for all never scans", () => {
  const map = new FrameMap();
  for (let page = 1; page <= 20_000; page += 7) map.record(page, page + 1);
  const scan: FrameScan = () => {
    throw new Error("it scans");
  };
  for (let page = 1; page <= 20_000; page++) expect(map.frameOf(page, scan)).toBe(page % 7 === 1 ? page + 1 : 0);
});
