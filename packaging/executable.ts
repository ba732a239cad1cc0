import { join, resolve } from "node:path";
import packageJson from "../package.json" with { type: "json" };
import { compile } from "./compile.ts";
import { readProvenance } from "./provenance.ts";
import { hostTargetName, TARGETS, type TargetName } from "./targets.ts";

const ROOT = resolve(import.meta.dir, "..");
const SOURCE = join(ROOT, "src");

export interface ExecutableOptions {
  readonly target: TargetName;
  /** Absolute path of the executable to write. */
  readonly outfile: string;
  /** Absolute path of Bun's runtime for the target; else this one's own, or for another platform what Bun fetches. */
  readonly runtime?: string;
}

/** Throws unless this is the Bun that package.json asks for. */
export function assertPinnedBun(): void {
  if (Bun.version === packageJson.dependencies.bun) return;
  throw new Error(
    `this is Bun ${Bun.version}, and package.json asks for ${packageJson.dependencies.bun}: run \`npm ci\``,
  );
}

/** Compiles bakelite as it is in the working tree, with its provenance inside. */
export async function buildExecutable({ target, outfile, runtime }: ExecutableOptions): Promise<void> {
  const { date, commit } = readProvenance(ROOT, packageJson.version);
  await compile({
    main: join(SOURCE, "main.ts"),
    workers: findWorkers(),
    root: SOURCE,
    outfile,
    ...(target === hostTargetName() ? {} : { target: TARGETS[target].bun }),
    ...(runtime === undefined ? {} : { runtime }),
    define: {
      BAKELITE_BUILD_DATE: JSON.stringify(date),
      BAKELITE_BUILD_COMMIT: JSON.stringify(commit),
      BAKELITE_BUILD_TARGET: JSON.stringify(TARGETS[target].triple),
    },
  });
}

/** In one order on every file system: it decides where each lies in the executable. */
function findWorkers(): string[] {
  return [...new Bun.Glob("**/*.worker.ts").scanSync({ cwd: SOURCE, absolute: true })].sort();
}
