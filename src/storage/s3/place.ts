import type { BucketAddress } from "./address.ts";

/**
 * What this process has found out about one bucket. Shared by all destinations there, so that 500 databases learn it once.
 * Nothing of it is kept beyond the process: buckets and servers change.
 */
export interface Place {
  /** From a redirect or an answer's header; null until a server said so. */
  region: string | null;
  /** The server's clock minus ours, in milliseconds; 0 until a request was refused for it. */
  clockOffsetMs: number;
  /** Some request was answered with success, so the bucket is there. */
  isSeen: boolean;
  /** Whether a put with `If-None-Match: *` refuses a taken key. */
  conditionalPut: Support;
  /** Whether the completion of an upload in parts does. */
  conditionalComplete: Support;
  /** Whether `POST ?delete` works. */
  batchDelete: Support;
  /** The ETag of what was stored in one request was its MD5. */
  etagIsMd5: boolean;
  /**
   * A small object that this process stored and nobody else writes; while `conditionalComplete` is unknown. Storing the
   * same bytes once more does no harm.
   */
  sample: SampleObject | null;
  /** Ids of the uploads in parts that this process is making. */
  readonly liveUploads: Set<string>;
}

export interface SampleObject {
  /** The whole key. */
  readonly key: string;
  readonly bytes: Uint8Array;
  readonly headers: Readonly<Record<string, string>>;
}

/** `unknown` until a server's answer shows it. */
export type Support = "unknown" | "proven" | "absent";

const places = new Map<string, Place>();

/** The one of this process for that bucket. */
export function placeOf({ endpoint, bucket }: BucketAddress): Place {
  const name = `${endpoint ?? ""} ${bucket}`;
  const known = places.get(name) ?? newPlace();
  places.set(name, known);
  return known;
}

export function newPlace(): Place {
  return {
    region: null,
    clockOffsetMs: 0,
    isSeen: false,
    conditionalPut: "unknown",
    conditionalComplete: "unknown",
    batchDelete: "unknown",
    etagIsMd5: false,
    sample: null,
    liveUploads: new Set(),
  };
}
