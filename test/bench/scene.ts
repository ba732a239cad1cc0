import { fileURLToPath } from "node:url";
import { configPathIn, type DaemonProcess, type Settings, startDaemon } from "../oracle/daemon-process.ts";
import { eventually, withDeadline } from "../support/eventually.ts";
import type { ApplicationResult, ApplicationSpec } from "./application-protocol.ts";
import type { FillSpec } from "./fill.ts";
import type { Litestream } from "./litestream.ts";
import { peakBytesOf } from "./proc.ts";

/** What every benchmark is given. */
export interface BenchContext {
  /** Smaller and shorter, to see that it works; the figures mean little. */
  readonly quick: boolean;
  /** An empty directory of its own. It is removed when the benchmark has ended. */
  readonly directory: string;
  readonly seed: number;
  readonly litestream: Litestream | null;
  /** Tells a person who waits what is being done. */
  say(what: string): void;
}

const APPLICATION = fileURLToPath(new URL("application.ts", import.meta.url));
const FILL = fileURLToPath(new URL("fill.ts", import.meta.url));
const READY_DEADLINE_MS = 60_000;
const FULL_BACKUP_DEADLINE_MS = 300_000;
const SLOW_MACHINE_MS = 120_000;
const PEAK_POLL_MS = 10;

/** The executable's daemon for one database, all else being default. */
export async function startBakelite(
  directory: string,
  database: { readonly path: string; readonly replica: string },
  options: { readonly settings?: Settings; readonly keyFile?: string; readonly logLevel?: "info" | "debug" } = {},
): Promise<DaemonProcess> {
  return await startDaemon({
    configPath: configPathIn(directory),
    databases: [{ name: "app", path: database.path, replicas: [database.replica] }],
    program: "executable",
    ...options,
  });
}

/** Waits until the first full backup is stored, by the daemon's own word; the status is published only every few seconds. */
export async function untilFullBackup(daemon: DaemonProcess): Promise<void> {
  await daemon.untilSaid("full backup stored", FULL_BACKUP_DEADLINE_MS);
}

/** An application in a process of its own; killed when disposed. */
export class ApplicationProcess implements AsyncDisposable {
  readonly spec: ApplicationSpec;
  readonly #process: Bun.Subprocess<"pipe", "pipe", "inherit">;
  readonly #lines: string[] = [];
  readonly #ended: Promise<void>;

  private constructor(spec: ApplicationSpec) {
    this.spec = spec;
    this.#process = Bun.spawn([process.execPath, APPLICATION, JSON.stringify(spec)], {
      stdin: "pipe",
      stdout: "pipe",
      stderr: "inherit",
    });
    this.#ended = this.#read();
  }

  /** Connected, with its tables made, when this resolves. */
  static async start(spec: ApplicationSpec): Promise<ApplicationProcess> {
    const application = new ApplicationProcess(spec);
    await application.#untilLines(1, READY_DEADLINE_MS);
    return application;
  }

  get pid(): number {
    return this.#process.pid;
  }

  /** Lets it work, once, and gives what it saw. It stays connected. */
  async run(): Promise<ApplicationResult> {
    await this.#send();
    await this.#untilLines(2, SLOW_MACHINE_MS + (this.spec.warmUpSeconds + this.spec.seconds) * 1000);
    return JSON.parse(this.#lines[1] ?? "") as ApplicationResult;
  }

  /** Closes the database and ends. */
  async stop(): Promise<void> {
    await this.#send();
    await withDeadline(this.#process.exited, { what: "the application to end", deadlineMs: SLOW_MACHINE_MS });
    await this.#ended;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#process.exitCode === null && this.#process.signalCode === null) this.#process.kill("SIGKILL");
    await this.#process.exited;
  }

  async #send(): Promise<void> {
    this.#process.stdin.write("\n");
    await this.#process.stdin.flush();
  }

  async #untilLines(count: number, deadlineMs: number): Promise<void> {
    await eventually(() => this.#lines.length >= count || this.#process.exitCode !== null, {
      what: "the application",
      deadlineMs,
    });
    if (this.#lines.length < count) throw new Error(`the application ended with status ${this.#process.exitCode}`);
  }

  async #read(): Promise<void> {
    const decoder = new TextDecoder();
    let partial = "";
    for await (const chunk of this.#process.stdout) {
      const lines = (partial + decoder.decode(chunk, { stream: true })).split("\n");
      partial = lines.pop() ?? "";
      this.#lines.push(...lines);
    }
  }
}

/** Makes a database in another process, so that this one has never opened it. */
export async function fillDatabase(spec: FillSpec): Promise<void> {
  await runToEnd([process.execPath, FILL, JSON.stringify(spec)]);
}

export interface Finished {
  readonly seconds: number;
  readonly cpuSeconds: number;
  /** NaN when it ended before it was looked at. */
  readonly peakBytes: number;
  readonly stdout: string;
}

/**
 * Runs a command to its end and measures it. Throws, with what it said, when it fails. The peak is looked at while it runs
 * and may miss the last moment; that of getrusage(2) counts what this process had when it made the other one.
 */
export async function runToEnd(command: readonly string[]): Promise<Finished> {
  const startMs = performance.now();
  const child = Bun.spawn([...command], { stdin: "ignore", stdout: "pipe", stderr: "pipe" });
  let peakBytes = Number.NaN;
  const watching = setInterval(() => {
    peakBytes = peakBytesOf(child.pid) ?? peakBytes;
  }, PEAK_POLL_MS);
  const [stdout, stderr, status] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  const seconds = (performance.now() - startMs) / 1000;
  clearInterval(watching);
  if (status !== 0) throw new Error(`${command.join(" ")} failed with ${child.signalCode ?? status}: ${stderr}`);
  const usage = child.resourceUsage();
  return {
    seconds,
    cpuSeconds: Number(usage?.cpuTime.total ?? Number.NaN) / 1e6,
    peakBytes,
    stdout,
  };
}
