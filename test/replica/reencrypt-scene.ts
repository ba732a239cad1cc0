import { expect } from "bun:test";
import { emptyKeyRing, keyRing, type SealKey } from "../../src/format/envelope.ts";
import { PLAINTEXT_SEAL } from "../../src/format/names.ts";
import { planRestore } from "../../src/replica/plan.ts";
import { planReencryption, type ReencryptOptions, type ReencryptReport } from "../../src/replica/reencrypt.ts";
import { Replica } from "../../src/replica/replica.ts";
import { verifyReplica } from "../../src/replica/verify.ts";
import type { Backend } from "../../src/storage/backend.ts";
import { seededRandom } from "../support/random.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";
import { ReplicaBuilder, testKey } from "./builder.ts";
import { layInMemory } from "./lay.ts";

/** The three things that re-encryption does. */
export const CHANGES = {
  encrypt: { from: null, to: testKey(1) },
  rotate: { from: testKey(1), to: testKey(2) },
  decrypt: { from: testKey(1), to: null },
} as const;

export type Change = keyof typeof CHANGES;

/** States 1 to 6 with full backups at 1 and 4, two of the change-sets compacted besides, CURRENT and a manifest. */
export async function storeHistory(backends: readonly Backend[], seal: SealKey | null): Promise<ReplicaBuilder> {
  const builder = new ReplicaBuilder({ backends, random: seededRandom(5), seal });
  builder.beginChain(Array.from({ length: 20 }, () => builder.randomImage()));
  await builder.storeFull(1);
  for (let index = 2; index <= 6; index++) {
    builder.passTime(60_000);
    builder.commitRandom(6, 18 + index);
    await builder.storeChangeSet(index);
  }
  await builder.compact(1, 2, 3);
  await builder.storeFull(4);
  await builder.storeCurrent(4);
  await builder.storeManifest();
  return builder;
}

let drawn = 0;

export function optionsFor(
  backends: readonly Backend[],
  change: { readonly from: SealKey | null; readonly to: SealKey | null },
): ReencryptOptions {
  return {
    database: "app",
    backends,
    sealKey: change.to,
    oldKeys: change.from === null ? [] : [change.from],
    compressionLevel: 3,
    writer: "bakelite/test",
    randomHex: (bytes) => (++drawn).toString(16).padStart(2 * bytes, "0"),
  };
}

export async function reencrypt(options: ReencryptOptions): Promise<ReencryptReport> {
  return await (await planReencryption(options)).apply();
}

export async function openAs(backends: readonly Backend[], key: SealKey | null): Promise<Replica> {
  return await Replica.open({
    database: "app",
    backends,
    keys: key === null ? emptyKeyRing : keyRing([key]),
    seal: key?.fingerprint ?? PLAINTEXT_SEAL,
    acceptPlaintext: key === null,
  });
}

/** The latest state as somebody with this key only restores it; null when he is told that he cannot. */
export async function restoreAs(backends: readonly Backend[], key: SealKey | null): Promise<Uint8Array | null> {
  try {
    const replica = await openAs(backends, key);
    return (await layInMemory(replica, await planRestore(replica, { kind: "latest" }))).file;
  } catch (error) {
    expect(error).toMatchObject({ code: expect.stringMatching(/^(?:key-wrong|replica-missing|replica-corrupt)$/) });
    return null;
  }
}

/** The latest state as somebody restores it who has both keys, or the new one and `accept_plaintext`. */
export async function restoreWithBoth(
  backends: readonly Backend[],
  { from, to }: { readonly from: SealKey | null; readonly to: SealKey | null },
): Promise<Uint8Array> {
  const replica = await Replica.open({
    database: "app",
    backends,
    keys: keyRing([from, to].filter((key) => key !== null)),
    seal: to?.fingerprint ?? PLAINTEXT_SEAL,
    acceptPlaintext: true,
  });
  return (await layInMemory(replica, await planRestore(replica, { kind: "latest" }))).file;
}

/** Every state is restored as it was from each destination alone, nothing has another seal, and verify finds nothing. */
export async function expectWhole(
  builder: ReplicaBuilder,
  backends: readonly Backend[],
  key: SealKey | null,
): Promise<void> {
  const seal = key?.fingerprint ?? PLAINTEXT_SEAL;
  for (const backend of backends) {
    for await (const { key: name } of backend.list("app/"))
      if (!/\/(?:CURRENT|manifest)$/.test(name)) expect(name).toEndWith(`.${seal}`);
    const replica = await openAs([backend], key);
    expect(replica.warnings).toEqual([]);
    expect(replica.current).toMatchObject({ full: 4, seal, index: 6 });
    await replica.trailers.load([...replica.catalog.fulls, ...replica.catalog.changeSets]);
    expect([...replica.graph.restorePoints]).toEqual([1, 2, 3, 4, 5, 6]);
    for (const index of replica.graph.restorePoints) {
      const { file } = await layInMemory(replica, await planRestore(replica, { kind: "index", index }));
      expect(Buffer.compare(file, builder.fileOf(index))).toBe(0);
    }
  }
  expect(await problemsOf(backends, key)).toEqual([]);
}

/** What verify says, with the key configured: problems, then warnings. */
export async function problemsOf(backends: readonly Backend[], key: SealKey | null): Promise<readonly string[]> {
  await using directory = await temporaryDirectory("reencrypt");
  const report = await verifyReplica(await openAs(backends, key), {
    mode: "shallow",
    temporaryDirectory: directory.path,
    nowMs: Date.now,
    isMirror: backends.map(() => false),
    local: null,
  });
  return [...report.problems.listed, ...report.warnings.listed].map(
    ({ kind, key: object, message }) => `${kind} ${object}: ${message}`,
  );
}
