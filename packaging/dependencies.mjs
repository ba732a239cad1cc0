// Plain JavaScript for Node 18 and later: this runs before anything is installed.
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";

/**
 * @typedef {{ version?: string, integrity?: string, optional?: boolean }} LockedPackage
 * @typedef {{ readonly [path: string]: LockedPackage }} LockedPackages
 */

/** A real Bun is about 100 MB; what npm unpacks in its place before the install script ran is a few hundred bytes. */
const SMALLEST_BUN_BYTES = 1 << 20;

/**
 * Runs `npm ci` in `root` unless `node_modules` already holds what `package-lock.json` asks for. npm's output goes to
 * standard error. Throws when it fails.
 *
 * @param {string} root
 */
export function ensureDependencies(root) {
  const reason = staleReason(root);
  if (reason === null) return;
  console.error(`npm ci: ${reason}`);
  // With `npm_config_*` of an outer `npm test` in the environment, npm would take that command's settings for its own.
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^npm_/i.test(name)));
  const result = spawnSync("npm", ["ci", "--no-audit", "--no-fund"], { cwd: root, env, stdio: ["ignore", 2, 2] });
  if (result.error !== undefined) throw result.error;
  if (result.status !== 0) throw new Error(`npm ci failed with ${result.status ?? result.signal}`);
}

/**
 * Why `npm ci` is needed, or null. npm leaves the list of what it installed in `node_modules/.package-lock.json`.
 *
 * @param {string} root
 * @returns {string | null}
 */
export function staleReason(root) {
  const installedPath = join(root, "node_modules", ".package-lock.json");
  if (!existsSync(installedPath)) return "dependencies are not installed";
  const difference = findDifference(readPackages(join(root, "package-lock.json")), readPackages(installedPath));
  if (difference !== null) return difference;
  return existsSync(bunPath(root)) ? null : "bun is not installed";
}

/**
 * The first package whose installed version is not the locked one, as a sentence, or null. An optional package may be
 * absent: most of them are for other platforms. Times are not looked at, as checking out a branch changes them.
 *
 * @param {LockedPackages} locked
 * @param {LockedPackages} installed
 * @returns {string | null}
 */
export function findDifference(locked, installed) {
  for (const [path, wanted] of Object.entries(locked)) {
    const found = installed[path];
    if (path === "" || (found === undefined && wanted.optional === true)) continue;
    if (found === undefined) return `${path} is not installed`;
    if (found.version !== wanted.version || found.integrity !== wanted.integrity) {
      return `${path} is ${found.version}, and package-lock.json asks for ${wanted.version}`;
    }
  }
  const extra = Object.keys(installed).find((path) => locked[path] === undefined);
  return extra === undefined ? null : `${extra} is not in package-lock.json`;
}

/**
 * The Bun executable among the dependencies. It stands in its platform package when install scripts were not allowed.
 *
 * @param {string} root
 * @returns {string}
 */
export function bunPath(root) {
  const linked = join(root, "node_modules", "bun", "bin", "bun.exe"); // called so on every platform
  if (existsSync(linked) && statSync(linked).size > SMALLEST_BUN_BYTES) return linked;
  const platforms = join(root, "node_modules", "@oven");
  for (const name of existsSync(platforms) ? readdirSync(platforms) : []) {
    const path = join(platforms, name, "bin", "bun");
    if (existsSync(path)) return path;
  }
  return linked;
}

/**
 * @param {string} path
 * @returns {LockedPackages}
 */
function readPackages(path) {
  return JSON.parse(readFileSync(path, "utf8")).packages ?? {};
}
