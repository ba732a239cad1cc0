// deadline: 300 s
import { expect, test } from "bun:test";
import { whyNoRgw } from "../servers/s3-servers.ts";
import { runSeed } from "../support/random.ts";
import { tortureLockStep } from "./lock-step-torture.ts";

const reason = whyNoRgw();

test(`15 s of three destinations that go away, lose objects and flip bits lose nothing${reason === null ? "" : ` (without S3: ${reason})`}`, async () => {
  const report = await tortureLockStep({
    seed: runSeed(),
    seconds: 15,
    kills: 3,
    writers: 2,
    s3: reason === null,
    program: "executable",
  });
  if (process.env["BAKELITE_TEST_REPORT"] === "1") console.log(JSON.stringify(report));
  expect(report.kills).toBeGreaterThanOrEqual(3);
  expect(report.commits).toBeGreaterThan(50);
  expect(report.restoredAlone).toBeGreaterThanOrEqual(3);
}, 200_000);
