import { describe, expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { encodeDocument } from "../../src/format/encode.ts";
import { formatKeyText } from "../../src/format/envelope.ts";
import { parseHeader } from "../../src/format/header.ts";
import { readMarks } from "../../src/replica/marks.ts";
import { planRestore } from "../../src/replica/plan.ts";
import { planReencryption } from "../../src/replica/reencrypt.ts";
import type { Backend, ByteSource, PutOptions } from "../../src/storage/backend.ts";
import { FileBackend } from "../../src/storage/file.ts";
import { BakeliteError } from "../../src/util/errors.ts";
import { pythonPath } from "../support/python.ts";
import { seededRandom } from "../support/random.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";
import { ReplicaBuilder, testKey } from "./builder.ts";
import { layInMemory } from "./lay.ts";
import { MemoryBackend } from "./memory-backend.ts";
import {
  CHANGES,
  type Change,
  expectWhole,
  openAs,
  optionsFor,
  problemsOf,
  reencrypt,
  restoreAs,
  restoreWithBoth,
  storeHistory,
} from "./reencrypt-scene.ts";

const changes = Object.entries(CHANGES) as [Change, (typeof CHANGES)[Change]][];
const OBJECTS = 8;
const READER = new URL("../judge/bakelite_reader.py", import.meta.url).pathname;

const headerOf = (bytes: Uint8Array | undefined) => parseHeader(bytes ?? new Uint8Array()).header;

describe.each(changes)("%s:", (_, change) => {
  test("every state is restored as before, with the new key alone, and nothing old is left", async () => {
    const backend = new MemoryBackend();
    const builder = await storeHistory([backend], change.from);
    const report = await reencrypt(optionsFor([backend], change));
    expect(report.problems.listed).toEqual([]);
    expect(report).toMatchObject({ documentCount: 2, rewrittenCount: OBJECTS, deletedCount: OBJECTS });
    expect(report.rewrittenBytes).toBe(report.plan.sizeBytes);
    await expectWhole(builder, [backend], change.to);
    expect(await restoreAs([backend], change.from)).toBeNull();
    expect(backend.objects.size).toBe(OBJECTS + 2);
  });

  test("a second run finds nothing to do, and reads no object", async () => {
    const backend = new MemoryBackend();
    await storeHistory([backend], change.from);
    await reencrypt(optionsFor([backend], change));
    backend.getCount = 0;
    const again = await reencrypt(optionsFor([backend], change));
    expect(again).toMatchObject({ documentCount: 0, rewrittenCount: 0, deletedCount: 0 });
    expect(again.plan).toMatchObject({ objectCount: 0, rightCount: OBJECTS });
    expect(backend.getCount).toBe(2); // The headers of CURRENT and the manifest.
  });

  test("planning writes nothing, and counts what is to be done", async () => {
    const backend = new MemoryBackend();
    await storeHistory([backend], change.from);
    const before = new Map(backend.objects);
    const { plan, documentCount, problems } = await planReencryption(optionsFor([backend], change));
    expect([plan.objectCount, plan.rightCount, documentCount, problems.count]).toEqual([OBJECTS, 0, 2, 0]);
    const sizes = [...before].filter(([key]) => !/CURRENT|manifest/.test(key)).map(([, bytes]) => bytes.length);
    expect(plan.sizeBytes).toBe(sizes.reduce((sum, size) => sum + size, 0));
    expect([...plan.oldSeals]).toEqual([[change.from?.fingerprint ?? "p", OBJECTS]]);
    expect(backend.objects).toEqual(before);
  });

  test("several destinations end with the same bytes, of which each alone restores everything", async () => {
    const backends = [new MemoryBackend("one"), new MemoryBackend("two"), new MemoryBackend("three")];
    const builder = await storeHistory(backends, change.from);
    const report = await reencrypt(optionsFor(backends, change));
    expect(report.problems.listed).toEqual([]);
    await expectWhole(builder, backends, change.to);
    const [one, two, three] = backends.map(({ objects }) => {
      return Object.fromEntries([...objects].filter(([key]) => !/CURRENT|manifest/.test(key)).sort());
    });
    expect(two).toEqual(one);
    expect(three).toEqual(one);
  });

  test("no reader ever sees an older state than before: it is the newest, or a clear refusal, and one key gives it", async () => {
    const backend = new MemoryBackend();
    const builder = await storeHistory([backend], change.from);
    const newest = builder.fileOf(6);
    let looks = 0;
    const seen = new Set<string>();
    const look = async () => {
      looks++;
      const [old, young] = [await restoreAs([backend], change.from), await restoreAs([backend], change.to)];
      for (const file of [old, young]) if (file !== null) expect(Buffer.compare(file, newest)).toBe(0);
      expect(old ?? young).not.toBeNull();
      expect(Buffer.compare(await restoreWithBoth([backend], change), newest)).toBe(0);
      seen.add(`${old !== null} ${young !== null}`);
    };
    await reencrypt(optionsFor([lookingAfterWrites(backend, look)], change));
    expect(looks).toBeGreaterThan(OBJECTS);
    expect([...seen]).toEqual(["true false", "true true", "false true"]);
  });

  test("session, run, chain and first seed stay, and every encoding has a nonce seed of its own", async () => {
    const backend = new MemoryBackend();
    await storeHistory([backend], change.from);
    const before = new Map(backend.objects);
    await reencrypt(optionsFor([backend], change));
    const seeds = new Set<string>();
    const withoutSeal = (key: string) => key.replace(/\.[^.]+$/, "");
    for (const [key, bytes] of backend.objects) {
      const header = headerOf(bytes);
      seeds.add(header.nonceSeed);
      const [, old] = [...before].find(([name]) => withoutSeal(name) === withoutSeal(key)) ?? [];
      const was = headerOf(old);
      for (const field of ["session", "run", "chain", "first", "level", "pageSizeBytes", "database"] as const)
        expect(header[field]).toBe(was[field]);
      expect(header.nonceSeed).not.toBe(was.nonceSeed);
      expect(header).toMatchObject({ writer: "bakelite/test", keyFingerprint: change.to?.fingerprint ?? null });
      if (header.kind === "full" || header.kind === "change-set") expect(header.originSeed).toBe(was.nonceSeed);
    }
    expect(seeds.size).toBe(OBJECTS + 2);
    // Done again and back, the first seed is still the first one's.
    await reencrypt(optionsFor([backend], { from: change.to, to: testKey(9) }));
    for (const [key, bytes] of backend.objects) {
      const { kind, originSeed } = headerOf(bytes);
      const [, old] = [...before].find(([name]) => withoutSeal(name) === withoutSeal(key)) ?? [];
      if (kind === "full" || kind === "change-set") expect(originSeed).toBe(headerOf(old).nonceSeed);
    }
  });

  test("the backend dies at its n-th call, for every n: the next run finishes", async () => {
    for (let n = 1; ; n++) {
      const backend = new MemoryBackend();
      const builder = await storeHistory([backend], change.from);
      const dying = dyingAt(backend, n);
      const died = await reencrypt(optionsFor([dying], change)).then(
        () => false,
        () => true,
      );
      const [old, young] = [await restoreAs([backend], change.from), await restoreAs([backend], change.to)];
      for (const file of [old, young]) if (file !== null) expect(Buffer.compare(file, builder.fileOf(6))).toBe(0);
      expect(old ?? young).not.toBeNull();
      const report = await reencrypt(optionsFor([backend], change));
      expect(report.problems.listed).toEqual([]);
      await expectWhole(builder, [backend], change.to);
      expect(await restoreAs([backend], change.from)).toBeNull();
      if (!died) return expect(n).toBeGreaterThan(40);
    }
  });
});

test("several old keys and plaintext at once end under one key", async () => {
  const backend = new MemoryBackend();
  const builder = await storeHistory([backend], null);
  const half = [...backend.objects.keys()].filter((key) => key.includes("/L0/"));
  const other = new MemoryBackend();
  for (const key of half) other.objects.set(key, backend.objects.get(key) ?? new Uint8Array());
  await reencrypt(optionsFor([other], { from: null, to: testKey(3) }));
  for (const key of half) backend.objects.delete(key);
  for (const [key, bytes] of other.objects) backend.objects.set(key, bytes);
  const options = optionsFor([backend], { from: testKey(3), to: testKey(4) });
  const report = await reencrypt({ ...options, oldKeys: [testKey(8), testKey(3)] });
  expect(report.problems.listed).toEqual([]);
  expect([...report.plan.oldSeals.keys()].sort()).toEqual([testKey(3).fingerprint, "p"].sort());
  await expectWhole(builder, [backend], testKey(4));
});

test("without the key of what is stored nothing is begun, and the error names both keys and the option", async () => {
  const backend = new MemoryBackend();
  await storeHistory([backend], testKey(1));
  const before = new Map(backend.objects);
  const wrong = optionsFor([backend], { from: testKey(8), to: testKey(2) });
  await expect(reencrypt(wrong)).rejects.toMatchObject({
    code: "key-wrong",
    message: `the replica was written with key ${testKey(1).fingerprint}, this is ${testKey(2).fingerprint}, ${testKey(8).fingerprint}`,
    hint: `name the file with key ${testKey(1).fingerprint} with --old-key-file`,
  });
  await expect(reencrypt({ ...wrong, sealKey: null, oldKeys: [] })).rejects.toMatchObject({
    message: `the replica was written with key ${testKey(1).fingerprint}, and no key was given`,
  });
  expect(backend.objects).toEqual(before);
});

test("an object that cannot be read is named and stays as it is; the rest is done", async () => {
  const backend = new MemoryBackend();
  await storeHistory([backend], testKey(1));
  const [damaged] = [...backend.objects.keys()].filter((key) => key.includes("/L0/") && key.includes("5-"));
  if (damaged === undefined) throw new Error("there is a change-set 5");
  backend.flip(damaged, 700);
  const bytes = backend.objects.get(damaged);
  const report = await reencrypt(optionsFor([backend], CHANGES.rotate));
  expect(report.problems.listed).toMatchObject([{ kind: "corrupt", destination: "memory", key: damaged }]);
  expect(report).toMatchObject({ rewrittenCount: OBJECTS - 1, deletedCount: OBJECTS - 1 });
  expect(backend.objects.get(damaged)).toEqual(bytes);
  expect([...backend.objects.keys()].filter((key) => key.endsWith(testKey(1).fingerprint))).toEqual([damaged]);
});

test("an object that is damaged at one destination is made of a sound copy of the same bytes at another", async () => {
  const backends = [new MemoryBackend("one"), new MemoryBackend("two")];
  const builder = await storeHistory(backends, testKey(1));
  const full = `app/full/${"4".padStart(16, "0")}.${testKey(1).fingerprint}`;
  backends[0]?.flip(full, 900);
  backends[1]?.flip(full.replace("4.", "1."), 900);
  const report = await reencrypt(optionsFor(backends, CHANGES.rotate));
  expect(report.problems.listed).toEqual([]);
  await expectWhole(builder, backends, testKey(2));
});

test("a destination that does not answer is named and left alone; the others are done", async () => {
  const [one, two] = [new MemoryBackend("one"), new MemoryBackend("two")];
  const builder = await storeHistory([one, two], testKey(1));
  const before = new Map(two.objects);
  for (const verb of ["list", "get", "put", "delete"] as const) {
    const report = await reencrypt(optionsFor([one, failing(two, verb)], CHANGES.rotate));
    const [problem, ...more] = report.problems.listed;
    expect([problem?.destination, more]).toEqual(["two", []]);
    expect(problem?.kind).toBe(verb === "delete" ? "not-deleted" : "unreachable");
    await expectWhole(builder, [one], testKey(2));
    for (const [key, bytes] of before) if (!/CURRENT|manifest/.test(key)) expect(two.objects.get(key)).toEqual(bytes);
    expect(await restoreAs([two], testKey(1))).toEqual(builder.fileOf(6));
  }
  const last = await reencrypt(optionsFor([one, two], CHANGES.rotate));
  expect(last.problems.listed).toEqual([]);
  await expectWhole(builder, [two], testKey(2));
});

test("a destination that keeps versions of what is deleted is named, for they can still be read", async () => {
  const backend = new MemoryBackend();
  const builder = await storeHistory([backend], null);
  let kept = 40; // From retention, long before.
  const versioned: Backend = {
    ...verbsOf(backend),
    async delete(keys) {
      kept += keys.length;
      await backend.delete(keys);
    },
    unlisted: {
      uploads: async () => null,
      abortUpload: async () => "live",
      noncurrentVersions: async () => ({ count: kept, sizeBytes: 0, deleteMarkerCount: 0 }),
    },
  };
  const report = await reencrypt(optionsFor([versioned], CHANGES.encrypt));
  expect(report.problems.listed).toMatchObject([
    {
      kind: "not-deleted",
      message: expect.stringContaining(`so ${OBJECTS} old objects (plaintext) are no longer listed`),
    },
  ]);
  await expectWhole(builder, [backend], testKey(1));
  expect((await reencrypt(optionsFor([versioned], CHANGES.encrypt))).problems.count).toBe(0);
});

test("a destination that keeps an old full backup keeps the old change-sets too, so that nobody restores an older state", async () => {
  const backend = new MemoryBackend();
  const builder = await storeHistory([backend], null);
  const locked: Backend = {
    ...verbsOf(backend),
    async delete(keys) {
      // As S3 does: each for itself, in any order, and what is locked stays.
      await backend.delete(keys.filter((key) => !key.includes("/full/")));
      if (keys.some((key) => key.includes("/full/"))) throw new BakeliteError("storage-denied", "it is locked");
    },
  };
  const report = await reencrypt(optionsFor([locked], CHANGES.encrypt));
  expect(report.problems.listed).toMatchObject([{ kind: "not-deleted" }]);
  expect(await restoreAs([backend], null)).toEqual(builder.fileOf(6));
  expect(await restoreAs([backend], testKey(1))).toEqual(builder.fileOf(6));
});

test("what a writer stores meanwhile keeps every old object, and is named", async () => {
  const backend = new MemoryBackend();
  const builder = await storeHistory([backend], null);
  const stranger = `app/L0/${"7".padStart(16, "0")}-${"7".padStart(16, "0")}.p`;
  let isStored = false;
  const wrapped = lookingAfterWrites(backend, async () => {
    if (!isStored) backend.objects.set(stranger, new Uint8Array(100));
    isStored = true;
  });
  const report = await reencrypt(optionsFor([wrapped], CHANGES.encrypt));
  expect(report.problems.listed).toMatchObject([{ kind: "another-writer", key: stranger }]);
  expect(report.deletedCount).toBe(0);
  backend.objects.delete(stranger);
  expect(await restoreAs([backend], null)).toEqual(builder.fileOf(6));
  expect(await restoreAs([backend], testKey(1))).toEqual(builder.fileOf(6));
});

/** A history whose compaction of states 4 and 5 is yet to come, as its key and bytes. */
async function storeHistoryBeforeCompaction(backend: MemoryBackend) {
  const builder = await storeHistory([backend], null);
  await builder.compact(1, 4, 5);
  const key = [...backend.objects.keys()].find((name) => name.startsWith(`app/L1/${"4".padStart(16, "0")}-`)) ?? "";
  const bytes = backend.objects.get(key) ?? new Uint8Array();
  backend.objects.delete(key);
  return { builder, key, bytes };
}

// Eight objects, CURRENT and the manifest are stored, then eight deleted.
test.each([
  ["while the first object is rewritten", 1],
  ["after the last object, with CURRENT", 10],
  ["when the first old object was deleted", 11],
  ["when the last old object was deleted", 18],
])("what a compaction that had begun before stores %s is rewritten too", async (_, at) => {
  const backend = new MemoryBackend();
  const { builder, key, bytes } = await storeHistoryBeforeCompaction(backend);
  let writes = 0;
  const wrapped = lookingAfterWrites(backend, async () => {
    if (++writes === at) backend.objects.set(key, bytes);
  });
  const report = await reencrypt(optionsFor([wrapped], CHANGES.encrypt));
  expect(report.problems.listed).toEqual([]);
  expect(report).toMatchObject({ rewrittenCount: OBJECTS + 1, deletedCount: OBJECTS + 1 });
  expect(report.plan.objectCount).toBe(OBJECTS + 1);
  expect(backend.objects.has(key.replace(/p$/, testKey(1).fingerprint))).toBe(true);
  await expectWhole(builder, [backend], testKey(1));
});

test("an old object that a repair copies back after it was deleted goes again, and one that always comes back is named", async () => {
  for (const times of [1, Number.POSITIVE_INFINITY]) {
    const backend = new MemoryBackend();
    const { builder, key } = await storeHistoryBeforeCompaction(backend);
    const old = [...backend.objects].find(([name]) => name.startsWith("app/L0/"));
    if (old === undefined) throw new Error("no change-set");
    let left = times;
    const wrapped: Backend = {
      ...backend,
      ...lookingAfterWrites(backend, async () => {}),
      async delete(keys) {
        await backend.delete(keys);
        if (keys.includes(old[0]) && left-- > 0) backend.objects.set(...old);
      },
    };
    const report = await reencrypt(optionsFor([wrapped], CHANGES.encrypt));
    if (times === 1) {
      expect(report.problems.listed).toEqual([]);
      await expectWhole(builder, [backend], testKey(1));
      continue;
    }
    expect(report.problems.listed).toMatchObject([{ kind: "another-writer", key: old[0] }]);
    expect(await restoreAs([backend], testKey(1))).toEqual(builder.fileOf(6));
    expect(backend.objects.has(key)).toBe(false);
  }
});

test("a damaged object under the new name is replaced; a sound one that holds something else is not touched", async () => {
  const backend = new MemoryBackend();
  const builder = await storeHistory([backend], null);
  const done = new MemoryBackend();
  for (const [key, bytes] of backend.objects) done.objects.set(key, bytes);
  await reencrypt(optionsFor([done], CHANGES.encrypt));
  const seal = testKey(1).fingerprint;
  const name = (index: number) => `app/L0/${String(index).padStart(16, "0")}-${String(index).padStart(16, "0")}`;
  backend.objects.set(`${name(3)}.${seal}`, (done.objects.get(`${name(3)}.${seal}`) ?? new Uint8Array()).slice(0, -80));
  builder.seal = testKey(1);
  const fork = await builder.storeFork({ kind: "change-set", level: 0, first: 5, last: 5, seal });
  builder.seal = null;
  const forkBytes = backend.objects.get(fork.key);
  const report = await reencrypt(optionsFor([backend], CHANGES.encrypt));
  expect(report.problems.listed).toMatchObject([{ kind: "fork", key: `${name(5)}.p` }]);
  expect(backend.objects.get(fork.key)).toEqual(forkBytes);
  expect(backend.objects.has(`${name(5)}.p`)).toBe(true);
  expect(backend.objects.has(`${name(3)}.p`)).toBe(false);
  expect((await problemsOf([backend], testKey(1))).filter((problem) => problem.includes(`${name(3)}.`))).toEqual([]);
});

test("a mark keeps its state and its label under the new key, as the same bytes everywhere", async () => {
  const backends = [new MemoryBackend("one"), new MemoryBackend("two")];
  const builder = await storeHistory(backends, null);
  const { lineage, stampMs } = builder.states.get(3) ?? builder.newest;
  const [some] = [...(backends[0]?.objects.values() ?? [])];
  const header = { ...headerOf(some), kind: "mark", level: 0, first: 3 } as const;
  const says = { index: 3, lineage, label: "before the move", stamp_ms: stampMs, created_ms: stampMs };
  const bytes = await encodeDocument({ header, sealKey: null, compressionLevel: 3 }, says);
  const old = `app/keep/${"3".padStart(16, "0")}.p`;
  for (const { objects } of backends) objects.set(old, bytes);
  const report = await reencrypt(optionsFor(backends, CHANGES.encrypt));
  expect(report.problems.listed).toEqual([]);
  expect(report.documentCount).toBe(6);
  const name = old.replace(/p$/, testKey(1).fingerprint);
  expect(backends.map(({ objects }) => objects.has(old))).toEqual([false, false]);
  expect(backends[0]?.objects.get(name)).toEqual(backends[1]?.objects.get(name) ?? new Uint8Array());
  for (const backend of backends) {
    const [state] = await readMarks(await openAs([backend], testKey(1)));
    expect(state).toMatchObject({
      index: 3,
      error: null,
      mark: { index: 3, lineage, label: "before the move", stampMs },
    });
  }
  expect((await reencrypt(optionsFor(backends, CHANGES.encrypt))).documentCount).toBe(0);
});

test("a manifest and CURRENT under the new key say what is true by now", async () => {
  const backend = new MemoryBackend();
  await storeHistory([backend], null);
  await reencrypt(optionsFor([backend], CHANGES.encrypt));
  const replica = await openAs([backend], testKey(1));
  // Every fact is known from the manifest alone.
  const known = [...replica.catalog.fulls, ...replica.catalog.changeSets].map((object) =>
    replica.trailers.knowledge(object),
  );
  expect(known.every((facts) => typeof facts === "object")).toBe(true);
});

test("the independent reader restores what was encrypted, and what was decrypted again", async () => {
  await using directory = await temporaryDirectory("reencrypt");
  const backend = new FileBackend({ path: directory.file("replica") });
  const builder = await storeHistory([backend], null);
  const keyFile = directory.file("key.txt");
  writeFileSync(keyFile, formatKeyText(new Uint8Array(32).fill(1)));
  const judged = directory.file("judged.db");
  const judge = (...args: readonly string[]) =>
    Bun.spawnSync([
      ...[
        pythonPath(),
        READER,
        "restore",
        directory.file("replica"),
        "--database",
        "app",
        "--output",
        judged,
        "--force",
        "--latest",
      ],
      ...args,
    ]);
  await reencrypt(optionsFor([backend], CHANGES.encrypt));
  expect(judge("--key-file", keyFile).exitCode).toBe(0);
  expect(Buffer.compare(readFileSync(judged), builder.fileOf(6))).toBe(0);
  await reencrypt(optionsFor([backend], CHANGES.decrypt));
  expect(judge().exitCode).toBe(0);
  expect(Buffer.compare(readFileSync(judged), builder.fileOf(6))).toBe(0);
});

describe("a large object", () => {
  const PAGES = 5000; // Of 4 KiB: more than one group of 64 chunks.

  async function storeLarge(backend: Backend, seal = testKey(1)): Promise<ReplicaBuilder> {
    const builder = new ReplicaBuilder({
      backends: [backend],
      random: seededRandom(3),
      seal,
      pageSizeBytes: 4096,
      compression: "none",
    });
    builder.beginChain(Array.from({ length: PAGES }, () => builder.randomImage()));
    await builder.storeFull(1);
    return builder;
  }

  test("is streamed: encoded anew under another seed when the destination breaks off, and never wholly in memory", async () => {
    const backend = new MemoryBackend();
    const builder = await storeLarge(backend);
    let attempts = 0;
    const starts: Uint8Array[] = [];
    const breaking: Backend = {
      ...verbsOf(backend),
      async put(key: string, body: ByteSource, options: PutOptions = {}) {
        attempts++;
        expect(body).toMatchObject({ replayable: false, sizeBytes: undefined });
        if (attempts === 3) return await backend.put(key, body, options);
        let [taken, largest] = [0, 0];
        for await (const piece of body.open()) {
          if (taken === 0) starts.push(piece.slice());
          taken += piece.length;
          largest = Math.max(largest, piece.length);
          if (taken > 8_000_000) break;
        }
        expect(largest).toBeLessThan(400_000);
        throw new BakeliteError("storage-unreachable", "the connection was reset");
      },
    };
    const report = await reencrypt(optionsFor([breaking], CHANGES.rotate));
    expect([report.problems.listed, attempts]).toEqual([[], 3]);
    const [key] = [...backend.objects.keys()];
    const seeds = [...starts, backend.objects.get(key ?? "")].map((bytes) => headerOf(bytes).nonceSeed);
    expect(new Set(seeds).size).toBe(3);
    const replica = await openAs([backend], testKey(2));
    const { file } = await layInMemory(replica, await planRestore(replica, { kind: "latest" }));
    expect(Buffer.compare(file, builder.fileOf(1))).toBe(0);
  });

  test("that is damaged late in its bytes leaves nothing under the new name", async () => {
    const backend = new MemoryBackend();
    await storeLarge(backend);
    const [key] = [...backend.objects.keys()];
    backend.flip(key ?? "", 19_000_000);
    const report = await reencrypt(optionsFor([backend], CHANGES.rotate));
    expect(report.problems.listed).toMatchObject([{ kind: "corrupt", key: key ?? "" }]);
    expect([...backend.objects.keys()]).toEqual([key ?? ""]);
  });
});

test("a signal stops it between two objects, and what was done stays done", async () => {
  const backend = new MemoryBackend();
  const builder = await storeHistory([backend], testKey(1));
  const stop = new AbortController();
  let puts = 0;
  const wrapped = lookingAfterWrites(backend, async () => {
    if (++puts === 3) stop.abort(new BakeliteError("interrupted", "stopped by SIGINT"));
  });
  const options = { ...optionsFor([wrapped], CHANGES.rotate), signal: stop.signal };
  await expect(reencrypt(options)).rejects.toMatchObject({ code: "interrupted" });
  expect(await restoreAs([backend], testKey(1))).toEqual(builder.fileOf(6));
  const report = await reencrypt(optionsFor([backend], CHANGES.rotate));
  expect(report.problems.listed).toEqual([]);
  await expectWhole(builder, [backend], testKey(2));
});

function verbsOf(backend: Backend): Backend {
  return {
    location: backend.location,
    capabilities: backend.capabilities,
    put: (...args) => backend.put(...args),
    get: (...args) => backend.get(...args),
    stat: (...args) => backend.stat(...args),
    list: (...args) => backend.list(...args),
    delete: (...args) => backend.delete(...args),
  };
}

/** Calls `look` after each object that was put or deleted; deletes one by one. */
function lookingAfterWrites(backend: Backend, look: () => Promise<void>): Backend {
  return {
    ...verbsOf(backend),
    async put(...args) {
      const outcome = await backend.put(...args);
      await look();
      return outcome;
    },
    async delete(keys, options) {
      for (const key of keys) {
        await backend.delete([key], options);
        await look();
      }
    },
  };
}

/** From its n-th call on nothing answers any more, as for a process that is dead. Each deleted key counts as a call. */
function dyingAt(backend: Backend, n: number): Backend {
  let calls = 0;
  const live = () => {
    if (++calls >= n) throw new Error("dead");
  };
  return {
    ...verbsOf(backend),
    async put(...args) {
      live();
      return await backend.put(...args);
    },
    async get(...args) {
      live();
      return await backend.get(...args);
    },
    async stat(...args) {
      live();
      return await backend.stat(...args);
    },
    async *list(...args) {
      live();
      yield* backend.list(...args);
    },
    async delete(keys, options) {
      for (const key of keys) {
        live();
        await backend.delete([key], options);
      }
    },
  };
}

function failing(backend: Backend, verb: "list" | "get" | "put" | "delete"): Backend {
  const fail = () => {
    throw new BakeliteError("storage-denied", `the destination refuses to ${verb}`);
  };
  return { ...verbsOf(backend), [verb]: fail };
}
