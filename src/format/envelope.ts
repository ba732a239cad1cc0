import { hchacha, xchacha20poly1305 } from "@noble/ciphers/chacha.js";
import { hkdf } from "@noble/hashes/hkdf.js";
import { sha256 } from "@noble/hashes/sha2.js";
import { assert, BakeliteError } from "../util/errors.ts";
import { CHUNK_TYPE_CODES, type ChunkPlace, type ChunkType, describeChunk, plainView, SEAL_BYTES } from "./chunk.ts";
import { damaged } from "./damage.ts";

/** What seals and opens objects, made of a key by `deriveSealKey`. `fingerprint` is 8 hex digits. */
export interface SealKey {
  /** 32 bytes. */
  readonly key: Uint8Array;
  readonly fingerprint: string;
}

/** The keys that objects may be read with. */
export interface KeyRing {
  find(fingerprint: string): SealKey | null;
  readonly size: number;
  /** Of all keys, in the order they were given. */
  readonly fingerprints: readonly string[];
}

/** What the chunks of one object share. */
export interface SealContext {
  /** `SealKey.key`. */
  readonly key: Uint8Array;
  /** 48 hex digits. */
  readonly nonceSeed: string;
  /** SHA-256 of the whole header. */
  readonly headerSha256: Uint8Array;
}

const KEY_BYTES = 32;
const NONCE_BYTES = 24;
/** What HChaCha20 takes of a nonce; the rest is that of the inner cipher. */
const NONCE_START_BYTES = 16;
/** "expand 32-byte k" as four little-endian u32 (RFC 8439 section 2.3). */
const SIGMA = Uint32Array.of(0x61707865, 0x3320646e, 0x79622d32, 0x6b206574);
const KEY_TEXT_PREFIX = "BAKELITE-KEY-V1-";
const ANY_KEY_TEXT = /^BAKELITE-KEY-V([0-9]+)-/;
const KEY_CHECKSUM_BYTES = 3;
/** Crockford's base 32: no I, L, O and U. 56 digits hold the key and its checksum, 35 bytes, without a bit left over. */
const KEY_DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const KEY_DIGIT_COUNT = ((KEY_BYTES + KEY_CHECKSUM_BYTES) * 8) / 5;

export function keyRing(keys: readonly SealKey[]): KeyRing {
  return {
    find: (fingerprint) => keys.find((key) => key.fingerprint === fingerprint) ?? null,
    size: keys.length,
    fingerprints: keys.map((key) => key.fingerprint),
  };
}

export const emptyKeyRing: KeyRing = keyRing([]);

/** For people: which key something is sealed with, and which keys there are instead. `fingerprint` is not in the ring. */
export function describeOtherKey(fingerprint: string, { fingerprints }: KeyRing): string {
  const ours = fingerprints.length === 0 ? "and no key is configured" : `this is ${fingerprints.join(", ")}`;
  return `the replica was written with key ${fingerprint}, ${ours}`;
}

/** HKDF-SHA-256 of a 32-byte key: the sealing key and the fingerprint. docs/storage-format.md section 5. */
export function deriveSealKey(rawKey: Uint8Array): SealKey {
  assert(rawKey.length === KEY_BYTES, "a key has 32 bytes");
  const derive = (info: string, bytes: number) =>
    hkdf(sha256, rawKey, undefined, new TextEncoder().encode(info), bytes);
  return {
    key: derive("bakelite v1 seal", KEY_BYTES),
    fingerprint: Buffer.from(derive("bakelite v1 fingerprint", 4)).toString("hex"),
  };
}

/** A 32-byte key as text: `BAKELITE-KEY-V1-` and 56 digits. docs/storage-format.md section 5. */
export function formatKeyText(rawKey: Uint8Array): string {
  assert(rawKey.length === KEY_BYTES, "a key has 32 bytes");
  let digits = "";
  let pending = 0;
  let pendingBits = 0;
  for (const byte of [...rawKey, ...keyChecksum(rawKey)]) {
    pending = (pending << 8) | byte;
    pendingBits += 8;
    for (; pendingBits >= 5; pendingBits -= 5) digits += KEY_DIGITS[(pending >> (pendingBits - 5)) & 31];
    pending &= (1 << pendingBits) - 1;
  }
  return KEY_TEXT_PREFIX + digits;
}

/**
 * The 32 bytes of a key text. White space around and between its digits, a byte order mark, lower case, hyphens, and I, L, O for
 * 1, 1, 0 do no harm. Throws `key-wrong`, saying whether it is no key at all, of a later version, or mistyped, and then, if
 * one mistake explains it, where. No message repeats a digit of it; `subject` is the file that it came from.
 */
export function parseKeyText(text: string, subject?: string): Uint8Array {
  const details = subject === undefined ? {} : { subject };
  const normal = text.trim().toUpperCase();
  const version = ANY_KEY_TEXT.exec(normal)?.[1];
  if (version === undefined) {
    const hint = "give a key file that `bakelite keygen` wrote";
    throw new BakeliteError("key-wrong", "this is not a bakelite key: it does not begin with BAKELITE-KEY-", {
      ...details,
      hint,
    });
  }
  if (!normal.startsWith(KEY_TEXT_PREFIX)) {
    const hint = `upgrade bakelite to use keys of version ${version}`;
    throw new BakeliteError("key-wrong", `the key has the unknown version ${version}`, { ...details, hint });
  }
  const digits = normal
    .slice(KEY_TEXT_PREFIX.length)
    .replaceAll(/[-\s]/g, "")
    .replaceAll(/[IL]/g, "1")
    .replaceAll("O", "0");
  const rawKey = checkedKey(digits);
  if (rawKey !== null) return rawKey;
  const hint = "compare it with the original, digit by digit";
  throw new BakeliteError("key-wrong", `the key is mistyped: ${describeMistake(digits)}`, { ...details, hint });
}

/** The stored bytes of a chunk that will stand at `offset`: its frame encrypted, 16 bytes longer. docs/storage-format.md section 5. */
export function sealFrame(
  context: SealContext,
  chunk: { readonly type: ChunkType; readonly offset: number },
  frame: Uint8Array,
): Uint8Array {
  return cipherFor(context, chunk).encrypt(plainView(frame));
}

/** The frame in a sealed chunk's stored bytes. Throws `replica-corrupt` when it was changed, moved or sealed otherwise. */
export function openSealedFrame(context: SealContext, place: ChunkPlace, stored: Uint8Array): Uint8Array {
  if (stored.length < SEAL_BYTES) throw damaged(place.subject, `the ${describeChunk(place)} is cut short`);
  try {
    return cipherFor(context, place).decrypt(plainView(stored));
  } catch (cause) {
    throw damaged(place.subject, `the seal of the ${describeChunk(place)} is broken`, cause);
  }
}

/**
 * As `sealFrame`, and the same bytes, by the runtime's own cipher where it has one: seven times as fast for a data chunk.
 * For a frame of few bytes it is no gain.
 */
export async function sealBulk(
  context: SealContext,
  chunk: { readonly type: ChunkType; readonly offset: number },
  frame: Uint8Array,
): Promise<Uint8Array> {
  const key = await nativeKeyFor(context);
  if (key === null) return sealFrame(context, chunk, frame);
  return new Uint8Array(await crypto.subtle.encrypt(nativeParameters(context, chunk), key, ownMemory(frame)));
}

/** As `openSealedFrame`, by the runtime's own cipher where it has one. */
export async function openSealedBulk(context: SealContext, place: ChunkPlace, stored: Uint8Array): Promise<Uint8Array> {
  const key = stored.length < SEAL_BYTES ? null : await nativeKeyFor(context);
  if (key === null) return openSealedFrame(context, place, stored);
  try {
    return new Uint8Array(await crypto.subtle.decrypt(nativeParameters(context, place), key, ownMemory(stored)));
  } catch (cause) {
    throw damaged(place.subject, `the seal of the ${describeChunk(place)} is broken`, cause);
  }
}

function cipherFor(context: SealContext, chunk: { readonly type: ChunkType; readonly offset: number }) {
  return xchacha20poly1305(context.key, nonceFor(context, chunk), associatedDataFor(context, chunk));
}

function nonceFor(context: SealContext, chunk: { readonly offset: number }): Uint8Array {
  const nonce = new Uint8Array(Buffer.from(context.nonceSeed, "hex"));
  assert(nonce.length === NONCE_BYTES, "a nonce seed has 24 bytes");
  const nonceView = new DataView(nonce.buffer);
  nonceView.setBigUint64(16, BigInt.asUintN(64, nonceView.getBigUint64(16) + BigInt(chunk.offset)));
  return nonce;
}

function associatedDataFor(context: SealContext, chunk: { readonly type: ChunkType; readonly offset: number }) {
  const associated = new Uint8Array(42);
  associated.set(context.headerSha256);
  new DataView(associated.buffer).setBigUint64(32, BigInt(chunk.offset));
  associated[40] = CHUNK_TYPE_CODES[chunk.type];
  associated[41] = chunk.type === "trailer" ? 1 : 0;
  return associated;
}

/** One for each object: the counter of a chunk is in the part of the nonce that HChaCha20 does not take. */
const nativeKeys = new WeakMap<SealContext, Promise<CryptoKey | null>>();

/**
 * The key of the ChaCha20-Poly1305 that XChaCha20-Poly1305 comes down to: HChaCha20 of the key and the nonce's first 16
 * bytes (draft-irtf-cfrg-xchacha-03 section 2.3). null where the runtime has no such cipher.
 */
function nativeKeyFor(context: SealContext): Promise<CryptoKey | null> {
  const known = nativeKeys.get(context);
  if (known !== undefined) return known;
  const subkey = new Uint32Array(KEY_BYTES / 4);
  const nonceStart = nonceFor(context, { offset: 0 }).subarray(0, NONCE_START_BYTES);
  hchacha(SIGMA, littleEndianWords(context.key), littleEndianWords(nonceStart), subkey);
  const made = importNativeKey(fromLittleEndianWords(subkey));
  nativeKeys.set(context, made);
  return made;
}

async function importNativeKey(subkey: Uint8Array<ArrayBuffer>): Promise<CryptoKey | null> {
  try {
    // The types know neither the format nor the algorithm: both are newer than they are (the W3C community group's draft
    // "Modern Algorithms in the Web Cryptography API"). The bytes that come out are tested against the other cipher.
    const format = "raw-secret" as "raw";
    return await crypto.subtle.importKey(format, subkey, { name: NATIVE_CIPHER }, false, ["encrypt", "decrypt"]);
  } catch {
    return null;
  }
}

const NATIVE_CIPHER = "ChaCha20-Poly1305";

/** The inner nonce is 4 zero bytes and the last 8 of ours. */
function nativeParameters(context: SealContext, chunk: { readonly type: ChunkType; readonly offset: number }) {
  const iv = new Uint8Array(12);
  iv.set(nonceFor(context, chunk).subarray(NONCE_START_BYTES), 4);
  return { name: NATIVE_CIPHER, iv, additionalData: associatedDataFor(context, chunk), tagLength: SEAL_BYTES * 8 };
}

/** WebCrypto takes no view of memory that is shared; nothing of ours is, but the types cannot know. */
function ownMemory(bytes: Uint8Array): Uint8Array<ArrayBuffer> {
  const { buffer } = bytes;
  return buffer instanceof ArrayBuffer
    ? new Uint8Array(buffer, bytes.byteOffset, bytes.byteLength)
    : new Uint8Array(bytes);
}

function littleEndianWords(bytes: Uint8Array): Uint32Array {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return Uint32Array.from({ length: bytes.byteLength / 4 }, (_, i) => view.getUint32(i * 4, true));
}

function fromLittleEndianWords(words: Uint32Array): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(words.length * 4);
  const view = new DataView(bytes.buffer);
  for (const [i, word] of words.entries()) view.setUint32(i * 4, word, true);
  return bytes;
}

function keyChecksum(rawKey: Uint8Array): Uint8Array {
  return sha256(rawKey).subarray(0, KEY_CHECKSUM_BYTES);
}

/** The key that 56 digits spell, or null if they are none or their checksum does not match. */
function checkedKey(digits: string): Uint8Array | null {
  const bytes = digits.length === KEY_DIGIT_COUNT ? decodeKeyDigits(digits) : null;
  if (bytes === null) return null;
  const rawKey = bytes.slice(0, KEY_BYTES);
  return Buffer.compare(bytes.subarray(KEY_BYTES), keyChecksum(rawKey)) === 0 ? rawKey : null;
}

/**
 * What is wrong with digits that are no key, and the one place where a digit would have to be changed, put in or taken out to
 * make them one. Such a place is found by trying: some two thousand keys, of which one in 2^24 has the right checksum by chance.
 */
function describeMistake(digits: string): string {
  const positions = Array.from({ length: digits.length + 1 }, (_, i) => i);
  const isKeyAfter = (start: number, deleteCount: number) => (inserted: string) =>
    checkedKey(digits.slice(0, start) + inserted + digits.slice(start + deleteCount)) !== null;
  const any = [...KEY_DIGITS];
  const foreign = [...digits].findIndex((digit) => !KEY_DIGITS.includes(digit));
  if (foreign >= 0) return `its digit ${foreign + 1} is not in the alphabet`;
  switch (digits.length - KEY_DIGIT_COUNT) {
    case 0: {
      const wrong = positions.find((i) => any.some(isKeyAfter(i, 1)));
      if (wrong !== undefined) return `its digit ${wrong + 1} seems to be wrong`;
      const swapped = positions.find((i) => isKeyAfter(i, 2)([...digits.slice(i, i + 2)].reverse().join("")));
      if (swapped !== undefined) return `its digits ${swapped + 1} and ${swapped + 2} seem to be swapped`;
      return "its checksum does not match";
    }
    case -1: {
      const missing = positions.find((i) => any.some(isKeyAfter(i, 0)));
      return `it has ${digits.length} digits instead of ${KEY_DIGIT_COUNT}${missing === undefined ? "" : `; one seems to be missing at digit ${missing + 1}`}`;
    }
    case 1: {
      const extra = positions.find((i) => isKeyAfter(i, 1)(""));
      return `it has ${digits.length} digits instead of ${KEY_DIGIT_COUNT}${extra === undefined ? "" : `; digit ${extra + 1} seems to be too many`}`;
    }
    default:
      return `it has ${digits.length} digits instead of ${KEY_DIGIT_COUNT}`;
  }
}

function decodeKeyDigits(digits: string): Uint8Array | null {
  const bytes: number[] = [];
  let pending = 0;
  let pendingBits = 0;
  for (const digit of digits) {
    const value = KEY_DIGITS.indexOf(digit);
    if (value < 0) return null;
    pending = (pending << 5) | value;
    pendingBits += 5;
    if (pendingBits < 8) continue;
    pendingBits -= 8;
    bytes.push(pending >> pendingBits);
    pending &= (1 << pendingBits) - 1;
  }
  return new Uint8Array(bytes);
}
