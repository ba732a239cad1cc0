import { describe, expect, test } from "bun:test";
import {
  chmodSync,
  mkdirSync,
  readFileSync,
  renameSync,
  statSync,
  symlinkSync,
  unlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { acquireInstanceLock } from "../../src/state/instance-lock.ts";
import { silentLogger } from "../../src/util/logger.ts";
import { eventually } from "../support/eventually.ts";
import { executablePath } from "../support/executable.ts";
import { filesBelow, SealedScene, type TestKey } from "./sealed-scene.ts";

const begun = (log: readonly { readonly message: string; readonly [field: string]: unknown }[]) =>
  log.filter(({ message }) => message === "full backup begins").map(({ reason }) => reason);
const sealsOf = (objects: readonly string[]) => [...new Set(objects.map((name) => name.split(".")[1]))];

test("a database is encrypted, its key changed, and decrypted again, and the daemon goes on each time without a full backup", async () => {
  await using scene = await SealedScene.begin(2);
  const [first, second] = [scene.makeKey(1), scene.makeKey(2)];
  await scene.backUp();
  const fulls = scene.objects().filter((name) => name.startsWith("full/")).length;
  const steps: readonly (readonly [TestKey | null, TestKey | null, string])[] = [
    [null, first, `encrypted with key ${first.fingerprint}`],
    [first, second, `changed to key ${second.fingerprint}`],
    [second, null, "decrypted"],
  ];
  for (const [from, to, words] of steps) {
    scene.key = to;
    const oldKey = from === null ? [] : ["--old-key-file", from.path];
    const count = scene.objects().length * 2;
    const preview = await scene.run("reencrypt", "--db", "app", ...oldKey, "--dry-run");
    expect([preview.status, preview.stdout]).toEqual([
      0,
      expect.stringContaining(`app: would rewrite ${count} objects`),
    ]);
    const done = await scene.run("reencrypt", "--db", "app", ...oldKey);
    expect(done).toMatchObject({ status: 0, stderr: "" });
    expect(done.stdout).toContain(`app: ${words}: ${count} of ${count} objects rewritten, `);
    for (const replica of scene.replicas) expect(sealsOf(scene.objects(replica))).toEqual([to?.fingerprint ?? "p"]);
    expect(await scene.verify()).toMatchObject({ status: 0, kinds: [], warnings: [] });
    await scene.restoreAll();
    const again = await scene.run("reencrypt", "--db", "app", ...oldKey);
    expect([again.status, again.stdout]).toEqual([
      0,
      expect.stringMatching(/^app: nothing to do: all \d+ stored objects are /),
    ]);

    const daemon = await scene.backUp(2);
    expect(begun(daemon.log)).toEqual([]);
    expect(daemon.said("continuity is proven: going on from the WAL")).toHaveLength(1);
    expect(daemon.log.filter(({ level }) => level === "warn" || level === "error")).toEqual([]);
    expect(sealsOf(scene.objects())).toEqual([to?.fingerprint ?? "p"]);
    expect(scene.objects().filter((name) => name.startsWith("full/"))).toHaveLength(fulls);
    expect(await scene.verify()).toMatchObject({ status: 0, kinds: [], warnings: [] });
    await scene.restoreAll();
  }
});

test("a daemon that was killed goes on after a reencrypt with what it had under way", async () => {
  await using scene = await SealedScene.begin();
  const daemon = await scene.start();
  await daemon.untilStatus((status) => status.state === "live" && status.full_backup !== null, { what: "live" });
  for (let round = 0; round < 3; round++) await scene.writer.burst(2);
  await daemon.kill();
  scene.key = scene.makeKey(1);
  expect((await scene.run("reencrypt")).status).toBe(0);
  const next = await scene.backUp(1);
  expect(begun(next.log)).toEqual([]);
  expect(next.log.filter(({ level }) => level === "error")).toEqual([]);
  await scene.restoreAll();
});

test("reencrypt is refused while a daemon runs, naming its PID, and changes nothing", async () => {
  await using scene = await SealedScene.begin();
  await scene.backUp();
  const daemon = await scene.start();
  await daemon.untilStatus((status) => status.state === "live", { what: "live" });
  const objects = scene.objects();
  scene.key = scene.makeKey(1);
  const { status, stderr } = await scene.run("reencrypt", "--db", "app");
  expect([status, stderr]).toEqual([
    1,
    expect.stringContaining(`a daemon is running: process ${daemon.pid} already follows`),
  ]);
  expect(stderr).toContain("systemctl stop bakelite");
  expect((await scene.run("reencrypt", "--db", "app", "--dry-run")).status).toBe(0);
  expect(scene.objects()).toEqual(objects);
});

test("while a reencrypt runs, what writes or deletes objects is refused with its PID, and what only looks is not", async () => {
  await using scene = await SealedScene.begin(2);
  await scene.backUp();
  expect((await scene.run("keep", "--label", "before")).status).toBe(0);
  const objects = scene.objects();
  const lock = await acquireInstanceLock(scene.directory.file("app.db"), silentLogger, "reencrypt");
  for (const args of [["compact"], ["prune"], ["repair"], ["keep", "--label", "now"], ["keep", "--drop", "before"]]) {
    const { status, stderr } = await scene.run(...args, "--db", "app");
    expect([args, status, stderr]).toEqual([
      args,
      1,
      expect.stringContaining(`process ${process.pid} is rewriting what is stored (\`bakelite reencrypt\`)`),
    ]);
    expect(stderr).toContain("hint: wait until it has ended, then run this again");
  }
  for (const args of [["compact", "--dry-run"], ["prune", "--dry-run"], ["repair", "--dry-run"], ["keep"], ["list"]])
    expect([args, (await scene.run(...args)).status]).toEqual([args, 0]);
  expect((await scene.run("doctor")).output).toContain(`\`bakelite reencrypt\` (PID ${process.pid}) is rewriting`);
  const second = await scene.run("reencrypt");
  expect([second.status, second.stderr]).toEqual([1, expect.stringContaining("is rewriting what is stored")]);
  expect(second.stderr).not.toContain("a daemon is running");
  const daemon = await scene.run("daemon");
  expect([daemon.status, daemon.output]).toEqual([1, expect.stringContaining("is rewriting what is stored")]);
  expect(scene.objects()).toEqual(objects);
  await lock.release();
  for (const args of [["compact"], ["prune"], ["repair"], ["keep", "--drop", "before"]])
    expect([args, (await scene.run(...args)).status]).toEqual([args, 0]);
});

/** Starts the command and stops it, until SIGCONT, at a moment at which it stores a full backup; null: it was faster. */
async function stopWhileStoring(command: readonly string[], replica: string) {
  const child = Bun.spawn([...command], { stderr: "pipe", stdout: "pipe" });
  const isStoring = () => filesBelow(replica).some((path) => path.includes("/full/.tmp-"));
  await eventually(() => isStoring() || child.exitCode !== null, { what: "a full backup to be stored", pollMs: 1 });
  child.kill("SIGSTOP");
  const stateOf = () => /^State:\s+(\S)/m.exec(readFileSync(`/proc/${child.pid}/status`, "utf8"))?.[1];
  await eventually(() => child.exitCode !== null || /[TZ]/.test(stateOf() ?? "Z"), {
    what: "the process to be stopped",
  });
  if (child.exitCode === null && isStoring()) return child;
  child.kill("SIGCONT");
  await child.exited;
  return null;
}

test("real processes: beside a reencrypt nothing is stored or deleted, and a repair that had begun before does no harm", async () => {
  await using scene = await SealedScene.begin(2);
  await scene.writer.sql("CREATE TABLE bulk AS SELECT randomblob(12000000) AS body");
  await scene.backUp(1);
  const [key, full] = [scene.makeKey(1), scene.objects().find((name) => name.startsWith("full/")) ?? ""];
  const [, second = ""] = scene.replicas;
  const command = (name: string) => {
    scene.writeConfig();
    return [executablePath(), name, "--config", scene.config];
  };

  let repair: Awaited<ReturnType<typeof stopWhileStoring>> = null;
  for (let attempt = 1; repair === null; attempt++) {
    expect(attempt).toBeLessThan(20);
    unlinkSync(scene.pathOf(full, second));
    repair = await stopWhileStoring(command("repair"), second);
  }
  scene.key = key;
  expect(await scene.run("reencrypt")).toMatchObject({ status: 0 });
  repair.kill("SIGCONT");
  // What it was storing is gone with what interrupted uploads leave, and what it would store next is not there any more.
  expect([await repair.exited, await repair.stdout.text()]).toEqual([
    1,
    expect.stringContaining("nothing was written"),
  ]);
  expect(sealsOf(scene.objects(second))).toEqual([key.fingerprint]);

  let reencrypt: Awaited<ReturnType<typeof stopWhileStoring>> = null;
  for (let attempt = 1; reencrypt === null; attempt++) {
    expect(attempt).toBeLessThan(20);
    scene.key = scene.makeKey(attempt + 1);
    const oldKey = ["--old-key-file", scene.directory.file(`key-${attempt}.txt`)];
    reencrypt = await stopWhileStoring([...command("reencrypt"), ...oldKey], scene.replica);
  }
  const before = scene.replicas.map((replica) => filesBelow(replica));
  const refusal = `process ${reencrypt.pid} is rewriting what is stored`;
  for (const args of [["compact"], ["prune"], ["repair"], ["keep", "--label", "now"], ["reencrypt"], ["daemon"]])
    expect([args, await scene.run(...args)]).toEqual([
      args,
      expect.objectContaining({ status: 1, output: expect.stringContaining(refusal) }),
    ]);
  expect(scene.replicas.map((replica) => filesBelow(replica))).toEqual(before);
  reencrypt.kill("SIGCONT");
  expect([await reencrypt.exited, await reencrypt.stderr.text()]).toEqual([0, ""]);
  // The full backup that the first repair did not finish.
  expect((await scene.run("repair")).stdout).toContain("1 missing added");
  for (const replica of scene.replicas) expect(sealsOf(scene.objects(replica))).toEqual([scene.key?.fingerprint]);
  expect(await scene.verify()).toMatchObject({ status: 0, kinds: [], warnings: [] });
  await scene.restoreAll();
});

test("where the database is not on this host, reencrypt wants to be told that no daemon follows it", async () => {
  await using scene = await SealedScene.begin();
  await scene.backUp();
  await scene.writer.stop();
  mkdirSync(scene.directory.file("elsewhere"));
  for (const name of ["app.db", ".bakelite"])
    renameSync(scene.directory.file(name), scene.directory.file("elsewhere", name));
  scene.key = scene.makeKey(1);
  const { status, stderr } = await scene.run("reencrypt", "--db", "app");
  expect([status, stderr]).toEqual([1, expect.stringContaining("the database is not on this host")]);
  expect(stderr).toContain("add --without-database");
  expect((await scene.run("reencrypt", "--db", "app", "--without-database")).status).toBe(0);
  await scene.restoreAll();
});

test("without the old key reencrypt changes nothing and says which it is", async () => {
  await using scene = await SealedScene.begin();
  const [first, second] = [scene.makeKey(1), scene.makeKey(2)];
  scene.key = first;
  await scene.backUp();
  const objects = scene.objects();
  scene.key = second;
  const wrong = await scene.run("reencrypt");
  expect([wrong.status, wrong.stderr]).toEqual([
    1,
    expect.stringContaining(`the replica was written with key ${first.fingerprint}, this is ${second.fingerprint}`),
  ]);
  expect(wrong.stderr).toContain("--old-key-file");
  const document = JSON.parse((await scene.run("reencrypt", "--json")).stdout);
  expect(document).toMatchObject({ outcome: "problems", databases: [{ name: "app", error: { code: "key-wrong" } }] });
  const missing = await scene.run("reencrypt", "--old-key-file", scene.directory.file("absent"));
  expect([missing.status, missing.stderr]).toEqual([1, expect.stringContaining("check the path in --old-key-file")]);
  expect(scene.objects()).toEqual(objects);
});

test("reencrypt --json tells what was done, and with an object that cannot be read which one, and exits 1", async () => {
  await using scene = await SealedScene.begin();
  const key = scene.makeKey(1);
  await scene.backUp();
  const objects = scene.objects();
  const victim = objects.at(-1) ?? "";
  writeFileSync(scene.pathOf(victim), "not an object");
  scene.key = key;
  const { status, stdout } = await scene.run("reencrypt", "--db", "app", "--json");
  expect(status).toBe(1);
  expect(JSON.parse(stdout)).toMatchObject({
    dry_run: false,
    outcome: "problems",
    databases: [
      {
        name: "app",
        outcome: "problems",
        error: null,
        key_fingerprint: key.fingerprint,
        objects: objects.length,
        from: [{ key_fingerprint: null, objects: objects.length }],
        documents: 1,
        rewritten: objects.length - 1,
        deleted: objects.length - 1,
        problem_count: 1,
        problems: [{ kind: "corrupt", key: `app/${victim}` }],
      },
    ],
  });
  expect(scene.objects().filter((name) => name.endsWith(".p"))).toEqual([victim]);
  const docs = readFileSync(join(import.meta.dir, "../../docs/json.md"), "utf8")
    .split("\n## reencrypt\n")[1]
    ?.split("\n## ")[0];
  const [database] = JSON.parse(stdout).databases;
  for (const field of [...Object.keys(database), ...Object.keys(database.problems[0])])
    expect(docs).toContain(`"${field}": `);
});

test("what a destination does not let go is told, with what can still read it, and exits 1", async () => {
  await using scene = await SealedScene.begin();
  await scene.backUp();
  const objects = scene.objects();
  scene.key = scene.makeKey(1);
  // As root, permissions keep nobody from deleting; a file that is immutable does.
  const immutable = objects.filter((name) => name.startsWith("full/")).map((name) => scene.pathOf(name));
  const frozen = Bun.spawnSync(["chattr", "+i", ...immutable]);
  if (frozen.exitCode !== 0) {
    // Not as root, or on a file system without that attribute: the same case runs in test/replica/reencrypt.test.ts.
    expect(frozen.stderr.toString()).toMatch(/Operation not (?:permitted|supported)|Inappropriate ioctl/);
    return;
  }
  try {
    const { status, stdout } = await scene.run("reencrypt", "--db", "app");
    expect([status, stdout]).toEqual([
      1,
      expect.stringMatching(/not-deleted .* old objects \(plaintext\) could not be deleted/),
    ]);
  } finally {
    Bun.spawnSync(["chattr", "-i", ...immutable]);
  }
  expect((await scene.run("reencrypt", "--db", "app")).status).toBe(0);
  expect(sealsOf(scene.objects())).toEqual([scene.key.fingerprint]);
  await scene.restoreAll();
});

test("run as root, reencrypt leaves objects to the owner of the backup directory", async () => {
  await using scene = await SealedScene.begin();
  await scene.backUp();
  const chowned = Bun.spawnSync(["chown", "-R", "65534:65534", scene.replica]);
  // Whoever is not root owns all that he makes, and cannot give it away.
  if (process.geteuid?.() === 0) expect(chowned.exitCode).toBe(0);
  scene.key = scene.makeKey(1);
  expect((await scene.run("reencrypt", "--db", "app")).status).toBe(0);
  const owner = statSync(scene.replica).uid;
  const owners = filesBelow(scene.replica).map((path) => statSync(path).uid);
  expect([owners.length > 4, new Set(owners)]).toEqual([true, new Set([owner])]);
});

test("a destination whose disk is not mounted does not count as done", async () => {
  await using scene = await SealedScene.begin(2);
  await scene.backUp();
  renameSync(scene.replica, scene.directory.file("unmounted"));
  scene.key = scene.makeKey(1);
  const { status, stdout } = await scene.run("reencrypt", "--db", "app");
  expect([status, stdout]).toEqual([1, expect.stringMatching(/missing .*replica-1\/app\/: nothing is stored here/)]);
  renameSync(scene.directory.file("unmounted"), scene.replica);
  expect((await scene.run("reencrypt", "--db", "app")).status).toBe(0);
  expect(await scene.verify()).toMatchObject({ status: 0, kinds: [], warnings: [] });
});

describe("switching encryption on", () => {
  for (const acceptPlaintext of [false, true]) {
    test(`makes a sealed full backup at once, and reencrypt does the rest (accept_plaintext = ${acceptPlaintext})`, async () => {
      await using scene = await SealedScene.begin();
      await scene.backUp();
      const plain = scene.objects();
      const key = scene.makeKey(1);
      scene.key = key;
      scene.acceptPlaintext = acceptPlaintext;
      scene.writeConfig();
      const daemon = await scene.backUp(2);
      expect(begun(daemon.log)).toEqual(["encryption changed"]);
      expect(scene.objects().filter((name) => name.endsWith(".p"))).toEqual([...plain]);
      expect(scene.objects().filter((name) => name.startsWith("full/") && name.endsWith(key.fingerprint))).toHaveLength(
        1,
      );
      await scene.restoreAll();
      expect((await scene.run("reencrypt")).status).toBe(0);
      expect(sealsOf(scene.objects())).toEqual([key.fingerprint]);
      scene.acceptPlaintext = false;
      expect(await scene.verify()).toMatchObject({ status: 0, kinds: [], warnings: [] });
      await scene.restoreAll();
    });
  }
});

test("a daemon without the key refuses to go on in plaintext, and stores nothing", async () => {
  await using scene = await SealedScene.begin();
  scene.key = scene.makeKey(1);
  await scene.backUp();
  const objects = scene.objects();
  scene.key = null;
  await scene.writer.burst(2);
  const daemon = await scene.start();
  const line = await daemon.untilSaid("replication is interrupted; trying again");
  expect(line["error"]).toMatch(/the replica is encrypted and no key is configured/);
  expect(line["hint"]).toMatch(/\[defaults\.encryption\] key_file/);
  await daemon.kill();
  expect(scene.objects()).toEqual(objects);
});

test("every reader opens sealed objects, and with a wrong or missing key says which one is wanted", async () => {
  await using scene = await SealedScene.begin();
  const [key, other] = [scene.makeKey(1), scene.makeKey(2)];
  scene.key = key;
  await scene.backUp();
  expect((await scene.run("list", "--db", "app", "--verbose")).stdout).toContain(key.fingerprint);
  await scene.restoreAll();
  expect(await scene.verify()).toMatchObject({ status: 0, kinds: [], warnings: [] });
  expect((await scene.run("status")).status).toBe(0);
  const restore = () => scene.run("restore", "--db", "app", "--output", scene.directory.file("never.db"));

  scene.key = other;
  const wrong = await restore();
  expect([wrong.status, wrong.stderr]).toEqual([1, expect.stringContaining(key.fingerprint)]);
  expect(wrong.stderr).toContain(other.fingerprint);
  const wrongVerify = await scene.verify();
  expect(new Set(wrongVerify.problems.map(({ kind }) => kind))).toContain("unreadable-key");
  expect(wrongVerify.problems.map(({ message }) => message)).toContain(
    `the replica was written with key ${key.fingerprint}, this is ${other.fingerprint}`,
  );

  scene.key = null;
  const missing = await restore();
  expect([missing.status, missing.stderr]).toEqual([1, expect.stringContaining(key.fingerprint)]);
  expect(missing.stderr).toMatch(/key_file/);
  const missingVerify = await scene.verify();
  expect(missingVerify.problems.map(({ message }) => message)).toContain(
    `the replica was written with key ${key.fingerprint}, and no key is configured`,
  );
});

test("every command that opens objects names the key that is wanted, and the one they have or the setting", async () => {
  await using scene = await SealedScene.begin(2);
  const [key, other] = [scene.makeKey(1), scene.makeKey(2)];
  scene.key = key;
  await scene.backUp();
  const objects = scene.objects();
  const commands = [
    ["restore", "--output", scene.directory.file("never.db")],
    ["list"],
    ["list", "--verbose"],
    ["verify"],
    ["compact"],
    ["prune"],
    ["keep", "--label", "x"],
    ["repair"],
    ["reencrypt", "--dry-run"],
    ["reencrypt"],
    ["doctor"],
  ];
  const failed: string[] = [];
  for (const configured of [other, null])
    for (const args of commands) {
      scene.key = configured;
      const { status, output } = await scene.run(...args, "--db", "app");
      // Without any key, `reencrypt` asks for the old one as an option.
      const setting = args[0] === "reencrypt" ? "--old-key-file" : "key_file";
      const wanted = [key.fingerprint, configured === null ? setting : other.fingerprint];
      const isOfAnother = args[0] !== "restore" && output.includes("cannot restore");
      if (status === 0 || isOfAnother || !wanted.every((text) => output.includes(text)))
        failed.push(`${args[0]} with ${configured?.fingerprint ?? "no key"}: ${status} ${output}`);
    }
  expect(failed).toEqual([]);
  expect(scene.objects()).toEqual(objects);
});

test("a key file that others can read is noted once by readers and the daemon, and not by status", async () => {
  await using scene = await SealedScene.begin();
  const key = scene.makeKey(1);
  scene.key = key;
  chmodSync(key.path, 0o644);
  const note = `every user of this host can read the encryption key (mode 0644): run \`chmod 600 ${key.path}\``;
  const daemon = await scene.backUp();
  expect(daemon.log.filter(({ message }) => message.startsWith(note))).toMatchObject([{ level: "warn" }]);
  const restored = scene.directory.file("restored.db");
  for (const args of [
    ["list"],
    ["list", "--json"],
    ["verify"],
    ["usage"],
    ["restore", "--output", restored],
    ["compact"],
    ["prune"],
    ["repair"],
    ["keep", "--label", "before"],
    ["keep", "--drop", "before"],
    ["reencrypt"],
  ]) {
    const { status, stderr } = await scene.run(...args, "--db", "app");
    expect([args, status, stderr.split(note).length - 1]).toEqual([args, 0, 1]);
  }
  expect((await scene.run("status")).output).not.toContain("chmod");
  chmodSync(key.path, 0o600);
  expect((await scene.run("list")).stderr).toBe("");
});

test("no key material is in any output, log, state file or stored object", async () => {
  await using scene = await SealedScene.begin();
  // Bytes whose base64 and base64url differ, and whose hexadecimal has letters.
  const bytes = [0x9d, 0xfb];
  const [first, second] = [scene.makeKey(0x9d), scene.makeKey(0xfb)];
  scene.key = first;
  await scene.backUp();
  const opening = [["list"], ["verify", "--deep"], ["compact"], ["prune"], ["repair"], ["keep", "--label", "x"]];
  for (const args of [...opening, ["status"], ["usage"], ["doctor"], ["config"], ["config", "--json"]])
    await scene.run(...args, "--verbose");
  scene.key = second;
  const restore = ["restore", "--db", "app", "--output", scene.directory.file("x.db")];
  for (const args of [...opening, restore, ["reencrypt"], ["doctor", "--json"]]) await scene.run(...args, "--verbose");
  await scene.run("reencrypt", "--old-key-file", first.path, "--verbose");
  symlinkSync(first.path, scene.directory.file("link"));
  await scene.run("reencrypt", "--old-key-file", scene.directory.file("link"), "--json", "--verbose");
  for (const mistyped of [
    first.text.slice(0, -2),
    `${first.text}0`,
    first.text.replace("V1", "V3"),
    first.text.slice(16),
  ]) {
    writeFileSync(scene.directory.file("odd"), mistyped);
    await scene.run("reencrypt", "--old-key-file", scene.directory.file("odd"), "--verbose");
  }
  // The last one of them, as the configured key.
  scene.key = { ...first, path: scene.directory.file("odd") };
  for (const args of [restore, ["repair"], ["doctor"], ["config"]])
    expect((await scene.run(...args, "--verbose")).output).not.toBe("");
  // Compared in lower case, so that each form stands for its upper case too.
  const secrets = [first, second].flatMap(({ text }, i) => {
    const raw = Buffer.alloc(32, bytes[i]);
    const forms = (["hex", "base64", "base64url", "latin1"] as const).map((form) => raw.toString(form));
    const lists = [",", ", "].map((separator) => raw.join(separator));
    return [text.slice(16), text.slice(40), ...forms, ...lists].map((form) => form.slice(0, 20).toLowerCase());
  });
  const found = (text: string) => secrets.filter((secret) => text.toLowerCase().includes(secret));
  expect([found(scene.printed), found(scene.logs)]).toEqual([[], []]);
  for (const path of filesBelow(scene.directory.path)) {
    if (/key-\d+\.txt$|odd$|link$/.test(path)) continue;
    expect([path, found(readFileSync(path, "latin1"))]).toEqual([path, []]);
  }
  // That the search finds what it is for.
  expect(found(readFileSync(first.path, "latin1"))).toHaveLength(2);
  expect(scene.printed.length).toBeGreaterThan(2000);
  expect(scene.logs.length).toBeGreaterThan(1000);
});

test("Ctrl-C ends it with 130, leaves nothing half written, and the next run finishes", async () => {
  await using scene = await SealedScene.begin();
  await scene.writer.sql("CREATE TABLE bulk AS SELECT randomblob(64000000) AS body");
  await scene.backUp();
  scene.key = scene.makeKey(1);
  scene.writeConfig();
  const child = Bun.spawn([executablePath(), "reencrypt", "--config", scene.config], {
    stderr: "pipe",
    stdout: "pipe",
  });
  const isUnderWay = () => filesBelow(scene.replica).some((path) => path.includes("/full/.tmp-"));
  await eventually(isUnderWay, { what: "the full backup to be under way", pollMs: 1 });
  child.kill("SIGINT");
  const [stderr, status] = await Promise.all([child.stderr.text(), child.exited]);
  expect([status, stderr]).toEqual([
    130,
    expect.stringContaining("nothing is lost, and what was rewritten stays; run the same command again"),
  ]);
  expect(filesBelow(scene.replica).filter((path) => path.includes(".tmp-"))).toEqual([]);
  expect(sealsOf(scene.objects().filter((name) => name.startsWith("full/")))).toEqual(["p"]);
  expect(await scene.run("reencrypt")).toMatchObject({ status: 0, stderr: "" });
  expect(await scene.verify()).toMatchObject({ status: 0, kinds: [], warnings: [] });
});
