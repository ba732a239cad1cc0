import { verifyObject } from "../format/decode.ts";
import { encodeObject, type PageBatch, type TrailerFields } from "../format/encode.ts";
import type { SealKey } from "../format/envelope.ts";
import type { ObjectHeader } from "../format/header.ts";
import { type ObjectName, objectKey, PLAINTEXT_SEAL } from "../format/names.ts";
import type { Backend, ByteSource } from "../storage/backend.ts";
import { bytesSource } from "../storage/backend.ts";
import { backendRangeSource } from "../storage/range-source.ts";
import { BakeliteError } from "../util/errors.ts";
import { nextTurn } from "../util/turns.ts";
import { type Merge, planMerges } from "./compaction-plan.ts";
import { COMPACTION_REASON } from "./facts.ts";
import { mergePages } from "./merge-pages.ts";
import type { Replica } from "./replica.ts";
import type { OpenedObject } from "./trailers.ts";

export interface CompactOptions {
  /** Length of the windows of level 1, 2, …; at most 9. */
  readonly levelWindowsMs: readonly number[];
  readonly keepRecent: number;
  /** n0 of a full backup that is being taken, and marked states: nothing steps over them. */
  readonly cuts: ReadonlySet<number>;
  readonly sealKey: SealKey | null;
  readonly compression: "zstd" | "none";
  readonly compressionLevel: number;
  /** Program and version. */
  readonly writer: string;
  /** Of `bytes` random bytes, in hex. */
  readonly randomHex: (bytes: number) => string;
  readonly nowMs: number;
  /** Plan only. */
  readonly dryRun: boolean;
  readonly signal?: AbortSignal | undefined;
  readonly onMerged?: (merged: Merged) => void;
  /** Bytes of inputs that were read, as they are. */
  readonly onProgress?: (bytes: number) => void;
}

/** One change-set that now stands for several. */
export interface Merged extends Merge {
  /** Below the destination's prefix. */
  readonly key: string;
  readonly inputBytes: number;
  /** Of the result; null when nothing was written (`dryRun`). */
  readonly sizeBytes: number | null;
}

export interface CompactReport {
  readonly merged: readonly Merged[];
  /** Runs that were left as they are because something in them could not be read or stored, with why. */
  readonly failures: readonly { readonly merge: Merge; readonly error: BakeliteError }[];
}

/** Inputs that are gone since they were listed belong to another compactor's work: so often a level is listed and planned anew. */
const MAX_RELISTS = 3;
/** Unknown objects are read so many at a time, oldest first, so that a first pass over a long history shows results early. */
const LOAD_AT_ONCE = 2_000;
/** Inputs up to this size are fetched with one request each. */
const WHOLE_INPUT_BYTES = 256 * 1024;
/** A result up to this size is kept in memory, so that a put can be repeated. */
const KEPT_RESULT_BYTES = 8 * 1024 * 1024;

/**
 * Merges change-sets by the rules of docs/compaction-and-retention.md, level by level, and reads every result back. Deletes nothing.
 * `replica` is open on the lock-step destinations only, in their order. A run that fails is reported, and the others are done; a
 * destination that fails is left aside. Rejects when interrupted, and when the last destination fails.
 */
export async function compactReplica(replica: Replica, options: CompactOptions): Promise<CompactReport> {
  const report: { readonly merged: Merged[]; readonly failures: { merge: Merge; error: BakeliteError }[] } = {
    merged: [],
    failures: [],
  };
  for (const [i, windowMs] of options.levelWindowsMs.entries()) {
    const before = report.merged.length;
    for (let relistsLeft = MAX_RELISTS; ; relistsLeft--) {
      const outcome = await compactLevel(
        replica,
        { level: i + 1, windowMs, mayRelist: relistsLeft > 0 },
        options,
        report,
      );
      if (outcome === "done") break;
      await replica.refresh();
    }
    // The next level is made of what this one has stored.
    if (report.merged.length > before && !options.dryRun) await replica.refresh();
  }
  return report;
}

async function compactLevel(
  replica: Replica,
  { level, windowMs, mayRelist }: { readonly level: number; readonly windowMs: number; readonly mayRelist: boolean },
  options: CompactOptions,
  report: { readonly merged: Merged[]; readonly failures: { merge: Merge; error: BakeliteError }[] },
): Promise<"done" | "outdated"> {
  const tried = new Set<string>();
  for (;;) {
    const plan = await planLevel(replica, level, windowMs, options);
    const { failedDestinations } = replica.trailers;
    const failedCount = failedDestinations.size;
    for (const merge of plan.merges) {
      // Copies at a destination that has failed since are to be replaced by others.
      if (failedDestinations.size > failedCount) break;
      options.signal?.throwIfAborted();
      const name = `${merge.first}-${merge.last}`;
      if (tried.has(name)) continue;
      tried.add(name);
      try {
        const result = await mergeOne(replica, merge, options);
        report.merged.push(result);
        options.onMerged?.(result);
      } catch (error) {
        if (!(error instanceof BakeliteError) || !isOfObject(error)) throw error;
        if (mayRelist && isOutdated(replica, merge, error)) return "outdated";
        report.failures.push({ merge, error });
      }
    }
    if (failedDestinations.size > failedCount) continue;
    if (plan.unknown.length === 0) return "done";
    await replica.trailers.load(plan.unknown.slice(0, LOAD_AT_ONCE));
  }
}

/** Whether the merge failed because something that was listed is gone. */
function isOutdated(replica: Replica, { inputs }: Merge, { code }: BakeliteError): boolean {
  return code === "replica-missing" || inputs.some((object) => replica.trailers.failureOf(object)?.gone === true);
}

const OBJECT_ERRORS: ReadonlySet<string> = new Set([
  "replica-corrupt",
  "replica-missing",
  "replica-foreign",
  "key-wrong",
  "io", // one file of a disk with a bad sector
]);

/** Whether one object is to blame rather than a destination or ourselves. */
function isOfObject({ code }: BakeliteError): boolean {
  return OBJECT_ERRORS.has(code);
}

async function planLevel(replica: Replica, level: number, windowMs: number, options: CompactOptions) {
  await nextTurn();
  const { catalog, trailers, graph } = replica;
  // Of very many objects each of the two takes long enough.
  await nextTurn();
  return planMerges({
    catalog,
    knowledge: (object) => trailers.knowledge(object),
    forks: new Set(graph.forks),
    level,
    windowMs,
    keepRecent: options.keepRecent,
    cuts: new Set([...catalog.fulls.map(({ first }) => first), ...options.cuts]),
    seal: replica.options.seal,
    nowMs: options.nowMs,
  });
}

async function mergeOne(replica: Replica, merge: Merge, options: CompactOptions): Promise<Merged> {
  const name: ObjectName = {
    kind: "change-set",
    level: merge.level,
    first: merge.first,
    last: merge.last,
    seal: options.sealKey?.fingerprint ?? PLAINTEXT_SEAL,
  };
  const key = objectKey(replica.database, name);
  const inputBytes = merge.inputs.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
  if (options.dryRun) return { ...merge, key, inputBytes, sizeBytes: null };
  const inputs = await openInputs(replica, merge);
  const content = new PageListHash();
  const source = await resultSource(replica, inputs, options, name, content);
  const stored = await storeEverywhere(replica, key, source, merge.level === options.levelWindowsMs.length, options);
  if (!content.isComplete) for await (const _ of merging(replica, inputs, content)) options.signal?.throwIfAborted();
  for (const [destination, sizeBytes] of stored)
    await readBack(replica, { destination, name, key, sizeBytes, expected: expectedFields(inputs), content }, options);
  options.onProgress?.(inputBytes);
  return { ...merge, key, inputBytes, sizeBytes: stored.values().next().value ?? 0 };
}

async function openInputs(replica: Replica, merge: Merge): Promise<readonly OpenedObject[]> {
  const opened: OpenedObject[] = [];
  for (const object of merge.inputs) {
    const input = await replica.trailers.open(object, WHOLE_INPUT_BYTES);
    if (input === null) {
      const error = replica.trailers.failureOf(object)?.error;
      throw new BakeliteError("replica-corrupt", "cannot merge change-sets: one of them cannot be read", {
        subject: replica.describe(object),
        hint: "run `bakelite verify` to see what is damaged",
        cause: error,
      });
    }
    opened.push(input);
  }
  return opened;
}

/** The pages of the result; `content` hears of all of them. */
async function* merging(
  replica: Replica,
  inputs: readonly OpenedObject[],
  content: PageListHash,
): AsyncGenerator<PageBatch> {
  content.begin();
  const pageSizeBytes = inputs[0]?.reader.header.pageSizeBytes ?? 0;
  for await (const batch of mergePages(inputs, pageSizeBytes, (object) => replica.describe(object))) {
    content.add(batch);
    yield batch;
  }
  content.end();
}

async function resultSource(
  replica: Replica,
  inputs: readonly OpenedObject[],
  options: CompactOptions,
  name: ObjectName & { readonly kind: "change-set" },
  content: PageListHash,
): Promise<ByteSource> {
  const newest = inputs.at(-1);
  if (newest === undefined) throw new BakeliteError("internal", "invariant broken: a merge has inputs");
  const encode = () =>
    encodeObject(
      {
        header: resultHeader(newest.reader.header, name, options),
        sealKey: options.sealKey?.key ?? null,
        compressionLevel: options.compressionLevel,
      },
      merging(replica, inputs, content),
      async () => resultTrailer(inputs),
    );
  const inputBytes = inputs.reduce((sum, { object }) => sum + object.sizeBytes, 0);
  if (inputBytes <= KEPT_RESULT_BYTES) return bytesSource(Buffer.concat(await Array.fromAsync(encode())));
  return { sizeBytes: undefined, replayable: false, open: encode };
}

/** Session and run stay those of the newest input: a daemon that attaches recognises what it wrote itself. */
function resultHeader(
  newest: ObjectHeader,
  name: ObjectName & { readonly kind: "change-set" },
  { compression, sealKey, writer, randomHex }: CompactOptions,
): ObjectHeader {
  return {
    writer,
    kind: "change-set",
    database: newest.database,
    level: name.level,
    first: name.first,
    chain: newest.chain,
    pageSizeBytes: newest.pageSizeBytes,
    compression,
    cipher: sealKey === null ? "none" : "xchacha20-poly1305",
    keyFingerprint: sealKey?.fingerprint ?? null,
    nonceSeed: randomHex(24),
    session: newest.session,
    run: newest.run,
  };
}

function resultTrailer(inputs: readonly OpenedObject[]): TrailerFields {
  const [first, newest] = [inputs[0]?.reader.trailer, inputs.at(-1)?.reader.trailer];
  if (first === undefined || newest === undefined)
    throw new BakeliteError("internal", "invariant broken: a merge has inputs");
  return {
    last: newest.last,
    settled: Math.max(...inputs.map(({ reader }) => reader.trailer.settled)),
    sizePages: newest.sizePages,
    parent: first.parent,
    result: newest.result,
    digest: newest.digest,
    firstCommitMs: first.firstCommitMs,
    lastCommitMs: newest.lastCommitMs,
    commits: inputs.reduce((sum, { reader }) => sum + reader.trailer.commits, 0),
    epochs: newest.epochs,
    wal: newest.wal,
    reason: COMPACTION_REASON,
  };
}

/** What a result says of itself: equal for all who merge the same states, of whatever inputs. */
const TOLD = ["parent", "result", "settled", "sizePages", "digest", "firstCommitMs", "lastCommitMs"] as const;
type Expected = Pick<TrailerFields, (typeof TOLD)[number]> & Pick<ObjectHeader, "chain" | "pageSizeBytes">;

function expectedFields(inputs: readonly OpenedObject[]): Expected {
  const newest = inputs.at(-1);
  if (newest === undefined) throw new BakeliteError("internal", "invariant broken: a merge has inputs");
  const { chain, pageSizeBytes } = newest.reader.header;
  return { ...resultTrailer(inputs), chain, pageSizeBytes };
}

/**
 * Stores the result at the first destination that answers, and copies its bytes to the others; gives the size at each. A destination
 * that fails counts as failed from then on; the last one's failure rejects.
 */
async function storeEverywhere(
  replica: Replica,
  key: string,
  source: ByteSource,
  longLived: boolean,
  { signal }: CompactOptions,
): Promise<ReadonlyMap<number, number>> {
  const call = signal === undefined ? {} : { signal };
  const sizes = new Map<number, number>();
  let first: Backend | null = null;
  for (const [destination, backend] of replica.options.backends.entries()) {
    if (replica.trailers.failedDestinations.has(destination)) continue;
    // A stream that the first one has taken a part of cannot be begun again for another.
    const body = first === null ? source : copyOf(first, key, signal);
    try {
      await backend.put(key, body, { ifAbsent: true, longLived, ...call });
      // "exists" is no failure: another compactor made it, or our first try's answer was lost. Reading it back tells.
      const object = await backend.stat(key, call);
      if (object === null)
        throw new BakeliteError("replica-missing", "a merged change-set is not where it was just stored", {
          subject: `${backend.location}/${key}`,
          hint: "check the destination: it lost an object that it had confirmed",
        });
      sizes.set(destination, object.sizeBytes);
      first ??= backend;
    } catch (error) {
      if (!(error instanceof BakeliteError) || !isOfDestination(error)) throw error;
      replica.trailers.setDestinationFailed(destination, error);
      if (first === null && !source.replayable) throw error;
    }
  }
  return sizes;
}

function isOfDestination({ code }: BakeliteError): boolean {
  return code === "storage-unreachable" || code === "storage-denied" || code === "storage-full";
}

function copyOf(backend: Backend, key: string, signal: AbortSignal | undefined): ByteSource {
  return {
    sizeBytes: undefined,
    replayable: true,
    async *open() {
      const stream = await backend.get(key, signal === undefined ? {} : { signal });
      if (stream === null)
        throw new BakeliteError("replica-missing", "an object vanished while it was copied", { subject: key });
      yield* stream;
    },
  };
}

interface ToReadBack {
  readonly destination: number;
  readonly name: ObjectName;
  readonly key: string;
  readonly sizeBytes: number;
  readonly expected: Expected;
  readonly content: PageListHash;
}

/** All of it, from the destination: what is stored must be what should be there, whoever stored it. */
async function readBack(replica: Replica, stored: ToReadBack, { signal }: CompactOptions): Promise<void> {
  const { keys, acceptPlaintext, backends } = replica.options;
  const { destination, name, key, sizeBytes, expected } = stored;
  const backend = backends[destination];
  if (backend === undefined) return;
  const subject = `${backend.location}/${key}`;
  const found = new PageListHash();
  found.begin();
  const source = backendRangeSource(backend, key, sizeBytes, signal === undefined ? {} : { signal });
  const { header, trailer } = await verifyObject(
    source,
    { name, database: replica.database, subject, keys, acceptPlaintext },
    { onPages: (batch) => found.add(batch) },
  );
  found.end();
  const differing =
    TOLD.find((field) => trailer[field] !== expected[field]) ??
    (["chain", "pageSizeBytes"] as const).find((field) => header[field] !== expected[field]);
  if (differing === undefined && found.hex === stored.content.hex) return;
  throw new BakeliteError(
    "replica-corrupt",
    `a merged change-set does not hold what it was merged from (${differing ?? "its pages differ"})`,
    { subject, hint: "run `bakelite verify`; nothing that it was merged from is deleted as long as it is there" },
  );
}

/** SHA-256 over page numbers and page hashes, in order: equal for two objects exactly if they hold the same pages. */
class PageListHash {
  #hash = new Bun.CryptoHasher("sha256");
  #hex: string | null = null;

  /** True once all pages were added. */
  get isComplete(): boolean {
    return this.#hex !== null;
  }

  get hex(): string | null {
    return this.#hex;
  }

  begin(): void {
    this.#hash = new Bun.CryptoHasher("sha256");
    this.#hex = null;
  }

  add({ pageNumbers, hashes }: PageBatch): void {
    for (let i = 0; i < pageNumbers.length; i++) {
      this.#hash.update(Uint32Array.of(pageNumbers[i] ?? 0));
      this.#hash.update(hashes.subarray(i * 16, i * 16 + 16));
    }
  }

  end(): void {
    this.#hex = this.#hash.digest("hex");
  }
}
