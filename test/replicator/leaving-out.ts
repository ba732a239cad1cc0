import { fileURLToPath } from "node:url";
import type { Change } from "./rules.ts";

const PRELOAD = fileURLToPath(new URL("leave-out-rule.ts", import.meta.url));

export interface ChangedRun {
  readonly changes: readonly Change[];
  readonly environment: Readonly<Record<string, string>>;
  readonly timeoutMs: number;
}

/**
 * Runs a file of tests in a process of its own in which `src/replicator/` reads as `changes` say. Throws when a change
 * fits nowhere; what came of the tests is the caller's to judge.
 */
export async function runWithChanges(
  program: string,
  run: ChangedRun,
): Promise<{ readonly status: number; readonly said: string }> {
  const child = Bun.spawn([process.execPath, "test", "--preload", PRELOAD, program], {
    env: { ...process.env, ...run.environment, BAKELITE_TEST_CHANGES: JSON.stringify(run.changes) },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
    timeout: run.timeoutMs,
    killSignal: "SIGKILL",
  });
  const [output, errors, status] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  const said = `${output}\n${errors}`;
  const changed = output.split("\n").filter((line) => line.startsWith("changed ")).length;
  if (changed !== run.changes.length) throw new Error(`${changed} of ${run.changes.length} changes were made: ${said}`);
  return { status, said };
}
