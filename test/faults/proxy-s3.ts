import { encodeAnswer } from "./proxy-wire.ts";

/** What a request of S3 is for, as its method and query tell. `other` is what needs neither an object nor a listing. */
export type S3Operation =
  | "put"
  | "get"
  | "head"
  | "delete"
  | "list"
  | "delete-many"
  | "begin-upload"
  | "upload-part"
  | "complete-upload"
  | "abort-upload"
  | "list-uploads"
  | "list-parts"
  | "list-versions"
  | "other";

export interface S3Request {
  readonly operation: S3Operation;
  readonly method: string;
  /** Of the URL, still percent-encoded. */
  readonly path: string;
  /** The object's key, or "" when the request is about a bucket. Buckets are in the path. */
  readonly key: string;
}

/** Reads a request line: `PUT /bucket/key?partNumber=1&uploadId=x HTTP/1.1`. */
export function parseS3Request(firstLine: string): S3Request {
  const [method = "", target = "/"] = firstLine.split(" ");
  const [path = "/", query = ""] = target.split("?", 2);
  const key = decodeURIComponent(path.split("/").slice(2).join("/"));
  return { method, path, key, operation: operationOf(method, key, new URLSearchParams(query)) };
}

function operationOf(method: string, key: string, query: URLSearchParams): S3Operation {
  if (key === "") {
    if (method === "POST" && query.has("delete")) return "delete-many";
    if (method !== "GET") return "other";
    if (query.has("uploads")) return "list-uploads";
    if (query.has("versions")) return "list-versions";
    return query.has("list-type") ? "list" : "other";
  }
  switch (method) {
    case "PUT":
      return query.has("uploadId") ? "upload-part" : "put";
    case "GET":
      return query.has("uploadId") ? "list-parts" : "get";
    case "HEAD":
      return "head";
    case "DELETE":
      return query.has("uploadId") ? "abort-upload" : "delete";
    case "POST":
      return query.has("uploads") ? "begin-upload" : "complete-upload";
    default:
      return "other";
  }
}

/** What S3 says when it has too much to do, or is broken. Source: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html */
export function errorAnswer(status: 429 | 500 | 503, method: string): Buffer {
  const code = { 429: "TooManyRequests", 500: "InternalError", 503: "SlowDown" }[status];
  const body = `<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>${code}</Code><Message>Injected by the fault proxy.</Message><RequestId>INJECTED</RequestId></Error>`;
  const answer = encodeAnswer(status, body, { "Content-Type": "application/xml" });
  // The answer to HEAD is a head, whatever length it names.
  return method === "HEAD" ? answer.subarray(0, answer.length - Buffer.byteLength(body)) : answer;
}

/** The answer to a deletion that did not happen. */
export function lyingDeleteAnswer(operation: S3Operation, body: Buffer): Buffer {
  if (operation !== "delete-many") return encodeAnswer(204, "");
  const keys = [...body.toString("utf8").matchAll(/<Key>([\s\S]*?)<\/Key>/g)].map((match) => match[1] ?? "");
  const isQuiet = /<Quiet>\s*true\s*<\/Quiet>/.test(body.toString("utf8"));
  const deleted = isQuiet ? "" : keys.map((key) => `<Deleted><Key>${key}</Key></Deleted>`).join("");
  return encodeAnswer(
    200,
    `<?xml version="1.0" encoding="UTF-8"?>\n<DeleteResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">${deleted}</DeleteResult>`,
    { "Content-Type": "application/xml" },
  );
}

/** The listing without these keys, as a server gives it that has not heard of them yet. */
export function listingWithout(xml: string, hidden: ReadonlySet<string>): string {
  const isEncoded = /<EncodingType>url<\/EncodingType>/.test(xml);
  let removed = 0;
  const shorter = xml.replace(/<Contents>[\s\S]*?<\/Contents>/g, (item) => {
    const written = unescapeXml(/<Key>([\s\S]*?)<\/Key>/.exec(item)?.[1] ?? "");
    if (!hidden.has(isEncoded ? decodeURIComponent(written.replaceAll("+", " ")) : written)) return item;
    removed++;
    return "";
  });
  return shorter.replace(
    /<KeyCount>(\d+)<\/KeyCount>/,
    (_, count) => `<KeyCount>${Number(count) - removed}</KeyCount>`,
  );
}

function unescapeXml(text: string): string {
  const entities: Readonly<Record<string, string>> = { lt: "<", gt: ">", quot: '"', apos: "'", amp: "&" };
  return text.replace(/&(lt|gt|quot|apos|amp);/g, (whole, entity: string) => entities[entity] ?? whole);
}
