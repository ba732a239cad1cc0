import { existsSync } from "node:fs";

/** A platform that bakelite is compiled for. */
export interface Target {
  /** Bun's name for it. */
  readonly bun: Bun.Build.CompileTarget;
  /** The npm package that holds Bun's runtime for it, as `bin/bun`. */
  readonly runtimePackage: string;
  /** What `bakelite version` prints. */
  readonly triple: string;
}

/**
 * By the name that file names and `--target` use. One x64 build serves old and new processors: Bun's "baseline" runtime and the
 * other one are the same bytes (docs/decisions/0007-one-x64-build.md).
 */
export const TARGETS = {
  "linux-x64": { bun: "bun-linux-x64", runtimePackage: "@oven/bun-linux-x64", triple: "x86_64-unknown-linux-gnu" },
  "linux-arm64": {
    bun: "bun-linux-arm64",
    runtimePackage: "@oven/bun-linux-aarch64",
    triple: "aarch64-unknown-linux-gnu",
  },
  "linux-x64-musl": {
    bun: "bun-linux-x64-musl",
    runtimePackage: "@oven/bun-linux-x64-musl",
    triple: "x86_64-unknown-linux-musl",
  },
  "linux-arm64-musl": {
    bun: "bun-linux-arm64-musl",
    runtimePackage: "@oven/bun-linux-aarch64-musl",
    triple: "aarch64-unknown-linux-musl",
  },
  "darwin-x64": { bun: "bun-darwin-x64", runtimePackage: "@oven/bun-darwin-x64", triple: "x86_64-apple-darwin" },
  "darwin-arm64": {
    bun: "bun-darwin-arm64",
    runtimePackage: "@oven/bun-darwin-aarch64",
    triple: "aarch64-apple-darwin",
  },
} as const satisfies Record<string, Target>;

export type TargetName = keyof typeof TARGETS;

export function isTargetName(name: string): name is TargetName {
  return Object.hasOwn(TARGETS, name);
}

export function checkTargetName(name: string): TargetName {
  if (!isTargetName(name)) throw new Error(`unknown target ${name}; known: ${Object.keys(TARGETS).join(", ")}`);
  return name;
}

/** The name of the machine that runs this. */
export function hostTargetName(): TargetName {
  const name = `${process.platform}-${process.arch}${usesMusl() ? "-musl" : ""}`;
  if (!isTargetName(name)) throw new Error(`bakelite is not built for ${name}`);
  return name;
}

function usesMusl(): boolean {
  const cpu = process.arch === "arm64" ? "aarch64" : "x86_64";
  return existsSync("/etc/alpine-release") && existsSync(`/lib/ld-musl-${cpu}.so.1`);
}
