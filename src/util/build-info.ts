import { version } from "../../package.json" with { type: "json" };

// `packaging/build.ts` puts string literals in the place of these names. Run from source they do not exist at all, so
// each is asked for with `typeof` first.
declare const BAKELITE_BUILD_DATE: string;
declare const BAKELITE_BUILD_COMMIT: string;
declare const BAKELITE_BUILD_TARGET: string;

/** What this program was built from. */
export interface BuildInfo {
  /** `0.1.0`. */
  readonly version: string;
  /** The UTC day of the commit, `2026-01-31`; null when run from source or built without knowing it. */
  readonly date: string | null;
  /** Abbreviated commit id, with `-modified` when the tree had changes; null when run from source or unknown. */
  readonly commit: string | null;
  /** `x86_64-unknown-linux-gnu`: the target that it was compiled for, or the machine that runs the source. */
  readonly targetTriple: string;
  /** True in the compiled executable, false when run from source. */
  readonly compiled: boolean;
}

export const buildInfo: BuildInfo = {
  version,
  date: typeof BAKELITE_BUILD_DATE === "string" && BAKELITE_BUILD_DATE !== "" ? BAKELITE_BUILD_DATE : null,
  commit: typeof BAKELITE_BUILD_COMMIT === "string" && BAKELITE_BUILD_COMMIT !== "" ? BAKELITE_BUILD_COMMIT : null,
  targetTriple: typeof BAKELITE_BUILD_TARGET === "string" ? BAKELITE_BUILD_TARGET : sourceTargetTriple(),
  compiled: typeof BAKELITE_BUILD_TARGET === "string",
};

function sourceTargetTriple(): string {
  const cpu = process.arch === "arm64" ? "aarch64" : "x86_64";
  return process.platform === "darwin" ? `${cpu}-apple-darwin` : `${cpu}-unknown-linux-gnu`;
}
