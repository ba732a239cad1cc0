import { writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { statePaths } from "../../src/state/layout.ts";
import { readStatus, type StatusFile } from "../../src/state/status.ts";
import { type EventuallyOptions, eventually, withDeadline } from "../support/eventually.ts";
import { executablePath } from "../support/executable.ts";

/** A TOML value that a config needs here. */
export type Setting = string | number | boolean | readonly string[];
export type Settings = Readonly<Record<string, Setting>>;

export interface DaemonDatabase {
  readonly name: string;
  /** Absolute. */
  readonly path: string;
  /** Where the file backend stores it; one entry for each lock-step destination. */
  readonly replicas: readonly string[];
  /** Lock-step destinations of any other kind, each as the keys of its `[[database.backends]]`. */
  readonly destinations?: readonly Settings[];
  /** Beside what `[defaults]` says. */
  readonly settings?: Settings;
}

export interface DaemonOptions {
  /** Where the config is written; it may be there already. */
  readonly configPath: string;
  readonly databases: readonly DaemonDatabase[];
  /** `[defaults]`. */
  readonly settings?: Settings;
  /** `[defaults.encryption]`. */
  readonly keyFile?: string;
  /** The source by default; the compiled executable is what users run, and must have been built. */
  readonly program?: Program;
  readonly logLevel?: "info" | "debug";
  readonly extraArguments?: readonly string[];
  /** Beside our own. */
  readonly environment?: Readonly<Record<string, string>>;
}

export type Program = "source" | "executable";

/** One line of the daemon's log: `time`, `level`, `message` and the fields of the message. */
export interface DaemonLogLine {
  readonly time: string;
  readonly level: "error" | "warn" | "info" | "debug";
  readonly message: string;
  readonly [field: string]: unknown;
}

export interface ProgramResult {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

const EXIT_DEADLINE_MS = 20_000;
const MAIN = fileURLToPath(new URL("../../src/main.ts", import.meta.url));

/** The command line of bakelite with these arguments. */
export function bakeliteCommand(program: Program, args: readonly string[]): string[] {
  return program === "executable" ? [executablePath(), ...args] : [process.execPath, MAIN, ...args];
}

/** Runs one command of bakelite to its end, whatever that is. */
export async function runBakelite(program: Program, args: readonly string[]): Promise<ProgramResult> {
  const child = Bun.spawn(bakeliteCommand(program, args), { stdin: "ignore", stdout: "pipe", stderr: "pipe" });
  const [stdout, stderr, status] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  return { status, stdout, stderr };
}

/** Writes the config and starts the daemon on it. It is killed when disposed; `stop` ends it as an operator would. */
export async function startDaemon(options: DaemonOptions): Promise<DaemonProcess> {
  await writeFile(options.configPath, daemonConfig(options));
  return new DaemonProcess(options);
}

/** The TOML that the options ask for. Relative paths, and anything that TOML would spell otherwise, are not expected. */
export function daemonConfig({ databases, settings = {}, keyFile, logLevel = "info" }: DaemonOptions): string {
  const lines = ["[daemon]", `log_level = ${toml(logLevel)}`, 'log_format = "json"', "", "[defaults]"];
  lines.push(...assignments(settings));
  if (keyFile !== undefined) lines.push("", "[defaults.encryption]", `key_file = ${toml(keyFile)}`);
  for (const database of databases) {
    lines.push("", "[[database]]", `name = ${toml(database.name)}`, `path = ${toml(database.path)}`);
    lines.push(...assignments(database.settings ?? {}));
    for (const replica of database.replicas)
      lines.push("", "  [[database.backends]]", '  type = "file"', `  path = ${toml(replica)}`);
    for (const destination of database.destinations ?? [])
      lines.push("", "  [[database.backends]]", ...assignments(destination));
  }
  return `${lines.join("\n")}\n`;
}

/** A daemon in a process of its own, and what it has said so far. */
export class DaemonProcess implements AsyncDisposable {
  readonly options: DaemonOptions;
  readonly startedMs = Date.now();
  readonly #process: Bun.Subprocess<"ignore", "ignore", "pipe">;
  readonly #outputEnded: Promise<void>;
  readonly #log: DaemonLogLine[] = [];
  #complaints = "";
  /** Somebody here asked it to end. */
  #ending = false;

  constructor(options: DaemonOptions) {
    this.options = options;
    const args = ["daemon", "--config", options.configPath, ...(options.extraArguments ?? [])];
    this.#process = Bun.spawn(bakeliteCommand(options.program ?? "source", args), {
      cwd: dirname(options.configPath),
      env: { ...process.env, ...options.environment },
      stdin: "ignore",
      stdout: "ignore",
      stderr: "pipe",
    });
    this.#outputEnded = this.#readOutput();
  }

  get pid(): number {
    return this.#process.pid;
  }

  get running(): boolean {
    return this.#process.exitCode === null && this.#process.signalCode === null;
  }

  get log(): readonly DaemonLogLine[] {
    return this.#log;
  }

  get label(): string {
    return `the daemon (pid ${this.pid})`;
  }

  /** What it said that is no log line, such as why it could not start; a line that a SIGKILL cut short is left out. */
  get complaints(): string {
    return this.#complaints;
  }

  /** Its last words, for messages. */
  get tail(): string {
    const lines = this.#log.slice(-15).map((line) => JSON.stringify(line));
    return [...lines, this.#complaints.slice(-2000)].join("\n").trim();
  }

  /** The lines with this message. */
  said(message: string): readonly DaemonLogLine[] {
    return this.#log.filter((line) => line.message === message);
  }

  /** Throws, with all that it said last, if it has ended although nobody here asked it to. */
  checkRunning(): void {
    if (this.running || this.#ending) return;
    const how = this.#process.signalCode ?? `status ${this.#process.exitCode}`;
    throw new Error(`${this.label} ended by itself with ${how}:\n${this.tail}`);
  }

  /** What it last published of the database; null before the first time. Throws when the file is damaged. */
  async status(name?: string): Promise<StatusFile | null> {
    const database = this.options.databases.find((each) => name === undefined || each.name === name);
    if (database === undefined) throw new Error(`${this.label} has no database ${name ?? ""}`);
    const read = await readStatus(statePaths(database.path, database.name).status);
    if (read.outcome === "corrupt") throw new Error(`the status file of ${database.name} is damaged: ${read.reason}`);
    // What an earlier daemon left behind says nothing of this one.
    return read.outcome === "read" && read.value.process.pid === this.pid ? read.value : null;
  }

  /** Waits until the published status is as `wanted` says, and gives it. Throws at once when the daemon has ended. */
  async untilStatus(
    wanted: (status: StatusFile) => boolean,
    options: Omit<EventuallyOptions, "explain"> & { readonly database?: string },
  ): Promise<StatusFile> {
    let last: StatusFile | null = null;
    const found = await eventually(
      async () => {
        last = await this.status(options.database);
        if (last !== null && wanted(last)) return last;
        return this.running ? null : ("ended" as const);
      },
      { pollMs: 25, ...options, explain: () => `its status is ${JSON.stringify(last)}\n${this.tail}` },
    );
    if (found !== "ended") return found;
    this.checkRunning();
    throw new Error(`${this.label} was stopped before ${options.what}`);
  }

  /** Waits for a log line with this message, from the beginning of its life. */
  async untilSaid(message: string, deadlineMs = 10_000): Promise<DaemonLogLine> {
    return await eventually(
      () => {
        const line = this.said(message)[0];
        if (line === undefined) this.checkRunning();
        return line;
      },
      { what: `${this.label} to say ${JSON.stringify(message)}`, deadlineMs, explain: () => this.tail },
    );
  }

  signal(name: NodeJS.Signals): void {
    if (this.running) process.kill(this.pid, name);
  }

  /** SIGKILL: nothing is finished, as when the machine's memory runs out. */
  async kill(): Promise<void> {
    this.#ending = true;
    this.signal("SIGKILL");
    await this.#waitForExit(EXIT_DEADLINE_MS);
  }

  /** SIGTERM, then how it ended: everything that is committed is shipped first. Throws unless it ends with status 0. */
  async stop(deadlineMs = EXIT_DEADLINE_MS): Promise<{ readonly tookMs: number }> {
    this.checkRunning();
    this.#ending = true;
    const startedMs = performance.now();
    this.signal("SIGTERM");
    await this.#waitForExit(deadlineMs);
    if (this.#process.exitCode !== 0) {
      const how = this.#process.signalCode ?? `status ${this.#process.exitCode}`;
      throw new Error(`${this.label} was asked to stop and ended with ${how}:\n${this.tail}`);
    }
    return { tookMs: performance.now() - startedMs };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
  }

  async #waitForExit(deadlineMs: number): Promise<void> {
    await withDeadline(Promise.all([this.#process.exited, this.#outputEnded]), {
      what: `${this.label} to end`,
      deadlineMs,
      explain: () => this.tail,
    });
  }

  async #readOutput(): Promise<void> {
    const decoder = new TextDecoder();
    let partial = "";
    for await (const chunk of this.#process.stderr) {
      const lines = (partial + decoder.decode(chunk, { stream: true })).split("\n");
      partial = lines.pop() ?? "";
      for (const line of lines) this.#hear(line);
    }
    if (partial !== "") this.#hear(partial);
  }

  #hear(line: string): void {
    if (!line.startsWith("{")) {
      this.#complaints += `${line}\n`;
      return;
    }
    try {
      this.#log.push(JSON.parse(line) as DaemonLogLine);
    } catch {
      // A SIGKILL may cut a line short.
    }
  }
}

/** The path of a config file of its own in `directory`. */
export function configPathIn(directory: string): string {
  return join(directory, "bakelite.toml");
}

function assignments(settings: Settings): readonly string[] {
  return Object.entries(settings).map(([key, value]) => `${key} = ${toml(value)}`);
}

/** JSON's strings, numbers, booleans and arrays of strings are TOML's, as long as nothing above U+FFFF is escaped. */
function toml(value: Setting): string {
  return JSON.stringify(value);
}
