import { formatByteSize } from "../../util/byte-sizes.ts";
import { formatDuration } from "../../util/durations.ts";
import { orAborted } from "../abort.ts";
import type { Diagnosis } from "../backend.ts";
import type { SftpConnection } from "./connect.ts";
import type { RoomThere } from "./errors.ts";

export interface DiagnoseOptions {
  /** The directory of the backups on the server. */
  readonly root: string;
  /** How far the server's clock is ahead, where a put has shown it; null: nothing was stored by this process. */
  readonly clockAheadMs: number | null;
  readonly signal: AbortSignal | undefined;
}

const LEAST_FREE_BYTES = 1024 * 1024;
const CLOCK_WARNING_MS = 60_000;

/** What `bakelite doctor` tells of a server. Nothing is written. */
export async function diagnoseServer(
  { session, hostKey, serverVersion }: SftpConnection,
  { root, clockAheadMs, signal }: DiagnoseOptions,
): Promise<readonly Diagnosis[]> {
  const { type, fingerprint, at } = hostKey;
  const checks: Diagnosis[] = [
    {
      check: "host key",
      level: "pass",
      message: `${type} ${fingerprint}, as line ${at.lineNumber} of ${at.path} has it`,
    },
    { check: "server", level: "pass", message: serverVersion },
    session.offers("hardlink@openssh.com")
      ? {
          check: "conditional writes",
          level: "pass",
          message: "the server links, so a taken name is refused in one step",
        }
      : {
          check: "conditional writes",
          level: "warn",
          message: "the server does not offer hardlink@openssh.com: bakelite looks and then renames",
          hint: "make sure that never two daemons store the same database here, or use OpenSSH's server",
        },
    session.offers("posix-rename@openssh.com")
      ? { check: "replacing", level: "pass", message: "an object is replaced in one step" }
      : {
          check: "replacing",
          level: "warn",
          message: "the server does not offer posix-rename@openssh.com: for a moment a replaced object is not there",
          hint: "use OpenSSH's server",
        },
    session.offers("fsync@openssh.com")
      ? { check: "durable writes", level: "pass", message: "each object is fsynced before it gets its name" }
      : {
          check: "durable writes",
          level: "warn",
          message: "the server does not offer fsync@openssh.com: a power cut there may lose what was just stored",
          hint: "use OpenSSH's server, or run `bakelite verify` after one",
        },
  ];
  // Before the first backup there is only the directory above it.
  const room = await orAborted(
    session.statvfs(root).then((found) => found ?? session.statvfs(`${root}/..`)),
    signal,
  );
  if (room !== null) checks.push(checkRoom(room));
  if (clockAheadMs !== null && Math.abs(clockAheadMs) > CLOCK_WARNING_MS)
    checks.push({
      check: "clock",
      level: "warn",
      message: `the server's is ${formatDuration(Math.abs(clockAheadMs))} ${clockAheadMs > 0 ? "ahead" : "behind"}`,
      hint: "set both clocks (`timedatectl` shows whether they are synchronized)",
    });
  return checks;
}

function checkRoom({ freeBytes, isReadOnly }: RoomThere): Diagnosis {
  if (isReadOnly)
    return {
      check: "disk space",
      level: "fail",
      message: "the file system on the server is read-only",
      hint: "mount it read-write there (`dmesg` may say why it is not)",
    };
  if (freeBytes < LEAST_FREE_BYTES)
    return {
      check: "disk space",
      level: "fail",
      message: `${formatByteSize(freeBytes)} free on the server`,
      hint: "free space there, or keep less with `retention` or `max_total_size`",
    };
  return { check: "disk space", level: "pass", message: `${formatByteSize(freeBytes)} free on the server` };
}
