import { BakeliteError, type ErrorCode, systemErrorCode } from "../util/errors.ts";

/**
 * What a failed call on a destination's file system means to an operator. `doing` completes "cannot …"; `path` is what
 * the call was about. A BakeliteError comes back as it is.
 */
export function fileStorageError(error: unknown, doing: string, path: string): BakeliteError {
  if (error instanceof BakeliteError) return error;
  const { code, why, hint } = explain(systemErrorCode(error));
  return new BakeliteError(code, `cannot ${doing}: ${why}`, { subject: path, hint, cause: error });
}

/** `promise`, whose rejection becomes a `fileStorageError`. */
export async function asStorage<T>(promise: Promise<T>, doing: string, path: string): Promise<T> {
  try {
    return await promise;
  } catch (error) {
    throw fileStorageError(error, doing, path);
  }
}

interface Explanation {
  readonly code: ErrorCode;
  readonly why: string;
  readonly hint: string;
}

function explain(systemCode: string | undefined): Explanation {
  switch (systemCode) {
    case "ENOSPC":
      return {
        code: "storage-full",
        why: "no space left on the file system",
        hint: "free space there (`df -h` and `df -i` show what is used up), or keep less with `retention` or `max_total_size`",
      };
    case "EDQUOT":
      return {
        code: "storage-full",
        why: "the disk quota is used up",
        hint: "raise the quota of the user that bakelite runs as, or keep less with `retention` or `max_total_size`",
      };
    case "EROFS":
      return {
        code: "storage-denied",
        why: "the file system is read-only",
        hint: "mount it read-write (`dmesg` says whether an error made it read-only), or under systemd add the path to ReadWritePaths=",
      };
    case "EACCES":
    case "EPERM":
      return {
        code: "storage-denied",
        why: "permission denied",
        hint: "give the user that bakelite runs as read and write access to the backup directory (`ls -ld`, `lsattr -d` show it)",
      };
    case "ENOENT":
    case "ENODEV":
    case "ENXIO":
    case "ENOTCONN":
    case "ESTALE":
    case "ETIMEDOUT":
    case "EHOSTDOWN":
    case "EHOSTUNREACH":
    case "ENETUNREACH":
    case "ECONNREFUSED":
    case "ECONNRESET":
      return {
        code: "storage-unreachable",
        why: "the directory or its file system is gone",
        hint: "check that the disk or network share of the backup directory is mounted",
      };
    case "ENOTDIR":
      return { code: "io", why: "a file is where a directory should be", hint: "move that file out of the way" };
    case "EISDIR":
      return { code: "io", why: "a directory is where a file should be", hint: "move that directory out of the way" };
    case "ELOOP":
      return {
        code: "io",
        why: "it is a symbolic link, and bakelite follows none inside a backup directory",
        hint: "put the real file or directory there; to keep backups elsewhere, change the backend's `path`",
      };
    case "EMFILE":
    case "ENFILE":
      return { code: "io", why: "too many open files", hint: "raise LimitNOFILE= in the service, or `ulimit -n`" };
    case "ENAMETOOLONG":
      return { code: "io", why: "the name is too long for this file system", hint: "use a shorter backup path" };
    case "EIO":
      return {
        code: "io",
        why: "the disk reported an input/output error",
        hint: "check the disk (`dmesg`, `smartctl -a`), and run `bakelite verify` afterwards",
      };
    default:
      return {
        code: "io",
        why: systemCode ?? "unexpected failure",
        hint: "check the backup directory and its file system",
      };
  }
}
