import { expect, test } from "bun:test";
import { Semaphore } from "../../src/util/semaphore.ts";
import { fc } from "../support/properties.ts";

/** Lets every promise that can settle do so. */
async function settle(): Promise<void> {
  await Bun.sleep(0);
}

test("never more than the slots are held, and everyone gets one", async () => {
  await fc.assert(
    fc.asyncProperty(fc.integer({ min: 1, max: 4 }), fc.array(fc.nat(3), { maxLength: 20 }), async (slots, steps) => {
      const semaphore = new Semaphore(slots);
      let held = 0;
      let most = 0;
      let served = 0;
      await Promise.all(
        steps.map(async (waits) => {
          using _slot = await semaphore.acquire();
          most = Math.max(most, ++held);
          for (let i = 0; i < waits; i++) await Promise.resolve();
          held--;
          served++;
        }),
      );
      expect(most).toBeLessThanOrEqual(slots);
      expect(served).toBe(steps.length);
      expect(semaphore.waiterCount).toBe(0);
    }),
    { numRuns: 50 },
  );
});

test("waiters are served by priority, and those of one priority in the order in which they came", async () => {
  const semaphore = new Semaphore(1);
  const first = await semaphore.acquire();
  const served: string[] = [];
  const queue = async (name: string, priority?: number) => {
    using _slot = await semaphore.acquire(priority === undefined ? {} : { priority });
    served.push(name);
  };
  const all = [queue("big", 9), queue("a", 5), queue("b", 5), queue("default"), queue("small", -1)];
  first[Symbol.dispose]();
  await Promise.all(all);
  expect(served).toEqual(["small", "default", "a", "b", "big"]);
});

test("a slot that is free at this moment can be had without waiting, and no other", async () => {
  const semaphore = new Semaphore(1);
  const slot = semaphore.tryAcquire();
  expect([slot === null, semaphore.tryAcquire()]).toEqual([false, null]);
  const waiting = semaphore.acquire();
  slot?.[Symbol.dispose]();
  expect(semaphore.tryAcquire()).toBeNull();
  (await waiting)[Symbol.dispose]();
  expect(semaphore.tryAcquire()).not.toBeNull();
});

test("who is aborted leaves the queue and takes no slot", async () => {
  const semaphore = new Semaphore(1);
  const first = await semaphore.acquire();
  const abort = new AbortController();
  const gone = semaphore.acquire({ signal: abort.signal });
  const next = semaphore.acquire();
  abort.abort(new Error("gone"));
  await expect(gone).rejects.toThrow("gone");
  expect(semaphore.waiterCount).toBe(1);
  first[Symbol.dispose]();
  (await next)[Symbol.dispose]();
  (await semaphore.acquire())[Symbol.dispose]();
  await expect(semaphore.acquire({ signal: abort.signal })).rejects.toThrow("gone");
});

test("an abort after the slot was given changes nothing", async () => {
  const semaphore = new Semaphore(1);
  const first = await semaphore.acquire();
  const abort = new AbortController();
  const second = semaphore.acquire({ signal: abort.signal });
  first[Symbol.dispose]();
  abort.abort();
  using _slot = await second;
  expect(semaphore.waiterCount).toBe(0);
});

test("disposing a slot twice frees one slot", async () => {
  const semaphore = new Semaphore(1);
  const slot = await semaphore.acquire();
  slot[Symbol.dispose]();
  slot[Symbol.dispose]();
  using _held = await semaphore.acquire();
  let hasSecond = false;
  void semaphore.acquire().then(() => (hasSecond = true));
  await settle();
  expect(hasSecond).toBe(false);
});

test("more slots are given at once, and fewer as those that are held come back", async () => {
  const semaphore = new Semaphore(1);
  const first = await semaphore.acquire();
  const [second, third] = [semaphore.acquire(), semaphore.acquire()];
  semaphore.resize(2);
  const held = await second;
  expect(semaphore.waiterCount).toBe(1);
  semaphore.resize(1);
  first[Symbol.dispose]();
  await settle();
  expect(semaphore.waiterCount).toBe(1);
  held[Symbol.dispose]();
  (await third)[Symbol.dispose]();
  using _last = await semaphore.acquire();
  void semaphore.acquire();
  expect(semaphore.waiterCount).toBe(1);
});
