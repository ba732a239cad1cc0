import { readDocument } from "../format/decode.ts";
import { encodeDocument } from "../format/encode.ts";
import type { KeyRing } from "../format/envelope.ts";
import { MAX_HEADER_BYTES, parseHeader } from "../format/header.ts";
import { currentKey, formatName, manifestKey, markKey, PLAINTEXT_SEAL, parseName } from "../format/names.ts";
import { type Backend, bytesSource, type CallOptions } from "../storage/backend.ts";
import { BakeliteError } from "../util/errors.ts";
import { keyOfMark, type StoredMark } from "./catalog.ts";
import type { Resealing } from "./reencrypt-object.ts";

export type DocumentKind = "current" | "manifest";

export const DOCUMENT_KINDS: readonly DocumentKind[] = ["current", "manifest"];

/** What an object is called now, and how large it is; by its old name below the database's folder. */
export type Renamed = ReadonlyMap<string, { readonly name: string; readonly sizeBytes: number }>;

export function documentKey(database: string, kind: DocumentKind): string {
  return kind === "current" ? currentKey(database) : manifestKey(database);
}

/** The seal of a stored `CURRENT` or manifest, by its header alone; null when there is none. */
export async function documentSeal(backend: Backend, key: string, options: CallOptions): Promise<string | null> {
  const stream = await backend.get(key, { ...options, range: { start: 0, end: MAX_HEADER_BYTES } });
  if (stream === null) return null;
  const { header } = parseHeader(await collect(stream), `${backend.location}/${key}`);
  return header.keyFingerprint ?? PLAINTEXT_SEAL;
}

export interface DocumentPlace {
  readonly backend: Backend;
  readonly database: string;
  readonly kind: DocumentKind;
  readonly keys: KeyRing;
  readonly renamed: Renamed;
}

/** Replaces a stored `CURRENT` or manifest by one that says the same under another seal, with the names that are right by now. */
export async function resealDocument(place: DocumentPlace, resealing: Resealing, options: CallOptions): Promise<void> {
  const { backend, database, kind, keys } = place;
  const key = documentKey(database, kind);
  const subject = `${backend.location}/${key}`;
  const stream = await backend.get(key, options);
  if (stream === null) return;
  const decoding = { name: { kind }, database, subject, keys, acceptPlaintext: true };
  const { header, fields } = readDocument(await collect(stream), decoding);
  const { sealKey, compressionLevel, writer, nonceSeed } = resealing;
  const newHeader = {
    ...header,
    writer,
    cipher: sealKey === null ? ("none" as const) : ("xchacha20-poly1305" as const),
    keyFingerprint: sealKey?.fingerprint ?? null,
    nonceSeed,
  };
  const newFields = kind === "current" ? renewCurrent(fields, place) : renewManifest(fields, place);
  const bytes = await encodeDocument({ header: newHeader, sealKey: sealKey?.key ?? null, compressionLevel }, newFields);
  await backend.put(key, bytesSource(bytes), options);
  await readBack(place, bytes, options);
}

/** The seal of the full backup that it names, unless that one could not be rewritten. */
function renewCurrent(fields: Record<string, unknown>, { renamed }: DocumentPlace): Record<string, unknown> {
  const { full, seal } = fields;
  if (typeof full !== "number" || typeof seal !== "string") return fields;
  const now = parseName(renamed.get(formatName({ kind: "full", index: full, seal }))?.name ?? "");
  return now === null ? fields : { ...fields, seal: now.seal };
}

export interface MarkPlace {
  readonly backend: Backend;
  readonly database: string;
  readonly mark: StoredMark;
  readonly keys: KeyRing;
  /** What marks were encoded as, by what they say: one mark is the same bytes at every destination. */
  readonly encoded: Map<string, Uint8Array>;
}

/** Stores a mark under its new name, where it may stand already, and reads it back. The old one stays. */
export async function resealMark(place: MarkPlace, resealing: Resealing, options: CallOptions): Promise<void> {
  const { backend, database, mark, keys, encoded } = place;
  const { sealKey, compressionLevel, writer, nonceSeed } = resealing;
  const old = await readMarkAt(place, keyOfMark(database, mark), mark.seal, options);
  if (old === null) return;
  const seal = sealKey?.fingerprint ?? PLAINTEXT_SEAL;
  const key = markKey(database, { index: mark.index, seal });
  const says = JSON.stringify([mark.index, old.fields]);
  const present = await readMarkAt(place, key, seal, options).catch((error: unknown) => {
    if (error instanceof BakeliteError && error.code === "replica-corrupt") return null;
    throw error;
  });
  if (present !== null && JSON.stringify([mark.index, present.fields]) === says) return;
  const header = {
    ...old.header,
    writer,
    cipher: sealKey === null ? ("none" as const) : ("xchacha20-poly1305" as const),
    keyFingerprint: sealKey?.fingerprint ?? null,
    nonceSeed,
  };
  const encoding = { header, sealKey: sealKey?.key ?? null, compressionLevel };
  const bytes = encoded.get(says) ?? (await encodeDocument(encoding, old.fields));
  encoded.set(says, bytes);
  await backend.put(key, bytesSource(bytes), options);
  const stored = await readMarkAt({ ...place, keys }, key, seal, options);
  if (stored === null || JSON.stringify([mark.index, stored.fields]) !== says)
    throw new BakeliteError("replica-corrupt", "what was just stored is not what can be read back", {
      subject: `${backend.location}/${key}`,
      hint: "check the destination, and that nothing else writes there; then run it again",
    });
}

async function readMarkAt(
  { backend, database, mark: { index }, keys }: MarkPlace,
  key: string,
  seal: string,
  options: CallOptions,
) {
  const stream = await backend.get(key, options);
  if (stream === null) return null;
  const name = { kind: "mark", index, seal } as const;
  const subject = `${backend.location}/${key}`;
  return readDocument(await collect(stream), { name, database, subject, keys, acceptPlaintext: true });
}

function renewManifest(fields: Record<string, unknown>, { renamed }: DocumentPlace): Record<string, unknown> {
  const { objects } = fields;
  if (!Array.isArray(objects)) return fields;
  return {
    ...fields,
    objects: objects.map((entry: unknown) => {
      if (typeof entry !== "object" || entry === null || !("name" in entry)) return entry;
      const now = renamed.get(String(entry.name));
      return now === undefined ? entry : { ...entry, name: now.name, size: now.sizeBytes };
    }),
  };
}

async function readBack({ backend, database, kind }: DocumentPlace, stored: Uint8Array, options: CallOptions) {
  const key = documentKey(database, kind);
  const stream = await backend.get(key, options);
  const found = stream === null ? null : await collect(stream);
  if (found !== null && Buffer.compare(found, stored) === 0) return;
  throw new BakeliteError("replica-corrupt", "what was just stored is not what can be read back", {
    subject: `${backend.location}/${key}`,
    hint: "check the destination, and that nothing else writes there; then run it again",
  });
}

async function collect(stream: AsyncIterable<Uint8Array>): Promise<Uint8Array> {
  return Buffer.concat(await Array.fromAsync(stream));
}
