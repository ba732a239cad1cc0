export interface ToolOptions {
  readonly cwd?: string;
  /** Besides our own, where nothing depends on a language or a time zone. */
  readonly env?: Readonly<Record<string, string>>;
}

/** Runs a program to its end, and gives what it printed. Throws with what it said unless it ends with 0. */
export async function runTool(command: readonly string[], { cwd, env }: ToolOptions = {}): Promise<string> {
  const child = Bun.spawn([...command], {
    ...(cwd === undefined ? {} : { cwd }),
    env: { ...process.env, LC_ALL: "C.UTF-8", TZ: "UTC", ...env },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  const [out, err, status] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  if (status !== 0) throw new Error(`${command[0]} ended with ${status}: ${`${out}${err}`.trim().slice(-2000)}`);
  return out;
}

/** What dpkg-deb and rpmbuild take for the time of everything. Source: https://reproducible-builds.org/specs/source-date-epoch/ */
export function sourceDate(timeSeconds: number): Readonly<Record<string, string>> {
  return { SOURCE_DATE_EPOCH: String(timeSeconds) };
}
