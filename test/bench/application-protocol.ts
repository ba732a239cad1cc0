/** What `application.ts` is told, and what it says; and the marks that it leaves in its database. */

export interface ApplicationSpec {
  readonly path: string;
  readonly seed: number;
  /** Commits per second; 0 is no limit. One that comes late is followed at once by the next, until the schedule is met. */
  readonly rate: number;
  /** Of the row that each commit inserts; at least 8. */
  readonly rowBytes: number;
  /** What happens before is not counted. */
  readonly warmUpSeconds: number;
  readonly seconds: number;
  /** Each commit also replaces the one mark, and its time is told. */
  readonly marks: boolean;
  /** `PRAGMA wal_autocheckpoint`; SQLite's default of 1000 pages when it is not given. */
  readonly walAutocheckpoint?: number;
}

export interface ApplicationResult {
  /** Commits, and the time that they took. */
  readonly count: number;
  readonly seconds: number;
  /** Of each commit, from before BEGIN until COMMIT has returned. */
  readonly latenciesUs: readonly number[];
  /** With `marks`: when each COMMIT had returned, Unix milliseconds with a fraction. */
  readonly committedMs: readonly number[];
  /** The number in the first counted commit's mark; each next one has the next. */
  readonly firstSequence: number;
}

const MARK = Buffer.from("bakelite bench mark:");
const MARK_BYTES = MARK.length + 8;

/** A text that occurs nowhere else, and a number from 0. */
export function encodeMark(sequence: number): Uint8Array {
  const bytes = Buffer.alloc(MARK_BYTES);
  MARK.copy(bytes);
  bytes.writeBigUInt64BE(BigInt(sequence), MARK.length);
  return bytes;
}

/** The greatest number of a mark in page images; 0 when there is none. An old image may stand in a page's free space. */
export function greatestMark(images: Uint8Array): number {
  const bytes = Buffer.from(images.buffer, images.byteOffset, images.byteLength);
  let greatest = 0;
  for (let at = bytes.indexOf(MARK); at >= 0; at = bytes.indexOf(MARK, at + 1)) {
    if (at + MARK_BYTES <= bytes.length) greatest = Math.max(greatest, Number(bytes.readBigUInt64BE(at + MARK.length)));
  }
  return greatest;
}
