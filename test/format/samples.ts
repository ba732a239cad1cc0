import { expect } from "bun:test";
import { createHash } from "node:crypto";
import type { DecodeOptions, RangeSource } from "../../src/format/decode.ts";
import { type EncodeOptions, encodeObject, type PageBatch, type TrailerFields } from "../../src/format/encode.ts";
import { deriveSealKey, emptyKeyRing, keyRing } from "../../src/format/envelope.ts";
import type { ObjectHeader } from "../../src/format/header.ts";
import type { ObjectName } from "../../src/format/names.ts";
import { BakeliteError, type ErrorCode } from "../../src/util/errors.ts";
import { fc } from "../support/properties.ts";

/** The key that samples are sealed with, and one that opens none of them. */
export const SAMPLE_KEY = deriveSealKey(new Uint8Array(32).fill(7));
export const OTHER_KEY = deriveSealKey(new Uint8Array(32).fill(8));

export interface Page {
  readonly pageNumber: number;
  readonly image: Uint8Array;
}

export interface SampleShape {
  readonly kind?: "full" | "change-set";
  readonly level?: number;
  readonly first?: number;
  readonly last?: number;
  readonly sizePages?: number;
  readonly pageSizeBytes?: number;
  readonly compression?: "zstd" | "none";
  readonly sealed?: boolean;
  readonly parent?: string;
}

export interface Sample {
  readonly header: ObjectHeader;
  readonly trailer: TrailerFields;
  readonly options: EncodeOptions;
  readonly name: ObjectName;
  readonly decoding: DecodeOptions;
}

/** A header, trailer fields and the options that go with them, for these pages. Change-set 5 of `app` by default. */
export function sampleOf(pages: readonly Page[], shape: SampleShape = {}): Sample {
  const { kind = "change-set", level = 0, first = 5, last = first, pageSizeBytes = 512, sealed = false } = shape;
  const sizePages = shape.sizePages ?? pages.at(-1)?.pageNumber ?? 0;
  const header: ObjectHeader = {
    writer: "bakelite 0.1.0",
    kind,
    database: "app",
    level,
    first,
    chain: "0123456789abcdef0123456789abcdef",
    pageSizeBytes,
    compression: shape.compression ?? "zstd",
    cipher: sealed ? "xchacha20-poly1305" : "none",
    keyFingerprint: sealed ? SAMPLE_KEY.fingerprint : null,
    nonceSeed: `${"11".repeat(16)}${"ff".repeat(7)}f0`,
    session: "22".repeat(16),
    run: "33".repeat(16),
  };
  const parent = kind === "full" ? null : (shape.parent ?? "ab".repeat(32));
  const trailer: TrailerFields = {
    last,
    settled: last,
    sizePages,
    parent,
    result: parent === null ? "cd".repeat(32) : lineageByDefinition({ parent, last, pages, sizePages }),
    digest: kind === "full" ? digestByDefinition(pages) : null,
    firstCommitMs: 1_767_225_600_000,
    lastCommitMs: 1_767_225_601_000,
    commits: 2,
    epochs: [
      { number: 1, firstIndex: 1, firstStampMs: 1_767_225_500_000 },
      { number: 2, firstIndex: 4, firstStampMs: 1_767_225_400_000 },
    ],
    wal: { salt: [1, 0xffff_ffff], frame: 17, checksum: [3, 4] },
    reason: "wal",
  };
  const seal = header.keyFingerprint ?? "p";
  const name: ObjectName = kind === "full" ? { kind, index: first, seal } : { kind, level, first, last, seal };
  const keys = sealed ? keyRing([OTHER_KEY, SAMPLE_KEY]) : emptyKeyRing;
  return {
    header,
    trailer,
    options: { header, sealKey: sealed ? SAMPLE_KEY.key : null, compressionLevel: 3 },
    name,
    decoding: { name, database: "app", subject: "app/sample", keys, acceptPlaintext: false },
  };
}

/** The whole object that encodes `pages`, given in one batch. */
export async function encodeSample(
  pages: readonly Page[],
  shape: SampleShape = {},
): Promise<Sample & { readonly bytes: Uint8Array }> {
  const sample = sampleOf(pages, shape);
  return { ...sample, bytes: await collect(encodeObject(sample.options, [toBatch(pages)], () => sample.trailer)) };
}

export async function collect(pieces: AsyncIterable<Uint8Array>): Promise<Uint8Array> {
  return new Uint8Array(Buffer.concat(await Array.fromAsync(pieces)));
}

export function toBatch(pages: readonly Page[]): PageBatch {
  return {
    pageNumbers: Uint32Array.from(pages, (page) => page.pageNumber),
    images: new Uint8Array(Buffer.concat(pages.map((page) => page.image))),
    hashes: new Uint8Array(Buffer.concat(pages.map(pageHashByDefinition))),
  };
}

export function fromBatch({ pageNumbers, images }: PageBatch, pageSizeBytes: number): Page[] {
  return [...pageNumbers].map((pageNumber, i) => ({
    pageNumber,
    image: new Uint8Array(images.subarray(i * pageSizeBytes, (i + 1) * pageSizeBytes)),
  }));
}

/** Bytes in memory, with a note of every read. */
export function memorySource(bytes: Uint8Array): RangeSource & { readonly reads: [start: number, end: number][] } {
  const reads: [number, number][] = [];
  return {
    sizeBytes: bytes.length,
    reads,
    async read(start, end) {
      if (start < 0 || end < start || end > bytes.length)
        throw new Error(`read outside the object: ${start} to ${end}`);
      reads.push([start, end]);
      return bytes.subarray(start, end);
    },
  };
}

/** Waits for `work` to fail as an operator may see it, and returns the error. */
export async function failureOf(work: () => unknown): Promise<BakeliteError> {
  let outcome: unknown;
  try {
    outcome = await work();
  } catch (error) {
    if (error instanceof BakeliteError && error.code !== "internal") return error;
    throw new Error("failed otherwise than an operator may see", { cause: error });
  }
  throw new Error(`did not fail: ${Bun.inspect(outcome)}`);
}

export async function expectCode(code: ErrorCode, work: () => unknown): Promise<BakeliteError> {
  const error = await failureOf(work);
  expect({ code: error.code, message: error.message }).toEqual({ code, message: error.message });
  return error;
}

// What docs/storage-format.md sections 3.2 and 6 define, written once more without care for speed.

export function pageHashByDefinition({ pageNumber, image }: Page): Uint8Array {
  return createHash("sha256").update(u32(pageNumber)).update(image).digest().subarray(0, 16);
}

export function lineageByDefinition(step: {
  parent: string;
  last: number;
  pages: readonly Page[];
  sizePages: number;
}): string {
  const hash = createHash("sha256").update(Buffer.from(step.parent, "hex")).update(u64(step.last));
  for (const page of step.pages) hash.update(u32(page.pageNumber)).update(pageHashByDefinition(page));
  return hash.update(u32(step.sizePages)).digest("hex");
}

export function digestByDefinition(pages: readonly Page[]): string {
  let digest = 0n;
  for (const page of pages) digest ^= BigInt(`0x${Buffer.from(pageHashByDefinition(page)).toString("hex")}`);
  return digest.toString(16).padStart(32, "0");
}

export function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

export function u64(value: number | bigint): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(BigInt(value));
  return bytes;
}

/** Images of every kind that compression meets: of one byte, of text, of noise. */
export function image(pageSizeBytes: number): fc.Arbitrary<Uint8Array> {
  return fc
    .record({
      noise: fc.uint8Array({ minLength: 1, maxLength: 64 }),
      stretch: fc.integer({ min: 1, max: 512 }),
      fill: fc.nat(255),
    })
    .map(({ noise, stretch, fill }) => {
      const bytes = new Uint8Array(pageSizeBytes).fill(fill);
      for (let i = 0; i < Math.min(pageSizeBytes, stretch); i++) bytes[i] = ((noise[i % noise.length] ?? 0) + i) & 255;
      return bytes;
    });
}

/** Pages with ascending numbers, gaps among them. */
export function pages(pageSizeBytes: number, limits: { readonly maxLength: number }): fc.Arbitrary<Page[]> {
  return fc
    .array(fc.record({ gap: fc.integer({ min: 1, max: 5 }), image: image(pageSizeBytes) }), limits)
    .map((steps) => {
      let pageNumber = 0;
      return steps.map(({ gap, image }) => {
        pageNumber += gap;
        return { pageNumber, image };
      });
    });
}

/** Pages 1 to `count` that zstd cannot shrink, of any size; the same for the same seed. */
export function noisePages(count: number, pageSizeBytes: number, seed: string): Page[] {
  return Array.from({ length: count }, (_, i) => {
    const block = createHash("sha256").update(`${seed} ${i}`).digest();
    const bytes = new Uint8Array(pageSizeBytes);
    for (let offset = 0; offset < pageSizeBytes; offset += 32)
      bytes.set(createHash("sha256").update(block).update(u32(offset)).digest(), offset);
    return { pageNumber: i + 1, image: bytes };
  });
}
