import { Database } from "bun:sqlite";
import { describe, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { type DecodeOptions, openObject, readDocument, verifyObject } from "../../src/format/decode.ts";
import { deriveSealKey, emptyKeyRing, type KeyRing, keyRing, parseKeyText } from "../../src/format/envelope.ts";
import type { ObjectHeader } from "../../src/format/header.ts";
import { currentKey, formatName, manifestKey, type ObjectName, parseName } from "../../src/format/names.ts";
import type { StateTrailer } from "../../src/format/trailer.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";
import { digestByDefinition, expectCode, fromBatch, memorySource, type Page } from "./samples.ts";

const VECTORS = join(import.meta.dir, "../vectors");
const REPLICA = join(VECTORS, "replica");
const DATABASES = ["plain", "sealed", "large"] as const;

interface ExpectedState {
  readonly index: number;
  readonly restore_point: boolean;
  readonly stamp_ms: number;
  readonly size_pages: number;
  readonly sha256: string;
}

interface Expected {
  readonly page_size: number;
  readonly key_file: string | null;
  readonly states: readonly ExpectedState[];
}

/** One object of a replica, verified, with all its pages. */
interface StoredObject {
  readonly name: ObjectName;
  readonly header: ObjectHeader;
  readonly trailer: StateTrailer;
  readonly pages: readonly Page[];
  readonly sizeBytes: number;
}

const expected: Readonly<Record<string, Expected>> = JSON.parse(readFileSync(join(VECTORS, "expected.json"), "utf8"));

function expectedOf(database: string): Expected {
  const found = expected[database];
  if (found === undefined) throw new Error(`expected.json has no ${database}`);
  return found;
}

function keysOf({ key_file }: Expected): KeyRing {
  return key_file === null
    ? emptyKeyRing
    : keyRing([deriveSealKey(parseKeyText(readFileSync(join(VECTORS, key_file), "utf8")))]);
}

function decodingOf(database: string, name: DecodeOptions["name"]): DecodeOptions {
  return {
    name,
    database,
    subject: `${database} ${JSON.stringify(name)}`,
    keys: keysOf(expectedOf(database)),
    acceptPlaintext: false,
  };
}

async function readReplica(database: string): Promise<StoredObject[]> {
  const folder = join(REPLICA, database);
  const texts = readdirSync(folder, { recursive: true, encoding: "utf8" }).sort();
  const objects: StoredObject[] = [];
  for (const text of texts) {
    const name = parseName(text);
    if (name === null) continue;
    const bytes = readFileSync(join(folder, text));
    const pages: Page[] = [];
    const { header, trailer } = await verifyObject(memorySource(bytes), decodingOf(database, name), {
      onPages: (batch) => {
        pages.push(...fromBatch(batch, expectedOf(database).page_size));
      },
    });
    objects.push({ name, header, trailer, pages, sizeBytes: bytes.length });
  }
  return objects;
}

// docs/storage-format.md section 8, written down once more as plainly as can be.

/** Every path from a full backup to state `index` that makes it a restore point; newest full backup first. */
function pathsTo(index: number, objects: readonly StoredObject[]): StoredObject[][] {
  const extend = (path: StoredObject[]): StoredObject[][] => {
    const newest = path.at(-1);
    if (newest === undefined) return [];
    if (newest.trailer.last === index) return path.every(({ trailer }) => trailer.settled <= index) ? [path] : [];
    return objects.flatMap((next) => {
      const follows =
        next.header.kind === "change-set" &&
        next.header.chain === newest.header.chain &&
        next.header.first === newest.trailer.last + 1 &&
        next.trailer.parent === newest.trailer.result &&
        next.trailer.last <= index;
      return follows ? extend([...path, next]) : [];
    });
  };
  const fulls = objects.filter(({ header }) => header.kind === "full" && header.first <= index);
  return fulls.sort((a, b) => b.header.first - a.header.first).flatMap((full) => extend([full]));
}

function restore(path: readonly StoredObject[], pageSizeBytes: number): Uint8Array {
  let state = new Map<number, Uint8Array>();
  for (const { trailer, pages } of path) {
    state = new Map([...state].filter(([pageNumber]) => pageNumber <= trailer.sizePages));
    for (const { pageNumber, image } of pages) state.set(pageNumber, image);
  }
  const newest = path.at(-1)?.trailer;
  const file = new Uint8Array((newest?.sizePages ?? 0) * pageSizeBytes);
  for (const [pageNumber, image] of state) file.set(image, (pageNumber - 1) * pageSizeBytes);
  const digest = digestByDefinition([...state].map(([pageNumber, image]) => ({ pageNumber, image })));
  if (newest?.digest !== null) expect(digest).toBe(newest?.digest ?? "");
  return file;
}

describe.each(DATABASES)("the stored vector %s", (database) => {
  const { page_size, states } = expectedOf(database);

  test("restores to the very bytes at every restore point, by every path", async () => {
    const objects = await readReplica(database);
    for (const state of states) {
      const paths = pathsTo(state.index, objects);
      expect({ index: state.index, restorePoint: paths.length > 0 }).toEqual({
        index: state.index,
        restorePoint: state.restore_point,
      });
      for (const path of paths) {
        const file = restore(path, page_size);
        expect(createHash("sha256").update(file).digest("hex")).toBe(state.sha256);
        expect(file.length).toBe(state.size_pages * page_size);
        expect(path.at(-1)?.trailer.lastCommitMs).toBe(state.stamp_ms);
      }
    }
  });

  test("restores to databases that SQLite finds sound", async () => {
    await using directory = await temporaryDirectory("vectors");
    const objects = await readReplica(database);
    for (const state of states.filter((state) => state.restore_point)) {
      const path = directory.file(`${state.index}.db`);
      await Bun.write(path, restore(pathsTo(state.index, objects)[0] ?? [], page_size));
      using db = new Database(path, { strict: true });
      expect(db.query("PRAGMA integrity_check").values()).toEqual([["ok"]]);
      expect(db.query("PRAGMA journal_mode").values()).toEqual([["wal"]]);
    }
  });

  test("has a CURRENT and a manifest that tell what is there", async () => {
    const objects = await readReplica(database);
    const read = (key: string, kind: "current" | "manifest") =>
      readDocument(readFileSync(join(REPLICA, key)), decodingOf(database, { kind }));
    const { fields: current } = read(currentKey(database), "current");
    const newest = objects.reduce((newest, object) => (object.trailer.last > newest.trailer.last ? object : newest));
    expect(current).toMatchObject({
      chain: newest.header.chain,
      index: newest.trailer.last,
      lineage: newest.trailer.result,
      seal: newest.name.seal,
    });
    expect(objects.map(({ name }) => formatName(name))).toContain(
      formatName({ kind: "full", index: Number(current["full"]), seal: newest.name.seal }),
    );

    const { fields: manifest } = read(manifestKey(database), "manifest");
    const entries = manifest["objects"] as { name: string; size: number; result: string; settled: number }[];
    const told = entries.map(({ name, size, result, settled }) => ({ name, size, result, settled }));
    const found = objects.map(({ name, sizeBytes, trailer: { result, settled } }) => ({
      name: formatName(name),
      size: sizeBytes,
      result,
      settled,
    }));
    expect(told.sort((a, b) => a.name.localeCompare(b.name))).toEqual(
      found.sort((a, b) => a.name.localeCompare(b.name)),
    );
  });
});

test("the sealed vector is closed to whoever has not its key", async () => {
  const folder = join(REPLICA, "sealed");
  for (const text of readdirSync(folder, { recursive: true, encoding: "utf8" })) {
    const name = parseName(text);
    if (name === null) continue;
    const options = { ...decodingOf("sealed", name), keys: emptyKeyRing };
    await expectCode("key-wrong", () => openObject(memorySource(readFileSync(join(folder, text))), options));
  }
});

test("the vectors hold what they are for", async () => {
  const objects = (await Promise.all(DATABASES.map(readReplica))).flat();
  expect(objects.some(({ trailer }) => trailer.indexChunks.length > 1)).toBe(true);
  expect(objects.some(({ header, trailer }) => header.kind === "change-set" && trailer.settled > trailer.last)).toBe(
    true,
  );
  expect(objects.some(({ header, trailer }) => header.kind === "full" && trailer.settled > trailer.last)).toBe(true);
  expect(objects.some(({ header }) => header.level === 1)).toBe(true);
  expect(
    objects.some(
      ({ header, trailer }) => header.kind === "change-set" && header.level === 0 && trailer.last > header.first,
    ),
  ).toBe(true);
  expect(objects.some(({ trailer }) => trailer.epochs.length > 1)).toBe(true);
  expect(new Set(objects.map(({ header }) => header.chain)).size).toBe(4);
});
