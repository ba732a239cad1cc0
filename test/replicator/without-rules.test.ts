import { expect, test } from "bun:test";
import { fileURLToPath } from "node:url";
import { runWithChanges } from "./leaving-out.ts";
import { RULES } from "./rules.ts";

/** Each rule is left out of the code, in a process of its own, and the run that needs it must fail. */

const PROGRAM = fileURLToPath(new URL("without-rule.ts", import.meta.url));
const TIMEOUT_MS = 60_000;

for (const { rule, without } of RULES) {
  test(
    `it is noticed when this is left out: ${rule}`,
    async () => {
      const { status, said } = await runWithChanges(PROGRAM, {
        changes: without,
        environment: { BAKELITE_TEST_WITHOUT_RULE: rule },
        timeoutMs: TIMEOUT_MS - 5000,
      });
      if (status === 0) throw new Error(`nothing was noticed: ${said}`);
      expect(said).toContain("1 fail");
    },
    TIMEOUT_MS,
  );
}
