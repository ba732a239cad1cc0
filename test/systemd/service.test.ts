// deadline: 420 s
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { readdirSync } from "node:fs";
import { resolve } from "node:path";
import { eventually } from "../support/eventually.ts";
import { executablePath } from "../support/executable.ts";
import { Machine, whyNoMachine } from "./machine.ts";

const UNITS = resolve(import.meta.dir, "../../systemd");
const services = readdirSync(UNITS).filter((name) => name.endsWith(".service"));
const timers = readdirSync(UNITS).filter((name) => name.endsWith(".timer"));

const obstacle = whyNoMachine();
if (obstacle !== null) console.log(`note: the units were not tried under a real systemd: ${obstacle}`);

/** What init writes, and shorter times. */
const DROP_IN = `[Service]
User=app
ReadWritePaths=-/var/lib/app -/var/backups/bakelite
`;
const CONFIG = `[daemon]
log_level = "info"
[[database]]
name = "app"
path = "/var/lib/app/app.db"
backends = [{ type = "file", path = "/var/backups/bakelite" }]
`;
const SECOND = `[[database]]
name = "second"
path = "/var/lib/app/second.db"
backends = [{ type = "file", path = "/var/backups/bakelite" }]
`;

describe.skipIf(obstacle !== null)("under a real systemd", () => {
  let machine: Machine;

  beforeAll(async () => {
    machine = await Machine.boot({ "/opt/bakelite": executablePath(), "/opt/units": UNITS });
    await machine.sh(`
      cp /opt/bakelite /usr/bin/bakelite
      mkdir -p /usr/lib/bakelite /etc/bakelite/notify.d
      cp /opt/units/*.service /opt/units/*.timer /usr/lib/systemd/system/
      install -m 755 /opt/units/notify-failure /usr/lib/bakelite/
      useradd --system app
      install -d -o app -g app -m 750 /var/lib/app /var/backups/bakelite
    `);
    await machine.write("/etc/bakelite/bakelite.toml", CONFIG);
    for (const folder of ["bakelite.service.d", "bakelite-.service.d"])
      await machine.write(`/etc/systemd/system/${folder}/10-init.conf`, DROP_IN);
    await machine.write(
      "/etc/systemd/system/bakelite.service.d/20-test.conf",
      "[Service]\nWatchdogSec=2s\nRestartSec=200ms\n",
    );
    // Who it is that is told, and of what.
    await machine.write(
      "/etc/bakelite/notify.d/record",
      '#!/bin/sh\n{ echo "$1 $(id -un)"; cat; } >>/var/lib/app/told\n',
    );
    await machine.sh("chmod 755 /etc/bakelite/notify.d/record; systemctl daemon-reload");
    await sql("app", "PRAGMA journal_mode = WAL; CREATE TABLE t (x); INSERT INTO t VALUES (1)");
  }, 300_000);

  afterAll(async () => {
    await machine?.[Symbol.asyncDispose]();
  });

  async function sql(name: string, statements: string): Promise<string> {
    const shell = `sqlite3 -cmd '.timeout 5000' /var/lib/app/${name}.db "$1"`;
    return (await machine.run("runuser", "-u", "app", "--", "sh", "-c", shell, "sh", statements)).trim();
  }

  /** `--check` is content with a database that is starting, too. */
  async function untilLive(name = "app"): Promise<void> {
    const check = () => machine.tryRun("bakelite", "status", "--db", name);
    await eventually(async () => new RegExp(`^${name} +live `, "m").test((await check()).stdout), {
      what: `${name} to be live`,
      pollMs: 100,
      deadlineMs: 20_000,
      explain: async () => `${JSON.stringify(await check())}\n${await machine.journal("bakelite.service")}`,
    });
  }

  /** A unit, once it has come to its end after `action`; throws when it did not begin. */
  async function result(unit: string): Promise<{ readonly result: string; readonly said: string }> {
    await machine.tryRun("systemctl", "start", unit);
    return { result: await machine.property(unit, "Result"), said: await machine.journal(unit) };
  }

  async function told(): Promise<string> {
    return (await machine.tryRun("cat", "/var/lib/app/told")).stdout;
  }

  const mainPid = () => machine.property("bakelite.service", "MainPID");

  test("every unit is understood, and the sandbox of each service leaves little to attack", async () => {
    const units = [...services, ...timers].map((name) => name.replace("@.", "@x."));
    expect(units).toHaveLength(10);
    expect(
      await machine.tryRun(
        "systemd-analyze",
        "verify",
        "--man=no",
        ...units.map((name) => `/usr/lib/systemd/system/${name}`),
      ),
    ).toEqual({
      status: 0,
      stdout: "",
      stderr: "",
    });
    for (const unit of units.filter((name) => name.endsWith(".service"))) {
      const path = `/tmp/${unit}`;
      // As installed, without what a drop-in adds.
      await machine.run("cp", `/usr/lib/systemd/system/${unit.replace("@x.", "@.")}`, path);
      await machine.run("systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold=19", path);
    }
  });

  test("the daemon says when it is ready, and backs up as the user of its drop-in", async () => {
    await machine.run("systemctl", "start", "bakelite.service");
    expect(await machine.property("bakelite.service", "SubState")).toBe("running");
    await untilLive();
    const pid = await mainPid();
    expect((await machine.run("ps", "-o", "user=", "-p", pid)).trim()).toBe("app");
    const limits = await machine.run("cat", `/proc/${pid}/limits`);
    // As many as the unit says, or as this host allows.
    expect(Number(/Max open files +(\d+) +\1 /.exec(limits)?.[1])).toBeGreaterThan(10_000);
    expect(limits).toMatch(/Max core file size +0 +0/);
    await sql("app", "INSERT INTO t VALUES (2)");
    await eventually(
      async () =>
        (await machine.run("bakelite", "restore", "--db", "app", "--output", "/tmp/r.db", "--force")) !== null &&
        (await machine.run("sqlite3", "/tmp/r.db", "SELECT count(*) FROM t")).trim() === "2",
      { what: "the second row in a restore", pollMs: 200 },
    );
    expect((await machine.run("stat", "-c", "%U %a", "/var/lib/app/.bakelite")).trim()).toBe("app 700");
    expect(await machine.journal("bakelite.service")).not.toMatch(/WARN|ERROR/);
  });

  test("it sees who holds the WAL, and writes only where it may", async () => {
    const pid = await mainPid();
    const inside = (script: string) => machine.tryRun("nsenter", "--target", pid, "--mount", "sh", "-c", script);
    expect((await inside("cat /proc/locks")).status).toBe(0);
    for (const path of ["/etc/x", "/usr/x", "/var/lib/x", "/var/lib/other/x", "/opt/x", "/x", "/boot/x"])
      expect((await inside(`mkdir -p "$(dirname ${path})" && echo >${path}`)).stderr).toMatch(/Read-only file system/);
    for (const path of ["/var/lib/app/x", "/var/backups/bakelite/x", "/var/lib/bakelite/x", "/tmp/x"])
      expect(await inside(`echo >${path} && rm ${path}`)).toMatchObject({ status: 0, stderr: "" });
    expect((await inside("ls -A /home /root")).stdout).toBe("/home:\n\n/root:\n");
  });

  test("reload takes up the new configuration in the same process", async () => {
    const pid = await mainPid();
    await sql("second", "PRAGMA journal_mode = WAL; CREATE TABLE t (x)");
    await machine.write("/etc/bakelite/bakelite.toml", `${CONFIG}${SECOND}`);
    await machine.run("systemctl", "reload", "bakelite.service");
    await untilLive("second");
    expect(await mainPid()).toBe(pid);
  });

  test("killed, it is started again; standing still, it is killed by the watchdog first", async () => {
    for (const [signal, why] of [
      ["SIGKILL", "signal"],
      ["SIGSTOP", "watchdog"],
    ] as const) {
      const pid = await mainPid();
      await machine.run("systemctl", "kill", `--signal=${signal}`, "--kill-who=main", "bakelite.service");
      await eventually(async () => !["0", pid].includes(await mainPid()), {
        what: "another process",
        pollMs: 100,
        deadlineMs: 15_000,
      });
      await untilLive();
      expect(await machine.journal("bakelite.service")).toContain(`Failed with result '${why}'`);
    }
    expect(await machine.property("bakelite.service", "NRestarts")).toBe("2");
    await sql("app", "INSERT INTO t VALUES (3)");
    await untilLive();
  });

  test("verify, the drill and repair run as the same user, and after them the check is silent", async () => {
    const before = await result("bakelite-check.service");
    expect(before).toMatchObject({ result: "exit-code", said: expect.stringContaining("app: never verified") });
    for (const unit of ["bakelite-verify.service", "bakelite-verify-deep.service", "bakelite-repair.service"])
      expect({ unit, ...(await result(unit)) }).toMatchObject({ unit, result: "success" });
    expect((await machine.run("stat", "-c", "%U", "/var/lib/app/.bakelite/app.verify.json")).trim()).toBe("app");
    const said = (await machine.journal("bakelite-check.service")).length;
    const after = await result("bakelite-check.service");
    expect(after.result).toBe("success");
    expect(after.said.slice(said)).not.toMatch(/^(app|second):/m);
  });

  test("the lines for cron are silent while all is well, and where nothing is installed", async () => {
    const file = await Bun.file(resolve(UNITS, "bakelite.cron")).text();
    const lines = [...file.matchAll(/^[\d*/]+(?: [\d*]+){4} +root {2}(.*)$/gm)].map(([, command = ""]) => command);
    expect(lines).toHaveLength(4);
    const run = (command: string, path: string) =>
      machine.tryRun("runuser", "-u", "app", "--", "env", `PATH=${path}`, "/bin/sh", "-c", command);
    for (const command of lines)
      for (const path of ["/usr/bin:/bin", "/nowhere"])
        expect({ command, path, ...(await run(command, path)) }).toEqual({
          command,
          path,
          status: 0,
          stdout: "",
          stderr: "",
        });
    await machine.run("mv", "/var/backups/bakelite/app", "/var/backups/away");
    const [, verify = ""] = lines;
    expect(await run(verify, "/usr/bin:/bin")).toMatchObject({ status: 1, stdout: expect.stringContaining("app") });
    await machine.run("mv", "/var/backups/away", "/var/backups/bakelite/app");
  });

  test("what fails is told to the programs in notify.d, and not without end", async () => {
    await eventually(async () => (await told()).includes("bakelite-check.service app\n"), { what: "being told" });
    expect(await told()).toContain("bakelite-check.service failed on");
    expect(await told()).toContain("app: never verified");
    await machine.run("systemctl", "stop", "bakelite.service");
    // What was told before it recovered may be forgotten by then; of this failure three are told.
    const count = async () => (await told()).split("bakelite-check.service app\n").length - 1;
    const teller = "bakelite-notify-failure@bakelite-check.service.service";
    await eventually(
      async () => {
        expect((await result("bakelite-check.service")).result).toBe("exit-code");
        return (await machine.property(teller, "Result")) === "start-limit-hit";
      },
      { what: "enough being told", pollMs: 200 },
    );
    const messages = await count();
    expect([3, 4]).toContain(messages);
    await machine.write("/etc/bakelite/bakelite.toml", "[oops]\n");
    expect((await machine.tryRun("systemctl", "start", "bakelite.service")).status).not.toBe(0);
    expect(await machine.property("bakelite.service", "ActiveState")).toBe("failed");
    expect(await machine.property("bakelite.service", "ExecMainStatus")).toBe("2");
    await eventually(async () => (await told()).includes("bakelite.service app\n"), {
      what: "the daemon's end being told",
    });
    expect(await count()).toBe(messages);
    await machine.write("/etc/bakelite/bakelite.toml", CONFIG);
  });

  test("as long as there is no program to tell, the journal says that nobody was told", async () => {
    await machine.run("chmod", "-x", "/etc/bakelite/notify.d/record");
    const outcome = await result("bakelite-notify-failure@nobody.service");
    expect(outcome.result).toBe("exit-code");
    expect(outcome.said).toContain("nobody failed, and nobody was told: there is no program in /etc/bakelite/notify.d");
  });

  test("stopped, it ships what is left and ends with 0 within 10 s", async () => {
    await machine.run("systemctl", "start", "bakelite.service");
    await untilLive();
    await sql("app", "INSERT INTO t VALUES (4)");
    const startMs = performance.now();
    await machine.run("systemctl", "stop", "bakelite.service");
    expect(performance.now() - startMs).toBeLessThan(10_000);
    expect(await machine.property("bakelite.service", "Result")).toBe("success");
    expect(await machine.property("bakelite.service", "ExecMainStatus")).toBe("0");
    expect((await machine.tryRun("bakelite", "status")).stdout).toMatch(/^app +stopped /m);
    await machine.run("bakelite", "restore", "--db", "app", "--output", "/tmp/r.db", "--force");
    const journal = await machine.journal("bakelite.service");
    const rows = (await machine.run("sqlite3", "/tmp/r.db", "SELECT group_concat(x) FROM t")).trim();
    expect({ rows, journal: journal.slice(-1500) }).toMatchObject({ rows: "1,2,3,4" });
  });

  test("as root over an application's database, it needs the privileges that the manual names, and no more", async () => {
    const manual = await Bun.file(resolve(import.meta.dir, "../../docs/operations.md")).text();
    const named = /^\[Service\]\nCapabilityBoundingSet=.*\nSystemCallFilter=.*\n/m.exec(manual)?.[0];
    const own = "/etc/systemd/system/bakelite.service.d/10-init.conf";
    const before = await machine.run("cat", own);
    const paths = before.split("\n").find((line) => line.startsWith("ReadWritePaths="));
    await machine.write(own, `${named}${paths}\n`);
    await machine.sh("rm -rf /var/lib/app/.bakelite; systemctl daemon-reload; systemctl start bakelite.service");
    await untilLive();
    await sql("app", "INSERT INTO t VALUES (5)");
    await untilLive();
    expect((await machine.run("ps", "-o", "user=", "-p", await mainPid())).trim()).toBe("root");
    const owners = await machine.run("find", "/var/lib/app", "-printf", "%u\n");
    expect([...new Set(owners.trim().split("\n"))]).toEqual(["app"]);
    await machine.run("systemctl", "stop", "bakelite.service");
    await machine.write(own, before);
    await machine.run("systemctl", "daemon-reload");
  });

  test("timers fire, also for what was due while the machine was off", async () => {
    const soon = "[Timer]\nOnCalendar=*:*:*\nRandomizedDelaySec=0\nAccuracySec=1ms\n";
    await machine.write("/etc/systemd/system/bakelite-check.timer.d/test.conf", soon);
    await machine.write("/etc/systemd/system/bakelite-verify.timer.d/test.conf", "[Timer]\nRandomizedDelaySec=0\n");
    await machine.sh(
      "systemctl daemon-reload; touch -d '3 days ago' /var/lib/systemd/timers/stamp-bakelite-verify.timer",
    );
    const started = (unit: string) => machine.property(unit, "ExecMainStartTimestampMonotonic");
    const before = [await started("bakelite-check.service"), await started("bakelite-verify.service")];
    await machine.run("systemctl", "enable", "--now", ...timers);
    await eventually(async () => (await started("bakelite-check.service")) !== before[0], {
      what: "the check",
      pollMs: 100,
    });
    await eventually(async () => (await started("bakelite-verify.service")) !== before[1], {
      what: "the verify",
      pollMs: 100,
    });
    const due = await machine.run("systemctl", "list-timers", "--no-pager", "--no-legend");
    for (const timer of timers) expect(due).toContain(timer);
    await machine.run("systemctl", "disable", "--now", ...timers);
  });
});
