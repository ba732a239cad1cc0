import { expect, test } from "bun:test";
import { createProgress } from "../../src/util/progress.ts";
import { MemoryOutput } from "../support/memory-output.ts";

const MIB = 2 ** 20;

function steppingClock() {
  let nowMs = 1_000;
  return {
    clock: { nowMs: () => nowMs, monotonicMs: () => nowMs },
    advance: (ms: number) => {
      nowMs += ms;
    },
  };
}

function lastLine(output: MemoryOutput): string {
  return output.text.split("\r\u001b[2K").at(-1) ?? "";
}

test("nothing is written when standard error is no terminal", () => {
  const output = new MemoryOutput();
  const { clock, advance } = steppingClock();
  {
    using progress = createProgress({ label: "x", totalBytes: 10, output, clock });
    advance(10_000);
    progress.add(5);
  }
  expect(output.text).toBe("");
});

test("the line shows bytes, share, rate and time left", () => {
  const output = new MemoryOutput({ isTerminal: true });
  const { clock, advance } = steppingClock();
  using progress = createProgress({ label: "restoring app", output, clock });
  advance(1_000);
  progress.add(10 * MIB);
  expect(lastLine(output)).toBe("restoring app  10.0 MiB  10.0 MiB/s");
  progress.setTotal(40 * MIB);
  advance(1_000);
  progress.add(10 * MIB);
  expect(lastLine(output)).toBe("restoring app  20.0 MiB of 40.0 MiB (50%)  10.0 MiB/s  ETA 2s");
});

test("the line is drawn at most five times a second, and disposing clears it", () => {
  const output = new MemoryOutput({ isTerminal: true });
  const { clock, advance } = steppingClock();
  {
    using progress = createProgress({ label: "x", totalBytes: MIB, output, clock });
    for (let i = 0; i < 1_000; i++) {
      advance(1);
      progress.add(100);
    }
  }
  expect(output.text.split("\r\u001b[2K")).toHaveLength(7);
  expect(lastLine(output)).toBe("");
});

test("a line never fills the width of the terminal", () => {
  const output = new MemoryOutput({ isTerminal: true, columns: 20 });
  const { clock, advance } = steppingClock();
  using progress = createProgress({ label: "x".repeat(50), totalBytes: 0, output, clock });
  advance(1_000);
  progress.add(1);
  expect(lastLine(output)).toHaveLength(19);
});
