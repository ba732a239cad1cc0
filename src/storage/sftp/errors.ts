import { BakeliteError, type ErrorCode } from "../../util/errors.ts";
import { printable } from "../../util/printable.ts";
import { STATUS } from "./wire.ts";

const MAX_MESSAGE_CHARACTERS = 200;

/** The server answered a request with a status other than "ok". */
export class SftpStatusError extends Error {
  override readonly name = "SftpStatusError";
  /** As in `STATUS`. */
  readonly status: number;

  constructor(status: number, serverMessage: string) {
    super(`the server says: ${printable(serverMessage.slice(0, MAX_MESSAGE_CHARACTERS))} (status ${status})`);
    this.status = status;
  }
}

/** The connection, or what came over it, is of no more use; the next attempt makes another. */
export function unreachable(location: string, why: string, cause?: unknown): BakeliteError {
  return new BakeliteError("storage-unreachable", `cannot reach the SFTP server: ${why}`, {
    subject: location,
    hint: "check `host` and `port`, and that the server runs and can be reached from here",
    ...(cause === undefined ? {} : { cause }),
  });
}

export function isStatus(error: unknown, ...statuses: readonly number[]): boolean {
  return error instanceof SftpStatusError && statuses.includes(error.status);
}

/** For `catch`: null where the server has answered, with whatever. A line that broke is thrown: it is not the server's last word. */
export function nullIfAnswered(error: unknown): null {
  if (error instanceof SftpStatusError) return null;
  throw error;
}

/** What the file system there tells of itself, where a failure has no reason. */
export interface RoomThere {
  readonly freeBytes: number;
  /** null on file systems that make them as needed. */
  readonly freeFiles: number | null;
  readonly isReadOnly: boolean;
}

export interface FailedCall {
  /** Completes "cannot …". */
  readonly doing: string;
  readonly subject: string;
  /** It was to take room there, so a failure without a reason most likely means that there is none. */
  readonly takesRoom?: boolean;
  /** null: the server does not tell. */
  readonly room?: RoomThere | null;
}

/** Below this a file system counts as full. */
const LEAST_FREE_BYTES = 1024 * 1024;

/** What a failed request means to an operator. Errors that are not the server's come back as they are. */
export function sftpStorageError(error: unknown, call: FailedCall): unknown {
  if (!(error instanceof SftpStatusError)) return error;
  const { code, why, hint } = explain(error.status, call);
  return new BakeliteError(code, `cannot ${call.doing}: ${why}`, { subject: call.subject, hint, cause: error });
}

interface Explanation {
  readonly code: ErrorCode;
  readonly why: string;
  readonly hint: string;
}

const MAKE_ROOM = "free space on the server, or keep less with `retention` or `max_total_size`";

function explain(status: number, { room, takesRoom = false }: FailedCall): Explanation {
  switch (status) {
    case STATUS.permissionDenied:
      return {
        code: "storage-denied",
        why: "permission denied",
        hint: "on the server, give `user` read and write access to `path`; an account that is read-only (`internal-sftp -R`) cannot be stored to",
      };
    case STATUS.writeProtect:
      return readOnly();
    case STATUS.noSpace:
      return { code: "storage-full", why: "no space left on the server", hint: MAKE_ROOM };
    case STATUS.quotaExceeded:
      return { code: "storage-full", why: "the quota on the server is used up", hint: `raise the quota, ${MAKE_ROOM}` };
    case STATUS.noConnection:
    case STATUS.connectionLost:
      return {
        code: "storage-unreachable",
        why: "the server has lost what it stores to",
        hint: "check the server's disks and mounts",
      };
    case STATUS.noSuchFile:
      return {
        code: "storage-unreachable",
        why: "the directory or the file is gone",
        hint: "check that the disk of `path` is mounted on the server",
      };
    case STATUS.unsupported:
      return {
        code: "storage-denied",
        why: "the server cannot do this",
        hint: "use another SFTP server, as OpenSSH's",
      };
  }
  if (room?.isReadOnly === true) return readOnly();
  if (room !== undefined && room !== null && (room.freeBytes < LEAST_FREE_BYTES || room.freeFiles === 0))
    return { code: "storage-full", why: "no space left on the server", hint: MAKE_ROOM };
  if (takesRoom)
    return {
      code: "storage-full",
      why: "the server could not write, and does not say why; most often its disk or a quota is full",
      hint: "look at the server (`df -h`, `df -i`, `quota`, `dmesg`), and keep less with `retention` or `max_total_size`",
    };
  return {
    code: "io",
    why: "the server reported a failure",
    hint: "look at the server's log, and check the directory and its file system there",
  };
}

function readOnly(): Explanation {
  return {
    code: "storage-denied",
    why: "the file system on the server is read-only",
    hint: "mount it read-write there (`dmesg` says whether an error made it read-only)",
  };
}
