import type { Server } from "bun";
import { type Fields, invalid, knownParameters, notFound, OBJECT_FIELDS, Refused, selected } from "./answers.ts";
import { Bucket, type BucketSettings, type Stored } from "./bucket.ts";
import { crc32cBase64 } from "./crc32c.ts";
import { Sessions } from "./sessions.ts";
import { type Identity, TokenServer } from "./tokens.ts";

/** A request as it came, and what it was answered. */
export interface SeenRequest {
  readonly method: string;
  readonly path: string;
  readonly headers: Headers;
  status: number;
}

interface Script {
  readonly selects: (request: Request, url: URL) => boolean;
  readonly answer: () => Response;
  left: number;
}

const BUCKET_FIELDS = ["location", "storageClass", "versioning", "retentionPolicy", "softDeletePolicy"].concat(
  ...["name", "defaultEventBasedHold", "objectRetention"],
);
const UPLOAD_PARAMETERS = ["uploadType", "fields", "ifGenerationMatch", "name", "predefinedAcl"];

/**
 * A stand-in for Google Cloud Storage that keeps the rules of the JSON API that Google documents, and refuses what they do not allow: real
 * logins (JWT signatures are verified), expiry, permissions, generations as conditions, the protocol of resumable uploads,
 * CRC-32C, paging, retention, holds. It is ours, so it proves that we keep to the rules as we read them, not that Google does.
 */
export class GcsStub implements AsyncDisposable {
  readonly name = "a stand-in for Google Cloud Storage";
  readonly tokens = new TokenServer();
  readonly sessions = new Sessions();
  readonly requests: SeenRequest[] = [];
  /** No page of a listing is longer; Google too may give fewer than asked for, and none at all. */
  maxPageLength = 1000;
  /** Answers to a listing begin with an empty page. */
  hasEmptyPages = false;
  /** Bytes are served with one bit changed. */
  isServingDamaged = false;
  readonly #server: Server<undefined>;
  readonly #buckets = new Map<string, Bucket>();
  readonly #scripts: Script[] = [];

  private constructor() {
    this.#server = Bun.serve({
      hostname: "127.0.0.1",
      port: 0,
      idleTimeout: 255,
      maxRequestBodySize: 1 << 30,
      fetch: (request) => this.#serve(request),
    });
    this.tokens.begin(this.url);
  }

  static start(): GcsStub {
    return new GcsStub();
  }

  get port(): number {
    return this.#server.port ?? 0;
  }

  get url(): string {
    return `http://127.0.0.1:${this.port}`;
  }

  createBucket(name: string, settings: Partial<BucketSettings> = {}): Bucket {
    const bucket = new Bucket(name, settings);
    this.#buckets.set(name, bucket);
    return bucket;
  }

  bucket(name: string): Bucket {
    const bucket = this.#buckets.get(name);
    if (bucket === undefined) throw notFound("The specified bucket does not exist.");
    return bucket;
  }

  /** The next requests that are selected are answered so, and nothing else happens. */
  answerNext(answer: () => Response, selects: Script["selects"] = () => true, times = 1): void {
    this.#scripts.push({ answer, selects, left: times });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#server.stop(true);
  }

  async #serve(request: Request): Promise<Response> {
    const url = new URL(request.url);
    const seen: SeenRequest = {
      method: request.method,
      path: url.pathname + url.search,
      headers: request.headers,
      status: 0,
    };
    this.requests.push(seen);
    const answer = await this.#answer(request, url);
    seen.status = answer.status;
    return answer;
  }

  async #answer(request: Request, url: URL): Promise<Response> {
    const script = this.#scripts.find(({ left, selects }) => left > 0 && selects(request, url));
    if (script !== undefined) {
      script.left--;
      await request.arrayBuffer().catch(() => {});
      return script.answer();
    }
    try {
      if (url.pathname.startsWith("/auth/")) return await this.tokens.answer(request, url);
      if (url.pathname.startsWith("/computeMetadata/v1/")) return this.tokens.metadata(request);
      const session = url.searchParams.get("upload_id");
      if (session !== null) return await this.sessions.answer(session, request);
      const who = this.tokens.whoHas(request.headers.get("authorization"));
      if (who === null) throw new Refused(401, "authError", "Invalid Credentials");
      return await this.#route(request, url, who);
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      // Where bytes are asked for, Google answers with a line of text.
      if (url.searchParams.get("alt") === "media" && error.status === 404)
        return new Response(error.message, { status: 404, headers: { "content-type": "text/html; charset=UTF-8" } });
      return error.answer;
    }
  }

  async #route(request: Request, url: URL, who: Identity): Promise<Response> {
    const { method } = request;
    const match = /^(\/upload)?\/storage\/v1\/b\/([^/]+)(\/o|\/iam\/testPermissions)?(?:\/([^/]+))?$/.exec(
      url.pathname,
    );
    if (match === null) throw notFound("Not Found");
    const [, upload, bucketName = "", kind, key] = match;
    const bucket = this.bucket(decodeURIComponent(bucketName));
    const may = (permission: string) => {
      if (who.lacks.has(permission))
        throw new Refused(
          403,
          "forbidden",
          `${who.email} does not have ${permission} access to the Google Cloud Storage object. Permission '${permission}' denied on resource (or it may not exist).`,
        );
    };
    if (upload !== undefined && method === "POST") return await this.#upload(request, url, { bucket, may });
    if (kind === "/iam/testPermissions") {
      const asked = url.searchParams.getAll("permissions");
      return Response.json({ permissions: asked.filter((permission) => !who.lacks.has(permission)) });
    }
    if (kind === undefined) {
      may("storage.buckets.get");
      return Response.json(selected(bucket.resource, url.searchParams.get("fields"), BUCKET_FIELDS));
    }
    if (key === undefined) {
      may("storage.objects.list");
      return Response.json(this.#list(bucket, url));
    }
    const name = decodeURIComponent(key);
    bucket.checkName(name);
    may(method === "DELETE" ? "storage.objects.delete" : "storage.objects.get");
    const stored = bucket.get(name);
    if (stored === undefined) throw notFound(`No such object: ${bucket.name}/${name}`);
    bucket.checkGeneration(name, url.searchParams.get("ifGenerationMatch"));
    if (method === "DELETE") {
      knownParameters(url, ["ifGenerationMatch"]);
      bucket.delete(stored);
      return new Response(null, { status: 204 });
    }
    if (method !== "GET") throw new Refused(405, "methodNotAllowed", "Method Not Allowed");
    knownParameters(url, ["fields", "ifGenerationMatch"]);
    if (url.searchParams.get("alt") === "media") return this.#media(request, stored);
    return Response.json(selected(bucket.resourceOf(stored), url.searchParams.get("fields"), OBJECT_FIELDS));
  }

  async #upload(
    request: Request,
    url: URL,
    { bucket, may }: { readonly bucket: Bucket; readonly may: (permission: string) => void },
  ): Promise<Response> {
    knownParameters(url, UPLOAD_PARAMETERS);
    may("storage.objects.create");
    const fields = url.searchParams.get("fields");
    const ifGenerationMatch = url.searchParams.get("ifGenerationMatch");
    const checked = (description: Fields) => {
      const { name, contentType, storageClass } = description;
      if (typeof name !== "string") throw invalid("Required");
      bucket.checkName(name);
      const kind = typeof storageClass === "string" ? storageClass : undefined;
      bucket.checkStorageClass(kind);
      if (bucket.get(name) !== undefined && ifGenerationMatch === null) may("storage.objects.delete");
      bucket.checkGeneration(name, ifGenerationMatch);
      return { name, storageClass: kind, contentType: String(contentType) };
    };
    switch (url.searchParams.get("uploadType")) {
      case "multipart": {
        const { description, bytes } = parseRelated(request.headers, Buffer.from(await request.arrayBuffer()));
        const { name, ...rest } = checked(description);
        const crc = description["crc32c"];
        if (crc !== undefined && crc !== crc32cBase64(bytes))
          throw invalid(`Provided CRC32C "${String(crc)}" doesn't match calculated CRC32C "${crc32cBase64(bytes)}".`);
        // Somebody else may have come while the bytes did.
        bucket.checkGeneration(name, ifGenerationMatch);
        const stored = bucket.put(name, bytes, rest);
        return Response.json(selected(bucket.resourceOf(stored), fields, OBJECT_FIELDS));
      }
      case "resumable": {
        const id = this.sessions.start({ bucket, ifGenerationMatch, ...checked((await request.json()) as Fields) });
        const location = `${url.origin}${url.pathname}?uploadType=resumable&upload_id=${id}`;
        return new Response(null, { status: 200, headers: { location, "x-guploader-uploadid": id } });
      }
      default:
        throw invalid("Invalid value for uploadType");
    }
  }

  #list(bucket: Bucket, url: URL): Fields {
    const parameters = ["prefix", "maxResults", "pageToken", "startOffset", "fields", "versions", "softDeleted"];
    knownParameters(url, [...parameters, "delimiter"]);
    const value = (name: string) => url.searchParams.get(name);
    const isSoft = value("softDeleted") === "true";
    if (isSoft && bucket.settings.softDeleteSeconds === 0) throw invalid("Soft delete policy is required.");
    const all = isSoft
      ? bucket.former
      : value("versions") === "true"
        ? [...bucket.list(), ...bucket.former]
        : bucket.list();
    const prefix = value("prefix") ?? "";
    const order = (a: string, b: string) => Buffer.compare(Buffer.from(a), Buffer.from(b));
    const startOffset = value("startOffset") ?? "";
    const found = all.filter(({ name }) => name.startsWith(prefix) && order(name, startOffset) >= 0);
    const token = value("pageToken");
    if (token === null && this.hasEmptyPages) return { nextPageToken: Buffer.from("0").toString("base64url") };
    const start = token === null ? 0 : Number(Buffer.from(token, "base64url").toString());
    const asked = Number(value("maxResults") ?? "1000");
    if (!Number.isInteger(asked) || asked < 1 || Number.isNaN(start)) throw invalid("Invalid value for maxResults");
    const end = start + Math.min(asked, this.maxPageLength, 1000);
    const delimiter = value("delimiter");
    // What stands for the names that have a delimiter after the prefix; null for the others.
    const folderOf = ({ name }: Stored): string | null => {
      const at = delimiter === null ? -1 : name.indexOf(delimiter, prefix.length);
      return at === -1 ? null : name.slice(0, at + 1);
    };
    const shown = found.slice(start, end);
    const items = shown.filter((each) => folderOf(each) === null);
    const prefixes = [...new Set(shown.map(folderOf).filter((folder) => folder !== null))];
    const page = {
      kind: "storage#objects",
      ...(items.length > 0 ? { items: items.map((each) => bucket.resourceOf(each)) } : {}),
      ...(prefixes.length > 0 ? { prefixes } : {}),
      ...(found.length > end ? { nextPageToken: Buffer.from(String(end)).toString("base64url") } : {}),
    };
    return selected(page, value("fields"), ["items", "prefixes", "nextPageToken", "kind"]);
  }

  #media(request: Request, stored: Stored): Response {
    const size = stored.bytes.byteLength;
    const headers = new Headers({
      "content-type": stored.contentType,
      "x-goog-generation": String(stored.generation),
      "x-goog-hash": `crc32c=${stored.crc32c},md5=${stored.md5}`,
      "x-goog-stored-content-length": String(size),
    });
    const [, first, last, suffix] = /^bytes=(?:(\d+)-(\d*)|-(\d+))$/.exec(request.headers.get("range") ?? "") ?? [];
    const hasRange = request.headers.has("range");
    const start = suffix === undefined ? Number(first ?? 0) : Math.max(0, size - Number(suffix));
    const end = last === undefined || last === "" ? size : Math.min(size, Number(last) + 1);
    if (hasRange && start >= end) {
      headers.set("content-range", `bytes */${size}`);
      return new Response("Requested range not satisfiable", { status: 416, headers });
    }
    const bytes = Buffer.from(stored.bytes.subarray(start, end));
    if (this.isServingDamaged) bytes[0] = (bytes[0] ?? 0) ^ 1;
    if (hasRange) headers.set("content-range", `bytes ${start}-${end - 1}/${size}`);
    return new Response(bytes, { status: hasRange ? 206 : 200, headers });
  }
}

/** Source: RFC 2387; https://cloud.google.com/storage/docs/uploading-objects (multipart upload of the JSON API). */
function parseRelated(headers: Headers, body: Buffer): { readonly description: Fields; readonly bytes: Buffer } {
  const boundary = /^multipart\/related; boundary=([^;]+)$/.exec(headers.get("content-type") ?? "")?.[1];
  if (boundary === undefined) throw invalid("Media type is not supported.");
  const parts: Buffer[] = [];
  const mark = Buffer.from(`--${boundary}`);
  let at = body.indexOf(mark);
  for (;;) {
    const next = body.indexOf(Buffer.concat([Buffer.from("\r\n"), mark]), at + mark.length);
    if (next === -1) break;
    parts.push(body.subarray(at + mark.length + 2, next));
    at = next + 2;
  }
  if (
    parts.length !== 2 ||
    !body
      .subarray(at + mark.length)
      .toString()
      .startsWith("--")
  )
    throw invalid(`Malformed multipart body: ${parts.length} parts`);
  // A part without headers begins with the empty line.
  const contents = parts.map((part) => part.subarray(part.indexOf("\r\n") === 0 ? 2 : part.indexOf("\r\n\r\n") + 4));
  const [description, bytes] = contents;
  if (description === undefined || bytes === undefined) throw invalid("Malformed multipart body.");
  return { description: JSON.parse(description.toString("utf8")) as Fields, bytes: Buffer.from(bytes) };
}
