import { z } from "zod";
import { assert, BakeliteError } from "../util/errors.ts";
import {
  type ChunkType,
  checksumOf,
  DATA_CHUNKS_PER_INDEX_CHUNK,
  describeChunk,
  FOOTER_BYTES,
  FOOTER_HASHED_BYTES,
  type Footer,
  FRAME_HEADER_BYTES,
  findFooter,
  maxStoredBytes,
  parseFooter,
  parseFrame,
  sameBytes,
} from "./chunk.ts";
import { damaged } from "./damage.ts";
import type { PageBatch } from "./encode.ts";
import { describeOtherKey, type KeyRing, openSealedBulk, openSealedFrame, type SealContext } from "./envelope.ts";
import { isDocument, type ObjectHeader, parseHeader } from "./header.ts";
import { type DataChunkRef, type IndexChunk, parseIndexChunk } from "./index-chunk.ts";
import { checkShape, parseJson } from "./json.ts";
import { LineageHasher } from "./lineage.ts";
import { type MarkName, type ObjectName, PLAINTEXT_SEAL } from "./names.ts";
import { hashPage, PAGE_HASH_BYTES, xorDigest } from "./pages.ts";
import { type IndexChunkRef, parseTrailer, type StateTrailer } from "./trailer.ts";

/** Stored bytes that can be read anywhere: an object at a destination, a file, memory. */
export interface RangeSource {
  readonly sizeBytes: number;
  /** Exactly the bytes from `start` to `end`, or throws. */
  read(start: number, end: number): Promise<Uint8Array>;
}

export interface DecodeOptions {
  /** The name it was fetched under. */
  readonly name: ObjectName | MarkName | { readonly kind: "current" | "manifest" };
  readonly database: string;
  /** The object's key, for messages. */
  readonly subject: string;
  readonly keys: KeyRing;
  /** Whether objects without a seal are read although `keys` is not empty. */
  readonly acceptPlaintext: boolean;
}

/** One object, opened. Header and trailer have been checked; all else is checked as it is read, but for page hashes. */
export interface ObjectReader {
  readonly header: ObjectHeader;
  readonly trailer: StateTrailer;
  readonly sizeBytes: number;
  /** The page index of group `i`, from 0: `trailer.indexChunks[i]`. */
  indexChunk(i: number): Promise<IndexChunk>;
  /** The page images of one data chunk, back to back. Their page hashes are NOT checked: see `checkPageHashes`. */
  dataChunk(ref: DataChunkRef): Promise<Uint8Array>;
}

export interface VerifyOptions {
  /** Called with the pages of each data chunk, in order, once they were checked. */
  readonly onPages?: (pages: PageBatch) => void | Promise<void>;
}

export interface VerifiedObject {
  readonly header: ObjectHeader;
  readonly trailer: StateTrailer;
  /** The footer's SHA-256, which the object's bytes match. */
  readonly footerSha256: Uint8Array;
}

const TAIL_BYTES = 65_536;

/**
 * Opens a full backup or a change-set with one read of its last 64 KiB, or of all of it, and one more each for a header
 * and a trailer that lie before. Throws `replica-corrupt` for one that is damaged or not what its name says,
 * `replica-foreign` for one of another database or format, `key-wrong` where the key is missing or another, or where it is not sealed
 * and must be; and what the source throws. docs/storage-format.md sections 3 and 4.
 */
export async function openObject(source: RangeSource, options: DecodeOptions): Promise<ObjectReader> {
  return await OpenObject.open(source, options);
}

/**
 * Reads a whole object, in order and each byte once but for the tail, and checks all of it: SHA-256, seals, every chunk
 * and page hash, of an ordinary change-set its lineage, and of a full backup its digest where it has one. Keeps one group
 * of 64 data chunks in memory. Throws as `openObject` does, naming the chunk or page; nothing says that pages handed to
 * `onPages` belong to a sound object until this resolves. docs/storage-format.md section 4.
 */
export async function verifyObject(
  source: RangeSource,
  options: DecodeOptions,
  { onPages }: VerifyOptions = {},
): Promise<VerifiedObject> {
  const object = await OpenObject.open(source, options);
  const { header, trailer } = object;
  const content = new ContentCheck(header, trailer);
  const hash = new Bun.CryptoHasher("sha256").update(object.headerBytes);
  for (let i = 0; i < trailer.indexChunks.length; i++) {
    const { bytes, index } = await object.readGroup(i);
    hash.update(bytes);
    const groupStart = index.dataChunks[0]?.offset ?? 0;
    for (const ref of index.dataChunks) {
      const images = await object.openDataChunk(
        ref,
        bytes.subarray(ref.offset - groupStart, ref.offset - groupStart + ref.storedBytes),
      );
      const pages = pagesOf(index, ref, images);
      const mismatch = checkPageHashes(pages.pageNumbers, images, pages.hashes, header.pageSizeBytes);
      if (mismatch >= 0) throw damaged(options.subject, `page ${pages.pageNumbers[mismatch]} does not match its hash`);
      content.add(pages);
      await onPages?.(pages);
    }
  }
  const problem = content.findProblem();
  if (problem !== null) throw damaged(options.subject, problem);
  const { sha256 } = object.footer;
  hash.update(object.storedTrailer).update(object.storedFooter.subarray(0, FOOTER_HASHED_BYTES));
  if (!sameBytes(hash.digest(), sha256)) throw damaged(options.subject, "its bytes do not match its SHA-256");
  return { header, trailer, footerSha256: sha256.slice() };
}

/** Reads `CURRENT`, `manifest` or a mark, whole, and checks all of it. Throws as `openObject` does. docs/storage-format.md section 7. */
export function readDocument(
  bytes: Uint8Array,
  options: DecodeOptions,
): { readonly header: ObjectHeader; readonly fields: Record<string, unknown> } {
  assert(isDocument(options.name.kind), "a document is CURRENT, manifest or a mark");
  const { subject } = options;
  const footer = parseFooter(bytes, bytes.length, subject);
  if (footer.headerBytes !== footer.trailerOffset)
    throw damaged(subject, "there are bytes between its header and its trailer");
  const sha256 = new Bun.CryptoHasher("sha256")
    .update(bytes.subarray(0, bytes.length - FOOTER_BYTES + FOOTER_HASHED_BYTES))
    .digest();
  if (!sameBytes(sha256, footer.sha256)) throw damaged(subject, "its bytes do not match its SHA-256");
  const storedTrailer = bytes.subarray(footer.trailerOffset, footer.trailerOffset + footer.trailerStoredBytes);
  const { header, rawTrailer } = openEnds(
    { footer, headerBytes: bytes.subarray(0, footer.headerBytes), storedTrailer },
    options,
  );
  const place = { what: "trailer", subject };
  return { header, fields: checkShape(z.record(z.string(), z.unknown()), parseJson(rawTrailer, place), place) };
}

/**
 * The SHA-256 in the footer at the end of `tail`, the last 72 or more bytes of an object: what tells one encoding from
 * another. Throws `replica-corrupt` where no footer is; checks nothing else. docs/storage-format.md section 3.3.
 */
export function footerSha256(tail: Uint8Array, subject = "object"): Uint8Array {
  return findFooter(tail, subject).slice(FOOTER_HASHED_BYTES, FOOTER_HASHED_BYTES + 32);
}

/**
 * Compares each page with its hash. `images` and `hashes` hold one item per page number, back to back. Returns the
 * position in `pageNumbers` of the first page that differs, or -1.
 */
export function checkPageHashes(
  pageNumbers: Uint32Array,
  images: Uint8Array,
  hashes: Uint8Array,
  pageSizeBytes: number,
): number {
  assert(images.length === pageNumbers.length * pageSizeBytes, "there is one image for each page number");
  assert(hashes.length === pageNumbers.length * PAGE_HASH_BYTES, "there is one hash for each page number");
  const hash = new Uint8Array(PAGE_HASH_BYTES);
  for (let i = 0; i < pageNumbers.length; i++) {
    hashPage(pageNumbers[i] ?? 0, images.subarray(i * pageSizeBytes, (i + 1) * pageSizeBytes), hash);
    for (let byte = 0; byte < PAGE_HASH_BYTES; byte++) {
      if (hash[byte] !== hashes[i * PAGE_HASH_BYTES + byte]) return i;
    }
  }
  return -1;
}

/** The parts of a container that stand at its ends, as stored. */
interface Ends {
  readonly footer: Footer;
  readonly headerBytes: Uint8Array;
  readonly storedTrailer: Uint8Array;
}

/** Checks header and trailer chunk against the footer and the name, and opens the trailer chunk. */
function openEnds({ footer, headerBytes, storedTrailer }: Ends, options: DecodeOptions) {
  const { subject } = options;
  if (!sameBytes(checksumOf(headerBytes, storedTrailer), footer.checksum))
    throw damaged(subject, "its header and trailer do not match their checksum");
  const parsed = parseHeader(headerBytes, subject);
  if (parsed.headerBytes !== headerBytes.length) throw damaged(subject, "its header is not as long as its footer says");
  const { header } = parsed;
  compareWithName(header, options);
  const seal = chooseKey(header, headerBytes, options);
  const place = { type: "trailer", offset: footer.trailerOffset, subject } as const;
  const frame = seal === null ? storedTrailer : openSealedFrame(seal, place, storedTrailer);
  return { header, seal, rawTrailer: parseFrame(frame, place) };
}

function compareWithName(header: ObjectHeader, { name, database, subject }: DecodeOptions): void {
  if (header.kind !== name.kind) throw damaged(subject, `its header says that it is a ${header.kind}`);
  if (header.database !== database) {
    const hint = "move it back to where it was written, or delete it";
    throw new BakeliteError("replica-foreign", `stored object belongs to the database ${header.database}`, {
      subject,
      hint,
    });
  }
  if (!("seal" in name)) return; // CURRENT and manifest have one name each.
  const level = name.kind === "change-set" ? name.level : 0;
  const first = name.kind === "change-set" ? name.first : name.index;
  const seal = header.keyFingerprint ?? PLAINTEXT_SEAL;
  if (header.level !== level) throw damaged(subject, `its header says level ${header.level}`);
  if (header.first !== first) throw damaged(subject, `its header says index ${header.first}`);
  if (seal !== name.seal) throw damaged(subject, `its header says seal ${seal}`);
}

/** What opens the object's chunks; null when it is not sealed and need not be. */
function chooseKey(
  header: ObjectHeader,
  headerBytes: Uint8Array,
  { keys, acceptPlaintext, subject }: DecodeOptions,
): SealContext | null {
  const { keyFingerprint: fingerprint } = header;
  if (fingerprint === null) {
    if (keys.size === 0 || acceptPlaintext) return null;
    const hint =
      "if it was stored before encryption was switched on, run `bakelite reencrypt`, or set accept_plaintext = true under [defaults.encryption] until that is done; if not, somebody without the key has put it there: do neither, and delete it";
    throw new BakeliteError("key-wrong", "a key is configured, but the stored object is not sealed", { subject, hint });
  }
  const key = keys.find(fingerprint);
  if (key !== null) {
    return {
      key: key.key,
      nonceSeed: header.nonceSeed,
      headerSha256: new Bun.CryptoHasher("sha256").update(headerBytes).digest(),
    };
  }
  const hint = `set [defaults.encryption] key_file to the file with key ${fingerprint}`;
  throw new BakeliteError("key-wrong", describeOtherKey(fingerprint, keys), { subject, hint });
}

class OpenObject implements ObjectReader {
  readonly header: ObjectHeader;
  readonly trailer: StateTrailer;
  readonly sizeBytes: number;
  readonly footer: Footer;
  readonly headerBytes: Uint8Array;
  readonly storedTrailer: Uint8Array;
  readonly storedFooter: Uint8Array;
  readonly #read: (start: number, end: number) => Promise<Uint8Array>;
  readonly #seal: SealContext | null;
  readonly #subject: string;

  static async open(source: RangeSource, options: DecodeOptions): Promise<OpenObject> {
    assert(!isDocument(options.name.kind), "an object with pages is a full backup or a change-set");
    const { sizeBytes } = source;
    const tailStart = Math.max(0, sizeBytes - TAIL_BYTES);
    const tail = await readExactly(source, { start: tailStart, end: sizeBytes }, options.subject);
    const read = async (start: number, end: number) =>
      start >= tailStart
        ? tail.subarray(start - tailStart, end - tailStart)
        : await readExactly(source, { start, end }, options.subject);

    const footer = parseFooter(tail, sizeBytes, options.subject);
    const storedTrailer = await read(footer.trailerOffset, footer.trailerOffset + footer.trailerStoredBytes);
    const headerBytes = await read(0, footer.headerBytes);
    return new OpenObject(
      { footer, headerBytes, storedTrailer },
      { sizeBytes, read, storedFooter: tail.subarray(-FOOTER_BYTES) },
      options,
    );
  }

  private constructor(
    ends: Ends,
    object: {
      readonly sizeBytes: number;
      readonly storedFooter: Uint8Array;
      read(start: number, end: number): Promise<Uint8Array>;
    },
    options: DecodeOptions,
  ) {
    const { header, seal, rawTrailer } = openEnds(ends, options);
    const trailer = parseTrailer(rawTrailer, header, options.subject);
    if (options.name.kind === "change-set" && trailer.last !== options.name.last)
      throw damaged(options.subject, `its trailer says last index ${trailer.last}`);
    this.header = header;
    this.trailer = trailer;
    this.sizeBytes = object.sizeBytes;
    this.footer = ends.footer;
    this.headerBytes = ends.headerBytes;
    this.storedTrailer = ends.storedTrailer;
    this.storedFooter = object.storedFooter;
    this.#read = object.read;
    this.#seal = seal;
    this.#subject = options.subject;
    this.#checkLayout();
  }

  async indexChunk(i: number): Promise<IndexChunk> {
    const ref = this.#indexChunkRef(i);
    return await this.#openIndexChunk(i, await this.#read(ref.offset, ref.offset + ref.storedBytes));
  }

  async dataChunk(ref: DataChunkRef): Promise<Uint8Array> {
    return await this.openDataChunk(ref, await this.#read(ref.offset, ref.offset + ref.storedBytes));
  }

  /** The stored bytes of group `i`, from its first data chunk to its index chunk's end, and the opened index chunk. */
  async readGroup(i: number): Promise<{ readonly bytes: Uint8Array; readonly index: IndexChunk }> {
    const ref = this.#indexChunkRef(i);
    const bytes = await this.#read(this.#groupStart(i), ref.offset + ref.storedBytes);
    return { bytes, index: await this.#openIndexChunk(i, bytes.subarray(bytes.length - ref.storedBytes)) };
  }

  async openDataChunk(ref: DataChunkRef, stored: Uint8Array): Promise<Uint8Array> {
    const images = await this.#openChunk("data", { ...ref, stored });
    if (images.length === ref.pageCount * this.header.pageSizeBytes) return images;
    throw damaged(
      this.#subject,
      `the ${describeChunk({ type: "data", offset: ref.offset })} has not the pages that its index chunk says`,
    );
  }

  async #openIndexChunk(i: number, stored: Uint8Array): Promise<IndexChunk> {
    const ref = this.#indexChunkRef(i);
    const raw = await this.#openChunk("index", {
      offset: ref.offset,
      checksum: Buffer.from(ref.checksum, "hex"),
      stored,
    });
    return parseIndexChunk(raw, {
      subject: this.#subject,
      offset: ref.offset,
      dataStart: this.#groupStart(i),
      dataEnd: ref.offset,
      firstPage: ref.firstPage,
      lastPage: ref.lastPage,
      pageCount: ref.pageCount,
      pageSizeBytes: this.header.pageSizeBytes,
      sealed: this.#seal !== null,
      isLast: i === this.trailer.indexChunks.length - 1,
    });
  }

  async #openChunk(
    type: ChunkType,
    {
      offset,
      checksum,
      stored,
    }: { readonly offset: number; readonly checksum: Uint8Array; readonly stored: Uint8Array },
  ): Promise<Uint8Array> {
    const place = { type, offset, subject: this.#subject };
    if (!sameBytes(checksumOf(stored), checksum))
      throw damaged(this.#subject, `the ${describeChunk(place)} does not match its checksum`);
    return parseFrame(this.#seal === null ? stored : await openSealedBulk(this.#seal, place, stored), place);
  }

  #indexChunkRef(i: number): IndexChunkRef {
    const ref = this.trailer.indexChunks[i];
    assert(ref !== undefined, "an object has the index chunk that is asked for");
    return ref;
  }

  /** Where the data chunks of group `i` begin: behind the index chunk before it. */
  #groupStart(i: number): number {
    const before = this.trailer.indexChunks[i - 1];
    return before === undefined ? this.headerBytes.length : before.offset + before.storedBytes;
  }

  /** Groups stand one behind the other between header and trailer, and none is longer than a group can be. */
  #checkLayout(): void {
    const sealed = this.#seal !== null;
    const refs = this.trailer.indexChunks;
    for (const [i, ref] of refs.entries()) {
      const dataBytes = ref.offset - this.#groupStart(i);
      const permitted =
        dataBytes >= FRAME_HEADER_BYTES &&
        dataBytes <= DATA_CHUNKS_PER_INDEX_CHUNK * maxStoredBytes("data", sealed) &&
        ref.storedBytes >= FRAME_HEADER_BYTES &&
        ref.storedBytes <= maxStoredBytes("index", sealed);
      if (!permitted)
        throw damaged(
          this.#subject,
          `its trailer says that an ${describeChunk({ type: "index", offset: ref.offset })} has ${ref.storedBytes} bytes`,
        );
    }
    if (this.#groupStart(refs.length) !== this.footer.trailerOffset)
      throw damaged(this.#subject, "its index chunks do not end where its trailer begins");
  }
}

/** Checks what only all pages together show. */
class ContentCheck {
  readonly #trailer: StateTrailer;
  readonly #lineage: LineageHasher | null;
  readonly #digest: Uint8Array | null;

  constructor(header: ObjectHeader, trailer: StateTrailer) {
    // What a compacted change-set leads to is the lineage of its last input, unless it had only one.
    const isOneStep = header.level === 0 || header.first === trailer.last;
    this.#trailer = trailer;
    this.#lineage =
      isOneStep && trailer.parent !== null ? new LineageHasher(Buffer.from(trailer.parent, "hex"), trailer.last) : null;
    this.#digest = header.kind === "full" && trailer.digest !== null ? new Uint8Array(PAGE_HASH_BYTES) : null;
  }

  add({ pageNumbers, hashes }: PageBatch): void {
    this.#lineage?.add(pageNumbers, hashes);
    if (this.#digest === null) return;
    for (let offset = 0; offset < hashes.length; offset += PAGE_HASH_BYTES) xorDigest(this.#digest, hashes, offset);
  }

  /** What does not agree, or null. To be called once, last. */
  findProblem(): string | null {
    const { result, digest, sizePages } = this.#trailer;
    if (this.#lineage !== null && this.#lineage.finish(sizePages).toHex() !== result)
      return "its pages do not lead to the lineage that it claims";
    if (this.#digest !== null && this.#digest.toHex() !== digest)
      return "its pages do not have the digest that it claims";
    return null;
  }
}

function pagesOf(index: IndexChunk, ref: DataChunkRef, images: Uint8Array): PageBatch {
  const end = ref.firstEntry + ref.pageCount;
  return {
    pageNumbers: index.pageNumbers.subarray(ref.firstEntry, end),
    images,
    hashes: index.hashes.subarray(ref.firstEntry * PAGE_HASH_BYTES, end * PAGE_HASH_BYTES),
  };
}

async function readExactly(
  source: RangeSource,
  { start, end }: { readonly start: number; readonly end: number },
  subject: string,
): Promise<Uint8Array> {
  const bytes = await source.read(start, end);
  if (bytes.length === end - start) return bytes;
  throw damaged(subject, `bytes ${start} to ${end} were asked for, and ${bytes.length} bytes came`);
}
