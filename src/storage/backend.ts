/** Bytes to store. `open` may be called again to retry when `replayable`; `sizeBytes` is undefined until read through. */
export interface ByteSource {
  readonly sizeBytes: number | undefined;
  readonly replayable: boolean;
  open(): AsyncIterable<Uint8Array>;
}

/**
 * The bytes of an object, in pieces that then belong to the reader; to be read once. It may hold a descriptor or a
 * connection from the first piece to the end of the loop, however that ends. It throws rather than end before its last
 * byte, and `replica-missing` when the object was deleted after `get`.
 */
export type ByteStream = AsyncIterable<Uint8Array>;

export interface BackendCapabilities {
  /** `put` with `ifAbsent` is atomic against other writers. False: it looks first and then stores, and a race may pass. */
  readonly putIfAbsent: boolean;
}

export interface CallOptions {
  /** Aborted: the call rejects with `interrupted`, or with the signal's reason when that is a BakeliteError. */
  readonly signal?: AbortSignal;
}

export interface PutOptions extends CallOptions {
  /** Refuse, with "exists", when the key is taken. Without it the object is replaced. */
  readonly ifAbsent?: boolean;
  /** It will be kept for long and rarely read, so a cheaper kind of storage may be right for it. */
  readonly longLived?: boolean;
}

/**
 * Half-open, in bytes; `end` may lie beyond the object. A negative `start` counts from the end, then there is no `end`, and
 * one that reaches before the first byte means the whole object. A range without a byte in it gives an empty stream.
 */
export interface ByteRange {
  readonly start: number;
  readonly end?: number;
}

export interface GetOptions extends CallOptions {
  readonly range?: ByteRange;
}

export interface ListOptions extends CallOptions {
  /** Only keys that sort after this one (bytewise). */
  readonly startAfter?: string;
}

export interface StoredObject {
  readonly key: string;
  readonly sizeBytes: number;
  /** By the destination's clock, Unix milliseconds. */
  readonly modifiedMs: number;
}

/** An upload in parts that was begun and never finished: paid for, and in no listing of objects. */
export interface UnfinishedUpload {
  readonly key: string;
  /** The destination's name for it. */
  readonly uploadId: string;
  /** By the destination's clock, Unix milliseconds. */
  readonly startedMs: number;
  /** When its newest part came, by the same clock; `startedMs` without a part. */
  readonly newestPartMs: number;
  /** Since `newestPartMs`, by the same clock: ours may be hours off, and an upload that goes on must not look old. */
  readonly ageMs: number;
  /** Of all its parts. */
  readonly sizeBytes: number;
}

/** Versions of objects that were replaced or deleted, which a bucket with versioning keeps and charges for. */
export interface NoncurrentVersions {
  readonly count: number;
  readonly sizeBytes: number;
  readonly deleteMarkerCount: number;
}

/** What a destination holds beyond the objects that it lists. */
export interface UnlistedStorage {
  /** Of keys that begin with `prefix`; null where the destination cannot tell. */
  uploads(prefix: string, options?: CallOptions): Promise<AsyncIterable<UnfinishedUpload> | null>;
  /** One that is already gone counts as aborted. An upload that this process is making itself is never aborted: "live". */
  abortUpload(upload: UnfinishedUpload, options?: CallOptions): Promise<"aborted" | "live">;
  /** Of keys that begin with `prefix`; null where the destination cannot tell. Nothing ever deletes one. */
  noncurrentVersions(prefix: string, options?: CallOptions): Promise<NoncurrentVersions | null>;
}

/** One thing that a destination was asked about itself, for `bakelite doctor`. */
export interface Diagnosis {
  /** What was looked at, in a word or three: `clock`, `conditional writes`. */
  readonly check: string;
  readonly level: "pass" | "warn" | "fail";
  /** What was found. A clause for people, without a full stop. */
  readonly message: string;
  /** What to do next, where there is something to do: an imperative without a full stop. */
  readonly hint?: string;
}

/** A place that stores objects. What they mean is decided elsewhere. Keys are those that `assertObjectKey` accepts. */
export interface Backend {
  /** For messages, without credentials: `s3://backups/app`. */
  readonly location: string;
  readonly capabilities: BackendCapabilities;
  /**
   * All of the object or none of it becomes visible, durable once this resolves. A body that throws, or that yields more
   * or fewer bytes than its `sizeBytes`, leaves nothing and rejects.
   */
  put(key: string, body: ByteSource, options?: PutOptions): Promise<"stored" | "exists">;
  /** The bytes, or those of the half-open `range`; null when there is no such object. */
  get(key: string, options?: GetOptions): Promise<ByteStream | null>;
  /** Size and time of one object; null when there is none. */
  stat(key: string, options?: CallOptions): Promise<StoredObject | null>;
  /**
   * Every object whose key begins with `prefix`, ascending by key (bytewise). Throws rather than end early: a short
   * listing would look like missing backups.
   */
  list(prefix: string, options?: ListOptions): AsyncIterable<StoredObject>;
  /** A key that is already gone counts as deleted. */
  delete(keys: readonly string[], options?: CallOptions): Promise<void>;
  /** undefined where there can be nothing beyond the listed objects. */
  readonly unlisted?: UnlistedStorage | undefined;
  /**
   * Looks at what the verbs above do not show, without writing anything. That the destination can be reached and listed is
   * not part of it. Rejects only when it cannot be reached. undefined where there is nothing to look at.
   */
  diagnose?(options?: CallOptions): Promise<readonly Diagnosis[]>;
}

/** A source over bytes in memory. */
export function bytesSource(bytes: Uint8Array): ByteSource {
  return {
    sizeBytes: bytes.byteLength,
    replayable: true,
    async *open() {
      yield bytes;
    },
  };
}

/** The absolute half-open bytes that `range` means in an object of `sizeBytes`; `start` equals `end` when none. */
export function resolveRange(range: ByteRange | undefined, sizeBytes: number): { start: number; end: number } {
  if (range === undefined) return { start: 0, end: sizeBytes };
  const start = range.start < 0 ? Math.max(0, sizeBytes + range.start) : Math.min(range.start, sizeBytes);
  const end = Math.max(start, Math.min(range.end ?? sizeBytes, sizeBytes));
  return { start, end };
}
