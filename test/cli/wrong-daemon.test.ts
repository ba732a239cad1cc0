import { Database } from "bun:sqlite";
import { describe, expect, test } from "bun:test";
import { chmodSync, chownSync, existsSync, mkdirSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { statePaths } from "../../src/state/layout.ts";
import { readStatus, type StatusFile } from "../../src/state/status.ts";
import { eventually } from "../support/eventually.ts";
import { executablePath } from "../support/executable.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";
import { unprivilegedLauncher } from "./wrong-runs.ts";

interface DatabaseText {
  readonly name: string;
  /** TOML text of a path; else `<name>.db` in the directory. */
  readonly path?: string;
  readonly settings?: string;
  readonly backend?: string;
}

/** A bakelite.toml; each database has a destination of its own in the directory unless it says otherwise. */
function toml(directory: TemporaryDirectory, daemon: string, databases: readonly DatabaseText[]): string {
  const tables = databases.map(
    ({ name, path = JSON.stringify(directory.file(`${name}.db`)), settings = "", backend }) =>
      `[[database]]\nname = "${name}"\npath = ${path}\n${settings}\n[[database.backends]]\n${backend ?? `type = "file"\npath = "${directory.file(`${name}-replica`)}"\n`}`,
  );
  return `[daemon]\n${daemon}\n${tables.join("\n")}`;
}

/** The daemon as an operator starts it, and all that it printed. */
class Daemon implements AsyncDisposable {
  readonly #directory: TemporaryDirectory;
  readonly #child: Bun.Subprocess<"ignore", "pipe", "pipe">;
  readonly #ended: Promise<unknown>;
  stderr = "";
  stdout = "";

  constructor(directory: TemporaryDirectory, flags: readonly string[] = [], launcher: readonly string[] = []) {
    this.#directory = directory;
    const argv = [...launcher, executablePath(), "daemon", "--config", directory.file("bakelite.toml"), ...flags];
    const env = { PATH: process.env["PATH"] };
    this.#child = Bun.spawn(argv, { env, stdin: "ignore", stdout: "pipe", stderr: "pipe" });
    const hear = async (stream: ReadableStream<Uint8Array>, add: (text: string) => void) => {
      const decoder = new TextDecoder();
      for await (const chunk of stream) add(decoder.decode(chunk, { stream: true }));
    };
    this.#ended = Promise.all([
      hear(this.#child.stdout, (text) => (this.stdout += text)),
      hear(this.#child.stderr, (text) => (this.stderr += text)),
      this.#child.exited,
    ]);
  }

  get pid(): number {
    return this.#child.pid;
  }

  get isRunning(): boolean {
    return this.#child.exitCode === null && this.#child.signalCode === null;
  }

  get lines(): readonly string[] {
    return this.stderr.split("\n").slice(0, -1);
  }

  /** How many lines hold `text`. */
  count(text: string): number {
    return this.lines.filter((line) => line.includes(text)).length;
  }

  async untilSaid(text: string, times = 1): Promise<void> {
    await this.#until(() => this.count(text) >= times, `${JSON.stringify(text)} ${times} times`);
  }

  async untilStatus(name: string, wanted: (status: StatusFile) => boolean, what: string): Promise<StatusFile> {
    return await this.#until(async () => {
      const read = await readStatus(statePaths(this.#directory.file(`${name}.db`), name).status);
      return read.outcome === "read" && read.value.process.pid === this.pid && wanted(read.value) ? read.value : null;
    }, `${name} ${what}`);
  }

  signal(signal: NodeJS.Signals): void {
    this.#child.kill(signal);
  }

  hangUp(): void {
    this.signal("SIGHUP");
  }

  /** The exit code after SIGTERM. */
  async stop(): Promise<number | null> {
    this.signal("SIGTERM");
    await this.#ended;
    return this.#child.exitCode;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.signal("SIGKILL");
    await this.#ended;
  }

  async #until<T>(condition: () => T | false | null | Promise<T | false | null>, what: string): Promise<T> {
    const found = await eventually(async () => (await condition()) || (!this.isRunning && "ended"), {
      what,
      deadlineMs: 30_000,
      pollMs: 20,
      explain: () => this.stderr,
    });
    if (found === "ended") throw new Error(`the daemon ended while waiting for ${what}:\n${this.stderr}`);
    return found;
  }
}

function createDatabase(path: string, mode: "WAL" | "DELETE" = "WAL"): Database {
  const db = new Database(path);
  db.run("PRAGMA busy_timeout = 5000");
  db.run(`PRAGMA journal_mode = ${mode}`);
  db.run("CREATE TABLE t (x)");
  return db;
}

const isLive = ({ state, full_backup }: StatusFile) => state === "live" && full_backup !== null;
/** Everything that may move a cursor or forge a line, but the end of a line itself. */
const CONTROL = /[\p{Cc}\u2028\u2029\u202a-\u202e\u2066-\u2069]/u;

describe("logging", () => {
  const levels = ["error", "warn", "info", "debug"] as const;

  test.each(levels.flatMap((level) => (["text", "json"] as const).map((format) => [level, format] as const)))(
    "log_level %s in format %s shows that level and what is worse",
    async (level, format) => {
      await using directory = await temporaryDirectory("log");
      createDatabase(directory.file("app.db"), "DELETE").close();
      writeFileSync(
        directory.file("sick.db"),
        "this is no SQLite database, and long enough to be looked at".repeat(30),
      );
      writeFileSync(
        directory.file("bakelite.toml"),
        toml(directory, `log_level = "${level}"\nlog_format = "${format}"`, [
          { name: "app", settings: "convert_to_wal = true" },
          { name: "sick" },
        ]),
      );
      await using daemon = new Daemon(directory);
      await daemon.untilSaid("not a SQLite database");
      await daemon.untilStatus("app", isLive, "to be live");
      expect(await daemon.stop()).toBe(0);
      expect(daemon.stdout).toBe("");
      const shown = daemon.lines.map((line) => levelOf(line, format));
      expect([...new Set(shown)].toSorted()).toEqual(levels.slice(0, levels.indexOf(level) + 1).toSorted());
    },
  );

  test("--verbose shows everything, whatever the file says", async () => {
    await using directory = await temporaryDirectory("log");
    createDatabase(directory.file("app.db")).close();
    writeFileSync(directory.file("bakelite.toml"), toml(directory, 'log_level = "error"', [{ name: "app" }]));
    await using daemon = new Daemon(directory, ["--verbose"]);
    await daemon.untilStatus("app", isLive, "to be live");
    daemon.hangUp();
    await daemon.untilSaid("configuration reloaded");
    expect(await daemon.stop()).toBe(0);
    const shown = new Set(daemon.lines.map((line) => levelOf(line, "text")));
    expect(shown).toContain("debug");
    expect(shown).toContain("info");
  });

  test("what comes from outside forges no line and moves no cursor", async () => {
    for (const format of ["text", "json"] as const) {
      await using directory = await temporaryDirectory("log");
      const path = JSON.stringify(directory.file("\u001b[2J\n2026 ERROR forged=1\u009b\u202e\u007f\u0085.db"));
      const hostile: DatabaseText = { name: "app", path: path.replaceAll("\u007f", "\\u007f") };
      writeFileSync(directory.file("bakelite.toml"), toml(directory, `log_format = "${format}"`, [hostile]));
      await using daemon = new Daemon(directory);
      await daemon.untilSaid("waiting for the database");
      expect(await daemon.stop()).toBe(0);
      for (const line of daemon.lines) {
        expect(line).not.toMatch(CONTROL);
        levelOf(line, format);
      }
      expect(daemon.count("forged=1")).toBe(daemon.count("waiting for the database"));
    }
  });

  test("there is no colour in a log that goes into a file", async () => {
    await using directory = await temporaryDirectory("log");
    writeFileSync(directory.file("bakelite.toml"), toml(directory, "", [{ name: "app" }]));
    await using daemon = new Daemon(directory);
    await daemon.untilSaid("bakelite is running");
    expect(daemon.stderr).not.toContain("\u001b");
  });
});

/** Throws unless the line is one of that format. */
function levelOf(line: string, format: "text" | "json"): string {
  const level =
    format === "json"
      ? JSON.parse(line).level
      : /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (ERROR|WARN|INFO|DEBUG) /.exec(line)?.[1]?.toLowerCase();
  if (typeof level !== "string") throw new Error(`no line of a log in the format ${format}: ${line}`);
  return level;
}

describe("SIGHUP", () => {
  test("changes the level and the format of the log", async () => {
    await using directory = await temporaryDirectory("reload");
    using db = createDatabase(directory.file("app.db"));
    const write = (daemon: string) =>
      writeFileSync(directory.file("bakelite.toml"), toml(directory, daemon, [{ name: "app" }]));
    write('log_level = "info"\nlog_format = "json"');
    await using daemon = new Daemon(directory);
    await daemon.untilStatus("app", isLive, "to be live");
    write('log_level = "debug"\nlog_format = "text"');
    daemon.hangUp();
    await daemon.untilSaid(" INFO  configuration reloaded ");
    db.run("INSERT INTO t VALUES (1)");
    await daemon.untilSaid(" DEBUG ");
    write('log_level = "error"');
    daemon.hangUp();
    write('log_level = "info"\nlog_format = "json"');
    await eventually(
      async () => {
        daemon.hangUp();
        return daemon.count('"message":"configuration reloaded"') > 0;
      },
      { what: "JSON again", pollMs: 100, explain: () => daemon.stderr },
    );
    expect(await daemon.stop()).toBe(0);
  });

  test("restarts a database whose settings changed with the new ones, and leaves the others alone", async () => {
    await using directory = await temporaryDirectory("reload");
    using one = createDatabase(directory.file("one.db"));
    using two = createDatabase(directory.file("two.db"));
    const write = (settings: string, backend?: string) =>
      writeFileSync(
        directory.file("bakelite.toml"),
        toml(directory, "", [{ name: "one", settings, ...(backend !== undefined && { backend }) }, { name: "two" }]),
      );
    write("");
    await using daemon = new Daemon(directory);
    await daemon.untilStatus("one", isLive, "to be live");
    const before = await daemon.untilStatus("two", isLive, "to be live");
    write('max_segments_per_snapshot = 2\ndebounce = "0s"');
    daemon.hangUp();
    await daemon.untilSaid("configuration reloaded");
    await eventually(
      async () => {
        one.run("INSERT INTO t VALUES (1)");
        await Bun.sleep(50);
        return storedNames(directory, "one-replica/one/full").length > 1;
      },
      { what: "a full backup because of the count", deadlineMs: 30_000, explain: () => daemon.stderr },
    );
    write("", `type = "file"\npath = "${directory.file("elsewhere")}"\n`);
    daemon.hangUp();
    await daemon.untilSaid("configuration reloaded", 2);
    await eventually(() => existsSync(directory.file("elsewhere", "one")), { what: "the new destination" });
    for (let i = 0; i < 5; i++) {
      two.run("INSERT INTO t VALUES (1)");
      await Bun.sleep(50);
    }
    const after = await daemon.untilStatus("two", ({ change_sets }) => change_sets > before.change_sets, "to ship");
    expect([after.state_since, after.started_at]).toEqual([before.state_since, before.started_at]);
    expect(await daemon.stop()).toBe(0);
  });

  test("follows `db` under [daemon], unless --db says another one", async () => {
    await using directory = await temporaryDirectory("reload");
    for (const name of ["one", "two"]) createDatabase(directory.file(`${name}.db`)).close();
    const write = (daemon: string) =>
      writeFileSync(directory.file("bakelite.toml"), toml(directory, daemon, [{ name: "one" }, { name: "two" }]));
    write("");
    await using daemon = new Daemon(directory);
    await daemon.untilStatus("one", isLive, "to be live");
    await daemon.untilStatus("two", isLive, "to be live");
    write('db = "two"');
    daemon.hangUp();
    await daemon.untilStatus("one", ({ state }) => state === "stopped", "to be stopped");
    expect(await daemon.stop()).toBe(0);

    await using flagged = new Daemon(directory, ["--db", "one"]);
    await flagged.untilStatus("one", isLive, "to be live");
    write("log_level = 'debug'\ndb = \"two\"");
    flagged.hangUp();
    await flagged.untilSaid("configuration reloaded");
    await flagged.untilStatus("one", isLive, "to stay live");
    writeFileSync(directory.file("bakelite.toml"), toml(directory, "", [{ name: "two" }]));
    flagged.hangUp();
    await flagged.untilSaid("no database named `one` is configured");
    await flagged.untilStatus("one", isLive, "to stay live");
    expect(await flagged.stop()).toBe(0);
  });

  const launcher = unprivilegedLauncher();
  test("keeps the old configuration while the new one cannot be used, says why and where, and backs up on", async () => {
    await using directory = await temporaryDirectory("reload");
    using db = createDatabase(directory.file("app.db"));
    const path = directory.file("bakelite.toml");
    const good = toml(directory, "", [{ name: "app" }]);
    const write = (text: string | Uint8Array) => () => {
      rmSync(path, { force: true, recursive: true });
      writeFileSync(path, text);
    };
    write(good)();
    await using daemon = new Daemon(directory);
    await daemon.untilStatus("app", isLive, "to be live");
    const faults: readonly (readonly [what: string, make: () => void, says: string])[] = [
      [
        "a wrong value",
        write(good.replace("[daemon]", '[daemon]\nlog_level = "loud"')),
        `${path}:2:1: \`log_level\` must be`,
      ],
      ["an unknown key", write(`retension = 1\n${good}`), `${path}:1:1: unknown key \`retension\``],
      ["two faults", write(`x = 1\ny = 2\n${good}`), "invalid configuration, 2 problems:\\n  "],
      ["no TOML", write(`${good}[`), "not valid TOML: "],
      ["nothing", write(""), "nothing is in it"],
      ["no text", write(new Uint8Array([0xff, 0xfe, 0x00])), `is not UTF-8 text (${path}:1)`],
      ["no file", () => rmSync(path), `there is no configuration file named by --config (${path})`],
      ["a directory", () => mkdirSync(path), "is a directory"],
      ["a pipe", () => Bun.spawnSync(["bash", "-c", 'rm -r "$1"; mkfifo "$1"', "bash", path]), "is not a regular file"],
    ];
    for (const [, make, says] of faults) {
      const before = daemon.count(says);
      make();
      daemon.hangUp();
      await daemon.untilSaid(says, before + 1);
      const line = daemon.lines.find((each) => each.includes(says)) ?? "";
      expect(line).toContain(" ERROR the configuration was not reloaded; the old one stays in force error=");
      await untilStored(db, directory, daemon);
    }
    write(good)();
    daemon.hangUp();
    await daemon.untilSaid("configuration reloaded");
    expect(await daemon.stop()).toBe(0);
  });

  test.skipIf(launcher === undefined)(
    "a file that may not be read any more is told, and the old one stays",
    async () => {
      await using directory = await temporaryDirectory("reload");
      using _db = createDatabase(directory.file("app.db"));
      const path = directory.file("bakelite.toml");
      const good = toml(directory, "", [{ name: "app" }]);
      writeFileSync(path, good);
      await using daemon = new Daemon(directory, [], launcher);
      await daemon.untilStatus("app", isLive, "to be live");
      unreadable(path, good);
      daemon.hangUp();
      await daemon.untilSaid(`no permission to read the configuration file named by --config (${path})`);
      await daemon.untilStatus("app", isLive, "to stay live");
      expect(await daemon.stop()).toBe(0);
    },
  );

  test("a database whose new settings cannot be used goes on with the old ones; a new one is left out, and said so", async () => {
    await using directory = await temporaryDirectory("reload");
    using db = createDatabase(directory.file("app.db"));
    const path = directory.file("bakelite.toml");
    writeFileSync(path, toml(directory, "", [{ name: "app" }]));
    await using daemon = new Daemon(directory);
    await daemon.untilStatus("app", isLive, "to be live");
    const locked = `encryption = { key_file = "${directory.file("no-such-key")}" }`;
    writeFileSync(
      path,
      toml(directory, "", [
        { name: "app", settings: locked },
        { name: "new", settings: locked },
      ]),
    );
    daemon.hangUp();
    await daemon.untilSaid("configuration reloaded");
    expect(daemon.count("cannot use the new settings; the old ones stay in force db=app ")).toBe(1);
    expect(daemon.count("cannot start replicating db=new ")).toBe(1);
    expect(daemon.count("no-such-key")).toBe(2);
    await untilStored(db, directory, daemon);
    expect(await daemon.stop()).toBe(0);
  });

  test("two databases may change places in one reload", async () => {
    await using directory = await temporaryDirectory("reload");
    for (const name of ["a", "b"]) createDatabase(directory.file(`${name}.db`)).close();
    const write = (first: string, second: string) =>
      writeFileSync(
        directory.file("bakelite.toml"),
        toml(directory, "", [
          { name: "one", path: `"${directory.file(`${first}.db`)}"` },
          { name: "two", path: `"${directory.file(`${second}.db`)}"` },
        ]),
      );
    write("a", "b");
    await using daemon = new Daemon(directory);
    await daemon.untilSaid("full backup stored", 2);
    write("b", "a");
    daemon.hangUp();
    await daemon.untilSaid("configuration reloaded");
    await eventually(
      async () => {
        const read = await readStatus(statePaths(directory.file("b.db"), "one").status);
        return read.outcome === "read" && read.value.state === "live";
      },
      { what: "one to follow b.db", deadlineMs: 20_000, explain: () => daemon.stderr },
    );
    expect(daemon.count(" ERROR ")).toBe(0);
    expect(await daemon.stop()).toBe(0);
  });

  test("many at once start nothing twice, and the last file counts", async () => {
    await using directory = await temporaryDirectory("reload");
    for (const name of ["one", "two", "three"]) createDatabase(directory.file(`${name}.db`)).close();
    const write = (names: readonly string[], settings: string) =>
      writeFileSync(
        directory.file("bakelite.toml"),
        toml(
          directory,
          "",
          names.map((name) => ({ name, settings })),
        ),
      );
    write(["one"], "");
    await using daemon = new Daemon(directory);
    await daemon.untilStatus("one", isLive, "to be live");
    for (let i = 1; i <= 30; i++) {
      write(i % 2 === 0 ? ["one", "three"] : ["one", "two"], `compression_level = ${(i % 5) + 1}`);
      daemon.hangUp();
      if (i % 3 === 0) await Bun.sleep(10);
    }
    write(["one", "two", "three"], "");
    daemon.hangUp();
    for (const name of ["one", "two", "three"]) await daemon.untilStatus(name, isLive, "to be live at the end");
    expect(daemon.lines.filter((line) => / (?:ERROR|WARN) /.test(line))).toEqual([]);
    daemon.signal("SIGHUP");
    expect(await daemon.stop()).toBe(0);
  });

  test("while the daemon is still starting is answered after it", async () => {
    await using directory = await temporaryDirectory("reload");
    const names = Array.from({ length: 80 }, (_, i) => `db-${i}`);
    for (const name of names) mkdirSync(directory.file(name));
    const databases = names.map((name) => ({ name, path: `"${directory.file(name, "x.db")}"` }));
    for (const name of names) createDatabase(directory.file(name, "x.db")).close();
    writeFileSync(directory.file("bakelite.toml"), toml(directory, "", databases));
    await using daemon = new Daemon(directory);
    await eventually(() => existsSync(directory.file("db-0", ".bakelite")), { what: "the first lock", pollMs: 1 });
    daemon.hangUp();
    await daemon.untilSaid("configuration reloaded");
    expect(daemon.lines.findIndex((line) => line.includes("configuration reloaded"))).toBeGreaterThan(
      daemon.lines.findIndex((line) => line.includes("bakelite is running")),
    );
    expect(await daemon.stop()).toBe(0);
  });
});

function storedNames(directory: TemporaryDirectory, folder: string): readonly string[] {
  const path = directory.file(folder);
  return existsSync(path) ? readdirSync(path) : [];
}

/** Writes to `app` until a change is at its destination. */
async function untilStored(db: Database, directory: TemporaryDirectory, daemon: Daemon): Promise<void> {
  const before = storedNames(directory, "app-replica/app/L0").length;
  await eventually(
    () => {
      db.run("INSERT INTO t VALUES (1)");
      return storedNames(directory, "app-replica/app/L0").length > before;
    },
    { what: "a change-set to be stored", pollMs: 100, explain: () => daemon.stderr },
  );
}

function unreadable(path: string, text: string): void {
  rmSync(path, { force: true, recursive: true });
  writeFileSync(path, text);
  chmodSync(path, process.geteuid?.() === 0 ? 0o600 : 0);
  if (process.geteuid?.() === 0) chownSync(path, 65_534, 65_534);
}
