import type { Backend, CallOptions, NoncurrentVersions } from "../storage/backend.ts";
import { BakeliteError } from "../util/errors.ts";
import type { ReplicaObject } from "./catalog.ts";
import type { Replica } from "./replica.ts";

/** What one destination stores for one database. */
export interface DestinationUsage {
  readonly location: string;
  /** Why the destination could not be listed; then every count is 0. */
  readonly error: BakeliteError | null;
  /** Full backups, change-sets, marks, `CURRENT` and the manifest. What has no name of ours is not counted. */
  readonly objectCount: number;
  readonly storedBytes: number;
  readonly fullBackupCount: number;
  readonly changeSetCount: number;
  readonly backups: readonly BackupUsage[];
  /** null: nothing can lie there besides the objects that a listing shows. */
  readonly unlisted: UnlistedUsage | null;
}

/** A full backup and the change-sets between it and the next one. */
export interface BackupUsage {
  /** null: change-sets that are older than every full backup. */
  readonly index: number | null;
  /** The stamp of its state; null when that could not be read. */
  readonly stampMs: number | null;
  readonly fullBackupBytes: number;
  readonly changeSetCount: number;
  readonly changeSetBytes: number;
}

/** What is paid for and in no listing. Each part is null where the destination cannot tell. */
export interface UnlistedUsage {
  readonly uploads: {
    readonly count: number;
    readonly sizeBytes: number;
    /** Of the one whose newest part is oldest, by the destination's clock; null without one. */
    readonly greatestAgeMs: number | null;
  } | null;
  readonly noncurrent: NoncurrentVersions | null;
}

/** Usage by destination, in the order of the replica's. Reads each full backup's trailer, and asks for what is in no listing. */
export async function measureUsage(replica: Replica): Promise<readonly DestinationUsage[]> {
  const { signal } = replica.options;
  const call: CallOptions = signal === undefined ? {} : { signal };
  await replica.trailers.load(replica.catalog.fulls);
  return await Promise.all(
    replica.options.backends.map(async (backend, destination) => {
      const error = replica.trailers.failedDestinations.get(destination) ?? null;
      const listed = usageOf(replica, destination);
      if (error !== null) return { location: backend.location, error, ...listed, unlisted: null };
      try {
        const unlisted = await measureUnlisted(backend, `${replica.database}/`, call);
        return { location: backend.location, error: null, ...listed, unlisted };
      } catch (failure) {
        if (!(failure instanceof BakeliteError) || failure.code === "interrupted" || failure.code === "internal")
          throw failure;
        return { location: backend.location, error: failure, ...listed, unlisted: null };
      }
    }),
  );
}

/** What one destination's listing shows. */
function usageOf(replica: Replica, destination: number): Omit<DestinationUsage, "location" | "error" | "unlisted"> {
  const { catalog } = replica;
  const isHere = (object: ReplicaObject) => object.destination === destination;
  const fulls = catalog.fulls.filter(isHere);
  const changeSets = catalog.changeSets.filter(isHere);
  const documents = [catalog.current[destination], catalog.manifest[destination]].filter((stored) => stored != null);
  const marks = catalog.marks.filter((mark) => mark.destination === destination);
  const all = [...fulls, ...changeSets, ...documents, ...marks];
  return {
    objectCount: all.length,
    storedBytes: sumBytes(all),
    fullBackupCount: new Set(fulls.map(({ first }) => first)).size,
    changeSetCount: new Set(changeSets.map(({ level, first, last }) => `${level} ${first} ${last}`)).size,
    backups: backupsOf(replica, fulls, changeSets),
  };
}

/** Both lists ascend. A change-set belongs to the newest full backup before its first state. */
function backupsOf(
  replica: Replica,
  fulls: readonly ReplicaObject[],
  changeSets: readonly ReplicaObject[],
): readonly BackupUsage[] {
  const byIndex = [...Map.groupBy(fulls, ({ first }) => first)];
  const backups: BackupUsage[] = [];
  let next = 0;
  const takeUntil = (end: number) => {
    const start = next;
    while (next < changeSets.length && (changeSets[next]?.first ?? 0) <= end) next++;
    const taken = changeSets.slice(start, next);
    return { changeSetCount: taken.length, changeSetBytes: sumBytes(taken) };
  };
  const orphans = takeUntil(byIndex[0]?.[0] ?? Number.POSITIVE_INFINITY);
  if (orphans.changeSetCount > 0) backups.push({ index: null, stampMs: null, fullBackupBytes: 0, ...orphans });
  for (const [i, [index, copies]] of byIndex.entries()) {
    const stampMs = copies.map((copy) => stampOf(replica, copy)).find((stamp) => stamp !== null) ?? null;
    const followers = takeUntil(byIndex[i + 1]?.[0] ?? Number.POSITIVE_INFINITY);
    backups.push({ index, stampMs, fullBackupBytes: sumBytes(copies), ...followers });
  }
  return backups;
}

function stampOf(replica: Replica, object: ReplicaObject): number | null {
  const known = replica.trailers.knowledge(object);
  return typeof known === "object" ? known.lastCommitMs : null;
}

async function measureUnlisted(backend: Backend, prefix: string, call: CallOptions): Promise<UnlistedUsage | null> {
  const { unlisted } = backend;
  if (unlisted === undefined) return null;
  const found = await unlisted.uploads(prefix, call);
  const noncurrent = await unlisted.noncurrentVersions(prefix, call);
  if (found === null) return { uploads: null, noncurrent };
  let count = 0;
  let sizeBytes = 0;
  let greatestAgeMs: number | null = null;
  for await (const upload of found) {
    count++;
    sizeBytes += upload.sizeBytes;
    greatestAgeMs = Math.max(greatestAgeMs ?? 0, upload.ageMs);
  }
  return { uploads: { count, sizeBytes, greatestAgeMs }, noncurrent };
}

function sumBytes(objects: readonly { readonly sizeBytes: number }[]): number {
  return objects.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
}
