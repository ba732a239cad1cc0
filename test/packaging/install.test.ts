// deadline: 420 s
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdirSync, rmSync } from "node:fs";
import { findProgram } from "../servers/programs.ts";
import { eventually } from "../support/eventually.ts";
import { executablePath } from "../support/executable.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";
import { Machine, whyNoMachine } from "../systemd/machine.ts";
import { buildPackages } from "./build-packages.ts";

const tools = ["dpkg-deb", "rpmbuild"].filter((name) => findProgram(name) === null);
const obstacle = tools.length > 0 ? `${tools.join(", ")} not installed` : whyNoMachine();
if (obstacle !== null) console.log(`note: packages were not installed anywhere: ${obstacle}`);

const DATABASE = "/var/lib/app/app.db";
const REPLICA = "/var/backups/bakelite";
/** The reference's words. */
const INIT = [
  ...["bakelite", "init", "--yes", "--force", "--db-path", DATABASE, "--db-name", "app"],
  ...["--backup-dir", REPLICA, "--encrypt", "--service-user", "app", "--enable"],
];
const ROWS = "SELECT count(*), coalesce(sum(x), 0) FROM t";

describe.skipIf(obstacle !== null)("on a small Debian with a real systemd", () => {
  let directory: TemporaryDirectory;
  let machine: Machine;

  beforeAll(async () => {
    directory = await temporaryDirectory("install");
    mkdirSync(directory.file("out"));
    const built = await buildPackages(executablePath(), directory.file("out"));
    expect(built).toMatchObject({ status: 0 });
    machine = await Machine.boot({ "/opt/packages": directory.file("out") });
    await machine.sh("useradd --system --create-home app; install -d -o app -g app -m 750 /var/lib/app");
    await sql("PRAGMA journal_mode = WAL; CREATE TABLE t (x); INSERT INTO t VALUES (1)");
  }, 300_000);

  afterAll(async () => {
    await machine?.[Symbol.asyncDispose]();
    if (directory !== undefined) {
      rmSync(directory.file("out"), { recursive: true, force: true });
      await directory[Symbol.asyncDispose]();
    }
  });

  /** As the application's own user. */
  async function sql(statements: string): Promise<string> {
    const shell = `sqlite3 -cmd '.timeout 5000' ${DATABASE} "$1"`;
    return (await machine.run("runuser", "-u", "app", "--", "sh", "-c", shell, "sh", statements)).trim();
  }

  async function untilShipped(): Promise<void> {
    const wanted = await sql(ROWS);
    await eventually(
      async () => {
        await machine.run("rm", "-f", "/tmp/restored.db");
        await machine.run("bakelite", "restore", "--db", "app", "--output", "/tmp/restored.db");
        return (await machine.run("sqlite3", "/tmp/restored.db", ROWS)).trim() === wanted;
      },
      {
        what: "every row in a restore",
        pollMs: 200,
        deadlineMs: 30_000,
        explain: () => machine.journal("bakelite.service"),
      },
    );
  }

  const active = () => machine.property("bakelite.service", "ActiveState");
  const mainPid = () => machine.property("bakelite.service", "MainPID");
  /** What must survive whatever a package manager does. */
  const belongings = (more = "") =>
    machine.sh(
      `find ${REPLICA} /etc/bakelite -type f -path '*key*' -o -path '${REPLICA}/*' -type f | sort | xargs sha256sum ${more}`,
    );
  const isThere = async (path: string) => (await machine.tryRun("test", "-e", path)).status === 0;

  test("installed, nothing runs, and every command says what to do next", async () => {
    await machine.sh("dpkg -i /opt/packages/*.deb");
    const states = await machine.run("systemctl", "list-unit-files", "--no-legend", "bakelite*");
    expect(states.trim().split("\n")).toHaveLength(10);
    expect(states).not.toMatch(/ enabled /);
    expect(await active()).toBe("inactive");
    const doctor = await machine.tryRun("bakelite", "doctor");
    expect(doctor.status).toBe(2);
    expect(doctor.stderr).toContain("bakelite init");
    expect(await machine.run("bakelite", "version")).toContain("bakelite");
  });

  test("the reference's one command brings it to a running, encrypted backup as the application's user", async () => {
    expect(await machine.tryRun(...INIT)).toMatchObject({ status: 0 });
    expect(await active()).toBe("active");
    expect((await machine.run("ps", "-o", "user=", "-p", await mainPid())).trim()).toBe("app");
    await sql("INSERT INTO t VALUES (2)");
    await untilShipped();
    await eventually(async () => (await machine.tryRun("bakelite", "status", "--check")).status === 0, {
      what: "all well",
    });
    expect(await machine.journal("bakelite.service")).not.toMatch(/ERROR/);
  });

  test("killed and rebooted, it goes on, and a restore elsewhere has every row", async () => {
    const pid = await mainPid();
    await machine.run("systemctl", "kill", "--signal=SIGKILL", "bakelite.service");
    await eventually(async () => !["0", pid].includes(await mainPid()), {
      what: "another process",
      deadlineMs: 40_000,
      explain: () => machine.journal("bakelite.service"),
    });
    await sql("INSERT INTO t VALUES (3)");
    await untilShipped();
    await machine.reboot();
    await eventually(async () => (await active()) === "active", { what: "the service after the boot" });
    await sql("INSERT INTO t VALUES (4)");
    await untilShipped();
    expect(await sql(ROWS)).toBe("4|10");
    expect((await machine.run("sqlite3", "/tmp/restored.db", "PRAGMA integrity_check")).trim()).toBe("ok");
  }, 60_000);

  test("an upgrade keeps configuration and keys, and restarts only what runs", async () => {
    const config = await machine.run("cat", "/etc/bakelite/bakelite.toml");
    const before = await machine.sh("find /etc/bakelite -type f | sort | xargs sha256sum");
    const pid = await mainPid();
    await machine.sh("dpkg -i /opt/packages/*.deb </dev/null");
    expect(await active()).toBe("active");
    expect(await mainPid()).not.toBe(pid);
    expect(await machine.run("cat", "/etc/bakelite/bakelite.toml")).toBe(config);
    expect(await machine.sh("find /etc/bakelite -type f | sort | xargs sha256sum")).toBe(before);
    await machine.run("systemctl", "stop", "bakelite.service");
    await machine.sh("dpkg -i /opt/packages/*.deb </dev/null");
    expect(await active()).toBe("inactive");
  }, 60_000);

  test("neither remove nor purge takes a replica, a key or a database", async () => {
    await machine.run("systemctl", "start", "bakelite.service");
    await sql("INSERT INTO t VALUES (5)");
    await untilShipped();
    await machine.run("systemctl", "stop", "bakelite.service");
    const before = await belongings();
    expect(before).toMatch(/\/etc\/bakelite\/\S*key/);
    expect(before.match(/\/var\/backups/g)?.length).toBeGreaterThan(2);
    await machine.run("systemctl", "start", "bakelite.service");
    await machine.tryRun("systemctl", "start", "bakelite-notify-failure@nobody.service");
    await machine.run("dpkg", "--remove", "bakelite");
    expect(await machine.run("systemctl", "--failed", "--no-legend", "--plain")).not.toContain("bakelite");
    expect(await isThere("/usr/bin/bakelite")).toBe(false);
    expect((await machine.tryRun("pgrep", "-x", "bakelite")).status).toBe(1);
    expect(await isThere("/etc/bakelite/bakelite.toml")).toBe(true);
    await machine.run("dpkg", "--purge", "bakelite");
    for (const gone of [
      "/etc/bakelite/bakelite.toml",
      "/etc/systemd/system/multi-user.target.wants/bakelite.service",
      "/etc/systemd/system/bakelite.service.d",
      "/etc/systemd/system/bakelite-.service.d",
    ])
      expect({ gone, isThere: await isThere(gone) }).toEqual({ gone, isThere: false });
    const after = await belongings();
    for (const line of before
      .trim()
      .split("\n")
      .filter((each) => /key|\.p$/.test(each)))
      expect(after).toContain(line);
    expect(await sql(ROWS)).toBe("5|15");
  }, 60_000);

  test("the rpm: installed, upgraded, removed; the backup goes on where it was", async () => {
    await machine.sh("rpm -i --nodeps /opt/packages/*.rpm");
    expect(await machine.run("systemctl", "list-unit-files", "--no-legend", "bakelite*")).not.toMatch(/ enabled /);
    expect(await machine.tryRun(...INIT)).toMatchObject({ status: 0 });
    expect(await active()).toBe("active");
    await sql("INSERT INTO t VALUES (6)");
    await untilShipped();
    const pid = await mainPid();
    const config = await machine.run("cat", "/etc/bakelite/bakelite.toml");
    await machine.sh("rpm -U --nodeps --replacepkgs --replacefiles /opt/packages/*.rpm");
    expect(await active()).toBe("active");
    expect(await machine.run("cat", "/etc/bakelite/bakelite.toml")).toBe(config);
    expect(["0", pid]).not.toContain(await mainPid());
    const before = await belongings();
    await machine.run("rpm", "-e", "--nodeps", "bakelite");
    expect(await isThere("/usr/bin/bakelite")).toBe(false);
    expect(await isThere("/etc/systemd/system/multi-user.target.wants/bakelite.service")).toBe(false);
    expect((await machine.tryRun("pgrep", "-x", "bakelite")).status).toBe(1);
    expect(await machine.run("cat", "/etc/bakelite/bakelite.toml.rpmsave")).toBe(config);
    const after = await belongings();
    for (const line of before
      .trim()
      .split("\n")
      .filter((each) => /key|\.p$/.test(each)))
      expect(after).toContain(line);
  }, 60_000);
});
