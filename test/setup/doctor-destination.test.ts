import { expect, test } from "bun:test";
import { mkdirSync, writeFileSync } from "node:fs";
import { parseConfig } from "../../src/config/load.ts";
import type { BackendConfig } from "../../src/config/types.ts";
import { runDoctor } from "../../src/setup/doctor.ts";
import { locationOf } from "../../src/setup/doctor-destination.ts";
import type { Backend, ByteStream, Diagnosis, StoredObject } from "../../src/storage/backend.ts";
import { MemoryBackend } from "../../src/storage/memory.ts";
import { BakeliteError } from "../../src/util/errors.ts";
import { ReplicaBuilder } from "../replica/builder.ts";
import { seededRandom } from "../support/random.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";

const never = new Promise<never>(() => {});

/** What a test changes of a backend; the rest is the one in memory. */
type Part = Partial<Pick<Backend, "list" | "get" | "diagnose">>;

/** Each S3 destination, in the order of the file, is what `backends` has at that place. */
async function doctor(backends: readonly Backend[], options: { deadlineMs?: number; signal?: AbortSignal } = {}) {
  await using directory = await temporaryDirectory("doctor-destination");
  const path = directory.file("bakelite.toml");
  const tables = backends.map((_, i) => `[[database.backends]]\ntype = "s3"\nbucket = "b${i}"\n`);
  const toml = `[[database]]\nname = "app"\npath = "${directory.file("app.db")}"\n${tables.join("")}`;
  writeFileSync(path, toml);
  mkdirSync(directory.file("units"));
  const config = parseConfig(toml, { sourcePath: path, env: {} });
  const report = await runDoctor({
    config,
    databases: config.databases,
    holdsSecrets: false,
    env: { SYSTEMD_UNIT_PATH: directory.file("units") },
    nowMs: Date.now(),
    signal: options.signal ?? new AbortController().signal,
    deadlineMs: options.deadlineMs ?? 5_000,
    open: (backend: BackendConfig) => {
      const found = backend.type === "s3" ? backends[Number(backend.bucket.slice(1))] : undefined;
      if (found === undefined) throw new BakeliteError("config-invalid", "there is no such destination");
      return found;
    },
  });
  const [database] = report.databases;
  if (database === undefined) throw new Error("no database in the report");
  const found = (at: number, name: string) =>
    (database.destinations[at]?.checks ?? [])
      .filter(({ check }) => check === name)
      .map(({ level, message }) => `${level} ${message}`);
  return { database, found };
}

async function stored(): Promise<MemoryBackend> {
  const backend = new MemoryBackend();
  const builder = new ReplicaBuilder({ backends: [backend], random: seededRandom(1) });
  builder.beginChain([builder.randomImage()]);
  await builder.storeFull(1);
  await builder.storeChangeSet(builder.commitRandom(1).index);
  return backend;
}

function changed(backend: MemoryBackend, part: Part): Backend {
  return {
    location: backend.location,
    capabilities: backend.capabilities,
    put: backend.put.bind(backend),
    get: backend.get.bind(backend),
    stat: backend.stat.bind(backend),
    list: backend.list.bind(backend),
    delete: backend.delete.bind(backend),
    ...part,
  };
}

const stuck = (): AsyncIterable<StoredObject> => ({ [Symbol.asyncIterator]: () => ({ next: () => never }) });

test("a destination that hangs in its listing, a read or a diagnosis fails with the deadline, and the others are looked at", async () => {
  const backend = await stored();
  const { found } = await doctor(
    [
      changed(backend, { list: stuck }),
      changed(backend, { get: async () => stuckBytes }),
      changed(backend, { diagnose: () => never }),
      backend,
    ],
    { deadlineMs: 300 },
  );
  expect(found(0, "reachable")).toEqual(["fail no answer within 0.3 s when it was listed"]);
  expect(found(1, "storage format")).toEqual([
    expect.stringMatching(/^fail no answer within 0.3 s when app\/L0\/.* was read$/),
  ]);
  expect(found(2, "reachable")).toEqual([
    expect.stringContaining("pass "),
    "fail no answer within 0.3 s when it was asked about itself",
  ]);
  expect(found(3, "storage format")).toEqual([
    expect.stringContaining("pass the newest object, state 2, was written by "),
  ]);
});

const stuckBytes: ByteStream = { [Symbol.asyncIterator]: () => ({ next: () => never }) };

test("a listing that goes on for ever is left with a warning", async () => {
  async function* endless(): AsyncGenerator<StoredObject, void> {
    for (let i = 0; ; i++) {
      if (i % 500 === 0) await Bun.sleep(1);
      yield { key: `app/${i}`, sizeBytes: 0, modifiedMs: 0 };
    }
  }
  const { found } = await doctor([changed(await stored(), { list: endless })], { deadlineMs: 50 });
  expect(found(0, "reachable")).toEqual([
    expect.stringMatching(/^warn it answers, but \d+000 objects took more than 0.3 s/),
  ]);
  expect(found(0, "storage format")).toEqual([]);
});

test("a listing that breaks off, and a diagnosis that cannot be had, fail with the backend's words and hint", async () => {
  const denied = new BakeliteError("storage-denied", "cannot list: access denied", { hint: "allow s3:ListBucket" });
  async function* refusing(): AsyncGenerator<StoredObject, void> {
    yield { key: "app/CURRENT", sizeBytes: 1, modifiedMs: 0 };
    throw denied;
  }
  const backend = await stored();
  const { database, found } = await doctor([
    changed(backend, { list: refusing }),
    changed(backend, { diagnose: () => Promise.reject(denied) }),
  ]);
  expect(database.destinations[0]?.checks).toEqual([
    { check: "reachable", level: "fail", message: "cannot list: access denied", fix: "allow s3:ListBucket" },
  ]);
  expect(found(1, "reachable")).toEqual([expect.stringContaining("pass "), "fail cannot list: access denied"]);
});

test("what a backend says of itself stands under its destination", async () => {
  const diagnoses: readonly Diagnosis[] = [
    { check: "versioning", level: "pass", message: "off" },
    { check: "clock", level: "warn", message: "3 s apart", hint: "set it" },
    { check: "object lock", level: "fail", message: "in the way" },
  ];
  const { database } = await doctor([changed(await stored(), { diagnose: async () => diagnoses })]);
  expect(database.destinations[0]?.checks.slice(-3)).toEqual([
    { check: "versioning", level: "pass", message: "off", fix: null },
    { check: "clock", level: "warn", message: "3 s apart", fix: "set it" },
    { check: "object lock", level: "fail", message: "in the way", fix: "see docs/doctor.md" },
  ]);
});

test("a bug in one destination's backend is a failed check, and hides nothing else", async () => {
  const broken = changed(await stored(), {
    list: () => {
      throw new TypeError("undefined is not a function");
    },
  });
  const { found } = await doctor([broken, await stored()]);
  expect(found(0, "reachable")).toEqual(["fail undefined is not a function"]);
  expect(found(1, "reachable")).toEqual([expect.stringContaining("pass ")]);
});

test("an interrupted run rejects with the reason, though a destination hangs", async () => {
  const interrupted = new BakeliteError("interrupted", "stopped by SIGINT");
  const controller = new AbortController();
  const list = () => {
    queueMicrotask(() => controller.abort(interrupted));
    return stuck();
  };
  const run = doctor([changed(await stored(), { list })], { signal: controller.signal });
  expect(await run.catch((error: unknown) => error)).toBe(interrupted);
});

test("a destination is called by its place, without credentials", () => {
  const toml = `[[database]]\nname = "app"\npath = "/a.db"\n${[
    'type = "s3"\nbucket = "b"\nprefix = "/p/"\naccess_key_id = "AK"\nsecret_access_key = "s3cret"',
    'type = "gcs"\nbucket = "b"',
    'type = "azure"\naccount = "a"\ncontainer = "c"\nprefix = "p"\naccount_key = "s3cret"',
    'type = "sftp"\nhost = "h"\nuser = "u"\npath = "/p"\npassword = "s3cret"',
    'type = "file"\npath = "/f"',
  ]
    .map((table) => `[[database.backends]]\n${table}\n`)
    .join("")}`;
  const { databases } = parseConfig(toml, { sourcePath: "/c", env: {} });
  expect(databases[0]?.backends.map(locationOf)).toEqual([
    "s3://b/p",
    "gs://b",
    "azure://a/c/p",
    "sftp://u@h:22/p",
    "/f",
  ]);
});
