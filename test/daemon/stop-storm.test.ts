import { expect, test } from "bun:test";
import { withSeed } from "../support/random.ts";
import { describeStopStorm, stopStorm } from "./stop-storm.ts";

const SECONDS = 8;

test("what is committed right before SIGTERM is in a restore, or the last status says that it is not", async () => {
  const report = await withSeed((random) => stopStorm({ random, seconds: SECONDS, program: "executable" }));
  console.log(`note: ${describeStopStorm(report)}; \`npm run torture:stop\` does more of it`);
  expect(report.whole).toBeGreaterThan(0);
}, 180_000);
