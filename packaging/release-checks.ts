/** What must agree before a release is made. */
export interface ReleaseFacts {
  readonly version: string;
  /** As `readProvenance` gives it. */
  readonly commit: string;
  /** The text of CHANGELOG.md. */
  readonly changelog: string;
}

export interface Allowances {
  /** Release what no commit holds. */
  readonly dirty: boolean;
  /** Release a version that the changelog has no heading of. */
  readonly unreleased: boolean;
}

/**
 * Why there may be no release, as sentences; none when all is well. Pure. The changelog's first heading of a version must
 * be that of package.json; a pre-release (`0.2.0-rc.1`) may have its changes under Unreleased instead, if those are any.
 */
export function findObjections({ version, commit, changelog }: ReleaseFacts, allowed: Allowances): readonly string[] {
  const objections: string[] = [];
  if (!allowed.dirty && commit === "")
    objections.push("this is no git repository: a release is of a commit (--allow-dirty)");
  if (!allowed.dirty && commit.endsWith("-modified"))
    objections.push("the working tree differs from its commit: commit or remove what is new (--allow-dirty)");
  const newest = /^## \[(\d[^\]]*)\](?: - (\d{4}-\d{2}-\d{2}))?\s*$/m.exec(changelog);
  const [, heading, day] = newest ?? [];
  const isPrerelease = version.includes("-");
  if (heading === version) {
    if (day === undefined)
      objections.push(`CHANGELOG.md gives no day for ${version}: \`## [${version}] - 2026-01-31\``);
  } else if (heading !== undefined && Bun.semver.order(heading, version) > 0) {
    objections.push(`package.json says ${version}, and CHANGELOG.md has ${heading} already`);
  } else if (!allowed.unreleased && !(isPrerelease && hasUnreleased(changelog))) {
    objections.push(
      `CHANGELOG.md has no heading \`## [${version}] - <day>\`: name what is under Unreleased so (--allow-unreleased to try it out)`,
    );
  }
  return objections;
}

function hasUnreleased(changelog: string): boolean {
  const section = /^## \[Unreleased\]\s*$([\s\S]*?)(?=^## \[|$(?![\s\S]))/m.exec(changelog)?.[1] ?? "";
  return /^\s*[*-] /m.test(section);
}
