import type { NoncurrentVersions, StoredObject } from "../backend.ts";
import { child, children, childText, type XmlNode } from "../http/xml.ts";
import { compareKeys } from "../object-key.ts";
import type { AzureClient } from "./client.ts";
import { malformedAnswer } from "./errors.ts";

export const LISTING = {
  doing: "list the objects",
  permission: "the role Storage Blob Data Reader, or `l` in a signature,",
} as const;
const VERSIONS = { ...LISTING, doing: "list the versions of objects" } as const;
/** What an account without versions, or credentials that may not look, are answered. */
const CANNOT_TELL = [400, 403, 409, 501];

interface Page<T> {
  readonly items: readonly T[];
  /** Where the next page begins; null at the end. */
  readonly marker: string | null;
}

/**
 * All blobs whose names begin with `prefix`, ascending, page by page (5,000 to a page); Azure may give an empty page in the middle. Throws
 * rather than end early or go round. Names are whole.
 * Source: https://learn.microsoft.com/en-us/rest/api/storageservices/list-blobs
 */
export async function* listBlobs(
  client: AzureClient,
  { prefix, signal }: { readonly prefix: string; readonly signal: AbortSignal | undefined },
): AsyncGenerator<readonly StoredObject[], void> {
  const seen = new Set<string>();
  let last = "";
  for (let marker: string | null = ""; marker !== null; ) {
    const { value }: { readonly value: Page<StoredObject> | null } = await client.sendForXml<Page<StoredObject>>(
      { ...LISTING, method: "GET", query: queryOf(prefix, marker), signal },
      "EnumerationResults",
      (root) => readPage(root, (blobs) => readObjects(blobs, prefix, last)),
    );
    if (value === null) throw malformedAnswer(client.about(LISTING), "no listing");
    last = value.items.at(-1)?.key ?? last;
    yield value.items;
    marker = value.marker;
    if (marker !== null && seen.has(marker)) throw malformedAnswer(client.about(LISTING), "a marker came twice");
    if (marker !== null) seen.add(marker);
  }
}

/** What was replaced or deleted and is still kept, by versioning or by soft delete; null where that cannot be told. */
export async function noncurrentVersions(
  client: AzureClient,
  { prefix, signal }: { readonly prefix: string; readonly signal: AbortSignal | undefined },
): Promise<NoncurrentVersions | null> {
  let count = 0;
  let sizeBytes = 0;
  const seen = new Set<string>();
  for (let marker: string | null = ""; marker !== null; ) {
    const include = { include: "versions,deleted" };
    const { value }: { readonly value: Page<number> | null } = await client.sendForXml<Page<number>>(
      {
        ...VERSIONS,
        method: "GET",
        query: { ...queryOf(prefix, marker), ...include },
        signal,
        accept: marker === "" ? CANNOT_TELL : [],
      },
      "EnumerationResults",
      (root) => readPage(root, readNoncurrent),
    );
    if (value === null) return null;
    count += value.items.length;
    sizeBytes += value.items.reduce((sum, bytes) => sum + bytes, 0);
    marker = value.marker;
    if (marker !== null && seen.has(marker)) throw malformedAnswer(client.about(VERSIONS), "a marker came twice");
    if (marker !== null) seen.add(marker);
  }
  return { count, sizeBytes, deleteMarkerCount: 0 };
}

function queryOf(prefix: string, marker: string): Readonly<Record<string, string>> {
  return { restype: "container", comp: "list", prefix, ...(marker === "" ? {} : { marker }) };
}

function readPage<T>(root: XmlNode, read: (blobs: XmlNode | undefined) => readonly T[]): Page<T> {
  const blobs = child(root, "Blobs");
  if (blobs === undefined) throw new Error("it has no blobs, not even none");
  if (child(blobs, "BlobPrefix") !== undefined) throw new Error("names are folded into prefixes");
  // It has to be there: without it a page that was cut would be the last one.
  const marker = childText(root, "NextMarker");
  if (marker === undefined) throw new Error("it does not say whether more follows");
  return { items: read(blobs), marker: marker === "" ? null : marker };
}

function readObjects(blobs: XmlNode | undefined, prefix: string, last: string): readonly StoredObject[] {
  const objects: StoredObject[] = [];
  let previous = last;
  for (const item of children(blobs, "Blob")) {
    const properties = child(item, "Properties");
    // An account with a hierarchical namespace lists its directories too.
    if (childText(properties, "ResourceType") === "directory") continue;
    const key = childText(item, "Name") ?? "";
    const modifiedMs = Date.parse(childText(properties, "Last-Modified") ?? "");
    if (!key.startsWith(prefix)) throw new Error("a name does not begin with the prefix that was asked for");
    if (compareKeys(key, previous) <= 0) throw new Error("the names do not ascend");
    if (Number.isNaN(modifiedMs)) throw new Error("a blob has no time");
    previous = key;
    objects.push({ key, sizeBytes: sizeOf(properties), modifiedMs });
  }
  return objects;
}

function readNoncurrent(blobs: XmlNode | undefined): readonly number[] {
  return children(blobs, "Blob")
    .filter(
      (item) =>
        childText(item, "Deleted") === "true" ||
        (childText(item, "VersionId") !== undefined && childText(item, "IsCurrentVersion") !== "true"),
    )
    .map((item) => sizeOf(child(item, "Properties")));
}

function sizeOf(properties: XmlNode | undefined): number {
  const size = childText(properties, "Content-Length") ?? "";
  if (!/^\d{1,15}$/.test(size)) throw new Error("a blob has no size");
  return Number(size);
}
