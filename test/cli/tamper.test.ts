import { afterAll, beforeAll, expect, test } from "bun:test";
import { copyFileSync, cpSync, existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { checksumOf, encodeFooter, FOOTER_BYTES, parseFooter } from "../../src/format/chunk.ts";
import { openObject } from "../../src/format/decode.ts";
import { deriveSealKey, keyRing, parseKeyText } from "../../src/format/envelope.ts";
import { HEADER_PREFIX_BYTES, parseHeader } from "../../src/format/header.ts";
import { FileBackend } from "../../src/storage/file.ts";
import { runBakelite } from "../oracle/daemon-process.ts";
import { gradeRestore } from "../oracle/grade.ts";
import { ReplicaBuilder } from "../replica/builder.ts";
import { seededRandom } from "../support/random.ts";
import { SealedScene, type TestKey } from "./sealed-scene.ts";

/** A sealed replica that a daemon wrote, with its cursor, tampered with by somebody who has the bucket and not the key. */

let scene: SealedScene;
let key: TestKey;
let pristine: string;
/** The replica when it had no more than two change-sets, and another life of it under the same names and key. */
let earlier: string;
let formerLife: string;

beforeAll(async () => {
  scene = await SealedScene.begin();
  key = scene.makeKey(1);
  scene.key = key;
  await scene.backUp(2);
  formerLife = scene.directory.file("former-life");
  renameSync(scene.replica, formerLife);
  rmSync(scene.directory.file(".bakelite"), { recursive: true });
  await scene.backUp(2);
  earlier = scene.directory.file("earlier");
  cpSync(scene.replica, earlier, { recursive: true });
  await scene.backUp(3);
  pristine = scene.directory.file("pristine");
  cpSync(scene.replica, pristine, { recursive: true });
});

afterAll(() => scene[Symbol.asyncDispose]());

const at = (name: string) => scene.pathOf(name);
const change = (index: number) => `L0/${digits(index)}-${digits(index)}.${key.fingerprint}`;
const digits = (index: number) => String(index).padStart(16, "0");
const full = () => scene.objects().find((name) => name.startsWith("full/")) ?? "";
const newest = () =>
  Number(
    scene
      .objects()
      .findLast((name) => name.startsWith("L0/"))
      ?.slice(3, 19),
  );

interface Case {
  readonly what: string;
  tamper(): void | Promise<void>;
  /** `kind key` of each problem that must be among those that verify names. */
  readonly named: () => readonly string[];
  /** What restore does: refuses, restores an older state and says so, or is not concerned. */
  readonly restore: "refused" | "older, and says so" | "older, and the cursor warns" | "whole";
}

const cases: readonly Case[] = [
  {
    what: "an object is renamed to an index that is free",
    tamper: () => renameSync(at(change(4)), at(change(90))),
    named: () => [`reordered app/${change(90)}`],
    restore: "older, and says so",
  },
  {
    what: "two objects are swapped",
    tamper() {
      renameSync(at(change(3)), at("x"));
      renameSync(at(change(4)), at(change(3)));
      renameSync(at("x"), at(change(4)));
    },
    named: () => [`reordered app/${change(3)}`, `reordered app/${change(4)}`],
    restore: "older, and says so",
  },
  {
    what: "an object of another database under the same key takes its place",
    async tamper() {
      const builder = otherDatabase("other", key);
      await storeStates(builder, 4);
      copyFileSync(scene.directory.file("others", "other", change(4)), at(change(4)));
    },
    named: () => [`foreign app/${change(4)}`],
    restore: "older, and says so",
  },
  {
    what: "an object is replaced by the one that had its name in a former life of the replica",
    tamper: () => copyFileSync(join(formerLife, "app", change(3)), at(change(3))),
    named: () => [`missing app/${change(3)}`],
    restore: "older, and says so",
  },
  {
    what: "an object is cut short where a chunk ends",
    async tamper() {
      const bytes = readFileSync(at(full()));
      const reader = await openObject(
        { sizeBytes: bytes.length, read: async (start, end) => bytes.subarray(start, end) },
        {
          name: { kind: "full", index: Number(full().slice(5, 21)), seal: key.fingerprint },
          database: "app",
          subject: full(),
          keys: keyRing([deriveSealKey(parseKeyText(key.text))]),
          acceptPlaintext: false,
        },
      );
      const chunk = (await reader.indexChunk(0)).dataChunks[0];
      writeFileSync(at(full()), bytes.subarray(0, (chunk?.offset ?? 0) + (chunk?.storedBytes ?? 0)));
    },
    named: () => [`corrupt app/${full()}`],
    restore: "refused",
  },
  {
    what: "an object's header is edited, and every checksum made to fit",
    tamper: () => rewriteHeader(change(4), (header) => ({ ...header, first: 5 }), change(5)),
    named: () => [`corrupt app/${change(5)}`],
    restore: "older, and says so",
  },
  {
    what: "an object's session is edited, and every checksum made to fit",
    tamper: () => rewriteHeader(change(4), (header) => ({ ...header, session: "0".repeat(32) })),
    named: () => [`corrupt app/${change(4)}`],
    restore: "older, and says so",
  },
  {
    what: "an object's cipher is stripped, and every checksum made to fit",
    tamper: () => rewriteHeader(change(4), (header) => ({ ...header, cipher: "none", key_fingerprint: null })),
    named: () => [`reordered app/${change(4)}`],
    restore: "older, and says so",
  },
  {
    what: "an object's cipher is stripped, and it is named as one in plaintext",
    tamper() {
      const plain = change(4).replace(key.fingerprint, "p");
      rewriteHeader(change(4), (header) => ({ ...header, cipher: "none", key_fingerprint: null }), plain);
      rmSync(at(change(4)));
    },
    named: () => [`unreadable-key app/${change(4).replace(key.fingerprint, "p")}`],
    restore: "older, and says so",
  },
  {
    what: "a forged chain in plaintext takes the place of the sealed one",
    async tamper() {
      rmSync(join(scene.replica, "app"), { recursive: true });
      await storeStates(otherDatabase("app", null, scene.replica), 9);
    },
    named: () => [`unreadable-key app/full/${digits(1)}.p`],
    restore: "refused",
  },
  {
    what: "a forged full backup in plaintext stands beside the sealed chain",
    async tamper() {
      const builder = otherDatabase("app", null, scene.replica);
      await storeStates(builder, 12);
    },
    named: () => [`unreadable-key app/full/${digits(1)}.p`],
    restore: "whole",
  },
  {
    what: "CURRENT is put back to what it was in a former life",
    tamper: () => copyFileSync(join(formerLife, "app", "CURRENT"), at("CURRENT")),
    named: () => ["stale-current app/CURRENT"],
    restore: "whole",
  },
  {
    what: "CURRENT is forged in plaintext",
    async tamper() {
      const builder = otherDatabase("app", null, scene.directory.file("forged"));
      await storeStates(builder, 2);
      await builder.storeCurrent(1);
      copyFileSync(scene.directory.file("forged", "app", "CURRENT"), at("CURRENT"));
    },
    named: () => ["unreadable-key app/CURRENT"],
    restore: "whole",
  },
  {
    what: "the newest objects are deleted, and CURRENT is there",
    tamper() {
      for (const name of scene.objects().slice(-2)) rmSync(at(name));
    },
    named: () => ["missing null"],
    restore: "older, and the cursor warns",
  },
  {
    what: "everything is put back to an older state of itself",
    tamper() {
      rmSync(scene.replica, { recursive: true });
      cpSync(earlier, scene.replica, { recursive: true });
    },
    named: () => ["missing null"],
    restore: "older, and the cursor warns",
  },
];

for (const { what, tamper, named, restore } of cases) {
  test(`${what}: verify names it, restore ${restore === "whole" ? "is not misled" : restore}`, async () => {
    rmSync(scene.replica, { recursive: true, force: true });
    cpSync(pristine, scene.replica, { recursive: true });
    expect(await scene.verify()).toMatchObject({ status: 0, kinds: [] });
    await tamper();
    const { status, kinds, problems } = await scene.verify();
    expect(status).toBe(1);
    for (const problem of problems)
      expect(problem).toMatchObject({
        message: expect.stringMatching(/.{20}/),
        next_step: expect.stringMatching(/.{20}/),
      });
    expect(kinds).toEqual(expect.arrayContaining([...named()]));
    const output = scene.directory.file("restored.db");
    rmSync(output, { force: true });
    const result = await scene.run("restore", "--db", "app", "--output", output);
    const total = scene.writer.acks.at(-1)?.n ?? 0;
    if (restore === "refused") {
      expect([result.status, existsSync(output)]).toEqual([1, false]);
      expect(result.stderr).toMatch(/cannot restore: [^\n]*app\/full\/[^\n]+\n {2}hint: /);
      return;
    }
    expect(result.status).toBe(0);
    const { lastN } = gradeRestore({ path: output, acks: scene.writer.acks });
    const warning =
      /^WARNING: app: the newest backups (.+): this host has stored states? .+; restorable until .+\n {2}hint: /m;
    if (restore === "whole") {
      expect(lastN).toBe(total);
      expect(result.stderr).not.toMatch(warning);
      return;
    }
    expect(lastN).toBeLessThan(total);
    if (restore === "older, and says so") expect(result.stderr).toMatch(/^note: .+ is missing or damaged$/m);
    expect(warning.exec(result.stderr)?.[1]).toBe(
      restore === "older, and says so" ? "cannot be restored" : "are missing",
    );
  });
}

test("what the cursor remembers and nobody has any more is in restore --json, with a target time too, and an empty replica is no first boot", async () => {
  rmSync(scene.replica, { recursive: true, force: true });
  cpSync(pristine, scene.replica, { recursive: true });
  const last = newest();
  const json = async (...args: readonly string[]) => {
    const output = scene.directory.file("restored.db");
    rmSync(output, { force: true });
    const { status, stdout, stderr } = await scene.run("restore", "--db", "app", "--output", output, "--json", ...args);
    return { status, stderr, ...JSON.parse(stdout) };
  };
  const whole = await json();
  expect(whole).toMatchObject({ status: 0, stderr: "", restore_point: { index: last }, missing: null });
  for (const index of [last, last - 1]) rmSync(at(change(index)));
  const cut = await json();
  const missing = {
    first: last - 1,
    last,
    last_time: whole.restore_point.time,
    restorable_until: cut.restore_point.time,
    message: expect.stringContaining(`this host has stored states ${last - 1} to ${last}`),
  };
  expect(cut).toMatchObject({ status: 0, stderr: expect.stringContaining("WARNING: app: "), missing });
  const earlierPoint = (await json("--timestamp", "2200-01-01")).restore_point.index;
  expect(earlierPoint).toBe(last - 2);
  const first = JSON.parse((await scene.run("list", "--db", "app", "--json")).stdout).oldest_restore_point;
  expect(await json("--timestamp", first.time)).toMatchObject({ restore_point: { index: first.index }, missing });
  rmSync(join(scene.replica, "app"), { recursive: true });
  expect(await json("--if-replica-exists")).toMatchObject({
    status: 0,
    restored: false,
    missing: { first: 1, restorable_until: null },
    stderr: expect.stringMatching(/WARNING: app: .* states 1 to \d+, .*; nothing can be restored/),
  });
});

test("on a host without the cursor, the newest objects deleted together with CURRENT go unnoticed: this is documented", async () => {
  rmSync(scene.replica, { recursive: true, force: true });
  cpSync(pristine, scene.replica, { recursive: true });
  rmSync(at(change(newest())));
  rmSync(at("CURRENT"));
  const elsewhere = scene.directory.file("elsewhere");
  mkdirSync(elsewhere, { recursive: true });
  scene.writeConfig();
  const config = join(elsewhere, "bakelite.toml");
  writeFileSync(
    config,
    readFileSync(scene.config, "utf8").replace(/path = ".*app\.db"/, `path = "${elsewhere}/app.db"`),
  );
  expect((await runBakelite("executable", ["verify", "--config", config])).status).toBe(0);
});

function otherDatabase(
  database: string,
  sealed: TestKey | null,
  folder = scene.directory.file("others"),
): ReplicaBuilder {
  return new ReplicaBuilder({
    backends: [new FileBackend({ path: folder })],
    random: seededRandom(3),
    database,
    pageSizeBytes: 4096,
    seal: sealed === null ? null : deriveSealKey(parseKeyText(sealed.text)),
  });
}

async function storeStates(builder: ReplicaBuilder, newestIndex: number): Promise<void> {
  builder.beginChain(Array.from({ length: 4 }, () => builder.randomImage()));
  await builder.storeFull(1);
  for (let index = 2; index <= newestIndex; index++) {
    builder.commitRandom(2);
    await builder.storeChangeSet(index);
  }
}

/** Changes the header's JSON as somebody without the key can: footer and checksums fit afterwards, seals do not. */
function rewriteHeader(
  name: string,
  edit: (header: Record<string, unknown>) => Record<string, unknown>,
  newName = name,
): void {
  const bytes = readFileSync(at(name));
  const { headerBytes } = parseHeader(bytes);
  const json = Buffer.from(JSON.stringify(edit(JSON.parse(bytes.toString("utf8", HEADER_PREFIX_BYTES, headerBytes)))));
  const header = Buffer.concat([bytes.subarray(0, 8), Buffer.alloc(4), json]);
  header.writeUInt32BE(json.length, 8);
  const footer = parseFooter(bytes, bytes.length, name);
  const rest = bytes.subarray(headerBytes, bytes.length - FOOTER_BYTES);
  const trailer = bytes.subarray(footer.trailerOffset, footer.trailerOffset + footer.trailerStoredBytes);
  const hash = new Bun.CryptoHasher("sha256").update(header).update(rest);
  const newFooter = encodeFooter(
    {
      trailerOffset: header.length + rest.length - trailer.length,
      trailerStoredBytes: trailer.length,
      headerBytes: header.length,
      checksum: checksumOf(header, trailer),
    },
    hash,
  );
  writeFileSync(at(newName), Buffer.concat([header, rest, newFooter]));
}
