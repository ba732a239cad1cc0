import { join } from "node:path";
import { BakeliteError, describeError } from "../util/errors.ts";
import type { JsonFileResult } from "./json-file.ts";
import { resolveDatabasePath, statePaths } from "./layout.ts";
import { type MirrorStatus, readMirrorStatus } from "./mirror-status.ts";
import type { Found, Seen } from "./observe.ts";
import { isProcessRunning } from "./process-identity.ts";
import { readStatus, type StatusFile } from "./status.ts";
import { readVerifyMarker, type VerifyMarker } from "./verify-marker.ts";

export interface SeenFiles extends Seen {
  readonly mirrors: Found<MirrorStatus>;
  /** Whether the process that wrote `mirrors` lives. */
  readonly isMirrorRunning: boolean | null;
}

export interface WhatToLookAt {
  readonly name: string;
  /** As configured; links are followed. */
  readonly path: string;
  /** Where `verify` leaves its marker when there is no `.bakelite/` beside the database: `$BAKELITE_STATE_DIR`. */
  readonly fallbackDirectory: string | undefined;
  readonly nowMs: number;
}

/**
 * Reads what the daemon and `verify` publish beside one database. Touches neither the database nor a destination, and
 * never throws for what it finds: what cannot be read says why.
 */
export async function lookAtFiles({ name, path, fallbackDirectory, nowMs }: WhatToLookAt): Promise<SeenFiles> {
  const paths = await statePathsOf(path, name);
  if (paths.outcome !== "read") {
    const verify = fallbackDirectory === undefined ? paths : await readMarker(name, undefined, fallbackDirectory);
    return { nowMs, status: paths, isRunning: null, verify, mirrors: paths, isMirrorRunning: null };
  }
  const files = paths.value;
  const [status, verify, mirrors] = await Promise.all([
    found(() => readStatus(files.status), files.status, "the daemon has not run for this database"),
    readMarker(name, files.verify, fallbackDirectory),
    found(() => readMirrorStatus(files.mirror), files.mirror, "no mirror has been reconciled"),
  ]);
  return {
    nowMs,
    status: ofDatabase(status, name),
    isRunning: await isWriterRunning(status),
    verify: ofDatabase(verify, name),
    mirrors: ofDatabase(mirrors, name),
    isMirrorRunning: await isWriterRunning(mirrors),
  };
}

async function statePathsOf(path: string, name: string): Promise<Found<ReturnType<typeof statePaths>>> {
  try {
    return { outcome: "read", value: statePaths(await resolveDatabasePath(path), name) };
  } catch (error) {
    if (!(error instanceof BakeliteError)) throw error;
    return { outcome: error.code === "not-found" ? "missing" : "unreadable", reason: explain(error) };
  }
}

/** Where `verify` may have left its marker, the likelier place first. `path` is the real path of the database file. Pure. */
export function verifyMarkerPaths({ name, path, fallbackDirectory }: Omit<WhatToLookAt, "nowMs">): readonly string[] {
  const beside = statePaths(path, name).verify;
  return fallbackDirectory === undefined ? [beside] : [beside, join(fallbackDirectory, `${name}.verify.json`)];
}

/** As `lookAtFiles`, the marker alone; `path` is the real path of the database file. */
export async function lookAtVerifyMarker(place: Omit<WhatToLookAt, "nowMs">): Promise<Found<VerifyMarker>> {
  const { name, path, fallbackDirectory } = place;
  return ofDatabase(await readMarker(name, statePaths(path, name).verify, fallbackDirectory), name);
}

async function readMarker(name: string, beside: string | undefined, fallback: string | undefined) {
  const missing = { outcome: "missing", reason: "verify has not run" } as const;
  const first = beside === undefined ? missing : await found(() => readVerifyMarker(beside), beside, missing.reason);
  if (first.outcome !== "missing" || fallback === undefined) return first;
  const elsewhere = join(fallback, `${name}.verify.json`);
  return await found(() => readVerifyMarker(elsewhere), elsewhere, missing.reason);
}

async function found<T>(read: () => Promise<JsonFileResult<T>>, path: string, whenMissing: string): Promise<Found<T>> {
  try {
    const result = await read();
    switch (result.outcome) {
      case "read":
        return result;
      case "missing":
        return { outcome: "missing", reason: `${whenMissing} (there is no ${path})` };
      case "corrupt":
        return { outcome: "unreadable", reason: `${path} cannot be used: ${result.reason}` };
    }
  } catch (error) {
    if (!(error instanceof BakeliteError)) throw error;
    return { outcome: "unreadable", reason: explain(error) };
  }
}

/** One clause with the next step. The cause only where the message does not say it in words. */
function explain(error: BakeliteError): string {
  const subject = error.subject === undefined ? "" : ` (${error.subject})`;
  const what = error.code === "io" ? describeError(error) : `${error.message}${subject}`;
  return error.hint === undefined ? what : `${what}; ${error.hint}`;
}

/** A file that was copied from another database's says nothing of this one. */
function ofDatabase<T extends { readonly database: string }>(file: Found<T>, name: string): Found<T> {
  if (file.outcome !== "read" || file.value.database === name) return file;
  return { outcome: "unreadable", reason: `it is about the database ${file.value.database}, not ${name}` };
}

async function isWriterRunning(file: Found<Pick<StatusFile, "process">>): Promise<boolean | null> {
  return file.outcome === "read" ? await isProcessRunning(file.value.process) : null;
}
