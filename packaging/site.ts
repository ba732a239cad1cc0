// Lays out what a web server, or a bucket, serves to the installer: `npm run site -- --base-url https://… --key key.pem`. Takes
// what `npm run release` and `npm run packages` made, and writes
//
//   install.sh                  with the address and the public key filled in
//   latest                      the version, one line
//   <version>/                  archives and packages, SHA256SUMS over all of them, and SHA256SUMS.sig
//
// The key signs with ECDSA or RSA over SHA-256: openssl ecparam -name prime256v1 -genkey -noout -out key.pem
import { createHash, createPrivateKey, createPublicKey, type KeyObject, sign } from "node:crypto";
import { cp, mkdir, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { parseArgs } from "node:util";
import packageJson from "../package.json" with { type: "json" };

const ROOT = resolve(import.meta.dir, "..");

export interface SiteOptions {
  /** Folders with files of a release; what is not named `bakelite…` stays behind. */
  readonly sources: readonly string[];
  readonly out: string;
  readonly version: string;
  /** Where `out` will be served. */
  readonly baseUrl: string;
  readonly key: KeyObject;
}

/** Makes the folder anew. Throws when there is nothing to serve; the old one then stands. */
export async function makeSite({ sources, out, version, baseUrl, key }: SiteOptions): Promise<readonly string[]> {
  if (!/^https?:\/\/[^\s"'$`\\]+$/.test(baseUrl)) throw new Error(`--base-url: ${baseUrl} is no plain web address`);
  const staging = `${out}.new`;
  await rm(staging, { recursive: true, force: true });
  const folder = join(staging, version);
  await mkdir(folder, { recursive: true });
  const names: string[] = [];
  for (const source of sources)
    for (const entry of await readdir(source, { withFileTypes: true }).catch(() => [])) {
      if (!entry.isFile() || !/^bakelite[-_].*\.(?:tar\.gz|deb|rpm)$/.test(entry.name)) continue;
      await cp(join(source, entry.name), join(folder, entry.name));
      names.push(entry.name);
    }
  if (names.length === 0)
    throw new Error(`there is nothing to serve in ${sources.join(" or ")}: run \`npm run release\``);
  const sums = await Promise.all(
    names.toSorted().map(async (name) => `${await sha256(join(folder, name))}  ${name}\n`),
  );
  const list = Buffer.from(sums.join(""));
  await writeFile(join(folder, "SHA256SUMS"), list);
  await writeFile(join(folder, "SHA256SUMS.sig"), sign("sha256", list, key));
  await writeFile(join(staging, "latest"), `${version}\n`);
  const script = await readFile(join(ROOT, "installer", "install.sh"), "utf8");
  await writeFile(join(staging, "install.sh"), fillInstaller(script, { baseUrl, publicKey: publicPem(key) }), {
    mode: 0o755,
  });
  await rm(out, { recursive: true, force: true });
  await rename(staging, out);
  return names;
}

/** The installer with what a release knows. Throws when its places for that are not there any more. */
export function fillInstaller(
  script: string,
  { baseUrl, publicKey }: { readonly baseUrl: string; readonly publicKey: string },
): string {
  let filled = script;
  for (const [name, value] of [
    ["DEFAULT_BASE_URL", baseUrl],
    ["DEFAULT_PUBLIC_KEY", publicKey],
  ] as const) {
    const place = `\n${name}=""\n`;
    if (!filled.includes(place)) throw new Error(`installer/install.sh has no line ${place.trim()}`);
    filled = filled.replace(place, () => `\n${name}="${value}"\n`);
  }
  return filled;
}

function publicPem(key: KeyObject): string {
  return createPublicKey(key).export({ type: "spki", format: "pem" }).toString().trim();
}

async function sha256(path: string): Promise<string> {
  return createHash("sha256")
    .update(await readFile(path))
    .digest("hex");
}

if (import.meta.main) {
  const { values: flags } = parseArgs({
    options: {
      "base-url": { type: "string" },
      key: { type: "string" },
      out: { type: "string", default: "dist/site" },
      release: { type: "string", default: "dist/release" },
      packages: { type: "string", default: "dist/packages" },
    },
  });
  try {
    const { "base-url": baseUrl, key } = flags;
    if (baseUrl === undefined || key === undefined) throw new Error("give --base-url and --key");
    const names = await makeSite({
      sources: [resolve(ROOT, flags.release), resolve(ROOT, flags.packages)],
      out: resolve(ROOT, flags.out),
      version: packageJson.version,
      baseUrl: baseUrl.replace(/\/+$/, ""),
      key: createPrivateKey(await readFile(key)),
    });
    console.log(`${flags.out}: install.sh, latest, and ${names.length} signed files of ${packageJson.version}`);
  } catch (error) {
    console.error(`no site: ${error instanceof Error ? error.message : String(error)}`);
    process.exitCode = 1;
  }
}
