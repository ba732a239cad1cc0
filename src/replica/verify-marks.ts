import { BakeliteError } from "../util/errors.ts";
import { keyOfMark, type StoredMark } from "./catalog.ts";
import { type Mark, readMark } from "./marks.ts";
import type { Replica } from "./replica.ts";
import { faultKind } from "./verify-documents.ts";
import type { Judgement } from "./verify-lineage.ts";
import { type CheckOptions, type ObjectChecks, sentenceOf } from "./verify-objects.ts";

export interface MarkEvidence {
  readonly replica: Replica;
  readonly checks: ObjectChecks;
  readonly judgement: Judgement;
  /** Which destinations are background mirrors: those may lag behind the others. */
  readonly isMirror: readonly boolean[];
}

/**
 * Reads every copy of every mark, and adds to the judgement's findings: copies that cannot be read, destinations that lack one, and
 * marked states that cannot be restored. Gives the number of copies. Rejects when interrupted.
 */
export async function checkMarks(evidence: MarkEvidence, options: CheckOptions): Promise<number> {
  const { replica } = evidence;
  const { marks } = replica.catalog;
  for (const copies of Map.groupBy(marks, ({ index }) => index).values()) {
    const read: Mark[] = [];
    for (const copy of copies) {
      const mark = await checkCopy(evidence, copy, options);
      if (mark !== null) read.push(mark);
    }
    const [first] = copies;
    if (first === undefined) continue;
    warnOfMissing(evidence, first, copies, read[0]);
    judgeState(evidence, first, read[0]);
  }
  return marks.length;
}

async function checkCopy(
  { replica, checks, judgement }: MarkEvidence,
  copy: StoredMark,
  { onBytes }: CheckOptions,
): Promise<Mark | null> {
  try {
    return await readMark(replica, copy, (bytes) => {
      checks.addBytes(bytes);
      onBytes?.(bytes);
    });
  } catch (error) {
    if (!(error instanceof BakeliteError) || error.code === "interrupted" || error.code === "internal") throw error;
    // Dropped while we looked.
    if (error.code === "replica-missing") return null;
    judgement.problems.add({
      kind: faultKind(error),
      destination: replica.locationOf(copy.destination),
      key: keyOfMark(replica.database, copy),
      message: `the mark of state ${copy.index} cannot be read: ${sentenceOf(error)}`,
      nextStep: error.hint ?? "delete it, and mark the state again with `bakelite keep`; until then it keeps its state",
    });
    return null;
  }
}

function warnOfMissing(
  { replica, judgement, isMirror }: MarkEvidence,
  first: StoredMark,
  copies: readonly StoredMark[],
  mark: Mark | undefined,
): void {
  for (const destination of replica.options.backends.keys()) {
    const isJudged = isMirror[destination] !== true && !replica.trailers.failedDestinations.has(destination);
    if (!isJudged || copies.some((copy) => copy.destination === destination)) continue;
    judgement.warnings.add({
      kind: "behind",
      destination: replica.locationOf(destination),
      key: keyOfMark(replica.database, first),
      message: `the mark of state ${first.index} is at another destination and not here`,
      nextStep: `run \`bakelite keep\` with the same time and label ${mark === undefined ? "" : `(${mark.label}) `}again, or drop it`,
    });
  }
}

function judgeState({ replica, checks, judgement }: MarkEvidence, stored: StoredMark, mark: Mark | undefined): void {
  const path = judgement.graph.pathTo(stored.index);
  const last = path === null ? undefined : (path.changeSets.at(-1) ?? path.full);
  const lineage = last === undefined ? undefined : checks.factsOf(last)?.result;
  if (lineage !== undefined && (mark === undefined || mark.lineage === lineage)) return;
  const what = lineage === undefined ? "cannot be restored" : "is of another history than the one that was marked";
  judgement.problems.add({
    kind: "mark-lost",
    destination: replica.locationOf(stored.destination),
    key: keyOfMark(replica.database, stored),
    message: `state ${stored.index}${mark === undefined ? "" : `, marked ${mark.label},`} ${what}`,
    nextStep:
      "repair what it needs from another copy of the replica, or take the mark away with `bakelite keep --drop`",
  });
}
