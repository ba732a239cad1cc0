/**
 * The text with every control character but `keep` as an escape such as `\n` or `\u001b`. Names of objects and files
 * come from outside: they must not move a terminal's cursor or forge a log line.
 */
export function printable(text: string, keep = ""): string {
  return text.replace(/[\p{Cc}\u2028\u2029\u202a-\u202e\u2066-\u2069]/gu, (character) => {
    if (keep.includes(character)) return character;
    const code = character.charCodeAt(0);
    return NAMED.get(character) ?? `\\u${code.toString(16).padStart(4, "0")}`;
  });
}

const NAMED: ReadonlyMap<string, string> = new Map([
  ["\n", "\\n"],
  ["\r", "\\r"],
  ["\t", "\\t"],
]);
