/** Where text for people or pipes goes: standard output, standard error, or a test. */
export interface TextOutput {
  write(text: string): void;
  /**
   * Resolves when what was written before no longer stands in memory, for whoever writes very much; never rejects. Not there: nothing
   * does.
   */
  drained?(): Promise<void>;
  /** A person is watching: progress, colour and tables as wide as the screen make sense. */
  readonly isTerminal: boolean;
  /** Columns of the terminal now; 80 when it is none. */
  readonly columns: number;
}

/** True when colour may be used: on a terminal, unless it is a dumb one or `NO_COLOR` is anything but the empty string. */
export function mayColour(output: TextOutput, env: Readonly<Record<string, string | undefined>>): boolean {
  return output.isTerminal && (env["NO_COLOR"] ?? "") === "" && env["TERM"] !== "dumb";
}
