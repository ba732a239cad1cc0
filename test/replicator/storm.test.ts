import { test } from "bun:test";
import { fileURLToPath } from "node:url";
import { runSeed, withSeed } from "../support/random.ts";
import { runWithChanges } from "./leaving-out.ts";
import { storm } from "./scenarios/storm.ts";

/** What no scenario has thought of. */

const ROUNDS = Number(process.env["BAKELITE_TEST_STORM_ROUNDS"] ?? 3);
const TIMEOUT_MS = 90_000;

test(
  "hostile writers, a faulty destination, full backups all the time and restarts leave sound restore points only",
  () => withSeed((random) => storm(random, ROUNDS)),
  TIMEOUT_MS,
);

test(
  "so they do when every set of a few pages is read slice by slice",
  async () => {
    const program = fileURLToPath(new URL("storm-alone.ts", import.meta.url));
    const seed = runSeed();
    const result = await runWithChanges(program, {
      changes: [
        { file: "change-set.ts", from: "ORDINARY_SET_BYTES = 16 * 1024 * 1024", to: "ORDINARY_SET_BYTES = 40_000" },
        { file: "change-set.ts", from: "const SLICE_BYTES = 1024 * 1024", to: "const SLICE_BYTES = 8192" },
        { file: "full-backup.ts", from: "const SLICE_BYTES = 256 * 1024", to: "const SLICE_BYTES = 16_384" },
      ],
      environment: { BAKELITE_TEST_SEED: `${seed}`, BAKELITE_TEST_STORM_ROUNDS: `${ROUNDS}` },
      timeoutMs: TIMEOUT_MS - 5000,
    });
    if (result.status !== 0) throw new Error(`${result.said}\n(repeat with BAKELITE_TEST_SEED=${seed})`);
  },
  TIMEOUT_MS,
);
