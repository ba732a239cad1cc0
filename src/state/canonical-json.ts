import { createHash } from "node:crypto";

/**
 * SHA-256 (64 hex digits) over a JSON value in one canonical text: no white space, the members of every object ascending by
 * key, numbers and strings as `JSON.stringify` writes them. Equal values give equal checksums, however they were laid out.
 */
export function canonicalChecksum(value: unknown): string {
  return createHash("sha256").update(canonicalText(value)).digest("hex");
}

function canonicalText(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonicalText).join(",")}]`;
  if (typeof value !== "object" || value === null) return JSON.stringify(value);
  const members = Object.entries(value)
    .filter(([, member]) => member !== undefined)
    .toSorted(([a], [b]) => (a < b ? -1 : 1));
  return `{${members.map(([key, member]) => `${JSON.stringify(key)}:${canonicalText(member)}`).join(",")}}`;
}
