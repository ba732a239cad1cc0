// deadline: 400 s
import { describe, expect, test } from "bun:test";
import { whyNoAzurite } from "../servers/azurite.ts";
import { missingForSshd } from "../servers/sshd.ts";
import { runSeed } from "../support/random.ts";
import { describeReport, torture } from "./torture.ts";

const TIMEOUT_MS = 240_000;
const LACKING: Readonly<Record<string, string | null>> = {
  azure: await whyNoAzurite(),
  sftp: missingForSshd().length > 0 ? "openssh-server is not installed" : null,
};

// Side by side: each mostly waits for outages to end.
describe.concurrent("writers, kills of the daemon, outages and a line that breaks lose nothing", () => {
  for (const destination of ["gcs", "azure", "sftp"] as const) {
    const reason = LACKING[destination] ?? null;
    test.skipIf(reason !== null)(
      `in 12 s on ${destination}${reason === null ? "" : ` (${reason})`}`,
      async () => {
        const report = await torture({
          seed: runSeed(),
          seconds: 12,
          writers: 2,
          kills: 2,
          destination,
          program: "executable",
          // Enough for an upload in several requests, where there is such a thing.
          ballastBytes: (destination === "sftp" ? 1 : 9) * 1024 * 1024,
          settings: { debounce: "30ms", max_batch_delay: "100ms" },
        });
        console.log(`note: ran against ${report.destination}`);
        if (process.env["BAKELITE_TEST_REPORT"] === "1") console.log(describeReport(report));
        expect(report.daemonKills).toBeGreaterThanOrEqual(2);
        expect(report.fullBackups).toEqual({ "first backup": 1 });
      },
      TIMEOUT_MS,
    );
  }
});
