import { plugin } from "bun";
import type { Command, CommandContext } from "../../src/cli/command.ts";

/** Preloaded into a run from source: `help <behaviour>` then does what the tests of the frame need a command to do. */

const behaviours: Readonly<Record<string, (context: CommandContext) => Promise<number>>> = {
  async select(context) {
    const config = await context.loadConfig();
    context.stdout.write(`${context.selectDatabases(config).map((database) => database.name)}\n`);
    return 0;
  },
  async log(context) {
    context.logger.debug("a debug line");
    context.logger.warn("a warning");
    return 0;
  },
  async "finish-on-signal"(context) {
    await aborted(context);
    context.stdout.write("finished in good order\n");
    return 0;
  },
  async "fail-on-signal"(context) {
    await aborted(context);
    throw context.signal.reason;
  },
  async "ignore-signals"(context) {
    await aborted(context);
    context.stdout.write("ignored\n");
    return await new Promise(() => {});
  },
  async "reject-unheard"() {
    void Promise.reject(new Error("nobody listens"));
    return await new Promise(() => {});
  },
  async "throw-in-timer"() {
    setTimeout(() => {
      throw new Error("thrown in a timer");
    });
    return await new Promise(() => {});
  },
  async "write-much"(context) {
    for (let i = 0; i < 1_000; i++) context.stdout.write(`${"x".repeat(9_999)}\n`);
    return 3;
  },
};

function aborted({ stdout, signal }: CommandContext): Promise<void> {
  // Keeps the process alive, as real work would.
  const timer = setInterval(() => {}, 1_000);
  return new Promise((resolve) => {
    signal.addEventListener("abort", () => {
      clearInterval(timer);
      resolve();
    });
    stdout.write("waiting\n");
  });
}

const command: Command = {
  usage: "[behaviour]",
  options: [],
  positionals: ["behaviour"],
  examples: [],
  async run(context) {
    const behaviour = behaviours[context.positionals[0] ?? ""];
    if (behaviour === undefined) throw new Error("no such behaviour");
    return await behaviour(context);
  },
};

plugin({
  name: "stand-in-command",
  setup(build) {
    build.onLoad({ filter: /src\/cli\/commands\/help\.ts$/ }, () => ({ exports: { command }, loader: "object" }));
  },
});
