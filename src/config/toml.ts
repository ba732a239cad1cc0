import { parse, TomlError } from "smol-toml";
import type { TextPosition } from "./locate.ts";

export type TomlDocument =
  | { readonly kind: "document"; readonly document: unknown }
  | { readonly kind: "broken"; readonly at: TextPosition; readonly reason: string };

/**
 * The document as smol-toml gives it. `__proto__` and `constructor` are refused as keys. `reason` never quotes the text, which may
 * hold a secret there.
 */
export function parseToml(text: string): TomlDocument {
  try {
    return { kind: "document", document: parse(text, { unsafeKeyBehaviour: "throw", maxDepth: 32 }) };
  } catch (error) {
    if (!(error instanceof TomlError)) throw error;
    const [firstLine = ""] = error.message.split("\n", 1);
    const reason = firstLine.replace(/^Invalid TOML document: /, "");
    return { kind: "broken", at: { line: error.line, column: error.column }, reason };
  }
}
