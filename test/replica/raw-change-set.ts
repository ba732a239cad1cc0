import { encodeObject } from "../../src/format/encode.ts";
import { type ObjectName, objectKey } from "../../src/format/names.ts";
import { hashPage, PAGE_HASH_BYTES } from "../../src/format/pages.ts";
import { type Backend, bytesSource } from "../../src/storage/backend.ts";

export interface RawChangeSet {
  readonly level?: number;
  readonly first: number;
  readonly last?: number;
  readonly sizePages: number;
  /** Page numbers, each with the byte that fills it. */
  readonly pages: ReadonlyMap<number, number>;
  readonly pageSizeBytes?: number;
  readonly stampMs: number;
}

/** Stores a plaintext change-set of database `app` that says of itself what it is told, true or not; its lineages are by index. */
export async function storeRaw(backend: Backend, change: RawChangeSet): Promise<string> {
  const { level = 0, first, last = first, sizePages, pages, pageSizeBytes = 512, stampMs } = change;
  const name: ObjectName = { kind: "change-set", level, first, last, seal: "p" };
  const numbers = [...pages.keys()].sort((a, b) => a - b);
  const batch = {
    pageNumbers: Uint32Array.from(numbers),
    images: new Uint8Array(numbers.length * pageSizeBytes),
    hashes: new Uint8Array(numbers.length * PAGE_HASH_BYTES),
  };
  for (const [i, page] of numbers.entries()) {
    const image = batch.images.subarray(i * pageSizeBytes, (i + 1) * pageSizeBytes).fill(pages.get(page) ?? 0);
    hashPage(page, image, batch.hashes, i * PAGE_HASH_BYTES);
  }
  const header = {
    writer: "raw",
    kind: "change-set",
    database: "app",
    level,
    first,
    chain: "c".repeat(32),
    pageSizeBytes,
    compression: "none",
    cipher: "none",
    keyFingerprint: null,
    nonceSeed: "e".repeat(48),
    session: "a".repeat(32),
    run: "b".repeat(32),
  } as const;
  const trailer = {
    last,
    settled: last,
    sizePages,
    parent: lineageOf(first - 1),
    result: lineageOf(last),
    digest: null,
    firstCommitMs: stampMs,
    lastCommitMs: stampMs,
    commits: 1,
    epochs: [{ number: 1, firstIndex: 1, firstStampMs: 0 }],
    wal: null,
    reason: level === 0 ? "wal" : "compaction",
  };
  const parts = encodeObject({ header, sealKey: null, compressionLevel: 1 }, [batch], () => trailer);
  const key = objectKey("app", name);
  await backend.put(key, bytesSource(Buffer.concat(await Array.fromAsync(parts))));
  return key;
}

function lineageOf(index: number): string {
  return `${index}`.padStart(64, "0");
}
