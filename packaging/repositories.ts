// Lays out what apt, dnf and zypper fetch packages from: `npm run repositories -- --key <id> [--packages dist/packages]
// [--out dist/repositories] [--base-url https://…]`.
//
//   apt/    pool/, dists/stable/ with a signed Release
//   rpm/    the packages, each signed, and repodata/ with a signed repomd.xml
//   bakelite.asc, bakelite.sources, bakelite.repo    the public key, and what a host is told of the two
//
// Every version that lies in `--packages` can be installed. gpg has the secret key, in $GNUPGHOME; an agent may ask for its passphrase.
import { copyFile, mkdir, readdir, rename, rm, writeFile } from "node:fs/promises";
import { basename, join, relative, resolve } from "node:path";
import { parseArgs } from "node:util";
import { gzip } from "./archive.ts";
import { runTool } from "./run-tool.ts";

const ROOT = resolve(import.meta.dir, "..");
const SUITE = "stable";
const TOOLS = ["gpg", "apt-ftparchive", "rpm", "createrepo_c"];
const ARCHITECTURES = ["amd64", "arm64"];
/** Folders of the apt repository, below its root. */
const POOL = "pool/main/b/bakelite";

const { values: flags } = parseArgs({
  options: {
    /** As gpg knows it: an id, a fingerprint or an address. */
    key: { type: "string" },
    packages: { type: "string", default: "dist/packages" },
    out: { type: "string", default: "dist/repositories" },
    /** Where `out` will be served. */
    "base-url": { type: "string", default: "https://packages.example" },
  },
});

const out = resolve(ROOT, flags.out);
const staging = `${out}.new`;
try {
  await makeRepositories();
} catch (error) {
  console.error(`no repositories: ${error instanceof Error ? error.message : String(error)}`);
  process.exitCode = 1;
} finally {
  await rm(staging, { recursive: true, force: true });
}

/** Makes the folder anew; until all of it is signed, the old one stands. */
async function makeRepositories(): Promise<void> {
  const { key, "base-url": baseUrl } = flags;
  if (key === undefined) throw new Error("give --key, the id of a secret key that gpg has");
  if (!/^(?:https?|file):\/\/[^\s"'$`\\]+$/.test(baseUrl))
    throw new Error(`--base-url: ${baseUrl} is no plain address`);
  const missing = TOOLS.filter((tool) => Bun.which(tool) === null);
  if (missing.length > 0) throw new Error(`${missing.join(", ")} not installed`);
  const source = resolve(ROOT, flags.packages);
  const names = await readdir(source).catch(() => []);
  const debs = names.filter((name) => /^bakelite_.*\.deb$/.test(name)).sort();
  const rpms = names.filter((name) => /^bakelite-.*\.rpm$/.test(name)).sort();
  if (debs.length + rpms.length === 0) throw new Error(`there are no packages in ${source}: run \`npm run packages\``);
  await rm(staging, { recursive: true, force: true });
  await mkdir(staging, { recursive: true });
  const publicKey = await runTool(["gpg", "--batch", "--armor", "--export", key]);
  if (publicKey === "") throw new Error(`gpg has no key ${key}`);
  await writeFile(join(staging, "bakelite.asc"), publicKey);
  const place = baseUrl.replace(/\/+$/, "");
  await makeApt(
    debs.map((name) => join(source, name)),
    key,
  );
  await makeRpm(
    rpms.map((name) => join(source, name)),
    key,
  );
  await writeFile(join(staging, "bakelite.sources"), aptSource(place, publicKey));
  await writeFile(join(staging, "bakelite.repo"), rpmSource(place));
  await rm(out, { recursive: true, force: true });
  await rename(staging, out);
  console.log(`${relative(process.cwd(), out) || out}: ${debs.length} .deb and ${rpms.length} .rpm, signed by ${key}`);
}

/** Source: https://wiki.debian.org/DebianRepository/Format. */
async function makeApt(debs: readonly string[], key: string): Promise<void> {
  const root = join(staging, "apt");
  const pool = join(root, POOL);
  await mkdir(pool, { recursive: true });
  for (const path of debs) await copyFile(path, join(pool, basename(path)));
  for (const architecture of ARCHITECTURES) {
    const folder = join(root, "dists", SUITE, "main", `binary-${architecture}`);
    await mkdir(folder, { recursive: true });
    // Paths in it are relative to where it runs.
    const listed = await runTool(["apt-ftparchive", "--arch", architecture, "packages", POOL], { cwd: root });
    await writeFile(join(folder, "Packages"), listed);
    await writeFile(join(folder, "Packages.gz"), gzip(listed));
  }
  const said = {
    Origin: "bakelite",
    Label: "bakelite",
    Suite: SUITE,
    Codename: SUITE,
    Components: "main",
    Architectures: ARCHITECTURES.join(" "),
  };
  const options = Object.entries(said).flatMap(([name, value]) => ["-o", `APT::FTPArchive::Release::${name}=${value}`]);
  const dist = join(root, "dists", SUITE);
  // Written once it is whole: it lists every file of the folder that it goes into.
  const release = await runTool(["apt-ftparchive", ...options, "release", dist]);
  await writeFile(join(dist, "Release"), release);
  const signing = ["gpg", "--batch", "--yes", "--local-user", key, "--armor", "--digest-algo", "SHA512"];
  await runTool([...signing, "--clearsign", "--output", join(dist, "InRelease"), join(dist, "Release")]);
  await runTool([...signing, "--detach-sign", "--output", join(dist, "Release.gpg"), join(dist, "Release")]);
}

async function makeRpm(rpms: readonly string[], key: string): Promise<void> {
  const root = join(staging, "rpm");
  await mkdir(root);
  const copies = rpms.map((path) => join(root, basename(path)));
  for (const [i, path] of rpms.entries()) await copyFile(path, copies[i] ?? root);
  const gpg = Bun.which("gpg") ?? "gpg";
  if (copies.length > 0)
    await runTool(["rpm", "--define", `_gpg_name ${key}`, "--define", `__gpg ${gpg}`, "--addsign", ...copies]);
  await runTool(["createrepo_c", "--quiet", root]);
  const index = join(root, "repodata", "repomd.xml");
  await runTool([
    "gpg",
    "--batch",
    "--yes",
    "--local-user",
    key,
    "--armor",
    "--detach-sign",
    "--output",
    `${index}.asc`,
    index,
  ]);
}

/** For /etc/apt/sources.list.d. The key is inside, as apt 2.4 and later take it. Source: sources.list(5). */
function aptSource(place: string, publicKey: string): string {
  const lines = publicKey.trim().split("\n");
  const indented = lines.map((line) => ` ${line === "" ? "." : line}`).join("\n");
  return `Types: deb\nURIs: ${place}/apt\nSuites: ${SUITE}\nComponents: main\nSigned-By:\n${indented}\n`;
}

/** For /etc/yum.repos.d. Source: dnf.conf(5). */
function rpmSource(place: string): string {
  return `[bakelite]
name=bakelite
baseurl=${place}/rpm
enabled=1
gpgcheck=1
repo_gpgcheck=1
gpgkey=${place}/bakelite.asc
`;
}
