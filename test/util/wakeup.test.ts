import { expect, test } from "bun:test";
import { Wakeup } from "../../src/util/wakeup.ts";
import { withDeadline } from "../support/eventually.ts";

const FOR_EVER = 2 ** 40;

/** Resolves to true when the promise does; the test's own deadline is the judge of "never". */
async function ends(promise: Promise<unknown>): Promise<boolean> {
  await withDeadline(promise, { what: "the wait to end", deadlineMs: 20_000 });
  return true;
}

async function isPending(promise: Promise<unknown>): Promise<boolean> {
  let pending = true;
  void promise.then(() => {
    pending = false;
  });
  await Bun.sleep(20);
  return pending;
}

test("a wait ends when somebody wakes it, and not before", async () => {
  const wakeup = new Wakeup();
  const wait = wakeup.wait(FOR_EVER);
  expect(await isPending(wait)).toBe(true);
  wakeup.wake();
  expect(await ends(wait)).toBe(true);
});

test("raised while nobody waits, it ends the next wait at once, and only that", async () => {
  const wakeup = new Wakeup();
  wakeup.wake();
  wakeup.wake();
  expect(await ends(wakeup.wait(FOR_EVER))).toBe(true);
  const second = wakeup.wait(FOR_EVER);
  expect(await isPending(second)).toBe(true);
  wakeup.wake();
  expect(await ends(second)).toBe(true);
});

test("a wait ends after its time, and a wait for no time at once", async () => {
  const wakeup = new Wakeup();
  const startMs = performance.now();
  expect(await ends(wakeup.wait(30))).toBe(true);
  expect(performance.now() - startMs).toBeGreaterThanOrEqual(29);
  expect(await ends(wakeup.wait(0))).toBe(true);
  expect(await ends(wakeup.wait(-5))).toBe(true);
});

test("a wait ends when its signal is aborted, before it or during it, and never rejects", async () => {
  const wakeup = new Wakeup();
  const abort = new AbortController();
  const wait = wakeup.wait(FOR_EVER, abort.signal);
  expect(await isPending(wait)).toBe(true);
  abort.abort(new Error("stop"));
  expect(await ends(wait)).toBe(true);
  expect(await ends(wakeup.wait(FOR_EVER, abort.signal))).toBe(true);
});

test("a wait says whether somebody has woken it", async () => {
  const wakeup = new Wakeup();
  expect(await wakeup.wait(1)).toBe(false);
  wakeup.wake();
  expect(await wakeup.wait(FOR_EVER)).toBe(true);
  expect(await wakeup.wait(1)).toBe(false);
});

test("many waits leave no listener on the signal behind", async () => {
  const wakeup = new Wakeup();
  const { signal } = new AbortController();
  let listeners = 0;
  const [add, remove] = [signal.addEventListener.bind(signal), signal.removeEventListener.bind(signal)];
  signal.addEventListener = (...parameters: Parameters<typeof add>) => {
    listeners++;
    add(...parameters);
  };
  signal.removeEventListener = (...parameters: Parameters<typeof remove>) => {
    listeners--;
    remove(...parameters);
  };
  for (let i = 0; i < 10; i++) {
    const wait = wakeup.wait(FOR_EVER, signal);
    wakeup.wake();
    await wait;
    await wakeup.wait(1, signal);
    await wakeup.rest(1, signal);
  }
  expect(listeners).toBe(0);
});

test("a rest lasts its time whoever wakes meanwhile; that ends the next wait at once", async () => {
  const wakeup = new Wakeup();
  const startMs = performance.now();
  const rest = wakeup.rest(40);
  wakeup.wake();
  expect(await ends(rest)).toBe(true);
  expect(performance.now() - startMs).toBeGreaterThanOrEqual(39);
  expect(await ends(wakeup.wait(FOR_EVER))).toBe(true);
});

test("a rest ends when its signal is aborted", async () => {
  const abort = new AbortController();
  const rest = new Wakeup().rest(2 ** 30, abort.signal);
  abort.abort();
  expect(await ends(rest)).toBe(true);
});

test("a rest that is aborted before it begins takes no time", async () => {
  const wakeup = new Wakeup();
  let rested = false;
  const rest = wakeup.rest(60_000, AbortSignal.abort()).then(() => {
    rested = true;
  });
  await Promise.resolve();
  await rest;
  expect(rested).toBe(true);
});
