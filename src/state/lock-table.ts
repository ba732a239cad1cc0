import { readFile } from "node:fs/promises";
import { systemErrorCode } from "../util/errors.ts";

/** One lock as the kernel reports it. */
export interface KernelLock {
  readonly mode: "READ" | "WRITE";
  readonly pid: number;
  readonly deviceMajor: number;
  readonly deviceMinor: number;
  readonly inode: bigint;
  /** First and last byte; `Infinity` for "to the end of the file". */
  readonly firstByte: number;
  readonly lastByte: number;
}

/**
 * Decodes `/proc/locks`, one lock a line: `1: POSIX  ADVISORY  WRITE 7485 fe:00:9977966 1073741824 1073742335` (device in
 * hexadecimal, inode in decimal). Only held POSIX locks are returned: lines of waiters (`1: ->`), flock and leases are left
 * out, and so is what cannot be read. Source: https://man7.org/linux/man-pages/man5/proc_locks.5.html.
 */
export function parseLockTable(text: string): KernelLock[] {
  const locks: KernelLock[] = [];
  for (const line of text.split("\n")) {
    const match =
      /^\d+: POSIX\s+\S+\s+(READ|WRITE)\s+(\d+)\s+([0-9a-f]+):([0-9a-f]+):(\d+)\s+(\d+)\s+(\d+|EOF)\s*$/i.exec(line);
    if (match === null) continue;
    const [, mode, pid, major, minor, inode, first, last] = match;
    locks.push({
      mode: mode === "READ" ? "READ" : "WRITE",
      pid: Number(pid),
      deviceMajor: Number.parseInt(major ?? "", 16),
      deviceMinor: Number.parseInt(minor ?? "", 16),
      inode: BigInt(inode ?? 0),
      firstByte: Number(first),
      lastByte: last === "EOF" ? Number.POSITIVE_INFINITY : Number(last),
    });
  }
  return locks;
}

/** The locks of every process that we may see; null where the system has no such table (macOS) or hides it. */
export async function readLockTable(): Promise<KernelLock[] | null> {
  try {
    return parseLockTable(await readFile("/proc/locks", "latin1"));
  } catch (error) {
    if (systemErrorCode(error) === undefined) throw error;
    return null;
  }
}

/** Splits Linux's 64-bit `st_dev` into the numbers that `/proc/locks` shows. Source: glibc's `gnu_dev_major`. */
export function splitDevice(device: bigint): { readonly major: number; readonly minor: number } {
  return {
    major: Number(((device >> 8n) & 0xfffn) | ((device >> 32n) & 0xffff_f000n)),
    minor: Number((device & 0xffn) | ((device >> 12n) & 0xffff_ff00n)),
  };
}
