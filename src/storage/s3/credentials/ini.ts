import { BakeliteError } from "../../../util/errors.ts";

/** Property names in lower case. A Map, since names come from outside: `__proto__` is a name like any other. */
export type IniSection = ReadonlyMap<string, string>;
export type IniFile = ReadonlyMap<string, IniSection>;

/** Indented lines below a property belong to it: they continue its value, or are settings nested in it. */
interface OpenProperty {
  readonly name: string;
  readonly indentCount: number;
  readonly isNested: boolean;
}

/**
 * Parses a file of the form that AWS's tools share: `[section]` lines, `name = value` lines, and comments, which begin
 * with `#` or `;` at the start of a line or after white space. Names of properties are lower-cased; values are taken as
 * they stand, quotes included. Of two equal names in a section the later wins, and sections of one name are one section.
 * A line that is indented deeper than the property above it continues that one's value after a line feed; below a property
 * without a value (`s3 =`) it is a nested setting and passed over. Lines end in LF, CRLF or CR; a byte order mark is ignored.
 *
 * Throws `storage-denied` with `path` and the number of the line that has no such form. The message never repeats what
 * stands in the file: it is full of secrets.
 * Source: AWS SDKs and Tools Reference Guide, "Shared config and credentials files", format of the config file.
 */
export function parseIni(text: string, path: string): IniFile {
  const sections = new Map<string, Map<string, string>>();
  let section: Map<string, string> | undefined;
  let open: OpenProperty | undefined;
  for (const [i, raw] of text
    .replace(/^\uFEFF/, "")
    .split(/\r\n|\r|\n/)
    .entries()) {
    const line = withoutComment(raw).trimEnd();
    const content = line.trimStart();
    if (content === "") continue;
    const indentCount = line.length - content.length;
    if (content.startsWith("[")) {
      const name = sectionName(content);
      if (name === null) throw malformed(path, i + 1, "a `[` without its `]`, or nothing between them");
      section = sections.get(name) ?? new Map();
      sections.set(name, section);
      open = undefined;
      continue;
    }
    if (section === undefined) throw malformed(path, i + 1, "text before the first `[section]`");
    if (open !== undefined && indentCount > open.indentCount) {
      if (!open.isNested) section.set(open.name, `${section.get(open.name) ?? ""}\n${content}`);
      continue;
    }
    const equals = content.indexOf("=");
    const name = content.slice(0, Math.max(0, equals)).trim().toLowerCase();
    if (name === "") throw malformed(path, i + 1, "no `name = value`");
    const value = content.slice(equals + 1).trim();
    section.set(name, value);
    open = { name, indentCount, isNested: value === "" };
  }
  return sections;
}

/** The text up to a `#` or `;` that stands first or after white space. */
function withoutComment(line: string): string {
  const start = line.search(/(?:^|\s)[#;]/);
  return start === -1 ? line : line.slice(0, start);
}

function sectionName(content: string): string | null {
  const end = content.indexOf("]");
  const name = end === -1 ? "" : content.slice(1, end).trim();
  return name === "" ? null : name;
}

function malformed(path: string, lineNumber: number, what: string): BakeliteError {
  return new BakeliteError("storage-denied", `AWS's shared file cannot be read: line ${lineNumber} has ${what}`, {
    subject: `${path} line ${lineNumber}`,
    hint: "correct that line; the file holds lines of the form `name = value` below `[section]` lines",
  });
}
