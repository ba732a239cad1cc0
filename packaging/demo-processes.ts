import { join } from "node:path";
import type { Content } from "./demo-content.ts";

const SHOP = join(import.meta.dir, "demo-shop.ts");
const PATIENCE_MS = 30_000;
const POLL_MS = 20;

const living = new Set<Bun.Subprocess>();
let isEnding = false;

/** Ends whatever the demo has started and what still runs; whatever it starts from now on is ended at once. */
export async function endAll(): Promise<void> {
  isEnding = true;
  const all = [...living];
  for (const child of all) child.kill("SIGKILL");
  await Promise.all(all.map((child) => child.exited));
}

/** The output of a program that has to end well. */
export async function run(command: readonly string[]): Promise<string> {
  const child = Bun.spawn([...command], { stdin: "ignore", stdout: "pipe", stderr: "pipe" });
  keep(child);
  const [stdout, stderr, status] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  if (status !== 0)
    throw new Error(`${command.join(" ")} ended with status ${status}:\n${stderr.trim() || stdout.trim()}`);
  return stdout;
}

/** The shop, and all that it had, commit by commit. */
export class ShopProcess {
  readonly #process: Bun.Subprocess<"pipe", "pipe", "inherit">;
  readonly #contents: Content[] = [];
  readonly #outputEnded: Promise<void>;

  private constructor(databasePath: string) {
    this.#process = Bun.spawn([process.execPath, SHOP, databasePath], {
      stdin: "pipe",
      stdout: "pipe",
      stderr: "inherit",
    });
    keep(this.#process);
    this.#outputEnded = this.#listen();
  }

  static async open(databasePath: string): Promise<ShopProcess> {
    const shop = new ShopProcess(databasePath);
    await shop.#until("the shop to open", () => shop.#contents.length > 0);
    return shop;
  }

  /** After its newest commit that we have heard of. */
  get last(): Content {
    const content = this.#contents.at(-1);
    if (content === undefined) throw new Error("the shop has not opened");
    return content;
  }

  /** After this commit. */
  after(commit: number): Content | null {
    return this.#contents[commit - 1] ?? null;
  }

  async untilOrders(count: number): Promise<void> {
    await this.#until(`order ${count}`, () => this.last.orders >= count);
  }

  /** Has all orders deleted; what the shop had after that. */
  async accident(): Promise<Content> {
    const heard = this.#contents.length;
    await this.#say("accident");
    let found: Content | undefined;
    await this.#until("the accident", () => {
      // The one commit that takes no order.
      found = this.#contents.find((content, i) => i >= heard && content.orders === this.#contents[i - 1]?.orders);
      return found !== undefined;
    });
    return found ?? this.last;
  }

  /** Closes it; what it had in the end. */
  async close(): Promise<Content> {
    await this.#say("close");
    const status = await this.#process.exited;
    await this.#outputEnded;
    if (status !== 0) throw new Error(`the shop ended with status ${status}`);
    return this.last;
  }

  async #say(line: string): Promise<void> {
    this.#process.stdin.write(`${line}\n`);
    await this.#process.stdin.flush();
  }

  async #until(what: string, isSo: () => boolean): Promise<void> {
    await until(what, () => {
      if (this.#process.exitCode !== null) throw new Error(`the shop ended with status ${this.#process.exitCode}`);
      return isSo();
    });
  }

  async #listen(): Promise<void> {
    const decoder = new TextDecoder();
    let partial = "";
    for await (const chunk of this.#process.stdout) {
      const lines = (partial + decoder.decode(chunk, { stream: true })).split("\n");
      partial = lines.pop() ?? "";
      for (const line of lines) this.#contents.push(JSON.parse(line) as Content);
    }
  }
}

/** `bakelite daemon` in a process of its own, and what it has stored. */
export class Daemon {
  readonly #executable: string;
  readonly #config: string;
  readonly #process: Bun.Subprocess<"ignore", "ignore", "pipe">;
  readonly #log: Promise<string>;

  constructor(executable: string, config: string) {
    this.#executable = executable;
    this.#config = config;
    this.#process = Bun.spawn([executable, "daemon", "--config", config], {
      stdin: "ignore",
      stdout: "ignore",
      stderr: "pipe",
    });
    keep(this.#process);
    this.#log = this.#process.stderr.text();
  }

  get pid(): number {
    return this.#process.pid;
  }

  /** Waits until everything that was committed at that moment can be restored, as `bakelite list` has it. */
  async untilStored(timeMs: number): Promise<void> {
    await until(`what was committed at ${new Date(timeMs).toISOString()} to be stored`, async () => {
      if (this.#process.exitCode !== null) throw await this.#failure("ended by itself");
      const listed = await run([this.#executable, "list", "--json", "--config", this.#config]);
      const newest = (JSON.parse(listed) as Listed).databases[0]?.newest_restore_point?.time;
      return newest !== undefined && Date.parse(newest) >= timeMs;
    });
  }

  async kill(): Promise<void> {
    this.#process.kill("SIGKILL");
    await this.#process.exited;
  }

  async stop(): Promise<void> {
    this.#process.kill("SIGTERM");
    if ((await this.#process.exited) !== 0) throw await this.#failure("did not stop as it should");
  }

  async #failure(what: string): Promise<Error> {
    const how = this.#process.signalCode ?? `status ${this.#process.exitCode}`;
    return new Error(`the daemon ${what} (${how}):\n${await this.#log}`);
  }
}

/** Of what `bakelite list --json` says. */
interface Listed {
  readonly databases: readonly { readonly newest_restore_point: { readonly time: string } | null }[];
}

function keep(child: Bun.Subprocess): void {
  living.add(child);
  if (isEnding) child.kill("SIGKILL");
  void child.exited.then(() => living.delete(child));
}

async function until(what: string, isSo: () => boolean | Promise<boolean>): Promise<void> {
  const startedMs = performance.now();
  while (!(await isSo())) {
    if (performance.now() - startedMs > PATIENCE_MS) throw new Error(`waited ${PATIENCE_MS / 1000} s for ${what}`);
    await Bun.sleep(POLL_MS);
  }
}
