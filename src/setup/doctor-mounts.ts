import { readFile, statfs } from "node:fs/promises";
import { isWithin } from "./doctor-files.ts";

export interface Mount {
  readonly mountPoint: string;
  /** `ext4`, `nfs4`, `fuse.sshfs`. */
  readonly type: string;
  readonly readOnly: boolean;
}

/**
 * Decodes `/proc/self/mountinfo`, a mount a line: `36 35 98:0 /root /mnt rw,noatime shared:1 - ext4 /dev/sda1 rw`, where the
 * optional fields end in a lone dash and spaces in paths are `\040`. Lines that are different are left out.
 * Source: https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html.
 */
export function parseMounts(text: string): readonly Mount[] {
  return text.split("\n").flatMap((line) => {
    const fields = line.split(" ");
    const dash = fields.indexOf("-", 6);
    const [point, options, type] = [fields[4], fields[5], fields[dash + 1]];
    if (dash === -1 || point === undefined || options === undefined || type === undefined) return [];
    const superOptions = fields[dash + 3] ?? "";
    const readOnly = [options, superOptions].some((list) => list.split(",").includes("ro"));
    return [{ mountPoint: unescapeOctal(point), type, readOnly }];
  });
}

function unescapeOctal(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)));
}

/** The mount that a path (absolute, without links) is on: the longest that leads to it, of equal ones the last, which covers the others. */
export function mountOf(mounts: readonly Mount[], path: string): Mount | null {
  let found: Mount | null = null;
  for (const mount of mounts)
    if (isWithin(path, mount.mountPoint) && mount.mountPoint.length >= (found?.mountPoint.length ?? 0)) found = mount;
  return found;
}

/** Empty where the system has no such table (macOS), or hides it. */
export async function readMounts(): Promise<readonly Mount[]> {
  return parseMounts(await readFile("/proc/self/mountinfo", "utf8").catch(() => ""));
}

export interface FileSystem {
  /** null: it could not be told. */
  readonly type: string | null;
  readonly readOnly: boolean;
  /** For users other than root. */
  readonly freeBytes: number;
  readonly sizeBytes: number;
  /** Files that can still be made; null where there is no such limit. */
  readonly freeFiles: number | null;
}

/** `f_type` of statfs(2), for where there is no table of mounts. */
const MAGIC_NUMBERS: Readonly<Record<number, string>> = {
  26985: "nfs",
  20859: "smb",
  4283649346: "cifs",
  4266872130: "smb2",
  1702057286: "fuse",
  16914839: "9p",
  2035054128: "overlay",
  16914836: "tmpfs",
  12805120: "ceph",
};

/** What holds the file or directory at `path`, which exists and has no link in it. */
export async function lookAtFileSystem(path: string, mounts: readonly Mount[]): Promise<FileSystem> {
  const { type, bsize, bavail, blocks, files, ffree } = await statfs(path);
  const mount = mountOf(mounts, path);
  return {
    type: mount?.type ?? (process.platform === "linux" ? (MAGIC_NUMBERS[type] ?? null) : null),
    readOnly: mount?.readOnly ?? false,
    freeBytes: bavail * bsize,
    sizeBytes: blocks * bsize,
    freeFiles: files > 0 ? ffree : null,
  };
}

const NETWORK =
  /^(nfs\d?|cifs|smb\d?|smbfs|9p|ceph|afs|lustre|gpfs|ocfs2|gfs2|vboxsf|virtiofs|prl_fs|vmhgfs|ncpfs|coda)$/;

/**
 * Why a database in WAL mode should not be on such a file system: a clause; null when nothing speaks against it.
 * Source: https://sqlite.org/wal.html, "all processes using a database must be on the same host computer".
 */
export function unfitForWal(type: string): string | null {
  if (NETWORK.test(type)) return "on a network or shared file system SQLite's WAL mode may lose or corrupt data";
  if (type === "fuse" || type.startsWith("fuse."))
    return "on a FUSE file system the locks and the shared memory of WAL mode may not work";
  if (type === "overlay" || type === "aufs") return "it is a container's own layer, which goes with the container";
  if (type === "tmpfs" || type === "ramfs") return "it is in memory, and gone when the machine stops";
  return null;
}
