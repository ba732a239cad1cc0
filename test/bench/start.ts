// How long the compiled executable takes from start to end of `--version`: `npm run build && npm run bench:start`.
import { executablePath } from "../support/executable.ts";

const RUNS = 40;
const WARM_UP_RUNS = 5;

const executable = executablePath();
const durationsMs: number[] = [];
for (let run = 0; run < WARM_UP_RUNS + RUNS; run++) {
  const startNs = Bun.nanoseconds();
  const { success } = Bun.spawnSync([executable, "--version"], {
    stdin: "ignore",
    stdout: "ignore",
    stderr: "inherit",
  });
  const durationMs = (Bun.nanoseconds() - startNs) / 1e6;
  if (!success) throw new Error(`${executable} --version failed`);
  if (run >= WARM_UP_RUNS) durationsMs.push(durationMs);
}
durationsMs.sort((a, b) => a - b);
const at = (share: number): string => (durationsMs[Math.floor((RUNS - 1) * share)] ?? Number.NaN).toFixed(1);
console.log(
  `bakelite --version, ${RUNS} runs: median ${at(0.5)} ms, p95 ${at(0.95)} ms, fastest ${at(0)} ms (goal: 50 ms)`,
);
