import { BakeliteError, type ErrorCode, systemErrorCode } from "./errors.ts";

/**
 * Wraps a failure of the local machine: `message` says what we were doing and `path` on what. Codes: `not-found`,
 * `storage-denied` (permissions, read-only), `storage-full` (disk, quota), else `io`. A BakeliteError comes back as it is.
 */
export function systemError(message: string, path: string, cause: unknown): BakeliteError {
  if (cause instanceof BakeliteError) return cause;
  return new BakeliteError(codeOf(systemErrorCode(cause)), message, { subject: path, cause });
}

function codeOf(errno: string | undefined): ErrorCode {
  switch (errno) {
    case "ENOENT":
    case "ENOTDIR":
      return "not-found";
    case "EACCES":
    case "EPERM":
    case "EROFS":
      return "storage-denied";
    case "ENOSPC":
    case "EDQUOT":
      return "storage-full";
    default:
      return "io";
  }
}
