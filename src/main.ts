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

const host = { stdout, stderr, env: { ...process.env }, clock: systemClock, signal: abort.signal };
await exitAfterFlush(await runCli(process.argv.slice(2), host));

/** The first signal asks the command to end in good order; a second one does not wait for it. */
function interrupt(reason: Interrupted): void {
  if (abort.signal.aborted) process.exit(128 + SIGNAL_NUMBERS[reason.signal]);
  abort.abort(reason);
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
