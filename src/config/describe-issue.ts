import type { z } from "zod";
import { didYouMean, nearestName } from "../util/suggest.ts";
import { backendTables } from "./backends.ts";
import { isTable, type KeyPath, keyName, type Problem, tableName, valueAt } from "./problems.ts";
import { validKeys } from "./schema.ts";

/** One issue that zod found in the part of `document` at `root`, in words for the author of the file. */
export function describeIssue(issue: z.core.$ZodIssue, root: KeyPath, document: unknown): readonly Problem[] {
  const path = [...root, ...issue.path.map((part) => (typeof part === "number" ? part : String(part)))];
  if (issue.code === "unrecognized_keys") {
    return issue.keys.map((key) => ({
      path: [...path, key],
      message: describeUnknownKey(key, path, document),
      isUnknownKey: true,
    }));
  }
  const found = valueAt(document, path);
  const table = path.slice(0, -1);
  if (found === undefined && path.length > 0) {
    return [{ path: table, message: `${title(table, document)} needs ${keyName(path)}, which ${issue.message}` }];
  }
  const suggestion = typeof found === "string" ? didYouMean(found, acceptedNames(issue)) : "";
  const subject = typeof path.at(-1) === "number" && isTable(found) ? title(path, document) : keyName(path);
  return [{ path, message: `${subject} ${issue.message}${suggestion}` }];
}

function acceptedNames(issue: z.core.$ZodIssue): readonly string[] {
  if (issue.code === "invalid_value") return issue.values.map(String);
  return issue.code === "invalid_union" ? Object.keys(backendTables) : [];
}

function describeUnknownKey(key: string, table: KeyPath, document: unknown): string {
  const keys = validKeys(document, table);
  const unknown = `unknown key ${keyName([key])} ${table.length === 0 ? "at the top level" : `in ${title(table, document)}`}`;
  if (nearestName(key, keys) !== undefined) return unknown + didYouMean(key, keys);
  const homes = [[], ["daemon"], ["defaults"], ["database", 0]].filter((home) =>
    validKeys(document, home).includes(key),
  );
  if (homes.length > 0) return `${unknown}; it belongs in ${homes.map(tableName).join(" or ")}`;
  return `${unknown}; accepted: ${keys.join(", ")}`;
}

/** The heading of a table, with the name of its database when it has one. */
function title(table: KeyPath, document: unknown): string {
  const name = table[0] === "database" ? valueAt(document, [...table.slice(0, 2), "name"]) : undefined;
  if (typeof name !== "string") return tableName(table);
  return `${tableName(table)}${table.length > 2 ? " of" : ""} \`${name}\``;
}
