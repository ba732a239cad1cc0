// Compiles bakelite into one executable: `npm run build -- [--target linux-arm64] [--outfile path]`.
import { statSync } from "node:fs";
import { join, relative, resolve } from "node:path";
import { parseArgs } from "node:util";
import packageJson from "../package.json" with { type: "json" };
import { compile } from "./compile.ts";
import { readProvenance } from "./provenance.ts";
import { hostTargetName, isTargetName, TARGETS, type TargetName } from "./targets.ts";

const ROOT = resolve(import.meta.dir, "..");
const SOURCE = join(ROOT, "src");

if (Bun.version !== packageJson.dependencies.bun) {
  throw new Error(
    `this is Bun ${Bun.version}, and package.json asks for ${packageJson.dependencies.bun}: run \`npm ci\``,
  );
}
const { values } = parseArgs({ options: { target: { type: "string" }, outfile: { type: "string" } } });
await build(values.target, values.outfile);

async function build(wantedTarget: string | undefined, wantedOutfile: string | undefined): Promise<void> {
  const targetName = wantedTarget === undefined ? hostTargetName() : checkTargetName(wantedTarget);
  const outfile = resolve(ROOT, wantedOutfile ?? defaultOutfile(wantedTarget));
  const { date, commit } = readProvenance(ROOT, packageJson.version);
  await compile({
    main: join(SOURCE, "main.ts"),
    workers: findWorkers(),
    root: SOURCE,
    outfile,
    ...(targetName === hostTargetName() ? {} : { target: TARGETS[targetName].bun }),
    define: {
      BAKELITE_BUILD_DATE: JSON.stringify(date),
      BAKELITE_BUILD_COMMIT: JSON.stringify(commit),
      BAKELITE_BUILD_TARGET: JSON.stringify(TARGETS[targetName].triple),
    },
  });
  const megabytes = (statSync(outfile).size / 1e6).toFixed(0);
  console.log(
    `${relative(ROOT, outfile)}: bakelite ${packageJson.version} (${commit || "no commit"}, ${date || "no date"}), ` +
      `${TARGETS[targetName].triple}, ${megabytes} MB`,
  );
}

function defaultOutfile(wantedTarget: string | undefined): string {
  return wantedTarget === undefined ? "dist/bakelite" : `dist/${wantedTarget}/bakelite`;
}

function checkTargetName(name: string): TargetName {
  if (!isTargetName(name)) throw new Error(`unknown target ${name}; known: ${Object.keys(TARGETS).join(", ")}`);
  return name;
}

/** In one order on every file system: it decides where each lies in the executable. */
function findWorkers(): string[] {
  return [...new Bun.Glob("**/*.worker.ts").scanSync({ cwd: SOURCE, absolute: true })].sort();
}
