import { z } from "zod";
import { readDocument } from "../format/decode.ts";
import { encodeDocument } from "../format/encode.ts";
import type { SealKey } from "../format/envelope.ts";
import { checkShape, count, hex } from "../format/json.ts";
import { markKey, PLAINTEXT_SEAL } from "../format/names.ts";
import { bytesSource, type CallOptions } from "../storage/backend.ts";
import { assert, BakeliteError } from "../util/errors.ts";
import { keyOfMark, type StoredMark } from "./catalog.ts";
import { planForIndex, type RestorePlan } from "./plan.ts";
import type { Replica } from "./replica.ts";

/** What a mark says (docs/storage-format.md section 7): state `index` of lineage `lineage` stays restorable for ever. */
export interface Mark {
  readonly index: number;
  /** 64 hex digits. */
  readonly lineage: string;
  /** Unique in the database's folder: `isLabel`. */
  readonly label: string;
  /** The stamp of the state. */
  readonly stampMs: number;
  readonly createdMs: number;
}

/** A marked state: what its mark says, and where copies of the mark lie. */
export interface MarkedState {
  readonly index: number;
  /** null when no copy can be read; the state is kept all the same. */
  readonly mark: Mark | null;
  /** Why the first copy that could not be read was not; null when each copy that was tried could be. */
  readonly error: BakeliteError | null;
  readonly copies: readonly StoredMark[];
}

/** No mark that bakelite wrote is larger. */
const MAX_MARK_BYTES = 64 * 1024;

const LABEL = /^[^\p{C}\p{Z}](?:[^\p{C}\p{Zl}\p{Zp}]{0,62}[^\p{C}\p{Z}])?$/u;

const markShape = z.object({
  index: count.min(1),
  lineage: hex(64),
  label: z.string().regex(LABEL),
  stamp_ms: count,
  created_ms: count,
});

/** Whether `text` can be a label: 1 to 64 printable characters, with no space at either end. */
export function isLabel(text: string): boolean {
  return LABEL.test(text);
}

/** Reads one copy. Throws as `readDocument` does, and `replica-missing` when it was deleted since it was listed. */
export async function readMark(
  replica: Replica,
  stored: StoredMark,
  onBytes: (bytes: number) => void = () => {},
): Promise<Mark> {
  return (await fetchMark(replica, stored, onBytes)).mark;
}

async function fetchMark(replica: Replica, stored: StoredMark, onBytes: (bytes: number) => void = () => {}) {
  const { database, options } = replica;
  const key = keyOfMark(database, stored);
  const subject = `${replica.locationOf(stored.destination)}/${key}`;
  if (stored.sizeBytes > MAX_MARK_BYTES)
    throw new BakeliteError("replica-corrupt", `it is too large for a mark: ${stored.sizeBytes} bytes`, { subject });
  const stream = await options.backends[stored.destination]?.get(key, callOptions(replica));
  if (stream == null) throw new BakeliteError("replica-missing", "the mark was deleted meanwhile", { subject });
  const bytes = Buffer.concat(await Array.fromAsync(stream));
  onBytes(bytes.length);
  const { keys, acceptPlaintext } = options;
  const name = { kind: "mark", index: stored.index, seal: stored.seal } as const;
  const { fields } = readDocument(bytes, { name, database, subject, keys, acceptPlaintext });
  const mark = parseMark(fields, subject);
  if (mark.index !== stored.index)
    throw new BakeliteError("replica-corrupt", `the mark says state ${mark.index}`, { subject });
  return { mark, bytes };
}

function parseMark(fields: Record<string, unknown>, subject: string): Mark {
  const {
    stamp_ms: stampMs,
    created_ms: createdMs,
    ...rest
  } = checkShape(markShape, fields, { what: "mark", subject });
  return { ...rest, stampMs, createdMs };
}

/** All marked states, ascending, each with what its first readable copy says. Rejects when interrupted. */
export async function readMarks(replica: Replica): Promise<readonly MarkedState[]> {
  const states: MarkedState[] = [];
  for (const [index, copies] of Map.groupBy(replica.catalog.marks, (stored) => stored.index))
    states.push({ index, copies, ...(await firstReadable(replica, copies)) });
  return states;
}

async function firstReadable(
  replica: Replica,
  copies: readonly StoredMark[],
): Promise<{ readonly mark: Mark | null; readonly error: BakeliteError | null }> {
  let first: BakeliteError | null = null;
  for (const copy of copies) {
    try {
      return { mark: await readMark(replica, copy), error: first };
    } catch (error) {
      first ??= failureOfCopy(error);
    }
  }
  return { mark: null, error: first };
}

export interface PlaceMarkOptions {
  readonly label: string;
  /** Positions of the destinations that the mark is to lie at: the lock-step ones. */
  readonly destinations: readonly number[];
  readonly sealKey: SealKey | null;
  readonly compressionLevel: number;
  /** Program and version. */
  readonly writer: string;
  /** Of `bytes` random bytes, in hex. */
  readonly randomHex: (bytes: number) => string;
  readonly nowMs: number;
}

export interface PlacedMark {
  readonly mark: Mark;
  /** Locations at which it was stored now; empty when it was everywhere already. */
  readonly storedAt: readonly string[];
  /** Destinations at which it could not be stored. */
  readonly failures: readonly { readonly location: string; readonly error: BakeliteError }[];
}

/**
 * Marks the state that `plan` restores. The same label for the same state completes a mark that is not at every destination yet.
 * Throws `usage` when the label stands for another state or the state has another label, `replica-missing` when the state
 * was deleted while it was being marked, and a destination's failure when none takes it.
 */
export async function placeMark(replica: Replica, plan: RestorePlan, options: PlaceMarkOptions): Promise<PlacedMark> {
  const { label, destinations } = options;
  assert(isLabel(label), "a label has 1 to 64 printable characters");
  const marked = await readMarks(replica);
  refuseTaken(replica, marked, plan.index, label);
  const known = marked.find(({ index }) => index === plan.index);
  const { mark, seal, bytes } = (await existing(replica, known)) ?? (await encodeMark(replica, plan, options));
  const key = markKey(replica.database, { index: mark.index, seal });
  const storedAt: string[] = [];
  const failures: { location: string; error: BakeliteError }[] = [];
  for (const destination of destinations) {
    if (known?.copies.some((copy) => copy.destination === destination && copy.seal === seal) === true) continue;
    const backend = replica.options.backends[destination];
    if (backend === undefined) continue;
    try {
      const outcome = await backend.put(key, bytesSource(bytes), { ifAbsent: true, ...callOptions(replica) });
      // Ours, from a first try whose answer was lost, or somebody else's who is marking the same state now.
      if (outcome === "exists") await refuseOther(replica, destination, mark, seal);
      storedAt.push(backend.location);
    } catch (error) {
      failures.push({ location: backend.location, error: failureOfCopy(error) });
    }
  }
  const [failure] = failures;
  if (failure !== undefined && storedAt.length === 0 && known === undefined) throw failure.error;
  if (storedAt.length > 0) await refuseLost(replica, mark, storedAt);
  return { mark, storedAt, failures };
}

function refuseTaken(replica: Replica, marked: readonly MarkedState[], index: number, label: string): void {
  const namesake = marked.find(({ mark }) => mark?.label === label);
  if (namesake !== undefined && namesake.index !== index)
    throw new BakeliteError("usage", `the label ${JSON.stringify(label)} already marks state ${namesake.index}`, {
      subject: replica.database,
      hint: "choose another label, or take that mark away with --drop",
    });
  const other = marked.find((state) => state.index === index)?.mark?.label;
  if (other !== undefined && other !== label)
    throw new BakeliteError("usage", `state ${index} is marked already, as ${JSON.stringify(other)}`, {
      subject: replica.database,
      hint: "one mark keeps it; to give it another label, take that one away with --drop first",
    });
}

/** The bytes of a copy that can be read, so that every destination has the same ones. */
async function existing(replica: Replica, known: MarkedState | undefined) {
  for (const copy of known?.mark == null ? [] : known.copies) {
    try {
      return { ...(await fetchMark(replica, copy)), seal: copy.seal };
    } catch (error) {
      failureOfCopy(error);
    }
  }
  return null;
}

async function encodeMark(replica: Replica, plan: RestorePlan, options: PlaceMarkOptions) {
  const { sealKey, randomHex, writer, label, nowMs, compressionLevel } = options;
  const newest = await replica.trailers.open(plan.changeSets.at(-1) ?? plan.full);
  if (newest === null)
    throw new BakeliteError("replica-missing", "the state to be marked was deleted meanwhile", {
      subject: replica.database,
      hint: "run it again: the next older restore point will do",
    });
  const { header } = newest.reader;
  const mark: Mark = { index: plan.index, lineage: plan.lineage, label, stampMs: plan.stampMs, createdMs: nowMs };
  const bytes = await encodeDocument(
    {
      header: {
        writer,
        kind: "mark",
        database: replica.database,
        level: 0,
        first: plan.index,
        chain: header.chain,
        pageSizeBytes: header.pageSizeBytes,
        compression: "none",
        cipher: sealKey === null ? "none" : "xchacha20-poly1305",
        keyFingerprint: sealKey?.fingerprint ?? null,
        nonceSeed: randomHex(24),
        session: header.session,
        run: header.run,
      },
      sealKey: sealKey?.key ?? null,
      compressionLevel,
    },
    { index: mark.index, lineage: mark.lineage, label, stamp_ms: mark.stampMs, created_ms: mark.createdMs },
  );
  return { mark, bytes, seal: sealKey?.fingerprint ?? PLAINTEXT_SEAL };
}

async function refuseOther(replica: Replica, destination: number, mark: Mark, seal: string): Promise<void> {
  const { index } = mark;
  const stored = { index, seal, destination, sizeBytes: 0, modifiedMs: 0 };
  const found = await readMark(replica, stored);
  if (found.label === mark.label && found.lineage === mark.lineage) return;
  throw new BakeliteError("usage", `state ${index} is marked already, as ${JSON.stringify(found.label)}`, {
    subject: `${replica.locationOf(destination)}/${keyOfMark(replica.database, stored)}`,
    hint: "one mark keeps it; to give it another label, take that one away with --drop first",
  });
}

/** A prune that had planned before the mark was there may have deleted what the state needs: then the mark goes again. */
async function refuseLost(replica: Replica, mark: Mark, storedAt: readonly string[]): Promise<void> {
  await replica.refresh();
  const plan = await planForIndex(replica, mark.index);
  if (plan?.lineage === mark.lineage) return;
  for (const stored of replica.catalog.marks)
    if (stored.index === mark.index && storedAt.includes(replica.locationOf(stored.destination)))
      await replica.options.backends[stored.destination]?.delete(
        [keyOfMark(replica.database, stored)],
        callOptions(replica),
      );
  throw new BakeliteError("replica-missing", `state ${mark.index} was deleted while it was being marked`, {
    subject: replica.database,
    hint: "run it again: the next older restore point will do",
  });
}

export interface DroppedMark {
  readonly index: number;
  readonly label: string;
  readonly deletedAt: readonly string[];
  /** Destinations at which it could not be deleted: it keeps its state there. */
  readonly failures: readonly { readonly location: string; readonly error: BakeliteError }[];
}

/** Takes away the mark with this label at every destination. Throws `usage` when there is none. */
export async function dropMark(replica: Replica, label: string): Promise<DroppedMark> {
  const marked = await readMarks(replica);
  const found = marked.find(({ mark }) => mark?.label === label);
  if (found === undefined) {
    const unreadable = marked.find(({ mark }) => mark === null);
    throw new BakeliteError("usage", `there is no mark ${JSON.stringify(label)}`, {
      subject: replica.database,
      hint:
        unreadable === undefined
          ? "run `bakelite keep` without options to see the marks"
          : `the mark of state ${unreadable.index} cannot be read: see \`bakelite keep\``,
    });
  }
  const deletedAt: string[] = [];
  const failures: { location: string; error: BakeliteError }[] = [];
  for (const [destination, copies] of Map.groupBy(found.copies, (copy) => copy.destination)) {
    const location = replica.locationOf(destination);
    try {
      const keys = copies.map((copy) => keyOfMark(replica.database, copy));
      await replica.options.backends[destination]?.delete(keys, callOptions(replica));
      deletedAt.push(location);
    } catch (error) {
      failures.push({ location, error: failureOfCopy(error) });
    }
  }
  for (const [destination, error] of replica.trailers.failedDestinations)
    failures.push({ location: replica.locationOf(destination), error });
  return { index: found.index, label, deletedAt, failures };
}

/** `error` when it is about one copy at one destination; throws it when it ends all the work. */
function failureOfCopy(error: unknown): BakeliteError {
  const endsAll =
    !(error instanceof BakeliteError) ||
    error.code === "interrupted" ||
    error.code === "internal" ||
    error.code === "usage";
  if (endsAll) throw error;
  return error;
}

function callOptions(replica: Replica): CallOptions {
  const { signal } = replica.options;
  return signal === undefined ? {} : { signal };
}
