// Writes test/vectors/replica/, key.txt and expected.json. Run by hand only, when the format gets something new:
//
//   npx bun test/vectors/make.ts
//
// Names, seeds and times are fixed, but another version of SQLite or zstd gives other bytes. So the committed bytes are
// the vectors, and readers are held to them; this file says how they came about. Never write them anew to make a test pass.
import { Database } from "bun:sqlite";
import { createHash } from "node:crypto";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { encodeDocument, encodeObject, type PageBatch, type TrailerFields } from "../../src/format/encode.ts";
import { deriveSealKey, formatKeyText, type SealKey } from "../../src/format/envelope.ts";
import type { ObjectHeader } from "../../src/format/header.ts";
import { LineageHasher } from "../../src/format/lineage.ts";
import { currentKey, formatName, manifestKey, type ObjectName, objectKey } from "../../src/format/names.ts";
import { hashPage, lockPageNumber, xorDigest } from "../../src/format/pages.ts";
import { type TimeEpoch, trailerFields } from "../../src/format/trailer.ts";

const HERE = import.meta.dir;
const START_MS = Date.UTC(2026, 0, 1);
const MINUTE_MS = 60_000;
const RAW_KEY = sha256("the key of the vectors");

/** One state: its file, its place among the indexes, and when it was committed. */
interface State {
  readonly index: number;
  readonly file: Uint8Array;
  readonly stampMs: number;
  readonly chain: string;
  readonly epochs: readonly TimeEpoch[];
}

interface Replica {
  readonly database: string;
  readonly pageSizeBytes: number;
  readonly sealKey: SealKey | null;
  readonly stored: {
    readonly name: ObjectName;
    readonly sizeBytes: number;
    readonly trailer: TrailerFields & { readonly pageCount: number };
  }[];
}

/** What a change-set or a full backup is made of; `pages` are those of `state` but where `newer` has another image. */
interface Step {
  readonly name: ObjectName;
  readonly state: State;
  readonly pageNumbers: readonly number[];
  readonly parent: string | null;
  readonly settled: number;
  readonly reason: string;
  readonly newer?: { readonly state: State; readonly pageNumbers: readonly number[] };
  /** The newest input's, in a compacted change-set; else it follows from the pages. */
  readonly result?: string;
  /** The states that a compacted change-set leads to and through. */
  readonly inputs?: readonly State[];
}

rmSync(join(HERE, "replica"), { recursive: true, force: true });
writeFileSync(join(HERE, "key.txt"), `${formatKeyText(RAW_KEY)}\n`);
const expected = {
  plain: await makePlain(),
  sealed: await makeSealed(),
  large: await makeLarge(),
};
writeFileSync(join(HERE, "expected.json"), `${JSON.stringify(expected, null, 2)}\n`);

/**
 * Pages of 512 bytes, zstd, two chains. Change-set 4 shrinks; 5 was read while 6 was committed, and so was the full backup
 * labelled 4, so that state 5 is no restore point and 4 is one by way of the first full backup only; 6 to 10 is one step.
 * From index 5 on the clock runs an hour late.
 */
async function makePlain() {
  const replica = newReplica("plain", 512, null);
  const states = evolve(512, [1, 2, 3, 4, 5, 6, 10, 11], { lateFrom: 5, secondChainFrom: 11 });
  const [s1, s2, s3, s4, s5, s6, s10, s11] = states as [State, State, State, State, State, State, State, State];

  const root = sha256("root of the first chain").toHex();
  await putFull(replica, s1, { result: root, settled: 1, reason: "first start" });
  const r2 = await putChangeSet(replica, { from: s1, to: s2, parent: root });
  const r3 = await putChangeSet(replica, { from: s2, to: s3, parent: r2 });
  const r4 = await putChangeSet(replica, { from: s3, to: s4, parent: r3 });
  const r5 = await putChangeSet(replica, { from: s4, to: s5, parent: r4, readDuring: s6 });
  const r6 = await putChangeSet(replica, { from: s5, to: s6, parent: r5 });
  const r10 = await putChangeSet(replica, { from: s6, to: s10, parent: r6 });
  await putCompacted(replica, { steps: [s1, s2, s3], parent: root, result: r3 });
  await putFull(replica, s4, { result: r4, settled: 6, reason: "interval", readDuring: s6 });
  const second = sha256("root of the second chain").toHex();
  await putFull(replica, s11, { result: second, settled: 11, reason: "no ledger" });
  await putDocuments(replica, { newest: s11, full: 11, lineage: second });

  expectTrue(pageCount(s4.file, 512) < pageCount(s3.file, 512), "change-set 4 shrinks");
  expectTrue(r10 !== r6, "the last step has a lineage of its own");
  return expectedOf(replica, states, [1, 2, 3, 4, 6, 10, 11]);
}

/** Pages of 1024 bytes, zstd, sealed. Change-sets 2 and 3 are there in their compacted form only: state 2 is lost. */
async function makeSealed() {
  const replica = newReplica("sealed", 1024, deriveSealKey(RAW_KEY));
  const states = evolve(1024, [1, 2, 3, 4, 5, 6], { lateFrom: 99, secondChainFrom: 99 });
  const [s1, s2, s3, s4, s5, s6] = states as [State, State, State, State, State, State];

  const root = sha256("root of the sealed chain").toHex();
  await putFull(replica, s1, { result: root, settled: 1, reason: "first start" });
  const r2 = lineageOf({ parent: root, from: s1, to: s2, pageSizeBytes: 1024 });
  const r3 = lineageOf({ parent: r2, from: s2, to: s3, pageSizeBytes: 1024 });
  await putCompacted(replica, { steps: [s1, s2, s3], parent: root, result: r3 });
  const r4 = await putChangeSet(replica, { from: s3, to: s4, parent: r3 });
  const r5 = await putChangeSet(replica, { from: s4, to: s5, parent: r4, readDuring: s6 });
  const r6 = await putChangeSet(replica, { from: s5, to: s6, parent: r5 });
  await putDocuments(replica, { newest: s6, full: 1, lineage: r6 });
  return expectedOf(replica, states, [1, 3, 4, 6]);
}

/** Pages of 65,536 bytes, nearly all of them zeros: 65 data chunks and so two index chunks in a few thousand bytes. */
async function makeLarge() {
  const pageSizeBytes = 65_536;
  const replica = newReplica("large", pageSizeBytes, null);
  const states = recordStates(pageSizeBytes, [1, 2], { lateFrom: 99, secondChainFrom: 99 }, (db, index) => {
    if (index === 1) db.run("CREATE TABLE blobs (body BLOB)");
    db.run("INSERT INTO blobs VALUES (zeroblob(?))", [index === 1 ? 257 * pageSizeBytes : 3 * pageSizeBytes]);
  });
  const [s1, s2] = states as [State, State];
  const root = sha256("root of the large chain").toHex();
  await putFull(replica, s1, { result: root, settled: 1, reason: "first start" });
  const r2 = await putChangeSet(replica, { from: s1, to: s2, parent: root });
  await putDocuments(replica, { newest: s2, full: 1, lineage: r2 });
  return expectedOf(replica, states, [1, 2]);
}

interface Clock {
  /** From this index on the clock is an hour late. */
  readonly lateFrom: number;
  readonly secondChainFrom: number;
}

/** A small address book that grows, changes, shrinks and is changed again. */
function evolve(pageSizeBytes: number, indexes: readonly number[], clock: Clock): State[] {
  return recordStates(pageSizeBytes, indexes, clock, (db, index) => {
    switch (index) {
      case 1:
        db.run("CREATE TABLE people (id INTEGER PRIMARY KEY, name TEXT, note TEXT)");
        db.run("CREATE INDEX people_by_name ON people (name)");
        insertPeople(db, 1, 24);
        break;
      case 2:
        insertPeople(db, 25, 30);
        break;
      case 3:
        insertPeople(db, 31, 60);
        db.run("UPDATE people SET note = upper(note) WHERE id % 7 = 0");
        break;
      case 4:
        db.run("DELETE FROM people WHERE id > 40");
        db.run("VACUUM");
        break;
      case 5:
        db.run("UPDATE people SET note = 'five ' || note WHERE id < 34");
        break;
      case 6:
        db.run("UPDATE people SET note = 'six ' || note WHERE id < 28");
        insertPeople(db, 61, 66);
        break;
      default:
        db.run("UPDATE people SET name = name || ? WHERE id = 3", [` ${index}`]);
    }
  });
}

function insertPeople(db: Database, from: number, to: number): void {
  for (let id = from; id <= to; id++) {
    db.run("INSERT INTO people VALUES (?, ?, ?)", [
      id,
      `Person ${sha256(`name ${id}`).toHex().slice(0, 12)}`,
      `Note ${id} `.repeat(1 + (id % 12)),
    ]);
  }
}

/** Lets SQLite make one state after the other; a state is the file after a checkpoint of everything. */
function recordStates(
  pageSizeBytes: number,
  indexes: readonly number[],
  clock: Clock,
  work: (db: Database, index: number) => void,
): State[] {
  const folder = mkdtempSync(join(tmpdir(), "bakelite-vectors-"));
  const path = join(folder, "app.db");
  const db = new Database(path, { strict: true });
  try {
    db.run(`PRAGMA page_size = ${pageSizeBytes}`);
    db.run("PRAGMA journal_mode = WAL");
    return indexes.map((index) => {
      work(db, index);
      db.run("PRAGMA wal_checkpoint(TRUNCATE)");
      return {
        index,
        file: readFileSync(path),
        ...timesOf(index, clock),
        chain: sha256(`chain ${pageSizeBytes} ${index >= clock.secondChainFrom}`)
          .toHex()
          .slice(0, 32),
      };
    });
  } finally {
    db.close();
    rmSync(folder, { recursive: true });
  }
}

function timesOf(index: number, { lateFrom }: Clock): Pick<State, "stampMs" | "epochs"> {
  const stampOf = (index: number) => START_MS + index * MINUTE_MS - (index >= lateFrom ? 60 * MINUTE_MS : 0);
  const epochs = [{ number: 1, firstIndex: 1, firstStampMs: stampOf(1) }];
  if (index >= lateFrom) epochs.push({ number: 2, firstIndex: lateFrom, firstStampMs: stampOf(lateFrom) });
  return { stampMs: stampOf(index), epochs };
}

function newReplica(database: string, pageSizeBytes: number, sealKey: SealKey | null): Replica {
  return { database, pageSizeBytes, sealKey, stored: [] };
}

interface Full {
  readonly result: string;
  readonly settled: number;
  readonly reason: string;
  /** A later state, whose images every second page has. */
  readonly readDuring?: State;
}

async function putFull(replica: Replica, state: State, { result, settled, reason, readDuring }: Full): Promise<void> {
  const name = { kind: "full", index: state.index, seal: sealOf(replica) } as const;
  const pageNumbers = pagesOf(state.file, replica.pageSizeBytes);
  const overlap =
    readDuring === undefined
      ? []
      : pageNumbers.filter((page) => page % 2 === 0 && page <= pageCount(readDuring.file, replica.pageSizeBytes));
  const newer = readDuring === undefined ? {} : { newer: { state: readDuring, pageNumbers: overlap } };
  await putStep(replica, { name, state, pageNumbers, parent: null, settled, reason, result, ...newer });
}

interface Change {
  readonly from: State;
  readonly to: State;
  readonly parent: string;
  /** The state after `to`: pages that differ in it as well have its images. */
  readonly readDuring?: State;
}

async function putChangeSet(replica: Replica, { from, to, parent, readDuring }: Change): Promise<string> {
  const { pageSizeBytes } = replica;
  const name = { kind: "change-set", level: 0, first: from.index + 1, last: to.index, seal: sealOf(replica) } as const;
  const pageNumbers = changedPages(from, to, pageSizeBytes);
  if (readDuring === undefined)
    return await putStep(replica, { name, state: to, pageNumbers, parent, settled: to.index, reason: "wal" });
  const both = changedPages(to, readDuring, pageSizeBytes).filter((page) => pageNumbers.includes(page));
  expectTrue(both.length > 1, "some pages change twice");
  const newer = { state: readDuring, pageNumbers: both.slice(1) };
  return await putStep(replica, {
    name,
    state: to,
    pageNumbers,
    parent,
    settled: readDuring.index,
    reason: "comparison",
    newer,
  });
}

async function putCompacted(
  replica: Replica,
  { steps, parent, result }: { steps: [State, State, State]; parent: string; result: string },
): Promise<void> {
  const [before, middle, after] = steps;
  const name = {
    kind: "change-set",
    level: 1,
    first: before.index + 1,
    last: after.index,
    seal: sealOf(replica),
  } as const;
  const size = pageCount(after.file, replica.pageSizeBytes);
  const changed = new Set([
    ...changedPages(before, middle, replica.pageSizeBytes),
    ...changedPages(middle, after, replica.pageSizeBytes),
  ]);
  const pageNumbers = [...changed].filter((page) => page <= size).sort((a, b) => a - b);
  await putStep(replica, {
    name,
    state: after,
    pageNumbers,
    parent,
    settled: after.index,
    reason: "compaction",
    result,
    inputs: [middle, after],
  });
}

/** Encodes and writes one object; returns the lineage that it leads to. */
async function putStep(replica: Replica, step: Step): Promise<string> {
  const { database, pageSizeBytes, stored } = replica;
  const { name, state, parent } = step;
  const batch = batchOf(step, pageSizeBytes);
  const sizePages = pageCount(state.file, pageSizeBytes);
  const isFull = name.kind === "full";
  const result = step.result ?? finishLineage(parent ?? "", state.index, batch, sizePages);
  const trailer: TrailerFields = {
    last: state.index,
    settled: step.settled,
    sizePages,
    parent,
    result,
    digest: step.newer === undefined ? digestOf(state.file, pageSizeBytes) : null,
    firstCommitMs: (step.inputs?.[0] ?? state).stampMs - 1000,
    lastCommitMs: state.stampMs,
    commits: step.reason === "comparison" ? 0 : (step.inputs?.length ?? 1),
    epochs: state.epochs,
    wal: isFull ? null : { salt: [0x1234_5678, state.index], frame: 10 * state.index, checksum: [0xdead_beef, 1] },
    reason: step.reason,
  };
  const fields = { level: isFull ? 0 : name.level, first: isFull ? name.index : name.first };
  const header = headerOf(replica, { kind: name.kind, ...fields, chain: state.chain, label: formatName(name) });
  const pieces = encodeObject(
    { header, sealKey: replica.sealKey?.key ?? null, compressionLevel: 3 },
    [batch],
    () => trailer,
  );
  const bytes = Buffer.concat(await Array.fromAsync(pieces));
  write(objectKey(database, name), bytes);
  stored.push({ name, sizeBytes: bytes.length, trailer: { ...trailer, pageCount: batch.pageNumbers.length } });
  return result;
}

async function putDocuments(
  replica: Replica,
  { newest, full, lineage }: { newest: State; full: number; lineage: string },
): Promise<void> {
  const options = (kind: "current" | "manifest") => ({
    header: headerOf(replica, { kind, level: 0, first: newest.index, chain: newest.chain, label: kind }),
    sealKey: replica.sealKey?.key ?? null,
    compressionLevel: 3,
  });
  const hint = {
    chain: newest.chain,
    full,
    seal: sealOf(replica),
    index: newest.index,
    lineage,
    written_ms: newest.stampMs + 500,
  };
  write(currentKey(replica.database), await encodeDocument(options("current"), hint));
  const objects = replica.stored.map(({ name, sizeBytes, trailer }) => ({
    name: formatName(name),
    size: sizeBytes,
    ...trailerFields(trailer),
  }));
  write(manifestKey(replica.database), await encodeDocument(options("manifest"), { objects }));
}

function headerOf(
  replica: Replica,
  header: Pick<ObjectHeader, "kind" | "level" | "first" | "chain"> & { readonly label: string },
): ObjectHeader {
  const { database, pageSizeBytes, sealKey } = replica;
  const { label, ...fields } = header;
  return {
    writer: "bakelite vectors",
    database,
    pageSizeBytes,
    compression: "zstd",
    cipher: sealKey === null ? "none" : "xchacha20-poly1305",
    keyFingerprint: sealKey?.fingerprint ?? null,
    nonceSeed: sha256(`seed ${database} ${label}`).toHex().slice(0, 48),
    session: sha256(`session ${database}`).toHex().slice(0, 32),
    run: sha256(`run ${database}`).toHex().slice(0, 32),
    ...fields,
  };
}

function expectedOf(replica: Replica, states: readonly State[], restorePoints: readonly number[]) {
  return {
    page_size: replica.pageSizeBytes,
    key_file: replica.sealKey === null ? null : "key.txt",
    states: states.map((state) => ({
      index: state.index,
      restore_point: restorePoints.includes(state.index),
      stamp_ms: state.stampMs,
      size_pages: pageCount(state.file, replica.pageSizeBytes),
      sha256: sha256(state.file).toHex(),
    })),
  };
}

function batchOf({ state, pageNumbers, newer }: Step, pageSizeBytes: number): PageBatch {
  const images = pageNumbers.map((page) =>
    imageOf(newer?.pageNumbers.includes(page) === true ? newer.state.file : state.file, page, pageSizeBytes),
  );
  return {
    pageNumbers: Uint32Array.from(pageNumbers),
    images: Buffer.concat(images),
    hashes: Buffer.concat(images.map((image, i) => hashPage(pageNumbers[i] ?? 0, image))),
  };
}

function lineageOf({ parent, from, to, pageSizeBytes }: Change & { readonly pageSizeBytes: number }): string {
  const pageNumbers = changedPages(from, to, pageSizeBytes);
  const name = { kind: "change-set", level: 0, first: to.index, last: to.index, seal: "p" } as const;
  const batch = batchOf({ name, state: to, pageNumbers, parent, settled: to.index, reason: "wal" }, pageSizeBytes);
  return finishLineage(parent, to.index, batch, pageCount(to.file, pageSizeBytes));
}

function finishLineage(parent: string, last: number, { pageNumbers, hashes }: PageBatch, sizePages: number): string {
  const hasher = new LineageHasher(Uint8Array.fromHex(parent), last);
  hasher.add(pageNumbers, hashes);
  return hasher.finish(sizePages).toHex();
}

function digestOf(file: Uint8Array, pageSizeBytes: number): string {
  const digest = new Uint8Array(16);
  for (const page of pagesOf(file, pageSizeBytes))
    xorDigest(digest, hashPage(page, imageOf(file, page, pageSizeBytes)));
  return digest.toHex();
}

function changedPages(from: State, to: State, pageSizeBytes: number): number[] {
  const sizeBefore = pageCount(from.file, pageSizeBytes);
  return pagesOf(to.file, pageSizeBytes).filter(
    (page) =>
      page > sizeBefore ||
      Buffer.compare(imageOf(from.file, page, pageSizeBytes), imageOf(to.file, page, pageSizeBytes)) !== 0,
  );
}

function pagesOf(file: Uint8Array, pageSizeBytes: number): number[] {
  expectTrue(pageCount(file, pageSizeBytes) < lockPageNumber(pageSizeBytes), "no lock page to leave out");
  return Array.from({ length: pageCount(file, pageSizeBytes) }, (_, i) => i + 1);
}

function imageOf(file: Uint8Array, pageNumber: number, pageSizeBytes: number): Uint8Array {
  return file.subarray((pageNumber - 1) * pageSizeBytes, pageNumber * pageSizeBytes);
}

function pageCount(file: Uint8Array, pageSizeBytes: number): number {
  return file.length / pageSizeBytes;
}

function sealOf({ sealKey }: Replica): string {
  return sealKey?.fingerprint ?? "p";
}

function sha256(data: string | Uint8Array): Uint8Array {
  return new Uint8Array(createHash("sha256").update(data).digest());
}

function write(key: string, bytes: Uint8Array): void {
  const path = join(HERE, "replica", key);
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, bytes);
}

function expectTrue(condition: boolean, what: string): void {
  if (!condition) throw new Error(`the vectors do not hold what they are for: ${what}`);
}
