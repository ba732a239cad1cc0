import { type Ack, encodeWriterLine, type Json, type WriterLine } from "./protocol.ts";

const FLUSH_EVERY_MS = 20;
const BREATHE_EVERY_MS = 10;

/**
 * A writer's standard input and output. Acknowledgements are gathered and written at least every 20 ms; a parent that
 * does not read for a while never blocks the writer, since Bun's sink keeps in memory what the pipe does not take.
 */
export class Channel {
  readonly #sink = Bun.stdout.writer();
  readonly #commands: string[] = [];
  #unsent = "";
  #flushedAtMs = performance.now();
  #breathedAtMs = performance.now();
  #wake: (() => void) | null = null;
  #ended = false;

  constructor() {
    void this.#readCommands();
  }

  /** The parent closed our standard input, or ended. */
  get ended(): boolean {
    return this.#ended;
  }

  nextCommand(): string | null {
    return this.#commands.shift() ?? null;
  }

  acknowledge(ack: Ack): void {
    this.#unsent += encodeWriterLine({ kind: "ack", ack });
    if (performance.now() - this.#flushedAtMs >= FLUSH_EVERY_MS) this.flush();
  }

  reply(value: Json): void {
    this.#send({ kind: "reply", value });
  }

  inform(value: Json): void {
    this.#send({ kind: "info", value });
  }

  complain(message: string): void {
    this.#send({ kind: "error", message });
  }

  flush(): void {
    this.#flushedAtMs = performance.now();
    if (this.#unsent === "") return;
    this.#sink.write(this.#unsent);
    this.#unsent = "";
    void this.#sink.flush();
  }

  /** Lets commands in and output out, if that has not happened for a while. */
  async breathe(): Promise<void> {
    if (performance.now() - this.#breathedAtMs >= BREATHE_EVERY_MS) await this.pause();
  }

  /** Flushes and gives the event loop one turn. */
  async pause(): Promise<void> {
    this.flush();
    await new Promise<void>((resolve) => setImmediate(resolve));
    this.#breathedAtMs = performance.now();
  }

  /** Resolves when a command has arrived, input has ended or this much time has passed. */
  async wait(timeoutMs: number): Promise<void> {
    this.flush();
    if (this.#commands.length > 0 || this.#ended) return;
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, timeoutMs);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
    this.#wake = null;
    this.#breathedAtMs = performance.now();
  }

  /** Everything said has left this process once this resolves. */
  async end(): Promise<void> {
    this.flush();
    await this.#sink.end();
  }

  #send(line: WriterLine): void {
    this.#unsent += encodeWriterLine(line);
    this.flush();
  }

  async #readCommands(): Promise<void> {
    for await (const line of console) {
      this.#commands.push(line.trim());
      this.#wake?.();
    }
    this.#ended = true;
    this.#wake?.();
  }
}
