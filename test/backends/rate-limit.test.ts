import { expect, test } from "bun:test";
import { applyRateLimits, openDestination } from "../../src/config/assemble.ts";
import { parseConfig } from "../../src/config/load.ts";
import { bytesSource } from "../../src/storage/backend.ts";
import { MemoryBackend } from "../../src/storage/memory.ts";
import { rateLimitsOf, setRates, withRateLimit } from "../../src/storage/rate-limit.ts";
import { withTimeout } from "../../src/storage/timeout.ts";
import { TokenBucket } from "../../src/util/token-bucket.ts";
import { seededRandom } from "../support/random.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";
import { bytesOf, describeBackend, text } from "./conformance.ts";

const MIB = 2 ** 20;

// Both wrappers at once, as a directory has them.
describeBackend("memory with a timeout and rate limits", async () => {
  const limits = { upload: new TokenBucket(4096 * MIB), download: new TokenBucket(4096 * MIB) };
  const backend = withRateLimit(withTimeout(new MemoryBackend(), 60_000), limits);
  return { backend, async [Symbol.asyncDispose]() {} };
});

test("bodies and streams are counted, each against its own limit", async () => {
  let nowMs = 0;
  const time = {
    clock: { nowMs: () => nowMs, monotonicMs: () => nowMs },
    sleep: async (ms: number) => {
      nowMs += ms;
    },
  };
  const limits = { upload: new TokenBucket(MIB, time), download: new TokenBucket(2 * MIB, time) };
  const backend = withRateLimit(new MemoryBackend(), limits);
  const bytes = seededRandom(4).bytes(5 * MIB);
  await backend.put("app/a", bytesSource(bytes));
  // One second's worth at once, the other four in four seconds.
  expect(Math.round(nowMs / 100)).toBe(40);
  nowMs = 100_000;
  expect(await bytesOf(backend, "app/a")).toEqual(bytes);
  expect(Math.round((nowMs - 100_000) / 100)).toBe(15);
  await backend.stat("app/a");
  await backend.delete(["app/a"]);
  expect(Math.round((nowMs - 100_000) / 100)).toBe(15);
});

test("an abort ends the wait for one's turn at once", async () => {
  const limits = { upload: new TokenBucket(1), download: new TokenBucket(1) };
  const backend = withRateLimit(new MemoryBackend(), limits);
  const abort = new AbortController();
  const waiting = backend.put("app/a", bytesSource(new Uint8Array(MIB)), { signal: abort.signal });
  const second = backend.put("app/b", bytesSource(new Uint8Array(MIB)), { signal: abort.signal });
  abort.abort();
  const outcomes = await Promise.allSettled([waiting, second]);
  for (const outcome of outcomes)
    expect(outcome).toMatchObject({ status: "rejected", reason: { code: "interrupted" } });
  expect(await backend.stat("app/a")).toBeNull();
});

test("all databases of one place share a limit, the lowest that one of them names, and a new one counts at once", async () => {
  await using directory = await temporaryDirectory("rates");
  const configOf = (first: string, second: string) => {
    const backend = (limit: string) =>
      `[[database.backends]]\ntype = "file"\npath = "${directory.path}/b"\n${limit === "" ? "" : `upload_rate_limit = "${limit}"`}\n`;
    const toml = `[[database]]\nname = "a"\npath = "/a.db"\n${backend(first)}[[database]]\nname = "b"\npath = "/b.db"\n${backend(second)}`;
    return parseConfig(toml, { sourcePath: "/x.toml", env: {} });
  };
  const place = rateLimitsOf(`file ${directory.path}/b`);
  applyRateLimits(configOf("2MiB", "1MiB").databases);
  expect(place.upload.bytesPerSecond).toBe(MIB);
  applyRateLimits(configOf("2MiB", "").databases);
  expect(place.upload.bytesPerSecond).toBe(2 * MIB);
  // What is opened meanwhile, as for compaction, changes nothing.
  const backend = configOf("1KiB", "1KiB").databases[0]?.backends[0];
  if (backend === undefined) throw new Error("there is one");
  const opened = openDestination(backend);
  expect(place.upload.bytesPerSecond).toBe(2 * MIB);
  setRates(place, { uploadBytesPerSecond: 1, downloadBytesPerSecond: 0 });
  const slow = opened.put("app/a", bytesSource(new Uint8Array(MIB)));
  applyRateLimits(configOf("", "").databases);
  expect(await slow).toBe("stored");
  await opened.put("app/b", text("x"));
});

test("a real clock lets no more pass than the limit says", async () => {
  const rate = 512 * 1024;
  const limits = { upload: new TokenBucket(rate), download: new TokenBucket(0) };
  const backend = withRateLimit(new MemoryBackend(), limits);
  const startMs = performance.now();
  await backend.put("app/a", bytesSource(new Uint8Array(rate * 2)));
  const tookMs = performance.now() - startMs;
  // However slow the machine: a second's worth is free, the other one takes a second at least.
  expect(rate * 2).toBeLessThanOrEqual(rate + (rate * tookMs) / 1000 + 64 * 1024);
});
