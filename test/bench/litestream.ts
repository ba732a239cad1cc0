import { existsSync } from "node:fs";
import { readdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { eventually } from "../support/eventually.ts";

/** Litestream, to compare with: an executable of its own that these benchmarks look for and never install. */
export interface Litestream {
  readonly path: string;
  readonly version: string;
}

export interface LitestreamDatabase {
  readonly path: string;
  /** A directory. */
  readonly replica: string;
}

/** `BAKELITE_BENCH_LITESTREAM` names it, else it is on the PATH; null when it is nowhere. Throws for one that does not run. */
export function findLitestream(): Litestream | null {
  const path = process.env["BAKELITE_BENCH_LITESTREAM"] ?? Bun.which("litestream");
  if (path === null || path === "") return null;
  const asked = Bun.spawnSync([path, "version"], { stdin: "ignore", stderr: "pipe" });
  const version = asked.stdout.toString().trim();
  if (!asked.success || version === "")
    throw new Error(`${path} does not say its version: ${asked.stderr.toString().trim()}`);
  return { path, version };
}

/** Everything that is not said here is Litestream's default, as everything that is not said of bakelite is bakelite's. */
export async function writeLitestreamConfig(path: string, databases: readonly LitestreamDatabase[]): Promise<void> {
  const entries = databases.map(
    (database) =>
      `  - path: ${JSON.stringify(database.path)}\n    replica:\n      type: file\n      path: ${JSON.stringify(database.replica)}\n`,
  );
  await writeFile(path, `logging:\n  level: warn\ndbs:\n${entries.join("")}`);
}

/** `litestream replicate`, in a process of its own; killed when disposed. */
export class LitestreamProcess implements AsyncDisposable {
  readonly #process: Bun.Subprocess<"ignore", "ignore", "pipe">;
  readonly #said: Promise<string>;

  constructor(litestream: Litestream, configPath: string) {
    this.#process = Bun.spawn([litestream.path, "replicate", "-config", configPath], {
      stdin: "ignore",
      stdout: "ignore",
      stderr: "pipe",
    });
    this.#said = this.#process.stderr.text();
  }

  get pid(): number {
    return this.#process.pid;
  }

  get running(): boolean {
    return this.#process.exitCode === null && this.#process.signalCode === null;
  }

  /** Resolves when the replica can be restored for the first time: its first file has its name. */
  async untilStored(replica: string, deadlineMs: number): Promise<void> {
    await eventually(async () => !this.running || (await hasFirstFile(replica)), {
      what: `Litestream to store ${replica}`,
      deadlineMs,
    });
    if (!this.running) throw new Error(`Litestream ended by itself: ${await this.#said}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.running) process.kill(this.pid, "SIGKILL");
    await this.#process.exited;
  }
}

/** Level 0 of a replica; a file that is being written has another ending. */
async function hasFirstFile(replica: string): Promise<boolean> {
  const directory = join(replica, "ltx", "0");
  if (!existsSync(directory)) return false;
  return (await readdir(directory)).some((name) => /^0{15}1-[0-9a-f]{16}\.ltx$/.test(name));
}
