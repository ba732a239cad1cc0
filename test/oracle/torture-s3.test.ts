// deadline: 400 s
import { expect, test } from "bun:test";
import { whyNoRgw } from "../servers/s3-servers.ts";
import { runSeed } from "../support/random.ts";
import { describeReport, torture } from "./torture.ts";

const reason = whyNoRgw();

test.skipIf(reason !== null)(
  `20 s of writers, kills of the daemon, a change of the key, outages and faults of the line to S3 lose nothing that is sealed${reason === null ? "" : ` (${reason})`}`,
  async () => {
    const report = await torture({
      seed: runSeed(),
      seconds: 20,
      writers: 3,
      kills: 2,
      encrypted: true,
      rotations: 1,
      destination: "s3",
      program: "executable",
      ballastBytes: 12 * 1024 * 1024,
      settings: { debounce: "30ms", max_batch_delay: "100ms" },
    });
    console.log(`note: ran against ${report.destination}`);
    if (process.env["BAKELITE_TEST_REPORT"] === "1") console.log(describeReport(report));
    expect(report.daemonKills).toBeGreaterThanOrEqual(3);
    expect(report.encryption.rotations).toBe(1);
    expect(report.commits).toBeGreaterThan(150);
    expect(report.restoredLatest + report.restoredAtTimes).toBeGreaterThan(2);
    expect(report.fullBackups).toEqual({ "first backup": 1 });
  },
  300_000,
);
