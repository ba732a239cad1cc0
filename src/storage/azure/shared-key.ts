import { createHmac } from "node:crypto";

/**
 * The value of the Authorization header that signs a request with an account's key: `SharedKey <account>:<signature>`.
 * `headers` has everything that is sent but what `fetch` adds by itself, `x-ms-date` and `x-ms-version` among it.
 * Source: https://learn.microsoft.com/en-us/rest/api/storageservices/authorize-with-shared-key
 */
export function sharedKeyAuthorization(
  request: SignableRequest,
  { account, key }: { readonly account: string; readonly key: Uint8Array },
): string {
  const signature = createHmac("sha256", key).update(stringToSign(request, account), "utf8").digest("base64");
  return `SharedKey ${account}:${signature}`;
}

export interface SignableRequest {
  readonly method: string;
  readonly url: URL;
  readonly headers: Headers;
  /** Of the body; 0 without one. */
  readonly contentBytes: number;
}

/** In this order; Date stays empty because `x-ms-date` says it. */
const SIGNED_HEADERS = [
  "content-encoding",
  "content-language",
  "content-length",
  "content-md5",
  "content-type",
  "date",
  "if-modified-since",
  "if-match",
  "if-none-match",
  "if-unmodified-since",
  "range",
];

/** What is signed, since version 2015-02-21: an empty Content-Length for an empty body. */
export function stringToSign({ method, url, headers, contentBytes }: SignableRequest, account: string): string {
  const standard = SIGNED_HEADERS.map((name) =>
    name === "content-length" ? (contentBytes === 0 ? "" : String(contentBytes)) : (headers.get(name) ?? ""),
  );
  return [method, ...standard, ...canonicalHeaders(headers), canonicalResource(url, account)].join("\n");
}

/** By name and not by line: `x-ms-range` stands before `x-ms-range-get-content-md5`, though `:` sorts after `-`. */
function canonicalHeaders(headers: Headers): readonly string[] {
  return [...headers]
    .filter(([name]) => name.startsWith("x-ms-"))
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([name, value]) => `${name}:${value.replace(/\s+/g, " ").trim()}`);
}

/** The account, the path as it is sent (on an emulator it begins with the account once more), and the query, decoded. */
function canonicalResource(url: URL, account: string): string {
  const values = new Map<string, string[]>();
  for (const [name, value] of url.searchParams) {
    const lower = name.toLowerCase();
    values.set(lower, [...(values.get(lower) ?? []), value]);
  }
  const lines = [...values]
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([name, all]) => `${name}:${all.sort().join(",")}`);
  return [`/${account}${url.pathname}`, ...lines].join("\n");
}
