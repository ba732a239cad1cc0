import { eventually } from "./eventually.ts";
import { executablePath } from "./executable.ts";

/** The executable on a real pseudo-terminal, as a person has it. */
export class TerminalSession implements AsyncDisposable {
  readonly #child: Bun.Subprocess;
  readonly #decoder = new TextDecoder();
  #screen = "";
  /** Everything that was written to the terminal, escape sequences too. */
  transcript = "";

  constructor(argv: readonly string[], env: Readonly<Record<string, string>>) {
    this.#child = Bun.spawn([executablePath(), ...argv], {
      env: { PATH: process.env["PATH"], TERM: "xterm", ...env },
      terminal: {
        cols: 250,
        rows: 50,
        data: (_terminal: unknown, bytes: Uint8Array) => {
          const text = this.#decoder.decode(bytes, { stream: true });
          this.transcript += text;
          this.#screen += text;
        },
      },
    });
  }

  /** Resolves when `text` was written since the last answer. */
  async untilShown(text: string): Promise<void> {
    await eventually(() => plain(this.#screen).includes(text), {
      what: `${JSON.stringify(text)} to be shown; there is: ${plain(this.#screen).slice(-800)}`,
      deadlineMs: 20_000,
    });
  }

  /** Types keys; what was shown so far does not count for `untilShown` any more. */
  type(keys: string): void {
    this.#screen = "";
    this.#child.terminal?.write(keys);
  }

  get exited(): Promise<number> {
    return this.#child.exited;
  }

  kill(signal: NodeJS.Signals): void {
    this.#child.kill(signal);
  }

  get shown(): string {
    return plain(this.transcript);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.kill("SIGKILL");
    await this.#child.exited;
  }
}

/** Without the sequences that move the cursor and set colours. Source: ECMA-48, 5.4 */
function plain(text: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: escape sequences begin with one
  return text.replace(/\u001b\[[0-9;?]*[A-Za-z]/g, "");
}
