import { BakeliteError } from "../../util/errors.ts";
import { printable } from "../../util/printable.ts";
import { orAborted } from "../abort.ts";
import { isStatus } from "./errors.ts";
import type { SftpSession } from "./session.ts";
import { type SftpAttributes, STATUS } from "./wire.ts";

/** A name of ours is never longer, and one directory holds far fewer: beyond that a server is making them up. */
const MAX_ENTRIES = 2_000_000;
/** So many are asked for at a time. */
const READS_AHEAD = 4;

export interface NamedFile {
  readonly name: string;
  readonly attributes: SftpAttributes;
}

/**
 * Everything in a directory but `.` and `..`, in no order; null when there is no such directory. Names that are not UTF-8 are
 * not ours and are left out. Throws `io` for a name that would lead elsewhere.
 */
export async function readWholeDirectory(
  session: SftpSession,
  path: string,
  signal: AbortSignal | undefined,
): Promise<readonly NamedFile[] | null> {
  const opening = session.openDirectory(path);
  let handle: Buffer;
  try {
    handle = await orAborted(opening, signal);
  } catch (error) {
    opening.then((late) => session.close(late)).catch(() => {});
    if (isStatus(error, STATUS.noSuchFile)) return null;
    throw error;
  }
  const found: NamedFile[] = [];
  try {
    for (let atEnd = false; !atEnd; ) {
      const answers = Array.from({ length: READS_AHEAD }, () => session.readDirectory(handle));
      for (const entries of await orAborted(Promise.all(answers), signal)) {
        if (entries === null) atEnd = true;
        for (const { name: bytes, attributes } of entries ?? []) {
          const name = bytes.toString("utf8");
          if (name === "." || name === "..") continue;
          if (name === "" || name.includes("/") || name.includes("\0")) throw impossibleName(name, path);
          if (Buffer.compare(Buffer.from(name, "utf8"), bytes) === 0) found.push({ name, attributes });
        }
        if (found.length > MAX_ENTRIES) throw endless(path);
      }
    }
  } finally {
    session.close(handle).catch(() => {});
  }
  return found;
}

function impossibleName(name: string, path: string): BakeliteError {
  return new BakeliteError("io", `cannot list the backup directory: the server gives a name that no file has`, {
    subject: `${path}: ${JSON.stringify(printable(name.slice(0, 100)))}`,
    hint: "check which server this is, and its software: it does not keep to the SFTP protocol",
  });
}

function endless(path: string): BakeliteError {
  return new BakeliteError("io", `cannot list the backup directory: it gives more than ${MAX_ENTRIES} names`, {
    subject: path,
    hint: "keep nothing but backups there, and let compaction or retention leave fewer objects",
  });
}
