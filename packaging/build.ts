// Compiles bakelite into one executable: `npm run build -- [--target linux-arm64] [--outfile path]`.
import { statSync } from "node:fs";
import { relative, resolve } from "node:path";
import { parseArgs } from "node:util";
import packageJson from "../package.json" with { type: "json" };
import { assertPinnedBun, buildExecutable } from "./executable.ts";
import { readProvenance } from "./provenance.ts";
import { checkTargetName, hostTargetName, TARGETS } from "./targets.ts";

const ROOT = resolve(import.meta.dir, "..");

assertPinnedBun();
const { values } = parseArgs({ options: { target: { type: "string" }, outfile: { type: "string" } } });
await build(values.target, values.outfile);

async function build(wantedTarget: string | undefined, wantedOutfile: string | undefined): Promise<void> {
  const target = wantedTarget === undefined ? hostTargetName() : checkTargetName(wantedTarget);
  const outfile = resolve(ROOT, wantedOutfile ?? defaultOutfile(wantedTarget));
  await buildExecutable({ target, outfile });
  const { date, commit } = readProvenance(ROOT, packageJson.version);
  const megabytes = (statSync(outfile).size / 1e6).toFixed(0);
  console.log(
    `${relative(ROOT, outfile)}: bakelite ${packageJson.version} (${commit || "no commit"}, ${date || "no date"}), ` +
      `${TARGETS[target].triple}, ${megabytes} MB`,
  );
}

function defaultOutfile(wantedTarget: string | undefined): string {
  return wantedTarget === undefined ? "dist/bakelite" : `dist/${wantedTarget}/bakelite`;
}
