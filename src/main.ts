import { readFileSync } from "node:fs";
import { describeFailure, exitCode, Interrupted, SIGNAL_NUMBERS } from "./cli/failure.ts";
import { ProcessOutput } from "./cli/process-output.ts";
import { runCli } from "./cli/run.ts";
import { systemClock } from "./util/clock.ts";

const stdout = new ProcessOutput(process.stdout);
const stderr = new ProcessOutput(process.stderr);
const abort = new AbortController();

process.on("uncaughtException", exitWith);
process.on("unhandledRejection", exitWith);
process.on("SIGINT", () => interrupt(new Interrupted("SIGINT")));
process.on("SIGTERM", () => interrupt(new Interrupted("SIGTERM")));
// A terminal that closes ends us in good order too, unless `nohup` said otherwise, or the command takes the signal for itself.
if (!ignoresHangUp())
  process.on("SIGHUP", () => {
    if (process.listenerCount("SIGHUP") === 1) interrupt(new Interrupted("SIGHUP"));
  });

const host = { stdout, stderr, env: { ...process.env }, clock: systemClock, signal: abort.signal };
await exitAfterFlush(await runCli(process.argv.slice(2), host));

/** The first signal asks the command to end in good order; a second one does not wait for it. */
function interrupt(reason: Interrupted): void {
  if (abort.signal.aborted) process.exit(128 + SIGNAL_NUMBERS[reason.signal]);
  abort.abort(reason);
}

/**
 * Whether whoever started us had SIGHUP ignored. To listen would undo that. Linux; elsewhere nothing tells.
 * Source: https://man7.org/linux/man-pages/man5/proc_pid_status.5.html, SigIgn.
 */
function ignoresHangUp(): boolean {
  try {
    const mask = /^SigIgn:\s*([0-9a-f]+)$/m.exec(readFileSync("/proc/self/status", "latin1"))?.[1] ?? "0";
    return (BigInt(`0x${mask}`) & 1n) === 1n;
  } catch {
    return false;
  }
}

/** For what nobody caught: a fault in bakelite, told in one line. */
function exitWith(error: unknown): void {
  const verbose = process.argv.includes("--verbose") || process.argv.includes("-v");
  stderr.write(describeFailure(error, { verbose }));
  void exitAfterFlush(exitCode(error));
}

async function exitAfterFlush(code: number): Promise<never> {
  let finalCode = code;
  try {
    await stdout.flush();
  } catch (error) {
    // Standard output may be the result, such as a new key: losing it is a failure of the command.
    stderr.write(describeFailure(error, { verbose: false }));
    finalCode = code === 0 ? 1 : code;
  }
  // With a broken standard error there is nobody left to tell.
  await stderr.flush().catch(() => {});
  return process.exit(finalCode);
}
