import type { CliHost } from "../../src/cli/command.ts";
import { MemoryOutput } from "../support/memory-output.ts";

export interface FakeHost extends CliHost {
  readonly stdout: MemoryOutput;
  readonly stderr: MemoryOutput;
}

/** A world of its own for `runCli`: nothing in the environment, a clock that stands still, and no signal. */
export function fakeHost(overrides: Partial<FakeHost> = {}): FakeHost {
  return {
    stdout: new MemoryOutput(),
    stderr: new MemoryOutput(),
    env: {},
    clock: { nowMs: () => Date.UTC(2026, 4, 25, 12), monotonicMs: () => 0 },
    signal: new AbortController().signal,
    ...overrides,
  };
}
