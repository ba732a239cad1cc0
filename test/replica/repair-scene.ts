import { expect } from "bun:test";
import { emptyKeyRing, keyRing, type SealKey } from "../../src/format/envelope.ts";
import { PLAINTEXT_SEAL } from "../../src/format/names.ts";
import { planRestore } from "../../src/replica/plan.ts";
import { type RepairReport, type ReplicaRepairOptions, repairReplica } from "../../src/replica/repair.ts";
import { Replica } from "../../src/replica/replica.ts";
import { verifyReplica } from "../../src/replica/verify.ts";
import type { Backend } from "../../src/storage/backend.ts";
import { seededRandom } from "../support/random.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";
import { ReplicaBuilder } from "./builder.ts";
import { layInMemory } from "./lay.ts";

/** Nothing is ever given up. */
export const KEEP_ALL = {
  mergedKeepMs: [],
  keepRecent: 16,
  retentionMs: 0,
  maxBackups: 0,
  maxTotalSizeBytes: 0,
} as const;

/** When the scene has been over for an hour. */
export const NOW_MS = Date.UTC(2026, 0, 1, 2);

/** States 1 to 12 with full backups at 1, 5 and 9, some change-sets merged besides, CURRENT and a manifest. */
export async function storeScene(
  backends: readonly Backend[],
  options: { readonly seal?: SealKey | null; readonly compression?: "zstd" | "none" } = {},
): Promise<ReplicaBuilder> {
  const builder = new ReplicaBuilder({ backends, random: seededRandom(11), ...options });
  builder.beginChain(Array.from({ length: 20 }, () => builder.randomImage()));
  await builder.storeFull(1);
  for (let index = 2; index <= 12; index++) {
    builder.passTime(60_000);
    builder.commitRandom(5, 18 + (index % 5));
    await builder.storeChangeSet(index);
    if (index % 4 === 1) await builder.storeFull(index);
  }
  await builder.compact(1, 2, 4);
  await builder.compact(1, 10, 11);
  await builder.storeCurrent(9);
  await builder.storeManifest();
  return builder;
}

export async function openScene(
  backends: readonly Backend[],
  key: SealKey | null = null,
  acceptPlaintext = key === null,
): Promise<Replica> {
  return await Replica.open({
    database: "app",
    backends,
    keys: key === null ? emptyKeyRing : keyRing([key]),
    seal: key?.fingerprint ?? PLAINTEXT_SEAL,
    acceptPlaintext,
  });
}

export async function repair(
  backends: readonly Backend[],
  {
    key = null,
    acceptPlaintext,
    ...options
  }: Partial<ReplicaRepairOptions> & { readonly key?: SealKey | null; readonly acceptPlaintext?: boolean } = {},
): Promise<RepairReport> {
  const replica = await openScene(backends, key, acceptPlaintext);
  return await repairReplica(replica, { dryRun: false, nowMs: NOW_MS, policy: KEEP_ALL, highestLevel: 1, ...options });
}

/** `replace app/…` and `add app/…`, with the destination, sorted. */
export function writesOf({ healed }: RepairReport): readonly string[] {
  return healed.map(({ action, destination, key }) => `${action} ${destination} ${key}`).sort();
}

/** `kind destination key`, sorted. */
export function troublesOf({ troubles }: RepairReport): readonly string[] {
  return troubles.map(({ kind, destination, key }) => `${kind} ${destination} ${key}`).sort();
}

const ATTEMPTS = 8;

/** States that sound objects at these destinations lead to, each restored and compared with the model. */
export async function restorableAt(
  builder: ReplicaBuilder,
  backends: readonly Backend[],
  key: SealKey | null = null,
): Promise<readonly number[]> {
  const restorable: number[] = [];
  for (let index = 1; index <= builder.newest.index; index++) {
    const replica = await openScene(backends, key);
    // What stands in the way of one attempt is known to the next, as it is when `bakelite restore` plans again.
    for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
      try {
        const { file } = await layInMemory(replica, await planRestore(replica, { kind: "index", index }));
        expect(Buffer.compare(file, builder.fileOf(index))).toBe(0);
        restorable.push(index);
        break;
      } catch (error) {
        expect(error).toMatchObject({ code: expect.stringMatching(/^(?:key-wrong|replica-missing|replica-corrupt)$/) });
      }
    }
  }
  return restorable;
}

/** Every state is restored as it was from each destination alone, and verify finds nothing to complain of there. */
export async function expectWhole(
  builder: ReplicaBuilder,
  backends: readonly Backend[],
  key: SealKey | null = null,
): Promise<void> {
  const all = Array.from({ length: builder.newest.index }, (_, i) => i + 1);
  for (const backend of backends) {
    expect(await restorableAt(builder, [backend], key)).toEqual(all);
    expect(await findingsOf([backend], key)).toEqual([]);
  }
}

/** What verify says: problems, then warnings. */
export async function findingsOf(backends: readonly Backend[], key: SealKey | null = null): Promise<readonly string[]> {
  await using directory = await temporaryDirectory("repair");
  const report = await verifyReplica(await openScene(backends, key), {
    mode: "shallow",
    temporaryDirectory: directory.path,
    nowMs: () => NOW_MS,
    isMirror: backends.map(() => false),
    local: null,
  });
  return [...report.problems.listed, ...report.warnings.listed].map(
    ({ kind, key: object, message }) => `${kind} ${object}: ${message}`,
  );
}
