import { fileURLToPath } from "node:url";
import type { ReplicationSettings } from "../../src/replicator/attachment.ts";
import { withDeadline } from "../support/eventually.ts";

type Object = "change-set" | "full" | "CURRENT";

export type Step =
  | "before the attempt"
  | "after the attempt"
  | `before the put of a ${Object}`
  | `midway in the put of a ${Object}`
  | `after the put of a ${Object}`
  | "before the ledger entries"
  | "after the ledger entries"
  | "before the ledger slot"
  | "after the ledger slot"
  | "before the cursor"
  | "after the cursor"
  | "after the ledger of a new chain is in place"
  | "before a full backup is noted";

export interface Trap {
  readonly step: Step;
  /** The how manyth time, from 1. */
  readonly nth: number;
  readonly action: "kill" | "pause";
}

export interface TrappedDaemonSpec {
  readonly databasePath: string;
  readonly backendPath: string;
  readonly settings: ReplicationSettings;
  readonly traps: readonly Trap[];
}

const PROGRAM = fileURLToPath(new URL("trapped-daemon.ts", import.meta.url));
const DEADLINE_MS = 20_000;

export function startTrapped(spec: TrappedDaemonSpec): TrappedDaemon {
  return new TrappedDaemon(spec);
}

/** A daemon in a process of its own that falls into traps. Killed when disposed. */
export class TrappedDaemon implements AsyncDisposable {
  readonly #process: Bun.Subprocess<"pipe", "pipe", "pipe">;
  readonly #at: { promise: Promise<Step>; resolve: (step: Step) => void }[] = [];
  #reached = 0;
  #said = 0;
  readonly #errors: Promise<string>;

  constructor(spec: TrappedDaemonSpec) {
    this.#process = Bun.spawn([process.execPath, PROGRAM, JSON.stringify(spec)], {
      stdin: "pipe",
      stdout: "pipe",
      stderr: "pipe",
    });
    this.#errors = this.#process.stderr.text();
    void this.#listen();
  }

  get pid(): number {
    return this.#process.pid;
  }

  /** Resolves when it stands at its next trap. */
  async reached(): Promise<Step> {
    return await withDeadline(this.#place(this.#reached++).promise, {
      what: "the daemon to fall into a trap",
      deadlineMs: DEADLINE_MS,
    });
  }

  /** Lets it go on from the trap in which it stands. */
  async release(): Promise<void> {
    this.#process.stdin.write("\n");
    await this.#process.stdin.flush();
  }

  /** Resolves when it has killed itself. Throws when it ended in another way. */
  async killed(): Promise<void> {
    const exited = this.#process.exited;
    await withDeadline(exited, {
      what: "the daemon to be killed",
      deadlineMs: DEADLINE_MS,
      explain: () => `pid ${this.pid}`,
    });
    if (this.#process.signalCode !== "SIGKILL")
      throw new Error(`the daemon ended with ${this.#process.exitCode}: ${await this.#errors}`);
  }

  async kill(): Promise<void> {
    this.#process.kill("SIGKILL");
    await this.#process.exited;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
  }

  #place(n: number): { promise: Promise<Step>; resolve: (step: Step) => void } {
    this.#at[n] ??= Promise.withResolvers<Step>();
    return this.#at[n];
  }

  async #listen(): Promise<void> {
    let partial = "";
    for await (const chunk of this.#process.stdout.pipeThrough(new TextDecoderStream())) {
      const lines = (partial + chunk).split("\n");
      partial = lines.pop() ?? "";
      for (const line of lines) this.#place(this.#said++).resolve((JSON.parse(line) as { at: Step }).at);
    }
  }
}
