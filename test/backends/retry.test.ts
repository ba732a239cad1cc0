import { expect, test } from "bun:test";
import { type ByteSource, bytesSource } from "../../src/storage/backend.ts";
import { MemoryBackend } from "../../src/storage/memory.ts";
import { openBackend } from "../../src/storage/open.ts";
import { type RetryPolicy, withRetry } from "../../src/storage/retry.ts";
import type { Clock } from "../../src/util/clock.ts";
import { FaultyBackend } from "../faults/faulty-backend.ts";
import { withDeadline } from "../support/eventually.ts";
import { seededRandom } from "../support/random.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";
import { bytesOf, describeBackend, generated, keysOf, text, textOf } from "./conformance.ts";

const quick: RetryPolicy = { retries: 12, baseMs: 1, capMs: 2, maxElapsedMs: 60_000, random: seededRandom(1).next };

describeBackend("file with retry", async () => {
  const directory = await temporaryDirectory("retry");
  const options = { type: "file", path: directory.file("backup") } as const;
  return {
    backend: withRetry(openBackend(options), quick),
    sibling: openBackend(options),
    [Symbol.asyncDispose]: () => directory[Symbol.asyncDispose](),
  };
});

const TRIED_ONCE = "such a body is tried once, and the line may fail before it";
const flaky = { refuse: 0.15, cut: 0.15 };

// Lost answers are left out: the suite asks who was first, which a retry after a lost answer cannot know.
describeBackend(
  "memory with retry over a flaky line",
  async () => {
    const rates = { put: flaky, get: flaky, stat: flaky, list: flaky, delete: flaky };
    const backend = withRetry(new FaultyBackend(new MemoryBackend(), { seed: 11, rates }), quick);
    return { backend, async [Symbol.asyncDispose]() {} };
  },
  {
    skips: {
      "leaves nothing of a body that throws midway": TRIED_ONCE,
      "leaves nothing of a large body that throws midway, nor of one that is aborted": TRIED_ONCE,
    },
  },
);

function flakyMemory(policy: Partial<RetryPolicy> = {}) {
  const memory = new MemoryBackend();
  const faulty = new FaultyBackend(memory, { seed: 1 });
  return { memory, faulty, backend: withRetry(faulty, { ...quick, ...policy }) };
}

test("a put whose answer was lost is found stored by its second attempt, which says exists", async () => {
  const { faulty, backend } = flakyMemory();
  faulty.failNext("put", "lose-answer");
  expect(await backend.put("app/L0/1", text("ours"), { ifAbsent: true })).toBe("exists");
  expect(await textOf(backend, "app/L0/1")).toBe("ours");
});

test("only storage-unreachable is tried again", async () => {
  const { faulty, backend } = flakyMemory();
  for (const [fault, code] of [
    ["full", "storage-full"],
    ["deny", "storage-denied"],
  ] as const) {
    faulty.calls.length = 0;
    faulty.failNext("put", fault);
    await expect(backend.put("app/a", text("a"))).rejects.toMatchObject({ code });
    expect(faulty.calls).toHaveLength(1);
  }
});

test("a body that cannot be replayed is tried once", async () => {
  const { faulty, backend } = flakyMemory();
  faulty.failNext("put", "refuse");
  const once: ByteSource = { ...text("a"), replayable: false };
  await expect(backend.put("app/a", once)).rejects.toMatchObject({ code: "storage-unreachable" });
  expect(faulty.calls).toHaveLength(1);
});

test("attempts are bounded, and the last failure comes back", async () => {
  const { faulty, backend } = flakyMemory({ retries: 3 });
  faulty.isOffline = true;
  await expect(backend.stat("app/a")).rejects.toMatchObject({ code: "storage-unreachable" });
  expect(faulty.calls).toHaveLength(4);
});

test("no attempt begins after the time is up", async () => {
  let nowMs = 0;
  const clock: Clock = { nowMs: () => nowMs, monotonicMs: () => nowMs };
  const { faulty, backend } = flakyMemory({
    retries: 1000,
    maxElapsedMs: 5_000,
    clock,
    onRetry: () => {
      nowMs += 1_000;
    },
  });
  faulty.isOffline = true;
  await expect(backend.stat("app/a")).rejects.toMatchObject({ code: "storage-unreachable" });
  expect(faulty.calls.length).toBeGreaterThan(2);
  expect(faulty.calls.length).toBeLessThanOrEqual(6);
});

test("an abort ends the wait between attempts", async () => {
  const abort = new AbortController();
  const { faulty, backend } = flakyMemory({
    baseMs: 100_000_000,
    capMs: 100_000_000,
    maxElapsedMs: Number.POSITIVE_INFINITY,
    random: () => 0.9,
    onRetry: () => setTimeout(() => abort.abort(), 5),
  });
  faulty.isOffline = true;
  const call = backend.stat("app/a", { signal: abort.signal });
  await expect(withDeadline(call, { what: "the aborted wait" })).rejects.toMatchObject({ code: "interrupted" });
});

test("the wait before each attempt is reported, within its growing bound", async () => {
  const delays: number[] = [];
  const { faulty, backend } = flakyMemory({
    retries: 6,
    baseMs: 2,
    capMs: 16,
    random: () => 0.999,
    onRetry: ({ delayMs, verb }) => {
      expect(verb).toBe("get");
      delays.push(Math.round(delayMs));
    },
  });
  faulty.isOffline = true;
  await expect(backend.get("app/a")).rejects.toMatchObject({ code: "storage-unreachable" });
  expect(delays).toEqual([2, 4, 8, 16, 16, 16]);
});

test("a stream that breaks again and again goes on where it stopped, for every kind of range", async () => {
  const bytes = seededRandom(9).bytes(1_500_000);
  for (const range of [
    undefined,
    { start: 100_000 },
    { start: 5, end: 1_400_000 },
    { start: -900_000 },
    { start: -9_000_000 },
  ]) {
    const { faulty, backend } = flakyMemory();
    await backend.put("app/a", bytesSource(bytes));
    faulty.failNext("get", "cut", { times: 8 });
    const expected = range === undefined ? bytes : bytes.slice(range.start, range.end);
    expect(Buffer.compare(await bytesOf(backend, "app/a", range), expected)).toBe(0);
    expect(faulty.calls.filter((call) => call.fault === "cut")).toHaveLength(8);
  }
});

test("a listing that breaks again and again is complete and has nothing twice", async () => {
  const { faulty, backend } = flakyMemory();
  const keys = Array.from({ length: 500 }, (_, i) => `app/${String(i).padStart(4, "0")}`);
  for (const key of keys) await backend.put(key, text(key));
  faulty.failNext("list", "cut", { times: 20 });
  expect(await keysOf(backend, "app/")).toEqual(keys);
});

test("an object deleted while it was read is replica-missing, not a short stream", async () => {
  const { faulty, memory, backend } = flakyMemory();
  await backend.put("app/a", generated(1, 1_500_000, 100_000));
  faulty.failNext("get", "cut");
  const reading = (async () => {
    for await (const _piece of (await backend.get("app/a")) ?? []) await memory.delete(["app/a"]);
  })();
  await expect(reading).rejects.toMatchObject({ code: "replica-missing" });
});
