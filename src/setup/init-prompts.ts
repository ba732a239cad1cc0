import { CANCEL_SYMBOL, confirm, log, note, password, select, text } from "@clack/prompts";
import { BakeliteError } from "../util/errors.ts";
import { printable } from "../util/printable.ts";

/** Questions to a person on a terminal. Ctrl-C and Escape throw `interrupted`; whoever asks has changed nothing by then. */
export class Prompts {
  readonly #signal: AbortSignal;

  constructor(signal: AbortSignal) {
    this.#signal = signal;
  }

  async choose<T extends string>(
    message: string,
    options: readonly { readonly value: T; readonly label: string; readonly hint?: string }[],
    initialValue?: T,
  ): Promise<T> {
    const shown = options.map(({ value, label, hint }) => ({
      value: value as string,
      label: printable(label),
      ...(hint === undefined ? {} : { hint: printable(hint) }),
    }));
    const first = initialValue === undefined ? {} : { initialValue: initialValue as string };
    const answer = this.#answered(await select({ message, options: shown, ...first, signal: this.#signal }));
    const chosen = options.find(({ value }) => value === answer);
    if (chosen === undefined) throw new BakeliteError("internal", "the terminal gave an answer that was not offered");
    return chosen.value;
  }

  /** `check` says what is wrong with an answer, or gives undefined. An empty answer is `proposed`, where there is one. */
  async ask(
    message: string,
    options: {
      readonly proposed?: string | undefined;
      readonly example?: string | undefined;
      readonly check?: (answer: string) => string | undefined;
    } = {},
  ): Promise<string> {
    const { proposed, example, check } = options;
    const answer = await text({
      message,
      ...(proposed === undefined ? {} : { initialValue: proposed }),
      ...(example === undefined ? {} : { placeholder: example }),
      validate: (value) => check?.((value ?? "").trim()),
      signal: this.#signal,
    });
    return (this.#answered(answer) ?? "").trim();
  }

  async askSecret(message: string): Promise<string> {
    const answer = await password({
      message,
      validate: (value) => {
        if ((value ?? "").trim() === "") return "it is needed here";
        return /\p{Cc}/u.test(value ?? "") ? "it must be one line" : undefined;
      },
      signal: this.#signal,
    });
    return this.#answered(answer).trim();
  }

  async agree(message: string, initialValue = true): Promise<boolean> {
    return this.#answered(await confirm({ message, initialValue, signal: this.#signal }));
  }

  show(title: string, body: string): void {
    note(printable(body.trimEnd(), "\n"), printable(title));
  }

  say(message: string): void {
    log.info(printable(message, "\n"));
  }

  warn(message: string): void {
    log.warn(printable(message, "\n"));
  }

  #answered<T>(answer: T | typeof CANCEL_SYMBOL): T {
    if (answer !== CANCEL_SYMBOL) return answer;
    if (this.#signal.aborted) throw this.#signal.reason;
    throw new BakeliteError("interrupted", "cancelled; nothing was changed");
  }
}
