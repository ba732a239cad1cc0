import { Database } from "bun:sqlite";
import { expect, test } from "bun:test";
import { writeFile } from "node:fs/promises";
import { startSshd } from "../servers/sshd.ts";
import { eventually } from "../support/eventually.ts";
import { executablePath } from "../support/executable.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";

test("the executable backs up to an SFTP server whose sessions die, and restores from it", async () => {
  await using directory = await temporaryDirectory("sftp-executable");
  await using server = await startSshd();
  using database = new Database(directory.file("app.db"));
  database.run("PRAGMA journal_mode = WAL");
  database.run("CREATE TABLE t (x)");
  const fill = database.query("INSERT INTO t VALUES (randomblob(1000))");
  database.transaction(() => {
    for (let i = 0; i < 20_000; i++) fill.run();
  })();
  const keys = Object.entries({ ...server.table(server.newPath()), timeout: "5s" });
  const table = keys.map(([key, value]) => `${key} = ${JSON.stringify(value)}`).join("\n");
  const config = directory.file("bakelite.toml");
  const log = directory.file("log");
  await writeFile(
    config,
    `[[database]]\nname = "app"\npath = ${JSON.stringify(directory.file("app.db"))}\n[[database.backends]]\n${table}\n`,
  );
  const run = async (...args: readonly string[]) => {
    const child = Bun.spawn([executablePath(), ...args, "--config", config], { stdout: "pipe", stderr: "pipe" });
    const [stdout, stderr] = await Promise.all([child.stdout.text(), child.stderr.text()]);
    return { status: await child.exited, stdout, stderr };
  };
  const logged = async () => await Bun.file(log).text();
  const daemon = Bun.spawn([executablePath(), "daemon", "--config", config], {
    stdout: "ignore",
    stderr: Bun.file(log),
  });
  try {
    const explain = logged;
    await eventually(async () => (await logged()).includes("full backup begins"), { what: "the backup", explain });
    await eventually(async () => (await server.sessionCount()) > 0, { what: "a session", pollMs: 0, explain });
    await server.killSessions();
    await eventually(async () => (await logged()).includes("full backup stored"), {
      what: "the full backup",
      deadlineMs: 30_000,
      explain,
    });
    fill.run();
    const newest = async () => (await run("verify")).stdout.includes("clean") && (await rowsRestored()) === 20_001;
    let restoreCount = 0;
    const rowsRestored = async () => {
      const output = directory.file(`out-${++restoreCount}.db`);
      expect(await run("restore", "--db", "app", "--output", output)).toMatchObject({ status: 0 });
      using restored = new Database(output, { readonly: true });
      return restored.query<{ n: number }, []>("SELECT count(*) AS n FROM t").get()?.n;
    };
    await eventually(newest, { what: "the newest row to be restorable", deadlineMs: 20_000, pollMs: 200, explain });
    expect((await run("list")).stdout).toContain("app");
    const doctor = await run("doctor");
    expect(doctor.stdout).toContain("host key            ssh-ed25519 SHA256:");
    daemon.kill("SIGTERM");
    expect(await daemon.exited).toBe(0);
  } finally {
    daemon.kill("SIGKILL");
  }
}, 90_000);
