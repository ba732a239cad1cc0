import { existsSync } from "node:fs";

/** A platform that bakelite is compiled for. */
export interface Target {
  /** Bun's name for it. */
  readonly bun: Bun.Build.CompileTarget;
  /** What `bakelite version` prints. */
  readonly triple: string;
}

/** By the name that file names and `--target` use. Bun's x64 runtime needs no more than SSE4.2, so one serves all. */
export const TARGETS = {
  "linux-x64": { bun: "bun-linux-x64", triple: "x86_64-unknown-linux-gnu" },
  "linux-arm64": { bun: "bun-linux-arm64", triple: "aarch64-unknown-linux-gnu" },
  "linux-x64-musl": { bun: "bun-linux-x64-musl", triple: "x86_64-unknown-linux-musl" },
  "linux-arm64-musl": { bun: "bun-linux-arm64-musl", triple: "aarch64-unknown-linux-musl" },
  "darwin-x64": { bun: "bun-darwin-x64", triple: "x86_64-apple-darwin" },
  "darwin-arm64": { bun: "bun-darwin-arm64", triple: "aarch64-apple-darwin" },
} as const satisfies Record<string, Target>;

export type TargetName = keyof typeof TARGETS;

export function isTargetName(name: string): name is TargetName {
  return Object.hasOwn(TARGETS, name);
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
