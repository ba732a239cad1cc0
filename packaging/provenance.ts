import { readFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";

/** What the source says about itself. */
export interface Provenance {
  /** UTC day, `2026-01-31`; empty when nothing tells. */
  readonly date: string;
  /** Abbreviated commit id, with `-modified` when tracked or new files differ from it; empty outside a repository. */
  readonly commit: string;
}

/**
 * The date is that of `SOURCE_DATE_EPOCH`, else of the commit, else of the release in the changelog (a source archive
 * has no repository): never that of the build, so that a build can be repeated.
 */
export function readProvenance(root: string, version: string): Provenance {
  const epoch = process.env["SOURCE_DATE_EPOCH"] ?? git(root, "log", "-1", "--format=%ct");
  return { date: epoch === "" ? changelogDate(root, version) : utcDay(epoch), commit: readCommit(root) };
}

/** When the source is from, in whole seconds since 1970, by the same rule; 0 when nothing tells. */
export function readSourceTime(root: string, version: string): number {
  const epoch = process.env["SOURCE_DATE_EPOCH"] ?? git(root, "log", "-1", "--format=%ct");
  if (epoch === "") return (Date.parse(changelogDate(root, version)) || 0) / 1000;
  utcDay(epoch);
  return Number(epoch);
}

function readCommit(root: string): string {
  const commit = git(root, "rev-parse", "--short=12", "HEAD");
  if (commit === "") return "";
  return git(root, "status", "--porcelain") === "" ? commit : `${commit}-modified`;
}

function utcDay(epochSeconds: string): string {
  if (!/^\d{1,11}$/.test(epochSeconds)) {
    throw new Error(`SOURCE_DATE_EPOCH is "${epochSeconds}", and must be whole seconds since 1970`);
  }
  return new Date(Number(epochSeconds) * 1000).toISOString().slice(0, 10);
}

/** The day in a heading `## [0.1.0] - 2026-01-31`. */
function changelogDate(root: string, version: string): string {
  const heading = `## [${version}] - `;
  const lines = readFileSync(join(root, "CHANGELOG.md"), "utf8").split("\n");
  return (
    lines
      .find((line) => line.startsWith(heading))
      ?.slice(heading.length)
      .trim() ?? ""
  );
}

/** The output of a git command in `root`, trimmed; empty when git, the repository or the commit is not there. */
function git(root: string, ...args: readonly string[]): string {
  try {
    // A source archive unpacked inside some other repository is not that repository.
    const env = { ...process.env, GIT_CEILING_DIRECTORIES: dirname(resolve(root)) };
    const result = Bun.spawnSync(["git", "-C", root, ...args], { env, stdin: "ignore", stderr: "ignore" });
    return result.success ? result.stdout.toString().trim() : "";
  } catch {
    return ""; // git is not installed
  }
}
