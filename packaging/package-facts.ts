/** What packages of every kind say of themselves. */
export interface PackageFacts {
  /** Of package.json. */
  readonly version: string;
  readonly architecture: Architecture;
  readonly maintainer: string;
  /** When the source is from, in seconds since 1970: the only time that is in a package. */
  readonly timeSeconds: number;
  /** What is new, a sentence or more each. */
  readonly changes: readonly string[];
  /** Compress quickly instead of well. */
  readonly isFast: boolean;
}

export interface Architecture {
  /** As packaging/targets.ts calls it. */
  readonly target: "linux-x64" | "linux-arm64";
  readonly deb: "amd64" | "arm64";
  readonly rpm: "x86_64" | "aarch64";
}

export const ARCHITECTURES: readonly Architecture[] = [
  { target: "linux-x64", deb: "amd64", rpm: "x86_64" },
  { target: "linux-arm64", deb: "arm64", rpm: "aarch64" },
];

/** A pre-release sorts before its release: `0.2.0-rc.1` is `0.2.0~rc.1` for dpkg and for rpm. */
export function packageVersion(version: string): string {
  return version.replace("-", "~").replaceAll("-", ".");
}

/** What CHANGELOG.md says of the version, else what is unreleased: the items of its lists, in plain words. Pure. */
export function changesOf(changelog: string, version: string): readonly string[] {
  const sections = changelog.split(/^## /m).slice(1);
  const named = (name: string) => sections.find((section) => section.startsWith(`[${name}]`));
  const section = named(version) ?? named("Unreleased") ?? "";
  const items = section.replace(/\n {2,}(?=\S)/g, " ").matchAll(/^[*-] (.*)$/gm);
  const found = [...items].map(([, item = ""]) =>
    item
      .replace(/\[([^\]]*)\]\([^)]*\)/g, "$1")
      .replace(/\*\*|`/g, "")
      .trim(),
  );
  return found.length === 0 ? [`Version ${version}.`] : found;
}
