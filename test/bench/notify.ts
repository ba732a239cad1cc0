import { eventually } from "../support/eventually.ts";
import { pythonPath } from "../support/python.ts";

const LISTENER = `
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1])
print("listening", flush=True)
while True:
    print(s.recv(4096).decode(), flush=True)
`;
const START_DEADLINE_MS = 20_000;

/** Stands where systemd would, and hears when a daemon is ready. Source: sd_notify(3). Bun has no datagrams over UNIX sockets. */
export class ReadinessListener implements AsyncDisposable {
  readonly path: string;
  readonly #process: Bun.Subprocess<"ignore", "pipe", "inherit">;
  readonly #reading: Promise<void>;
  #heard = "";

  private constructor(path: string) {
    this.path = path;
    this.#process = Bun.spawn([pythonPath(), "-c", LISTENER, path], {
      stdin: "ignore",
      stdout: "pipe",
      stderr: "inherit",
    });
    this.#reading = this.#read();
  }

  /** `path` must be free, and no longer than a socket's name may be: 107 bytes. */
  static async start(path: string): Promise<ReadinessListener> {
    const listener = new ReadinessListener(path);
    await eventually(() => listener.#heard.includes("listening"), {
      what: "the listener",
      deadlineMs: START_DEADLINE_MS,
    });
    return listener;
  }

  async untilReady(deadlineMs: number): Promise<void> {
    await eventually(() => this.#heard.includes("READY=1"), { what: "READY=1", deadlineMs });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#process.kill("SIGKILL");
    await this.#process.exited;
    await this.#reading;
  }

  async #read(): Promise<void> {
    const decoder = new TextDecoder();
    for await (const chunk of this.#process.stdout) this.#heard += decoder.decode(chunk, { stream: true });
  }
}
