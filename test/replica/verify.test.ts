import { beforeEach, describe, expect, test } from "bun:test";
import { readdirSync, writeFileSync } from "node:fs";
import { emptyKeyRing, type KeyRing, keyRing } from "../../src/format/envelope.ts";
import { planRestore } from "../../src/replica/plan.ts";
import { Replica } from "../../src/replica/replica.ts";
import { createStagingSuffix } from "../../src/replica/staging-name.ts";
import { type ReplicaVerifyOptions, verifyReplica } from "../../src/replica/verify.ts";
import type { LocalState } from "../../src/replica/verify-local.ts";
import type { Finding, VerifyReport } from "../../src/replica/verify-report.ts";
import type { Cursor } from "../../src/state/cursor.ts";
import { BakeliteError } from "../../src/util/errors.ts";
import { type Random, seededRandom, withSeed } from "../support/random.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";
import { ReplicaBuilder, testKey } from "./builder.ts";
import { layInMemory } from "./lay.ts";
import { MemoryBackend } from "./memory-backend.ts";

const NOW_MS = Date.UTC(2026, 6, 1);
const digits = (index: number) => String(index).padStart(16, "0");
const changeSet = (first: number, last = first, seal = "p", level = 0) =>
  `app/L${level}/${digits(first)}-${digits(last)}.${seal}`;
const full = (index: number, seal = "p") => `app/full/${digits(index)}.${seal}`;

let backend: MemoryBackend;
let builder: ReplicaBuilder;

/** States 1 to 12: full backups at 1 and 6 (settled at 8), 2 to 4 compacted beside their inputs, CURRENT and manifest. */
async function makeHistory(backends: readonly MemoryBackend[], seal: number | null = null): Promise<ReplicaBuilder> {
  const made = new ReplicaBuilder({
    backends,
    random: seededRandom(3),
    seal: seal === null ? null : testKey(seal),
  });
  made.beginChain(Array.from({ length: 8 }, () => made.randomImage()));
  await made.storeFull(1);
  for (let i = 2; i <= 12; i++) {
    made.passTime(60_000);
    await made.storeChangeSet(made.commitRandom(3, 8 + (i % 3)).index);
  }
  await made.storeFull(6, 8);
  await made.compact(1, 2, 4);
  await made.storeCurrent(6, made.states.get(9));
  await made.storeManifest();
  return made;
}

beforeEach(async () => {
  backend = new MemoryBackend();
  builder = await makeHistory([backend]);
});

interface Settings {
  readonly backends?: readonly MemoryBackend[];
  readonly keys?: KeyRing;
  readonly seal?: string;
  readonly acceptPlaintext?: boolean;
}

function open({ backends = [backend], keys, seal, acceptPlaintext = false }: Settings = {}): Promise<Replica> {
  return Replica.open({
    database: "app",
    backends,
    keys: keys ?? builder.keys,
    seal: seal ?? builder.sealText,
    acceptPlaintext,
  });
}

async function verify(settings: Settings & Partial<ReplicaVerifyOptions> = {}): Promise<VerifyReport> {
  return await verifyReplica(await open(settings), {
    mode: "shallow",
    temporaryDirectory: "/nowhere",
    nowMs: () => NOW_MS,
    isMirror: [],
    local: null,
    ...settings,
  });
}

/** `kind key` of each finding. */
function show(findings: { readonly listed: readonly Finding[] }): readonly string[] {
  return findings.listed.map(({ kind, key }) => `${kind} ${key}`);
}

/** The newest state that a restore gives, checked byte by byte, or null when none is restored: every state is tried. */
async function newestRestored(settings: Settings = {}): Promise<number | null> {
  for (let index = builder.newest.index; index > 0; index--) {
    try {
      const replica = await open(settings);
      const { file } = await layInMemory(replica, await planRestore(replica, { kind: "index", index }));
      expect(Buffer.compare(file, builder.fileOf(index))).toBe(0);
      return index;
    } catch (error) {
      if (!(error instanceof BakeliteError)) throw error;
      if (!["replica-corrupt", "replica-missing", "key-wrong", "storage-unreachable"].includes(error.code)) throw error;
    }
  }
  return null;
}

/** That what the report says of restoring is what a restore does. */
async function expectRestorability(report: VerifyReport, settings: Settings = {}): Promise<void> {
  expect(report.restorability.newest?.index ?? null).toBe(await newestRestored(settings));
}

function move(from: string, to: string): void {
  backend.objects.set(to, get(from));
  backend.objects.delete(from);
}

function get(key: string): Uint8Array {
  const bytes = backend.objects.get(key);
  if (bytes === undefined) throw new Error(`no object ${key}`);
  return bytes;
}

describe("a sound replica", () => {
  test("has nothing to tell but what was checked and up to where it can be restored", async () => {
    const report = await verify();
    expect([show(report.problems), show(report.warnings)]).toEqual([[], []]);
    expect(report).toMatchObject({ failure: null, fullBackupCount: 2, changeSetCount: 12, objectsChecked: 16 });
    expect(report.restorability).toEqual({
      newest: { index: 12, stampMs: builder.newest.stampMs },
      oldest: { index: 1, stampMs: Date.UTC(2026, 0, 1) },
      pointCount: 12,
      destinations: [{ location: "memory", newest: { index: 12, stampMs: builder.newest.stampMs } }],
    });
    await expectRestorability(report);
  });

  test("is read once: every byte, and each object with one request", async () => {
    const replica = await open();
    backend.getCount = 0;
    const report = await verifyReplica(replica, {
      mode: "shallow",
      temporaryDirectory: "/nowhere",
      nowMs: () => NOW_MS,
      isMirror: [],
      local: null,
    });
    expect(backend.getCount).toBe(backend.objects.size);
    expect(report.bytesRead).toBe([...backend.objects.values()].reduce((sum, bytes) => sum + bytes.length, 0));
  });

  test("that is sealed is read with its key", async () => {
    backend = new MemoryBackend();
    builder = await makeHistory([backend], 1);
    const report = await verify();
    expect([show(report.problems), show(report.warnings)]).toEqual([[], []]);
    await expectRestorability(report);
  });
});

describe("damage to one object", () => {
  const regions: readonly (readonly [name: string, at: (bytes: Uint8Array) => number])[] = [
    ["the header's magic", () => 0],
    ["the header's text", () => 40],
    ["the first chunk", (bytes) => headerEnd(bytes) + 20],
    ["the middle", (bytes) => bytes.length >>> 1],
    ["the trailer", (bytes) => bytes.length - 72 - 10],
    ["the footer's offsets", (bytes) => bytes.length - 70],
    ["the footer's checksum", (bytes) => bytes.length - 50],
    ["the footer's SHA-256", (bytes) => bytes.length - 20],
    ["the last byte", (bytes) => bytes.length - 1],
  ];
  for (const [name, at] of regions)
    for (const key of [full(6), full(1), changeSet(3), changeSet(2, 4, "p", 1), changeSet(9), changeSet(12)])
      test(`a flipped bit in ${name} of ${key} is found`, async () => {
        backend.flip(key, at(get(key)), 1);
        const report = await verify();
        expect(show(report.problems)).toEqual([`corrupt ${key}`]);
        await expectRestorability(report);
      });

  test.each([0, 1, 71, 72, 200, -1])("an object cut to %d bytes is found", async (bytes) => {
    backend.objects.set(changeSet(9), get(changeSet(9)).slice(0, bytes));
    const report = await verify();
    expect(show(report.problems)).toEqual([`corrupt ${changeSet(9)}`]);
    await expectRestorability(report);
  });

  test("any flipped byte of any object is found, and the newest state that is told is the one that is restored", async () => {
    await withSeed(async (random) => {
      for (let i = 0; i < 60; i++) {
        const key = random.pick([...backend.objects.keys()]);
        const before = get(key);
        backend.flip(key, random.integer(0, before.length - 1), random.integer(0, 7));
        const report = await verify();
        expect(report.problems.listed.map((problem) => problem.key)).toContain(key);
        await expectRestorability(report);
        backend.objects.set(key, before);
      }
    });
  });

  test("says what to do: repair where another destination has a sound copy", async () => {
    const other = new MemoryBackend("other");
    builder = await makeHistory([backend, other]);
    backend.flip(changeSet(9), 300);
    const report = await verify({ backends: [backend, other] });
    expect(report.problems.listed).toEqual([
      expect.objectContaining({
        kind: "corrupt",
        destination: "memory",
        key: changeSet(9),
        nextStep: "run `bakelite repair --db app`: other has a sound copy",
      }),
    ]);
    expect(report.restorability.destinations.map(({ newest }) => newest?.index)).toEqual([8, 12]);
    await expectRestorability(report, { backends: [backend, other] });
    await expectRestorability(await verify(), {});
  });
});

describe("missing objects", () => {
  test.each([
    [5, 12],
    [7, 12],
    [9, 12],
    [10, 12],
  ])("change-set %d in the middle is missed by its key", async (index) => {
    backend.objects.delete(changeSet(index));
    const report = await verify();
    expect(show(report.problems)).toContain(`missing ${changeSet(index)}`);
    await expectRestorability(report);
  });

  test("several in a row are told by their numbers, and once", async () => {
    for (const index of [9, 10]) backend.objects.delete(changeSet(index));
    const report = await verify();
    expect(report.problems.listed).toEqual([
      expect.objectContaining({
        kind: "missing",
        key: null,
        message: expect.stringContaining("change-sets 9 to 10 are missing: states 9 to 12"),
      }),
    ]);
    expect(report.restorability.newest?.index).toBe(8);
    await expectRestorability(report);
  });

  test("one that a compacted one covers is not missed", async () => {
    backend.objects.delete(changeSet(3));
    const partly = await verify();
    expect([show(partly.problems), show(partly.warnings)]).toEqual([[], [`leftover ${changeSet(4)}`]]);
    for (const index of [2, 4]) backend.objects.delete(changeSet(index));
    const report = await verify();
    expect(show(report.problems)).toEqual([]);
    await expectRestorability(report);
  });

  test("the newest ones are missed by what CURRENT knows", async () => {
    for (const index of [8, 9, 10, 11, 12]) backend.objects.delete(changeSet(index));
    const report = await verify();
    expect(report.problems.listed.map(({ kind, message }) => [kind, message])).toEqual([
      ["missing", "change-sets 8 to 8, which full backup 6 needs, are missing"],
      ["missing", "CURRENT knows of state 9, and the newest that is stored is 7: the newest objects have been deleted"],
    ]);
    await expectRestorability(report);
  });

  test("the newest ones are missed by what this host's cursor or page ledger knows, though CURRENT is older", async () => {
    for (const index of [11, 12]) backend.objects.delete(changeSet(index));
    expect(show((await verify()).problems)).toEqual([]);
    const report = await verify({ local: localState({ index: 12 }) });
    expect(report.problems.listed).toEqual([
      expect.objectContaining({
        kind: "missing",
        message:
          "this host's cursor knows of state 12, and the newest that is stored is 10: the newest objects have been deleted",
      }),
    ]);
    await expectRestorability(report);
    const ledger = { ...localState({ index: 12 }), cursor: null };
    expect((await verify({ local: ledger })).problems.listed[0]?.message).toStartWith(
      "this host's page ledger knows of state 12",
    );
  });

  test("a cursor that lags behind, and one of a destination that was added since, prove nothing", async () => {
    expect(show((await verify({ local: localState({ index: 10 }) })).problems)).toEqual([]);
    for (const index of [11, 12]) backend.objects.delete(changeSet(index));
    const local = localState({ index: 12 }, { destinations: { elsewhere: { index: 12 } } });
    expect(show((await verify({ local })).problems)).toEqual([]);
  });

  test("a chain whose first full backup is under way has an index that nothing is stored for", async () => {
    const local = localState({ index: 13 }, { chain: "f".repeat(32), fullBackup: null });
    const report = await verify({ local: { ...local, ledger: null } });
    expect(show(report.problems)).toEqual([]);
  });

  test("the first full backup is missed by its key, and what can be restored begins with the next one", async () => {
    backend.objects.delete(full(1));
    const report = await verify();
    expect(show(report.problems)).toEqual([`missing ${full(1)}`]);
    expect(report.restorability.oldest?.index).toBe(8);
    await expectRestorability(report);
  });

  test("the newest full backup is missed because CURRENT points at it, and older ones still lead to the newest state", async () => {
    backend.objects.delete(full(6));
    const report = await verify();
    expect(show(report.problems)).toEqual([`missing ${full(6)}`]);
    expect(report.restorability.newest?.index).toBe(12);
    await expectRestorability(report);
  });

  test("without any full backup nothing can be restored, and that is a problem", async () => {
    for (const index of [1, 6]) backend.objects.delete(full(index));
    const report = await verify();
    expect(show(report.problems)).toContain(`missing ${full(6)}`);
    expect(report.restorability.newest).toBeNull();
    await expectRestorability(report);
  });

  test("a replica of which nothing is left but CURRENT is missed; one that never was is a problem too", async () => {
    for (const key of [...backend.objects.keys()]) if (!key.endsWith("CURRENT")) backend.objects.delete(key);
    expect((await verify()).problems.listed[0]?.message).toBe(
      "CURRENT knows of state 9, and nothing is stored: everything has been deleted",
    );
    backend.objects.clear();
    const report = await verify();
    expect(report.problems.listed.map(({ message }) => message)).toEqual(["nothing is stored for database `app`"]);
    await expectRestorability(report);
  });
});

describe("objects in another one's place", () => {
  test("a renamed one is reordered, and the place that it left is empty", async () => {
    move(changeSet(9), changeSet(13));
    const report = await verify();
    expect(show(report.problems)).toEqual([`reordered ${changeSet(13)}`, `missing ${changeSet(9)}`]);
    expect(report.problems.listed[0]?.message).toContain("from state 9 on");
    await expectRestorability(report);
  });

  test.each([null, 1])("two swapped ones are reordered both (key %p)", async (key) => {
    backend = new MemoryBackend();
    builder = await makeHistory([backend], key);
    const [a, b] = [changeSet(9, 9, builder.sealText), changeSet(10, 10, builder.sealText)];
    const bytes = get(a);
    backend.objects.set(a, get(b));
    backend.objects.set(b, bytes);
    const report = await verify();
    expect(show(report.problems)).toEqual([`reordered ${a}`, `reordered ${b}`]);
    await expectRestorability(report);
  });

  test("a full backup under a change-set's name, and the other way round", async () => {
    backend.objects.set(changeSet(9), get(full(1)));
    backend.objects.set(full(6), get(changeSet(7)));
    const report = await verify();
    expect(show(report.problems)).toEqual([`reordered ${full(6)}`, `reordered ${changeSet(9)}`]);
    await expectRestorability(report);
  });

  test("one under a name that ends at another state is found", async () => {
    move(changeSet(2, 4, "p", 1), changeSet(2, 5, "p", 1));
    const report = await verify();
    expect(show(report.problems)).toEqual([`corrupt ${changeSet(2, 5, "p", 1)}`]);
    await expectRestorability(report);
  });

  test("another database's object is foreign", async () => {
    const other = new MemoryBackend();
    const stranger = new ReplicaBuilder({ backends: [other], random: seededRandom(9), database: "other" });
    stranger.beginChain([stranger.randomImage()]);
    for (let i = 2; i <= 9; i++) stranger.commitRandom(1);
    for (let i = 2; i <= 9; i++) await stranger.storeChangeSet(i);
    backend.objects.set(changeSet(9), other.objects.get(`other/L0/${digits(9)}-${digits(9)}.p`) ?? new Uint8Array());
    const report = await verify();
    expect(show(report.problems)).toEqual([`foreign ${changeSet(9)}`]);
    await expectRestorability(report);
  });

  test("an object of the same name from another history is told as what does not fit", async () => {
    const other = new MemoryBackend();
    const twin = new ReplicaBuilder({ backends: [other], random: seededRandom(77) });
    twin.beginChain(Array.from({ length: 8 }, () => twin.randomImage()));
    for (let i = 2; i <= 9; i++) await twin.storeChangeSet(twin.commitRandom(2).index);
    backend.objects.set(changeSet(9), other.objects.get(changeSet(9)) ?? new Uint8Array());
    const report = await verify();
    expect(report.problems.count).toBeGreaterThan(0);
    expect(report.restorability.newest?.index).toBe(8);
    await expectRestorability(report);
  });

  test("files that are not ours are warned of; under a name of ours they are corrupt", async () => {
    backend.objects.set("app/notes.txt", new TextEncoder().encode("mine"));
    backend.objects.set("app/L0/0000000000000003.p", new Uint8Array(5));
    const harmless = await verify();
    expect([show(harmless.problems), show(harmless.warnings)]).toEqual([
      [],
      ["foreign-name app/L0/0000000000000003.p", "foreign-name app/notes.txt"],
    ]);
    backend.objects.set(changeSet(13), new TextEncoder().encode("garbage".repeat(1000)));
    const report = await verify();
    expect(show(report.problems)).toEqual([`corrupt ${changeSet(13)}`]);
    await expectRestorability(report);
  });
});

describe("keys", () => {
  test("objects without a seal are refused where a key is configured, unless plaintext is accepted", async () => {
    const keys = keyRing([testKey(1)]);
    const report = await verify({ keys, seal: testKey(1).fingerprint });
    expect(new Set(report.problems.listed.map(({ kind }) => kind))).toEqual(new Set(["unreadable-key"]));
    const current = report.problems.listed.find(({ key }) => key === "app/CURRENT");
    expect(current?.nextStep).toBe("check key_file, or accept_plaintext, under [defaults.encryption]");
    expect(report.problems.count).toBe(backend.objects.size);
    expect(report.restorability.newest).toBeNull();
    const accepting = await verify({ keys, seal: testKey(1).fingerprint, acceptPlaintext: true });
    expect(show(accepting.problems)).toEqual([]);
  });

  test("one plaintext object among sealed ones is refused", async () => {
    const plain = get(changeSet(9));
    backend = new MemoryBackend();
    builder = await makeHistory([backend], 1);
    const seal = builder.sealText;
    backend.objects.delete(changeSet(9, 9, seal));
    backend.objects.set(changeSet(9), plain);
    const report = await verify();
    expect(show(report.problems)).toContain(`unreadable-key ${changeSet(9)}`);
    backend.objects.delete(changeSet(9));
    backend.objects.set(changeSet(9, 9, seal), plain);
    expect(show((await verify()).problems)).toEqual([`reordered ${changeSet(9, 9, seal)}`]);
    await expectRestorability(await verify());
  });

  test.each([
    ["another key", keyRing([testKey(2)]), testKey(2).fingerprint],
    ["no key", emptyKeyRing, "p"],
  ])("with %s every object has an unreadable key, and nothing can be restored", async (_, keys, seal) => {
    backend = new MemoryBackend();
    builder = await makeHistory([backend], 1);
    const report = await verify({ keys, seal });
    expect(new Set(report.problems.listed.map(({ kind }) => kind))).toEqual(new Set(["unreadable-key"]));
    expect(report.problems.listed[0]?.message).toContain(`written with key ${builder.sealText}`);
    await expectRestorability(report, { keys, seal });
  });
});

describe("CURRENT and the manifest", () => {
  test("CURRENT that points back to an older full backup is stale", async () => {
    await builder.storeCurrent(1, builder.states.get(5));
    const report = await verify();
    expect(report.problems.listed).toEqual([
      expect.objectContaining({
        kind: "stale-current",
        key: "app/CURRENT",
        message: "CURRENT points at full backup 1, and 6 is the newest: a possible rollback",
      }),
    ]);
    await expectRestorability(report);
  });

  test("CURRENT of another history is stale", async () => {
    await builder.storeCurrent(6, { ...builder.newest, lineage: "0".repeat(64) });
    expect(show((await verify()).problems)).toEqual(["stale-current app/CURRENT"]);
  });

  test("CURRENT that is not there is a warning, a damaged one a problem", async () => {
    const bytes = get("app/CURRENT");
    backend.objects.delete("app/CURRENT");
    const report = await verify();
    expect([show(report.problems), show(report.warnings)]).toEqual([[], ["no-current app/CURRENT"]]);
    backend.objects.set("app/CURRENT", bytes.slice(0, 50));
    expect(show((await verify()).problems)).toEqual(["corrupt app/CURRENT"]);
  });

  test("a manifest that tells something else than the objects is told, and not believed", async () => {
    await builder.storeManifest((entry) =>
      entry["name"] === `L0/${digits(9)}-${digits(9)}.p` ? { ...entry, parent: "0".repeat(64) } : entry,
    );
    const report = await verify();
    expect(report.problems.listed).toEqual([
      expect.objectContaining({ kind: "corrupt", key: "app/manifest", message: expect.stringContaining(changeSet(9)) }),
    ]);
    // A restore believes it, as long as it is there.
    expect(report.restorability.newest?.index).toBe(8);
    await expectRestorability(report);
    backend.objects.delete("app/manifest");
    expect((await verify()).restorability.newest?.index).toBe(12);
  });
});

describe("histories", () => {
  test("a fork is told by its key, and not taken for ours", async () => {
    await builder.storeFork({ kind: "change-set", level: 1, first: 10, last: 11, seal: "p" });
    const report = await verify();
    expect(show(report.problems)).toEqual([`fork ${changeSet(10, 11, "p", 1)}`]);
    await expectRestorability(report);
  });

  test("a put that arrives after its daemon was killed and begun anew is left over, unless somebody goes on from it", async () => {
    await builder.storeFork({ kind: "change-set", level: 0, first: 13, last: 13, seal: "p" });
    await builder.storeFork({ kind: "change-set", level: 0, first: 13, last: 14, seal: "p" });
    const report = await verify();
    expect([show(report.problems), show(report.warnings)]).toEqual([[], [`leftover ${changeSet(13)}`]]);
    expect(report.restorability.newest?.index).toBe(14);

    backend.objects.delete(changeSet(13));
    await builder.storeChangeSet(builder.commitRandom(1).index);
    await builder.storeChangeSet(builder.commitRandom(1).index);
    await builder.storeFork({ kind: "change-set", level: 0, first: 13, last: 15, seal: "p" });
    backend.objects.delete(changeSet(13, 14));
    const goneOn = await verify();
    expect(show(goneOn.problems)).toEqual([`fork ${changeSet(13)}`, `fork ${changeSet(14)}`]);
  });

  test("a cursor of another history is a fork, a page ledger of one is told", async () => {
    const local = localState({ index: 12, lineage: "0".repeat(64) });
    const report = await verify({ local });
    expect(report.problems.listed.map(({ kind, destination }) => `${kind} ${destination}`)).toEqual([
      "fork /state/app.cursor",
      "ledger /state/app.pages",
    ]);
  });

  test("a chain that was never finished is a warning, and so is one whose first full backup is under way", async () => {
    builder.beginChain([builder.randomImage()]);
    builder.commitRandom(1);
    await storeWithoutDigest(builder.newest.index);
    const report = await verify();
    expect([show(report.problems), show(report.warnings)]).toEqual([[], [`first-backup ${changeSet(14)}`]]);
    const { index } = builder.beginChain([builder.randomImage()]);
    await builder.storeFull(index);
    await builder.storeCurrent(index);
    const later = await verify();
    expect([show(later.problems), show(later.warnings)]).toEqual([[], [`leftover ${changeSet(14)}`]]);
    expect(later.restorability.newest?.index).toBe(index);
    await expectRestorability(later);
  });

  test("objects under two seals are warned of", async () => {
    builder.seal = testKey(1);
    await builder.storeChangeSet(12);
    const keys = keyRing([testKey(1)]);
    const report = await verify({ keys, seal: testKey(1).fingerprint, acceptPlaintext: true });
    expect(show(report.problems)).toEqual([]);
    expect(report.warnings.listed[0]).toMatchObject({ kind: "two-seals", key: expect.stringContaining(digits(12)) });
  });
});

describe("several destinations", () => {
  let other: MemoryBackend;
  beforeEach(async () => {
    other = new MemoryBackend("other");
    backend = new MemoryBackend();
    builder = await makeHistory([backend, other]);
  });
  const both = () => ({ backends: [backend, other] });

  test("what one lacks and the other has is a problem of that one, and healed by repair", async () => {
    other.objects.delete(changeSet(9));
    const report = await verify(both());
    expect(report.problems.listed).toEqual([
      expect.objectContaining({ kind: "missing", destination: "other", key: changeSet(9) }),
    ]);
    expect(report.problems.listed[0]?.nextStep).toContain("bakelite repair --db app");
    expect(report.restorability.destinations.map(({ newest }) => newest?.index)).toEqual([12, 8]);
    await expectRestorability(report, both());
  });

  test("one that ends earlier is behind: a warning for a mirror, a problem for a lock-step destination", async () => {
    for (const index of [10, 11, 12]) other.objects.delete(changeSet(index));
    const mirrored = await verify({ ...both(), isMirror: [false, true] });
    expect([show(mirrored.problems), show(mirrored.warnings)]).toEqual([[], ["behind null"]]);
    expect(show((await verify(both())).problems)).toEqual(["missing null"]);
    const justNow = await verify({ ...both(), nowMs: () => 1000 });
    expect(show(justNow.warnings)).toContain("behind null");
  });

  test("a destination that does not answer is a problem, and what the other one has is checked all the same", async () => {
    backend.onList = () => {
      throw new BakeliteError("storage-unreachable", "it is down", { subject: "memory" });
    };
    const report = await verify(both());
    expect(report.problems.listed).toEqual([
      expect.objectContaining({ kind: "unreachable", destination: "memory", message: "it is down" }),
    ]);
    expect(report.restorability.destinations.map(({ newest }) => newest?.index ?? null)).toEqual([null, 12]);
    await expectRestorability(report, both());
  });

  test("a destination that fails in the middle is not asked for each of its objects", async () => {
    const replica = await open(both());
    let asked = 0;
    backend.onGet = (key) => {
      if (!key.includes("/L0/")) return;
      asked++;
      throw new BakeliteError("storage-unreachable", "it went down", { subject: "memory" });
    };
    const report = await verifyReplica(replica, {
      mode: "shallow",
      temporaryDirectory: "/nowhere",
      nowMs: () => NOW_MS,
      isMirror: [],
      local: null,
    });
    expect(show(report.problems)).toEqual(["unreachable null"]);
    // Those that were under way at that moment.
    expect(asked).toBeLessThanOrEqual(12);
  });
});

test("a single destination that fails in the middle leaves nothing that can be restored now", async () => {
  const replica = await open();
  backend.onGet = (key) => {
    if (key === changeSet(9)) throw new BakeliteError("storage-unreachable", "it went down", { subject: "memory" });
  };
  const report = await verifyReplica(replica, {
    mode: "shallow",
    temporaryDirectory: "/nowhere",
    nowMs: () => NOW_MS,
    isMirror: [],
    local: null,
  });
  expect(show(report.problems)).toEqual(["unreachable null"]);
  expect(report.restorability).toMatchObject({ newest: null, destinations: [{ newest: null }] });
});

describe("deep", () => {
  /** State 13, whose change-set says that there are so many pages and brings one of them. */
  async function claimPages(count: number): Promise<void> {
    const state = builder.newest;
    const pages: Uint8Array[] = [];
    pages.length = count;
    builder.states.set(12, { ...state, pages });
    await builder.storeFork({ kind: "change-set", level: 0, first: 13, last: 13, seal: "p" });
    builder.states.set(12, state);
  }

  test("a state that sound objects do not make up is unrestorable", async () => {
    await using temporary = await temporaryDirectory("verify-deep");
    await claimPages(20);
    expect(show((await verify()).problems)).toEqual([]);
    const report = await verify({ mode: "deep", temporaryDirectory: temporary.path });
    expect(show(report.problems)).toEqual([`unrestorable ${full(1)}`, `unrestorable ${full(6)}`]);
    expect(report.problems.listed[0]?.message).toContain("in none of the objects that lead there");
    expect(report.deep?.map(({ integrity }) => integrity)).toEqual([null, null]);
    expect(readdirSync(temporary.path)).toEqual([]);
  });

  test("without room for it nothing is written, and the check counts as not done", async () => {
    await using temporary = await temporaryDirectory("verify-deep");
    await claimPages(2 ** 32 - 2);
    const report = await verify({ mode: "deep", temporaryDirectory: temporary.path });
    expect(show(report.problems)).toEqual([`not-checked ${full(1)}`, `not-checked ${full(6)}`]);
    expect(report.problems.listed[0]?.message).toMatch(/needs 2\.00 TiB in .*, and .* are free/);
    expect(report.deep).toEqual([]);
    expect(readdirSync(temporary.path)).toEqual([]);
  });

  test("what is no database at all is told, and the temporary file of a verify that was killed is removed", async () => {
    await using temporary = await temporaryDirectory("verify-deep");
    // As of a process that had our PID before us.
    const suffix = (await createStagingSuffix()).replace(/^(\d+)-\d+-/, "$1-1-");
    writeFileSync(temporary.file(`bakelite-verify-app.bakelite-restore-${suffix}`), "left over");
    writeFileSync(temporary.file("bakelite-verify-app.notes"), "somebody's");
    const report = await verify({ mode: "deep", temporaryDirectory: temporary.path });
    expect(show(report.problems)).toEqual([`integrity ${full(1)}`, `integrity ${full(6)}`]);
    expect(report.problems.listed[0]?.message).toContain("cannot be read by SQLite: file is not a database");
    expect(readdirSync(temporary.path)).toEqual(["bakelite-verify-app.notes"]);
  });
});

/** Merges and deletes states 9 to 14 when `key` is asked for the second time: once for the reading, then for the deep check. */
async function mergeBelowDeep(
  key: string,
  merge: () => Promise<void>,
  backends: readonly MemoryBackend[] = [backend],
): Promise<VerifyReport> {
  await using temporary = await temporaryDirectory("verify-deep");
  let asked = 0;
  const replica = await open({ backends });
  backend.onGet = async (got) => {
    if (got === key && ++asked === 2) await merge();
  };
  const report = await verifyReplica(replica, {
    mode: "deep",
    temporaryDirectory: temporary.path,
    nowMs: () => NOW_MS,
    isMirror: [],
    local: null,
  });
  expect(asked).toBeGreaterThan(1);
  return report;
}

async function deleteChangeSets(first: number, last: number): Promise<void> {
  for (let i = first; i <= last; i++) backend.objects.delete(changeSet(i));
}

describe("a deep check that takes longer than change-sets are kept", () => {
  const mergeTail = async () => {
    for (let i = 13; i <= 14; i++) await builder.storeChangeSet(builder.commitRandom(1).index);
    await builder.compact(1, 9, 14);
    await deleteChangeSets(9, 14);
  };

  for (const key of [changeSet(12), changeSet(11)])
    test(`goes as far as what was merged below it leads (at ${key})`, async () => {
      const report = await mergeBelowDeep(key, mergeTail);
      // These pages are no database, which is found once they are laid down.
      expect(show(report.problems)).toEqual([`integrity ${full(1)}`, `integrity ${full(6)}`]);
      expect(report.deep?.map(({ point }) => point.index)).toEqual([8, 14]);
    });

  test("does not pass over what a destination no longer lists", async () => {
    const other = new MemoryBackend("other");
    builder = await makeHistory([backend, other]);
    const mergeAndVanish = async () => {
      await mergeTail();
      backend.onList = () => {
        throw new BakeliteError("storage-unreachable", "it went down", { subject: "memory" });
      };
    };
    const report = await mergeBelowDeep(changeSet(11), mergeAndVanish, [backend, other]);
    expect(show(report.problems)).toContain(`not-checked ${full(6)}`);
    expect(report.problems.listed.map(({ message }) => message)).toContainEqual(
      expect.stringContaining("was not restored, for its destination stopped answering: it went down"),
    );
  });

  test("says so when what it needs was deleted and nothing stands for it", async () => {
    const report = await mergeBelowDeep(changeSet(11), () => deleteChangeSets(9, 12));
    expect(show(report.problems)).toEqual([`unrestorable ${full(1)}`, `integrity ${full(6)}`]);
    expect(report.problems.listed[0]?.message).toContain("deleted meanwhile");
  });
});

describe("a replica that changes while it is read", () => {
  test("change-sets that a compaction replaces are no loss", async () => {
    let isCompacted = false;
    const replica = await open();
    backend.onGet = async (key) => {
      if (isCompacted || key !== full(6)) return;
      isCompacted = true;
      await builder.compact(1, 9, 12);
      for (let i = 9; i <= 12; i++) backend.objects.delete(changeSet(i));
    };
    const report = await verifyReplica(replica, {
      mode: "shallow",
      temporaryDirectory: "/nowhere",
      nowMs: () => NOW_MS,
      isMirror: [],
      local: null,
    });
    expect(isCompacted).toBe(true);
    expect([show(report.problems), show(report.warnings)]).toEqual([[], []]);
    expect(report.restorability.newest?.index).toBe(12);
  });

  test("what is stored between the listing and CURRENT does not look as if it had been deleted", async () => {
    const replica = await open();
    let isStored = false;
    backend.onGet = async (key) => {
      if (isStored || key !== "app/CURRENT") return;
      isStored = true;
      for (let i = 0; i < 3; i++) await builder.storeChangeSet(builder.commitRandom(1).index);
      await builder.storeFull(15);
      await builder.storeCurrent(15);
      await builder.storeManifest();
    };
    const report = await verifyReplica(replica, {
      mode: "shallow",
      temporaryDirectory: "/nowhere",
      nowMs: () => NOW_MS,
      isMirror: [],
      local: null,
    });
    expect(show(report.problems)).toEqual([]);
    expect(report.restorability.newest?.index).toBe(15);
  });

  test("an object that is listed for ever and never there is missing", async () => {
    backend.onGet = (key) => {
      if (key === changeSet(9)) throw new BakeliteError("replica-missing", "no such object");
    };
    const list = backend.list.bind(backend);
    const replica = await open();
    const get = backend.get.bind(backend);
    backend.get = async (key, options) => (key === changeSet(9) ? null : await get(key, options));
    backend.list = list;
    const report = await verifyReplica(replica, {
      mode: "shallow",
      temporaryDirectory: "/nowhere",
      nowMs: () => NOW_MS,
      isMirror: [],
      local: null,
    });
    expect(show(report.problems)).toEqual([`missing ${changeSet(9)}`]);
    expect(report.restorability.newest?.index).toBe(8);
  });
});

test("any objects may be lost, cut, flipped or swapped: what verify says of restoring is what a restore does", async () => {
  await withSeed(async (random) => {
    for (let i = 0; i < 25; i++) {
      backend = new MemoryBackend();
      builder = await makeHistory([backend], random.pick([null, 1]));
      for (let hits = random.integer(1, 4); hits > 0; hits--) harm(random);
      const report = await verify();
      await expectRestorability(report);
    }
  });
}, 60_000);

function harm(random: Random): void {
  const keys = [...backend.objects.keys()].filter((key) => !key.endsWith("CURRENT"));
  const [key, other] = [random.pick(keys), random.pick(keys)];
  const bytes = get(key);
  switch (random.pick(["delete", "flip", "cut", "swap"])) {
    case "delete":
      backend.objects.delete(key);
      return;
    case "flip":
      if (bytes.length > 0) backend.flip(key, random.integer(0, bytes.length - 1));
      return;
    case "cut":
      backend.objects.set(key, bytes.slice(0, random.integer(0, bytes.length)));
      return;
    case "swap":
      backend.objects.set(key, get(other));
      backend.objects.set(other, bytes);
  }
}

/** As a daemon stores while a chain has no ledger yet. */
async function storeWithoutDigest(index: number): Promise<void> {
  // A change-set that settles later carries no digest; it needs a later state to settle at.
  builder.commitRandom(1);
  await builder.storeChangeSet(index, index + 1);
}

function localState(state: { index: number; lineage?: string }, cursor: Partial<Cursor> = {}): LocalState {
  const { index } = state;
  const lineage = state.lineage ?? builder.states.get(index)?.lineage ?? "1".repeat(64);
  const chain = builder.states.get(1)?.chain ?? "";
  return {
    cursorPath: "/state/app.cursor",
    ledgerPath: "/state/app.pages",
    warnings: [],
    cursor: {
      session: "a".repeat(32),
      pastSessions: [],
      machineId: null,
      bootId: null,
      device: "1",
      inode: "1",
      chain,
      index,
      lineage,
      sizePages: 8,
      pageSizeBytes: 512,
      position: null,
      settled: index,
      stampMs: 0,
      epochs: [],
      attempted: null,
      destinations: { memory: { index } },
      fullBackup: { index: 6, settled: 8, atMs: 0, seal: "p" },
      keyFingerprint: null,
      ...cursor,
    },
    ledger: { index, lineage, chain, sizePages: 8, pageSizeBytes: 512, digest: null, complete: true },
  };
}

function headerEnd(bytes: Uint8Array): number {
  return 12 + new DataView(bytes.buffer, bytes.byteOffset).getUint32(8);
}
