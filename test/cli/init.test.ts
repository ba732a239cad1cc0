import { Database } from "bun:sqlite";
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { dirname } from "node:path";
import { parseService } from "../../src/setup/doctor-unit.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";
import { expectRefused, type Outcome, run } from "./wrong-runs.ts";

const isRoot = process.geteuid?.() === 0;
/** Debian, and whatever else has base-passwd, knows these users; no file of theirs is touched. */
const USER = "daemon";
const mode = (path: string) => (statSync(path).mode & 0o7777).toString(8);

// Every run is one of the compiled executable.
let directory: TemporaryDirectory;
let config: string;
let database: string;
const file = (...names: readonly string[]) => directory.file(...names);

beforeEach(async () => {
  directory = await temporaryDirectory("init");
  // The service's user must be able to come by; the test runner's folder is private.
  chmodSync(directory.path, 0o755);
  if (isRoot) chmodSync(dirname(directory.path), statSync(dirname(directory.path)).mode | 0o111);
  config = file("etc", "bakelite.toml");
  database = file("app", "shop.sqlite");
  mkdirSync(file("app"));
  makeDatabase(database);
});

afterEach(() => directory[Symbol.asyncDispose]());

function makeDatabase(path: string): void {
  using db = new Database(path, { create: true });
  db.run("CREATE TABLE t (x)");
}

function init(argv: readonly string[], env: Readonly<Record<string, string>> = {}): Promise<Outcome> {
  return run(["init", "--yes", "--config", config, ...argv], { env: { SYSTEMD_UNIT_PATH: file("units"), ...env } });
}

const complete = () => ["--db-path", database, "--backup-dir", file("backups")];

/** Every file below the directory, with its content. */
function snapshot(): Record<string, string> {
  const entries = readdirSync(directory.path, { recursive: true, withFileTypes: true });
  return Object.fromEntries(
    entries
      .filter((entry) => entry.isFile())
      .map(({ parentPath, name }) => [`${parentPath}/${name}`, readFileSync(`${parentPath}/${name}`, "latin1")]),
  );
}

describe("with a database's path", () => {
  test("configuration, key, backup directory and WAL mode are there at the end, and doctor has looked at them", async () => {
    const outcome = await init([...complete(), "--encrypt"]);
    expect(outcome).toMatchObject({ code: 0 });
    expect(outcome.stdout).toContain(`done: write ${config}`);
    expect(outcome.stdout).toContain("done: put");
    expect(outcome.stdout).toContain("Keep a copy of");
    expect(outcome.stdout).toMatch(/\d+ passed\n/);
    expect([mode(config), mode(file("etc", "key.txt")), mode(file("backups"))]).toEqual(["644", "600", "700"]);
    const doctor = await run(["doctor", "--json", "--config", config], { env: { SYSTEMD_UNIT_PATH: file("units") } });
    expect(JSON.parse(doctor.stdout)).toMatchObject({ fail_count: 0, databases: [{ name: "shop", path: database }] });
  });

  test("a second run changes nothing, and another one is refused without --force", async () => {
    await init([...complete(), "--encrypt"]);
    const before = snapshot();
    const again = await init([...complete(), "--encrypt"]);
    expect(again).toMatchObject({ code: 1, stdout: "" });
    expect(again.stderr).toContain("there is a configuration already");
    expect(again.stderr).toContain("--force");
    const forced = await init([...complete(), "--encrypt", "--force"]);
    expect(forced.code).toBe(0);
    expect(snapshot()).toEqual(before);
  });

  test("--force keeps the configuration that it replaces, and the key", async () => {
    await init([...complete(), "--encrypt"]);
    const key = readFileSync(file("etc", "key.txt"), "utf8");
    writeFileSync(config, "# the placeholder of a package\n");
    for (const [name, kept] of [
      ["one", ".old"],
      ["two", ".old.1"],
    ] as const) {
      const outcome = await init([...complete(), "--encrypt", "--force", "--db-name", name]);
      expect(outcome.stdout).toContain(`keep the old one as ${config}${kept}`);
    }
    expect(readFileSync(`${config}.old`, "utf8")).toBe("# the placeholder of a package\n");
    expect(readFileSync(`${config}.old.1`, "utf8")).toContain('name = "one"');
    expect(readFileSync(file("etc", "key.txt"), "utf8")).toBe(key);
  });

  test("a key file that holds no key is neither used nor replaced", async () => {
    mkdirSync(file("etc"));
    writeFileSync(file("etc", "key.txt"), "something else\n");
    const before = snapshot();
    const outcome = await init([...complete(), "--encrypt"]);
    expect(outcome).toMatchObject({ code: 1, stdout: "" });
    expect(outcome.stderr).toContain("not a bakelite key");
    expect(snapshot()).toEqual(before);
  });

  test("--key-file must be there, unless --encrypt may make it", async () => {
    const keyFile = file("keys", "mine.txt");
    mkdirSync(file("keys"));
    const missing = await init([...complete(), "--key-file", keyFile]);
    expect(missing).toMatchObject({ code: 1 });
    expect(missing.stderr).toContain("does not exist");
    expect(existsSync(config)).toBe(false);
    expect(await init([...complete(), "--key-file", keyFile, "--encrypt"])).toMatchObject({ code: 0 });
    expect(readFileSync(config, "utf8")).toContain(`key_file = "${keyFile}"`);
    expect(mode(keyFile)).toBe("600");
  });

  test("what fails halfway takes back what was done before", async () => {
    const before = snapshot();
    // The directory of the backups cannot be made below a file.
    const outcome = await init(["--db-path", database, "--backup-dir", `${database}/backups`, "--encrypt"]);
    expect(outcome.code).toBe(1);
    expect(snapshot()).toEqual(before);
    expect(existsSync(dirname(config))).toBe(false);
  });

  test("a database in use is left in its mode, with what to do, and the rest is set up", async () => {
    using busy = new Database(database);
    busy.run("BEGIN EXCLUSIVE");
    const outcome = await init(complete());
    expect(outcome.code).toBe(1);
    expect(outcome.stderr).toContain("cannot put the database into WAL mode while it is in use");
    expect(outcome.stderr).toContain("PRAGMA journal_mode=WAL");
    expect(existsSync(config)).toBe(true);
    busy.run("ROLLBACK");
  });

  test("a database that is not there yet is waited for, and what is none is refused", async () => {
    const later = await init(["--db-path", file("app", "later.db"), "--backup-dir", file("backups")]);
    expect(later.code).toBe(0);
    expect(later.stdout).toContain("the daemon waits for it");
    writeFileSync(
      file("app", "text.db"),
      "just text, and long enough to have been a header of SQLite's, were it one, of a database".repeat(3),
    );
    const outcome = await init(["--db-path", file("app", "text.db"), "--force"]);
    expect(outcome).toMatchObject({ code: 2, stdout: "" });
    expect(outcome.stderr).toContain("not a SQLite database");
  });

  test("--json says all of it in one document", async () => {
    const outcome = await init([...complete(), "--encrypt", "--json"]);
    expect(JSON.parse(outcome.stdout)).toMatchObject({
      config,
      key_file: file("etc", "key.txt"),
      steps: expect.arrayContaining([expect.stringContaining("write ")]),
      notes: [],
      failures: [],
      to_edit: [],
      doctor: "warn",
    });
  });
});

describe("with a recipe alone", () => {
  test.each(["local", "s3", "s3-local", "encrypted-worm", "multi-db", "sftp"])(
    "%s gives a valid starter configuration",
    async (recipe) => {
      const outcome = await init(["--recipe", recipe]);
      expect(outcome).toMatchObject({ code: 0 });
      expect(outcome.stdout).toContain(`Now edit ${config}`);
      expect(await run(["config", "--config", config])).toMatchObject({ code: 0 });
    },
  );

  test("a recipe from a file is used, and one that is broken is refused with its line", async () => {
    writeFileSync(
      file("mine.recipe"),
      'title = "mine"\n[[question]]\nname = "backup_dir"\nask = "Where?"\nexample = "/b"\n',
    );
    writeFileSync(
      file("mine.toml"),
      '#@ each database\n[[database]]\nname = "{{db_name}}"\npath = "{{db_path}}"\nbackends = [{ type = "file", path = "{{backup_dir}}" }]\n#@ end\n',
    );
    const outcome = await init(["--recipe-file", file("mine.recipe")]);
    expect(outcome.code).toBe(0);
    expect(readFileSync(config, "utf8")).toContain('path = "/b"');
    writeFileSync(file("mine.recipe"), "title = \n");
    const broken = await init(["--recipe-file", file("mine.recipe"), "--force"]);
    expect(broken.code).toBe(2);
    expect(broken.stderr).toContain(`${file("mine.recipe")}:1:`);
  });

  test("a flag that no question takes is refused, with what would work", async () => {
    expect(await init(["--recipe", "s3", "--db-path", database])).toMatchObject({ code: 2, stdout: "" });
    expect(await init(["--recipe", "s3", "--service-user", USER])).toMatchObject({ code: 2, stdout: "" });
    expectRefused(await init(["--recipe", "s4"]), { code: 2, says: "did you mean `s3`" });
    expectRefused(await init([]), { code: 2, says: "needs to know what to set up" });
    expectRefused(await init(["--backup-dir", "/b", "--enable"]), { code: 2, says: "only goes with" });
  });
});

test("without a terminal and without --yes it says how to do it, at once", async () => {
  const outcome = await run(["init", "--config", config]);
  expectRefused(outcome, { code: 2, says: "there is no terminal" });
  expect(outcome.stderr).toContain("--yes");
});

describe.skipIf(!isRoot)("for a service's user (as root)", () => {
  const units = () => file("units");
  const dropIns = () =>
    ["bakelite.service.d", "bakelite-.service.d"].map((folder) => `${units()}/${folder}/10-init.conf`);
  const owner = (path: string) => statSync(path).uid;
  const uid = Number(readFileSync("/etc/passwd", "utf8").match(new RegExp(`^${USER}:[^:]*:(\\d+):`, "m"))?.[1]);

  beforeEach(() => {
    mkdirSync(units());
    writeFileSync(
      `${units()}/bakelite.service`,
      "[Service]\nExecStart=/usr/bin/bakelite daemon\nProtectSystem=strict\n",
    );
    chownSync(file("app"), uid, uid);
    chownSync(database, uid, uid);
  });

  test("drop-in, backup directory and key are the user's", async () => {
    const outcome = await init([...complete(), "--encrypt", "--service-user", USER]);
    expect(outcome.stderr).toBe(`setting up ${config}\n`);
    expect([file("backups"), file("etc", "key.txt")].map(owner)).toEqual([uid, uid]);
    expect(owner(config)).toBe(0);
    const unit = parseService(dropIns().map((path) => ({ path, text: readFileSync(path, "utf8") })));
    expect(unit).toMatchObject({ user: USER, problems: [] });
    expect(unit.readWritePaths.map(({ path }) => path)).toContain(file("app"));
    expect(unit.readWritePaths.map(({ path }) => path)).toContain(file("backups"));
  });

  test("a key that the user cannot reach is copied to where it can, and one that it can reach is given to it", async () => {
    mkdirSync(file("secret"), { mode: 0o700 });
    await run(["keygen", "--output", file("secret", "key.txt")]);
    const text = readFileSync(file("secret", "key.txt"), "utf8");
    await init([...complete(), "--key-file", file("secret", "key.txt"), "--service-user", USER]);
    expect(readFileSync(config, "utf8")).toContain(`key_file = "${file("etc", "key.txt")}"`);
    expect(readFileSync(file("etc", "key.txt"), "utf8")).toBe(text);
    expect([owner(file("etc", "key.txt")), mode(file("etc", "key.txt"))]).toEqual([uid, "600"]);
    expect(owner(file("secret", "key.txt"))).toBe(0);

    await run(["keygen", "--output", file("near.txt")]);
    await init([...complete(), "--key-file", file("near.txt"), "--service-user", USER, "--force"]);
    expect([owner(file("near.txt")), mode(file("near.txt"))]).toEqual([uid, "600"]);
  });

  test("another key at the place for the copy is never overwritten", async () => {
    mkdirSync(file("secret"), { mode: 0o700 });
    mkdirSync(file("etc"));
    for (const path of [file("secret", "key.txt"), file("etc", "key.txt")]) await run(["keygen", "--output", path]);
    const before = snapshot();
    const outcome = await init([...complete(), "--key-file", file("secret", "key.txt"), "--service-user", USER]);
    expect(outcome).toMatchObject({ code: 1, stdout: "" });
    expect(outcome.stderr).toContain("another key is at");
    expect(snapshot()).toEqual(before);
  });

  test("for a hand-written configuration the service alone is set up, and what root left behind is given to the user", async () => {
    await init(complete());
    mkdirSync(file("app", ".bakelite"));
    writeFileSync(file("app", ".bakelite", "shop.cursor"), "x");
    mkdirSync(file("backups", "shop"));
    writeFileSync(file("backups", "shop", "CURRENT"), "x");
    symlinkSync("/etc/passwd", file("backups", "shop", "link"));
    chmodSync(config, 0o600);
    const toml = readFileSync(config, "utf8");
    const outcome = await init(["--service-user", USER]);
    expect(outcome.stdout).toContain(`give ${file("app", ".bakelite")} and all in it to ${USER}`);
    for (const path of [file("app", ".bakelite", "shop.cursor"), file("backups", "shop", "CURRENT"), file("backups")])
      expect(owner(path)).toBe(uid);
    expect(statSync("/etc/passwd").uid).toBe(0);
    expect(readFileSync(config, "utf8")).toBe(toml);
    expect(mode(config)).toBe("640");
    expect(dropIns().every((path) => existsSync(path))).toBe(true);
  });

  test("a drop-in of somebody else's is kept under another name", async () => {
    await init(complete());
    mkdirSync(`${units()}/bakelite.service.d`);
    writeFileSync(dropIns()[0] ?? "", "[Service]\nNice=5\n");
    await init(["--service-user", USER]);
    expect(readFileSync(`${dropIns()[0]}.old`, "utf8")).toBe("[Service]\nNice=5\n");
  });

  test("without systemd it says what it skipped", async () => {
    const outcome = await run(
      ["init", "--yes", "--config", config, ...complete(), "--service-user", USER, "--enable"],
      {
        env: { SYSTEMD_UNIT_PATH: file("none") },
      },
    );
    expect(outcome.stdout).toContain("note: skipped the service: there is no bakelite.service on this host");
    expect(owner(file("backups"))).toBe(uid);
  });

  test("a user or group that this host does not know is refused before anything is made", async () => {
    const before = snapshot();
    expectRefused(await init([...complete(), "--service-user", "nobody-at-all"]), { code: 2, says: "no user" });
    const args = [...complete(), "--service-user", USER, "--service-group", "no-such-group"];
    expectRefused(await init(args), { code: 2, says: "no group" });
    expect(snapshot()).toEqual(before);
  });
});
