import { stat } from "node:fs/promises";
import { join } from "node:path";
import { type DestinationNews, loadKeys, openDestination } from "../config/assemble.ts";
import type { DatabaseConfig } from "../config/types.ts";
import type { SealKey } from "../format/envelope.ts";
import { acquireInstanceLock, findLockHolder, type InstanceLock } from "../state/instance-lock.ts";
import { sweepTemporaryFiles } from "../storage/file.ts";
import { BakeliteError, describeError, systemErrorCode } from "../util/errors.ts";
import { silentLogger } from "../util/logger.ts";
import { planReencryption, type ReencryptOptions, type ReencryptProblem, type ReencryptReport } from "./reencrypt.ts";
import type { ReencryptPlan } from "./reencrypt-plan.ts";
import { findStatePaths, readLocalState } from "./verify-local.ts";
import type { FindingList } from "./verify-report.ts";

export interface ReencryptRequest
  extends Pick<ReencryptOptions, "oldKeys" | "writer" | "randomHex" | "signal" | "progress"> {
  /** Only look. Needs no lock, so a daemon may run. */
  readonly dryRun: boolean;
  /** The operator says that the database is not on this host, and that no daemon follows it anywhere. */
  readonly withoutDatabase: boolean;
  readonly nowMs: () => number;
  readonly news?: DestinationNews | undefined;
}

export interface ReencryptOutcome {
  readonly plan: ReencryptPlan;
  readonly documentCount: number;
  readonly problems: FindingList<ReencryptProblem>;
  /** null: only looked. */
  readonly report: ReencryptReport | null;
  readonly notes: readonly string[];
}

/**
 * Rewrites what is stored for a configured database, at all its destinations, under the key that is configured, or in
 * plaintext where none is. Holds the lock of the database's daemon meanwhile. Throws `locked` when a daemon runs, `not-found`
 * where the database is not on this host and `withoutDatabase` was not said, `key-wrong` for keys that cannot be had, and
 * when interrupted; whatever else is wrong is a problem.
 */
export async function reencryptDatabase(
  database: DatabaseConfig,
  request: ReencryptRequest,
): Promise<ReencryptOutcome> {
  const { dryRun, oldKeys, writer, randomHex, signal, progress } = request;
  const { sealKey } = await loadKeys(database.encryption);
  await using _lock = dryRun ? null : await lock(database, request);
  const work = await planReencryption({
    database: database.name,
    backends: database.backends.map((backend) => openDestination(backend, request.news)),
    sealKey,
    oldKeys: withoutKey(oldKeys, sealKey),
    compressionLevel: database.compressionLevel,
    knownLocations: await locationsInCursor(database),
    writer,
    randomHex,
    signal,
    progress,
  });
  const { plan, documentCount, problems } = work;
  if (dryRun) return { plan, documentCount, problems, report: null, notes: [] };
  const report = await work.apply();
  const notes = await sweep(database, request);
  return { plan: report.plan, documentCount, problems: report.problems, report, notes };
}

/** Where this host remembers having stored the database; nowhere, if it remembers nothing that can be read. */
async function locationsInCursor({ path, name }: DatabaseConfig): Promise<readonly string[]> {
  try {
    const paths = await findStatePaths(path, name);
    const cursor = paths === null ? null : (await readLocalState(paths)).cursor;
    return cursor === null || cursor.fullBackup === null ? [] : Object.keys(cursor.destinations);
  } catch (error) {
    if (error instanceof BakeliteError && error.code !== "internal") return [];
    throw error;
  }
}

function withoutKey(keys: readonly SealKey[], key: SealKey | null): readonly SealKey[] {
  return keys.filter(({ fingerprint }) => fingerprint !== key?.fingerprint);
}

/** null where there is nothing to lock. */
async function lock({ path }: DatabaseConfig, { withoutDatabase }: ReencryptRequest): Promise<InstanceLock | null> {
  if (!withoutDatabase && !(await exists(path)))
    throw new BakeliteError(
      "not-found",
      "the database is not on this host, so nothing tells whether a daemon follows it",
      {
        subject: path,
        hint: "run this where the database is; if it is nowhere any more and no daemon runs for it, add --without-database",
      },
    );
  try {
    return await acquireInstanceLock(path, silentLogger, "reencrypt");
  } catch (error) {
    if (!(error instanceof BakeliteError)) throw error;
    if (withoutDatabase && error.code === "not-found") return null;
    if (error.code !== "locked" || (await findLockHolder(path))?.purpose === "reencrypt") throw error;
    throw new BakeliteError("locked", `a daemon is running: ${error.message}`, {
      subject: path,
      hint: "stop it first, as with `systemctl stop bakelite`, and start it again afterwards",
    });
  }
}

async function exists(path: string): Promise<boolean> {
  try {
    // A stat opens no descriptor, whose closing would cost the locks that a daemon in this process held.
    await stat(path);
    return true;
  } catch (error) {
    if (["ENOENT", "ENOTDIR"].includes(systemErrorCode(error) ?? "")) return false;
    // Whatever it is that cannot be looked at, the lock will say so.
    return true;
  }
}

/** What interrupted puts of a daemon left in the database's folders holds pages under the old seal. Nobody writes there now. */
async function sweep({ name, backends }: DatabaseConfig, { nowMs }: ReencryptRequest): Promise<readonly string[]> {
  const notes: string[] = [];
  for (const backend of backends) {
    if (backend.type !== "file") continue;
    const path = join(backend.path, name);
    try {
      const { removedCount } = await sweepTemporaryFiles({ path, olderThanMs: 0, nowMs: nowMs() });
      if (removedCount > 0) notes.push(`removed ${removedCount} files that interrupted uploads had left in ${path}`);
    } catch (error) {
      notes.push(`what interrupted uploads may have left in ${path} is still there: ${describeError(error)}`);
    }
  }
  return notes;
}
