import { expect, test } from "bun:test";
import { PageSet } from "../../src/util/page-set.ts";
import { fc } from "../support/properties.ts";

const page = fc.oneof(
  { weight: 4, arbitrary: fc.integer({ min: 1, max: 300 }) },
  { weight: 2, arbitrary: fc.integer({ min: 32_700, max: 33_000 }) },
  {
    weight: 1,
    arbitrary: fc.constantFrom(31, 32, 33, 65_535, 65_536, 0x7fff_ffff, 0x8000_0000, 0xffff_fffe, 0xffff_ffff),
  },
);

type Step =
  | { readonly do: "add" | "delete" | "deleteAbove"; readonly page: number }
  | { readonly do: "addRange"; readonly start: number; readonly length: number }
  | { readonly do: "addAll"; readonly pages: readonly number[] }
  | { readonly do: "clear" };

const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 8, arbitrary: page.map((page) => ({ do: "add" as const, page })) },
  { weight: 4, arbitrary: page.map((page) => ({ do: "delete" as const, page })) },
  { weight: 1, arbitrary: page.map((page) => ({ do: "deleteAbove" as const, page })) },
  {
    weight: 2,
    arbitrary: fc.record({
      do: fc.constant("addRange" as const),
      start: fc.integer({ min: 1, max: 33_000 }),
      length: fc.nat(100),
    }),
  },
  { weight: 2, arbitrary: fc.record({ do: fc.constant("addAll" as const), pages: fc.array(page) }) },
  { weight: 1, arbitrary: fc.constant({ do: "clear" as const }) },
);

function apply(set: PageSet, model: Set<number>, now: Step): void {
  switch (now.do) {
    case "add":
      set.add(now.page);
      model.add(now.page);
      return;
    case "delete":
      set.delete(now.page);
      model.delete(now.page);
      return;
    case "deleteAbove":
      set.deleteAbove(now.page);
      for (const page of [...model]) if (page > now.page) model.delete(page);
      return;
    case "addRange":
      set.addRange(now.start, now.start + now.length);
      for (let i = 0; i < now.length; i++) model.add(now.start + i);
      return;
    case "addAll": {
      const other = new PageSet();
      for (const page of now.pages) other.add(page);
      set.addAll(other);
      for (const page of now.pages) model.add(page);
      return;
    }
    case "clear":
      set.clear();
      model.clear();
  }
}

const ascending = (model: ReadonlySet<number>) => [...model].sort((a, b) => a - b);

test("a page set holds what a Set holds, and gives it in ascending order, whole and in slices", () => {
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), fc.integer({ min: 1, max: 50 }), page, (steps, maxPages, other) => {
      const [set, model] = [new PageSet(), new Set<number>()];
      for (const now of steps) {
        apply(set, model, now);
        expect(set.size).toBe(model.size);
      }
      const pages = ascending(model);
      expect([...set]).toEqual(pages);
      const slices = [...set.slices(maxPages)];
      expect(slices.flatMap((slice) => [...slice])).toEqual(pages);
      for (const [i, slice] of slices.entries()) {
        if (i < slices.length - 1) expect(slice.length).toBe(maxPages);
        else expect(slice.length).toBeWithin(1, maxPages + 1);
      }
      for (const page of [...pages, other]) expect(set.has(page)).toBe(model.has(page));
    }),
    { numRuns: 500 },
  );
});

test("a page may be deleted while it is the one that the walk has just given", () => {
  fc.assert(
    fc.property(fc.array(page), (pages) => {
      const set = new PageSet();
      for (const page of pages) set.add(page);
      const seen: number[] = [];
      for (const page of set) {
        seen.push(page);
        set.delete(page);
      }
      expect(seen).toEqual(ascending(new Set(pages)));
      expect(set.size).toBe(0);
      expect([...set]).toEqual([]);
    }),
  );
});

test("adding another set leaves that as it was, and the two apart", () => {
  const [ours, theirs] = [new PageSet(), new PageSet()];
  theirs.addRange(5, 8);
  ours.addAll(theirs);
  ours.add(9);
  theirs.delete(5);
  expect([...ours]).toEqual([5, 6, 7, 9]);
  expect([...theirs]).toEqual([6, 7]);
});

test("all pages of a database of 4 GiB are kept and sliced", () => {
  const set = new PageSet();
  set.addRange(1, 1_048_577);
  expect(set.size).toBe(1_048_576);
  let expected = 1;
  for (const slice of set.slices(100_000))
    for (const page of slice) if (page !== expected++) throw new Error(`${page}`);
  expect(expected).toBe(1_048_577);
  set.deleteAbove(40_000);
  expect(set.size).toBe(40_000);
});
