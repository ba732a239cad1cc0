import { footerSha256 } from "../format/decode.ts";
import { type Backend, bytesSource, type CallOptions } from "../storage/backend.ts";
import { BakeliteError } from "../util/errors.ts";
import { GuardedCopy } from "./guarded-copy.ts";
import { WHOLE_OBJECT_BYTES } from "./repair-scan.ts";

/** One object to be copied, byte for byte. */
export interface Copying {
  readonly key: string;
  /** Where it may be read, in the order of preference. */
  readonly sources: readonly Backend[];
  readonly target: Backend;
  /** As `PutOptions.longLived`. */
  readonly longLived: boolean;
  readonly signal?: AbortSignal | undefined;
  /** Hears of the bytes that pass through the memory. */
  readonly onBytes?: (bytes: number) => void;
  /** Hears of each source that could not be read, also where another one could. */
  readonly onSourceFailed?: (source: Backend, error: BakeliteError) => void;
}

export type CopyOutcome =
  | { readonly kind: "copied"; readonly sizeBytes: number }
  /** These very bytes were there. */
  | { readonly kind: "present"; readonly sizeBytes: number }
  /** No source has it: it was deleted meanwhile. */
  | { readonly kind: "gone" }
  /** The name is taken at the target by other bytes. */
  | { readonly kind: "conflict"; readonly error: BakeliteError }
  /** No source gives sound bytes; `error` is the first one's failure. */
  | { readonly kind: "unusable"; readonly error: BakeliteError };

const FOOTER_BYTES = 72;

/**
 * Copies one object. What is read must match the SHA-256 in its footer before anything becomes visible, and what was written is asked for
 * its size and footer. It needs no key. Throws what the target fails with, and when interrupted; nothing half written is left.
 */
export async function copyObject(copying: Copying): Promise<CopyOutcome> {
  let failure: BakeliteError | null = null;
  for (const source of copying.sources) {
    try {
      const outcome = await copyFrom(source, copying);
      if (outcome !== null) return outcome;
    } catch (error) {
      if (!(error instanceof SourceFailure)) throw error;
      // Whatever ended the work looks as if the source had failed.
      copying.signal?.throwIfAborted();
      copying.onSourceFailed?.(source, error.failure);
      failure ??= error.failure;
    }
  }
  return failure === null ? { kind: "gone" } : { kind: "unusable", error: failure };
}

/** Carries a source's failure past the target's. */
class SourceFailure extends Error {
  readonly failure: BakeliteError;

  constructor(failure: BakeliteError) {
    super(failure.message);
    this.failure = failure;
  }
}

/** null: the source does not have it. */
async function copyFrom(source: Backend, copying: Copying): Promise<CopyOutcome | null> {
  const { key, target, longLived, signal, onBytes } = copying;
  const call: CallOptions = signal === undefined ? {} : { signal };
  const found = await ofSource(() => source.stat(key, call));
  if (found === null) return null;
  const { sizeBytes } = found;
  const isLarge = sizeBytes > WHOLE_OBJECT_BYTES;
  // Not read for nothing, if a copy that was cut short had come to its end after all.
  if (isLarge && (await target.stat(key, call)) !== null) {
    const expected = await ofSource(() => readFooterSha256(source, key, call));
    return expected === null ? null : await compare(target, { key, sizeBytes, expected }, call);
  }
  const copy = new GuardedCopy(source, { key, sizeBytes, sha256: null, ...(onBytes && { onBytes }) }, signal);
  try {
    const body = isLarge ? copy : bytesSource(await copy.readWhole());
    const outcome = await target.put(key, body, { ifAbsent: true, longLived, ...call });
    if (outcome === "exists") {
      // A backend may refuse before it has read all of a body.
      const expected = copy.sha256 ?? (await ofSource(() => readFooterSha256(source, key, call)));
      return expected === null ? null : await compare(target, { key, sizeBytes, expected }, call);
    }
  } catch (error) {
    if (copy.failure === null) throw error;
    if (copy.failure.code === "replica-missing") return null;
    throw new SourceFailure(copy.failure);
  }
  await assertStored(target, { key, sizeBytes, expected: copy.sha256 }, call);
  return { kind: "copied", sizeBytes };
}

async function ofSource<T>(ask: () => Promise<T>): Promise<T> {
  try {
    return await ask();
  } catch (error) {
    if (!(error instanceof BakeliteError) || error.code === "interrupted" || error.code === "internal") throw error;
    throw new SourceFailure(error);
  }
}

interface Expected {
  readonly key: string;
  readonly sizeBytes: number;
  readonly expected: string | null;
}

async function compare(
  target: Backend,
  { key, sizeBytes, expected }: Expected,
  call: CallOptions,
): Promise<CopyOutcome> {
  if ((await readFooterSha256(target, key, call)) === expected) return { kind: "present", sizeBytes };
  const error = new BakeliteError("replica-foreign", "another object has the name of one that is to be copied there", {
    subject: `${target.location}/${key}`,
    hint: "run `bakelite verify` to see which history is whose, and `bakelite repair` if it is damaged; nothing there is written over",
  });
  return { kind: "conflict", error };
}

async function assertStored(target: Backend, { key, sizeBytes, expected }: Expected, call: CallOptions): Promise<void> {
  const stored = await target.stat(key, call);
  const isWhole = stored?.sizeBytes === sizeBytes && (await readFooterSha256(target, key, call)) === expected;
  if (isWhole) return;
  throw new BakeliteError("replica-corrupt", "what was written does not read back as it was written", {
    subject: `${target.location}/${key}`,
    hint: "check the destination's disk or service: it does not keep what it is given",
  });
}

/** The SHA-256 that a stored object ends with, 64 hex digits; null when it is gone or ends with none. */
async function readFooterSha256(backend: Backend, key: string, call: CallOptions): Promise<string | null> {
  const stream = await backend.get(key, { range: { start: -FOOTER_BYTES }, ...call });
  if (stream === null) return null;
  const tail = Buffer.concat(await Array.fromAsync(stream));
  try {
    return Buffer.from(footerSha256(tail, key)).toString("hex");
  } catch (error) {
    if (error instanceof BakeliteError && error.code === "replica-corrupt") return null;
    throw error;
  }
}
