import { statfs } from "node:fs/promises";
import { join } from "node:path";
import { formatByteSize } from "../util/byte-sizes.ts";
import { BakeliteError } from "../util/errors.ts";
import { plural } from "../util/plural.ts";
import { systemError } from "../util/system-error.ts";
import { upperBound } from "../util/upper-bound.ts";
import { isMergedOver, keyOf, type ReplicaObject } from "./catalog.ts";
import { layPages, StateDeleted } from "./lay-pages.ts";
import type { LineageGraph, StatePath } from "./paths.ts";
import type { RestorePlan } from "./plan.ts";
import type { Replica } from "./replica.ts";
import { checkIntegrity, type IntegrityAnswer } from "./restore-check.ts";
import { removeAbandonedStaging, StagingFile } from "./staging-file.ts";
import { soundGraph } from "./verify-lineage.ts";
import { type ObjectChecks, sentenceOf } from "./verify-objects.ts";
import type { DeepCheck, FindingList, Problem, Warning } from "./verify-report.ts";

export interface DeepOptions {
  /** Where the restored databases go, one at a time. */
  readonly temporaryDirectory: string;
  readonly signal?: AbortSignal | undefined;
  /** Before each full backup: what will be laid down. */
  readonly onBegin?: (full: ReplicaObject, totalBytes: number) => void;
  readonly onLaid?: (bytes: number) => void;
  readonly onChecking?: (full: ReplicaObject) => void;
}

export interface DeepInputs {
  readonly replica: Replica;
  readonly checks: ObjectChecks;
  /** Of all destinations: tells what is a fork, which no restore uses. */
  readonly graph: LineageGraph;
  readonly problems: FindingList<Problem>;
  readonly warnings: FindingList<Warning>;
}

/** What SQLite says when a database needs what only its application brings. */
const APPLICATIONS_OWN = /no such (?:collation sequence|function|module|tokenizer)|unknown tokenizer/i;

/**
 * Restores every sound full backup at every destination with the change-sets that follow it, as far as they lead, into a
 * temporary file, compares the state digest, and has SQLite check the file. The chain comes from the same destination where that has
 * one, else from all of them. What is found is added to `problems`; rejects when interrupted, and for a bug.
 */
export async function checkDeep(inputs: DeepInputs, options: DeepOptions): Promise<readonly DeepCheck[]> {
  const { replica, checks, graph } = inputs;
  const forks = new Set(graph.forks);
  const target = join(options.temporaryDirectory, `bakelite-verify-${replica.database}`);
  const done: DeepCheck[] = [];
  const fulls = replica.catalog.fulls.filter((full) => checks.factsOf(full) !== null && !forks.has(full));
  if (fulls.length === 0) return done;
  try {
    await removeAbandonedStaging(target);
  } catch (error) {
    addProblem(inputs, fulls[0], "not-checked", {
      message: `the deep check cannot use ${options.temporaryDirectory}: ${sentenceOf(error)}`,
      nextStep: "choose another --temp-dir, or set TMPDIR",
    });
    return done;
  }
  for (const full of fulls) {
    options.signal?.throwIfAborted();
    const check = await checkFull(inputs, full, target, options);
    if (check !== null) done.push(check);
  }
  return done;
}

/** null where the full backup leads to no restore point, which is told elsewhere, or could not be tried. */
async function checkFull(
  inputs: DeepInputs,
  listed: ReplicaObject,
  target: string,
  options: DeepOptions,
): Promise<DeepCheck | null> {
  const { replica, checks } = inputs;
  let newest = Number.POSITIVE_INFINITY;
  for (;;) {
    // What has been listed since the objects were judged may lead on where others were deleted.
    await checks.read(replica, { signal: options.signal });
    const full = listedAgain(replica, listed);
    if (full === null) return reportUnlisted(inputs, listed);
    const path = longestPath(inputs, full, newest);
    if (path === null) return null;
    try {
      const plan = await planOf(inputs, path);
      if (plan === null || !(await hasRoom(inputs, plan, options))) return null;
      return await restoreAndCheck(inputs, plan, target, options);
    } catch (error) {
      if (!(error instanceof BakeliteError) || error.code === "interrupted" || error.code === "internal") throw error;
      if (options.signal?.aborted === true) throw error;
      // Deleted by retention meanwhile: it is no longer a backup.
      if (error.code === "replica-corrupt" && (await isGone(replica, full))) return null;
      if (!(error instanceof StateDeleted && isMergedOver(replica.catalog, path.index)))
        return reportUnrestorable(inputs, path, error);
      // It is no longer a restore point. Those before it are tried: what is merged once stays for longer each time.
      newest = path.index - 1;
    }
  }
}

/** The full backup as the newest listing has it; null when it is not there, or could not be listed. */
function listedAgain({ catalog }: Replica, listed: ReplicaObject): ReplicaObject | null {
  const { destination, first, seal } = listed;
  return (
    catalog.fulls.find((full) => full.destination === destination && full.first === first && full.seal === seal) ?? null
  );
}

/** What has been deleted meanwhile is no longer a backup; what the destination no longer lists was not checked. */
function reportUnlisted(inputs: DeepInputs, listed: ReplicaObject): null {
  const failure = inputs.replica.trailers.failedDestinations.get(listed.destination);
  if (failure !== undefined)
    addProblem(inputs, listed, "not-checked", {
      message: `full backup ${listed.first} was not restored, for its destination stopped answering: ${sentenceOf(failure)}`,
      nextStep: failure.hint ?? "run verify --deep again",
    });
  return null;
}

function reportUnrestorable(inputs: DeepInputs, path: StatePath, error: BakeliteError): DeepCheck {
  const isReplicas = error.code === "replica-corrupt";
  addProblem(inputs, path.full, isReplicas ? "unrestorable" : "not-checked", {
    message: `state ${path.index} cannot be restored from full backup ${path.full.first} and ${plural(path.changeSets.length, "change-set")}: ${sentenceOf(error)}`,
    nextStep: isReplicas
      ? "run verify again without --deep for the objects; if it finds none, report this"
      : (error.hint ?? "run verify --deep again"),
  });
  return {
    ...describe(inputs, path, { stampMs: stampOf(inputs, path), sizeBytes: 0, digestCompared: false }),
    integrity: null,
  };
}

/** From `full` to the newest restore point that it leads to, `newest` at the most. */
function longestPath({ replica, checks }: DeepInputs, full: ReplicaObject, newest: number): StatePath | null {
  const isOther = (object: ReplicaObject) => object.kind === "full" && object !== full;
  for (const isHere of [(object: ReplicaObject) => object.destination === full.destination, () => true]) {
    const graph = soundGraph(replica, checks, (object) => isHere(object) && !isOther(object));
    const { restorePoints } = graph;
    const point = restorePoints[upperBound(restorePoints, newest) - 1];
    if (point !== undefined) return graph.pathTo(point);
  }
  return null;
}

async function planOf({ replica, checks }: DeepInputs, path: StatePath): Promise<RestorePlan | null> {
  // What was read whole a moment ago need not be asked for again before it is laid down.
  for (const object of [path.full, ...path.changeSets]) {
    const known = checks.factsOf(object);
    if (known !== null) replica.trailers.learn(object, known);
  }
  const last = path.changeSets.at(-1) ?? path.full;
  const opened = await replica.trailers.open(last);
  const facts = checks.factsOf(last);
  if (opened === null || facts === null) {
    const failure = replica.trailers.failureOf(last);
    if (failure === undefined) return null;
    if (!failure.gone) throw failure.error;
    await replica.refresh();
    throw new StateDeleted("replica-corrupt", "an object that it needs was deleted meanwhile", {
      subject: replica.describe(last),
      cause: failure.error,
    });
  }
  const { header, trailer } = opened.reader;
  return {
    proven: true,
    index: path.index,
    stampMs: trailer.lastCommitMs,
    lineage: trailer.result,
    full: path.full,
    changeSets: path.changeSets,
    sizePages: trailer.sizePages,
    pageSizeBytes: header.pageSizeBytes,
    digest: trailer.digest,
    bytesToFetch: path.changeSets.reduce((sum, object) => sum + object.sizeBytes, path.full.sizeBytes),
  };
}

async function hasRoom(inputs: DeepInputs, plan: RestorePlan, { temporaryDirectory }: DeepOptions): Promise<boolean> {
  const neededBytes = plan.sizePages * plan.pageSizeBytes;
  const { bsize, bavail, bfree } = await statfs(temporaryDirectory).catch((error) => {
    throw systemError("cannot look at the temporary directory", temporaryDirectory, error);
  });
  const freeBytes = bsize * (process.geteuid?.() === 0 ? bfree : bavail);
  if (freeBytes >= neededBytes) return true;
  addProblem(inputs, plan.full, "not-checked", {
    message: `the deep check of full backup ${plan.full.first} needs ${formatByteSize(neededBytes)} in ${temporaryDirectory}, and ${formatByteSize(freeBytes)} are free`,
    nextStep: "free space there, or choose a --temp-dir on another disk",
  });
  return false;
}

async function restoreAndCheck(
  inputs: DeepInputs,
  plan: RestorePlan,
  target: string,
  options: DeepOptions,
): Promise<DeepCheck> {
  const { replica } = inputs;
  const { signal, onBegin, onLaid, onChecking } = options;
  const sizeBytes = plan.sizePages * plan.pageSizeBytes;
  onBegin?.(plan.full, sizeBytes);
  await using staging = await StagingFile.create(target, {
    pages: plan.sizePages,
    pageSizeBytes: plan.pageSizeBytes,
  });
  let pagesDone = 0;
  const laid = await layPages(replica, plan, {
    sink: staging,
    signal,
    onProgress: (progress) => {
      onLaid?.((progress.pagesDone - pagesDone) * plan.pageSizeBytes);
      ({ pagesDone } = progress);
    },
  });
  await staging.drain();
  reportDetours(inputs, plan, laid.plan);
  onChecking?.(plan.full);
  const answer = await checkIntegrity({ path: staging.path, mode: "full" }, signal);
  reportIntegrity(inputs, plan, answer);
  return {
    ...describe(inputs, plan, { stampMs: plan.stampMs, sizeBytes, digestCompared: laid.plan.digest !== null }),
    integrity: answer.outcome,
  };
}

/** An object that was sound a moment ago and had to be walked around now, unless it was deleted meanwhile. */
function reportDetours(inputs: DeepInputs, plan: RestorePlan, followed: RestorePlan): void {
  if (plan === followed) return;
  const { replica } = inputs;
  for (const object of [plan.full, ...plan.changeSets]) {
    const failure = replica.trailers.failureOf(object);
    if (failure === undefined || failure.gone) continue;
    addProblem(inputs, object, "corrupt", {
      message: `it was sound when it was read first, and is not any longer: ${sentenceOf(failure.error)}`,
      nextStep: "check the destination's disk or network: it gives different bytes at different times",
    });
  }
}

function reportIntegrity(inputs: DeepInputs, plan: RestorePlan, answer: IntegrityAnswer): void {
  const what = `state ${plan.index}, restored from full backup ${plan.full.first} and ${plural(plan.changeSets.length, "change-set")},`;
  const { replica } = inputs;
  switch (answer.outcome) {
    case "sound":
      return;
    case "damaged":
      addProblem(inputs, plan.full, "integrity", {
        message: `${what} fails SQLite's integrity_check: ${answer.problems.slice(0, 3).join("; ")}`,
        nextStep:
          "it is what was backed up, page for page: check the live database with `PRAGMA integrity_check`, and restore an earlier --timestamp if it is damaged too",
      });
      return;
    case "failed":
      if (APPLICATIONS_OWN.test(answer.reason))
        inputs.warnings.add({
          kind: "not-checkable",
          destination: replica.locationOf(plan.full.destination),
          key: keyOf(replica.database, plan.full),
          message: `${what} cannot be checked by SQLite alone: ${answer.reason}`,
          nextStep: "restore it and check it with the application that brings what SQLite lacks",
        });
      else
        addProblem(inputs, plan.full, "integrity", {
          message: `${what} cannot be read by SQLite: ${answer.reason}`,
          nextStep:
            "it is what was backed up, page for page: check the live database with `PRAGMA integrity_check`, and restore an earlier --timestamp if it is damaged too",
        });
  }
}

function describe(
  { replica }: DeepInputs,
  { index, full, changeSets }: Pick<StatePath, "index" | "full" | "changeSets">,
  told: { readonly stampMs: number; readonly sizeBytes: number; readonly digestCompared: boolean },
): Omit<DeepCheck, "integrity"> {
  return {
    destination: replica.locationOf(full.destination),
    key: keyOf(replica.database, full),
    fullBackup: full.first,
    changeSetCount: changeSets.length,
    point: { index, stampMs: told.stampMs },
    sizeBytes: told.sizeBytes,
    digestCompared: told.digestCompared,
  };
}

function stampOf({ checks }: DeepInputs, { full, changeSets }: StatePath): number {
  return checks.factsOf(changeSets.at(-1) ?? full)?.lastCommitMs ?? 0;
}

/** Whether the destination no longer has the object. */
async function isGone(replica: Replica, object: ReplicaObject): Promise<boolean> {
  const backend = replica.options.backends[object.destination];
  return backend !== undefined && (await backend.stat(keyOf(replica.database, object))) === null;
}

function addProblem(
  { replica, problems }: DeepInputs,
  object: ReplicaObject | undefined,
  kind: Problem["kind"],
  words: { readonly message: string; readonly nextStep: string },
): void {
  problems.add({
    kind,
    destination: object === undefined ? "" : replica.locationOf(object.destination),
    key: object === undefined ? null : keyOf(replica.database, object),
    ...words,
  });
}
