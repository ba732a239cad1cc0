import { closeSync, fstatSync, openSync, readSync, statSync } from "node:fs";
import { systemErrorCode } from "../util/errors.ts";
import { frameOffset, parseWalHeader, WAL_FRAME_HEADER_BYTES, WAL_HEADER_BYTES, type WalHeader } from "./wal.ts";

/** Frames are read in pieces of about this many bytes. */
const READ_BYTES = 1024 * 1024;

/**
 * Reads a `-wal` file through a descriptor of its own, which is safe: SQLite keeps its locks on the database and `-shm`
 * files only. The file comes and goes; `refresh` notices a new one.
 */
export class WalFile {
  readonly path: string;
  #descriptor: number | null = null;
  #inode: bigint | null = null;
  readonly #header = new Uint8Array(WAL_HEADER_BYTES);

  constructor(databasePath: string) {
    this.path = `${databasePath}-wal`;
  }

  /** Opens the file that the path names now. "replaced" when it is another one than before. */
  refresh(): "same" | "replaced" | "absent" {
    let inode: bigint;
    try {
      inode = statSync(this.path, { bigint: true }).ino;
    } catch (error) {
      if (systemErrorCode(error) !== "ENOENT") throw error;
      this.close();
      return "absent";
    }
    if (this.#descriptor !== null && inode === this.#inode) return "same";
    const before = this.#inode;
    this.close();
    this.#descriptor = openSync(this.path, "r");
    this.#inode = fstatSync(this.#descriptor, { bigint: true }).ino;
    return before === null || before === this.#inode ? "same" : "replaced";
  }

  /** Null when there is no file, or no valid header in it. */
  readHeader(): WalHeader | null {
    return this.#read(this.#header, WAL_HEADER_BYTES, 0) < WAL_HEADER_BYTES ? null : parseWalHeader(this.#header);
  }

  sizeBytes(): number {
    return this.#descriptor === null ? 0 : fstatSync(this.#descriptor).size;
  }

  /**
   * Calls `visit` for each whole frame of the half-open range of frame numbers that the file has, in order; `view`
   * holds the frame at `offset` until `visit` returns. Stops early when `visit` returns false.
   */
  forEachFrame(
    frames: { readonly start: number; readonly end: number },
    pageSizeBytes: number,
    visit: (frame: number, view: DataView, offset: number) => boolean,
  ): void {
    const frameBytes = WAL_FRAME_HEADER_BYTES + pageSizeBytes;
    const perRead = Math.max(1, Math.floor(READ_BYTES / frameBytes));
    // Not kept: each of a fleet's databases that ever had a burst would keep a megabyte.
    const buffer = new Uint8Array(Math.min(perRead, Math.max(0, frames.end - frames.start)) * frameBytes);
    for (let frame = frames.start; frame < frames.end; ) {
      const count = Math.min(perRead, frames.end - frame);
      const wanted = count * frameBytes;
      const got = this.#read(buffer, wanted, frameOffset(frame, pageSizeBytes));
      const whole = Math.floor(got / frameBytes);
      const view = new DataView(buffer.buffer, 0, whole * frameBytes);
      for (let i = 0; i < whole; i++) if (!visit(frame + i, view, i * frameBytes)) return;
      if (whole < count) return;
      frame += count;
    }
  }

  /** Reads the page image of `frame` into `into` at `offset`; false when the file is too short for it. */
  readImage(frame: number, pageSizeBytes: number, into: Uint8Array, offset: number): boolean {
    const position = frameOffset(frame, pageSizeBytes) + WAL_FRAME_HEADER_BYTES;
    return this.#read(into.subarray(offset, offset + pageSizeBytes), pageSizeBytes, position) === pageSizeBytes;
  }

  /** Reads the 24 header bytes of `frame` into `into`; false when the file is too short for it. */
  readFrameHeader(frame: number, pageSizeBytes: number, into: Uint8Array): boolean {
    const bytes = WAL_FRAME_HEADER_BYTES;
    return this.#read(into, bytes, frameOffset(frame, pageSizeBytes)) === bytes;
  }

  close(): void {
    if (this.#descriptor !== null) closeSync(this.#descriptor);
    this.#descriptor = null;
  }

  #read(into: Uint8Array, length: number, position: number): number {
    if (this.#descriptor === null) return 0;
    return readFully(this.#descriptor, into, length, position);
  }
}

/** pread in a loop: as many bytes as the file has, at most `length`. */
export function readFully(descriptor: number, into: Uint8Array, length: number, position: number): number {
  let done = 0;
  while (done < length) {
    const got = readSync(descriptor, into, done, length - done, position + done);
    if (got === 0) break;
    done += got;
  }
  return done;
}
