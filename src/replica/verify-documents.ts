import { readDocument } from "../format/decode.ts";
import { currentKey, formatName, manifestKey } from "../format/names.ts";
import { BakeliteError } from "../util/errors.ts";
import { nameOf, type ReplicaObject } from "./catalog.ts";
import { type CurrentHint, type ManifestEntry, parseCurrent, parseManifest } from "./documents.ts";
import type { Replica } from "./replica.ts";
import { type CheckOptions, type ObjectChecks, sentenceOf } from "./verify-objects.ts";
import type { ProblemKind } from "./verify-report.ts";

/** What became of reading CURRENT or a manifest. */
export type DocumentResult<T> =
  | { readonly outcome: "read"; readonly value: T }
  | { readonly outcome: "missing" }
  | { readonly outcome: "fault"; readonly kind: ProblemKind; readonly message: string };

export interface Documents {
  readonly current: DocumentResult<CurrentHint>;
  readonly manifest: DocumentResult<readonly ManifestEntry[]>;
}

/** Larger ones are no manifest that bakelite wrote, and are not read. */
const MAX_DOCUMENT_BYTES = 64 * 1024 * 1024;

/** Reads CURRENT and the manifest of one destination, whole. To be called after the listing that they are compared with. */
export async function readDocuments(
  replica: Replica,
  destination: number,
  checks: ObjectChecks,
  options: CheckOptions,
): Promise<Documents> {
  const read = <T>(kind: "current" | "manifest", parse: (fields: Record<string, unknown>, subject: string) => T) =>
    readOne(replica, destination, { kind, parse, checks, options });
  return {
    current: await read("current", parseCurrent),
    manifest: await read("manifest", (fields, subject) => [...parseManifest(fields, subject)]),
  };
}

async function readOne<T>(
  replica: Replica,
  destination: number,
  {
    kind,
    parse,
    checks,
    options: { signal, onBytes },
  }: {
    readonly kind: "current" | "manifest";
    readonly parse: (fields: Record<string, unknown>, subject: string) => T;
    readonly checks: ObjectChecks;
    readonly options: CheckOptions;
  },
): Promise<DocumentResult<T>> {
  const { database, backends, keys, acceptPlaintext } = replica.options;
  const backend = backends[destination];
  if (backend === undefined) return { outcome: "missing" };
  const key = kind === "current" ? currentKey(database) : manifestKey(database);
  const subject = `${backend.location}/${key}`;
  try {
    const stream = await backend.get(key, signal === undefined ? {} : { signal });
    if (stream === null) return { outcome: "missing" };
    const pieces: Uint8Array[] = [];
    let sizeBytes = 0;
    for await (const piece of stream) {
      pieces.push(piece);
      sizeBytes += piece.byteLength;
      checks.addBytes(piece.byteLength);
      onBytes?.(piece.byteLength);
      if (sizeBytes > MAX_DOCUMENT_BYTES)
        return { outcome: "fault", kind: "corrupt", message: `it is too large, more than ${MAX_DOCUMENT_BYTES} bytes` };
    }
    const options = { name: { kind }, database, subject, keys, acceptPlaintext };
    const { fields } = readDocument(Buffer.concat(pieces, sizeBytes), options);
    return { outcome: "read", value: parse(fields, subject) };
  } catch (error) {
    if (!(error instanceof BakeliteError) || error.code === "interrupted" || error.code === "internal") throw error;
    return { outcome: "fault", kind: faultKind(error), message: sentenceOf(error) };
  }
}

export function faultKind({ code }: BakeliteError): ProblemKind {
  switch (code) {
    case "key-wrong":
      return "unreadable-key";
    case "replica-foreign":
      return "foreign";
    case "replica-corrupt":
      return "corrupt";
    default:
      return "unreadable";
  }
}

/** The first object of which a manifest tells something else than the object itself does, or null. */
export function contradictedBy(
  entries: readonly ManifestEntry[],
  objects: readonly ReplicaObject[],
  checks: ObjectChecks,
): ReplicaObject | null {
  const byName = new Map(entries.map((entry) => [entry.name, entry]));
  for (const object of objects) {
    const facts = checks.factsOf(object);
    const entry = byName.get(formatName(nameOf(object)));
    if (facts === null || entry === undefined || entry.sizeBytes !== object.sizeBytes) continue;
    const told = entry.facts;
    const agrees =
      told.parent === facts.parent &&
      told.result === facts.result &&
      told.settled === facts.settled &&
      told.sizePages === facts.sizePages &&
      told.lastCommitMs === facts.lastCommitMs &&
      (told.chain === null || told.chain === facts.chain);
    if (!agrees) return object;
  }
  return null;
}
