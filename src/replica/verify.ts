import type { DatabaseConfig } from "../config/types.ts";
import { manifestKey } from "../format/names.ts";
import type { VerifyMode } from "../state/verify-marker.ts";
import { BakeliteError } from "../util/errors.ts";
import { keyOf } from "./catalog.ts";
import { openConfiguredReplica } from "./configured.ts";
import { layPages } from "./lay-pages.ts";
import { planForIndex } from "./plan.ts";
import type { Replica } from "./replica.ts";
import { newestPath, restorePointOf } from "./restore-points.ts";
import { checkDeep, type DeepOptions } from "./verify-deep.ts";
import { type Documents, readDocuments } from "./verify-documents.ts";
import { type Judgement, judge } from "./verify-lineage.ts";
import { findLocalState, type LocalState } from "./verify-local.ts";
import { checkMarks } from "./verify-marks.ts";
import { type CheckOptions, ObjectChecks, sentenceOf } from "./verify-objects.ts";
import {
  FindingList,
  type Problem,
  type ProblemKind,
  type Restorability,
  type VerifyReport,
  type Warning,
} from "./verify-report.ts";

export interface VerifyOptions {
  readonly mode: VerifyMode;
  /** Where `--deep` puts what it restores. */
  readonly temporaryDirectory: string;
  readonly nowMs: () => number;
  readonly signal?: AbortSignal | undefined;
  readonly progress?: VerifyProgress | undefined;
}

/** Hears how far it is. */
export interface VerifyProgress {
  /** So many bytes of objects are to be read, or to be laid down for a deep check. */
  begin(what: string, totalBytes: number): void;
  add(bytes: number): void;
  /** Work of which nothing can be measured. */
  wait(what: string): void;
}

export interface ReplicaVerifyOptions extends VerifyOptions {
  /** By the replica's destinations. */
  readonly isMirror: readonly boolean[];
  /** Read before the replica was listed; null where there is none. */
  readonly local: LocalState | null;
}

/** How often objects that disappear while we read make us list again. */
const MAX_LOOKS = 5;

/**
 * Verifies what is stored for a configured database, at all its destinations. Never touches the database: of what stands
 * beside it only the state files are read. Whatever is wrong with the replica is in the report, a destination that does not answer
 * included; rejects when interrupted, and for a bug.
 */
export async function verifyDatabase(database: DatabaseConfig, options: VerifyOptions): Promise<VerifyReport> {
  const local = await findLocalState(database);
  let replica: Replica;
  try {
    replica = await openConfiguredReplica(database, { signal: options.signal });
  } catch (error) {
    if (!isReportable(error, options.signal)) throw error;
    return failedReport(database.name, options.mode, error);
  }
  const lockStepCount = database.backends.filter((backend) => !backend.async).length;
  return await verifyReplica(replica, {
    ...options,
    local,
    isMirror: replica.options.backends.map((_, destination) => destination >= lockStepCount),
  });
}

/**
 * Reads every object of a replica that has just been opened, and judges what was read. When something seems to be missing,
 * or was deleted while we read, it lists again and reads what is new, since a daemon, a compaction and retention may all be at work.
 */
export async function verifyReplica(replica: Replica, options: ReplicaVerifyOptions): Promise<VerifyReport> {
  const checks = new ObjectChecks();
  const { progress, signal } = options;
  const reading: CheckOptions = { signal, onBytes: (bytes) => progress?.add(bytes) };
  let documents = await readAllDocuments(replica, checks, reading);
  let judgement: Judgement;
  for (let look = 1; ; look++) {
    progress?.begin("reading", checks.unreadBytes(replica.catalog));
    await checks.read(replica, reading);
    judgement = judge({
      replica,
      checks,
      documents,
      isMirror: options.isMirror,
      local: options.local,
      nowMs: options.nowMs(),
    });
    const isOutdated = judgement.needsSecondLook && (look === 1 || checks.hasGone(replica.catalog));
    if (!isOutdated || look === MAX_LOOKS) break;
    try {
      await replica.refresh();
    } catch (error) {
      // No destination answers any longer: what was seen so far stands, and that is told besides.
      if (!isReportable(error, signal)) throw error;
      for (const destination of replica.options.backends.keys())
        judgement.problems.add(unreachable(replica.locationOf(destination), error));
      break;
    }
    documents = await readAllDocuments(replica, checks, reading);
  }
  const { problems, warnings, graph } = judgement;
  const markCount = await checkMarks({ replica, checks, judgement, isMirror: options.isMirror }, reading);
  const restorability = await rehearse(replica, checks, judgement, options);
  const deep =
    options.mode === "deep"
      ? await checkDeep({ replica, checks, graph, problems, warnings }, deepOptions(replica, options))
      : null;
  const { catalog } = replica;
  return {
    database: replica.database,
    mode: options.mode,
    failure: null,
    problems,
    warnings,
    fullBackupCount: new Set(catalog.fulls.map((full) => full.first)).size,
    changeSetCount: new Set(catalog.changeSets.map(({ level, first, last }) => `${level} ${first} ${last}`)).size,
    objectsChecked: checks.checkedCount + countDocuments(documents) + markCount,
    bytesRead: checks.bytesRead,
    restorability,
    deep,
  };
}

/** How many newest states are tried of which an object is damaged. */
const MAX_REHEARSALS = 10;

/**
 * An object that is damaged somewhere may still be enough: what is damaged in it may be overwritten by newer objects. So where the
 * newest state that sound objects lead to is not the newest there is, a restore of the newer ones is tried, without keeping
 * a byte of it: what is told is what `bakelite restore` can do.
 */
async function rehearse(
  replica: Replica,
  checks: ObjectChecks,
  { restorability: found, problems }: Judgement,
  { signal, progress }: ReplicaVerifyOptions,
): Promise<Restorability> {
  // A restore believes a manifest that lies as long as it is there, and so do the plans made here.
  const isMisled = problems.listed.some(({ key, kind }) => kind === "corrupt" && key === manifestKey(replica.database));
  if (isMisled && found.newest !== null) {
    const index = (await newestPath(replica, "whole"))?.index ?? 0;
    if (index < found.newest.index) return { ...found, newest: await restorePointOf(replica, index) };
  }
  if (!hasFaults(replica, checks)) return found;
  for (let attempt = 0; attempt < MAX_REHEARSALS; attempt++) {
    try {
      const index = (await newestPath(replica, "whole"))?.index ?? 0;
      if (index <= (found.newest?.index ?? 0)) return found;
      const plan = await planForIndex(replica, index);
      if (plan === null) continue;
      progress?.begin(`trying to restore state ${index}`, plan.sizePages * plan.pageSizeBytes);
      await layPages(replica, plan, { sink: { write: async (_, images) => progress?.add(images.length) }, signal });
      const newest = { index, stampMs: plan.stampMs };
      const [only, ...others] = found.destinations;
      return {
        ...found,
        newest,
        oldest: found.oldest ?? newest,
        pointCount: found.pointCount + 1,
        destinations: only !== undefined && others.length === 0 ? [{ ...only, newest }] : found.destinations,
      };
    } catch (error) {
      // The object that stood in the way is known by now, and the next attempt goes without it.
      if (!isReportable(error, signal)) throw error;
      if (error.code !== "replica-corrupt" && error.code !== "replica-missing") return found;
    }
  }
  return found;
}

function hasFaults({ catalog }: Replica, checks: ObjectChecks): boolean {
  return [...catalog.fulls, ...catalog.changeSets].some((object) => checks.faultOf(object) !== null);
}

function deepOptions(replica: Replica, { temporaryDirectory, signal, progress }: ReplicaVerifyOptions): DeepOptions {
  return {
    temporaryDirectory,
    signal,
    onBegin: (full, totalBytes) => progress?.begin(`restoring full backup ${full.first}`, totalBytes),
    onLaid: (bytes) => progress?.add(bytes),
    onChecking: (full) => progress?.wait(`checking ${keyOf(replica.database, full)} with SQLite`),
  };
}

async function readAllDocuments(
  replica: Replica,
  checks: ObjectChecks,
  options: CheckOptions,
): Promise<readonly (Documents | undefined)[]> {
  const { backends } = replica.options;
  return await Promise.all(
    backends.map(async (_, destination) =>
      replica.trailers.failedDestinations.has(destination)
        ? undefined
        : await readDocuments(replica, destination, checks, options),
    ),
  );
}

function countDocuments(documents: readonly (Documents | undefined)[]): number {
  return documents
    .flatMap((each) => (each === undefined ? [] : [each.current, each.manifest]))
    .filter(({ outcome }) => outcome !== "missing").length;
}

/** A replica that cannot be looked at at all. */
function failedReport(database: string, mode: VerifyMode, error: BakeliteError): VerifyReport {
  const problems = new FindingList<Problem>();
  problems.add(unreachable(error.subject ?? "", error));
  return {
    database,
    mode,
    failure: error,
    problems,
    warnings: new FindingList<Warning>(),
    fullBackupCount: 0,
    changeSetCount: 0,
    objectsChecked: 0,
    bytesRead: 0,
    restorability: { newest: null, oldest: null, pointCount: 0, destinations: [] },
    deep: null,
  };
}

function unreachable(destination: string, error: BakeliteError): Problem {
  return {
    kind: failureKind(error),
    destination,
    key: null,
    message: sentenceOf(error),
    nextStep: error.hint ?? "check the destination and run verify again",
  };
}

function failureKind({ code }: BakeliteError): ProblemKind {
  if (code === "key-wrong") return "unreadable-key";
  return code === "storage-unreachable" || code === "storage-denied" ? "unreachable" : "not-checked";
}

function isReportable(error: unknown, signal: AbortSignal | undefined): error is BakeliteError {
  if (!(error instanceof BakeliteError) || signal?.aborted === true) return false;
  return error.code !== "interrupted" && error.code !== "internal";
}
