import { test } from "bun:test";
import { CALM, RULES } from "./rules.ts";

/** Every run in which a rule counts; without-rules.test.ts shows that each of them fails when its rule is left out. */

const TIMEOUT_MS = 60_000;

const first = RULES.filter(({ scenario }, i) => RULES.findIndex((other) => other.scenario === scenario) === i);
for (const { rule, scenario } of first) test(rule, scenario, TIMEOUT_MS);
for (const [what, scenario] of Object.entries(CALM)) test(what, scenario, TIMEOUT_MS);
