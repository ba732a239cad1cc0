import { test } from "bun:test";
import { withSeed } from "../support/random.ts";
import { storm } from "./scenarios/storm.ts";

/** Run by storm.test.ts with smaller slices. */
const rounds = Number(process.env["BAKELITE_TEST_STORM_ROUNDS"]);
test("the storm", () => withSeed((random) => storm(random, rounds)), 300_000);
