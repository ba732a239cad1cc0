import { readFile, readlink } from "node:fs/promises";
import * as z from "zod";
import { systemErrorCode } from "../util/errors.ts";

/**
 * Which process wrote a file, told apart from a later one that was given the same PID. Fields are null where the system
 * does not tell (macOS has only the PID).
 */
export const processIdentitySchema = z.object({
  pid: z.int().min(1),
  /** Start time in clock ticks after boot, field 22 of `/proc/<pid>/stat`, as decimal text. */
  pid_start_ticks: z.string().regex(/^\d+$/).nullable(),
  /** `/proc/sys/kernel/random/boot_id`. */
  boot_id: z.string().nullable(),
  /** `pid:[4026531836]`: PIDs of another namespace (a container) mean nothing here. */
  pid_namespace: z.string().nullable(),
});

export type ProcessIdentity = z.infer<typeof processIdentitySchema>;

export async function readOwnIdentity(): Promise<ProcessIdentity> {
  return {
    pid: process.pid,
    pid_start_ticks: await startTicksOf(process.pid),
    boot_id: await bootId(),
    pid_namespace: await readlink("/proc/self/ns/pid").catch(() => null),
  };
}

/** Whether that very process lives now; null when this cannot be told from here. */
export async function isProcessRunning(identity: ProcessIdentity): Promise<boolean | null> {
  const own = await readOwnIdentity();
  const isOtherBoot = identity.boot_id !== null && own.boot_id !== null && identity.boot_id !== own.boot_id;
  if (identity.pid_namespace !== own.pid_namespace) return isOtherBoot ? false : null;
  if (!pidExists(identity.pid)) return false;
  const ticks = identity.pid_start_ticks === null ? null : await startTicksOf(identity.pid);
  // In a container, a service whose sandbox has a /proc of its own may see another boot_id than a shell beside it. Then the
  // same PID and the same start say more than the boot does, and yet not enough.
  if (isOtherBoot) return ticks !== null && ticks === identity.pid_start_ticks ? null : false;
  // Gone between the two looks, or hidden from us (mount option hidepid): then the PID is all we know.
  return ticks === null ? pidExists(identity.pid) : ticks === identity.pid_start_ticks;
}

/** Signal 0 asks only; a process of another user answers EPERM, so it exists. */
function pidExists(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return systemErrorCode(error) === "EPERM";
  }
}

async function startTicksOf(pid: number): Promise<string | null> {
  try {
    return parseStartTicks(await readFile(`/proc/${pid}/stat`, "latin1"));
  } catch {
    return null;
  }
}

/**
 * Field 22 of `/proc/<pid>/stat`; null when it is not there. Field 2, the command in parentheses, may itself hold spaces and
 * parentheses, so counting begins behind the last one. Source: https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html.
 */
export function parseStartTicks(statLine: string): string | null {
  const field = statLine.slice(statLine.lastIndexOf(")") + 2).split(" ")[22 - 3];
  return field !== undefined && /^\d+$/.test(field) ? field : null;
}

async function bootId(): Promise<string | null> {
  try {
    return (await readFile("/proc/sys/kernel/random/boot_id", "latin1")).trim();
  } catch {
    return null;
  }
}
