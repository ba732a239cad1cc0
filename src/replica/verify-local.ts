import { constants } from "node:fs";
import { lstat, open } from "node:fs/promises";
import { join } from "node:path";
import type { DatabaseConfig } from "../config/types.ts";
import { type Cursor, readCursor } from "../state/cursor.ts";
import { resolveDatabasePath, type StatePaths, statePaths } from "../state/layout.ts";
import { LEDGER_SLOT_BYTES, type LedgerSlot, parseLedgerSlot } from "../state/ledger-slot.ts";
import { nextVerifyMarker, readVerifyMarker, type VerifyRun, writeVerifyMarker } from "../state/verify-marker.ts";
import { BakeliteError, describeError, systemErrorCode } from "../util/errors.ts";
import { systemError } from "../util/system-error.ts";
import type { RestorePoint } from "./restore-points.ts";
import type { Warning } from "./verify-report.ts";

/** What this host remembers of the replica, read before the replica is listed: so it may lag behind, never lead. */
export interface LocalState {
  readonly cursor: Cursor | null;
  /** Of the page ledger; its entries are not read. */
  readonly ledger: LedgerSlot | null;
  readonly ledgerPath: string;
  readonly cursorPath: string;
  /** What is there and cannot be read. */
  readonly warnings: readonly Warning[];
}

/** The state files of a configured database, or null where there is no `.bakelite/`, as on another host. */
export async function findStatePaths(databasePath: string, name: string): Promise<StatePaths | null> {
  try {
    const paths = statePaths(await resolveDatabasePath(databasePath), name);
    return (await lstat(paths.directory)).isDirectory() ? paths : null;
  } catch (error) {
    if (error instanceof BakeliteError && error.code === "not-found") return null;
    if (["ENOENT", "ENOTDIR"].includes(systemErrorCode(error) ?? "")) return null;
    throw systemError("cannot look for the state directory", databasePath, error);
  }
}

/**
 * What this host remembers of a configured database; null where it remembers nothing, or where that cannot be looked for. To be called
 * before the replica is listed: a daemon that ships on meanwhile must not look as if its objects had disappeared.
 */
export async function findLocalState({ path, name }: DatabaseConfig): Promise<LocalState | null> {
  const paths = await findStatePaths(path, name).catch((error) => {
    if (error instanceof BakeliteError) return null;
    throw error;
  });
  return paths === null ? null : await readLocalState(paths);
}

/** Reads cursor and ledger slot; the database itself is not opened. What cannot be read is a warning. */
export async function readLocalState(paths: StatePaths): Promise<LocalState> {
  const warnings: Warning[] = [];
  const warn = (path: string, problem: string) =>
    warnings.push({
      kind: "local-state",
      destination: path,
      key: null,
      message: `${problem}, so what this host remembers was not compared with the replica`,
      nextStep: "run verify as the database's owner or as root; a damaged file is made again by the daemon",
    });
  return {
    cursor: await readCursorOr(paths.cursor, warn),
    ledger: await readLedgerSlotOr(paths.pages, warn),
    cursorPath: paths.cursor,
    ledgerPath: paths.pages,
    warnings,
  };
}

type Warn = (path: string, problem: string) => void;

async function readCursorOr(path: string, warn: Warn): Promise<Cursor | null> {
  try {
    const result = await readCursor(path);
    if ("cursor" in result) return result.cursor;
    if ("corrupt" in result) warn(path, `the cursor is damaged: ${result.corrupt}`);
  } catch (error) {
    warn(path, describeError(error));
  }
  return null;
}

/** The newest valid slot. A daemon may be writing the other one at this moment, and the entries, which are not looked at. */
async function readLedgerSlotOr(path: string, warn: Warn): Promise<LedgerSlot | null> {
  try {
    await using file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
    const bytes = new Uint8Array(2 * LEDGER_SLOT_BYTES);
    await file.read(bytes, 0, bytes.length, 0);
    const slots = [bytes.subarray(0, LEDGER_SLOT_BYTES), bytes.subarray(LEDGER_SLOT_BYTES)]
      .map(parseLedgerSlot)
      .filter((parsed) => parsed !== null);
    const [newest] = slots.sort((a, b) => (a.sequence < b.sequence ? 1 : -1));
    return newest?.slot ?? null;
  } catch (error) {
    if (systemErrorCode(error) !== "ENOENT") warn(path, `cannot read the page ledger: ${describeError(error)}`);
    return null;
  }
}

/**
 * Where the marker of this host goes: beside the cursor; else, where there is no such folder, into `fallbackDirectory`;
 * else nowhere, which is null.
 */
export function markerPath(
  paths: StatePaths | null,
  name: string,
  fallbackDirectory: string | undefined,
): string | null {
  if (paths !== null) return paths.verify;
  return fallbackDirectory === undefined || fallbackDirectory === ""
    ? null
    : join(fallbackDirectory, `${name}.verify.json`);
}

/**
 * Replaces the marker by one that tells of this run too. Run as root, it gets the owner of its folder, who is the
 * database's. A damaged older one is forgotten.
 */
export async function writeMarker(path: string, database: string, run: VerifyRun): Promise<void> {
  const previous = await readVerifyMarker(path);
  await writeVerifyMarker(path, nextVerifyMarker(previous.outcome === "read" ? previous.value : null, database, run));
}

/** A restore point as the state files show it. */
export function markedPoint(point: RestorePoint | null): VerifyRun["newest_restore_point"] {
  return point === null ? null : { index: point.index, at: new Date(point.stampMs).toISOString() };
}
