/** A place in the document: keys of tables and indices of arrays, from the root. */
export type KeyPath = readonly (string | number)[];

/** One thing that is wrong. `message` is a clause without a full stop; it names the key and holds no secret. */
export interface Problem {
  readonly path: KeyPath;
  readonly message: string;
  /** The key is at fault, whatever its value. */
  readonly isUnknownKey?: true;
}

/** The key as a reader of the file knows it: `debounce`, or `compaction_levels[1]` for an element of an array. */
export function keyName(path: KeyPath): string {
  const indices = path.slice(path.findLastIndex((part) => typeof part === "string") + 1);
  const key = path.at(-1 - indices.length) ?? "";
  return `\`${key}${indices.map((index) => `[${index}]`).join("")}\``;
}

/** The heading of the table that holds a key: `[defaults]`, `[[database]]`, or "the file" for the root. */
export function tableName(tablePath: KeyPath): string {
  const keys = tablePath.filter((part) => typeof part === "string").join(".");
  if (keys === "") return "the file";
  return tablePath.some((part) => typeof part === "number") && !keys.endsWith("encryption")
    ? `[[${keys}]]`
    : `[${keys}]`;
}

/** True for a TOML table; dates and arrays are none. */
export function isTable(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null && !Array.isArray(value) && !(value instanceof Date);
}

/** What stands at `path` in a parsed document, or undefined. */
export function valueAt(document: unknown, path: KeyPath): unknown {
  let value = document;
  for (const part of path) {
    if (typeof part === "number") value = Array.isArray(value) ? value[part] : undefined;
    else value = isTable(value) && Object.hasOwn(value, part) ? value[part] : undefined;
  }
  return value;
}
