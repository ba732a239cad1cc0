import { xchacha20poly1305 } from "@noble/ciphers/chacha.js";
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
 * The 32 bytes of a key text. White space around it, lower case, hyphens between digits, and I, L, O for 1, 1, 0 do no
 * harm. Throws `key-wrong`, saying whether it is no key at all, of a later version, or mistyped. No message repeats a
 * digit of it; `subject` is the file that it came from.
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
  const mistyped = (problem: string) => {
    const hint = "compare it with the original, digit by digit";
    return new BakeliteError("key-wrong", `the key is mistyped: ${problem}`, { ...details, hint });
  };
  const digits = normal.slice(KEY_TEXT_PREFIX.length).replaceAll("-", "").replaceAll(/[IL]/g, "1").replaceAll("O", "0");
  if (digits.length !== KEY_DIGIT_COUNT) throw mistyped(`it has ${digits.length} digits instead of ${KEY_DIGIT_COUNT}`);
  const bytes = decodeKeyDigits(digits);
  if (bytes === null) throw mistyped("one of its digits is not in the alphabet");
  const rawKey = bytes.slice(0, KEY_BYTES);
  if (Buffer.compare(bytes.subarray(KEY_BYTES), keyChecksum(rawKey)) !== 0)
    throw mistyped("its checksum does not match");
  return rawKey;
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

function cipherFor(context: SealContext, chunk: { readonly type: ChunkType; readonly offset: number }) {
  const counter = BigInt(chunk.offset);
  const nonce = new Uint8Array(Buffer.from(context.nonceSeed, "hex"));
  assert(nonce.length === NONCE_BYTES, "a nonce seed has 24 bytes");
  const nonceView = new DataView(nonce.buffer);
  nonceView.setBigUint64(16, BigInt.asUintN(64, nonceView.getBigUint64(16) + counter));

  const associated = new Uint8Array(42);
  associated.set(context.headerSha256);
  new DataView(associated.buffer).setBigUint64(32, counter);
  associated[40] = CHUNK_TYPE_CODES[chunk.type];
  associated[41] = chunk.type === "trailer" ? 1 : 0;
  return xchacha20poly1305(context.key, nonce, associated);
}

function keyChecksum(rawKey: Uint8Array): Uint8Array {
  return sha256(rawKey).subarray(0, KEY_CHECKSUM_BYTES);
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
