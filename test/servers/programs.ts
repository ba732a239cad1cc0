import { existsSync } from "node:fs";
import { connect, createServer } from "node:net";
import { delimiter } from "node:path";
import { eventually, withDeadline } from "../support/eventually.ts";

const RUN_DEADLINE_MS = 30_000;
const LAST_WORDS_BYTES = 4000;
/** Below what Linux gives to outgoing connections, which could otherwise take a port between our look and its use. */
const FIRST_PORT = 20_000;
const LAST_PORT = 32_000;

/** Debian keeps servers in folders that only root's PATH has. */
const PROGRAM_PATH = [process.env["PATH"] ?? "", "/usr/local/sbin", "/usr/sbin", "/sbin"].join(delimiter);

/** The path of an installed program; null when there is none of that name. */
export function findProgram(name: string): string | null {
  return Bun.which(name, { PATH: PROGRAM_PATH });
}

/** The path of an installed program. Throws when there is none. */
export function programPath(name: string): string {
  const path = findProgram(name);
  if (path === null) throw new Error(`${name} is not installed`);
  return path;
}

/** Runs a program to its end and gives what it printed. Throws, with what it said, unless it ends with status 0. */
export async function runProgram(
  command: readonly string[],
  options: { readonly cwd?: string; readonly statuses?: readonly number[] } = {},
): Promise<string> {
  const [name = "", ...args] = command;
  const child = Bun.spawn([programPath(name), ...args], {
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  const ended = Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  try {
    const [stdout, stderr, status] = await withDeadline(ended, {
      what: command.join(" "),
      deadlineMs: RUN_DEADLINE_MS,
    });
    if (!(options.statuses ?? [0]).includes(status))
      throw new Error(`${command.join(" ")} ended with ${status}: ${stderr.slice(-LAST_WORDS_BYTES)}`);
    return stdout;
  } finally {
    if (child.exitCode === null && child.signalCode === null) child.kill("SIGKILL");
  }
}

/** A server that runs in the foreground as our child, so that its pid is known and nothing of it can outlive the tests. */
export class ServerProcess implements AsyncDisposable {
  readonly label: string;
  readonly #child: Bun.Subprocess<"ignore", "ignore", ReturnType<typeof Bun.file>>;
  readonly #logPath: string;

  /** What it prints on standard error goes to `logPath`. */
  constructor(
    command: readonly string[],
    options: { readonly logPath: string; readonly label?: string; readonly env?: Readonly<Record<string, string>> },
  ) {
    const [name = "", ...args] = command;
    this.label = options.label ?? name;
    this.#logPath = options.logPath;
    this.#child = Bun.spawn([programPath(name), ...args], {
      env: { ...process.env, ...options.env },
      stdin: "ignore",
      stdout: "ignore",
      stderr: Bun.file(options.logPath),
    });
  }

  get running(): boolean {
    return this.#child.exitCode === null && this.#child.signalCode === null;
  }

  get pid(): number {
    return this.#child.pid;
  }

  signal(name: NodeJS.Signals): void {
    if (this.running) process.kill(this.#child.pid, name);
  }

  /** SIGKILL, and the wait for its end. */
  async kill(): Promise<void> {
    this.signal("SIGKILL");
    await this.#child.exited;
  }

  /** Throws, with the end of its log, when it has ended. */
  async checkRunning(): Promise<void> {
    if (this.running) return;
    const how = this.#child.signalCode ?? `status ${this.#child.exitCode}`;
    throw new Error(`${this.label} ended with ${how}: ${await this.lastWords()}`);
  }

  async lastWords(): Promise<string> {
    return existsSync(this.#logPath) ? (await Bun.file(this.#logPath).text()).slice(-LAST_WORDS_BYTES) : "";
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
  }
}

/** So many different ports of 127.0.0.1 that nobody listens on. */
export async function freePorts(count: number): Promise<readonly number[]> {
  const ports = new Set<number>();
  await eventually(
    async () => {
      const port = FIRST_PORT + Math.floor(Math.random() * (LAST_PORT - FIRST_PORT));
      if (await canListen(port)) ports.add(port);
      return ports.size === count;
    },
    { what: `${count} free ports`, pollMs: 0 },
  );
  return [...ports];
}

/** Waits until somebody accepts connections there. Throws at once when `server` has ended. */
export async function untilListening(port: number, server: ServerProcess, deadlineMs: number): Promise<void> {
  const what = `${server.label} to listen on port ${port}`;
  await untilReady(server, () => canConnect(port), { what, deadlineMs });
}

/** Waits until `url` is answered with status 200, or another of `statuses`. Throws at once when `server` has ended. */
export async function untilAnswered(
  url: string,
  server: ServerProcess,
  options: { readonly deadlineMs: number; readonly statuses?: readonly number[] },
): Promise<void> {
  const { deadlineMs, statuses = [200] } = options;
  const answered = async () => {
    const response = await fetch(url, { signal: AbortSignal.timeout(1000) }).catch(() => null);
    await response?.body?.cancel();
    return response !== null && statuses.includes(response.status);
  };
  await untilReady(server, answered, { what: `${server.label} to answer ${url}`, deadlineMs });
}

/** Waits until `isReady`. Throws at once, with its last words, when `server` has ended. */
export async function untilReady(
  server: ServerProcess,
  isReady: () => Promise<boolean>,
  { what, deadlineMs }: { readonly what: string; readonly deadlineMs: number },
): Promise<void> {
  // `eventually` goes on after a throw, so the end of the server is a value here.
  await eventually(async () => !server.running || (await isReady()), {
    what,
    deadlineMs,
    pollMs: 30,
    explain: () => server.lastWords(),
  });
  await server.checkRunning();
}

async function canListen(port: number): Promise<boolean> {
  const { promise, resolve } = Promise.withResolvers<boolean>();
  const server = createServer();
  server.once("error", () => resolve(false));
  server.listen(port, "127.0.0.1", () => server.close(() => resolve(true)));
  return await promise;
}

async function canConnect(port: number): Promise<boolean> {
  const { promise, resolve } = Promise.withResolvers<boolean>();
  const socket = connect(port, "127.0.0.1");
  socket.once("connect", () => resolve(true));
  socket.once("error", () => resolve(false));
  const connected = await promise;
  socket.destroy();
  return connected;
}
