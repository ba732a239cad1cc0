// Builds what a release consists of: `npm run release -- [--targets linux-x64,darwin-arm64] [--out dist/release]`. One archive
// for each target, SHA256SUMS and manifest.json. The same commit and the same Bun give the same bytes. docs/releasing.md
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readFile, rename, rm, writeFile } from "node:fs/promises";
import { constants } from "node:os";
import { join, relative, resolve } from "node:path";
import { parseArgs } from "node:util";
import packageJson from "../package.json" with { type: "json" };
import { type ArchiveFile, makeTarGz } from "./archive.ts";
import { describeExecutable } from "./binary-format.ts";
import { assertPinnedBun, buildExecutable } from "./executable.ts";
import { signAdHoc } from "./mach-o.ts";
import { thirdPartyNotices } from "./notices.ts";
import { readProvenance, readSourceTime } from "./provenance.ts";
import { findObjections } from "./release-checks.ts";
import { chooseRunner } from "./runner.ts";
import { fetchRuntime } from "./runtime.ts";
import { endSmoke, smoke } from "./smoke-run.ts";
import { checkTargetName, TARGETS, type TargetName } from "./targets.ts";

const ROOT = resolve(import.meta.dir, "..");
const { version } = packageJson;

const { values: flags } = parseArgs({
  options: {
    /** Names of packaging/targets.ts, with commas between; all of them by default. */
    targets: { type: "string" },
    out: { type: "string", default: "dist/release" },
    "allow-dirty": { type: "boolean", default: false },
    "allow-unreleased": { type: "boolean", default: false },
    /** `linux-x64-musl=/srv/alpine`: a folder with the libraries to run that target under QEMU with. */
    root: { type: "string", multiple: true, default: [] },
  },
});

let staging: string | null = null;
let isLeaving = false;
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const)
  process.on(signal, () => {
    isLeaving = true;
    void tidyUp().finally(() => process.exit(128 + constants.signals[signal]));
  });
try {
  await release();
} catch (error) {
  // What fails because a signal has taken its folder away is no failure.
  if (isLeaving) await new Promise<never>(() => {});
  console.error(`no release: ${error instanceof Error ? error.message : String(error)}`);
  process.exitCode = 1;
} finally {
  await tidyUp();
}

/** What became of one target. */
interface Made {
  readonly target: TargetName;
  readonly file: string;
  readonly sizeBytes: number;
  readonly sha256: string;
  /** `ran (native)`, or why it was not run. */
  readonly tried: string;
  /** What its header says it is. */
  readonly format: string;
}

async function release(): Promise<void> {
  assertPinnedBun();
  const provenance = readProvenance(ROOT, version);
  const objections = findObjections(
    { version, commit: provenance.commit, changelog: await readFile(join(ROOT, "CHANGELOG.md"), "utf8") },
    { dirty: flags["allow-dirty"], unreleased: flags["allow-unreleased"] },
  );
  if (objections.length > 0) throw new Error(objections.join("; "));
  const targets = flags.targets?.split(",").map(checkTargetName) ?? (Object.keys(TARGETS) as TargetName[]);
  const roots = readRoots();
  const out = resolve(ROOT, flags.out);
  await mkdir(out, { recursive: true });
  staging = await mkdtemp(join(out, ".staging-"));
  // Until all is made, nothing may look like a whole release.
  for (const name of ["SHA256SUMS", "manifest.json"]) await rm(join(out, name), { force: true });

  const made: Made[] = [];
  for (const target of new Set(targets)) made.push(await make(target, { out, staging, root: roots.get(target) }));
  const manifest = {
    name: "bakelite",
    version,
    commit: provenance.commit,
    date: provenance.date,
    bun: Bun.version,
    files: made.map(({ target, file, sizeBytes, sha256 }) => ({
      name: file,
      target,
      triple: TARGETS[target].triple,
      size_bytes: sizeBytes,
      sha256,
    })),
  };
  await put(out, "manifest.json", `${JSON.stringify(manifest, null, 2)}\n`);
  await put(out, "SHA256SUMS", made.map(({ file, sha256 }) => `${sha256}  ${file}\n`).join(""));
  console.log(
    `\n${relative(process.cwd(), out) || out}: bakelite ${version} (${provenance.commit}, ${provenance.date})`,
  );
  for (const { target, sizeBytes, format, tried } of made)
    console.log(
      `  ${target.padEnd(16)}  ${(sizeBytes / 1e6).toFixed(1).padStart(5)} MB  ${format.padEnd(28)}  ${tried}`,
    );
}

/** Builds one target, tries it where it can be run, and puts its archive into place. */
async function make(
  target: TargetName,
  place: { readonly out: string; readonly staging: string; readonly root: string | undefined },
): Promise<Made> {
  const startedMs = performance.now();
  const folder = join(place.staging, target);
  const outfile = join(folder, "bakelite");
  const runtime = await fetchRuntime(ROOT, target, join(folder, "runtime"));
  await buildExecutable({ target, outfile, runtime });
  await rm(join(folder, "runtime"), { recursive: true });
  if (target.startsWith("darwin-")) await writeFile(outfile, signAdHoc(await readFile(outfile), "bakelite"));
  const format = describeExecutable(await readFile(outfile), TARGETS[target].triple);
  const tried = await tryOut(target, outfile, place.root);

  const file = `bakelite-${version}-${target}.tar.gz`;
  const archive = makeTarGz(await contents(target, outfile), readSourceTime(ROOT, version));
  await put(place.out, file, archive);
  await rm(folder, { recursive: true });
  console.log(`${file} in ${((performance.now() - startedMs) / 1000).toFixed(1)} s`);
  const sha256 = new Bun.CryptoHasher("sha256").update(archive).digest("hex");
  return { target, file, sizeBytes: archive.length, sha256, tried, format };
}

async function tryOut(target: TargetName, executable: string, root: string | undefined): Promise<string> {
  const runner = chooseRunner(target, root);
  if (!runner.canRun) return `built, not run: ${runner.reason}`;
  const steps = await smoke([...runner.command, executable], target).catch((error: Error) => {
    throw new Error(`the executable for ${target} fails its smoke test (${runner.how}): ${error.message}`);
  });
  return `built and ran, ${steps.length} steps (${runner.how})`;
}

async function contents(target: TargetName, executable: string): Promise<readonly ArchiveFile[]> {
  const folder = `bakelite-${version}-${target}`;
  const texts = ["LICENSE", "README.md"];
  return [
    { name: `${folder}/bakelite`, mode: 0o755, bytes: await readFile(executable) },
    ...(await Promise.all(
      texts.map(async (name) => ({ name: `${folder}/${name}`, mode: 0o644, bytes: await readFile(join(ROOT, name)) })),
    )),
    {
      name: `${folder}/THIRD-PARTY-NOTICES.md`,
      mode: 0o644,
      bytes: new TextEncoder().encode(await thirdPartyNotices()),
    },
  ];
}

/** All of the file or none of it takes its name. */
async function put(out: string, name: string, bytes: string | Uint8Array): Promise<void> {
  const temporary = join(staging ?? out, name);
  await writeFile(temporary, bytes);
  await rename(temporary, join(out, name));
}

function readRoots(): ReadonlyMap<TargetName, string> {
  const roots = new Map<TargetName, string>();
  for (const text of flags.root) {
    const [target = "", folder = ""] = text.split(/=(.*)/);
    if (!existsSync(folder)) throw new Error(`--root ${text}: give a target and a folder, linux-arm64=/srv/arm64`);
    roots.set(checkTargetName(target), resolve(folder));
  }
  return roots;
}

async function tidyUp(): Promise<void> {
  await endSmoke();
  if (staging !== null) await rm(staging, { recursive: true, force: true });
}
