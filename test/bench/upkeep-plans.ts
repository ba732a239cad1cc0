import { objectKey } from "../../src/format/names.ts";
import { type Catalog, CatalogBuilder, type ReplicaObject } from "../../src/replica/catalog.ts";
import { planMerges } from "../../src/replica/compaction-plan.ts";
import type { ObjectFacts } from "../../src/replica/facts.ts";
import { planRetention } from "../../src/replica/retention-plan.ts";

/**
 * How long planning takes, and how much memory, where there are very many objects and everything is known of them: what `compact` and
 * `prune` do between two listings. Prints a line for each number of objects; a line that doubles the one before should take twice as long.
 * Run with `node packaging/bun.mjs test/bench/upkeep-plans.ts`.
 */

const SECOND_MS = 1_000;
const START_MS = Date.UTC(2026, 0, 1);
const MANY = [12_500, 25_000, 50_000, 100_000];

interface Case {
  readonly catalog: Catalog;
  readonly facts: ReadonlyMap<ReplicaObject, ObjectFacts>;
  readonly nowMs: number;
}

/** So many change-sets a second apart, a full backup every 10,000, and for `merged` what they are merged into by half minutes. */
function makeCase(count: number, merged: boolean): Case {
  const builder = new CatalogBuilder("app");
  const known = new Map<string, ObjectFacts>();
  const lineages = Array.from({ length: count + 2 }, (_, index) => index.toString(16).padStart(64, "0"));
  const chain = "c".repeat(32);
  const add = (level: number | "full", first: number, last: number) => {
    const seal = "p";
    const name =
      level === "full"
        ? ({ kind: "full", index: first, seal } as const)
        : ({ kind: "change-set", level, first, last, seal } as const);
    const stampMs = START_MS + last * SECOND_MS;
    builder.add(0, { key: objectKey("app", name), sizeBytes: 1_000, modifiedMs: stampMs });
    known.set(`${level} ${first}-${last}`, {
      chain,
      pageSizeBytes: 4096,
      parent: level === "full" ? null : (lineages[first - 1] ?? ""),
      result: lineages[last] ?? "",
      settled: last,
      sizePages: 100,
      pageCount: 1,
      commits: 1,
      firstCommitMs: stampMs,
      lastCommitMs: stampMs,
      compacted: level !== "full" && level > 0,
    });
  };
  for (let index = 1; index <= count; index++) {
    if (index % 10_000 === 1) add("full", index, index);
    if (index > 1) add(0, index, index);
  }
  if (merged) for (let first = 2; first + 29 <= count; first += 30) add(1, first, first + 29);
  const catalog = builder.build();
  const facts = new Map<ReplicaObject, ObjectFacts>();
  for (const object of [...catalog.fulls, ...catalog.changeSets]) {
    const its = known.get(`${object.kind === "full" ? "full" : object.level} ${object.first}-${object.last}`);
    if (its !== undefined) facts.set(object, its);
  }
  return { catalog, facts, nowMs: START_MS + count * SECOND_MS };
}

function measure(count: number, what: string, plan: () => number): void {
  Bun.gc(true);
  const heapBefore = process.memoryUsage().rss;
  const start = performance.now();
  const result = plan();
  const tookMs = performance.now() - start;
  const grownMiB = (process.memoryUsage().rss - heapBefore) / 2 ** 20;
  console.log(
    `${`${count}`.padStart(7)} ${what.padEnd(34)} ${tookMs.toFixed(0).padStart(6)} ms  ${grownMiB.toFixed(0).padStart(5)} MiB more  ${result}`,
  );
}

for (const count of MANY) {
  const raw = makeCase(count, false);
  measure(count, "planMerges, nothing merged yet", () => {
    const { catalog, facts, nowMs } = raw;
    const cuts = new Set(catalog.fulls.map(({ first }) => first));
    const knowledge = (object: ReplicaObject) => facts.get(object) ?? "unknown";
    const inputs = {
      catalog,
      knowledge,
      forks: new Set<ReplicaObject>(),
      level: 1,
      windowMs: 30 * SECOND_MS,
      keepRecent: 16,
      cuts,
      seal: "p",
      nowMs,
    };
    return planMerges(inputs).merges.length;
  });
  const merged = makeCase(count, true);
  for (const [what, policy] of [
    ["planRetention, all merged to go", { retentionMs: 0, maxTotalSizeBytes: 0 }],
    ["planRetention, most history to go", { retentionMs: 9_000 * SECOND_MS, maxTotalSizeBytes: 1 }],
  ] as const)
    measure(count, what, () => {
      const { catalog, facts, nowMs } = merged;
      const { expired, refused } = planRetention({
        catalog,
        knowledge: (object) => facts.get(object) ?? "unknown",
        preferences: { seal: "p", current: null },
        policy: { mergedKeepMs: [0], keepRecent: 16, maxBackups: 0, ...policy },
        marks: [],
        frozen: null,
        nowMs,
      });
      if (refused !== null) throw new Error(refused);
      return expired.length;
    });
}
