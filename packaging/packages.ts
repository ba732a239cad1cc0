// Makes .deb and .rpm packages of a release: `npm run packages -- [--from dist/release] [--out dist/packages]`. The same commit and
// the same tools give the same bytes. docs/releasing.md
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readFile, rename, rm } from "node:fs/promises";
import { constants, tmpdir } from "node:os";
import { basename, join, relative, resolve } from "node:path";
import { parseArgs } from "node:util";
import packageJson from "../package.json" with { type: "json" };
import { describeExecutable } from "./binary-format.ts";
import { buildDeb } from "./deb.ts";
import { ARCHITECTURES, type Architecture, changesOf, type PackageFacts, packageVersion } from "./package-facts.ts";
import { type PackageKind, packageFiles } from "./package-files.ts";
import { readSourceTime } from "./provenance.ts";
import { buildRpm } from "./rpm.ts";
import { runTool } from "./run-tool.ts";
import { TARGETS } from "./targets.ts";

const ROOT = resolve(import.meta.dir, "..");
const { version } = packageJson;

const { values: flags } = parseArgs({
  options: {
    /** Where the archives of `npm run release` are. */
    from: { type: "string", default: "dist/release" },
    /** `linux-x64=dist/bakelite`: this executable in place of the one in an archive, and only the targets that are given so. */
    executable: { type: "string", multiple: true, default: [] },
    out: { type: "string", default: "dist/packages" },
    /** `deb`, `rpm`, or both with a comma between. */
    kinds: { type: "string", default: "deb,rpm" },
    maintainer: { type: "string", default: "bakelite maintainers <maintainers@bakelite.example>" },
    /** Compress quickly instead of well, to try it out. */
    fast: { type: "boolean", default: false },
  },
});

const BUILDERS = {
  deb: { tool: "dpkg-deb", build: buildDeb },
  rpm: { tool: "rpmbuild", build: buildRpm },
} as const;

let staging: string | null = null;
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const)
  process.on(signal, () => void tidyUp().finally(() => process.exit(128 + constants.signals[signal])));
try {
  await makePackages();
} catch (error) {
  console.error(`no packages: ${error instanceof Error ? error.message : String(error)}`);
  process.exitCode = 1;
} finally {
  await tidyUp();
}

async function makePackages(): Promise<void> {
  const kinds = flags.kinds.split(",").map(checkKind);
  for (const kind of kinds)
    if (Bun.which(BUILDERS[kind].tool) === null)
      throw new Error(`${BUILDERS[kind].tool} is not installed: install it, or leave ${kind} out of --kinds`);
  const executables = new Map(flags.executable.map(readExecutableFlag));
  const wanted = ARCHITECTURES.filter(({ target }) => executables.size === 0 || executables.has(target));
  const out = resolve(ROOT, flags.out);
  await mkdir(out, { recursive: true });
  staging = await mkdtemp(join(tmpdir(), "bakelite-packages-"));
  const timeSeconds = readSourceTime(ROOT, version);
  const changes = changesOf(await readFile(join(ROOT, "CHANGELOG.md"), "utf8"), version);
  for (const architecture of wanted) {
    const facts: PackageFacts = {
      version,
      architecture,
      maintainer: flags.maintainer,
      timeSeconds,
      changes,
      isFast: flags.fast,
    };
    const executable = await readExecutable(architecture, executables.get(architecture.target), staging);
    const format = describeExecutable(executable, TARGETS[architecture.target].triple);
    for (const kind of kinds) {
      const startedMs = performance.now();
      const folder = join(staging, `${architecture.target}-${kind}`);
      await mkdir(folder);
      const made = join(staging, fileName(kind, architecture));
      const day = new Date(timeSeconds * 1000).toISOString().slice(0, 10);
      await BUILDERS[kind].build(await packageFiles(executable, kind, day), facts, folder, made);
      await rm(folder, { recursive: true });
      const target = join(out, basename(made));
      await moveInto(made, target);
      const megabytes = (Bun.file(target).size / 1e6).toFixed(1);
      const seconds = ((performance.now() - startedMs) / 1000).toFixed(1);
      console.log(`${relative(process.cwd(), target)}: ${megabytes} MB, ${format}, in ${seconds} s`);
    }
  }
}

function fileName(kind: PackageKind, { deb, rpm }: Architecture): string {
  const shown = packageVersion(version);
  return kind === "deb" ? `bakelite_${shown}_${deb}.deb` : `bakelite-${shown}-1.${rpm}.rpm`;
}

/** All of the file or none of it takes its name, also from another file system. */
async function moveInto(from: string, to: string): Promise<void> {
  const beside = `${to}.new`;
  await Bun.write(beside, Bun.file(from));
  await rename(beside, to);
  await rm(from);
}

async function readExecutable(
  { target }: Architecture,
  given: string | undefined,
  folder: string,
): Promise<Uint8Array> {
  if (given !== undefined) return await readFile(given);
  const name = `bakelite-${version}-${target}`;
  const archive = join(resolve(ROOT, flags.from), `${name}.tar.gz`);
  if (!existsSync(archive))
    throw new Error(`there is no ${archive}: run \`npm run release\`, or give --executable ${target}=path`);
  await runTool(["tar", "-xzf", archive, "-C", folder, `${name}/bakelite`]);
  return await readFile(join(folder, name, "bakelite"));
}

function readExecutableFlag(text: string): [string, string] {
  const [target = "", path = ""] = text.split(/=(.*)/);
  if (!ARCHITECTURES.some((architecture) => architecture.target === target) || !existsSync(path))
    throw new Error(`--executable ${text}: give a target and a file, linux-x64=dist/bakelite`);
  return [target, path];
}

function checkKind(text: string): PackageKind {
  if (text === "deb" || text === "rpm") return text;
  throw new Error(`--kinds ${text}: there are deb and rpm`);
}

async function tidyUp(): Promise<void> {
  if (staging !== null) await rm(staging, { recursive: true, force: true });
}
