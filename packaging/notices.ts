import { readdir, readFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import packageJson from "../package.json" with { type: "json" };
import lock from "../package-lock.json" with { type: "json" };

const ROOT = resolve(import.meta.dir, "..");

/** The runtime has a text of its own: its npm package carries none of what is linked into it. */
const RUNTIME = "bun";

interface LockedPackage {
  readonly version?: string;
  readonly license?: string;
  readonly dependencies?: Readonly<Record<string, string>>;
}

/**
 * The licenses of all that is inside the executable beside our own code: npm packages that we import and those that they
 * do, without what is optional (which the build leaves out), and Bun. Throws for a package that says nothing of a license.
 */
export async function thirdPartyNotices(): Promise<string> {
  const names = [...closure(Object.keys(packageJson.dependencies).filter((name) => name !== RUNTIME))].sort();
  const sections = await Promise.all(names.map(notice));
  const head = "# Third-party notices\n\nbakelite contains the following, each under its own license.\n";
  return [head, await readFile(join(ROOT, "packaging", "linked-notices.md"), "utf8"), ...sections].join("\n");
}

function lockedPackage(name: string): LockedPackage {
  const packages: Readonly<Record<string, LockedPackage | undefined>> = lock.packages;
  const found = packages[`node_modules/${name}`];
  if (found === undefined) throw new Error(`package-lock.json does not know ${name}`);
  return found;
}

function closure(roots: readonly string[]): ReadonlySet<string> {
  const found = new Set<string>();
  const visit = (name: string) => {
    if (found.has(name)) return;
    found.add(name);
    for (const needed of Object.keys(lockedPackage(name).dependencies ?? {})) visit(needed);
  };
  for (const name of roots) visit(name);
  return found;
}

async function notice(name: string): Promise<string> {
  const folder = join(ROOT, "node_modules", name);
  const files = (await readdir(folder)).filter((file) => /^(?:licen[cs]e|copying|notice)/i.test(file)).sort();
  const texts = await Promise.all(files.map((file) => readFile(join(folder, file), "utf8")));
  const { version, license } = lockedPackage(name);
  if (texts.length === 0 && license === undefined) throw new Error(`${name} says nothing of its license`);
  const heading = `## ${name} ${version}${license === undefined ? "" : ` (${license})`}\n`;
  const body = texts.join("\n").replaceAll("\r", "").trim();
  const indented = body.replace(/^(?=.)/gm, "    ");
  return body === ""
    ? `${heading}\nLicensed under ${license}; https://www.npmjs.com/package/${name}\n`
    : `${heading}\n${indented}\n`;
}
