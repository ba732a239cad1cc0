import { readdirSync } from "node:fs";
import { join, resolve } from "node:path";
import { withDeadline } from "../support/eventually.ts";

const SCRIPT = resolve(import.meta.dir, "../../packaging/packages.ts");
const DEADLINE_MS = 120_000;

/** The target of packages that this machine can install. */
export const HOST_TARGET = process.arch === "arm64" ? "linux-arm64" : "linux-x64";

export interface BuiltPackages {
  readonly status: number;
  readonly said: string;
  /** Paths, ascending. */
  readonly files: readonly string[];
}

/** Runs `npm run packages` with `executable` for this machine, quickly compressed. */
export async function buildPackages(
  executable: string,
  out: string,
  {
    kinds = "deb,rpm",
    env = {},
    more = [],
  }: {
    readonly kinds?: string;
    readonly env?: Readonly<Record<string, string>>;
    readonly more?: readonly string[];
  } = {},
): Promise<BuiltPackages> {
  const child = Bun.spawn(
    [
      process.execPath,
      SCRIPT,
      `--executable=${HOST_TARGET}=${executable}`,
      `--out=${out}`,
      `--kinds=${kinds}`,
      "--fast",
      ...more,
    ],
    { env: { ...process.env, ...env }, stdin: "ignore", stdout: "pipe", stderr: "pipe" },
  );
  const ended = Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  try {
    const [stdout, stderr, status] = await withDeadline(ended, { what: "the packages", deadlineMs: DEADLINE_MS });
    const files =
      status === 0
        ? readdirSync(out)
            .sort()
            .map((name) => join(out, name))
        : [];
    return { status, said: stdout + stderr, files };
  } finally {
    if (child.exitCode === null && child.signalCode === null) child.kill("SIGKILL");
  }
}
