import { closeSync, openSync } from "node:fs";
import { BakeliteError, systemErrorCode } from "../util/errors.ts";
import { DATABASE_HEADER_BYTES, type DatabaseHeaderCheck, parseDatabaseHeader } from "./database-file.ts";
import { readFully } from "./wal-file.ts";

/**
 * What the first bytes of the file at `path` say; `missing` when there is no file. Opens and closes a descriptor of it, so no
 * follower in this process may have it open: that would drop the follower's locks.
 */
export function inspectDatabase(path: string): DatabaseHeaderCheck | { readonly kind: "missing" } {
  let file: number;
  try {
    file = openSync(path, "r");
  } catch (error) {
    if (systemErrorCode(error) === "ENOENT") return { kind: "missing" };
    throw new BakeliteError("io", "cannot open the database file", {
      subject: path,
      hint: "give the user that runs bakelite read and write access to it and to its directory",
      cause: error,
    });
  }
  try {
    const bytes = new Uint8Array(DATABASE_HEADER_BYTES);
    return parseDatabaseHeader(bytes.subarray(0, readFully(file, bytes, bytes.byteLength, 0)));
  } catch (error) {
    throw new BakeliteError("io", "cannot read the database file", { subject: path, cause: error });
  } finally {
    closeSync(file);
  }
}
