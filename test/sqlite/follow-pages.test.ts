import { expect, test } from "bun:test";
import { withSeed } from "../support/random.ts";
import { type HammerOptions, hammer } from "./hammer.ts";

const TIMEOUT_MS = 60_000;

function hammered(
  behaviour: string,
  options: Omit<HammerOptions, "random" | "seconds"> & { readonly minPages?: number },
): void {
  test(
    behaviour,
    async () => {
      await withSeed(async (random) => {
        const report = await hammer({ gradeEveryMs: 700, ...options, random, seconds: 4 });
        if (process.env["BAKELITE_TEST_REPORT"] === "1") console.log(behaviour, report);
        expect(report.commits).toBeGreaterThan(20);
        expect(report.maxSizePages).toBeGreaterThan(options.minPages ?? 1);
      });
    },
    TIMEOUT_MS,
  );
}

hammered("pages of 512 bytes are followed with a frame map so small that its window moves all the time", {
  limitBytes: 256 * 1024,
  // One block of 4,096 pages.
  frameMapBytes: 16 * 1024,
  minPages: 4096,
  paddingBytes: 4 * 1024 * 1024,
  writers: [
    { mode: "normal", pageSizeBytes: 512, rate: 200, targetBytes: 8 * 1024 * 1024 },
    { mode: "hostile", rate: 50 },
  ],
});

hammered("pages of 1,024 bytes with auto_vacuum=FULL are followed", {
  limitBytes: 128 * 1024,
  writers: [
    { mode: "hostile", pageSizeBytes: 1024, autoVacuum: "full", rate: 100, targetBytes: 256 * 1024 },
    { mode: "normal", rate: 100, targetBytes: 256 * 1024 },
  ],
});

hammered("pages of 65,536 bytes with auto_vacuum=INCREMENTAL are followed", {
  limitBytes: 1024 * 1024,
  writers: [
    { mode: "hostile", pageSizeBytes: 65_536, autoVacuum: "incremental", rate: 30 },
    { mode: "normal", rate: 50 },
  ],
});
