import { test } from "bun:test";
import { RULES } from "./rules.ts";

/** Runs the scenario of one rule, with the rule left out of the code: see without-rules.test.ts. */
const rule = RULES.find((candidate) => candidate.rule === process.env["BAKELITE_TEST_WITHOUT_RULE"]);
if (rule === undefined) throw new Error("no such rule");
test(rule.rule, rule.scenario, 60_000);
