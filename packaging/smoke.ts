// Tries a compiled executable on a real database, as a person would: `npm run smoke -- [--target linux-arm64] [executable]`.
import { join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { chooseRunner } from "./runner.ts";
import { endSmoke, smoke } from "./smoke-run.ts";
import { checkTargetName, hostTargetName } from "./targets.ts";

const ROOT = resolve(import.meta.dir, "..");
const { values: flags, positionals } = parseArgs({
  allowPositionals: true,
  options: { target: { type: "string" }, root: { type: "string" } },
});

for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const)
  process.on(signal, () => void endSmoke().finally(() => process.exit(1)));
const target = flags.target === undefined ? hostTargetName() : checkTargetName(flags.target);
const executable = resolve(positionals[0] ?? join(ROOT, "dist", "bakelite"));
const runner = chooseRunner(target, flags.root);
if (!runner.canRun) {
  console.log(`not run: ${runner.reason}`);
  process.exit(1);
}
try {
  for (const step of await smoke([...runner.command, executable], target)) console.log(step);
} catch (error) {
  console.error(`FAILED: ${error instanceof Error ? error.message : String(error)}`);
  process.exitCode = 1;
}
