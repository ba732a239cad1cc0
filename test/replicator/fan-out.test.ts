import { expect, test } from "bun:test";
import { FanOut } from "../../src/replicator/fan-out.ts";
import type { ByteSource } from "../../src/storage/backend.ts";
import { systemClock } from "../../src/util/clock.ts";
import { BakeliteError } from "../../src/util/errors.ts";
import { eventually } from "../support/eventually.ts";

/** One stream for several destinations. */

const PIECE_BYTES = 1024 * 1024;

interface Stream extends ByteSource {
  readonly given: () => number;
  readonly isClosed: () => boolean;
}

/** Each piece is filled with its number. */
function streamOf(count: number, failAt = Number.POSITIVE_INFINITY): Stream {
  let given = 0;
  let closed = false;
  return {
    sizeBytes: undefined,
    replayable: false,
    given: () => given,
    isClosed: () => closed,
    async *open() {
      try {
        for (let i = 0; i < count; i++) {
          if (i === failAt) throw new Error("the stream broke off");
          given++;
          yield new Uint8Array(PIECE_BYTES).fill(i);
        }
      } finally {
        closed = true;
      }
    },
  };
}

const PATIENT = { totalPatienceMs: 60_000, stallMs: 60_000, clock: systemClock };

async function numbers(source: ByteSource, pauseMs = 0): Promise<number[]> {
  const found: number[] = [];
  for await (const piece of source.open()) {
    found.push(piece[0] ?? -1);
    if (pauseMs > 0) await Bun.sleep(pauseMs);
  }
  return found;
}

const upTo = (count: number) => Array.from({ length: count }, (_, i) => i);

test("each reader gets every piece in order, however differently fast they read", async () => {
  const stream = streamOf(30);
  const fanOut = new FanOut(stream, 3, PATIENT);
  const all = await Promise.all([
    numbers(fanOut.reader(0)),
    numbers(fanOut.reader(1), 2),
    numbers(fanOut.reader(2), 1),
  ]);
  expect(all).toEqual([upTo(30), upTo(30), upTo(30)]);
  expect(stream.given()).toBe(30);
});

test("a reader that stands still holds up the others 8 MiB ahead of it, and no longer than patience lasts", async () => {
  const stream = streamOf(40);
  const fanOut = new FanOut(stream, 2, { ...PATIENT, totalPatienceMs: 300 });
  const slow = fanOut.reader(1).open()[Symbol.asyncIterator]();
  await slow.next();
  const fast = numbers(fanOut.reader(0));
  await eventually(() => stream.given() >= 9, { what: "the fast reader to run ahead" });
  expect(stream.given()).toBeLessThanOrEqual(11);
  expect(await fast).toEqual(upTo(40));
  const error: unknown = await slow.next().catch((thrown: unknown) => thrown);
  expect(error).toBeInstanceOf(BakeliteError);
  expect((error as BakeliteError).code).toBe("storage-unreachable");
});

test("a reader that makes headway is not left behind for standing still", async () => {
  const fanOut = new FanOut(streamOf(24), 2, { ...PATIENT, stallMs: 250 });
  const [fast, slow] = await Promise.all([numbers(fanOut.reader(0)), numbers(fanOut.reader(1), 30)]);
  expect([fast, slow]).toEqual([upTo(24), upTo(24)]);
});

test("one that leaves does not disturb the others, and when all have left the stream is closed", async () => {
  const stream = streamOf(40);
  const fanOut = new FanOut(stream, 3, PATIENT);
  fanOut.leave(2);
  const first = fanOut.reader(1).open()[Symbol.asyncIterator]();
  await first.next();
  await first.return?.();
  const last = fanOut.reader(0).open()[Symbol.asyncIterator]();
  for (let i = 0; i < 20; i++) await last.next();
  expect(stream.isClosed()).toBe(false);
  await last.return?.();
  await eventually(() => stream.isClosed(), { what: "the stream to be closed" });
});

test("what the stream fails with reaches every reader, and is told apart from what they fail with", async () => {
  const fanOut = new FanOut(streamOf(40, 5), 2, PATIENT);
  const outcomes = await Promise.allSettled([numbers(fanOut.reader(0)), numbers(fanOut.reader(1))]);
  expect(outcomes.map(({ status }) => status)).toEqual(["rejected", "rejected"]);
  expect(fanOut.failure?.error).toBeInstanceOf(Error);
});
