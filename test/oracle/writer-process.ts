import { fileURLToPath } from "node:url";
import { eventually, withDeadline } from "../support/eventually.ts";
import { pythonPath } from "../support/python.ts";
import {
  type Ack,
  type CheckpointMode,
  type Json,
  parseWriterLine,
  type WriterOptions,
  type WriterSpec,
  writerSpec,
} from "./protocol.ts";

export type WriterEngine = "bun" | "python";
export type StartWriterOptions = WriterOptions & { readonly engine?: WriterEngine };

export interface CheckpointResult {
  readonly busy: boolean;
  readonly log: number;
  readonly checkpointed: number;
}

type JsonObject = { readonly [key: string]: Json };

const READY_DEADLINE_MS = 20_000;
const COMMAND_DEADLINE_MS = 30_000;
const EXIT_DEADLINE_MS = 20_000;
const WRITER_PROGRAM = fileURLToPath(new URL("writer.ts", import.meta.url));
const PYTHON_PROGRAM = fileURLToPath(new URL("writer.py", import.meta.url));

/**
 * Starts an application that writes to `options.database` and resolves when it is connected. Everything that the
 * options leave out is as `writerSpec` says. It is killed when disposed; `stop` ends it in an orderly way.
 */
export async function startWriter(options: StartWriterOptions): Promise<WriterProcess> {
  const { engine = "bun", ...writerOptions } = options;
  const writer = new WriterProcess(writerSpec(writerOptions), engine);
  try {
    await eventually(() => writer.ready !== null || !writer.running, {
      what: `${writer.label} to be ready`,
      deadlineMs: READY_DEADLINE_MS,
      explain: () => writer.standardError,
    });
    await writer.checkRunning();
  } catch (error) {
    await writer.kill();
    throw error;
  }
  return writer;
}

/** A writer in a process of its own, and what it has said so far. */
export class WriterProcess implements AsyncDisposable {
  readonly spec: WriterSpec;
  readonly engine: WriterEngine;
  readonly #process: Bun.Subprocess<"pipe", "pipe", "pipe">;
  readonly #acks: Ack[] = [];
  readonly #errors: string[] = [];
  readonly #replies: { resolve(value: JsonObject): void; reject(error: Error): void }[] = [];
  readonly #outputEnded: Promise<void>;
  #ready: JsonObject | null = null;
  #statistics: JsonObject | null = null;
  #standardError = "";

  constructor(spec: WriterSpec, engine: WriterEngine) {
    this.spec = spec;
    this.engine = engine;
    const program = engine === "bun" ? [process.execPath, WRITER_PROGRAM] : [pythonPath(), PYTHON_PROGRAM];
    this.#process = Bun.spawn([...program, JSON.stringify(spec)], { stdin: "pipe", stdout: "pipe", stderr: "pipe" });
    this.#outputEnded = Promise.all([this.#readOutput(), this.#readStandardError()]).then(() => this.#abandonReplies());
  }

  get pid(): number {
    return this.#process.pid;
  }

  /** For messages: which writer, and the seed that repeats it. */
  get label(): string {
    return `${this.engine} writer ${this.spec.id} (${this.spec.mode}, seed ${this.spec.seed}, pid ${this.pid})`;
  }

  /** Commits that this writer has reported, in its own order. Complete after `pause` and `stop`. */
  get acks(): readonly Ack[] {
    return this.#acks;
  }

  get lastAck(): Ack | null {
    return this.#acks.at(-1) ?? null;
  }

  /** What the writer found wrong; `stop` throws them. */
  get errors(): readonly string[] {
    return this.#errors;
  }

  /** What it said when it was connected: `engine` and `spec`; null before. */
  get ready(): JsonObject | null {
    return this.#ready;
  }

  get running(): boolean {
    return this.#process.exitCode === null && this.#process.signalCode === null;
  }

  get standardError(): string {
    return [...this.#errors, this.#standardError.slice(-2000)].join("\n").trim();
  }

  /** Once this resolves no transaction of this writer is open, none begins, and `acks` is complete. It stays connected. */
  async pause(): Promise<JsonObject> {
    return await this.command("pause");
  }

  async resume(): Promise<void> {
    await this.command("resume");
  }

  async setRate(commitsPerSecond: number): Promise<void> {
    await this.command(`rate ${commitsPerSecond}`);
  }

  /** So many commits at once, paused or not. Resolves when all are in `acks`. */
  async burst(count: number): Promise<void> {
    await this.command(`burst ${count}`, { deadlineMs: COMMAND_DEADLINE_MS + count * 50 });
  }

  /** Runs one statement on the writer's connection between two transactions; blobs come as hexadecimal. */
  async sql(statement: string): Promise<readonly JsonObject[]> {
    const reply = await this.command(`sql ${statement.replaceAll("\n", " ")}`);
    return (reply["rows"] ?? []) as readonly JsonObject[];
  }

  /** A checkpoint on the writer's connection; SQLite waits up to `busyTimeoutMs` for whoever is in the way. */
  async checkpoint(mode: CheckpointMode, busyTimeoutMs = 25): Promise<CheckpointResult> {
    return (await this.command(`checkpoint ${mode} ${busyTimeoutMs}`)) as unknown as CheckpointResult;
  }

  /** Pauses and closes the connection: if it is the last one on the database, SQLite deletes the WAL. */
  async disconnect(): Promise<void> {
    await this.command("disconnect");
  }

  /** Throws, with all that it said last, if the writer has ended. */
  async checkRunning(): Promise<void> {
    if (this.running) return;
    await this.#waitForExit();
    throw new Error(this.#whyEnded());
  }

  /** Sends a line and resolves with the reply to it; rejects when that is an error, or when the writer ends first. */
  async command(line: string, options: { readonly deadlineMs?: number } = {}): Promise<JsonObject> {
    await this.checkRunning();
    const { promise, resolve, reject } = Promise.withResolvers<JsonObject>();
    this.#replies.push({ resolve, reject });
    this.#process.stdin.write(`${line}\n`);
    await this.#process.stdin.flush();
    const reply = await withDeadline(promise, {
      what: `${this.label} to obey ${JSON.stringify(line)}`,
      deadlineMs: options.deadlineMs ?? COMMAND_DEADLINE_MS,
      explain: () => this.standardError,
    });
    if (reply["error"] !== undefined) throw new Error(`${this.label} cannot ${line}: ${String(reply["error"])}`);
    return reply;
  }

  /** Resolves when `count` commits in all have been reported. */
  async waitForAcks(count: number, deadlineMs = COMMAND_DEADLINE_MS): Promise<void> {
    await eventually(() => this.#acks.length >= count || !this.running, {
      what: `${count} commits of ${this.label}`,
      deadlineMs,
      explain: () => `it has made ${this.#acks.length}`,
    });
    if (this.#acks.length < count) await this.checkRunning();
  }

  /** Ends the writer, which closes its connections, and gives its statistics. Throws if it found anything wrong. */
  async stop(): Promise<JsonObject> {
    if (this.running) await this.command("stop");
    await this.#waitForExit();
    if (this.#errors.length > 0 || this.#process.exitCode !== 0) throw new Error(this.#whyEnded());
    return this.#statistics ?? {};
  }

  /** SIGKILL: no connection is closed, as when an application crashes. What it had reported until then is in `acks`. */
  async kill(): Promise<void> {
    if (this.running) process.kill(this.pid, "SIGKILL");
    await this.#waitForExit();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
  }

  async #waitForExit(): Promise<void> {
    await withDeadline(Promise.all([this.#process.exited, this.#outputEnded]), {
      what: `${this.label} to end`,
      deadlineMs: EXIT_DEADLINE_MS,
      explain: () => this.standardError,
    });
  }

  #whyEnded(): string {
    const how = this.#process.signalCode ?? `status ${this.#process.exitCode}`;
    return `${this.label} ended with ${how}: ${this.standardError}`;
  }

  async #readOutput(): Promise<void> {
    const decoder = new TextDecoder();
    let partial = "";
    for await (const chunk of this.#process.stdout) {
      const lines = (partial + decoder.decode(chunk, { stream: true })).split("\n");
      partial = lines.pop() ?? "";
      for (const line of lines) this.#hear(line);
    }
  }

  async #readStandardError(): Promise<void> {
    const decoder = new TextDecoder();
    for await (const chunk of this.#process.stderr) this.#standardError += decoder.decode(chunk, { stream: true });
  }

  #hear(line: string): void {
    const heard = parseWriterLine(line);
    switch (heard.kind) {
      case "ack":
        this.#acks.push(heard.ack);
        return;
      case "reply":
        this.#replies.shift()?.resolve(heard.value as JsonObject);
        return;
      case "info": {
        const info = heard.value as JsonObject;
        if (info["state"] === "ready") this.#ready = info;
        else this.#statistics = info;
        return;
      }
      case "error":
        this.#errors.push(heard.message);
    }
  }

  #abandonReplies(): void {
    for (const reply of this.#replies.splice(0)) reply.reject(new Error(this.#whyEnded()));
  }
}

/** Of several writers: every commit reported so far, in the total order. */
export function allAcks(writers: readonly WriterProcess[]): readonly Ack[] {
  return writers.flatMap((writer) => writer.acks).sort((a, b) => a.n - b.n);
}
