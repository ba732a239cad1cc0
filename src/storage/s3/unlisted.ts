import { BakeliteError } from "../../util/errors.ts";
import type { CallOptions, NoncurrentVersions, UnfinishedUpload, UnlistedStorage } from "../backend.ts";
import { children, childText, type XmlNode } from "../http/xml.ts";
import { assertKeyPrefix } from "../object-key.ts";
import { decodeListedKey } from "./address.ts";
import type { S3Client } from "./client.ts";
import { malformedAnswer } from "./errors.ts";
import { sendAbort } from "./upload.ts";

/** What a server that has no such request, or does not let us, answers: it cannot tell. */
const CANNOT_TELL = [400, 403, 404, 405, 501];
const UPLOADS = { doing: "list the unfinished uploads", permission: "s3:ListBucketMultipartUploads" } as const;
const PARTS = { doing: "list the parts of an unfinished upload", permission: "s3:ListMultipartUploadParts" } as const;
const VERSIONS = { doing: "list the versions of objects", permission: "s3:ListBucketVersions" } as const;
/** 10,000 parts, 1,000 to a page, and some to spare for servers with smaller pages. */
const MAX_PART_PAGES = 100;

interface Page<T> {
  readonly items: readonly T[];
  /** Query parameters that continue; null at the end. */
  readonly next: Readonly<Record<string, string>> | null;
}

interface ListedUpload {
  /** The whole key. */
  readonly key: string;
  readonly uploadId: string;
  readonly startedMs: number;
}

interface ListedVersion {
  readonly key: string;
  readonly isLatest: boolean;
  readonly isDeleteMarker: boolean;
  readonly sizeBytes: number;
}

/** What a bucket holds below `keyPrefix` that no listing of objects shows. */
export function unlistedStorage(client: S3Client, keyPrefix: string): UnlistedStorage {
  return {
    async uploads(prefix, { signal }: CallOptions = {}) {
      assertKeyPrefix(prefix);
      const pages = pagesOf(client, {
        about: UPLOADS,
        rootName: "ListMultipartUploadsResult",
        query: { uploads: "", prefix: keyPrefix + prefix, "encoding-type": "url" },
        read: readUploads,
        signal,
      });
      const first = await pages.next();
      if (first.done === true) return null;
      return describeUploads(client, { keyPrefix, prefix: keyPrefix + prefix, first: first.value, pages, signal });
    },

    async abortUpload({ key, uploadId }, { signal }: CallOptions = {}) {
      if (client.place.liveUploads.has(uploadId)) return "live";
      await sendAbort(client, { key: keyPrefix + key, uploadId, signal });
      return "aborted";
    },

    async noncurrentVersions(prefix, { signal }: CallOptions = {}) {
      assertKeyPrefix(prefix);
      const pages = pagesOf(client, {
        about: VERSIONS,
        rootName: "ListVersionsResult",
        query: { versions: "", prefix: keyPrefix + prefix, "encoding-type": "url" },
        read: readVersions,
        signal,
      });
      let answered = false;
      const sum = { count: 0, sizeBytes: 0, deleteMarkerCount: 0 };
      for await (const page of pages) {
        answered = true;
        for (const version of page) {
          if (!version.key.startsWith(keyPrefix + prefix)) continue;
          if (version.isDeleteMarker) sum.deleteMarkerCount++;
          else if (!version.isLatest) {
            sum.count++;
            sum.sizeBytes += version.sizeBytes;
          }
        }
      }
      return answered ? (sum satisfies NoncurrentVersions) : null;
    },
  };
}

interface PagesOptions<T> {
  readonly about: { readonly doing: string; readonly permission: string };
  readonly rootName: string;
  readonly key?: string;
  readonly query: Readonly<Record<string, string>>;
  readonly read: (root: XmlNode) => Page<T>;
  readonly signal: AbortSignal | undefined;
}

/**
 * Page by page; none at all when the server cannot tell. One known server answers every such request with its list of
 * objects: that is not telling either, so another root element counts like a refusal on the first page.
 */
async function* pagesOf<T>(client: S3Client, options: PagesOptions<T>): AsyncGenerator<readonly T[], void> {
  const { about } = options;
  const seen = new Set<string>();
  let next: Readonly<Record<string, string>> | null = {};
  while (next !== null) {
    const isFirst = seen.size === 0;
    const position = JSON.stringify(next);
    if (seen.has(position)) throw malformedAnswer(client.about(about), "a page points to itself");
    seen.add(position);
    const page: Page<T> | "other" | null = await askForPage(client, options, next, isFirst);
    if (page === null || page === "other") return;
    yield page.items;
    next = page.next;
  }
}

async function askForPage<T>(
  client: S3Client,
  { about, key, query, rootName, read, signal }: PagesOptions<T>,
  next: Readonly<Record<string, string>>,
  isFirst: boolean,
): Promise<Page<T> | "other" | null> {
  const { value } = await client.sendForXml<Page<T> | "other">(
    {
      ...about,
      method: "GET",
      ...(key === undefined ? {} : { key }),
      query: { ...query, ...next },
      signal,
      accept: isFirst ? CANNOT_TELL : [],
    },
    isFirst ? [rootName, "ListBucketResult"] : [rootName],
    (root, _answer, found) => (found === rootName ? read(root) : "other"),
  );
  return value;
}

async function* describeUploads(
  client: S3Client,
  options: {
    readonly keyPrefix: string;
    readonly prefix: string;
    readonly first: readonly ListedUpload[];
    readonly pages: AsyncGenerator<readonly ListedUpload[], void>;
    readonly signal: AbortSignal | undefined;
  },
): AsyncGenerator<UnfinishedUpload, void> {
  const { keyPrefix, prefix, pages, signal } = options;
  for (let page: readonly ListedUpload[] | undefined = options.first; page !== undefined; ) {
    for (const upload of page) {
      // Some servers ignore the prefix.
      if (!upload.key.startsWith(prefix)) continue;
      const parts = await sumParts(client, upload, signal);
      // Completed or aborted since it was listed.
      if (parts === null) continue;
      const newestPartMs = Math.max(upload.startedMs, parts.newestMs);
      yield {
        key: upload.key.slice(keyPrefix.length),
        uploadId: upload.uploadId,
        startedMs: upload.startedMs,
        newestPartMs,
        ageMs: Math.max(0, parts.serverNowMs - newestPartMs),
        sizeBytes: parts.sizeBytes,
      };
    }
    const next = await pages.next();
    page = next.done === true ? undefined : next.value;
  }
}

/** null: there is no such upload any more. */
async function sumParts(
  client: S3Client,
  { key, uploadId }: ListedUpload,
  signal: AbortSignal | undefined,
): Promise<{ readonly newestMs: number; readonly sizeBytes: number; readonly serverNowMs: number } | null> {
  let newestMs = 0;
  let sizeBytes = 0;
  let marker = "0";
  for (let pageCount = 0; pageCount < MAX_PART_PAGES; pageCount++) {
    const { value } = await client.sendForXml(
      {
        ...PARTS,
        method: "GET",
        key,
        query: { uploadId, ...(marker === "0" ? {} : { "part-number-marker": marker }) },
        signal,
        accept: [404],
      },
      ["ListPartsResult"],
      (root, { headers }) => ({ ...readParts(root), serverNowMs: Date.parse(headers.get("date") ?? "") }),
    );
    if (value === null) return null;
    newestMs = Math.max(newestMs, value.newestMs);
    sizeBytes += value.sizeBytes;
    // Ours where the server does not say: without a date an upload must not look old because a clock is wrong.
    const serverNowMs = Number.isNaN(value.serverNowMs) ? client.nowMs() : value.serverNowMs;
    if (value.next === null) return { newestMs, sizeBytes, serverNowMs };
    if (Number(value.next) <= Number(marker)) break;
    marker = value.next;
  }
  throw new BakeliteError(
    "storage-unreachable",
    "cannot list the parts of an unfinished upload: there is no end of them",
    {
      subject: client.about({ ...PARTS, key }).subject,
      hint: "the server is not compatible; abort the upload with another tool",
    },
  );
}

function readUploads(root: XmlNode): Page<ListedUpload> {
  const decode = decoderOf(root);
  const items = children(root, "Upload").map((item) => ({
    key: decode(required(item, "Key")),
    uploadId: required(item, "UploadId"),
    startedMs: timeOf(item, "Initiated"),
  }));
  if (!isTruncated(root)) return { items, next: null };
  return {
    items,
    next: {
      "key-marker": decode(required(root, "NextKeyMarker")),
      "upload-id-marker": childText(root, "NextUploadIdMarker") ?? "",
    },
  };
}

function readParts(root: XmlNode): {
  readonly newestMs: number;
  readonly sizeBytes: number;
  readonly next: string | null;
} {
  let newestMs = 0;
  let sizeBytes = 0;
  for (const part of children(root, "Part")) {
    newestMs = Math.max(newestMs, timeOf(part, "LastModified"));
    sizeBytes += sizeOf(part);
  }
  return { newestMs, sizeBytes, next: isTruncated(root) ? required(root, "NextPartNumberMarker") : null };
}

function readVersions(root: XmlNode): Page<ListedVersion> {
  const decode = decoderOf(root);
  const readOne = (item: XmlNode, isDeleteMarker: boolean): ListedVersion => ({
    key: decode(required(item, "Key")),
    isLatest: childText(item, "IsLatest") === "true",
    isDeleteMarker,
    sizeBytes: isDeleteMarker ? 0 : sizeOf(item),
  });
  const items = [
    ...children(root, "Version").map((item) => readOne(item, false)),
    ...children(root, "DeleteMarker").map((item) => readOne(item, true)),
  ];
  if (!isTruncated(root)) return { items, next: null };
  return {
    items,
    next: {
      "key-marker": decode(required(root, "NextKeyMarker")),
      "version-id-marker": childText(root, "NextVersionIdMarker") ?? "",
    },
  };
}

function decoderOf(root: XmlNode): (key: string) => string {
  return childText(root, "EncodingType") === "url" ? decodeListedKey : (key) => key;
}

function isTruncated(root: XmlNode): boolean {
  return childText(root, "IsTruncated") === "true";
}

function required(node: XmlNode, name: string): string {
  const text = childText(node, name);
  if (text === undefined) throw new Error(`there is no <${name}>`);
  return text;
}

function timeOf(node: XmlNode, name: string): number {
  const ms = Date.parse(required(node, name));
  if (Number.isNaN(ms)) throw new Error(`<${name}> is not a time`);
  return ms;
}

function sizeOf(node: XmlNode): number {
  const text = required(node, "Size");
  if (!/^\d{1,15}$/.test(text)) throw new Error("<Size> is not a size");
  return Number(text);
}
