import { describe, expect, test } from "bun:test";
import { emptyKeyRing } from "../../src/format/envelope.ts";
import { reclaimUploads } from "../../src/replica/reclaim.ts";
import { Replica } from "../../src/replica/replica.ts";
import { measureUsage } from "../../src/replica/usage.ts";
import { BakeliteError } from "../../src/util/errors.ts";
import { seededRandom } from "../support/random.ts";
import { ReplicaBuilder } from "./builder.ts";
import { MemoryBackend } from "./memory-backend.ts";
import { UnlistedBackend, upload } from "./unlisted-backend.ts";

const HOUR_MS = 3_600_000;

function open(...backends: readonly MemoryBackend[]): Promise<Replica> {
  return Replica.open({ database: "app", backends, keys: emptyKeyRing, seal: "p", acceptPlaintext: true });
}

/** Full backups of states 3 and 6, change-sets 2 to 8. */
async function history(...backends: readonly MemoryBackend[]): Promise<ReplicaBuilder> {
  const builder = new ReplicaBuilder({ backends, random: seededRandom(7) });
  builder.beginChain([builder.randomImage()]);
  for (let i = 2; i <= 8; i++) {
    await builder.storeChangeSet(builder.commitRandom(1).index);
    if (i === 3 || i === 6) await builder.storeFull(i);
  }
  await builder.storeCurrent(6);
  return builder;
}

describe("usage", () => {
  test("counts every byte of a destination once, and gives each change-set to the full backup before it", async () => {
    const backend = new MemoryBackend();
    await history(backend);
    const [usage] = await measureUsage(await open(backend));
    const bytes = [...backend.objects.values()].reduce((sum, object) => sum + object.byteLength, 0);
    expect(usage).toMatchObject({
      location: "memory",
      error: null,
      objectCount: backend.objects.size,
      storedBytes: bytes,
      fullBackupCount: 2,
      changeSetCount: 7,
      unlisted: null,
    });
    expect(usage?.backups.map(({ index, changeSetCount }) => [index, changeSetCount])).toEqual([
      [null, 2],
      [3, 3],
      [6, 2],
    ]);
    const parts = (usage?.backups ?? []).map(({ fullBackupBytes, changeSetBytes }) => fullBackupBytes + changeSetBytes);
    const documents = ["app/CURRENT", "app/manifest"].reduce(
      (sum, key) => sum + (backend.objects.get(key)?.byteLength ?? 0),
      0,
    );
    expect(parts.reduce((a, b) => a + b, 0)).toBe(bytes - documents);
    expect(usage?.backups[1]?.stampMs).toBeNumber();
  });

  test("a destination that cannot be listed has its own error, and the others are measured", async () => {
    const sound = new MemoryBackend("sound");
    const broken = new MemoryBackend("broken");
    await history(sound);
    broken.onList = () => {
      throw new BakeliteError("storage-unreachable", "cannot reach it");
    };
    const usage = await measureUsage(await open(sound, broken));
    expect(usage.map(({ location, error, fullBackupCount }) => [location, error?.code, fullBackupCount])).toEqual([
      ["sound", undefined, 2],
      ["broken", "storage-unreachable", 0],
    ]);
  });

  test("tells what no listing shows, and where that cannot be known", async () => {
    const backend = new UnlistedBackend();
    await history(backend);
    backend.unfinished = [upload("app/full/a", HOUR_MS, 100), upload("app/full/b", 5, 23)];
    backend.versions = { count: 4, sizeBytes: 4000, deleteMarkerCount: 1 };
    const known = await measureUsage(await open(backend));
    expect(known[0]?.unlisted).toEqual({
      uploads: { count: 2, sizeBytes: 123, greatestAgeMs: HOUR_MS },
      noncurrent: { count: 4, sizeBytes: 4000, deleteMarkerCount: 1 },
    });
    backend.unfinished = null;
    backend.versions = null;
    const unknown = await measureUsage(await open(backend));
    expect(unknown[0]?.unlisted).toEqual({ uploads: null, noncurrent: null });
  });
});

describe("reclaim", () => {
  const options = { database: "app", minAgeMs: HOUR_MS, daemonRunningForMs: null, dryRun: false };
  const ours = [upload("app/full/old", 2 * HOUR_MS), upload("app/full/young", HOUR_MS - 1)];
  const theirs = [upload("apple/full/old", 2 * HOUR_MS), upload("other/x", 2 * HOUR_MS)];

  test("aborts what is old enough, and nothing outside the database's own folder", async () => {
    const backend = new UnlistedBackend();
    backend.unfinished = [...ours, ...theirs];
    const report = await reclaimUploads(backend, options);
    expect(report.inspected).toBe("inspected");
    expect(report.uploads?.map(({ key, outcome }) => [key, outcome])).toEqual([
      ["app/full/old", "aborted"],
      ["app/full/young", "too young"],
    ]);
    expect(backend.unfinished.map(({ key }) => key)).toEqual(["app/full/young", "apple/full/old", "other/x"]);
  });

  test("a dry run aborts nothing", async () => {
    const backend = new UnlistedBackend();
    backend.unfinished = [...ours, ...theirs];
    const report = await reclaimUploads(backend, { ...options, dryRun: true });
    expect(report.uploads?.map(({ outcome }) => outcome)).toEqual(["would be aborted", "too young"]);
    expect(backend.unfinished).toHaveLength(4);
  });

  test("an upload that this process makes is left alone at any age", async () => {
    const backend = new UnlistedBackend();
    backend.unfinished = [...ours];
    backend.live.add("app/full/young 3599999");
    const report = await reclaimUploads(backend, { ...options, minAgeMs: 0 });
    expect(report.uploads?.map(({ outcome }) => outcome)).toEqual(["aborted", "live"]);
    expect(backend.unfinished.map(({ key }) => key)).toEqual(["app/full/young"]);
  });

  test("what was begun since a daemon of this host runs is left to it; what a daemon before it left is not", async () => {
    const backend = new UnlistedBackend();
    backend.unfinished = [upload("app/full/now", 1000), upload("app/full/before", 2 * HOUR_MS)];
    const report = await reclaimUploads(backend, { ...options, minAgeMs: 0, daemonRunningForMs: HOUR_MS });
    expect(report.uploads?.map(({ outcome }) => outcome)).toEqual(["live", "aborted"]);
    const unknown = await reclaimUploads(backend, { ...options, minAgeMs: 0, daemonRunningForMs: Infinity });
    expect(unknown.uploads?.map(({ outcome }) => outcome)).toEqual(["live"]);
  });

  test("one that may not be aborted is told, and the others go", async () => {
    const backend = new UnlistedBackend();
    backend.unfinished = [upload("app/full/held", 3 * HOUR_MS), ...ours];
    backend.denied.add(`app/full/held ${3 * HOUR_MS}`);
    const report = await reclaimUploads(backend, options);
    expect(report.uploads?.map(({ outcome, error }) => [outcome, error?.code])).toEqual([
      ["failed", "storage-denied"],
      ["aborted", undefined],
      ["too young", undefined],
    ]);
  });

  test("says where there is nothing to inspect and where it cannot be inspected", async () => {
    expect(await reclaimUploads(new MemoryBackend(), options)).toEqual({
      location: "memory",
      uploads: null,
      inspected: "nothing to inspect",
    });
    const mute = new UnlistedBackend();
    mute.unfinished = null;
    expect(await reclaimUploads(mute, options)).toMatchObject({ uploads: null, inspected: "not inspected" });
  });
});
