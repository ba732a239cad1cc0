import { expect, test } from "bun:test";
import { checkPageHashes } from "../../src/format/decode.ts";
import { LineageHasher } from "../../src/format/lineage.ts";
import { hashPage, lockPageNumber, xorDigest } from "../../src/format/pages.ts";
import { fc } from "../support/properties.ts";
import { digestByDefinition, lineageByDefinition, pageHashByDefinition, pages, toBatch } from "./samples.ts";

test("the lock page is the one that holds byte 2^30", () => {
  expect(lockPageNumber(512)).toBe(2_097_153);
  expect(lockPageNumber(4096)).toBe(262_145);
  expect(lockPageNumber(65_536)).toBe(16_385);
});

test("a page hash is the cut SHA-256 of number and image", () => {
  const number = fc.integer({ min: 1, max: 0xffff_ffff });
  fc.assert(
    fc.property(number, fc.uint8Array({ minLength: 512, maxLength: 512 }), (pageNumber, image) => {
      expect(Buffer.from(hashPage(pageNumber, image))).toEqual(
        Buffer.from(pageHashByDefinition({ pageNumber, image })),
      );
    }),
  );
});

test("a page hash is written where it is asked for, and nowhere else", () => {
  const image = new Uint8Array(512).fill(3);
  const out = new Uint8Array(48);
  expect(hashPage(9, image, out, 16)).toBe(out);
  expect(out).toEqual(new Uint8Array([...new Uint8Array(16), ...hashPage(9, image), ...new Uint8Array(16)]));
  expect(() => hashPage(9, image, out, 33)).toThrow("has room");
});

test("lineage is what its definition says, however the pages are handed in", () => {
  const parent = "5c".repeat(32);
  fc.assert(
    fc.property(
      pages(512, { maxLength: 20 }),
      fc.integer({ min: 1, max: Number.MAX_SAFE_INTEGER }),
      fc.nat(20),
      (pages, last, cut) => {
        const sizePages = (pages.at(-1)?.pageNumber ?? 0) + 3;
        const hasher = new LineageHasher(Buffer.from(parent, "hex"), last);
        for (const part of [pages.slice(0, cut), pages.slice(cut)]) {
          const { pageNumbers, hashes } = toBatch(part);
          hasher.add(pageNumbers, hashes);
        }
        expect(hasher.finish(sizePages).toHex()).toBe(lineageByDefinition({ parent, last, pages, sizePages }));
      },
    ),
  );
});

test("lineage is not made of pages that do not ascend", () => {
  const hasher = new LineageHasher(new Uint8Array(32), 1);
  hasher.add(Uint32Array.of(4), new Uint8Array(16));
  expect(() => hasher.add(Uint32Array.of(4), new Uint8Array(16))).toThrow("ascend");
  expect(() => hasher.finish(3)).toThrow("above the size");
  expect(() => new LineageHasher(new Uint8Array(31), 1)).toThrow("32 bytes");
});

test("a state digest is the XOR of its page hashes, and taking a page out undoes putting it in", () => {
  fc.assert(
    fc.property(pages(512, { maxLength: 12 }), (pages) => {
      const { hashes } = toBatch(pages);
      const digest = new Uint8Array(16);
      for (let offset = 0; offset < hashes.length; offset += 16) xorDigest(digest, hashes, offset);
      expect(digest.toHex()).toBe(digestByDefinition(pages));
      for (let offset = 0; offset < hashes.length; offset += 16) xorDigest(digest, hashes, offset);
      expect(digest).toEqual(new Uint8Array(16));
    }),
  );
});

test("checking page hashes finds the first page that differs", () => {
  fc.assert(
    fc.property(pages(512, { maxLength: 12 }), fc.nat(), fc.boolean(), (pages, choice, inHash) => {
      const { pageNumbers, images, hashes } = toBatch(pages);
      expect(checkPageHashes(pageNumbers, images, hashes, 512)).toBe(-1);
      const damaged = inHash ? hashes : images;
      if (damaged.length === 0) return;
      const byte = choice % damaged.length;
      damaged[byte] = (damaged[byte] ?? 0) ^ 1;
      expect(checkPageHashes(pageNumbers, images, hashes, 512)).toBe(Math.floor(byte / (inHash ? 16 : 512)));
    }),
  );
});
