// Stops the daemon right after a commit, again and again: `npm run torture:stop -- --seconds 600 [--seed 1] [--executable]`. Ends with
// status 1 at the first commit that is neither in a restore nor said to be missing.
import { parseArgs } from "node:util";
import { runSeed, withSeed } from "../support/random.ts";
import { describeStopStorm, stopStorm } from "./stop-storm.ts";

const { values } = parseArgs({
  options: {
    seconds: { type: "string", default: "600" },
    seed: { type: "string" },
    executable: { type: "boolean", default: false },
    verbose: { type: "boolean", default: false },
  },
});
const seconds = Number(values.seconds);
if (!(seconds > 0)) throw new Error("--seconds is a number");
const seed = values.seed === undefined ? runSeed() : Number(values.seed);
const report = await withSeed(
  (random) =>
    stopStorm({
      random,
      seconds,
      program: values.executable ? "executable" : "source",
      ...(values.verbose ? { tell: (what: string) => console.error(what) } : {}),
    }),
  seed,
);
console.log(`seed ${seed}: ${describeStopStorm(report)}`);
