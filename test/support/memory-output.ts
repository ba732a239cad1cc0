import type { TextOutput } from "../../src/util/text-output.ts";

/** An output that remembers what was written. */
export class MemoryOutput implements TextOutput {
  text = "";
  readonly isTerminal: boolean;
  readonly columns: number;

  constructor({ isTerminal = false, columns = 80 }: { isTerminal?: boolean; columns?: number } = {}) {
    this.isTerminal = isTerminal;
    this.columns = columns;
  }

  write(text: string): void {
    this.text += text;
  }
}
