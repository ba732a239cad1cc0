import { expect, test } from "bun:test";
import { withSeed } from "../support/random.ts";
import { commitWithoutChecksums, pythonLeavesBadChecksums } from "./bad-checksums.ts";
import { type HammerOptions, type HammerReport, hammer } from "./hammer.ts";

// The judge of each of these: the pages that were captured make, byte for byte, the file that SQLite's own TRUNCATE
// checkpoint makes, and each copy graded on the way is a committed state. See hammer.ts.

const TIMEOUT_MS = 60_000;

function hammered(
  behaviour: string,
  options: Omit<HammerOptions, "random">,
  expectations: (report: HammerReport) => void | Promise<void> = () => {},
): void {
  test(
    behaviour,
    async () => {
      await withSeed(async (random) => {
        const report = await hammer({ gradeEveryMs: 500, limitBytes: 256 * 1024, ...options, random });
        if (process.env["BAKELITE_TEST_REPORT"] === "1") console.log(behaviour, report);
        expect(report.commits).toBeGreaterThan(20);
        expect(report.graded).toBeGreaterThan(1);
        await expectations(report);
      });
    },
    TIMEOUT_MS,
  );
}

hammered(
  "two ordinary applications are followed, and the WAL is restarted again and again",
  {
    seconds: 4,
    writers: [
      { mode: "normal", rate: 200 },
      { mode: "normal", engine: "python", rate: 200 },
    ],
  },
  (report) => expect(report.complete).toBeGreaterThan(0),
);

hammered("hostile applications of two engines are followed", {
  seconds: 5,
  writers: [
    { mode: "hostile", rate: 0 },
    { mode: "hostile", engine: "python", rate: 0 },
    { mode: "normal", rate: 50 },
  ],
});

hammered(
  "an engine that commits frames without checksums is followed like any other",
  {
    seconds: 4,
    writers: [
      { mode: "hostile", engine: "python", rate: 0, savepointSpills: "always" },
      { mode: "hostile", rate: 50 },
    ],
    interlude: commitWithoutChecksums,
  },
  async (report) => {
    if (await pythonLeavesBadChecksums()) expect(report.badChecksums).toBeGreaterThan(0);
    else expect(report.badChecksums).toBe(0);
  },
);

hammered(
  "overlapping long readers keep the WAL from a restart, and nothing else",
  {
    seconds: 4,
    writers: [
      { mode: "normal", rate: 100 },
      { mode: "reader", readers: 4, maxHoldMs: 2000 },
    ],
  },
  (report) => expect(report.outcomes["deadline"]).toBeGreaterThan(0),
);

hammered(
  "checkpoints complete between readers that overlap for moments",
  {
    seconds: 4,
    writers: [
      { mode: "normal", rate: 100 },
      { mode: "reader", readers: 2, maxHoldMs: 200 },
    ],
  },
  (report) => expect(report.complete).toBeGreaterThan(0),
);

hammered("four writers at full speed are followed", {
  seconds: 4,
  limitBytes: 1024 * 1024,
  maxPauseMs: 5,
  writers: [1, 2, 3, 4].map(() => ({ mode: "flat-out" as const })),
});

hammered("a limit of one page makes every capture a checkpoint, and nothing is lost", {
  seconds: 4,
  limitBytes: 1,
  maxPauseMs: 3,
  writers: [
    { mode: "normal", rate: 300 },
    { mode: "hostile", rate: 100 },
  ],
});
