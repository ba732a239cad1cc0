import { isTable, type KeyPath, keyName, type Problem } from "./problems.ts";

/** The environment, as plain data. */
export type Environment = Readonly<Record<string, string | undefined>>;

/** Deeper than any key we know; what lies below is unknown to the schema and left alone. */
const MAX_DEPTH = 16;

/**
 * Replaces each `${NAME}` by that variable of `env`, and each `$${` by a literal `${`. What is put in is not looked at
 * again. A variable that is not set, or a `${` that names none, stays as it was written and `complain` is told why.
 */
export function interpolate(text: string, env: Environment, complain: (message: string) => void): string {
  return text.replace(/\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)\}|\$\{/g, (written, name: string | undefined) => {
    if (written === "$${") return "${";
    if (name === undefined) {
      complain("holds a `${` that is not `${NAME}`; write `$${` for a literal `${`");
      return written;
    }
    // Only own properties: ${constructor} is not the name of a variable.
    const value = Object.hasOwn(env, name) ? env[name] : undefined;
    if (value === undefined) complain(`needs the environment variable \`${name}\`, which is not set`);
    return value ?? written;
  });
}

/** A copy of a parsed document with every string value in it interpolated; keys are left alone. */
export function interpolateDocument(
  document: unknown,
  env: Environment,
): { readonly document: unknown; readonly problems: readonly Problem[] } {
  const problems: Problem[] = [];
  const visit = (value: unknown, path: KeyPath): unknown => {
    if (typeof value === "string") {
      return interpolate(value, env, (message) => problems.push({ path, message: `${keyName(path)} ${message}` }));
    }
    if (path.length >= MAX_DEPTH) return value;
    if (Array.isArray(value)) return value.map((element, i) => visit(element, [...path, i]));
    if (!isTable(value)) return value;
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, visit(inner, [...path, key])]));
  };
  return { document: visit(document, []), problems };
}
