import { emptyKeyRing } from "../../src/format/envelope.ts";
import { type CompactOptions, type CompactReport, compactReplica } from "../../src/replica/compact.ts";
import { planForIndex } from "../../src/replica/plan.ts";
import { type PruneOptions, type PruneReport, pruneReplica } from "../../src/replica/prune.ts";
import { Replica } from "../../src/replica/replica.ts";
import type { RetentionPolicy } from "../../src/replica/retention-policy.ts";
import type { Backend } from "../../src/storage/backend.ts";
import type { Random } from "../support/random.ts";
import type { ReplicaBuilder } from "./builder.ts";
import { layInMemory } from "./lay.ts";

/** Compacting and pruning what a builder stores, and restoring what is left. */

export const LEVELS_MS = [30_000, 300_000, 3_600_000];

export const KEEP_ALL: RetentionPolicy = {
  mergedKeepMs: [0, 0, 0],
  keepRecent: 0,
  retentionMs: 0,
  maxBackups: 0,
  maxTotalSizeBytes: 0,
};

export async function openBuilt(builder: ReplicaBuilder, ...backends: readonly Backend[]): Promise<Replica> {
  return await Replica.open({
    database: builder.database,
    backends,
    keys: builder.seal === null ? emptyKeyRing : builder.keys,
    seal: builder.sealText,
    acceptPlaintext: builder.seal === null,
  });
}

export function compactOptions(
  builder: ReplicaBuilder,
  random: Random,
  changes: Partial<CompactOptions> & Pick<CompactOptions, "nowMs">,
): CompactOptions {
  return {
    levelWindowsMs: LEVELS_MS,
    keepRecent: 0,
    cuts: new Set(),
    sealKey: builder.seal,
    compression: "zstd",
    compressionLevel: 1,
    writer: "test",
    randomHex: (bytes) => random.bytes(bytes).toHex(),
    dryRun: false,
    ...changes,
  };
}

export async function compactBuilt(
  builder: ReplicaBuilder,
  backends: readonly Backend[],
  random: Random,
  changes: Partial<CompactOptions> & Pick<CompactOptions, "nowMs">,
): Promise<CompactReport> {
  return await compactReplica(await openBuilt(builder, ...backends), compactOptions(builder, random, changes));
}

export async function pruneBuilt(
  builder: ReplicaBuilder,
  backend: Backend,
  changes: Partial<PruneOptions> & Pick<PruneOptions, "nowMs">,
): Promise<PruneReport> {
  return await pruneReplica(await openBuilt(builder, backend), {
    policy: KEEP_ALL,
    marks: [],
    frozen: null,
    dryRun: false,
    readBack: new Set(),
    ...changes,
  });
}

/** Restores every restore point with nothing known beforehand, compares each with the model, and gives their indexes. */
export async function restoreAll(builder: ReplicaBuilder, ...backends: readonly Backend[]): Promise<readonly number[]> {
  const replica = await openBuilt(builder, ...backends);
  await replica.trailers.load([...replica.catalog.fulls, ...replica.catalog.changeSets]);
  const points = [...replica.graph.restorePoints];
  for (const index of points) {
    const plan = await planForIndex(replica, index);
    if (plan === null) throw new Error(`state ${index} is said to be a restore point and cannot be planned`);
    const { file } = await layInMemory(replica, plan);
    if (Buffer.compare(file, builder.fileOf(index)) !== 0)
      throw new Error(`state ${index} is restored as something else`);
  }
  return points;
}
