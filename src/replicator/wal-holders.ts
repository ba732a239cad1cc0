import { stat } from "node:fs/promises";
import { readLockTable, splitDevice } from "../state/lock-table.ts";
import { systemErrorCode } from "../util/errors.ts";

/** The lock bytes of readers in the `-shm` file. Source: sqlite.org/walformat.html, "WAL-index locks". */
const FIRST_READ_LOCK = 123;
const LAST_READ_LOCK = 127;

export interface WalHolder {
  readonly pid: number;
  /** When we first saw it, Unix milliseconds. */
  readonly sinceMs: number;
}

/**
 * Which other processes keep the WAL from being restarted, as the kernel's lock table shows it. Opens no file of the
 * database: closing one would drop our locks. A reader whose transactions follow one another closely counts as one.
 */
export class WalHolders {
  readonly #shmPath: string;
  #seen = new Map<number, number>();

  constructor(databasePath: string) {
    this.#shmPath = `${databasePath}-shm`;
  }

  /** The one that has been there longest; null when nobody was when last looked. */
  get longest(): WalHolder | null {
    let longest: WalHolder | null = null;
    for (const [pid, sinceMs] of this.#seen)
      if (longest === null || sinceMs < longest.sinceMs) longest = { pid, sinceMs };
    return longest;
  }

  /** Looks again, if `isHeldBack`; else nobody is in the way. */
  async look(isHeldBack: boolean, nowMs: number): Promise<void> {
    const pids = isHeldBack ? await this.#readers() : [];
    this.#seen = new Map(pids.map((pid) => [pid, this.#seen.get(pid) ?? nowMs]));
  }

  async #readers(): Promise<readonly number[]> {
    try {
      const { dev, ino } = await stat(this.#shmPath, { bigint: true });
      const { major, minor } = splitDevice(dev);
      const locks = (await readLockTable()) ?? [];
      const readers = locks.filter(
        (lock) =>
          lock.inode === ino &&
          lock.deviceMajor === major &&
          lock.deviceMinor === minor &&
          lock.pid > 0 &&
          lock.pid !== process.pid &&
          lock.firstByte <= LAST_READ_LOCK &&
          lock.lastByte >= FIRST_READ_LOCK,
      );
      return [...new Set(readers.map(({ pid }) => pid))];
    } catch (error) {
      if (systemErrorCode(error) === undefined) throw error;
      return [];
    }
  }
}
