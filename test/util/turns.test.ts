import { expect, test } from "bun:test";
import { inTurns } from "../../src/util/turns.ts";

test("work in steps lets the event loop run once they have taken 10 ms, and gives its result", async () => {
  let nowMs = 0;
  let turns = 0;
  let [isOver, longest, inARow] = [false, 0, 0];
  const turn = () => {
    turns++;
    inARow = 0;
    if (!isOver) setImmediate(turn);
  };
  setImmediate(turn);
  function* work(): Generator<void, string> {
    for (let i = 0; i < 100; i++) {
      nowMs += 4;
      longest = Math.max(longest, ++inARow);
      yield;
    }
    return "done";
  }
  expect(await inTurns(work(), () => nowMs)).toBe("done");
  isOver = true;
  expect(longest).toBe(3);
  expect(turns).toBeGreaterThanOrEqual(33);
});

test("what the work throws is thrown", async () => {
  function* work(): Generator<void, never> {
    yield;
    throw new Error("cannot go on");
  }
  await expect(inTurns(work())).rejects.toThrow("cannot go on");
});
