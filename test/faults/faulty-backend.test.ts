import { expect, test } from "bun:test";
import { bytesSource } from "../../src/storage/backend.ts";
import { MemoryBackend } from "../../src/storage/memory.ts";
import { bytesOf, describeBackend, generated, keysOf, text, textOf } from "../backends/conformance.ts";
import { withDeadline } from "../support/eventually.ts";
import { seededRandom } from "../support/random.ts";
import { type Fault, FaultyBackend, type Verb } from "./faulty-backend.ts";

describeBackend("memory behind a fault injector at rest", async () => ({
  backend: new FaultyBackend(new MemoryBackend(), { seed: 1 }),
  async [Symbol.asyncDispose]() {},
}));

async function outcomesOf(seed: number): Promise<string[]> {
  const rates = { refuse: 0.2, "lose-answer": 0.2, full: 0.1, deny: 0.1 } as const;
  const backend = new FaultyBackend(new MemoryBackend(), { seed, rates: { put: rates } });
  const keys = Array.from({ length: 50 }, (_, i) => `app/${i}`);
  await Promise.allSettled(keys.map((key) => backend.put(key, text(key))));
  return backend.calls.map((call) => `${call.key} ${call.fault}`).toSorted();
}

test("the same seed brings the same faults, another seed others", async () => {
  const first = await outcomesOf(7);
  expect(await outcomesOf(7)).toEqual(first);
  expect(await outcomesOf(8)).not.toEqual(first);
});

test("a refused put leaves nothing, one whose answer is lost is stored", async () => {
  const inner = new MemoryBackend();
  const backend = new FaultyBackend(inner, { seed: 1 });
  for (const fault of ["refuse", "cut", "full", "deny"] as const) {
    backend.failNext("put", fault);
    await expect(backend.put("app/a", generated(1, 100_000, 10_000))).rejects.toThrow(fault);
    expect(await keysOf(inner, "")).toEqual([]);
  }
  backend.failNext("put", "lose-answer");
  await expect(backend.put("app/a", text("a"))).rejects.toMatchObject({ code: "storage-unreachable" });
  expect(await textOf(inner, "app/a")).toBe("a");
  expect(await backend.put("app/b", text("b"))).toBe("stored");
});

test("codes tell a full destination from one that denies and one that is away", async () => {
  const backend = new FaultyBackend(new MemoryBackend(), { seed: 1 });
  const expected = [
    ["full", "storage-full"],
    ["deny", "storage-denied"],
    ["refuse", "storage-unreachable"],
  ] as const;
  for (const [fault, code] of expected)
    for (const verb of ["put", "stat", "delete", "get", "list"] as const) {
      backend.failNext(verb, fault);
      await expect(call(backend, verb)).rejects.toMatchObject({ code });
    }
});

test("a cut stream gives a true beginning and then throws", async () => {
  const bytes = seededRandom(3).bytes(2_000_000);
  const backend = new FaultyBackend(new MemoryBackend(), { seed: 2 });
  await backend.put("app/a", bytesSource(bytes));
  backend.failNext("get", "cut");
  const received: Uint8Array[] = [];
  const reading = (async () => {
    for await (const piece of (await backend.get("app/a")) ?? []) received.push(piece);
  })();
  await expect(reading).rejects.toMatchObject({ code: "storage-unreachable" });
  const got = Buffer.concat(received);
  expect(got.byteLength).toBeLessThan(bytes.byteLength);
  expect(Buffer.compare(got, bytes.subarray(0, got.byteLength))).toBe(0);
});

test("offline, every verb fails and a stream under way breaks; back online all is there", async () => {
  const backend = new FaultyBackend(new MemoryBackend(), { seed: 1 });
  await backend.put("app/a", generated(1, 2_000_000, 100_000));
  const reading = (async () => {
    for await (const _piece of (await backend.get("app/a")) ?? []) backend.isOffline = true;
  })();
  await expect(reading).rejects.toMatchObject({ code: "storage-unreachable" });
  for (const verb of ["put", "get", "stat", "list", "delete"] as const)
    await expect(call(backend, verb)).rejects.toMatchObject({ code: "storage-unreachable" });
  backend.isOffline = false;
  expect(await keysOf(backend, "")).toEqual(["app/a"]);
});

test("a hanging call ends with its abort only", async () => {
  const backend = new FaultyBackend(new MemoryBackend(), { seed: 1 });
  backend.failNext("put", "hang");
  const abort = new AbortController();
  const put = backend.put("app/a", text("a"), { signal: abort.signal });
  expect(await Promise.race([put, Bun.sleep(20).then(() => "still waiting")])).toBe("still waiting");
  abort.abort();
  await expect(withDeadline(put, { what: "the aborted put" })).rejects.toMatchObject({ code: "interrupted" });
  expect(await keysOf(backend, "")).toEqual([]);
});

test("a damaged byte reads wrong in every range that holds it, a lost object is gone until restored", async () => {
  const bytes = seededRandom(4).bytes(1000);
  const backend = new FaultyBackend(new MemoryBackend(), { seed: 1 });
  await backend.put("app/a", bytesSource(bytes));
  backend.damage("app/a", 990, 3);
  const spoilt = Uint8Array.from(bytes);
  spoilt[990] = (spoilt[990] ?? 0) ^ 8;
  expect(await bytesOf(backend, "app/a")).toEqual(spoilt);
  expect(await bytesOf(backend, "app/a", { start: -72 })).toEqual(spoilt.slice(-72));
  expect(await bytesOf(backend, "app/a", { start: 980, end: 1000 })).toEqual(spoilt.slice(980));
  expect(await bytesOf(backend, "app/a", { start: 0, end: 990 })).toEqual(bytes.slice(0, 990));
  backend.lose("app/a");
  expect(await backend.get("app/a")).toBeNull();
  expect(await backend.stat("app/a")).toBeNull();
  expect(await keysOf(backend, "")).toEqual([]);
  backend.restore("app/a");
  expect(await bytesOf(backend, "app/a")).toEqual(bytes);
  backend.failNext("get", "flip");
  expect(await bytesOf(backend, "app/a")).not.toEqual(bytes);
});

const CALLS: Record<Verb, (backend: FaultyBackend) => Promise<unknown>> = {
  put: (backend) => backend.put("app/x", text("x")),
  get: (backend) => backend.get("app/x"),
  stat: (backend) => backend.stat("app/x"),
  list: (backend) => keysOf(backend, ""),
  delete: (backend) => backend.delete(["app/x"]),
};

function call(backend: FaultyBackend, verb: Verb): Promise<unknown> {
  return CALLS[verb](backend);
}

test("every fault of every verb ends in a value or in one of our errors", async () => {
  const faults: Fault[] = ["refuse", "lose-answer", "cut", "full", "deny", "slow", "flip", "miss"];
  for (const fault of faults)
    for (const verb of ["put", "get", "stat", "list", "delete"] as const) {
      const backend = new FaultyBackend(new MemoryBackend(), { seed: 5, slowMs: 1 });
      await backend.put("app/x", text("before"));
      backend.failNext(verb, fault);
      const [result] = await Promise.allSettled([call(backend, verb)]);
      if (result?.status === "rejected") expect(result.reason).toMatchObject({ name: "BakeliteError" });
    }
});
