import { describe, expect, test } from "bun:test";
import { hkdfSync } from "node:crypto";
import { xchacha20poly1305 } from "@noble/ciphers/chacha.js";
import { hkdf } from "@noble/hashes/hkdf.js";
import { sha256 } from "@noble/hashes/sha2.js";
import type { ChunkPlace } from "../../src/format/chunk.ts";
import {
  deriveSealKey,
  emptyKeyRing,
  formatKeyText,
  keyRing,
  openSealedBulk,
  openSealedFrame,
  parseKeyText,
  type SealContext,
  sealBulk,
  sealFrame,
} from "../../src/format/envelope.ts";
import { fc } from "../support/properties.ts";
import { expectCode, OTHER_KEY, SAMPLE_KEY, u64 } from "./samples.ts";

const rawKey = fc.uint8Array({ minLength: 32, maxLength: 32 });
const rawBytes = new Uint8Array(32).fill(1);

describe("the ciphers that we build on give the published results:", () => {
  test("HKDF-SHA-256, RFC 5869 appendix A.3 (no salt, no info)", () => {
    const key = hkdf(sha256, new Uint8Array(22).fill(0x0b), undefined, undefined, 42);
    expect(key.toHex()).toBe("8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8");
  });

  test("HKDF-SHA-256, RFC 5869 appendix A.1 (salt and info)", () => {
    const key = hkdf(
      sha256,
      new Uint8Array(22).fill(0x0b),
      Uint8Array.fromHex("000102030405060708090a0b0c"),
      Uint8Array.fromHex("f0f1f2f3f4f5f6f7f8f9"),
      42,
    );
    expect(key.toHex()).toBe("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865");
  });

  test("XChaCha20-Poly1305, draft-irtf-cfrg-xchacha-03 appendix A.3.1", () => {
    const key = Uint8Array.from({ length: 32 }, (_, i) => 0x80 + i);
    const nonce = Uint8Array.from({ length: 24 }, (_, i) => 0x40 + i);
    const associated = Uint8Array.fromHex("50515253c0c1c2c3c4c5c6c7");
    const plaintext =
      "Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would be it.";
    const sealed = xchacha20poly1305(key, nonce, associated).encrypt(new TextEncoder().encode(plaintext));
    expect(sealed.toHex()).toBe(
      [
        "bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb",
        "731c7f1b0b4aa6440bf3a82f4eda7e39ae64c6708c54c216cb96b72e1213b452",
        "2f8c9ba40db5d945b11b69b982c1bb9e3f3fac2bc369488f76b2383565d3fff9",
        "21f9664c97637da9768812f615c68b13b52e",
        "c0875924c1c7987947deafd8780acf49",
      ].join(""),
    );
  });
});

test("a sealing key and its fingerprint are what HKDF of the documented infos gives", () => {
  fc.assert(
    fc.property(rawKey, (raw) => {
      const derive = (info: string, length: number) =>
        Buffer.from(hkdfSync("sha256", raw, "", info, length)).toString("hex");
      const { key, fingerprint } = deriveSealKey(raw);
      expect({ key: key.toHex(), fingerprint }).toEqual({
        key: derive("bakelite v1 seal", 32),
        fingerprint: derive("bakelite v1 fingerprint", 4),
      });
    }),
  );
});

test("a key ring finds its keys by fingerprint, and no others", () => {
  const ring = keyRing([SAMPLE_KEY, OTHER_KEY]);
  expect(ring.find(OTHER_KEY.fingerprint)).toBe(OTHER_KEY);
  expect(ring.find("00000000")).toBeNull();
  expect([ring.size, ring.fingerprints]).toEqual([2, [SAMPLE_KEY.fingerprint, OTHER_KEY.fingerprint]]);
  expect([emptyKeyRing.size, emptyKeyRing.find(SAMPLE_KEY.fingerprint)]).toEqual([0, null]);
});

describe("sealing a chunk", () => {
  const context: SealContext = {
    key: SAMPLE_KEY.key,
    nonceSeed: `${"a1".repeat(16)}fffffffffffffff0`,
    headerSha256: new Uint8Array(32).fill(5),
  };
  const chunk = { type: "data", offset: 0x12_3456_789a } as const;
  const frame = new Uint8Array(100).fill(9);

  test("takes nonce and associated data as documented, and wraps the nonce's counter round", () => {
    const nonce = Buffer.concat([
      Buffer.from("a1".repeat(16), "hex"),
      u64((0xffff_ffff_ffff_fff0n + 0x12_3456_789an) % 2n ** 64n),
    ]);
    const associated = Buffer.concat([context.headerSha256, u64(chunk.offset), Buffer.of(0, 0)]);
    const expected = xchacha20poly1305(SAMPLE_KEY.key, new Uint8Array(nonce), new Uint8Array(associated)).encrypt(
      frame,
    );
    expect(sealFrame(context, chunk, frame)).toEqual(expected);
  });

  test("is undone by opening it, from any view of any buffer", () => {
    const stored = Buffer.concat([Buffer.alloc(3), sealFrame(context, chunk, frame)]).subarray(3);
    expect(stored.length).toBe(frame.length + 16);
    expect(openSealedFrame(context, { ...chunk, subject: "x" }, stored)).toEqual(frame);
  });

  test("binds key, seed, header, offset, type and every bit", async () => {
    const stored = sealFrame(context, chunk, frame);
    const place = { ...chunk, subject: "app/x" };
    const others: [SealContext, ChunkPlace][] = [
      [{ ...context, key: OTHER_KEY.key }, place],
      [{ ...context, nonceSeed: "00".repeat(24) }, place],
      [{ ...context, headerSha256: new Uint8Array(32) }, place],
      [context, { ...place, offset: chunk.offset + 1 }],
      [context, { ...place, type: "index" }],
      [context, { ...place, type: "trailer" }],
    ];
    for (const [other, elsewhere] of others)
      await expectCode("replica-corrupt", () => openSealedFrame(other, elsewhere, stored));
    for (let bit = 0; bit < stored.length * 8; bit++) {
      const changed = stored.slice();
      changed[bit >> 3] = (changed[bit >> 3] ?? 0) ^ (1 << (bit & 7));
      await expectCode("replica-corrupt", () => openSealedFrame(context, place, changed));
    }
    for (let length = 0; length < stored.length; length++) {
      await expectCode("replica-corrupt", () => openSealedFrame(context, place, stored.subarray(0, length)));
    }
  });
});

describe("sealing in bulk", () => {
  const sealing = fc.record({
    key: rawKey,
    nonceSeed: fc.uint8Array({ minLength: 24, maxLength: 24 }).map((seed) => seed.toHex()),
    headerSha256: rawKey,
  });
  const place = fc.record({
    type: fc.constantFrom("data" as const, "index" as const, "trailer" as const),
    offset: fc.maxSafeNat(),
  });

  test("gives the same bytes as the other cipher, and each opens what the other sealed", async () => {
    await fc.assert(
      fc.asyncProperty(sealing, place, fc.uint8Array({ maxLength: 5000 }), async (context, chunk, frame) => {
        const stored = sealFrame(context, chunk, frame);
        expect(await sealBulk(context, chunk, frame)).toEqual(stored);
        const subject = "app/x";
        const view = Buffer.concat([Buffer.alloc(5), stored, Buffer.alloc(7)]).subarray(5, 5 + stored.length);
        expect(await openSealedBulk(context, { ...chunk, subject }, view)).toEqual(frame);
        expect(openSealedFrame(context, { ...chunk, subject }, stored)).toEqual(frame);
      }),
    );
  });

  test("gives the same bytes for the largest data chunk, from memory that is shared too", async () => {
    const context = { key: SAMPLE_KEY.key, nonceSeed: "5c".repeat(24), headerSha256: new Uint8Array(32) };
    const frame = new Uint8Array(new SharedArrayBuffer(262_152)).fill(7);
    const chunk = { type: "data", offset: 77 } as const;
    expect(await sealBulk(context, chunk, frame)).toEqual(sealFrame(context, chunk, frame));
  });

  test("notices every changed bit, and every byte that is missing", async () => {
    const context = { key: SAMPLE_KEY.key, nonceSeed: "5c".repeat(24), headerSha256: new Uint8Array(32) };
    const at = { type: "data", offset: 77, subject: "app/x" } as const;
    const stored = await sealBulk(context, at, new Uint8Array(60).fill(3));
    for (let bit = 0; bit < stored.length * 8; bit++) {
      const changed = stored.slice();
      changed[bit >> 3] = (changed[bit >> 3] ?? 0) ^ (1 << (bit & 7));
      const error = await expectCode("replica-corrupt", () => openSealedBulk(context, at, changed));
      expect(error.message).toBe("stored object is damaged: the seal of the data chunk at byte 77 is broken");
    }
    for (let length = 0; length < stored.length; length++)
      await expectCode("replica-corrupt", () => openSealedBulk(context, at, stored.subarray(0, length)));
    await expectCode("replica-corrupt", () => openSealedBulk({ ...context, headerSha256: rawBytes }, at, stored));
  });

  test("gives the same bytes where the runtime has no such cipher", async () => {
    const { subtle } = crypto;
    const original = subtle.importKey;
    subtle.importKey = () => Promise.reject(new DOMException("no", "NotSupportedError"));
    try {
      const context = { key: SAMPLE_KEY.key, nonceSeed: "6d".repeat(24), headerSha256: new Uint8Array(32) };
      const at = { type: "index", offset: 5, subject: "app/x" } as const;
      const stored = await sealBulk(context, at, rawBytes);
      expect(stored).toEqual(sealFrame(context, at, rawBytes));
      expect(await openSealedBulk(context, at, stored)).toEqual(rawBytes);
    } finally {
      subtle.importKey = original;
    }
  });

  test("is done by the runtime's own cipher", async () => {
    const format = "raw-secret" as "raw";
    const algorithm = { name: "ChaCha20-Poly1305" };
    expect((await crypto.subtle.importKey(format, rawBytes, algorithm, false, ["encrypt"])).type).toBe("secret");
  });
});

describe("key text", () => {
  const example = formatKeyText(Uint8Array.from({ length: 32 }, (_, i) => i));

  test("has the documented form", () => {
    expect(example).toBe("BAKELITE-KEY-V1-000G40R40M30E209185GR38E1W8124GK2GAHC5RR34D1P70X3RFP63ED");
  });

  test("survives being written and read, also in lower case, with hyphens and with white space around it", () => {
    fc.assert(
      fc.property(rawKey, (raw) => {
        const text = formatKeyText(raw);
        const grouped = text.slice(16).replaceAll(/(.{8})/g, "$1-");
        const wrapped = `\ufeff${text.slice(0, 40)}\r\n${text.slice(40)}\r\n`;
        for (const variant of [text, `\r\n ${text}\n\n`, text.toLowerCase(), `BAKELITE-KEY-V1-${grouped}`, wrapped]) {
          expect(parseKeyText(variant)).toEqual(raw);
        }
      }),
    );
  });

  test("reads I, L and O as the digits that they look like", () => {
    const lookalike = `${example.slice(0, 16)}${example.slice(16).replaceAll("0", "O").replaceAll("1", "l").replace("l", "I")}`;
    expect(parseKeyText(lookalike)).toEqual(Uint8Array.from({ length: 32 }, (_, i) => i));
  });

  test.each([
    "",
    "hello",
    "AGE-SECRET-KEY-1QQQQ",
    "BAKELITE-KEY",
    "BAKELITE-KEY-",
    "BAKELITE-KEY-VX-00",
    "BAKELITE KEY V1 00",
  ])("%j is told to be no key", async (text) => {
    const error = await expectCode("key-wrong", () => parseKeyText(text, "/etc/bakelite/key"));
    expect(error.message).toStartWith("this is not a bakelite key");
    expect(error.subject).toBe("/etc/bakelite/key");
  });

  test("of a later version is told to be one", async () => {
    const error = await expectCode("key-wrong", () => parseKeyText("BAKELITE-KEY-V2-ABCDEF"));
    expect([error.message, error.hint]).toEqual([
      "the key has the unknown version 2",
      "upgrade bakelite to use keys of version 2",
    ]);
  });

  test("with a digit too few or too many, or one outside the alphabet, is told to be mistyped", async () => {
    for (const text of [
      example.slice(0, -1),
      `${example}0`,
      example.slice(0, 16),
      `${example.slice(0, -1)}U`,
      `${example.slice(0, -1)}é`,
    ]) {
      const error = await expectCode("key-wrong", () => parseKeyText(text));
      expect(error.message).toStartWith("the key is mistyped: ");
      expect(`${error.message} ${error.hint}`).not.toContain(example.slice(20, 40));
    }
  });

  test("with any one digit wrong, or two neighbours swapped, is told to be mistyped, and where", async () => {
    const digits = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    for (let i = 16; i < example.length; i++) {
      const wrong =
        example.slice(0, i) + digits.charAt((digits.indexOf(example.charAt(i)) + 5) % 32) + example.slice(i + 1);
      const error = await expectCode("key-wrong", () => parseKeyText(wrong));
      expect(error.message).toBe(`the key is mistyped: its digit ${i - 15} seems to be wrong`);
      const swapped = example.slice(0, i) + example.charAt(i + 1) + example.charAt(i) + example.slice(i + 2);
      if (swapped === example) continue;
      const other = await expectCode("key-wrong", () => parseKeyText(swapped));
      expect(other.message).toBe(`the key is mistyped: its digits ${i - 15} and ${i - 14} seem to be swapped`);
    }
  });

  test("with one digit too few or too many is told where", async () => {
    const key = formatKeyText(Uint8Array.from({ length: 32 }, (_, i) => i * 7 + 1));
    const without = await expectCode("key-wrong", () => parseKeyText(key.slice(0, 30) + key.slice(31)));
    expect(without.message).toBe(
      "the key is mistyped: it has 55 digits instead of 56; one seems to be missing at digit 15",
    );
    const extra = await expectCode("key-wrong", () => parseKeyText(`${key.slice(0, 30)}U${key.slice(30)}`));
    expect(extra.message).toBe("the key is mistyped: its digit 15 is not in the alphabet");
    const double = await expectCode("key-wrong", () => parseKeyText(`${key.slice(0, 30)}9${key.slice(30)}`));
    expect(double.message).toMatch(
      /^the key is mistyped: it has 57 digits instead of 56; digit 1[45] seems to be too many$/,
    );
  });

  test("with many mistakes is told to be mistyped", async () => {
    const scrambled = example.slice(0, 16) + [...example.slice(16)].reverse().join("");
    const error = await expectCode("key-wrong", () => parseKeyText(scrambled));
    expect(error.message).toBe("the key is mistyped: its checksum does not match");
  });
});
