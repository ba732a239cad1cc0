import { BakeliteError, systemErrorCode } from "../util/errors.ts";
import type { TextOutput } from "../util/text-output.ts";

/**
 * Standard output or error of this process. Writing never throws: a reader that went away (EPIPE, as in `| head`) only
 * means that nobody listens, and the work goes on so that the exit code still tells of it. Any other failure, such as a
 * full disk, is reported by `flush`.
 */
export class ProcessOutput implements TextOutput {
  readonly #stream: NodeJS.WriteStream;
  readonly #pending = new Set<Promise<void>>();
  #failure: unknown;

  constructor(stream: NodeJS.WriteStream) {
    this.#stream = stream;
    stream.on("error", (error) => this.#note(error));
  }

  get isTerminal(): boolean {
    return this.#stream.isTTY === true;
  }

  get columns(): number {
    return this.#stream.columns || 80;
  }

  write(text: string): void {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#pending.add(promise);
    this.#stream.write(text, (error) => {
      if (error) this.#note(error);
      this.#pending.delete(promise);
      resolve();
    });
  }

  async drained(): Promise<void> {
    await Promise.all(this.#pending);
  }

  /** Resolves when everything has been handed to the system; what stands in a pipe would be lost by exiting before. */
  async flush(): Promise<void> {
    await this.drained();
    if (this.#failure === undefined) return;
    throw new BakeliteError("io", "cannot write to standard output", { cause: this.#failure });
  }

  #note(error: unknown): void {
    if (systemErrorCode(error) !== "EPIPE") this.#failure ??= error;
  }
}
