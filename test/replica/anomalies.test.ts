import { afterAll, beforeAll, expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { runCli } from "../../src/cli/run.ts";
import { emptyKeyRing } from "../../src/format/envelope.ts";
import { PLAINTEXT_SEAL } from "../../src/format/names.ts";
import { planRestore } from "../../src/replica/plan.ts";
import { Replica } from "../../src/replica/replica.ts";
import { verifyReplica } from "../../src/replica/verify.ts";
import { FileBackend } from "../../src/storage/file.ts";
import { fakeHost } from "../cli/fake-host.ts";
import { seededRandom } from "../support/random.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";
import { ReplicaBuilder, testKey } from "./builder.ts";
import { layInMemory } from "./lay.ts";

// One directory with everything odd in it that a listing can show, at once: each is named, and none keeps what is sound from being restored.

const NOW_MS = Date.UTC(2026, 6, 1);
const STATES = 20;
const name = (first: number, last = first, level = 0) =>
  `L${level}/${String(first).padStart(16, "0")}-${String(last).padStart(16, "0")}.p`;

let directory: TemporaryDirectory;
let builder: ReplicaBuilder;
let backend: FileBackend;

beforeAll(async () => {
  directory = await temporaryDirectory("anomalies");
  backend = new FileBackend({ path: directory.file("store") });
  builder = new ReplicaBuilder({ backends: [backend], random: seededRandom(8), startMs: NOW_MS - 60_000 });
  builder.beginChain([builder.randomImage(), builder.randomImage(), builder.randomImage()]);
  await builder.storeFull(1);
  for (let i = 1; i < STATES; i++) {
    builder.passTime(1_000);
    await builder.storeChangeSet(builder.commitRandom(2).index);
  }
  await builder.storeCurrent(1, builder.newest);
  // Overlaps: two merged ones that share states, and one within another.
  await builder.compact(1, 3, 7);
  await builder.compact(1, 6, 10);
  await builder.compact(2, 2, 12);
  // A hole that merged ones cover, and one that nothing covers: 19 and 20 lead nowhere.
  await backend.delete([`app/${name(4)}`, `app/${name(18)}`]);
  // A duplicate under another seal, and a fork.
  builder.seal = testKey(1);
  await builder.storeChangeSet(15);
  builder.seal = null;
  await builder.storeFork({ kind: "change-set", level: 0, first: 13, last: 14, seal: PLAINTEXT_SEAL });
  // Half-written: an upload that was never finished, and one that somebody's copying tool cut short under its final name.
  const at = (path: string) => directory.file(`store/app/${path}`);
  writeFileSync(at("L0/.tmp-0123456789abcdef01234567"), "half");
  writeFileSync(at(name(21)), (await Bun.file(at(name(20))).bytes()).subarray(0, 300));
  // Strangers: a note, a name that is almost ours, and a folder.
  writeFileSync(at("notes.txt"), "mine");
  writeFileSync(at("L0/0000000000000003.p"), "almost");
  await Bun.write(at("old/L0/notes.txt"), "mine too");
});

afterAll(() => directory[Symbol.asyncDispose]());

function open(): Promise<Replica> {
  return Replica.open({
    database: "app",
    backends: [backend],
    keys: emptyKeyRing,
    seal: PLAINTEXT_SEAL,
    acceptPlaintext: true,
  });
}

const sealed = name(15).replace(/p$/, testKey(1).fingerprint);

test("verify names each of them, and says how far a restore still goes", async () => {
  const report = await verifyReplica(await open(), {
    mode: "shallow",
    temporaryDirectory: "/nowhere",
    nowMs: () => NOW_MS,
    isMirror: [],
    local: null,
  });
  const found = [...report.problems.listed, ...report.warnings.listed].map(({ kind, key }) => `${kind} ${key}`);
  expect(found.sort()).toEqual([
    `corrupt app/${name(21)}`,
    "foreign-name app/L0/0000000000000003.p",
    "foreign-name app/notes.txt",
    "foreign-name app/old/L0/notes.txt",
    `fork app/${name(13, 14)}`,
    `leftover app/${name(5)}`,
    `missing app/${name(18)}`,
    `two-seals app/${sealed}`,
    `unreadable-key app/${sealed}`,
  ]);
  expect(report.restorability.newest?.index).toBe(17);
});

test("every state that a sound way leads to is restored, over each of them", async () => {
  for (const index of [1, 2, 3, 7, 10, 12, 13, 14, 15, 17]) {
    const replica = await open();
    const plan = await planRestore(replica, { kind: "index", index });
    expect(Buffer.compare((await layInMemory(replica, plan)).file, builder.fileOf(index))).toBe(0);
  }
  // What leads to 5 is gone, and the merged ones begin before it and end after it.
  await expect(planRestore(await open(), { kind: "index", index: 5 })).rejects.toThrow("it is not a restore point");
  const latest = await planRestore(await open(), { kind: "latest" });
  expect(latest.index).toBe(17);
  expect(latest.notes).toContainEqual(
    expect.stringContaining("but the way from state 17 to them is missing or damaged"),
  );
});

test("list --verbose shows each object with what is wrong with it, and what it ignores", async () => {
  const config = directory.file("bakelite.toml");
  writeFileSync(
    config,
    `[[database]]\nname = "app"\npath = "${directory.file("app.db")}"\n[[database.backends]]\ntype = "file"\npath = "${directory.file("store")}"\n`,
  );
  const host = fakeHost({ clock: { nowMs: () => NOW_MS, monotonicMs: () => 0 } });
  const code = await runCli(["list", "--config", config, "--db", "app", "--verbose"], host);
  expect(code).toBe(0);
  const { text } = host.stdout;
  expect(text).toMatch(/newest restore point {2}2026-06-30T23:59:16/);
  expect(text).toMatch(new RegExp(`^${name(21).replace(".", "\\.")} .*damaged`, "m"));
  expect(text).toMatch(/^L0\/0+15-0+15\.[0-9a-f]{8} .*cannot be read with the configured key/m);
  for (const overlapping of [name(3, 7, 1), name(6, 10, 1), name(2, 12, 2)]) expect(text).toContain(overlapping);
  expect(text).not.toContain(".tmp-");
  expect(host.stderr.text).toMatch(/ignoring .*\/app\/L0\/0000000000000003\.p and others \(2\)/);
});
