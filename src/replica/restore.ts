import { stat, statfs } from "node:fs/promises";
import { dirname } from "node:path";
import { inheritedOwner, resolveDatabasePath } from "../state/layout.ts";
import { formatByteSize } from "../util/byte-sizes.ts";
import { BakeliteError, systemErrorCode, unreachable } from "../util/errors.ts";
import { assertReplaceable, installDatabase } from "./install.ts";
import { type LayProgress, layPages } from "./lay-pages.ts";
import type { RestorePlan } from "./plan.ts";
import type { Replica } from "./replica.ts";
import { checkIntegrity, type IntegrityMode } from "./restore-check.ts";
import { type FilePermissions, removeAbandonedStaging, StagingFile } from "./staging-file.ts";

export interface RestoreOptions {
  /** Absolute; where it is a symbolic link, the file that it points to is restored, as SQLite would open that. */
  readonly outputPath: string;
  /** The database's path in the config, whose directory says who must own what root restores. */
  readonly configuredPath: string;
  /** Replace a file that is there. */
  readonly overwrite: boolean;
  readonly integrity: IntegrityMode | "none";
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: (progress: LayProgress) => void;
  /** Called when all pages are laid down and what remains is to check them. */
  readonly onLaid?: () => void;
}

export interface RestoreResult {
  /** The plan that was carried out last: another than the one given where damage had to be walked around. */
  readonly plan: RestorePlan;
  /** Where the database stands: `outputPath` with its links resolved. */
  readonly path: string;
  readonly sizeBytes: number;
  /** Bytes of objects that came from the destinations for this replica, planning included: that may have read all it takes. */
  readonly fetchedBytes: number;
  readonly digest: string;
  /** Whether the writer had recorded the digest, so that the result could be compared. */
  readonly digestCompared: boolean;
  /** Staging files of killed restores that were removed. */
  readonly removedLeftovers: readonly string[];
}

/**
 * Restores the planned state to a file. The file is put together beside its target, checked against its digest and
 * by SQLite, made durable, and only then given its name: whatever happens, nothing half-written ever stands at the target, and
 * what is staged is removed again unless we are killed. Throws `output-exists`, `database-busy`, `storage-full`,
 * `replica-corrupt`, and `database-unfit` when SQLite finds the restored state damaged.
 */
export async function restoreDatabase(
  replica: Replica,
  plan: RestorePlan,
  options: RestoreOptions,
): Promise<RestoreResult> {
  const targetPath = await resolveTarget(options);
  await assertReplaceable(targetPath, options.overwrite);
  const permissions = await choosePermissions(targetPath, options.configuredPath);
  const removedLeftovers = await removeAbandonedStaging(targetPath);
  const sizeBytes = plan.sizePages * plan.pageSizeBytes;
  await assertRoomFor(sizeBytes, targetPath);

  await using staging = await StagingFile.create(targetPath, {
    pages: plan.sizePages,
    pageSizeBytes: plan.pageSizeBytes,
  });
  const laid = await layPages(replica, plan, {
    sink: staging,
    signal: options.signal,
    ...(options.onProgress === undefined ? {} : { onProgress: options.onProgress }),
  });
  await staging.drain();
  options.onLaid?.();
  // The disk is busy with the one and a processor with the other.
  await Promise.all([staging.sync(), assertSound(staging.path, options)]);
  options.signal?.throwIfAborted();
  await staging.setPermissions(permissions);
  await staging.sync();
  await installDatabase(staging.path, targetPath, options.overwrite);
  staging.moved();
  return {
    plan: laid.plan,
    path: targetPath,
    sizeBytes,
    fetchedBytes: replica.trailers.fetchedBytes,
    digest: laid.digest,
    digestCompared: laid.plan.digest !== null,
    removedLeftovers,
  };
}

async function resolveTarget({ outputPath, configuredPath }: RestoreOptions): Promise<string> {
  try {
    return await resolveDatabasePath(outputPath);
  } catch (error) {
    if (outputPath === configuredPath || !(error instanceof BakeliteError) || error.code !== "not-found") throw error;
    throw new BakeliteError("not-found", "cannot restore there: the directory does not exist", {
      subject: outputPath,
      hint: `create ${dirname(outputPath)}, or choose another --output`,
    });
  }
}

/**
 * A file that is replaced keeps its mode and, as far as we may give it away, its owner. A new one: as root, the owner of the
 * configured database's directory; and the mode of the configured database, so that a copy is never wider open than the original;
 * where that does not exist, as root what the directory's mode suggests (0750: 0640), else 0644 less the umask.
 */
export async function choosePermissions(targetPath: string, configuredPath: string): Promise<FilePermissions> {
  const isRoot = process.geteuid?.() === 0;
  const replaced = await statOrNull(targetPath);
  if (replaced !== null)
    return { mode: replaced.mode & 0o777, owner: isRoot ? { uid: replaced.uid, gid: replaced.gid } : null };
  const directory = await statOrNull(dirname(configuredPath));
  const configured = await statOrNull(configuredPath);
  const owner = directory === null ? null : await inheritedOwner(dirname(configuredPath));
  if (configured !== null) return { mode: configured.mode & 0o777, owner };
  return { mode: isRoot && directory !== null ? directory.mode & 0o666 : 0o644 & ~process.umask(), owner };
}

async function assertSound(path: string, { integrity, signal }: RestoreOptions): Promise<void> {
  if (integrity === "none") return;
  const answer = await checkIntegrity({ path, mode: integrity }, signal);
  switch (answer.outcome) {
    case "sound":
      return;
    case "damaged":
      throw new BakeliteError(
        "database-unfit",
        `the restored database fails SQLite's ${integrity === "full" ? "integrity_check" : "quick_check"}: ${answer.problems.slice(0, 3).join("; ")}`,
        {
          hint: "it is what was backed up, page for page, so it was damaged then: restore an earlier --timestamp, or add --integrity none to get it as it is",
        },
      );
    case "failed":
      throw new BakeliteError("database-unfit", `SQLite cannot check the restored database: ${answer.reason}`, {
        hint: "if the application brings collations or functions of its own, add --integrity none and check with the application",
      });
    default:
      unreachable(answer);
  }
}

async function assertRoomFor(sizeBytes: number, targetPath: string): Promise<void> {
  const directory = dirname(targetPath);
  const { bsize, bavail, bfree } = await statfs(directory);
  const freeBytes = bsize * (process.geteuid?.() === 0 ? bfree : bavail);
  if (freeBytes >= sizeBytes) return;
  throw new BakeliteError(
    "storage-full",
    `cannot restore: the database needs ${formatByteSize(sizeBytes)} and ${formatByteSize(freeBytes)} are free`,
    {
      subject: directory,
      hint: "free space there or choose an --output on another disk; a file that is replaced stays until the new one is complete",
    },
  );
}

async function statOrNull(path: string) {
  try {
    return await stat(path);
  } catch (error) {
    if (systemErrorCode(error) === "ENOENT" || systemErrorCode(error) === "ENOTDIR") return null;
    throw error;
  }
}
