import type { DestinationNews } from "../config/assemble.ts";
import { printable } from "../util/printable.ts";
import type { TextOutput } from "../util/text-output.ts";

/**
 * Tells on standard error what destinations of a database find worth knowing and no failure: `note: app: the credentials may not delete, …`.
 * The same thing is told once, however many of them say it.
 */
export function noticesOf(database: string, stderr: TextOutput): DestinationNews {
  const told = new Set<string>();
  return {
    onNotice: ({ message, hint }) => {
      if (told.has(message)) return;
      told.add(message);
      stderr.write(`${printable(`note: ${database}: ${message}`)}\n  hint: ${printable(hint)}\n`);
    },
  };
}
