/** A document from outside, to be checked by a schema; undefined for what is no JSON, which no schema here takes. */
export function parseJson(document: string | Uint8Array): unknown {
  try {
    return JSON.parse(typeof document === "string" ? document : new TextDecoder().decode(document));
  } catch {
    return undefined;
  }
}
