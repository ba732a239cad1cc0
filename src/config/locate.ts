import type { KeyPath } from "./problems.ts";

/** A place in a text for people: both count from 1, the column in UTF-16 units. */
export interface TextPosition {
  readonly line: number;
  readonly column: number;
}

/** Deeper than any key that the schema knows. A dotted key of thousands of parts would cost their square. */
const MAX_DEPTH = 16;

/**
 * Finds where each key of a TOML document stands. The text must be one that a TOML parser accepted: nothing is checked
 * here. The answer gives the key of `path` itself, else of the nearest table around it that is written in the text (so
 * a missing key is reported at its table), else the start.
 */
export function locateKeys(toml: string): (path: KeyPath) => TextPosition {
  const offsets = new KeyScanner(toml).scan();
  return (path) => {
    for (let length = Math.min(path.length, MAX_DEPTH); length > 0; length--) {
      const offset = offsets.get(JSON.stringify(path.slice(0, length)));
      if (offset !== undefined) return positionAt(toml, offset);
    }
    return { line: 1, column: 1 };
  };
}

/** The line and column of a UTF-16 offset. */
export function positionAt(text: string, offset: number): TextPosition {
  const before = text.slice(0, offset);
  const lineStart = before.lastIndexOf("\n") + 1;
  return { line: before.split("\n").length, column: offset - lineStart + 1 };
}

/** One walk over the text, which remembers the first offset of every path it meets. */
class KeyScanner {
  readonly #toml: string;
  readonly #offsets = new Map<string, number>();
  /** How many `[[tables]]` each path has so far. */
  readonly #tableCounts = new Map<string, number>();
  #at = 0;

  constructor(toml: string) {
    this.#toml = toml;
  }

  /** Offsets by the JSON of their path. */
  scan(): ReadonlyMap<string, number> {
    let table: KeyPath = [];
    if (this.#toml.startsWith("\uFEFF")) this.#at++;
    for (this.#skipBlank(); this.#at < this.#toml.length; this.#skipBlank()) {
      if (this.#toml[this.#at] === "[") table = this.#scanHeader();
      else this.#scanPair(table);
    }
    return this.#offsets;
  }

  #scanHeader(): KeyPath {
    const start = this.#at;
    const isArray = this.#toml.startsWith("[[", start);
    this.#at += isArray ? 2 : 1;
    const keys = this.#scanKey("]").slice(0, MAX_DEPTH);
    this.#at += isArray ? 2 : 1;
    const path: (string | number)[] = [];
    for (const [i, key] of keys.entries()) {
      path.push(key);
      const written = JSON.stringify(path);
      const isLast = i === keys.length - 1;
      this.#remember(path, start);
      if (isLast && isArray) this.#tableCounts.set(written, (this.#tableCounts.get(written) ?? 0) + 1);
      const count = this.#tableCounts.get(written);
      if (count !== undefined) path.push(count - 1);
    }
    this.#remember(path, start);
    return path;
  }

  #scanPair(table: KeyPath): void {
    const start = this.#at;
    const path = [...table];
    for (const key of this.#scanKey("=")) {
      path.push(key);
      this.#remember(path, start);
    }
    this.#at++;
    this.#scanValue(path);
  }

  #scanValue(path: KeyPath): void {
    this.#skipBlank();
    switch (this.#toml[this.#at]) {
      case '"':
      case "'":
        this.#scanString();
        return;
      case "[":
        this.#scanItems("]", (index) => {
          this.#remember([...path, index], this.#at);
          this.#scanValue([...path, index]);
        });
        return;
      case "{":
        this.#scanItems("}", () => this.#scanPair(path));
        return;
      default:
        while (this.#at < this.#toml.length && !",]}#\r\n".includes(this.#here())) this.#at++;
    }
  }

  #scanItems(end: string, scanItem: (index: number) => void): void {
    this.#at++;
    for (let index = 0; this.#at < this.#toml.length; index++) {
      this.#skipBlank(",");
      if (this.#toml[this.#at] === end) break;
      const start = this.#at;
      scanItem(index);
      this.#moveOnFrom(start);
    }
    this.#at++;
  }

  /** The parts of a dotted key; stops at `end`. */
  #scanKey(end: string): string[] {
    const parts: string[] = [];
    for (this.#skipBlank("."); this.#at < this.#toml.length && this.#here() !== end; this.#skipBlank(".")) {
      const start = this.#at;
      if (this.#here() === '"' || this.#here() === "'") parts.push(this.#scanString());
      else {
        while (this.#at < this.#toml.length && /[A-Za-z0-9_-]/.test(this.#here())) this.#at++;
        parts.push(this.#toml.slice(start, this.#at));
      }
      this.#moveOnFrom(start);
    }
    return parts;
  }

  /** The content as it is written, without the work of escapes: only paths without any are asked for. */
  #scanString(): string {
    const quote = this.#here();
    const fence = this.#toml.startsWith(quote.repeat(3), this.#at) ? quote.repeat(3) : quote;
    const start = this.#at + fence.length;
    this.#at = start;
    while (this.#at < this.#toml.length && !this.#toml.startsWith(fence, this.#at)) {
      this.#at += quote === '"' && this.#here() === "\\" ? 2 : 1;
    }
    const content = this.#toml.slice(start, this.#at);
    this.#at += fence.length;
    // Up to two quotes may stand before the three that end the string.
    while (fence.length === 3 && this.#here() === quote) this.#at++;
    return content;
  }

  /** Skips white space, comments and the characters of `also`. */
  #skipBlank(also = ""): void {
    while (this.#at < this.#toml.length) {
      if (this.#here() === "#") while (this.#at < this.#toml.length && this.#here() !== "\n") this.#at++;
      else if (` \t\r\n${also}`.includes(this.#here())) this.#at++;
      else return;
    }
  }

  /** Steps over a character that nothing could be made of. Accepted text has none, but no text may keep us here. */
  #moveOnFrom(start: number): void {
    if (this.#at === start) this.#at++;
  }

  #here(): string {
    return this.#toml.charAt(this.#at);
  }

  #remember(path: KeyPath, offset: number): void {
    if (path.length > MAX_DEPTH) return;
    const written = JSON.stringify(path);
    if (!this.#offsets.has(written)) this.#offsets.set(written, offset);
  }
}
