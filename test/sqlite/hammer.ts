import { copyFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { gradeRestore } from "../oracle/grade.ts";
import { allAcks, type StartWriterOptions, startWriter, type WriterProcess } from "../oracle/writer-process.ts";
import { eventually } from "../support/eventually.ts";
import type { Random } from "../support/random.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";
import { Shadow } from "./shadow.ts";

export interface HammerOptions {
  readonly random: Random;
  readonly seconds: number;
  readonly limitBytes?: number;
  readonly frameMapBytes?: number;
  readonly writers: readonly Omit<StartWriterOptions, "database" | "id" | "seed">[];
  /** Pages of the database beside what the writers make. */
  readonly paddingBytes?: number;
  /** What the first writer is made to do, paused, when a third of the time has passed, while all else goes on. */
  readonly interlude?: (writer: WriterProcess) => Promise<void>;
  /** How long nothing is looked at, at most, between two syncs. */
  readonly maxPauseMs?: number;
  /** Grade a copy of the shadow about this often; each copy must be a committed state that misses nothing captured. */
  readonly gradeEveryMs?: number;
}

export interface HammerReport {
  /** Committed frames with a wrong checksum, as SQLite 3.40 was seen to leave them. */
  readonly badChecksums: number;
  readonly commits: number;
  readonly syncs: number;
  readonly graded: number;
  readonly complete: number;
  readonly outcomes: Readonly<Record<string, number>>;
  readonly maxWalBytes: number;
  /** The largest size of the database that was captured. */
  readonly maxSizePages: number;
  readonly maxLockMs: number;
}

const RESTARTED_AT_ATTACH = "the WAL was restarted before it was read to its end";

/**
 * Lets writer processes loose on one database while a `Shadow` follows it in this process, then compares the shadow byte
 * for byte with what SQLite's own TRUNCATE checkpoint makes of the database.
 */
export async function hammer(options: HammerOptions): Promise<HammerReport> {
  await using directory = await temporaryDirectory("hammer");
  const databasePath = directory.file("app.db");
  const shadowPath = directory.file("shadow.db");
  const writers: WriterProcess[] = [];
  let toClose = null as Shadow | null;
  let maxWalBytes = 0;
  let maxSizePages = 0;
  let syncs = 0;
  let graded = 0;
  try {
    for (const [i, writer] of options.writers.entries()) {
      writers.push(
        await startWriter({ ...writer, database: databasePath, id: i + 1, seed: options.random.integer(1, 2 ** 31) }),
      );
      if (i === 0) await eventually(() => (writers[0]?.acks.length ?? 0) > 0, { what: "the first commit" });
    }
    await writers[0]?.sql(`CREATE TABLE padding AS SELECT zeroblob(${options.paddingBytes ?? 0}) AS body`);
    const attach = () => {
      const attached = new Shadow({
        databasePath,
        shadowPath,
        ...(options.limitBytes === undefined ? {} : { limitBytes: options.limitBytes }),
        ...(options.frameMapBytes === undefined ? {} : { frameMapBytes: options.frameMapBytes }),
      });
      toClose = attached;
      return attached;
    };
    let shadow = attach();
    const until = performance.now() + options.seconds * 1000;
    const interlude = playInterlude(options, writers[0]);
    let gradeAt = performance.now();
    while (performance.now() < until) {
      const result = shadow.sync();
      if (result.kind === "fault") {
        // Found wholly backfilled, a WAL may be restarted before its frames were read: that attach ends, and the next one begins.
        if (syncs > 0 || result.detail !== RESTARTED_AT_ATTACH)
          throw new Error(`fault ${result.fault}: ${result.detail}`);
        shadow[Symbol.dispose]();
        shadow = attach();
        continue;
      }
      syncs++;
      maxSizePages = Math.max(maxSizePages, shadow.follower.sizePages);
      maxWalBytes = Math.max(maxWalBytes, shadow.follower.committedBytes);
      if (result.kind === "captured" && options.gradeEveryMs !== undefined && performance.now() > gradeAt) {
        copyFileSync(shadowPath, `${shadowPath}.copy`);
        gradeRestore({ path: `${shadowPath}.copy`, acks: allAcks(writers) });
        graded++;
        gradeAt = performance.now() + options.gradeEveryMs;
      }
      const checkpoint = shadow.checkpointIfDue();
      if (checkpoint?.outcome === "behind") continue;
      await Bun.sleep(options.random.integer(0, options.maxPauseMs ?? 20));
    }
    await interlude;
    for (const writer of writers) await writer.pause();
    await eventually(() => shadow.sync().kind === "captured", { what: "the last commits to be captured" });
    // The judge is the live database's own engine: an older one may leave frames with wrong checksums, which count as
    // long as it runs, and which a copy of the WAL, recovered without the -shm, would lose.
    const badChecksums = shadow.follower.badChecksums;
    const { pageSizeBytes } = shadow.follower;
    shadow[Symbol.dispose]();
    const checkpoint = await writers[0]?.checkpoint("TRUNCATE");
    if (checkpoint?.busy !== false) throw new Error("the judge's checkpoint was busy");
    compareFiles(await readFile(shadowPath), await readFile(databasePath), pageSizeBytes);
    gradeRestore({ path: shadowPath, acks: allAcks(writers), storedFloorN: allAcks(writers).at(-1)?.n ?? 0 });
    for (const writer of writers) await writer.stop();
    return {
      badChecksums,
      commits: shadow.commits,
      syncs,
      graded,
      complete: shadow.reports.filter((report) => report.outcome === "complete").length,
      outcomes: countBy(shadow.reports.map((report) => report.outcome)),
      maxWalBytes,
      maxSizePages,
      maxLockMs: Math.max(0, ...shadow.reports.map((report) => report.lockMs)),
    };
  } finally {
    toClose?.[Symbol.dispose]();
    for (const writer of writers) await writer[Symbol.asyncDispose]();
  }
}

async function playInterlude(options: HammerOptions, writer: WriterProcess | undefined): Promise<void> {
  if (options.interlude === undefined || writer === undefined) return;
  await Bun.sleep((options.seconds * 1000) / 3);
  await writer.pause();
  await options.interlude(writer);
  await writer.resume();
}

/** Throws with the number of the first page that differs. */
export function compareFiles(ours: Uint8Array, judge: Uint8Array, pageSizeBytes: number): void {
  if (ours.byteLength !== judge.byteLength) {
    throw new Error(`our file has ${ours.byteLength} bytes, SQLite's ${judge.byteLength}`);
  }
  for (let offset = 0; offset < ours.byteLength; offset += pageSizeBytes) {
    const a = ours.subarray(offset, offset + pageSizeBytes);
    if (Buffer.compare(a, judge.subarray(offset, offset + pageSizeBytes)) !== 0) {
      throw new Error(`page ${offset / pageSizeBytes + 1} differs from SQLite's`);
    }
  }
}

function countBy(words: readonly string[]): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const word of words) counts[word] = (counts[word] ?? 0) + 1;
  return counts;
}
