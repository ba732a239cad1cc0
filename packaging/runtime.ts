import { mkdir, readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import packageJson from "../package.json" with { type: "json" };
import { TARGETS, type TargetName } from "./targets.ts";

/**
 * Fetches Bun's runtime for a target into `folder` and returns its path. It comes by way of npm, so npm's settings hold (registry,
 * proxy, certificates, cache), and it must be the very package that package-lock.json has a SHA-512 of. Bun's own download
 * knows nothing of either. Throws a sentence when it cannot be had or is another one.
 */
export async function fetchRuntime(root: string, target: TargetName, folder: string): Promise<string> {
  const name = TARGETS[target].runtimePackage;
  const wanted = await lockedIntegrity(root, name);
  await mkdir(folder, { recursive: true });
  const spec = `${name}@${packageJson.dependencies.bun}`;
  const packed = Bun.spawnSync(
    ["npm", "pack", "--loglevel=error", "--prefer-offline", "--pack-destination", folder, spec],
    {
      cwd: root,
      stdin: "ignore",
      stdout: "ignore",
      stderr: "pipe",
    },
  );
  const archive = (await readdir(folder)).find((file) => file.endsWith(".tgz"));
  if (!packed.success || archive === undefined)
    throw new Error(
      `cannot fetch Bun's runtime for ${target}, the npm package ${spec}${reasonOf(packed.stderr.toString())}`,
    );
  const bytes = await readFile(join(folder, archive));
  const found = `sha512-${new Bun.CryptoHasher("sha512").update(bytes).digest("base64")}`;
  if (found !== wanted)
    throw new Error(`${spec} from the registry is ${found}, and package-lock.json asks for ${wanted}`);
  const unpacked = Bun.spawnSync(["tar", "-xzf", join(folder, archive), "-C", folder, "package/bin/bun"]);
  if (!unpacked.success) throw new Error(`cannot unpack ${spec}: ${unpacked.stderr.toString().trim()}`);
  return join(folder, "package", "bin", "bun");
}

async function lockedIntegrity(root: string, name: string): Promise<string> {
  const lock = JSON.parse(await readFile(join(root, "package-lock.json"), "utf8")) as {
    readonly packages: Readonly<Record<string, { readonly version?: string; readonly integrity?: string }>>;
  };
  const { version, integrity } = lock.packages[`node_modules/${name}`] ?? {};
  if (integrity === undefined || version !== packageJson.dependencies.bun)
    throw new Error(`package-lock.json does not pin ${name}@${packageJson.dependencies.bun}`);
  return integrity;
}

/** npm says with `npm error code E404` and the like what went wrong. */
function reasonOf(stderr: string): string {
  const code = /npm error code (\S+)/.exec(stderr)?.[1];
  return `${code === undefined ? "" : ` (${code})`}: is the registry of \`npm config get registry\` reachable, and does it have it?`;
}
